// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// fakeSidecar is an HTTP proxy that marks what passes.
type fakeSidecar struct {
	Deferred
	transport *http.Transport

	mu   sync.Mutex
	seen []string
	dial int
}

func newSidecar(t *testing.T, h2 bool) *fakeSidecar {
	t.Helper()
	s := &fakeSidecar{}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	in, out := listen(), listen()
	dial := func(ctx context.Context, to net.Listener) (Stream, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
	upstreams := make(chan net.Conn)
	go func() {
		for {
			c, err := out.Accept()
			if err != nil {
				return
			}
			upstreams <- c
		}
	}()
	s.DialSidecar = func(ctx context.Context) (Stream, error) { return dial(ctx, in) }
	s.Upstream = func(ctx context.Context) (Stream, error) {
		select {
		case c := <-upstreams:
			return c.(*net.TCPConn), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	s.transport = &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		s.mu.Lock()
		s.dial++
		s.mu.Unlock()
		return dial(ctx, out)
	}}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: tlstest.Name})
			r.Out.Host = r.In.Host
			r.Out.Header.Set("X-Sidecar", "was here")
		},
		ModifyResponse: func(r *http.Response) error { r.Header.Set("X-Sidecar", "too"); return nil },
		Transport:      s.transport, FlushInterval: -1,
	}
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(in) }()
	t.Cleanup(func() {
		s.transport.CloseIdleConnections()
		server.Close()
	})
	return s
}

func (s *fakeSidecar) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.seen, ", ")
}

// An HTTP proxy works on requests and answers inside TLS that the app has started.
func TestDeferred(t *testing.T) {
	server := httpServer(t)
	for i, suite := range tlstest.Suites() {
		for _, proto := range []string{"http/1.1", "h2"} {
			if proto == "h2" && strings.HasPrefix(suite.Name, "TLS_RSA") {
				continue
			}
			t.Run(suite.Name+"/"+strings.ReplaceAll(proto, "/", ""), func(t *testing.T) {
				version := suite.SupportedVersions[len(suite.SupportedVersions)-1]
				if version == tls.VersionTLS13 {
					only13(t, suite.ID)
				}
				sidecar := newSidecar(t, proto == "h2")
				r := start(t, server, strict(t), func(r *rig) { r.deferred, r.same = &sidecar.Deferred, true })
				via := r.roundTripper(proto, func(c *tls.Config) {
					c.MaxVersion = version
					c.CipherSuites = []uint16{suite.ID}
					c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				})
				size := 1 << 18
				if i == 0 && proto == "http/1.1" {
					size = 8 << 20
				}
				for _, n := range []int{0, 1000, size} {
					echo(t, via, n)
				}
				a, err := (&http.Client{Transport: via}).Get("https://" + tlstest.Name + "/allowed")
				if err != nil || a.Header.Get("X-Sidecar") != "too" {
					t.Fatalf("answer %+v, %v", a, err)
				}
				a.Body.Close()
				via.(interface{ CloseIdleConnections() }).CloseIdleConnections()
				r.ended()
				if e := r.find(KindTLS); e == nil || !e.ClientKeys || !e.ServerKeys {
					t.Errorf("event: %+v", e)
				}
				if n, m := len(r.http(judge.KindRequest)), len(r.http(judge.KindResponse)); n != 4 || m != 4 {
					t.Errorf("%d requests and %d responses are seen", n, m)
				}
			})
		}
	}
}

// The sidecar's next connection to the server goes on in the same TLS session, if nothing is under way.
func TestDeferredUpstreams(t *testing.T) {
	server := httpServer(t)
	sidecar := newSidecar(t, false)
	// A body may be cut into the same records by chance, and these have the same numbers then.
	r := start(t, server, strict(t), func(r *rig) { r.deferred, r.same = &sidecar.Deferred, true })
	via := r.roundTripper("http/1.1", nil)
	for range 3 {
		echo(t, via, 5000)
		sidecar.transport.CloseIdleConnections()
	}
	via.(*http.Transport).CloseIdleConnections()
	r.ended()
	if sidecar.dial != 3 {
		t.Errorf("the sidecar connected %d times", sidecar.dial)
	}
}

// An answer that nobody waits for any more does not become the next request's.
func TestDeferredAbandoned(t *testing.T) {
	late := make(chan struct{})
	server := tlsServer(t, nil, func(c *tls.Conn) {
		b := make([]byte, 1<<16)
		_, _ = c.Read(b)
		<-late
		_, _ = io.WriteString(c, fine)
		_, _ = io.Copy(io.Discard, c)
	})
	sidecar := newSidecar(t, false)
	sidecar.transport.ResponseHeaderTimeout = 50 * time.Millisecond
	r := start(t, server, strict(t), func(r *rig) { r.deferred = &sidecar.Deferred })
	via := r.roundTripper("http/1.1", nil)
	for i := range 2 {
		a, err := (&http.Client{Transport: via}).Get("https://" + tlstest.Name + "/allowed")
		if err != nil || a.StatusCode != http.StatusBadGateway {
			t.Fatalf("answer %+v, %v", a, err)
		}
		a.Body.Close()
		if i == 0 {
			close(late)
		}
	}
	via.(*http.Transport).CloseIdleConnections()
	r.ended()
}

