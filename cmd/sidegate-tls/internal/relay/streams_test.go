// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/policy/httprule"
)

func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(10 * time.Second)
	for code == 0 {
		b := make([]byte, 1<<20)
		b = b[:runtime.Stack(b, true)]
		if !bytes.Contains(b, []byte("relay.(*session)")) {
			break
		}
		if time.Now().After(deadline) {
			fmt.Printf("goroutines are left:\n%s\n", b)
			code = 1
		}
		runtime.Gosched()
	}
	os.Exit(code)
}

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

// Each side may end first, and hears the other one out.
func TestHalfClose(t *testing.T) {
	for _, version := range versions {
		server := tlsServer(t, nil, func(c *tls.Conn) {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\nread %d", len(b))
		})
		r := start(t, server, strict(t), nil)
		c := r.client(func(c *tls.Config) { c.MaxVersion = version })
		if _, err := io.WriteString(c, allowed); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_ = r.app.CloseWrite()
		b, err := io.ReadAll(c)
		if want := fmt.Sprintf("HTTP/1.1 200 OK\r\n\r\nread %d", len(allowed)); err != nil || string(b) != want {
			t.Errorf("read %q, %v", b, err)
		}
		if err := r.wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestReset(t *testing.T) {
	reset := func(c *net.TCPConn) {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	for _, version := range versions {
		// The app's reaches the server.
		got := make(chan error, 1)
		server := tlsServer(t, nil, func(c *tls.Conn) {
			_, err := io.Copy(io.Discard, c)
			got <- err
		})
		r := start(t, server, strict(t), nil)
		c := r.client(func(c *tls.Config) { c.MaxVersion = version })
		if _, err := io.WriteString(c, allowed); err != nil {
			t.Fatal(err)
		}
		reset(r.app)
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server got %v", err)
		}
		if err := r.wait(); !errors.Is(err, errReset) {
			t.Error(err)
		}

		// The server's reaches the app.
		server = serve(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			reset(c.(*net.TCPConn))
		})
		r = start(t, server, strict(t), nil)
		c = r.client(func(c *tls.Config) { c.MaxVersion = version })
		if err := c.Handshake(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the app got %v", err)
		}
		if err := r.wait(); !errors.Is(err, errReset) {
			t.Error(err)
		}
	}
}

func TestCancel(t *testing.T) {
	for name, state := range map[string]func(*rig){
		"nothing sent": func(*rig) {},
		"in the hello": func(r *rig) { _, _ = r.app.Write([]byte{22, 3}) },
		"quiet": func(r *rig) {
			c := r.client(nil)
			_, _ = io.WriteString(c, allowed)
		},
		"held": func(r *rig) {
			c := r.client(nil)
			_, _ = io.WriteString(c, allowed[:20])
		},
		"denied": func(r *rig) {
			c := r.client(nil)
			_, _ = io.WriteString(c, forbidden)
		},
		"stalled": func(r *rig) {
			c := r.client(nil)
			_, _ = io.WriteString(c, "POST /allowed HTTP/1.1\r\nHost: sidegate.test\r\nContent-Length: 1000000000\r\n\r\n")
			_ = r.app.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			for b := make([]byte, 1<<16); ; {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			stall := make(chan struct{})
			server := tlsServer(t, nil, func(c *tls.Conn) { <-stall })
			r := start(t, server, strict(t), func(r *rig) { r.raw = true }) // it is canceled within a record
			state(r)
			began := time.Now()
			r.cancel()
			err := <-r.result
			if name != "denied" && !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("it took %v", took)
			}
			close(stall)
			r.result <- err
		})
	}
}

// A stalled server stalls the app, and what is kept is bounded.
func TestBackpressure(t *testing.T) {
	stall := make(chan struct{})
	server := tlsServer(t, nil, func(c *tls.Conn) { <-stall })
	r := start(t, server, strict(t), func(r *rig) { r.raw = true }) // it is canceled within a record
	c := r.client(nil)
	defer close(stall)
	if _, err := io.WriteString(c, "POST /allowed HTTP/1.1\r\nHost: sidegate.test\r\nContent-Length: 1000000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	for {
		_ = r.app.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := c.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if n := len(r.onApp.read()); n > 64<<20 {
			t.Fatalf("the relay took %d bytes", n)
		}
	}
	if ahead := len(r.onApp.read()) - len(r.onServer.written()); ahead > 256<<10 {
		t.Errorf("the relay keeps %d bytes", ahead)
	}
	r.cancel()
}

