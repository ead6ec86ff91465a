// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Sides of the measurement of rules: how many networks the policy is about, each in a rule of its own or 20 in one. The first two are
// the same, and differ by what cannot be measured.
const (
	rulesNone     = "no rules"
	rulesNoneToo  = "no rules, the same again"
	rulesFew      = "10 networks"
	rulesMany     = "1,000 networks"
	rulesThatMany = "10,000 networks"
)

var ruledSides = []struct {
	name string
	nets int
}{{rulesNone, 0}, {rulesNoneToo, 0}, {rulesFew, 10}, {rulesMany, 1000}, {rulesThatMany, 10_000}}

// A ruled is a pod under a policy.
type ruled struct {
	*meshPod
	steps int // nodes of the trie of networks that a lookup of the outside's address meets
}

// A load is one way of making traffic for the rules to judge.
type load struct {
	name  string
	one   string // connection, datagram, write
	order func(m *mesh, p *meshPod) (*proc, order)
}

var loads = []load{
	{"connections, app to sidecar", "connection", func(_ *mesh, p *meshPod) (*proc, order) {
		return p.app, order{Op: "calls", Addr: at("127.0.0.1", directTo)}
	}},
	{"connections, sidecar to outside", "connection", func(_ *mesh, p *meshPod) (*proc, order) {
		return p.sidecar, order{Op: "calls", Addr: at(outsideIP, callPort)}
	}},
	{"datagrams of 64 bytes, sidecar to outside", "datagram", func(_ *mesh, p *meshPod) (*proc, order) {
		return p.sidecar, order{Op: "datagrams", Addr: at(outsideIP, sinkPort)}
	}},
	{"datagrams of 64 bytes, outside to sidecar", "datagram", func(m *mesh, p *meshPod) (*proc, order) {
		return m.out.agent, order{Op: "datagrams", Addr: at(p.addr, sinkPort)}
	}},
	{"TCP writes of 64 bytes, sidecar to outside", "write", func(_ *mesh, p *meshPod) (*proc, order) {
		return p.sidecar, order{Op: "stream", Addr: at(outsideIP, sinkPort)}
	}},
	{"TCP writes of 64 bytes, outside to sidecar", "write", func(m *mesh, p *meshPod) (*proc, order) {
		return m.out.agent, order{Op: "stream", Addr: at(p.addr, sinkPort)}
	}},
}

// measureRules times what is judged by rules, by how many there are.
func measureRules(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	m, err := newMesh(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.close(ctx)) }()
	pods := map[string]*ruled{}
	var sides []string
	for i, s := range ruledSides {
		if pods[s.name], err = newRuled(ctx, m, fmt.Sprintf("rules-%d", i), s.nets); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		sides = append(sides, s.name)
	}
	var grown, same []float64 // of all loads
	for _, l := range loads {
		rate, cpu, err := l.rounds(e.rounds(18), m, sides, pods)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", l.name, err)
		}
		inside, err := l.inside(e.rounds(18), m, sides, pods)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", l.name, err)
		}
		var ratios []compare
		for _, s := range sides[1:] {
			ratios = append(ratios, compare{s, rulesNone})
		}
		ratios = append(ratios, compare{rulesThatMany, rulesFew})
		for _, f := range []struct {
			name, unit string
			values     map[string][]float64
			ratios     []compare
		}{
			{l.name, "1000/s", rate, ratios}, {"CPU of both ends", "us a " + l.one, cpu, ratios},
			// Without rules there is next to nothing to compare with.
			{"of which in programs on cgroups", "ns a " + l.one, inside, []compare{{rulesMany, rulesFew}, {rulesThatMany, rulesFew}}},
		} {
			f, err := newFigure("rules", f.name, f.unit, sides, f.values, f.ratios...)
			if err != nil {
				return nil, nil, err
			}
			figures = append(figures, f)
		}
		more := pairs(cpu[rulesThatMany], cpu[rulesFew], ratio)
		notes = append(notes, fmt.Sprintf("rules: %s: 10,000 networks against 10: CPU %s, in programs %s",
			l.name, growth(more), growth(pairs(inside[rulesThatMany], inside[rulesFew], ratio))))
		grown, same = append(grown, more...), append(same, pairs(cpu[rulesNoneToo], cpu[rulesNone], ratio)...)
	}
	return figures, append(notes,
		fmt.Sprintf("rules: all of these together: CPU %s; no rules against the same again %s", growth(grown), growth(same)),
		fmt.Sprintf("rules: a lookup of the address meets %d, %d and %d nodes of the trie in a policy of 10, 1,000 and 10,000 networks, of which the last matches",
			pods[rulesFew].steps, pods[rulesMany].steps, pods[rulesThatMany].steps),
		"rules: the kernel joins TCP writes that it cannot send at once, so fewer packets are judged where the machine is busy"), nil
}

