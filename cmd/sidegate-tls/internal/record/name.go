// SPDX-License-Identifier: Apache-2.0

package record

import (
	"net/netip"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// serverNameList reads RFC 6066's ServerNameList. It must have one name, a host's: there are no other types.
func serverNameList(s cryptobyte.String) (string, error) {
	var list, name cryptobyte.String
	var kind uint8
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() ||
		!list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) {
		return "", violation(DecodeError, "server name is malformed")
	}
	if kind != 0 {
		return "", violation(UnrecognizedName, "server name of type %d", kind)
	}
	if !list.Empty() {
		return "", violation(UnrecognizedName, "more than one server name")
	}
	return hostName(string(name))
}

// hostName returns a DNS name in lower case and without the dot of the root.
//
// A label has letters, digits, underscores, and hyphens but not as its first, which is what crypto/x509 takes for a name. The last
// is not a number in any notation: many resolvers take such a name for an IPv4 address (WHATWG URL, "ends in a number").
func hostName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "", violation(UnrecognizedName, "server name %.80q is an IP address", s)
	}
	if !validHostName(name) {
		return "", violation(UnrecognizedName, "server name %.80q is not a DNS name", s)
	}
	return strings.ToLower(name), nil
}

func validHostName(name string) bool {
	if len(name) > 253 {
		return false
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !isAlphanumeric(c) && c != '-' && c != '_' {
				return false
			}
		}
	}
	return !isNumber(labels[len(labels)-1])
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isNumber takes decimal, octal and hexadecimal ones, "0x" with no digits too.
func isNumber(label string) bool {
	digits := "0123456789"
	lower := strings.ToLower(label)
	if hex, ok := strings.CutPrefix(lower, "0x"); ok {
		lower, digits = hex, digits+"abcdef"
	}
	return strings.Trim(lower, digits) == ""
}
