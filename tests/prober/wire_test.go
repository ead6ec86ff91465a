// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A header with its checksum in it sums up to zero.
func TestChecksums(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		src, dst := netip.MustParseAddrPort("198.51.100.2:40007"), netip.MustParseAddrPort("192.0.2.80:7")
		if v6 {
			src, dst = netip.MustParseAddrPort("[2001:db8:2::2]:40007"), netip.MustParseAddrPort("[2001:db8:1::80]:7")
		}
		for _, payload := range []string{"", "odd", "even"} {
			udp := udpSegment(src, dst, []byte(payload))
			if sum := checksum(pseudoSum(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, len(udp)), udp); sum != 0 {
				t.Errorf("UDP %s %q: %#x", dst, payload, sum)
			}
			tcp := synSegment(src, dst, 1, []byte(payload))
			if sum := checksum(pseudoSum(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(tcp)), tcp); sum != 0 {
				t.Errorf("TCP %s %q: %#x", dst, payload, sum)
			}
			if icmp := echoRequest(false, 1, 1, []byte(payload)); checksum(0, icmp) != 0 {
				t.Errorf("ICMP %q: %#x", payload, checksum(0, icmp))
			}
		}
	}
}

func TestParseFrame(t *testing.T) {
	mac := []byte{2, 0, 0, 0, 0, 1}
	for _, pair := range [][2]string{{"198.51.100.2", "192.0.2.80"}, {"2001:db8:2::2", "2001:db8:1::80"}} {
		src, dst := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		packet, err := ipPacket(src, dst, unix.IPPROTO_UDP, []byte("payload"))
		if err != nil {
			t.Fatal(err)
		}
		frame := ethernetFrame(mac, mac, packet)
		p, ok := parseFrame(frame)
		if !ok || p.Src != src || p.Dst != dst || p.Proto != unix.IPPROTO_UDP || !bytes.Equal(p.Payload, []byte("payload")) {
			t.Errorf("%s: %+v, %t", src, p, ok)
		}
		for n := range len(frame) - len("payload") {
			if _, ok := parseFrame(frame[:n]); ok {
				t.Errorf("%s: %d bytes are a packet", src, n)
			}
		}
	}
	if _, err := ipPacket(netip.IPv6Loopback(), netip.IPv4Unspecified(), 0, nil); err == nil {
		t.Error("families mixed without an error")
	}
}

func TestNetworkOrder(t *testing.T) {
	b := rawSockaddr(netip.MustParseAddrPort("127.0.0.1:258"), false)
	if b[2] != 1 || b[3] != 2 || len(b) != unix.SizeofSockaddrInet4 {
		t.Errorf("sockaddr % x", b)
	}
	if b := rawSockaddr(netip.MustParseAddrPort("127.0.0.1:1"), true); len(b) != unix.SizeofSockaddrInet6 || b[18] != 0xff {
		t.Errorf("mapped sockaddr % x", b)
	}
}
