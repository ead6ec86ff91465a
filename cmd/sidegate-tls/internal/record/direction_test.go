// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// RFC 8448 3: both ends' application data and close_notify. The server's record 0 is a session ticket that is not given here.
func TestRFC8448(t *testing.T) {
	client := info(tls.VersionTLS13, cipherGCM128, unhex(t, "17422dda596ed5d9acd890e3c63f5051"), unhex(t, "5b78923dee08579033e523d9"), 0)
	server := info(tls.VersionTLS13, cipherGCM128, unhex(t, "9f02283b6c9c07efc26bb9f2ac92e356"), unhex(t, "cf782b88dd83549aadf1e984"), 1)
	var payload strings.Builder
	for i := range 50 {
		payload.WriteByte(byte(i))
	}
	for _, tt := range []struct{ info, data, alert []byte }{
		{client, unhex(t, `17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b
			98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`),
			unhex(t, "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3")},
		{server, unhex(t, `17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3
			0e fa f9 7d 90 e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d`),
			unhex(t, "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9")},
	} {
		d := direction(t, tt.info)
		opens(t, d, tt.data, TypeApplicationData, payload.String())
		opens(t, d, tt.alert, TypeAlert, "\x01\x00")

		s := sealer(t, tt.info)
		if got := seal(t, s, TypeApplicationData, payload.String()); !bytes.Equal(got, tt.data) {
			t.Errorf("sealed as %x", got)
		}
		if got, err := s.Alert(nil, CloseNotify); err != nil || !bytes.Equal(got, tt.alert) {
			t.Errorf("sealed an alert as %x, %v", got, err)
		}
	}
}

func TestOpen(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s, d := sealer(t, kind.info(5)), direction(t, kind.info(5))
			for _, size := range []int{0, 1, 15, 16, 17, 1000, maxPlaintext} {
				plaintext := strings.Repeat("p", size)
				opens(t, d, seal(t, s, TypeApplicationData, plaintext), TypeApplicationData, plaintext)
			}
			opens(t, d, seal(t, s, TypeHandshake, "h"), TypeHandshake, "h")
			alert, err := s.Alert(nil, DecodeError)
			if err != nil {
				t.Fatal(err)
			}
			opens(t, d, alert, TypeAlert, "\x02\x32")
		})
	}
}

func TestSealAppends(t *testing.T) {
	for _, kind := range kinds {
		s := sealer(t, kind.info(0))
		for _, capacity := range []int{3, 2 * MaxRecord} {
			dst := append(make([]byte, 0, capacity), "dst"...)
			out, err := s.Seal(dst, TypeHandshake, []byte("one"))
			if err != nil || !bytes.HasPrefix(out, []byte("dst\x16\x03\x03")) && !bytes.HasPrefix(out, []byte("dst\x17\x03\x03")) {
				t.Fatalf("%s: %q, %v", kind.name, out, err)
			}
			if len(out)-3 != headerSize+Record(out[3:]).bodySize() {
				t.Fatalf("%s: header says %d of %d bytes", kind.name, Record(out[3:]).bodySize(), len(out))
			}
		}
	}
}

// Whatever of a record is changed, it does not open, and the next that is right does.
func TestNotOpened(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s := sealer(t, kind.info(1<<40))
			r := seal(t, s, TypeApplicationData, "some plaintext")
			next := seal(t, s, TypeApplicationData, "next")
			d := direction(t, kind.info(1<<40))
			refused := func(what string, r Record) {
				t.Helper()
				kind, content, err := d.Open([]byte("dst"), r)
				if !errors.Is(err, ErrNotOpened) || content != nil || kind != 0 {
					t.Fatalf("%s: got %d, %q, %v", what, kind, content, err)
				}
				if records, size := d.Held(); records != 0 || size != 0 {
					t.Fatalf("%s: %d records are held", what, records)
				}
			}
			for bit := range 8 * len(r) {
				changed := bytes.Clone(r)
				changed[bit/8] ^= 1 << (bit % 8)
				refused(fmt.Sprintf("bit %d", bit), changed)
			}
			for size := range len(r) {
				refused(fmt.Sprintf("%d bytes of it", size), r[:size])
				if size >= headerSize {
					short := bytes.Clone(r[:size])
					short[3], short[4] = 0, byte(size-headerSize)
					refused(fmt.Sprintf("%d bytes with another header", size), short)
				}
			}
			refused("one more byte", append(bytes.Clone(r), 0))
			refused("the next", next)
			refused("nothing", nil)
			tooLong := append(Record{23, 3, 3, 0xff, 0xff}, make([]byte, 0xffff)...)
			refused("the longest", tooLong)

			for what, b := range map[string][]byte{"number after": kind.info(1<<40 + 1), "number before": kind.info(1<<40 - 1)} {
				if _, _, err := direction(t, b).Open(nil, r); !errors.Is(err, ErrNotOpened) {
					t.Errorf("%s: %v", what, err)
				}
			}
			b := kind.info(1 << 40)
			for i := infoSize; i < len(b)-numberSize; i++ {
				changed := bytes.Clone(b)
				changed[i] ^= 0x10
				if i < infoSize+explicitSize && kind.sent() {
					continue // the IV, which records bring
				}
				if _, _, err := direction(t, changed).Open(nil, r); !errors.Is(err, ErrNotOpened) {
					t.Errorf("byte %d of the keys is wrong: %v", i, err)
				}
			}

			opens(t, d, r, TypeApplicationData, "some plaintext")
		})
	}
}

