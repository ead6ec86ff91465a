// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"sidegate/cgroups"
	"sidegate/policy"
)

// A mesh is pods without a runtime, whose containers are attached as a runtime's hook would, and the outside.
type mesh struct {
	w      *world
	out    *outside
	pods   []*meshPod
	states map[string]bool // directories
}

// A meshPod has an app, a sidecar, an address and a cgroup.
type meshPod struct {
	netns   string
	addr    string
	cgroup  string // holds those of the app and the sidecar
	app     *proc
	sidecar *proc
	cgroups []string
}

// stateDir returns a state directory: two states do not see each other.
func stateDir(name string) string { return cgroups.DefaultState + "-" + name }

func newMesh(ctx context.Context, w *world) (*mesh, error) {
	out, err := newOutside(ctx, w)
	if err != nil {
		return nil, err
	}
	m := &mesh{w: w, out: out, states: map[string]bool{}}
	for _, o := range []order{{Op: "accept", Addr: at(outsideIP, callPort)}, {Op: "echo", Addr: at(outsideIP, echoPort)}} {
		if _, err := out.agent.do(o); err != nil {
			return nil, errors.Join(err, m.close(ctx))
		}
	}
	return m, nil
}

// pod starts a pod and puts it under a policy, in a state of its own. With agents its containers take orders and the sidecar
// listens, else they do nothing.
func (m *mesh) pod(ctx context.Context, state string, c *policy.Compiled, agents bool) (p *meshPod, err error) {
	n := len(m.pods)
	name := "pod" + strconv.Itoa(n)
	p = &meshPod{}
	m.pods = append(m.pods, p)
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	if p.netns, p.addr, err = podNet(ctx, n); err != nil {
		return nil, err
	}
	if p.cgroup, err = m.w.mkcgroup(name); err != nil {
		return nil, err
	}
	if p.app, err = m.container(p, "app", agents); err != nil {
		return nil, err
	}
	if p.sidecar, err = m.container(p, "sidecar", agents); err != nil {
		return nil, err
	}
	m.states[state] = true
	if err := p.attach(state, name, c); err != nil || !agents {
		return p, err
	}
	if err := sysctls(ctx, p.netns); err != nil {
		return nil, err
	}
	for _, o := range []order{
		{Op: "accept", Addr: at("127.0.0.1", outboundTo)}, {Op: "accept", Addr: at("127.0.0.1", directTo)},
		{Op: "serve", Addr: at("127.0.0.1", inboundTo)}, {Op: "serve", Addr: at(p.addr, sinkPort)}, {Op: "echo", Addr: at(p.addr, echoPort)},
	} {
		if _, err := p.sidecar.do(o); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (m *mesh) container(p *meshPod, role string, agent bool) (*proc, error) {
	dir := filepath.Join(p.cgroup, role)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	p.cgroups = append(p.cgroups, dir)
	if agent {
		return m.w.agent(dir, p.netns, 0)
	}
	return m.w.pauseIn(dir, p.netns)
}

// attach registers both containers.
func (p *meshPod) attach(state, name string, c *policy.Compiled) (err error) {
	ns, err := cgroups.OpenNetns(p.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	s, err := cgroups.Open(state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, r := range []struct {
		role policy.Role
		pid  int
	}{{policy.RoleApp, p.app.pid()}, {policy.RoleSidecar, p.sidecar.pid()}} {
		id := name + "-" + r.role.String()
		if _, err := s.Attach(ns, &cgroups.Container{ID: id, Name: r.role.String(), Pod: name, Runtime: "bench", Role: r.role, Policy: c, PID: r.pid}); err != nil {
			return err
		}
	}
	return nil
}

func (m *mesh) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, p := range m.pods {
		for _, c := range []*proc{p.app, p.sidecar} {
			if c != nil {
				c.stop()
			}
		}
	}
	for state := range m.states {
		errs = append(errs, cgroups.Unload(state, true))
	}
	for n, p := range m.pods {
		for _, dir := range append(p.cgroups, p.cgroup) {
			if dir != "" {
				errs = append(errs, rmcgroup(dir))
			}
		}
		errs = append(errs, delNetns(ctx, p.netns, podDev(n)))
	}
	return errors.Join(append(errs, m.out.close(ctx))...)
}
