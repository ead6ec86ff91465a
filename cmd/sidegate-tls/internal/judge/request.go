// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sidegate/policy/httprule"
)

// field is a header, or a trailer.
type field struct {
	name  string // lower case
	value string // without the whitespace around it
	raw   string // as sent, in HTTP/1.1
}

// authority reads a host with the port that it may have.
func authority(s string) (host string, port uint16, problem string) {
	name, rest := s, ""
	switch i := strings.IndexByte(s, ':'); {
	case strings.HasPrefix(s, "["):
		i = strings.IndexByte(s, ']') + 1
		if i == 0 {
			return "", 0, "the host has no ] after its ["
		}
		name, rest = s[:i], s[i:]
	case i >= 0:
		name, rest = s[:i], s[i:]
	}
	port = 443
	if rest != "" {
		digits := strings.TrimPrefix(rest, ":")
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != digits || rest[0] != ':' {
			return "", 0, "the port of the host is no number from 1 to 65535: " + httprule.Quote(rest)
		}
		port = uint16(n)
	}
	host, problem = httprule.Host(name)
	return host, port, problem
}

// target splits a request's path and query, and gives the readings of the path: first as it is, then what other servers
// make of it.
func target(s string) (paths []string, query string, problem string) {
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f:
			return nil, "", "the target has a character that has to be encoded: " + httprule.Quote(s[i:i+1])
		case c == '#':
			return nil, "", "the target has a #"
		}
	}
	raw, query, _ := strings.Cut(s, "?")
	if !strings.HasPrefix(raw, "/") {
		return nil, "", "the path does not begin with a /"
	}
	bare := stripParameters(raw)
	for i, variant := range []string{raw, mergeSlashes(raw), bare, mergeSlashes(bare)} {
		if i > 0 && variant == raw {
			continue
		}
		path, problem := decode(variant)
		if problem != "" {
			return nil, "", problem
		}
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths, query, ""
}

// stripParameters drops what follows a ; in a segment (RFC 3986, 3.3), as servlet containers do.
func stripParameters(path string) string {
	if !strings.Contains(path, ";") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return strings.Join(segments, "/")
}

func mergeSlashes(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// decode percent-decodes a path once, and refuses what servers do not agree on.
func decode(raw string) (path, problem string) {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' {
			return "", "the path has a backslash"
		}
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(raw) {
			return "", "the path has a % without two hex digits"
		}
		n, err := strconv.ParseUint(raw[i+1:i+3], 16, 8)
		if err != nil || raw[i+1] == '+' {
			return "", "the path has a % without two hex digits"
		}
		c = byte(n)
		switch {
		case c == '/' || c == '\\':
			return "", "the path has an encoded slash: " + raw[i:i+3]
		case c < ' ' || c == 0x7f:
			return "", "the path has an encoded control character: " + raw[i:i+3]
		}
		b.WriteByte(c)
		i += 2
	}
	path = b.String()
	if !utf8.ValidString(path) {
		return "", "the path is no UTF-8 when it is decoded"
	}
	for s := range strings.SplitSeq(path, "/") {
		if s == "." || s == ".." {
			return "", "the path has " + s + " as a segment"
		}
	}
	return path, ""
}
