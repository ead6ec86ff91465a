// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
	"sidegate/policy/httprule"
)

// tap notes what passes one of the relay's streams. It hides ReadFrom and WriteTo.
type tap struct {
	Stream
	mu      sync.Mutex
	in, out bytes.Buffer // in: what the relay has read
	reset   bool
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Stream.Read(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in.Write(b[:n])
	return n, err
}

func (t *tap) Write(b []byte) (int, error) {
	n, err := t.Stream.Write(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out.Write(b[:n])
	return n, err
}

func (t *tap) SetLinger(n int) error {
	t.mu.Lock()
	t.reset = true
	t.mu.Unlock()
	if l, ok := t.Stream.(*net.TCPConn); ok {
		return l.SetLinger(n)
	}
	return nil
}

func (t *tap) read() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.in.Bytes())
}

func (t *tap) written() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.out.Bytes())
}

func (t *tap) wasReset() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reset
}

// records cuts what is whole.
func records(b []byte) (list []record.Record) {
	r := record.NewReader(bytes.NewReader(b))
	for {
		next, err := r.Next()
		if err != nil {
			return list
		}
		list = append(list, bytes.Clone(next))
	}
}

// hello returns the last hello in the clear of that type.
func hello(b []byte, want record.MessageType) (body []byte) {
	var m record.Messages
	for _, r := range records(b) {
		if r.Type() != record.TypeHandshake {
			continue
		}
		messages, err := m.Add(r.Body())
		if err != nil {
			return body
		}
		for _, message := range messages {
			if message.Type == want {
				body = bytes.Clone(message.Body)
			}
		}
	}
	return body
}

// library stands for the app's TLS library: it hands over what the key log has, as soon as it is there.
type library struct {
	log         *tlstest.KeyLog
	app, server *tap

	never       [2]bool                                 // hands over none
	generations [2]int                                  // how many there will be; 0 is one
	alter       func(side Side, n int, b []byte) []byte // what is handed over instead as number n
	err         error

	mu    sync.Mutex
	given [2]int
	asked [2]int
	keys  []record.Keys // all that were given
}

func (l *library) Next(side Side) (record.Keys, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked[side]++
	n := l.given[side]
	if l.err != nil || l.never[side] || n >= max(1, l.generations[side]) {
		return record.Keys{}, false, l.err
	}
	b := l.info(side, n)
	if l.alter != nil {
		b = l.alter(side, n, b)
	}
	if b == nil {
		return record.Keys{}, false, nil
	}
	l.given[side]++
	k, err := record.ParseKeys(b)
	l.keys = append(l.keys, k)
	return k, err == nil, err
}

func (l *library) info(side Side, generation int) []byte {
	ch, sh := hello(l.app.read(), record.MessageClientHello), hello(l.server.read(), record.MessageServerHello)
	if len(ch) < 34 || len(sh) < 34 {
		return nil
	}
	h, err := record.ParseServerHello(sh)
	if err != nil || h.HelloRetryRequest {
		return nil
	}
	return l.log.Info(tlstest.Session{Version: h.Version, Suite: h.CipherSuite, ClientRandom: ch[2:34], ServerRandom: sh[2:34]}, side == Client, generation)
}

// rig is one relayed connection.
type rig struct {
	t        testing.TB
	raw      bool // what passed is no TLS
	deferred *Deferred
	same     bool // what is sent anew may be the same
	app      *net.TCPConn
	onApp    *tap
	onServer *tap
	library  *library
	log      *tlstest.KeyLog
	cancel   context.CancelFunc

	mu     sync.Mutex
	events []Event
	result chan error
	once   sync.Once
	err    error
}

// loopback returns both ends of a TCP connection.
func loopback(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// start relays to a server's address. setup may change all before it runs.
func start(t testing.TB, server string, p Policy, setup func(*rig)) *rig {
	t.Helper()
	c, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, c.(*net.TCPConn), p, setup)
}

