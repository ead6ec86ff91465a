// SPDX-License-Identifier: Apache-2.0

package text

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"web":                "web",
		"\x1b[31mred\x1b[0m": "\uFFFD[31mred\uFFFD[0m",
		"a\nb\tc\r":          "a\uFFFDb\uFFFDc\uFFFD",
		"\u009b2J":           "\uFFFD2J", // CSI in one character
		"\xff\xfe":           "\uFFFD",
		"a\u202Egnp.exe":     "a\uFFFDgnp.exe",
		"日本 é 👩\u200D🔧":      "日本 é 👩\u200D🔧",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzCut(f *testing.F) {
	f.Add("日本語", 3)
	f.Add("\x1b]0;title\a", 5)
	f.Fuzz(func(t *testing.T, s string, cells int) {
		cells %= 100
		got := Cut(Clean(s), cells)
		if Width(got) > max(cells, 0) || !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("Cut(%q, %d) = %q, %d cells", s, cells, got, Width(got))
		}
	})
}
