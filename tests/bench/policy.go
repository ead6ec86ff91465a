// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sidegate/cgroups"
	"sidegate/policy"
)

const (
	updateName  = "bench"
	updatePods  = 50
	updateRules = policy.MaxPrefixes
)

// A shape is a policy of updateRules rules, written in two versions.
type shape struct {
	name     string
	texts    [2]string
	versions [2]*policy.Compiled
}

func newShapes() ([]*shape, error) {
	shapes := []*shape{
		{name: "1 rule, 10,000 networks"},
		{name: "1,000 rules, 10 networks each"},
	}
	for i, rules := range []int{1, policy.MaxRules - 1} { // and one for the app
		for v, port := range []int{443, 8443} {
			s, err := shapes[i], error(nil)
			s.texts[v] = egressPolicy(updateName, updateRules, rules, port)
			if s.versions[v], err = compile(s.texts[v]); err != nil {
				return nil, err
			}
		}
	}
	return shapes, nil
}

// An updated is one or many pods in a state of their own.
type updated struct {
	name  string
	state string
	pods  int
}

// flip opens the state, as each command does, and times Apply alone, in milliseconds.
func (u *updated) flip(c *policy.Compiled) (ms float64, err error) {
	s, err := cgroups.OpenExisting(u.state)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	began := time.Now()
	n, err := s.Apply(c, cgroups.Source{Place: "bench"})
	ms = time.Since(began).Seconds() * 1e3
	if err == nil && n != u.pods {
		err = fmt.Errorf("the policy holds for %d of %d pods", n, u.pods)
	}
	return ms, err
}

// measurePolicy times an update of a large policy of running containers, and what their connections and datagrams notice.
func measurePolicy(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	shapes, err := newShapes()
	if err != nil {
		return nil, nil, err
	}
	m, err := newMesh(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.close(ctx)) }()
	many := &updated{name: "50 pods, 100 containers", state: stateDir("many"), pods: updatePods}
	one := &updated{name: "1 pod, 2 containers", state: stateDir("one"), pods: 1}
	start, err := compile(policyHead(updateName))
	if err != nil {
		return nil, nil, err
	}
	var busy *meshPod
	for _, u := range []*updated{many, one} {
		for n := range u.pods {
			p, err := m.pod(ctx, u.state, start, busy == nil && n == 0)
			if err != nil {
				return nil, nil, err
			}
			if busy == nil {
				busy = p
			}
		}
	}
	f, err := updateTimes(e, shapes, []*updated{one, many})
	if err != nil {
		return nil, nil, err
	}
	g, note, err := noticed(e, shapes, many, busy)
	return append(f, g...), []string{note, "policy: each update changes all rules; it is Store.Apply alone, in one process: the state is open and locked, the policy is parsed and compiled"}, err
}

// updateTimes times the stages of an update while nothing is sent.
func updateTimes(e *env, shapes []*shape, all []*updated) (figures []figure, err error) {
	applied, read := map[string]map[string][]float64{}, map[string]map[string][]float64{}
	for _, s := range shapes {
		applied[s.name], read[s.name] = map[string][]float64{}, map[string][]float64{}
	}
	for round := range e.rounds(7) {
		for _, s := range rotated(shapes, round) {
			if err := s.read(read[s.name]); err != nil {
				return nil, err
			}
			for _, u := range rotated(all, round) {
				// The first update replaces the other shape, and does not count.
				for i := range 3 {
					ms, err := u.flip(s.versions[i%2])
					if err != nil {
						return nil, err
					}
					if i > 0 {
						applied[s.name][u.name] = append(applied[s.name][u.name], ms)
					}
				}
			}
		}
	}
	for _, s := range shapes {
		f, err := newFigure("policy", "update: "+s.name, "ms", []string{all[0].name, all[1].name}, applied[s.name], compare{all[1].name, all[0].name})
		if err != nil {
			return nil, err
		}
		g, err := newFigure("policy", "before it: "+s.name, "ms", []string{stageParse, stageCompile}, read[s.name])
		if err != nil {
			return nil, err
		}
		figures = append(figures, f, g)
	}
	return figures, nil
}

