// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// rogue is a client that finishes its handshake and then makes its records itself.
type rogue struct {
	*rig
	conn   *tls.Conn
	sealer *record.Sealer
}

func newRogue(t *testing.T, version uint16, p Policy, setup func(*rig)) (*rogue, *answering) {
	t.Helper()
	a := &answering{}
	r := &rogue{rig: start(t, tlsServer(t, nil, a.handle), p, setup)}
	r.conn = r.client(func(c *tls.Config) { c.MaxVersion = version })
	if err := r.conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	r.generation(0)
	return r, a
}

// generation seals by the keys after so many updates.
func (r *rogue) generation(n int) {
	r.t.Helper()
	b := r.library.info(Client, n)
	if r.conn.ConnectionState().Version == tls.VersionTLS12 {
		b[len(b)-1] = 1 // after the Finished
	}
	k, err := record.ParseKeys(b)
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := record.NewDirection(k)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.sealer, err = d.Reseal(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rogue) seal(kind record.ContentType, content string) []byte {
	r.t.Helper()
	b, err := r.sealer.Seal(nil, kind, []byte(content))
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rogue) alert(a record.Alert) []byte {
	b, err := r.sealer.Alert(nil, a)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rogue) send(records ...[]byte) {
	r.t.Helper()
	for _, b := range records {
		if _, err := r.app.Write(b); err != nil {
			r.t.Fatal(err)
		}
	}
}

// clearly makes a record in the clear.
func clearly(kind record.ContentType, content string) []byte {
	b := []byte{byte(kind), 3, 3}
	b = binary.BigEndian.AppendUint16(b, uint16(len(content)))
	return append(b, content...)
}

const keyUpdate = "\x18\x00\x00\x01\x00"

func TestRogue(t *testing.T) {
	const data, handshake, ccs, alert = record.TypeApplicationData, record.TypeHandshake, record.TypeChangeCipherSpec, record.TypeAlert
	both := []uint16{tls.VersionTLS12, tls.VersionTLS13}
	for name, test := range map[string]struct {
		versions []uint16
		send     func(r *rogue) [][]byte
		reason   string
		got      string
	}{
		"key update": {both[1:], func(r *rogue) [][]byte {
			return [][]byte{r.seal(data, allowed), r.seal(handshake, keyUpdate)}
		}, "changes its keys", allowed},
		"begin of a key update": {both[1:], func(r *rogue) [][]byte {
			return [][]byte{r.seal(handshake, keyUpdate[:2])}
		}, "changes its keys", ""},
		"renegotiation": {both[:1], func(r *rogue) [][]byte {
			return [][]byte{r.seal(data, allowed), r.seal(handshake, "\x01\x00\x00\x00")}
		}, "renegotiates", allowed},
		"begin of a renegotiation": {both[:1], func(r *rogue) [][]byte {
			return [][]byte{r.seal(handshake, "\x01")}
		}, "renegotiates", ""},
		"change of cipher again": {both[:1], func(r *rogue) [][]byte {
			return [][]byte{clearly(ccs, "\x01")}
		}, "do not open", ""},
		"change of cipher within": {both[:1], func(r *rogue) [][]byte {
			b, err := r.sealer.Seal(nil, handshake, []byte{1})
			if err != nil {
				t.Fatal(err)
			}
			b[0] = byte(ccs)
			return [][]byte{b}
		}, "do not open", ""},
		"change of cipher after the Finished": {both[1:], func(r *rogue) [][]byte {
			return [][]byte{clearly(ccs, "\x01")}
		}, "in the clear after its Finished", ""},
		"alert in the clear": {both[1:], func(r *rogue) [][]byte {
			return [][]byte{clearly(alert, "\x02\x28")}
		}, "in the clear after its Finished", ""},
		"hello in the clear": {both[1:], func(r *rogue) [][]byte {
			return [][]byte{clearly(handshake, "\x01\x00\x00\x00")}
		}, "in the clear after its Finished", ""},
		"data in the clear": {both, func(r *rogue) [][]byte {
			return [][]byte{clearly(data, allowed)}
		}, "do not open", ""},
		"data in the clear later": {both, func(r *rogue) [][]byte {
			return [][]byte{r.seal(data, allowed), clearly(data, allowed)}
		}, "do not open", allowed},
		"a record twice": {both, func(r *rogue) [][]byte {
			b := r.seal(data, allowed)
			return [][]byte{b, b}
		}, "do not open", allowed},
		"a record left out": {both, func(r *rogue) [][]byte {
			r.seal(data, allowed)
			return [][]byte{r.seal(data, allowed)}
		}, "do not open", ""},
		"data after an alert": {both, func(r *rogue) [][]byte {
			k := *r.sealer
			end := r.alert(record.CloseNotify)
			*r.sealer = k
			r.seal(data, "")
			return [][]byte{r.seal(data, allowed)[:0], end, r.seal(data, allowed)}
		}, "", ""},
		"many records without a request": {both, func(r *rogue) [][]byte {
			list := [][]byte{r.seal(data, "GET /allowed HTTP/1.1\r\nX: ")}
			for range 40 {
				var b []byte
				for range 400 {
					b = append(b, r.seal(data, "x")...)
				}
				list = append(list, b)
			}
			return list
		}, "nothing of them can be judged", ""},
		"empty records without end": {both, func(r *rogue) [][]byte {
			list := [][]byte{r.seal(data, "GET")}
			for range 40 {
				var b []byte
				for range 400 {
					b = append(b, r.seal(data, "")...)
				}
				list = append(list, b)
			}
			return list
		}, "nothing of them can be judged", ""},
		"a record cut short": {both, func(r *rogue) [][]byte {
			b := r.seal(data, allowed)
			return [][]byte{b[:len(b)-1]}
		}, "", ""},
		"no record": {both, func(r *rogue) [][]byte {
			return [][]byte{r.seal(data, allowed), []byte("GET / HTTP/1.1\r\n")}
		}, "content type 71", allowed},
	} {
		for _, version := range test.versions {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				r, a := newRogue(t, version, strict(t), nil)
				for _, b := range test.send(r) {
					if _, err := r.app.Write(b); err != nil {
						break // the relay has ended it
					}
				}
				_ = r.app.CloseWrite()
				_, _ = io.Copy(io.Discard, r.app)
				if test.reason != "" {
					r.refusedBy(test.reason)
				}
				_ = r.wait()
				if got := a.text(); got != test.got {
					t.Errorf("the server got %q, want %q", got, test.got)
				}
			})
		}
	}
}

