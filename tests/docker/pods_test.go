// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"sidegate/observe/names"
	"sidegate/tests/lab"
)

// wantMesh fails the test unless all of the app goes by its sidecar, both ways and in both families.
func wantMesh(ctx context.Context, t testing.TB, app *lab.Container, p *lab.Pod, sidecar *lab.Container) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		nonce := newNonce()
		r, err := app.Probe(ctx, "http", "--to", world.Outside.HTTP(v6).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText)
		if err != nil || !r.OK {
			t.Errorf("v6=%t: %v, %v", v6, r, err)
		}
		var requests []lab.Request
		must(t, lab.WaitFor(lab.Patience, "the outside's log", func() (bool, error) {
			var err error
			requests, err = world.Outside.Requests(nonce)
			return len(requests) > 0, err
		}))
		_, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool {
			return len(requests) == 1 && c.Source == requests[0].Client && c.Dst == world.Outside.HTTP(v6)
		})
		if !ok {
			t.Errorf("v6=%t: the sidecar did not carry %v: %v", v6, requests, err)
		}
		if r, err := app.Probe(ctx, "udp", "--to", world.Outside.Echo(v6).String()); err != nil || r.Errno != "EPERM" {
			t.Errorf("v6=%t: UDP: %v, %v", v6, r, err)
		}
		to := fmt.Sprintf("%s:%d", p.V4, lab.AppPort)
		if v6 {
			to = fmt.Sprintf("[%s]:%d", p.V6, lab.AppPort)
		}
		in, err := world.Outside.Probe(ctx, "http", "--to", to, "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("v6=%t: inbound: %v, %v", v6, in, err)
		}
	}
	if _, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool { return c.Frontend == "inbound" }); !ok {
		t.Errorf("what came from outside passed the sidecar by: %v", err)
	}
}

// wantClosed fails the test if a process of the node can do anything in the pod.
func wantClosed(ctx context.Context, t testing.TB, p *lab.Pod) {
	t.Helper()
	pid, err := p.PausePID(ctx)
	must(t, err)
	wantClosedAt(ctx, t, pid)
}

// wantClosedAt is wantClosed by a process of the pod, which needs no Docker.
func wantClosedAt(ctx context.Context, t testing.TB, pid int) {
	t.Helper()
	if r, err := world.Enter(ctx, pid, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("a process of the node in the network namespace of process %d: %v, %v", pid, r, err)
	}
}

// A container that asks for it is enforced from its first instruction on; one that does not is on a network like any.
func TestPod(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	got, err := runJoiner(ctx, t, "--network", mesh)
	must(t, err)
	if len(got) == 0 {
		t.Fatal("nothing of a container that asks for nothing reached the outside")
	}
	got, err = runJoiner(ctx, t, append(label("app"), "--network", mesh)...)
	must(t, err)
	if len(got) != 0 {
		t.Errorf("an app without a sidecar reached %v", got)
	}

	app, p := runApp(ctx, t, "shop", label("app")...)
	waitRoles(t, "shop", "shop=app")
	wantClosed(ctx, t, p)
	if got, err := runJoiner(ctx, t, "--network", "container:shop"); err != nil || len(got) != 0 {
		t.Errorf("a container without labels in its network namespace: %v, %v", got, err)
	}
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	waitRoles(t, "shop", "shop-sidecar=sidecar shop=app")
	wantMesh(ctx, t, app, p, sidecar)
	if got, err := runJoiner(ctx, t, append(wrapped("app"), "--network", "container:shop")...); err != nil || len(got) == 0 || got[0].How != "tcp" {
		t.Errorf("another app in its network namespace: %v, %v", got, err)
	}
	must(t, sidecar.Remove(ctx))
	waitRoles(t, "shop", "shop=app")
	if got, err := runJoiner(ctx, t, append(wrapped("app"), "--network", "container:shop")...); err != nil || len(got) != 0 {
		t.Errorf("without a sidecar again: %v, %v", got, err)
	}
	must(t, p.Remove(ctx))
	waitRoles(t, "shop", "-")
}

// Docker's name server answers in managed containers as in others, and knows the containers of their networks.
func TestNames(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	app, p := runApp(ctx, t, "shop", label("app")...)
	sidecarIn(ctx, t, p, wrapped("sidecar")...)
	_, db := runApp(ctx, t, "db")
	for name, want := range map[string]string{"db": db.V4.String(), "shop": p.V4.String()} {
		out, err := app.Exec(ctx, "/bin/busybox", "nslookup", name)
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %s in %s", name, err, want, out)
		}
	}
	known, err := names.Docker(ctx, world.Docker.Socket())
	must(t, err)
	for name, p := range map[string]*lab.Pod{"db": db, "shop": p} {
		if known.Addresses[p.V4] != name || known.Addresses[p.V6] != name {
			t.Errorf("%s is at %s and %s, and known are %v", name, p.V4, p.V6, known.Addresses)
		}
	}
}

