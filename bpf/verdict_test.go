// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA4000 two draws from one stream are two numbers

package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
)

const unknownRole = 6 // the first number that is no role

// What else a protocol may be.
const (
	sctp    = unix.IPPROTO_SCTP
	udpLite = unix.IPPROTO_UDPLITE
	gre     = unix.IPPROTO_GRE
)

// run runs a function in the kernel.
func run(t testing.TB, j *verdicts.Judge, name string, c verdicts.Case) answer {
	t.Helper()
	if err := j.Run(name, &c); err != nil {
		t.Fatal(err)
	}
	return answer{verdict{c.Action, Counter(c.Counter)}, c.Yes != 0, c.Steer}
}

// check compares the kernel's answer, and the model's, with want.
func check(t *testing.T, j *verdicts.Judge, name string, c verdicts.Case, want answer) {
	t.Helper()
	if m, ok := model(name, &c); !ok {
		t.Fatalf("the model knows no %s", name)
	} else if m != want {
		t.Errorf("model: %s is %+v, want %+v, of %+v", name, m, want, c)
	}
	if got := run(t, j, name, c); got != want {
		t.Errorf("%s is %+v, want %+v, of %+v", name, got, want, c)
	}
}

func TestFunctions(t *testing.T) {
	f := loaded(t)
	names := f.judge.Functions()
	if len(names) != 12 {
		t.Errorf("%d functions, want 12: %q", len(names), names)
	}
	for _, name := range names {
		if _, ok := model(name, new(verdicts.Case)); !ok {
			t.Errorf("the model knows no %s", name)
		}
	}
}

func TestAddresses(t *testing.T) {
	j := loaded(t).judge
	for _, c := range []struct {
		addr         string
		loopback, v4 bool
	}{
		{"127.0.0.1", true, true},
		{"127.0.0.0", true, true},
		{"127.255.255.255", true, true},
		{"126.255.255.255", false, true},
		{"128.0.0.0", false, true},
		{"0.0.0.0", true, true},
		{"0.0.0.1", false, true},
		{"0.127.0.0", false, true},
		{"10.0.0.1", false, true},
		{"255.255.255.255", false, true},
		{"::1", true, false},
		{"::", true, false},
		{"::2", false, false},
		{"::100", false, false},
		{"::127.0.0.1", false, false}, // v4-compatible, not v4-mapped
		{"::fffe:7f00:1", false, false},
		{"::ff00:7f00:1", false, false},
		{"0:0:0:0:1:ffff:7f00:1", false, false},
		{"1::ffff:7f00:1", false, false},
		{"64:ff9b::7f00:1", false, false},
		{"8000::1", false, false},
		{"fe80::1", false, false},
		{"2001:db8::1", false, false},
	} {
		in := verdicts.Case{Addr: verdicts.Addr{B: netip.MustParseAddr(c.addr).As16()}}
		t.Run(c.addr, func(t *testing.T) {
			check(t, j, "loopback", in, answer{yes: c.loopback})
			check(t, j, "v4", in, answer{yes: c.v4})
		})
	}
	// Any one bit away from a loopback address of IPv6 is another address.
	for bit := range 127 {
		in := verdicts.Case{Addr: verdicts.Addr{B: netip.MustParseAddr("::1").As16()}}
		in.Addr.B[bit/8] ^= 0x80 >> (bit % 8)
		check(t, j, "loopback", in, answer{})
	}
}

func ports(pairs ...uint16) (r [MaxReserved]verdicts.Ports, n uint16) {
	for i := 0; i < len(pairs); i += 2 {
		r[n] = verdicts.Ports{Lo: pairs[i], Hi: pairs[i+1]}
		n++
	}
	return r, n
}

// meshPolicy is for a sidecar like Envoy: 15090 and 15020 to 15021 are the
// sidecar's own business.
func meshPolicy() verdicts.Policy {
	p := verdicts.Policy{Outbound: 15001, Inbound: 15006, Dns: 15053}
	p.Reserved, p.Nreserved = ports(15001, 15001, 15006, 15006, 15053, 15053, 15090, 15090, 15020, 15021)
	return p
}

