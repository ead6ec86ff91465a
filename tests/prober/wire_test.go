// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
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

func TestFragments(t *testing.T) {
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	payload := []byte("0123456789abcdefghijklmnopqrstuvwxyz")
	whole, err := ipPacket(src, dst, 17, payload)
	if err != nil {
		t.Fatal(err)
	}
	if got := fragments(whole, 0); len(got) != 1 || !bytes.Equal(got[0], whole) {
		t.Errorf("uncut it is %x", got)
	}
	got := fragments(whole, 16)
	if len(got) != 2 {
		t.Fatalf("%d fragments", len(got))
	}
	var again []byte
	for i, f := range got {
		if checksum(0, f[:20]) != 0 {
			t.Errorf("fragment %d: its header's checksum is wrong", i)
		}
		if int(binary.BigEndian.Uint16(f[2:])) != len(f) {
			t.Errorf("fragment %d: its length is wrong", i)
		}
		field := binary.BigEndian.Uint16(f[6:])
		if more := field&0x2000 != 0; more != (i == 0) || int(field&0x1fff)*8 != len(again) {
			t.Errorf("fragment %d: its flags and offset are %#x", i, field)
		}
		again = append(again, f[20:]...)
	}
	if !bytes.Equal(again, payload) {
		t.Errorf("put together it is %q", again)
	}
}

func TestRouted(t *testing.T) {
	src, dst, hop := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.9")
	whole, err := ipPacket(src, dst, 17, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	got := routed(whole, hop)
	header := int(got[0]&0xf) * 4
	if header != 28 || checksum(0, got[:header]) != 0 || int(binary.BigEndian.Uint16(got[2:])) != len(got) {
		t.Errorf("its header is %x", got[:header])
	}
	// RFC 791: loose source route, 7 bytes, the first address is next, which is where it is meant to go.
	if want := append([]byte{1, 131, 7, 4}, dst.AsSlice()...); !bytes.Equal(got[20:header], want) {
		t.Errorf("its options are %x, want %x", got[20:header], want)
	}
	if !bytes.Equal(got[16:20], hop.AsSlice()) || string(got[header:]) != "payload" {
		t.Errorf("it goes to %v with %q", got[16:20], got[header:])
	}
}

func TestDNSQuery(t *testing.T) {
	want := "\x53\x47\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05nonce\x07example\x00\x00\x01\x00\x01"
	if got := string(dnsQuery("nonce")); got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
}
