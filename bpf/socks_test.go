// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A socket that has a record is listed with it, and with both its ends.
func TestListSocks(t *testing.T) {
	f := loaded(t)
	inNamespace(t)
	records := f.node.Maps[nodeMapSocks]
	const other = 0x51de_0003_0000_0003 // nobody else's cgroup
	type ends struct {
		local, remote string
		proto         uint8
		state         uint8
	}
	const established, closed, listening = 1, 7, 10
	want := map[uint64]ends{}
	record := func(fd int, e ends) {
		t.Helper()
		put(t, records, int32(fd), nodeSgSock{NetnsCookie: testCookie, CgroupId: other, Role: RoleApp, Flags: SockRedirected | uint32(len(want))<<16})
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		if err != nil {
			t.Fatal(err)
		}
		want[cookie] = e
	}
	for _, family := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(family, net.JoinHostPort(map[string]string{"tcp4": "127.0.0.1", "tcp6": "::1"}[family], "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial(family, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		nobody := "0.0.0.0:0"
		if family == "tcp6" {
			nobody = "[::]:0"
		}
		record(fdOf(t, l.(*net.TCPListener)), ends{l.Addr().String(), nobody, unix.IPPROTO_TCP, listening})
		record(fdOf(t, c.(*net.TCPConn)), ends{c.LocalAddr().String(), c.RemoteAddr().String(), unix.IPPROTO_TCP, established})
	}
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	record(fdOf(t, u.(*net.UDPConn)), ends{u.LocalAddr().String(), "0.0.0.0:0", unix.IPPROTO_UDP, closed})
	without, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()

	rows, err := ListSocks(records)
	if err != nil {
		t.Fatal(err)
	}
	join := func(a Addr, port uint16) string {
		return net.JoinHostPort(netip.AddrFrom16(a.B).Unmap().String(), strconv.Itoa(int(port)))
	}
	for _, r := range rows {
		if r.Sock.CgroupId != other {
			continue
		}
		got := ends{join(r.Local, r.Lport), join(r.Remote, r.Rport), r.Proto, r.State}
		if w, ok := want[r.Cookie]; !ok || got != w || r.Sock.NetnsCookie != testCookie || r.Sock.Flags&SockRedirected == 0 {
			t.Errorf("socket %#x is %+v with record %+v, want %+v", r.Cookie, got, r.Sock, w)
		}
		delete(want, r.Cookie)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %+v", want)
	}
}

// fdOf returns the descriptor of a socket, which stays the socket's.
func fdOf(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}
