// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// A network is translated to the node's addresses unless it says otherwise, and an internal one has no way out.
func TestNetworks(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	create := func(name string, flags ...string) {
		t.Helper()
		_, err := world.Docker.CLI(ctx, append(append([]string{"network", "create", "-d", lab.SidegateDriver}, flags...), name)...)
		must(t, err)
	}
	create("natted", "--ipv6", "--subnet", "203.0.113.0/25", "--subnet", "2001:db8:7::/64", "--opt", "com.docker.network.driver.mtu=1400")
	create("inner", "--internal", "--subnet", "203.0.113.128/25")
	got, err := runJoiner(ctx, t, "--network", "natted")
	must(t, err)
	if !slices.ContainsFunc(got, func(s lab.Sighting) bool { return s.Src.Addr() == lab.NodeV4 }) {
		t.Errorf("the outside saw %v, want something from %s", got, lab.NodeV4)
	}
	if got, err := runJoiner(ctx, t, "--network", "inner"); err != nil || len(got) != 0 {
		t.Errorf("from an internal network: %v, %v", got, err)
	}
	out, err := world.Docker.CLI(ctx, "run", "--rm", "--network", "natted", lab.AppImage, "/bin/ip", "link", "show", "eth0")
	if err != nil || !strings.Contains(string(out), "mtu 1400") {
		t.Errorf("%v: %s, want an MTU of 1400", err, out)
	}
	// Two containers of one network reach each other.
	db, err := world.Docker.Run(ctx, "db", lab.AppImage, []string{"--network", "inner"}, "/bin/prober", "serve", "--on", ":8080")
	must(t, err)
	must(t, db.WaitListening(ctx, 8080))
	out, err = world.Docker.CLI(ctx, "run", "--rm", "--network", "inner", lab.AppImage, "/bin/busybox", "wget", "-qO-", "http://db:8080/")
	if err != nil || !strings.Contains(string(out), "hello from the app") {
		t.Errorf("%v: %s", err, out)
	}
}

// A managed container that is connected to another network is enforced there too.
func TestConnect(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	_, err := world.Docker.CLI(ctx, "network", "create", "-d", lab.SidegateDriver, "--subnet", "203.0.113.0/24", "second")
	must(t, err)
	peer, err := world.Docker.Run(ctx, "peer", lab.AppImage, []string{"--network", "second"}, "/bin/prober", "serve", "--on", ":8080")
	must(t, err)
	must(t, peer.WaitListening(ctx, 8080))
	inspected, err := world.Docker.Inspect(ctx, "peer")
	must(t, err)
	to := netip.AddrPortFrom(inspected.NetworkSettings.Networks["second"].IPAddress, 8080)
	app, p := runApp(ctx, t, "shop", label("app")...)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	_, err = world.Docker.CLI(ctx, "network", "connect", "second", "shop")
	must(t, err)
	addresses := func() string { return fmt.Sprint(status(t)["shop"].Addresses) }
	own := strings.TrimSuffix(to.Addr().String(), fmt.Sprint(to.Addr().As4()[3]))
	if !strings.Contains(addresses(), own) {
		t.Errorf("the pod's addresses are %s, want one of the second network too", addresses())
	}
	if r, err := app.Probe(ctx, "http", "--to", to.String(), "--contains", "hello from the app"); err != nil || !r.OK {
		t.Errorf("by the second network: %v, %v", r, err)
	}
	if _, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool { return c.Dst == to }); !ok {
		t.Errorf("the sidecar did not carry it: %v", err)
	}
	if r, err := app.Probe(ctx, "udp", "--to", to.String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("UDP by the second network: %v, %v", r, err)
	}
	_, err = world.Docker.CLI(ctx, "network", "disconnect", "second", "shop")
	must(t, err)
	must(t, lab.WaitFor(lab.Patience, "the second network's address to go", func() (bool, error) { return !strings.Contains(addresses(), own), nil }))
	wantMesh(ctx, t, app, p, sidecar)
}

// What Docker shows of published ports is what is published. It cannot show what a driver has chosen: that is refused.
func TestPublish(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	for name, flag := range map[string]string{"any": "8080", "one of a range": "18080-18090:8080"} {
		_, err := runJoiner(ctx, t, "--network", mesh, "--publish", flag)
		if err == nil || !strings.Contains(err.Error(), "8080/tcp") || !strings.Contains(err.Error(), "--publish 8080:8080") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ends := hostEnds(t); len(ends) != 0 {
		t.Errorf("what was refused has left %v", ends)
	}

	runApp(ctx, t, "shop", "--publish", "18080-18081:8080-8081")
	out, err := world.Docker.CLI(ctx, "inspect", "--format", "{{json .HostConfig.PortBindings}}", "shop")
	if err != nil || !strings.Contains(string(out), `"8080/tcp":[{"HostIp":"","HostPort":"18080"}]`) {
		t.Errorf("docker inspect: %s, %v", out, err)
	}
	in, err := world.Outside.Probe(ctx, "http", "--to", lab.NodeV4.String()+":18080", "--contains", "hello from the app")
	if err != nil || !in.OK {
		t.Errorf("its published port: %v, %v", in, err)
	}
	// docker port lists what Docker's own drivers have told: of others nothing, or what is true.
	out, err = world.Docker.CLI(ctx, "port", "shop")
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "8080/tcp") && !strings.Contains(line, "8081/tcp") || !strings.Contains(line, ":1808") {
			t.Errorf("docker port shows %s", line)
		}
	}
}
