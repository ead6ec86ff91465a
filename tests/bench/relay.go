// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// parseTarget reads an address and port, or an abstract UNIX socket, "@name", which only its network namespace knows.
func parseTarget(s string) (unix.Sockaddr, int, error) {
	if strings.HasPrefix(s, "@") {
		return &unix.SockaddrUnix{Name: s}, unix.AF_UNIX, nil
	}
	addr, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, 0, err
	}
	if !addr.Addr().Is4() {
		return nil, 0, fmt.Errorf("%s is not IPv4", s)
	}
	return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, unix.AF_INET, nil
}

// A relay is a sidecar that does as little as one can: it reads, and writes to the other side. Connections to its outbound port go on to
// where SO_ORIGINAL_DST says, those to its other listeners to the upstream. It is one thread.
type relay struct {
	l     *loop
	taken atomic.Int64 // connections
}

// Where a relay listens beside the outbound port, for clients that know of it. To what has "own" in it the relay answers itself, as it
// does to what was meant for ownPort: then there is nothing but the hop from the app to the sidecar.
const (
	relayPort    = 15002
	relayOwnPort = 15003
	relayUnix    = "@sidegate-relay"
	relayOwnUnix = "@sidegate-relay-own"
	upstreamPort = 7000
	ownPort      = 7001
)

func newRelay(upstream string) (*relay, error) {
	l, err := newLoop()
	if err != nil {
		return nil, err
	}
	r := &relay{l: l}
	sa, _, err := parseTarget(upstream)
	if err != nil {
		return nil, err
	}
	fixed := func(fd int) { r.taken.Add(1); r.connect(fd, sa) }
	own := func(fd int) { r.taken.Add(1); serveOn(l, fd) }
	for addr, take := range map[string]func(int){
		at("127.0.0.1", outboundTo): r.redirected, at("127.0.0.1", relayPort): fixed, relayUnix: fixed,
		at("127.0.0.1", relayOwnPort): own, relayOwnUnix: own,
	} {
		if err := l.listen(addr, take); err != nil {
			return nil, fmt.Errorf("%s: %w", addr, err)
		}
	}
	go l.forever()
	return r, nil
}

// redirected takes a connection that was meant for somebody else.
func (r *relay) redirected(fd int) {
	r.taken.Add(1)
	to, err := originalDestination(fd)
	switch {
	case err != nil || to.Port == outboundTo: // not redirected: it would loop
		_ = reset(fd)
	case to.Port == ownPort:
		serveOn(r.l, fd)
	default:
		r.connect(fd, to)
	}
}

// originalDestination asks the kernel for SO_ORIGINAL_DST, as HAProxy and Envoy do.
func originalDestination(fd int) (*unix.SockaddrInet4, error) {
	const soOriginalDst = 80
	var raw unix.RawSockaddrInet4
	size := uint32(unix.SizeofSockaddrInet4)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, soOriginalDst,
		uintptr(unsafe.Pointer(&raw)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("getsockopt", errno)
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], raw.Port)
	return &unix.SockaddrInet4{Port: int(binary.BigEndian.Uint16(port[:])), Addr: raw.Addr}, nil
}

// connect begins the other side of a connection. Nothing is read before it is there.
func (r *relay) connect(fd int, to unix.Sockaddr) {
	noDelay(fd)
	other, err := start(unix.AF_INET, to)
	if err != nil {
		_ = reset(fd)
		return
	}
	app, up := &side{l: r.l, fd: fd}, &side{l: r.l, fd: other, connecting: true}
	app.peer, up.peer = up, app
	if r.l.add(fd, 0, app) != nil || r.l.add(other, unix.EPOLLOUT, up) != nil {
		app.drop(true)
	}
}

// A side is one of the two sockets of a relayed connection.
type side struct {
	l          *loop
	fd         int
	peer       *side
	connecting bool
	ended      bool   // has sent all that it will
	pending    []byte // is to be written here before more is read from the peer
}

func (s *side) ready(_ int, events uint32) {
	if s.connecting {
		if socketError(s.fd) != nil {
			s.drop(true)
			return
		}
		s.connecting = false
		s.wants(unix.EPOLLIN)
		s.peer.wants(unix.EPOLLIN)
		return
	}
	if len(s.pending) > 0 && !s.flush() {
		return
	}
	switch {
	case events&unix.EPOLLERR != 0 || s.ended && events&unix.EPOLLHUP != 0:
		s.drop(true)
		return
	case s.ended || len(s.peer.pending) > 0 || events&^unix.EPOLLOUT == 0:
		return // its end may be there already, behind what is still to be read
	}
	n, errno := rawRead(s.fd, s.l.buf)
	switch {
	case errno == unix.EAGAIN:
	case errno != 0:
		s.drop(true)
	case n == 0:
		s.end()
	default:
		s.peer.write(s.l.buf[:n])
	}
}

// write writes b, and what of it has no room later; until then nothing is read from the peer.
func (s *side) write(b []byte) {
	n, err := writeSome(s.fd, b)
	if err != nil {
		s.drop(true)
		return
	}
	if n == len(b) {
		return
	}
	s.pending = append(s.pending, b[n:]...)
	s.wants(s.interest())
	s.peer.wants(s.peer.interest())
}

// flush writes what is pending, and is false unless all is written and the connection goes on.
func (s *side) flush() bool {
	n, err := writeSome(s.fd, s.pending)
	if err != nil {
		s.drop(true)
		return false
	}
	if s.pending = append(s.pending[:0], s.pending[n:]...); len(s.pending) > 0 {
		return false
	}
	s.wants(s.interest())
	s.peer.wants(s.peer.interest())
	return s.fd >= 0
}

// end is that the side has sent all. What it has sent is written: nothing is read before that.
func (s *side) end() {
	s.ended = true
	if s.peer.shut() {
		return
	}
	s.wants(s.interest())
}

// shut tells a side that its peer has sent all, and closes both if it has, too.
func (s *side) shut() (closed bool) {
	if s.ended {
		s.drop(false)
		return true
	}
	_ = unix.Shutdown(s.fd, unix.SHUT_WR) // else reading tells
	return false
}

func (s *side) interest() (events uint32) {
	if len(s.pending) > 0 {
		events |= unix.EPOLLOUT
	}
	if !s.ended && len(s.peer.pending) == 0 {
		events |= unix.EPOLLIN
	}
	return events
}

func (s *side) wants(events uint32) {
	if s.fd >= 0 && s.l.want(s.fd, events) != nil {
		s.drop(true)
	}
}

// drop closes both sides. It may be called again.
func (s *side) drop(breakOff bool) {
	for _, o := range []*side{s, s.peer} {
		if o.fd >= 0 {
			o.l.drop(o.fd, breakOff)
			o.fd = -1
		}
	}
}
