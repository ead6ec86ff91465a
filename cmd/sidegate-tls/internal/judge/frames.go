// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidegate/policy/httprule"
)

const (
	frameHeader      = 9        // bytes
	maxContinuations = 64       // frames that continue one head
	maxUnknown       = 16 << 10 // bytes of a frame that is not known: what all servers take

	// maxTable bounds the dynamic table of HPACK, in bytes. What the server allows, 4096 unless its SETTINGS say
	// otherwise, does not matter: entries are evicted oldest first, so that of two tables with different limits, one has
	// the newest entries of the other, under the same numbers. A number that only one of them has is an error to the
	// other one.
	maxTable = 64 << 10
)

// sink gets the frames of one side.
type sink interface {
	// begin is before the payload of DATA and of frames that RFC 9113 does not know, which is not read. size is that of
	// the payload, without padding.
	begin(h http2.FrameHeader, size int64) error
	// frame gets the others but HEADERS and CONTINUATION, and does not keep f.
	frame(f http2.Frame) error
	// head gets these, unpacked.
	head(h *headers) error
	// pass says that so many bytes more are fine.
	pass(n int)
}

// headers is a HEADERS frame with all that continue it.
type headers struct {
	stream uint32
	end    bool // END_STREAM
	fields []field
}

// frames cuts the bytes of one side into frames, and unpacks heads. It keeps no more than the head that it is at.
type frames struct {
	sink   sink
	most   int // bytes of a head, packed or unpacked
	framer *http2.Framer
	in     bytes.Buffer      // what framer reads: a part of a frame
	need   int               // how long in has to be
	inside bool              // in is a payload, or the length of DATA's padding
	at     http2.FrameHeader // zero before it is known
	left   int64             // of a payload that is not read

	open          *headers // not complete yet
	block         []byte
	continuations int
	held          int // bytes of frames that wait for the last one

	decoder  *hpack.Decoder
	check    func(hpack.HeaderField) (problem string)
	size     int
	problem  string // of a field
	unpacked []field
}

// newFrames reads from the first frame on. check, if it is not nil, says what is wrong with a field.
func newFrames(s sink, most int, check func(hpack.HeaderField) string) *frames {
	f := &frames{sink: s, most: most, check: check, need: frameHeader}
	f.framer = http2.NewFramer(nil, &f.in)
	f.decoder = hpack.NewDecoder(4096, f.field)
	f.decoder.SetAllowedMaxDynamicTableSize(maxTable)
	return f
}

func (f *frames) add(p []byte) error {
	for len(p) > 0 {
		if f.left > 0 {
			n := int(min(f.left, int64(len(p))))
			f.left -= int64(n)
			f.sink.pass(n)
			p = p[n:]
			continue
		}
		n := min(f.need-f.in.Len(), len(p))
		f.in.Write(p[:n])
		p = p[n:]
		if f.in.Len() < f.need {
			return nil
		}
		if err := f.step(); err != nil {
			return err
		}
	}
	return nil
}

func (f *frames) step() error {
	switch {
	case !f.inside:
		return f.header()
	case f.at.Type == http2.FrameData:
		return f.skip()
	}
	return f.payload()
}

// header is when the first bytes of a frame are there.
func (f *frames) header() error {
	if f.in.Bytes()[5]&0x80 != 0 {
		return errors.New("a frame has the reserved bit of its stream's number set")
	}
	var err error
	if f.at, err = f.framer.ReadFrameHeader(); err != nil {
		return f.fault(err)
	}
	f.inside = true
	f.need = int(f.at.Length)
	switch f.at.Type {
	case http2.FrameData:
		if !f.at.Flags.Has(http2.FlagDataPadded) {
			return f.skip()
		}
		if f.need == 0 {
			return errors.New("a DATA frame has no length of its padding")
		}
		f.need = 1
		return nil
	case http2.FrameHeaders, http2.FramePriority, http2.FrameRSTStream, http2.FrameSettings, http2.FramePing,
		http2.FrameGoAway, http2.FrameWindowUpdate, http2.FrameContinuation:
	case http2.FramePushPromise:
		return errors.New("there is a PUSH_PROMISE frame")
	default: // RFC 9113, 5.5: who does not know it, ignores it
		if f.need > maxUnknown {
			return fmt.Errorf("a frame of type 0x%02x, which is not known, has more than %d bytes", uint8(f.at.Type), maxUnknown)
		}
		return f.skip()
	}
	switch {
	case f.need > f.most:
		return fmt.Errorf("a %s frame has more than %d bytes", f.at.Type, f.most)
	case f.need == 0:
		return f.payload()
	}
	return nil
}

