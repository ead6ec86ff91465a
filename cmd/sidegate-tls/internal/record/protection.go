// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"

	"github.com/pion/dtls/v3/pkg/crypto/ccm"
	"golang.org/x/crypto/chacha20poly1305"
)

const (
	tagSize      = 16
	explicitSize = 8 // what of a nonce TLS 1.2 sends with AES (RFC 5288 3, RFC 6655 3)
	aadSize      = 13
)

// protection is the encryption of records with one key (RFC 5246 6.2.3.3, RFC 8446 5.2). It keeps no record number.
type protection struct {
	tls13    bool
	explicit int // explicitSize, or 0 where nonces are made of record numbers
	secret   *secret
	aead     cipher.AEAD
	block    cipher.Block // of AES

	aad [aadSize]byte // here, as the nonce in secret, since both would be allocated anew for each record
}

// newProtection owns s.
func newProtection(version, kind uint16, s *secret) (*protection, error) {
	p := &protection{tls13: version == tls.VersionTLS13, secret: s}
	key := s.key[:suites[kind].key]
	var err error
	if kind == cipherChaCha20 {
		p.aead, err = chacha20poly1305.New(key)
	} else if p.block, err = aes.NewCipher(key); err == nil {
		if !p.tls13 {
			p.explicit = explicitSize
		}
		if kind == cipherCCM128 {
			p.aead, err = ccm.NewCCM(p.block, tagSize, nonceSize)
		} else {
			p.aead, err = cipher.NewGCM(p.block)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("use keys: %w", err)
	}
	return p, nil
}

// wipe overwrites the key and what Go's ciphers have made of it: objects of their own, behind pointers. It may be called again.
func (p *protection) wipe() {
	p.secret.wipe()
	if p.aead != nil {
		reflect.ValueOf(p.aead).Elem().SetZero()
	}
	if p.block != nil {
		reflect.ValueOf(p.block).Elem().SetZero()
	}
	p.aead, p.block = nil, nil
}

// setNonce is for a record number and what goes with the record. In TLS 1.2 with AES it is salt and explicit, else the IV
// with the number (RFC 8446 5.3, RFC 7905 2).
func (p *protection) setNonce(number uint64, explicit []byte) {
	nonce := &p.secret.nonce
	*nonce = p.secret.iv
	if p.explicit > 0 {
		copy(nonce[nonceSize-explicitSize:], explicit)
		return
	}
	last := nonce[nonceSize-numberSize:]
	binary.BigEndian.PutUint64(last, binary.BigEndian.Uint64(last)^number)
}

// additional is what is authenticated along: the header, in TLS 1.2 with the number and the plaintext's length.
func (p *protection) additional(number uint64, header []byte, plaintext int) []byte {
	if p.tls13 {
		return append(p.aad[:0], header...)
	}
	b := binary.BigEndian.AppendUint64(p.aad[:0], number)
	b = append(b, header[:headerSize-2]...)
	return binary.BigEndian.AppendUint16(b, uint16(plaintext))
}

// open appends r's plaintext to dst and returns both, and the content's type. It changes neither p's key nor r. What r may not
// have even though it is authentic is a *ProtocolError; before that, everything is ErrNotOpened.
func (p *protection) open(dst []byte, number uint64, r Record) (ContentType, []byte, error) {
	if err := p.fits(r); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNotOpened, err)
	}
	header, explicit, sealed := r[:headerSize], r[headerSize:headerSize+p.explicit], r[headerSize+p.explicit:]
	p.setNonce(number, explicit)
	whole, err := p.aead.Open(dst, p.secret.nonce[:], sealed, p.additional(number, header, len(sealed)-tagSize))
	if err != nil {
		return 0, nil, ErrNotOpened
	}
	t, content := r.Type(), whole[len(dst):]
	if p.tls13 {
		if len(content) > maxPlaintext+1 {
			return 0, nil, violation(RecordOverflow, "record has %d bytes of plaintext and padding", len(content))
		}
		for len(content) > 0 && content[len(content)-1] == 0 {
			content = content[:len(content)-1]
		}
		if len(content) == 0 {
			return 0, nil, violation(UnexpectedMessage, "record is only padding")
		}
		t, content = ContentType(content[len(content)-1]), content[:len(content)-1]
	}
	switch {
	case t < TypeChangeCipherSpec || t > TypeApplicationData || p.tls13 && t == TypeChangeCipherSpec:
		return 0, nil, violation(UnexpectedMessage, "encrypted record of content type %d", t)
	case len(content) > maxPlaintext:
		return 0, nil, violation(RecordOverflow, "record has %d bytes of plaintext", len(content))
	case len(content) == 0 && t != TypeApplicationData:
		return 0, nil, violation(UnexpectedMessage, "empty record of content type %d", t)
	}
	return t, whole[:len(dst)+len(content)], nil
}

// fits tells what of r's form no record of these keys has.
func (p *protection) fits(r Record) error {
	if len(r) < headerSize || len(r) != headerSize+r.bodySize() {
		return fmt.Errorf("%d bytes are not one record", len(r))
	}
	limit := maxCiphertext12
	if p.tls13 {
		limit = maxCiphertext13
	}
	switch n := r.bodySize(); {
	case n > limit:
		return fmt.Errorf("%d bytes, at most %d", n, limit)
	case n < p.explicit+tagSize:
		return fmt.Errorf("%d bytes, at least %d", n, p.explicit+tagSize)
	case binary.BigEndian.Uint16(r[1:]) != tls.VersionTLS12: // which 1.3 writes too (RFC 8446 5.2)
		return fmt.Errorf("version %#04x", binary.BigEndian.Uint16(r[1:]))
	case p.tls13 && r.Type() != TypeApplicationData:
		return fmt.Errorf("content type %d outside", r.Type())
	}
	return nil
}

// seal appends a record to dst. explicit is the sent part of the nonce, where there is one.
func (p *protection) seal(dst []byte, number, explicit uint64, t ContentType, plaintext []byte) []byte {
	inner := len(plaintext)
	outer := t
	if p.tls13 {
		inner++
		outer = TypeApplicationData
	}
	body := p.explicit + inner + tagSize
	start := len(dst)
	dst = slices.Grow(dst, headerSize+body)
	dst = append(dst, byte(outer), tls.VersionTLS12>>8, tls.VersionTLS12&0xff, byte(body>>8), byte(body))
	if p.explicit > 0 {
		dst = binary.BigEndian.AppendUint64(dst, explicit)
	}
	header, sent, at := dst[start:start+headerSize], dst[start+headerSize:], len(dst)
	dst = append(dst, plaintext...)
	if p.tls13 {
		dst = append(dst, byte(t))
	}
	p.setNonce(number, sent)
	return p.aead.Seal(dst[:at], p.secret.nonce[:], dst[at:], p.additional(number, header, inner))
}
