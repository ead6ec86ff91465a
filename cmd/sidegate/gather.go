// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/policy"
)

// Addresses of one rule from which on a network is probably meant, and beyond
// which they are not listed.
const (
	manyAddresses = 16
	maxAddresses  = 1000
)

// A flow is whom a role talks with, which way, and by what protocol: a role of the
// pod or an address outside.
type flow struct {
	role, peer policy.Role
	dir        policy.Dir
	addr       netip.Addr
	proto      uint8
}

// A need is what was seen of a flow.
type need struct {
	ports map[uint16]*tally
	who   map[string]bool // containers of flow.role
}

// tally is how often it was seen: inside a pod both ends see it.
type tally struct{ calling, called uint64 }

// gathered is what mode audit saw, as rules need it.
type gathered struct {
	needs   map[flow]*need
	left    map[string]uint64 // what no rule is for
	unknown int               // records of the inside of the pod that name no peer
}

// gather sorts what was seen in pods that are under base.
func gather(base *policy.PodPolicy, pods []cgroups.PodStatus, list []cgroups.Seen) *gathered {
	g := &gathered{needs: make(map[flow]*need), left: make(map[string]uint64)}
	own := make(map[netip.Addr]bool)
	for _, p := range pods {
		for _, a := range p.Addresses {
			own[a] = true
		}
	}
	for _, s := range list {
		inside := s.Address.IsValid() && (own[s.Address] || s.Address.IsLoopback() || s.Address.IsUnspecified())
		switch {
		case isUnix(s):
			g.leave(s)
		case s.Peer != "" && s.Peer == s.Container:
			// What a container does with itself needs no rule.
		case s.Peer != "":
			if !isRedirected(base, list, s) {
				g.inside(s)
			}
		case inside && isICMP(s.Proto): // the kernel answers, and needs no rule
		case inside:
			g.unknown++
		case s.Address.IsValid():
			g.outside(s)
		default:
			g.leave(s)
		}
	}
	return g
}

// isRedirected tells whether a record is of a connection on its way to the outside
// that arrived at the sidecar. Nobody called that port.
func isRedirected(base *policy.PodPolicy, list []cgroups.Seen, s cgroups.Seen) bool {
	r := base.Spec.Redirect
	port := cmp.Or(r.Outbound, policy.DefaultOutbound)
	if s.Proto == unix.IPPROTO_UDP {
		port = r.DNS
	}
	return s.Dir == policy.Ingress.String() && s.Port == port && !slices.ContainsFunc(list, func(o cgroups.Seen) bool {
		return o.Dir == policy.Egress.String() && o.Container == s.Peer && o.Peer == s.Container && o.Proto == s.Proto && o.Port == s.Port
	})
}

// inside notes what stays in the pod, of which both ends need a rule.
func (g *gathered) inside(s cgroups.Seen) {
	from, errFrom := policy.ParseRole(s.Role)
	to, errTo := policy.ParseRole(s.PeerRole)
	if errFrom != nil || errTo != nil || s.Port == 0 || s.Proto != unix.IPPROTO_TCP && s.Proto != unix.IPPROTO_UDP {
		g.leave(s)
		return
	}
	caller, callee := s.Container, s.Peer
	called := s.Dir == policy.Ingress.String()
	if called {
		from, to, caller, callee = to, from, callee, caller
	}
	g.add(flow{role: from, dir: policy.Egress, peer: to, proto: uint8(s.Proto)}, caller, s, called)
	g.add(flow{role: to, dir: policy.Ingress, peer: from, proto: uint8(s.Proto)}, callee, s, called)
}

func (g *gathered) outside(s cgroups.Seen) {
	role, err := policy.ParseRole(s.Role)
	if err != nil || protocols[cgroups.ProtocolName(s.Proto)] == 0 || s.Port == 0 && !isICMP(s.Proto) {
		g.leave(s)
		return
	}
	dir := policy.Egress
	if s.Dir == policy.Ingress.String() {
		dir = policy.Ingress
	}
	g.add(flow{role: role, dir: dir, addr: s.Address, proto: uint8(s.Proto)}, s.Container, s, dir == policy.Ingress)
}

func (g *gathered) add(f flow, who string, s cgroups.Seen, called bool) {
	n := g.needs[f]
	if n == nil {
		n = &need{ports: make(map[uint16]*tally), who: make(map[string]bool)}
		g.needs[f] = n
	}
	t := n.ports[s.Port]
	if t == nil {
		t = &tally{}
		n.ports[s.Port] = t
	}
	if called {
		t.called += s.Count
	} else {
		t.calling += s.Count
	}
	n.who[short(who)] = true
}

func (g *gathered) leave(s cgroups.Seen) {
	why := cmp.Or(cgroups.ReasonText(s.Reason), s.Reason, "it was allowed")
	what := fmt.Sprintf("%s: %s %s", short(s.Container), s.Dir, protocolOf(s))
	if s.Port != 0 {
		what += fmt.Sprintf(" port %d", s.Port)
	}
	if peer := peerOf(s); peer != "-" {
		what += " with " + peer
	}
	g.left[what+": "+why] += s.Count
}

