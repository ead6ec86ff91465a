// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Reasons for drops; passes is none.
const (
	epClosed    = int(endpointSgEndpointDropSG_ENDPOINT_CLOSED)
	epMAC       = int(endpointSgEndpointDropSG_ENDPOINT_MAC)
	epAddress   = int(endpointSgEndpointDropSG_ENDPOINT_ADDRESS)
	epEthertype = int(endpointSgEndpointDropSG_ENDPOINT_ETHERTYPE)
	epMalformed = int(endpointSgEndpointDropSG_ENDPOINT_MALFORMED)
	passes      = -1
)

var epMACAddr = [6]byte{2, 0x42, 0xac, 0x11, 0, 2}

// loIndex is the device that Program.Run gives to a packet.
const loIndex = uint32(1)

type endpointFixture struct{ *Endpoints }

func loadEndpoints(t testing.TB) endpointFixture {
	t.Helper()
	needRoot(t)
	e, err := LoadEndpoints()
	if err != nil {
		t.Fatalf("load endpoint object: %+v", err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return endpointFixture{e}
}

func (f endpointFixture) set(t testing.TB, e Endpoint) {
	t.Helper()
	put(t, f.Entries, loIndex, e)
	put(t, f.Counters, loIndex, make([]EndpointCounters, ebpf.MustPossibleCPU()))
}

func (f endpointFixture) drops(t testing.TB) (sum EndpointCounters) {
	t.Helper()
	var cpus []EndpointCounters
	if err := f.Counters.Lookup(loIndex, &cpus); err != nil {
		t.Fatal(err)
	}
	for _, c := range cpus {
		sum.Add(c)
	}
	return sum
}

// judge runs a program and checks that the drop, and nothing else, is counted.
func (f endpointFixture) judge(t testing.TB, what string, p *ebpf.Program, frame []byte, want int) {
	t.Helper()
	before := f.drops(t)
	r, err := p.Run(&ebpf.RunOptions{Data: frame})
	if refused(frame, err) {
		return
	}
	if err != nil {
		t.Fatalf("%s: %v on %x", what, err, frame)
	}
	ret, after := devPass, before
	if want != passes {
		ret = devDrop
		after.V[want]++
	}
	if got := int32(r); got != ret {
		t.Errorf("%s: the verdict is %d, want %d, on %x", what, got, ret, frame)
	}
	if got := f.drops(t); got != after {
		t.Errorf("%s: counted %v after %v, want %v, on %x", what, got.V, before.V, after.V, frame)
	}
}

// of is the frame with a source MAC.
func of(mac [6]byte, frame []byte) []byte {
	frame = slices.Clone(frame)
	copy(frame[6:], mac[:])
	return frame
}

// arpFull is an ARP packet, all of it.
func arpFull(op uint16, sha [6]byte, spa, tpa string) []byte {
	b := make([]byte, 28)
	copy(b, []byte{0, 1, 8, 0, 6, 4, byte(op >> 8), byte(op)})
	copy(b[8:], sha[:])
	copy(b[14:], addr(spa, spa))
	copy(b[24:], addr(tpa, tpa))
	return ether(unix.ETH_P_ARP, b...)
}

// discovery is a solicitation or advertisement.
func discovery(src string, kind byte, target string) []byte {
	return v6{src: src, dst: "ff02::1", next: 58}.frame(append(icmp6(kind), addr(target, target)...))
}

// patched has one byte changed.
func patched(frame []byte, at int, b byte) []byte {
	frame = slices.Clone(frame)
	frame[at] = b
	return frame
}

const linkLocal = "fe80::42:acff:fe11:2"

func endpointCases() []endpointCase {
	own, other := epMACAddr, [6]byte{2, 0x42, 0xac, 0x11, 0, 3}
	dgram := udp(1234, 53, 'x')
	return []endpointCase{
		{"IPv4", of(own, v4{src: pod4, proto: 17}.frame(dgram)), passes},
		{"IPv4, fragment", of(own, v4{src: pod4, proto: 17, fragment: 1}.frame(dgram)), passes},
		{"IPv4 of another", of(own, v4{src: "192.0.2.3", proto: 17}.frame(dgram)), epAddress},
		{"IPv4 of nobody", of(own, v4{src: "0.0.0.0", proto: 17}.frame(dgram)), epAddress},
		{"IPv4 of loopback", of(own, v4{src: "127.0.0.1", proto: 17}.frame(dgram)), epAddress},
		{"IPv4 of another MAC", of(other, v4{src: pod4, proto: 17}.frame(dgram)), epMAC},
		{"IPv4 of another MAC in its last byte only", of([6]byte{2, 0x42, 0xac, 0x11, 0, 0x82}, v4{src: pod4, proto: 17}.frame(dgram)), epMAC},
		{"IPv4 cut off", of(own, v4{src: pod4, proto: 17}.frame(dgram))[:ethLen+19], epMalformed},

		{"IPv6", of(own, v6{src: pod6, next: 17}.frame(dgram)), passes},
		{"IPv6, TCP", of(own, v6{src: pod6, next: 6}.frame(tcp(synFlag, 1, 2, 0))), passes},
		{"IPv6, later fragment", of(own, v6{src: pod6, next: 44}.frame(chain(fragment6(17, 3, false), dgram))), passes},
		{"IPv6 of another", of(own, v6{src: "2001:db8::3", next: 17}.frame(dgram)), epAddress},
		{"IPv6 of another, ICMPv6", of(own, v6{src: "2001:db8::3", next: 58}.frame(icmp6(128))), epAddress},
		{"IPv6 of the v4-mapped address", of(own, v6{src: "::ffff:192.0.2.2", next: 17}.frame(dgram)), epAddress},
		{"IPv6 of loopback", of(own, v6{src: "::1", next: 58}.frame(icmp6(128))), epAddress},
		{"IPv6 of another MAC", of(other, v6{src: pod6, next: 17}.frame(dgram)), epMAC},
		{"IPv6, link-local UDP", of(own, v6{src: linkLocal, next: 17}.frame(dgram)), epAddress},
		{"IPv6, link-local fragment of UDP", of(own, v6{src: linkLocal, next: 44}.frame(chain(fragment6(17, 3, false), dgram))), epAddress},
		{"IPv6, link-local ping", of(own, v6{src: linkLocal, next: 58}.frame(icmp6(128))), passes},
		{"IPv6, end of fe80::/10", of(own, v6{src: "febf::1", next: 58}.frame(icmp6(128))), passes},
		{"IPv6, beyond fe80::/10", of(own, v6{src: "fec0::1", next: 58}.frame(icmp6(128))), epAddress},
		{"IPv6, before fe80::/10", of(own, v6{src: "fe7f::1", next: 58}.frame(icmp6(128))), epAddress},
		{"IPv6 of nobody", of(own, v6{src: "::", next: 17}.frame(dgram)), epAddress},
		{"MLD report", of(own, v6{src: linkLocal, next: 0}.frame(chain(extension(58, 0), icmp6(143)))), passes},
		{"MLD report of nobody", of(own, v6{src: "::", next: 0}.frame(chain(extension(58, 0), icmp6(143)))), passes},
		{"IPv6 cut off", of(own, v6{src: pod6, next: 17}.frame(dgram))[:ethLen+39], epMalformed},
		{"IPv6, too many headers", of(own, v6{src: pod6, next: 60}.frame(chain(bytes.Repeat(extension(60, 0), 16), dgram))), epMalformed},
		{"IPv6, no ICMPv6 type", of(own, v6{src: pod6, next: 58}.frame(nil)), epMalformed},

		{"router solicitation", of(own, v6{src: linkLocal, next: 58}.frame(icmp6(133))), passes},
		{"router solicitation of nobody", of(own, v6{src: "::", next: 58}.frame(icmp6(133))), passes},
		{"router advertisement", of(own, v6{src: linkLocal, next: 58}.frame(icmp6(134))), epAddress},
		{"router advertisement of its own address", of(own, v6{src: pod6, next: 58}.frame(icmp6(134))), epAddress},
		{"redirect", of(own, v6{src: linkLocal, next: 58}.frame(icmp6(137))), epAddress},
		{"solicitation", of(own, discovery(pod6, 135, outside6)), passes},
		{"solicitation, link-local", of(own, discovery(linkLocal, 135, outside6)), passes},
		{"solicitation cut off", of(own, discovery(pod6, 135, outside6))[:ethLen+48], passes},
		{"probe for its address", of(own, discovery("::", 135, pod6)), passes},
		{"probe for a link-local address", of(own, discovery("::", 135, linkLocal)), passes},
		{"probe for another's address", of(own, discovery("::", 135, "2001:db8::3")), epAddress},
		{"probe cut off", of(own, discovery("::", 135, pod6))[:ethLen+48], epMalformed},
		{"advertisement", of(own, discovery(pod6, 136, pod6)), passes},
		{"advertisement, link-local", of(own, discovery(linkLocal, 136, linkLocal)), passes},
		{"advertisement of another's address", of(own, discovery(pod6, 136, "2001:db8::3")), epAddress},
		{"advertisement of another's address, link-local", of(own, discovery(linkLocal, 136, "2001:db8::3")), epAddress},
		{"advertisement of nobody", of(own, discovery(pod6, 136, "::")), epAddress},
		{"advertisement behind a header", of(own, v6{src: pod6, next: 60}.frame(chain(extension(58, 1), icmp6(136), addr(pod6, "")))), epAddress},
		{"advertisement in a first fragment", of(own, v6{src: pod6, next: 44}.frame(chain(fragment6(58, 0, true), icmp6(136), addr(pod6, "")))), epAddress},

		{"ARP question", of(own, arpFull(1, own, pod4, "192.0.2.1")), passes},
		{"ARP answer", of(own, arpFull(2, own, pod4, "192.0.2.1")), passes},
		{"ARP with padding", of(own, trailer(arpFull(1, own, pod4, "192.0.2.1"), 18)), passes},
		{"ARP announcement", of(own, arpFull(2, own, pod4, pod4)), passes},
		{"ARP probe", of(own, arpFull(1, own, "0.0.0.0", pod4)), passes},
		{"ARP probe for another's address", of(own, arpFull(1, own, "0.0.0.0", "192.0.2.3")), epAddress},
		{"ARP probe that is an answer", of(own, arpFull(2, own, "0.0.0.0", pod4)), epAddress},
		{"ARP of another address", of(own, arpFull(1, own, "192.0.2.3", pod4)), epAddress},
		{"ARP of another MAC inside", of(own, arpFull(1, other, pod4, "192.0.2.1")), epAddress},
		{"ARP of another MAC", of(other, arpFull(1, own, pod4, "192.0.2.1")), epMAC},
		{"ARP cut off", of(own, arpFull(1, own, pod4, "192.0.2.1"))[:41], epMalformed},
		{"ARP of other hardware", of(own, patched(arpFull(1, own, pod4, "192.0.2.1"), ethLen+1, 6)), epMalformed},
		{"ARP of another protocol", of(own, patched(arpFull(1, own, pod4, "192.0.2.1"), ethLen+3, 1)), epMalformed},
		{"ARP of longer MACs", of(own, patched(arpFull(1, own, pod4, "192.0.2.1"), ethLen+4, 8)), epMalformed},
		{"ARP of longer addresses", of(own, patched(arpFull(1, own, pod4, "192.0.2.1"), ethLen+5, 16)), epMalformed},

		{"VLAN", of(own, ether(0x8100, v4{src: pod4, proto: 17}.frame(dgram)[12:]...)), epEthertype},
		{"802.1ad", of(own, ether(0x88a8, make([]byte, 40)...)), epEthertype},
		{"RARP", of(own, ether(0x8035, make([]byte, 40)...)), epEthertype},
		{"EAPOL", of(own, ether(0x888e, make([]byte, 40)...)), epEthertype},
		{"802.3 frame", of(own, ether(40, make([]byte, 40)...)), epEthertype},
		{"spanning tree", of(own, ether(38, append([]byte{0x42, 0x42, 3}, make([]byte, 35)...)...)), epEthertype},
		{"MPLS of another MAC", of(other, ether(0x8847, make([]byte, 40)...)), epMAC},
	}
}

type endpointCase struct {
	name  string
	frame []byte
	want  int
}

func dualStack(flags uint8) Endpoint {
	return NewEndpoint(epMACAddr, netip.MustParseAddr(pod4), netip.MustParseAddr(pod6), flags)
}

func TestEndpoint(t *testing.T) {
	f := loadEndpoints(t)
	cases := endpointCases()
	f.set(t, dualStack(EndpointOpen))
	for _, c := range cases {
		f.judge(t, c.name, f.From, c.frame, c.want)
		f.judge(t, "to it: "+c.name, f.To, c.frame, passes)
		if got := modelEndpoint(dualStack(EndpointOpen), c.frame); got != c.want {
			t.Errorf("%s: the model says %d, want %d", c.name, got, c.want)
		}
	}
	// Whatever else its flags may say.
	for _, flags := range []uint8{0, ^EndpointOpen} {
		f.set(t, dualStack(flags))
		for _, c := range cases {
			f.judge(t, "closed: "+c.name, f.From, c.frame, epClosed)
			f.judge(t, "closed, to it: "+c.name, f.To, c.frame, epClosed)
		}
	}
}

// An endpoint that nobody knows is not open, and one without addresses of a
// family does not have the address 0.
func TestEndpointWithout(t *testing.T) {
	f := loadEndpoints(t)
	for _, c := range endpointCases() {
		for name, p := range map[string]*ebpf.Program{"from": f.From, "to": f.To} {
			r, err := p.Run(&ebpf.RunOptions{Data: c.frame})
			if refused(c.frame, err) {
				continue
			}
			if got := int32(r); err != nil || got != devDrop {
				t.Errorf("no entry, %s: %s: the verdict is %d (%v), want drop", name, c.name, got, err)
			}
		}
	}
	none := netip.Addr{}
	own, dgram := epMACAddr, udp(1234, 53, 'x')
	f.set(t, NewEndpoint(own, none, netip.MustParseAddr(pod6), EndpointOpen))
	f.judge(t, "no IPv4", f.From, of(own, v4{src: pod4, proto: 17}.frame(dgram)), epAddress)
	f.judge(t, "no IPv4, of nobody", f.From, of(own, v4{src: "0.0.0.0", proto: 17}.frame(dgram)), epAddress)
	f.judge(t, "no IPv4, ARP", f.From, of(own, arpFull(1, own, pod4, pod4)), epAddress)
	f.judge(t, "no IPv4, ARP probe", f.From, of(own, arpFull(1, own, "0.0.0.0", "0.0.0.0")), epAddress)
	f.judge(t, "no IPv4, IPv6", f.From, of(own, v6{src: pod6, next: 17}.frame(dgram)), passes)
	f.set(t, NewEndpoint(own, netip.MustParseAddr(pod4), none, EndpointOpen))
	f.judge(t, "no IPv6", f.From, of(own, v6{src: pod6, next: 17}.frame(dgram)), epAddress)
	f.judge(t, "no IPv6, of nobody", f.From, of(own, v6{src: "::", next: 17}.frame(dgram)), epAddress)
	f.judge(t, "no IPv6, advertisement of ::", f.From, of(own, discovery(linkLocal, 136, "::")), epAddress)
	f.judge(t, "no IPv6, solicitation", f.From, of(own, v6{src: linkLocal, next: 58}.frame(icmp6(133))), passes)
	f.judge(t, "no IPv6, IPv4", f.From, of(own, v4{src: pod4, proto: 17}.frame(dgram)), passes)
	// Without counters the verdict is the same.
	if err := f.Counters.Delete(loIndex); err != nil {
		t.Fatal(err)
	}
	if got := runSkb(t, f.From, of(own, v6{src: pod6, next: 17}.frame(dgram))); got != devDrop {
		t.Errorf("without counters the verdict is %d, want drop", got)
	}
}

// modelEndpoint is src/endpoint.bpf.c once more, from the RFCs, for an open
// endpoint and frames of Ethernet's length at least.
func modelEndpoint(e Endpoint, frame []byte) int {
	if !bytes.Equal(frame[6:12], e.Mac[:]) {
		return epMAC
	}
	own4 := netip.AddrFrom16(e.V4.B).Unmap()
	own6 := netip.AddrFrom16(e.V6.B)
	has6 := func(a netip.Addr) bool { return !a.IsUnspecified() && a == own6 }
	b := frame[ethLen:]
	switch etherType(frame) {
	case unix.ETH_P_ARP:
		if len(b) < 28 || !bytes.Equal(b[:6], []byte{0, 1, 8, 0, 6, 4}) {
			return epMalformed
		}
		sha, spa, tpa := b[8:14], netip.AddrFrom4([4]byte(b[14:])), netip.AddrFrom4([4]byte(b[24:]))
		probe := spa.IsUnspecified() && binary.BigEndian.Uint16(b[6:]) == 1 && tpa == own4
		if !own4.Is4() || !bytes.Equal(sha, e.Mac[:]) || spa != own4 && !probe {
			return epAddress
		}
		return passes
	case unix.ETH_P_IP:
		if len(b) < 20 {
			return epMalformed
		}
		if netip.AddrFrom4([4]byte(b[12:])) != own4 {
			return epAddress
		}
		return passes
	case unix.ETH_P_IPV6:
		p, ok := parsePacket(frame)
		if !ok {
			return epMalformed
		}
		icmp := p.proto == unix.IPPROTO_ICMPV6
		local := p.src.IsUnspecified() || p.src.IsLinkLocalUnicast()
		if !has6(p.src) && !(local && icmp) {
			return epAddress
		}
		if !icmp || p.fragment || p.icmp < 133 || p.icmp > 137 {
			return passes
		}
		if b[6] != unix.IPPROTO_ICMPV6 || p.icmp == 134 || p.icmp == 137 {
			return epAddress
		}
		if p.icmp == 133 || p.icmp == 135 && !p.src.IsUnspecified() {
			return passes
		}
		if len(b) < 64 {
			return epMalformed
		}
		if target := netip.AddrFrom16([16]byte(b[48:])); !target.IsLinkLocalUnicast() && !has6(target) {
			return epAddress
		}
		return passes
	}
	return epEthertype
}

// FuzzEndpoint compares the programs with the model, on frames that are nearly
// the endpoint's and on any others.
func FuzzEndpoint(f *testing.F) {
	for _, c := range endpointCases() {
		f.Add(c.frame)
	}
	for _, s := range seeds(200, 300) {
		f.Add(s)
	}
	x := loadEndpoints(f)
	e := dualStack(EndpointOpen)
	x.set(f, e)
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		for _, frame := range [][]byte{data[:min(len(data), 1500)], d.frame()} {
			if len(frame) < ethLen {
				if r, err := x.From.Run(&ebpf.RunOptions{Data: frame}); err == nil && int32(r) != devDrop {
					t.Errorf("the verdict is %d, want drop, on %x", int32(r), frame)
				}
				continue
			}
			x.judge(t, "as it is", x.From, frame, modelEndpoint(e, frame))
			own := of(epMACAddr, frame)
			x.judge(t, "of its MAC", x.From, own, modelEndpoint(e, own))
			if etherType(own) == unix.ETH_P_IPV6 && len(own) >= ethLen+40 {
				copy(own[ethLen+8:], e.V6.B[:])
				x.judge(t, "of its address", x.From, own, modelEndpoint(e, own))
			}
		}
	})
}

