// SPDX-License-Identifier: Apache-2.0

// Command liar is an app whose TLS library hands over what it likes. It sends requests on one connection, and prints what
// came of each: a line of JSON.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
)

// The setsockopt of linux/tls.h.
const (
	solTLS = 282
	tlsTX  = 1
	tlsRX  = 2
)

// timeout is for all of it.
const timeout = 30 * time.Second

type options struct {
	addr, sni, ca, how, alpn, keyLog string
	is13, h2                         bool
	n                                int
	requests                         []string
}

type answer struct {
	Request string `json:"request,omitempty"`
	Status  int    `json:"status,omitempty"`
	Body    string `json:"body,omitempty"`
	Err     string `json:"err,omitempty"`
}

func main() {
	o := options{}
	flag.StringVar(&o.addr, "addr", "api.example:443", "where to")
	flag.StringVar(&o.sni, "sni", "api.example", "the server's name")
	flag.StringVar(&o.ca, "ca", "/site/ca.pem", "whom to trust")
	flag.StringVar(&o.how, "how", "honest", "what to hand over: honest, none, wrong, cipher, version, number, other, late, twice, wrongfirst, many, short")
	flag.StringVar(&o.alpn, "alpn", "", "protocols to offer")
	flag.StringVar(&o.keyLog, "derive", "", "derive what a library handed over from this key log and a server's `random`, suite and version in arguments, and print it")
	flag.BoolVar(&o.is13, "13", false, "speak TLS 1.3, else 1.2")
	flag.BoolVar(&o.h2, "h2", false, "speak HTTP/2")
	flag.IntVar(&o.n, "n", 1000, "how many keys are many; -1: until the standard input ends")
	flag.Parse()
	o.requests = flag.Args()
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		os.Exit(1)
	}
}

func run(o *options) error {
	if o.keyLog != "" {
		return derive(o.keyLog, flag.Args())
	}
	c, err := dial(o)
	if err != nil {
		return report(answer{Err: err.Error()})
	}
	defer c.Close()
	if c.is13 && o.how != "late" {
		c.hand()
	}
	if o.h2 {
		return c.http2()
	}
	return c.http1()
}

func report(a answer) error {
	b, err := json.Marshal(a)
	if err == nil {
		_, err = fmt.Println(string(b))
	}
	return err
}

// client is a connection, with what it takes to know its keys.
type client struct {
	*tls.Conn
	*options
	raw    *tap
	log    *tlstest.KeyLog
	second *client // whose keys are handed over instead
}

func dial(o *options) (*client, error) {
	inner, err := net.DialTimeout("tcp", o.addr, timeout)
	if err != nil {
		return nil, err
	}
	if err := inner.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	version := uint16(tls.VersionTLS12)
	if o.is13 {
		version = tls.VersionTLS13
	}
	var second *client
	if o.how == "other" {
		if second, err = dial(&options{addr: o.addr, sni: o.sni, ca: o.ca, how: "honest", is13: o.is13}); err != nil {
			return nil, err
		}
		if o.is13 {
			second.hand()
		}
	}
	c := &client{options: o, second: second, raw: &tap{TCPConn: inner.(*net.TCPConn)}, log: &tlstest.KeyLog{}}
	config := &tls.Config{ServerName: o.sni, RootCAs: pool, MinVersion: version, MaxVersion: version, KeyLogWriter: c.log}
	if o.alpn != "" {
		config.NextProtos = strings.Split(o.alpn, ",")
	}
	if !o.is13 && o.how != "late" {
		c.raw.before = c.hand // keys are handed over before the Finished
	}
	c.Conn = tls.Client(c.raw, config)
	if err := c.Handshake(); err != nil {
		inner.Close()
		return nil, err
	}
	return c, nil
}

// hand hands over the keys once they are there, and says so.
func (c *client) hand() bool {
	tx, rx := c.info(true), c.info(false)
	if tx == nil || rx == nil {
		return false
	}
	if c.how != "none" {
		c.lie(tx, rx)
	}
	return true
}

// info is what an honest library hands over for a direction, nil before it could.
func (c *client) info(toServer bool) []byte {
	in, out := c.raw.seen()
	ch, sh := hello(out, record.MessageClientHello), hello(in, record.MessageServerHello)
	if ch == nil || sh == nil {
		return nil
	}
	h, err := record.ParseServerHello(sh)
	if err != nil || h.HelloRetryRequest {
		return nil
	}
	return c.log.Info(tlstest.Session{Version: h.Version, Suite: h.CipherSuite, ClientRandom: ch[2:34], ServerRandom: sh[2:34]}, toServer, 0)
}

func (c *client) lie(tx, rx []byte) {
	switch c.how {
	case "wrong":
		c.give(flip(tx), flip(rx))
	case "other":
		c.give(c.second.info(true), c.second.info(false))
	case "wrongfirst":
		c.give(flip(tx), flip(rx))
		c.give(tx, rx)
	case "cipher": // the other one whose keys are as long
		c.give(set16(tx, 2, map[uint16]uint16{
			tlstest.CipherGCM128: tlstest.CipherCCM128, tlstest.CipherCCM128: tlstest.CipherGCM128,
			tlstest.CipherGCM256: tlstest.CipherChaCha20, tlstest.CipherChaCha20: tlstest.CipherGCM256,
		}[binary.NativeEndian.Uint16(tx[2:])]), nil)
	case "version":
		other := uint16(tls.VersionTLS13)
		if c.is13 {
			other = tls.VersionTLS12
		}
		c.give(set16(tx, 0, other), nil)
	case "number":
		tx = bytes.Clone(tx)
		binary.BigEndian.PutUint64(tx[len(tx)-8:], 7)
		c.give(tx, rx)
	case "twice":
		c.give(tx, rx)
		c.give(tx, rx)
	case "many":
		var over atomic.Bool
		if c.n < 0 {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				over.Store(true)
			}()
		}
		for i := 0; i != c.n && !over.Load(); i++ {
			c.give(tx, nil)
		}
	case "short":
		c.give(tx[:len(tx)-1], rx)
	default:
		c.give(tx, rx)
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	for i := range b[4:] {
		b[4+i] ^= 0xff
	}
	copy(b[len(b)-8:], make([]byte, 8))
	return b
}

