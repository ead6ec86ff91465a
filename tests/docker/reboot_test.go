// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// forget takes from the kernel all that the driver has there, as the machine's next start does.
func forget(t testing.TB) {
	t.Helper()
	out, err := exec.Command("ip", "-brief", "link").Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if name := strings.Fields(line)[0]; strings.HasPrefix(name, "sg-") {
			must(t, exec.Command("ip", "link", "del", name).Run())
		}
	}
	must(t, exec.Command("nft", "delete", "table", "inet", "sidegate-docker").Run())
	must(t, exec.Command(filepath.Join(world.bin, "sidegate"), "unload", "--force").Run())
}

// After the machine's next start Docker starts containers before it answers anybody. They have their networks all the same.
func TestReboot(t *testing.T) {
	for name, flavour := range map[string]lab.DockerFlavour{"28": lab.Moby, "20.10": lab.DebianDocker} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t, flavour)
			d := startDriver(ctx, t)
			newMesh(ctx, t)
			_, err := world.Docker.CLI(ctx, "network", "create", "-d", lab.SidegateDriver, "--internal", "--subnet", "203.0.113.0/24", "inner")
			must(t, err)
			app, _ := runPatientApp(ctx, t, "shop", append(label("app"), "--restart", "always")...)
			app.Disconnect() // its exec ends with Docker
			// Its runtime has to know its labels before Docker serves.
			kept, _ := runPatientApp(ctx, t, "kept", append(wrapped("app"), "--restart", "always")...)
			kept.Disconnect()
			inner, err := world.Docker.Run(ctx, "inner", lab.AppImage, []string{"--network", "inner", "--restart", "always"}, "/bin/sleep", "1000")
			must(t, err)
			must(t, world.Docker.Stop())
			d.kill()
			forget(t)
			d = launchDriver(t)
			must(t, world.Docker.Start(ctx))
			d.waitReady(ctx)
			waitRoles(t, "shop", "shop=app")
			waitRoles(t, "kept", "kept=app")
			must(t, app.WaitListening(ctx, lab.AppPort))
			p, err := world.Docker.PodOf(ctx, app, lab.PodOptions{})
			must(t, err)
			sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
			wantMesh(ctx, t, app, p, sidecar)
			out, err := inner.Exec(ctx, "/bin/ip", "route")
			if err != nil || strings.Contains(string(out), "default") || !strings.Contains(string(out), "203.0.113.0/24") {
				t.Errorf("routes of the internal network are %s, %v", out, err)
			}
		})
	}
}
