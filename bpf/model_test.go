// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
)

// The decisions once more, in Go and as plainly as can be: what the comments of
// src/verdict.h and src/common.h say, and nothing taken from how they do it.

// Numbers of src/abi.h that user space gets from a compiled policy.
const (
	dirEgress, dirIngress = 0, 1

	subjectPod, subjectApp, subjectSidecar, subjectInit, subjectNone = 0, 1, 2, 3, 4

	peerWorld, peerHost = 8, 9

	sockSent, sockCalled, sockAgent, sockPlain = 16, 32, 64, 128

	classFirst  = 1024
	subjectName = 1 << 31
)

type verdict struct {
	action  verdicts.Action
	counter Counter
}

var (
	allow            = verdict{verdicts.Allow, 0}
	allowLocal       = verdict{verdicts.Allow, nodeSgCounterSG_COUNT_LOCAL}
	allowDirect      = verdict{verdicts.Allow, nodeSgCounterSG_COUNT_DIRECT}
	redirect         = verdict{verdicts.Redirect, nodeSgCounterSG_COUNT_REDIRECT}
	redirectDNS      = verdict{verdicts.RedirectDNS, nodeSgCounterSG_COUNT_DNS}
	denyUnregistered = deny(nodeSgCounterSG_DROP_UNREGISTERED)
	denyInit         = deny(nodeSgCounterSG_DROP_INIT)
	denyStranger     = deny(nodeSgCounterSG_DROP_STRANGER)
	denyUDP          = deny(nodeSgCounterSG_DROP_UDP)
	denyICMP         = deny(nodeSgCounterSG_DROP_ICMP)
	denyRaw          = deny(nodeSgCounterSG_DROP_RAW)
	denyProtocol     = deny(nodeSgCounterSG_DROP_PROTOCOL)
	denyBind         = deny(nodeSgCounterSG_DROP_BIND)
	denyEgress       = deny(nodeSgCounterSG_DROP_EGRESS)
	denyIngress      = deny(nodeSgCounterSG_DROP_INGRESS)
	denyFragment     = deny(nodeSgCounterSG_DROP_FRAGMENT)
	denyProcess      = deny(nodeSgCounterSG_DROP_PROCESS)

	denyPolicyEgress  = deny(nodeSgCounterSG_DROP_POLICY_EGRESS)
	denyPolicyIngress = deny(nodeSgCounterSG_DROP_POLICY_INGRESS)
)

func deny(c Counter) verdict { return verdict{verdicts.Deny, c} }

func icmp(proto uint32) bool {
	return proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6
}

// byRole answers for all roles but the app's, of a container without rules: what
// lets a sidecar through lets an exempt container through, and nobody else.
func byRole(role uint32, free verdict) (v verdict, app bool) {
	switch Role(role) {
	case RoleApp:
		return verdict{}, true
	case RoleSidecar, RoleExempt:
		return free, false
	case RoleDenied:
		return denyInit, false
	}
	return denyUnregistered, false
}

func modelLoopback(b [16]byte) bool {
	a := netip.AddrFrom16(b).Unmap()
	return a.IsLoopback() || a.IsUnspecified()
}

func modelV4(b [16]byte) bool { return netip.AddrFrom16(b).Is4In6() }

func modelReserved(policy *verdicts.Policy, port uint16) bool {
	for i, r := range policy.Reserved {
		if i < int(policy.Nreserved) && r.Lo <= port && port <= r.Hi {
			return true
		}
	}
	return false
}

