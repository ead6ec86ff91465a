// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
)

// The bounds of a connection, in bytes but for the last ones.
const (
	readAhead  = 64 << 10  // of each direction
	maxHello   = 128 << 10 // of records with a ClientHello
	maxHeld    = 256 << 10 // of records whose requests are not complete; what they carry is bounded by the judge
	maxBacklog = 64 << 10  // of the server's records that wait for keys

	linger  = 2 * time.Second  // for what is said last to be read
	patient = 10 * time.Second // for the answer to an upgrade after which the app says nothing more
)

// session is a Conn that runs. Two goroutines work on it: up, which is the only one that reads from the app and writes to
// the server, and ends the session; and down for the other direction.
type session struct {
	*Conn
	ctx   context.Context
	began time.Time
	upBytes,
	downBytes atomic.Int64

	appSide    // up's alone
	serverSide // under mu

	mu          sync.Mutex
	idle        *sync.Cond // writing was reset
	writing     bool       // down writes to the app what it was allowed to
	stopped     bool       // down sends nothing more
	released    bool       // there will be no deferral, if there is none
	deferral    *deferral
	deferred    bool  // it runs
	quitting    bool  // what fails now does not matter
	greeted     bool  // a ClientHello went to the server
	opaque      bool  // records are not read any more
	appFinished bool  // TLS 1.3
	failed      error // of down, which up ends with
	downDone    chan struct{}
	woken       chan struct{} // has room for one
	judge       *judge.Judge  // set by up

	events sync.Mutex
	known  Event // what KindTLS says
}

func newSession(ctx context.Context, c *Conn) *session {
	s := &session{Conn: c, ctx: ctx, began: time.Now(), downDone: make(chan struct{}), woken: make(chan struct{}, 1)}
	s.idle = sync.NewCond(&s.mu)
	s.app = record.NewReaderSize(c.App, readAhead)
	s.step = s.hello
	return s
}

func (s *session) emit(e Event) {
	if s.Events == nil {
		return
	}
	s.events.Lock()
	defer s.events.Unlock()
	e.SNI = s.known.SNI
	e.bound()
	s.Events(e)
}

// tell describes the handshake, once.
func (s *session) tell() {
	s.events.Lock()
	e := s.known
	s.known.Kind = ""
	s.events.Unlock()
	if e.Kind == KindTLS {
		s.emit(e)
	}
}

func refuse(alert record.Alert, format string, args ...any) error {
	return &Refused{Alert: alert, Reason: fmt.Sprintf(format, args...)}
}

// refusal makes an error of package record one of ours.
func refusal(who string, err error) error {
	if p, ok := errors.AsType[*record.ProtocolError](err); ok {
		return &Refused{Alert: p.Alert, Reason: who + ": " + p.Reason, cause: p}
	}
	return err
}

// readError is of a record.Reader.
func readError(who string, err error) error {
	if _, ok := errors.AsType[*record.ProtocolError](err); ok {
		return refusal(who, err)
	}
	return streamError("read from "+who, err)
}

// errReset says that one side has reset its connection. The other one gets the same.
var errReset = errors.New("connection reset")

// streamError is of a read or a write.
func streamError(what string, err error) error {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%s: %w", what, errReset)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// longAgo as a deadline wakes who reads or writes.
var longAgo = time.Unix(1, 0)

// wake makes up look again, whatever it waits for but a write.
func (s *session) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
	_ = s.App.SetReadDeadline(longAgo)
}

func isWoken(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// fail is how down ends the session.
func (s *session) fail(err error) {
	s.mu.Lock()
	if s.quitting {
		s.mu.Unlock()
		return
	}
	if s.failed == nil {
		s.failed = err
	}
	if s.deferred {
		_ = s.deferral.sidecar.SetWriteDeadline(longAgo)
	}
	s.mu.Unlock()
	_ = s.Server.SetWriteDeadline(longAgo)
	s.wake()
}

func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *session) close() {
	s.mu.Lock()
	s.stopped = true
	s.idle.Broadcast()
	s.mu.Unlock()
	_ = s.App.Close()
	_ = s.Server.Close()
}

// finish says to both sides how it ended, as far as they listen, and gives everything up.
func (s *session) finish(err error) error {
	if err == nil {
		s.release()
		<-s.downDone
		err = s.failure()
	}
	s.tell()
	alert, refused := s.describe(err)
	switch {
	case refused:
		words := s.lastWords(alert) // first: the server's answer to a FIN would come before them
		_ = s.Server.CloseWrite()
		if s.deferral != nil {
			s.deferral.quit()
		}
		s.part(words)
		if s.deferral != nil {
			_ = s.deferral.end()
		}
	case err != nil:
		s.reset()
	}
	s.close()
	if s.deferral != nil {
		s.deferral.wait()
	}
	<-s.downDone
	s.wipe()
	if s.judge != nil {
		s.judge.End()
	}
	end := Event{Kind: KindEnd, ClientBytes: s.upBytes.Load(), ServerBytes: s.downBytes.Load(), Duration: time.Since(s.began)}
	if err != nil {
		end.Reason = err.Error()
	}
	s.emit(end)
	return err
}

// describe tells whether the connection was ended here, and emits why.
func (s *session) describe(err error) (alert record.Alert, refused bool) {
	if r, ok := errors.AsType[*Refused](err); ok {
		kind := KindRefused
		if r.Denied {
			kind = KindDenied
		}
		s.emit(Event{Kind: kind, Rule: r.Rule, Reason: r.Reason})
		return r.Alert, true
	}
	if d, ok := errors.AsType[*judge.Denied](err); ok {
		s.emit(Event{Kind: KindDenied, Rule: d.Rule, Reason: d.Error()})
		return record.AccessDenied, true
	}
	if m, ok := errors.AsType[*judge.Malformed](err); ok {
		s.emit(Event{Kind: KindRefused, Reason: m.Error()})
		return record.AccessDenied, true
	}
	return 0, false
}

// part ends the app's side so that it reads what was said last: with unread data, close would send a RST.
func (s *session) part(words []byte) {
	_ = s.App.SetWriteDeadline(time.Now().Add(linger))
	if len(words) > 0 {
		n, _ := s.App.Write(words)
		s.downBytes.Add(int64(n))
	}
	_ = s.App.CloseWrite()
	_ = s.App.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.Copy(io.Discard, onlyReader{s.App})
}

// onlyReader hides what io.Copy would rather call.
type onlyReader struct{ io.Reader }

// reset is for both sides, since one of them did it, or something is broken.
func (s *session) reset() {
	setReset(s.App)
	setReset(s.Server)
	if s.deferral != nil && s.deferral.sidecar != nil {
		setReset(s.deferral.sidecar)
	}
}

// setReset makes Close a RST, where there is such a thing.
func setReset(c Stream) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
}

func (s *session) wipe() {
	if s.tx != nil {
		s.tx.Wipe()
	}
	s.forgetAnswers()
	for _, side := range []Side{Client, Server} {
		for range maxUntaken {
			k, ok, err := s.Keys.Next(side)
			if !ok || err != nil {
				break
			}
			k.Wipe()
		}
	}
}

// maxUntaken bounds how many keys that nothing needed are taken, to be wiped.
const maxUntaken = 64
