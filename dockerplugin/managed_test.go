// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/observe/cli"
)

// inOwn runs f on a thread with namespaces of its own, which ends with it.
func inOwn(t *testing.T, namespaces int, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock
		done <- func() error {
			if err := unix.Unshare(namespaces); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			return f()
		}()
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// In a container /proc/sys is read-only, and what it was given takes its place.
func TestEnsureSysctls(t *testing.T) {
	given := t.TempDir()
	const at, file = "/proc/sys/net", "/proc/sys/net/ipv4/ip_forward"
	inOwn(t, unix.CLONE_NEWNS, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return os.NewSyscallError("make mounts private", err)
		}
		if err := ensureSysctls(at, given); err != nil {
			t.Errorf("where it can be written: %v", err)
		}
		if err := unix.Mount(at, given, "", unix.MS_BIND, ""); err != nil {
			return os.NewSyscallError("mount", err)
		}
		for _, flags := range []uintptr{unix.MS_BIND | unix.MS_REC, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
			if err := unix.Mount("/proc/sys", "/proc/sys", "", flags, ""); err != nil {
				return os.NewSyscallError("mount", err)
			}
		}
		for _, nothing := range []string{filepath.Join(given, "nothing"), t.TempDir(), "/proc/sys/net/ipv4"} {
			if err := ensureSysctls(at, nothing); err == nil || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), nothing) {
				t.Errorf("with %s: %v", nothing, err)
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, b, 0); err == nil {
			t.Error("it can be written before")
		}
		if err := ensureSysctls(at, given); err != nil {
			t.Errorf("with what it is given: %v", err)
		}
		return os.WriteFile(file, b, 0)
	})
}

// There is one driver in a network namespace.
func TestAlone(t *testing.T) {
	inOwn(t, unix.CLONE_NEWNET, func() error {
		release, err := alone()
		if err != nil {
			return err
		}
		if _, err := alone(); err == nil || cli.ExitCode(err) != cli.ExitUsage || !strings.Contains(err.Error(), "docker plugin disable") {
			t.Errorf("another one: %v", err)
		}
		if err := release(); err != nil {
			return err
		}
		if release, err = alone(); err != nil {
			return err
		}
		return release()
	})
}