func TestReserved(t *testing.T) {
	j := loaded(t).judge
	full, fullN := ports(1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15, 17, 17, 19, 19, 21, 21, 23, 23)
	mesh := meshPolicy()
	for _, c := range []struct {
		name     string
		reserved [MaxReserved]verdicts.Ports
		n        uint16
		yes, no  []uint16
	}{
		{"mesh", mesh.Reserved, mesh.Nreserved,
			[]uint16{15001, 15006, 15020, 15021, 15053, 15090},
			[]uint16{0, 1, 80, 15000, 15002, 15019, 15022, 15089, 15091, 65535}},
		{"none", [MaxReserved]verdicts.Ports{{Lo: 0, Hi: 65535}}, 0, nil, []uint16{0, 1, 80, 65535}},
		{"beyond the number", full, 2, []uint16{1, 3}, []uint16{5, 23}},
		{"full", full, fullN, []uint16{1, 11, 21, 23}, []uint16{2, 22, 24}},
		{"more than there is room for", full, 65535, []uint16{1, 23}, []uint16{2, 24}},
		{"all ports", [MaxReserved]verdicts.Ports{{Lo: 0, Hi: 65535}}, 1, []uint16{0, 1, 32767, 32768, 65535}, nil},
		{"upside down", [MaxReserved]verdicts.Ports{{Lo: 90, Hi: 80}}, 1, nil, []uint16{80, 85, 90}},
		{"high", [MaxReserved]verdicts.Ports{{Lo: 65535, Hi: 65535}}, 1, []uint16{65535}, []uint16{65534, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := verdicts.Case{Policy: verdicts.Policy{Reserved: c.reserved, Nreserved: c.n}}
			for _, in.Port = range c.yes {
				check(t, j, "reserved", in, answer{yes: true})
			}
			for _, in.Port = range c.no {
				check(t, j, "reserved", in, answer{})
			}
		})
	}
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// otherRoles are all roles but the app's, and numbers that are none.
var otherRoles = []struct {
	name string
	role uint32
	free bool
	deny verdict
}{
	{"dead", uint32(RoleDead), false, denyUnregistered},
	{"sidecar", uint32(RoleSidecar), true, verdict{}},
	{"exempt", uint32(RoleExempt), true, verdict{}},
	{"denied", uint32(RoleDenied), false, denyInit},
	{"the relay's", unknownRole, false, denyUnregistered},
	{"unknown 255", 255, false, denyUnregistered},
	{"unknown 257", 257, false, denyUnregistered}, // 1 as one byte
	{"unknown 2^32-1", 1<<32 - 1, false, denyUnregistered},
}

func TestSocket(t *testing.T) {
	j := loaded(t).judge
	kinds := []struct {
		name        string
		kind, proto uint32
		want        verdict
	}{
		{"TCP", unix.SOCK_STREAM, unix.IPPROTO_TCP, allow},
		{"UDP", unix.SOCK_DGRAM, unix.IPPROTO_UDP, allow},
		{"ping", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, denyICMP},
		{"ping6", unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, denyICMP},
		{"raw ICMP", unix.SOCK_RAW, unix.IPPROTO_ICMP, denyRaw},
		{"raw TCP", unix.SOCK_RAW, unix.IPPROTO_TCP, denyRaw},
		{"raw UDP", unix.SOCK_RAW, unix.IPPROTO_UDP, denyRaw},
		{"raw", unix.SOCK_RAW, unix.IPPROTO_RAW, denyRaw},
		{"MPTCP", unix.SOCK_STREAM, unix.IPPROTO_MPTCP, denyProtocol},
		{"SCTP", unix.SOCK_STREAM, sctp, denyProtocol},
		{"SCTP of messages", unix.SOCK_SEQPACKET, sctp, denyProtocol},
		{"UDP-Lite", unix.SOCK_DGRAM, udpLite, denyProtocol},
		{"DCCP", unix.SOCK_DCCP, unix.IPPROTO_DCCP, denyProtocol},
		{"TCP as datagrams", unix.SOCK_DGRAM, unix.IPPROTO_TCP, denyProtocol},
		{"UDP as a stream", unix.SOCK_STREAM, unix.IPPROTO_UDP, denyProtocol},
		{"L2TP", unix.SOCK_DGRAM, unix.IPPROTO_L2TP, denyProtocol},
		{"nothing", 0, 0, denyProtocol},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			in := verdicts.Case{Role: uint32(RoleApp), Type: k.kind, Proto: k.proto, Policy: meshPolicy()}
			check(t, j, "socket", in, answer{verdict: k.want})
			in.Policy.Flags = PolicyNonTCP
			want := k.want
			if want == denyICMP {
				want = allow
			}
			check(t, j, "socket", in, answer{verdict: want})
			for _, r := range otherRoles {
				in.Role = r.role
				want := r.deny
				switch {
				case r.free && k.proto == unix.IPPROTO_MPTCP:
					want = denyProtocol // for whoever it is
				case r.free:
					want = allow
				}
				check(t, j, "socket", in, answer{verdict: want})
			}
		})
	}
}

// A container with rules has sockets for what they are about, whatever its role
// and whatever else the policy lets apps do.
func TestSocketOfRuled(t *testing.T) {
	j := loaded(t).judge
	const icmp4, icmp6, streams = SubjectRuled | SubjectICMP, SubjectRuled | SubjectICMPv6, SubjectRuled | SubjectSCTP
	for _, c := range []struct {
		name        string
		kind, proto uint32
		flags       uint16
		want        verdict
	}{
		{"TCP", unix.SOCK_STREAM, unix.IPPROTO_TCP, SubjectRuled, allow},
		{"UDP", unix.SOCK_DGRAM, unix.IPPROTO_UDP, SubjectRuled, allow},
		{"ping", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, SubjectRuled, denyICMP},
		{"ping by a rule", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, icmp4, allow},
		{"ping by a rule for ICMPv6", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, icmp6, denyICMP},
		{"ping6", unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, SubjectRuled, denyICMP},
		{"ping6 by a rule", unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, icmp6, allow},
		{"ping6 by a rule for ICMP", unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, icmp4, denyICMP},
		{"raw ICMP", unix.SOCK_RAW, unix.IPPROTO_ICMP, SubjectRuled, denyICMP},
		{"raw ICMP by a rule", unix.SOCK_RAW, unix.IPPROTO_ICMP, icmp4, allow},
		{"raw ICMPv6 by a rule", unix.SOCK_RAW, unix.IPPROTO_ICMPV6, icmp6, allow},
		{"raw TCP", unix.SOCK_RAW, unix.IPPROTO_TCP, icmp4 | icmp6 | streams, denyRaw},
		{"raw UDP", unix.SOCK_RAW, unix.IPPROTO_UDP, icmp4 | icmp6 | streams, denyRaw},
		{"raw SCTP", unix.SOCK_RAW, sctp, streams, denyRaw},
		{"raw", unix.SOCK_RAW, unix.IPPROTO_RAW, icmp4 | icmp6 | streams, denyRaw},
		{"SCTP", unix.SOCK_STREAM, sctp, icmp4 | icmp6, denyProtocol},
		{"SCTP by a rule", unix.SOCK_STREAM, sctp, streams, allow},
		{"SCTP of messages by a rule", unix.SOCK_SEQPACKET, sctp, streams, allow},
		{"MPTCP", unix.SOCK_STREAM, unix.IPPROTO_MPTCP, streams, denyProtocol},
		{"UDP-Lite", unix.SOCK_DGRAM, udpLite, streams, denyProtocol},
		{"DCCP", unix.SOCK_DCCP, unix.IPPROTO_DCCP, streams, denyProtocol},
		{"TCP as datagrams", unix.SOCK_DGRAM, unix.IPPROTO_TCP, SubjectRuled, denyProtocol},
		{"UDP as a stream", unix.SOCK_STREAM, unix.IPPROTO_UDP, SubjectRuled, denyProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, flags := range []uint32{0, PolicyNonTCP, PolicyAudit} {
				in := verdicts.Case{Flags: uint32(c.flags), Type: c.kind, Proto: c.proto}
				in.Policy.Flags = flags
				for _, role := range []Role{RoleApp, RoleSidecar, RoleExempt} {
					in.Role = uint32(role)
					check(t, j, "socket", in, answer{verdict: c.want})
				}
				for _, r := range otherRoles {
					if in.Role = r.role; !r.free {
						check(t, j, "socket", in, answer{verdict: r.deny})
					}
				}
			}
		})
	}
}

