// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// annotations of a container of this role; "" asks for nothing.
func annotations(role string) map[string]string {
	if role == "" {
		return nil
	}
	return asks(role, policyName)
}

// asks are annotations that ask for a role and a policy.
func asks(role, policy string) map[string]string {
	return map[string]string{"sidegate/role": role, "sidegate/policy": policy}
}

// runHook is runHookFor a container of this role, under the policy that containers here have.
func (w *world) runHook(stage, id string, pid int, role string) (*os.ProcessState, time.Duration, error) {
	return w.runHookFor(stage, id, pid, annotations(role), nil)
}

// runHookFor runs the hook as a runtime does: the container's state on its standard input, and its configuration in a bundle, which here
// has a seccomp profile or nothing. It returns the process as it ended, and how long it took from the fork to the wait.
func (w *world) runHookFor(stage, id string, pid int, annotations map[string]string, profile *specs.LinuxSeccomp) (*os.ProcessState, time.Duration, error) {
	bundle, spec := filepath.Join(w.dir, "bundle"), any(struct{}{})
	if profile != nil {
		bundle, spec = filepath.Join(w.dir, "bundle-confined"), &specs.Spec{Version: specs.Version, Linux: &specs.Linux{Seccomp: profile}}
	}
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return nil, 0, err
	}
	config := filepath.Join(bundle, "config.json")
	if _, err := os.Stat(config); errors.Is(err, os.ErrNotExist) {
		b, err := json.Marshal(spec)
		if err != nil {
			return nil, 0, err
		}
		if err := os.WriteFile(config, b, 0o644); err != nil {
			return nil, 0, err
		}
	}
	b, err := json.Marshal(specs.State{
		Version: specs.Version, ID: id, Status: specs.StateCreating, Pid: pid, Bundle: bundle, Annotations: annotations,
	})
	if err != nil {
		return nil, 0, err
	}
	return w.timed(b, w.hook, stage)
}

// timed runs a program with the hook's environment and input. A file, and not a pipe, so that nothing in here runs beside it.
func (w *world) timed(input []byte, argv ...string) (*os.ProcessState, time.Duration, error) {
	path := filepath.Join(w.dir, "stdin")
	if err := os.WriteFile(path, input, 0o600); err != nil {
		return nil, 0, err
	}
	in, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer in.Close()
	errs, err := os.CreateTemp(w.dir, "stderr-")
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		errs.Close()
		os.Remove(errs.Name())
	}()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stderr = w.hookEnv, in, errs
	began := time.Now()
	err = cmd.Run()
	took := time.Since(began)
	if err != nil {
		text, _ := os.ReadFile(errs.Name())
		return nil, 0, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(text))
	}
	return cmd.ProcessState, took, nil
}

// pause starts a container's first process, which does nothing. netns is as for spawn.
func (w *world) pause(name, netns string) (p *proc, cgroup string, err error) {
	if cgroup, err = w.mkcgroup(name); err != nil {
		return nil, "", err
	}
	if p, err = w.pauseIn(cgroup, netns); err != nil {
		return nil, "", errors.Join(err, rmcgroup(cgroup))
	}
	return p, cgroup, nil
}

func (w *world) pauseIn(cgroup, netns string) (*proc, error) { return w.pauseApart(cgroup, netns, 0) }

