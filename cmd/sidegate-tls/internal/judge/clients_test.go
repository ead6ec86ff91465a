// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/policy/httprule"
)

// relay is what the Judge is for: it holds each record until all of it is ready.
type relay struct {
	j              *Judge
	client, server net.Conn
	mu             sync.Mutex
	records        [][]byte // that are held
	sent           int64    // bytes of the client, without those
	err            error
	forward        chan []byte // records to send
	done           sync.WaitGroup
}

func newRelay(j *Judge, client, server net.Conn) *relay {
	r := &relay{j: j, client: client, server: server, forward: make(chan []byte, 1<<14)}
	r.done.Go(func() { r.pump(client, 1, r.up) })
	r.done.Go(func() { r.pump(server, 2, r.down) })
	go func() {
		for record := range r.forward {
			_, _ = server.Write(record)
		}
	}()
	return r
}

// pump cuts what it reads into records.
func (r *relay) pump(from net.Conn, seed uint64, pass func([]byte) error) {
	defer r.client.Close()
	defer r.server.Close()
	dice := rand.New(rand.NewPCG(seed, 9))
	for {
		record := make([]byte, 1+dice.IntN(16<<10))
		n, err := from.Read(record)
		if n > 0 && pass(record[:n]) != nil || err != nil {
			return
		}
	}
}

func (r *relay) up(record []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, record)
	return r.release(r.j.Client(record))
}

func (r *relay) down(record []byte) error {
	r.mu.Lock()
	err := r.release(r.j.Server(record))
	r.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = r.client.Write(record)
	return err
}

// release forwards the records up to there.
func (r *relay) release(ready int64, err error) error {
	for len(r.records) > 0 && r.sent+int64(len(r.records[0])) <= ready {
		record := r.records[0]
		r.forward <- record
		r.records, r.sent = r.records[1:], r.sent+int64(len(record))
	}
	if err != nil {
		r.err = err
	}
	return err
}

// site is a server that says what it got.
func site(seen *sync.Map) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r.URL.Path, true)
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			n = -1
		}
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprintf(w, "%d bytes, %d in X, trailer %q", n, len(r.Header.Get("X")), r.Trailer.Get("Sum"))
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // which HTTP/2 is
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, switching)
		line, _ := buffered.ReadString('\n')
		_, _ = io.WriteString(c, line)
	})
	return mux
}

// visit runs a client through a relay, and returns the events and the relay's error.
// What the client sends is TLS up to the relay.
func visit(t *testing.T, c Config, start func(net.Conn, http.Handler) io.Closer, seen *sync.Map, run func(net.Conn)) ([]Event, error) {
	t.Helper()
	var events []Event
	c.Events = func(e Event) { events = append(events, e) }
	c.SNI, c.Answers = "a.example", true
	j := New(c)
	client, ours := net.Pipe()
	back, server := net.Pipe()
	running := start(server, site(seen))
	r := newRelay(j, tls.Server(ours, &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: []string{"h2", "http/1.1"}}), back)
	run(client)
	client.Close()
	r.done.Wait()
	close(r.forward)
	if err := running.Close(); err != nil {
		t.Error(err)
	}
	j.End()
	return events, r.err
}

// unsized is a body whose length net/http does not find out.
type unsized struct{ io.Reader }

// get sends a request, and wants an answer.
func get(client http.RoundTripper, want string, r *http.Request) error {
	answer, err := client.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("%d %s", answer.StatusCode, body); got != want {
		return fmt.Errorf("%s %s: %.100s, want %.100s", r.Method, r.URL, got, want)
	}
	return nil
}

