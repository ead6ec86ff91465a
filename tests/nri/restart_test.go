// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// keeper is an app that keeps one connection and echoes over it.
func keeper() lab.ContainerOptions {
	return lab.ContainerOptions{Args: []string{"/bin/prober", "keep", "--to", world.Outside.Echo(false).String(), "--interval", "200ms"}}
}

// wantKept stops a keeper and fails the test if its connection has ever broken, or went
// another way than by a sidecar.
func wantKept(ctx context.Context, t testing.TB, c *lab.Container) (echoes int) {
	t.Helper()
	must(t, c.Stop(ctx))
	results, err := c.Results()
	must(t, err)
	if len(results) == 0 {
		t.Fatalf("%s said nothing", c.Name)
	}
	last := results[len(results)-1]
	n, _ := last.Data["echoes"].(float64)
	if !last.OK || n == 0 {
		t.Errorf("%s: %+v", c.Name, last)
	}
	return int(n)
}

// waitKeeping waits until a keeper has had its first echo.
func waitKeeping(t testing.TB, c *lab.Container) {
	t.Helper()
	must(t, lab.WaitFor(lab.Patience, "the connection of "+c.Name, func() (bool, error) {
		results, err := c.Results()
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return len(results) > 0, err
	}))
}

// What ran before the plugin is taken over: what its policy allows goes on, what it does not
// ends, and the sidecar's listeners serve as if it had made them now.
func TestAdopt(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	sidecar := startSidecar(ctx, t, p)
	app := startApp(ctx, t, p, lab.ContainerOptions{})
	direct, err := p.Run(ctx, "direct", lab.AppImage, keeper())
	must(t, err)
	waitKeeping(t, direct)
	echo, err := p.Run(ctx, "echo", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/prober", "echo", "--on", "127.0.0.1:7000"}})
	must(t, err)
	must(t, echo.WaitListening(ctx, 7000))
	inside, err := p.Run(ctx, "inside", lab.AppImage, lab.ContainerOptions{
		Args: []string{"/bin/prober", "keep", "--to", "127.0.0.1:7000", "--interval", "50ms"},
	})
	must(t, err)
	waitKeeping(t, inside)
	if r, err := app.Probe(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || !r.OK {
		t.Fatalf("UDP before: %v, %v", r, err)
	}
	plain := newPod(ctx, t, lab.PodOptions{})
	plainApp, err := plain.Run(ctx, "keeper", lab.AppImage, keeper())
	must(t, err)
	waitKeeping(t, plainApp)

	pl := startPlugin(ctx, t)
	// The connection past the sidecar was closed, and with it the keeper's program ended.
	must(t, lab.WaitFor(lab.Patience, "the end of the connection past the sidecar", func() (bool, error) {
		results, err := direct.Results()
		return len(results) > 1 && !results[len(results)-1].OK, err
	}))
	must(t, lab.WaitFor(lab.Patience, "its container to be forgotten, and the others to be there", func() (bool, error) {
		return roles(t, p.Name) == "app=app echo=app inside=app istio-proxy=sidecar", nil
	}))
	// The way out is the sidecar's, though that was not started again.
	nonce := newNonce()
	if r, err := app.Probe(ctx, "http", "--to", world.Outside.HTTP(false).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText); err != nil || !r.OK {
		t.Errorf("after it was taken over: %v, %v", r, err)
	}
	requests, err := world.Outside.Requests(nonce)
	must(t, err)
	if _, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool {
		return len(requests) == 1 && c.Source == requests[0].Client
	}); !ok {
		t.Errorf("the sidecar did not carry %v: %v\n%s", requests, err, pl.logged())
	}
	if r, err := app.Probe(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("UDP after: %v, %v", r, err)
	}
	in, err := world.Outside.Probe(ctx, "http", "--to", fmt.Sprintf("%s:%d", p.V4, lab.AppPort), "--contains", "hello from the app")
	if err != nil || !in.OK {
		t.Errorf("inbound: %v, %v", in, err)
	}
	wantKept(ctx, t, inside)
	wantKept(ctx, t, plainApp)
}

// wantClosed fails the test if a process of the node can do anything in the pod.
func wantClosed(ctx context.Context, t testing.TB, when string, p *lab.Pod) {
	t.Helper()
	if r, err := p.Enter(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("%s: a process of the node in pod %s: %v, %v", when, p.Name, r, err)
	}
}

// Restarts of the plugin, of containerd, and of both, under fifty pods: nothing opens, nothing
// leaks, no connection breaks.
func TestRestarts(t *testing.T) {
	const count = 50
	ctx := begin(t)
	pl := startPlugin(ctx, t)
	type meshed struct {
		pod    *lab.Pod
		keeper *lab.Container
	}
	all := make([]meshed, count)
	var wg sync.WaitGroup
	work := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range work {
				p, err := world.Containerd.NewPod(ctx, lab.PodOptions{Annotations: istio()})
				if err == nil {
					_, err = p.StartSidecarAs(ctx, "istio-proxy", lab.ContainerOptions{})
				}
				var c *lab.Container
				if err == nil {
					c, err = p.Run(ctx, "keeper", lab.AppImage, keeper())
				}
				if err != nil {
					t.Errorf("pod %d: %v", i, err)
					continue
				}
				all[i] = meshed{p, c}
			}
		})
	}
	for i := range count {
		work <- i
	}
	close(work)
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, m := range all {
		waitKeeping(t, m.keeper)
	}
	before := kernelState(t)
	check := func(when string) {
		t.Helper()
		wantClosed(ctx, t, when, all[0].pod)
		if st := status(t); len(st) != count {
			t.Errorf("%s: %d pods are managed, want %d", when, len(st), count)
		}
		if now := kernelState(t); now != before {
			t.Errorf("%s: the kernel has %s, before it had %s", when, now, before)
		}
	}
	check("before")
	steps := []struct {
		name string
		do   func()
	}{
		{"plugin killed", pl.kill},
		{"plugin started", func() { pl = startPlugin(ctx, t) }},
		{"containerd stopped", func() { must(t, world.Containerd.Stop()) }},
		{"containerd started", func() { must(t, world.Containerd.Start(ctx)); pl.waitReady(ctx) }},
		{"containerd killed", func() { must(t, world.Containerd.Kill()) }},
		{"containerd started again", func() { must(t, world.Containerd.Start(ctx)); pl.waitReady(ctx) }},
		{"both killed", func() { pl.kill(); must(t, world.Containerd.Kill()) }},
		{"both started", func() { must(t, world.Containerd.Start(ctx)); pl = startPlugin(ctx, t) }},
	}
	for _, s := range steps {
		s.do()
		check(s.name)
	}
	if text := pl.logged(); strings.Contains(text, "level=error") {
		t.Errorf("the plugin found something to complain of:\n%s", text)
	}
	for i, m := range all {
		if i%5 == 0 { // stopping takes a while
			wantKept(ctx, t, m.keeper)
		} else if results, err := m.keeper.Results(); err != nil || len(results) != 1 {
			t.Errorf("%s: %+v, %v", m.keeper.Name, results, err)
		}
	}
	must(t, world.Containerd.RemoveAll(ctx))
	wantNothingManaged(t)
}

