// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	_ "unsafe" // for linkname

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// Nothing but this makes crypto/tls choose a suite of TLS 1.3. It is kept linkable (go.dev/issue/67401).
//
//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

func only13(t *testing.T, suite uint16) {
	was, wasNoAES := defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES
	defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = []uint16{suite}, []uint16{suite}
	t.Cleanup(func() { defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = was, wasNoAES })
}

// httpServer echoes bodies.
func httpServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var suites []uint16
	for _, suite := range tlstest.Suites() {
		suites = append(suites, suite.ID)
	}
	s := &http.Server{
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				served(c.RemoteAddr().String()).finish()
			}
		},
		ErrorLog:  log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: tlstest.Certificates(), CipherSuites: suites},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Proto", r.Proto)
			_ = http.NewResponseController(w).EnableFullDuplex()
			_, _ = io.Copy(w, r.Body)
		}),
	}
	go func() { _ = s.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// roundTripper speaks one protocol through r.
func (r *rig) roundTripper(proto string, change func(*tls.Config)) http.RoundTripper {
	c := r.config()
	c.NextProtos = []string{proto}
	if change != nil {
		change(c)
	}
	dial := func(context.Context, string, string) (net.Conn, error) {
		conn := tls.Client(r.app, c)
		return conn, conn.Handshake()
	}
	via := &http.Transport{DialTLSContext: dial, Protocols: new(http.Protocols)}
	via.Protocols.SetHTTP1(proto != "h2")
	via.Protocols.SetHTTP2(proto == "h2")
	return via
}

func echo(t *testing.T, via http.RoundTripper, size int) {
	t.Helper()
	body := make([]byte, size)
	mathrand.NewChaCha8([32]byte{byte(size)}).Read(body)
	a, err := (&http.Client{Transport: via}).Post("https://"+tlstest.Name+"/allowed/echo", "", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	got, err := io.ReadAll(a.Body)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(body) {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(body), err)
	}
}

// Every suite, both protocols, up and down, and what events say of it.
func TestRelay(t *testing.T) {
	server := httpServer(t)
	for i, suite := range tlstest.Suites() {
		for _, proto := range []string{"http/1.1", "h2"} {
			if proto == "h2" && strings.HasPrefix(suite.Name, "TLS_RSA") {
				continue // RFC 9113, appendix A
			}
			t.Run(suite.Name+"/"+strings.ReplaceAll(proto, "/", ""), func(t *testing.T) {
				version := suite.SupportedVersions[len(suite.SupportedVersions)-1]
				if version == tls.VersionTLS13 {
					only13(t, suite.ID)
				}
				r := start(t, server, strict(t), nil)
				via := r.roundTripper(proto, func(c *tls.Config) {
					c.MaxVersion = version
					c.CipherSuites = []uint16{suite.ID}
					c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				})
				echo(t, via, 0)
				echo(t, via, 1000)
				size := 1 << 18
				if i == 0 || i == 3 && proto == "http/1.1" {
					size = 8 << 20
				}
				echo(t, via, size)
				via.(interface{ CloseIdleConnections() }).CloseIdleConnections()
				r.ended()
				e := r.find(KindTLS)
				if e == nil || e.SNI != tlstest.Name || e.Version != tls.VersionName(version) || e.Suite != suite.Name || !e.ClientKeys || !e.ServerKeys {
					t.Errorf("event: %+v", e)
				}
				if n, m := len(r.http(judge.KindRequest)), len(r.http(judge.KindResponse)); n != 3 || m != 3 {
					t.Errorf("%d requests and %d responses are seen: %+v", n, m, r.events)
				}
				if end := r.find(KindEnd); end.ClientBytes < int64(size) || end.ServerBytes < int64(size) || end.Duration <= 0 {
					t.Errorf("event: %+v", end)
				}
			})
		}
	}
}

// Resumed sessions have another order of messages in TLS 1.2, and PSKs in 1.3.
func TestResumption(t *testing.T) {
	server := httpServer(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(4)
		keys := &tlstest.KeyLog{Resumes: version == tls.VersionTLS12}
		for i := range 3 {
			r := start(t, server, strict(t), func(r *rig) { r.log, r.library.log = keys, keys })
			c := r.client(func(c *tls.Config) { c.MaxVersion, c.ClientSessionCache = version, cache })
			if _, err := io.WriteString(c, allowed); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 12)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "HTTP/1.1 200" {
				t.Fatalf("read %q, %v", b, err)
			}
			if resumed := c.ConnectionState().DidResume; resumed != (i > 0) {
				t.Errorf("connection %d resumed: %v", i, resumed)
			}
			c.Close()
			r.ended()
			if e := r.find(KindTLS); e == nil || !e.ClientKeys || !e.ServerKeys || len(r.http(judge.KindResponse)) != 1 {
				t.Errorf("events: %+v", r.events)
			}
		}
	}
}

