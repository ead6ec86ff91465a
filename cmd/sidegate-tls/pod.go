// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/observe/cli"
)

// pod is the relay in one pod.
type pod struct {
	node     *node
	relay    *cgroups.TLSRelay
	listener *cgroups.TLSListener
	since    time.Time
	settled  bool // its policy has had the port; node's lock

	ctx    context.Context // of its connections
	cancel context.CancelFunc

	sessions sessions
	open     atomic.Int64 // connections

	mu    sync.Mutex
	boxes map[netip.AddrPort]*box // by the app's end of the connection
}

func startPod(n *node, r *cgroups.TLSRelay, l *cgroups.TLSListener) *pod {
	p := &pod{node: n, relay: r, listener: l, since: time.Now(), boxes: make(map[netip.AddrPort]*box)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, tcp := range []*net.TCPListener{l.IPv4, l.IPv6} {
		if tcp != nil {
			go p.accept(tcp)
		}
	}
	return p
}

func (p *pod) age() time.Duration { return time.Since(p.since) }

// stop listens no longer. Connections that are there go on, until an end has gone: then the
// pod's namespace may go too.
func (p *pod) stop() {
	if err := p.listener.Close(); err != nil {
		p.log().WithError(err).
			Error("a listener of a pod could not be closed, and keeps its network namespace: it goes when sidegate-tls ends")
	}
}

// acceptPause is how long to wait where there are no descriptors. Who connects meanwhile
// waits too, and is refused when the backlog is full.
const acceptPause = 50 * time.Millisecond

func (p *pod) accept(l *net.TCPListener) {
	said := ""
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			if err.Error() != said {
				said = err.Error()
				p.log().WithError(err).
					Error("connections of a pod wait or are refused: raise LimitNOFILE if descriptors are missing")
			}
			time.Sleep(acceptPause)
			continue
		}
		said = ""
		if p.open.Add(1) > int64(p.node.most) {
			p.open.Add(-1)
			p.refuse(c)
			continue
		}
		go func() {
			defer p.open.Add(-1)
			p.serve(c)
		}()
	}
}

// log is the node's, for messages about the pod.
func (p *pod) log() *logrus.Entry {
	return p.node.log.WithField(cli.FieldNetnsCookie, p.listener.Cookie)
}

// refuse is for one connection too many: a pod cannot take the relay from the others.
func (p *pod) refuse(c *net.TCPConn) {
	out := &connEvents{node: p.node, cookie: p.listener.Cookie, from: c.RemoteAddr().String()}
	defer p.node.metrics.begin(out)()
	out.fail(fmt.Errorf("the pod has %d connections through the relay: that is the most (--max-connections)", p.node.most))
	reset(c)
}

// reset ends a connection so that its client sees an error, and not an answer's end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// serve relays one connection. It ends in every other case.
func (p *pod) serve(app *net.TCPConn) {
	out := &connEvents{node: p.node, cookie: p.listener.Cookie, from: app.RemoteAddr().String()}
	origin, ok, err := p.relay.Origin(app)
	if err == nil && !ok {
		err = errors.New("the connection is to the relay itself: nothing was redirected")
	}
	if err != nil {
		defer p.node.metrics.begin(out)()
		out.fail(err)
		reset(app)
		return
	}
	out.who(p.relay, origin)
	if origin.Sidecar {
		if err := p.sessions.give(origin.Destination, app); err != nil {
			out.fail(err)
			reset(app)
		}
		return
	}
	defer p.node.metrics.begin(out)()
	pol, err := p.relay.Policy(p.listener.Cookie)
	var r asked
	if err == nil {
		r, err = p.node.rules.of(p.relay, pol.Revision)
	}
	if err != nil {
		out.fail(err)
		reset(app)
		return
	}
	box, remove := p.newBox(app)
	defer remove()
	c := relay.Conn{App: app, Keys: box, Policy: r.Policy, Events: out.event}
	if r.deferred {
		// What is no TLS the sidecar gets as it is.
		r.deferred, err = beginsTLS(app)
	}
	switch {
	case err != nil:
	case r.deferred:
		var done func()
		c.Deferred, done = p.deferTo(origin, pol.Outbound)
		defer done()
		c.Policy.Plaintext = false
		c.Server, err = dialed(p.listener.DialServer(p.ctx, origin))
	default:
		c.Server, err = dialed(p.listener.Dial(p.ctx, origin, pol.Outbound))
	}
	if err != nil {
		out.fail(err)
		reset(app)
		return
	}
	if err := c.Run(p.ctx); err != nil {
		p.log().WithFields(logrus.Fields{cli.FieldFrom: out.from, cli.FieldDestination: origin.Destination.String()}).WithError(err).
			Debug("a connection has ended")
	}
}

// dialed makes a stream of a connection, and of none nil.
func dialed(c *net.TCPConn, err error) (relay.Stream, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

// box has the keys of one connection that it has not asked for yet.
type box struct {
	pod *pod

	mu   sync.Mutex
	keys [2][]record.Keys // by relay.Side
	err  error
}

// maxKeys is how many keys of one side may wait. A library hands over new ones when it has
// said so (KeyUpdate), in order.
const maxKeys = 16

// newBox makes the box of a connection. What waits for an earlier one that had the same
// address is dropped first.
func (p *pod) newBox(app *net.TCPConn) (b *box, remove func()) {
	p.drain()
	a := app.RemoteAddr().(*net.TCPAddr).AddrPort()
	addr := netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	b = &box{pod: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.boxes[addr] = b
	return b, func() {
		p.mu.Lock()
		if p.boxes[addr] == b {
			delete(p.boxes, addr)
		}
		p.mu.Unlock()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, keys := range b.keys {
			for _, k := range keys {
				k.Wipe()
			}
		}
		b.keys, b.err = [2][]record.Keys{}, errors.New("the connection is over")
	}
}

// drain puts what was handed over until now into the boxes. Of what is for none it says so once: an app could fill the log.
func (p *pod) drain() {
	strays := 0
	p.listener.Keys.Take(func(h cgroups.HandedOver) {
		p.mu.Lock()
		b := p.boxes[h.App]
		p.mu.Unlock()
		if b == nil {
			p.node.metrics.keys.WithLabelValues(keysStray).Inc()
			if strays++; strays == 1 {
				p.log().WithFields(logrus.Fields{cli.FieldPID: h.PID, cli.FieldFrom: h.App.String()}).
					Warn("a process hands over keys for what is no connection here: they are dropped, see what it does with its sockets")
			}
			return
		}
		p.node.metrics.keys.WithLabelValues(b.put(&h)).Inc()
	})
}

// put says what became of the keys, for metrics.
func (b *box) put(h *cgroups.HandedOver) string {
	keys, err := record.ParseKeys(h.Bytes)
	b.mu.Lock()
	defer b.mu.Unlock()
	side := relay.Client
	if h.RX {
		side = relay.Server
	}
	switch {
	case b.err != nil:
	case err != nil:
		b.err = err
	case len(b.keys[side]) >= maxKeys:
		b.err = errors.New("the app hands over more keys than it uses")
	default:
		b.keys[side] = append(b.keys[side], keys)
		return keysTaken
	}
	keys.Wipe()
	return keysRefused
}

// Next is relay.Keys.
func (b *box) Next(side relay.Side) (record.Keys, bool, error) {
	b.pod.drain()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || len(b.keys[side]) == 0 {
		return record.Keys{}, false, b.err
	}
	k := b.keys[side][0]
	b.keys[side] = b.keys[side][1:]
	return k, true, nil
}
