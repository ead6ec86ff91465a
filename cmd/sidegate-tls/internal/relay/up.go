// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"sidegate/cmd/sidegate-tls/internal/record"
)

// appSide is what up knows of the app's direction.
type appSide struct {
	app  *record.Reader
	step func(record.Record) error // takes the next record

	messages record.Messages     // in the clear, then those within
	first    *record.ClientHello // nil before it was judged
	pending  []byte              // records with a ClientHello that is not whole
	second   bool                // so is the one after a HelloRetryRequest
	cipher   bool                // a ChangeCipherSpec came
	answer   *record.ServerHello // nil before records that follow it
	finished bool                // its Finished passed

	tx    *record.Direction // nil before its first record
	plain []byte
	over  bool // an alert has ended the app's side: nothing may follow

	rest []byte // what goes on first when records are not read any more

	unsent []byte // deferred: plaintext that is not ready

	given int64   // bytes of application data
	ends  []int64 // of each record that tx holds: given, when it came
	ready atomic.Int64
}

// errRaw says that the rest passes unread.
var errRaw = errors.New("pass the rest")

// up relays from the app to the server. It returns nil when the app has said all, and the server was told so.
func (s *session) up() error {
	err := s.records()
	if errors.Is(err, errRaw) {
		return s.raw()
	}
	if errors.Is(err, errDeferred) {
		return s.runDeferred()
	}
	if err != nil {
		return err
	}
	if err := s.answered(); err != nil {
		return err
	}
	_ = s.Server.CloseWrite() // who has closed all of it knows
	return nil
}

func (s *session) records() error {
	for {
		r, err := s.app.Next()
		switch {
		case err == nil:
			if err = s.step(r); err == nil && s.app.Ready() {
				continue
			}
		case errors.Is(err, record.ErrNotTLS):
			err = s.plaintext(err)
		case isWoken(err):
			err = s.look()
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return s.eof(err)
		default:
			err = readError("the app", err)
		}
		if passed := s.pass(); err == nil { // what was allowed before an error goes on
			err = passed
		}
		if err != nil {
			return err
		}
	}
}

// eof is the end of what the app sends. Half a record goes nowhere.
func (s *session) eof(err error) error {
	if s.first == nil && err != io.EOF {
		return refuse(record.DecodeError, "the app's first record has no end")
	}
	return nil
}

// look is after wake.
func (s *session) look() error {
	_ = s.App.SetReadDeadline(time.Time{})
	if err := s.failure(); err != nil {
		return err
	}
	return s.reconsider()
}

// reconsider finds out what the server's answers have made ready, or denied.
func (s *session) reconsider() error {
	if s.judge == nil {
		return nil
	}
	ready, err := s.judge.Client(nil)
	s.ready.Store(ready)
	return err
}

// answered waits, after the app's last byte, while an answer may make ready what is held.
func (s *session) answered() error {
	if s.judge == nil {
		return nil
	}
	timeout := time.NewTimer(patient)
	defer timeout.Stop()
	for ended := false; s.judge.Waits() && len(s.ends) > 0 && !ended; {
		select {
		case <-s.woken:
		case <-s.downDone:
			ended = true
		case <-timeout.C:
			ended = true
		}
		if err := s.failure(); err != nil {
			return err
		}
		err := s.reconsider()
		if passed := s.pass(); err == nil {
			err = passed
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pass sends the held records all of whose bytes are ready.
func (s *session) pass() error {
	n := 0
	for ready := s.ready.Load(); n < len(s.ends) && s.ends[n] <= ready; n++ {
	}
	if n == 0 {
		return nil
	}
	b, err := s.tx.Pass(n)
	if err != nil {
		return fmt.Errorf("pass records: %w", err)
	}
	s.ends = s.ends[:copy(s.ends, s.ends[n:])]
	return s.send(b)
}

// send writes to the server.
func (s *session) send(b []byte) error {
	n, err := s.Server.Write(b)
	s.upBytes.Add(int64(n))
	if err == nil {
		return nil
	}
	if failed := s.failure(); failed != nil {
		return failed
	}
	_ = s.Server.SetReadDeadline(time.Now().Add(linger)) // it may have answered before it closed
	<-s.downDone
	return streamError("write to the server", err)
}

// raw passes the rest unread.
func (s *session) raw() error {
	s.mu.Lock()
	s.opaque = true
	s.forgetAnswers()
	s.mu.Unlock()
	if err := s.send(s.rest); err != nil {
		return err
	}
	s.rest = nil
	_ = s.App.SetReadDeadline(time.Time{})
	if err := s.failure(); err != nil {
		return err
	}
	n, err := io.Copy(s.Server, s.App)
	s.upBytes.Add(n)
	switch failed := s.failure(); {
	case failed != nil:
		return failed
	case err != nil:
		return streamError("pass what the app sends", err)
	}
	_ = s.Server.CloseWrite()
	return nil
}

// passUnread is a step's way to end all judgement. r goes on too.
func (s *session) passUnread(r record.Record, reason string) error {
	s.rest = append(append(s.rest, r...), s.app.Buffered()...)
	s.tell()
	s.emit(Event{Kind: KindOpaque, Reason: reason})
	return errRaw
}

// plaintext is about an app that does not speak TLS.
func (s *session) plaintext(notTLS error) error {
	if !s.Policy.Plaintext {
		return refuse(record.UnexpectedMessage, "the app: %v", notTLS)
	}
	s.rest = append(s.rest, s.app.Buffered()...)
	if s.Policy.judges() && s.rest[0]&0x80 != 0 {
		if err := s.notSSL2(); err != nil {
			return err
		}
	}
	s.emit(Event{Kind: KindOpaque, Reason: "it is not TLS"})
	return errRaw
}

// notSSL2 refuses the hello of SSL 2, to which servers answer with TLS (RFC 5246 E.2): SNI and requests would be unseen.
func (s *session) notSSL2() error {
	const at, clientHello = 2, 1
	for len(s.rest) <= at {
		var b [1]byte
		if _, err := io.ReadFull(s.App, b[:]); err != nil {
			if failed := s.failure(); failed != nil {
				return failed
			}
			return refuse(record.UnexpectedMessage, "the app ends after %d bytes, which may be of SSL 2", len(s.rest))
		}
		s.rest = append(s.rest, b[0])
	}
	if s.rest[at] == clientHello {
		return refuse(record.ProtocolVersion, "the app sends a hello of SSL 2")
	}
	return nil
}
