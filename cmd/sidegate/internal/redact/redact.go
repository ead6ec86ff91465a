// SPDX-License-Identifier: Apache-2.0

// Package redact takes secrets out of text that people send to others. It knows
// them by their names and by their looks, and takes rather too much: a line that
// is gone can be asked for, a password that is out cannot be taken back.
//
// It is the second line of defense. What can be picked by an allow list is, by
// who reads it.
package redact

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Mark stands where a secret was.
const Mark = "[redacted]"

// Text returns text without secrets. A secret may be cut off at either end of it.
func Text(text string) string {
	var s scanner
	for line := range strings.Lines(blocks(text)) {
		s.line(line)
	}
	s.out.WriteString(s.held)
	return s.out.String()
}

// JSON returns v, indented, each string of it without secrets: all of it under a key
// that names one.
func JSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var tree any
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber() // numbers of 64 bits
	if err := dec.Decode(&tree); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	b, err = json.MarshalIndent(walk(tree), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return append(b, '\n'), nil
}

func walk(v any) any {
	switch v := v.(type) {
	case string:
		return Text(v)
	case []any:
		for i := range v {
			v[i] = walk(v[i])
		}
	case map[string]any:
		clean := make(map[string]any, len(v))
		for k, e := range v {
			if name, ok := v["name"].(string); IsSecretName(k) || ok && k != "name" && IsSecretName(name) {
				clean[Text(k)] = Mark
				continue
			}
			clean[Text(k)] = walk(e)
		}
		return clean
	}
	return v
}

// word is a part of the name of a secret, wherever it is in the name; whole is one
// that is a part of harmless names too.
const (
	word   = `passw(?:or)?d|passwd|passphrase|passcode|pwd|secret|token|credential|bearer|jwt|(?:api|access|priv|private|signing|encryption|account|shared|master|session|auth)[_.-]?key`
	whole  = `auths?|authorization|cookies?|psk|pass|htpasswd`
	values = `value|exact|prefix|suffix|regex|match|content|data|text|default`
	name   = `[A-Za-z0-9_.$/-]*(?:` + word + `)[A-Za-z0-9_.$/-]*|(?:[A-Za-z0-9_.$/-]*[_./-])?(?:` + whole + `)(?:[_-][A-Za-z0-9_.-]*)?`
)

var (
	nameOnly = regexp.MustCompile(`(?i)^(?:` + name + `)$`)
	// A name, what closes its quotes, and what is between it and its value.
	keyed = regexp.MustCompile(`(?i)(^|[^A-Za-z0-9_.$/-])(` + name + `)(\\*["'])?\]?[ \t]*(:=|=>|=|:)[ \t]*`)
	flag  = regexp.MustCompile(`(?i)(^|[ \t"'\[,])(-{1,2}(?:` + name + `))(["']?[ \t,]+["']?)([^ \t"']+)`)
	prose = regexp.MustCompile(`(?i)(^|[^A-Za-z0-9_-])((?:` + word + `)s?[ \t]+)[^ \t].*`)
	pair  = regexp.MustCompile(`(?i)\b(?:name|key|header)(\\*["'])?[ \t]*[:=][ \t]*(\\*["'])?(?:` + name + `)(?:\\*["']|[ \t]*[,}\r\n]|[ \t]*$)`)
	// What the sibling of a name is called that has its value.
	value  = regexp.MustCompile(`(?i)^[ \t#*/;>|-]*["']?(?:` + values + `)`)
	valued = regexp.MustCompile(`(?i)[{, \t"'](?:` + values + `)["']*[ \t]*[:=]`)
)

// IsSecretName tells whether what has this name is a secret.
func IsSecretName(s string) bool { return nameOnly.MatchString(s) }

// scanner redacts what is known by its name, which may go on for lines.
type scanner struct {
	out strings.Builder

	deeper int    // drop lines that are indented by more than this
	until  string // or all until this
	block  bool   // deeper holds
	more   bool   // the line before ends in a backslash
	paired bool   // deeper is the column of a secret's name, whose siblings have its value
	held   string // the line before, if it may be the value of a name that follows
}