func set16(b []byte, at int, v uint16) []byte {
	b = bytes.Clone(b)
	binary.NativeEndian.PutUint16(b[at:], v)
	return b
}

// give hands over. The kernel's answer, that it has no TLS, is none to it.
func (c *client) give(tx, rx []byte) {
	raw, err := c.raw.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_ULP, "tls")
		if tx != nil {
			_ = unix.SetsockoptString(int(fd), solTLS, tlsTX, string(tx))
		}
		if rx != nil {
			_ = unix.SetsockoptString(int(fd), solTLS, tlsRX, string(rx))
		}
	})
}

// answered returns when something has come of what was sent: an answer, or the connection's end.
func (c *client) answered() error {
	raw, err := c.raw.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		var n int
		for perr = unix.EINTR; errors.Is(perr, unix.EINTR); {
			n, perr = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}, 0)
		}
		return n > 0 || perr != nil
	})
	return errors.Join(err, perr)
}

func (c *client) request(line string) (*http.Request, error) {
	method, path, _ := strings.Cut(line, " ")
	return http.NewRequest(method, "https://"+c.sni+path, nil)
}

func (c *client) http1() error {
	r := bufio.NewReader(c.Conn)
	for i, line := range c.requests {
		req, err := c.request(line)
		if err != nil {
			return err
		}
		a := answer{Request: line}
		err = req.Write(c.Conn)
		if i == 0 && c.how == "late" && err == nil {
			if err = c.answered(); err == nil {
				c.hand()
			}
		}
		var resp *http.Response
		if err == nil {
			resp, err = http.ReadResponse(r, req)
		}
		if err == nil {
			a.Status = resp.StatusCode
			var body []byte
			body, err = io.ReadAll(resp.Body)
			a.Body = string(body)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := report(a); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) http2() error {
	via := &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return c.Conn, nil },
		Protocols:      new(http.Protocols),
	}
	via.Protocols.SetHTTP2(true)
	for _, line := range c.requests {
		req, err := c.request(line)
		if err != nil {
			return err
		}
		a := answer{Request: line}
		resp, err := via.RoundTrip(req)
		if err == nil {
			a.Status = resp.StatusCode
			var body []byte
			body, err = io.ReadAll(resp.Body)
			a.Body = string(body)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := report(a); err != nil {
			return err
		}
	}
	return nil
}

// tap keeps the first bytes of both directions.
type tap struct {
	*net.TCPConn
	before func() bool // of each write, until it is true

	mu      sync.Mutex
	in, out bytes.Buffer
}

const kept = 64 << 10

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.TCPConn.Read(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in.Len() < kept {
		t.in.Write(b[:n])
	}
	return n, err
}

func (t *tap) Write(b []byte) (int, error) {
	if t.before != nil && t.before() {
		t.before = nil
	}
	t.mu.Lock()
	if t.out.Len() < kept {
		t.out.Write(b)
	}
	t.mu.Unlock()
	return t.TCPConn.Write(b)
}

func (t *tap) seen() (in, out []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.in.Bytes()), bytes.Clone(t.out.Bytes())
}

// hello returns the first hello of that type.
func hello(b []byte, want record.MessageType) []byte {
	var m record.Messages
	r := record.NewReader(bytes.NewReader(b))
	for {
		next, err := r.Next()
		if err != nil || next.Type() != record.TypeHandshake {
			return nil
		}
		messages, err := m.Add(next.Body())
		if err != nil {
			return nil
		}
		for _, message := range messages {
			if message.Type == want {
				return bytes.Clone(message.Body)
			}
		}
	}
}

// derive prints, in hex, the keys of each TLS 1.3 connection of a key log that has the suite of its first argument, and
// their IVs: of the client, and of the server.
func derive(path string, args []string) error {
	log, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return errors.New("one argument: the suite")
	}
	var suite uint16
	if _, err := fmt.Sscanf(args[0], "%x", &suite); err != nil {
		return err
	}
	l := &tlstest.KeyLog{Read: func() []byte { return log }}
	for line := range strings.Lines(string(log)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "CLIENT_TRAFFIC_SECRET_0" {
			continue
		}
		random, err := hex.DecodeString(f[1])
		if err != nil {
			return err
		}
		for _, toServer := range []bool{true, false} {
			info := l.Info(tlstest.Session{Version: tls.VersionTLS13, Suite: suite, ClientRandom: random}, toServer, 0)
			const head, iv = 4, 8
			cipher, _ := tlstest.CipherOf(suite)
			key := info[head+iv:][:tlstest.KeySize(cipher)]
			if _, err := fmt.Printf("%x %x\n", key, info[head:][:iv]); err != nil {
				return err
			}
		}
	}
	return nil
}
