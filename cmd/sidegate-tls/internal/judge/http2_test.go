// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidegate/policy/httprule"
)

// frame2 writes a frame.
func frame2(kind http2.FrameType, flags http2.Flags, stream uint32, payload string) string {
	var b bytes.Buffer
	if err := http2.NewFramer(&b, nil).WriteRawFrame(kind, flags, stream, []byte(payload)); err != nil {
		panic(err)
	}
	return b.String()
}

const (
	endStream  = http2.FlagHeadersEndStream
	endHeaders = http2.FlagHeadersEndHeaders
	padded     = http2.FlagHeadersPadded
	priority   = http2.FlagHeadersPriority
)

var settings2 = frame2(http2.FrameSettings, 0, 0, "")

// pack writes names and values, each as a literal.
func pack(fields ...string) string {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		if err := e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1], Sensitive: true}); err != nil {
			panic(err)
		}
	}
	return b.String()
}

// request2 is a request without a body.
func request2(stream uint32, method, host, path string, more ...string) string {
	return frame2(http2.FrameHeaders, endHeaders|endStream, stream, pack(append([]string{":method", method, ":scheme", "https", ":authority", host, ":path", path}, more...)...))
}

func get2(stream uint32, more ...string) string {
	return request2(stream, "GET", "a.example", "/", more...)
}

// post2 is a request whose body follows.
func post2(stream uint32, more ...string) string {
	return frame2(http2.FrameHeaders, endHeaders, stream, pack(append([]string{":method", "POST", ":scheme", "https", ":authority", "a.example", ":path", "/p"}, more...)...))
}

func data2(stream uint32, flags http2.Flags, data string) string {
	return frame2(http2.FrameData, flags, stream, data)
}

func status2(stream uint32, status string) string {
	return frame2(http2.FrameHeaders, endHeaders, stream, pack(":status", status))
}

func head2of(flags http2.Flags, fields ...string) string {
	return frame2(http2.FrameHeaders, flags, 1, pack(fields...))
}

const (
	m, s, a, p = ":method", ":scheme", ":authority", ":path"
	endAll     = endHeaders | endStream
)

