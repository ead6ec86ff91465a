// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// chooser decides what a random policy is: dice, or the bytes of a fuzzer.
type chooser interface{ n(below int) int }

type dice struct{ *rand.Rand }

func (d dice) n(below int) int { return d.IntN(below) }

// tape reads choices from bytes, and 0 after their end.
type tape struct{ data []byte }

func (t *tape) n(below int) int {
	v := 0
	for size := 1; size < below; size *= 256 {
		if len(t.data) == 0 {
			return 0
		}
		v = v*256 + int(t.data[0])
		t.data = t.data[1:]
	}
	return v % below
}

func pick[T any](d chooser, from ...T) T { return from[d.n(len(from))] }

// many makes up to most.
func many[T any](d chooser, most int, one func() T) (out []T) {
	for range d.n(most + 1) {
		out = append(out, one())
	}
	return out
}

func randomName(d chooser) string { return pick(d, "web", "db", "proxy", "a.b", "web-2") }

// randomPrefix is one of a few that are nested, or of many.
func randomPrefix(d chooser) netip.Prefix {
	a, bits := netip.AddrFrom4([4]byte{pick[byte](d, 10, 10, 192), pick[byte](d, 0, 1), pick[byte](d, 2, 3), byte(d.n(256))}),
		pick(d, 0, 7, 8, 9, 15, 16, 24, 25, 30, 31, 32)
	if d.n(3) == 0 {
		a = netip.AddrFrom16([16]byte{0: pick[byte](d, 0xfd, 0x20), 1: byte(d.n(2)), 15: byte(d.n(4))})
		bits = pick(d, 0, 7, 8, 16, 64, 126, 127, 128)
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func randomRange(d chooser) PortRange {
	if d.n(4) > 0 {
		return pick(d, PortRange{1, 65535}, PortRange{1, 1}, PortRange{65535, 65535}, PortRange{53, 53}, PortRange{443, 443},
			PortRange{80, 81}, PortRange{1, 1023}, PortRange{1024, 65535}, PortRange{8000, 8100}, PortRange{8101, 8103},
			PortRange{15001, 15001}, PortRange{15006, 15006})
	}
	a, b := uint16(1+d.n(65535)), uint16(1+d.n(65535))
	return PortRange{min(a, b), max(a, b)}
}

func randomPeer(d chooser, inside bool) (p Peer) {
	kind := d.n(8)
	switch {
	case inside && kind < 2:
		p.Role = Role(1 + d.n(4))
	case inside && kind < 4:
		p.Container = randomName(d)
	case kind == 4:
		p.Entity = Entity(1 + d.n(2))
	default:
		prefix := randomPrefix(d)
		p.CIDR = prefix.String()
		for range d.n(4) {
			e := randomPrefix(d)
			if d.n(2) == 0 && prefix.Bits() < prefix.Addr().BitLen() { // one that is inside for sure
				e = netip.PrefixFrom(prefix.Addr(), prefix.Bits()+1+d.n(prefix.Addr().BitLen()-prefix.Bits()))
			}
			if e.Bits() > prefix.Bits() && prefix.Contains(e.Addr()) {
				p.Except = append(p.Except, e.String())
			}
		}
	}
	return p
}

func randomTraffic(d chooser) (t Traffic) {
	t.Protocol = RuleProto(d.n(6))
	if t.Protocol == RuleICMP || t.Protocol == RuleICMPv6 {
		t.Types = many(d, 3, func() ICMPType { return pick[ICMPType](d, 0, 1, 3, 8, 128, 129, 255) })
		return t
	}
	t.Ports = many(d, 3, func() PortRange { return randomRange(d) })
	return t
}

func randomPeers(d chooser, t *Traffic) []Peer {
	return many(d, 3, func() Peer { return randomPeer(d, t.Protocol != RuleSCTP) })
}

func randomSubject(d chooser) (s SubjectRules) {
	if d.n(2) == 0 {
		s.Role = Role(1 + d.n(4))
	} else {
		s.Container = randomName(d)
	}
	if d.n(4) > 0 {
		s.Egress = []EgressRule{}
		for range d.n(4) {
			t := randomTraffic(d)
			s.Egress = append(s.Egress, EgressRule{To: randomPeers(d, &t), Traffic: t})
		}
	}
	if d.n(2) == 0 {
		s.Ingress = []IngressRule{}
		for range d.n(4) {
			t := randomTraffic(d)
			s.Ingress = append(s.Ingress, IngressRule{From: randomPeers(d, &t), Traffic: t})
		}
	}
	if d.n(4) == 0 {
		s.Unix = &Unix{Optional: d.n(2) == 0, Allow: many(d, 3, func() (a UnixAllow) {
			a.Type = UnixType(d.n(4))
			if d.n(2) == 0 {
				a.Path = pick(d, "/run/x", "/run/**", `/a[!b-d]?/\\"`, "/run/\u00e9\x01 #: ")
			} else {
				a.Abstract = pick(d, "@x", "@**", "@ ' \U0001f600")
			}
			a.To = many(d, 3, func() Peer {
				if d.n(2) == 0 {
					return Peer{Role: Role(1 + d.n(4))}
				}
				return Peer{Container: randomName(d)}
			})
			return a
		})}
	}
	if d.n(4) == 0 || s.Egress == nil && s.Ingress == nil && s.Unix == nil {
		s.Processes = []string{}
		if d.n(2) == 0 {
			s.Processes = append(s.Processes, "/usr/sbin/haproxy", "/bin/a b")
		}
	}
	return s
}

func randomVerdict(d chooser, from Verdict) Verdict { return from + Verdict(d.n(3-int(from))) }

func randomTLS(d chooser) *TLS {
	t := &TLS{Mode: TLSMode(d.n(3)), Port: pick[uint16](d, 0, 15043, 1, 65535), Require: TLSRequire(d.n(2))}
	t.Plaintext, t.Other, t.Fronting = randomVerdict(d, 0), randomVerdict(d, 0), randomVerdict(d, 0)
	names := 0
	name := func() string {
		names++
		return fmt.Sprint("rule-", names)
	}
	host := func() string { return pick(d, "a.example", "*.example", "X_1.Example", "xn--e1afmkfd.example") }
	if d.n(2) == 0 {
		t.SNI = &SNI{Default: randomVerdict(d, VerdictAllow), Absent: randomVerdict(d, 0)}
		t.SNI.Rules = many(d, 3, func() SNIRule {
			return SNIRule{Name: name(), Action: randomVerdict(d, VerdictAllow), Hosts: append(many(d, 2, host), host())}
		})
	}
	if d.n(2) == 0 {
		t.HTTP = &HTTP{Default: randomVerdict(d, VerdictAllow)}
		t.HTTP.Rules = many(d, 3, func() HTTPRule {
			r := HTTPRule{Name: name(), Action: randomVerdict(d, VerdictAllow), SNI: many(d, 2, host)}
			r.Hosts = many(d, 2, func() string { return pick(d, host(), "10.0.0.1", "2001:DB8::1") })
			r.Methods = many(d, 2, func() string { return pick(d, "GET", "CONNECT", "*", "NULL") })
			r.Path = pick(d, HTTPPath{}, HTTPPath{Exact: "*"}, HTTPPath{Exact: "/ #'\"<\u00e9\u2028"}, HTTPPath{Prefix: "/~: {}"}, HTTPPath{Regex: `\A/(?i:a)\x{2028}\n` + "\t\v\x01"})
			r.Headers = many(d, 2, func() string { return pick(d, "X-A", "true", "*", "~", "1e3") })
			if r.Action == VerdictAllow {
				r.Upgrades = many(d, 2, func() string { return pick(d, "WebSocket", "a/1.0", "off") })
			}
			return r
		})
	}
	if d.n(2) == 0 {
		t.Headers = []string{pick(d, "Accept", "yes", "0x1")}
	}
	return t
}

// randomPolicy is one that compiles, with the defaults written out.
func randomPolicy(d chooser) *PodPolicy {
	p := Default()
	p.Spec.NonTCP, p.Spec.Init = Action(d.n(2)), InitMode(d.n(3))
	p.Spec.Mode = Mode(pick(d, 0, 0, 0, 1))
	p.Spec.Redirect.DNS = pick[uint16](d, 0, 15053)
	p.Spec.Redirect.Getsockname = SockName(d.n(2))
	p.Spec.SidecarPorts = many(d, 2, func() PortRange { return pick(d, PortRange{8404, 8404}, PortRange{443, 444}) })
	exclusion := func() Exclusion {
		return Exclusion{
			CIDR: randomPrefix(d).String(), Protocol: Proto(1 + d.n(3)),
			Ports: many(d, 3, func() PortRange { return randomRange(d) }),
		}
	}
	p.Spec.Exclude.Egress = many(d, 3, exclusion)
	p.Spec.Exclude.Ingress = many(d, 3, func() Exclusion {
		e := exclusion()
		if d.n(2) == 0 {
			e.CIDR = ""
		}
		e.Ports = append(e.Ports, randomRange(d))
		return e
	})
	if p.Spec.Mode == ModeEnforce && d.n(4) == 0 {
		p.Spec.TLS = randomTLS(d)
	}
	for range d.n(6) {
		s := randomSubject(d)
		if !slices.ContainsFunc(p.Spec.Rules, func(o SubjectRules) bool { return o.Role == s.Role && o.Container == s.Container }) {
			p.Spec.Rules = append(p.Spec.Rules, s)
		}
	}
	return p
}

func hostAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00::1")}
}

// corners are addresses and ports at the borders of what a policy mentions.
type corners struct {
	addrs []netip.Addr
	ports []uint16
}

func (c *corners) cidr(s string) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return
	}
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	end, _ := netip.AddrFromSlice(last)
	for _, a := range []netip.Addr{p.Addr(), p.Addr().Prev(), end, end.Next()} {
		if a.IsValid() {
			c.addrs = append(c.addrs, a)
		}
	}
}

