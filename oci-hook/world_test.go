// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sidegate/cgroups"
)

// envInit makes the test binary be a container's process: it waits for the end
// of its standard input.
const envInit = "SIDEGATE_TEST_INIT"

// envCloexec makes it close its descriptor 3 when it executes another program.
const envCloexec = "SIDEGATE_TEST_CLOEXEC"

func TestMain(m *testing.M) {
	if os.Getenv(envInit) != "" {
		if os.Getenv(envCloexec) != "" {
			syscall.CloseOnExec(3)
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// container is a process in a cgroup and a network namespace of its own, with
// a bundle: all that a hook is told of.
type container struct {
	pid    int
	cgroup string
	bundle string
	stop   func() // ends the process; may be called again
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newState returns a state directory that does not exist yet.
func newState(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups, namespaces and BPF programs")
	}
	f, err := os.MkdirTemp("/sys/fs/bpf", "sgtest-oci-")
	must(t, err)
	must(t, os.Remove(f))
	t.Cleanup(func() { must(t, cgroups.Unload(f, true)) })
	return f
}

// newContainer starts a process. flags are of clone(2), such as CLONE_NEWNET.
func newContainer(t *testing.T, flags uintptr) *container {
	t.Helper()
	return newContainerWith(t, flags, nil)
}

// newContainerWith starts a process that has these files as its descriptors from 3 on.
func newContainerWith(t *testing.T, flags uintptr, files []*os.File, env ...string) *container {
	t.Helper()
	mount, err := cgroups.FindMount()
	must(t, err)
	c := &container{bundle: t.TempDir()}
	must(t, os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte("{}"), 0o644))
	c.cgroup, err = os.MkdirTemp(mount.Dir, "sgtest-oci-")
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(c.cgroup)) })
	dir, err := os.Open(c.cgroup)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), envInit+"=1", "GORACE=atexit_sleep_ms=0"), env...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: flags}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c.pid = cmd.Process.Pid
	c.stop = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(c.stop)
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, ready)
	must(t, err)
	return c
}

// programs counts what is attached to the container's cgroup, of any hook.
func (c *container) programs(t *testing.T) int {
	t.Helper()
	dir, err := os.Open(c.cgroup)
	must(t, err)
	defer dir.Close()
	n := 0
	for a := range ebpf.AttachType(64) {
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: a})
		if err == nil { // else it is no hook of a cgroup
			n += len(r.Programs)
		}
	}
	return n
}

// wantNothing fails the test if the container or a pod is in the kernel.
func wantNothing(t *testing.T, state string, c *container) {
	t.Helper()
	if c != nil {
		if n := c.programs(t); n != 0 {
			t.Errorf("%d programs are attached", n)
		}
	}
	for _, sub := range []string{"containers", "pods"} {
		entries, err := os.ReadDir(filepath.Join(cgroups.VersionDir(state), sub))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		if len(entries) > 0 {
			t.Errorf("pins stay: %s", entries)
		}
	}
	for _, name := range []string{"pods", "pod_info", "pod_counters", "pod_addrs", "rules", "containers", "container_info", "counters"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(state), "maps", name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		if k, err := m.NextKeyBytes(nil); err != nil || k != nil {
			t.Errorf("map %s has key %x, %v", name, k, err)
		}
		must(t, m.Close())
	}
}

// wantNoState fails the test if anything at all was loaded.
func wantNoState(t *testing.T, state string) {
	t.Helper()
	if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a state directory: %v", err)
	}
}

// deadPID returns the id of a process that has ended.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envInit+"=1", "GORACE=atexit_sleep_ms=0")
	must(t, cmd.Run())
	return cmd.Process.Pid
}

// only returns the one container of the one pod.
func only(t *testing.T, state string) (cgroups.PodStatus, cgroups.ContainerStatus) {
	t.Helper()
	st, err := cgroups.ReadStatus(state)
	must(t, err)
	if len(st.Pods) != 1 || len(st.Pods[0].Containers) != 1 {
		t.Fatalf("status is %s, want one container of one pod", fmt.Sprintf("%+v", st.Pods))
	}
	return st.Pods[0], st.Pods[0].Containers[0]
}
