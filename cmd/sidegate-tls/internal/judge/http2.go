// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"sidegate/policy/httprule"
)

// http2Conn is a connection that speaks HTTP/2.
type http2Conn struct {
	j       *Judge
	preface int // bytes of it that were seen
	settled bool
	frames  *frames
	streams map[uint32]*stream
	newest  uint32   // stream of the client
	resets  []uint32 // the streams that the server has reset, oldest first

	answers *frames
	pending map[uint32]time.Time // when requests that have no answer yet were let through
}

// stream is one that the client has not ended.
type stream struct {
	left   int64 // of the body; -1 if Content-Length does not say
	tunnel bool
}

func newHTTP2(j *Judge) *http2Conn {
	h := &http2Conn{j: j, streams: make(map[uint32]*stream), pending: make(map[uint32]time.Time)}
	h.frames = newFrames(h, MaxHead, fieldProblem)
	h.answers = newFrames(answers2{h}, maxAnswerHead, nil)
	return h
}

func (h *http2Conn) client(p []byte) error {
	for len(p) > 0 && h.preface < len(preface) {
		if p[0] != preface[h.preface] {
			return h.j.malformed(0, "it does not begin with the preface of HTTP/2")
		}
		p = p[1:]
		if h.preface++; h.preface == len(preface) {
			h.pass(len(preface))
		}
	}
	err := h.frames.add(p)
	if _, ok := errors.AsType[*Denied](err); ok || err == nil {
		return err
	}
	return h.j.malformed(h.frames.at.StreamID, "%s", err)
}

func (h *http2Conn) pass(n int) { h.j.release(n) }

// sane is what holds for all frames.
func (h *http2Conn) sane(f http2.FrameHeader) error {
	if !h.settled && (f.Type != http2.FrameSettings || f.Flags.Has(http2.FlagSettingsAck)) {
		return errors.New("the first frame is not SETTINGS")
	}
	h.settled = true
	return nil
}

func (h *http2Conn) begin(f http2.FrameHeader, size int64) error {
	if err := h.sane(f); err != nil || f.Type != http2.FrameData {
		return err
	}
	s := h.streams[f.StreamID]
	switch {
	case s == nil:
		return fmt.Errorf("there is DATA for stream %d, which is not open", f.StreamID)
	case s.left >= 0 && size > s.left:
		return errors.New("the body is longer than Content-Length says")
	case s.left >= 0:
		s.left -= size
	}
	if f.Flags.Has(http2.FlagDataEndStream) {
		return h.end(f.StreamID)
	}
	return nil
}

// end is when the client has sent all of a request.
func (h *http2Conn) end(id uint32) error {
	s := h.streams[id]
	delete(h.streams, id)
	if s.left > 0 {
		return errors.New("the body is shorter than Content-Length says")
	}
	return nil
}

func (h *http2Conn) frame(f http2.Frame) error {
	if err := h.sane(f.Header()); err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.RSTStreamFrame:
		if f.StreamID > h.newest {
			return fmt.Errorf("there is RST_STREAM for stream %d, which is not open", f.StreamID)
		}
		delete(h.streams, f.StreamID)
		delete(h.pending, f.StreamID)
	case *http2.WindowUpdateFrame:
		if f.StreamID > h.newest {
			return fmt.Errorf("there is WINDOW_UPDATE for stream %d, which is not open", f.StreamID)
		}
	case *http2.SettingsFrame:
		return f.ForeachSetting(http2.Setting.Valid)
	}
	return nil
}

func (h *http2Conn) head(f *headers) error {
	if !h.settled {
		return errors.New("the first frame is not SETTINGS")
	}
	if s := h.streams[f.stream]; s != nil {
		return h.trailers(s, f)
	}
	switch {
	case f.stream%2 == 0:
		return errors.New("the client opens a stream with an even number")
	case f.stream <= h.newest:
		return fmt.Errorf("there is HEADERS for stream %d, which is ended", f.stream)
	case len(h.streams) >= maxStreams:
		return fmt.Errorf("there are %d streams that the client has not ended", len(h.streams))
	}
	h.newest = f.stream
	r, err := parseHead2(f)
	if err != nil {
		return err
	}
	r.request.Stream = f.stream
	if err := h.j.decide(&r.request, r.paths, r.fields); err != nil {
		return err
	}
	if h.j.Answers && !h.j.blind {
		if len(h.pending) >= maxStreams {
			return fmt.Errorf("%d requests have no answer yet", len(h.pending))
		}
		h.pending[f.stream] = time.Now()
	}
	h.streams[f.stream] = &stream{left: r.length, tunnel: r.request.Tunnel()}
	if f.end {
		return h.end(f.stream)
	}
	return nil
}

// trailers come after the body.
func (h *http2Conn) trailers(s *stream, f *headers) error {
	switch {
	case s.tunnel:
		return errors.New("there are trailers after CONNECT")
	case !f.end:
		return errors.New("there is a second HEADERS that does not end the stream")
	}
	for _, t := range f.fields {
		if strings.HasPrefix(t.name, ":") {
			return errors.New("trailers: there is the pseudo-header " + httprule.Quote(t.name))
		}
		if problem := trailerProblem(t.name); problem != "" {
			return errors.New("trailers: " + problem)
		}
	}
	return h.end(f.stream)
}

// reset forgets a stream that the server has reset, after a while: its frames may be under way.
func (h *http2Conn) reset(id uint32) {
	delete(h.pending, id)
	if h.streams[id] == nil {
		return
	}
	h.resets = append(h.resets, id)
	if len(h.resets) > maxReset {
		delete(h.streams, h.resets[0])
		h.resets = h.resets[1:]
	}
}