// refused2 is what TestRefused2 wants to be refused after the preface and SETTINGS, and why.
var refused2 = []struct{ text, reason string }{
	// Frames.
	{"§" + frame2(http2.FramePushPromise, endHeaders, 1, "\x00\x00\x00\x02"), "there is a PUSH_PROMISE frame"},
	{"§" + frame2(http2.FrameContinuation, endHeaders, 1, ""), "unexpected CONTINUATION for stream 1"},
	{"§" + frame2(http2.FrameHeaders, 0, 1, "") + frame2(http2.FrameContinuation, endHeaders, 3, ""), "got CONTINUATION for stream 3; expected stream 1"},
	{"§" + frame2(http2.FrameHeaders, 0, 1, "") + get2(3), "got HEADERS for stream 3; expected CONTINUATION following HEADERS for stream 1"},
	{"§" + frame2(http2.FrameHeaders, 0, 1, "") + data2(1, 0, ""), "got DATA for stream 1; expected CONTINUATION following HEADERS for stream 1"},
	{"§" + frame2(http2.FrameHeaders, 0, 1, "") + frame2(0x77, 0, 1, ""), "got UNKNOWN_FRAME_TYPE_119 for stream 1; expected CONTINUATION following HEADERS for stream 1"},
	{"§" + frame2(http2.FrameHeaders, endAll, 0, ""), "HEADERS frame with stream ID 0"},
	{"§" + data2(0, 0, "x"), "there is DATA for stream 0, which is not open"},
	{"§" + frame2(http2.FramePing, 0, 0, "1234567"), "a PING frame is wrong: connection error: FRAME_SIZE_ERROR"},
	{"§" + frame2(http2.FrameSettings, 0, 1, ""), "a SETTINGS frame is wrong: connection error: PROTOCOL_ERROR"},
	{"§" + frame2(http2.FrameSettings, 0, 0, "12345"), "a SETTINGS frame is wrong: connection error: FRAME_SIZE_ERROR"},
	{"§" + frame2(http2.FrameSettings, 0, 0, "\x00\x02\x00\x00\x00\x02"), "connection error: PROTOCOL_ERROR"},
	{"§" + frame2(http2.FrameSettings, 0, 0, strings.Repeat("\xff\x00\x00\x00\x00\x00", 11000)), "a SETTINGS frame has more than 65536 bytes"},
	{"§" + frame2(http2.FrameGoAway, 0, 0, ""), "a GOAWAY frame is wrong: connection error: FRAME_SIZE_ERROR"},
	{"§" + frame2(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00"), "a WINDOW_UPDATE frame is wrong: connection error: PROTOCOL_ERROR"},
	{"§" + frame2(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01"), "there is WINDOW_UPDATE for stream 1, which is not open"},
	{"§" + frame2(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x01"), "there is RST_STREAM for stream 1, which is not open"},
	{"§" + frame2(http2.FramePriority, 0, 1, ""), "PRIORITY frame payload size was 0; want 5"},
	{"§\x00\x00\x00\x04\x01\x80\x00\x00\x00", "a frame has the reserved bit of its stream's number set"},
	{"§GET / HTTP/1.1\r\n", "a frame of type 0x20, which is not known, has more than 16384 bytes"},
	{"§" + frame2(0x77, 0, 0, strings.Repeat("x", 16385)), "a frame of type 0x77, which is not known, has more than 16384 bytes"},

	// Streams.
	{"§" + data2(1, 0, "x"), "there is DATA for stream 1, which is not open"},
	{get2(1) + "§" + data2(1, 0, "x"), "there is DATA for stream 1, which is not open"},
	{get2(3) + "§" + get2(1), "there is HEADERS for stream 1, which is ended"},
	{get2(1) + "§" + get2(1), "there is HEADERS for stream 1, which is ended"},
	{"§" + request2(2, "GET", "a.example", "/"), "the client opens a stream with an even number"},
	{post2(1) + frame2(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08") + "§" + data2(1, 0, ""), "there is DATA for stream 1, which is not open"},
	{post2(1) + frame2(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08") + "§" + get2(1), "there is HEADERS for stream 1, which is ended"},

	// Bodies.
	{post2(1, "content-length", "3") + "§" + data2(1, 0, "abcd"), "the body is longer than Content-Length says"},
	{post2(1, "content-length", "3") + data2(1, 0, "ab") + "§" + data2(1, 0, "cd"), "the body is longer than Content-Length says"},
	{post2(1, "content-length", "3") + data2(1, 0, "ab") + "§" + data2(1, endStream, ""), "the body is shorter than Content-Length says"},
	{post2(1, "content-length", "3") + data2(1, 0, "ab") + "§" + frame2(http2.FrameHeaders, endAll, 1, ""), "the body is shorter than Content-Length says"},
	{post2(1, "content-length", "3") + "§" + data2(1, endStream|padded, "\x02ab\x00\x00"), "the body is shorter than Content-Length says"},
	{"§" + get2(1, "content-length", "3"), "the body is shorter than Content-Length says"},
	{"§" + post2(1, "content-length", "3", "content-length", "3"), "there are several headers content-length"},
	{"§" + post2(1, "content-length", "+3"), `Content-Length is no decimal number: "+3"`},
	{"§" + post2(1, "content-length", ""), `Content-Length is no decimal number: ""`},
	{post2(1) + "§" + data2(1, padded, ""), "a DATA frame has no length of its padding"},
	{post2(1) + "§" + data2(1, padded, "\x02x"), "the padding of a DATA frame is longer than the frame"},

	// Heads.
	{"§" + frame2(http2.FrameHeaders, endAll|padded, 1, "\x02x"), "a HEADERS frame is wrong: stream error: stream ID 1; PROTOCOL_ERROR"},
	{"§" + frame2(http2.FrameHeaders, endAll|priority, 1, "\x00"), "a HEADERS frame is wrong: unexpected EOF"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\xbe"), "unpack the fields of a head: decoding error: invalid indexed representation index 62"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\x80"), "unpack the fields of a head: decoding error: invalid indexed representation index 0"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\x3f\xe2\xff\x03"), "unpack the fields of a head: decoding error: dynamic table size update too large"}, // to 65537
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\x10\x05ab"), "unpack the fields of a head: decoding error: truncated headers"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\x10\x01a\x81\x00"), "unpack the fields of a head: hpack: invalid Huffman-encoded data"},
	{"§" + head2of(0, m, "GET") + strings.Repeat(frame2(http2.FrameContinuation, 0, 1, ""), maxContinuations+1), "more than 64 frames continue a head"},
	{"§" + head2of(0, m, "GET") + frame2(http2.FrameContinuation, 0, 1, strings.Repeat("x", MaxHead)), "a head has more than 65536 bytes"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, strings.Repeat("x", MaxHead+1)), "a HEADERS frame has more than 65536 bytes"},
	{"§" + frame2(http2.FrameHeaders, endAll, 1, "\x40\x01a\x7f\xd1\x0e"+strings.Repeat("x", 2000)+strings.Repeat("\xbe", 1000)), "the fields of a head have more than 65536 bytes"},
	{"§" + get2(1, "a", strings.Repeat("\x00", MaxHead)), "a HEADERS frame has more than 65536 bytes"},

	// Fields.
	{"§" + get2(1, "A", "b"), `the name of a header has upper-case letters: "A"`},
	{"§" + get2(1, "", "b"), `the name of a header is no token: ""`},
	{"§" + get2(1, "a b", "c"), `the name of a header is no token: "a b"`},
	{"§" + get2(1, "a:", "c"), `the name of a header is no token: "a:"`},
	{"§" + get2(1, "a\r\nhost", "c"), `the name of a header is no token: "a\r\nhost"`},
	{"§" + get2(1, "a", "b\r\nhost: c"), `the value of the header "a" has a control character`},
	{"§" + get2(1, "a", "b\x00"), `the value of the header "a" has a control character`},
	{"§" + get2(1, "a", " b"), `the header "a" has whitespace around its value`},
	{"§" + get2(1, "a", "b\t"), `the header "a" has whitespace around its value`},
	{"§" + get2(1, "connection", "close"), `there is the header "connection", which is of HTTP/1 only`},
	{"§" + get2(1, "proxy-connection", "x"), `there is the header "proxy-connection", which is of HTTP/1 only`},
	{"§" + get2(1, "keep-alive", "x"), `there is the header "keep-alive", which is of HTTP/1 only`},
	{"§" + post2(1, "transfer-encoding", "chunked"), `there is the header "transfer-encoding", which is of HTTP/1 only`},
	{"§" + get2(1, "upgrade", "websocket"), `there is the header "upgrade", which is of HTTP/1 only`},
	{"§" + get2(1, "http2-settings", "x"), `there is the header "http2-settings", which is of HTTP/1 only`},
	{"§" + post2(1, "transfer_encoding", "chunked"), `the header "transfer_encoding" is transfer-encoding to some servers`},
	{"§" + get2(1, "te", "gzip"), `TE is not trailers: "gzip"`},
	{"§" + get2(1, "te", "trailers, gzip"), `TE is not trailers: "trailers, gzip"`},
	{"§" + get2(1, "expect", "100-continue"), "Expect is not 100-continue, before a body"},
	{"§" + post2(1, "expect", "x"), "Expect is not 100-continue, before a body"},
	{"§" + post2(1, "trailer", "x, Content-Length, y"), `the header "content-length" is a trailer`},

	// Pseudo-headers.
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "/", p, "/x"), "there are several :path"},
	{"§" + head2of(endAll, m, "GET", m, "GET", s, "https", a, "a.example", p, "/"), "there are several :method"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", "x", "y", p, "/"), "there is :path after other headers"},
	{"§" + get2(1, ":status", "200"), `there is the pseudo-header ":status"`},
	{"§" + get2(1, ":x", "y"), `there is the pseudo-header ":x"`},
	{"§" + get2(1, "x", "y", ":x", "y"), `there is the pseudo-header ":x"`},
	{"§" + get2(1, ":", "y"), `the name of a header is no token: ":"`},
	{"§" + get2(1, ":Path", "y"), `the name of a header has upper-case letters: ":Path"`},
	{"§" + head2of(endAll, s, "https", a, "a.example", p, "/"), `the method is no token: ""`},
	{"§" + head2of(endAll, m, "GET", a, "a.example", p, "/"), ":scheme is not https"},
	{"§" + head2of(endAll, m, "GET", s, "http", a, "a.example", p, "/"), ":scheme is not https"},
	{"§" + head2of(endAll, m, "GET", s, "https://x/?", a, "a.example", p, "/"), ":scheme is not https"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example"), "the path does not begin with a /"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, ""), "the path does not begin with a /"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "*"), "the path does not begin with a /"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "https://b.example/"), "the path does not begin with a /"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "/ HTTP/1.1"), `the target has a character that has to be encoded: " "`},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "/a/%2e%2e/b"), "the path has .. as a segment"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example", p, "/#"), "the target has a #"},
	{"§" + head2of(endAll, m, "GET /x HTTP/1.1", s, "https", a, "a.example", p, "/"), `the method is no token: "GET /x HTTP/1.1"`},
	{"§" + head2of(endAll, m, "get", s, "https", a, "a.example", p, "/"), `the method has lower-case letters: "get"`},
	{"§" + head2of(endAll, m, "GET", s, "https", p, "/"), "there is neither :authority nor host"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "", p, "/"), "the host is empty"},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "u@a.example", p, "/"), `the host is no name: "u@a.example"`},
	{"§" + head2of(endAll, m, "GET", s, "https", a, "a.example/x", p, "/"), `the host is no name: "a.example/x"`},
	{"§" + get2(1, "host", "b.example"), ":authority and host are not the same"},
	{"§" + get2(1, "host", "A.example"), ":authority and host are not the same"},
	{"§" + get2(1, "host", "a.example", "host", "a.example"), "there are several headers host"},
	{"§" + head2of(endAll, m, "GET", s, "https", p, "/", "host", "a.example", "host", "b.example"), "there are several headers host"},

	// Trailers.
	{post2(1) + "§" + frame2(http2.FrameHeaders, endHeaders, 1, ""), "there is a second HEADERS that does not end the stream"},
	{post2(1) + "§" + get2(1), `trailers: there is the pseudo-header ":method"`},
	{post2(1) + "§" + head2of(endAll, "content-length", "1"), `trailers: the header "content-length" is a trailer`},
	{post2(1) + "§" + head2of(endAll, "transfer-encoding", "chunked"), `trailers: the header "transfer-encoding" is a trailer`},
	{post2(1) + "§" + head2of(endAll, "host", "a.example"), `trailers: the header "host" is a trailer`},
	{post2(1) + "§" + head2of(endAll, "a", "\r"), `the value of the header "a" has a control character`},

	// Tunnels.
	{"§" + head2of(endHeaders, m, "CONNECT", a, "b.example:443"), "no rule names the method CONNECT"},
	{"§" + head2of(endHeaders, m, "CONNECT", a, "b.example"), "the target of CONNECT has no port"},
	{"§" + head2of(endHeaders, m, "CONNECT", "host", "b.example:443"), "CONNECT has no :authority"},
	{"§" + head2of(endHeaders, m, "CONNECT", s, "https", a, "b.example:443"), "CONNECT has :scheme or :path"},
	{"§" + head2of(endHeaders, m, "CONNECT", p, "/", a, "b.example:443"), "CONNECT has :scheme or :path"},
	{"§" + head2of(endHeaders, m, "CONNECT", a, "b.example:443", "content-length", "1"), "CONNECT has Content-Length"},
	{"§" + head2of(endHeaders, m, "CONNECT", ":protocol", "websocket", s, "https", a, "a.example", p, "/"), `no rule names the upgrade to "websocket"`},
	{"§" + head2of(endHeaders, m, "CONNECT", ":protocol", "h2c", s, "https", a, "a.example", p, "/"), "Upgrade: h2c is for cleartext only (RFC 9113, 3.1)"},
	{"§" + head2of(endHeaders, m, "CONNECT", ":protocol", "", s, "https", a, "a.example", p, "/"), `the upgrade is not one protocol: ""`},
	{"§" + head2of(endHeaders, m, "CONNECT", ":protocol", "websocket", a, "a.example", p, "/"), ":scheme is not https"},
	{"§" + head2of(endHeaders, m, "CONNECT", ":protocol", "websocket", a, "a.example", s, "https"), "the path does not begin with a /"},
	{"§" + head2of(endHeaders, m, "GET", ":protocol", "websocket", s, "https", a, "a.example", p, "/"), "there is :protocol, and the method is not CONNECT"},
}

func TestRefused2(t *testing.T) {
	c := Config{Rules: noTunnels, ALPN: "h2", AnyHost: true}
	for _, tt := range refused2 {
		wantRefused(t, c, preface+settings2+tt.text, tt.reason)
	}
	for _, tt := range []struct{ text, reason string }{
		{"§" + preface[:23] + "x", "it does not begin with the preface of HTTP/2"},
		{preface + "§" + get2(1), "the first frame is not SETTINGS"},
		{preface + "§" + frame2(http2.FrameSettings, http2.FlagSettingsAck, 0, ""), "the first frame is not SETTINGS"},
		{preface + "§" + frame2(http2.FramePing, 0, 0, "12345678"), "the first frame is not SETTINGS"},
		{preface + "§" + frame2(0x77, 0, 0, "12345678"), "the first frame is not SETTINGS"},
	} {
		wantRefused(t, c, tt.text, tt.reason)
	}
}

// accepted2 are requests after the preface and SETTINGS, with what is seen of them.
var accepted2 = []struct{ text, kinds string }{
	{get2(1), "1 GET a.example/"},
	{get2(1) + get2(3) + get2(99), "1 GET a.example/\n3 GET a.example/\n99 GET a.example/"},
	{request2(1, "OPTIONS", "a.example", "*"), "1 OPTIONS a.example*"},
	{request2(1, "GET", "A.example:8443", "/%61?x"), "1 GET a.example/a"},
	{head2of(endAll, m, "GET", s, "https", p, "/", "host", "a.example"), "1 GET a.example/"},
	{get2(1, "host", "a.example", "te", "trailers", "cookie", "a", "cookie", "b", "x", "\xff", "y", ""), "1 GET a.example/"},
	{get2(1, "content-length", "0"), "1 GET a.example/"},
	{frame2(http2.FrameHeaders, 0, 1, "") + frame2(http2.FrameContinuation, 0, 1, pack(m, "GET", s, "https")) + frame2(http2.FrameContinuation, endHeaders, 1, pack(a, "a.example", p, "/x")) + data2(1, 0, "x"), "1 GET a.example/x"},
	{frame2(http2.FrameHeaders, endAll|padded|priority, 1, "\x03\x80\x00\x00\x05\x10"+pack(m, "GET", s, "https", a, "a.example", p, "/")+"\x00\x00\x00"), "1 GET a.example/"},
	{post2(1) + data2(1, 0, "abc") + data2(1, padded, "\x00") + data2(1, padded, "\x02de\x00\x00") + data2(1, endStream, ""), "1 POST a.example/p"},
	{post2(1, "content-length", "5", "expect", "100-continue") + data2(1, 0, "abc") + data2(1, padded, "\x03d\x00\x00\x00") + data2(1, padded|endStream, "\x02e\x00\x00") + get2(3), "1 POST a.example/p\n3 GET a.example/"},
	{post2(1, "content-length", "5") + data2(1, 0, "abc"), "1 POST a.example/p"},
	{post2(1, "content-length", "5") + data2(1, 0, "abcde") + head2of(endAll, "x-sum", "1"), "1 POST a.example/p"},
	{post2(1, "content-length", "5") + data2(1, 0, "abc") + frame2(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08"), "1 POST a.example/p"},
	{post2(1, "trailer", "x-sum") + post2(3) + data2(3, 0, "a") + data2(1, 0, "b") + get2(5) + data2(3, endStream, "c") + frame2(http2.FrameHeaders, endStream, 1, pack("x-sum", "1")) + frame2(http2.FrameContinuation, endHeaders, 1, pack("y", "2")), "1 POST a.example/p\n3 POST a.example/p\n5 GET a.example/"},
	{
		frame2(http2.FrameSettings, http2.FlagSettingsAck, 0, "") + frame2(http2.FrameSettings, 0, 0, "\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\xff\x00\x00\x00\x00\x00") +
			frame2(http2.FramePing, 0, 0, "12345678") + frame2(http2.FramePing, http2.FlagPingAck, 0, "12345678") + frame2(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x01") +
			frame2(http2.FramePriority, 0, 7, "\x00\x00\x00\x05\x10") + frame2(http2.FramePriorityUpdate, 0, 0, "\x00\x00\x00\x01u=1") + frame2(0x77, 0xff, 5, "x") + frame2(0x77, 0, 0, "") +
			get2(1) + frame2(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x01") + frame2(http2.FrameRSTStream, 0, 1, "\x00\x00\x00\x08") + frame2(http2.FrameGoAway, 0, 0, "\x00\x00\x00\x00\x00\x00\x00\x00bye"),
		"1 GET a.example/",
	},
	{frame2(http2.FrameHeaders, endStream, 1, "") + strings.Repeat(frame2(http2.FrameContinuation, 0, 1, ""), maxContinuations-1) + frame2(http2.FrameContinuation, endHeaders, 1, pack(m, "GET", s, "https", a, "a.example", p, "/")) + frame2(http2.FrameHeaders, endStream, 3, "") + frame2(http2.FrameContinuation, endHeaders, 3, pack(m, "GET", s, "https", a, "a.example", p, "/")), "1 GET a.example/\n3 GET a.example/"},
	{get2(1, "x", strings.Repeat("x", 40000), "y", strings.Repeat("\xff", 10000)), "1 GET a.example/"},
	{post2(1) + data2(1, 0, strings.Repeat("x", 1<<20)) + data2(1, endStream, ""), "1 POST a.example/p"},
	{ // The table: an entry is put in, used by its number, and gone after its size was 0 for a while, when there is another one.
		frame2(http2.FrameHeaders, endAll, 1, pack(m, "GET", s, "https", p, "/")+"\x41\x09a.example") + frame2(http2.FrameHeaders, endAll, 3, pack(m, "GET", s, "https", p, "/")+"\xbe") +
			frame2(http2.FrameHeaders, endAll, 5, "\x20\x3f\xe1\x1f"+pack(m, "GET", s, "https", p, "/")+"\x41\x09b.example") + frame2(http2.FrameHeaders, endAll, 7, pack(m, "GET", s, "https", p, "/")+"\xbe"),
		"1 GET a.example/\n3 GET a.example/\n5 GET b.example/\n7 GET b.example/",
	},
}

func TestAccepted2(t *testing.T) {
	for _, tt := range accepted2 {
		text := preface + settings2 + tt.text
		o := runAll(t, Config{Rules: noTunnels, AnyHost: true, ALPN: "h2"}, client(text))
		if o.err != nil || o.kinds() != tt.kinds+"\nend" || o.ready != int64(len(text)) {
			t.Errorf("%.200q: %d of %d, %v\n%s", text, o.ready, len(text), o.err, o.kinds())
		}
	}
}

// TestReady2 wants each byte to be ready as soon as it is judged, and not before.
func TestReady2(t *testing.T) {
	post, get := post2(1, "content-length", "4"), get2(3)
	head := frame2(http2.FrameHeaders, endStream, 5, "")
	more := frame2(http2.FrameContinuation, endHeaders, 5, pack(m, "GET", s, "https", a, "a.example", p, "/"))
	plain, pad := data2(1, 0, "ab"), data2(1, padded|endStream, "\x03cd\x00\x00\x00")
	j := New(Config{Rules: noTunnels, AnyHost: true, ALPN: "h2"})
	sent, ready := int64(0), int64(0)
	for _, tt := range []struct {
		text  string
		ready int // bytes more
	}{
		{preface[:23], 0},
		{preface[23:] + settings2[:5], 24},
		{settings2[5:], 9},
		{post[:12], 0},
		{post[12:] + plain[:8], len(post)},
		{plain[8:9], 9},
		{plain[9:10], 1},
		{plain[10:] + get[:20], 1},
		{get[20:] + pad[:9], len(get)},
		{pad[9:10], 10},
		{pad[10:12], 2},
		{pad[12:] + head, 3},
		{more[:len(more)-1], 0},
		{more[len(more)-1:], len(head) + len(more)},
		{settings2[:8], 0},
	} {
		sent, ready = sent+int64(len(tt.text)), ready+int64(tt.ready)
		if got, err := j.Client([]byte(tt.text)); got != ready || err != nil {
			t.Fatalf("after %d bytes, up to %q: %d, %v, want %d", sent, tt.text, got, err, ready)
		}
	}
}

func TestAnswers2(t *testing.T) {
	rules, err := httprule.Compile([]httprule.Rule{
		{Name: "ws", Allow: true, Methods: []string{"CONNECT"}, Path: httprule.Path{Exact: "/ws"}, Upgrades: []string{"websocket"}},
		{Name: "connect", Allow: true, Methods: []string{"CONNECT"}, Hosts: []string{"b.example"}},
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	begin := client(preface + settings2)
	reset := func(stream byte) string { return frame2(http2.FrameRSTStream, 0, uint32(stream), "\x00\x00\x00\x00") }
	websocket := frame2(http2.FrameHeaders, endHeaders, 1, pack(m, "CONNECT", ":protocol", "WebSocket", s, "https", a, "a.example", p, "/ws"))
	connect := frame2(http2.FrameHeaders, endHeaders, 3, pack(m, "CONNECT", a, "b.example:8443"))
	for name, tt := range map[string]struct {
		steps  []step
		reason string
		kinds  string
	}{
		"interleaved": {
			steps: []step{begin, server(settings2), client(get2(1) + post2(3) + get2(5)), server(status2(5, "404") + data2(5, endStream, "x") + status2(1, "103") + frame2(0x77, 0, 1, "x") + status2(3, "200") + status2(1, "204")), client(data2(3, endStream, "x")), server(head2of(endAll, "x-sum", "1"))},
			kinds: "1 GET a.example/\n3 POST a.example/p\n5 GET a.example/\n5 404\n3 200\n1 204",
		},
		"of no request": {
			steps: []step{begin, client(get2(1)), server(status2(3, "200") + status2(1, "200") + status2(1, "200"))},
			kinds: "1 GET a.example/\n1 200",
		},
		"that the client gave up": {
			steps: []step{begin, client(get2(1) + reset(1)), server(status2(1, "200"))},
			kinds: "1 GET a.example/",
		},
		"that the server reset": {
			steps: []step{begin, client(post2(1)), server(reset(1) + status2(1, "200")), client(data2(1, endStream, "x"))},
			kinds: "1 POST a.example/p",
		},
		"upper case": {
			steps: []step{begin, client(get2(1)), server(head2of(endAll, ":status", "200", "Server", " x"))},
			kinds: "1 GET a.example/\n1 200",
		},
		"no status": {
			steps: []step{begin, client(get2(1)), server(head2of(endAll, "server", "x")), client(get2(3)), server(status2(3, "200"))},
			kinds: "1 GET a.example/\nblind: an answer does not begin with :status\n3 GET a.example/",
		},
		"no fields": {
			steps: []step{begin, client(get2(1)), server(frame2(http2.FrameHeaders, endAll, 1, ""))},
			kinds: "1 GET a.example/\nblind: an answer does not begin with :status",
		},
		"status 99": {
			steps: []step{begin, client(get2(1)), server(status2(1, "99"))},
			kinds: "1 GET a.example/\nblind: the :status of an answer is no number of three digits",
		},
		"pushes": {
			steps: []step{begin, server(frame2(http2.FramePushPromise, endHeaders, 1, "\x00\x00\x00\x02")), client(get2(1))},
			kinds: "blind: there is a PUSH_PROMISE frame\n1 GET a.example/",
		},
		"not HTTP/2": {
			steps: []step{begin, server("HTTP/1.1 400 Bad Request\r\n\r\n"), client(get2(1))},
			kinds: "blind: a frame of type 0x50, which is not known, has more than 16384 bytes\n1 GET a.example/",
		},
		"tunnels": {
			steps: []step{begin, client(websocket + connect + data2(1, 0, "GET / HTTP/1.1\r\n") + data2(3, endStream, "x") + get2(5)), server(status2(1, "200"))},
			kinds: "1 CONNECT a.example/ws\n3 CONNECT b.example\n5 GET a.example/\n1 200",
		},
		"a body that is short": {
			steps: []step{begin, client(get2(1, "content-length", "1"))}, reason: "the body is shorter than Content-Length says",
			kinds: "refused: the body is shorter than Content-Length says",
		},
		"trailers of a tunnel": {
			steps: []step{begin, client(websocket + head2of(endAll, "x-sum", "1"))}, reason: "there are trailers after CONNECT",
			kinds: "1 CONNECT a.example/ws\nrefused: there are trailers after CONNECT",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := runAll(t, Config{Rules: rules, AnyHost: true, ALPN: "h2", Answers: true}, tt.steps...)
			if o.reason() != tt.reason || o.kinds() != tt.kinds+"\nend" {
				t.Errorf("%v\n%s", o.err, o.kinds())
			}
		})
	}
}

// h2of feeds a Judge, and stops at its first error.
func h2of(t *testing.T, answers bool) (feed, answer func(string) error) {
	j := New(Config{Rules: noTunnels, AnyHost: true, ALPN: "h2", Answers: answers})
	feed = func(s string) error {
		ready, err := j.Client([]byte(s))
		if err == nil && ready != j.given {
			t.Fatalf("%d bytes of %d are ready", ready, j.given)
		}
		return err
	}
	answer = func(s string) error {
		_, err := j.Server([]byte(s))
		return err
	}
	if err := feed(preface + settings2); err != nil {
		t.Fatal(err)
	}
	return feed, answer
}

// TestTable takes a table of the size that a server may allow, and no larger one.
func TestTable(t *testing.T) {
	feed, _ := h2of(t, false)
	name := strings.Repeat("x", 60000)
	if err := feed(frame2(http2.FrameHeaders, endAll, 1, "\x3f\xe1\xff\x03"+pack(m, "GET", s, "https", a, "a.example", p, "/")+"\x40\x01a\x7f\xe1\xd3\x03"+name)); err != nil {
		t.Fatal(err)
	}
	if err := feed(frame2(http2.FrameHeaders, endAll, 3, pack(m, "GET", s, "https", a, "a.example", p, "/")+"\xbe")); err != nil {
		t.Error(err)
	}
	if err := feed(frame2(http2.FrameHeaders, endAll, 5, pack(m, "GET", s, "https", a, "a.example", p, "/")+"\xbf")); reason(err) != "unpack the fields of a head: decoding error: invalid indexed representation index 63" {
		t.Error(err)
	}
}

func reason(err error) string { return outcome{err: err}.reason() }

func TestStreamsAreBounded(t *testing.T) {
	feed, _ := h2of(t, false)
	id := uint32(1)
	for range maxStreams {
		if err := feed(post2(id)); err != nil {
			t.Fatal(err)
		}
		id += 2
	}
	// One that ends makes room for another one.
	if err := feed(data2(1, endStream, "") + post2(id)); err != nil {
		t.Fatal(err)
	}
	if err := feed(get2(id + 2)); reason(err) != "there are 16384 streams that the client has not ended" {
		t.Error(err)
	}

	feed, answer := h2of(t, true)
	for i := range uint32(maxStreams) {
		if err := feed(get2(2*i + 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := answer(status2(1, "200")); err != nil {
		t.Fatal(err)
	}
	if err := feed(get2(2*maxStreams + 1)); err != nil {
		t.Fatal(err)
	}
	if err := feed(get2(2*maxStreams + 3)); reason(err) != "16384 requests have no answer yet" {
		t.Error(err)
	}
}

// TestResets lets the client's frames come after the server has reset their streams, for a while.
func TestResets(t *testing.T) {
	feed, answer := h2of(t, true)
	reset := func(id uint32) {
		if err := errors.Join(feed(post2(id)), answer(frame2(http2.FrameRSTStream, 0, id, "\x00\x00\x00\x00"))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(2 * maxStreams) {
		reset(2*i + 1)
	}
	last := uint32(4*maxStreams - 1)
	oldest := last - 2*(maxReset-1)
	for _, id := range []uint32{last, oldest} {
		if err := feed(data2(id, 0, "x")); err != nil {
			t.Error(err)
		}
	}
	for i := range uint32(maxReset) { // those that the client has ended do not count
		id := last + 1000 + 2*i
		if err := errors.Join(feed(get2(id)), answer(frame2(http2.FrameRSTStream, 0, id, "\x00\x00\x00\x00"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := feed(data2(oldest, 0, "x")); err != nil {
		t.Error(err)
	}
	reset(last + 1000 + 2*maxReset)
	if err := feed(data2(oldest, 0, "x")); err == nil || !strings.HasPrefix(reason(err), "there is DATA for stream") {
		t.Error(err)
	}
}
