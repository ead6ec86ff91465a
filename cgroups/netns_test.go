// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// threadNetns returns the inode of this thread's network namespace.
func threadNetns(t testing.TB) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat("/proc/thread-self/ns/net", &st))
	return st.Ino
}

func TestDoComesBack(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home := threadNetns(t)
	ns, err := cgroups.OpenNetns(fmt.Sprintf("/proc/self/fd/%d", newNetns(t)))
	must(t, err)
	defer ns.Close()
	for _, c := range []struct {
		name string
		err  error
		f    func() error
	}{
		{"success", nil, func() error { return nil }},
		{"error", io.ErrUnexpectedEOF, func() error { return io.ErrUnexpectedEOF }},
		{"panic", nil, func() error { panic("inside") }},
	} {
		var inside uint64
		recovered, err := do(ns, func() error {
			inside = threadNetns(t)
			return c.f()
		})
		if inside != ns.Ino || inside == home {
			t.Errorf("%s: the namespace is %d, want %d and not %d", c.name, inside, ns.Ino, home)
		}
		if got := threadNetns(t); got != home {
			t.Errorf("%s: afterwards the namespace is %d, want %d", c.name, got, home)
		}
		if !errors.Is(err, c.err) || (recovered != nil) != (c.name == "panic") {
			t.Errorf("%s: Do says %v, and panics with %v", c.name, err, recovered)
		}
	}
}

// do recovers from a panic of f.
func do(ns *cgroups.Netns, f func() error) (recovered any, err error) {
	defer func() { recovered = recover() }()
	return nil, ns.Do(f)
}

// The kernel gives the inode of a namespace that ended to the next one: processes there keep no pod.
func TestCollectWhoseInodeCameBack(t *testing.T) {
	w := newWorld(t)
	collect := func() (n cgroups.Collected) {
		must(t, w.store(func(s *cgroups.Store) (err error) {
			n, err = s.Collect()
			return err
		}))
		return n
	}
	for range 20 {
		end, pod := startApart(t)
		w.pod = pod
		ino := inodeOf(t, pod)
		must(t, w.manage(policy.Default()))
		must(t, pod.Close())
		if n := collect(); n.Pods != 0 || !slices.Equal(n.Left, []string{"shop/web"}) {
			t.Fatalf("with a process in it: %+v", n)
		}
		end()
		again := comesBack(t, ino)
		if n := collect(); n.Pods != 1 || len(w.status().Pods) != 0 {
			t.Fatalf("with a process in another namespace of this inode (%t): %+v; pods %+v", again, n, w.status().Pods)
		}
		if again {
			return
		}
	}
	t.Error("no namespace got the inode of another one")
}

// comesBack starts processes in namespaces of their own until one has this inode. They take free ones, the lowest first,
// and this one once the kernel has cleaned up, unless somebody else on the machine is first.
func comesBack(t *testing.T, ino uint64) bool {
	t.Helper()
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		end, next := startApart(t)
		got := inodeOf(t, next)
		must(t, next.Close())
		if got == ino {
			return true
		}
		if got > ino {
			end()
		}
	}
	return false
}

// startApart starts a process in a network namespace of its own, which end ends.
func startApart(t testing.TB) (end func(), h netns.NsHandle) {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	must(t, cmd.Start())
	end = sync.OnceFunc(func() {
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	h, err := netns.GetFromPid(cmd.Process.Pid)
	must(t, err)
	return end, h
}

func inodeOf(t testing.TB, h netns.NsHandle) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(int(h), &st))
	return st.Ino
}

// envStartOf has the test binary say when a process started.
const envStartOf = "SIDEGATE_TEST_START_OF"

// A process in a time namespace of its own, as Docker's managed plugins are, sees other times.
func TestStartInATimeNamespace(t *testing.T) {
	needRoot(t)
	pid := fmt.Sprint(os.Getpid())
	start, err := cgroups.StartOf(pid)
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	var up unix.Sysinfo_t
	must(t, unix.Sysinfo(&up))
	for _, c := range []struct {
		pid, offset string
		want        uint64
	}{
		{pid, "0", start},
		{pid, "86400", start},
		{pid, "-1", start},
		{"1", fmt.Sprint(1 - up.Uptime), 0}, // before that namespace's zero: not known
	} {
		cmd := exec.Command("unshare", "--time", "--boottime", c.offset, self)
		cmd.Env = append(os.Environ(), envStartOf+"="+c.pid)
		out, err := cmd.CombinedOutput()
		if want := fmt.Sprintln(c.want, nil); err != nil || string(out) != want {
			t.Errorf("with a boot time %s s ahead: %q, want %q: %v", c.offset, out, want, err)
		}
	}
}

// A container that one front-end has registered, and another one is told of, is the same also if one of them cannot know
// when it started: to register it again would leave it without sockets meanwhile.
func TestAdoptOneWhoseStartIsNotKnown(t *testing.T) {
	w := newWorld(t)
	a := agent.StartIn(t, w.pod, w.mkcgroup("app"), syscall.CLONE_NEWPID|syscall.CLONE_NEWNS)
	att := w.attach(a, "app", policy.RoleApp, policy.Default())
	must(t, w.store(func(s *cgroups.Store) error { return cgroups.ForgetStart(s, att.CgroupID) }))
	if got, err := w.adopt(a, "app", policy.RoleApp, policy.Default()); err != nil || !got.Already {
		t.Errorf("it is adopted: %+v, %v", got, err)
	}
}