// pauseApart is pauseIn in new namespaces, too, that flags name.
func (w *world) pauseApart(cgroup, netns string, flags uintptr) (*proc, error) {
	p, err := w.clone(cgroup, netns, flags, nil, "/bin/busybox", "cat")
	if err != nil || netns == "" || netns == "new" {
		return p, err
	}
	// Until nsenter has become the process.
	if err := waitExe(p, "busybox"); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// What is timed, in the order of one round.
const (
	hookEmpty  = "an empty Go program"
	hookAlone  = "createRuntime, no annotation"
	hookFirst  = "createRuntime, first of its pod"
	hookSecond = "createRuntime, second of its pod"
	hookStop   = "poststop"
	hookLast   = "poststop, last of its pod"
	hookOnly   = "createRuntime, first of the node's only pod"
	hookAtBoot = "createRuntime, loads all programs"
)

// measureHook times the hook process alone.
func measureHook(ctx context.Context, e *env, w *world) ([]figure, []string, error) {
	empty, err := buildEmpty(ctx, w.dir)
	if err != nil {
		return nil, nil, err
	}
	m := &hookTimes{w: w, empty: empty, wall: map[string][]float64{}, user: map[string][]float64{}, sys: map[string][]float64{}}
	if err := m.all(ctx, e); err != nil {
		return nil, nil, errors.Join(err, w.unload(ctx))
	}
	if err := w.unload(ctx); err != nil {
		return nil, nil, err
	}
	sides := []string{hookEmpty, hookAlone, hookFirst, hookSecond, hookStop, hookLast, hookOnly, hookAtBoot}
	var ratios []compare
	for _, s := range sides[1:6] {
		ratios = append(ratios, compare{s, hookEmpty})
	}
	var figures []figure
	for _, q := range []struct {
		name   string
		values map[string][]float64
	}{{"whole process, wall", m.wall}, {"whole process, user CPU", m.user}, {"whole process, system CPU", m.sys}} {
		r := ratios
		if q.name != "whole process, wall" {
			r = nil // the kernel splits so little by ticks
		}
		f, err := newFigure("hook", q.name, "ms", sides, q.values, r...)
		if err != nil {
			return nil, nil, err
		}
		figures = append(figures, f)
	}
	p50 := median(m.wall[hookFirst])
	met := "met"
	if p50 > 10 {
		met = "NOT met"
	}
	note := fmt.Sprintf("hook: target of 10 ms p50 for createRuntime, whole process: %s (first of its pod %s ms, second %s ms; an empty Go program takes %s ms here)",
		met, number(p50), number(median(m.wall[hookSecond])), number(median(m.wall[hookEmpty])))
	return figures, []string{note}, nil
}

type hookTimes struct {
	w               *world
	empty           string // a Go program that does nothing
	wall, user, sys map[string][]float64
}

// all runs all rounds.
func (m *hookTimes) all(ctx context.Context, e *env) error {
	for range e.rounds(5) {
		if err := m.boot(ctx); err != nil {
			return err
		}
	}
	// A node's only pod is the first user of the kernel's hooks, so it is timed apart, in between.
	only := &hookTimes{w: m.w, empty: m.empty, wall: map[string][]float64{}, user: map[string][]float64{}, sys: map[string][]float64{}}
	gone := func() error { return nil }
	for round := range e.rounds(40) {
		if round%3 == 0 {
			err := errors.Join(gone(), only.round(ctx))
			if err != nil {
				return err
			}
			if gone, err = m.w.resident(ctx); err != nil {
				return err
			}
		}
		if err := m.round(ctx); err != nil {
			return errors.Join(err, gone())
		}
	}
	m.wall[hookOnly], m.user[hookOnly], m.sys[hookOnly] = only.wall[hookFirst], only.user[hookFirst], only.sys[hookFirst]
	return gone()
}

// resident starts a managed pod that stays, with an app and a sidecar, as any node has that uses Sidegate. The caller calls gone.
func (w *world) resident(ctx context.Context) (gone func() error, err error) {
	var stops []func() error
	gone = func() error {
		var errs []error
		for _, stop := range stops {
			errs = append(errs, stop())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, gone())
		}
	}()
	netns := "new"
	for _, role := range []string{"sidecar", "app"} {
		p, cgroup, err := w.pause("resident", netns)
		if err != nil {
			return nil, err
		}
		id := fmt.Sprintf("resident%d", w.began)
		stops = append(stops, func() error {
			p.stop()
			_, _, err := w.runHook("poststop", id, 0, role)
			return errors.Join(rmcgroup(cgroup), err)
		})
		if netns == "new" {
			netns = fmt.Sprintf("/proc/%d/ns/net", p.pid())
			if err := w.plug(ctx, p.pid(), "resident", "192.0.2.201/24", "2001:db8::201/64"); err != nil {
				return nil, err
			}
		}
		if _, _, err := w.runHook("createRuntime", id, p.pid(), role); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// plug gives the network namespace of a process a veth pair, whose other end in the node has this name.
func (w *world) plug(ctx context.Context, pid int, name, v4, v6 string) error {
	return errors.Join(
		ip(ctx, "", fmt.Sprintf("link add %s type veth peer name eth0 netns %d", name, pid), "link set "+name+" up"),
		ip(ctx, fmt.Sprintf("/proc/%d/ns/net", pid), "link set lo up", "addr add "+v4+" dev eth0", "addr add "+v6+" dev eth0 nodad", "link set eth0 up"))
}

func (m *hookTimes) add(side string, ps *os.ProcessState, took time.Duration, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", side, err)
	}
	m.wall[side] = append(m.wall[side], took.Seconds()*1e3)
	m.user[side] = append(m.user[side], ps.UserTime().Seconds()*1e3)
	m.sys[side] = append(m.sys[side], ps.SystemTime().Seconds()*1e3)
	return nil
}

// boot times the first container after a boot, for which the hook loads everything.
func (m *hookTimes) boot(ctx context.Context) error {
	if err := m.w.unload(ctx); err != nil {
		return err
	}
	p, cgroup, err := m.w.pause("boot", "new")
	if err != nil {
		return err
	}
	ps, took, err := m.w.runHook("createRuntime", "boot", p.pid(), "app")
	p.stop()
	err = errors.Join(m.add(hookAtBoot, ps, took, err), rmcgroup(cgroup))
	_, _, serr := m.w.runHook("poststop", "boot", 0, "app")
	return errors.Join(err, serr)
}

// round starts two containers of a pod with a veth pair, ends them, and times each hook on the way.
func (m *hookTimes) round(ctx context.Context) (err error) {
	w := m.w
	ps, took, err := w.timed(nil, m.empty)
	if err := m.add(hookEmpty, ps, took, err); err != nil {
		return err
	}
	first, cg1, err := w.pause("first", "new")
	if err != nil {
		return err
	}
	defer first.stop()
	if err := w.plug(ctx, first.pid(), "hooktest", "192.0.2.200/24", "2001:db8::200/64"); err != nil {
		return err
	}
	second, cg2, err := w.pause("second", fmt.Sprintf("/proc/%d/ns/net", first.pid()))
	if err != nil {
		return err
	}
	defer second.stop()
	id := fmt.Sprintf("c%d", w.began)
	hook := func(side, stage, id string, pid int, role string) error {
		ps, took, err := w.runHook(stage, id, pid, role)
		return m.add(side, ps, took, err)
	}
	if err := errors.Join(
		hook(hookAlone, "createRuntime", id+"n", first.pid(), ""),
		hook(hookFirst, "createRuntime", id+"a", first.pid(), "app"),
		hook(hookSecond, "createRuntime", id+"b", second.pid(), "app"),
	); err != nil {
		return err
	}
	// Its processes and its cgroup are gone when a container's poststop comes.
	second.stop()
	if err := errors.Join(rmcgroup(cg2), hook(hookStop, "poststop", id+"b", 0, "app"), ip(ctx, "", "link del hooktest")); err != nil {
		return err
	}
	first.stop()
	return errors.Join(rmcgroup(cg1), hook(hookLast, "poststop", id+"a", 0, "app"))
}

// buildEmpty compiles the smallest Go program: what any hook in Go costs on this machine.
func buildEmpty(ctx context.Context, dir string) (string, error) {
	src, out := filepath.Join(dir, "empty.go"), filepath.Join(dir, "empty")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, src)
	cmd.Env = append(slices.Clone(os.Environ()), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build an empty program: %w: %s", err, b)
	}
	return out, nil
}