func TestDeferredDenied(t *testing.T) {
	for _, version := range versions {
		a := &answering{}
		sidecar := newSidecar(t, false)
		r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) { r.deferred = &sidecar.Deferred })
		c := r.client(func(c *tls.Config) { c.MaxVersion = version })
		if _, err := io.WriteString(c, allowed); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<12)
		if n, err := c.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 200 OK\r\n") {
			t.Fatalf("read %q, %v", b[:n], err)
		}
		if _, err := io.WriteString(c, forbidden); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(c)
		if err == nil || err.Error() != "remote error: tls: access denied" || strings.Contains(string(rest), "HTTP/") {
			t.Errorf("read %q, %v", rest, err)
		}
		c.Close()
		if err := r.wait(); err == nil {
			t.Error("the relay ended well")
		} else if _, ok := errors.AsType[*judge.Denied](err); !ok {
			t.Error(err)
		}
		if got := sidecar.requests(); got != "GET /allowed" {
			t.Errorf("the sidecar got %q", got)
		}
		if strings.Contains(a.text(), "forbidden") {
			t.Errorf("the server got %q", a.text())
		}
	}
}

// Deferred needs all keys, and those of the beginning.
func TestDeferredRefused(t *testing.T) {
	update := func(r *rogue) []byte { return r.seal(record.TypeHandshake, keyUpdate) }
	for name, test := range map[string]struct {
		setup  func(*rig)
		send   func(*rogue) []byte
		reason string
	}{
		"no keys":               {func(r *rig) { r.library.never = [2]bool{true, true} }, nil, "deferred needs keys"},
		"no keys of the server": {func(r *rig) { r.library.never[Server] = true }, nil, "deferred needs the server's keys"},
		"lies about the server": {func(r *rig) {
			r.library.alter = func(side Side, _ int, b []byte) []byte {
				if side == Server && b != nil {
					b[20] ^= 1
				}
				return b
			}
		}, nil, "do not open what it sends"},
		"key update":   {nil, update, "changes its keys"},
		"other record": {nil, func(r *rogue) []byte { return clearly(23, string(make([]byte, 100))) }, "do not open"},
	} {
		for _, version := range versions {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				if name == "no keys" && version == tls.VersionTLS12 {
					t.Skip("the handshake does not end")
				}
				sidecar := newSidecar(t, false)
				r, a := newRogue(t, version, Policy{Judge: judge.Config{Rules: rules(t)}}, func(r *rig) {
					r.deferred = &sidecar.Deferred
					if test.setup != nil {
						test.setup(r)
					}
				})
				b := r.seal(record.TypeApplicationData, allowed)
				if test.send != nil {
					r.generation(0)
					b = test.send(r)
				}
				_, _ = r.app.Write(b)
				_ = r.app.CloseWrite()
				_, _ = io.Copy(io.Discard, r.app)
				if name == "lies about the server" && version == tls.VersionTLS13 {
					_ = r.wait() // the lie shows with the server's first record
					return
				}
				r.refusedBy(test.reason)
				if a.text() != "" {
					t.Errorf("the server got %q", a.text())
				}
			})
		}
	}
}

// The app's half close reaches the sidecar, and the server's end the upstream.
func TestDeferredEnds(t *testing.T) {
	for _, version := range versions {
		for name, handle := range map[string]func(*tls.Conn){
			"length": func(c *tls.Conn) { _, _ = io.WriteString(c, fine) },
			"close":  func(c *tls.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok") },
			"cut":    func(c *tls.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nok"); c.NetConn().Close() },
		} {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				sidecar := newSidecar(t, false)
				server := tlsServer(t, nil, func(c *tls.Conn) {
					_, _ = c.Read(make([]byte, 1<<12))
					handle(c)
				})
				r := start(t, server, strict(t), func(r *rig) { r.deferred = &sidecar.Deferred })
				c := r.client(func(c *tls.Config) { c.MaxVersion = version })
				request, _ := http.NewRequest("GET", "https://"+tlstest.Name+"/allowed", nil)
				request.Close = true
				if err := request.Write(c); err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(c)
				if err != nil || !strings.Contains(string(b), "ok") {
					t.Errorf("read %q, %v", b, err)
				}
				if whole := strings.HasSuffix(string(b), "\r\n0\r\n\r\n") || strings.HasSuffix(string(b), "\r\n\r\nok"); whole != (name != "cut") {
					t.Errorf("read %q", b)
				}
				_ = c.CloseWrite()
				c.Close()
				r.ended()
			})
		}
	}
}

func TestDeferredCancel(t *testing.T) {
	sidecar := newSidecar(t, false)
	stall := make(chan struct{})
	defer close(stall)
	r := start(t, tlsServer(t, nil, func(c *tls.Conn) { <-stall }), strict(t), func(r *rig) { r.deferred = &sidecar.Deferred })
	c := r.client(nil)
	if _, err := io.WriteString(c, allowed); err != nil {
		t.Fatal(err)
	}
	r.cancel()
	select {
	case err := <-r.result:
		r.result <- err
	case <-time.After(3 * time.Second):
		t.Error("the relay does not end")
	}
}