// Families that have hooks of their own, or lead nowhere, are free; others are for
// containers that no policy binds.
func TestFamily(t *testing.T) {
	j := loaded(t).judge
	known := []uint32{
		unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_KEY, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG, unix.AF_XDP,
	}
	families := []uint32{63, 64, 65, 64 + unix.AF_UNIX, 1<<32 - 1}
	for f := range uint32(unix.AF_MAX) + 1 {
		families = append(families, f)
	}
	for role := range uint32(8) {
		for _, flags := range []uint16{0, SubjectRuled, SubjectICMP, SubjectRuled | SubjectSCTP} {
			free := (role == uint32(RoleSidecar) || role == uint32(RoleExempt)) && flags&SubjectRuled == 0
			for _, family := range families {
				want := denyProtocol
				if free || slices.Contains(known, family) {
					want = allow
				}
				check(t, j, "family", verdicts.Case{Role: role, Flags: uint32(flags), Proto: family}, answer{verdict: want})
			}
			if _, hooked := FamilyHook(Role(role), flags&SubjectRuled != 0); hooked == free {
				t.Errorf("role %d, flags %d: it is hooked: %t", role, flags, hooked)
			}
		}
	}
}

// A process of another container has none, whatever it executes.
func TestSocketOfStranger(t *testing.T) {
	j := loaded(t).judge
	for _, role := range []Role{RoleApp, RoleSidecar, RoleExempt} {
		for _, flags := range []uint16{0, SubjectRuled, SubjectProcesses, SubjectRuled | SubjectProcesses} {
			for _, kind := range []uint32{unix.SOCK_STREAM, unix.SOCK_RAW} {
				in := verdicts.Case{Role: uint32(role), Flags: uint32(flags), Type: kind, Proto: unix.IPPROTO_TCP, Stranger: 1, ProcessOk: 1}
				check(t, j, "socket", in, answer{verdict: denyStranger})
			}
		}
	}
	for _, r := range otherRoles {
		if in := (verdicts.Case{Role: r.role, Stranger: 1}); !r.free {
			check(t, j, "socket", in, answer{verdict: r.deny})
		}
	}
}

// An executable that may have no sockets has none, rules or not.
func TestSocketOfExecutable(t *testing.T) {
	j := loaded(t).judge
	for _, role := range []Role{RoleApp, RoleSidecar, RoleExempt} {
		for _, flags := range []uint16{0, SubjectRuled} {
			in := verdicts.Case{Role: uint32(role), Flags: uint32(flags), Type: unix.SOCK_STREAM, Proto: unix.IPPROTO_TCP}
			check(t, j, "socket", in, answer{verdict: allow}) // nobody asked
			in.Flags |= uint32(SubjectProcesses)
			check(t, j, "socket", in, answer{verdict: denyProcess})
			in.ProcessOk = 1
			check(t, j, "socket", in, answer{verdict: allow})
			// It may then do what others may.
			in.Type = unix.SOCK_RAW
			want := denyRaw
			if role != RoleApp && flags == 0 {
				want = allow
			}
			check(t, j, "socket", in, answer{verdict: want})
		}
	}
	for _, r := range otherRoles {
		if in := (verdicts.Case{Role: r.role, Flags: uint32(SubjectProcesses)}); !r.free {
			check(t, j, "socket", in, answer{verdict: r.deny})
		}
	}
}

func TestInsideVerdict(t *testing.T) {
	j := loaded(t).judge
	for inside, want := range map[verdicts.Inside]verdict{
		verdicts.InsideAllow: allowLocal, verdicts.InsideEgress: denyPolicyEgress, verdicts.InsideIngress: denyPolicyIngress,
		3: denyPolicyIngress, 255: denyPolicyIngress, // what is no answer lets nothing through
	} {
		check(t, j, "inside", verdicts.Case{Inside: inside, Count: uint32(allowLocal.counter)}, answer{verdict: want})
	}
}

func TestConnect(t *testing.T) {
	j := loaded(t).judge
	const dns, nonTCP, noDNS = 1, 2, 4
	for _, c := range []struct {
		name string
		flow verdicts.Flow
		opts int
		want verdict
	}{
		{"TCP", verdicts.Flow{Proto: 6, Port: 443}, 0, redirect},
		{"TCP to port 53", verdicts.Flow{Proto: 6, Port: 53}, 0, redirect},
		{"TCP to port 0", verdicts.Flow{Proto: 6}, 0, redirect},
		{"TCP where other things go directly", verdicts.Flow{Proto: 6, Port: 443}, nonTCP, redirect},
		{"TCP inside the pod", verdicts.Flow{Proto: 6, Port: 8080, Local: 1}, 0, allowLocal},
		{"TCP by exclusion", verdicts.Flow{Proto: 6, Port: 443, Excluded: 1}, 0, allowDirect},
		{"TCP inside the pod, excluded", verdicts.Flow{Proto: 6, Local: 1, Excluded: 1}, 0, allowLocal},
		{"a rule of a container that has none", verdicts.Flow{Proto: 6, Port: 443, Permitted: 1}, 0, redirect},
		{"UDP", verdicts.Flow{Proto: 17, Port: 4433}, 0, denyUDP},
		{"UDP by exclusion", verdicts.Flow{Proto: 17, Port: 4433, Excluded: 1}, 0, allowDirect},
		{"UDP with a rule of a container that has none", verdicts.Flow{Proto: 17, Port: 4433, Permitted: 1}, 0, denyUDP},
		{"UDP inside the pod", verdicts.Flow{Proto: 17, Port: 53, Local: 1}, 0, allowLocal},
		{"UDP where it goes directly", verdicts.Flow{Proto: 17, Port: 4433}, nonTCP, allowDirect},
		{"DNS", verdicts.Flow{Proto: 17, Port: 53}, 0, redirectDNS},
		{"DNS by exclusion", verdicts.Flow{Proto: 17, Port: 53, Excluded: 1}, 0, allowDirect},
		{"DNS where UDP goes directly", verdicts.Flow{Proto: 17, Port: 53}, nonTCP, redirectDNS},
		{"DNS of a pod that does not redirect it", verdicts.Flow{Proto: 17, Port: 53}, noDNS, denyUDP},
		{"such DNS where UDP goes directly", verdicts.Flow{Proto: 17, Port: 53}, noDNS | nonTCP, allowDirect},
		{"ICMP", verdicts.Flow{Proto: 1}, 0, denyICMP},
		{"ICMPv6", verdicts.Flow{Proto: 58}, 0, denyICMP},
		{"ICMP where it goes directly", verdicts.Flow{Proto: 1}, nonTCP, allowDirect},
		{"ICMPv6 where it goes directly", verdicts.Flow{Proto: 58}, nonTCP, allowDirect},
		{"SCTP", verdicts.Flow{Proto: sctp, Port: 53}, 0, denyProtocol},
		{"SCTP where other things go directly", verdicts.Flow{Proto: sctp}, nonTCP, denyProtocol},
		{"UDP-Lite", verdicts.Flow{Proto: udpLite, Port: 53}, nonTCP, denyProtocol},
		{"GRE", verdicts.Flow{Proto: gre}, nonTCP, denyProtocol},
		{"protocol 0", verdicts.Flow{}, nonTCP, denyProtocol},
		{"protocol 255", verdicts.Flow{Proto: 255}, nonTCP, denyProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := verdicts.Case{Role: uint32(RoleApp), Flow: c.flow, Policy: meshPolicy()}
			if c.opts&nonTCP != 0 {
				in.Policy.Flags |= PolicyNonTCP
			}
			if c.opts&noDNS != 0 {
				in.Policy.Dns = 0
			}
			in.Policy.Flags |= PolicySockName | PolicyRuled | PolicyAudit // say nothing about this
			check(t, j, "connect", in, answer{verdict: c.want})
			for _, r := range otherRoles {
				in.Role = r.role
				want := r.deny
				switch {
				case r.free && c.flow.Local != 0:
					want = allowLocal
				case r.free:
					want = allowDirect
				}
				check(t, j, "connect", in, answer{verdict: want})
			}
		})
	}
}

