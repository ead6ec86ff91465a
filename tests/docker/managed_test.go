// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// plugin is what the managed plugin is called, and managed the driver that it is: Docker has that by the whole name only.
const (
	plugin  = lab.SidegateDriver
	managed = plugin + ":latest"
)

func newManagedMesh(ctx context.Context, t testing.TB) {
	t.Helper()
	must(t, world.Docker.NewNetwork(ctx, mesh, managed, "--opt", "com.docker.network.bridge.enable_ip_masquerade=false"))
}

// makePlugin makes what docker plugin create takes.
func makePlugin(ctx context.Context, t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plugin")
	out, err := exec.CommandContext(ctx, "make", "-C", "../..", "docker-plugin", "PLUGINDIR="+dir).CombinedOutput()
	if err != nil {
		t.Fatalf("make docker-plugin: %v: %s", err, out)
	}
	return dir
}

// startManaged runs the driver as a managed plugin. At the test's end what the test made is removed, then the plugin,
// and there has to be nothing left.
func startManaged(ctx context.Context, t *testing.T) *driver {
	t.Helper()
	policies := t.TempDir()
	for name, text := range map[string]string{
		"default.yaml": podPolicy("default"),
		"high.yaml":    strings.ReplaceAll(podPolicy("high"), "15000", "40000"),
	} {
		must(t, os.WriteFile(filepath.Join(policies, name), []byte(text), 0o644))
	}
	docker := func(args ...string) {
		t.Helper()
		_, err := world.Docker.CLI(context.WithoutCancel(ctx), args...)
		must(t, err)
	}
	docker("plugin", "create", plugin, makePlugin(ctx, t))
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := world.Docker.Log()
			t.Logf("dockerd's log:\n%s", log)
		}
		must(t, world.Docker.RemoveAll(context.WithoutCancel(ctx)))
		wantNothing(t)
		docker("plugin", "disable", plugin)
		docker("plugin", "rm", plugin)
		out, err := exec.Command(filepath.Join(world.bin, "sidegate"), "unload").CombinedOutput()
		if err != nil {
			t.Errorf("unload at the end: %v: %s", err, out)
			must(t, lab.Unload(context.WithoutCancel(ctx), filepath.Join(world.bin, "sidegate")))
		}
		if _, err := os.Stat(cgroups.DefaultState); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s exists: %v", cgroups.DefaultState, err)
		}
		if pids := pluginPIDs(t); len(pids) != 0 {
			t.Errorf("the plugin is removed, and there are its processes %v", pids)
		}
	})
	docker("plugin", "set", plugin, "SIDEGATE_METRICS_ADDRESS="+metricsAddress, "SIDEGATE_LOG_LEVEL=info", "args=--log-level debug", "policies.source="+policies)
	docker("plugin", "enable", plugin)
	d := &driver{t: t, ended: make(chan error, 1)}
	d.waitReady(ctx)
	return d
}