// What follows an upgrade waits for the server's answer.
func TestUpgrade(t *testing.T) {
	set, err := httprule.Compile([]httprule.Rule{
		{Name: "ws", Allow: true, Path: httprule.Path{Prefix: "/allowed"}, Upgrades: []string{"websocket"}},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	upgrade := strings.Replace(allowed, "\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 1)
	const switched, not = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"
	for name, test := range map[string]struct {
		answer, follows, got string
		rx                   bool
	}{
		"switched":              {switched, "\x81\x01x", "\x81\x01x", true},
		"not, and a request":    {not, allowed, allowed, true},
		"not, and a bad one":    {not, forbidden, "", true},
		"not, and frames":       {not, "\x81\x01x", "", true},
		"nobody sees, switched": {switched, "\x81\x01x", "\x81\x01x", false},
	} {
		for _, version := range versions {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				held := make(chan struct{})
				got := make(chan string, 1)
				server := tlsServer(t, nil, func(c *tls.Conn) {
					b := make([]byte, len(upgrade))
					_, _ = io.ReadFull(c, b)
					if test.rx {
						<-held
					}
					_, _ = io.WriteString(c, test.answer)
					rest, _ := io.ReadAll(c)
					got <- string(rest)
				})
				r := start(t, server, Policy{RequireKeys: true, Judge: judge.Config{Rules: set}}, func(r *rig) { r.library.never[Server] = !test.rx })
				c := r.client(func(c *tls.Config) { c.MaxVersion = version })
				_, _ = io.WriteString(c, upgrade)
				_, _ = io.WriteString(c, test.follows)
				_ = c.CloseWrite()
				_ = r.app.CloseWrite() // the FIN too waits
				close(held)
				_, _ = io.ReadAll(c)
				if g := <-got; g != test.got {
					t.Errorf("the server got %q after the upgrade, want %q", g, test.got)
				}
				_ = r.wait()
			})
		}
	}
}

// A server of TLS with a message of its own before keys, and one that is none.
func TestServers(t *testing.T) {
	for name, test := range map[string]struct {
		says   string
		reason string
		raw    bool
	}{
		"HTTP":          {"HTTP/1.1 400 Bad Request\r\n\r\n", "", true},
		"alert":         {string(clearly(21, "\x02\x28")), "", false},
		"data":          {string(clearly(22, "\x02")) + string(clearly(23, "x")), "before its hello", false},
		"first data":    {string(clearly(23, "x")), "", true},
		"no hello":      {string(clearly(22, "\x0b\x00\x00\x00")), "is no hello", false},
		"bad hello":     {string(clearly(22, "\x02\x00\x00\x00")), "malformed", false},
		"half a record": {"\x16\x03\x03\x00", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			server := serve(t, func(c net.Conn) {
				b := make([]byte, 5)
				_, _ = io.ReadFull(c, b)
				_, _ = io.WriteString(c, test.says)
				_ = c.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			})
			r := start(t, server, strict(t), nil)
			go func() { _ = r.client(nil).Handshake() }()
			if test.reason != "" {
				r.refusedBy(test.reason)
				return
			}
			for string(r.onApp.written()) != test.says {
				if len(r.onApp.written()) > len(test.says) {
					t.Fatalf("the app got %q", r.onApp.written())
				}
				runtime.Gosched()
			}
		})
	}
}

func TestKeysError(t *testing.T) {
	a := &answering{}
	r := start(t, tlsServer(t, nil, a.handle), strict(t), func(r *rig) { r.library.err = errors.New("hand-over refused") })
	c := r.client(nil)
	if _, err := io.WriteString(c, allowed); err == nil {
		_, _ = io.ReadAll(c)
	}
	r.refusedBy("hand-over refused")
	if a.text() != "" {
		t.Errorf("the server got %q", a.text())
	}
}