func (c *corners) ranges(ranges []PortRange) {
	for _, r := range ranges {
		for _, p := range []int{int(r.First) - 1, int(r.First), int(r.Last), int(r.Last) + 1} {
			if p > 0 && p < 65536 {
				c.ports = append(c.ports, uint16(p))
			}
		}
	}
}

func cornersOf(p *PodPolicy) *corners {
	c := &corners{addrs: hostAddrs(), ports: []uint16{53, 80, 443, 12345, p.Spec.Redirect.Outbound, p.Spec.Redirect.Inbound}}
	c.addrs = append(c.addrs, netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:db8::1"))
	peers := func(ps []Peer, t Traffic) {
		c.ranges(t.Ports)
		for _, p := range ps {
			c.cidr(p.CIDR)
			for _, e := range p.Except {
				c.cidr(e)
			}
		}
	}
	for _, e := range slices.Concat(p.Spec.Exclude.Egress, p.Spec.Exclude.Ingress) {
		c.cidr(e.CIDR)
		c.ranges(e.Ports)
	}
	for _, s := range p.Spec.Rules {
		for _, r := range s.Egress {
			peers(r.To, r.Traffic)
		}
		for _, r := range s.Ingress {
			peers(r.From, r.Traffic)
		}
	}
	c.ranges(p.Spec.SidecarPorts)
	if p.Spec.Redirect.DNS != 0 {
		c.ports = append(c.ports, p.Spec.Redirect.DNS)
	}
	if p.Spec.TLS != nil {
		c.ports = append(c.ports, cmp.Or(p.Spec.TLS.Port, DefaultTLS))
	}
	return c
}

func (c *corners) addr(d chooser) netip.Addr {
	if d.n(4) == 0 {
		p := randomPrefix(d)
		return p.Addr()
	}
	return pick(d, c.addrs...)
}

func (c *corners) end(d chooser) End {
	if d.n(2) == 0 {
		return Outside(c.addr(d))
	}
	return Inside(Endpoint{Role: Role(d.n(5)), Name: pick(d, "", "other", randomName(d))})
}

func (c *corners) query(d chooser) Query {
	q := Query{From: c.end(d), To: c.end(d), Proto: pick[uint8](d, 1, 6, 6, 6, 17, 17, 58, 132, 47)}
	q.Same = q.From.container != nil && q.To.container != nil && *q.From.container == *q.To.container && d.n(2) == 0
	switch q.Proto {
	case 1, 58:
		q.Port = pick[uint16](d, 0, 1, 2, 3, 8, 127, 128, 129, 254, 255)
	case 47:
	default:
		q.Port = pick(d, c.ports...)
	}
	return q
}

// String is for messages.
func (q Query) String() string {
	return fmt.Sprintf("%s -> %s, protocol %d, port %d, same %v", q.From, q.To, q.Proto, q.Port, q.Same)
}