// newRuled starts a pod under a policy of this many networks, and sees that it holds.
func newRuled(ctx context.Context, m *mesh, name string, nets int) (*ruled, error) {
	c, err := compile(bothWaysPolicy(name, nets))
	if err != nil {
		return nil, err
	}
	if nets > 0 && len(c.Prefixes) != nets {
		return nil, fmt.Errorf("the policy has %d networks", len(c.Prefixes))
	}
	p, err := m.pod(ctx, stateDir("rules"), c, true)
	if err != nil {
		return nil, err
	}
	// What answers tells that it came.
	for _, ping := range []struct {
		from *proc
		to   string
	}{{p.sidecar, outsideIP}, {m.out.agent, p.addr}} {
		if _, err := ping.from.do(order{Op: "pings", Addr: at(ping.to, echoPort), Count: 5, For: 5 * time.Second}); err != nil {
			return nil, err
		}
	}
	const closedPort = callPort + 1
	a, err := p.sidecar.ask(order{Op: "calls", Addr: at(outsideIP, closedPort), Count: 1, For: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	if want := map[bool]string{true: "operation not permitted", false: "connection refused"}[nets > 0]; !strings.Contains(a.Err, want) {
		return nil, fmt.Errorf("a connection to port %d, which no rule allows: %q, want %q", closedPort, a.Err, want)
	}
	return &ruled{meshPod: p, steps: stepsOf(c)}, nil
}

// rounds makes the load on all sides in turns.
func (l *load) rounds(n int, m *mesh, sides []string, pods map[string]*ruled) (rate, cpu map[string][]float64, err error) {
	rate, cpu = map[string][]float64{}, map[string][]float64{}
	err = inTurns(n, sides, func(side string, warm bool) error {
		p := pods[side].meshPod
		agent, o := l.order(m, p)
		o.Count, o.For = 1_000_000, 50*time.Millisecond
		a, used, err := agent.doOn(o, p.cgroup, m.out.cgroup)
		if err == nil && !warm {
			rate[side] = append(rate[side], float64(a.Done)/a.Took/1e3)
			cpu[side] = append(cpu[side], used/float64(a.Done)*1e6)
		}
		return err
	})
	return rate, cpu, err
}

// inside is as rounds, and asks the kernel how long the programs run.
func (l *load) inside(n int, m *mesh, sides []string, pods map[string]*ruled) (ns map[string][]float64, err error) {
	c, err := newClock(stateDir("rules"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	ns = map[string][]float64{}
	return ns, inTurns(n, sides, func(side string, warm bool) error {
		before, err := c.seconds()
		if err != nil {
			return err
		}
		agent, o := l.order(m, pods[side].meshPod)
		o.Count, o.For = 1_000_000, 20*time.Millisecond
		a, err := agent.do(o)
		if err != nil {
			return err
		}
		after, err := c.seconds()
		if err == nil && !warm {
			ns[side] = append(ns[side], (after-before)/float64(a.Done)*1e9)
		}
		return err
	})
}

// inTurns calls f for each side in each of n rounds, after one that warms up. Every other round goes the other way, so that no side
// always comes after the same one.
func inTurns(n int, sides []string, f func(side string, warm bool) error) error {
	for round := range n + 1 {
		turns := rotated(sides, round)
		if round%2 == 1 {
			slices.Reverse(turns)
		}
		for _, side := range turns {
			if err := f(side, round == 0); err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
		}
	}
	return nil
}

// growth says whether ratios are above 1, by how many of them are: it grows if a coin would hardly fall so often on one side.
func growth(ratios []float64) string {
	above := 0
	for _, r := range ratios {
		if r > 1 {
			above++
		}
	}
	word := "no growth that could be shown"
	switch n := len(ratios); {
	case chance(above, n) < 0.02:
		word = "it grows"
	case chance(n-above, n) < 0.02:
		word = "it shrinks"
	}
	return fmt.Sprintf("%s (%s, more in %d of %d)", times(median(ratios)), word, above, len(ratios))
}

// chance returns how likely it is that at least k of n coins fall on one side.
func chance(k, n int) float64 {
	total, ways := 0.0, 1.0 // of i coins, out of n
	for i := range n + 1 {
		if i >= k {
			total += ways
		}
		ways = ways * float64(n-i) / float64(i+1)
	}
	for range n {
		total /= 2
	}
	return total
}
