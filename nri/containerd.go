// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/api/events"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// othersNamespaces are containerd's namespaces whose containers come to Sidegate by another
// way: CRI's by NRI, Docker's by its network driver.
func othersNamespaces() []string { return []string{"k8s.io", "moby"} }

// nerdctlName is the label that has the name of a container of nerdctl.
const nerdctlName = "nerdctl/name"

// containerdTopics are the events that tell of processes: created, when the hooks have run
// and the program has not, and started.
func containerdTopics() []string {
	return []string{`topic=="/tasks/create"`, `topic=="/tasks/start"`, `topic=="/tasks/delete"`}
}

const notAdopted = "a container could not be taken over: correct what error says, and start it again"

// containerdFields are those of a message about a container of which its id is known: of containerd's own namespaces, which
// are no pods.
func containerdFields(namespace, id string) logrus.Fields {
	return logrus.Fields{cli.FieldPod: namespace + "/" + id, cli.FieldContainerID: id}
}

// watchContainerd takes over containers that NRI says nothing of, until ctx ends. With
// the runtime wrapper they are registered before they start, and there is nothing to do.
func (p *plugin) watchContainerd(ctx context.Context, address string) {
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		began := time.Now()
		err := p.followContainerd(ctx, address)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > lastPause {
			pause, said = firstPause, ""
		}
		if text := fmt.Sprint(err); text != said {
			said = text
			p.log.WithField(cli.FieldPath, address).WithField(logrus.ErrorKey, text).
				Warn("containerd's events do not come, trying again: containers outside of CRI that start without the runtime wrapper are open until then")
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// followContainerd makes one connection: what runs, and then what starts and ends.
func (p *plugin) followContainerd(ctx context.Context, address string) error {
	c, err := client.New(address, client.WithTimeout(registration))
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before the list, so that nothing is missed between. What is in both is done once.
	envelopes, failures := c.Subscribe(ctx, containerdTopics()...)
	if err := p.listContainerd(ctx, c); err != nil {
		return err
	}
	for {
		select {
		case err := <-failures:
			return cmp.Or(err, errors.New("the stream has ended"))
		case e := <-envelopes:
			if slices.Contains(othersNamespaces(), e.Namespace) {
				continue
			}
			event, err := typeurl.UnmarshalAny(e.Event)
			if err != nil {
				p.log.WithFields(logrus.Fields{cli.FieldPath: address, cli.FieldRequest: e.Topic}).WithError(err).
					Error("an event of containerd cannot be read: if a container started with it, start it again by the runtime wrapper")
				continue
			}
			p.containerdEvent(namespaces.WithNamespace(ctx, e.Namespace), c, e.Namespace, event)
		}
	}
}

func (p *plugin) containerdEvent(ctx context.Context, c *client.Client, namespace string, event any) {
	var id string
	var pid uint32
	switch e := event.(type) {
	case *events.TaskCreate:
		id, pid = e.ContainerID, e.Pid
	case *events.TaskStart:
		id, pid = e.ContainerID, e.Pid
	case *events.TaskDelete:
		if e.ID != "" && e.ID != e.ContainerID { // an exec's
			return
		}
		if err := p.kernel.forget(p.config.Load(), e.ContainerID); err != nil {
			p.log.WithFields(containerdFields(namespace, e.ContainerID)).WithError(err).
				Error("a container that has ended is not forgotten: the next one that ends tries again")
		}
		p.collectSoon()
		return
	default:
		return
	}
	info, err := c.ContainerService().Get(ctx, id)
	if errdefs.IsNotFound(err) {
		return
	}
	if err == nil {
		err = p.adoptContainerd(namespace, info, int(pid))
	}
	if err != nil {
		p.log.WithFields(containerdFields(namespace, id)).WithError(err).Error(notAdopted)
	}
}

// listContainerd takes over what runs.
func (p *plugin) listContainerd(ctx context.Context, c *client.Client) error {
	all, err := c.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list containerd's namespaces: %w", err)
	}
	for _, namespace := range all {
		if slices.Contains(othersNamespaces(), namespace) {
			continue
		}
		ctx := namespaces.WithNamespace(ctx, namespace)
		list, err := c.ContainerService().List(ctx)
		if err != nil {
			return fmt.Errorf("list containers of containerd's namespace %s: %w", namespace, err)
		}
		running, err := c.TaskService().List(ctx, &tasks.ListTasksRequest{})
		if err != nil {
			return fmt.Errorf("list tasks of containerd's namespace %s: %w", namespace, err)
		}
		pids := make(map[string]int)
		for _, t := range running.Tasks {
			pids[t.ID] = int(t.Pid)
		}
		for _, info := range list {
			if err := p.adoptContainerd(namespace, info, pids[info.ID]); err != nil {
				p.log.WithFields(containerdFields(namespace, info.ID)).WithError(err).Error(notAdopted)
			}
		}
	}
	return nil
}

// roleOf finds the role of a container that may not say it.
func (p *plugin) roleOf(c *config, request policy.Request, what container) (policy.Role, error) {
	if what.role != policy.RoleUnset {
		return what.role, nil
	}
	pol, err := p.kernel.policyOf(c, &pod{request: policy.PodRequest{Request: request}})
	if err != nil {
		return policy.RoleUnset, err
	}
	return policy.RoleOf(policy.Container{Name: what.name, Request: request}, pol)
}

// adoptContainerd registers a container that asks for it by its labels, or by its
// annotations, as podman's do. One that cannot be registered has no network.
func (p *plugin) adoptContainerd(namespace string, info containers.Container, pid int) error {
	if pid <= 0 {
		return nil
	}
	keys := make(map[string]string)
	splice := cgroups.Splice{Why: "containerd does not tell its configuration"}
	if info.Spec != nil {
		var spec specs.Spec
		if err := typeurl.UnmarshalTo(info.Spec, &spec); err != nil {
			return fmt.Errorf("read its configuration: %w", err)
		}
		maps.Copy(keys, spec.Annotations)
		if spec.Linux != nil {
			splice = spliceUnder(spec.Linux.Seccomp)
		}
	}
	maps.Copy(keys, info.Labels)
	maps.DeleteFunc(keys, func(key, _ string) bool { return policy.IsKeyOfContainer(key) })
	request, err := policy.ParseRequest(keys)
	if err == nil && !request.Managed {
		return nil
	}
	c := p.config.Load()
	what := container{id: info.ID, name: cmp.Or(info.Labels[nerdctlName], info.ID), runtime: "containerd", pid: pid, role: request.Role, splice: splice, ktls: request.KTLS}
	one := &pod{name: cmp.Or(request.Pod, namespace+"/"+info.ID), policy: request.Policy}
	var got cgroups.Adopted
	if err == nil {
		what.role, err = p.roleOf(c, request, what)
	}
	if err == nil {
		got, err = p.kernel.adopt(c, one, what)
	}
	if err != nil {
		p.metrics.adoption("refused")
		return fmt.Errorf("it has no network until it is started again: %w", errors.Join(err, p.kernel.shut(c, one, what)))
	}
	if !got.Already {
		p.metrics.adoption("adopted")
		entry := p.log.WithFields(adoptedFields(one, what, got))
		entry.Info("took over a container that has no hook: run it by the runtime wrapper to have it from the start")
		if err := checkKTLS(what); err != nil {
			entry.WithError(err).Warn(noKTLS)
		}
	}
	return nil
}