// A container with rules may what they let it; which way that goes, the rest of
// its policy says. Everybody else may go directly.
func TestConnectOfRuled(t *testing.T) {
	j := loaded(t).judge
	const egress, ingress = uint8(verdicts.InsideEgress), uint8(verdicts.InsideIngress)
	for _, c := range []struct {
		name         string
		flow         verdicts.Flow
		app, sidecar verdict
	}{
		{"TCP without a rule", verdicts.Flow{Proto: 6, Port: 443}, denyPolicyEgress, denyPolicyEgress},
		{"TCP by rule", verdicts.Flow{Proto: 6, Port: 443, Permitted: 1}, redirect, allowDirect},
		{"TCP, excluded, without a rule", verdicts.Flow{Proto: 6, Port: 443, Excluded: 1}, denyPolicyEgress, denyPolicyEgress},
		{"TCP, excluded, by rule", verdicts.Flow{Proto: 6, Port: 443, Excluded: 1, Permitted: 1}, allowDirect, allowDirect},
		{"DNS without a rule", verdicts.Flow{Proto: 17, Port: 53}, denyPolicyEgress, denyPolicyEgress},
		{"DNS by rule", verdicts.Flow{Proto: 17, Port: 53, Permitted: 1}, redirectDNS, allowDirect},
		{"DNS, excluded, by rule", verdicts.Flow{Proto: 17, Port: 53, Excluded: 1, Permitted: 1}, allowDirect, allowDirect},
		{"UDP without a rule", verdicts.Flow{Proto: 17, Port: 4433}, denyPolicyEgress, denyPolicyEgress},
		{"UDP by rule", verdicts.Flow{Proto: 17, Port: 4433, Permitted: 1}, allowDirect, allowDirect},
		{"ICMP without a rule", verdicts.Flow{Proto: 1}, denyPolicyEgress, denyPolicyEgress},
		{"ICMP by rule", verdicts.Flow{Proto: 1, Permitted: 1}, allowDirect, allowDirect},
		{"ICMPv6 by rule", verdicts.Flow{Proto: 58, Permitted: 1}, allowDirect, allowDirect},
		{"SCTP by rule", verdicts.Flow{Proto: sctp, Port: 53, Permitted: 1}, allowDirect, allowDirect},
		{"SCTP without a rule", verdicts.Flow{Proto: sctp, Port: 53}, denyPolicyEgress, denyPolicyEgress},
		{"inside the pod", verdicts.Flow{Proto: 6, Local: 1}, allowLocal, allowLocal},
		{"inside the pod, the sender may not", verdicts.Flow{Proto: 6, Local: 1, Inside: egress, Permitted: 1, Excluded: 1}, denyPolicyEgress, denyPolicyEgress},
		{"inside the pod, the receiver wants it not", verdicts.Flow{Proto: 17, Local: 1, Inside: ingress, Permitted: 1, Excluded: 1}, denyPolicyIngress, denyPolicyIngress},
	} {
		t.Run(c.name, func(t *testing.T) {
			// That apps may send UDP directly is not said of one with rules.
			for _, flags := range []uint32{PolicyRuled, PolicyRuled | PolicyNonTCP} {
				in := verdicts.Case{Role: uint32(RoleApp), Flow: c.flow, Policy: meshPolicy()}
				in.Policy.Flags, in.Flow.Ruled = flags, 1
				check(t, j, "connect", in, answer{verdict: c.app})
				for _, r := range otherRoles {
					in.Role = r.role
					want := r.deny
					if r.free {
						want = c.sidecar
					}
					check(t, j, "connect", in, answer{verdict: want})
				}
			}
		})
	}
	// The receiver's rules are for a sender without any.
	in := verdicts.Case{Role: uint32(RoleExempt), Flow: verdicts.Flow{Proto: 6, Local: 1, Inside: ingress}}
	check(t, j, "connect", in, answer{verdict: denyPolicyIngress})
}

