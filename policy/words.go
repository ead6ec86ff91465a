// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strconv"
	"strings"
)

// show makes text from outside fit for an error message: short, on one line, quoted unless it is plain.
func show(s string) string {
	const most = 64
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "..."
	}
	plain := s != ""
	for _, c := range []byte(s) {
		plain = plain && (isAlnum(c) || strings.IndexByte("._/:+-", c) >= 0)
	}
	if plain && (s[0] >= '0' && s[0] <= '9' || strings.IndexByte("+-.", s[0]) >= 0 || strings.Contains(s, ":")) {
		return s + cut
	}
	return strconv.Quote(s) + cut
}

// or lists words: a, b or c.
func or(words []string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// nearest returns the word with the smallest edit distance, the first of several.
func nearest(s string, words []string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	best, dist := "", 1<<30
	for _, w := range words {
		if d := distance(strings.ToLower(s), strings.ToLower(w)); d < dist {
			best, dist = w, d
		}
	}
	return best
}

// didYouMean returns a near word or lists all of them.
func didYouMean(s string, words []string) string {
	if w := nearest(s, words); w != "" && distance(strings.ToLower(s), strings.ToLower(w)) <= max(1, len(w)/3) {
		return "did you mean " + w + "?"
	}
	words = slices.Clone(words)
	slices.Sort(words)
	return "write " + or(words)
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next := min(row[j+1]+1, row[j]+1, diagonal+cost)
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// isDNSLabel is RFC 1123's, as Kubernetes has it: lower case, digits and '-', at most 63.
func isDNSLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (!isAlnum(c) || c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return true
}

// isName is what runtimes take for a container's or pod's name.
func isName(s string) bool {
	if s == "" || len(s) > 253 || !isAlnum(s[0]) {
		return false
	}
	for _, c := range []byte(s) {
		if !isAlnum(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// isLabelWord is the name part of a label's key, and (or empty) a label's value.
func isLabelWord(s string) bool {
	return len(s) <= 63 && isName(s) && isAlnum(s[len(s)-1])
}

// labelKeyProblem returns what is wrong with the key of a label, by Kubernetes' rules.
func labelKeyProblem(key string) string {
	prefix, name, has := strings.Cut(key, "/")
	if !has {
		prefix, name = "", key
	}
	ok := isLabelWord(name)
	if has {
		ok = ok && len(prefix) <= 253
		for part := range strings.SplitSeq(prefix, ".") {
			ok = ok && isDNSLabel(part)
		}
	}
	if ok {
		return ""
	}
	return show(key) + " is not a label's key: write name or example.com/name, the name with at most 63 of A-Z a-z 0-9 - _ . and a letter or digit at both ends"
}

// labelValueProblem returns what is wrong with the value of a label, by Kubernetes' rules.
func labelValueProblem(value string) string {
	if value == "" || isLabelWord(value) {
		return ""
	}
	return show(value) + " is not a label's value: write at most 63 of A-Z a-z 0-9 - _ . with a letter or digit at both ends"
}

func dnsLabelProblem(s string) string {
	if isDNSLabel(s) {
		return ""
	}
	return show(s) + " is not a name: write at most 63 of a-z 0-9 - with a letter or digit at both ends, such as web-1"
}

func nameProblem(s, what string) string {
	if isName(s) {
		return ""
	}
	return show(s) + " is not " + what + ": write A-Z a-z 0-9 _ . - starting with a letter or digit"
}

// podNameProblem lets a pod have the name of its namespace before its own, as Kubernetes writes it.
func podNameProblem(s string) string {
	namespace, name, has := strings.Cut(s, "/")
	if has && isName(namespace) && isName(name) {
		return ""
	}
	return nameProblem(s, "the name of a pod")
}

// list joins names, the first twenty of them.
func list(names []string) string {
	const most = 20
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return strings.Join(names[:most], ", ") + " and " + strconv.Itoa(len(names)-most) + " more"
}

// several joins the words of the first four items.
func several[T any](items []T, separator string, words func(T) string) string {
	const most = 4
	var out []string
	for _, item := range items[:min(most, len(items))] {
		out = append(out, words(item))
	}
	text := strings.Join(out, separator)
	if more := len(items) - most; more > 0 {
		text += " and " + strconv.Itoa(more) + " more"
	}
	return text
}