// leftOver says what is not in the rules.
func (g *gathered) leftOver() (lines []string) {
	if len(g.left) > 0 {
		lines = append(lines, "Not in here:")
	}
	for _, what := range slices.Sorted(maps.Keys(g.left)) {
		lines = append(lines, fmt.Sprintf("- %s (%s)", what, count(int(g.left[what]), "time")))
	}
	if g.unknown > 0 {
		lines = append(lines, fmt.Sprintf("Not in here: %s of the inside of the pod that name nobody: nobody listened.",
			count(g.unknown, "record")))
	}
	return lines
}

// A draft is a rule to be, and what is to be said about it.
type draft struct {
	role  policy.Role
	dir   policy.Dir
	peers []policy.Peer
	proto uint8
	ports []uint16
	count uint64
	who   []string
	notes []string
}

// drafts are the rules: of a role, for each peer and protocol. Addresses that were
// called on the same ports share one.
func (g *gathered) drafts() []draft {
	merged := make(map[string]*draft)
	flows := slices.SortedFunc(maps.Keys(g.needs), func(a, b flow) int {
		return cmp.Or(cmp.Compare(a.role, b.role), cmp.Compare(a.dir, b.dir), cmp.Compare(a.peer, b.peer), cmp.Compare(a.proto, b.proto), a.addr.Compare(b.addr))
	})
	var order []*draft
	for _, f := range flows {
		n := g.needs[f]
		ports := slices.Sorted(maps.Keys(n.ports))
		key := fmt.Sprint(f.role, f.dir, f.peer, f.proto, ports)
		d := merged[key]
		if d == nil {
			d = &draft{role: f.role, dir: f.dir, proto: f.proto, ports: ports}
			merged[key], order = d, append(order, d)
		}
		d.peers = append(d.peers, f.asPeer())
		for who := range n.who {
			d.who = append(d.who, who)
		}
		for _, t := range n.ports {
			d.count += max(t.calling, t.called)
		}
	}
	list := make([]draft, len(order))
	for i, d := range order {
		d.finish()
		list[i] = *d
	}
	return list
}

func (f flow) asPeer() policy.Peer {
	if f.addr.IsValid() {
		return policy.Peer{CIDR: netip.PrefixFrom(f.addr, f.addr.BitLen()).String()}
	}
	return policy.Peer{Role: f.peer}
}

// finish keeps the rule within what a policy takes.
func (d *draft) finish() {
	slices.Sort(d.who)
	d.who = slices.Compact(d.who)
	n := len(d.peers)
	switch {
	case n > maxAddresses:
		d.peers = []policy.Peer{{Entity: policy.EntityWorld}, {Entity: policy.EntityHost}}
		d.notes = append(d.notes, fmt.Sprintf("these were %d addresses", n))
	case n > manyAddresses:
		d.notes = append(d.notes, fmt.Sprintf("%d addresses: the world? Then write entity: world, or a network", n))
	}
	if len(d.ports) > policy.MaxPorts {
		d.notes = append(d.notes, fmt.Sprintf("all ports, since it was called on %d", len(d.ports)))
		d.ports = nil
	}
}

func (d *draft) comment() string {
	by := "by"
	if d.dir == policy.Ingress {
		by = "of"
	}
	text := fmt.Sprintf("%s, %s %s", count(int(d.count), "time"), by, strings.Join(d.who, ", "))
	return strings.Join(append([]string{text}, d.notes...), "; ")
}

var ruleProtos = map[uint8]policy.RuleProto{
	unix.IPPROTO_TCP: policy.RuleTCP, unix.IPPROTO_UDP: policy.RuleUDP, unix.IPPROTO_SCTP: policy.RuleSCTP,
	unix.IPPROTO_ICMP: policy.RuleICMP, unix.IPPROTO_ICMPV6: policy.RuleICMPv6,
}

func (d *draft) traffic() policy.Traffic {
	t := policy.Traffic{Protocol: ruleProtos[d.proto]}
	for _, p := range d.ports {
		if isICMP(d.proto) {
			t.Types = append(t.Types, policy.ICMPType(p))
		} else {
			t.Ports = append(t.Ports, policy.PortRange{First: p, Last: p})
		}
	}
	return t
}

// addTo adds the rule to those of its role.
func (d *draft) addTo(spec *policy.Spec) {
	i := slices.IndexFunc(spec.Rules, func(s policy.SubjectRules) bool { return s.Role == d.role })
	if i < 0 {
		i = len(spec.Rules)
		spec.Rules = append(spec.Rules, policy.SubjectRules{Role: d.role})
	}
	s := &spec.Rules[i]
	if d.dir == policy.Egress {
		s.Egress = append(s.Egress, policy.EgressRule{To: d.peers, Traffic: d.traffic()})
	} else {
		s.Ingress = append(s.Ingress, policy.IngressRule{From: d.peers, Traffic: d.traffic()})
	}
}
