// SPDX-License-Identifier: Apache-2.0

// Package judge reads what a client sends inside TLS, HTTP/1.1 (RFC 9112) or HTTP/2 (RFC 9113), and says up to which byte
// it may go on. It changes nothing and sends nothing: its caller has the bytes, and holds them until they are judged.
//
// # Who is not trusted
//
// The client. It may know this package, and send what two readers read in two ways, so that the server answers a request
// which was never judged. What readers are known to disagree about is refused, whatever the RFCs allow: each refusal is a
// case of TestRefused1 or TestRefused2. What is let through, net/http and x/net/http2 read as the same requests (the
// fuzz tests).
//
// The server is what the policy lets the client talk to. It is trusted to implement HTTP, and its answers can do no more
// than to make their own events wrong, or to end the connection.
//
// # What is refused, and what is denied
//
// A request that a rule is against is [Denied]; what cannot be read in one way only is [Malformed]. Both end the
// connection, in HTTP/2 too: the state of the header compression is shared by all its streams, and a frame cannot be taken
// out of what is sent.
//
// # Paths
//
// Rules see a path without its query, percent-decoded once. Refused are: an encoded slash or backslash, a backslash, an
// encoded control character, what is no UTF-8, a "%" that two hex digits do not follow, and "." and ".." as segments,
// encoded or not. "%252e" is the text "%2e", and not decoded again. Some servers merge slashes, and some drop what follows
// a ";" in a segment: where that makes a difference, each reading has to be allowed. Upper case, and what file systems
// make of names, is left to rules.
//
// # Tunnels
//
// CONNECT, "Upgrade:" and extended CONNECT (RFC 8441) are denied unless [httprule.Decision] says Tunnel. Where answers are
// seen, the bytes after such a request in HTTP/1.1 are held until the server has answered, and judged as requests if it did
// not switch. Where they are not, all that follows passes: the rule's author trusts that server to switch.
package judge

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"sidegate/policy/httprule"
)

// The limits, in bytes but for the last three.
const (
	MaxHead     = 64 << 10 // of a request: all lines of HTTP/1.1, and the fields of HTTP/2, packed and unpacked
	MaxTrailers = 4 << 10  // what net/http reads

	maxAnswerHead = 256 << 10 // beyond it, answers are bytes
	maxHeld       = 64 << 10  // sent after an upgrade, before its answer
	maxEarly      = 64 << 10  // sent by the server before it is clear what the client speaks
	maxSniff      = 8 << 10   // without a line's end, before it is clear whether it is HTTP

	maxPipelined = 1024    // requests of HTTP/1.1 that have no answer yet, where answers are seen
	maxStreams   = 1 << 14 // that the client has not ended
	maxReset     = 1024    // streams that the server has reset, whose frames may still come
)

// The protocols, as in ALPN but for the last one.
const (
	protoHTTP1 = "http/1.1"
	protoHTTP2 = "h2"
	protoOther = "other"
)

// Config is what a Judge needs to know of a connection.
type Config struct {
	Rules httprule.Rules // not nil
	ALPN  string         // what was negotiated or offered alone; if it is neither http/1.1 nor h2, the first bytes tell
	SNI   string         // empty if the client sent none

	// Answers says that Server gets all that the server sends, from the first byte, and before the client does. Without
	// it, Server counts bytes.
	Answers bool
	// AnyHost lets requests through whose host is not the SNI. Without it they are denied, and without an SNI all but
	// those to an IP address are.
	AnyHost bool
	// Other lets through what is not HTTP.
	Other bool
	// GetBodies lets GET and HEAD have a body in HTTP/1.1. Some servers take it for the next request.
	GetBodies bool

	// Show lists the request headers whose values are in events. Never shown are Authorization, Proxy-Authorization,
	// Cookie and Set-Cookie.
	Show []string
	// Events, if it is set, gets what happens, in order, while Client, Server or End runs. It must not call the Judge.
	Events func(Event)
}

// conn is one protocol. Errors of client are Denied or Malformed; what server returns is why the answers cannot be read.
// Neither keeps p.
type conn interface {
	client(p []byte) error
	server(p []byte) (problem string)
}