const (
	stageParse   = "parse"
	stageCompile = "compile"
)

// read times reading a policy, in milliseconds.
func (s *shape) read(values map[string][]float64) error {
	began := time.Now()
	list, err := policy.Parse("bench.yaml", []byte(s.texts[0]))
	if err != nil {
		return err
	}
	parsed := time.Now()
	if _, err := list[0].Compile(); err != nil {
		return err
	}
	values[stageParse] = append(values[stageParse], parsed.Sub(began).Seconds()*1e3)
	values[stageCompile] = append(values[stageCompile], time.Since(parsed).Seconds()*1e3)
	return nil
}

const noUpdate = "no update"

// noticed times connections and datagrams of one of the pods while all of them are updated again and again. None may fail.
func noticed(e *env, shapes []*shape, u *updated, p *meshPod) (figures []figure, note string, err error) {
	sides := []string{noUpdate}
	versions := map[string]*shape{}
	var ratios []compare
	for _, s := range shapes {
		side := "updates: " + s.name
		sides, versions[side], ratios = append(sides, side), s, append(ratios, compare{side, noUpdate})
	}
	var made, failed, updates int64
	var first string
	for _, k := range []struct {
		name  string
		agent *proc
		order order
	}{
		{"connection, sidecar to outside", p.sidecar, order{Op: "calls", Addr: at(outsideIP, callPort)}},
		{"redirected connection, app to sidecar", p.app, order{Op: "calls", Addr: at(outsideIP, callPort)}},
		{"datagram, sidecar to outside and back", p.sidecar, order{Op: "pings", Addr: at(outsideIP, echoPort)}},
	} {
		k.order.Count, k.order.For = 1_000_000, 500*time.Millisecond
		p50, p99, longest := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		for round := range e.rounds(4) {
			for _, side := range rotated(sides, round) {
				a, n, err := meanwhile(k.agent, k.order, u, versions[side])
				if err != nil {
					return nil, "", fmt.Errorf("%s, %s: %w", k.name, side, err)
				}
				if a.Latency == nil {
					return nil, "", fmt.Errorf("%s, %s: nothing was made", k.name, side)
				}
				made, failed, updates = made+a.Done+a.Failed, failed+a.Failed, updates+n
				if first == "" && a.Err != "" {
					first = fmt.Sprintf("%s, %s: %s", k.name, side, a.Err)
				}
				p50[side], p99[side] = append(p50[side], a.Latency.P50), append(p99[side], a.Latency.P99)
				longest[side] = append(longest[side], a.Latency.Longest)
			}
		}
		for _, q := range []struct {
			name   string
			values map[string][]float64
		}{{"p50", p50}, {"p99", p99}, {"longest", longest}} {
			f, err := newFigure("policy", k.name+", "+q.name, "us", sides, q.values, ratios...)
			if err != nil {
				return nil, "", err
			}
			figures = append(figures, f)
		}
	}
	note = fmt.Sprintf("policy: %d connections and datagrams, %d updates of %s under them: %d failed", made, updates, u.name, failed)
	if failed > 0 {
		err = fmt.Errorf("%d of %d connections and datagrams failed; the first, %s", failed, made, first)
	}
	return figures, note, err
}

// meanwhile has an agent do an order while the versions of s take turns, if there is one, and counts the updates.
func meanwhile(agent *proc, o order, u *updated, s *shape) (a answer, updates int64, err error) {
	if s == nil {
		a, err := agent.ask(o)
		return a, 0, err
	}
	// The first update replaces another shape.
	if _, err := u.flip(s.versions[1]); err != nil {
		return a, 0, err
	}
	done := make(chan error, 1)
	go func() {
		var err error
		a, err = agent.ask(o)
		done <- err
	}()
	for {
		_, ferr := u.flip(s.versions[updates%2])
		updates++
		select {
		case err := <-done:
			return a, updates, errors.Join(err, ferr)
		default:
		}
		if ferr != nil {
			return a, updates, errors.Join(ferr, <-done)
		}
	}
}