func TestBind(t *testing.T) {
	j := loaded(t).judge
	in := verdicts.Case{Policy: meshPolicy()}
	for _, c := range []struct {
		name         string
		role         uint32
		free, theirs verdict // a port that is free, and one of the sidecar
	}{
		{"app", uint32(RoleApp), allow, denyBind},
		{"sidecar", uint32(RoleSidecar), allow, allow},
		{"exempt", uint32(RoleExempt), allow, denyBind},
		{"dead", uint32(RoleDead), denyUnregistered, denyUnregistered},
		{"denied", uint32(RoleDenied), denyInit, denyInit},
		{"the relay's", uint32(RoleRelay), denyUnregistered, denyUnregistered},
		{"unknown 6", unknownRole, denyUnregistered, denyUnregistered},
		{"unknown 257", 257, denyUnregistered, denyUnregistered},
		{"unknown 2^32-1", 1<<32 - 1, denyUnregistered, denyUnregistered},
	} {
		t.Run(c.name, func(t *testing.T) {
			in.Role = c.role
			for _, in.Port = range []uint16{0, 80, 8080, 15000, 15002, 65535} {
				check(t, j, "bind", in, answer{verdict: c.free})
			}
			for _, in.Port = range []uint16{15001, 15006, 15053, 15090, 15020, 15021} {
				check(t, j, "bind", in, answer{verdict: c.theirs})
			}
		})
	}
	// Port 0 lets the kernel choose, also where a range has it.
	in.Policy.Reserved, in.Policy.Nreserved = ports(0, 1023)
	in.Role, in.Port = uint32(RoleApp), 0
	check(t, j, "bind", in, answer{verdict: allow})
	in.Port = 1
	check(t, j, "bind", in, answer{verdict: denyBind})

	t.Run("the relay's port is nobody's", func(t *testing.T) {
		in := verdicts.Case{Policy: meshPolicy(), Role: uint32(RoleSidecar), Port: 15443}
		check(t, j, "bind", in, answer{verdict: allow})
		in.Policy.Tls = 15443
		check(t, j, "bind", in, answer{verdict: denyBind})
		in.Port = 15001
		check(t, j, "bind", in, answer{verdict: allow})
		in.Port, in.Policy.Tls = 0, 0
		check(t, j, "bind", in, answer{verdict: allow})
	})
}

func TestPackets(t *testing.T) {
	j := loaded(t).judge
	const nonTCP = true
	for _, c := range []struct {
		name    string
		flow    verdicts.Flow
		nonTCP  bool
		out, in verdict
	}{
		{"TCP", verdicts.Flow{Proto: 6, Port: 80}, false, denyEgress, denyIngress},
		{"TCP where other things go directly", verdicts.Flow{Proto: 6, Port: 80}, nonTCP, denyEgress, denyIngress},
		{"TCP inside the pod, on lo", verdicts.Flow{Proto: 6, Local: 1, LoopbackDevice: 1}, false, allow, allow},
		{"own address, on another device", verdicts.Flow{Proto: 6}, false, denyEgress, denyIngress},
		{"other address, on lo", verdicts.Flow{Proto: 6, LoopbackDevice: 1}, false, denyEgress, denyIngress},
		{"UDP to another address, on lo", verdicts.Flow{Proto: 17, LoopbackDevice: 1}, nonTCP, denyEgress, denyIngress},
		{"by exclusion", verdicts.Flow{Proto: 6, Excluded: 1}, false, allow, allow},
		{"by a rule of a container that has none", verdicts.Flow{Proto: 6, Permitted: 1}, false, denyEgress, denyIngress},
		{"UDP", verdicts.Flow{Proto: 17}, false, denyEgress, denyIngress},
		{"UDP where it goes directly", verdicts.Flow{Proto: 17}, nonTCP, allow, allow},
		{"ICMP", verdicts.Flow{Proto: 1}, false, denyEgress, denyIngress},
		{"ICMP where it goes directly", verdicts.Flow{Proto: 1}, nonTCP, allow, allow},
		{"ICMPv6 where it goes directly", verdicts.Flow{Proto: 58}, nonTCP, allow, allow},
		{"SCTP where other things go directly", verdicts.Flow{Proto: sctp}, nonTCP, denyEgress, denyIngress},
		{"GRE where other things go directly", verdicts.Flow{Proto: gre}, nonTCP, denyEgress, denyIngress},
		{"protocol 0 where other things go directly", verdicts.Flow{}, nonTCP, denyEgress, denyIngress},
		{"fragment", verdicts.Flow{Proto: 17, Fragment: 1}, false, denyFragment, denyFragment},
		{"fragment of TCP", verdicts.Flow{Proto: 6, Fragment: 1}, nonTCP, denyFragment, denyFragment},
		{"fragment by exclusion", verdicts.Flow{Proto: 17, Fragment: 1, Excluded: 1}, false, allow, allow},
		{"fragment where UDP goes directly", verdicts.Flow{Proto: 17, Fragment: 1}, nonTCP, allow, allow},
		{"fragment on lo", verdicts.Flow{Proto: 17, Fragment: 1, Local: 1, LoopbackDevice: 1}, false, allow, allow},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := verdicts.Case{Role: uint32(RoleApp), Flow: c.flow, Policy: meshPolicy()}
			if c.nonTCP {
				in.Policy.Flags |= PolicyNonTCP
			}
			check(t, j, "packet_out", in, answer{verdict: c.out})
			check(t, j, "packet_in", in, answer{verdict: c.in})
			for _, r := range otherRoles {
				in.Role = r.role
				want := r.deny
				if r.free {
					want = allow
				}
				check(t, j, "packet_out", in, answer{verdict: want})
				check(t, j, "packet_in", in, answer{verdict: want})
			}
		})
	}
}