// head2 is a request of HTTP/2.
type head2 struct {
	request httprule.Request
	paths   []string
	fields  []field // without those that begin with a colon
	length  int64   // of the body; -1 if it is not said
}

// parseHead2 reads a request's fields (RFC 9113, 8.3.1).
func parseHead2(f *headers) (*head2, error) {
	h := &head2{length: -1}
	pseudo := make(map[string]string)
	host, hosts := "", 0
	for _, field := range f.fields {
		_, twice := pseudo[field.name]
		switch {
		case !strings.HasPrefix(field.name, ":"):
			h.fields = append(h.fields, field)
		case !slices.Contains([]string{":method", ":scheme", ":path", ":authority", ":protocol"}, field.name):
			return nil, errors.New("there is the pseudo-header " + httprule.Quote(field.name))
		case twice:
			return nil, errors.New("there are several " + field.name)
		case len(h.fields) > 0:
			return nil, errors.New("there is " + field.name + " after other headers")
		default:
			pseudo[field.name] = field.value
		}
	}
	for _, field := range h.fields {
		problem := ""
		switch field.name {
		case "host":
			hosts++
			host = field.value
		case "content-length":
			if h.length >= 0 {
				return nil, errors.New("there are several headers content-length")
			}
			h.length, problem = parseLength(field.value)
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade", "http2-settings":
			problem = "there is the header " + httprule.Quote(field.name) + ", which is of HTTP/1 only"
		case "te":
			if field.value != "trailers" {
				problem = "TE is not trailers: " + httprule.Quote(field.value)
			}
		case "expect":
			if field.value != "100-continue" || f.end {
				problem = "Expect is not 100-continue, before a body"
			}
		case "trailer":
			for name := range strings.SplitSeq(field.value, ",") {
				problem = trailerProblem(httprule.Lower(strings.Trim(name, " \t")))
				if problem != "" {
					break
				}
			}
		}
		if problem != "" {
			return nil, errors.New(problem)
		}
	}
	name, has := pseudo[":authority"]
	switch {
	case f.end && h.length > 0:
		return nil, errors.New("the body is shorter than Content-Length says")
	case hosts > 1:
		return nil, errors.New("there are several headers host")
	case has && hosts == 1 && name != host:
		return nil, errors.New(":authority and host are not the same")
	case !has && hosts == 0:
		return nil, errors.New("there is neither :authority nor host")
	case !has:
		name = host
	}
	problem := h.readTarget(pseudo, name)
	if problem != "" {
		return nil, errors.New(problem)
	}
	return h, nil
}

func (h *head2) readTarget(pseudo map[string]string, name string) (problem string) {
	r := &h.request
	method, path := pseudo[":method"], pseudo[":path"]
	_, hasScheme := pseudo[":scheme"]
	_, hasPath := pseudo[":path"]
	protocol, extended := pseudo[":protocol"]
	if problem := httprule.MethodProblem(method); problem != "" {
		return problem
	}
	if r.Host, r.Port, problem = authority(name); problem != "" {
		return problem
	}
	r.Method = method
	switch connect := method == "CONNECT"; {
	case extended && !connect:
		return "there is :protocol, and the method is not CONNECT"
	case connect && h.length >= 0:
		return "CONNECT has Content-Length"
	case connect && !extended && (hasScheme || hasPath):
		return "CONNECT has :scheme or :path"
	case connect && !extended:
		if _, ok := pseudo[":authority"]; !ok {
			return "CONNECT has no :authority"
		}
		if i := strings.LastIndexByte(name, ':'); i < 0 || strings.HasSuffix(name, "]") {
			return "the target of CONNECT has no port"
		}
		h.paths = []string{""}
		return ""
	case pseudo[":scheme"] != "https":
		return ":scheme is not https"
	case extended:
		r.Upgrade = httprule.Lower(protocol)
		if problem := httprule.UpgradeProblem(r.Upgrade); problem != "" {
			return problem
		}
	}
	r.Scheme = "https"
	if path == "*" && method == "OPTIONS" {
		h.paths = []string{"*"}
		return ""
	}
	h.paths, r.RawQuery, problem = target(path)
	return problem
}

// answers2 is the server's side.
type answers2 struct{ h *http2Conn }

func (h *http2Conn) server(p []byte) (problem string) {
	if err := h.answers.add(p); err != nil {
		return err.Error()
	}
	return ""
}

func (answers2) pass(int) {}

func (answers2) begin(http2.FrameHeader, int64) error { return nil }

func (a answers2) frame(f http2.Frame) error {
	if r, ok := f.(*http2.RSTStreamFrame); ok {
		a.h.reset(r.StreamID)
	}
	return nil
}

func (a answers2) head(f *headers) error {
	at, ok := a.h.pending[f.stream]
	if !ok {
		return nil // trailers, or of a request that the client gave up
	}
	if len(f.fields) == 0 || f.fields[0].name != ":status" {
		return errors.New("an answer does not begin with :status")
	}
	status, err := strconv.Atoi(f.fields[0].value)
	if err != nil || status < 100 || status > 999 {
		return errors.New("the :status of an answer is no number of three digits")
	}
	if status < http.StatusOK {
		return nil // interim
	}
	delete(a.h.pending, f.stream)
	a.h.j.emit(Event{Kind: KindResponse, Stream: f.stream, Status: status, Duration: time.Since(at)})
	return nil
}
