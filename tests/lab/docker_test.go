// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// TestDocker is one lab of each flavour for what follows.
func TestDocker(t *testing.T) {
	for _, flavour := range []lab.DockerFlavour{lab.Moby, lab.DebianDocker} {
		t.Run(string(flavour), func(t *testing.T) { testDocker(t, flavour) })
	}
}

func testDocker(t *testing.T, flavour lab.DockerFlavour) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	before := traces(t)
	wrapper := filepath.Join(t.TempDir(), "runtime")
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>%s.calls\nexec runc \"$@\"\n", wrapper)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	opts := lab.DockerOptions{Flavour: flavour, Runtimes: map[string]string{"wrapper": wrapper}}
	l, err := lab.New(ctx, lab.Options{Log: t.Output(), Docker: &opts})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	// What stays as long as the lab does.
	if _, err := l.Docker.Bridge(ctx); err != nil {
		t.Fatal(err)
	}
	d := &dockerTest{runtimeTest{l, ctx}, opts}
	for _, one := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"pod", d.pod},
		{"options", d.options},
		{"run", d.run},
		{"plugin", d.plugin},
		{"restart", d.restart},
		{"configure", d.configure},
	} {
		t.Run(one.name, func(t *testing.T) {
			before := traces(t)
			one.run(t)
			wantTraces(t, before)
		})
	}
	// The lab itself cleans up what nobody removed, also without dockerd, and what comes back by itself.
	if _, err := l.Docker.Run(ctx, "forgotten", lab.AppImage, []string{"--network", "lab", "--restart", "always"}, keepRunning...); err != nil {
		t.Error(err)
	}
	if pod, err := l.NewPod(ctx, lab.PodOptions{HostNetwork: true}); err != nil || pod.V4.IsValid() || pod.V6.IsValid() {
		t.Errorf("a pod of the node's network: %+v, %v", pod, err)
	}
	if err := l.Docker.Kill(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	wantTraces(t, before)
}

type dockerTest struct {
	runtimeTest
	opts lab.DockerOptions
}

// keepRunning is a program that ends at once when it is asked to.
var keepRunning = []string{"/bin/prober", "serve", "--on", "127.0.0.1:9"}

// runContainer runs a container that is removed before the test ends.
func (d *dockerTest) runContainer(t *testing.T, name string, flags []string, args ...string) (c *lab.Container, remove func()) {
	t.Helper()
	c, err := d.Docker.Run(d.ctx, name, lab.AppImage, flags, args...)
	if err != nil {
		t.Fatal(err)
	}
	return c, func() {
		if err := c.Remove(context.WithoutCancel(d.ctx)); err != nil {
			t.Error(err)
		}
	}
}

// wantStatus wants an error that has a program's exit status, and a text.
func wantStatus(t *testing.T, err error, status int, text string) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != status || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want exit status %d and %q", err, status, text)
	}
}

