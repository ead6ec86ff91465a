// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"

	"golang.org/x/crypto/cryptobyte"
)

const (
	extServerName        = 0      // RFC 6066 3
	extALPN              = 16     // RFC 7301
	extPreSharedKey      = 41     // RFC 8446 4.2.11
	extEarlyData         = 42     // RFC 8446 4.2.10
	extSupportedVersions = 43     // RFC 8446 4.2.1
	extEncryptedHello    = 0xfe0d // RFC 9849 5
)

// ClientHello is what a client says in the clear (RFC 8446 4.1.2).
type ClientHello struct {
	LegacyVersion        uint16
	Versions             []uint16 // supported_versions, in the client's order; nil if it has none and LegacyVersion counts
	SessionID            []byte
	CipherSuites         []uint16
	ServerName           string   // lower-case, no dot at its end, a valid DNS name; "" if there is none
	ALPN                 []string // any bytes, none is empty
	EarlyData            bool     // encrypted requests follow before the server's answer
	EncryptedClientHello bool     // ServerName may not be whom it is for (or this is GREASE, and it is)
}

// ParseClientHello reads the body of a MessageClientHello. The result shares no memory with it. Errors are *ProtocolError:
// anything that is malformed, an extension that is there twice, a server name that is none, or several.
func ParseClientHello(body []byte) (*ClientHello, error) {
	h := &ClientHello{}
	s := cryptobyte.String(body)
	var random, session, suites, compression cryptobyte.String
	if !s.ReadUint16(&h.LegacyVersion) || !s.ReadBytes((*[]byte)(&random), 32) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || !s.ReadUint8LengthPrefixed(&compression) {
		return nil, violation(DecodeError, "client hello is malformed")
	}
	h.SessionID = bytes.Clone(session)
	var ok bool
	if h.CipherSuites, ok = uint16s(suites); !ok {
		return nil, violation(DecodeError, "client hello has malformed cipher suites")
	}
	if !bytes.Contains(compression, []byte{0}) {
		return nil, violation(IllegalParameter, "client hello has only compressions")
	}
	err := extensions(s, func(kind uint16, data cryptobyte.String, last bool) error {
		switch kind {
		case extServerName:
			name, err := serverNameList(data)
			h.ServerName = name
			return err
		case extALPN:
			protocols, ok := protocolNames(data)
			if !ok {
				return violation(DecodeError, "client hello has a malformed ALPN")
			}
			h.ALPN = protocols
		case extSupportedVersions:
			var list cryptobyte.String
			ok := data.ReadUint8LengthPrefixed(&list) && data.Empty()
			if ok {
				h.Versions, ok = uint16s(list)
			}
			if !ok {
				return violation(DecodeError, "client hello has malformed versions")
			}
		case extEarlyData:
			if !data.Empty() {
				return violation(DecodeError, "client hello has a malformed early data extension")
			}
			h.EarlyData = true
		case extEncryptedHello:
			h.EncryptedClientHello = true
		case extPreSharedKey:
			if !last {
				return violation(IllegalParameter, "client hello has extensions after its pre-shared keys")
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// ServerHello is what a server answers in the clear (RFC 8446 4.1.3, RFC 5246 7.4.1.3).
type ServerHello struct {
	Version           uint16 // the one selected, such as tls.VersionTLS13
	SessionID         []byte
	CipherSuite       uint16
	HelloRetryRequest bool   // another ClientHello and another ServerHello follow
	ALPN              string // of TLS 1.2 only; TLS 1.3 encrypts it
}

// helloRetryRequest is the random of a ServerHello that is a HelloRetryRequest: SHA-256 of that word (RFC 8446 4.1.3).
var helloRetryRequest = []byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// ParseServerHello reads the body of a MessageServerHello. The result shares no memory with it. Errors are *ProtocolError. That
// it answers what the client offered is for the client to check.
func ParseServerHello(body []byte) (*ServerHello, error) {
	h := &ServerHello{}
	s := cryptobyte.String(body)
	var random, session cryptobyte.String
	var compression uint8
	if !s.ReadUint16(&h.Version) || !s.ReadBytes((*[]byte)(&random), 32) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16(&h.CipherSuite) || !s.ReadUint8(&compression) {
		return nil, violation(DecodeError, "server hello is malformed")
	}
	if compression != 0 {
		return nil, violation(IllegalParameter, "server hello selects a compression")
	}
	if h.Version>>8 != 3 || h.Version > tls.VersionTLS12 {
		return nil, violation(ProtocolVersion, "server hello of version %#04x", h.Version)
	}
	h.SessionID = bytes.Clone(session)
	h.HelloRetryRequest = bytes.Equal(random, helloRetryRequest)
	err := extensions(s, func(kind uint16, data cryptobyte.String, _ bool) error {
		switch kind {
		case extALPN:
			protocols, ok := protocolNames(data)
			if !ok || len(protocols) != 1 {
				return violation(DecodeError, "server hello has a malformed ALPN")
			}
			h.ALPN = protocols[0]
		case extSupportedVersions:
			var version uint16
			if !data.ReadUint16(&version) || !data.Empty() {
				return violation(DecodeError, "server hello has a malformed version")
			}
			if version != tls.VersionTLS13 || h.Version != tls.VersionTLS12 {
				return violation(IllegalParameter, "server hello selects version %#04x by extension", version)
			}
			h.Version = version
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case h.HelloRetryRequest && h.Version != tls.VersionTLS13:
		return nil, violation(IllegalParameter, "hello retry request without a version")
	case h.ALPN != "" && h.Version == tls.VersionTLS13:
		return nil, violation(IllegalParameter, "server hello of TLS 1.3 has ALPN in the clear")
	}
	return h, nil
}

// extensions calls each for every extension. There may be no list of them at all, as before RFC 3546, but nothing may follow it.
func extensions(s cryptobyte.String, each func(kind uint16, data cryptobyte.String, last bool) error) error {
	if s.Empty() {
		return nil
	}
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
		return violation(DecodeError, "extensions are malformed")
	}
	seen := make(map[uint16]bool)
	for !list.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !list.ReadUint16(&kind) || !list.ReadUint16LengthPrefixed(&data) {
			return violation(DecodeError, "extensions are malformed")
		}
		if seen[kind] {
			return violation(IllegalParameter, "extension %d is there twice", kind)
		}
		seen[kind] = true
		if err := each(kind, data, list.Empty()); err != nil {
			return err
		}
	}
	return nil
}

// uint16s reads a list that is not empty.
func uint16s(s cryptobyte.String) ([]uint16, bool) {
	list := make([]uint16, 0, len(s)/2)
	for !s.Empty() {
		var v uint16
		if !s.ReadUint16(&v) {
			return nil, false
		}
		list = append(list, v)
	}
	return list, len(list) > 0
}

// protocolNames reads RFC 7301's ProtocolNameList.
func protocolNames(s cryptobyte.String) ([]string, bool) {
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return nil, false
	}
	var names []string
	for !list.Empty() {
		var name cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&name) || name.Empty() {
			return nil, false
		}
		names = append(names, string(name))
	}
	return names, true
}