func TestEndpointObject(t *testing.T) {
	spec := parse(t, loadEndpoint)
	for name, g := range map[string]reflect.Type{
		"sg_addr": reflect.TypeFor[Addr](), "sg_endpoint": reflect.TypeFor[Endpoint](), "sg_endpoint_counters": reflect.TypeFor[EndpointCounters](),
	} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Error(err)
			continue
		}
		wantLayout(t, name, c, g)
	}
	e := new(Endpoints)
	if got, want := names(e.Programs()), names(spec.Programs); !slices.Equal(got, want) {
		t.Errorf("Endpoints has the programs %q, the object %q", got, want)
	}
	// All others are the node's.
	node := nodeSpec(t)
	for name := range spec.Maps {
		_, own := e.Maps()[name]
		if _, ok := node.Maps[name]; ok == own {
			t.Errorf("map %s: the node has it: %v, Endpoints: %v", name, ok, own)
		}
	}
	drops := enumValues(t, spec, "sg_endpoint_drop")
	if n := drops["SG_ENDPOINT_DROPS"]; n != uint64(len(EndpointDrops())) || n != uint64(len(EndpointCounters{}.V)) {
		t.Errorf("there are %d reasons and %d names", n, len(EndpointDrops()))
	}
	for i, want := range []string{"SG_ENDPOINT_CLOSED", "SG_ENDPOINT_MAC", "SG_ENDPOINT_ADDRESS", "SG_ENDPOINT_ETHERTYPE", "SG_ENDPOINT_MALFORMED"} {
		if got, ok := drops[want]; !ok || got != uint64(i) {
			t.Errorf("%s is %d, want %d, %s", want, got, i, EndpointDrops()[i])
		}
	}
}

// The programs use no map but their own: loading them makes no other.
func TestEndpointMaps(t *testing.T) {
	f := loadEndpoints(t)
	for name, p := range f.Programs() {
		info, err := (*p).Info()
		if err != nil {
			t.Fatal(err)
		}
		if ids, _ := info.MapIDs(); len(ids) > 2 {
			t.Errorf("program %s has %d maps", name, len(ids))
		}
	}
}
