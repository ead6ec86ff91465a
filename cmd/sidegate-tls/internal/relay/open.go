// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/tls"
	"errors"
	"slices"
	"strconv"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/policy/httprule"
)

// keyed takes the app's first record that needs keys: if they are handed over at all, they have been.
func (s *session) keyed(r record.Record) error {
	if t := r.Type(); s.is13() && t != record.TypeApplicationData {
		return refuse(record.UnexpectedMessage, "the app sends a record of content type %d in the clear after its Finished", t)
	}
	k, ok, err := s.Keys.Next(Client)
	switch {
	case err != nil:
		return err
	case !ok && s.keysMayFollow(r):
		s.finished = true
		return s.send(r)
	case !ok && s.Deferred != nil:
		return refuse(record.AccessDenied, "tls: deferred needs keys, and the app's TLS library has handed over none (is kTLS on in its configuration?)")
	case !ok && s.Policy.RequireKeys:
		return refuse(record.AccessDenied, "the app's TLS library has not handed over its keys (is kTLS on in its configuration?)")
	case !ok:
		return s.passUnread(r, "the app's TLS library has not handed over its keys")
	}
	if s.tx, err = s.direction(k); err != nil {
		return err
	}
	s.events.Lock()
	s.known.ClientKeys = true
	s.events.Unlock()
	s.step = s.open
	if s.Deferred != nil && s.finished {
		return s.deferNext(r)
	}
	return s.open(r)
}

// keysMayFollow tells whether r is a Finished of TLS 1.2 whose keys may come after it: GnuTLS hands them over when the
// handshake is over. It passes unread, as in TLS 1.3: behind a change of cipher the server takes no other message.
func (s *session) keysMayFollow(r record.Record) bool {
	const finished, explicit, tag = 4 + 12, 8, 16
	if s.is13() || s.finished || r.Type() != record.TypeHandshake {
		return false
	}
	size := len(r.Body())
	return size == finished+tag || size == explicit+finished+tag
}

func (s *session) is13() bool { return isTLS13(s.answer) }

func isTLS13(h *record.ServerHello) bool { return h.Version == tls.VersionTLS13 }

// direction owns k.
func (s *session) direction(k record.Keys) (*record.Direction, error) {
	if k.Version() != s.answer.Version {
		k.Wipe()
		return nil, refuse(record.AccessDenied, "the app has handed over %v, and speaks %s", k, tls.VersionName(s.answer.Version))
	}
	d, err := record.NewDirection(k)
	if err != nil {
		k.Wipe()
		return nil, refuse(record.InternalError, "the app's keys: %v", err)
	}
	return d, nil
}

// open takes an encrypted record. It holds it, until pass.
func (s *session) open(r record.Record) error {
	s.plain = slices.Grow(s.plain[:0], len(r))
	t, content, err := s.tx.Open(s.plain, r)
	switch {
	case errors.Is(err, record.ErrNotOpened):
		return refuse(record.AccessDenied, "the keys that the app has handed over do not open what it sends")
	case err != nil:
		return refusal("the app", err)
	case s.over:
		return refuse(record.UnexpectedMessage, "the app sends more after an alert")
	case s.messages.Partial() && t != record.TypeHandshake:
		return refuse(record.UnexpectedMessage, "the app sends content of type %d within a handshake message", t)
	case t != record.TypeHandshake && t != record.TypeAlert && !s.finished:
		return refuse(record.UnexpectedMessage, "the app sends content of type %d before its Finished", t)
	}
	if _, bytes := s.tx.Held(); bytes > maxHeld {
		return refuse(record.AccessDenied, "the app sends %d bytes, and nothing of them can be judged", bytes)
	}
	switch t {
	case record.TypeApplicationData:
		err = s.data(content)
	case record.TypeHandshake:
		err = s.handshake(content)
	case record.TypeAlert:
		var a record.Alert
		a, _, err = record.ParseAlert(content)
		err = refusal("the app", err)
		s.over = a.Ends()
	default:
		err = refuse(record.UnexpectedMessage, "the app sends content of type %d", t)
	}
	if err == nil { // what is refused never passes
		s.ends = append(s.ends, s.given)
	}
	return err
}

