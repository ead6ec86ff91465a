// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// plugin answers the runtime. The runtime sends one request after the other, under
// one lock, and waits for each.
type plugin struct {
	log     *logrus.Logger
	metrics *metrics
	kernel  kernel
	pods    pods

	config  atomic.Pointer[config]
	options options
	runtime atomic.Pointer[string] // as it calls itself
	// limit is how long a request may take: a part of what the runtime waits for
	// before it goes on without this plugin.
	limit atomic.Int64 // time.Duration

	configured chan struct{} // gets a value when the runtime has configured the plugin
	catching   chan struct{} // holds a value while what ran before is taken over, or what ended is forgotten
	collecting chan struct{} // holds a value while somebody is about to do the latter
}

func newPlugin(c config, o options, m *metrics, log *logrus.Logger) *plugin {
	p := &plugin{log: log, metrics: m, options: o, configured: make(chan struct{}, 1), catching: make(chan struct{}, 1), collecting: make(chan struct{}, 1)}
	p.kernel.log = log
	p.pods.reset()
	p.config.Store(&c)
	p.runtime.Store(new(string))
	p.setLimit(api.DefaultPluginRequestTimeout)
	return p
}

// setLimit keeps a quarter of what the runtime waits for the way there and back.
func (p *plugin) setLimit(timeout time.Duration) {
	if timeout > 0 {
		p.limit.Store(int64(timeout - timeout/4))
	}
}

// do runs f for one request, measures it, and answers in time in any case. An error
// fails the request; an answer that is late costs the plugin its connection, and the
// runtime goes on without it. What f does then ends by itself: all of it may be done
// twice.
func (p *plugin) do(event string, about subject, f func() error) error {
	began := time.Now()
	limit := time.Duration(p.limit.Load())
	done := make(chan error, 1)
	go func() { done <- f() }()
	var err error
	select {
	case err = <-done:
	case <-time.After(limit):
		err = fmt.Errorf("not done after %s: something holds the lock on the state directory, for which `sidegate status` waits too", limit)
	}
	took := time.Since(began)
	p.metrics.request(event, took, err)
	entry := p.log.WithFields(about.fields()).WithFields(logrus.Fields{cli.FieldRequest: event, cli.FieldTook: took.Round(time.Microsecond).String()})
	if err == nil {
		entry.Debug("done")
		return nil
	}
	entry.WithError(err).Error("the request has failed, and the runtime is told so: see error for what to do")
	// One line, as the runtime shows it to people.
	return errors.New(strings.ReplaceAll(fmt.Sprintf("sidegate: %s: %v", about, err), "\n", "; "))
}

// Configure is the first request. text is the file in /etc/nri/conf.d of a plugin that
// the runtime starts itself, else empty.
func (p *plugin) Configure(_ context.Context, text, runtime, version string) (api.EventMask, error) {
	if text != "" && p.options.config == "" {
		c, err := parseConfig("configuration from the runtime", []byte(text))
		if err == nil {
			err = p.options.log.Default(p.log, c.LogLevel, c.LogFormat)
		}
		if err != nil {
			return 0, err
		}
		p.config.Store(&c)
	}
	p.runtime.Store(&runtime)
	p.log.Infof("connected to %s %s", runtime, version)
	c := p.config.Load()
	if err := c.checkHook(); err != nil {
		p.log.WithField(cli.FieldPath, c.Hook).WithError(err).
			Error("no container of a managed pod starts: the hook has to be installed, see error")
	}
	select {
	case p.configured <- struct{}{}:
	default:
	}
	return 0, nil // all events that there are methods for
}

// Synchronize is told of all pods and containers at each connection. What they need is
// done beside: it may take longer than the runtime waits, and what starts meanwhile does
// not depend on it.
func (p *plugin) Synchronize(_ context.Context, sandboxes []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.metrics.synchronizing()
	p.pods.reset()
	var errs []error
	for _, s := range sandboxes {
		if err := p.know(s); err != nil {
			p.metrics.adoption("refused")
			p.log.WithFields(podSubject(s).fields()).WithError(err).
				Error("a pod that ran before is left as it is: correct what error says, and create it again")
			errs = append(errs, fmt.Errorf("pod %s: %w", podName(s), err))
		}
	}
	for _, c := range containers {
		if one := p.pods.get(c.GetPodSandboxId()); one != nil {
			one.containers[c.GetId()] = c
		}
	}
	var todo []*pod
	for _, s := range sandboxes {
		one := p.pods.get(s.GetId())
		if one != nil && (one.managed || one.left == "" && one.hasSidecar()) {
			todo = append(todo, one)
		}
	}
	go p.catchUp(todo, errs)
	return nil, nil
}

