// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// TestContainerd is one lab for what follows.
func TestContainerd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	before := traces(t)
	opts := lab.ContainerdOptions{PodAnnotations: []string{"lab/pod*"}, ContainerAnnotations: []string{"lab/container*"}}
	l, err := lab.New(ctx, lab.Options{Log: t.Output(), Containerd: &opts})
	if err != nil {
		t.Fatal(err)
	}
	c := &containerdTest{runtimeTest{l, ctx}, opts}
	for _, one := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"pod", c.pod},
		{"options", c.options},
		{"host network", c.hostNetwork},
		{"restart", c.restart},
		{"configure", c.configure},
	} {
		t.Run(one.name, func(t *testing.T) {
			before := traces(t)
			one.run(t)
			wantTraces(t, before)
		})
	}
	// The lab itself cleans up what nobody removed, also without containerd.
	if _, err := l.NewPod(ctx, lab.PodOptions{}); err != nil {
		t.Error(err)
	}
	if err := l.Containerd.Kill(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantTraces(t, before)
}

// runtimeTest has what is the same for every container runtime.
type runtimeTest struct {
	*lab.Lab
	ctx context.Context
}

type containerdTest struct {
	runtimeTest
	opts lab.ContainerdOptions
}

// newPod starts a pod that is removed before the test ends.
func (c *runtimeTest) newPod(t *testing.T, opts lab.PodOptions) (p *lab.Pod, remove func()) {
	t.Helper()
	p, err := c.NewPod(c.ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p, func() {
		if err := p.Remove(context.WithoutCancel(c.ctx)); err != nil {
			t.Error(err)
		}
	}
}

// wantReached wants that app and outside reach each other with their own addresses.
func (c *runtimeTest) wantReached(t *testing.T, pod *lab.Pod, app *lab.Container, nonce string) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		nonce := fmt.Sprintf("%s-%t", nonce, v6)
		r, err := app.Probe(c.ctx, "http", "--to", c.Outside.HTTP(v6).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText)
		if err != nil || !r.OK {
			t.Fatalf("v6=%t: %v %v", v6, r, err)
		}
		// nginx logs a request some time after its answer.
		var requests []lab.Request
		err = lab.WaitFor(lab.Patience, "the request in the log", func() (bool, error) {
			requests, err = c.Outside.Requests(nonce)
			return len(requests) > 0, err
		})
		if err != nil || len(requests) != 1 || requests[0].Client != r.Addr("local") || requests[0].Client.Addr() != pod.Addr(v6) {
			t.Errorf("v6=%t: requests %v from %v, %v", v6, requests, r.Addr("local"), err)
		}
		in, err := c.Outside.Probe(c.ctx, "http", "--to", netip.AddrPortFrom(pod.Addr(v6), lab.AppPort).String(), "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("v6=%t: inbound: %v, %v", v6, in, err)
		}
	}
}