// Judge reads one connection. Its methods may be called at the same time.
type Judge struct {
	Config
	show map[string]bool // lower case

	mu     sync.Mutex
	began  time.Time
	proto  string
	conn   conn   // nil before proto is known
	first  []byte // of the client, before proto is known
	early  []byte // of the server, before proto is known
	given  int64  // the client's bytes
	ready  int64  // of them
	served int64  // the server's bytes
	err    error  // of the client's side, for ever
	blind  bool   // answers are bytes
	ended  bool
}

// New returns the Judge of a connection that has sent nothing yet.
func New(c Config) *Judge {
	j := &Judge{Config: c, began: time.Now(), show: make(map[string]bool)}
	j.SNI = httprule.Lower(c.SNI)
	for _, name := range c.Show {
		if name = httprule.Lower(name); !httprule.Secret(name) {
			j.show[name] = true
		}
	}
	switch c.ALPN {
	case protoHTTP2:
		j.speak(protoHTTP2)
	case protoHTTP1, "http/1.0":
		j.speak(protoHTTP1)
	}
	return j
}

func (j *Judge) speak(proto string) {
	j.proto = proto
	switch proto {
	case protoHTTP1:
		j.conn = newHTTP1(j)
	case protoHTTP2:
		j.conn = newHTTP2(j)
	case protoOther:
		j.conn = opaque{j}
	}
}

// Client takes the next bytes of the client, and returns how many of all that it was given may go on. The rest is held
// until a later call, or for ever: after an error, of type [*Denied] or [*Malformed], ready does not grow any more, and
// every call returns that error.
func (j *Judge) Client(p []byte) (ready int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil || j.ended {
		return j.ready, j.err
	}
	j.given += int64(len(p))
	if j.conn != nil {
		return j.settle(j.conn.client(p))
	}
	j.first = append(j.first, p...)
	proto, problem := sniff(j.first)
	switch {
	case problem != "":
		return j.settle(j.malformed(0, "%s", problem))
	case proto == "":
		return j.ready, nil
	case proto == protoOther && !j.Other:
		j.proto = protoOther
		const reason = "it is not HTTP, and nothing else is allowed"
		j.emit(Event{Kind: KindRefused, Reason: reason})
		return j.settle(&Denied{Reason: reason})
	}
	j.speak(proto)
	if proto == protoOther {
		j.emit(Event{Kind: KindOpaque, Reason: "it is not HTTP"})
	}
	first, early := j.first, j.early
	j.first, j.early = nil, nil
	ready, err = j.settle(j.conn.client(first))
	if len(early) > 0 && err == nil {
		return j.answer(early)
	}
	return ready, err
}

// Server takes the next bytes of the server. It returns what Client would: bytes that were held for an answer may be ready
// now, or refused.
func (j *Judge) Server(p []byte) (ready int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return j.ready, j.err
	}
	j.served += int64(len(p))
	switch {
	case !j.Answers || j.blind || j.err != nil:
		return j.ready, j.err
	case j.conn != nil:
		return j.answer(p)
	case len(j.early)+len(p) > maxEarly:
		j.early = nil
		return j.lose("the server sends much before the client has said what it speaks")
	}
	j.early = append(j.early, p...)
	return j.ready, nil
}

// Blind says that Server does not get what the server sends from now on, and why. It returns what Server would.
func (j *Judge) Blind(reason string) (ready int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.Answers || j.blind || j.ended {
		return j.ready, j.err
	}
	return j.lose(reason)
}

func (j *Judge) answer(p []byte) (int64, error) {
	if problem := j.conn.server(p); problem != "" {
		return j.lose(problem)
	}
	return j.ready, j.err
}

// lose takes answers for bytes from now on.
func (j *Judge) lose(problem string) (int64, error) {
	j.blind = true
	j.emit(Event{Kind: KindBlind, Reason: problem})
	if h, ok := j.conn.(*http1Conn); ok && h.state == waiting1 {
		return j.settle(h.malformed("the answer to an upgrade cannot be read"))
	}
	return j.ready, j.err
}

// Idle tells whether nothing is under way: every request of HTTP/1.1 is whole, and has all of its answer. It is false where
// that is not seen, and in other protocols once they have begun.
func (j *Judge) Idle() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.given == 0 && j.served == 0 {
		return true
	}
	h, ok := j.conn.(*http1Conn)
	return ok && j.Answers && !j.blind && j.err == nil && h.idle()
}

