// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

func TestParseKeys(t *testing.T) {
	key16 := "000102030405060708090a0b0c0d0e0f"
	key32 := key16 + "101112131415161718191a1b1c1d1e1f"
	// Bytes as the header has them on a little-endian machine: version, cipher_type, iv, key, salt, rec_seq.
	for in, want := range map[string]struct {
		text, key, iv string
		number        uint64
	}{
		"0303 3300 a0a1a2a3a4a5a6a7" + key16 + "50515253 0000000000000001":   {"AES-128-GCM keys for TLS 1.2", key16, "50515253a0a1a2a3a4a5a6a7", 1},
		"0403 3300 a0a1a2a3a4a5a6a7" + key16 + "50515253 0000000000000000":   {"AES-128-GCM keys for TLS 1.3", key16, "50515253a0a1a2a3a4a5a6a7", 0},
		"0303 3400 a0a1a2a3a4a5a6a7" + key32 + "50515253 0102030405060708":   {"AES-256-GCM keys for TLS 1.2", key32, "50515253a0a1a2a3a4a5a6a7", 0x102030405060708},
		"0403 3500 a0a1a2a3a4a5a6a7" + key16 + "50515253 00000000000000ff":   {"AES-128-CCM keys for TLS 1.3", key16, "50515253a0a1a2a3a4a5a6a7", 255},
		"0403 3600 a0a1a2a3a4a5a6a7a8a9aaab" + key32 + "ffffffffffffffff":    {"ChaCha20-Poly1305 keys for TLS 1.3", key32, "a0a1a2a3a4a5a6a7a8a9aaab", 1<<64 - 1},
		"0303 3600 a0a1a2a3a4a5a6a7a8a9aaab" + key32 + "00000000 00000000  ": {"ChaCha20-Poly1305 keys for TLS 1.2", key32, "a0a1a2a3a4a5a6a7a8a9aaab", 0},
	} {
		b := unhex(t, in)
		k, err := ParseKeys(b)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		clear(b)
		s := k.secret()
		if k.String() != want.text || hex.EncodeToString(s.iv[:]) != want.iv || s.number != want.number ||
			!bytes.HasPrefix(s.key[:], unhex(t, want.key)) || len(bytes.TrimRight(s.key[len(want.key)/2:], "\x00")) > 0 {
			t.Errorf("%s: got %v, key %x, iv %x, number %d", in, k, s.key[:], s.iv[:], s.number)
		}
	}
}

func TestParseKeysErrors(t *testing.T) {
	body := strings.Repeat("k", 36)
	for in, want := range map[string]string{
		"":                              "0 bytes, need at least 4",
		"\x03\x03\x33":                  "3 bytes, need at least 4",
		"\x03\x03\x33\x00":              "4 bytes, want 40 for AES-128-GCM",
		"\x03\x03\x33\x00" + body[1:]:   "39 bytes, want 40 for AES-128-GCM",
		"\x03\x03\x33\x00" + body + "k": "41 bytes, want 40 for AES-128-GCM",
		"\x04\x03\x34\x00" + body:       "40 bytes, want 56 for AES-256-GCM",
		"\x04\x03\x35\x00" + body + strings.Repeat("k", 16): "56 bytes, want 40 for AES-128-CCM",
		"\x04\x03\x36\x00" + body:                           "40 bytes, want 56 for ChaCha20-Poly1305",
		"\x02\x03\x33\x00" + body:                           "version 0x0302, know TLS 1.2 and 1.3",
		"\x05\x03\x33\x00" + body:                           "version 0x0305, know TLS 1.2 and 1.3",
		"\x03\x03\x37\x00" + body:                           "cipher_type 55 is not supported", // SM4-GCM
		"\x03\x03\x00\x00" + body:                           "cipher_type 0 is not supported",
		"\x03\x03\x33\x01" + body:                           "cipher_type 307 is not supported",
	} {
		k, err := ParseKeys([]byte(in))
		if err == nil || err.Error() != "parse keys: "+want || strings.Contains(err.Error(), "kk") {
			t.Errorf("%x: got %v, want %q", in, err, want)
		}
		if k.secret != nil {
			t.Errorf("%x: there are keys in spite of an error", in)
		}
	}
}

// leaks are the ways in which fmt and others might write any four bytes in a row.
func leaks(b []byte) (list []string) {
	for i := range len(b) - 3 {
		four := b[i : i+4]
		plain, syntax := fmt.Sprint(four), fmt.Sprintf("%#v", four)
		list = append(list, string(four), hex.EncodeToString(four), strings.ToUpper(hex.EncodeToString(four)),
			strings.Trim(plain, "[]"), strings.ReplaceAll(strings.Trim(plain, "[]"), " ", ","), strings.TrimSuffix(strings.TrimPrefix(syntax, "[]byte{"), "}"),
			strings.Trim(fmt.Sprintf("%o", four), "[]"), strings.Trim(fmt.Sprintf("%b", four), "[]"), strings.Trim(fmt.Sprintf("% x", four), "[]"))
	}
	return list
}

func TestKeysAreNotPrinted(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { testNotPrinted(t, k) })
	}
}