func TestPacketsOfRuled(t *testing.T) {
	j := loaded(t).judge
	const egress, ingress = uint8(verdicts.InsideEgress), uint8(verdicts.InsideIngress)
	both := func(v verdict) [2]verdict { return [2]verdict{v, v} }
	none := [2]verdict{denyPolicyEgress, denyPolicyIngress}
	round := [2]verdict{denyEgress, denyIngress}
	for _, c := range []struct {
		name         string
		flow         verdicts.Flow
		app, sidecar [2]verdict // out and in
	}{
		{"TCP without a rule", verdicts.Flow{Proto: 6}, none, none},
		{"TCP by rule goes through the sidecar", verdicts.Flow{Proto: 6, Permitted: 1}, round, both(allow)},
		{"TCP, excluded, without a rule", verdicts.Flow{Proto: 6, Excluded: 1}, none, none},
		{"TCP, excluded, by rule", verdicts.Flow{Proto: 6, Excluded: 1, Permitted: 1}, both(allow), both(allow)},
		{"UDP without a rule", verdicts.Flow{Proto: 17}, none, none},
		{"UDP by rule", verdicts.Flow{Proto: 17, Permitted: 1}, both(allow), both(allow)},
		{"UDP by rule, on lo", verdicts.Flow{Proto: 17, Permitted: 1, LoopbackDevice: 1}, round, both(allow)},
		{"ICMP by rule", verdicts.Flow{Proto: 1, Permitted: 1}, both(allow), both(allow)},
		{"ICMPv6 without a rule", verdicts.Flow{Proto: 58}, none, none},
		{"SCTP by rule", verdicts.Flow{Proto: sctp, Permitted: 1}, both(allow), both(allow)},
		{"GRE without a rule", verdicts.Flow{Proto: gre}, none, none},
		{"fragment without a rule", verdicts.Flow{Proto: 17, Fragment: 1}, both(denyFragment), both(denyFragment)},
		{"fragment by rule", verdicts.Flow{Proto: 17, Fragment: 1, Permitted: 1}, both(allow), both(allow)},
		{"fragment of TCP by rule", verdicts.Flow{Proto: 6, Fragment: 1, Permitted: 1}, both(denyFragment), both(allow)},
		{"inside the pod", verdicts.Flow{Proto: 6, Local: 1, LoopbackDevice: 1}, both(allow), both(allow)},
		{"inside the pod, the sender may not", verdicts.Flow{Proto: 6, Local: 1, Inside: egress, Permitted: 1, Excluded: 1}, both(denyPolicyEgress), both(denyPolicyEgress)},
		{"inside the pod, the receiver wants it not", verdicts.Flow{Proto: 17, Local: 1, Inside: ingress, Permitted: 1, Excluded: 1}, both(denyPolicyIngress), both(denyPolicyIngress)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, flags := range []uint32{PolicyRuled, PolicyRuled | PolicyNonTCP} {
				in := verdicts.Case{Role: uint32(RoleApp), Flow: c.flow, Policy: meshPolicy()}
				in.Policy.Flags, in.Flow.Ruled = flags, 1
				check(t, j, "packet_out", in, answer{verdict: c.app[0]})
				check(t, j, "packet_in", in, answer{verdict: c.app[1]})
				for _, r := range otherRoles {
					in.Role = r.role
					want := both(r.deny)
					if r.free {
						want = c.sidecar
					}
					check(t, j, "packet_out", in, answer{verdict: want[0]})
					check(t, j, "packet_in", in, answer{verdict: want[1]})
				}
			}
		})
	}
}

func TestSteer(t *testing.T) {
	j := loaded(t).judge
	const none, inbound, outbound, refuse = verdicts.SteerNone, verdicts.SteerInbound, verdicts.SteerOutbound, verdicts.SteerRefuse
	for _, c := range []struct {
		name                      string
		port                      uint16
		inside, outside, excluded verdicts.Steer // excluded: from outside
	}{
		{"app's port", 8080, none, inbound, none},
		{"port 53", 53, none, inbound, none},
		{"high port", 65535, none, inbound, none},
		{"outbound", 15001, outbound, refuse, refuse},
		{"inbound", 15006, inbound, inbound, inbound},
		{"DNS", 15053, none, refuse, refuse},
		{"metrics", 15090, none, none, none},
		{"health", 15021, none, none, none},
		{"beside health", 15022, none, inbound, none},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := verdicts.Case{Port: c.port, Policy: meshPolicy()}
			check(t, j, "steer", in, answer{steer: c.inside})
			in.FromOutside = 1
			check(t, j, "steer", in, answer{steer: c.outside})
			in.Excluded = 1
			check(t, j, "steer", in, answer{steer: c.excluded})
		})
	}
	t.Run("one port for both ways", func(t *testing.T) {
		in := verdicts.Case{Port: 15001, Policy: meshPolicy()}
		in.Policy.Inbound = 15001
		check(t, j, "steer", in, answer{steer: outbound})
		in.FromOutside = 1
		check(t, j, "steer", in, answer{steer: refuse})
	})
	t.Run("the relay's port", func(t *testing.T) {
		in := verdicts.Case{Port: 15443, Policy: meshPolicy()}
		in.Policy.Tls = 15443
		check(t, j, "steer", in, answer{steer: verdicts.SteerTLS})
		in.FromOutside = 1
		check(t, j, "steer", in, answer{steer: refuse})
		in.Excluded = 1
		check(t, j, "steer", in, answer{steer: refuse})
		in = verdicts.Case{Port: 0, Policy: meshPolicy()} // which no policy with 0 means
		check(t, j, "steer", in, answer{steer: none})
	})
	t.Run("no DNS port", func(t *testing.T) {
		in := verdicts.Case{Port: 15053, Policy: meshPolicy(), FromOutside: 1}
		in.Policy.Dns = 0
		in.Policy.Reserved, in.Policy.Nreserved = ports(15001, 15001)
		check(t, j, "steer", in, answer{steer: inbound})
		in.Port = 0
		check(t, j, "steer", in, answer{steer: inbound})
	})
}

func TestGuard(t *testing.T) {
	j := loaded(t).judge
	good := verdicts.Case{
		NetnsCookie: 1<<32 | 7,
		Sock:        verdicts.Sock{NetnsCookie: 1<<32 | 7, CgroupId: 1<<40 | 9, Role: verdicts.Role(RoleApp)},
		Container:   verdicts.Container{NetnsCookie: 1<<32 | 7, CgroupId: 1<<40 | 9, Role: verdicts.Role(RoleApp)},
		HasSock:     1, HasContainer: 1,
	}
	check(t, j, "guard", good, answer{yes: true})
	for name, spoil := range map[string]func(*verdicts.Case){
		"no record":                         func(c *verdicts.Case) { c.HasSock = 0 },
		"not registered":                    func(c *verdicts.Case) { c.HasContainer = 0 },
		"neither":                           func(c *verdicts.Case) { c.HasSock, c.HasContainer = 0, 0 },
		"registered half-way":               func(c *verdicts.Case) { c.Sock.Role = verdicts.Role(RoleDead) },
		"in another pod":                    func(c *verdicts.Case) { c.NetnsCookie++ },
		"of another pod":                    func(c *verdicts.Case) { c.Sock.NetnsCookie++ },
		"of a container of another pod":     func(c *verdicts.Case) { c.Container.NetnsCookie++ },
		"of another container":              func(c *verdicts.Case) { c.Sock.CgroupId++ },
		"of one with another cgroup":        func(c *verdicts.Case) { c.Container.CgroupId++ },
		"cookies that differ above 32 bits": func(c *verdicts.Case) { c.Sock.NetnsCookie ^= 1 << 32 },
		"a cgroup that differs above":       func(c *verdicts.Case) { c.Container.CgroupId ^= 1 << 40 },
		"container and socket elsewhere":    func(c *verdicts.Case) { c.Sock.NetnsCookie++; c.Container.NetnsCookie++ },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			spoil(&c)
			check(t, j, "guard", c, answer{})
		})
	}
}

