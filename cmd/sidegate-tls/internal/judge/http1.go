// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bufio"
	"bytes"
	"net/http"
	"time"

	"sidegate/policy/httprule"
)

// state1 is what comes next from one side of HTTP/1.
type state1 uint8

const (
	headState1 state1 = iota
	sizedBody1        // a body whose length is known
	chunkedBody1
	waiting1  // the client: for the answer to an upgrade
	last1     // the client: it said that nothing comes any more
	toTheEnd1 // the server: a body up to the connection's end
	opaque1
)

// http1Conn is a connection that speaks HTTP/1.1.
type http1Conn struct {
	j *Judge

	state  state1
	head   lines
	left   int64 // of a sized body
	chunks *chunks
	last   bool   // no request may follow this one
	tunnel string // what the connection becomes after this request, if the server agrees
	number uint32 // of the request
	held   []byte // while waiting

	pending []pending1 // requests that have no answer yet

	serverState  state1
	serverHead   lines
	serverLeft   int64
	serverChunks *chunks
}

// pending1 is a request that was let through.
type pending1 struct {
	number  uint32
	method  string
	upgrade bool
	tunnel  bool
	at      time.Time
}

func newHTTP1(j *Judge) *http1Conn {
	return &http1Conn{j: j, head: lines{most: MaxHead}, serverHead: lines{most: maxAnswerHead}}
}

func (h *http1Conn) malformed(format string, args ...any) error {
	return h.j.malformed(h.number, format, args...)
}

