// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What a device program returns (src/common.h).
const (
	devPass int32 = -1
	devDrop int32 = 2
)

const ethLen = 14

const (
	synFlag = 0x02
	rstFlag = 0x04
	ackFlag = 0x10
)

// Where the frames of these tests come from and go to. The pod has pod4 and
// pod6; in6 and in4 are inside a pod of everybody.
const (
	pod4, pod6         = "192.0.2.2", "2001:db8::2"
	outside4, outside6 = "203.0.113.9", "2001:db8:ffff::9"
)

func ether(kind uint16, payload ...byte) []byte {
	b := make([]byte, ethLen, ethLen+len(payload))
	binary.BigEndian.PutUint16(b[12:], kind)
	return append(b, payload...)
}

// arp is a question of sender, an IPv4 address.
func arp(sender string) []byte {
	b := make([]byte, 28)
	copy(b, []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(b[14:], addr(sender, sender))
	return ether(unix.ETH_P_ARP, b...)
}

// v4 is an IPv4 header. What is zero is as it should be.
type v4 struct {
	src, dst string
	proto    byte
	fragment uint16 // flags and offset as on the wire
	words    int    // of the header
	total    int    // the length it claims
	options  int    // words of it that are there
}

func (h v4) frame(payload []byte) []byte {
	b := make([]byte, 20+4*h.options)
	if h.words == 0 {
		h.words = len(b) / 4
	}
	if h.total == 0 {
		h.total = len(b) + len(payload)
	}
	b[0] = 0x40 | byte(h.words)
	binary.BigEndian.PutUint16(b[2:], uint16(h.total))
	binary.BigEndian.PutUint16(b[6:], h.fragment)
	b[8], b[9] = 64, h.proto
	copy(b[12:], addr(h.src, outside4))
	copy(b[16:], addr(h.dst, outside4))
	return ether(unix.ETH_P_IP, append(b, payload...)...)
}

func addr(s, or string) []byte {
	if s == "" {
		s = or
	}
	return netip.MustParseAddr(s).AsSlice()
}

// v6 is an IPv6 header. What is zero is as it should be.
type v6 struct {
	src, dst string
	next     byte
	length   int // the payload length it claims; -1: 0
}

func (h v6) frame(payload []byte) []byte {
	b := make([]byte, 40)
	if h.length == 0 {
		h.length = len(payload)
	}
	b[0], b[6], b[7] = 0x60, h.next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(max(h.length, 0)))
	copy(b[8:], addr(h.src, outside6))
	copy(b[24:], addr(h.dst, outside6))
	return ether(unix.ETH_P_IPV6, append(b, payload...)...)
}

// chain joins extension headers, of which each names the next, and what ends
// them.
func chain(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// extension is a hop-by-hop, routing or destination header of 8*(1+more) bytes.
func extension(next byte, more int) []byte {
	b := make([]byte, 8*(1+more))
	b[0], b[1] = next, byte(more)
	return b
}

// auth is an authentication header of 4*(2+more) bytes.
func auth(next byte, more int) []byte {
	b := make([]byte, 4*(2+more))
	b[0], b[1] = next, byte(more)
	return b
}

// fragment6 is a fragment header; offset in units of 8 bytes.
func fragment6(next byte, offset uint16, more bool) []byte {
	b := make([]byte, 8)
	b[0] = next
	binary.BigEndian.PutUint16(b[2:], offset<<3|uint16(bit(more)))
	return b
}

func tcp(flags byte, sport, dport uint16, options int, payload ...byte) []byte {
	b := make([]byte, 20+4*options)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12], b[13] = byte(5+options)<<4, flags
	return append(b, payload...)
}

func icmp6(kind byte) []byte { return []byte{kind, 7: 0} }

// report is an MLDv2 report of groups behind its router alert, as sent by a
// kernel.
func report(groups ...string) []byte {
	b := []byte{143, 7: byte(len(groups))}
	for _, g := range groups {
		b = append(b, append([]byte{4, 0, 0, 0}, addr(g, g)...)...)
	}
	return v6{src: pod6, next: 0}.frame(chain(extension(unix.IPPROTO_ICMPV6, 0), b))
}

