// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"sidegate/bpf"
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
	sides := []string{readNone, readNoneToo, readOne, readAll}
	readers := map[string]int{readOne: 1, readAll: bpf.EventReaders}
	for _, l := range loads[:2] {
		rate, cpu := map[string][]float64{}, map[string][]float64{}
		err = inTurns(e.rounds(18), sides, func(side string, warm bool) error {
			stop, err := readEvents(readers[side])
			if err != nil {
				return err
			}
			one, used, err := l.rounds(1, m, []string{side}, map[string]*ruled{side: p})
			if err == nil && !warm {
				rate[side], cpu[side] = append(rate[side], one[side]...), append(cpu[side], used[side]...)
			}
			return errors.Join(err, stop())
		})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", l.name, err)
		}
		ratios := []compare{{readNoneToo, readNone}, {readOne, readNone}, {readAll, readNone}}
		for _, f := range []struct {
			name, unit string
			values     map[string][]float64
		}{{l.name, "1000/s", rate}, {"CPU of both ends", "us a " + l.one, cpu}} {
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