// dice makes cases out of bytes, and zeros when there are none left. Numbers
// come from small pools, so that they meet.
type dice struct{ b []byte }

func (d *dice) byte() byte {
	if len(d.b) == 0 {
		return 0
	}
	x := d.b[0]
	d.b = d.b[1:]
	return x
}

func (d *dice) u64() (x uint64) {
	for range 8 {
		x = x<<8 | uint64(d.byte())
	}
	return x
}

func pick[T any](d *dice, from ...T) T { return from[int(d.byte())%len(from)] }

func (d *dice) bit() uint8 { return pick[uint8](d, 0, 1) }

func (d *dice) seldom() uint8 { return pick[uint8](d, 0, 0, 0, 1) }

func (d *dice) port() uint16 {
	return pick(d, 0, 1, 2, 53, 80, 15001, 15001, 15006, 15006, 15020, 15021, 15053, 32767, 32768, 65534, 65535, uint16(d.byte())<<8|uint16(d.byte()))
}

func (d *dice) role() uint32 {
	return pick(d, 0, 1, 1, 1, 1, 2, 3, 4, unknownRole, uint32(d.u64()))
}

func (d *dice) proto() uint8 {
	return pick(d, 6, 6, 17, 17, 1, 58, 0, 132, 255, d.byte())
}

func (d *dice) cookie() uint64 { return pick(d, 1, 1, 1, 2, 1<<32|1, d.u64()) }

func (d *dice) addr() (b [16]byte) {
	switch d.byte() % 4 {
	case 0: // mostly zeros
		b[15] = d.byte() & 3
		b[d.byte()&15] |= pick[byte](d, 0, 1, 0x80)
	case 1: // mostly v4-mapped
		b[10], b[11] = 0xff, 0xff
		b[12] = pick(d, 127, 127, 0, 10, d.byte())
		b[15] = d.byte() & 1
		b[d.byte()&15] ^= pick[byte](d, 0, 0, 1, 0x80)
	default:
		for i := range b {
			b[i] = d.byte()
		}
	}
	return b
}

func (d *dice) caseOf() verdicts.Case {
	c := verdicts.Case{
		NetnsCookie: d.cookie(),
		Sock:        verdicts.Sock{NetnsCookie: d.cookie(), CgroupId: d.cookie(), Role: verdicts.Role(d.role())},
		Container:   verdicts.Container{NetnsCookie: d.cookie(), CgroupId: d.cookie(), Role: verdicts.Role(d.role())},
		Addr:        verdicts.Addr{B: d.addr()},
		Role:        d.role(),
		Type:        pick(d, 1, 1, 2, 2, 3, 0, 5, 10, uint32(d.u64())),
		Proto:       pick(d, uint32(d.proto()), uint32(d.proto()), unix.IPPROTO_MPTCP),
		Port:        d.port(),
		Flags:       pick(d, uint32(d.byte()), uint32(d.byte()), uint32(d.u64())),
		Inside:      verdicts.Inside(pick(d, 0, 1, 2, uint32(d.byte()))),
		Count:       uint32(d.byte()) % 8, // no drop
		ProcessOk:   d.bit(),
		FromOutside: d.bit(),
		Excluded:    d.bit(),
		HasSock:     1 - d.seldom(), HasContainer: 1 - d.seldom(),
	}
	c.Policy = verdicts.Policy{
		Outbound: d.port(), Inbound: d.port(), Dns: d.port(),
		Flags: uint32(d.byte()), Nreserved: pick(d, 0, 1, 2, uint16(MaxReserved), uint16(d.byte())<<8|uint16(d.byte())),
	}
	for i := range c.Policy.Reserved {
		c.Policy.Reserved[i] = verdicts.Ports{Lo: d.port(), Hi: d.port()}
	}
	c.Flow = verdicts.Flow{
		Proto: d.proto(), Local: d.bit(), Fragment: d.bit(), Excluded: d.seldom(), Ruled: d.bit(), Permitted: d.bit(),
		Inside: pick(d, 0, 0, 0, 1, 2, d.byte()), LoopbackDevice: d.bit(), Port: d.port(),
	}
	return c
}

// seeds are n inputs of size bytes, always the same.
func seeds(n, size int) [][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	all := make([][]byte, n)
	for i := range all {
		all[i] = make([]byte, size)
		for k := range all[i] {
			all[i][k] = byte(r.Uint32())
		}
	}
	return all
}

const caseBytes = 400 // more than a case takes

// FuzzVerdicts compares the kernel's answers with the model's.
func FuzzVerdicts(f *testing.F) {
	for _, s := range seeds(400, caseBytes) {
		f.Add(s)
	}
	j := loaded(f).judge
	names := j.Functions()
	f.Fuzz(func(t *testing.T, data []byte) {
		c := (&dice{data}).caseOf()
		for _, name := range names {
			want, _ := model(name, &c)
			if got := run(t, j, name, c); got != want {
				t.Errorf("%s is %+v, the model says %+v, of %+v", name, got, want, c)
			}
		}
	})
}