// An attempt that failed is not held, nor does it count.
func TestNotOpenedBetween(t *testing.T) {
	for _, kind := range kinds {
		s, d := sealer(t, kind.info(0)), direction(t, kind.info(0))
		first, second := seal(t, s, TypeHandshake, "1"), seal(t, s, TypeHandshake, "2")
		opens(t, d, first, TypeHandshake, "1")
		if _, _, err := d.Open(nil, first); !errors.Is(err, ErrNotOpened) {
			t.Errorf("%s: again: %v", kind.name, err)
		}
		opens(t, d, second, TypeHandshake, "2")
		if out, err := d.Pass(2); err != nil || !bytes.Equal(out, append(bytes.Clone(first), second...)) {
			t.Errorf("%s: passed %x, %v", kind.name, out, err)
		}
	}
}

// Records that are authentic, and forbidden.
func TestForbidden(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			long := strings.Repeat("p", maxPlaintext+1)
			type forbidden struct {
				t     ContentType
				plain string
				alert Alert
			}
			list := map[string]forbidden{
				"oversize":        {TypeApplicationData, long, RecordOverflow},
				"empty handshake": {TypeHandshake, "", UnexpectedMessage},
				"empty alert":     {TypeAlert, "", UnexpectedMessage},
				"heartbeat":       {24, "x", UnexpectedMessage},
				"unknown":         {19, "x", UnexpectedMessage},
			}
			if kind.version == tls.VersionTLS13 {
				list["change cipher spec"] = forbidden{TypeChangeCipherSpec, "\x01", UnexpectedMessage}
				list["only padding"] = forbidden{0, strings.Repeat("\x00", 100), UnexpectedMessage}
				list["nothing but a zero"] = forbidden{0, "", UnexpectedMessage}
				list["oversize with padding"] = forbidden{0, "x\x17" + strings.Repeat("\x00", maxPlaintext-1), RecordOverflow}
			} else if r := direction(t, kind.info(0)).p.seal(nil, 0, 0, TypeChangeCipherSpec, []byte{1}); true {
				opens(t, direction(t, kind.info(0)), r, TypeChangeCipherSpec, "\x01") // of a renegotiation
			}
			for name, tt := range list {
				d := direction(t, kind.info(0))
				other := direction(t, kind.info(0)).p
				r := Record(other.seal(nil, 0, 9, tt.t, []byte(tt.plain)))
				_, content, err := d.Open(nil, r)
				if errors.Is(err, ErrNotOpened) || alertOf(t, err) != tt.alert || content != nil {
					t.Errorf("%s: got %q, %v", name, content, err)
				}
				if records, _ := d.Held(); records != 0 {
					t.Errorf("%s: is held", name)
				}
				opens(t, d, other.seal(nil, 0, 9, TypeApplicationData, []byte("x")), TypeApplicationData, "x")
			}
		})
	}
}

func TestPadding(t *testing.T) {
	for _, kind := range kinds {
		if kind.version != tls.VersionTLS13 {
			continue
		}
		for _, plain := range []string{"", "x", "x\x00\x17\x00"} {
			for _, zeros := range []int{1, 100, maxPlaintext - len(plain) - 1} {
				inner := plain + "\x17" + strings.Repeat("\x00", zeros)
				// seal adds a type, which is a zero more of padding.
				r := direction(t, kind.info(0)).p.seal(nil, 0, 0, 0, []byte(inner[:len(inner)-1]))
				opens(t, direction(t, kind.info(0)), r, TypeApplicationData, plain)
			}
		}
	}
}