// skip lets the payload pass unread.
func (f *frames) skip() error {
	read := f.in.Len() // of the payload: the length of the padding
	size := int64(f.at.Length)
	if read > 0 {
		padding, _ := f.in.ReadByte()
		size -= 1 + int64(padding)
	}
	if size < 0 {
		return errors.New("the padding of a DATA frame is longer than the frame")
	}
	if err := f.sink.begin(f.at, size); err != nil {
		return err
	}
	f.left = int64(f.at.Length) - int64(read)
	f.sink.pass(frameHeader + read)
	f.next()
	return nil
}

func (f *frames) next() { f.inside, f.need, f.at = false, frameHeader, http2.FrameHeader{} }

// payload is when a frame is complete.
func (f *frames) payload() error {
	frame, err := f.framer.ReadFrameForHeader(f.at)
	if err != nil {
		return f.fault(err)
	}
	f.held += frameHeader + int(f.at.Length)
	last := true
	switch frame := frame.(type) {
	case *http2.HeadersFrame:
		f.open = &headers{stream: frame.StreamID, end: frame.StreamEnded()}
		f.continuations = 0
		last = frame.HeadersEnded()
		err = f.fragment(frame.HeaderBlockFragment(), last)
	case *http2.ContinuationFrame:
		if f.continuations++; f.continuations > maxContinuations {
			return fmt.Errorf("more than %d frames continue a head", maxContinuations)
		}
		last = frame.HeadersEnded()
		err = f.fragment(frame.HeaderBlockFragment(), last)
	default:
		err = f.sink.frame(frame)
	}
	if err != nil {
		return err
	}
	if last {
		f.sink.pass(f.held)
		f.held = 0
	}
	f.next()
	return nil
}

// fault words what the framer does not read. It quotes no header.
func (f *frames) fault(err error) error {
	if detail := f.framer.ErrorDetail(); detail != nil {
		return detail
	}
	return fmt.Errorf("a %s frame is wrong: %w", f.at.Type, err)
}

func (f *frames) fragment(p []byte, last bool) error {
	if len(f.block)+len(p) > f.most {
		return fmt.Errorf("a head has more than %d bytes", f.most)
	}
	f.block = append(f.block, p...)
	if !last {
		return nil
	}
	f.size, f.problem, f.unpacked = 0, "", nil
	_, err := f.decoder.Write(f.block)
	if err == nil {
		err = f.decoder.Close()
	}
	f.block = f.block[:0]
	switch {
	case f.problem != "":
		return errors.New(f.problem)
	case err != nil:
		return fmt.Errorf("unpack the fields of a head: %w", err)
	}
	h := f.open
	h.fields = f.unpacked
	f.open, f.unpacked = nil, nil
	return f.sink.head(h)
}

// field gets each one that is unpacked.
func (f *frames) field(h hpack.HeaderField) {
	f.size += int(h.Size()) // with 32 bytes for each, so that their number is bounded
	switch {
	case f.size > f.most:
		f.problem = fmt.Sprintf("the fields of a head have more than %d bytes", f.most)
	case f.check != nil:
		f.problem = f.check(h)
	}
	if f.problem != "" {
		f.decoder.SetEmitEnabled(false)
		return
	}
	f.unpacked = append(f.unpacked, field{name: h.Name, value: h.Value})
}

// fieldProblem is what RFC 9113, 8.2.1 is against, and more of what HTTP/1 would be written from.
func fieldProblem(h hpack.HeaderField) string {
	name := h.Name
	if h.IsPseudo() {
		name = name[1:]
	}
	switch {
	case !httprule.Token(name):
		return "the name of a header is no token: " + httprule.Quote(h.Name)
	case httprule.Lower(name) != name:
		return "the name of a header has upper-case letters: " + httprule.Quote(h.Name)
	case !httpguts.ValidHeaderFieldValue(h.Value):
		return "the value of the header " + httprule.Quote(h.Name) + " has a control character"
	case h.Value != strings.Trim(h.Value, " \t"):
		return "the header " + httprule.Quote(h.Name) + " has whitespace around its value"
	}
	return lookAlike(h.Name)
}
