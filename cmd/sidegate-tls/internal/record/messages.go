// SPDX-License-Identifier: Apache-2.0

package record

import "bytes"

// MessageType is a handshake message's type (RFC 8446 4, RFC 5246 7.4).
type MessageType uint8

// Types that a relay looks at.
const (
	MessageHelloRequest     MessageType = 0 // TLS 1.2: please renegotiate
	MessageClientHello      MessageType = 1
	MessageServerHello      MessageType = 2
	MessageNewSessionTicket MessageType = 4
	MessageFinished         MessageType = 20
	MessageKeyUpdate        MessageType = 24 // TLS 1.3: the sender's next record has another key
)

const (
	messageHeader = 4
	maxMessage    = 1 << 16 // crypto/tls has the same, but for certificates
)

// Message is a whole handshake message.
type Message struct {
	Type MessageType
	Body []byte // without the header
}

// Messages puts the handshake messages of one direction together, in the clear or decrypted ones.
type Messages struct {
	buf []byte // of a message that is not whole
}

// Add takes the content of one handshake record and returns the messages that are whole with it, in memory that is theirs.
// Errors are *ProtocolError, and final: a record that is empty or has more than 2^14 bytes, a message with more
// than 64 KiB, and a KeyUpdate that is malformed or does not end its record (RFC 8446 4.6.3, 5.1).
func (m *Messages) Add(content []byte) ([]Message, error) {
	if len(content) == 0 {
		return nil, violation(UnexpectedMessage, "empty handshake record")
	}
	if len(content) > maxPlaintext {
		return nil, violation(RecordOverflow, "handshake record of %d bytes", len(content))
	}
	m.buf = append(m.buf, content...)
	var whole []Message
	rest := m.buf
	for len(rest) >= messageHeader {
		size := int(rest[1])<<16 | int(rest[2])<<8 | int(rest[3])
		if size > maxMessage {
			return nil, violation(IllegalParameter, "handshake message of %d bytes", size)
		}
		if len(rest) < messageHeader+size {
			break
		}
		message := Message{MessageType(rest[0]), rest[messageHeader : messageHeader+size : messageHeader+size]}
		rest = rest[messageHeader+size:]
		whole = append(whole, message)
		if message.Type != MessageKeyUpdate {
			continue
		}
		if size != 1 || message.Body[0] > 1 {
			return nil, violation(IllegalParameter, "key update is malformed")
		}
		if len(rest) > 0 {
			return nil, violation(UnexpectedMessage, "key update does not end its record")
		}
	}
	if len(whole) > 0 { // which are in m.buf, and stay there; what is left came with this record
		m.buf = bytes.Clone(rest)
	}
	return whole, nil
}

// Partial tells whether a message has begun and is not whole. Then the next record must be a handshake record (RFC 8446 5.1),
// and the keys may not change.
func (m *Messages) Partial() bool { return len(m.buf) > 0 }
