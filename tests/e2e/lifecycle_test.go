// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
)

// While the sidecar is away nothing goes round it, and afterwards all is as
// before, however it went.
func TestSidecarRestarts(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app)
	for _, c := range []struct {
		name     string
		end, run func() error
	}{
		{"stop and start", func() error { return p.sidecar.Stop(ctx) }, func() error { return p.sidecar.Start(ctx) }},
		{"kill and restart",
			func() error {
				pid, err := p.sidecar.PID(ctx)
				must(t, err)
				must(t, unix.Kill(pid, unix.SIGKILL))
				_, err = podman(ctx, "wait", p.sidecar.Name)
				return err
			},
			func() error {
				_, err := podman(ctx, "restart", p.sidecar.Name)
				return err
			}},
	} {
		must(t, c.end())
		p.wantClosed(p.app)
		if st := status(t); len(st.Pods) != 1 || st.Pods[0].Listening || len(st.Pods[0].Containers) != 1 {
			t.Errorf("%s: without a sidecar the status is %+v", c.name, st.Pods)
		}
		must(t, c.run())
		must(t, p.sidecar.WaitListening(ctx, lab.InboundPort, lab.OutboundPort))
		p.wantEnforced(p.app)
		p.wantServed()
	}
}

func TestAppRestarts(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	before, ok := find(t, id(ctx, t, p.app))
	if !ok {
		t.Fatal("the app is not registered")
	}
	links := pinned(t, filepath.Join(loaded, "containers", fmt.Sprint(before.CgroupID)))
	must(t, p.app.Stop(ctx))
	if _, ok := find(t, before.ID); ok {
		t.Error("the app is registered while it is stopped")
	}
	wantGone(t, linksOf(links))
	if r := p.request(); r.OK {
		t.Errorf("HTTP from the outside while the app is stopped: %s", r)
	}
	must(t, p.app.Start(ctx))
	must(t, p.app.WaitListening(ctx, lab.AppPort))
	if after, ok := find(t, before.ID); !ok || after.CgroupID == before.CgroupID {
		t.Errorf("the app was %+v and is %+v", before, after)
	}
	p.wantEnforced(p.app)
	p.wantServed()
}

// linksOf leaves the programs out, which are used again.
func linksOf(all []object) []object {
	var links []object
	for _, o := range all {
		if o.kind == "link" {
			links = append(links, o)
		}
	}
	return links
}

// A pod's stop ends its network namespace, and its start makes a new one.
func TestPodStopsAndStarts(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app)
	before := status(t)
	_, err := podman(ctx, "pod", "stop", "--time", "3", p.Name)
	must(t, err)
	wantNothingManaged(t)
	_, err = podman(ctx, "pod", "start", p.Name)
	must(t, err)
	must(t, p.sidecar.WaitListening(ctx, lab.InboundPort, lab.OutboundPort))
	must(t, p.app.WaitListening(ctx, lab.AppPort))
	pinBridge(t)
	if after := status(t); len(after.Pods) != 1 || after.Pods[0].Cookie == before.Pods[0].Cookie || len(after.Pods[0].Containers) != 2 {
		t.Errorf("before %+v, after %+v", before.Pods, after.Pods)
	}
	p.endSession()
	p.wantEnforced(p.app)
	p.wantServed()
}

func TestPodRemovalLeavesNothing(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app)
	links := linksOf(append(pinned(t, filepath.Join(loaded, "pods")), pinned(t, filepath.Join(loaded, "containers"))...))
	want := 0
	for _, pod := range status(t).Pods {
		want += len(pod.Hooks)
		for _, c := range pod.Containers {
			want += len(c.Hooks)
		}
	}
	if len(links) != want || want < 20 {
		t.Fatalf("%d links are pinned, the status has %d", len(links), want)
	}
	must(t, p.Remove(ctx))
	wantNothingManaged(t)
	wantGone(t, links)
	if st := status(t); !st.Loaded || len(st.Pods) != 0 || len(st.Guard) == 0 {
		t.Errorf("status is %+v", st)
	}
}

