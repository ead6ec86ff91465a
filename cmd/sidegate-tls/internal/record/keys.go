// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// suite is a cipher_type of include/uapi/linux/tls.h. All have tags of 16 bytes, nonces of 12, and a rec_seq of 8.
type suite struct {
	name          string
	key, iv, salt int // bytes
}

const (
	cipherGCM128   = 51 // TLS_CIPHER_AES_GCM_128
	cipherGCM256   = 52 // TLS_CIPHER_AES_GCM_256
	cipherCCM128   = 53 // TLS_CIPHER_AES_CCM_128
	cipherChaCha20 = 54 // TLS_CIPHER_CHACHA20_POLY1305
)

var suites = map[uint16]suite{
	cipherGCM128:   {"AES-128-GCM", 16, 8, 4},
	cipherGCM256:   {"AES-256-GCM", 32, 8, 4},
	cipherCCM128:   {"AES-128-CCM", 16, 8, 4},
	cipherChaCha20: {"ChaCha20-Poly1305", 32, 12, 0},
}

const (
	infoSize   = 4 // struct tls_crypto_info
	numberSize = 8 // rec_seq
	nonceSize  = 12
)

// secret is never a field, nor what a field of an exported type points to: fmt follows pointers of unexported fields, past
// every Format method, for a verb that it thinks wrong.
type secret struct {
	key    [32]byte        // the first suite.key bytes
	iv     [nonceSize]byte // salt, then iv
	nonce  [nonceSize]byte // of the last record
	number uint64          // of the first record
	gone   bool            // wiped
}

// Keys are the traffic keys of one direction, as setsockopt(SOL_TLS, TLS_TX or TLS_RX) gets them: a struct
// tls12_crypto_info_* of include/uapi/linux/tls.h, of TLS 1.2 or 1.3. A copy shares the key with the original, and is wiped
// with it. No verb of fmt prints the key.
type Keys struct {
	version, cipher uint16
	secret          func() *secret // nil if there are none
}

// ParseKeys copies the keys out of b, which stays the caller's to wipe. An unknown version or cipher, and a length that is
// not exactly the struct's, are errors.
func ParseKeys(b []byte) (Keys, error) {
	if len(b) < infoSize {
		return Keys{}, fmt.Errorf("parse keys: %d bytes, need at least %d", len(b), infoSize)
	}
	k := Keys{version: binary.NativeEndian.Uint16(b), cipher: binary.NativeEndian.Uint16(b[2:])}
	if k.version != tls.VersionTLS12 && k.version != tls.VersionTLS13 {
		return Keys{}, fmt.Errorf("parse keys: version %#04x, know TLS 1.2 and 1.3", k.version)
	}
	s, ok := suites[k.cipher]
	if !ok {
		return Keys{}, fmt.Errorf("parse keys: cipher_type %d is not supported", k.cipher)
	}
	if want := infoSize + s.iv + s.key + s.salt + numberSize; len(b) != want {
		return Keys{}, fmt.Errorf("parse keys: %d bytes, want %d for %s", len(b), want, s.name)
	}
	iv, b := b[infoSize:infoSize+s.iv], b[infoSize+s.iv:]
	key, b := b[:s.key], b[s.key:]
	salt, number := b[:s.salt], b[s.salt:]
	parsed := &secret{number: binary.BigEndian.Uint64(number)}
	copy(parsed.key[:], key)
	copy(parsed.iv[copy(parsed.iv[:], salt):], iv)
	k.secret = func() *secret { return parsed }
	return k, nil
}

// Version is tls.VersionTLS12 or tls.VersionTLS13.
func (k Keys) Version() uint16 { return k.version }

// Wipe overwrites the key.
func (k Keys) Wipe() {
	if k.secret != nil {
		k.secret().wipe()
	}
}

// String names the cipher and the version.
func (k Keys) String() string {
	if k.secret == nil {
		return "no keys"
	}
	return fmt.Sprintf("%s keys for %s", suites[k.cipher].name, tls.VersionName(k.version))
}

// Format writes String, whatever the verb.
func (k Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// take moves the key out of k: it can be taken once.
func (k Keys) take() (*secret, error) {
	if k.secret == nil {
		return nil, errors.New("no keys")
	}
	s := k.secret()
	if s.gone {
		return nil, errors.New("keys were taken, or wiped")
	}
	moved := *s
	s.wipe()
	return &moved, nil
}

func (s *secret) wipe() { *s = secret{gone: true} }

// same tells in constant time whether the key is the same, whatever the IV and the record number.
func (s *secret) same(o *secret) bool { return subtle.ConstantTimeCompare(s.key[:], o.key[:]) == 1 }