func startOn(t testing.TB, server Stream, p Policy, setup func(*rig)) *rig {
	t.Helper()
	app, near := loopback(t)
	r := &rig{t: t, app: app, onApp: &tap{Stream: near}, onServer: &tap{Stream: server}, log: &tlstest.KeyLog{}, result: make(chan error, 1)}
	handled.Delete(server.LocalAddr().String()) // of an earlier connection by this port; the server has been sent nothing yet
	r.library = &library{log: r.log, app: r.onApp, server: r.onServer}
	if setup != nil {
		setup(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	c := &Conn{App: r.onApp, Server: r.onServer, Keys: r.library, Policy: p, Deferred: r.deferred, Events: r.event}
	go func() { r.result <- c.Run(ctx) }()
	t.Cleanup(func() {
		app.Close()
		_ = r.wait()
		cancel()
	})
	return r
}

func (r *rig) event(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// wait is for the end of the relay, and checks what has to hold whatever happened.
func (r *rig) wait() error {
	r.once.Do(func() {
		select {
		case r.err = <-r.result:
		case <-time.After(30 * time.Second):
			r.cancel()
			r.t.Errorf("the relay does not end; events: %+v", r.events)
			return
		}
		select {
		case <-served(r.onServer.LocalAddr().String()).done:
		case <-time.After(30 * time.Second):
			r.t.Error("the server does not end")
		}
		r.check()
	})
	return r.err
}

func (r *rig) check() {
	r.t.Helper()
	sent, got := r.onApp.read(), r.onServer.written()
	if r.deferred != nil {
		r.checkDeferred(sent, got)
	} else if !bytes.HasPrefix(sent, got) {
		r.t.Errorf("the server got %d bytes that are not what the app sent", len(got))
	}
	whole := 0
	for _, one := range records(got) {
		whole += len(one)
	}
	if !r.raw && whole != len(got) {
		r.t.Errorf("the server got %d bytes, of whole records are %d", len(got), whole)
	}
	for _, k := range r.library.keys {
		if _, err := record.NewDirection(k); err == nil {
			r.t.Error("keys were not wiped")
		}
	}
	if n := len(r.events); n == 0 || r.events[n-1].Kind != KindEnd {
		r.t.Errorf("the last event is not the end: %+v", r.events)
	}
}

// checkDeferred: of what the app encrypts after the handshake the server gets nothing, nor the app of the server's. Where
// nonces are record numbers, the same content under the same number is the same record: a close_notify may be, and in
// HTTP/2, whose heads need not move the body, much.
func (r *rig) checkDeferred(sent, got []byte) {
	r.t.Helper()
	e := r.find(KindTLS)
	sentNonces := e != nil && e.Version == "TLS 1.2" && !strings.Contains(e.Suite, "CHACHA20")
	if r.same && !sentNonces {
		return
	}
	const closeNotify = 24 // bytes
	for name, pair := range map[string][2][]byte{"the server": {sent, got}, "the app": {r.onServer.read(), r.onApp.written()}} {
		sealed := 0
		for _, one := range records(pair[0]) {
			if one.Type() != record.TypeApplicationData {
				continue
			}
			sealed++
			if inHandshake := e == nil || e.Version == "" || e.Version == "TLS 1.3" && (sealed == 1 || name == "the app"); inHandshake || !sentNonces && len(one) == closeNotify {
				continue
			}
			if bytes.Contains(pair[1], one) {
				r.t.Errorf("%s got record %d, of %d bytes", name, sealed, len(one))
			}
		}
	}
}

func (r *rig) find(kind Kind) *Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.events, func(e Event) bool { return e.Kind == kind })
	if i < 0 {
		return nil
	}
	e := r.events[i]
	return &e
}

// http are the judge's events of a kind.
func (r *rig) http(kind judge.Kind) (list []judge.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.HTTP != nil && e.HTTP.Kind == kind {
			list = append(list, *e.HTTP)
		}
	}
	return list
}