// modelSocket: rules, or that an executable may have no socket, bind every role.
func modelSocket(c *verdicts.Case) verdict {
	v, app := byRole(c.Role, allow)
	tcp := c.Type == unix.SOCK_STREAM && c.Proto == unix.IPPROTO_TCP
	udp := c.Type == unix.SOCK_DGRAM && c.Proto == unix.IPPROTO_UDP
	flags := uint16(c.Flags)
	switch {
	case !app && v.action == verdicts.Deny:
		return v
	case c.Stranger != 0:
		return denyStranger
	case flags&SubjectProcesses != 0 && c.ProcessOk == 0:
		return denyProcess
	case flags&SubjectRuled != 0:
		// Whatever some rule is about: a raw socket too, of ICMP.
		about := map[uint32]uint16{
			unix.IPPROTO_ICMP: SubjectICMP, unix.IPPROTO_ICMPV6: SubjectICMPv6, unix.IPPROTO_SCTP: SubjectSCTP,
		}[c.Proto]
		switch raw := c.Type == unix.SOCK_RAW; {
		case tcp, udp, icmp(c.Proto) && flags&about != 0, c.Proto == unix.IPPROTO_SCTP && !raw && flags&about != 0:
			return allow
		case icmp(c.Proto):
			return denyICMP
		case raw:
			return denyRaw
		}
		return denyProtocol
	case c.Type == unix.SOCK_STREAM && c.Proto == unix.IPPROTO_MPTCP:
		return denyProtocol
	case !app:
		return v
	case c.Type == unix.SOCK_RAW:
		return denyRaw
	case tcp, udp, c.Type == unix.SOCK_DGRAM && icmp(c.Proto) && c.Policy.Flags&PolicyNonTCP != 0:
		return allow
	case c.Type == unix.SOCK_DGRAM && icmp(c.Proto):
		return denyICMP
	}
	return denyProtocol
}

func modelFamily(c *verdicts.Case) verdict {
	known := []uint32{
		unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_KEY, unix.AF_NETLINK, unix.AF_PACKET, unix.AF_ALG, unix.AF_XDP,
	}
	bound := c.Flags&uint32(SubjectRuled) != 0 || c.Role != uint32(RoleSidecar) && c.Role != uint32(RoleExempt)
	if bound && !slices.Contains(known, c.Proto) {
		return denyProtocol
	}
	return allow
}

// modelInside turns what both ends' rules say into a verdict.
func modelInside(inside uint32, counter Counter) verdict {
	switch verdicts.Inside(inside) {
	case verdicts.InsideAllow:
		return verdict{verdicts.Allow, counter}
	case verdicts.InsideEgress:
		return denyPolicyEgress
	}
	return denyPolicyIngress
}

// modelConnect: inside the pod the rules of both ends decide. Outside, a
// container with rules needs one; only then it is asked which way.
func modelConnect(role uint32, f *verdicts.Flow, policy *verdicts.Policy) verdict {
	v, app := byRole(role, allowDirect)
	ruled := f.Ruled != 0
	direct := ruled || policy.Flags&PolicyNonTCP != 0
	switch {
	case v.action == verdicts.Deny && !app:
		return v
	case f.Local != 0:
		return modelInside(uint32(f.Inside), nodeSgCounterSG_COUNT_LOCAL)
	case ruled && f.Permitted == 0:
		return denyPolicyEgress
	case !app, f.Excluded != 0:
		return allowDirect
	case f.Proto == unix.IPPROTO_TCP:
		return redirect
	case f.Proto == unix.IPPROTO_UDP && f.Port == 53 && policy.Dns != 0:
		return redirectDNS
	case f.Proto == unix.IPPROTO_UDP && direct, icmp(uint32(f.Proto)) && direct, ruled:
		return allowDirect
	case f.Proto == unix.IPPROTO_UDP:
		return denyUDP
	case icmp(uint32(f.Proto)):
		return denyICMP
	}
	return denyProtocol
}

// modelBind: an exempt container is left alone, but the sidecar's ports are the
// sidecar's, and the relay's nobody's.
func modelBind(role uint32, port uint16, policy *verdicts.Policy) verdict {
	v, app := byRole(role, allow)
	switch {
	case Role(role) == RoleSidecar && port != 0 && port == policy.Tls:
		return denyBind
	case Role(role) == RoleSidecar:
		return allow
	case !app && v.action == verdicts.Deny:
		return v
	case port != 0 && modelReserved(policy, port):
		return denyBind
	}
	return allow
}

// modelPacket: as modelConnect, but an app's TCP has to be excluded, since what
// is redirected is inside the pod; and so is all that is on lo.
func modelPacket(role uint32, f *verdicts.Flow, policy *verdicts.Policy, out bool) verdict {
	v, app := byRole(role, allow)
	ruled := f.Ruled != 0
	nonTCP := policy.Flags&PolicyNonTCP != 0 && (f.Proto == unix.IPPROTO_UDP || icmp(uint32(f.Proto)))
	if ruled {
		nonTCP = f.Proto != unix.IPPROTO_TCP
	}
	needsRule := ruled && f.Permitted == 0
	switch {
	case v.action == verdicts.Deny && !app:
		return v
	case f.Local != 0:
		return modelInside(uint32(f.Inside), 0)
	case !needsRule && (!app || f.Excluded != 0):
		return allow
	case !needsRule && nonTCP && f.LoopbackDevice == 0:
		return allow
	case f.Fragment != 0:
		return denyFragment
	case needsRule && out:
		return denyPolicyEgress
	case needsRule:
		return denyPolicyIngress
	case out:
		return denyEgress
	}
	return denyIngress
}

