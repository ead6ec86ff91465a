// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/cgroups"
	"sidegate/policy"
)

// Steps of the measurement of scale: how many managed containers run.
var scaleSteps = []int{1, 100, 1000}

// perPod containers share a pod: an app and a sidecar.
const perPod = 2

// A crowd is many pods without a runtime, whose containers do nothing. They are attached as a runtime's hook would.
type crowd struct {
	w    *world
	c    *policy.Compiled
	pods []*crowdPod
}

type crowdPod struct {
	name       string
	netns, dev string
	cgroup     string
	containers []*proc
	cgroups    []string
}

// measureScale times the attaching of a container while many run, and their removal, and finds how much of the kernel's memory each takes.
func measureScale(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	compiled, err := compile(policyHead(policyName))
	if err != nil {
		return nil, nil, err
	}
	c := &crowd{w: w, c: compiled}
	defer func() { err = errors.Join(err, w.unload(context.WithoutCancel(ctx)), c.close(ctx)) }()
	steps, samples := scaleSteps, 30
	if e.quick {
		steps, samples = steps[:2], 6
	}
	attach, next, hook := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	var sides []string
	running := 0
	for _, n := range steps {
		w.logf("scale: %d containers", n)
		if err := c.grow(ctx, n); err != nil {
			return nil, nil, err
		}
		// Of all of them: what comes before the first is the same for any number.
		used, err := kernelMemory()
		if err != nil {
			return nil, nil, err
		}
		added := n - running
		if running, err = c.attach(n); err != nil {
			return nil, nil, err
		}
		after, err := kernelMemory()
		if err != nil {
			return nil, nil, err
		}
		if n > 1 {
			notes = append(notes, fmt.Sprintf("scale: %d more containers, to %d, took %s KiB of the kernel's memory each (in and out of what its caches hold, so of a quiet machine only); nothing of them is in any process",
				added, n, number((after-used)/1024/float64(added))))
		}
		side := fmt.Sprintf("%d running", n)
		sides = append(sides, side)
		for round := range samples + 1 {
			if err := c.sample(ctx, round == 0, side, attach, next, hook); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", side, err)
			}
		}
	}
	pinned, err := pinnedMemory(cgroups.DefaultState)
	if err != nil {
		return nil, nil, err
	}
	notes = append(notes, fmt.Sprintf("scale: maps and programs take %s MiB at %d containers; each container and pod has more in links, which the kernel does not tell", number(pinned/(1<<20)), running))
	for _, f := range []struct {
		name   string
		values map[string][]float64
	}{{"attach a pod's first container, in process", attach}, {"attach its second", next}, {"the hook for a second, whole process", hook}} {
		// They were not in the same rounds, so there are no pairs.
		g, err := newFigure("scale", f.name, "ms", sides, f.values)
		if err != nil {
			return nil, nil, err
		}
		last := g.Sides[len(sides)-1]
		notes = append(notes, fmt.Sprintf("scale: %s: the median with %s is %s that with %s", f.name, last.Side, times(last.Median/g.Sides[0].Median), sides[0]))
		figures = append(figures, g)
	}
	began := time.Now()
	if err := w.unload(ctx); err != nil {
		return nil, nil, err
	}
	side := fmt.Sprintf("%d running", running)
	f, err := newFigure("scale", "sidegate unload --force, once", "ms", []string{side}, map[string][]float64{side: {time.Since(began).Seconds() * 1e3}})
	return append(figures, f), append(notes, "scale: these containers are processes in cgroups and PID namespaces of their own, two in each network namespace, attached by package cgroups as the hook does, and of no runtime; they grow in number, so the sides were not in turns"), err
}

