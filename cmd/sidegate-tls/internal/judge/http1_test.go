// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"fmt"
	"strings"
	"testing"

	"sidegate/policy/httprule"
)

// refused1 is what TestRefused1 wants to be refused, and why. It is a seed of the fuzz tests too. The bytes before § are
// ready.
var refused1 = []struct{ text, reason string }{
	// Lines.
	{"§GET / HTTP/1.1\nHost: a.example\r\n\r\n", "a line ends in LF without CR"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\n\n", "a line ends in LF without CR"},
	{"§GET / HTTP/1.1\r\nHost: a.example\n\nGET /x HTTP/1.1\r\n\r\n", "a line ends in LF without CR"},
	{"§GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n", "a line has a CR that no LF follows"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\r\n\r\n", "a line has a CR that no LF follows"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX: a\x00b\r\n\r\n", "a line has the control character 0x00"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX: a\x0bb\r\n\r\n", "a line has the control character 0x0b"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX: a\x7fb\r\n\r\n", "a line has the control character 0x7f"},
	{"§GET /\x08 HTTP/1.1\r\nHost: a.example\r\n\r\n", "a line has the control character 0x08"},
	{"§\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "there is an empty line before the request"},
	{ok1 + "§\r\n" + ok1, "there is an empty line before the request"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("x", MaxHead-39) + "\r\n\r\n", "it has more than 65536 bytes before the empty line"},

	// The request line.
	{"§GET /\r\n\r\n", "the request line has no version: HTTP/0.9 is not spoken here"},
	{"§GET\r\nHost: a.example\r\n\r\n", "the request line has no version: HTTP/0.9 is not spoken here"},
	{"§GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§GET /  HTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§GET / HTTP/1.1 \r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§GET /\tHTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has no version: HTTP/0.9 is not spoken here"},
	{"§GET\t/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has no version: HTTP/0.9 is not spoken here"},
	{"§GET / HTTP/1.1\t\r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§ GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "the request line has more than three parts, or other whitespace between them than one space"},
	{"§GET / HTTP/2.0\r\nHost: a.example\r\n\r\n", `the version is neither HTTP/1.1 nor HTTP/1.0: "HTTP/2.0"`},
	{"§GET / HTTP/1.2\r\nHost: a.example\r\n\r\n", `the version is neither HTTP/1.1 nor HTTP/1.0: "HTTP/1.2"`},
	{"§GET / HTTP/01.1\r\nHost: a.example\r\n\r\n", `the version is neither HTTP/1.1 nor HTTP/1.0: "HTTP/01.1"`},
	{"§GET / http/1.1\r\nHost: a.example\r\n\r\n", `the version is neither HTTP/1.1 nor HTTP/1.0: "http/1.1"`},
	{"§GET / HTTP/1.1;\r\nHost: a.example\r\n\r\n", `the version is neither HTTP/1.1 nor HTTP/1.0: "HTTP/1.1;"`},
	{"§get / HTTP/1.1\r\nHost: a.example\r\n\r\n", `the method has lower-case letters: "get"`},
	{"§G@T / HTTP/1.1\r\nHost: a.example\r\n\r\n", `the method is no token: "G@T"`},
	{"§" + strings.Repeat("X", 33) + " / HTTP/1.1\r\nHost: a.example\r\n\r\n", "the method has more than 32 characters"},

	// The target.
	{"§GET x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},
	{"§GET a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},
	{"§GET ?x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},
	{"§GET * HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},
	{"§OPTIONS ** HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},
	{"§GET /#x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the target has a #"},
	{"§GET /?x#y HTTP/1.1\r\nHost: a.example\r\n\r\n", "the target has a #"},
	{"§GET /ä HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target has a character that has to be encoded: "\xc3"`},
	{"§GET /?\xff HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target has a character that has to be encoded: "\xff"`},
	{"§GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "the target is a URL that does not begin with https://"},
	{"§GET HTTPS://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "the target is a URL that does not begin with https://"},
	{"§GET https://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target's host is "b.example", and Host is another one`},
	{"§GET https://a.example:80/ HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target's host is "a.example:80", and Host is another one`},
	{"§GET https://b.example?@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target's host is "b.example", and Host is another one`},
	{"§GET https://u@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", `the host is no name: "u@a.example"`},
	{"§GET https:///x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the host is empty"},
	{"§GET https:/a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path does not begin with a /"},

	// Paths.
	{"§GET /a/../b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /.. HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /a/./b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has . as a segment"},
	{"§GET /a/%2e%2E/b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /a/.%2e HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /a/..;/b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /a/%2e%2e;x=1/b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET https://a.example/../x HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has .. as a segment"},
	{"§GET /a%2Fb HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has an encoded slash: %2F"},
	{"§GET /a%5cb HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has an encoded slash: %5c"},
	{"§GET /a\\b HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has a backslash"},
	{"§GET /a%00 HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has an encoded control character: %00"},
	{"§GET /a%0d%0aX:y HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has an encoded control character: %0d"},
	{"§GET /a%7F HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has an encoded control character: %7F"},
	{"§GET /a% HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has a % without two hex digits"},
	{"§GET /a%2 HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has a % without two hex digits"},
	{"§GET /a%+1 HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has a % without two hex digits"},
	{"§GET /a%u002f HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path has a % without two hex digits"},
	{"§GET /a%c0%af HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path is no UTF-8 when it is decoded"},
	{"§GET /a%ff HTTP/1.1\r\nHost: a.example\r\n\r\n", "the path is no UTF-8 when it is decoded"},

	// Host.
	{"§GET / HTTP/1.1\r\n\r\n", "there is no header Host"},
	{"§GET / HTTP/1.0\r\n\r\n", "there is no header Host"},
	{"§GET https://a.example/ HTTP/1.1\r\n\r\n", "there is no header Host"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n", `there are several headers "host"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nhOST: b.example\r\n\r\n", `there are several headers "host"`},
	{"§GET / HTTP/1.1\r\nHost:\r\n\r\n", "the host is empty"},
	{"§GET / HTTP/1.1\r\nHost:  a.example\r\n\r\n", `the header "host" has whitespace around its value`},
	{"§GET / HTTP/1.1\r\nHost: a.example \r\n\r\n", `the header "host" has whitespace around its value`},
	{"§GET / HTTP/1.1\r\nHost:\ta.example\r\n\r\n", `the header "host" has whitespace around its value`},
	{"§GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n", `the host is no name: "a.example, b.example"`},
	{"§GET / HTTP/1.1\r\nHost: a.example/x\r\n\r\n", `the host is no name: "a.example/x"`},
	{"§GET / HTTP/1.1\r\nHost: a.example@b.example\r\n\r\n", `the host is no name: "a.example@b.example"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:443@b.example\r\n\r\n", `the port of the host is no number from 1 to 65535: ":443@b.example"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:\r\n\r\n", `the port of the host is no number from 1 to 65535: ":"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:0\r\n\r\n", `the port of the host is no number from 1 to 65535: ":0"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:0443\r\n\r\n", `the port of the host is no number from 1 to 65535: ":0443"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:+443\r\n\r\n", `the port of the host is no number from 1 to 65535: ":+443"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:65536\r\n\r\n", `the port of the host is no number from 1 to 65535: ":65536"`},
	{"§GET / HTTP/1.1\r\nHost: a.example:443:443\r\n\r\n", `the port of the host is no number from 1 to 65535: ":443:443"`},
	{"§GET / HTTP/1.1\r\nHost: a.example.\r\n\r\n", `the host ends with a dot, which servers do not agree on: "a.example."`},
	{"§GET / HTTP/1.1\r\nHost: a..example\r\n\r\n", `the host is no name: "a..example"`},
	{"§GET / HTTP/1.1\r\nHost: \xc3\xa4.example\r\n\r\n", `the host is no name: "ä.example"`},
	{"§GET / HTTP/1.1\r\nHost: \xe2\x84\xaa.example\r\n\r\n", `the host is no name: "K.example"`}, // KELVIN SIGN, whose lower case is k
	{"§GET / HTTP/1.1\r\nHost: a%2eexample\r\n\r\n", `the host is no name: "a%2eexample"`},
	{"§GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 64) + ".example\r\n\r\n", `the host is no name: "` + strings.Repeat("a", 64) + `"...`},
	{"§GET / HTTP/1.1\r\nHost: " + strings.Repeat("a.", 127) + "\r\n\r\n", "the host has more than 253 characters"},
	{"§GET / HTTP/1.1\r\nHost: 127.1\r\n\r\n", `the host is no IPv4 address: "127.1"`},
	{"§GET / HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", `the host is no IPv4 address: "0x7f.1"`},
	{"§GET / HTTP/1.1\r\nHost: 127.0.0.0x1\r\n\r\n", `the host is no IPv4 address: "127.0.0.0x1"`},
	{"§GET / HTTP/1.1\r\nHost: 127.0.0.01\r\n\r\n", `the host is no IPv4 address: "127.0.0.01"`},
	{"§GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n", `the host is no IPv4 address: "2130706433"`},
	{"§GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", `the port of the host is no number from 1 to 65535: "::1"`},
	{"§GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "the host has no ] after its ["},
	{"§GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", `the port of the host is no number from 1 to 65535: "x"`},
	{"§GET / HTTP/1.1\r\nHost: [[::1]]\r\n\r\n", `the port of the host is no number from 1 to 65535: "]"`},
	{"§GET / HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n", `the host is no IPv6 address: "[127.0.0.1]"`},
	{"§GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", `the host is no IPv6 address: "[fe80::1%25eth0]"`},

	// Headers.
	{"§GET / HTTP/1.1\r\n Host: a.example\r\n\r\n", "a header line begins with whitespace: it continues the line before to some"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\n z\r\n\r\n", "a header line begins with whitespace: it continues the line before to some"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\n\tTransfer-Encoding: chunked\r\n\r\n", "a header line begins with whitespace: it continues the line before to some"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX\r\n\r\n", "a header line has no colon"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\n: x\r\n\r\n", "a header has no name"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX : y\r\n\r\n", `there is whitespace before the colon of the header "X"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length\t: 1\r\n\r\n", `there is whitespace before the colon of the header "Content-Length"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nX Y: z\r\n\r\n", `the name of a header is no token: "X Y"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\n\xc3\xa4: z\r\n\r\n", `the name of a header is no token: "ä"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent_Length: 1\r\n\r\n", `the header "content_length" is content-length to some servers`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer_Encoding: chunked\r\n\r\n", `the header "transfer_encoding" is transfer-encoding to some servers`},

	// The body.
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", `there are several headers "content-length"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", `there are several headers "content-length"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1, 1\r\n\r\n", `Content-Length is no decimal number: "1, 1"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +1\r\n\r\n", `Content-Length is no decimal number: "+1"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: -1\r\n\r\n", `Content-Length is no decimal number: "-1"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0x1\r\n\r\n", `Content-Length is no decimal number: "0x1"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 010\r\n\r\n", `Content-Length is no decimal number: "010"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1_0\r\n\r\n", `Content-Length is no decimal number: "1_0"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length:\r\n\r\n", `Content-Length is no decimal number: ""`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9223372036854775808\r\n\r\n", `Content-Length is no decimal number: "9223372036854775808"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 18446744073709551617\r\n\r\n", `Content-Length is no decimal number: "18446744073709551617"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1 \r\n\r\n", `the header "content-length" has whitespace around its value`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "there are both Content-Length and Transfer-Encoding"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", "there are both Content-Length and Transfer-Encoding"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", `there are several headers "transfer-encoding"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", `Transfer-Encoding is not chunked: "gzip, chunked"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: Chunked\r\n\r\n", `Transfer-Encoding is not chunked: "Chunked"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: identity\r\n\r\n", `Transfer-Encoding is not chunked: "identity"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n", `Transfer-Encoding is not chunked: "xchunked"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked;q=1\r\n\r\n", `Transfer-Encoding is not chunked: "chunked;q=1"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", `Transfer-Encoding is not chunked: "\"chunked\""`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding:\r\n\r\n", `Transfer-Encoding is not chunked: ""`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding:\tchunked\r\n\r\n", `the header "transfer-encoding" has whitespace around its value`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked \r\n\r\n", `the header "transfer-encoding" has whitespace around its value`},
	{"§POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n", "there is Transfer-Encoding in HTTP/1.0"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx", "GET has a body, which some servers take for the next request"},
	{"§HEAD / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HEAD has a body, which some servers take for the next request"},
	{"§TRACE / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx", "TRACE has a body"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nExpect: 100-Continue\r\n\r\nx", "Expect is not 100-continue, before a body, in HTTP/1.1"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nExpect: x\r\n\r\nx", "Expect is not 100-continue, before a body, in HTTP/1.1"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n", "Expect is not 100-continue, before a body, in HTTP/1.1"},
	{"§POST / HTTP/1.0\r\nHost: a.example\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\nx", "Expect is not 100-continue, before a body, in HTTP/1.1"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n\r\nx", `there are several headers "expect"`},

	// What follows.
	{"§GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 and keep-alive: servers do not agree on whether a request may follow"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", "Connection is both close and keep-alive"},
	{"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n§" + ok1, "bytes follow a request that said it was the last one"},
	{"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n§" + ok1, "bytes follow a request that said it was the last one"},
	{"POST / HTTP/1.1\r\nHost: a.example\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx§x", "bytes follow a request that said it was the last one"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close, X-Forwarded-For\r\n\r\n", `Connection names a header, which a proxy would drop: "x-forwarded-for"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: \u212aeep-alive\r\n\r\n", "Connection names a header, which a proxy would drop: \"Keep-alive\""},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Host\r\n\r\n", `Connection names a header, which a proxy would drop: "host"`},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\nx", `Connection names a header, which a proxy would drop: "content-length"`},

	// Upgrades.
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", `Connection names a header, which a proxy would drop: "http2-settings"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "there is HTTP2-Settings, which is for cleartext only"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", "Upgrade: h2c is for cleartext only (RFC 9113, 3.1)"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: H2C/1\r\n\r\n", "Upgrade: h2c is for cleartext only (RFC 9113, 3.1)"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websoc\u212aet\r\n\r\n", "the upgrade is not one protocol: \"websocKet\""},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", `the upgrade is not one protocol: "websocket, h2c"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n", `there are several headers "upgrade"`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n", "there is Upgrade without Connection: upgrade, or the other way round"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\n\r\n", "there is Upgrade without Connection: upgrade, or the other way round"},
	{"§GET / HTTP/1.0\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "there is Upgrade in HTTP/1.0, with a body, with CONNECT or with Connection: close"},
	{"§POST / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n", "there is Upgrade in HTTP/1.0, with a body, with CONNECT or with Connection: close"},
	{"§CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", "there is Upgrade in HTTP/1.0, with a body, with CONNECT or with Connection: close"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n", "there is Upgrade in HTTP/1.0, with a body, with CONNECT or with Connection: close"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", `no rule names the upgrade to "websocket"`},
	{"§CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n", "no rule names the method CONNECT"},
	{"§CONNECT b.example HTTP/1.1\r\nHost: b.example\r\n\r\n", "the target of CONNECT has no port"},
	{"§CONNECT /x HTTP/1.1\r\nHost: b.example\r\n\r\n", "the target of CONNECT has no port"},
	{"§CONNECT [::1] HTTP/1.1\r\nHost: [::1]\r\n\r\n", "the target of CONNECT has no port"},
	{"§CONNECT https://b.example:443/ HTTP/1.1\r\nHost: b.example\r\n\r\n", `the port of the host is no number from 1 to 65535: "://b.example:443/"`},
	{"§CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", `the target's host is "b.example:443", and Host is another one`},
	{"§CONNECT b.example:8443 HTTP/1.1\r\nHost: b.example\r\n\r\n", `the target's host is "b.example:8443", and Host is another one`},
	{"§CONNECT b.example:443 HTTP/1.1\r\nHost: b.example\r\nContent-Length: 0\r\n\r\n", "CONNECT has a body, or is HTTP/1.0"},
	{"§CONNECT b.example:443 HTTP/1.0\r\nHost: b.example\r\n\r\n", "CONNECT has a body, or is HTTP/1.0"},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nTrailer: Content-Length\r\n\r\n", `the header "content-length" is a trailer`},
	{"§GET / HTTP/1.1\r\nHost: a.example\r\nTrailer: X, Transfer-Encoding\r\n\r\n", `the header "transfer-encoding" is a trailer`},

	// Chunks.
	{chunked1 + "§x\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "§\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "§;x\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "§ 1\r\nx\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "§-1\r\nx\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "0§x1\r\nx\r\n", "the character 0x78 follows the size of a chunk"},
	{chunked1 + "1§ \r\nx\r\n", "the character 0x20 follows the size of a chunk"},
	{chunked1 + "1§\nx\r\n", "the character 0x0a follows the size of a chunk"},
	{chunked1 + "1§_0\r\nx\r\n", "the character 0x5f follows the size of a chunk"},
	{chunked1 + "1\r§x\r\n", "the size of a chunk has a CR that no LF follows"},
	{chunked1 + "1\r§\r\nx\r\n", "the size of a chunk has a CR that no LF follows"},
	{chunked1 + "00000000§1\r\nx\r\n", "the size of a chunk is beyond 31 bits"},
	{chunked1 + "8000000§0\r\nx\r\n", "the size of a chunk is beyond 31 bits"},
	{chunked1 + "10000000§1\r\nx\r\n", "the size of a chunk is beyond 31 bits"},
	{chunked1 + "1;x§\nx\r\n", "a chunk extension has the character 0x0a"},
	{chunked1 + "1;x=\"§\x00\"\r\nx\r\n", "a chunk extension has the character 0x00"},
	{chunked1 + "1;§\xff\r\nx\r\n", "a chunk extension has the character 0xff"},
	{chunked1 + "1;x\r§x\r\nx\r\n", "the size of a chunk has a CR that no LF follows"},
	{chunked1 + "1;" + strings.Repeat("x", maxExtensions-1) + "§x\r\nx\r\n", "the chunk extensions of a body have more than 2048 bytes"},
	{chunked1 + "1;" + strings.Repeat("x", maxExtensions-1) + "\r\nx\r\n1§;\r\nx\r\n", "the chunk extensions of a body have more than 2048 bytes"},
	{chunked1 + "1\r\nx§x\r\n", "a chunk is longer than its size says"},
	{chunked1 + "1\r\nx§\n0\r\n\r\n", "a chunk is longer than its size says"},
	{chunked1 + "1\r\nx\r§x0\r\n\r\n", "a chunk is longer than its size says"},
	{chunked1 + "1\r\nx\r\n§\r\n", "a chunk has no size in hexadecimal"},
	{chunked1 + "0\r\n§x\r\n\r\n", "trailers: a header line has no colon"},
	{chunked1 + "0\r\n§\n", "trailers: a line ends in LF without CR"},
	{chunked1 + "0\r\n§X: y\n\r\n", "trailers: a line ends in LF without CR"},
	{chunked1 + "0\r\n§X: y\r\n z\r\n\r\n", "trailers: a header line begins with whitespace: it continues the line before to some"},
	{chunked1 + "0\r\n§X: y\r\nContent-Length: 1\r\n\r\n", `trailers: the header "content-length" is a trailer`},
	{chunked1 + "0\r\n§Transfer-Encoding: chunked\r\n\r\n", `trailers: the header "transfer-encoding" is a trailer`},
	{chunked1 + "0\r\n§host: b.example\r\n\r\n", `trailers: the header "host" is a trailer`},
	{chunked1 + "0\r\n§Authorization: x\r\n\r\n", `trailers: the header "authorization" is a trailer`},
	{chunked1 + "0\r\n§Content-Type: x\r\n\r\n", `trailers: the header "content-type" is a trailer`},
	{chunked1 + "0\r\n§Content_Length: x\r\n\r\n", `trailers: the header "content_length" is content-length to some servers`},
	{chunked1 + "0\r\n§X: " + strings.Repeat("x", MaxTrailers-6) + "\r\n\r\n", "trailers: it has more than 4096 bytes before the empty line"},
	{chunked1 + "0\r\n§GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n", "trailers: a header line has no colon"},

	// Requests in others.
	{"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc§d" + ok1, `the method has lower-case letters: "dGET"`},
	{chunked1 + "0\r\n\r\n§G\nET", "a line ends in LF without CR"},
}

const chunked1 = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"

func TestRefused1(t *testing.T) {
	c := Config{Rules: noTunnels, ALPN: "http/1.1", AnyHost: true}
	for _, tt := range refused1 {
		wantRefused(t, c, tt.text, tt.reason)
		wantRefused(t, c, ok1+tt.text, tt.reason)
	}
}

// accepted1 are requests, with what is seen of them.
var accepted1 = []struct{ text, kinds string }{
	{ok1, "1 GET a.example/before"},
	{ok1 + ok1 + ok1, "1 GET a.example/before\n2 GET a.example/before\n3 GET a.example/before"},
	{"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 OPTIONS a.example*"},
	{"M-SEARCH / HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 M-SEARCH a.example/"},
	{"GET https://A.example:443 HTTP/1.1\r\nHost: a.EXAMPLE\r\n\r\n", "1 GET a.example/"},
	{"GET https://a.example?x HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example/"},
	{"GET https://a.example/x?y://z HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example/x"},
	{"GET /http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example/http://b.example/"},
	{"GET //b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example//b.example/"},
	{"GET /a|{b}^`\"<c>/... HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example/a|{b}^`\"<c>/..."},
	{"GET /?a=\\&b=%00&c=%zz&d=/../ HTTP/1.1\r\nHost: a.example\r\n\r\n", "1 GET a.example/"},
	{"GET /%C3%A4 HTTP/1.1\r\nHost:a.example\r\nX:\r\nY: \t \xff\xfe z \r\nempty: \r\n\r\n", "1 GET a.example/ä"},
	{"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\r\n", "1 GET 2001:db8::1/"},
	{"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", "1 GET 192.0.2.1/"},
	{"GET / HTTP/1.1\r\nHost: 1a.x_y.e2\r\n\r\n", "1 GET 1a.x_y.e2/"},
	{"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: TE\r\nConnection: keep-alive\r\nTE: trailers\r\n\r\n" + ok1, "1 GET a.example/\n2 GET a.example/before"},
	{"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", "1 GET a.example/"},
	{"POST / HTTP/1.0\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc", "1 POST a.example/"},
	{"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", "1 GET a.example/"},
	{"GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n" + ok1, "1 GET a.example/\n2 GET a.example/before"},
	{"POST / HTTP/1.1\r\nHost: a.example\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 46\r\n\r\n" + ok1 + "....." + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9223372036854775807\r\n\r\nabc" + ok1, "1 POST a.example/"},
	{chunked1 + "0\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{chunked1 + "00000000\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{chunked1 + "29\r\n" + ok1 + "\r\n000aA;x=\"y\";z\r\n" + strings.Repeat("x", 0xaa) + "\r\n0;x\t \r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{chunked1 + "1\r\nx\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{chunked1 + "7fffffff\r\nxxx", "1 POST a.example/"},
	{"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + strings.Repeat("x", MaxHead-40) + "\r\n\r\n" + ok1, "1 GET a.example/\n2 GET a.example/before"},
	{chunked1 + "0\r\nX: " + strings.Repeat("x", MaxTrailers-7) + "\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
	{chunked1 + strings.Repeat("1\r\nx\r\n", 10000) + "0\r\n\r\n" + ok1, "1 POST a.example/\n2 GET a.example/before"},
}

func TestAccepted1(t *testing.T) {
	for _, tt := range accepted1 {
		o := runAll(t, Config{Rules: noTunnels, AnyHost: true, ALPN: "http/1.1"}, client(tt.text))
		if o.err != nil || o.kinds() != tt.kinds+"\nend" || o.ready != int64(len(tt.text)) {
			t.Errorf("%.200q: %d of %d, %v\n%s", tt.text, o.ready, len(tt.text), o.err, o.kinds())
		}
	}
	get := "GET / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\nx" + ok1
	o := runAll(t, Config{Rules: noTunnels, AnyHost: true, GetBodies: true}, client(get))
	if o.err != nil || o.ready != int64(len(get)) {
		t.Errorf("GET with a body: %v", o.err)
	}
}

// TestReady1 wants each byte to be ready as soon as it is judged, and not before.
func TestReady1(t *testing.T) {
	j := New(Config{Rules: noTunnels, AnyHost: true})
	sent := int64(0)
	for _, piece := range []string{
		"GET /1 HTTP/1.1\r\nHost: a.example\r\n\r", "\n§", "§POST /2 HTTP/1.1\r\n", "Host: a.example\r\nContent-Length: 4\r\n\r\n§",
		"ab§", "cd§GET /3 HTT", "P/1.1\r\nHost: a.example\r\n\r\n" + chunked1 + "§", "2§", "\r\n§", "a§", "b\r§", "\n0§", "\r\n§", "X: y\r", "\nY: z\r\n", "\r\n§G",
	} {
		text := strings.ReplaceAll(piece, "§", "")
		want := int64(-1)
		if i := strings.LastIndex(piece, "§"); i >= 0 {
			want = sent + int64(len(strings.ReplaceAll(piece[:i], "§", "")))
		}
		before := j.ready
		if want < 0 {
			want = before
		}
		sent += int64(len(text))
		if ready, err := j.Client([]byte(text)); ready != want || err != nil {
			t.Fatalf("after %q: %d, %v, want %d", text, ready, err, want)
		}
	}
}

const (
	websocket1 = "GET /ws HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
	connect1   = "CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n"
	switching  = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
)

func TestAnswers1(t *testing.T) {
	rules, err := httprule.Compile([]httprule.Rule{
		{Name: "ws", Allow: true, Path: httprule.Path{Exact: "/ws"}, Upgrades: []string{"websocket"}},
		{Name: "connect", Allow: true, Methods: []string{"CONNECT"}, Hosts: []string{"b.example"}},
		{Name: "secret", Path: httprule.Path{Prefix: "/secret"}},
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	const (
		post   = "POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc"
		head   = "HEAD /h HTTP/1.1\r\nHost: a.example\r\n\r\n"
		secret = "GET /secret HTTP/1.1\r\nHost: a.example\r\n\r\n"
		ok     = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	)
	frames := "\x81\x00\x00\xff"
	for name, tt := range map[string]struct {
		steps  []step
		held   int64 // bytes that are not ready at the end
		reason string
		kinds  string
	}{
		"pipelined": {
			steps: []step{client(ok1 + post + head), server(ok + "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"), client(ok1), server("HTTP/1.1 204 No Content\r\n\r\n"), client(ok1), server("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"), client(ok1), server("HTTP/1.1 200 OK\r\n\r\nto the end" + ok)},
			kinds: "1 GET a.example/before\n2 POST a.example/p\n3 HEAD a.example/h\n1 200\n2 404\n3 200\n4 GET a.example/before\n4 204\n5 GET a.example/before\n5 304\n6 GET a.example/before\n6 200",
		},
		"an answer before the body": {
			steps: []step{client(post[:len(post)-3]), server(ok), client("abc" + ok1), server(ok)},
			kinds: "1 POST a.example/p\n1 200\n2 GET a.example/before\n2 200",
		},
		"no request": {
			steps: []step{client(ok1), server(ok + ok), client(ok1)},
			kinds: "1 GET a.example/before\n1 200\nblind: an answer has no request\n2 GET a.example/before",
		},
		"not HTTP": {
			steps: []step{client(ok1), server("ICY 200 OK\r\n\r\n"), client(ok1)},
			kinds: "1 GET a.example/before\nblind: net/http does not read the head of an answer\n2 GET a.example/before",
		},
		"LF": {
			steps: []step{client(ok1), server("HTTP/1.1 200 OK\n\n"), client(ok1)},
			kinds: "1 GET a.example/before\nblind: a line ends in LF without CR\n2 GET a.example/before",
		},
		"bad chunks": {
			steps: []step{client(ok1), server("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx"), client(ok1)},
			kinds: "1 GET a.example/before\n1 200\nblind: a chunk has no size in hexadecimal\n2 GET a.example/before",
		},
		"a long head": {
			steps: []step{client(ok1), server("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHead)), client(ok1)},
			kinds: "1 GET a.example/before\nblind: it has more than 262144 bytes before the empty line\n2 GET a.example/before",
		},
		"switches": {
			steps: []step{client(ok1 + websocket1 + frames), server(ok), server(switching + frames), client(frames)},
			kinds: "1 GET a.example/before\n2 GET a.example/ws\n1 200\n2 101\nopaque: upgrade: websocket",
		},
		"waits": {
			steps: []step{client(websocket1 + frames)}, held: 4,
			kinds: "1 GET a.example/ws",
		},
		"waits through interim answers": {
			steps: []step{client(websocket1 + frames), server("HTTP/1.1 100 Continue\r\n\r\n")}, held: 4,
			kinds: "1 GET a.example/ws",
		},
		"does not switch": {
			steps: []step{client(websocket1 + ok1 + websocket1 + ok1), server(ok), server(ok), server("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), client(post)},
			kinds: "1 GET a.example/ws\n1 200\n2 GET a.example/before\n3 GET a.example/ws\n2 200\n3 400\n4 GET a.example/before\n5 POST a.example/p",
		},
		"smuggles": {
			steps: []step{client(websocket1 + ok1 + secret), server(ok), client("x")}, held: int64(len(secret)),
			reason: `rule "secret" denies it`,
			kinds:  "1 GET a.example/ws\n1 200\n2 GET a.example/before\n3 GET a.example/secret denied",
		},
		"smuggles, malformed": {
			steps: []step{client(websocket1 + frames), server(ok)}, held: 4,
			reason: "a line has the control character 0x00",
			kinds:  "1 GET a.example/ws\n1 200\nrefused: a line has the control character 0x00",
		},
		"switches without being asked": {
			steps: []step{client(ok1), server(switching), client(secret)}, held: int64(len(secret)),
			reason: `rule "secret" denies it`,
			kinds:  "1 GET a.example/before\nblind: an answer switches protocols, and nothing asked for it\n2 GET a.example/secret denied",
		},
		"switches for another request": {
			steps: []step{client(ok1 + websocket1 + frames), server(switching)}, held: 4,
			reason: "the answer to an upgrade cannot be read",
			kinds:  "1 GET a.example/before\n2 GET a.example/ws\nblind: an answer switches protocols, and nothing asked for it\nrefused: the answer to an upgrade cannot be read",
		},
		"an answer that cannot be read": {
			steps: []step{client(websocket1 + frames), server("x\r\n\r\n")}, held: 4,
			reason: "the answer to an upgrade cannot be read",
			kinds:  "1 GET a.example/ws\nblind: net/http does not read the head of an answer\nrefused: the answer to an upgrade cannot be read",
		},
		"after answers that cannot be read": {
			steps: []step{client(ok1), server("x\r\n\r\n"), client(websocket1)}, held: int64(len(websocket1)),
			reason: "the answer to an upgrade cannot be read",
			kinds:  "1 GET a.example/before\nblind: net/http does not read the head of an answer\n2 GET a.example/ws\nrefused: the answer to an upgrade cannot be read",
		},
		"much is held": {
			steps: []step{client(websocket1 + strings.Repeat("x", maxHeld)), server(switching)},
			kinds: "1 GET a.example/ws\n1 101\nopaque: upgrade: websocket",
		},
		"connects": {
			steps: []step{client(connect1 + frames), server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + frames), client(frames)},
			kinds: "1 CONNECT b.example\n1 200\nopaque: CONNECT",
		},
		"does not connect": {
			steps: []step{client(connect1 + secret), server("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")}, held: int64(len(secret)),
			reason: `rule "secret" denies it`,
			kinds:  "1 CONNECT b.example\n1 407\n2 GET a.example/secret denied",
		},
		"switches to CONNECT": {
			steps: []step{client(connect1 + frames), server(switching)}, held: 4,
			reason: "the answer to an upgrade cannot be read",
			kinds:  "1 CONNECT b.example\nblind: an answer switches protocols, and nothing asked for it\nrefused: the answer to an upgrade cannot be read",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := runAll(t, Config{Rules: rules, AnyHost: true, ALPN: "http/1.1", Answers: true}, tt.steps...)
			sent := int64(0)
			for _, s := range tt.steps {
				if !s.server && s.text != "x" {
					sent += int64(len(s.text))
				}
			}
			if o.reason() != tt.reason || o.kinds() != tt.kinds+"\nend" || o.ready != sent-tt.held {
				t.Errorf("%d of %d, %q\n%s", o.ready, sent, o.reason(), o.kinds())
			}
		})
	}
}

// TestAnswersUnseen counts what the server sends, where answers are not to be read.
func TestAnswersUnseen(t *testing.T) {
	o := runAll(t, Config{Rules: noTunnels, AnyHost: true}, client(ok1[:9]), server("x\n"), client(ok1[9:]), server("y\n"))
	if want := "1 GET a.example/before\nend"; o.kinds() != want || o.events[1].ServerBytes != 4 {
		t.Errorf("%+v", o.events)
	}
}

func TestHeldIsBounded(t *testing.T) {
	text := websocket1 + strings.Repeat("x", maxHeld+1)
	j := New(Config{Rules: everything, AnyHost: true, Answers: true})
	ready, err := j.Client([]byte(text))
	if m, ok := err.(*Malformed); !ok || m.Reason != "more than 65536 bytes follow an upgrade before its answer" || ready != int64(len(websocket1)) {
		t.Errorf("%d, %v", ready, err)
	}
}

func TestPipelineIsBounded(t *testing.T) {
	c := Config{Rules: noTunnels, AnyHost: true, Answers: true}
	o := runAll(t, c, client(strings.Repeat(ok1, maxPipelined)), server("HTTP/1.1 204 No Content\r\n\r\n"), client(ok1))
	if o.err != nil {
		t.Error(o.err)
	}
	o = runAll(t, c, client(strings.Repeat(ok1, maxPipelined+1)))
	if want := "1024 requests have no answer yet"; o.reason() != want || o.ready != int64(maxPipelined*len(ok1)) {
		t.Errorf("%d, %v", o.ready, o.err)
	}
	c.Answers = false
	if o = runAll(t, c, client(strings.Repeat(ok1, maxPipelined+1))); o.err != nil {
		t.Error(o.err)
	}
}

// TestTunnelWithoutAnswers lets everything through after a request that a rule names.
func TestTunnelWithoutAnswers(t *testing.T) {
	for _, tt := range []struct{ head, opaque string }{{websocket1, "upgrade: websocket"}, {connect1, "CONNECT"}} {
		steps := []step{client(tt.head + "\x81\x00" + ok1), server("anything"), client("\x00")}
		o := runAll(t, Config{Rules: everything, AnyHost: true, ALPN: "http/1.1"}, steps...)
		if o.err != nil || o.ready != int64(len(tt.head)+3+len(ok1)) || !strings.HasSuffix(o.kinds(), "\nopaque: "+tt.opaque+"\nend") {
			t.Errorf("%d, %v\n%s", o.ready, o.err, o.kinds())
		}
	}
}

// TestEarlyServer is about a server that speaks before it is clear what the client does.
func TestEarlyServer(t *testing.T) {
	c := Config{Rules: noTunnels, AnyHost: true, Other: true, Answers: true}
	for _, tt := range []struct {
		steps []step
		kinds string
	}{
		{[]step{server("220 hello\r\n"), client("EHLO a.example\r\n"), server("250 OK\r\n")}, "opaque: it is not HTTP\nend"},
		{[]step{server("220 hello\r\n"), client(ok1[:2])}, "end"},
		{[]step{server(settings2), client(preface + settings2 + request2(1, "GET", "a.example", "/")), server(status2(1, "200"))}, "1 GET a.example/\n1 200\nend"},
		{[]step{server(strings.Repeat("x", maxEarly)), client("EHLO a.example\r\n")}, "opaque: it is not HTTP\nend"},
		{[]step{server(strings.Repeat("x", maxEarly+1)), client(ok1)}, "blind: the server sends much before the client has said what it speaks\n1 GET a.example/before\nend"},
	} {
		if o := runAll(t, c, tt.steps...); o.err != nil || o.kinds() != tt.kinds {
			t.Errorf("%v\n%s", o.err, o.kinds())
		}
	}
	// In HTTP/1.1 the answer has no request, for which it came too early.
	o := run(t, c, []step{server("HTTP/1.1 200 OK\r\n\r\n"), client(ok1)}, func() int { return 1 << 20 })
	if want := "1 GET a.example/before\n1 200\nend"; o.kinds() != want {
		t.Log(fmt.Sprint(o.kinds()))
		t.Errorf("want %s", want)
	}
}
