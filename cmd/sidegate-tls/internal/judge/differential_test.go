// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"sidegate/policy/httprule"
)

// seen is a request as a server, or the Judge, sees it.
type seen struct {
	method, host, path, query string
	body                      int // -1 if it does not end
}

func (s seen) String() string {
	return fmt.Sprintf("%s %s%s?%s with %d bytes", s.method, s.host, s.path, s.query, s.body)
}

// servant notes the requests that a server sees.
type servant struct {
	mu   sync.Mutex
	list []seen
}

func note(r *http.Request) seen {
	host, port, _ := authority(r.Host)
	body, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		body = -1
	}
	path := r.URL.Path
	if path == "" {
		path = "/"
	}
	return seen{r.Method, fmt.Sprintf("%s:%d", host, port), path, r.URL.RawQuery, int(body)}
}

func (s *servant) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	one := note(r)
	s.mu.Lock()
	s.list = append(s.list, one)
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// serve sends the stream to a server, waits until nothing moves any more, and returns what it saw.
func serve(t *testing.T, stream []byte, start func(net.Conn, http.Handler) io.Closer) []seen {
	var s servant
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		running := start(theirs, &s)
		go func() { _, _ = ours.Write(stream) }()
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		synctest.Wait()
		if err := errors.Join(ours.Close(), running.Close()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour) // of this bubble: a server may wait before it gives up
	})
	return s.list
}

var quiet = log.New(io.Discard, "", 0)

// one is a listener for one connection.
type one struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *one) Accept() (c net.Conn, err error) {
	l.once.Do(func() { c = l.Conn })
	if c == nil {
		<-l.closed
		err = net.ErrClosed
	}
	return c, err
}

func (l *one) Close() error {
	close(l.closed)
	return nil
}

func (l *one) Addr() net.Addr { return l.LocalAddr() }

// serveAs serves a connection without TLS.
func serveAs(c net.Conn, h http.Handler, protocols http.Protocols) io.Closer {
	server := &http.Server{Handler: h, ErrorLog: quiet, DisableGeneralOptionsHandler: true, Protocols: &protocols}
	go func() { _ = server.Serve(&one{Conn: c, closed: make(chan struct{})}) }()
	return server
}

func serve1(c net.Conn, h http.Handler) io.Closer {
	var p http.Protocols
	p.SetHTTP1(true)
	return serveAs(c, h, p)
}

// serve2 is x/net/http2 as it is in net/http.
func serve2(c net.Conn, h http.Handler) io.Closer {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return serveAs(c, h, p)
}

// judged1 lets the Judge read a stream of HTTP/1.1, and returns the part that is ready, with the requests in it. How
// long their bodies are is what net/http reads of each part between two heads, alone: as long as the part.
func judged1(t *testing.T, stream []byte) (ready []byte, list []seen) {
	var heads []seen
	j := New(Config{Rules: noTunnels, ALPN: "http/1.1", AnyHost: true, GetBodies: true})
	j.Events = func(e Event) {
		if e.Kind == KindRequest && e.Allowed {
			heads = append(heads, seen{method: e.Method, host: fmt.Sprintf("%s:%d", e.Host, e.Port)})
		}
	}
	starts := []int64{0}
	var off int64
	for i := range stream {
		before, number := j.ready, len(heads)
		var err error
		off, err = j.Client(stream[i : i+1])
		if number > 0 && len(heads) > number {
			starts = append(starts, before)
		}
		if err != nil {
			break
		}
	}
	ready = stream[:off]
	for i, h := range heads {
		end := off
		if i+1 < len(heads) {
			end = starts[i+1]
		}
		r := bufio.NewReader(bytes.NewReader(stream[starts[i]:end]))
		req, err := http.ReadRequest(r)
		if err != nil {
			t.Fatalf("request %d, %q: %v", i, stream[starts[i]:end], err)
		}
		got := note(req)
		if rest, _ := r.Peek(1); len(rest) > 0 {
			t.Fatalf("net/http does not read all of request %d, %q", i, stream[starts[i]:end])
		}
		if got.method != h.method || got.host != h.host || i+1 < len(heads) && got.body < 0 {
			t.Fatalf("request %d is %v, and was judged as %v", i, got, h)
		}
		list = append(list, got)
	}
	return ready, list
}

// same1 wants a server to see the requests that were let through, whether or not the rest was refused.
func same1(t *testing.T, stream []byte) (requests int) {
	ready, want := judged1(t, stream)
	if got := serve(t, ready, serve1); !slices.Equal(got, want) {
		t.Fatalf("%q\nthe server sees %v\nthe judge saw %v", ready, got, want)
	}
	return len(want)
}

// judged2 is the same of HTTP/2, without the bodies' lengths.
func judged2(stream []byte) (ready []byte, list []seen, err error) {
	j := New(Config{Rules: everything, ALPN: "h2", AnyHost: true})
	j.Rules = ruleFunc(func(r *httprule.Request) httprule.Decision {
		if last := len(list) - 1; last < 0 || list[last].body != int(r.Stream) { // not another reading
			list = append(list, seen{r.Method, fmt.Sprintf("%s:%d", r.Host, r.Port), r.Path, r.RawQuery, int(r.Stream)})
		}
		return httprule.Decision{Allow: r.Method != "CONNECT"}
	})
	off, err := j.Client(stream)
	if _, ok := errors.AsType[*Denied](err); ok {
		list = list[:len(list)-1]
	}
	return stream[:off], list, err
}

