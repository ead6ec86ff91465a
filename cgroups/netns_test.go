// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
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
	end, pod := startApart(t)
	w.pod = pod
	ino := inodeOf(t, pod)
	must(t, w.manage(policy.Default()))
	must(t, pod.Close())
	collect := func() (n cgroups.Collected) {
		must(t, w.store(func(s *cgroups.Store) (err error) {
			n, err = s.Collect()
			return err
		}))
		return n
	}
	if n := collect(); n.Pods != 0 || !slices.Equal(n.Left, []string{"shop/web"}) {
		t.Fatalf("with a process in it: %+v", n)
	}
	end()
	// The next ones take free inodes, the lowest first, and this one's once the kernel has cleaned up.
	for n := 0; ; n++ {
		_, next := startApart(t)
		got := inodeOf(t, next)
		must(t, next.Close())
		if got == ino {
			break
		}
		if n == 500 {
			t.Fatalf("no namespace got inode %d", ino)
		}
	}
	if n := collect(); n.Pods != 1 || len(w.status().Pods) != 0 {
		t.Errorf("with a process in another namespace of this inode: %+v; pods %+v", n, w.status().Pods)
	}
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
