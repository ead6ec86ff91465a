// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"sidegate/observe/cli"
	"sidegate/policy"
)

// pod is what is known of a pod sandbox. One request at a time changes it, with its
// mutex held.
type pod struct {
	mu      sync.Mutex
	id      string
	name    string // namespace/name
	sandbox *api.PodSandbox
	request policy.PodRequest
	netns   string // path of its network namespace; "" if that is the host's
	managed bool   // it is, or has to be, closed
	left    string // why it is left alone, whatever its containers are named
	policy  string // that it is under; "" before it is closed
	// containers are those that were told of and not removed.
	containers map[string]*api.Container
}

// runs returns the containers that have a process, by their names.
func (p *pod) runs() []*api.Container {
	var list []*api.Container
	for _, c := range p.containers {
		if c.GetPid() > 0 && c.GetState() != api.ContainerState_CONTAINER_STOPPED {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *api.Container) int { return strings.Compare(a.GetName(), b.GetName()) })
	return list
}

// hasSidecar tells whether one of its containers is a sidecar by its name.
func (p *pod) hasSidecar() bool {
	for _, c := range p.containers {
		if p.request.NamesSidecar(c.GetName()) {
			return true
		}
	}
	return false
}

// own returns what a container asks for by annotations of its own. Those that the
// runtime copied from the pod are the pod's. Its labels are not asked: containerd puts
// those of its image among them, and an image must not say what it is.
func (p *pod) own(c *api.Container) (policy.Request, error) {
	keys := make(map[string]string)
	of := p.sandbox.GetAnnotations()
	for key, value := range c.GetAnnotations() {
		if pods, has := of[key]; !has || pods != value {
			keys[key] = value
		}
	}
	maps.DeleteFunc(keys, func(key, _ string) bool { return policy.IsKeyOfContainer(key) })
	return policy.ParseRequest(keys)
}

// pods are those that the runtime told of and that were not removed since.
type pods struct {
	mu   sync.Mutex
	byID map[string]*pod
	// gone are names of pods that have ended and may not be collected yet.
	gone map[string]bool
}

func (p *pods) get(id string) *pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[id]
}

func (p *pods) put(one *pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byID[one.id] = one
}

func (p *pods) remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, id)
}

// reset replaces all.
func (p *pods) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byID, p.gone = make(map[string]*pod), make(map[string]bool)
}

// end notes that a pod has ended.
func (p *pods) end(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone[name] = true
}

// ended returns the names of those that have ended and may not be collected yet.
func (p *pods) ended() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.gone))
}

// collected notes which of those that have ended are collected: all but left. It returns the others.
func (p *pods) collected(ended, left []string) (others []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range ended {
		if slices.Contains(left, name) {
			others = append(others, name)
		} else {
			delete(p.gone, name)
		}
	}
	return others
}

// subject is what a request or a message is about: a pod, or a container of it.
type subject struct{ pod, podID, container, containerID string }

func podSubject(s *api.PodSandbox) subject { return subject{pod: podName(s), podID: s.GetId()} }

func containerSubject(s *api.PodSandbox, c *api.Container) subject {
	return subject{podName(s), s.GetId(), c.GetName(), c.GetId()}
}

// subject is one of the pod's containers, or the pod, if the names are empty.
func (p *pod) subject(container, id string) subject { return subject{p.name, p.id, container, id} }

// String is what people are told.
func (s subject) String() string {
	if s.container == "" && s.containerID == "" {
		return "pod " + s.pod
	}
	return "container " + s.pod + "/" + s.container
}

// fields are what logs have of it.
func (s subject) fields() logrus.Fields {
	f := make(logrus.Fields)
	for key, value := range map[string]string{
		cli.FieldPod: s.pod, cli.FieldPodID: s.podID, cli.FieldContainer: s.container, cli.FieldContainerID: s.containerID,
	} {
		if value != "" {
			f[key] = value
		}
	}
	return f
}

// podName is the name of a pod for people, as kubectl writes it.
func podName(s *api.PodSandbox) string {
	name := cmp.Or(s.GetName(), s.GetId())
	if s.GetNamespace() == "" {
		return name
	}
	return s.GetNamespace() + "/" + name
}

// netnsOf returns the path of a pod's network namespace, "" if that is the host's.
// Runtimes list the namespaces that they made; one without a path is the process's.
func netnsOf(s *api.PodSandbox) string {
	for _, ns := range s.GetLinux().GetNamespaces() {
		if ns.GetType() != "network" {
			continue
		}
		if ns.GetPath() != "" {
			return ns.GetPath()
		}
		if pid := s.GetPid(); pid > 0 {
			return fmt.Sprintf("/proc/%d/ns/net", pid)
		}
	}
	return ""
}
