// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sidegate/policy"
)

func TestNetworks(t *testing.T) {
	outside := netip.MustParseAddr(outsideIP)
	for _, n := range []int{10, 1000, 10_000} {
		list := networks(n)
		seen := map[netip.Prefix]bool{}
		for i, s := range list {
			p, err := policy.ParseCIDR(s)
			if err != nil {
				t.Fatal(err)
			}
			if seen[p] {
				t.Errorf("%d networks: %s is there twice", n, s)
			}
			seen[p] = true
			if last := i == len(list)-1; p.Contains(outside) != last {
				t.Errorf("%d networks: %s is number %d and has the outside's address: %v", n, s, i, !last)
			}
		}
		if len(list) != n {
			t.Errorf("%d networks, want %d", len(list), n)
		}
	}
}

func TestNested(t *testing.T) {
	outside := netip.MustParseAddr(outsideIP)
	for n, rules := range map[int]int{10: 5, 10_000: 499} {
		parts := nested(n, rules)
		list := slices.Concat(parts...)
		var around []string
		for _, s := range list {
			if netip.MustParsePrefix(s).Contains(outside) {
				around = append(around, s)
			}
		}
		if want := []string{"192.0.0.0/8", "192.0.2.0/24", outsideIP + "/32"}; !slices.Equal(around, want) {
			t.Errorf("%d networks: %q have the outside's address, want %q", n, around, want)
		}
		if len(parts) != rules || len(list) != n || list[n-1] != around[2] {
			t.Errorf("%d networks in %d rules, the last is %s; want %d in %d", len(list), len(parts), list[n-1], n, rules)
		}
	}
}

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		n    int
		want string
	}{{1, "abcdefg"}, {3, "abc de fg"}, {7, "a b c d e f g"}} {
		var got []string
		for _, part := range split(strings.Split("abcdefg", ""), c.n) {
			got = append(got, strings.Join(part, ""))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("in %d parts: %q, want %q", c.n, s, c.want)
		}
	}
}

// TestPolicies: what the figures are about is what the kernel gets.
func TestPolicies(t *testing.T) {
	for _, s := range must(newShapes()) {
		a, b := s.versions[0], s.versions[1]
		if len(a.Prefixes) != updateRules || len(b.Prefixes) != updateRules {
			t.Errorf("%s: %d and %d networks", s.name, len(a.Prefixes), len(b.Prefixes))
		}
		if slices.Equal(a.Entries, b.Entries) {
			t.Errorf("%s: both versions are the same", s.name)
		}
		allows(t, s.name, a, policy.RoleSidecar, callPort)
	}
	for _, s := range ruledSides {
		c, err := compile(bothWaysPolicy("x", s.nets))
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Prefixes) != s.nets || (s.nets > 0) != (len(c.Entries) > 0) {
			t.Errorf("%s: %d networks, %d entries", s.name, len(c.Prefixes), len(c.Entries))
		}
		if s.nets == 0 {
			continue
		}
		allows(t, s.name, c, policy.RoleSidecar, callPort)
		if n := len(c.Rules); s.nets == 10_000 && n < policy.MaxRules-2 {
			t.Errorf("%s: only %d rules", s.name, n)
		}
	}
}

func must(shapes []*shape, err error) []*shape {
	if err != nil {
		panic(err)
	}
	return shapes
}

// allows fails the test unless the longest network lets the role out to the port.
func allows(t *testing.T, what string, c *policy.Compiled, role policy.Role, port uint16) {
	t.Helper()
	class, own := uint32(0), netip.MustParsePrefix(outsideIP+"/32")
	for _, p := range c.Prefixes {
		if p.Prefix == own {
			class = p.Class
		}
	}
	if !slices.ContainsFunc(c.Entries, func(e policy.Entry) bool {
		return e.Subject == uint32(role) && e.Dir == policy.Egress && e.Peer == class && e.Proto == 6 && e.Port == port && e.PortBits == 16
	}) {
		t.Errorf("%s: no entry lets %s to port %d of %s", what, role, port, own)
	}
}

func TestTrieSteps(t *testing.T) {
	own := netip.MustParseAddr("10.0.0.1")
	for _, c := range []struct {
		list string
		want int
	}{
		{"10.0.0.1/32", 1},
		{"10.0.0.0/8 10.0.0.1/32", 2},
		{"10.0.0.1/32 10.0.0.0/32", 2},                           // they part at the last bit
		{"10.0.0.1/32 10.0.1.0/24 10.0.1.1/32", 2},               // both part at the same bit
		{"10.0.0.0/24 10.0.0.1/32 10.0.1.0/24 192.0.2.0/24", 4},  // two around and below, two aside
		{"10.0.0.0/24 10.0.0.1/32 10.0.0.128/25 10.0.0.2/32", 3}, // the /24 is where the /25 parts
	} {
		var list []netip.Prefix
		for s := range strings.FieldsSeq(c.list) {
			list = append(list, netip.MustParsePrefix(s))
		}
		if got := trieSteps(list, own); got != c.want {
			t.Errorf("%s: %d steps, want %d", c.list, got, c.want)
		}
	}
	// Spread evenly: as deep as there are bits to tell them apart, and no deeper.
	last := 0
	for _, n := range []int{10, 1000, 10_000} {
		c, err := compile(bothWaysPolicy("x", n))
		if err != nil {
			t.Fatal(err)
		}
		got := stepsOf(c)
		if got <= last || got > 19 { // 14 bits of 10,000, and the networks around
			t.Errorf("%d networks: %d steps, after %d", n, got, last)
		}
		last = got
	}
}

func TestChance(t *testing.T) {
	for _, c := range []struct {
		k, n int
		want float64
	}{{0, 3, 1}, {3, 3, 0.125}, {2, 3, 0.5}, {1, 1, 0.5}, {0, 0, 1}} {
		if got := chance(c.k, c.n); got != c.want {
			t.Errorf("%d of %d: %v, want %v", c.k, c.n, got, c.want)
		}
	}
}

func TestGrowth(t *testing.T) {
	up, even := slices.Repeat([]float64{1.1}, 10), []float64{0.9, 1.1, 0.9, 1.2, 1.1, 0.8}
	for want, ratios := range map[string][]float64{
		"x1.10 (it grows, more in 10 of 10)":                    up,
		"x0.91 (it shrinks, more in 0 of 10)":                   pairs(slices.Repeat([]float64{1}, 10), up, ratio),
		"x1.00 (no growth that could be shown, more in 3 of 6)": even,
		"x1.10 (no growth that could be shown, more in 1 of 1)": up[:1],
	} {
		if got := growth(ratios); got != want {
			t.Errorf("%v: %q, want %q", ratios, got, want)
		}
	}
}

func TestInTurns(t *testing.T) {
	var got []string
	err := inTurns(2, []string{"a", "b", "c"}, func(side string, warm bool) error {
		if !warm {
			got = append(got, side)
		}
		return nil
	})
	if want := strings.Split("acbcab", ""); err != nil || !slices.Equal(got, want) {
		t.Errorf("turns are %q, %v; want %q", got, err, want)
	}
}
