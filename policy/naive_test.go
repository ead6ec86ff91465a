// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// naive reads decisions from a policy as it is written. It shares nothing with the compiler, nor with Decide.
type naive struct {
	*PodPolicy
	q    Query
	host []netip.Addr
}

func within(ranges []PortRange, port uint16) bool {
	if len(ranges) == 0 {
		return true
	}
	for _, r := range ranges {
		if r.First <= port && port <= r.Last {
			return true
		}
	}
	return false
}

// about says whether a rule's traffic is what is asked.
func (n naive) about(t Traffic) bool {
	proto, port := n.q.Proto, n.q.Port
	switch t.Protocol.String() {
	case "tcp":
		return proto == 6 && within(t.Ports, port)
	case "udp":
		return proto == 17 && within(t.Ports, port)
	case "sctp":
		return proto == 132 && within(t.Ports, port)
	case "icmp", "icmpv6":
		if proto == 1 && t.Protocol.String() != "icmp" || proto == 58 && t.Protocol.String() != "icmpv6" || proto != 1 && proto != 58 {
			return false
		}
		for _, x := range t.Types {
			if uint16(x) == port {
				return true
			}
		}
		return len(t.Types) == 0
	}
	return len(t.Ports) == 0 || (proto == 6 || proto == 17 || proto == 132) && within(t.Ports, port)
}

