// SPDX-License-Identifier: Apache-2.0

package httprule

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Token tells whether s is a token (RFC 9110, 5.6.2).
func Token(s string) bool {
	for i := range len(s) {
		if !TokenChar(s[i]) {
			return false
		}
	}
	return s != ""
}

// TokenChar tells whether c may be in a token.
func TokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// Lower is strings.ToLower for ASCII alone. Other letters may become ASCII ones: the KELVIN SIGN is a k.
func Lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func isLower(c byte) bool { return 'a' <= c && c <= 'z' }

// MethodProblem returns what is wrong with a method. Some servers take get for GET.
func MethodProblem(m string) string {
	switch {
	case len(m) > 32:
		return "the method has more than 32 characters"
	case !Token(m):
		return "the method is no token: " + Quote(m)
	case strings.ContainsFunc(m, func(c rune) bool { return isLower(byte(c)) }):
		return "the method has lower-case letters: " + Quote(m)
	}
	return ""
}

// HeaderProblem returns what is wrong with the name of a header.
func HeaderProblem(name string) string {
	if !Token(name) {
		return Quote(name) + " is no name of a header: write one such as x-request-id"
	}
	return ""
}

// UpgradeProblem returns what is wrong with a protocol to switch to, in lower case.
func UpgradeProblem(s string) string {
	name, version, has := strings.Cut(s, "/")
	switch {
	case name == "h2c":
		return "Upgrade: h2c is for cleartext only (RFC 9113, 3.1)"
	case !Token(name) || has && !Token(version) || len(s) > 64:
		return "the upgrade is not one protocol: " + Quote(s)
	}
	return ""
}

// Host returns the one way to write a host: names in lower case, addresses as netip does.
func Host(s string) (host, problem string) {
	if strings.HasPrefix(s, "[") {
		a, err := netip.ParseAddr(strings.Trim(s, "[]"))
		if err != nil || !a.Is6() || a.Zone() != "" || "["+strings.Trim(s, "[]")+"]" != s {
			return "", "the host is no IPv6 address: " + Quote(s)
		}
		return a.String(), ""
	}
	s = Lower(s)
	labels := strings.Split(s, ".")
	last := labels[len(labels)-1]
	switch {
	case s == "":
		return "", "the host is empty"
	case len(s) > 253:
		return "", "the host has more than 253 characters"
	case last == "":
		return "", "the host ends with a dot, which servers do not agree on: " + Quote(s)
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.ContainsFunc(label, func(c rune) bool {
			return c >= utf8.RuneSelf || !isLower(byte(c)) && (c < '0' || c > '9') && c != '-' && c != '_'
		}) {
			return "", "the host is no name: " + Quote(s)
		}
	}
	// What ends in a number is an address to some, such as 127.1 and 0x7f.1.
	if last[0] >= '0' && last[0] <= '9' && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")) {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return "", "the host is no IPv4 address: " + Quote(s)
		}
	}
	return s, ""
}

// IsAddress tells whether what [Host] returned is an IP address.
func IsAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// Secret tells whether a header's values are in no event. Names are in lower case.
func Secret(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie":
		return true
	}
	return false
}

// Quote quotes text from outside for a message, and shortens it.
func Quote(s string) string {
	if short := Cut(s, 64); short != s {
		return strconv.Quote(short) + "..."
	}
	return strconv.Quote(s)
}

// Cut shortens a string, and leaves no half of a character.
func Cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