func (h *http1Conn) client(p []byte) error {
	for len(p) > 0 {
		var n int
		var err error
		switch h.state {
		case headState1:
			n, err = h.clientHead(p)
		case sizedBody1:
			n = int(min(h.left, int64(len(p))))
			h.j.release(n)
			if h.left -= int64(n); h.left == 0 {
				h.next()
			}
		case chunkedBody1:
			n, err = h.clientChunks(p)
		case waiting1:
			if len(h.held)+len(p) > maxHeld {
				return h.malformed("more than %d bytes follow an upgrade before its answer", maxHeld)
			}
			h.held = append(h.held, p...)
			return nil
		case last1:
			h.number++
			return h.malformed("bytes follow a request that said it was the last one")
		case opaque1:
			n = len(p)
			h.j.release(n)
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// next is after a request.
func (h *http1Conn) next() {
	switch {
	case h.tunnel != "" && h.j.Answers:
		h.state = waiting1
	case h.tunnel != "":
		h.open()
	case h.last:
		h.state = last1
	default:
		h.state = headState1
	}
}

func (h *http1Conn) idle() bool {
	asks := h.state != headState1 && h.state != last1 || len(h.head.buf) > 0
	return !asks && len(h.pending) == 0 && h.serverState == headState1 && len(h.serverHead.buf) == 0
}

// open lets everything through from now on.
func (h *http1Conn) open() {
	h.state, h.serverState = opaque1, opaque1
	h.j.emit(Event{Kind: KindOpaque, Stream: h.number, Reason: h.tunnel})
	h.j.release(len(h.held))
	h.held = nil
}

func (h *http1Conn) clientChunks(p []byte) (int, error) {
	n, ready, done, problem := h.chunks.add(p)
	h.j.release(ready)
	if problem != "" {
		return n, h.malformed("%s", problem)
	}
	if done {
		h.next()
	}
	return n, nil
}

func (h *http1Conn) clientHead(p []byte) (int, error) {
	if len(h.head.buf) == 0 {
		h.number++
	}
	n, done, problem := h.head.add(p)
	if problem != "" {
		return n, h.malformed("%s", problem)
	}
	if !done {
		return n, nil
	}
	raw := h.head.buf
	r, problem := parseHead1(raw, h.head.take(), h.j.GetBodies)
	if problem != "" {
		return n, h.malformed("%s", problem)
	}
	r.request.Stream = h.number
	if err := h.j.decide(&r.request, r.paths, r.fields); err != nil {
		return n, err
	}
	if err := h.expect(&r.request); err != nil {
		return n, err
	}
	h.j.release(len(raw))
	h.last = r.last
	h.tunnel = ""
	switch {
	case r.request.Upgrade != "":
		h.tunnel = "upgrade: " + r.request.Upgrade
	case r.request.Method == "CONNECT":
		h.tunnel = "CONNECT"
	}
	switch {
	case r.chunked:
		h.state, h.chunks = chunkedBody1, newChunks()
	case r.length > 0:
		h.state, h.left = sizedBody1, r.length
	default:
		h.next()
	}
	return n, nil
}

// expect notes a request that gets an answer.
func (h *http1Conn) expect(r *httprule.Request) error {
	switch {
	case !h.j.Answers || h.j.blind && !r.Tunnel():
		return nil
	case h.j.blind:
		return h.malformed("the answer to an upgrade cannot be read")
	case len(h.pending) == maxPipelined:
		return h.malformed("%d requests have no answer yet", maxPipelined)
	}
	h.pending = append(h.pending, pending1{number: h.number, method: r.Method, upgrade: r.Upgrade != "", tunnel: r.Tunnel(), at: time.Now()})
	return nil
}

func (h *http1Conn) server(p []byte) (problem string) {
	for len(p) > 0 && problem == "" {
		var n int
		switch h.serverState {
		case headState1:
			n, problem = h.serverHeadBytes(p)
		case sizedBody1:
			n = int(min(h.serverLeft, int64(len(p))))
			if h.serverLeft -= int64(n); h.serverLeft == 0 {
				h.serverState = headState1
			}
		case chunkedBody1:
			var done bool
			if n, _, done, problem = h.serverChunks.add(p); done {
				h.serverState = headState1
			}
		default:
			return ""
		}
		p = p[n:]
	}
	return problem
}

func (h *http1Conn) serverHeadBytes(p []byte) (n int, problem string) {
	if len(h.pending) == 0 {
		return 0, "an answer has no request"
	}
	n, done, problem := h.serverHead.add(p)
	if problem != "" || !done {
		return n, problem
	}
	raw := h.serverHead.buf
	h.serverHead.take()
	asked := h.pending[0]
	in := readers.Get().(*bufio.Reader)
	defer readers.Put(in)
	in.Reset(bytes.NewReader(raw))
	r, err := http.ReadResponse(in, &http.Request{Method: asked.method})
	if err != nil {
		return n, "net/http does not read the head of an answer"
	}
	switch {
	case r.StatusCode == http.StatusSwitchingProtocols && !asked.upgrade:
		return n, "an answer switches protocols, and nothing asked for it"
	case r.StatusCode < 200 && r.StatusCode != http.StatusSwitchingProtocols:
		return n, "" // interim
	}
	h.pending = h.pending[1:]
	h.j.emit(Event{Kind: KindResponse, Stream: asked.number, Status: r.StatusCode, Duration: time.Since(asked.at)})
	agreed := r.StatusCode == http.StatusSwitchingProtocols || asked.method == "CONNECT" && r.StatusCode/100 == 2
	switch {
	case agreed:
		h.open()
		return n, ""
	case asked.tunnel:
		h.refused()
	}
	h.serverBody(r, asked.method)
	return n, ""
}

// serverBody finds where an answer ends.
func (h *http1Conn) serverBody(r *http.Response, method string) {
	switch {
	case method == "HEAD" || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified:
	case len(r.TransferEncoding) > 0:
		h.serverState, h.serverChunks = chunkedBody1, newChunks()
	case r.ContentLength > 0:
		h.serverState, h.serverLeft = sizedBody1, r.ContentLength
	case r.ContentLength < 0:
		h.serverState = toTheEnd1
	}
}

// refused is after an answer that does not switch: what was held are requests.
func (h *http1Conn) refused() {
	h.state, h.tunnel = headState1, ""
	held := h.held
	h.held = nil
	_, _ = h.j.settle(h.client(held))
}