// kernelState counts what is pinned and what maps have.
func kernelState(t testing.TB) string {
	t.Helper()
	dir := cgroups.VersionDir(cgroups.DefaultState)
	counts := make(map[string]int)
	for _, sub := range []string{"pods", "containers"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(_ string, _ fs.DirEntry, err error) error {
			counts[sub]++
			return err
		})
		must(t, err)
	}
	for _, name := range []string{"pods", "pod_info", "pod_counters", "containers", "container_info", "counters", "listeners"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		must(t, err)
		key, err := m.NextKeyBytes(nil)
		n := 0
		for ; err == nil && key != nil; n++ {
			key, err = m.NextKeyBytes(key)
		}
		must(t, errors.Join(err, m.Close()))
		counts["map "+name] = n
	}
	return fmt.Sprint(counts)
}

// wantNothingManaged looks for itself, and does not ask the command, which would collect what
// was left behind.
func wantNothingManaged(t testing.TB) {
	t.Helper()
	want := "map[containers:1 map container_info:0 map containers:0 map counters:0 map listeners:0 map pod_counters:0 map pod_info:0 map pods:0 pods:1]"
	var got string
	err := lab.WaitFor(10*time.Second, "an empty kernel", func() (bool, error) {
		got = kernelState(t)
		return got == want, nil
	})
	if err != nil {
		t.Errorf("the kernel has %s", got)
	}
}