func TestNumbersDoNotWrap(t *testing.T) {
	for _, kind := range kinds {
		s, d := sealer(t, kind.info(math.MaxUint64-1)), direction(t, kind.info(math.MaxUint64-1))
		last := seal(t, s, TypeHandshake, "last")
		opens(t, d, last, TypeHandshake, "last")
		if _, err := s.Seal(nil, TypeHandshake, []byte("x")); err != errExhausted {
			t.Errorf("%s: seal: %v", kind.name, err)
		}
		if _, err := s.Alert(nil, CloseNotify); err != errExhausted {
			t.Errorf("%s: alert: %v", kind.name, err)
		}
		for number := range uint64(2) { // what would follow
			r := direction(t, kind.info(0)).p.seal(nil, math.MaxUint64+number, 0, TypeHandshake, []byte("x"))
			if _, _, err := d.Open(nil, r); err != errExhausted {
				t.Errorf("%s: open: %v", kind.name, err)
			}
		}
	}
}

func TestPass(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			s, d := sealer(t, kind.info(0)), direction(t, kind.info(0))
			var records []Record
			for i := range 6 {
				records = append(records, seal(t, s, TypeApplicationData, strings.Repeat("x", 100*i)))
			}
			passes := func(n int, want ...Record) {
				t.Helper()
				out, err := d.Pass(n)
				if err != nil || !bytes.Equal(out, bytes.Join(toBytes(want), nil)) {
					t.Fatalf("pass %d: %x, %v", n, out, err)
				}
			}
			holds := func(want ...Record) {
				t.Helper()
				if n, size := d.Held(); n != len(want) || size != len(bytes.Join(toBytes(want), nil)) {
					t.Fatalf("held are %d records, %d bytes", n, size)
				}
			}
			refused := func(n int) {
				t.Helper()
				if out, err := d.Pass(n); err == nil || out != nil {
					t.Fatalf("pass %d: %x, %v", n, out, err)
				}
			}
			refused(1)
			passes(0)
			for i, r := range records[:3] {
				opens(t, d, r, TypeApplicationData, strings.Repeat("x", 100*i))
			}
			holds(records[:3]...)
			refused(4)
			refused(-1)
			passes(1, records[0])
			passes(1, records[1])
			holds(records[2])
			refused(2)
			opens(t, d, records[3], TypeApplicationData, strings.Repeat("x", 300))
			passes(2, records[2], records[3])
			refused(1)
			opens(t, d, records[4], TypeApplicationData, strings.Repeat("x", 400))
			holds(records[4])
			passes(1, records[4])
			opens(t, d, records[5], TypeApplicationData, strings.Repeat("x", 500))

			if _, err := d.Reseal(); err != nil {
				t.Fatal(err)
			}
			holds()
			refused(1)
			refused(0)
			if _, err := d.Reseal(); err == nil {
				t.Error("there are two sealers")
			}
		})
	}
}

func toBytes(records []Record) (list [][]byte) {
	for _, r := range records {
		list = append(list, r)
	}
	return list
}

// What is handed out is not what the caller's buffers hold: those may change.
func TestHeldIsACopy(t *testing.T) {
	s, d := sealer(t, kinds[0].info(0)), direction(t, kinds[0].info(0))
	r := seal(t, s, TypeHandshake, "x")
	want := bytes.Clone(r)
	opens(t, d, r, TypeHandshake, "x")
	clear(r)
	if out, err := d.Pass(1); err != nil || !bytes.Equal(out, want) {
		t.Errorf("passed %x, %v", out, err)
	}
}

func TestHeldMemoryIsGivenBack(t *testing.T) {
	s, d := sealer(t, kinds[0].info(0)), direction(t, kinds[0].info(0))
	big := strings.Repeat("x", maxPlaintext)
	for range 10 {
		opens(t, d, seal(t, s, TypeApplicationData, big), TypeApplicationData, big)
	}
	if _, err := d.Pass(10); err != nil {
		t.Fatal(err)
	}
	opens(t, d, seal(t, s, TypeApplicationData, "small"), TypeApplicationData, "small")
	if cap(d.held) > keepHeld {
		t.Errorf("%d bytes are kept for one small record", cap(d.held))
	}
}

