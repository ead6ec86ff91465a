// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// composeExample is what the README shows.
const composeExample = "../../contrib/examples/compose/compose.yaml"

// override puts the lab's images into the example, and its network where the outside knows it.
const override = `
services:
  proxy:
    image: %s
    command: [/usr/sbin/haproxy, -W, -db, -f, /usr/local/etc/haproxy/haproxy.cfg]
  app:
    image: %s
    command: [/bin/prober, serve, --on, ":%d"]
networks:
  mesh:
    enable_ipv6: true
    driver_opts: {com.docker.network.bridge.enable_ip_masquerade: "false"}
    ipam: {config: [{subnet: %s}, {subnet: "%s"}]}
`

// The example for Compose, by Compose: all of the app passes its sidecar, nothing else gets out, and nothing stays.
func TestCompose(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	must(t, world.Docker.InstallCompose(ctx))
	file := filepath.Join(t.TempDir(), "override.yaml")
	must(t, os.WriteFile(file, fmt.Appendf(nil, override, lab.SidecarImage, lab.AppImage, lab.AppPort, lab.PodsV4, lab.PodsV6), 0o644))
	docker := func(args ...string) string {
		t.Helper()
		out, err := world.Docker.CLI(ctx, args...)
		must(t, err)
		return string(out)
	}
	compose := func(args ...string) string {
		t.Helper()
		return docker(append([]string{"compose", "-f", composeExample, "-f", file, "--progress", "plain"}, args...)...)
	}
	compose("up", "--detach")
	waitRoles(t, "shop-proxy-1", "shop-app-1=app shop-proxy-1=sidecar")
	exec := func(args ...string) string {
		t.Helper()
		out, _ := world.Docker.CLI(ctx, append([]string{"exec", "shop-app-1", "/bin/prober"}, args...)...)
		return string(out)
	}
	carried := func(what string) {
		t.Helper()
		log := ""
		err := lab.WaitFor(lab.Patience, what+" in the sidecar's log", func() (bool, error) {
			log = compose("logs", "proxy")
			return strings.Contains(log, what), nil
		})
		if err != nil {
			t.Errorf("%v:\n%s", err, log)
		}
	}
	for _, v6 := range []bool{false, true} {
		if out := exec("http", "--to", world.Outside.HTTP(v6).String(), "--path", lab.PagePath, "--contains", lab.PageText); !strings.Contains(out, `"ok":true`) {
			t.Errorf("v6=%t: %s", v6, out)
		}
		if out := exec("udp", "--to", world.Outside.Echo(v6).String()); !strings.Contains(out, "EPERM") {
			t.Errorf("v6=%t: UDP: %s", v6, out)
		}
	}
	carried("outbound4: 127.0.0.1:")
	carried("to " + world.Outside.HTTP(false).Addr().String() + ":")
	carried("to " + world.Outside.HTTP(true).Addr().String() + ":")
	in, err := world.Outside.Probe(ctx, "http", "--to", lab.NodeV4.String()+":8080", "--contains", "hello from the app")
	if err != nil || !in.OK {
		t.Errorf("its published port: %v, %v", in, err)
	}
	carried("inbound: ")
	if out := docker("run", "--rm", "--network", "shop_mesh", lab.AppImage, "/bin/busybox", "wget", "-qO-", "http://app:8080/"); !strings.Contains(out, "hello from the app") {
		t.Errorf("another service: %s", out)
	}
	compose("stop", "proxy")
	if out := exec("http", "--to", world.Outside.HTTP(false).String(), "--path", lab.PagePath, "--contains", lab.PageText); strings.Contains(out, `"ok":true`) {
		t.Errorf("without its sidecar: %s", out)
	}
	compose("down", "--timeout", "1")
	if ends := hostEnds(t); len(ends) != 0 {
		t.Errorf("down has left %v", ends)
	}
	if left := docker("ps", "--all", "--quiet") + docker("network", "ls", "--quiet", "--filter", "name=shop"); left != "" {
		t.Errorf("down has left %s", left)
	}
	wantNothing(t)
}
