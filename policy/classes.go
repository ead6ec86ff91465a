// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"net/netip"
	"slices"
)

// ruleSet is a set of rules, by their indexes. It is the key of a class.
type ruleSet [(MaxRules + 63) / 64]uint64

// cover is which rules are about the addresses of a prefix, while classes walks from prefix to prefix.
type cover struct {
	cidrs  []cidrPeer
	active []bool         // of each peer: whether it covers the prefix
	peers  [MaxRules]int  // of each rule: how many of its peers do
	rules  ruleSet        // those with any
	open   []openedPrefix // those around the current prefix and itself, from the outermost
}

// openedPrefix is a prefix, what has changed at its border, and its class.
type openedPrefix struct {
	prefix  netip.Prefix
	toggled []int // indexes of cidrs
	class   uint32
}

// toggle begins, ends or takes back that a peer covers the addresses.
func (c *cover) toggle(peer int) {
	rule := c.cidrs[peer].rule
	step := 1
	if c.active[peer] {
		step = -1
	}
	c.active[peer] = !c.active[peer]
	c.peers[rule] += step
	if bit := uint64(1) << (rule % 64); c.peers[rule] > 0 {
		c.rules[rule/64] |= bit
	} else {
		c.rules[rule/64] &^= bit
	}
}

// enter leaves the prefixes that are not around p, enters p, and returns the class of what is around it.
func (c *cover) enter(p netip.Prefix, starts, ends []int) (outer uint32) {
	for len(c.open) > 0 && !covers(c.open[len(c.open)-1].prefix, p) {
		last := c.open[len(c.open)-1]
		for _, peer := range last.toggled {
			c.toggle(peer)
		}
		c.open = c.open[:len(c.open)-1]
	}
	if len(c.open) > 0 {
		outer = c.open[len(c.open)-1].class
	}
	o := openedPrefix{prefix: p}
	for _, peer := range ends {
		if c.active[peer] { // and not ended by an exception around this one
			c.toggle(peer)
			o.toggled = append(o.toggled, peer)
		}
	}
	for _, peer := range starts {
		c.toggle(peer)
		o.toggled = append(o.toggled, peer)
	}
	c.open = append(c.open, o)
	return outer
}

// classes finds which networks are covered by the same rules, and makes the entries of each such class.
func (r *ruler) classes(all []traffic) {
	prefixes, starts, ends := r.borders()
	c := &cover{cidrs: r.cidrs, active: make([]bool, len(r.cidrs))}
	numbers := map[ruleSet]uint32{{}: 0}
	for _, p := range prefixes {
		outer := c.enter(p, starts[p], ends[p])
		class, has := numbers[c.rules]
		if !has {
			class = FirstClass + uint32(len(numbers)) - 1
			numbers[c.rules] = class
			r.classEntries(all, c, class)
		}
		if r.full() {
			return
		}
		c.open[len(c.open)-1].class = class
		if class != outer {
			r.c.Prefixes = append(r.c.Prefixes, Prefix{p, class})
		}
	}
}

func (r *ruler) classEntries(all []traffic, c *cover, class uint32) {
	for i := range all {
		if c.peers[i] > 0 {
			r.entries(&all[i], class)
		}
	}
}

// borders lists all prefixes, sorted, and which peers start and which end at each, by their indexes in r.cidrs.
// Nothing if there are too many.
func (r *ruler) borders() (prefixes []netip.Prefix, starts, ends map[netip.Prefix][]int) {
	starts, ends = make(map[netip.Prefix][]int), make(map[netip.Prefix][]int)
	all := make(map[netip.Prefix]bool)
	for i := range r.cidrs {
		peer := &r.cidrs[i]
		starts[peer.prefix] = append(starts[peer.prefix], i)
		all[peer.prefix] = true
		for _, e := range peer.except {
			ends[e] = append(ends[e], i)
			all[e] = true
		}
		if len(all) > MaxPrefixes {
			r.add(peer.path, "the policy has more than %d distinct CIDRs and exceptions from here on: write larger ones", MaxPrefixes)
			return nil, nil, nil
		}
	}
	return slices.SortedFunc(maps.Keys(all), comparePrefixes), starts, ends
}
