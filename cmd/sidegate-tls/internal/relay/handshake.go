// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/tls"
	"strings"

	"sidegate/cmd/sidegate-tls/internal/record"
)

// The steps of the app's direction: hello, then waiting for the server's answer, which is a second hello or says which
// version goes on: clear12, or clear13. With the first record that needs keys they end: see open.go.

// hello collects the app's first message. Nothing goes on before it was judged.
func (s *session) hello(r record.Record) error {
	if r.Type() != record.TypeHandshake {
		return refuse(record.UnexpectedMessage, "the app begins with a record of content type %d", r.Type())
	}
	h, err := s.clientHello(r)
	if err != nil || h == nil {
		return err
	}
	s.first = h
	s.events.Lock()
	s.known = Event{Kind: KindTLS, SNI: h.ServerName, Offered: h.ALPN}
	s.events.Unlock()
	if err := s.judgeHello(h); err != nil {
		return err
	}
	s.mu.Lock()
	s.greeted = true
	s.mu.Unlock()
	if h.EarlyData {
		err := s.passUnread(nil, "early data may follow the hello")
		s.rest = append(s.pending, s.rest...)
		return err
	}
	s.step = s.waiting
	return s.sendPending()
}

// clientHello returns the message once it is whole. It must end its record.
func (s *session) clientHello(r record.Record) (*record.ClientHello, error) {
	if len(s.pending)+len(r) > maxHello {
		return nil, refuse(record.IllegalParameter, "the app's hello has more than %d bytes", maxHello)
	}
	s.pending = append(s.pending, r...)
	messages, err := s.messages.Add(r.Body())
	switch {
	case err != nil:
		return nil, refusal("the app", err)
	case len(messages) == 0 && r.Body()[0] != byte(record.MessageClientHello) && len(s.pending) == len(r):
		return nil, refuse(record.UnexpectedMessage, "the app's message of type %d is no hello", r.Body()[0])
	case len(messages) == 0:
		return nil, nil
	case messages[0].Type != record.MessageClientHello:
		return nil, refuse(record.UnexpectedMessage, "the app's message of type %d is no hello", messages[0].Type)
	case len(messages) > 1 || s.messages.Partial():
		return nil, refuse(record.UnexpectedMessage, "the app sends more after its hello, before the answer")
	}
	h, err := record.ParseClientHello(messages[0].Body)
	if err != nil {
		return nil, refusal("the app", err)
	}
	return h, nil
}

func (s *session) judgeHello(h *record.ClientHello) error {
	if !s.Policy.judges() && s.Deferred == nil {
		return nil
	}
	if h.EncryptedClientHello {
		return refuse(record.AccessDenied, "the app's hello has an encrypted one, which may be for another server")
	}
	if h.EarlyData {
		return refuse(record.AccessDenied, "the app offers early data, whose keys are not handed over")
	}
	if s.Policy.SNI == nil {
		return nil
	}
	allow, rule := s.Policy.SNI(h.ServerName)
	if allow {
		return nil
	}
	r := &Refused{Alert: record.AccessDenied, Denied: true, Rule: rule, Reason: "connection to " + quoted(h.ServerName) + " denied: "}
	if h.ServerName == "" {
		r.Reason = "connection without SNI denied: "
	}
	if rule == "" {
		r.Reason += "no rule allows it"
	} else {
		r.Reason += "rule " + quoted(rule) + " denies it"
	}
	return r
}

func (s *session) sendPending() error {
	b := s.pending
	s.pending = nil
	return s.send(b)
}

// waiting is up to the server's answer. Before it the app has nothing to say, but that it gives up.
func (s *session) waiting(r record.Record) error {
	s.mu.Lock()
	answer, retry := s.hellos.answer, s.hellos.retry
	s.mu.Unlock()
	switch t := r.Type(); {
	case answer != nil:
		return s.begin(r, answer)
	case t == record.TypeAlert:
		return s.clearAlert(r)
	case s.over:
		return refuse(record.UnexpectedMessage, "the app sends more after an alert")
	case !retry || s.second || t == record.TypeApplicationData:
		return refuse(record.UnexpectedMessage, "the app sends a record of content type %d before the server's answer", t)
	case t == record.TypeChangeCipherSpec && !s.messages.Partial():
		return s.changeCipher(r)
	case t == record.TypeHandshake:
		return s.secondHello(r)
	}
	return refuse(record.UnexpectedMessage, "the app's hello is not whole")
}

