// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Compiled is a policy as the kernel's maps want it: every default filled in, every list in normal form, so that two
// policies that mean the same compile to equal values.
type Compiled struct {
	Name     string
	Outbound uint16
	Inbound  uint16
	DNS      uint16 // 0: off
	// Getsockname is what the sidecar's redirected connections are told.
	Getsockname SockName
	// Reserved are the ports that only the sidecar may bind: sorted, neither overlapping nor adjacent.
	Reserved []PortRange
	// Egress and Ingress are sorted by prefix (IPv4 first, shorter before longer at the same address), protocol and
	// port. Each entry is one prefix, protocol and range.
	//
	// They are closed under longest match: a prefix has, besides its own entries, those of all prefixes that cover
	// it. Whoever looks an address up in an LPM trie needs the longest match only.
	//
	// IPv4 prefixes match IPv4 only, also where IPv4 is written as ::ffff:a.b.c.d, and IPv6 prefixes match the rest.
	Egress  []Rule
	Ingress []Rule
	NonTCP  Action
	Init    InitMode
}

// Rule is one entry: a destination of egress, a source of ingress. Ports are always those of the destination.
type Rule struct {
	Prefix netip.Prefix // masked, never IPv4 in IPv6
	Proto  Proto        // ProtoTCP, ProtoUDP or ProtoAny
	Ports  PortRange
}

// Compile checks the policy and gives its compiled form. Errors are [Error] values, joined; those of a policy that
// came from a file were already found by [Parse].
func (p *PodPolicy) Compile() (*Compiled, error) {
	c, problems := p.compile()
	if len(problems) == 0 {
		return c, nil
	}
	errs := make([]error, 0, len(problems))
	for _, pr := range problems {
		errs = append(errs, &Error{File: p.file, Line: p.line, Path: pr.path, Msg: pr.msg})
	}
	return nil, errors.Join(errs...)
}

// problem is a fault found in a policy's values. Where it is in a file is for Parse to say.
type problem struct{ path, msg string }

type checker struct{ problems []problem }

func (k *checker) add(path, format string, args ...any) {
	k.problems = append(k.problems, problem{path, fmt.Sprintf(format, args...)})
}

// check adds msg unless it is empty.
func (k *checker) check(path, msg string) {
	if msg != "" {
		k.problems = append(k.problems, problem{path, msg})
	}
}

func (p *PodPolicy) compile() (*Compiled, []problem) {
	var k checker
	if p.APIVersion != "" && p.APIVersion != APIVersion {
		k.add("apiVersion", "%s is not known: write %s", show(p.APIVersion), APIVersion)
	}
	if p.Kind != "" && p.Kind != Kind {
		k.add("kind", "%s is not known: write %s", show(p.Kind), Kind)
	}
	k.check("metadata.name", dnsLabelProblem(p.Metadata.Name))
	k.labels("metadata.labels", p.Metadata.Labels)
	k.selector("spec.podSelector", p.Spec.PodSelector)
	k.roles("spec.roles", p.Spec.Roles)
	c := &Compiled{Name: p.Metadata.Name, NonTCP: p.Spec.NonTCP, Init: p.Spec.Init}
	k.redirect(c, p.Spec.Redirect)
	k.reserved(c, p.Spec.SidecarPorts)

	ex := p.Spec.Exclude
	if n := len(ex.Egress) + len(ex.Ingress); n > MaxRules {
		k.add("spec.exclude", "%d rules: write at most %d, egress and ingress together", n, MaxRules)
	} else {
		c.Egress = k.rules("spec.exclude.egress", ex.Egress, false)
		c.Ingress = k.rules("spec.exclude.ingress", ex.Ingress, true)
	}
	if int(p.Spec.NonTCP) >= len(actionWords()) {
		k.add("spec.nonTCP", "%s does not exist: use %s", p.Spec.NonTCP, or(actionWords()))
	}
	if int(p.Spec.Init) >= len(initWords()) {
		k.add("spec.init", "%s does not exist: use %s", p.Spec.Init, or(initWords()))
	}
	if len(k.problems) > 0 {
		return nil, k.problems
	}
	return c, nil
}

func (k *checker) labels(path string, labels map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		at := keyPath(path, key)
		k.check(at, labelKeyProblem(key))
		k.check(at, labelValueProblem(labels[key]))
	}
}