// data is judged.
func (s *session) data(content []byte) error {
	if s.judge == nil {
		if err := s.startJudge(); err != nil {
			return err
		}
	}
	s.given += int64(len(content))
	ready, err := s.judge.Client(content)
	s.ready.Store(ready)
	return err
}

// handshake is after a change of cipher, within.
func (s *session) handshake(content []byte) error {
	messages, err := s.messages.Add(content)
	if err != nil {
		return refusal("the app", err)
	}
	switch {
	case !s.finished: // of TLS 1.2
		if len(messages) != 1 || messages[0].Type != record.MessageFinished || s.messages.Partial() {
			return refuse(record.UnexpectedMessage, "the app's first encrypted record is not its Finished")
		}
		s.finished = true
		if s.Deferred != nil {
			s.step = s.deferNext
		}
		return nil
	case !s.is13():
		return refuse(record.UnexpectedMessage, "the app renegotiates")
	case s.Policy.judges():
		return refuse(record.UnexpectedMessage, "the app changes its keys, or authenticates itself, in the midst of the connection")
	}
	for _, m := range messages {
		if m.Type != record.MessageKeyUpdate {
			return refuse(record.UnexpectedMessage, "the app sends a handshake message of type %d after its Finished", m.Type)
		}
		s.step = s.updated
	}
	return nil
}

// updated takes the first record after a KeyUpdate. The old keys are gone for good.
func (s *session) updated(r record.Record) error {
	if err := s.pass(); err != nil {
		return err
	}
	if len(s.ends) > 0 {
		return refuse(record.UnexpectedMessage, "the app changes its keys within a request's head")
	}
	next, err := s.nextKeys(Client, s.tx)
	if err != nil {
		return err
	}
	if next == nil {
		return refuse(record.AccessDenied, "the app's TLS library has not handed over the keys that follow its KeyUpdate")
	}
	s.tx.Wipe()
	s.tx = next
	s.step = s.open
	return s.open(r)
}

// nextKeys returns what follows old, or nil. The library may have handed over the same twice.
func (s *session) nextKeys(side Side, old *record.Direction) (*record.Direction, error) {
	for range maxUntaken {
		k, ok, err := s.Keys.Next(side)
		if err != nil || !ok {
			return nil, err
		}
		if old == nil || !old.Uses(k) {
			return s.direction(k)
		}
		k.Wipe()
	}
	return nil, refuse(record.AccessDenied, "the app hands over the same keys again and again")
}

// startJudge is with the first application data. If the server's keys are handed over at all, they have been.
func (s *session) startJudge() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rx, err := s.openAnswers()
	if err != nil {
		return err
	}
	s.newJudge(rx)
	return s.readBacklog()
}

// startDeferredJudge sees the sidecar's answers.
func (s *session) startDeferredJudge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newJudge(true)
}

func (s *session) newJudge(answers bool) {
	c := s.Policy.Judge
	c.Answers = answers
	c.SNI = s.first.ServerName
	c.ALPN = s.answer.ALPN
	if s.is13() && len(s.first.ALPN) == 1 {
		c.ALPN = s.first.ALPN[0]
	}
	if c.Rules == nil {
		c.Rules, c.AnyHost, c.Other = everything{}, true, true
	}
	c.Events = func(e judge.Event) {
		if e.Kind != judge.KindEnd { // ours says more
			s.emit(Event{Kind: KindHTTP, HTTP: &e})
		}
	}
	s.events.Lock()
	s.known.ServerKeys = answers
	s.events.Unlock()
	s.tell()
	s.judge = judge.New(c)
}

// everything allows every request.
type everything struct{}

func (everything) Decide(*httprule.Request) httprule.Decision {
	return httprule.Decision{Allow: true, Tunnel: true}
}

func quoted(s string) string { return strconv.Quote(bounded(s, 256)) }