// secondHello answers a HelloRetryRequest, and may change little (RFC 8446 4.1.2).
func (s *session) secondHello(r record.Record) error {
	h, err := s.clientHello(r)
	if err != nil || h == nil {
		return err
	}
	s.second = true
	if h.ServerName != s.first.ServerName {
		return refuse(record.IllegalParameter, "the app's second hello has another server name")
	}
	if h.EarlyData {
		return refuse(record.IllegalParameter, "the app's second hello offers early data")
	}
	if err := s.judgeHello(h); err != nil {
		return err
	}
	s.first = h
	return s.sendPending()
}

// begin is with the first record after the server's answer.
func (s *session) begin(r record.Record, answer *record.ServerHello) error {
	if s.messages.Partial() {
		return refuse(record.UnexpectedMessage, "the app's hello is not whole")
	}
	s.answer = answer
	s.app.SetVersion(answer.Version)
	s.events.Lock()
	s.known.Version, s.known.Suite, s.known.ALPN = tls.VersionName(answer.Version), tls.CipherSuiteName(answer.CipherSuite), answer.ALPN
	s.events.Unlock()
	s.step = s.clear12
	if answer.Version == tls.VersionTLS13 {
		s.step = s.clear13
	}
	return s.step(r)
}

func (s *session) clearAlert(r record.Record) error {
	if s.over {
		return refuse(record.UnexpectedMessage, "the app sends more after an alert")
	}
	a, _, err := record.ParseAlert(r.Body())
	if err != nil {
		return refusal("the app", err)
	}
	s.over = a.Ends()
	return s.send(r)
}

// changeCipher passes the app's only one.
func (s *session) changeCipher(r record.Record) error {
	switch {
	case s.cipher:
		return refuse(record.UnexpectedMessage, "the app sends a second change of cipher")
	case len(r.Body()) != 1 || r.Body()[0] != 1:
		return refuse(record.IllegalParameter, "the app's change of cipher is malformed")
	case s.messages.Partial():
		return refuse(record.UnexpectedMessage, "the app changes the cipher within a message")
	}
	s.cipher = true
	return s.send(r)
}

// clear12 is up to the app's ChangeCipherSpec in TLS 1.2, and before.
func (s *session) clear12(r record.Record) error {
	if s.over {
		return refuse(record.UnexpectedMessage, "the app sends more after an alert")
	}
	switch r.Type() {
	case record.TypeAlert:
		return s.clearAlert(r)
	case record.TypeChangeCipherSpec:
		s.step = s.keyed
		return s.changeCipher(r)
	case record.TypeHandshake:
		messages, err := s.messages.Add(r.Body())
		if err != nil {
			return refusal("the app", err)
		}
		for _, m := range messages {
			if m.Type == record.MessageClientHello {
				return refuse(record.UnexpectedMessage, "the app sends another hello")
			}
		}
		return s.send(r)
	}
	return refuse(record.UnexpectedMessage, "the app sends application data before its change of cipher")
}

const (
	innerSize   = 1 + 16 // content type and tag of TLS 1.3
	sealedAlert = 2 + innerSize
)

// sealedFinished is the size of a Finished in TLS 1.3, which has a hash of the suite's.
func sealedFinished(suite uint16) int {
	size := 32
	if strings.HasSuffix(tls.CipherSuiteName(suite), "SHA384") {
		size = 48
	}
	return 4 + size + innerSize
}

// clear13 is up to the app's Finished in TLS 1.3. That is encrypted by keys which are never handed over, and known by its
// size: the server takes nothing else there, since it got no early data.
func (s *session) clear13(r record.Record) error {
	size := len(r.Body())
	switch t := r.Type(); {
	case s.over:
		return refuse(record.UnexpectedMessage, "the app sends more after an alert")
	case t == record.TypeAlert:
		return s.clearAlert(r)
	case t == record.TypeChangeCipherSpec:
		return s.changeCipher(r)
	case t == record.TypeHandshake:
		return refuse(record.UnexpectedMessage, "the app sends a handshake message in the clear after the server's answer")
	case size == sealedAlert: // it does not like the server's certificate
		s.over = true
		return s.send(r)
	case size != sealedFinished(s.answer.CipherSuite):
		if !s.Policy.RequireKeys && s.Deferred == nil {
			return s.passUnread(r, "the app sends more than a Finished, by keys that are not handed over")
		}
		return refuse(record.UnexpectedMessage, "the app's first encrypted record has %d bytes, its Finished has %d: "+
			"a client certificate in TLS 1.3 is encrypted by keys that are not handed over", size, sealedFinished(s.answer.CipherSuite))
	}
	s.finished = true
	s.step = s.keyed
	s.mu.Lock()
	s.appFinished = true // before the server can answer
	s.mu.Unlock()
	return s.send(r)
}