// within2 wants a server to see no request but those that were let through. It may see fewer: it has limits, such as of
// the number of streams.
func within2(t *testing.T, stream []byte) (got []seen, want []seen) {
	ready, want, _ := judged2(stream)
	got = serve(t, ready, serve2)
	left := slices.Clone(want)
	for _, g := range got {
		i := slices.IndexFunc(left, func(w seen) bool {
			w.body = g.body
			return w == g
		})
		if i < 0 {
			t.Fatalf("%q\nthe server sees %v\nthe judge saw %v", ready, got, want)
		}
		left = slices.Delete(left, i, i+1)
	}
	return got, want
}

func TestServerSeesTheSame1(t *testing.T) {
	for _, tt := range accepted1 {
		if n := same1(t, []byte(tt.text)); n != strings.Count(tt.kinds, "\n")+1 {
			t.Errorf("%q: %d requests", tt.text, n)
		}
	}
	for _, tt := range refused1 {
		all, _ := parts(t, tt.text)
		same1(t, []byte(all))
		if n := same1(t, []byte(ok1+all)); n == 0 {
			t.Errorf("%q: no request", all)
		}
	}
}

func TestServerSeesTheSame2(t *testing.T) {
	for _, tt := range accepted2 {
		got, want := within2(t, []byte(preface+settings2+tt.text))
		if len(got) != len(want) || len(got) != strings.Count(tt.kinds, "\n")+1 {
			t.Errorf("%.200q: the server sees %v", tt.text, got)
		}
	}
	for _, tt := range refused2 {
		all, _ := parts(t, tt.text)
		within2(t, []byte(preface+settings2+all))
		if got, _ := within2(t, []byte(preface+settings2+request2(1001, "GET", "a.example", "/")+all)); len(got) == 0 {
			t.Errorf("%q: no request", all)
		}
	}
}

// TestBodies2 wants the server to get each body whole.
func TestBodies2(t *testing.T) {
	text := preface + settings2 + post2(1) + data2(1, 0, "abc") + post2(3, "content-length", "2") + data2(3, endStream|padded, "\x01de\x00") + data2(1, endStream, "f") + get2(5)
	ready, _, err := judged2([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	got := serve(t, ready, serve2)
	bodies := make([]int, 0, len(got))
	for _, s := range got {
		bodies = append(bodies, s.body)
	}
	slices.Sort(bodies)
	if !slices.Equal(bodies, []int{0, 2, 4}) {
		t.Error(bodies)
	}
}

// random1 makes a stream of requests, in which some bytes are changed.
func random1(r *rand.Rand) []byte {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	var b bytes.Buffer
	for range 1 + r.IntN(4) {
		method := pick("GET", "POST", "PUT", "OPTIONS", "HEAD")
		fmt.Fprintf(&b, "%s %s HTTP/1.%s\r\nHost: a.example\r\n", method, pick("/", "/a", "/a//b?c", "/%61;x/y", "https://a.example/x"), pick("1", "1", "1", "1", "0"))
		for range r.IntN(3) {
			b.WriteString(pick("X: y\r\n", "Connection: keep-alive\r\n", "Connection: close\r\n", "Expect: 100-continue\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "Trailer: X\r\n", "X-Long: "+strings.Repeat("x", r.IntN(5000))+"\r\n"))
		}
		switch r.IntN(3) {
		case 0:
			body := strings.Repeat("b", r.IntN(100))
			fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
		case 1:
			b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
			for range r.IntN(4) {
				chunk := strings.Repeat("c", 1+r.IntN(5000))
				fmt.Fprintf(&b, "%x%s\r\n%s\r\n", len(chunk), pick("", "", ";x=y", ";"), chunk)
			}
			b.WriteString("0\r\n" + pick("", "", "X: y\r\n") + "\r\n")
		default:
			b.WriteString("\r\n")
		}
	}
	stream := b.Bytes()
	for range r.IntN(3) {
		i := r.IntN(len(stream))
		switch r.IntN(4) {
		case 0:
			stream[i] = pick("\r", "\n", " ", "\t", "\x00", ":", "0", ";", "\xff", "/")[0]
		case 1:
			stream = slices.Delete(stream, i, min(len(stream), i+1+r.IntN(3)))
		case 2:
			stream = slices.Insert(stream, i, []byte(pick("\r\n", "\n", " ", "0\r\n\r\n", "GET / HTTP/1.1\r\n", "\r\n\r\n", ";"))...)
		}
		if len(stream) == 0 {
			break
		}
	}
	return stream
}

func TestServerSeesTheSameAtRandom1(t *testing.T) {
	requests := make(map[int]int)
	for seed := range uint64(400) {
		requests[same1(t, random1(rand.New(rand.NewPCG(seed, 7))))]++
	}
	for n := range 4 {
		if requests[n] == 0 {
			t.Errorf("no stream has %d requests that are let through: %v", n, requests)
		}
	}
}
