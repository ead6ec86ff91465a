// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

var info = tlstest.Info

// kind is a version and a cipher.
type kind struct {
	name            string
	version, cipher uint16
}

var kinds = []kind{
	{"1.2 AES-128-GCM", tls.VersionTLS12, cipherGCM128},
	{"1.2 AES-256-GCM", tls.VersionTLS12, cipherGCM256},
	{"1.2 AES-128-CCM", tls.VersionTLS12, cipherCCM128},
	{"1.2 ChaCha20-Poly1305", tls.VersionTLS12, cipherChaCha20},
	{"1.3 AES-128-GCM", tls.VersionTLS13, cipherGCM128},
	{"1.3 AES-256-GCM", tls.VersionTLS13, cipherGCM256},
	{"1.3 AES-128-CCM", tls.VersionTLS13, cipherCCM128},
	{"1.3 ChaCha20-Poly1305", tls.VersionTLS13, cipherChaCha20},
}

// sent tells whether records bring their nonces.
func (k kind) sent() bool { return k.version == tls.VersionTLS12 && k.cipher != cipherChaCha20 }

func (k kind) keySize() int { return tlstest.KeySize(k.cipher) }

// info has always the same key.
func (k kind) info(number uint64) []byte {
	key := make([]byte, k.keySize())
	for i := range key {
		key[i] = byte(0xa1 + 3*i)
	}
	return info(k.version, k.cipher, key, []byte("\x51\x62\x73\x84\x95\xa6\xb7\xc8\xd9\xea\xfb\x0c"), number)
}