// Where nothing is judged an app may change its keys, as long as it hands them over.
func TestKeyUpdate(t *testing.T) {
	other := func(b []byte) []byte {
		if b != nil {
			b[20] ^= 1
		}
		return b
	}
	for name, test := range map[string]struct {
		setup  func(*library)
		next   int // generation of what follows
		reason string
	}{
		"follows":      {func(l *library) { l.generations[Client] = 2 }, 1, ""},
		"old keys":     {func(l *library) { l.generations[Client] = 2 }, 0, "do not open"},
		"no keys":      {func(l *library) {}, 1, "has not handed over the keys that follow"},
		"the same":     {func(l *library) { l.generations[Client] = 5; l.alter = again(l) }, 1, ""},
		"only old":     {func(l *library) { l.generations[Client] = 1 << 20; l.alter = first(l) }, 1, "again and again"},
		"another lie":  {func(l *library) { l.generations[Client] = 2; l.alter = lie(l, other) }, 1, "do not open"},
		"in the queue": {func(l *library) { l.generations[Client] = 3 }, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, a := newRogue(t, tls.VersionTLS13, Policy{}, func(r *rig) { test.setup(r.library) })
			r.send(r.seal(record.TypeApplicationData, allowed), r.seal(record.TypeHandshake, keyUpdate))
			if test.next > 0 {
				r.generation(test.next)
			}
			r.send(r.seal(record.TypeApplicationData, forbidden))
			want := allowed
			if test.reason == "" {
				want += forbidden
				r.send(r.alert(record.CloseNotify))
			}
			_ = r.app.CloseWrite()
			_, _ = io.Copy(io.Discard, r.app)
			if test.reason != "" {
				r.refusedBy(test.reason)
			} else {
				r.ended()
			}
			if got := a.text(); got != want {
				t.Errorf("the server got %q, want %q", got, want)
			}
		})
	}
}

func again(l *library) func(Side, int, []byte) []byte {
	return func(side Side, n int, b []byte) []byte {
		if side == Server || n == 0 {
			return b
		}
		return l.info(side, n/2) // 0, 1, 1, 2
	}
}

func first(l *library) func(Side, int, []byte) []byte {
	return func(side Side, _ int, _ []byte) []byte { return l.info(side, 0) }
}

func lie(_ *library, other func([]byte) []byte) func(Side, int, []byte) []byte {
	return func(side Side, n int, b []byte) []byte {
		if side == Server || n == 0 {
			return b
		}
		return other(b)
	}
}