// A pod is an infra container and those that joined it, and its app reaches the outside by itself.
func (d *dockerTest) pod(t *testing.T) {
	pod, remove := d.newPod(t, lab.PodOptions{})
	defer remove()
	sidecar, err := pod.StartSidecar(d.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := pod.StartApp(d.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.wantReached(t, pod, app, "first")
	if out, err := app.Exec(d.ctx, "/bin/cat", "/etc/hostname"); err != nil || strings.TrimSpace(string(out)) != pod.Name {
		t.Errorf("exec: %q, %v", out, err)
	}
	_, err = app.Exec(d.ctx, "/bin/sh", "-c", "echo no >&2; exit 7")
	wantStatus(t, err, 7, "no")
	if log, err := sidecar.Log(); err != nil || !strings.Contains(string(log), " stderr F ") {
		t.Errorf("log %q, %v", log, err)
	}
	echo := []string{"tcp", "--to", d.Outside.Echo(true).String()}
	for how, probe := range map[string]func() (lab.Result, error){
		"a container in the network namespace of one that joined": func() (lab.Result, error) {
			return pod.JoinNetns(d.ctx, app, lab.ContainerOptions{User: "1337"}, echo...)
		},
		"a process of the node in the network namespace": func() (lab.Result, error) { return pod.Enter(d.ctx, echo...) },
	} {
		if r, err := probe(); err != nil || !r.OK || r.Addr("local").Addr() != pod.V6 {
			t.Errorf("%s: %v, %v", how, r, err)
		}
	}

	// A container that starts again is the same one, with the same log.
	id := app.ID
	if err := app.Stop(d.ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.Wait(d.ctx); err != nil {
		t.Error(err)
	}
	if _, err := app.PID(d.ctx); err == nil {
		t.Error("a stopped container has a process")
	}
	if err := app.Start(d.ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.WaitListening(d.ctx, lab.AppPort); err != nil {
		t.Fatal(err)
	}
	if inspected, err := d.Docker.Inspect(d.ctx, app.Name); err != nil || inspected.ID != id || inspected.State.Status != "running" {
		t.Errorf("after a start: %+v, %v, was %s", inspected, err, id)
	}
	d.wantReached(t, pod, app, "again")
	if err := app.Remove(d.ctx); err != nil {
		t.Error(err)
	}
}

// What options say arrives.
func (d *dockerTest) options(t *testing.T) {
	pod, remove := d.newPod(t, lab.PodOptions{
		Name: "named", Network: "none", SharePID: true, Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"}, Flags: []string{"--label", "f=3"},
	})
	defer remove()
	if pod.V4.IsValid() || pod.V6.IsValid() {
		t.Errorf("addresses %v and %v", pod.V4, pod.V6)
	}
	app, err := pod.StartApp(d.ctx, lab.ContainerOptions{
		Annotations: map[string]string{"a": "2"}, CapAdd: []string{"NET_ADMIN"}, User: "1337:7", Unconfined: true, HostCgroups: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	format := "{{json .Config.Labels}} {{.Config.User}} {{json .HostConfig.CapAdd}} {{json .HostConfig.SecurityOpt}}"
	for name, want := range map[string]string{
		pod.Infra().Name: `{"a":"2","f":"3","l":"1"}  null null`,
		app.Name:         `{"a":"2"} 1337:7 ["CAP_NET_ADMIN"] ["seccomp=unconfined"]`,
	} {
		out, err := d.Docker.CLI(d.ctx, "inspect", "--format", format, name)
		// Moby 2 says it with its prefix, 20.10 as it was asked for.
		if got := strings.ReplaceAll(strings.TrimSpace(string(out)), `"NET_ADMIN"`, `"CAP_NET_ADMIN"`); err != nil || got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if out, err := app.Exec(d.ctx, "/bin/ps"); err != nil || !strings.Contains(string(out), "catatonit -P") {
		t.Errorf("the pod's infra process is not seen in a container of its PID namespace: %s, %v", out, err)
	}
	cgroup, err := app.Exec(d.ctx, "/bin/cat", "/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	path := cgroup2(cgroup)
	if filepath.Base(path) != app.ID {
		t.Errorf("cgroup %s of container %s", path, app.ID)
	}
	if out, err := app.Exec(d.ctx, "/bin/ls", lab.HostCgroups+path); err != nil || !strings.Contains(string(out), "cgroup.procs") {
		t.Errorf("the host's cgroups: %s, %v", out, err)
	}
	for what, opts := range map[string]lab.ContainerOptions{"files": {Files: []*os.File{os.Stdin}}, "flags": {Flags: []string{"--no-such-flag"}}} {
		if _, err := pod.Run(d.ctx, "bad", lab.AppImage, opts); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// Plain docker run: no network unless asked for, another runtime if asked for, exit statuses, and an app that has the namespace which a sidecar joins.
func (d *dockerTest) run(t *testing.T) {
	out, err := d.Docker.CLI(d.ctx, "run", "--rm", "--runtime", "wrapper", lab.AppImage, "/bin/ls", "/sys/class/net")
	if err != nil || strings.TrimSpace(string(out)) != "lo" {
		t.Errorf("a container without a network has %q, %v", out, err)
	}
	_, err = d.Docker.CLI(d.ctx, "run", "--rm", lab.AppImage, "/missing")
	wantStatus(t, err, 127, "/missing")
	if n := d.wrapped(t); n != 1 {
		t.Errorf("the other runtime created %d containers", n)
	}

	ends, remove := d.runContainer(t, "ends", nil, "/bin/sh", "-c", "echo out; echo err >&2; exit 5")
	defer remove()
	if out, err := d.Docker.CLI(d.ctx, "wait", "ends"); err != nil || string(out) != "5\n" {
		t.Errorf("wait: %q, %v", out, err)
	}
	if log, err := ends.Log(); err != nil || !strings.Contains(string(log), " stdout F out\n") || !strings.Contains(string(log), " stderr F err\n") {
		t.Errorf("log %q, %v", log, err)
	}

	app, removeApp := d.runContainer(t, "app", []string{"--network", "lab"}, keepRunning...)
	defer removeApp()
	pod, err := d.Docker.PodOf(d.ctx, app, lab.PodOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Run(d.ctx, "other", lab.AppImage, lab.ContainerOptions{Args: keepRunning}); err != nil {
		t.Error(err)
	}
	r, err := pod.JoinPod(d.ctx, lab.ContainerOptions{}, "tcp", "--to", d.Outside.Echo(false).String())
	if err != nil || !r.OK || r.Addr("local").Addr() != pod.V4 {
		t.Errorf("a container that joined: %v, %v", r, err)
	}
	if err := pod.Remove(d.ctx); err != nil {
		t.Error(err)
	}
	if out, err := d.Docker.CLI(d.ctx, "ps", "--all", "--format", "{{.Names}}"); err != nil || string(out) != "ends\n" {
		t.Errorf("left: %q, %v", out, err)
	}
}

// wrapped returns how many containers the wrapper of runc created.
func (d *dockerTest) wrapped(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(d.opts.Runtimes["wrapper"] + ".calls")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(b), " create ")
}

// A network driver's socket is found, and asked.
func (d *dockerTest) plugin(t *testing.T) {
	socket := filepath.Join(lab.DockerPlugins, "fake.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu    sync.Mutex
		calls []string
	)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		calls = append(calls, r.URL.Path)
		mu.Unlock()
		// More than what each answer has: the rest is ignored.
		_ = json.NewEncoder(w).Encode(map[string]any{"Implements": []string{"NetworkDriver"}, "Scope": "local"})
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	if err := d.Docker.NewNetwork(d.ctx, "other", "fake", "--ipam-driver", "null"); err == nil {
		t.Error("a subnet without an IPAM driver is no error")
	}
	if _, err := d.Docker.CLI(d.ctx, "network", "create", "--driver", "fake", "--ipam-driver", "null", "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Docker.CLI(d.ctx, "network", "rm", "other"); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"/Plugin.Activate", "/NetworkDriver.CreateNetwork", "/NetworkDriver.DeleteNetwork"} {
		if !slices.Contains(calls, want) {
			t.Errorf("no call of %s: %q", want, calls)
		}
	}
}

// pidOf returns a container's process, which must run.
func (d *dockerTest) pidOf(t *testing.T, c *lab.Container) int {
	t.Helper()
	pid, err := c.PID(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func running(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil
}

// Containers end with dockerd, and after its death with the next one, and come back if that is their policy.
func (d *dockerTest) restart(t *testing.T) {
	defer func() {
		if err := d.Docker.RemoveAll(context.WithoutCancel(d.ctx)); err != nil {
			t.Error(err)
		}
		if _, err := d.Docker.Bridge(d.ctx); err != nil { // it went with the others
			t.Error(err)
		}
	}()
	once, err := d.Docker.Run(d.ctx, "once", lab.AppImage, nil, keepRunning...)
	if err != nil {
		t.Fatal(err)
	}
	always, err := d.Docker.Run(d.ctx, "always", lab.AppImage, []string{"--restart", "always"}, keepRunning...)
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"stopped", "killed"} {
		daemon, pids := d.Docker.PID(), []int{d.pidOf(t, once), d.pidOf(t, always)}
		end, want := d.Docker.Stop, false
		if how == "killed" {
			end, want = d.Docker.Kill, true
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			if running(pid) != want {
				t.Errorf("%s: container with process %d runs: %t", how, pid, !want)
			}
		}
		if err := d.Docker.Start(d.ctx); err != nil {
			t.Fatal(err)
		}
		if d.Docker.PID() == daemon {
			t.Errorf("%s: the same process", how)
		}
		if pid, err := once.PID(d.ctx); err == nil {
			t.Errorf("%s: process %d", how, pid)
		}
		err := lab.WaitFor(lab.Patience, "the container to come back", func() (bool, error) {
			pid, err := always.PID(d.ctx)
			return err == nil && !slices.Contains(pids, pid), d.ctx.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := once.Start(d.ctx); err != nil {
			t.Error(err)
		}
	}
}

// Another configuration: containers outlive dockerd, however it ends, and all have another runtime.
func (d *dockerTest) configure(t *testing.T) {
	other := d.opts
	other.Flavour = "other"
	if err := d.Docker.Configure(other); err == nil {
		t.Error("another flavour is no error")
	}
	d.opts.LiveRestore, d.opts.DefaultRuntime = true, "wrapper"
	if err := d.Docker.Configure(d.opts); err != nil {
		t.Fatal(err)
	}
	if err := d.Docker.Restart(d.ctx); err != nil {
		t.Fatal(err)
	}
	created := d.wrapped(t)
	pod, remove := d.newPod(t, lab.PodOptions{})
	defer remove()
	app, err := pod.StartApp(d.ctx, lab.ContainerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := d.wrapped(t) - created; n != 2 {
		t.Errorf("the default runtime created %d containers", n)
	}
	pid := d.pidOf(t, app)
	for how, end := range map[string]func() error{"stopped": d.Docker.Stop, "killed": d.Docker.Kill} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		in, err := d.Outside.Probe(d.ctx, "http", "--to", fmt.Sprintf("%s:%d", pod.V4, lab.AppPort), "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("%s: the app does not answer: %v, %v", how, in, err)
		}
		if err := d.Docker.Start(d.ctx); err != nil {
			t.Fatal(err)
		}
		app.Disconnect()
		if now := d.pidOf(t, app); now != pid {
			t.Errorf("%s: the app is process %d, was %d", how, now, pid)
		}
		d.wantReached(t, pod, app, how)
	}
}
