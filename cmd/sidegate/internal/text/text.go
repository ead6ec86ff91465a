// SPDX-License-Identifier: Apache-2.0

// Package text shows people strings that others made.
package text

import (
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// Clean replaces all that a terminal could take for a command, and what changes the direction of writing. Names are as
// their containers' makers wrote them.
func Clean(s string) string {
	const joiner = '\u200D' // inside of emoji
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) || unicode.Is(unicode.Cf, r) && r != joiner {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
}

// Cut keeps what fits into cells of a terminal, and marks what is missing.
func Cut(s string, cells int) string {
	if cells <= 0 {
		return ""
	}
	return ansi.Truncate(s, cells, "…")
}

// Width is how many cells of a terminal s takes.
func Width(s string) int { return ansi.StringWidth(s) }