// trailer adds bytes that IP knows nothing of.
func trailer(frame []byte, n int) []byte { return append(frame, make([]byte, n)...) }

func udp(sport, dport uint16, payload ...byte) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// maxHeaders of IPv6 are looked at (SG_EXT_MAX); the upper layer's, or a
// fragment's, must be one of them.
const maxHeaders = 8

// packet is what there is to know of a frame.
type packet struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        byte
	fragment     bool // not the first
	icmp         byte // type, of ICMP and ICMPv6
	flags        byte // of TCP
	payload      bool // of TCP
}

// etherType is what the kernel takes a frame for.
func etherType(frame []byte) uint16 {
	if kind := binary.BigEndian.Uint16(frame[12:]); kind >= 0x600 {
		return kind
	}
	return 0
}

// parsePacket is src/packet.h once more, from the RFCs.
func parsePacket(frame []byte) (p packet, ok bool) {
	ip := frame[ethLen:]
	var upper []byte // what follows the headers of IP
	var length int   // of it, as IP has it
	switch etherType(frame) {
	case unix.ETH_P_IP:
		if len(ip) < 20 {
			return p, false
		}
		words := int(ip[0] & 15)
		if words < 5 {
			return p, false
		}
		p.src, p.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		p.proto = ip[9]
		p.fragment = binary.BigEndian.Uint16(ip[6:])&0x1fff != 0
		length = int(binary.BigEndian.Uint16(ip[2:])) - 4*words
		upper = ip[min(4*words, len(ip)):]
	case unix.ETH_P_IPV6:
		if len(ip) < 40 {
			return p, false
		}
		p.src, p.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		length = int(binary.BigEndian.Uint16(ip[4:]))
		upper = ip[40:]
		next := ip[6]
		for headers := 0; ; headers++ {
			size := 0
			switch next {
			case 0, 43, 60:
				size = 8
			case 44:
			case 51:
				size = 4
			default:
				size = -1
			}
			if size < 0 || p.fragment {
				break
			}
			if len(upper) < 8 {
				return p, false
			}
			switch next {
			case 44:
				p.fragment = binary.BigEndian.Uint16(upper[2:])>>3 != 0
				size = 8
			case 51:
				size = 4 * (int(upper[1]) + 2)
			default:
				size = 8 * (int(upper[1]) + 1)
			}
			next = upper[0]
			length -= size
			upper = upper[min(size, len(upper)):]
			if headers == maxHeaders-1 && !p.fragment {
				return p, false
			}
		}
		p.proto = next
	default:
		return p, false
	}
	if p.fragment {
		return p, true
	}
	switch p.proto {
	case unix.IPPROTO_TCP:
		if len(upper) < 20 {
			return p, false
		}
		p.flags = upper[13]
		p.payload = length > 4*int(upper[12]>>4)
	case unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(upper) < 4 {
			return p, false
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(upper) < 1 {
			return p, false
		}
		p.icmp = upper[0]
		return p, true
	default:
		return p, true
	}
	p.sport, p.dport = binary.BigEndian.Uint16(upper), binary.BigEndian.Uint16(upper[2:])
	return p, true
}

// tooShort is what a kernel may refuse to run a program on: of 14 bytes or
// fewer, and newer kernels of an IP header that is not all there.
func tooShort(frame []byte) bool {
	if len(frame) <= ethLen {
		return true
	}
	switch etherType(frame) {
	case unix.ETH_P_IP:
		return len(frame) < ethLen+20
	case unix.ETH_P_IPV6:
		return len(frame) < ethLen+40
	}
	return false
}

// refused is true of the one error that running a program on a frame may give.
func refused(frame []byte, err error) bool { return errors.Is(err, unix.EINVAL) && tooShort(frame) }

// runSkb runs a program on a frame.
func runSkb(t testing.TB, p *ebpf.Program, frame []byte) int32 {
	t.Helper()
	ret, err := p.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatalf("%v on %x: %v", p, frame, err)
	}
	return int32(ret)
}
