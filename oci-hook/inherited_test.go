// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/policy"
)

// newSocket returns a socket that is in no pod.
func newSocket(t *testing.T, family, kind, proto int) *os.File {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	must(t, err)
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

// inherited returns sockets by what a message calls them.
func inherited(t *testing.T) map[string]*os.File {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	listener, err := l.(*net.TCPListener).File()
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	c, err := net.Dial("tcp4", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	connected, err := c.(*net.TCPConn).File()
	must(t, err)
	t.Cleanup(func() { connected.Close() })
	// Package net listens with MPTCP where the kernel has it.
	listens := "AF_INET, TCP"
	if proto, err := unix.GetsockoptInt(int(listener.Fd()), unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && proto == unix.IPPROTO_MPTCP {
		listens = "AF_INET, MPTCP"
	}
	return map[string]*os.File{
		"listening " + listens:      listener,
		"connected AF_INET, TCP":    connected,
		"new AF_INET6, TCP":         newSocket(t, unix.AF_INET6, unix.SOCK_STREAM, 0),
		"new AF_INET, UDP":          newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0),
		"raw AF_INET6, protocol 89": newSocket(t, unix.AF_INET6, unix.SOCK_RAW, 89),
		"packet AF_PACKET":          newSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, 0),
	}
}

func TestInheritedSocketIsRefused(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{
		"mesh.yaml":  mesh,
		"ruled.yaml": strings.Replace(mesh, "mesh", "ruled", 1) + "  rules: [{role: app, egress: []}]\n",
		"admin.yaml": strings.Replace(mesh, "mesh", "admin", 1) + "  adminCapabilities: allow\n",
	})
	refused := func(f *os.File, role, pol, family string) {
		t.Helper()
		c := newContainerWith(t, syscall.CLONE_NEWNET, []*os.File{f})
		err := call(t, state, dir, "createRuntime", c.state(map[string]string{policy.KeyRole: role, policy.KeyPolicy: pol}))
		wantError(t, err, 1, "container c0ffee", "descriptor 3", family, "policy "+pol, "outside of its pod", "--preserve-fds")
		wantNothing(t, state, c)
	}
	for name, f := range inherited(t) {
		_, family, _ := strings.Cut(name, " ")
		refused(f, "app", "mesh", family)
	}
	tcp := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	// Who has nothing else to be kept from, but rules.
	for _, role := range []string{"sidecar", "none", "app", "init"} {
		refused(tcp, role, "ruled", "AF_INET, TCP")
	}
	refused(tcp, "init", "mesh", "AF_INET, TCP")
	refused(tcp, "app", "admin", "AF_INET, TCP")
	// The first of several, behind others.
	c := newContainerWith(t, syscall.CLONE_NEWNET, []*os.File{newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM, 0), tcp, newSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)})
	err := call(t, state, dir, "createRuntime", c.state(map[string]string{policy.KeyRole: "app", policy.KeyPolicy: "mesh"}))
	wantError(t, err, 1, "descriptor 4", "AF_INET, TCP", "and 1 more")
}

func TestInheritedSocketIsFine(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{"mesh.yaml": mesh, "audit.yaml": strings.Replace(mesh, "mesh", "audit", 1) + "  mode: audit\n"})
	tcp := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	other, err := os.Open("/dev/null")
	must(t, err)
	defer other.Close()
	for _, c := range []struct {
		name, role, pol string
		file            *os.File
		env             []string
		inherited       int
	}{
		{"UNIX", "app", "mesh", newSocket(t, unix.AF_UNIX, unix.SOCK_SEQPACKET, 0), nil, 0},
		{"netlink", "app", "mesh", newSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE), nil, 0},
		{"no socket", "app", "mesh", other, nil, 0},
		{"closed when the program is executed", "app", "mesh", tcp, []string{envCloexec + "=1"}, 0},
		{"of a sidecar without rules: socket activation", "sidecar", "mesh", tcp, nil, 1},
		{"of a container that is left alone", "none", "mesh", tcp, nil, 1},
		{"under audit", "app", "audit", tcp, nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			one := newContainerWith(t, syscall.CLONE_NEWNET, []*os.File{c.file}, c.env...)
			st := one.state(map[string]string{policy.KeyRole: c.role, policy.KeyPolicy: c.pol})
			must(t, call(t, state, dir, "createRuntime", st))
			if _, got := only(t, state); got.InheritedSockets != c.inherited || got.Refusal != "" {
				t.Errorf("status has %d inherited sockets, want %d; %q", got.InheritedSockets, c.inherited, got.Refusal)
			}
			one.stop()
			must(t, call(t, state, dir, "poststop", st))
		})
	}
}

// TestInheritedSocketAfterAudit: nobody takes a socket from a container that runs on,
// but the command says that it has one.
func TestInheritedSocketAfterAudit(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{"mesh.yaml": mesh + "  mode: audit\n"})
	annotations := map[string]string{policy.KeyRole: "app", policy.KeyPolicy: "mesh"}
	c := newContainerWith(t, syscall.CLONE_NEWNET, []*os.File{newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)})
	must(t, call(t, state, dir, "createRuntime", c.state(annotations)))
	must(t, os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(mesh), 0o644))
	other := newContainer(t, syscall.CLONE_NEWNET).state(annotations)
	other.ID = "other"
	must(t, call(t, state, dir, "createRuntime", other))
	st, err := cgroups.ReadStatus(state)
	must(t, err)
	for _, p := range st.Pods {
		for _, one := range p.Containers {
			has := one.ID == "c0ffee"
			if strings.Contains(one.Refusal, "network socket") != has || (one.InheritedSockets == 1) != has {
				t.Errorf("container %s has %d inherited sockets: %q", one.ID, one.InheritedSockets, one.Refusal)
			}
		}
	}
}

// TestStrangerWithSockets: without annotations they are nobody's business, but in a
// managed pod, where whatever it makes itself is dead.
func TestStrangerWithSockets(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{"mesh.yaml": mesh})
	tcp := newSocket(t, unix.AF_INET, unix.SOCK_STREAM, 0)
	c := newContainerWith(t, syscall.CLONE_NEWNET, []*os.File{tcp})
	must(t, call(t, state, dir, "createRuntime", c.state(nil)))
	wantNoState(t, state)
	must(t, call(t, state, dir, "createRuntime", newContainer(t, syscall.CLONE_NEWNET).state(map[string]string{policy.KeyRole: "app", policy.KeyPolicy: "mesh"})))
	must(t, call(t, state, dir, "createRuntime", c.state(nil)))

	// From here on its namespace is a pod's.
	st := c.state(map[string]string{policy.KeyRole: "none", policy.KeyPolicy: "mesh"})
	st.ID = "exempt"
	must(t, call(t, state, dir, "createRuntime", st))
	err := call(t, state, dir, "createRuntime", c.state(nil))
	wantError(t, err, 1, "container c0ffee", "managed pod, without annotations", "descriptor 3", "AF_INET, TCP")
	st.ID, st.Pid = "gone", deadPID(t)
	st.Annotations = nil
	must(t, call(t, state, dir, "createRuntime", st))
	if st, err := cgroups.ReadStatus(state); err != nil || len(st.Pods) != 2 {
		t.Errorf("status is %+v, %v", st, err)
	}
}
