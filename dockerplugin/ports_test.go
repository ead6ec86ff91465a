// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReservePort(t *testing.T) {
	l := newLab(t)
	any4, any6, all := netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.Addr{}
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		for _, ip := range []netip.Addr{any4, any6, all, machine4, machine6} {
			hold, err := reservePort(proto, ip, 8080)
			l.must(err)
			_, err = reservePort(proto, ip, 8080)
			l.refused(err, fmt.Sprintf("%s port 8080 is taken by another program", protoName(proto)))
			l.must(hold.Close())
		}
		// The families are apart.
		hold4, err := reservePort(proto, any4, 8080)
		l.must(err)
		hold6, err := reservePort(proto, any6, 8080)
		l.must(err)
		l.must(hold4.Close())
		l.must(hold6.Close())
	}
}

func TestReservePortOthers(t *testing.T) {
	l := newLab(t)
	hold, err := reservePort(unix.IPPROTO_TCP, netip.IPv4Unspecified(), 8080)
	l.must(err)
	if other, err := net.Listen("tcp4", ":8080"); err == nil {
		other.Close()
		t.Error("a held port was free for another program")
	}
	_, err = net.Dial("tcp4", "127.0.0.1:8080")
	l.refused(err, "refused")
	l.must(hold.Close())

	other, err := net.Listen("tcp4", ":8080")
	l.must(err)
	_, err = reservePort(unix.IPPROTO_TCP, netip.IPv4Unspecified(), 8080)
	l.refused(err, "taken by another program")

	// Its old connections are no conflict.
	c, err := net.Dial("tcp4", "127.0.0.1:8080")
	l.must(err)
	s, err := other.Accept()
	l.must(err)
	l.must(s.Close()) // the first to close has TIME_WAIT
	l.must(c.Close())
	l.must(other.Close())
	hold, err = reservePort(unix.IPPROTO_TCP, netip.IPv4Unspecified(), 8080)
	l.must(err)
	l.must(hold.Close())

	_, err = reservePort(unix.IPPROTO_TCP, netip.MustParseAddr("192.0.2.1"), 8080)
	l.refused(err, "192.0.2.1 is no address of this machine")
}
