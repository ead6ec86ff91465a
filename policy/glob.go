// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// patternProblem returns what is wrong with the pattern of a UNIX socket's name, or nothing. See [UnixAllow].
func patternProblem(p string) string {
	switch {
	case len(p) > maxUnixPath:
		return fmt.Sprintf("the pattern has %d bytes: write at most %d, which is also the longest name of a socket", len(p), maxUnixPath)
	case !utf8.ValidString(p) || strings.Contains(p, "\x00"):
		return show(p) + " has bytes that are no text: write ? for each of them"
	}
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			if i++; i == len(p) {
				return show(p) + ` ends with a \, which quotes what follows it: write \\ for the character itself`
			}
		case '[':
			n, msg := class(p[i:])
			if msg != "" {
				return show(p) + ": " + msg
			}
			i += n - 1
		}
	}
	return ""
}

// unquoted returns a pattern without the \ that quote.
func unquoted(p string) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] == '\\' && i+1 < len(p) {
			i++
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// class returns the length of the class that p starts with, or what is wrong with it. What shells do not agree on (a -
// at its ends, [ in it, ^ for !) has to be quoted.
func class(p string) (n int, problem string) {
	n = 1
	if strings.HasPrefix(p, "[!") {
		n = 2
	}
	if strings.HasPrefix(p[n:], "]") {
		return 0, `there is nothing between [ and ]: list the characters, or write \[ for the character itself`
	}
	if strings.HasPrefix(p[n:], "^") {
		return 0, `[^ is [! to some and ^ itself to others: write [! or \^`
	}
	for !strings.HasPrefix(p[n:], "]") {
		first, size, msg := member(p[n:])
		if msg != "" {
			return 0, msg
		}
		n += size
		rest, isRange := strings.CutPrefix(p[n:], "-")
		if !isRange {
			continue
		}
		last, size, msg := member(rest)
		if msg != "" {
			return 0, msg
		}
		if last < first {
			return 0, fmt.Sprintf("the range %c-%c is reversed: write %c-%c", first, last, last, first)
		}
		n += 1 + size
	}
	return n + 1, ""
}

// member reads a character of a class, with the \ that may quote it.
func member(p string) (b byte, size int, problem string) {
	if p == "" || p == `\` {
		return 0, 0, `a [ has no ] after it: write one, or \[ for the character itself`
	}
	b, size = p[0], 1
	if b == '\\' {
		b, size = p[1], 2
	}
	switch {
	case b == '/':
		return 0, 0, "a / is in no class: write it outside of [ and ]"
	case b >= utf8.RuneSelf:
		return 0, 0, "a class stands for one byte, and has ASCII characters only: write ? for each byte of another one"
	case size == 1 && (b == '-' || b == ']'):
		return 0, 0, `a - stands between two characters of a class: write \- for the character itself`
	case size == 1 && b == '[':
		return 0, 0, `a [ is in a class: write \[ for the character itself`
	}
	return b, size, ""
}