// What a client sends before keys matter.
func TestRogueHello(t *testing.T) {
	// helloOf has a crypto/tls client make a hello.
	helloOf := func(change func(*tls.Config)) []byte {
		a, b := net.Pipe()
		c := &tls.Config{ServerName: tlstest.Name, InsecureSkipVerify: true}
		if change != nil {
			change(c)
		}
		go func() { _ = tls.Client(a, c).Handshake() }()
		r, err := record.NewReader(b).Next()
		if err != nil {
			t.Fatal(err)
		}
		whole := append([]byte(nil), r...)
		a.Close()
		return whole
	}
	good := helloOf(nil)
	body := string(good[5:])
	other := helloOf(func(c *tls.Config) { c.ServerName = "another.test" })
	for name, test := range map[string]struct {
		send   string
		reason string
	}{
		"split":                    {string(clearly(22, body[:3])) + string(clearly(22, body[3:])), ""},
		"data first":               {string(clearly(23, "x")), "not TLS"},
		"alert first":              {string(clearly(21, "\x02\x28")), "begins with a record of content type 21"},
		"another message":          {string(clearly(22, "\x02\x00\x00\x00")), "is no hello"},
		"begin of another message": {string(clearly(22, "\x0b")), "is no hello"},
		"more in the record":       {string(clearly(22, body+"\x01")), "more after its hello"},
		"twice in the record":      {string(clearly(22, body+body)), "more after its hello"},
		"alert within":             {string(clearly(22, body[:3])) + string(clearly(21, "\x02\x28")), "begins with a record"},
		"a second one":             {string(good) + string(other), "before the server's answer"},
		"change of cipher":         {string(good) + string(clearly(20, "\x01")), "before the server's answer"},
		"data":                     {string(good) + string(clearly(23, "x")), "before the server's answer"},
		"alert, then data":         {string(good) + string(clearly(21, "\x02\x28")) + string(clearly(23, "x")), "more after an alert"},
		"malformed":                {string(clearly(22, "\x01\x00\x00\x01x")), "malformed"},
		"endless":                  {strings.Repeat(string(clearly(22, "\x01\x00\xff\xff"+strings.Repeat("x", 16000))), 1) + strings.Repeat(string(clearly(22, "x")), 30000), "has more than"},
		"early data":               {string(withExtension(t, good, 42, "")), "early data"},
		"encrypted hello":          {string(withExtension(t, good, 0xfe0d, "x")), "encrypted one"},
		"early data, with data":    {string(withExtension(t, good, 42, "")) + string(clearly(23, "x")), "early data"},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
			r := start(t, server, strict(t), nil)
			_, _ = io.WriteString(r.app, test.send)
			_ = r.app.CloseWrite()
			got, _ := io.ReadAll(r.app)
			if test.reason == "" {
				r.ended()
				if string(r.onServer.written()) != test.send {
					t.Error("the hello did not pass")
				}
				return
			}
			r.refusedBy(test.reason)
			if r.onServer.written() != nil && len(r.onServer.written()) > len(good)+7 {
				t.Errorf("the server got %d bytes", len(r.onServer.written()))
			}
			if name != "data first" && (len(got) != 7 || got[0] != 21) {
				t.Errorf("the app got %x, want an alert", got)
			}
		})
	}
}

// withExtension puts one first.
func withExtension(t *testing.T, hello []byte, kind uint16, content string) []byte {
	t.Helper()
	body := hello[9:]
	at := 34
	at += 1 + int(body[at])
	at += 2 + int(binary.BigEndian.Uint16(body[at:]))
	at += 1 + int(body[at])
	extension := binary.BigEndian.AppendUint16(nil, kind)
	extension = binary.BigEndian.AppendUint16(extension, uint16(len(content)))
	extension = append(extension, content...)
	size := int(binary.BigEndian.Uint16(body[at:])) + len(extension)
	out := append([]byte(nil), body[:at]...)
	out = binary.BigEndian.AppendUint16(out, uint16(size))
	out = append(append(out, extension...), body[at+2:]...)
	return clearly(22, string(append([]byte{1, 0, byte(len(out) >> 8), byte(len(out))}, out...)))
}

// A second hello is judged as the first one was, and for the same name.
func TestRogueRetry(t *testing.T) {
	hello := func(name string, curves ...tls.CurveID) (*tls.Conn, net.Conn) {
		a, b := net.Pipe()
		c := tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true, CurvePreferences: curves})
		go func() { _ = c.Handshake() }()
		return c, b
	}
	read := func(c net.Conn) []byte {
		r, err := record.NewReader(c).Next()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte(nil), r...)
	}
	for name, test := range map[string]struct {
		second func(first []byte) string
		reason string
	}{
		"another name":         {func([]byte) string { _, c := hello("another.test", tls.CurveP384); return string(read(c)) }, "another server name"},
		"early data":           {func(b []byte) string { return string(withExtension(t, b, 42, "")) }, "early data"},
		"encrypted hello":      {func(b []byte) string { return string(withExtension(t, b, 0xfe0d, "x")) }, "encrypted one"},
		"two ciphers":          {func(b []byte) string { return strings.Repeat(string(clearly(20, "\x01")), 2) + string(b) }, "second change of cipher"},
		"another cipher":       {func(b []byte) string { return string(clearly(20, "\x02")) + string(b) }, "malformed"},
		"data":                 {func(b []byte) string { return string(clearly(23, "x")) }, "before the server's answer"},
		"cipher within":        {func(b []byte) string { return string(clearly(22, string(b[5:9]))) + string(clearly(20, "\x01")) }, "not whole"},
		"data after the hello": {func(b []byte) string { return string(b) + string(clearly(23, "x")) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			server := tlsServer(t, &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, func(*tls.Conn) {})
			r := start(t, server, strict(t), nil)
			_, c := hello(tlstest.Name, tls.X25519, tls.CurveP384)
			first := read(c)
			if _, err := r.app.Write(first); err != nil {
				t.Fatal(err)
			}
			if _, err := record.NewReader(r.app).Next(); err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(r.app, test.second(first))
			_, _ = io.Copy(io.Discard, r.app)
			r.app.Close()
			if test.reason != "" {
				r.refusedBy(test.reason)
			}
			if err := r.wait(); err == nil {
				t.Error("the relay ended well")
			}
		})
	}
}
