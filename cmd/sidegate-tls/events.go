// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/observe/cli"
)

// event is a line of what happens: of whom, and what.
type event struct {
	Time        time.Time `json:"time"`
	NetnsCookie uint64    `json:"netnsCookie"`
	Pod         string    `json:"pod,omitempty"`
	Container   string    `json:"container,omitempty"`
	ContainerID string    `json:"containerID,omitempty"`
	PID         int       `json:"pid,omitempty"` // of who connected
	Process     string    `json:"process,omitempty"`
	From        string    `json:"from"` // the app's end; one for each connection
	Destination string    `json:"destination,omitempty"`
	relay.Event
}

// events writes lines. A reader that does not keep up stops nobody: they are written to a
// file, or a pipe with a buffer that then loses some, and says so.
type events struct {
	w     io.WriteCloser // nil: nobody wants them
	queue chan any
	done  chan struct{}

	mu   sync.Mutex
	lost int
	// onLost is called for each that there was no room for; may be nil.
	onLost func()
}

const queued = 4096 // lines

func openEvents(path string) (*events, error) {
	e := &events{}
	switch path {
	case "":
		return e, nil
	case "-":
		e.w = os.Stdout
	default:
		// What happens is nobody else's: it has the paths of requests.
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open file for events: %w", err)
		}
		e.w = f
	}
	e.queue, e.done = make(chan any, queued), make(chan struct{})
	go e.write()
	return e, nil
}

// write writes what has come meanwhile at once.
func (e *events) write() {
	defer close(e.done)
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for v := range e.queue {
		for n := len(e.queue); ; n-- {
			_ = enc.Encode(v) // strings, numbers and times
			if n == 0 || out.Len() > 1<<16 {
				break
			}
			v = <-e.queue
		}
		_, _ = e.w.Write(out.Bytes())
		out.Reset()
	}
}

// wanted tells whether anybody reads them.
func (e *events) wanted() bool { return e.w != nil }

// put never waits.
func (e *events) put(v *event) {
	if !e.wanted() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lost > 0 && e.offer(&lostEvents{v.Time, "lost", e.lost}) {
		e.lost = 0
	}
	if !e.offer(v) {
		e.lost++
		if e.onLost != nil {
			e.onLost()
		}
	}
}

// lostEvents says how many there were no room for.
type lostEvents struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	Lost int       `json:"lost"`
}

func (e *events) offer(v any) bool {
	select {
	case e.queue <- v:
		return true
	default:
		return false
	}
}

// Close writes what is left.
func (e *events) Close() {
	if !e.wanted() {
		return
	}
	e.mu.Lock()
	close(e.queue)
	e.mu.Unlock()
	<-e.done
	if e.w != os.Stdout {
		_ = e.w.Close()
	}
}

// connEvents are those of one connection.
type connEvents struct {
	node   *node
	cookie uint64
	from   string
	base   event
	find   func() // fills base; nil if nobody knows whose connection it is, or it is there

	relay  *cgroups.TLSRelay // nil until it is known whose connection it is
	origin cgroups.TLSOrigin
	result string // of the connection, for metrics
}

// who says whose connection it is, and looks up names for the file, once.
func (c *connEvents) who(r *cgroups.TLSRelay, o cgroups.TLSOrigin) {
	c.relay, c.origin = r, o
	c.find = func() { c.lookUp(r, o) }
	if c.node.events.wanted() {
		c.identify()
	}
}

func (c *connEvents) identify() {
	if c.find != nil {
		c.find()
		c.find = nil
	}
}

func (c *connEvents) lookUp(r *cgroups.TLSRelay, o cgroups.TLSOrigin) {
	container := r.Container(o.CgroupID)
	c.base = event{
		Pod: container.Pod, Container: container.Name, ContainerID: container.ID,
		PID: o.PID, Destination: o.Destination.String(),
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", o.PID)); err == nil {
		c.base.Process = strings.TrimSpace(string(comm))
	}
}

func (c *connEvents) event(e relay.Event) {
	c.node.metrics.event(&e, &c.result)
	if c.node.events.wanted() {
		v := c.base
		v.Time, v.NetnsCookie, v.From, v.Event = time.Now(), c.cookie, c.from, e
		c.node.events.put(&v)
	}
	if c.relay == nil || !c.relay.Told() {
		return
	}
	v := observed(&e)
	v.Address, v.PID, v.TLS.From = c.origin.Destination, c.origin.PID, c.from
	if err := c.relay.Tell(c.cookie, c.origin.CgroupID, v); err != nil && !errors.Is(err, cgroups.ErrRelayClosed) {
		c.node.log.Debugf("connection of pod %d from %s: %v", c.cookie, c.from, err)
	}
}

// observed is the event as all others are, without headers.
func observed(e *relay.Event) *cgroups.Event {
	v := &cgroups.Event{
		Verdict: cgroups.Allowed, Reason: "tls_" + string(e.Kind), Text: e.Reason, Rule: e.Rule,
		TLS: &cgroups.TLSEvent{
			Kind: string(e.Kind), SNI: e.SNI, Version: e.Version, Suite: e.Suite, ALPN: e.ALPN,
			ClientBytes: e.ClientBytes, ServerBytes: e.ServerBytes, Duration: e.Duration,
		},
	}
	if e.Kind == relay.KindDenied || e.Kind == relay.KindRefused {
		v.Verdict = cgroups.Denied
	}
	h := e.HTTP
	if h == nil {
		return v
	}
	v.Reason, v.Text, v.Rule = "http_"+string(h.Kind), h.Reason, h.Rule
	if h.Kind == judge.KindRefused || h.Kind == judge.KindRequest && !h.Allowed {
		v.Verdict = cgroups.Denied
	}
	v.TLS.Truncated = h.Truncated
	v.TLS.HTTP = &cgroups.HTTPEvent{
		Kind: string(h.Kind), Protocol: h.Protocol, Stream: h.Stream, Method: h.Method, Host: h.Host, Path: h.Path,
		Allowed: h.Allowed, Status: h.Status, Duration: h.Duration,
	}
	return v
}

// fail is for a connection that ends before it began.
func (c *connEvents) fail(err error) {
	c.identify()
	fields := logrus.Fields{cli.FieldNetnsCookie: c.cookie, cli.FieldFrom: c.from}
	for key, value := range map[string]string{
		cli.FieldPod: c.base.Pod, cli.FieldContainer: c.base.Container, cli.FieldContainerID: c.base.ContainerID, cli.FieldDestination: c.base.Destination,
	} {
		if value != "" {
			fields[key] = value
		}
	}
	c.node.log.WithFields(fields).WithError(err).Warn("a connection is refused: see error for what to do")
	c.event(relay.Event{Kind: relay.KindRefused, Reason: err.Error()})
	c.result = resultFailed
}
