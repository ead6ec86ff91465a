// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
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
