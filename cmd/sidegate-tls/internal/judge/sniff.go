// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"bytes"
	"slices"
	"strings"

	"sidegate/policy/httprule"
)

// preface is what HTTP/2 begins with (RFC 9113, 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// methods are those by which HTTP is known before its first line is complete.
var methods = []string{
	"CONNECT", "COPY", "DELETE", "GET", "HEAD", "LOCK", "MKCOL", "MOVE", "OPTIONS", "PATCH", "POST", "PRI", "PROPFIND",
	"PROPPATCH", "PUT", "TRACE", "UNLOCK",
}

// sniff tells by its first bytes what a client speaks, or that more are needed: then proto is empty. It says other only
// where no server, however lenient, finds a request. That takes the whole first line, where it begins like one: another
// protocol whose client waits for an answer after half a line does not get through.
func sniff(b []byte) (proto, problem string) {
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		if n == len(preface) {
			return protoHTTP2, ""
		}
		return "", ""
	}
	line := bytes.TrimLeft(b, "\r\n\t \x00") // which some skip
	end := bytes.IndexFunc(line, func(c rune) bool { return c >= 0x80 || !httprule.TokenChar(byte(c)) })
	lf := bytes.IndexByte(line, '\n')
	known := end > 0 && slices.Contains(methods, strings.ToUpper(string(line[:end])))
	switch {
	case end == 0:
		return protoOther, ""
	case end > 0 && strings.IndexByte(" \t\r\n", line[end]) < 0:
		return protoOther, ""
	case known:
		return protoHTTP1, ""
	case lf >= 0 && bytes.Contains(bytes.ToUpper(line[:lf]), []byte("HTTP/")):
		return protoHTTP1, ""
	case lf >= 0:
		return protoOther, ""
	case len(b) > maxSniff:
		return "", "neither HTTP nor clearly something else: the first line does not end"
	}
	return "", ""
}