// Waits tells whether bytes of the client are held until the server answers: what follows an upgrade of HTTP/1.1.
func (j *Judge) Waits() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	h, ok := j.conn.(*http1Conn)
	return ok && h.state == waiting1 && j.err == nil
}

// End says that nothing more comes, from either side. Calls after the first one do nothing.
func (j *Judge) End() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return
	}
	j.ended = true
	j.emit(Event{Kind: KindEnd, ClientBytes: j.ready, HeldBytes: j.given - j.ready, ServerBytes: j.served, Duration: time.Since(j.began)})
}

// settle keeps the first error.
func (j *Judge) settle(err error) (int64, error) {
	j.err = cmp.Or(j.err, err)
	return j.ready, j.err
}

func (j *Judge) release(n int) { j.ready += int64(n) }

func (j *Judge) emit(e Event) {
	e.Protocol = j.proto
	if j.Events != nil {
		j.Events(e)
	}
}

func (j *Judge) malformed(stream uint32, format string, args ...any) error {
	m := &Malformed{Protocol: j.proto, Stream: stream, Reason: fmt.Sprintf(format, args...)}
	j.emit(Event{Kind: KindRefused, Stream: stream, Reason: m.Reason})
	return m
}

// decide asks the rules about a request whose path has these readings, and returns [*Denied] or nothing.
func (j *Judge) decide(r *httprule.Request, paths []string, fields []field) error {
	r.SNI = j.SNI
	r.Names = make([]string, 0, len(fields))
	for _, f := range fields {
		r.Names = append(r.Names, f.name)
	}
	slices.Sort(r.Names)
	r.Names = slices.Compact(r.Names)

	d, reason := j.verdict(r, paths)
	e := Event{
		Kind: KindRequest, Stream: r.Stream, Method: r.Method, Host: r.Host, Port: r.Port, Path: paths[0],
		Query: r.RawQuery != "", Upgrade: r.Upgrade, Rule: d.Rule, Allowed: reason == "", Reason: reason,
	}
	for _, f := range fields {
		if j.show[f.name] {
			e.Headers = append(e.Headers, Header{f.name, f.value})
		}
	}
	e.bound()
	j.emit(e)
	if reason == "" {
		return nil
	}
	return &Denied{Request: r, Rule: d.Rule, Reason: reason}
}

// verdict leaves the path that it is about in r. The decision is that about the first reading, or the one that denies.
func (j *Judge) verdict(r *httprule.Request, paths []string) (d httprule.Decision, reason string) {
	r.Path = paths[0]
	if reason := j.fronting(r); reason != "" {
		return d, reason
	}
	for i, path := range paths {
		r.Path = path
		one := j.Rules.Decide(r)
		reading := ""
		if i > 0 {
			reading = ", where a server reads the path as " + httprule.Quote(path)
		}
		switch {
		case !one.Allow && one.Rule == "":
			return one, "no rule allows it" + reading
		case !one.Allow:
			return one, "rule " + httprule.Quote(one.Rule) + " denies it" + reading
		case r.Tunnel() && !one.Tunnel && r.Upgrade != "":
			return one, "no rule names the upgrade to " + httprule.Quote(r.Upgrade) + reading
		case r.Tunnel() && !one.Tunnel:
			return one, "no rule names the method CONNECT" + reading
		}
		if i == 0 {
			d = one
		}
	}
	return d, ""
}

// fronting says why the host is not the one that the connection is for. The target of CONNECT is another server.
func (j *Judge) fronting(r *httprule.Request) string {
	if j.AnyHost || r.Method == "CONNECT" && r.Upgrade == "" || r.Host == j.SNI {
		return ""
	}
	if j.SNI != "" {
		return "it is for " + httprule.Quote(r.Host) + ", and the connection for " + httprule.Quote(j.SNI) + " (SNI)"
	}
	if httprule.IsAddress(r.Host) {
		return ""
	}
	return "it is for " + httprule.Quote(r.Host) + ", and the connection does not say for whom (no SNI)"
}

// opaque lets everything pass.
type opaque struct{ j *Judge }

func (o opaque) client(p []byte) error {
	o.j.release(len(p))
	return nil
}

func (o opaque) server([]byte) string { return "" }
