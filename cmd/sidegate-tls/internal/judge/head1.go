// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bufio"
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"sidegate/policy/httprule"
)

// lines collects lines up to an empty one. They end in CR LF, and have no other control character than HTAB.
type lines struct {
	buf   []byte
	most  int
	empty bool // the first line may be the empty one: these are trailers
	start int  // of the current line in buf
}

// add takes what it needs of p. Where it returns a problem, it is about the byte p[n].
func (l *lines) add(p []byte) (n int, done bool, problem string) {
	for i, c := range p {
		cr := len(l.buf) > 0 && l.buf[len(l.buf)-1] == '\r'
		switch {
		case cr && c != '\n':
			return i, false, "a line has a CR that no LF follows"
		case !cr && c == '\n':
			return i, false, "a line ends in LF without CR"
		case c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f:
			return i, false, fmt.Sprintf("a line has the control character 0x%02x", c)
		case len(l.buf) == l.most:
			return i, false, fmt.Sprintf("it has more than %d bytes before the empty line", l.most)
		}
		l.buf = append(l.buf, c)
		if c != '\n' {
			continue
		}
		if len(l.buf)-l.start == len("\r\n") {
			if l.start == 0 && !l.empty {
				return i, false, "there is an empty line before the request"
			}
			return i + 1, true, ""
		}
		l.start = len(l.buf)
	}
	return len(p), false, ""
}

// take returns the lines without their ends, and forgets them.
func (l *lines) take() []string {
	text := strings.TrimSuffix(string(l.buf), "\r\n")
	l.buf, l.start = nil, 0
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\r\n"), "\r\n")
}

// parseField reads a line of a head.
func parseField(line string) (f field, problem string) {
	i := strings.IndexByte(line, ':')
	switch {
	case line[0] == ' ' || line[0] == '\t':
		return f, "a header line begins with whitespace: it continues the line before to some"
	case i < 0:
		return f, "a header line has no colon"
	case i == 0:
		return f, "a header has no name"
	case line[i-1] == ' ' || line[i-1] == '\t':
		return f, "there is whitespace before the colon of the header " + httprule.Quote(strings.TrimRight(line[:i], " \t"))
	case !httprule.Token(line[:i]):
		return f, "the name of a header is no token: " + httprule.Quote(line[:i])
	}
	f = field{name: httprule.Lower(line[:i]), raw: line[i+1:]}
	f.value = strings.Trim(f.raw, " \t")
	return f, lookAlike(f.name)
}

// lookAlike returns what is wrong with the name of a header that CGI and its heirs take for another one.
func lookAlike(name string) (problem string) {
	if plain := strings.ReplaceAll(name, "_", "-"); plain != name && framing(plain) {
		return "the header " + httprule.Quote(name) + " is " + plain + " to some servers"
	}
	return ""
}

// framing tells whether a header says where a request ends, where it goes, or what a proxy does with the others. None is
// a trailer (RFC 9110, 6.5.1).
func framing(name string) bool {
	switch name {
	case "connection", "content-length", "expect", "host", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer",
		"transfer-encoding", "upgrade":
		return true
	}
	return false
}

// trailerProblem returns why a header may not come after the body. What says who asks, or what the body is, was judged
// without it.
func trailerProblem(name string) string {
	switch {
	case framing(name), httprule.Secret(name), name == "content-encoding", name == "content-type", name == "content-range":
		return "the header " + httprule.Quote(name) + " is a trailer"
	}
	return ""
}

// head1 is a request of HTTP/1.
type head1 struct {
	request httprule.Request
	paths   []string
	fields  []field
	length  int64 // of the body
	chunked bool
	last    bool // the client wants to send no other one
}

// parseHead1 reads a request's head, up to and including the empty line, and lets net/http read it too.
func parseHead1(raw []byte, lines []string, bodies bool) (h *head1, problem string) {
	method, rest, _ := strings.Cut(lines[0], " ")
	uri, version, ok := strings.Cut(rest, " ")
	switch {
	case !ok:
		return nil, "the request line has no version: HTTP/0.9 is not spoken here"
	case strings.ContainsAny(version, " \t") || uri == "" || version == "":
		return nil, "the request line has more than three parts, or other whitespace between them than one space"
	case version != "HTTP/1.1" && version != "HTTP/1.0":
		return nil, "the version is neither HTTP/1.1 nor HTTP/1.0: " + httprule.Quote(version)
	}
	if problem := httprule.MethodProblem(method); problem != "" {
		return nil, problem
	}
	h = &head1{request: httprule.Request{Method: method, Scheme: "https"}, length: -1}
	for _, line := range lines[1:] {
		f, problem := parseField(line)
		if problem != "" {
			return nil, problem
		}
		h.fields = append(h.fields, f)
	}
	for _, read := range []func() string{
		func() string { return h.readFraming(version == "HTTP/1.0", bodies) },
		func() string { return h.readTarget(uri) },
		func() string { return h.agrees(raw) },
	} {
		if problem := read(); problem != "" {
			return nil, problem
		}
	}
	return h, ""
}

// one returns the header that may be there once, and has no whitespace that servers could take for a part of it.
func (h *head1) one(name string) (value string, has bool, problem string) {
	for _, f := range h.fields {
		switch {
		case f.name != name:
			continue
		case has:
			return "", true, "there are several headers " + httprule.Quote(name)
		case strings.TrimPrefix(f.raw, " ") != f.value:
			return "", true, "the header " + httprule.Quote(name) + " has whitespace around its value"
		}
		value, has = f.value, true
	}
	return value, has, ""
}