func parse(t testing.TB, b []byte) Keys {
	t.Helper()
	k, err := ParseKeys(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func direction(t testing.TB, b []byte) *Direction {
	t.Helper()
	d, err := NewDirection(parse(t, b))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func sealer(t testing.TB, b []byte) *Sealer {
	t.Helper()
	s, err := direction(t, b).Reseal()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func seal(t testing.TB, s *Sealer, kind ContentType, plaintext string) Record {
	t.Helper()
	r, err := s.Seal(nil, kind, []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// opens fails unless r is the next record, and has that content.
func opens(t testing.TB, d *Direction, r Record, kind ContentType, plaintext string) {
	t.Helper()
	before := bytes.Clone(r)
	got, content, err := d.Open([]byte("dst"), r)
	if err != nil || got != kind || string(content) != "dst"+plaintext {
		t.Fatalf("got type %d, %q, %v; want type %d, %q", got, content, err, kind, "dst"+plaintext)
	}
	if !bytes.Equal(r, before) {
		t.Fatal("the record was changed")
	}
}

// alertOf is the alert of a *ProtocolError.
func alertOf(t testing.TB, err error) Alert {
	t.Helper()
	var p *ProtocolError
	if !errors.As(err, &p) {
		t.Fatalf("%v is no *ProtocolError", err)
	}
	return p.Alert
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// session is a connection whose keys come out of a key log, as browsers write it.
type session struct {
	tlstest.KeyLog
	mu         sync.Mutex
	client     *ClientHello
	server     *ServerHello
	keys       tlstest.Session
	generation [2]int // of TLS 1.3's keys, by direction
}

// info is what a TLS library would hand to the kernel for a direction, nil before it could.
func (s *session) info(toServer bool) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil || s.server.HelloRetryRequest {
		return nil
	}
	generation := s.generation[0]
	if toServer {
		generation = s.generation[1]
	}
	return s.Info(s.keys, toServer, generation)
}

// nextGeneration is after a KeyUpdate.
func (s *session) nextGeneration(toServer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if toServer {
		s.generation[1]++
	} else {
		s.generation[0]++
	}
}

// hello looks at the first message of a direction.
func (s *session) hello(toServer bool, m Message) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if toServer {
		s.client, err = ParseClientHello(m.Body)
		s.keys.ClientRandom = bytes.Clone(m.Body[2:34])
	} else {
		if s.server, err = ParseServerHello(m.Body); err != nil {
			return err
		}
		s.keys.ServerRandom = bytes.Clone(m.Body[2:34])
		s.keys.Version, s.keys.Suite = s.server.Version, s.server.CipherSuite
	}
	return err
}

// pump relays one direction, as a relay would.
type pump struct {
	t        testing.TB
	s        *session
	toServer bool
	reseal   bool                    // seal anew, every record as two
	deny     string                  // answer what has it by an alert
	inject   func(*pump) []byte      // asked before each of the app's records, and may send more first
	tamper   func(out []byte) []byte // changes what goes out
	saw      func(Message)           // of decrypted handshake messages
	explicit map[string]bool         // nonces that the app sent
	plain    bytes.Buffer            // application data
	kinds    map[ContentType]int     // records opened
	missed   int                     // encrypted records that did not open
	d        *Direction              //
	sealer   *Sealer                 //
	clear    Messages                // in the clear
	messages Messages                // decrypted
	buf      [MaxContent]byte        //
	greeted  bool                    // the hello was read
	records  []Record                // all that went out
	done     chan struct{}           //
	denied   bool                    //
}

// step returns what goes out for a record.
func (p *pump) step(r Record) ([]byte, error) {
	if !p.greeted && r.Type() == TypeHandshake {
		messages, err := p.clear.Add(r.Body())
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if m.Type == MessageClientHello || m.Type == MessageServerHello {
				if err := p.s.hello(p.toServer, m); err != nil {
					return nil, err
				}
				p.greeted = p.toServer || !p.s.server.HelloRetryRequest
			}
		}
		return r, nil
	}
	if p.d == nil {
		b := p.s.info(p.toServer)
		if b == nil {
			return r, nil
		}
		k, err := ParseKeys(b)
		if err != nil {
			return nil, err
		}
		if p.d, err = NewDirection(k); err != nil {
			return nil, err
		}
	}
	kind, content, err := p.d.Open(p.buf[:0], r)
	if errors.Is(err, ErrNotOpened) && len(p.kinds) == 0 {
		if r.Type() == TypeApplicationData {
			p.missed++ // under the handshake's keys
		}
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	p.kinds[kind]++
	if p.d.p.explicit > 0 {
		p.explicit[string(r.Body()[:explicitSize])] = true
	}
	var out []byte
	if kind == TypeApplicationData {
		p.plain.Write(content)
		if p.inject != nil {
			out = p.inject(p)
		}
		if p.deny != "" && bytes.Contains(content, []byte(p.deny)) {
			p.denied = true
			s, err := p.d.Reseal()
			if err != nil {
				return nil, err
			}
			return s.Alert(nil, AccessDenied)
		}
	}
	if p.reseal {
		return p.again(out, kind, content)
	}
	passed, err := p.d.Pass(1)
	if err == nil && !bytes.Equal(passed, r) {
		err = errors.New("passed is not what came")
	}
	out = append(out, passed...)
	if err == nil && kind == TypeHandshake {
		err = p.handshake(content)
	}
	return out, err
}

// handshake follows key updates.
func (p *pump) handshake(content []byte) error {
	messages, err := p.messages.Add(content)
	for _, m := range messages {
		if p.saw != nil {
			p.saw(m)
		}
		if m.Type == MessageKeyUpdate {
			p.s.nextGeneration(p.toServer)
			p.d.Wipe()
			p.d = nil
		}
	}
	return err
}

// again seals a content anew, in two records where that is possible.
func (p *pump) again(out []byte, kind ContentType, content []byte) (_ []byte, err error) {
	if p.sealer == nil {
		if p.sealer, err = p.d.Reseal(); err != nil {
			return nil, err
		}
	}
	if kind == TypeAlert {
		a, _, err := ParseAlert(content)
		if err != nil {
			return nil, err
		}
		return p.sealer.Alert(out, a)
	}
	if half := len(content) / 2; half > 0 {
		if out, err = p.sealer.Seal(out, kind, content[:half]); err != nil {
			return nil, err
		}
		content = content[half:]
	}
	return p.sealer.Seal(out, kind, content)
}

func (p *pump) run(from, to net.Conn) {
	defer close(p.done)
	defer to.Close()
	defer from.Close()
	p.kinds, p.explicit = map[ContentType]int{}, map[string]bool{}
	reader := NewReader(from)
	for {
		r, err := reader.Next()
		if err != nil {
			if err != io.EOF && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) && !strings.Contains(err.Error(), "reset") {
				p.t.Errorf("to server %v: %v", p.toServer, err)
			}
			return
		}
		out, err := p.step(r)
		if err != nil {
			p.t.Errorf("to server %v: %v", p.toServer, err)
			return
		}
		for rest := Record(out); len(rest) > 0; rest = rest[headerSize+rest.bodySize():] {
			p.records = append(p.records, bytes.Clone(rest[:headerSize+rest.bodySize()]))
		}
		if p.tamper != nil {
			out = p.tamper(out)
		}
		if _, err := to.Write(out); err != nil {
			return // the other side has closed
		}
		if p.denied {
			return
		}
	}
}
