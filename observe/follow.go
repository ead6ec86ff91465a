// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
)

// Sink gets events. It must not wait for anybody, nor keep what it gets.
type Sink interface {
	Event(*cgroups.Event)
	Lost(n uint64) // before the next event, so many are missing
}

// Follower reads events for as long as it runs, whatever is loaded meanwhile, and gives them to its sinks. It takes one of
// the slots of readers.
type Follower struct {
	State  string
	Buffer uint32 // bytes of the kernel's buffer, a power of two
	Sinks  []Sink
	Log    *logrus.Logger

	reads atomic.Bool
	seen  atomic.Uint64
	lost  atomic.Uint64
}

const (
	followAgain = time.Second            // after nothing could be read
	followDrain = time.Second            // at the end
	followLook  = 250 * time.Millisecond // at what is loaded, and whether to end
	logEvery    = 5 * time.Minute        // what is still the same
)

var (
	followsDesc    = desc("exporter_reading", "1 while this exporter reads events.")
	followedDesc   = desc("exporter_events_total", "Events that this exporter read.")
	followLostDesc = desc("exporter_events_lost_total", "Events that this exporter was too slow for.")
)

// Describe implements prometheus.Collector.
func (f *Follower) Describe(ch chan<- *prometheus.Desc) {
	ch <- followsDesc
	ch <- followedDesc
	ch <- followLostDesc
}

// Collect implements prometheus.Collector.
func (f *Follower) Collect(ch chan<- prometheus.Metric) {
	reads := 0.0
	if f.reads.Load() {
		reads = 1
	}
	ch <- gauge(followsDesc, reads)
	ch <- counter(followedDesc, f.seen.Load())
	ch <- counter(followLostDesc, f.lost.Load())
}

// Reading tells whether events are read now.
func (f *Follower) Reading() bool { return f.reads.Load() }

// Run reads until ctx ends. Where nothing is loaded it waits until something is.
func (f *Follower) Run(ctx context.Context) {
	said, when := "", time.Time{}
	for ctx.Err() == nil {
		err := f.read(ctx)
		switch {
		case err == nil, errors.Is(err, cgroups.ErrNotLoaded):
			said = ""
		case err.Error() != said || time.Since(when) > logEvery:
			said, when = err.Error(), time.Now()
			f.Log.WithError(err).Warn("events are not read: trying again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
	}
}

// read reads from what is loaded now, until something else is.
func (f *Follower) read(ctx context.Context) (err error) {
	events, err := cgroups.OpenEvents(f.State, f.Buffer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, events.Close()) }()
	f.reads.Store(true)
	defer f.reads.Store(false)
	lost := uint64(0)
	// What was told before the end is read nevertheless.
	defer func() {
		events.SetDeadline(time.Now())
		if derr := f.readUntil(events, time.Now().Add(followDrain), &lost); err == nil {
			err = derr
		}
	}()
	for ctx.Err() == nil {
		look := time.Now().Add(followLook)
		events.SetDeadline(look)
		if err := f.readUntil(events, look, &lost); err != nil {
			return err
		}
		if current, err := events.Current(); err != nil || !current {
			return err
		}
	}
	return nil
}

func (f *Follower) readUntil(events *cgroups.Events, look time.Time, lost *uint64) error {
	for {
		v, err := events.Read()
		if now := events.Lost(); now > *lost {
			f.tellLost(now - *lost)
			*lost = now
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		f.seen.Add(1)
		for _, s := range f.Sinks {
			s.Event(&v)
		}
		if time.Now().After(look) { // there may always be another one
			return nil
		}
	}
}

func (f *Follower) tellLost(n uint64) {
	f.lost.Add(n)
	for _, s := range f.Sinks {
		s.Lost(n)
	}
}