func TestSealErrors(t *testing.T) {
	for _, kind := range kinds {
		s := sealer(t, kind.info(0))
		for what, err := range map[string]error{
			"alert":              second(s.Seal(nil, TypeAlert, []byte{2, 0})),
			"change cipher spec": second(s.Seal(nil, TypeChangeCipherSpec, []byte{1})),
			"type 0":             second(s.Seal(nil, 0, []byte{1})),
			"type 24":            second(s.Seal(nil, 24, []byte{1})),
			"empty handshake":    second(s.Seal(nil, TypeHandshake, nil)),
			"too long":           second(s.Seal(nil, TypeApplicationData, make([]byte, maxPlaintext+1))),
		} {
			if err == nil {
				t.Errorf("%s: %s is sealed", kind.name, what)
			}
		}
		d := direction(t, kind.info(0))
		for i, a := range []Alert{UserCanceled, NoRenegotiation, AccessDenied} {
			r, err := s.Alert(nil, a)
			if err != nil {
				t.Fatal(err)
			}
			opens(t, d, r, TypeAlert, string([]byte{"\x01\x01\x02"[i], byte(a)}))
		}
		if _, err := s.Seal(nil, TypeApplicationData, nil); err == nil {
			t.Errorf("%s: data is sealed after the end", kind.name)
		}
		if _, err := s.Alert(nil, CloseNotify); err == nil {
			t.Errorf("%s: an alert is sealed after the end", kind.name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Whatever a caller does, each record number goes out once, in order; and in TLS 1.2 with AES each nonce is used once, by app
// and Sealer together.
func TestNumbersGoOutOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	resealed, sealedAfterPass := 0, 0
	for walk := range 400 {
		kind := kinds[walk%len(kinds)]
		first := random.Uint64() >> 1
		app, d, receiver := sealer(t, kind.info(first)), direction(t, kind.info(first)), direction(t, kind.info(first))
		app.explicit ^= otherHalf // an app counts from its keys' IV
		var s *Sealer
		var wire, fromApp []byte
		for range 40 {
			switch random.IntN(8) {
			case 0, 1, 2:
				r := seal(t, app, TypeApplicationData, fmt.Sprint("from the app ", random.Uint64()))
				fromApp = append(fromApp, r...)
				if _, _, err := d.Open(nil, r); err != nil {
					t.Fatal(err)
				}
			case 3, 4:
				if out, err := d.Pass(random.IntN(3)); err == nil {
					wire = append(wire, out...)
				}
			case 5:
				if random.IntN(5) > 0 {
					continue
				}
				if made, err := d.Reseal(); err == nil {
					s = made
					resealed++
					if len(wire) > 0 {
						sealedAfterPass++
					}
				}
			case 6:
				if s != nil {
					if out, err := s.Seal(wire, TypeApplicationData, fmt.Append(nil, "sealed ", random.Uint64())); err == nil {
						wire = out
					}
				}
			case 7:
				if s != nil && random.IntN(10) == 0 {
					if out, err := s.Alert(wire, CloseNotify); err == nil {
						wire = out
					}
				}
			}
		}
		// The receiver opens all of it with numbers that follow each other: none is missing, or there twice.
		nonces, n := map[string]bool{}, uint64(0) // of the wire, and whether they are the Sealer's
		for rest := Record(wire); len(rest) > 0; n++ {
			r := rest[:headerSize+rest.bodySize()]
			rest = rest[len(r):]
			if _, _, err := receiver.Open(nil, r); err != nil {
				t.Fatalf("%s: record %d of the wire: %v", kind.name, n, err)
			}
			if kind.sent() {
				nonce := string(r.Body()[:explicitSize])
				if _, again := nonces[nonce]; again {
					t.Fatalf("%s: a nonce goes out twice", kind.name)
				}
				nonces[nonce] = !bytes.Contains(fromApp, r)
			}
		}
		if receiver.number != first+n {
			t.Fatalf("%s: %d records, number %d", kind.name, n, receiver.number-first)
		}
		for rest := Record(fromApp); kind.sent() && len(rest) > 0; rest = rest[headerSize+rest.bodySize():] {
			if nonces[string(rest.Body()[:explicitSize])] {
				t.Fatalf("%s: the app's nonce is used again", kind.name)
			}
		}
	}
	if resealed < 100 || sealedAfterPass < 50 {
		t.Errorf("only %d walks resealed, %d after a pass", resealed, sealedAfterPass)
	}
}

// In steady state nothing is allocated but by CCM.
func TestAllocations(t *testing.T) {
	for _, kind := range kinds {
		if kind.cipher == cipherCCM128 {
			continue
		}
		s, d := sealer(t, kind.info(0)), direction(t, kind.info(0))
		plaintext := make([]byte, maxPlaintext)
		out, buf := make([]byte, 0, MaxRecord), make([]byte, 0, MaxContent)
		got := testing.AllocsPerRun(100, func() {
			r, err := s.Seal(out, TypeApplicationData, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := d.Open(buf, r); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Pass(1); err != nil {
				t.Fatal(err)
			}
		})
		if got > 0 {
			t.Errorf("%s: %v allocations a record", kind.name, got)
		}
	}
}

func BenchmarkOpenPass(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			s, d := sealer(b, kind.info(0)), direction(b, kind.info(0))
			r := seal(b, s, TypeApplicationData, strings.Repeat("x", maxPlaintext))
			buf := make([]byte, 0, MaxContent)
			b.SetBytes(maxPlaintext)
			for b.Loop() {
				d.number = 0
				if _, _, err := d.Open(buf, r); err != nil {
					b.Fatal(err)
				}
				if _, err := d.Pass(1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
