// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The table of values stands between these lines of the chart's README.md.
const (
	tableBegin = "<!-- make kubernetes writes what follows, from values.yaml -->\n"
	tableEnd   = "<!-- up to here -->\n"
)

var key = regexp.MustCompile(`^( *)([A-Za-z]\w*):(?: (.*))?$`)

// row is a value of values.yaml.
type row struct {
	key, value, text string
	indent           int
	parent           bool // of others
}

// table makes a table of values.yaml: each key with a value, and the comment above it.
func table(values string) string {
	var rows []row
	var path []row
	text := ""
	for line := range strings.Lines(values) {
		line = strings.TrimSuffix(line, "\n")
		if comment, ok := strings.CutPrefix(strings.TrimSpace(line), "#"); ok {
			text += comment + "\n"
			continue
		}
		m := key.FindStringSubmatch(line)
		if m == nil {
			text = ""
			if item := strings.TrimSpace(line); strings.HasPrefix(item, "- ") && len(rows) > 0 { // a list's
				last := &rows[len(rows)-1]
				last.value += item + "; "
			}
			continue
		}
		for len(path) > 0 && path[len(path)-1].indent >= len(m[1]) {
			path = path[:len(path)-1]
		}
		one := row{key: m[2], value: m[3], indent: len(m[1]), text: text}
		if len(path) > 0 {
			one.key = path[len(path)-1].key + "." + one.key
			for i := range rows {
				rows[i].parent = rows[i].parent || rows[i].key == path[len(path)-1].key
			}
		}
		rows, path, text = append(rows, one), append(path, one), ""
	}
	var b strings.Builder
	b.WriteString("| value | default | |\n|---|---|---|\n")
	for _, r := range rows {
		// An example, which does not fit into a table, begins after an empty line.
		text, _, _ := strings.Cut(r.text, "\n\n")
		text = strings.Join(strings.Fields(text), " ")
		value := strings.TrimSuffix(r.value, "; ")
		if value != "" {
			value = "`" + value + "`"
		}
		if r.parent && text == "" {
			continue
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.key, value, strings.ReplaceAll(text, "|", `\|`))
	}
	return b.String()
}

func TestTable(t *testing.T) {
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(chart, "README.md")
	readme, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(readme), tableBegin)
	_, after, end := strings.Cut(rest, tableEnd)
	if !ok || !end {
		t.Fatalf("%s has no place for the table", file)
	}
	current(t, file, before+tableBegin+table(string(values))+tableEnd+after)
}