// catchUp takes over what ran before this connection, and forgets what ended before it.
func (p *plugin) catchUp(todo []*pod, errs []error) {
	p.catching <- struct{}{} // one after another: the runtime may have gone and come
	defer func() { <-p.catching }()
	for _, one := range todo {
		one.mu.Lock()
		if err := p.manage(one); err != nil {
			p.log.WithFields(one.subject("", "").fields()).WithError(err).
				Error("a pod that ran before could not be taken over, all of it: what was not has no network; correct what error says, and start it again")
			errs = append(errs, fmt.Errorf("pod %s: %w", one.name, err))
		}
		one.mu.Unlock()
	}
	c := p.config.Load()
	n, err := p.kernel.collect(c)
	if err != nil {
		p.notCollected(c, err)
	}
	p.log.Infof("synchronized: %d pods are managed; forgot %d containers and %d pods that had ended", len(todo), n.Containers, n.Pods)
	p.metrics.synchronized(errors.Join(append(errs, err)...))
}

// know reads what a pod asks for and remembers it.
func (p *plugin) know(s *api.PodSandbox) error {
	if s.GetId() == "" {
		return errors.New("it has no id")
	}
	one := &pod{id: s.GetId(), name: podName(s), sandbox: s, netns: netnsOf(s), containers: make(map[string]*api.Container)}
	c := p.config.Load()
	if slices.Contains(c.IgnoreNamespaces, s.GetNamespace()) {
		one.left = "its namespace is ignored"
		p.pods.put(one)
		return nil
	}
	var err error
	if one.request, err = policy.ParsePod(s.GetLabels(), s.GetAnnotations()); err != nil {
		return err
	}
	wants := one.request.Wants()
	switch {
	case one.request.Exempt():
		one.left = policy.KeyRole + " is none"
	case !wants:
		if wants, err = p.kernel.selected(c, one); err != nil {
			return err
		}
	}
	if wants && one.netns == "" {
		if one.request.Managed {
			return errors.New("it shares the host's network namespace, which cannot be enforced: " +
				"give it a network of its own (hostNetwork: false), or take its sidegate/ labels and annotations away")
		}
		p.log.WithFields(one.subject("", "").fields()).
			Warnf("belongs to a mesh (%s), but shares the host's network: it is left alone; give it hostNetwork: false to have it enforced", one.request.Mesh)
		wants = false
	}
	if one.netns == "" {
		one.left = "it shares the host's network"
	}
	one.managed = wants
	p.pods.put(one)
	return nil
}

// podOf returns the pod, also one that this plugin was not told of. The caller unlocks it.
func (p *plugin) podOf(s *api.PodSandbox) (*pod, error) {
	one := p.pods.get(s.GetId())
	if one == nil {
		if err := p.know(s); err != nil {
			return nil, err
		}
		one = p.pods.get(s.GetId())
	}
	one.mu.Lock()
	return one, nil
}