// Whoever joins a network namespace without the wrapper has no sockets until Docker has told of its start.
func TestJoinedByEvents(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	app, p := runApp(ctx, t, "shop", label("app")...)
	// HAProxy ends where it may not listen: Docker starts it again, some time later.
	sidecar, err := p.Run(ctx, "sidecar", lab.SidecarImage, lab.ContainerOptions{
		Flags: append(label("sidecar"), "--restart", "on-failure"),
		Args:  []string{"/usr/sbin/haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"},
	})
	must(t, err)
	must(t, lab.WaitFor(lab.Patience, "the sidecar to listen", func() (bool, error) {
		return sidecar.WaitListening(ctx, lab.InboundPort, lab.OutboundPort) == nil, ctx.Err()
	}))
	waitRoles(t, "shop", "shop-sidecar=sidecar shop=app")
	wantMesh(ctx, t, app, p, sidecar)
}

// The driver may be away, and killed at any time: nothing opens, and nothing is lost.
func TestDriverRestarts(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	newMesh(ctx, t)
	app, p := runApp(ctx, t, "shop", append(label("app"), "--publish", "18080:8080")...)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	wantMesh(ctx, t, app, p, sidecar)
	d.kill()
	wantClosed(ctx, t, p)
	wantMesh(ctx, t, app, p, sidecar)
	if _, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...); err == nil {
		t.Error("a container on its network started without it")
	}
	d = launchDriver(t)
	d.waitReady(ctx)
	wantClosed(ctx, t, p)
	wantMesh(ctx, t, app, p, sidecar)
	in, err := world.Outside.Probe(ctx, "http", "--to", lab.NodeV4.String()+":18080", "--contains", "hello from the app")
	if err != nil || !in.OK {
		t.Errorf("its published port: %v, %v", in, err)
	}
	if got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...); err != nil || len(got) != 0 {
		t.Errorf("an app without a sidecar: %v, %v", got, err)
	}
}

// What is wrong is said by docker run, and leaves nothing.
func TestRefusals(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	_, err := runJoiner(ctx, t, append(label("ap"), "--network", mesh)...)
	wantError(t, err, `"ap" is not a role`)
	_, err = runJoiner(ctx, t, append(label("app"), "--network", mesh, "--label", "sidegate/policy=strict")...)
	wantError(t, err, `no policy is named "strict"`)
	_, err = runJoiner(ctx, t, append(label("app"), "--network", mesh, "--cap-add", "NET_ADMIN")...)
	wantError(t, err, "it has CAP_NET_ADMIN")
	_, err = runJoiner(ctx, t, append(label("app"), "--network", "name="+mesh+",driver-opt=sidegate/role=sidecar")...)
	wantError(t, err, "write it once")
	_, err = world.Docker.CLI(ctx, "network", "create", "-d", "sidegate", "--opt", "mtu=9000", "typo")
	wantError(t, err, "mtu", "it is not known", "com.docker.network.driver.mtu")
	got, err := runJoiner(ctx, t, "--network", "name="+mesh+",driver-opt=sidegate/role=app")
	if err != nil || len(got) != 0 {
		t.Errorf("an app by its driver option, without a sidecar: %v, %v", got, err)
	}
}

// Docker before 28 tells of a container's process when its program runs: until it is registered its network is closed.
func TestOldDocker(t *testing.T) {
	ctx := begin(t, lab.DebianDocker)
	startDriver(ctx, t)
	newMesh(ctx, t)
	got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh)...)
	must(t, err)
	if len(got) != 0 {
		t.Errorf("an app without a sidecar reached %v", got)
	}
	got, err = runJoiner(ctx, t, append(wrapped("app"), "--network", mesh)...)
	must(t, err)
	if len(got) != 0 {
		t.Errorf("an app of the wrapper's without a sidecar reached %v", got)
	}
	app, p := runPatientApp(ctx, t, "shop", label("app")...)
	waitRoles(t, "shop", "shop=app")
	wantClosed(ctx, t, p)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	waitRoles(t, "shop", "shop-sidecar=sidecar shop=app")
	wantMesh(ctx, t, app, p, sidecar)
	open, pod := runApp(ctx, t, "open")
	must(t, lab.WaitFor(lab.Patience, "the network of a container that asks for nothing", func() (bool, error) {
		r, err := open.Probe(ctx, "udp", "--to", world.Outside.Echo(false).String())
		return r.OK, err
	}))
	must(t, pod.Remove(ctx))
}
