// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bytes"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// A socket that has a record is listed with it, and with both its ends; one without is not.
func TestListSockets(t *testing.T) {
	if syscall.Geteuid() != 0 {
		t.Skip("needs root: makes a map and a network namespace")
	}
	node, err := bpf.LoadNode()
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	records := node.Maps["socks"]
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	up(t)
	const established, closed, listening = 1, 7, 10
	type ends struct {
		local, remote string
		proto, state  uint8
		flags         uint32
	}
	want := map[uint64]ends{}
	record := func(c syscall.Conn, e ends) {
		t.Helper()
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		e.flags = bpf.SockRedirected | uint32(len(want))<<16
		var perr error
		if err := raw.Control(func(fd uintptr) {
			perr = records.Put(int32(fd), bpf.Sock{NetnsCookie: 7, CgroupId: 8, Role: bpf.RoleApp, Flags: e.flags})
			cookie, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
			if err != nil {
				t.Error(err)
			}
			want[cookie] = e
		}); err != nil || perr != nil {
			t.Fatal(err, perr)
		}
	}
	for _, family := range []struct{ name, loopback, nobody string }{{"tcp4", "127.0.0.1:0", "0.0.0.0:0"}, {"tcp6", "[::1]:0", "[::]:0"}} {
		var plain net.ListenConfig
		plain.SetMultipathTCP(false) // of such a listener sock_diag lists the subflow
		l, err := plain.Listen(t.Context(), family.name, family.loopback)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial(family.name, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		record(l.(*net.TCPListener), ends{local: l.Addr().String(), remote: family.nobody, proto: unix.IPPROTO_TCP, state: listening})
		record(c.(*net.TCPConn), ends{local: c.LocalAddr().String(), remote: c.RemoteAddr().String(), proto: unix.IPPROTO_TCP, state: established})
	}
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	record(u.(*net.UDPConn), ends{local: u.LocalAddr().String(), remote: "0.0.0.0:0", proto: unix.IPPROTO_UDP, state: closed})
	without, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()

	all, err := listSockets(records)
	if err != nil {
		t.Fatal(err)
	}
	silent := make(map[uint64]*sock)
	for i := range all {
		if !all[i].recorded {
			silent[all[i].inode] = &all[i]
		}
	}
	if err := readRecordsOf(records, os.Getpid(), silent); err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if !r.recorded {
			continue
		}
		got := ends{local: r.local.String(), remote: r.remote.String(), proto: r.proto, state: r.state, flags: r.record.Flags}
		if w, ok := want[r.cookie]; !ok || got != w || r.record.NetnsCookie != 7 || r.record.CgroupId != 8 || r.record.Role != bpf.RoleApp {
			t.Errorf("socket %#x is %+v with record %+v, want %+v", r.cookie, got, r.record, w)
		}
		delete(want, r.cookie)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %+v", want)
	}
	for i := range all {
		if all[i].state != established || !all[i].recorded {
			continue
		}
		if err := destroySocket(&all[i]); err != nil {
			t.Errorf("destroy %s - %s: %v", all[i].local, all[i].remote, err)
		}
	}
	if all, err = listSockets(records); err != nil || slices.ContainsFunc(all, func(r sock) bool { return r.state == established && r.recorded }) {
		t.Errorf("after that there are %+v, %v", all, err)
	}
}

// up takes the loopback device of this thread's namespace up.
func up(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		t.Fatal(err)
	}
}

// What the kernel sends is read within its bounds.
func FuzzParseDiag(f *testing.F) {
	message := make([]byte, diagMessageLen)
	message[0] = unix.AF_INET
	f.Add(message)
	f.Add(append(bytes.Clone(message), 12, 0, diagStorages, 0x80, 8, 0, diagStorage, 0x80, 4, 0, diagStorageValue, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		one, err := parseDiag(b, unix.IPPROTO_TCP)
		if one.recorded && (err != nil || one.family != unix.AF_INET && one.family != unix.AF_INET6) {
			t.Errorf("%+v, %v", one, err)
		}
	})
}
