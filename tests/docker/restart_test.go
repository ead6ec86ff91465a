// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"sidegate/tests/lab"
)

// configure lets dockerd start again with other options.
func configure(ctx context.Context, t testing.TB, change func(*lab.DockerOptions)) {
	t.Helper()
	o := dockerOptions(world.flavour)
	change(&o)
	must(t, world.Docker.Configure(o))
	must(t, world.Docker.Restart(context.WithoutCancel(ctx)))
}

// hostEnds lists the host's ends of endpoints.
func hostEnds(t testing.TB) (names []string) {
	t.Helper()
	out, err := exec.Command("ip", "-brief", "link").Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if name, _, _ := strings.Cut(line, "@"); strings.HasPrefix(name, "sgh") {
			names = append(names, name)
		}
	}
	return names
}

// Docker that is killed forgets the endpoints of its containers, which the next one ends: they go away, and the network
// is what it was.
func TestDockerIsKilled(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	newMesh(ctx, t)
	_, p := runApp(ctx, t, "shop", append(label("app"), "--publish", "18080:8080")...)
	pid, err := p.PausePID(ctx)
	must(t, err)
	must(t, world.Docker.Kill())
	wantClosedAt(ctx, t, pid)
	must(t, world.Docker.Start(ctx))
	must(t, lab.WaitFor(lab.Patience, "the end of what Docker has forgotten", func() (bool, error) {
		return len(hostEnds(t)) == 0 && roles(t, "shop") == "-", nil
	}))
	d.waitReady(ctx)
	_, err = world.Docker.CLI(ctx, "rm", "--force", "shop")
	must(t, err)
	app, p := runApp(ctx, t, "again", label("app")...)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	wantMesh(ctx, t, app, p, sidecar)
}

// With live-restore containers go on while Docker is away, and nothing opens.
func TestLiveRestore(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	newMesh(ctx, t)
	configure(ctx, t, func(o *lab.DockerOptions) { o.LiveRestore = true })
	t.Cleanup(func() { configure(ctx, t, func(*lab.DockerOptions) {}) })
	app, p := runApp(ctx, t, "shop", label("app")...)
	sidecar := sidecarIn(ctx, t, p, wrapped("sidecar")...)
	wantMesh(ctx, t, app, p, sidecar)
	ends := fmt.Sprint(hostEnds(t))
	pid, err := p.PausePID(ctx)
	must(t, err)
	for name, stop := range map[string]func() error{"stopped": world.Docker.Stop, "killed": world.Docker.Kill} {
		must(t, stop())
		app.Disconnect() // its exec ends with Docker
		wantClosedAt(ctx, t, pid)
		must(t, world.Docker.Start(ctx))
		d.waitReady(ctx)
		wantMesh(ctx, t, app, p, sidecar)
		if now := fmt.Sprint(hostEnds(t)); now != ends {
			t.Errorf("after it was %s there are %s, before there were %s", name, now, ends)
		}
	}
	must(t, p.Remove(ctx))
}

// Many containers, four at a time: nothing is open, and nothing stays.
func TestManyContainers(t *testing.T) {
	const count, workers = 50, 4
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	nonce := newNonce()
	var wg sync.WaitGroup
	work := make(chan int)
	for range workers {
		wg.Go(func() {
			for i := range work {
				args := append([]string{"run", "--rm", "--network", mesh, "--name", fmt.Sprint("many", i)}, label("app")...)
				if _, err := world.Docker.CLI(ctx, append(append(args, lab.AppImage), joiner(nonce)...)...); err != nil {
					t.Errorf("container %d: %v", i, err)
				}
			}
		})
	}
	for i := range count {
		work <- i
	}
	close(work)
	wg.Wait()
	if got := seen(t, nonce); len(got) != 0 {
		t.Errorf("apps without a sidecar reached %v", got)
	}
	if ends := hostEnds(t); len(ends) != 0 {
		t.Errorf("after %d containers there are %v", count, ends)
	}
}

// A container that is removed while the driver is away leaves nothing when it is back. Docker waits half a minute for it.
func TestRemovedWhileTheDriverIsAway(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	newMesh(ctx, t)
	runApp(ctx, t, "shop", append(label("app"), "--publish", "18080:8080")...)
	d.kill()
	_, err := world.Docker.CLI(ctx, "rm", "--force", "shop")
	must(t, err)
	launchDriver(t).waitReady(ctx)
	must(t, lab.WaitFor(lab.Patience, "the end of its endpoint", func() (bool, error) {
		rules, err := exec.Command("nft", "list", "ruleset").Output()
		return len(hostEnds(t)) == 0 && roles(t, "shop") == "-" && !strings.Contains(string(rules), "18080"), err
	}))
}