func TestHelloRetry(t *testing.T) {
	a := &answering{}
	server := tlsServer(t, &tls.Config{CurvePreferences: []tls.CurveID{tls.CurveP384}}, a.handle)
	asked := 0
	p := strict(t)
	p.SNI = func(name string) (bool, string) { asked++; return name == tlstest.Name, "" }
	r := start(t, server, p, nil)
	c := r.client(func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384} })
	if _, err := io.WriteString(c, allowed); err != nil {
		t.Fatal(err)
	}
	readFine(t, c)
	if !c.ConnectionState().HelloRetryRequest {
		t.Error("there was no HelloRetryRequest")
	}
	c.Close()
	r.ended()
	if asked != 2 {
		t.Errorf("the name was judged %d times", asked)
	}
}

// Not one byte of what is denied reaches the server, and the app reads why.
func TestDenied(t *testing.T) {
	for _, test := range []struct {
		name  string
		write []string // each is a record, or more
		got   string
		fine  int // answers before the alert
	}{
		{"at once", []string{forbidden}, "", 0},
		{"keep-alive", []string{allowed, forbidden}, allowed, 1},
		{"split", []string{allowed[:10], allowed[10:], forbidden[:7], forbidden[7:]}, allowed, 1},
		// The first record of the two is not all ready.
		{"pipelined in one record", []string{allowed + forbidden}, "", 0},
		{"half a head in the record before", []string{allowed, allowed + forbidden[:9], forbidden[9:]}, allowed, 1},
		{"malformed", []string{allowed, "GET /allowed HTTP/1.1\nHost: x\n\n"}, allowed, 1},
		{"not HTTP", []string{"\x00\x01\x02"}, "", 0},
		{"another host", []string{strings.Replace(allowed, tlstest.Name, "other.test", 1)}, "", 0},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, rx := range []bool{true, false} {
				t.Run(test.name+"/"+tls.VersionName(version), func(t *testing.T) {
					a := &answering{}
					r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) { r.library.never[Server] = !rx })
					c := r.client(func(c *tls.Config) { c.MaxVersion = version })
					for i, s := range test.write {
						if _, err := io.WriteString(c, s); err != nil {
							t.Fatal(err)
						}
						if test.fine > 0 && strings.Contains(strings.Join(test.write[:i+1], ""), "\r\n\r\n") && i < 2 && (i == 0 || !strings.HasSuffix(test.write[0], "\r\n\r\n")) {
							readFine(t, c)
						}
					}
					want := "access denied"
					if !rx {
						want = ""
					}
					alerted(t, c, want)
					c.Close()
					err := r.wait()
					_, denied := errors.AsType[*judge.Denied](err)
					_, malformed := errors.AsType[*judge.Malformed](err)
					if !denied && !malformed {
						t.Errorf("ended with %v", err)
					}
					if t.Failed() {
						t.Logf("events: %+v", r.events)
					}
					if got := a.text(); got != test.got {
						t.Errorf("the server got %q, want %q", got, test.got)
					}
					if r.onApp.wasReset() {
						t.Error("the app's connection was reset")
					}
				})
			}
		}
	}
}

// A request in many records goes on when its head is complete.
func TestSplit(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		a := &answering{}
		r := start(t, tlsServer(t, nil, a.handle), strict(t), nil)
		c := r.client(func(c *tls.Config) { c.MaxVersion = version })
		for range 3 {
			for _, b := range []byte(allowed) {
				if _, err := c.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
			readFine(t, c)
		}
		if _, err := io.WriteString(c, strings.Repeat(allowed, 100)+allowed[:20]); err != nil {
			t.Fatal(err)
		}
		for range 100 - 1 { // the record has a part of the last one
			_ = c.CloseWrite()
		}
		c.Close()
		r.ended()
		if got := a.text(); got != strings.Repeat(allowed, 3) {
			t.Errorf("the server got %d bytes", len(got))
		}
	}
}