// Containers that die with their monitors have no poststop hook. What is left
// of them is collected by whoever comes next.
func TestContainersThatDieWithoutAHook(t *testing.T) {
	for _, c := range []struct {
		name    string
		cgroups bool // the runtime removes the cgroups
		next    func(*pod)
	}{
		{"collected by status", true, func(p *pod) {
			if st := status(p.t); len(st.Pods) != 0 {
				p.t.Errorf("status is %+v", st.Pods)
			}
		}},
		{"collected by a hook", true, func(p *pod) {
			if _, stderr, code := hookCall(p.t, "poststop", `{"id":"another"}`); code != 0 {
				p.t.Errorf("hook: %d, %s", code, stderr)
			}
		}},
		// podman 4.3 removes such a pod without asking runc, so that no hook runs and the cgroups stay, empty.
		{"collected by status, with empty cgroups", false, func(p *pod) {
			must(p.t, p.Remove(p.ctx))
			if st := status(p.t); len(st.Pods) != 0 {
				p.t.Errorf("there is a pod without processes: %+v", st.Pods)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := begin(t)
			p := newMeshPod(ctx, t)
			containers := status(t).Pods[0].Containers
			p.die()
			if len(pinsOfPods(t)) == 0 {
				t.Fatal("a hook ran: this tests nothing")
			}
			for _, one := range containers {
				dir := filepath.Join("/sys/fs/cgroup", one.Cgroup)
				must(t, lab.WaitFor(5*time.Second, "an empty "+dir, func() (bool, error) {
					b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
					return strings.Contains(string(b), "populated 0"), err
				}))
				if c.cgroups {
					must(t, os.Remove(dir))
				}
			}
			c.next(p)
			wantNothingManaged(t)
		})
	}
}

// die kills all of the pod with its monitors, so that nothing runs a hook.
func (p *pod) die() {
	p.t.Helper()
	out, err := podman(p.ctx, "inspect", "--format", "{{.State.ConmonPid}} {{.State.Pid}}", p.app.Name, p.sidecar.Name, p.Infra().Name)
	must(p.t, err)
	// Each monitor before what it watches.
	for _, field := range strings.Fields(out) {
		var pid int
		_, err := fmt.Sscan(field, &pid)
		must(p.t, err)
		must(p.t, unix.Kill(pid, unix.SIGKILL))
		waitEnd(p.t, pid)
	}
}

// endSession lets the next probe begin a new session, since the last one ended
// with the app's first life.
func (p *pod) endSession() {
	_, _ = p.app.Probe(p.ctx, "listen", "--on", "127.0.0.1:0")
}

// waitEnd waits until a process that is no child of ours is gone or a zombie.
func waitEnd(t testing.TB, pid int) {
	t.Helper()
	must(t, lab.WaitFor(5*time.Second, fmt.Sprintf("the end of process %d", pid), func() (bool, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return true, nil
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		return strings.HasPrefix(rest, "Z"), nil
	}))
}

// Two pods have the same ports on the same loopback addresses. Nothing of one
// reaches the other.
func TestTwoPods(t *testing.T) {
	ctx := begin(t)
	a, b := newMeshPod(ctx, t), newMeshPod(ctx, t)
	both := []*pod{a, b}
	for range 3 {
		for _, p := range both {
			p.wantEnforced(p.app) // by its own sidecar's word
			p.wantServed()
		}
	}
	st := status(t)
	if len(st.Pods) != 2 || st.Pods[0].Cookie == st.Pods[1].Cookie {
		t.Fatalf("status is %+v", st.Pods)
	}
	for _, p := range st.Pods {
		if len(p.Containers) != 2 || !p.Listening || p.Policy != "mesh" {
			t.Errorf("pod is %+v", p)
		}
	}
	// An app of b that asks a's address is served through both sidecars.
	r := b.probe(b.app, "http", "--to", fmt.Sprintf("%s:%d", a.V4, lab.AppPort), "--contains", "hello from the app")
	if !r.OK || r.Addr("local").Addr().Is4() && !r.Addr("local").Addr().IsLoopback() {
		t.Errorf("from pod to pod: %s from %s", r, r.Addr("local"))
	}
	// The sidecar of one away is nothing to the other.
	must(t, a.sidecar.Stop(ctx))
	a.wantClosed(a.app)
	b.wantEnforced(b.app)
	must(t, a.Remove(ctx))
	if st := status(t); len(st.Pods) != 1 || len(st.Pods[0].Containers) != 2 {
		t.Errorf("after the removal of one, status is %+v", st.Pods)
	}
	b.wantEnforced(b.app)
	b.wantServed()
}

// A hook that was killed between the pod's entry and the rename that makes its
// links known leaves an entry without links. The next container of the pod
// must not be taken for enforced.
func TestPodWithoutItsLinksIsMadeWhole(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	want := status(t).Pods[0].Hooks
	must(t, p.app.Remove(ctx))
	must(t, p.sidecar.Remove(ctx))
	pods, err := filepath.Glob(filepath.Join(loaded, "pods", "*"))
	must(t, err)
	if len(pods) != 1 {
		t.Fatalf("pods are %s", pods)
	}
	must(t, os.Rename(pods[0], filepath.Join(loaded, "pods", "tmp-1")))
	// The runtime gives the container up, and runs its poststop hook.
	if _, stderr, code := hookCall(t, "poststop", `{"id":"killed"}`); code != 0 {
		t.Errorf("hook: %d, %s", code, stderr)
	}
	p.startSidecar()
	p.startApp()
	p.wantEnforced(p.app)
	p.wantServed()
	gateway, err := world.GatewayMAC()
	must(t, err)
	nonce := newNonce()
	r := p.probe(p.app, "packet", "--to", world.Outside.Echo(false).String(), "--nonce", nonce, "--gw-mac", gateway)
	if seen := sightings(t, nonce); len(seen) > 0 {
		t.Errorf("frame by AF_PACKET: %s, seen outside %v", r, seen)
	}
	if st := status(t); len(st.Pods) != 1 || fmt.Sprint(st.Pods[0].Hooks) != fmt.Sprint(want) {
		t.Errorf("status is %+v, want hooks %s", st.Pods, want)
	}
}