// properties are what must hold of any input, whatever else changes.
var properties = map[string]func(*verdicts.Case, func(string) answer) error{
	"an app without rules leaves the pod by exclusion alone": func(c *verdicts.Case, run func(string) answer) error {
		c.Role, c.Flow.Local, c.Flow.Ruled, c.Flow.Excluded = uint32(RoleApp), 0, 0, 0
		c.Policy.Flags &^= PolicyNonTCP
		if got := run("connect"); got.action == verdicts.Allow {
			return fmt.Errorf("connect is %+v", got)
		}
		if got := run("packet_out"); got.action != verdicts.Deny {
			return fmt.Errorf("packet_out is %+v", got)
		}
		if got := run("packet_in"); got.action != verdicts.Deny {
			return fmt.Errorf("packet_in is %+v", got)
		}
		return nil
	},
	"a container with rules gets nothing without one": func(c *verdicts.Case, run func(string) answer) error {
		c.Flow.Local, c.Flow.Ruled, c.Flow.Permitted = 0, 1, 0
		for _, name := range []string{"connect", "packet_out", "packet_in"} {
			if got := run(name); got.action != verdicts.Deny {
				return fmt.Errorf("%s is %+v", name, got)
			}
		}
		return nil
	},
	"a rule lets a container do no more than it could without any, but for what a sidecar cannot carry": func(c *verdicts.Case, run func(string) answer) error {
		c.Role, c.Flow.Local, c.Flow.Ruled, c.Flow.Permitted, c.Flow.Proto = uint32(RoleApp), 0, 1, 1, unix.IPPROTO_TCP
		for _, name := range []string{"connect", "packet_out", "packet_in"} {
			c.Flow.Ruled = 1
			with := run(name)
			c.Flow.Ruled = 0
			if without := run(name); with != without {
				return fmt.Errorf("%s is %+v with a rule, %+v without", name, with, without)
			}
		}
		return nil
	},
	"inside the pod the rules of both ends decide alone": func(c *verdicts.Case, run func(string) answer) error {
		c.Role, c.Flow.Local = 1+c.Role%3, 1
		c.Inside, c.Count = verdicts.Inside(c.Flow.Inside), 0
		want := run("inside")
		for _, name := range []string{"packet_out", "packet_in"} {
			if got := run(name); got != want {
				return fmt.Errorf("%s is %+v, want %+v", name, got, want)
			}
		}
		if got := run("connect"); got.action != want.action {
			return fmt.Errorf("connect is %+v, want %+v", got, want)
		}
		return nil
	},
	"rules never let a container have a raw socket but of ICMP": func(c *verdicts.Case, run func(string) answer) error {
		c.Flags, c.Type = c.Flags|uint32(SubjectRuled), unix.SOCK_RAW
		if icmp(c.Proto) {
			return nil
		}
		if got := run("socket"); got.action != verdicts.Deny {
			return fmt.Errorf("socket is %+v", got)
		}
		return nil
	},
	"TCP of an app never goes directly without an exclusion": func(c *verdicts.Case, run func(string) answer) error {
		c.Role, c.Flow.Local, c.Flow.Excluded, c.Flow.Permitted, c.Flow.Proto = uint32(RoleApp), 0, 0, 1, unix.IPPROTO_TCP
		if got := run("connect"); got.action != verdicts.Redirect {
			return fmt.Errorf("connect is %+v", got)
		}
		if got := run("packet_out"); got.action != verdicts.Deny {
			return fmt.Errorf("packet_out is %+v", got)
		}
		return nil
	},
	"what is not TCP, UDP or ICMP never leaves without a rule": func(c *verdicts.Case, run func(string) answer) error {
		c.Role, c.Flow.Local, c.Flow.Excluded, c.Flow.Permitted = uint32(RoleApp), 0, 0, 0
		if slices.Contains([]uint8{6, 17, 1, 58}, c.Flow.Proto) {
			c.Flow.Proto = sctp
		}
		for _, name := range []string{"connect", "packet_out"} {
			if got := run(name); got.action != verdicts.Deny {
				return fmt.Errorf("%s is %+v", name, got)
			}
		}
		return nil
	},
	"from outside only excluded and reserved ports get the kernel's lookup": func(c *verdicts.Case, run func(string) answer) error {
		c.FromOutside, c.Excluded = 1, 0
		if run("reserved").yes {
			return nil
		}
		if got := run("steer"); got.steer == verdicts.SteerNone {
			return fmt.Errorf("steer of port %d is %+v", c.Port, got)
		}
		return nil
	},
	"the outbound port is never reached from outside": func(c *verdicts.Case, run func(string) answer) error {
		c.FromOutside, c.Port = 1, c.Policy.Outbound
		if got := run("steer"); got.steer != verdicts.SteerRefuse {
			return fmt.Errorf("steer is %+v", got)
		}
		return nil
	},
	"nothing from outside is steered to the outbound listener": func(c *verdicts.Case, run func(string) answer) error {
		c.FromOutside = 1
		if got := run("steer"); got.steer == verdicts.SteerOutbound {
			return fmt.Errorf("steer of port %d is %+v", c.Port, got)
		}
		return nil
	},
	"only a sidecar binds a reserved port": func(c *verdicts.Case, run func(string) answer) error {
		if Role(c.Role) == RoleSidecar || c.Port == 0 || !run("reserved").yes {
			return nil
		}
		if got := run("bind"); got.action != verdicts.Deny {
			return fmt.Errorf("bind of port %d is %+v", c.Port, got)
		}
		return nil
	},
	"the dead, the denied and the unknown get nothing": func(c *verdicts.Case, run func(string) answer) error {
		if r := Role(c.Role); r == RoleApp || r == RoleSidecar || r == RoleExempt {
			return nil
		}
		for _, name := range []string{"socket", "connect", "bind", "packet_out", "packet_in"} {
			if got := run(name); got.action != verdicts.Deny || got.counter < nodeSgCounterSG_DROP_FIRST {
				return fmt.Errorf("%s is %+v", name, got)
			}
		}
		return nil
	},
	"what is denied has a reason, what is not has none": func(c *verdicts.Case, run func(string) answer) error {
		for _, name := range []string{"socket", "connect", "bind", "packet_out", "packet_in"} {
			got := run(name)
			if (got.action == verdicts.Deny) != (got.counter >= nodeSgCounterSG_DROP_FIRST) {
				return fmt.Errorf("%s is %+v", name, got)
			}
		}
		return nil
	},
	"the guard wants all to match": func(c *verdicts.Case, run func(string) answer) error {
		if !run("guard").yes {
			return nil
		}
		same := c.Sock.NetnsCookie == c.NetnsCookie && c.Container.NetnsCookie == c.NetnsCookie && c.Sock.CgroupId == c.Container.CgroupId
		if !same || c.HasSock == 0 || c.HasContainer == 0 || Role(c.Sock.Role) == RoleDead {
			return fmt.Errorf("guard says yes to %+v", c)
		}
		return nil
	},
}

func TestProperties(t *testing.T) {
	j := loaded(t).judge
	random := seeds(300, caseBytes)
	for name, property := range properties {
		t.Run(name, func(t *testing.T) {
			for _, s := range random {
				c := (&dice{s}).caseOf()
				if err := property(&c, func(name string) answer { return run(t, j, name, c) }); err != nil {
					t.Fatalf("%v\nof %+v", err, c)
				}
			}
		})
	}
}
