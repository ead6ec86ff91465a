// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

func currentNetns(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, err := netns.GetFromPath("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { must(t, ns.Close()) })
	return ns
}

// attachedTo counts the programs on a cgroup, of all hooks.
func attachedTo(t testing.TB, dir string) int {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	n := 0
	asked := make(map[ebpf.AttachType]bool)
	for _, h := range bpf.AllContainerHooks() {
		if asked[h.Attach] { // two programs have one
			continue
		}
		asked[h.Attach] = true
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: h.Attach})
		must(t, err)
		n += len(r.Programs)
	}
	return n
}

func TestAttachIsAllOrNothing(t *testing.T) {
	w := newWorld(t)
	app := w.container("app")
	s, err := cgroups.Open(w.state)
	must(t, err)
	must(t, s.Close())
	// Whichever hook cannot be attached, nothing stays.
	for _, h := range bpf.ContainerHooks(bpf.RoleApp, bpf.Policy{}) {
		pin := filepath.Join(cgroups.VersionDir(w.state), "progs", h.Program)
		prog, err := ebpf.LoadPinnedProgram(pin, nil)
		must(t, err)
		must(t, prog.Unpin())
		if _, err := w.tryAttach(app, "app", policy.RoleApp, policy.Default()); err == nil {
			t.Errorf("attach without %s succeeds", h.Program)
		}
		if n := attachedTo(t, filepath.Join(w.cgroup, "app")); n != 0 {
			t.Errorf("%d programs stay attached without %s", n, h.Program)
		}
		if st := w.status(); len(st.Pods) != 0 {
			t.Errorf("a pod stays without %s: %+v", h.Program, st.Pods)
		}
		if left := pinsBelow(t, filepath.Join(cgroups.VersionDir(w.state), "containers")) + pinsBelow(t, filepath.Join(cgroups.VersionDir(w.state), "pods")); left != 0 {
			t.Errorf("%d pins stay without %s", left, h.Program)
		}
		must(t, prog.Pin(pin))
		must(t, prog.Close())
	}
	w.attach(app, "app", policy.RoleApp, policy.Default())
	if n := attachedTo(t, filepath.Join(w.cgroup, "app")); n != len(bpf.ContainerHooks(bpf.RoleApp, bpf.Policy{})) {
		t.Errorf("%d programs are attached, want %d", n, len(bpf.ContainerHooks(bpf.RoleApp, bpf.Policy{})))
	}
}

// pinsBelow counts files and directories below dir.
func pinsBelow(t testing.TB, dir string) int {
	t.Helper()
	n := -1
	must(t, filepath.WalkDir(dir, func(string, os.DirEntry, error) error { n++; return nil }))
	return n
}

func TestAttachTwiceIsOnce(t *testing.T) {
	w := newWorld(t)
	app := w.container("app")
	a := w.attach(app, "app", policy.RoleApp, policy.Default())
	b := w.attach(app, "app", policy.RoleApp, policy.Default())
	if a.Already || !b.Already || a.Cookie != b.Cookie || a.CgroupID != b.CgroupID {
		t.Errorf("second attach says %+v, first %+v", b, a)
	}
	if n := attachedTo(t, filepath.Join(w.cgroup, "app")); n != len(bpf.ContainerHooks(bpf.RoleApp, bpf.Policy{})) {
		t.Errorf("%d programs are attached, want %d", n, len(bpf.ContainerHooks(bpf.RoleApp, bpf.Policy{})))
	}
}

func TestDetachLeavesNothing(t *testing.T) {
	m := newMeshPod(t, parse(t, "  exclude: {egress: [{cidr: 10.0.0.0/8}]}\n"))
	detach := func(id string) bool {
		s, err := cgroups.OpenExisting(m.state)
		must(t, err)
		defer s.Close()
		found, err := s.Detach(id, 0)
		must(t, err)
		return found
	}
	m.app.Stop()
	if !detach("app") {
		t.Error("app is unknown")
	}
	if st := m.status(); len(st.Pods) != 1 || len(st.Pods[0].Containers) != 1 {
		t.Errorf("after the app left: %+v", st.Pods)
	}
	m.sidecar.Stop()
	if !detach("sidecar") || detach("sidecar") {
		t.Error("sidecar is unknown, or known twice")
	}
	if st := m.status(); len(st.Pods) != 0 {
		t.Errorf("after all left: %+v", st.Pods)
	}
	for _, name := range []string{
		"pods", "containers", "pod_addrs", "pod_info", "pod_counters", "pending", "container_info", "counters",
		"policies", "policy_info", "prefixes", "rules", "rule_info", "subjects",
	} {
		mp, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(m.state), "maps", name), nil)
		must(t, err)
		if _, err := mp.NextKeyBytes(nil); err != nil {
			t.Error(err)
		} else if k, _ := mp.NextKeyBytes(nil); k != nil {
			t.Errorf("map %s is not empty", name)
		}
		must(t, mp.Close())
	}
	must(t, cgroups.Unload(m.state, false))
	if _, err := os.Stat(m.state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state stays after unload: %v", err)
	}
}

