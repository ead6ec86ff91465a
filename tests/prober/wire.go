// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Packets made by hand. Everything here is pure.

// checksum is the Internet checksum of b, started from sum (a pseudo header's, or 0).
func checksum(sum uint32, b []byte) uint16 {
	sum = partialSum(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func partialSum(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// pseudoSum starts the checksum of a transport segment.
func pseudoSum(src, dst netip.Addr, proto, length int) uint32 {
	sum := partialSum(0, src.AsSlice())
	sum = partialSum(sum, dst.AsSlice())
	return sum + uint32(proto) + uint32(length)
}

// errFamilies is returned for a packet from one address family to the other.
var errFamilies = errors.New("source and destination are of different families")

// ipPacket puts an IPv4 or IPv6 header before payload.
func ipPacket(src, dst netip.Addr, proto int, payload []byte) ([]byte, error) {
	if src.Is4() != dst.Is4() {
		return nil, errFamilies
	}
	if src.Is4() {
		h := make([]byte, 20, 20+len(payload))
		h[0] = 0x45
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		h[8], h[9] = 64, byte(proto)
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(0, h))
		return append(h, payload...), nil
	}
	h := make([]byte, 40, 40+len(payload))
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = byte(proto), 64
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...), nil
}

// routed sends an IPv4 packet without options to a hop first (RFC 791, "Loose Source and Record Route").
func routed(packet []byte, hop netip.Addr) []byte {
	option := append([]byte{1, 131, 3 + 4, 4}, packet[16:20]...) // a no-op before it, for a length of whole words
	out := slices.Concat(packet[:20], option, packet[20:])
	copy(out[16:], hop.AsSlice())
	out[0] = 0x40 | byte((20+len(option))/4)
	return ipChecked(out)
}

// fragments cuts the payload of an IPv4 packet in two after cut bytes; 0 is not at all.
func fragments(packet []byte, cut int) [][]byte {
	if cut == 0 {
		return [][]byte{packet}
	}
	header := int(packet[0]&0xf) * 4
	const more = 0x2000
	piece := func(b []byte, field uint16) []byte {
		p := slices.Concat(packet[:header], b)
		binary.BigEndian.PutUint16(p[4:], 0x5347) // what they have in common
		binary.BigEndian.PutUint16(p[6:], field)
		return ipChecked(p)
	}
	return [][]byte{piece(packet[header:header+cut], more), piece(packet[header+cut:], uint16(cut/8))}
}

// ipChecked fills in length and checksum of an IPv4 packet.
func ipChecked(p []byte) []byte {
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], checksum(0, p[:int(p[0]&0xf)*4]))
	return p
}

// udpSegment is a UDP header and payload with its checksum.
func udpSegment(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	sum := checksum(pseudoSum(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, len(b)), b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// synSegment is a TCP SYN that carries payload.
func synSegment(src, dst netip.AddrPort, seq uint32, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b[0:], src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	b[12], b[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(b[14:], 0xffff)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudoSum(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(b)), b))
	return b
}

// echoRequest is an ICMP or ICMPv6 echo request. The kernel fills in ICMPv6's checksum.
func echoRequest(v6 bool, id, seq uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	b[0] = 8
	if v6 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	b = append(b, payload...)
	if !v6 {
		binary.BigEndian.PutUint16(b[2:], checksum(0, b))
	}
	return b
}

// ethernetFrame puts an Ethernet header before an IP packet.
func ethernetFrame(src, dst net.HardwareAddr, packet []byte) []byte {
	b := make([]byte, 14, 14+len(packet))
	copy(b[0:], dst)
	copy(b[6:], src)
	etherType := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	binary.BigEndian.PutUint16(b[12:], etherType)
	return append(b, packet...)
}

// parsedPacket is what the recorder keeps of an Ethernet frame's IP packet.
type parsedPacket struct {
	Src, Dst netip.Addr
	Proto    int
	Payload  []byte // all after the IP header
}

// parseFrame takes an Ethernet frame apart. It returns false for anything but IPv4 and IPv6. IPv6 extension headers stay in Payload.
func parseFrame(b []byte) (parsedPacket, bool) {
	if len(b) < 14 {
		return parsedPacket{}, false
	}
	etherType, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	switch {
	case etherType == unix.ETH_P_IP && len(b) >= 20:
		header := int(b[0]&0xf) * 4
		if header < 20 || header > len(b) {
			return parsedPacket{}, false
		}
		return parsedPacket{netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), int(b[9]), b[header:]}, true
	case etherType == unix.ETH_P_IPV6 && len(b) >= 40:
		return parsedPacket{netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), int(b[6]), b[40:]}, true
	}
	return parsedPacket{}, false
}
