// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/tls"
	"errors"
	"slices"

	"sidegate/cmd/sidegate-tls/internal/record"
)

// answers is what the server encrypts, which goes on whether it can be read or not. It is under session.mu.
type answers struct {
	cipher   bool              // TLS 1.2: a ChangeCipherSpec came, what follows is encrypted
	finished bool              // TLS 1.2: so did the record after it
	data     bool              // application data was read that no judge saw
	waits    bool              // for the keys that follow a KeyUpdate
	unread   bool              // for ever: there are no keys, or they do not fit
	synced   bool              // a record was opened, or the next one has to be
	rx       *record.Direction // nil before the keys are needed
	backlog  []byte            // whole records that came before it

	within record.Messages
	plain  []byte
}

// answerRecord takes a record that follows the server's hello.
func (s *session) answerRecord(r record.Record) {
	a := &s.answers
	is13 := isTLS13(s.hellos.answer)
	switch t := r.Type(); {
	case a.unread:
		return
	case is13 && t != record.TypeApplicationData && !a.synced: // the ChangeCipherSpec that means nothing, or an alert
		return
	case !is13 && !a.cipher:
		a.cipher = t == record.TypeChangeCipherSpec
		return
	case a.rx != nil && !a.waits && s.judge != nil:
		s.readAnswer(r)
		return
	}
	a.finished = a.finished || !is13
	if len(a.backlog)+len(r) > maxBacklog {
		s.blind("the server sends much before its keys are handed over")
		return
	}
	a.backlog = append(a.backlog, r...)
	if a.waits {
		_ = s.readBacklog()
	}
}

// openAnswers takes the server's keys, and tells whether there are some.
func (s *session) openAnswers() (bool, error) {
	a := &s.answers
	if a.unread || a.rx != nil {
		return !a.unread, nil
	}
	k, ok, err := s.Keys.Next(Server)
	if err != nil {
		return false, err
	}
	if !ok {
		s.blind("the server's keys are not handed over")
		return false, nil
	}
	if k.Version() != s.hellos.answer.Version {
		k.Wipe()
		return false, refuse(record.AccessDenied, "the app has handed over %v, and speaks %s", k, tls.VersionName(s.hellos.answer.Version))
	}
	if a.rx, err = record.NewDirection(k); err != nil {
		k.Wipe()
		return false, refuse(record.InternalError, "the server's keys: %v", err)
	}
	a.synced = !isTLS13(s.hellos.answer) && a.rx.Number() == 0
	return true, nil
}

// readBacklog reads what came before the keys. It may begin with the handshake, in TLS 1.3 under other keys, in TLS 1.2 with
// a Finished before their first record.
func (s *session) readBacklog() error {
	a := &s.answers
	if a.waits {
		next, err := s.nextKeys(Server, a.rx)
		if err != nil {
			s.blind("the keys that follow the server's KeyUpdate: " + err.Error())
		}
		if next == nil {
			return nil
		}
		a.rx.Wipe()
		a.rx, a.waits = next, false
	}
	backlog := record.Record(a.backlog)
	a.backlog = nil
	for len(backlog) > 0 && !a.unread {
		size := 5 + (int(backlog[3])<<8 | int(backlog[4]))
		if a.waits {
			a.backlog = append(a.backlog, backlog...)
			break
		}
		s.readAnswer(backlog[:size])
		backlog = backlog[size:]
	}
	a.synced = true // the app's Finished has followed the server's
	return nil
}

// readAnswer opens a record that goes on, or has gone on.
func (s *session) readAnswer(r record.Record) {
	a := &s.answers
	a.plain = slices.Grow(a.plain[:0], len(r))
	t, content, err := a.rx.Open(a.plain, r)
	switch {
	case errors.Is(err, record.ErrNotOpened) && !a.synced:
		return
	case err != nil:
		s.blind("the server's keys do not open what it sends")
		return
	}
	a.synced = true
	if _, err := a.rx.Pass(1); err != nil {
		s.blind(err.Error())
		return
	}
	switch t {
	case record.TypeApplicationData:
		a.data = a.data || s.judge == nil
		if s.judge != nil {
			s.heed(s.judge.Server(content))
		}
	case record.TypeHandshake:
		if !isTLS13(s.hellos.answer) {
			return
		}
		messages, err := a.within.Add(content)
		if err != nil {
			s.blind("the server: " + err.Error())
		}
		for _, m := range messages {
			a.waits = a.waits || m.Type == record.MessageKeyUpdate
		}
	}
}

// heed wakes up if answers have made ready what was held, or denied it.
func (s *session) heed(ready int64, err error) {
	if err != nil || ready != s.ready.Load() {
		s.wake()
	}
}

// blind gives up reading what the server sends.
func (s *session) blind(reason string) {
	if s.answers.unread {
		return
	}
	s.forgetAnswers()
	if s.judge != nil {
		s.heed(s.judge.Blind(reason))
	}
}

func (s *session) forgetAnswers() {
	if s.answers.rx != nil {
		s.answers.rx.Wipe()
	}
	s.answers = answers{unread: true}
}

// alert returns an alert that the app takes now, or nothing. It is after the last record that went to it.
func (s *session) alert(a record.Alert) []byte {
	hello := s.hellos.answer
	if hello == nil || !isTLS13(hello) && !s.answers.cipher && !s.answers.unread {
		return a.Record()
	}
	if ok, err := s.openAnswers(); !ok || err != nil || s.readBacklog() != nil || s.answers.unread || s.answers.waits {
		return nil
	}
	sealer, err := s.answers.rx.Reseal()
	if err != nil {
		return nil
	}
	defer sealer.Wipe()
	sealed, err := sealer.Alert(nil, a)
	if err != nil {
		return nil
	}
	return sealed
}
