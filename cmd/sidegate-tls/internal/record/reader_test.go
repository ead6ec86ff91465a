// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// rec makes a record in the clear.
func rec(t ContentType, body string) string {
	return string([]byte{byte(t), 3, 3, byte(len(body) >> 8), byte(len(body))}) + body
}

// chunks reads at most size bytes at once.
type chunks struct {
	r    io.Reader
	size func() int
}

func (c chunks) Read(b []byte) (int, error) {
	return c.r.Read(b[:min(len(b), c.size())])
}

// split returns copies of all records, and the error.
func split(r *Reader) (list []Record, err error) {
	for {
		record, err := r.Next()
		if err != nil {
			return list, err
		}
		list = append(list, bytes.Clone(record))
	}
}

func TestReader(t *testing.T) {
	var want []string
	random := rand.New(rand.NewPCG(1, 2))
	want = append(want, rec(TypeHandshake, "hello"), rec(TypeChangeCipherSpec, "\x01"), rec(TypeAlert, "\x01\x00"),
		rec(TypeApplicationData, ""), rec(TypeApplicationData, strings.Repeat("x", maxCiphertext12)))
	for range 30 {
		want = append(want, rec(TypeApplicationData, strings.Repeat("y", random.IntN(random.IntN(maxCiphertext12)+1))))
	}
	stream := strings.Join(want, "")
	sizes := func() int { return 1 + random.IntN(random.IntN(2*MaxRecord)+1) }
	for name, r := range map[string]io.Reader{
		"at once":       strings.NewReader(stream),
		"bytes":         iotest.OneByteReader(strings.NewReader(stream)),
		"halves":        iotest.HalfReader(strings.NewReader(stream)),
		"end with data": iotest.DataErrReader(strings.NewReader(stream)),
		"chunks":        chunks{strings.NewReader(stream), sizes},
		"sixes":         chunks{strings.NewReader(stream), func() int { return 6 }},
	} {
		got, err := split(NewReader(r))
		if err != io.EOF || len(got) != len(want) {
			t.Errorf("%s: %d records of %d, %v", name, len(got), len(want), err)
			continue
		}
		for i := range got {
			if string(got[i]) != want[i] {
				t.Errorf("%s: record %d is another", name, i)
			}
			if int(got[i].Type()) != int(want[i][0]) || string(got[i].Body()) != want[i][headerSize:] {
				t.Errorf("%s: record %d has type %d, %d bytes", name, i, got[i].Type(), len(got[i].Body()))
			}
		}
	}
}

func TestReaderNotTLS(t *testing.T) {
	for in, text := range map[string]string{
		"G":                "not TLS: first byte is 0x47",
		"SSH-2.0-":         "not TLS: first byte is 0x53",
		"\x80\x2e\x01\x03": "not TLS: first byte is 0x80", // SSLv2's hello
		"\x00":             "not TLS: first byte is 0x00",
		"\x17\x03\x03":     "not TLS: first byte is 0x17", // data comes later
		"\x14\x03\x03":     "not TLS: first byte is 0x14",
		"\x18\x03\x03":     "not TLS: first byte is 0x18",
		"\x16\x02":         "not TLS: first bytes are 0x16 0x02",
		"\x16\xfe\xfd":     "not TLS: first bytes are 0x16 0xfe", // DTLS
		"\x15\x00":         "not TLS: first bytes are 0x15 0x00",
	} {
		// Nothing after the bytes that show it is waited for.
		r := NewReader(io.MultiReader(iotest.OneByteReader(strings.NewReader(in)), iotest.ErrReader(errors.New("waited"))))
		for range 2 {
			if _, err := r.Next(); !errors.Is(err, ErrNotTLS) || err.Error() != text {
				t.Errorf("%q: got %v, want %s", in, err, text)
			}
		}
		if !strings.HasPrefix(in, string(r.Buffered())) || len(r.Buffered()) == 0 {
			t.Errorf("%q: buffered is %q", in, r.Buffered())
		}
	}
}

func TestReaderErrors(t *testing.T) {
	hello := rec(TypeHandshake, "hello")
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		in    string
		alert Alert
	}{
		"heartbeat":          {hello + "\x18", UnexpectedMessage},
		"type 19":            {hello + "\x13", UnexpectedMessage},
		"type 255":           {hello + "\xff", UnexpectedMessage},
		"version 2":          {hello + "\x17\x02", ProtocolVersion},
		"version 4":          {hello + "\x17\x04", ProtocolVersion},
		"oversize":           {hello + "\x17\x03\x03\x48\x01", RecordOverflow},
		"largest":            {hello + "\x17\x03\x03\xff\xff", RecordOverflow},
		"first is oversize":  {"\x16\x03\x01\xff\xff", RecordOverflow},
		"empty handshake":    {hello + "\x16\x03\x03\x00\x00", UnexpectedMessage},
		"empty alert":        {hello + "\x15\x03\x03\x00\x00", UnexpectedMessage},
		"empty cipher spec":  {hello + "\x14\x03\x03\x00\x00", UnexpectedMessage},
		"empty first record": {"\x16\x03\x01\x00\x00", UnexpectedMessage},
	} {
		// The header is enough.
		r := NewReader(io.MultiReader(strings.NewReader(tt.in), iotest.ErrReader(boom)))
		_, err := split(r)
		if errors.Is(err, boom) || alertOf(t, err) != tt.alert {
			t.Errorf("%s: %v", name, err)
		}
		if again, err2 := r.Next(); again != nil || err2 == nil || err2.Error() != err.Error() {
			t.Errorf("%s: again: %v", name, err2)
		}
	}
}

func TestReaderLimits(t *testing.T) {
	hello := rec(TypeHandshake, "hello")
	for size, want := range map[int][2]bool{ // of TLS 1.2, 1.3
		maxCiphertext13:     {true, true},
		maxCiphertext13 + 1: {true, false},
		maxCiphertext12:     {true, false},
		maxCiphertext12 + 1: {false, false},
	} {
		for i, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			r := NewReader(strings.NewReader(hello + rec(TypeApplicationData, strings.Repeat("x", size))))
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			r.SetVersion(version)
			got, err := r.Next()
			if want[i] && len(got) != headerSize+size || !want[i] && alertOf(t, err) != RecordOverflow {
				t.Errorf("%d bytes, version %#04x: %d, %v", size, version, len(got), err)
			}
		}
	}
}

func TestReaderEnds(t *testing.T) {
	one := rec(TypeHandshake, "hello")
	for size := range len(one) {
		r := NewReader(strings.NewReader(one + one[:size]))
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		want := io.ErrUnexpectedEOF
		if size == 0 {
			want = io.EOF
		}
		for range 2 {
			if _, err := r.Next(); err != want {
				t.Errorf("after %d bytes: %v", size, err)
			}
		}
		if string(r.Buffered()) != one[:size] {
			t.Errorf("after %d bytes: buffered is %q", size, r.Buffered())
		}
	}
}

// A deadline that passes is an error once.
func TestReaderGoesOn(t *testing.T) {
	one := rec(TypeHandshake, "hello")
	r := NewReader(iotest.TimeoutReader(chunks{strings.NewReader(one + one), func() int { return 7 }}))
	if _, err := r.Next(); err != iotest.ErrTimeout {
		t.Fatal(err)
	}
	got, err := split(r)
	if err != io.EOF || len(got) != 2 || string(got[0]) != one || string(got[1]) != one {
		t.Errorf("%q, %v", got, err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestReaderNoProgress(t *testing.T) {
	if _, err := NewReader(stuck{}).Next(); err != io.ErrNoProgress {
		t.Error(err)
	}
}