func testNotPrinted(t *testing.T, k kind) {
	b := k.info(7)
	secrets := leaks(b[infoSize : len(b)-numberSize])
	if k.sent() { // then the IV is no secret
		secrets = leaks(b[infoSize+explicitSize : len(b)-numberSize])
	}
	found := func(text string) string {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				return s
			}
		}
		return ""
	}
	// What is looked for is found where it is.
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "%s", "%d", "%o", "%b"} {
		if text := fmt.Sprintf(verb, *parse(t, b).secret()); found(text) == "" {
			t.Fatalf("%s of the secret itself: nothing found in %s", verb, text)
		}
	}

	keys := parse(t, b)
	d := direction(t, b)
	if _, _, err := d.Open(nil, seal(t, sealer(t, b), TypeHandshake, "x")); err != nil {
		t.Fatal(err)
	}
	s, err := d.Reseal()
	if err != nil {
		t.Fatal(err)
	}
	seal(t, s, TypeHandshake, "x")
	type hidden struct {
		inner Keys
		p     *Keys
	}
	in := hidden{keys, &keys}
	for _, v := range []any{
		keys, &keys, in, &in, struct{ *hidden }{&in}, []Keys{keys}, map[string]Keys{"a": keys},
		d, *d, s, *s, struct{ d Direction }{*d}, struct{ s *Sealer }{s}, []*Direction{d},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%X", "% x", "%s", "%q", "%d", "%o", "%b", "%c", "%U", "%p", "%T"} {
			if text := fmt.Sprintf(verb, v); found(text) != "" {
				t.Errorf("%s of a %T: %s", verb, v, text)
			}
		}
		if j, err := json.Marshal(v); err == nil && found(string(j)) != "" {
			t.Errorf("JSON of a %T: %s", v, j)
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
		if found(out.String()) != "" {
			t.Errorf("log of a %T: %s", v, out.String())
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%q", "%d"} {
		if got, want := fmt.Sprintf(verb, keys), keys.String(); got != want {
			t.Errorf("%s: %q, want %q", verb, got, want)
		}
	}
	if got := (Keys{}).String(); got != "no keys" {
		t.Errorf("none: %q", got)
	}
}

func TestKeysAreTakenOnce(t *testing.T) {
	k := parse(t, kinds[0].info(0))
	other := k
	if _, err := NewDirection(k); err != nil {
		t.Fatal(err)
	}
	for _, again := range []Keys{k, other} {
		if _, err := NewDirection(again); err == nil || err.Error() != "keys were taken, or wiped" {
			t.Errorf("again: %v", err)
		}
	}
	if _, err := NewDirection(Keys{}); err == nil || err.Error() != "no keys" {
		t.Errorf("none: %v", err)
	}
}

// memory is all of an object that an interface points to.
func memory(object any) []byte {
	v := reflect.ValueOf(object)
	return unsafe.Slice((*byte)(v.UnsafePointer()), v.Type().Elem().Size())
}

func TestWipe(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := kind.info(0)
			k := parse(t, b)
			secret := k.secret()
			zero := func(what string, m []byte, want bool) {
				t.Helper()
				if (len(bytes.Trim(m, "\x00")) == 0) != want {
					t.Errorf("%s: is zero: %v, want %v", what, !want, want)
				}
			}
			zero("keys", secret.key[:], false)
			k.Wipe()
			zero("keys wiped", secret.key[:], true)
			zero("keys wiped", secret.iv[:], true)
			k.Wipe()
			Keys{}.Wipe()
			if _, err := NewDirection(k); err == nil {
				t.Error("wiped keys work")
			}

			k = parse(t, b)
			d, err := NewDirection(k)
			if err != nil {
				t.Fatal(err)
			}
			zero("keys taken", k.secret().key[:], true)
			s, err := d.Reseal()
			if err != nil {
				t.Fatal(err)
			}
			for name, p := range map[string]*protection{"direction": d.p, "sealer": s.p} {
				objects := map[string][]byte{"aead": memory(p.aead), "key": p.secret.key[:], "iv": p.secret.iv[:]}
				if p.block != nil {
					objects["block"] = memory(p.block)
				}
				for what, m := range objects {
					zero(name+" "+what, m, false)
				}
				p.wipe()
				for what, m := range objects {
					zero(name+" "+what+" wiped", m, true)
				}
			}
			d.Wipe()
			s.Wipe()
			if _, _, err := d.Open(nil, Record{}); err != errWiped {
				t.Errorf("open: %v", err)
			}
			if _, err := d.Pass(0); err != errWiped {
				t.Errorf("pass: %v", err)
			}
			if _, err := d.Reseal(); err != errWiped {
				t.Errorf("reseal: %v", err)
			}
			if _, err := s.Seal(nil, TypeApplicationData, nil); err != errWiped {
				t.Errorf("seal: %v", err)
			}
			if _, err := s.Alert(nil, CloseNotify); err != errWiped {
				t.Errorf("alert: %v", err)
			}
		})
	}
}

func TestUses(t *testing.T) {
	d := direction(t, kinds[0].info(0))
	if !d.Uses(parse(t, kinds[0].info(9))) {
		t.Error("the same key with another number is not known again")
	}
	other := kinds[0].info(0)
	other[infoSize+8] ^= 1
	if d.Uses(parse(t, other)) {
		t.Error("another key is taken for the same")
	}
	if d.Uses(Keys{}) {
		t.Error("no key is taken for the same")
	}
}
