// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// others are programs that pages may call, and that are not looked at.
var others = []string{
	"[", "awk", "cat", "cp", "ctr", "curl", "docker", "echo", "fuser", "helm", "journalctl", "kubectl", "ln", "mkdir", "modprobe", "mount", "nerdctl",
	"openssl", "podman", "rm", "systemctl",
}

// own are Sidegate's programs.
var own = []string{"sidegate", "sidegate-nri", "sidegate-docker", "sidegate-tls"}

// commands splits a shell's text into simple commands. It knows no more of a shell than pages use.
func commands(text string) (list [][]string) {
	text = hereDocument.ReplaceAllString(text, "\n")
	text = strings.ReplaceAll(text, "\\\n", " ")
	text = substitution.ReplaceAllString(text, "\n$1\nX=") // what is left of it is an assignment, or arguments of one
	for line := range strings.Lines(text) {
		for _, part := range separator.Split(withoutComment(line), -1) {
			words := strings.Fields(part)
			for len(words) > 0 && assignment.MatchString(words[0]) {
				words = words[1:]
			}
			if len(words) > 0 {
				list = append(list, words)
			}
		}
	}
	return list
}

var (
	hereDocument = regexp.MustCompile(`(?s) ?<<'END'\n.*?\nEND\n`)
	substitution = regexp.MustCompile(`[A-Z]+=\$\(([^()]*)\)`)
	separator    = regexp.MustCompile(`\s(?:&&|\|\||\||;)\s`)
	quotation    = regexp.MustCompile(`(?m)^> .*`) // of what programs say
	assignment   = regexp.MustCompile(`^[A-Z_]+=`)
)

func withoutComment(line string) string {
	if line == "" || line[0] == '#' {
		return ""
	}
	before, _, _ := strings.Cut(line, " # ")
	before, _, _ = strings.Cut(before, "  #")
	return before
}

// called finds Sidegate's program among the words of a command, also behind kubectl exec and the like.
func called(words []string) []string {
	if slices.Contains(own, filepath.Base(words[0])) {
		return words
	}
	if i := slices.Index(words, "--"); i >= 0 && i+1 < len(words) && slices.Contains(own, filepath.Base(words[i+1])) {
		return words[i+1:]
	}
	return nil
}

// helper asks programs what they know.
type helper struct {
	dir   string
	known map[string]string
}

// help is what a program says of one of its commands; ok tells whether it has that.
func (h *helper) help(t *testing.T, program string, sub []string) (text string, ok bool) {
	t.Helper()
	key := strings.Join(append([]string{program}, sub...), " ")
	if _, has := h.known[key]; !has {
		out, err := exec.Command(filepath.Join(h.dir, program), append(slices.Clone(sub), "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%s --help: %v: %s", key, err, out)
		}
		h.known[key] = string(out)
	}
	text = h.known[key]
	// cobra answers an unknown command with the help of the one above.
	return text, len(sub) == 0 || program != "sidegate" || strings.Contains(text, "\n  "+key+" ") || strings.Contains(text, "\n  "+key+"\n")
}

var flagWord = regexp.MustCompile(`^--?([a-z][a-z-]*)`)

// check says what is wrong with a call.
func (h *helper) check(t *testing.T, words []string) string {
	program := filepath.Base(words[0])
	var sub []string
	for _, w := range words[1:] {
		if !regexp.MustCompile(`^[a-z]+$`).MatchString(w) || program != "sidegate" && w != "install" || len(sub) == 2 {
			break
		}
		if len(sub) == 1 && sub[0] != "policy" {
			break // an argument
		}
		sub = append(sub, w)
	}
	text, ok := h.help(t, program, sub)
	if !ok {
		return "there is no command " + strings.Join(append([]string{program}, sub...), " ")
	}
	for _, w := range words[1:] {
		m := flagWord.FindStringSubmatch(w)
		if m == nil {
			continue
		}
		short := !strings.HasPrefix(w, "--") && len(m[1]) == 1 && regexp.MustCompile(`(?m)^\s+-`+m[1]+`, --`).MatchString(text)
		if long := regexp.MustCompile(`(?m)^\s+(?:-\w, )?--?` + m[1] + `\b`).MatchString(text); !long && !short {
			return strings.Join(append([]string{program}, sub...), " ") + " has no flag " + w
		}
	}
	return ""
}

// Commands in pages call programs that exist, and Sidegate's with commands and flags that they have.
func TestCommands(t *testing.T) {
	h := &helper{dir: t.TempDir(), known: map[string]string{}}
	if err := lab.Build(h.dir); err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	try := func(p *page, where string, words []string, strict bool) {
		switch mine := called(words); {
		case mine != nil:
			count++
			if msg := h.check(t, mine); msg != "" {
				t.Errorf("%s, %s: %s", p.name, where, msg)
			}
		case words[0] == "make":
			for _, target := range words[1:] {
				if !strings.Contains(target, "=") && !regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(target)+`:`).Match(makefile) {
					t.Errorf("%s, %s: make has no target %s", p.name, where, target)
				}
			}
		case strict && !slices.Contains(others, words[0]):
			t.Errorf("%s, %s: %s is no program that pages call: correct it, or add it to others", p.name, where, words[0])
		}
	}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.language != "sh" && b.language != "indented" {
				continue
			}
			for _, words := range commands(b.text) {
				if b.language == "sh" || slices.Contains(own, words[0]) && !isOutput(words) {
					try(p, "the block at line "+strconv.Itoa(b.line), words, b.language == "sh")
				}
			}
		}
		for _, span := range codeSpan.FindAllString(quotation.ReplaceAllString(p.prose, ""), -1) {
			words := strings.Fields(strings.Trim(span, "`"))
			if len(words) > 1 && slices.Contains(own, words[0]) && !strings.ContainsAny(span, ",[]{}") && !isOutput(words) {
				try(p, "the code "+span, words, true)
			}
		}
	}
	if count < 40 {
		t.Errorf("only %d calls of Sidegate's programs", count)
	}
}

// isOutput tells of what begins with a program's name that it is what the program has printed.
func isOutput(words []string) bool {
	return slices.ContainsFunc(words[1:], func(w string) bool { return strings.HasPrefix(w, "ABI") }) || strings.HasSuffix(words[0], ":")
}

func TestCommandsOf(t *testing.T) {
	got := commands("A=b sidegate status && make x # why\nPID=$(ctr list | awk z)\ncat >f <<'END'\nrm x\nEND\npodman run \\\n  -d a\n")
	var text []string
	for _, words := range got {
		text = append(text, strings.Join(words, " "))
	}
	want := "sidegate status;make x;ctr list;awk z;cat >f;podman run -d a"
	if strings.Join(text, ";") != want {
		t.Errorf("%q, want %q", strings.Join(text, ";"), want)
	}
}
