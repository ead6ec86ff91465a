// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Direction opens the records of one direction of a connection, and lets them go on. What it has opened it holds, until Pass
// hands it out unchanged, or Reseal drops it: then a Sealer's records go on instead.
//
// # One record number, one ciphertext
//
// In TLS 1.3, and with ChaCha20, a record's nonce is its number (RFC 8446 5.3, RFC 7905 2). Who sees two records of one key and
// one number but with different plaintexts has the XOR of the plaintexts, and with GCM the key of the authenticator, with
// which records can be changed and forged (NIST SP 800-38D, appendix A). So of each number one record goes on, at most:
//
//   - Pass hands out what was opened, in order, each record once. There is no other way to get at a record that is held.
//   - Reseal ends that for good. It returns the key's only Sealer, and that begins with the first number that was not passed.
//   - The Sealer counts up and never back; after an alert that ends the connection it seals nothing. Numbers do not wrap.
//   - Keys make one Direction. Uses finds out that the same key was handed over again.
//
// What is left is a number that is sealed here and whose own record has come as far as here, and that is for the caller to
// argue. Of these two records one must stay where only the two ends' hosts see it. Towards the world the app's own has never left the
// pod; towards the app the sealed one never does. So nobody may capture packets on the loopback between app and relay (root
// on the node may; CAP_NET_RAW in the pod may, where nothing forbids AF_PACKET). An alert that ends the connection costs little even then: its two or
// three bytes of key stream, and an authenticator under which nothing is accepted any more.
//
// In TLS 1.2 with GCM and CCM a record brings its nonce, and there is no such case at all: see Sealer.
type Direction struct {
	version, cipher uint16
	p               *protection
	number          uint64 // of the next record to open
	explicit        uint64 // sent part of the last nonce, where there is one

	held     []byte // records that were opened, after handedOut bytes that were passed
	handed   int
	records  int // in held, not passed
	resealed bool
}

// keepHeld is the memory in bytes that a Direction keeps for records to come.
const keepHeld = 1 << 16

// NewDirection takes the key out of k, which is empty then. Wipe gives it up.
func NewDirection(k Keys) (*Direction, error) {
	s, err := k.take()
	if err != nil {
		return nil, err
	}
	p, err := newProtection(k.version, k.cipher, s)
	if err != nil {
		s.wipe()
		return nil, err
	}
	d := &Direction{version: k.version, cipher: k.cipher, p: p, number: s.number}
	if p.explicit > 0 {
		d.explicit = binary.BigEndian.Uint64(s.iv[nonceSize-explicitSize:])
	}
	return d, nil
}

// Version is tls.VersionTLS12 or tls.VersionTLS13.
func (d *Direction) Version() uint16 { return d.version }

// Number is that of the next record to open.
func (d *Direction) Number() uint64 { return d.number }

// Uses tells whether k has this Direction's key. Such keys must not become another Direction: it would count from k's record
// number again. They say nothing new of the connection.
func (d *Direction) Uses(k Keys) bool { return k.secret != nil && d.p.secret.same(k.secret()) }

// Open opens the next record, appends its plaintext to dst, and returns the type of its content, in TLS 1.3 the one within, and
// dst with it. r is not changed, and may not overlap dst; with MaxContent bytes of room in dst nothing is allocated but by CCM. After an error
// nothing has changed but bytes of dst beyond its length, and the same number can be tried with another record.
//
// Errors: ErrNotOpened, where r is not this key's or number's, which may be a record of before the key was in use; and a
// *ProtocolError, where r is authentic, and none that TLS allows. Such a record does not go on.
func (d *Direction) Open(dst []byte, r Record) (ContentType, []byte, error) {
	if d.p.secret.gone {
		return 0, nil, errWiped
	}
	if d.number == math.MaxUint64 {
		return 0, nil, errExhausted
	}
	t, plaintext, err := d.p.open(dst, d.number, r)
	if err != nil {
		return 0, nil, err
	}
	d.number++
	if d.p.explicit > 0 {
		d.explicit = binary.BigEndian.Uint64(r.Body())
	}
	if !d.resealed {
		d.hold(r)
	}
	return t, plaintext, nil
}

func (d *Direction) hold(r Record) {
	if d.handed == len(d.held) && cap(d.held) > keepHeld {
		d.held = nil
	} else {
		d.held = d.held[:copy(d.held, d.held[d.handed:])]
	}
	d.handed = 0
	d.held = append(d.held, r...)
	d.records++
}

// Held is how many records, and bytes of them, were opened and not passed. There is no limit but the caller's.
func (d *Direction) Held() (records, bytes int) { return d.records, len(d.held) - d.handed }

// Pass returns the next n records that are held, one after the other and as they came, for the other side. They are in the
// Direction's memory until the next Open. It is an error after Reseal or Wipe, or if fewer are held.
func (d *Direction) Pass(n int) ([]byte, error) {
	switch {
	case d.p.secret.gone:
		return nil, errWiped
	case d.resealed:
		return nil, errors.New("pass: records are sealed anew")
	case n < 0 || n > d.records:
		return nil, fmt.Errorf("pass: %d records, held are %d", n, d.records)
	}
	from := d.handed
	for range n {
		d.handed += headerSize + Record(d.held[d.handed:]).bodySize()
	}
	d.records -= n
	return d.held[from:d.handed], nil
}

// Reseal drops what is held, and returns the Sealer whose records go on from here: of all that was not passed Open has given
// the plaintext. Open still works. It is an error the second time, and after Wipe. The Sealer has its own copy of the key.
func (d *Direction) Reseal() (*Sealer, error) {
	if d.p.secret.gone {
		return nil, errWiped
	}
	if d.resealed {
		return nil, errors.New("reseal: there is a sealer already")
	}
	s := *d.p.secret
	p, err := newProtection(d.version, d.cipher, &s)
	if err != nil {
		s.wipe()
		return nil, err
	}
	sealer := &Sealer{p: p, number: d.number - uint64(d.records), explicit: d.explicit ^ otherHalf}
	d.resealed, d.held, d.handed, d.records = true, nil, 0, 0
	return sealer, nil
}

// Wipe overwrites the key, as far as it is in this package's and the ciphers' objects, and forgets what is held. A Sealer has
// its own. Copies that registers and stacks had are beyond reach.
func (d *Direction) Wipe() {
	d.p.wipe()
	d.held, d.handed, d.records = nil, 0, 0
}
