// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidegate/bpf"
)

// literals lists the strings of Sidegate's own Go sources. Those that a + joins are one, with unknown for what is no constant.
func literals(t *testing.T) (list []string) {
	t.Helper()
	for _, dir := range []string{"bpf", "cgroups", "cmd", "dockerplugin", "nri", "observe", "oci-hook", "policy"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				e, ok := n.(ast.Expr)
				if !ok {
					return true
				}
				text, ok := said(e)
				if ok {
					list = append(list, text)
				}
				return !ok
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// unknown stands for a part of a string that the source does not tell.
const unknown = "\x00"

// said is the value of a string, or of several that are joined of which one at least is constant.
func said(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		return text, e.Kind == token.STRING && err == nil
	case *ast.BinaryExpr:
		x, okX := said(e.X)
		y, okY := said(e.Y)
		if e.Op != token.ADD || !okX && !okY {
			return "", false
		}
		if !okX {
			x = unknown
		}
		if !okY {
			y = unknown
		}
		return x + y, true
	}
	return "", false
}

const troubleshooting = "docs/troubleshooting.md"

// quotes lists the error texts that the page quotes: the code in its block quotations.
func quotes(t *testing.T) (list []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, troubleshooting))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "> ") {
			continue
		}
		spans := codeSpan.FindAllString(line, -1)
		if len(spans) == 0 {
			t.Errorf("%s: a quotation without an error text: %s", troubleshooting, line)
		}
		for _, s := range spans {
			list = append(list, strings.Trim(s, "`"))
		}
	}
	return list
}

// quoted tells whether a program can say text, in which "..." stands for what differs: whether one string has all of its parts in
// their order.
func quoted(literals []string, text string) bool {
	parts := strings.Split(text, "...")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(strings.TrimSpace(parts[i]))
	}
	pattern := regexp.MustCompile("(?s)" + strings.Join(parts, ".*"))
	return slices.ContainsFunc(literals, pattern.MatchString)
}

// Error texts that the page quotes are in the sources.
func TestErrorTexts(t *testing.T) {
	all := literals(t)
	list := quotes(t)
	if len(list) < 50 {
		t.Errorf("only %d error texts", len(list))
	}
	for _, text := range list {
		if strings.Trim(text, ". :") == "" {
			t.Errorf("%s quotes %q, which says nothing", troubleshooting, text)
		} else if !quoted(all, text) {
			t.Errorf("%s quotes %q, which no program says", troubleshooting, text)
		}
	}
	if quoted(all, "this is said by nobody") || quoted(all, "is not a role: write ... container ... wants") {
		t.Error("what nobody says counts as said")
	}
}

// Every reason is on the page, with its meaning.
func TestDropReasons(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, troubleshooting))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, c := range bpf.CounterInfos() {
		if !c.Drop {
			continue
		}
		rows++
		if row := "\n| `" + c.Name + "` | " + c.Text + " | "; !strings.Contains(string(text), row) {
			t.Errorf("%s has no row %q", troubleshooting, strings.TrimSpace(row))
		}
	}
	_, table, _ := strings.Cut(string(text), "\n## Drop reasons\n")
	if got := strings.Count(table, "\n| `"); got != rows {
		t.Errorf("%s has %d reasons, there are %d", troubleshooting, got, rows)
	}
}

// cells are those of a table's row.
func cells(row string) (list []string) {
	for c := range strings.SplitSeq(strings.Trim(row, "|"), "|") {
		list = append(list, strings.TrimSpace(c))
	}
	return list
}

// The classes of attacks have the counts that docs/escapes.md has, which make escape writes.
func TestEscapeCounts(t *testing.T) {
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	table := func(text, head string) (rows [][]string) {
		_, rest, found := strings.Cut(text, "\n"+head)
		if !found {
			t.Fatalf("there is no table %s", head)
		}
		for _, row := range strings.Split(rest, "\n")[2:] {
			if !strings.HasPrefix(row, "|") {
				break
			}
			rows = append(rows, cells(row))
		}
		return rows
	}
	const head = "| open, of | cases | nothing | iptables |"
	want := table(read("docs/escapes.md"), head)
	if len(want) < 10 {
		t.Fatalf("docs/escapes.md has %d classes", len(want))
	}
	same := func(a, b [][]string) bool { return slices.EqualFunc(a, b, slices.Equal[[]string]) }
	if got := table(read("README.md"), head); !same(got, want) {
		t.Errorf("README.md has other counts than docs/escapes.md: %v, want %v", got, want)
	}
	var short [][]string
	for _, row := range want { // class, cases, nothing, iptables, iptables+caps, sidegate, sidegate-user
		short = append(short, append([]string{row[0], row[1]}, row[3:]...))
	}
	var got [][]string
	for _, row := range table(read("docs/threat-model.md"), "| class | what is tried | cases | iptables |") {
		got = append(got, append([]string{row[0]}, row[2:]...))
	}
	if !same(got, short) {
		t.Errorf("docs/threat-model.md has other counts than docs/escapes.md: %v, want %v", got, short)
	}
}

var caption = regexp.MustCompile(`(Linux [^<]*?), load [0-9.]+, ([0-9-]+ [0-9:]+ UTC)`)

// The page has the machine and the date of its charts, which make bench draws.
func TestBenchMachine(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	charts, err := filepath.Glob(filepath.Join(root, "docs/bench-*.svg"))
	if err != nil || len(charts) == 0 {
		t.Fatalf("no charts: %v", err)
	}
	for _, chart := range charts {
		svg, err := os.ReadFile(chart)
		if err != nil {
			t.Fatal(err)
		}
		m := caption.FindSubmatch(svg)
		if m == nil {
			t.Errorf("%s has no caption", chart)
			continue
		}
		if row := "| " + string(m[1]) + " | " + string(m[2]) + " |"; !strings.Contains(string(text), row) {
			t.Errorf("docs/performance.md has no figures of %s: %s", filepath.Base(chart), row)
		}
		if !strings.Contains(string(text), "("+filepath.Base(chart)+")") {
			t.Errorf("docs/performance.md does not show %s", filepath.Base(chart))
		}
	}
}
