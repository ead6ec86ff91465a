// SPDX-License-Identifier: Apache-2.0

package record

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
)

// ContentType is what a record carries (RFC 8446 5.1). In TLS 1.3 an encrypted record's own type is within.
type ContentType uint8

// Types of content. Heartbeats (24) are refused.
const (
	TypeChangeCipherSpec ContentType = 20
	TypeAlert            ContentType = 21
	TypeHandshake        ContentType = 22
	TypeApplicationData  ContentType = 23
)

const (
	headerSize = 5

	maxPlaintext    = 1 << 14
	maxCiphertext12 = maxPlaintext + 2048 // RFC 5246 6.2.3
	maxCiphertext13 = maxPlaintext + 256  // RFC 8446 5.2

	// MaxRecord is the size of the largest record, header and all.
	MaxRecord = headerSize + maxCiphertext12

	// MaxContent is the room that Direction.Open needs in a caller's buffer to allocate none itself.
	MaxContent = maxCiphertext12
)

// Record is a whole record, as it was sent: a header of five bytes, and the body.
type Record []byte

// Type is the type in the header.
func (r Record) Type() ContentType { return ContentType(r[0]) }

// Body is all after the header.
func (r Record) Body() []byte { return r[headerSize:] }

// bodySize is what the header says.
func (r Record) bodySize() int { return int(binary.BigEndian.Uint16(r[3:])) }

// Reader cuts a stream into records. It reads when it has no whole record, and then ahead, as far as its buffer goes, which
// grows while a read fills it: most connections are small.
type Reader struct {
	r          io.Reader
	buf        []byte
	size       int   // that buf grows to
	start, end int   // what was read and not returned
	limit      int   // of a body
	begun      bool  // a record was returned
	err        error // of r, which comes after what is in buf
}

// NewReader has the limits of TLS 1.2, and a buffer of at most MaxRecord bytes. r stays the caller's.
func NewReader(r io.Reader) *Reader { return NewReaderSize(r, MaxRecord) }

// NewReaderSize has a buffer of at most size bytes, or MaxRecord if that is more: where it has room for several records, one
// read of the reader below may bring them all.
func NewReaderSize(r io.Reader, size int) *Reader {
	return &Reader{r: r, buf: make([]byte, firstSize), size: max(size, MaxRecord), limit: maxCiphertext12}
}

// firstSize is what a Reader's buffer begins with.
const firstSize = 4 << 10

// SetVersion sets the limits of the version that ServerHello selected, for records not yet returned.
func (r *Reader) SetVersion(version uint16) {
	r.limit = maxCiphertext12
	if version == tls.VersionTLS13 {
		r.limit = maxCiphertext13
	}
}

// Next returns the next record, in the Reader's memory until the next call. At the end of the stream it is io.EOF, in the
// midst of a record io.ErrUnexpectedEOF. Errors of the reader below come as they are, and Next may then be called again.
//
// ErrNotTLS comes as soon as the stream's first bytes show it: TLS begins with a handshake record or, from a server, an
// alert (a SSLv2 hello is not TLS). A *ProtocolError comes of a header that is wrong later on, before its body. Both stay.
func (r *Reader) Next() (Record, error) {
	for {
		pending := Record(r.buf[r.start:r.end])
		if err := r.check(pending); err != nil {
			return nil, err
		}
		if len(pending) >= headerSize {
			if size := headerSize + pending.bodySize(); len(pending) >= size {
				r.start += size
				r.begun = true
				return pending[:size:size], nil
			}
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// Ready tells whether Next returns without a read: a whole record, or what is wrong with its header.
func (r *Reader) Ready() bool {
	pending := Record(r.buf[r.start:r.end])
	return r.check(pending) != nil || len(pending) >= headerSize && len(pending) >= headerSize+pending.bodySize()
}

// Buffered is what was read and not returned, in the Reader's memory until the next call of Next: what goes on first where
// the stream is passed on as it is, after ErrNotTLS too.
func (r *Reader) Buffered() []byte { return r.buf[r.start:r.end] }

// check looks at as much of a header as there is.
func (r *Reader) check(header Record) error {
	if len(header) == 0 {
		return nil
	}
	t := header.Type()
	switch {
	case !r.begun && t != TypeHandshake && t != TypeAlert:
		return fmt.Errorf("%w: first byte is %#02x", ErrNotTLS, byte(t))
	case t < TypeChangeCipherSpec || t > TypeApplicationData:
		return violation(UnexpectedMessage, "record of content type %d", t)
	case len(header) > 1 && header[1] != 3 && !r.begun:
		return fmt.Errorf("%w: first bytes are %#02x %#02x", ErrNotTLS, header[0], header[1])
	case len(header) > 1 && header[1] != 3:
		return violation(ProtocolVersion, "record of major version %d", header[1])
	case len(header) < headerSize:
		return nil
	case header.bodySize() > r.limit:
		return violation(RecordOverflow, "record of %d bytes, at most %d", header.bodySize(), r.limit)
	case header.bodySize() == 0 && t != TypeApplicationData:
		return violation(UnexpectedMessage, "empty record of content type %d", t)
	}
	return nil
}

// fill reads once, and returns an error if there is nothing new.
func (r *Reader) fill() error {
	full := r.end == len(r.buf)
	held := r.buf[r.start:r.end]
	if full && len(r.buf) < r.size {
		r.buf = make([]byte, min(4*len(r.buf), r.size))
	}
	r.start, r.end = 0, copy(r.buf, held)
	for range 100 { // as bufio does
		if r.err != nil {
			err := r.err
			r.err = nil
			if err == io.EOF && r.end > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		var n int
		n, r.err = r.r.Read(r.buf[r.end:])
		r.end += n
		if n > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}