func TestServerFirst(t *testing.T) {
	server := serve(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready\r\n")
		_, _ = io.Copy(c, c)
	})
	p := strict(t)
	p.Plaintext = true
	r := start(t, server, p, func(r *rig) { r.raw = true })
	b := make([]byte, 11)
	if _, err := io.ReadFull(r.app, b); err != nil || string(b) != "220 ready\r\n" {
		t.Fatalf("read %q, %v", b, err)
	}
	if _, err := io.WriteString(r.app, "EHLO me\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = r.app.CloseWrite()
	got, err := io.ReadAll(r.app)
	if err != nil || string(got) != "EHLO me\r\n" {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if e := r.find(KindEnd); e.ClientBytes != 9 || e.ServerBytes != 20 || r.find(KindOpaque) == nil {
		t.Errorf("events: %+v", r.events)
	}
}

func TestPlaintext(t *testing.T) {
	server := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	for _, test := range []struct {
		bytes  string
		allow  bool
		reason string
	}{
		{"GET / HTTP/1.1\r\n\r\n", false, "not TLS"},
		{"GET / HTTP/1.1\r\n\r\n", true, ""},
		{"\x80\x2e\x01\x03\x01", true, "hello of SSL 2"},
		{"\x80\x2e", true, "may be of SSL 2"},
		{"\x80\x2e\x02\x00", true, ""},
	} {
		p := strict(t)
		p.Plaintext = test.allow
		r := start(t, server, p, func(r *rig) { r.raw = true })
		if _, err := io.WriteString(r.app, test.bytes); err != nil {
			t.Fatal(err)
		}
		_ = r.app.CloseWrite()
		err := r.wait()
		want := test.bytes
		if test.reason != "" {
			r.refusedBy(test.reason)
			want = ""
		} else if err != nil {
			t.Error(err)
		}
		if got := string(r.onServer.written()); got != want {
			t.Errorf("the server got %q of %q", got, test.bytes)
		}
	}
}

func TestSNI(t *testing.T) {
	a := &answering{}
	server := tlsServer(t, nil, a.handle)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, name := range []string{"denied.test", ""} {
			r := start(t, server, Policy{SNI: func(n string) (bool, string) { return n == tlstest.Name, "names" }}, nil)
			c := r.client(func(c *tls.Config) { c.ServerName, c.MaxVersion = name, version })
			alerted(t, c, "access denied")
			c.Close()
			r.refusedBy(`denied: rule "names" denies it`)
			if got := r.onServer.written(); len(got) > 0 {
				t.Errorf("the server got %x", got)
			}
			if e := r.find(KindDenied); e == nil || e.SNI != name || e.Rule != "names" {
				t.Errorf("events: %+v", r.events)
			}
		}
	}
}

// Without keys only the SNI is judged, or nothing goes on.
func TestNoKeys(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		for _, require := range []bool{true, false} {
			a := &answering{}
			r := start(t, tlsServer(t, &tls.Config{MinVersion: tls.VersionTLS10}, a.handle), Policy{RequireKeys: require, Judge: judge.Config{Rules: rules(t)}}, func(r *rig) {
				r.library.never = [2]bool{true, true}
				r.raw = !require
			})
			c := r.client(func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version })
			_, err := io.WriteString(c, forbidden)
			if !require {
				readFine(t, c)
				c.Close()
				r.ended()
				if r.find(KindOpaque) == nil || a.text() != forbidden {
					t.Errorf("the server got %q, events %+v", a.text(), r.events)
				}
				continue
			}
			if err == nil {
				_, _ = io.ReadAll(c)
			}
			c.Close()
			r.refusedBy("has not handed over its keys")
			if a.text() != "" {
				t.Errorf("the server got %q", a.text())
			}
		}
	}
}

