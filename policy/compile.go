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
	c := &Compiled{Name: p.Metadata.Name, Mode: p.Spec.Mode, NonTCP: p.Spec.NonTCP, Init: p.Spec.Init, AdminCapabilities: p.Spec.AdminCapabilities, Accelerate: p.Spec.Accelerate}
	k.redirect(c, p.Spec.Redirect)
	k.tlsSection(c, &p.Spec)
	k.reserved(c, p.Spec.SidecarPorts)
	k.rules(c, p)
	if int(p.Spec.Mode) >= len(modeWords()) {
		k.add("spec.mode", "%s does not exist: use %s", p.Spec.Mode, or(modeWords()))
	}
	if int(p.Spec.NonTCP) >= len(actionWords()) {
		k.add("spec.nonTCP", "%s does not exist: use %s", p.Spec.NonTCP, or(actionWords()))
	}
	if int(p.Spec.AdminCapabilities) >= len(actionWords()) {
		k.add("spec.adminCapabilities", "%s does not exist: use %s", p.Spec.AdminCapabilities, or(actionWords()))
	}
	if int(p.Spec.Accelerate) >= len(accelerationWords()) {
		k.add("spec.accelerate", "%s does not exist: use %s", p.Spec.Accelerate, or(accelerationWords()))
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
	if int(r.Getsockname) >= len(sockNameWords()) {
		k.add("spec.redirect.getsockname", "%s does not exist: use %s", r.Getsockname, or(sockNameWords()))
	}
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
	all := make([]PortRange, 0, len(ranges)+4)
	for i, r := range ranges {
		k.rangeOf(indexPath("spec.sidecarPorts", i), r)
		all = append(all, r)
	}
	all = append(all, PortRange{c.Outbound, c.Outbound}, PortRange{c.Inbound, c.Inbound})
	if c.DNS != 0 {
		all = append(all, PortRange{c.DNS, c.DNS})
	}
	if c.TLSPort != 0 {
		all = append(all, PortRange{c.TLSPort, c.TLSPort})
	}
	c.Reserved = mergeRanges(all)
}

// rangeOf finds what only a Go literal can have.
func (k *checker) rangeOf(path string, r PortRange) {
	if r.First == 0 || r.First > r.Last {
		k.add(path, "%s is not a port range: both ends are 1 to 65535, the lower one first", r)
	}
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
