// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"errors"
	"io"
	"time"

	"sidegate/cmd/sidegate-tls/internal/record"
)

// serverSide is what is known of the server's direction, under session.mu.
type serverSide struct {
	hellos  serverHellos
	answers answers
	mixed   bool // the app was sent bytes that are not whole records: it takes no alert
}

// serverHellos are what the server says in the clear.
type serverHellos struct {
	messages record.Messages
	retry    bool // a HelloRetryRequest came
	answer   *record.ServerHello
}

// down relays from the server to the app. Once it has stopped it takes in what the server still sends, so that what up has
// sent last is not lost by a RST.
func (s *session) down() {
	defer close(s.downDone)
	err := s.toApp()
	if errors.Is(err, io.EOF) && s.endApp() {
		return
	}
	if errors.Is(err, errStopped) || errors.Is(err, io.EOF) {
		_ = s.Server.SetReadDeadline(time.Now().Add(linger))
		_, _ = io.Copy(io.Discard, onlyReader{s.Server})
		return
	}
	s.fail(err)
}

// endApp passes the server's FIN, unless up says the last words.
func (s *session) endApp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		_ = s.App.CloseWrite()
	}
	return !s.stopped
}

var errStopped = errors.New("nothing more goes to the app")

// toApp returns io.EOF after the server's FIN.
func (s *session) toApp() error {
	first := make([]byte, 4<<10)
	n, err := s.Server.Read(first)
	if n == 0 {
		return serverError(err)
	}
	s.mu.Lock()
	raw := !s.greeted || s.opaque // who speaks before the app is no server of TLS
	s.mu.Unlock()
	if raw {
		return s.rawToApp(first[:n])
	}
	r := record.NewReaderSize(io.MultiReader(bytes.NewReader(first[:n]), s.Server), readAhead)
	var out []byte
	for {
		next, err := r.Next()
		if errors.Is(err, record.ErrNotTLS) || errors.Is(err, io.ErrUnexpectedEOF) {
			return s.rawToApp(r.Buffered())
		}
		if err != nil {
			return serverError(err)
		}
		if d := s.waitHeld(); d != nil {
			return d.fromServer(r, next)
		}
		var opaque bool
		if out, opaque, err = s.batch(out[:0], r, next); err != nil {
			return err
		}
		if err := s.write(out); err != nil {
			return err
		}
		if opaque {
			return s.rawToApp(r.Buffered())
		}
	}
}

func serverError(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return io.EOF
	case isWoken(err):
		return errStopped
	}
	return readError("the server", err)
}

// batch appends next, and what else r has whole, to out. write has to follow.
func (s *session) batch(out []byte, r *record.Reader, next record.Record) (_ []byte, opaque bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, false, errStopped
	}
	for {
		if err := s.serverRecord(next, r); err != nil {
			return nil, false, err
		}
		out = append(out, next...)
		if s.opaque || s.held() || !r.Ready() || len(out) > readAhead-record.MaxRecord {
			break
		}
		if next, err = r.Next(); err != nil {
			return nil, false, serverError(err)
		}
	}
	s.writing = true
	return out, s.opaque, nil
}

// write sends whole records to the app.
func (s *session) write(out []byte) error {
	n, err := s.App.Write(out)
	s.downBytes.Add(int64(n))
	s.mu.Lock()
	s.writing = false
	s.mixed = s.mixed || n < len(out)
	s.idle.Broadcast()
	s.mu.Unlock()
	if isWoken(err) {
		return errStopped
	}
	if err != nil {
		return streamError("write to the app", err)
	}
	return nil
}

// rawToApp passes the rest unread.
func (s *session) rawToApp(first []byte) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return errStopped
	}
	s.mixed = true
	s.blind("the server does not send TLS")
	s.mu.Unlock()
	n, err := s.App.Write(first)
	s.downBytes.Add(int64(n))
	if err == nil {
		var more int64
		more, err = io.Copy(s.App, s.Server)
		s.downBytes.Add(more)
	}
	switch {
	case err == nil:
		return io.EOF
	case isWoken(err):
		return errStopped
	}
	return streamError("pass what the server sends", err)
}

// serverRecord looks at a record before it goes on.
func (s *session) serverRecord(next record.Record, r *record.Reader) error {
	if s.hellos.answer != nil {
		s.answerRecord(next)
		return nil
	}
	switch t := next.Type(); {
	case t == record.TypeApplicationData, t == record.TypeChangeCipherSpec && !s.hellos.retry:
		return refuse(record.UnexpectedMessage, "the server sends a record of content type %d before its hello", t)
	case t != record.TypeHandshake:
		return nil
	}
	messages, err := s.hellos.messages.Add(next.Body())
	if err != nil {
		return refusal("the server", err)
	}
	for _, m := range messages {
		switch {
		case m.Type == record.MessageHelloRequest:
			continue
		case m.Type != record.MessageServerHello:
			return refuse(record.UnexpectedMessage, "the server's message of type %d is no hello", m.Type)
		}
		h, err := record.ParseServerHello(m.Body)
		if err != nil {
			return refusal("the server", err)
		}
		if !h.HelloRetryRequest {
			s.hellos.answer = h
			r.SetVersion(h.Version)
			return nil
		}
		if s.hellos.retry {
			return refuse(record.UnexpectedMessage, "the server retries twice")
		}
		s.hellos.retry = true
	}
	return nil
}

// lastWords stops down at the end of a record, and returns the alert as the app can read it, or nothing.
func (s *session) lastWords(a record.Alert) []byte {
	_ = s.Server.SetReadDeadline(time.Now().Add(linger))
	_ = s.App.SetWriteDeadline(time.Now().Add(linger))
	if s.deferral != nil {
		return s.deferral.alert(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.idle.Broadcast()
	for s.writing {
		s.idle.Wait()
	}
	if s.mixed {
		return nil
	}
	return s.alert(a)
}