func inCIDR(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

func (n naive) isHost(a netip.Addr) bool {
	for _, h := range n.host {
		if h == a {
			return true
		}
	}
	return false
}

// is says whether an end is one of the peers.
func (n naive) is(peers []Peer, e End) bool {
	if len(peers) == 0 {
		return e.container == nil || e.container.Role != RoleUnset
	}
	for _, p := range peers {
		if e.container != nil {
			if p.Role != RoleUnset && p.Role == e.container.Role || p.Container != "" && p.Container == e.container.Name {
				return true
			}
			continue
		}
		hit := p.CIDR != "" && inCIDR(p.CIDR, e.addr)
		for _, x := range p.Except {
			hit = hit && !inCIDR(x, e.addr)
		}
		if hit || p.Entity == EntityHost && n.isHost(e.addr) || p.Entity == EntityWorld && !n.isHost(e.addr) {
			return true
		}
	}
	return false
}

// rulesFor are the items of spec.rules that are about a container, by their indexes.
func (n naive) rulesFor(e *Endpoint) (out []int) {
	for i, s := range n.Spec.Rules {
		if s.Role != RoleUnset && s.Role == e.Role || s.Container != "" && s.Container == e.Name {
			out = append(out, i)
		}
	}
	return out
}

func (n naive) isRuled(e *Endpoint) bool {
	for _, i := range n.rulesFor(e) {
		if n.Spec.Rules[i].Egress != nil || n.Spec.Rules[i].Ingress != nil {
			return true
		}
	}
	return false
}

// egress and ingress list the paths of the rules that let a container call, or be called.
func (n naive) egress(e *Endpoint) (paths []string) {
	for _, i := range n.rulesFor(e) {
		for j, r := range n.Spec.Rules[i].Egress {
			if n.about(r.Traffic) && n.is(r.To, n.q.To) {
				paths = append(paths, fmt.Sprintf("spec.rules[%d].egress[%d]", i, j))
			}
		}
	}
	return paths
}

func (n naive) ingress(e *Endpoint) (paths []string) {
	for _, i := range n.rulesFor(e) {
		for j, r := range n.Spec.Rules[i].Ingress {
			if n.about(r.Traffic) && n.is(r.From, n.q.From) {
				paths = append(paths, fmt.Sprintf("spec.rules[%d].ingress[%d]", i, j))
			}
		}
	}
	return paths
}

func (n naive) exclusions(path string, rules []Exclusion, a netip.Addr) (paths []string) {
	for i, e := range rules {
		tcp, udp := e.Protocol.String() != "udp", e.Protocol.String() != "tcp"
		if (n.q.Proto == 6 && tcp || n.q.Proto == 17 && udp) && within(e.Ports, n.q.Port) && (e.CIDR == "" || inCIDR(e.CIDR, a)) {
			paths = append(paths, fmt.Sprintf("spec.exclude.%s[%d]", path, i))
		}
	}
	return paths
}

// mayHaveSocket is empty, or says why a container has no socket of the protocol.
func (n naive) mayHaveSocket(e *Endpoint) string {
	ping := n.q.Proto == 1 || n.q.Proto == 58
	if n.q.Proto == 6 || n.q.Proto == 17 {
		return ""
	}
	why := ReasonProtocol
	if ping {
		why = ReasonICMP
	}
	if !n.isRuled(e) {
		if n.isRedirected(e) && !(ping && n.Spec.NonTCP == ActionAllow) {
			return why
		}
		return ""
	}
	for _, i := range n.rulesFor(e) {
		var all []Traffic
		for _, r := range n.Spec.Rules[i].Egress {
			all = append(all, r.Traffic)
		}
		for _, r := range n.Spec.Rules[i].Ingress {
			all = append(all, r.Traffic)
		}
		for _, t := range all {
			words := map[uint8]string{1: "icmp", 58: "icmpv6", 132: "sctp"}
			_, known := words[n.q.Proto]
			if known && (t.Protocol.String() == words[n.q.Proto] || t.Protocol.String() == "any" && (len(t.Ports) == 0 || n.q.Proto == 132)) {
				return ""
			}
		}
	}
	return why
}

func (n naive) isRedirected(e *Endpoint) bool {
	return e.Role == RoleApp || e.Role == RoleInit && n.Spec.Init == InitSidecar
}

// expected is what a decision should be: the rules are any of the paths, and none if there are no paths.
type expected struct {
	route       Route
	reason      string
	rules, peer []string
}

func (n naive) decide() expected {
	from, to := n.q.From.container, n.q.To.container
	dead := func(e *Endpoint) bool { return e.Role == RoleInit && n.Spec.Init == InitDeny }
	switch {
	case from == nil && to == nil:
		return expected{reason: ReasonProtocol}
	case from == nil:
		return n.arrives(to, dead(to))
	case dead(from):
		return expected{reason: ReasonInit}
	}
	if why := n.mayHaveSocket(from); why != "" {
		return expected{reason: why}
	}
	if to == nil {
		return n.leaves(from)
	}
	switch n.q.Proto {
	case 1, 58:
		return expected{route: RouteLocal}
	case 6, 17:
		if n.q.Same {
			return expected{route: RouteLocal}
		}
		out := expected{route: RouteLocal}
		if n.isRuled(from) {
			if out.rules = n.egress(from); out.rules == nil {
				return expected{reason: ReasonEgress}
			}
		}
		if n.isRuled(to) {
			if out.peer = n.ingress(to); out.peer == nil {
				return expected{reason: ReasonIngress, rules: out.rules}
			}
		}
		return out
	}
	if n.isRuled(from) {
		return expected{reason: ReasonEgress}
	}
	if n.isRuled(to) {
		return expected{reason: ReasonIngress}
	}
	return expected{route: RouteLocal}
}

func (n naive) leaves(from *Endpoint) expected {
	out := expected{route: RouteDirect}
	if n.isRuled(from) {
		if out.rules = n.egress(from); out.rules == nil {
			return expected{reason: ReasonEgress}
		}
	}
	if !n.isRedirected(from) {
		return out
	}
	if paths := n.exclusions("egress", n.Spec.Exclude.Egress, n.q.To.addr); paths != nil {
		if out.rules == nil {
			out.rules = paths
		}
		return out
	}
	if n.q.Proto == 6 {
		out.route = RouteRedirect
		if t := n.Spec.TLS; t != nil && t.Mode != TLSOff {
			out.route = RouteRelayed
		}
		return out
	}
	if n.q.Proto == 17 && n.q.Port == 53 && n.Spec.Redirect.DNS > 0 {
		out.route = RouteDNS
		return out
	}
	if n.isRuled(from) || n.Spec.NonTCP == ActionAllow || n.q.Proto != 17 {
		return out
	}
	return expected{reason: ReasonUDP}
}

func (n naive) arrives(to *Endpoint, dead bool) expected {
	excluded := n.exclusions("ingress", n.Spec.Exclude.Ingress, n.q.From.addr)
	rd := n.Spec.Redirect
	if n.q.Proto == 6 {
		relay := n.Spec.TLS != nil && n.Spec.TLS.Mode != TLSOff && n.q.Port == cmp.Or(n.Spec.TLS.Port, 15043)
		if n.q.Port == rd.Outbound || rd.DNS != 0 && n.q.Port == rd.DNS || relay {
			return expected{reason: ReasonPort}
		}
		sidecars := len(n.Spec.SidecarPorts) > 0 && within(n.Spec.SidecarPorts, n.q.Port)
		if to.Role != RoleSidecar && (n.q.Port == rd.Inbound || excluded == nil && !sidecars) {
			return expected{route: RouteSteered}
		}
	}
	if dead {
		return expected{reason: ReasonInit}
	}
	if n.isRuled(to) {
		paths := n.ingress(to)
		switch {
		case paths == nil:
			return expected{reason: ReasonIngress}
		case n.q.Proto == 6 && n.isRedirected(to) && excluded == nil:
			return expected{reason: ReasonInbound, peer: paths}
		}
		return expected{route: RouteDirect, peer: paths}
	}
	switch {
	case !n.isRedirected(to):
		return expected{route: RouteDirect}
	case excluded != nil:
		return expected{route: RouteDirect, rules: excluded}
	case n.Spec.NonTCP == ActionAllow && (n.q.Proto == 1 || n.q.Proto == 17 || n.q.Proto == 58):
		return expected{route: RouteDirect}
	}
	return expected{reason: ReasonInbound}
}

// checkDecisions compares some decisions with the naive ones, and returns their routes and reasons.
func checkDecisions(t *testing.T, p *PodPolicy, c *Compiled, d chooser, queries int) (made []string) {
	t.Helper()
	at, tables := cornersOf(p), NewTables(c, hostAddrs())
	for range queries {
		q := at.query(d)
		got, want := Decide(tables, q), naive{p, q, hostAddrs()}.decide()
		audit := want.reason != "" && p.Spec.Mode == ModeAudit
		ok := got.Allow == (want.reason == "" || audit) && got.Audit == audit && got.Route == want.route && got.Reason == want.reason
		if !ok || !isOneOf(c, got.Rule, want.rules) || !isOneOf(c, got.PeerRule, want.peer) {
			text, _ := p.MarshalYAML()
			t.Fatalf("%s:\ngot  %+v\nwant %+v\n%s", q, got, want, text)
		}
		checkMissing(t, q, got)
		made = append(made, got.Route.String()+" "+got.Reason)
	}
	return made
}

func isOneOf(c *Compiled, rule uint16, paths []string) bool {
	if rule == 0 || len(paths) == 0 {
		return rule == 0 && len(paths) == 0
	}
	for _, p := range paths {
		if c.Rules[rule-1].Path == p {
			return true
		}
	}
	return false
}

// checkMissing wants the rule that is said to be missing to help.
func checkMissing(t *testing.T, q Query, d Decision) {
	t.Helper()
	if d.Missing == "" {
		return
	}
	text := "apiVersion: " + APIVersion + "\nkind: PodPolicy\nmetadata: {name: x}\nspec:\n  rules:\n"
	for line := range strings.Lines(d.Missing) {
		text += "  " + line
	}
	ps, err := Parse("missing", []byte(text))
	if err != nil {
		t.Fatalf("%s: %+v: %v", q, d, err)
	}
	c, err := ps[0].Compile()
	if err != nil {
		t.Fatal(err)
	}
	if again := Decide(NewTables(c, hostAddrs()), q); again.Reason == d.Reason {
		t.Errorf("%s: %s, also with the rule\n%s", q, d.Reason, d.Missing)
	}
}

// checkCompiled compares the tables of a policy with what they are made from, and wants it to survive a round trip.
func checkCompiled(t *testing.T, p *PodPolicy, d chooser) {
	t.Helper()
	c := compileAgain(t, p)
	checkClasses(t, p, c, d)
	checkMatches(t, c, d)
}

// checkClasses wants two addresses to be of one class if and only if the same rules have peers that cover them.
func checkClasses(t *testing.T, p *PodPolicy, c *Compiled, d chooser) {
	t.Helper()
	at, tables := cornersOf(p), NewTables(c, nil)
	classes := map[string]uint32{"": 0}
	for range 100 {
		a := at.addr(d)
		covering, class := coveringRules(p, a), tables.Class(a)
		if other, has := classes[covering]; has && other != class {
			t.Fatalf("%s: class %d, and another address with the same rules (%s) has %d", a, class, covering, other)
		}
		classes[covering] = class
	}
	seen := map[uint32]string{}
	for covering, class := range classes {
		if other, has := seen[class]; has {
			t.Fatalf("class %d is that of rules (%s) and (%s)", class, covering, other)
		}
		seen[class] = covering
	}
	for i, x := range c.Prefixes { // none of them is without effect
		if i > 0 && c.Prefixes[i-1].Prefix == x.Prefix || x.Prefix != x.Prefix.Masked() {
			t.Fatalf("prefixes %v", c.Prefixes)
		}
	}
}

// coveringRules lists the rules that have the address among their CIDR peers.
func coveringRules(p *PodPolicy, a netip.Addr) (out string) {
	peers := func(path string, peers []Peer) {
		var inside []Peer
		for _, p := range peers {
			if p.CIDR != "" {
				inside = append(inside, p)
			}
		}
		if len(inside) > 0 && (naive{PodPolicy: p}).is(inside, Outside(a)) {
			out += " " + path
		}
	}
	for i, e := range p.Spec.Exclude.Egress {
		peers(fmt.Sprint("e", i), []Peer{{CIDR: e.CIDR}})
	}
	for i, e := range p.Spec.Exclude.Ingress {
		peers(fmt.Sprint("i", i), []Peer{{CIDR: e.CIDR}})
	}
	for i, s := range p.Spec.Rules {
		for j, r := range s.Egress {
			peers(fmt.Sprint(i, "e", j), r.To)
		}
		for j, r := range s.Ingress {
			peers(fmt.Sprint(i, "i", j), r.From)
		}
	}
	return out
}

// checkMatches compares matches with the longest of all entries that match.
func checkMatches(t *testing.T, c *Compiled, d chooser) {
	t.Helper()
	tables := NewTables(c, nil)
	for range 100 {
		e := Entry{Subject: uint32(d.n(5)), Peer: uint32(d.n(10)), Proto: pick[uint8](d, 1, 6, 17, 58, 132, 47), Port: uint16(d.n(65536))}
		if len(c.Entries) > 0 && d.n(8) > 0 { // near one that is there
			near := pick(d, c.Entries...)
			e.Subject, e.Dir, e.Peer = near.Subject, near.Dir, near.Peer
			if !near.AnyProto {
				e.Proto = near.Proto
			}
			if d.n(2) == 0 {
				e.Port = near.Port + uint16(pick(d, -1, 0, 1<<(16-near.PortBits)-1, 1<<(16-near.PortBits)))
			}
		}
		whole := d.n(4) == 0
		longest, rule := -1, uint16(0)
		for _, x := range c.Entries {
			if x.Subject != e.Subject || x.Dir != e.Dir || x.Peer != e.Peer || !x.AnyProto && x.Proto != e.Proto {
				continue
			}
			length := 100 + int(x.PortBits)
			if x.AnyProto {
				length = 0
			}
			if x.PortBits > 0 && (whole || (x.Port^e.Port)>>(16-x.PortBits) != 0) {
				continue
			}
			if length == longest {
				t.Fatalf("two entries like %+v", x)
			}
			if length > longest {
				longest, rule = length, x.Rule
			}
		}
		got, ok := tables.Match(e.Subject, e.Dir, e.Peer, e.Proto, e.Port, whole)
		if ok != (longest >= 0) || got != rule {
			t.Fatalf("%+v, whole %v: %d, %v, want %d", e, whole, got, ok, rule)
		}
	}
}

func TestRandomPolicies(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(1, 2))}
	seen := map[string]int{}
	for i := range 2000 {
		p := randomPolicy(d)
		if i%10 == 0 {
			checkCompiled(t, p, d)
		}
		c, err := p.Compile()
		if err != nil {
			t.Fatal(err)
		}
		checkClasses(t, p, c, d)
		for _, made := range checkDecisions(t, p, c, d, 30) {
			seen[made]++
		}
	}
	for _, want := range []string{
		"direct ", "redirect ", "dns ", "local ", "steered ", "none policy_egress", "none policy_ingress", "none udp",
		"none icmp", "none protocol", "none ingress", "none outbound_port", "none init",
	} {
		if seen[want] == 0 {
			t.Errorf("no decision was %s: %v", want, seen)
		}
	}
}