func TestPodStaysClosedWhileAnythingRunsInIt(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	stranger := m.container("stranger")
	m.app.Stop()
	m.sidecar.Stop()
	must(t, os.Remove(filepath.Join(m.cgroup, "app")))
	must(t, os.Remove(filepath.Join(m.cgroup, "sidecar")))
	st := m.status() // collects
	if len(st.Pods) != 1 || len(st.Pods[0].Containers) != 0 {
		t.Errorf("containers without a cgroup stay, or the pod is gone: %+v", st.Pods)
	}
	wantErr(t, "stranger", dial(t, stranger, "tcp", outside4+":80"), "EPERM")
	stranger.Stop()
	if st := m.status(); len(st.Pods) != 0 {
		t.Errorf("pod stays without processes: %+v", st.Pods)
	}
}

func TestUnloadRefusesWhilePodsAreManaged(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	if err := cgroups.Unload(m.state, false); !errors.Is(err, cgroups.ErrManaged) {
		t.Errorf("unload says %v", err)
	}
	wantBanner(t, "app after a refused unload", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	must(t, cgroups.Unload(m.state, true))
	wantBanner(t, "app after a forced unload", dial(t, m.app, "tcp", outside4+":80"), "outside")
	must(t, cgroups.Unload(m.state, true)) // nothing to do is no error
}

func TestOtherABIIsRefused(t *testing.T) {
	w := newWorld(t)
	w.container("app")
	must(t, os.MkdirAll(filepath.Join(w.state, "v999"), 0o700))
	_, err := cgroups.Open(w.state)
	if err == nil || !strings.Contains(err.Error(), "v999") || !strings.Contains(err.Error(), "unload") {
		t.Errorf("open says %v", err)
	}
	if n := attachedTo(t, filepath.Join(w.cgroup, "app")); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
	must(t, os.Remove(filepath.Join(w.state, "v999")))
}

func TestUnfinishedWorkIsSwept(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	tmp := filepath.Join(cgroups.VersionDir(m.state), "containers", "tmp-1")
	must(t, os.Mkdir(tmp, 0o700))
	must(t, os.Mkdir(filepath.Join(m.state, "tmp-1"), 0o700))
	m.status()
	for _, dir := range []string{tmp, filepath.Join(m.state, "tmp-1")} {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays: %v", dir, err)
		}
	}
}

func TestSecondSidecarIsRefused(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	other := m.container("other")
	_, err := m.tryAttach(other, "other", policy.RoleSidecar, policy.Default())
	if err == nil || !strings.Contains(err.Error(), "sidecar") || !strings.Contains(err.Error(), "other") {
		t.Errorf("second sidecar: %v", err)
	}
	m.sidecar.Stop()
	must(t, os.Remove(filepath.Join(m.cgroup, "sidecar")))
	m.attach(other, "other", policy.RoleSidecar, policy.Default())
}

func TestPodHasOnePolicy(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	other := m.container("other")
	if _, err := m.tryAttach(other, "other", policy.RoleApp, parse(t, "  nonTCP: allow\n")); err == nil || !strings.Contains(err.Error(), `"test"`) {
		t.Errorf("container under another policy: %v", err)
	}
}

func TestHostNamespaceIsRefused(t *testing.T) {
	w := newWorld(t)
	w.host = currentNetns(t)
	a := agent.Start(t, w.host, w.mkcgroup("host"))
	_, err := w.tryAttach(a, "host", policy.RoleApp, policy.Default())
	if err == nil || !strings.Contains(err.Error(), "host's network namespace") {
		t.Errorf("attach says %v", err)
	}
	if n := attachedTo(t, filepath.Join(w.cgroup, "host")); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
}

func TestDeadProcessIsAnError(t *testing.T) {
	w := newWorld(t)
	a := w.container("app")
	a.Stop()
	if _, err := w.tryAttach(a, "app", policy.RoleApp, policy.Default()); err == nil {
		t.Error("attach to a dead process succeeds")
	}
	if st := w.status(); len(st.Pods) != 0 {
		t.Errorf("a pod stays: %+v", st.Pods)
	}
}

func TestParallelAttach(t *testing.T) {
	w := newWorld(t)
	const n = 8
	agents := make([]*agent.Agent, n)
	for i := range agents {
		agents[i] = w.container(fmt.Sprint("c", i))
	}
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() {
			if _, err := w.tryAttach(a, fmt.Sprint("c", i), policy.RoleApp, policy.Default()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if st := w.status(); len(st.Pods) != 1 || len(st.Pods[0].Containers) != n {
		t.Errorf("status: %+v", st.Pods)
	}
}

func TestWaitSidecar(t *testing.T) {
	w := newWorld(t)
	app, sidecar := w.container("app"), w.container("sidecar")
	att := w.attach(app, "app", policy.RoleApp, policy.Default())
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := cgroups.WaitSidecar(ctx, w.state, att.Cookie); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a sidecar: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cgroups.WaitSidecar(t.Context(), w.state, att.Cookie) }()
	w.attach(sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	listen(t, sidecar, "outbound", "127.0.0.1:15001")
	must(t, <-done)
}