// grow makes pods until there are n containers, of which the last pod may have one only.
func (c *crowd) grow(ctx context.Context, n int) error {
	for made := c.size(); made < n; made = c.size() {
		if len(c.pods) == 0 || len(c.pods[len(c.pods)-1].containers) == perPod {
			if err := c.pod(ctx, strconv.Itoa(len(c.pods))); err != nil {
				return err
			}
		}
		if err := c.container(c.pods[len(c.pods)-1]); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) size() int {
	if len(c.pods) == 0 {
		return 0
	}
	return (len(c.pods)-1)*perPod + len(c.pods[len(c.pods)-1].containers)
}

// pod makes a network namespace with a device and addresses, and a cgroup.
func (c *crowd) pod(ctx context.Context, name string) (err error) {
	p := &crowdPod{name: "crowd" + name, dev: "crowd" + name}
	c.pods = append(c.pods, p)
	p.netns = "/run/netns/" + p.name
	if err := ip(ctx, "", "netns add "+p.name, "link add "+p.dev+" type veth peer name eth0 netns "+p.name, "link set "+p.dev+" up"); err != nil {
		return err
	}
	n := len(c.pods)
	v4, v6 := fmt.Sprintf("10.77.%d.%d/32", n/250, n%250+1), fmt.Sprintf("2001:db8:77::%x/128", n)
	if err := ip(ctx, p.netns, "link set lo up", "addr add "+v4+" dev eth0", "addr add "+v6+" dev eth0 nodad", "link set eth0 up"); err != nil {
		return err
	}
	p.cgroup, err = c.w.mkcgroup(p.name)
	return err
}

func (c *crowd) container(p *crowdPod) error {
	dir := filepath.Join(p.cgroup, strconv.Itoa(len(p.containers)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	p.cgroups = append(p.cgroups, dir)
	// As containers have it: to find who else is in a PID namespace is more to do.
	process, err := c.w.pauseApart(dir, p.netns, syscall.CLONE_NEWPID)
	if err == nil {
		p.containers = append(p.containers, process)
	}
	return err
}

// attach registers all containers that are not yet, and returns how many there are.
func (c *crowd) attach(n int) (int, error) {
	done := 0
	for _, p := range c.pods {
		for i := range p.containers {
			if done++; done > n {
				return n, nil
			}
			if _, err := c.register(p, i); err != nil {
				return 0, err
			}
		}
	}
	return done, nil
}

// register attaches a container, which may be so already, and times it as a whole: the state is opened for each.
func (c *crowd) register(p *crowdPod, i int) (ms float64, err error) {
	began := time.Now()
	ns, err := cgroups.OpenNetns(p.netns)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	s, err := cgroups.Open(cgroups.DefaultState)
	if err != nil {
		return 0, err
	}
	role := []policy.Role{policy.RoleApp, policy.RoleSidecar}[i]
	_, err = s.Attach(ns, &cgroups.Container{ID: fmt.Sprintf("%s-%d", p.name, i), Name: role.String(), Pod: p.name, Runtime: "bench",
		Role: role, Policy: c.c, PID: p.containers[i].pid()})
	err = errors.Join(err, s.Close())
	return time.Since(began).Seconds() * 1e3, err
}

// sample starts one more pod, of three containers, times them, and removes it.
func (c *crowd) sample(ctx context.Context, warm bool, side string, attach, next, hook map[string][]float64) (err error) {
	if err := c.pod(ctx, "-sample"); err != nil {
		return err
	}
	last := len(c.pods) - 1
	p := c.pods[last]
	defer func() {
		if err == nil {
			c.pods = c.pods[:last]
			err = c.remove(ctx, p)
		}
	}()
	for range 3 {
		if err := c.container(p); err != nil {
			return err
		}
	}
	first, err := c.register(p, 0)
	if err != nil {
		return err
	}
	second, err := c.register(p, 1)
	if err != nil {
		return err
	}
	_, took, err := c.w.runHook("createRuntime", p.name+"-2", p.containers[2].pid(), "app")
	if err != nil || warm {
		return err
	}
	attach[side], next[side], hook[side] = append(attach[side], first), append(next[side], second), append(hook[side], took.Seconds()*1e3)
	return nil
}

// remove ends a pod as a runtime does.
func (c *crowd) remove(ctx context.Context, p *crowdPod) error {
	if err := c.end(ctx, p); err != nil {
		return err
	}
	for i := range p.containers {
		if _, _, err := c.w.runHook("poststop", fmt.Sprintf("%s-%d", p.name, i), 0, "app"); err != nil {
			return err
		}
	}
	return nil
}

// end ends the processes of a pod, and removes what was made for it.
func (c *crowd) end(ctx context.Context, p *crowdPod) error {
	var errs []error
	for _, process := range p.containers {
		process.stop()
	}
	for _, dir := range append(p.cgroups, p.cgroup) {
		if dir != "" {
			errs = append(errs, rmcgroup(dir))
		}
	}
	return errors.Join(append(errs, delNetns(ctx, p.netns, p.dev))...)
}

func (c *crowd) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, p := range c.pods {
		errs = append(errs, c.end(ctx, p))
	}
	return errors.Join(errs...)
}

// kernelMemory is what the machine uses without what files' contents and caches take, in bytes.
func kernelMemory() (float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	return usedMemory(string(b))
}

// usedMemory reads it from a listing of /proc/meminfo.
func usedMemory(listing string) (float64, error) {
	kib := map[string]float64{}
	for line := range strings.Lines(listing) {
		name, value, _ := strings.Cut(line, ":")
		if f := strings.Fields(value); len(f) > 0 {
			n, err := strconv.ParseFloat(f[0], 64)
			if err != nil {
				return 0, fmt.Errorf("memory: %w", err)
			}
			kib[name] = n
		}
	}
	used := kib["MemTotal"]
	for _, name := range []string{"MemFree", "Buffers", "Cached", "SReclaimable"} {
		n, ok := kib[name]
		if !ok {
			return 0, fmt.Errorf("memory: no %s", name)
		}
		used -= n
	}
	return used * 1024, nil
}

// pinnedMemory adds up what the kernel says of the maps and programs that are pinned below a state, in bytes.
func pinnedMemory(state string) (total float64, err error) {
	dir := cgroups.VersionDir(state)
	for _, pattern := range []string{"maps/*", "endpoints/maps/*"} {
		pins, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return 0, err
		}
		for _, pin := range pins {
			m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
			if err != nil {
				return 0, fmt.Errorf("%s: %w", pin, err)
			}
			info, err := m.Info()
			if err := errors.Join(err, m.Close()); err != nil {
				return 0, err
			}
			if n, ok := info.Memlock(); ok {
				total += float64(n)
			}
		}
	}
	// Some are pinned twice.
	programs := map[ebpf.ProgramID]float64{}
	for _, pattern := range []string{"progs/*", "endpoints/progs/*", "slots/*/*"} {
		pins, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return 0, err
		}
		for _, pin := range pins {
			p, err := ebpf.LoadPinnedProgram(pin, nil)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", pin, err)
			}
			info, err := p.Info()
			if err := errors.Join(err, p.Close()); err != nil {
				return 0, err
			}
			id, _ := info.ID()
			if n, ok := info.Memlock(); ok {
				programs[id] = float64(n)
			}
		}
	}
	for _, n := range programs {
		total += n
	}
	return total, nil
}
