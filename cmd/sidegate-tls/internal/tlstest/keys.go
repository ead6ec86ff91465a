// SPDX-License-Identifier: Apache-2.0

// Package tlstest has what tests of TLS need: certificates, and the traffic keys of a connection from its key log, as a TLS
// library hands them to the kernel.
package tlstest

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"slices"
	"strings"
	"sync"
)

// The cipher_types of include/uapi/linux/tls.h.
const (
	CipherGCM128   = 51
	CipherGCM256   = 52
	CipherCCM128   = 53
	CipherChaCha20 = 54
)

// Suites that crypto/tls does not know.
const (
	SuiteCCM12 = 0xc0ac // TLS_ECDHE_ECDSA_WITH_AES_128_CCM
	SuiteCCM13 = 0x1304 // TLS_AES_128_CCM_SHA256
)

const nonceSize = 12

// Info makes a struct tls12_crypto_info_*, field by field as include/uapi/linux/tls.h has them. iv is all 12 bytes.
func Info(version, cipher uint16, key, iv []byte, number uint64) []byte {
	b := binary.NativeEndian.AppendUint16(nil, version)
	b = binary.NativeEndian.AppendUint16(b, cipher)
	salt := 4
	if cipher == CipherChaCha20 {
		salt = 0
	}
	b = append(b, iv[salt:]...)
	b = append(b, key...)
	b = append(b, iv[:salt]...)
	return binary.BigEndian.AppendUint64(b, number)
}

// KeySize is a cipher_type's, in bytes.
func KeySize(cipher uint16) int {
	if cipher == CipherGCM128 || cipher == CipherCCM128 {
		return 16
	}
	return 32
}

// CipherOf is the cipher_type of a cipher suite's AEAD, and the suite's hash. It is 0 if the suite has no AEAD.
func CipherOf(suite uint16) (cipher uint16, h func() hash.Hash) {
	name := tls.CipherSuiteName(suite)
	if suite == SuiteCCM12 || suite == SuiteCCM13 {
		name = "AES_128_CCM_SHA256"
	}
	h = sha256.New
	if strings.HasSuffix(name, "SHA384") {
		h = sha512.New384
	}
	switch {
	case strings.Contains(name, "AES_128_GCM"):
		return CipherGCM128, h
	case strings.Contains(name, "AES_256_GCM"):
		return CipherGCM256, h
	case strings.Contains(name, "AES_128_CCM"):
		return CipherCCM128, h
	case strings.Contains(name, "CHACHA20"):
		return CipherChaCha20, h
	}
	return 0, nil
}

// expandLabel is RFC 8446 7.1's HKDF-Expand-Label.
func expandLabel(h func() hash.Hash, secret []byte, label string, size int) []byte {
	label = "tls13 " + label
	l := binary.BigEndian.AppendUint16(nil, uint16(size))
	l = append(append(append(l, byte(len(label))), label...), 0)
	b, err := hkdf.Expand(h, secret, string(l), size)
	if err != nil {
		panic(err)
	}
	return b
}

// prf is RFC 5246 5's.
func prf(h func() hash.Hash, secret []byte, label string, seed []byte, size int) (out []byte) {
	sum := func(parts ...[]byte) []byte {
		m := hmac.New(h, secret)
		for _, p := range parts {
			m.Write(p)
		}
		return m.Sum(nil)
	}
	seed = append([]byte(label), seed...)
	for a := sum(seed); len(out) < size; a = sum(a) {
		out = append(out, sum(a, seed)...)
	}
	return out[:size]
}

// KeyLog is what tls.Config.KeyLogWriter writes to, or a file of that format.
type KeyLog struct {
	Read    func() []byte // the log so far; nil if it is written here
	Resumes bool          // of TLS 1.2: crypto/tls logs only the first connection of a session

	mu  sync.Mutex
	log bytes.Buffer
}

func (l *KeyLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

// secret returns nil if it is not there yet. Without a client's random it is the newest one's.
func (l *KeyLog) secret(label string, clientRandom []byte) (found []byte) {
	l.mu.Lock()
	log := bytes.Clone(l.log.Bytes())
	l.mu.Unlock()
	if l.Read != nil {
		log = l.Read()
	}
	for line := range strings.Lines(string(log)) {
		f := strings.Fields(line)
		if !strings.HasSuffix(line, "\n") || len(f) != 3 || f[0] != label {
			continue
		}
		if clientRandom != nil && f[1] != hex.EncodeToString(clientRandom) {
			continue
		}
		if b, err := hex.DecodeString(f[2]); err == nil {
			found = b
		}
	}
	return found
}

// Session is what of a handshake makes its keys.
type Session struct {
	Version, Suite             uint16
	ClientRandom, ServerRandom []byte
}

// Info is what the library hands over for a direction, nil before it could. generation counts TLS 1.3's key updates.
func (l *KeyLog) Info(s Session, toServer bool, generation int) []byte {
	cipher, h := CipherOf(s.Suite)
	if cipher == 0 {
		return nil
	}
	size := KeySize(cipher)
	if s.Version == tls.VersionTLS13 {
		label := "SERVER_TRAFFIC_SECRET_0"
		if toServer {
			label = "CLIENT_TRAFFIC_SECRET_0"
		}
		secret := l.secret(label, s.ClientRandom)
		if secret == nil {
			return nil
		}
		for range generation {
			secret = expandLabel(h, secret, "traffic upd", h().Size())
		}
		return Info(tls.VersionTLS13, cipher, expandLabel(h, secret, "key", size), expandLabel(h, secret, "iv", nonceSize), 0)
	}
	master := l.secret("CLIENT_RANDOM", s.ClientRandom)
	if master == nil && l.Resumes {
		master = l.secret("CLIENT_RANDOM", nil)
	}
	if master == nil {
		return nil
	}
	fixed := 4
	if cipher == CipherChaCha20 {
		fixed = nonceSize
	}
	block := prf(h, master, "key expansion", slices.Concat(s.ServerRandom, s.ClientRandom), 2*(size+fixed))
	key, iv := block[size:2*size], block[2*size+fixed:]
	if toServer {
		key, iv = block[:size], block[2*size:2*size+fixed]
	}
	return Info(tls.VersionTLS12, cipher, key, append(bytes.Clone(iv), make([]byte, nonceSize-fixed)...), 0)
}