func ask(method, path string, body io.Reader, headers ...string) *http.Request {
	r, err := http.NewRequestWithContext(context.Background(), method, "https://a.example"+path, body)
	if err != nil {
		panic(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// converse sends what clients do, one after the other.
func converse(client http.RoundTripper) error {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	trailers := ask("POST", "/trailers", unsized{strings.NewReader("abc")})
	trailers.Trailer = http.Header{"Sum": {"42"}}
	return errors.Join(
		get(client, `200 0 bytes, 0 in X, trailer ""`, ask("GET", "/a?b=c", nil)),
		get(client, `200 0 bytes, 16384 in X, trailer ""`, ask("GET", "/header", nil, "X", strings.Repeat("x", 16<<10))),
		get(client, `200 3 bytes, 0 in X, trailer ""`, ask("PUT", "/put", strings.NewReader("abc"))),
		get(client, `202 `+big, ask("POST", "/big", strings.NewReader(big))),
		get(client, `202 `+big, ask("POST", "/big", unsized{strings.NewReader(big)})),
		get(client, `200 3 bytes, 0 in X, trailer "42"`, trailers),
		get(client, `200 3 bytes, 0 in X, trailer ""`, ask("POST", "/expect", strings.NewReader("abc"), "Expect", "100-continue")),
		get(client, `200 `, ask("HEAD", "/head", nil)),
		get(client, `404 0 bytes, 0 in X, trailer ""`, ask("GET", "/missing", nil)),
	)
}

const conversed = `GET /a: 200
GET /header: 200
PUT /put: 200
POST /big: 202
POST /big: 202
POST /trailers: 200
POST /expect: 200
HEAD /head: 200
GET /missing: 404`

// answered lists the requests with the answers to them.
func answered(events []Event) string {
	list := make(map[uint32]string)
	for _, e := range events {
		switch e.Kind {
		case KindRequest:
			list[e.Stream] = e.Method + " " + e.Path
		case KindResponse:
			list[e.Stream] += fmt.Sprintf(": %d", e.Status)
		case KindEnd:
		default:
			list[e.Stream] += fmt.Sprintf(" %s %s", e.Kind, e.Reason)
		}
	}
	var lines []string
	for _, id := range slices.Sorted(maps.Keys(list)) {
		lines = append(lines, list[id])
	}
	return strings.Join(lines, "\n")
}

// transport is net/http's over a connection, with TLS.
func transport(c net.Conn, alpn string) *http.Transport {
	return &http.Transport{
		MaxConnsPerHost: 1, ExpectContinueTimeout: time.Hour, ForceAttemptHTTP2: true,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return tls.Client(c, &tls.Config{NextProtos: []string{alpn}, InsecureSkipVerify: true}), nil
		},
	}
}

// certificate is one that nobody checks.
var certificate = sync.OnceValue(func() tls.Certificate {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
})

func TestClients(t *testing.T) {
	for name, server := range map[string]func(net.Conn, http.Handler) io.Closer{"http/1.1": serve1, "h2": serve2} {
		t.Run(name, func(t *testing.T) {
			events, err := visit(t, Config{Rules: noTunnels, ALPN: name}, server, new(sync.Map), func(c net.Conn) {
				if err := converse(transport(c, name)); err != nil {
					t.Error(err)
				}
			})
			if got := answered(events); got != conversed || err != nil {
				t.Errorf("%v\n%s", err, got)
			}
		})
		t.Run(name+" is denied", func(t *testing.T) {
			rules, err := httprule.Compile([]httprule.Rule{{Name: "secret", Path: httprule.Path{Prefix: "/secret"}}}, true)
			if err != nil {
				t.Fatal(err)
			}
			var seen sync.Map
			events, err := visit(t, Config{Rules: rules}, server, &seen, func(c net.Conn) {
				client := transport(c, name)
				if err := get(client, `200 3 bytes, 0 in X, trailer ""`, ask("POST", "/a", strings.NewReader("abc"))); err != nil {
					t.Error(err)
				}
				if err := get(client, "", ask("POST", "/secret", strings.NewReader("abc"))); err == nil {
					t.Error("an answer to what is denied")
				}
			})
			d, ok := errors.AsType[*Denied](err)
			if _, leaked := seen.Load("/secret"); leaked || !ok || d.Rule != "secret" || d.Request.Path != "/secret" {
				t.Errorf("%v; seen by the server: %t", err, leaked)
			}
			if got := answered(events); got != "POST /a: 200\nPOST /secret" {
				t.Error(got)
			}
		})
	}
}

// TestStreams sends many requests at once.
func TestStreams(t *testing.T) {
	const n = 40
	events, err := visit(t, Config{Rules: noTunnels, ALPN: "h2"}, serve2, new(sync.Map), func(c net.Conn) {
		client := transport(c, "h2")
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				body := strings.Repeat("x", i*997)
				if err := get(client, "202 "+body, ask("POST", "/big", unsized{strings.NewReader(body)}, "X", strings.Repeat("x", i*100))); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
	if got := answered(events); err != nil || got != strings.TrimSuffix(strings.Repeat("POST /big: 202\n", n), "\n") {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestPipelining(t *testing.T) {
	const n = 50
	events, err := visit(t, Config{Rules: noTunnels}, serve1, new(sync.Map), func(plain net.Conn) {
		c := tls.Client(plain, &tls.Config{InsecureSkipVerify: true})
		var all strings.Builder
		for i := range n {
			fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a.example\r\nContent-Length: %d\r\n\r\n%s", i, i*10, strings.Repeat("x", i*10))
		}
		go func() { _, _ = io.WriteString(c, all.String()) }()
		r := bufio.NewReader(c)
		for i := range n {
			answer, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			body, err := io.ReadAll(answer.Body)
			if want := fmt.Sprintf(`%d bytes, 0 in X, trailer ""`, i*10); err != nil || string(body) != want {
				t.Errorf("%s, %v, want %s", body, err, want)
			}
		}
	})
	if got := answered(events); err != nil || strings.Count(got, ": 200") != n {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestWebSocket(t *testing.T) {
	rules, err := httprule.Compile([]httprule.Rule{{Name: "ws", Allow: true, Path: httprule.Path{Exact: "/ws"}, Upgrades: []string{"websocket"}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	const line = "\x81\x00GET / HTTP/0.9\n"
	events, err := visit(t, Config{Rules: rules}, serve1, new(sync.Map), func(c net.Conn) {
		answer, err := transport(c, "http/1.1").RoundTrip(ask("GET", "/ws", nil, "Connection", "Upgrade", "Upgrade", "websocket"))
		if err != nil {
			t.Error(err)
			return
		}
		tunnel, ok := answer.Body.(io.ReadWriteCloser)
		if !ok {
			t.Errorf("%T", answer.Body)
			return
		}
		defer tunnel.Close()
		echo := make([]byte, len(line))
		_, err = io.WriteString(tunnel, line)
		if _, e := io.ReadFull(tunnel, echo); err != nil || e != nil || string(echo) != line {
			t.Errorf("%q, %v, %v", echo, err, e)
		}
	})
	if got := answered(events); err != nil || got != "GET /ws: 101 opaque upgrade: websocket" {
		t.Errorf("%v\n%s", err, got)
	}
}