func (s *scanner) line(line string) {
	text := strings.TrimRight(line, "\r\n")
	end := line[len(text):]
	if s.until == "" {
		text = looks(text)
	}
	if s.held != "" {
		if hinted(text) && pair.MatchString(text) {
			s.held = Mark + end
		}
		s.out.WriteString(s.held)
		s.held = ""
	}
	switch {
	case s.until != "":
		i := strings.Index(text, s.until)
		if i < 0 {
			return
		}
		text = looks(text[i+len(s.until):])
		s.until = ""
		s.out.WriteString(Mark + s.rest(text) + end)
		return
	case s.more:
		s.more = strings.HasSuffix(text, `\`)
		return
	case s.paired && text != "" && (column(text) < s.deeper || strings.HasPrefix(strings.TrimLeft(text, " \t#"), "-")):
		s.paired = false
	case s.paired && value.MatchString(text):
		s.block = true
		if i := strings.IndexAny(text, ":="); i >= 0 {
			s.out.WriteString(text[:i+1] + " " + Mark + end)
		}
		return
	case s.block && (strings.TrimSpace(text) == "" || column(text) > s.deeper && !strings.HasPrefix(strings.TrimSpace(text), "}")):
		return
	}
	s.block = false
	if hinted(text) && pair.MatchString(text) {
		if valued.MatchString(text[column(text):]) {
			s.out.WriteString(text[:column(text)] + Mark + end)
			return
		}
		s.paired, s.deeper = true, column(text) // a sibling may have it
	}
	done := s.rest(text) + end
	if value.MatchString(text) {
		s.held = done
		return
	}
	s.out.WriteString(done)
}

// column is where the first word of a line begins: behind the marks of lists and
// comments too.
func column(line string) int {
	return len(line) - len(strings.TrimLeft(line, " \t#*/;>|-\"'"))
}

// hints are in every name: most lines have none, and need no more than that.
var hints = []string{"pass", "pwd", "secret", "token", "credential", "bearer", "jwt", "key", "session", "auth", "cookie", "psk"}

func hinted(text string) bool {
	text = strings.ToLower(text)
	for _, h := range hints {
		if strings.Contains(text, h) {
			return true
		}
	}
	return false
}

// rest redacts a line, or what is left of one.
func (s *scanner) rest(text string) string {
	if !hinted(text) {
		return text
	}
	var b strings.Builder
	for isFirst := true; ; isFirst = false {
		m := keyed.FindStringSubmatchIndex(text)
		if m == nil {
			break
		}
		// What is before has no name that is followed by a mark.
		b.WriteString(loose(text[:m[0]]) + text[m[0]:m[1]] + Mark)
		isFirst = isFirst && column(text) >= m[4]
		sep := text[m[8]:m[1]]
		n := s.value(text[m[1]:], sep, text[m[4]:m[5]])
		if n < 0 { // all of the line, and perhaps more
			s.more = strings.HasSuffix(text, `\`)
			if s.until == "" && isFirst {
				s.block, s.deeper = true, column(text)
			}
			return b.String()
		}
		text = text[m[1]+n:]
	}
	return b.String() + loose(text)
}

// value returns how long a secret is that begins here, or -1 if it goes on to the
// line's end at least.
func (s *scanner) value(text, sep, key string) int {
	for _, triple := range []string{`"""`, `'''`} {
		if inner, ok := strings.CutPrefix(text, triple); ok {
			if i := strings.Index(inner, triple); i >= 0 {
				return i + 2*len(triple)
			}
			s.until = triple
			return -1
		}
	}
	escapes := len(text) - len(strings.TrimLeft(text, `\`))
	if quoted := text[escapes:]; quoted != "" && (quoted[0] == '"' || quoted[0] == '\'') {
		n := closing(text, escapes, quoted[0])
		if n < 0 {
			s.until = text[:escapes+1]
			return -1
		}
		// What follows a string at once is a part of it: 'a'"b".
		if n < len(text) && !strings.ContainsRune(" \t,}])\\\"';:&", rune(text[n])) || n < len(text) && (text[n] == '"' || text[n] == '\'') && escapes == 0 && sep == "=" {
			return -1
		}
		return n
	}
	word, _, _ := strings.Cut(text, " ")
	word, _, _ = strings.Cut(word, "\t")
	lower := strings.ToLower(key)
	if sep != "=" || strings.ContainsAny(word, "\"'`[{(\\") || word == "" || strings.Contains(lower, "cookie") || strings.Contains(lower, "auth") {
		return -1
	}
	return len(word)
}

// closing returns where the string ends that begins with a quote behind as many
// backslashes, or -1.
func closing(text string, escapes int, quote byte) int {
	for i := escapes + 1; i < len(text); i++ {
		if text[i] != quote {
			continue
		}
		back := 0
		for j := i - 1; j > escapes && text[j] == '\\'; j-- {
			back++
		}
		switch {
		case quote == '\'' && escapes == 0:
			if i+1 < len(text) && text[i+1] == '\'' { // YAML's
				i++
				continue
			}
			return i + 1
		case escapes == 0 && back%2 == 0, escapes > 0 && back == escapes:
			return i + 1
		}
	}
	return -1
}

// loose redacts what follows a name without a sign between: of words that people write,
// all that follows.
func loose(text string) string {
	text = flag.ReplaceAllString(text, "${1}${2}${3}"+Mark)
	return prose.ReplaceAllString(text, "${1}${2}"+Mark)
}
