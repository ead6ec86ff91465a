// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// ofContainer are the namespaces that a runtime makes for each container.
const ofContainer = unix.CLONE_NEWPID | unix.CLONE_NEWNS

// strangers is a pod of a sidecar, an app and a container that nobody registered,
// each in a PID and a mount namespace of its own, or as flags say.
type strangers struct {
	*world
	app, sidecar, late, out *agent.Agent
}

func newStrangers(t *testing.T, flags uintptr) *strangers {
	t.Helper()
	w := newWorld(t)
	container := func(name string) *agent.Agent { return agent.StartIn(t, w.pod, w.mkcgroup(name), flags) }
	s := &strangers{world: w, app: container("app"), sidecar: container("sidecar"), late: container("late")}
	s.out = agent.Start(t, w.outside, w.mkcgroup("outside"))
	listen(t, s.out, "outside", outside4+":80")
	w.attach(s.app, "app", policy.RoleApp, policy.Default())
	w.attach(s.sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	listen(t, s.sidecar, "outbound", "127.0.0.1:15001")
	return s
}

func (s *strangers) dir(name string) string { return filepath.Join(s.cgroup, name) }

var way = agent.Request{Op: "dial", Network: "tcp", Addr: outside4 + ":80"}

// refused returns how many sockets were refused to strangers in a cgroup. Package
// net asks more than once: for MPTCP too, and for what the kernel has.
func (s *strangers) refused(name string) uint64 { return s.drops(name)["stranger"] }

// wantStranger fails the test unless a has no socket in the cgroup of name, as a
// stranger.
func (s *strangers) wantStranger(what string, a *agent.Agent, r agent.Request, name string) {
	s.t.Helper()
	before := s.refused(name)
	wantErr(s.t, what, a.Do(s.t, r), "EPERM")
	if n := s.refused(name); n <= before {
		s.t.Errorf("%s: it is not counted: %v", what, s.drops(name))
	}
}

// TestAnotherContainersCgroup: who can write the host's cgroup file system gets no
// other container's rights by it, whichever way it goes there.
func TestAnotherContainersCgroup(t *testing.T) {
	s := newStrangers(t, ofContainer)
	wantBanner(t, "app", s.app.Do(t, way), "outbound")
	wantBanner(t, "sidecar", s.sidecar.Do(t, way), "outside")
	wantErr(t, "late", s.late.Do(t, way), "EPERM")

	below := s.mkcgroup("sidecar/below")
	child := agent.Request{Op: "child", Cgroup: s.dir("sidecar"), Do: &way}
	s.wantStranger("child in the sidecar's cgroup", s.app, child, "sidecar")
	child.Flags = ofContainer
	s.wantStranger("child there in own namespaces", s.app, child, "sidecar")
	child.Cgroup = below
	s.wantStranger("child below it", s.app, child, "sidecar")
	child.Cgroup = s.dir("app")
	s.wantStranger("late's child in the app's", s.late, child, "app")

	move := agent.Request{Op: "move", Cgroup: s.dir("sidecar")}
	wantErr(t, "move", s.app.Do(t, move), "")
	wantErr(t, "app in the sidecar's cgroup", s.app.Do(t, way), "EPERM")
	// Where it belongs it is what it was.
	move.Cgroup = s.dir("app")
	wantErr(t, "move back", s.app.Do(t, move), "")
	wantBanner(t, "app, back again", s.app.Do(t, way), "outbound")

	// From here on its own cgroup is empty, and forgotten.
	for _, to := range []string{s.dir("sidecar"), below} {
		move.Cgroup = to
		wantErr(t, "move", s.app.Do(t, move), "")
		for _, r := range []agent.Request{
			way,
			{Op: "udp", Network: "udp", Addr: outside4 + ":53", Data: "x"},
			{Op: "listen", Network: "tcp", Addr: "127.0.0.1:0"},
			{Op: "child", Flags: unix.CLONE_NEWUSER | ofContainer, Do: &way},
		} {
			s.wantStranger(fmt.Sprintf("app in %s: %s", to, r.Op), s.app, r, "sidecar")
		}
	}
	s.app.Stop() // before the cgroup is removed
	wantBanner(t, "sidecar", s.sidecar.Do(t, way), "outside")
}

// TestOwnNamespacesInAContainer: sandboxes and containers in a container are still
// the container.
func TestOwnNamespacesInAContainer(t *testing.T) {
	s := newStrangers(t, ofContainer)
	nested := s.mkcgroup("app/nested")
	for _, flags := range []uintptr{
		unix.CLONE_NEWNS, unix.CLONE_NEWPID, ofContainer, unix.CLONE_NEWUSER | ofContainer, unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
	} {
		for _, cgroup := range []string{"", nested} {
			in := agent.Request{Op: "child", Flags: flags, Cgroup: cgroup, Do: &way}
			wantBanner(t, fmt.Sprintf("app, flags %#x, cgroup %q", flags, cgroup), s.app.Do(t, in), "outbound")
			twice := agent.Request{Op: "child", Flags: flags &^ unix.CLONE_NEWUSER, Do: &in}
			wantBanner(t, fmt.Sprintf("app, flags %#x twice, cgroup %q", flags, cgroup), s.app.Do(t, twice), "outbound")
		}
		wantBanner(t, fmt.Sprintf("sidecar, flags %#x", flags), s.sidecar.Do(t, agent.Request{Op: "child", Flags: flags, Do: &way}), "outside")
	}
	if n := s.refused("app") + s.refused("sidecar"); n != 0 {
		t.Errorf("%d sockets were refused", n)
	}
}

// TestThreadInAnotherContainersCgroup: a socket is of the cgroup of its thread.
func TestThreadInAnotherContainersCgroup(t *testing.T) {
	s := newStrangers(t, ofContainer)
	threads := s.mkcgroup("sidecar/threads")
	must(t, os.WriteFile(filepath.Join(threads, "cgroup.type"), []byte("threaded"), 0))
	in := agent.Request{Op: "thread", Cgroup: threads, Do: &way}
	// Threads of one process stay in one domain.
	wantErr(t, "thread alone", s.app.Do(t, in), "ENOTSUP")
	wantErr(t, "move", s.app.Do(t, agent.Request{Op: "move", Cgroup: s.dir("sidecar")}), "")
	s.wantStranger("thread with its process", s.app, in, "sidecar")
	wantBanner(t, "the sidecar's thread", s.sidecar.Do(t, in), "outside")
	s.app.Stop() // before the cgroup is removed
	s.sidecar.Stop()
}

// TestContainerLosesItsCgroup: an app that moves out of its own cgroup, or removes
// it, or moves the sidecar, is dead or itself.
func TestContainerLosesItsCgroup(t *testing.T) {
	s := newStrangers(t, ofContainer)
	elsewhere := s.mkcgroup("elsewhere")
	put := func(a *agent.Agent, dir string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, a.PID), 0))
	}
	udp := agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53", Data: "x"}

	// The sidecar in the app's cgroup is neither.
	put(s.sidecar, s.dir("app"))
	wantErr(t, "sidecar as the app", s.sidecar.Do(t, way), "EPERM")
	wantErr(t, "sidecar as the app, UDP", s.sidecar.Do(t, udp), "EPERM")
	put(s.sidecar, elsewhere)
	wantErr(t, "sidecar elsewhere", s.sidecar.Do(t, way), "EPERM")
	// Its listener is still the sidecar's.
	wantBanner(t, "app", s.app.Do(t, way), "outbound")
	put(s.sidecar, s.dir("sidecar"))
	wantBanner(t, "sidecar, back again", s.sidecar.Do(t, way), "outside")

	put(s.app, elsewhere)
	must(t, os.Remove(s.dir("app")))
	wantErr(t, "app without its cgroup", s.app.Do(t, way), "EPERM")
	must(t, os.Mkdir(s.dir("app"), 0o755))
	put(s.app, s.dir("app"))
	wantErr(t, "app in a new one of that name", s.app.Do(t, way), "EPERM")
	if err := os.Rename(s.dir("app"), s.dir("another")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a cgroup gets another name: %v", err)
	}
}