// manage closes a pod and registers those of its containers that run. What cannot be
// registered stays closed.
func (p *plugin) manage(one *pod) error {
	c := p.config.Load()
	one.managed = true
	if err := p.kernel.manage(c, one); err != nil {
		p.metrics.adoption("refused")
		return err
	}
	if !c.Adopt {
		return nil
	}
	var errs []error
	for _, running := range one.runs() {
		err := p.adopt(c, one, running)
		if _, gone := os.Stat(fmt.Sprintf("/proc/%d", running.GetPid())); err != nil && gone == nil {
			p.metrics.adoption("refused")
			errs = append(errs, fmt.Errorf("container %s has no network until it is started again: %w", running.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

func (p *plugin) adopt(c *config, one *pod, running *api.Container) error {
	what, err := p.decide(c, one, running)
	if err != nil {
		return err
	}
	got, err := p.kernel.adopt(c, one, what)
	if err != nil || got.Already {
		return err
	}
	p.metrics.adoption("adopted")
	entry := p.log.WithFields(adoptedFields(one, what, got))
	entry.Info("took over a container that ran already")
	if err := checkKTLS(what); err != nil {
		entry.WithError(err).Warn(noKTLS)
	}
	return nil
}

// noKTLS is what it means that a container has no configuration for kTLS.
const noKTLS = "it hands over no keys, and its TLS connections are refused where its policy asks for them: see error for what to do"

// adoptedFields are those of a message about a container that was taken over.
func adoptedFields(one *pod, what container, got cgroups.Adopted) logrus.Fields {
	f := one.subject(what.name, what.id).fields()
	f[cli.FieldRole], f[cli.FieldSockets], f[cli.FieldLeft] = what.role.String(), got.Sockets, got.Left
	if one.policy != "" {
		f[cli.FieldPolicy] = one.policy
	}
	return f
}

// container is one of a managed pod, with what was decided for it.
type container struct {
	id, name, runtime string
	pid               int
	role              policy.Role
	wait              time.Duration
	splice            cgroups.Splice
	ktls              policy.KTLS
}

// decide gives a container its role.
func (p *plugin) decide(c *config, one *pod, told *api.Container) (container, error) {
	what := container{id: told.GetId(), name: told.GetName(), runtime: *p.runtime.Load(), pid: int(told.GetPid()), splice: spliceOf(told)}
	if what.name == "" {
		return what, errors.New("the runtime does not tell its name, by which it gets its role")
	}
	own, err := one.own(told)
	if err != nil {
		return what, err
	}
	if what.role = own.Role; what.role == policy.RoleUnset {
		pol, err := p.kernel.policyOf(c, one)
		if err != nil {
			return what, err
		}
		what.role = one.request.RoleIn(what.name, pol)
	}
	if what.wait = one.request.WaitIn(what.name, what.role); own.Wait > 0 {
		what.wait = own.Wait
	}
	what.ktls = one.request.KTLSIn(what.name, what.role)
	if own.KTLS != policy.KTLSUnset && (what.role == policy.RoleApp || what.role == policy.RoleInit) {
		what.ktls = own.KTLS
	}
	return what, nil
}

// RunPodSandbox closes the pod's network namespace, in which nothing runs yet but a pause
// process.
func (p *plugin) RunPodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.do("RunPodSandbox", podSubject(s), func() error {
		p.pods.remove(s.GetId())
		one, err := p.podOf(s)
		if err != nil {
			return err
		}
		defer one.mu.Unlock()
		if !one.managed {
			return nil
		}
		return p.manage(one)
	})
}

// CreateContainer gives a container of a managed pod the hook that attaches, and tells that
// what was decided here.
func (p *plugin) CreateContainer(_ context.Context, s *api.PodSandbox, told *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	answer := make(chan *api.ContainerAdjustment, 1) // not a variable: f may outlive the request
	err := p.do("CreateContainer", containerSubject(s, told), func() error {
		adjust, err := p.create(s, told)
		answer <- adjust
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return <-answer, nil, nil
}

func (p *plugin) create(s *api.PodSandbox, told *api.Container) (*api.ContainerAdjustment, error) {
	one, err := p.podOf(s)
	if err != nil {
		return nil, err
	}
	defer one.mu.Unlock()
	own, err := one.own(told)
	if err != nil {
		return nil, err
	}
	late := own.Managed && own.Role != policy.RoleNone || one.request.NamesSidecar(told.GetName())
	if !one.managed && late && one.left == "" {
		if err := p.manage(one); err != nil {
			return nil, err
		}
	}
	one.containers[told.GetId()] = told
	if !one.managed {
		if own.Managed && own.Role != policy.RoleNone {
			return nil, fmt.Errorf("its pod is left alone, since %s", one.left)
		}
		return nil, nil
	}
	c := p.config.Load()
	what, err := p.decide(c, one, told)
	if err != nil {
		return nil, err
	}
	a := adjustment(c, one, what)
	if what.ktls == policy.KTLSMount {
		if err := addKTLS(c, a, told); err != nil {
			return nil, err
		}
	}
	pol, err := p.kernel.policyOf(c, one)
	if err != nil {
		pol = nil // the hook will say so
	}
	if cgroups.WantsSpliceRule(what.role, pol) {
		profile, why := withSpliceRule(told)
		if profile != nil {
			a.SetLinuxSeccompPolicy(profile)
		}
		if why != "" {
			p.log.WithFields(one.subject(what.name, what.id).fields()).Debugf("is not accelerated: %s", why)
		}
	}
	return a, nil
}

// adjustment is what the runtime puts into the container's configuration: the hook, and
// what it reads.
func adjustment(c *config, one *pod, what container) *api.ContainerAdjustment {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation(policy.KeyRoleOf+what.name, what.role.String())
	a.AddAnnotation(policy.KeyPolicy, one.policy)
	a.AddAnnotation(policy.KeyPod, one.name)
	if what.wait > 0 {
		a.AddAnnotation(policy.KeyWaitOf+what.name, what.wait.String())
	}
	if what.ktls != policy.KTLSUnset {
		a.AddAnnotation(policy.KeyKTLSOf+what.name, what.ktls.String())
	}
	hook := func(stage string) *api.Hook {
		h := &api.Hook{
			Path: c.Hook,
			Args: []string{filepath.Base(c.Hook), stage},
			// A hook gets no environment but this. See ARCHITECTURE.md for GOMAXPROCS.
			Env: []string{
				"GOMAXPROCS=1",
				policy.DirEnv + "=" + c.PolicyDir,
				stateEnv + "=" + c.StateDir,
				ktls.HostDirEnv + "=" + c.KTLSDir,
			},
		}
		if c.HookTimeout > 0 {
			h.Timeout = api.Int(c.HookTimeout)
		}
		return h
	}
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{hook("createRuntime")}, Poststop: []*api.Hook{hook("poststop")}})
	return a
}

// StartContainer runs when the hooks have, and the container's process waits to execute
// its program. Who is not registered now, because this plugin was away when it was
// created, is registered here, or does not start.
func (p *plugin) StartContainer(_ context.Context, s *api.PodSandbox, told *api.Container) error {
	return p.do("StartContainer", containerSubject(s, told), func() error {
		one, err := p.podOf(s)
		if err != nil {
			return err
		}
		defer one.mu.Unlock()
		if !one.managed && one.left == "" && one.request.NamesSidecar(told.GetName()) {
			if err := p.manage(one); err != nil {
				return err
			}
		}
		one.containers[told.GetId()] = told
		if !one.managed {
			return nil
		}
		c := p.config.Load()
		what, err := p.decide(c, one, told)
		if err != nil {
			return err
		}
		if what.pid <= 0 {
			return errors.New("the runtime does not tell its process: its version of NRI is too old")
		}
		already, err := p.kernel.attach(c, one, what)
		if err == nil && !already {
			err = checkKTLS(what)
		}
		if err == nil && !already {
			p.metrics.adoption("attached")
			p.log.WithFields(one.subject(what.name, what.id).fields()).
				Warn("had no hook when it was created: attached before its program starts; with required_plugins nothing is created while this plugin is away")
		}
		return err
	})
}

// StopContainer runs when a container's program has ended. Its hook at poststop has
// forgotten it, unless it had none.
func (p *plugin) StopContainer(_ context.Context, s *api.PodSandbox, told *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.forget("StopContainer", s, told)
}

// RemoveContainer is the last that is heard of a container.
func (p *plugin) RemoveContainer(_ context.Context, s *api.PodSandbox, told *api.Container) error {
	return p.forget("RemoveContainer", s, told)
}

func (p *plugin) forget(event string, s *api.PodSandbox, told *api.Container) error {
	return p.do(event, containerSubject(s, told), func() error {
		one := p.pods.get(told.GetPodSandboxId())
		if one == nil {
			return nil // Synchronize collects
		}
		one.mu.Lock()
		defer one.mu.Unlock()
		delete(one.containers, told.GetId())
		if !one.managed {
			return nil
		}
		if len(one.containers) == 0 {
			// The pod may end with it: containerd 2.4 tells of no end of a pod that began before
			// containerd's own last start.
			p.pods.end(one.name)
			defer p.collectSoon()
		}
		return p.kernel.forget(p.config.Load(), told.GetId())
	})
}

// StopPodSandbox runs when the last process of the pod has ended.
func (p *plugin) StopPodSandbox(_ context.Context, s *api.PodSandbox) error {
	return p.end("StopPodSandbox", s)
}

// RemovePodSandbox is the last that is heard of a pod.
func (p *plugin) RemovePodSandbox(_ context.Context, s *api.PodSandbox) error {
	defer p.pods.remove(s.GetId())
	return p.end("RemovePodSandbox", s)
}

func (p *plugin) end(event string, s *api.PodSandbox) error {
	return p.do(event, podSubject(s), func() error {
		one := p.pods.get(s.GetId())
		if one == nil || !one.managed {
			return nil
		}
		p.pods.end(one.name)
		p.collectSoon()
		return nil
	})
}

// How often, and after which first pause, is looked again for a pod that has ended and in whose
// namespace something still lives: what takes the network down, or what was entered from the host.
const (
	collectTries = 8
	collectPause = 50 * time.Millisecond
)

// collectSoon forgets what has ended, beside: it looks at all containers of the node, and what
// it is late with stays closed. One that waits to begin does for all who asked.
func (p *plugin) collectSoon() {
	select {
	case p.collecting <- struct{}{}:
	default:
		return
	}
	go func() {
		pause := collectPause
		for range collectTries {
			p.catching <- struct{}{}
			select { // whoever asks from now on is too late for this round
			case <-p.collecting:
			default:
			}
			gone, c := p.pods.ended(), p.config.Load()
			n, err := p.kernel.collect(c)
			<-p.catching
			if err != nil {
				p.notCollected(c, err)
			}
			if gone = p.pods.collected(gone, n.Left); len(gone) == 0 {
				return
			}
			time.Sleep(pause)
			pause *= 2
		}
		p.pods.collected(p.pods.ended(), nil) // whatever lives there, it is closed
	}()
}

func (p *plugin) notCollected(c *config, err error) {
	p.log.WithField(cli.FieldPath, c.StateDir).WithError(err).
		Error("what has ended is not forgotten, and stays closed: the next pod that ends tries again; see sidegate status, doctor")
}