func (k *checker) selector(path string, s *LabelSelector) {
	if s == nil {
		return
	}
	k.labels(path+".matchLabels", s.MatchLabels)
	for i, r := range s.MatchExpressions {
		at := indexPath(path+".matchExpressions", i)
		k.check(at+".key", labelKeyProblem(r.Key))
		for j, v := range r.Values {
			k.check(indexPath(at+".values", j), labelValueProblem(v))
		}
		switch r.Operator {
		case OpIn, OpNotIn:
			if len(r.Values) == 0 {
				k.add(at+".values", "%s needs values: list at least one", r.Operator)
			}
		case OpExists, OpDoesNotExist:
			if len(r.Values) > 0 {
				k.add(at+".values", "%s takes no values: leave them out, or write In or NotIn", r.Operator)
			}
		default:
			k.add(at+".operator", "%s is not an operator: %s", show(string(r.Operator)), didYouMean(string(r.Operator), operatorWords()))
		}
	}
}

func (k *checker) roles(path string, roles []ContainerRole) {
	seen := make(map[string]int, len(roles))
	sidecar := -1
	for i, r := range roles {
		at := indexPath(path, i)
		k.check(at+".container", nameProblem(r.Container, "the name of a container"))
		if j, has := seen[r.Container]; has {
			k.add(at+".container", "%s has a role already, in %s: leave one of them out", show(r.Container), indexPath(path, j))
		} else {
			seen[r.Container] = i
		}
		if r.Role == RoleUnset || r.Role > RoleNone {
			k.add(at+".role", "%s is not a role: write %s", show(r.Role.String()), or(roleWords()[1:]))
		}
		if r.Role != RoleSidecar {
			continue
		}
		if sidecar >= 0 {
			k.add(at+".role", "%s is a second sidecar, %s is the first: a pod has one", show(r.Container), show(roles[sidecar].Container))
			continue
		}
		sidecar = i
	}
}

func (k *checker) redirect(c *Compiled, r Redirect) {
	c.Getsockname = r.Getsockname
	c.Outbound, c.Inbound, c.DNS = cmp.Or(r.Outbound, DefaultOutbound), cmp.Or(r.Inbound, DefaultInbound), r.DNS
	// Blame the port that was written, not the default that it meets.
	switch {
	case c.Outbound != c.Inbound:
	case r.Inbound == 0:
		k.add("spec.redirect.outbound", "%d is spec.redirect.inbound's port, by default: write different ports", c.Outbound)
	default:
		k.add("spec.redirect.inbound", "%d is spec.redirect.outbound's port too: write different ports", c.Inbound)
	}
	for _, other := range []struct {
		name string
		port uint16
	}{{"outbound", c.Outbound}, {"inbound", c.Inbound}} {
		if c.DNS == other.port {
			k.add("spec.redirect.dns", "%d is spec.redirect.%s's port too: write different ports", c.DNS, other.name)
		}
	}
}

func (k *checker) reserved(c *Compiled, ranges []PortRange) {
	if len(ranges) > MaxSidecarPorts {
		k.add("spec.sidecarPorts", "%d entries: write at most %d, ranges such as 15000-15010 count once", len(ranges), MaxSidecarPorts)
	}
	all := make([]PortRange, 0, len(ranges)+3)
	for i, r := range ranges {
		k.rangeOf(indexPath("spec.sidecarPorts", i), r)
		all = append(all, r)
	}
	all = append(all, PortRange{c.Outbound, c.Outbound}, PortRange{c.Inbound, c.Inbound})
	if c.DNS != 0 {
		all = append(all, PortRange{c.DNS, c.DNS})
	}
	c.Reserved = mergeRanges(all)
}

// rangeOf finds what only a Go literal can have.
func (k *checker) rangeOf(path string, r PortRange) {
	if r.First == 0 || r.First > r.Last {
		k.add(path, "%s is not a port range: both ends are 1 to 65535, the lower one first", r)
	}
}

// portSet is what one prefix lets pass, by protocol.
type portSet struct{ tcp, udp []PortRange }