// config is of a client.
func (r *rig) config() *tls.Config {
	return &tls.Config{KeyLogWriter: r.log, InsecureSkipVerify: true, ServerName: tlstest.Name}
}

// client speaks TLS to the relay.
func (r *rig) client(change func(*tls.Config)) *tls.Conn {
	c := r.config()
	if change != nil {
		change(c)
	}
	return tls.Client(r.app, c)
}

// serve accepts connections until the test ends.
func serve(t testing.TB, handle func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			go func() {
				defer func() { served(c.RemoteAddr().String()).finish() }()
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// handled has what servers do with connections, by the address of the other end.
var handled sync.Map

// handling is of one connection.
type handling struct {
	done chan struct{}
	once sync.Once
}

func (h *handling) finish() { h.once.Do(func() { close(h.done) }) }

func served(address string) *handling {
	h, _ := handled.LoadOrStore(address, &handling{done: make(chan struct{})})
	return h.(*handling)
}

// tlsServer serves one connection after its handshake.
func tlsServer(t testing.TB, config *tls.Config, handle func(*tls.Conn)) (address string) {
	t.Helper()
	if config == nil {
		config = &tls.Config{}
	}
	config.Certificates = tlstest.Certificates()
	return serve(t, func(c net.Conn) {
		s := tls.Server(c, config)
		if s.Handshake() != nil {
			return
		}
		handle(s)
		_ = s.Close()
	})
}

// rules allows paths below /allowed, and denies what else there is.
func rules(t testing.TB) httprule.Rules {
	t.Helper()
	set, err := httprule.Compile([]httprule.Rule{{Name: "allowed", Allow: true, Path: httprule.Path{Prefix: "/allowed"}}}, false)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func strict(t testing.TB) Policy {
	return Policy{RequireKeys: true, Judge: judge.Config{Rules: rules(t)}}
}

const (
	allowed   = "GET /allowed HTTP/1.1\r\nHost: " + tlstest.Name + "\r\n\r\n"
	forbidden = "GET /forbidden HTTP/1.1\r\nHost: " + tlstest.Name + "\r\n\r\n"
	fine      = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
)

// answering reads what is sent and answers every request by fine. It keeps what it got.
type answering struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (a *answering) handle(c *tls.Conn) {
	b := make([]byte, 64<<10)
	answered := 0
	for {
		n, err := c.Read(b)
		a.mu.Lock()
		a.got.Write(b[:n])
		heads := bytes.Count(a.got.Bytes(), []byte("\r\n\r\n"))
		a.mu.Unlock()
		for ; answered < heads; answered++ {
			if _, err := io.WriteString(c, fine); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (a *answering) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got.String()
}

func readFine(t testing.TB, c io.Reader) {
	t.Helper()
	b := make([]byte, len(fine))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != fine {
		t.Fatalf("read %q, %v", b, err)
	}
}

// ended fails unless the connection ended by itself. An app that closes with answers under way resets it.
func (r *rig) ended() {
	r.t.Helper()
	if err := r.wait(); err != nil && !errors.Is(err, errReset) {
		r.t.Error(err)
	}
}

// refusedBy fails unless the relay has ended for that reason.
func (r *rig) refusedBy(reason string) {
	r.t.Helper()
	err := r.wait()
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte(reason)) {
		r.t.Errorf("the relay ended with %v, want %q", err, reason)
	}
}

// alerted reads to the end, and wants an alert.
func alerted(t testing.TB, c io.Reader, want string) {
	t.Helper()
	b, err := io.ReadAll(c)
	if want == "" {
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || len(b) > 0 {
			t.Errorf("read %q, %v; want a close", b, err)
		}
		return
	}
	if err == nil || err.Error() != "remote error: tls: "+want {
		t.Errorf("read %q, %v; want alert %q", b, err, want)
	}
}