// A CRI pod is up, and its app reaches the outside by itself.
func (c *containerdTest) pod(t *testing.T) {
	pod, remove := c.newPod(t, lab.PodOptions{})
	defer remove()
	sidecar, err := pod.StartSidecar(c.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := pod.StartApp(c.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.wantReached(t, pod, app, "first")
	if out, err := app.Exec(c.ctx, "/bin/cat", "/etc/hostname"); err != nil || strings.TrimSpace(string(out)) != pod.Name {
		t.Errorf("exec: %q, %v", out, err)
	}
	if _, err := app.Exec(c.ctx, "/bin/cat", "/missing"); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("exec of a command that fails: %v", err)
	}
	if log, err := sidecar.Log(); err != nil || !bytes.Contains(log, []byte(" F ")) {
		t.Errorf("log %q, %v", log, err)
	}
	if carried, err := sidecar.Carried(); err != nil || len(carried) != 0 {
		t.Errorf("sidecar carried %v, %v", carried, err)
	}
	echo := []string{"tcp", "--to", c.Outside.Echo(true).String()}
	for how, probe := range map[string]func() (lab.Result, error){
		"a late container": func() (lab.Result, error) { return pod.JoinPod(c.ctx, lab.ContainerOptions{}, echo...) },
		"a container of ctr in the network namespace": func() (lab.Result, error) {
			return pod.JoinNetns(c.ctx, app, lab.ContainerOptions{User: "1337"}, echo...)
		},
		"a process of the node in the network namespace": func() (lab.Result, error) { return pod.Enter(c.ctx, echo...) },
	} {
		if r, err := probe(); err != nil || !r.OK || r.Addr("local").Addr() != pod.V6 {
			t.Errorf("%s: %v, %v", how, r, err)
		}
	}
	out, err := c.Containerd.CtrRun(c.ctx, lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/ls", "/sys/class/net"}})
	if err != nil || strings.TrimSpace(string(out)) != "lo" {
		t.Errorf("a container of ctr: %q, %v", out, err)
	}

	// A container that starts again is another one, with the same log.
	id := app.ID
	if err := app.Stop(c.ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.Wait(c.ctx); err != nil {
		t.Error(err)
	}
	if _, err := app.PID(c.ctx); err == nil {
		t.Error("a stopped container has a process")
	}
	if err := app.Start(c.ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.WaitListening(c.ctx, lab.AppPort); err != nil {
		t.Fatal(err)
	}
	if app.ID == id {
		t.Errorf("container %s has the same id after a start", app.Name)
	}
	c.wantReached(t, pod, app, "again")
	if err := app.Remove(c.ctx); err != nil {
		t.Error(err)
	}
}

// What options say arrives.
func (c *containerdTest) options(t *testing.T) {
	pod, remove := c.newPod(t, lab.PodOptions{
		Namespace: "space", Labels: map[string]string{"l": "1"}, SharePID: true,
		Annotations: map[string]string{"lab/pod-a": "1", "other": "1"},
	})
	defer remove()
	app, err := pod.StartApp(c.ctx, lab.ContainerOptions{
		Annotations: map[string]string{"lab/container-a": "2", "other": "2"},
		CapAdd:      []string{"NET_ADMIN"}, User: "1337:7", Unconfined: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	info, err := c.Containerd.Ctr(c.ctx, "k8s.io", "containers", "info", app.ID)
	if err != nil {
		t.Fatal(err)
	}
	var spec struct {
		Spec struct {
			Annotations map[string]string
			Linux       struct {
				Seccomp json.RawMessage
			}
			Process struct {
				User         struct{ UID, GID int }
				Capabilities struct{ Bounding []string }
			}
		}
	}
	if err := json.Unmarshal(info, &spec); err != nil {
		t.Fatal(err)
	}
	got := maps.Clone(spec.Spec.Annotations)
	maps.DeleteFunc(got, func(key, _ string) bool {
		return !strings.HasPrefix(key, "lab/") && key != "other" && key != "io.kubernetes.cri.sandbox-namespace"
	})
	want := map[string]string{"lab/pod-a": "1", "lab/container-a": "2", "io.kubernetes.cri.sandbox-namespace": "space"}
	if !maps.Equal(got, want) {
		t.Errorf("annotations %v", got)
	}
	process := spec.Spec.Process
	if process.User.UID != 1337 || process.User.GID != 7 || !slices.Contains(process.Capabilities.Bounding, "CAP_NET_ADMIN") {
		t.Errorf("process %+v", process)
	}
	if spec.Spec.Linux.Seccomp != nil {
		t.Error("an unconfined container has a seccomp filter")
	}
	if out, err := app.Exec(c.ctx, "/bin/ps"); err != nil || !strings.Contains(string(out), "catatonit -P") {
		t.Errorf("the pod's infra process is not seen in a container of its PID namespace: %s, %v", out, err)
	}
	// Two results, the second one when standard input ends.
	probing, err := app.StartProbe(c.ctx, "later", "--to", c.Outside.Echo(true).String())
	if err != nil {
		t.Fatal(err)
	}
	if r, err := probing.Next(); err != nil || !r.OK {
		t.Errorf("a connection's begin: %v, %v", r, err)
	}
	if err := probing.End(); err != nil {
		t.Error(err)
	}
	if r, err := probing.Next(); err != nil || !r.OK || r.Addr("local").Addr() != pod.V6 {
		t.Errorf("a connection's end: %v, %v", r, err)
	}
	if err := probing.Wait(); err != nil {
		t.Error(err)
	}
	for what, opts := range map[string]lab.ContainerOptions{
		"files": {Files: []*os.File{os.Stdin}}, "flags": {Flags: []string{"--tty"}}, "user": {User: "nobody"},
	} {
		if _, err := pod.Run(c.ctx, "bad", lab.AppImage, opts); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// A pod of the node's network has no addresses, and its listeners are the node's.
func (c *containerdTest) hostNetwork(t *testing.T) {
	pod, remove := c.newPod(t, lab.PodOptions{HostNetwork: true})
	defer remove()
	app, err := pod.StartApp(c.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pod.V4.IsValid() || pod.V6.IsValid() {
		t.Errorf("addresses %v and %v", pod.V4, pod.V6)
	}
	r, err := app.Probe(c.ctx, "tcp", "--to", c.Outside.Echo(false).String())
	if err != nil || !r.OK || r.Addr("local").Addr() != lab.NodeV4 {
		t.Errorf("%v, %v", r, err)
	}
}

// Pods outlive containerd, however it ends.
func (c *containerdTest) restart(t *testing.T) {
	pod, remove := c.newPod(t, lab.PodOptions{})
	defer remove()
	app, err := pod.StartApp(c.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := c.GatewayMAC()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := app.PID(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for how, restart := range map[string]func() error{
		"stopped": func() error { return c.Containerd.Restart(c.ctx) },
		"killed": func() error {
			if err := c.Containerd.Kill(); err != nil {
				return err
			}
			return c.Containerd.Start(c.ctx)
		},
	} {
		daemon := c.Containerd.PID()
		if err := restart(); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		app.Disconnect()
		if c.Containerd.PID() == daemon {
			t.Errorf("%s: the same process", how)
		}
		if now, err := app.PID(c.ctx); err != nil || now != pid {
			t.Errorf("%s: the app is process %d, %v, was %d", how, now, err, pid)
		}
		c.wantReached(t, pod, app, how)
		if now, err := c.GatewayMAC(); err != nil || now != gateway {
			t.Errorf("%s: gateway %s, %v, was %s", how, now, err, gateway)
		}
	}
}

// Another configuration: a runtime in the way of runc, and a plugin that is not there.
func (c *containerdTest) configure(t *testing.T) {
	dir := t.TempDir()
	opts := c.opts
	opts.RuntimeBinary = filepath.Join(dir, "runtime")
	opts.RuntimeEnv = []string{"LAB_TEST=from the environment"}
	script := fmt.Sprintf("#!/bin/sh\necho \"$LAB_TEST\" >%s/called\nexec %s \"$@\"\n", dir, c.Containerd.Runc())
	if err := os.WriteFile(opts.RuntimeBinary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	reconfigure := func(opts lab.ContainerdOptions) {
		t.Helper()
		if err := c.Containerd.Configure(opts); err != nil {
			t.Fatal(err)
		}
		if err := c.Containerd.Restart(c.ctx); err != nil {
			t.Fatal(err)
		}
	}
	reconfigure(opts)
	pod, remove := c.newPod(t, lab.PodOptions{})
	defer remove()
	if called, err := os.ReadFile(filepath.Join(dir, "called")); err != nil || string(called) != "from the environment\n" {
		t.Errorf("the runtime was called with %q, %v", called, err)
	}
	c.opts.RequiredPlugins = []string{"required-by-the-test"}
	reconfigure(c.opts)
	if _, err := pod.StartApp(c.ctx, lab.ContainerOptions{}); err == nil || !strings.Contains(err.Error(), "required-by-the-test") {
		t.Errorf("a container without a required plugin: %v", err)
	}
	c.opts.RequiredPlugins = nil
	reconfigure(c.opts)
	if _, err := pod.StartApp(c.ctx, lab.ContainerOptions{}); err != nil {
		t.Error(err)
	}
}

// traces lists what a container runtime could leave in the node: mounts, network namespaces and devices, cgroups, and processes.
func traces(t *testing.T) []string {
	t.Helper()
	var all []string
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if point := strings.Fields(line)[4]; point != "/run/netns" { // ip netns makes it one, for good
			all = append(all, "mount "+point)
		}
	}
	names, err := filepath.Glob("/run/netns/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		all = append(all, "netns "+name)
	}
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range devices {
		if device.Name != "cni0" { // it stays until the lab is closed
			all = append(all, "device "+device.Name)
		}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir("/sys/fs/cgroup" + cgroup2(own))
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || p == filepath.Join(root, "pods") {
			return nil
		}
		all = append(all, "cgroup "+p)
		procs, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(procs)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			if strings.HasPrefix(string(name), "containerd-shim") {
				all = append(all, fmt.Sprintf("process %s %s", pid, name))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// cgroup2 returns the cgroup in a listing of /proc/PID/cgroup, which also has those of cgroup v1 on some machines.
func cgroup2(listing []byte) string {
	for line := range strings.Lines(string(listing)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	return ""
}

// wantTraces wants to see nothing but what was there before. Devices and shims end some time after the pod.
func wantTraces(t *testing.T, before []string) {
	t.Helper()
	var added []string
	err := lab.WaitFor(lab.Patience, "the end of what was made", func() (bool, error) {
		added = slices.DeleteFunc(traces(t), func(one string) bool { return slices.Contains(before, one) })
		return len(added) == 0, nil
	})
	if err != nil {
		t.Errorf("%v: %q", err, added)
	}
}
