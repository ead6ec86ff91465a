// SPDX-License-Identifier: Apache-2.0

// Package docs checks what the pages for people say against what is there: files, anchors, commands, flags, policies, error texts and
// figures.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"sidegate/policy"
)

const root = "../.."

// A page is a Markdown file.
type page struct {
	name     string // relative to the repository
	prose    string // without blocks of code
	blocks   []block
	headings []string
}

// A block is one of code, fenced or indented.
type block struct {
	line     int
	language string // of a fenced one; "indented" of others
	text     string
}

var fence = regexp.MustCompile("^ {0,3}```([a-z]*)")

// pages reads all Markdown files of the repository.
func pages(t *testing.T) (list []*page) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "bin", "build"}, d.Name()):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md" || strings.Contains(path, "/internal/"): // those are parts of pages
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		list = append(list, parse(name, string(text)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 10 {
		t.Fatalf("only %d pages", len(list))
	}
	return list
}

func parse(name, text string) *page {
	p := &page{name: name}
	var prose strings.Builder
	var open *block
	blank := true
	for i, line := range strings.Split(text, "\n") {
		mark := fence.FindStringSubmatch(line)
		indented := strings.HasPrefix(line, "    ")
		switch {
		case open != nil && open.language != "indented" && mark != nil:
			p.blocks, open = append(p.blocks, *open), nil
		case open != nil && open.language != "indented":
			open.text += line + "\n"
		case mark != nil:
			open = &block{line: i + 1, language: mark[1]}
		case indented && (open != nil || blank):
			if open == nil {
				open = &block{line: i + 1, language: "indented"}
			}
			open.text += line[4:] + "\n"
		default:
			if open != nil && strings.TrimSpace(line) != "" {
				p.blocks, open = append(p.blocks, *open), nil
			}
			prose.WriteString(line)
			if strings.HasPrefix(line, "#") {
				p.headings = append(p.headings, strings.TrimSpace(strings.TrimLeft(line, "#")))
			}
		}
		prose.WriteByte('\n')
		blank = strings.TrimSpace(line) == ""
	}
	if open != nil {
		p.blocks = append(p.blocks, *open)
	}
	p.prose = prose.String()
	return p
}

// anchors are those that GitHub makes of headings.
func (p *page) anchors() map[string]bool {
	all := map[string]bool{}
	seen := map[string]int{}
	for _, h := range p.headings {
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, h)
		n := seen[slug]
		seen[slug]++
		if n > 0 {
			slug += "-" + strconv.Itoa(n)
		}
		all[slug] = true
	}
	return all
}

var (
	codeSpan = regexp.MustCompile("`[^`]*`")
	link     = regexp.MustCompile(`\]\(([^()\s]+)\)`)
)

func TestParse(t *testing.T) {
	p := parse("x.md", "# A `b.c[]`\n\ntext [x](y) `[x](z)`\n\n```sh\nls\n```\n\n    echo\n\n    done\n\n# A b\n## A b\n")
	if len(p.blocks) != 2 || p.blocks[0] != (block{5, "sh", "ls\n"}) || p.blocks[1].language != "indented" || p.blocks[1].line != 9 {
		t.Errorf("blocks: %+v", p.blocks)
	}
	if a := p.anchors(); !a["a-bc"] || !a["a-b"] || !a["a-b-1"] || len(a) != 3 {
		t.Errorf("anchors: %v", a)
	}
	if links := link.FindAllString(codeSpan.ReplaceAllString(p.prose, ""), -1); len(links) != 1 {
		t.Errorf("links: %v", links)
	}
}

// Links lead to files that are there, and to headings in them.
func TestLinks(t *testing.T) {
	list := pages(t)
	anchors := map[string]map[string]bool{}
	for _, p := range list {
		anchors[p.name] = p.anchors()
	}
	count := 0
	for _, p := range list {
		for _, m := range link.FindAllStringSubmatch(codeSpan.ReplaceAllString(p.prose, "``"), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			count++
			file := p.name
			if target != "" {
				file = filepath.Join(filepath.Dir(p.name), target)
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s: link %s: %v", p.name, m[1], err)
				continue
			}
			if anchor != "" && !anchors[file][anchor] {
				t.Errorf("%s: link %s: no heading of %s makes this anchor", p.name, m[1], file)
			}
		}
	}
	if count < 50 {
		t.Errorf("only %d links", count)
	}
}

// The index has every page.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		if name, ok := strings.CutPrefix(p.name, "docs/"); ok && name != "README.md" && !strings.Contains(string(index), "]("+name+")") {
			t.Errorf("docs/README.md does not list %s", name)
		}
	}
}

// Policies that a page has are read.
func TestPolicies(t *testing.T) {
	count := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			text := b.text
			if b.language == "sh" { // in a here-document
				_, rest, _ := strings.Cut(text, "<<'END'\n")
				text, _, _ = strings.Cut(rest, "\nEND\n")
			}
			if !strings.Contains(text, "apiVersion: "+policy.APIVersion) || !strings.Contains(text, "kind: "+policy.Kind) {
				continue
			}
			count++
			if _, err := policy.Parse(p.name, []byte(text+"\n")); err != nil {
				t.Errorf("%s, line %d: %v", p.name, b.line, err)
			}
		}
	}
	if count < 3 {
		t.Errorf("only %d policies", count)
	}
}
