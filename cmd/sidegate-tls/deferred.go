// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/observe/cli"
)

// sessions are the TLS sessions of a pod whose plaintext its sidecar gets, by the destinations
// that stand for them. The zero value is ready.
type sessions struct {
	mu   sync.Mutex
	open map[netip.AddrPort]chan *net.TCPConn
}

// maxUpstreams is how many connections of the sidecar may wait for the one before them.
const maxUpstreams = 16

// add returns what gets the sidecar's connections to the destination, until remove.
func (s *sessions) add(to netip.AddrPort) (upstreams <-chan *net.TCPConn, remove func()) {
	ch := make(chan *net.TCPConn, maxUpstreams)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[netip.AddrPort]chan *net.TCPConn)
	}
	s.open[to] = ch
	return ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, to)
		for len(ch) > 0 {
			reset(<-ch)
		}
	}
}

// give hands a connection of the sidecar to its session, which owns it then.
func (s *sessions) give(to netip.AddrPort, c *net.TCPConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, ok := s.open[to]
	if !ok {
		return fmt.Errorf("the sidecar goes on to %s, which is no session's", to)
	}
	select {
	case ch <- c:
		return nil
	default:
		return fmt.Errorf("the sidecar goes on to %s by %d connections at once: a TLS session is one", to, maxUpstreams)
	}
}

// deferTo is how a session of origin gets at its pod's sidecar.
func (p *pod) deferTo(origin cgroups.TLSOrigin, outbound uint16) (d *relay.Deferred, done func()) {
	var upstreams <-chan *net.TCPConn
	undo := func() {}
	d = &relay.Deferred{
		DialSidecar: func(ctx context.Context) (relay.Stream, error) {
			target, err := p.listener.Target(origin.Destination.Addr())
			if err != nil {
				return nil, err
			}
			var remove func()
			upstreams, remove = p.sessions.add(target.Destination)
			undo = func() {
				remove()
				if err := target.Close(); err != nil {
					p.log().WithField(cli.FieldDestination, target.Destination.String()).WithError(err).
						Error("what stands for a session is not forgotten: it goes when the relay next listens in the pod")
				}
			}
			o := origin
			o.Destination = target.Destination
			return p.listener.Dial(ctx, o, outbound)
		},
		Upstream: func(ctx context.Context) (relay.Stream, error) {
			select {
			case c := <-upstreams:
				return c, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		},
	}
	return d, func() { undo() }
}

// recordHandshake is the first byte of a TLS connection.
const recordHandshake = 22

// beginsTLS waits for the client's first byte, and leaves it there.
func beginsTLS(c *net.TCPConn) (bool, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false, err
	}
	var n int
	b := make([]byte, 1)
	rerr := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if err := errors.Join(rerr, err); err != nil {
		return false, fmt.Errorf("wait for what the app says: %w", err)
	}
	return n == 1 && b[0] == recordHandshake, nil
}