func modelSteer(port uint16, outside, excluded bool, policy *verdicts.Policy) verdicts.Steer {
	switch {
	case policy.Tls != 0 && port == policy.Tls && outside:
		return verdicts.SteerRefuse
	case policy.Tls != 0 && port == policy.Tls:
		return verdicts.SteerTLS
	case port == policy.Outbound && outside:
		return verdicts.SteerRefuse
	case port == policy.Outbound:
		return verdicts.SteerOutbound
	case outside && policy.Dns != 0 && port == policy.Dns:
		return verdicts.SteerRefuse
	case port == policy.Inbound:
		return verdicts.SteerInbound
	case !outside, excluded, modelReserved(policy, port):
		return verdicts.SteerNone
	}
	return verdicts.SteerInbound
}

func modelGuard(c *verdicts.Case) bool {
	return c.HasSock != 0 && c.HasContainer != 0 && Role(c.Sock.Role) != RoleDead &&
		c.Sock.CgroupId == c.Container.CgroupId &&
		c.Sock.NetnsCookie == c.NetnsCookie && c.Container.NetnsCookie == c.NetnsCookie
}

// answer is what a function said: of each the part that it fills.
type answer struct {
	verdict
	yes   bool
	steer verdicts.Steer
}

// model runs a function of src/verdict.h by the name that verdicts.Run takes.
func model(name string, c *verdicts.Case) (a answer, known bool) {
	switch name {
	case "loopback":
		a.yes = modelLoopback(c.Addr.B)
	case "v4":
		a.yes = modelV4(c.Addr.B)
	case "reserved":
		a.yes = modelReserved(&c.Policy, c.Port)
	case "socket":
		a.verdict = modelSocket(c)
	case "family":
		a.verdict = modelFamily(c)
	case "inside":
		a.verdict = modelInside(uint32(c.Inside), Counter(c.Count))
	case "connect":
		a.verdict = modelConnect(c.Role, &c.Flow, &c.Policy)
	case "bind":
		a.verdict = modelBind(c.Role, c.Port, &c.Policy)
	case "packet_out":
		a.verdict = modelPacket(c.Role, &c.Flow, &c.Policy, true)
	case "packet_in":
		a.verdict = modelPacket(c.Role, &c.Flow, &c.Policy, false)
	case "steer":
		a.steer = modelSteer(c.Port, c.FromOutside != 0, c.Excluded != 0, &c.Policy)
	case "guard":
		a.yes = modelGuard(c)
	default:
		return a, false
	}
	return a, true
}

// classOf is an entry of map prefixes.
type classOf struct {
	prefix string
	class  uint32
}

// entry is one of map rules: number is what it answers.
type entry struct {
	subject, peer uint32
	dir, proto    uint8
	anyProto      bool
	port          uint16
	bits          uint8 // of the port; 0: all ports
	number        uint32
}

// tables are a revision of a policy: what is in the maps, as lists.
type tables struct {
	policy   Policy
	subjects map[uint32]uint16 // flags of names
	hosts    []netip.Addr
	classes  []classOf
	entries  []entry
}

// class is the longest prefix's. An IPv4 address that is written as IPv6 is an
// IPv4 address, and no prefix of IPv6 covers it.
func (t *tables) class(a netip.Addr) (class uint32) {
	best := -1
	for _, c := range t.classes {
		if p := netip.MustParsePrefix(c.prefix); p.Contains(a.Unmap()) && p.Bits() > best {
			best, class = p.Bits(), c.class
		}
	}
	return class
}

// peers are what a rule may call an address outside.
func (t *tables) peers(a netip.Addr) (peers [2]uint32) {
	if t.policy.Flags&PolicyPrefixes != 0 {
		peers[0] = t.class(a)
	}
	if t.policy.Flags&PolicyWorld == 0 {
		return peers
	}
	peers[1] = peerWorld
	if slices.Contains(t.hosts, a.Unmap()) {
		peers[1] = peerHost
	}
	return peers
}