// pluginPIDs finds the processes of the managed plugin in this node.
func pluginPIDs(t testing.TB) (pids []int) {
	t.Helper()
	var own, its unix.Stat_t
	must(t, unix.Stat(lab.NodeNetns(), &own))
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(b, []byte("/sidegate-docker\x00")) {
			continue // it may have ended
		}
		dir := filepath.Dir(file)
		if unix.Stat(dir+"/ns/net", &its) != nil || its.Ino != own.Ino {
			continue // another node's
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		must(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// wantInUse asks Docker to take the plugin away while networks use it. It only knows of those that it has made since its start.
func wantInUse(ctx context.Context, t testing.TB) {
	t.Helper()
	_, err := world.Docker.CLI(ctx, "plugin", "disable", plugin)
	wantError(t, err, "in use")
	_, err = world.Docker.CLI(ctx, "plugin", "rm", plugin)
	wantError(t, err, "in use")
}

// wantReserved checks that ports of the sidecar are the pod's own, and nothing of the node is changed: both are below
// /proc/sys, which a plugin has read-only.
func wantReserved(ctx context.Context, t testing.TB) {
	t.Helper()
	const file = "/proc/sys/net/ipv4/ip_local_reserved_ports"
	app, p := runApp(ctx, t, "reserving", append(label("app"), "--label", "sidegate/policy=high")...)
	waitRoles(t, "reserving", "reserving=app")
	if out, err := app.Exec(ctx, "/bin/busybox", "cat", file); err != nil || strings.TrimSpace(string(out)) != "40000" {
		t.Errorf("ports that are reserved in the pod: %s, %v, want 40000", out, err)
	}
	if b, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(b)) != "" {
		t.Errorf("ports that are reserved on the node: %s, %v, want none", b, err)
	}
	must(t, p.Remove(ctx))
}

// The driver does as a managed plugin what it does as a service, and outlives what Docker does to it.
func TestManagedPlugin(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startManaged(ctx, t)
	_, err := world.Docker.CLI(ctx, "network", "create", "-d", managed, "--subnet", "203.0.113.0/24", "natted")
	must(t, err)
	newManagedMesh(ctx, t)
	wantInUse(ctx, t)
	if out, err := exec.Command(filepath.Join(world.bin, "sidegate-docker"), "--socket", filepath.Join(t.TempDir(), "s")).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "docker plugin disable") {
		t.Errorf("the same as a service beside it: %v: %s", err, out)
	}
	wantReserved(ctx, t)
	if out, _ := exec.Command(filepath.Join(world.bin, "sidegate"), "doctor", "--checks").CombinedOutput(); !strings.Contains(string(out), "a managed plugin") {
		t.Errorf("sidegate doctor does not find it: %s", out)
	}

	got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...)
	if err != nil || len(got) != 0 {
		t.Errorf("an app without a sidecar: %v, %v", got, err)
	}
	got, err = runJoiner(ctx, t, "--network", "natted")
	if err != nil || len(got) == 0 {
		t.Errorf("a container that asks for nothing: %v, %v", got, err)
	}
	app, p := runApp(ctx, t, "shop", append(label("app"), "--publish", "18080:8080")...)
	waitRoles(t, "shop", "shop=app")
	wantClosed(ctx, t, p)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	waitRoles(t, "shop", "shop-sidecar=sidecar shop=app")
	wantPublished := func() {
		t.Helper()
		in, err := world.Outside.Probe(ctx, "http", "--to", lab.NodeV4.String()+":18080", "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("its published port: %v, %v", in, err)
		}
	}
	wantMesh(ctx, t, app, p, sidecar)
	wantPublished()

	// Docker starts a plugin again that has ended.
	pids := pluginPIDs(t)
	if len(pids) != 1 {
		t.Fatalf("the plugin's processes are %v", pids)
	}
	must(t, unix.Kill(pids[0], unix.SIGKILL))
	wantClosed(ctx, t, p)
	wantMesh(ctx, t, app, p, sidecar)
	must(t, lab.WaitFor(lab.Patience, "another process of the plugin", func() (bool, error) {
		now := pluginPIDs(t)
		return len(now) == 1 && now[0] != pids[0], nil
	}))
	d.waitReady(ctx)
	wantMesh(ctx, t, app, p, sidecar)
	wantPublished()
	must(t, p.Remove(ctx))

	// After the machine's next start Docker starts it before the containers of its networks.
	again, p := runPatientApp(ctx, t, "again", append(label("app"), "--restart", "always")...)
	again.Disconnect() // its exec ends with Docker
	must(t, world.Docker.Stop())
	forget(t)
	must(t, world.Docker.Start(ctx))
	d.waitReady(ctx)
	waitRoles(t, "again", "again=app")
	wantClosed(ctx, t, p)
	must(t, p.Remove(ctx))
}

// With live-restore plugins go on too while Docker is away, and find the next Docker, which has another socket.
func TestManagedPluginLiveRestore(t *testing.T) {
	ctx := begin(t, lab.Moby)
	configure(ctx, t, func(o *lab.DockerOptions) { o.LiveRestore = true })
	t.Cleanup(func() { configure(ctx, t, func(*lab.DockerOptions) {}) })
	d := startManaged(ctx, t)
	newManagedMesh(ctx, t)
	app, p := runApp(ctx, t, "shop", label("app")...)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	pids := fmt.Sprint(pluginPIDs(t))
	must(t, world.Docker.Stop())
	app.Disconnect() // its exec ends with Docker
	must(t, world.Docker.Start(ctx))
	if now := fmt.Sprint(pluginPIDs(t)); now != pids {
		t.Errorf("the plugin's processes are %s, they were %s", now, pids)
	}
	d.waitReady(ctx)
	wantMesh(ctx, t, app, p, sidecar)
	got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...)
	if err != nil || len(got) != 0 {
		t.Errorf("an app without a sidecar: %v, %v", got, err)
	}
	// The wrapper has registered the sidecar, and the plugin has not done so again: that would leave it without sockets
	// meanwhile.
	if _, text, err := lab.Get(ctx, metricsAddress, "/metrics"); err != nil || !strings.Contains(text, "\nsidegate_docker_adoptions_total 0\n") {
		t.Errorf("a container was taken over: %v\n%s", err, text)
	}
	must(t, p.Remove(ctx))
}

// Docker before 28 has managed plugins too.
func TestManagedPluginOldDocker(t *testing.T) {
	ctx := begin(t, lab.DebianDocker)
	startManaged(ctx, t)
	newManagedMesh(ctx, t)
	wantInUse(ctx, t)
	got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...)
	if err != nil || len(got) != 0 {
		t.Errorf("an app without a sidecar: %v, %v", got, err)
	}
	app, p := runPatientApp(ctx, t, "shop", label("app")...)
	waitRoles(t, "shop", "shop=app")
	wantClosed(ctx, t, p)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	waitRoles(t, "shop", "shop-sidecar=sidecar shop=app")
	wantMesh(ctx, t, app, p, sidecar)
	must(t, p.Remove(ctx))
}