// TestSharedPIDNamespace: containers that share one are told apart by their mount
// namespaces.
func TestSharedPIDNamespace(t *testing.T) {
	t.Run("the host's", func(t *testing.T) {
		s := newStrangers(t, unix.CLONE_NEWNS)
		wantBanner(t, "app", s.app.Do(t, way), "outbound")
		wantBanner(t, "sidecar", s.sidecar.Do(t, way), "outside")
		child := agent.Request{Op: "child", Cgroup: s.dir("sidecar"), Do: &way}
		s.wantStranger("app's child in the sidecar's cgroup", s.app, child, "sidecar")
		child.Cgroup = s.dir("app")
		s.wantStranger("sidecar's child in the app's", s.sidecar, child, "app")
		wantBanner(t, "app's in the app's", s.app.Do(t, child), "outbound")
	})
	t.Run("the sidecar's", func(t *testing.T) {
		s := newStrangers(t, ofContainer)
		own := agent.Request{Op: "child", Flags: unix.CLONE_NEWNS, Do: &way}
		wantBanner(t, "sidecar, own mounts", s.sidecar.Do(t, own), "outside")
		beside := agent.StartBeside(t, s.pod, s.mkcgroup("beside"), unix.CLONE_NEWNS, s.sidecar)
		s.attach(beside, "beside", policy.RoleApp, policy.Default())
		wantBanner(t, "beside", beside.Do(t, way), "outbound")
		s.wantStranger("beside's child in the sidecar's cgroup", beside, agent.Request{Op: "child", Cgroup: s.dir("sidecar"), Do: &way}, "sidecar")
		wantBanner(t, "sidecar", s.sidecar.Do(t, way), "outside")
		// The price: which container's these mounts are cannot be known.
		s.wantStranger("sidecar, own mounts", s.sidecar, own, "sidecar")
		// The app is not concerned.
		wantBanner(t, "app, own mounts", s.app.Do(t, own), "outbound")
	})
}

