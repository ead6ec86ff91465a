// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/bpf/verdicts"
	"sidegate/cgroups"
)

// Sides of the measurement of events: how many processes read them. The first two are the same.
const (
	readNone    = "nobody reads"
	readNoneToo = "nobody, the same again"
	readOne     = "1 reads"
	readAll     = "8 read"
)

// measureEvents times connections, of which each is an event of two containers or one, by who reads.
func measureEvents(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	m, err := newMesh(ctx, w)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, m.close(ctx)) }()
	p, err := newRuled(ctx, m, "events", 10)
	if err != nil {
		return nil, nil, err
	}
	cost, words, err := measureTelling(e.rounds(50))
	if err != nil {
		return nil, nil, err
	}
	figures, notes = append(figures, cost), append(notes, words)
	sides := []string{readNone, readNoneToo, readOne, readAll}
	readers := map[string]int{readOne: 1, readAll: bpf.EventReaders}
	for _, l := range loads[:2] {
		rate, cpu := map[string][]float64{}, map[string][]float64{}
		err = inTurns(e.rounds(18), sides, func(side string, warm bool) error {
			return withReaders(readers[side], func() error {
				one, used, err := l.rounds(1, m, []string{side}, map[string]*ruled{side: p})
				if err == nil && !warm {
					rate[side], cpu[side] = append(rate[side], one[side]...), append(cpu[side], used[side]...)
				}
				return err
			})
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", l.name, err)
		}
		inside := map[string][]float64{}
		err = inTurns(e.rounds(6), sides, func(side string, warm bool) error {
			return withReaders(readers[side], func() error {
				one, err := l.inside(1, m, []string{side}, map[string]*ruled{side: p})
				if err == nil && !warm {
					inside[side] = append(inside[side], one[side]...)
				}
				return err
			})
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", l.name, err)
		}
		ratios := []compare{{readNoneToo, readNone}, {readOne, readNone}, {readAll, readNone}}
		for _, f := range []struct {
			name, unit string
			values     map[string][]float64
		}{{l.name, "1000/s", rate}, {"CPU of both ends", "us a " + l.one, cpu}, {"of which in programs on cgroups", "ns a " + l.one, inside}} {
			f, err := newFigure("events", f.name, f.unit, sides, f.values, ratios...)
			if err != nil {
				return nil, nil, err
			}
			figures = append(figures, f)
		}
		notes = append(notes, fmt.Sprintf("events: %s: CPU with one reader %s, with eight %s; with none against the same again %s", l.name,
			growth(pairs(cpu[readOne], cpu[readNone], ratio)), growth(pairs(cpu[readAll], cpu[readNone], ratio)), growth(pairs(cpu[readNoneToo], cpu[readNone], ratio))))
	}
	return figures, notes, nil
}

// Sides of what telling costs by itself.
const (
	tellLook = "look whether somebody reads"
	tellFlow = "count a flow"
)

// measureTelling times what every event costs while nobody reads, and what is counted beside it in any case, by running
// just that in the kernel.
func measureTelling(rounds int) (f figure, note string, err error) {
	node := make(map[string]*ebpf.Map)
	defer func() {
		for _, m := range node {
			err = errors.Join(err, m.Close())
		}
	}()
	for _, name := range bpf.MapNames() {
		if node[name], err = ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(stateDir("rules")), "maps", name), nil); err != nil {
			return f, "", fmt.Errorf("open map %s: %w", name, err)
		}
	}
	judge, err := verdicts.Load(node, 1)
	if err != nil {
		return f, "", err
	}
	defer judge.Close()
	took := map[string][]float64{}
	of := map[string]string{tellLook: "look", tellFlow: "flow"}
	sides := []string{tellLook, tellFlow}
	err = inTurns(rounds, sides, func(side string, warm bool) error {
		ns, err := judge.Cost(of[side], 10_000)
		if err == nil && !warm {
			took[side] = append(took[side], ns)
		}
		return err
	})
	if err != nil {
		return f, "", err
	}
	f, err = newFigure("events", "by themselves", "ns", sides, took)
	return f, fmt.Sprintf("events: while nobody reads, an event is a look of %.1f ns, beside the count of its flow, %.0f ns",
		median(took[tellLook]), median(took[tellFlow])), err
}

// withReaders runs f while n read.
func withReaders(n int, f func() error) error {
	stop, err := readEvents(n)
	if err != nil {
		return err
	}
	return errors.Join(f(), stop())
}

// readEvents has n readers, until stop.
func readEvents(n int) (stop func() error, err error) {
	var readers []*cgroups.Events
	var beside sync.WaitGroup
	stop = func() error {
		var errs []error
		for _, r := range readers {
			errs = append(errs, r.Close())
		}
		beside.Wait()
		return errors.Join(errs...)
	}
	for range n {
		r, err := cgroups.OpenEvents(stateDir("rules"), 1<<20)
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		readers = append(readers, r)
		beside.Go(func() {
			for {
				if _, err := r.Read(); err != nil {
					return // it was closed
				}
			}
		})
	}
	return stop, nil
}
