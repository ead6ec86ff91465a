// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
	"math"
)

// Sealer makes the records that go on instead of a Direction's, whose doc says why that is safe: Reseal makes it.
//
// In TLS 1.2 with GCM and CCM eight bytes of the nonce are sent along, and may be any that the key has not had (RFC 5288 3,
// RFC 6655 3). TLS libraries count them up, from zero, the record number or, as OpenSSL does, a random number. The Sealer
// counts up from 2^63 after the app's last: they meet after 2^63 records. Two that are random meet with a chance of 2^-64.
type Sealer struct {
	p        *protection
	number   uint64 // of the next record
	explicit uint64 // sent part of the next nonce
	ended    bool
}

const otherHalf = 1 << 63

// Seal appends one record to dst, which may not overlap plaintext. plaintext has at most 2^14 bytes, and t is
// TypeApplicationData, which alone may be empty, or TypeHandshake. With MaxRecord bytes of room in dst nothing is allocated but
// by CCM. It is an error after Alert and after Wipe, and where record numbers are used up.
func (s *Sealer) Seal(dst []byte, t ContentType, plaintext []byte) ([]byte, error) {
	switch {
	case t != TypeApplicationData && t != TypeHandshake:
		return nil, fmt.Errorf("seal: content type %d", t)
	case len(plaintext) > maxPlaintext:
		return nil, fmt.Errorf("seal: %d bytes, at most %d", len(plaintext), maxPlaintext)
	case len(plaintext) == 0 && t != TypeApplicationData:
		return nil, fmt.Errorf("seal: nothing, of content type %d", t)
	}
	return s.seal(dst, t, plaintext)
}

// Alert appends a sealed alert to dst. After it nothing is sealed, but for UserCanceled and NoRenegotiation.
func (s *Sealer) Alert(dst []byte, a Alert) ([]byte, error) {
	sealed, err := s.seal(dst, TypeAlert, a.content())
	if err == nil {
		s.ended = a.Ends()
	}
	return sealed, err
}

func (s *Sealer) seal(dst []byte, t ContentType, plaintext []byte) ([]byte, error) {
	switch {
	case s.p.secret.gone:
		return nil, errWiped
	case s.ended:
		return nil, errors.New("seal: an alert has ended the connection")
	case s.number == math.MaxUint64:
		return nil, errExhausted
	}
	number, explicit := s.number, s.explicit
	s.number++
	s.explicit++
	return s.p.seal(dst, number, explicit, t, plaintext), nil
}

// Wipe overwrites the key, as Direction.Wipe does.
func (s *Sealer) Wipe() { s.p.wipe() }