// readFraming finds where the request ends, and what may follow it.
func (h *head1) readFraming(old, bodies bool) string {
	values := make(map[string]string)
	for _, name := range []string{"content-length", "transfer-encoding", "expect", "upgrade"} {
		value, has, problem := h.one(name)
		if problem != "" {
			return problem
		}
		if has {
			values[name] = value
		}
	}
	length, sized := values["content-length"]
	coding, coded := values["transfer-encoding"]
	expect, expects := values["expect"]
	upgrade, upgrades := values["upgrade"]
	h.length = 0
	if sized {
		var problem string
		if h.length, problem = parseLength(length); problem != "" {
			return problem
		}
	}
	h.chunked = coded
	body := coded || h.length > 0
	h.request.Upgrade = httprule.Lower(upgrade)
	options, problem := h.connection()
	if problem != "" {
		return problem
	}
	h.last = old || options["close"]
	switch method := h.request.Method; {
	case coded && sized:
		return "there are both Content-Length and Transfer-Encoding"
	case coded && old:
		return "there is Transfer-Encoding in HTTP/1.0"
	case coded && coding != "chunked":
		return "Transfer-Encoding is not chunked: " + httprule.Quote(coding)
	case expects && (expect != "100-continue" || !body || old):
		return "Expect is not 100-continue, before a body, in HTTP/1.1"
	case old && options["keep-alive"]:
		return "HTTP/1.0 and keep-alive: servers do not agree on whether a request may follow"
	case options["close"] && options["keep-alive"]:
		return "Connection is both close and keep-alive"
	case upgrades != options["upgrade"]:
		return "there is Upgrade without Connection: upgrade, or the other way round"
	case upgrades && (old || h.last || body || method == "CONNECT"):
		return "there is Upgrade in HTTP/1.0, with a body, with CONNECT or with Connection: close"
	case upgrades:
		return httprule.UpgradeProblem(h.request.Upgrade)
	case method == "CONNECT" && (coded || sized || old):
		return "CONNECT has a body, or is HTTP/1.0"
	case method == "TRACE" && body:
		return "TRACE has a body"
	case (method == "GET" || method == "HEAD") && body && !bodies:
		return method + " has a body, which some servers take for the next request"
	}
	return ""
}

// parseLength reads the number of bytes of a body.
func parseLength(s string) (n int64, problem string) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return 0, "Content-Length is no decimal number: " + httprule.Quote(s)
	}
	return n, ""
}

// connection reads Connection and Trailer, in which other headers are named: a proxy may drop what Connection names, such
// as one that a rule wants.
func (h *head1) connection() (options map[string]bool, problem string) {
	options = make(map[string]bool)
	for _, f := range h.fields {
		switch f.name {
		case "http2-settings":
			return nil, "there is HTTP2-Settings, which is for cleartext only"
		case "trailer":
			for name := range strings.SplitSeq(f.value, ",") {
				if problem := trailerProblem(httprule.Lower(strings.Trim(name, " \t"))); problem != "" {
					return nil, problem
				}
			}
		case "connection":
			for option := range strings.SplitSeq(f.value, ",") {
				option = httprule.Lower(strings.Trim(option, " \t"))
				switch option {
				case "close", "keep-alive", "upgrade", "te", "trailer":
					options[option] = true
				default:
					return nil, "Connection names a header, which a proxy would drop: " + httprule.Quote(option)
				}
			}
		}
	}
	return options, ""
}

// readTarget finds where the request goes.
func (h *head1) readTarget(uri string) string {
	r := &h.request
	value, has, problem := h.one("host")
	switch {
	case problem != "":
		return problem
	case !has:
		return "there is no header Host"
	}
	host, port, problem := authority(value)
	if problem != "" {
		return problem
	}
	r.Host, r.Port = host, port
	scheme, rest, absolute := strings.Cut(uri, "://")
	switch {
	case r.Method == "CONNECT":
		r.Scheme, h.paths = "", []string{""}
		if i := strings.LastIndexByte(uri, ':'); i < 0 || strings.HasSuffix(uri, "]") {
			return "the target of CONNECT has no port"
		}
		return h.sameHost(uri)
	case uri == "*" && r.Method == "OPTIONS":
		h.paths = []string{"*"}
		return ""
	case !strings.HasPrefix(uri, "/") && absolute:
		if scheme != "https" {
			return "the target is a URL that does not begin with https://"
		}
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			i = len(rest)
		}
		if problem := h.sameHost(rest[:i]); problem != "" {
			return problem
		}
		if uri = rest[i:]; !strings.HasPrefix(uri, "/") {
			uri = "/" + uri
		}
	}
	h.paths, r.RawQuery, problem = target(uri)
	return problem
}

// sameHost wants the target's host to be that of Host.
func (h *head1) sameHost(target string) string {
	host, port, problem := authority(target)
	switch {
	case problem != "":
		return problem
	case host != h.request.Host || port != h.request.Port:
		return "the target's host is " + httprule.Quote(target) + ", and Host is another one"
	}
	return ""
}

// readers are for heads, and not for the bodies that net/http would read by them.
var readers = sync.Pool{New: func() any { return bufio.NewReader(nil) }}

// agrees lets net/http read the head. What it says is not shown: it may quote what is secret.
func (h *head1) agrees(raw []byte) string {
	in := readers.Get().(*bufio.Reader)
	defer readers.Put(in)
	in.Reset(bytes.NewReader(raw))
	r, err := http.ReadRequest(in)
	if err != nil {
		return "net/http does not read it"
	}
	length := h.length
	if h.chunked {
		length = -1
	}
	host, _, _ := authority(r.Host)
	path := r.URL.Path
	if path == "" && r.Method != "CONNECT" {
		path = "/"
	}
	if r.Method != h.request.Method || host != h.request.Host || path != h.paths[0] || r.URL.RawQuery != h.request.RawQuery ||
		r.ContentLength != length || r.Close != h.last {
		return "net/http reads it in another way"
	}
	return ""
}