// end is a container as the policy knows it.
func (t *tables) end(c Container) verdicts.End {
	e := verdicts.End{CgroupId: c.CgroupId, Subject: [2]uint32{c.Subject}, Flags: uint32(t.policy.Subjects[c.Subject])}
	if c.Name != 0 && t.policy.Flags&PolicyNames != 0 {
		e.Subject[1] = c.Name
		e.Flags |= uint32(t.subjects[c.Name])
	}
	return e
}

// about is true of an entry for a protocol and a port, or for all its ports.
func (e *entry) about(proto uint8, port uint16, whole bool) bool {
	switch {
	case e.anyProto:
		return true
	case e.proto != proto:
		return false
	case whole:
		return e.bits == 0
	}
	return port>>(16-e.bits) == e.port>>(16-e.bits)
}

// length is how much an entry says, among those of one subject and peer.
func (e *entry) length() int {
	if e.anyProto {
		return -1
	}
	return int(e.bits)
}

// numbers are the rules that may be named to let something through: the most
// particular one between each number of the subject and each of the peer.
func (t *tables) numbers(subjects, peers [2]uint32, dir, proto uint8, port uint16, whole bool) (numbers []uint32) {
	for i, subject := range subjects {
		for _, peer := range peers {
			var best *entry
			for k := range t.entries {
				e := &t.entries[k]
				if e.subject == subject && e.peer == peer && e.dir == dir && e.about(proto, port, whole) &&
					(best == nil || e.length() > best.length()) {
					best = e
				}
			}
			// The pod itself is no second subject, and 0 is nobody.
			if best != nil && peer != 0 && (i == 0 || subject != 0) {
				numbers = append(numbers, best.number)
			}
		}
	}
	return numbers
}

// permits: by a rule, or as the answer to what a rule lets go the other way.
func (t *tables) permits(self *verdicts.End, o verdicts.Outside) bool {
	var subjects [2]uint32 // the pod
	if self != nil {
		subjects = self.Subject
	}
	whole := o.Fragment != 0
	if len(t.numbers(subjects, o.Peer, o.Dir, o.Proto, o.Port, whole)) > 0 {
		return true
	}
	answers := o.Reply
	switch {
	case o.Opening != 0:
		return false
	case o.Proto == unix.IPPROTO_ICMP && o.Port == 0:
		answers = 8
	case o.Proto == unix.IPPROTO_ICMPV6 && o.Port == 129:
		answers = 128
	case icmp(uint32(o.Proto)):
		return false
	}
	return len(t.numbers(subjects, o.Peer, 1-o.Dir, o.Proto, answers, whole)) > 0
}

// inside: the sender's rules name the receiver, and the receiver's the sender,
// of those that have rules.
func (t *tables) inside(from, to verdicts.End, proto uint8, port uint16) verdicts.Inside {
	ruled := func(e verdicts.End) bool { return e.Flags&uint32(SubjectRuled) != 0 }
	switch {
	case from.CgroupId == to.CgroupId:
		return verdicts.InsideAllow
	case ruled(from) && len(t.numbers(from.Subject, to.Subject, dirEgress, proto, port, false)) == 0:
		return verdicts.InsideEgress
	case ruled(to) && len(t.numbers(to.Subject, from.Subject, dirIngress, proto, port, false)) == 0:
		return verdicts.InsideIngress
	}
	return verdicts.InsideAllow
}

// put writes the tables into the maps, under the policy's revision.
func (t *tables) put(tb testing.TB, f *fixture) {
	tb.Helper()
	put(tb, f.maps.Policies, t.policy.Revision, t.policy)
	for name, flags := range t.subjects {
		put(tb, f.maps.Subjects, SubjectKey{Revision: t.policy.Revision, Subject: name}, uint32(flags))
	}
	for _, a := range t.hosts {
		put(tb, f.maps.HostAddrs, AddrFrom(a), uint8(1))
	}
	for _, c := range t.classes {
		put(tb, f.maps.Prefixes, NewPrefixKey(t.policy.Revision, netip.MustParsePrefix(c.prefix)), c.class)
	}
	for _, e := range t.entries {
		put(tb, f.maps.Rules, t.key(e), e.number)
	}
}

func (t *tables) key(e entry) RuleKey {
	return NewRuleKey(RuleFor{
		Revision: t.policy.Revision, Subject: e.subject, Peer: e.peer, Dir: e.dir,
		Proto: e.proto, AnyProto: e.anyProto, Port: e.port, PortBits: e.bits,
	})
}
