// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// The first byte of a connection says what its upstream does. All but a page's is sent back, which tells the client that the
// connection is there, with all that is between.
const (
	modeEcho   = 'e' // sends back what comes
	modePage   = 'p' // reads pageSize bytes, sends as many, closes
	modeSink   = 's' // reads to the end, closes
	modeSource = 'b' // sends from the next byte on until the client sends no more, closes
)

const pageSize = 64

// upstream serves an address until the agent ends.
func upstream(addr string) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	if err := l.listen(addr, func(fd int) { serveOn(l, fd) }); err != nil {
		return err
	}
	go l.forever()
	return nil
}

// forever handles events on a thread of its own. A loop that fails answers nobody, and its clients say so.
func (l *loop) forever() {
	runtime.LockOSThread()
	for {
		if _, err := l.wait(-1); err != nil {
			return
		}
	}
}

// serveOn has a loop be the upstream of a connection.
func serveOn(l *loop, fd int) {
	noDelay(fd)
	if err := l.add(fd, unix.EPOLLIN, &served{l: l}); err != nil {
		_ = unix.Close(fd)
	}
}

// served is an upstream's end of a connection.
type served struct {
	l       *loop
	mode    byte
	got     int    // bytes of a page's request
	pending []byte // is sent before more is read
	sending bool   // as a source
}

func (s *served) ready(fd int, events uint32) {
	done, err := s.next(fd, events)
	if done || err != nil {
		s.l.drop(fd, err != nil)
	}
}

// next does what can be done now. done is that the connection has come to its end.
func (s *served) next(fd int, events uint32) (done bool, err error) {
	if events&unix.EPOLLERR != 0 {
		return false, unix.ECONNRESET
	}
	if s.sending {
		if _, err := writeSome(fd, zeros); err != nil || events&unix.EPOLLIN == 0 {
			return false, err
		}
	}
	if len(s.pending) > 0 {
		if err := s.flush(fd); err != nil || len(s.pending) > 0 {
			return false, err
		}
	}
	n, errno := rawRead(fd, s.l.buf)
	switch {
	case errno == unix.EAGAIN:
		return false, nil
	case errno != 0:
		return false, errno
	case n == 0:
		return true, nil
	}
	return s.receive(fd, s.l.buf[:n])
}

func (s *served) receive(fd int, b []byte) (done bool, err error) {
	if s.mode == 0 {
		if s.mode = b[0]; s.mode != modePage {
			if err := s.reply(fd, b[:1]); err != nil {
				return false, err
			}
			if b = b[1:]; len(b) == 0 {
				return false, nil
			}
		}
	}
	switch s.mode {
	case modeEcho:
		return false, s.reply(fd, b)
	case modePage:
		if s.got += len(b); s.got < pageSize {
			return false, nil
		}
		_, err := writeSome(fd, zeros[:pageSize]) // a new connection has room
		return true, err
	case modeSource:
		s.sending = true
		return false, s.l.want(fd, unix.EPOLLIN|unix.EPOLLOUT)
	case modeSink:
		return false, nil
	}
	return false, unix.EPROTO
}

// reply sends b, and what of it has no room later, before more is read.
func (s *served) reply(fd int, b []byte) error {
	if len(s.pending) == 0 {
		n, err := writeSome(fd, b)
		if err != nil || n == len(b) {
			return err
		}
		if err := s.l.want(fd, unix.EPOLLOUT); err != nil {
			return err
		}
		b = b[n:]
	}
	s.pending = append(s.pending, b...)
	return nil
}

func (s *served) flush(fd int) error {
	n, err := writeSome(fd, s.pending)
	s.pending = append(s.pending[:0], s.pending[n:]...)
	if err == nil && len(s.pending) == 0 {
		err = s.l.want(fd, unix.EPOLLIN)
	}
	return err
}

// zeros is what bulk is made of.
var zeros = make([]byte, loopBuffer)
