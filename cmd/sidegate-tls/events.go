// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/relay"
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
	result string // of the connection, for metrics
}

// who looks up whose connection it is, once, if anybody is told.
func (c *connEvents) who(r *cgroups.TLSRelay, o cgroups.TLSOrigin) {
	if !c.node.events.wanted() {
		return
	}
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
	v := c.base
	v.Time, v.NetnsCookie, v.From, v.Event = time.Now(), c.cookie, c.from, e
	c.node.events.put(&v)
}

// fail is for a connection that ends before it began.
func (c *connEvents) fail(err error) {
	c.node.log.Warnf("connection of pod %d from %s: %v", c.cookie, c.from, err)
	c.event(relay.Event{Kind: relay.KindRefused, Reason: err.Error()})
	c.result = resultFailed
}