// TestNumberOfAnEndedNamespace: the kernel gives a namespace the number of one that
// has ended. It is not that one.
func TestNumberOfAnEndedNamespace(t *testing.T) {
	s := newStrangers(t, ofContainer)
	m, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(s.state), "maps", "identity"), nil)
	must(t, err)
	defer m.Close()
	cg, err := s.mount.Of(s.sidecar.PID)
	must(t, err)
	defer cg.Close()
	var c bpf.Container
	must(t, m.Lookup(cg.ID, &c))
	if c.PidNs == 0 || c.MntNs == 0 || c.Started == 0 {
		t.Fatalf("the sidecar is %+v", c)
	}
	c.Started--
	must(t, m.Update(cg.ID, c, ebpf.UpdateExist))
	s.wantStranger("of a later init process", s.sidecar, way, "sidecar")
	c.Started++
	must(t, m.Update(cg.ID, c, ebpf.UpdateExist))
	wantBanner(t, "sidecar", s.sidecar.Do(t, way), "outside")
}

// TestSocketBeforeItsContainer: a cgroup is there before anything is attached to it,
// and who moves into it early has a socket that nobody has judged.
func TestSocketBeforeItsContainer(t *testing.T) {
	w := newWorld(t)
	dir := w.mkcgroup("sidecar")
	sidecar, early := agent.StartIn(t, w.pod, dir, ofContainer), agent.StartIn(t, w.pod, dir, ofContainer)
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	listen(t, out, "outside", outside4+":80")
	hold := func(a *agent.Agent, addr string) int {
		got := a.Do(t, agent.Request{Op: "hold", Addr: addr})
		wantErr(t, "hold", got, "")
		return got.ID
	}
	own, others, port := hold(sidecar, pod4+":0"), hold(early, pod4+":0"), hold(early, "127.0.0.1:15001")
	w.attach(sidecar, "sidecar", policy.RoleSidecar, parse(t, "  rules: [{role: sidecar, egress: [{to: [{cidr: 192.0.2.0/24}]}]}]\n"))
	connect := agent.Request{Op: "holdconnect", ID: others, Addr: outside4 + ":80"}
	wantErr(t, "stranger", early.Do(t, connect), "EPERM")
	connect.ID = own
	wantErr(t, "sidecar", sidecar.Do(t, connect), "")
	// The kernel lets it listen, but nobody is sent there.
	wantErr(t, "stranger listens", early.Do(t, agent.Request{Op: "holdlisten", ID: port}), "")
	if st := w.status(); st.Pods[0].Listening {
		t.Error("its listener is taken for the sidecar's")
	}
}