// Clients that lie about their keys.
func TestLies(t *testing.T) {
	other := func(b []byte) []byte {
		b = bytes.Clone(b)
		if len(b) > 20 {
			b[20] ^= 1
		}
		return b
	}
	for name, test := range map[string]struct {
		alter  func(*library) func(Side, int, []byte) []byte
		reason string
	}{
		"other keys": {func(*library) func(Side, int, []byte) []byte {
			return func(side Side, _ int, b []byte) []byte { return other(b) }
		}, "do not open"},
		"the server's": {func(l *library) func(Side, int, []byte) []byte {
			return func(_ Side, n int, _ []byte) []byte { return l.info(Server, n) }
		}, "do not open"},
		"another number": {func(*library) func(Side, int, []byte) []byte {
			return func(_ Side, _ int, b []byte) []byte {
				if b = bytes.Clone(b); b != nil {
					b[len(b)-1]++
				}
				return b
			}
		}, "do not open"},
		"another version": {func(*library) func(Side, int, []byte) []byte {
			return func(_ Side, _ int, b []byte) []byte {
				if b = bytes.Clone(b); b != nil {
					b[0] ^= 7 // 1.2 and 1.3
				}
				return b
			}
		}, "and speaks"},
		"another cipher": {func(*library) func(Side, int, []byte) []byte {
			return func(_ Side, _ int, b []byte) []byte {
				if b != nil {
					return tlstest.Info(uint16(b[0])|uint16(b[1])<<8, tlstest.CipherCCM128, make([]byte, 16), make([]byte, 12), 0)
				}
				return b
			}
		}, "do not open"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				a := &answering{}
				r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) { r.library.alter = test.alter(r.library) })
				c := r.client(func(c *tls.Config) { c.MaxVersion = version })
				if _, err := io.WriteString(c, allowed); err == nil {
					_, _ = io.ReadAll(c)
				}
				c.Close()
				r.refusedBy(test.reason)
				if a.text() != "" {
					t.Errorf("the server got %q", a.text())
				}
			})
		}
	}
}

// Where only the server's keys are a lie, answers are not seen, and requests judged.
func TestLiesAboutAnswers(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		a := &answering{}
		r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) {
			r.library.alter = func(side Side, _ int, b []byte) []byte {
				if b = bytes.Clone(b); b != nil && side == Server {
					b[20] ^= 1
				}
				return b
			}
		})
		c := r.client(func(c *tls.Config) { c.MaxVersion = version })
		if _, err := io.WriteString(c, allowed); err != nil {
			t.Fatal(err)
		}
		readFine(t, c)
		if _, err := io.WriteString(c, forbidden); err != nil {
			t.Fatal(err)
		}
		alerted(t, c, "")
		c.Close()
		r.refusedBy("denied")
		if len(r.http(judge.KindBlind)) != 1 || a.text() != allowed {
			t.Errorf("the server got %q; events: %+v", a.text(), r.events)
		}
	}
}

// A client certificate in TLS 1.3 is more than a Finished.
func TestClientCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		a := &answering{}
		r := start(t, tlsServer(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, a.handle), strict(t), nil)
		c := r.client(func(c *tls.Config) { c.MaxVersion, c.Certificates = version, tlstest.Certificates() })
		_, err := io.WriteString(c, allowed)
		if version == tls.VersionTLS12 {
			readFine(t, c)
			c.Close()
			r.ended()
			continue
		}
		if err == nil {
			_, _ = io.ReadAll(c)
		}
		c.Close()
		r.refusedBy("a client certificate in TLS 1.3")
	}
}

// The server learns that the app does not like its certificate.
func TestBadCertificate(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		got := make(chan error, 1)
		server := serve(t, func(c net.Conn) {
			got <- tls.Server(c, &tls.Config{Certificates: tlstest.Certificates()}).Handshake()
		})
		r := start(t, server, strict(t), nil)
		c := r.client(func(c *tls.Config) { c.MaxVersion, c.InsecureSkipVerify = version, false })
		if c.Handshake() == nil {
			t.Error("the certificate is good")
		}
		c.Close()
		if err := <-got; err == nil || !strings.Contains(err.Error(), "remote error: tls: ") {
			t.Errorf("the server got %v", err)
		}
		r.ended()
	}
}
