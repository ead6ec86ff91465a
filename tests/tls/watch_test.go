// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// event is a line that the relay wrote.
type event struct {
	Time        time.Time
	Kind        string
	NetnsCookie uint64
	Pod         string
	Container   string
	ContainerID string
	PID         int
	Process     string
	From        string
	Destination string

	SNI        string
	Version    string
	Suite      string
	Offered    []string
	ALPN       string
	ClientKeys bool
	ServerKeys bool

	HTTP *struct {
		Kind, Protocol           string
		Method, Host, Path       string
		Query                    bool
		Headers                  []struct{ Name, Value string }
		Rule                     string
		Allowed                  bool
		Reason                   string
		Status                   int
		Truncated                bool
		ClientBytes, ServerBytes int64
		Duration                 time.Duration
	}

	Rule        string
	Reason      string
	ClientBytes int64
	ServerBytes int64
	Duration    time.Duration
}

// watch is what happens from now on.
type watch struct {
	t      *testing.T
	pod    string // of whose containers the names begin so
	events int
	asked  int
	conns  int
}

// watch begins to watch a pod, which has nothing under way.
func (p *pod) watch(t *testing.T) *watch {
	t.Helper()
	w := watchAll(t)
	w.pod = p.Name + "-"
	return w
}

func watchAll(t *testing.T) *watch {
	t.Helper()
	all, err := lab.ReadEvents[event](world.relay)
	must(t, err)
	s := world.site
	s.mu.Lock()
	defer s.mu.Unlock()
	return &watch{t: t, events: len(all), asked: len(s.asked), conns: len(s.conns)}
}

// seen are the events so far, of one kind, or all.
func (w *watch) seen(kind string) (list []event) {
	w.t.Helper()
	all, err := lab.ReadEvents[event](world.relay)
	must(w.t, err)
	for _, e := range all[min(w.events, len(all)):] {
		if (kind == "" || e.Kind == kind) && (strings.HasPrefix(e.Container, w.pod)) {
			list = append(list, e)
		}
	}
	return list
}

// ended waits until n connections have ended, and all those of the site, and returns the events.
func (w *watch) ended(n int) []event {
	w.t.Helper()
	must(w.t, lab.WaitFor(lab.Patience, fmt.Sprintf("the end of %d connections", n), func() (bool, error) {
		return len(w.seen("end")) >= n, w.t.Context().Err()
	}))
	w.settled()
	all := w.seen("")
	if ends := w.seen("end"); len(ends) != n {
		w.t.Errorf("%d connections ended, and should be %d: %+v", len(ends), n, ends)
	}
	return all
}

// settled waits until the site has no connection of the watch any more.
func (w *watch) settled() {
	w.t.Helper()
	must(w.t, lab.WaitFor(lab.Patience, "the end of the site's connections", func() (bool, error) {
		s := world.site
		s.mu.Lock()
		defer s.mu.Unlock()
		return !slices.ContainsFunc(s.conns[w.conns:], func(c *recordedConn) bool { return !c.closed }), w.t.Context().Err()
	}))
}

// asked fails unless these are what the site was asked, in any order.
func (w *watch) askedFor(want ...string) {
	w.t.Helper()
	var got []string
	for _, r := range w.requests() {
		got = append(got, r.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		w.t.Errorf("the site was asked %q, not %q", got, want)
	}
}

func (w *watch) requests() []request {
	s := world.site
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked[w.asked:])
}

// sealed counts, for each connection of the site, the records of application data that it got.
func (w *watch) sealed(is13 bool) (counts []int) {
	s := world.site
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns[w.conns:] {
		counts = append(counts, sealed(c.buf.Bytes(), is13))
	}
	return counts
}

// find returns the first event that matches, or fails.
func find(t *testing.T, all []event, what string, match func(e *event) bool) event {
	t.Helper()
	for _, e := range all {
		if match(&e) {
			return e
		}
	}
	t.Errorf("no event %s in:\n%s", what, show(all))
	return event{}
}

// because is the event that says why a connection ended.
func because(t *testing.T, all []event, kind, reason string) event {
	t.Helper()
	return find(t, all, kind+" for "+reason, func(e *event) bool { return e.Kind == kind && strings.Contains(e.Reason, reason) })
}

func show(all []event) string {
	var b strings.Builder
	for _, e := range all {
		h := e.HTTP
		e.HTTP = nil
		fmt.Fprintf(&b, "%+v", e)
		if h != nil {
			fmt.Fprintf(&b, " HTTP %+v", *h)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