func (k *checker) rules(path string, rules []Exclusion, ingress bool) []Rule {
	sets := make(map[netip.Prefix]*portSet, len(rules))
	first := make(map[netip.Prefix]string, len(rules)) // the rule that brought the prefix, for messages
	before := len(k.problems)
	for i, r := range rules {
		at := indexPath(path, i)
		var prefixes []netip.Prefix
		switch {
		case r.CIDR == "" && ingress:
			prefixes = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
		case r.CIDR == "":
			k.add(at+".cidr", "missing: write a destination, such as cidr: 10.0.0.0/8")
		default:
			p, err := ParseCIDR(r.CIDR)
			if err != nil {
				k.add(at+".cidr", "%s", err)
			}
			prefixes = []netip.Prefix{p}
		}
		ports := r.Ports
		switch {
		case len(ports) > MaxRangesPerPrefix:
			k.add(at+".ports", "%d entries: write at most %d, ranges such as 8000-8100 count once", len(ports), MaxRangesPerPrefix)
		case len(ports) == 0 && ingress:
			k.add(at+".ports", "missing: list the app's ports, such as ports: [9090]")
		case len(ports) == 0:
			ports = []PortRange{AllPorts}
		}
		for j, pr := range ports {
			k.rangeOf(indexPath(at+".ports", j), pr)
		}
		proto := cmp.Or(r.Protocol, ProtoTCP)
		if int(proto) >= len(protoWords()) {
			k.add(at+".protocol", "%s does not exist: use %s", proto, or(protoWords()[1:]))
		}
		for _, p := range prefixes {
			if sets[p] == nil {
				sets[p] = new(portSet)
				first[p] = at
			}
			sets[p].add(ports, proto)
		}
	}
	if len(k.problems) > before {
		return nil
	}
	return k.flatten(sets, first)
}

func (s *portSet) add(ports []PortRange, proto Proto) {
	if proto != ProtoUDP {
		s.tcp = append(s.tcp, ports...)
	}
	if proto != ProtoTCP {
		s.udp = append(s.udp, ports...)
	}
}

// flatten gives each prefix what its covering prefixes have, and lists the entries in order.
func (k *checker) flatten(sets map[netip.Prefix]*portSet, first map[netip.Prefix]string) []Rule {
	prefixes := slices.SortedFunc(maps.Keys(sets), comparePrefixes)
	var out []Rule
	var covering []netip.Prefix // from the outermost to the innermost
	for _, p := range prefixes {
		for len(covering) > 0 && !covers(covering[len(covering)-1], p) {
			covering = covering[:len(covering)-1]
		}
		s := sets[p]
		if len(covering) > 0 { // which has its own covering prefixes' ranges already
			outer := sets[covering[len(covering)-1]]
			s.tcp = append(s.tcp, outer.tcp...)
			s.udp = append(s.udp, outer.udp...)
		}
		s.tcp, s.udp = mergeRanges(s.tcp), mergeRanges(s.udp)
		entries := s.entries(p)
		if len(entries) > MaxRangesPerPrefix {
			k.add(first[p], "%s has %d port ranges, with those of all rules for it and for the prefixes around it: at most %d, so merge some ranges",
				p, len(entries), MaxRangesPerPrefix)
			s.tcp, s.udp = nil, nil // said once, not again for every prefix inside
		}
		out = append(out, entries...)
		covering = append(covering, p)
	}
	return out
}

// entries lists the set; a range that both protocols have is one entry.
func (s *portSet) entries(p netip.Prefix) []Rule {
	var out []Rule
	for _, r := range s.tcp {
		proto := ProtoTCP
		if slices.Contains(s.udp, r) {
			proto = ProtoAny
		}
		out = append(out, Rule{p, proto, r})
	}
	for _, r := range s.udp {
		if !slices.Contains(s.tcp, r) {
			out = append(out, Rule{p, ProtoUDP, r})
		}
	}
	slices.SortFunc(out, func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Ports.First, b.Ports.First))
	})
	return out
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// covers says whether inner lies within outer, both masked.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}

// mergeRanges returns the ranges sorted, with overlapping and adjacent ones joined, in a new slice.
func mergeRanges(in []PortRange) []PortRange {
	in = slices.Clone(in)
	slices.SortFunc(in, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	var out []PortRange
	for _, r := range in {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out
}

// ParseCIDR reads a prefix and accepts its exact form only: with a length, without host bits or a zone, and IPv4
// written as such. ::ffff:10.0.0.0/104 is refused rather than taken for 10.0.0.0/8, so that a policy says what it
// does. ::/0 is IPv6 only.
func ParseCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			a = a.Unmap()
			return netip.Prefix{}, fmt.Errorf("%s has no prefix length: write %s", show(s), netip.PrefixFrom(a, a.BitLen()))
		}
		return netip.Prefix{}, fmt.Errorf("%s is not a CIDR: write an address and a length, such as 10.0.0.0/8 or fd00::/8", show(s))
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		v4 := netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
		return netip.Prefix{}, fmt.Errorf("%s is IPv4 written as IPv6: write %s", show(s), v4)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%s has bits set after the prefix: write %s, or %s for the one address",
			show(s), m, netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	}
	return p, nil
}
