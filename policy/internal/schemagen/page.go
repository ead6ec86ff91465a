// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"sidegate/policy"
	"sidegate/policy/httprule"
)

// What the page has around the fields. A line that is one of the marks stands for what is generated.
//
//go:embed policy.md
var pageText string

const (
	fieldsMark = "<!-- fields -->"
	limitsMark = "<!-- limits -->"
)

// patternWords says in words what the patterns of a schema stand for.
var patternWords = map[string]string{
	dnsLabel:      "a name: at most 63 of a-z 0-9 -, with a letter or digit at both ends",
	containerName: "the name of a container",
	labelKey:      "the key of a label, as Kubernetes has them",
	labelValue:    "the value of a label, as Kubernetes has them",
	cidr:          "a network, such as 10.0.0.0/8 or fd00::/8",
	absolutePath:  "a path from / on",
	abstractName:  "a name with an @ before it, in quotes",
	hostPattern:   "a host: a name, a name with `*.` before it, or an address",
	sniPattern:    "a name, or a name with `*.` before it",
	method:        "a method, in upper case",
	token:         "the name of a header",
	upgrade:       "the name of a protocol",
	httpPath:      "a path from / on, or `*`",
}

// object is an object of the schema, and the places in a policy where it is.
type object struct {
	schema *jsonschema.Schema
	name   string // of its definition; empty for the document
	paths  []string
}

// title is the heading of what the page says of it. No field has such a one.
func (o *object) title() string {
	if o.name == "" {
		return "Fields of the document"
	}
	return "Fields of " + o.paths[0]
}

// reference writes the page.
type reference struct {
	strings.Builder
	titles map[string]string // of objects, by definition
}

// objects lists all of a schema, each after the one that has it.
func objects(s *jsonschema.Schema) (list []*object) {
	known := map[string]*object{}
	var visit func(o *object, path string)
	visit = func(o *object, path string) {
		if path != "" {
			path += "."
		}
		for p := o.schema.Properties.Oldest(); p != nil; p = p.Next() {
			at, name := path+p.Key, target(p.Value)
			if p.Value.Items != nil {
				at, name = at+"[]", target(p.Value.Items)
			}
			if name == "" {
				continue
			}
			if known[name] != nil {
				known[name].paths = append(known[name].paths, at)
				continue
			}
			next := &object{schema: s.Definitions[name], name: name, paths: []string{at}}
			known[name] = next
			list = append(list, next)
			visit(next, at)
		}
	}
	root := &object{schema: s, paths: []string{""}}
	list = append(list, root)
	visit(root, "")
	return list
}

// target is the definition that a schema refers to, also through a list of conditions.
func target(s *jsonschema.Schema) string {
	for _, part := range s.AllOf {
		if name := target(part); name != "" {
			return name
		}
	}
	return strings.TrimPrefix(s.Ref, "#/$defs/")
}

// page writes the reference of policies.
func page(s *jsonschema.Schema) ([]byte, error) {
	list := objects(s)
	r := reference{titles: map[string]string{}}
	for _, o := range list {
		r.titles[o.name] = o.title()
		depth := 0
		if o.name != "" {
			depth = strings.Count(o.paths[0], ".")
		}
		fmt.Fprintf(&r, "%s- [%s](#%s)\n", strings.Repeat("  ", depth), o.title(), anchor(o.title()))
	}
	for _, o := range list {
		if err := r.section(o); err != nil {
			return nil, err
		}
	}
	text := strings.Replace(pageText, fieldsMark+"\n", r.String(), 1)
	return []byte(strings.Replace(text, limitsMark+"\n", limits(), 1)), nil
}

// anchor is what GitHub makes of a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case strings.ContainsRune("[].`", r):
			return -1
		}
		return r
	}, strings.ToLower(heading))
}

func (r *reference) section(o *object) error {
	fmt.Fprintf(r, "\n### %s\n\n", o.title())
	text := conditions(o.schema)
	if o.schema.Description != "" {
		text = append([]string{sentence(o.schema.Description)}, text...)
	}
	r.WriteString(wrapped(strings.Join(text, " ")))
	if len(o.paths) > 1 {
		r.WriteString("\n" + wrapped("The same fields are in "+quotedList(o.paths[1:])+"."))
	}
	for p := o.schema.Properties.Oldest(); p != nil; p = p.Next() {
		path := p.Key
		if o.paths[0] != "" {
			path = o.paths[0] + "." + p.Key
		}
		if err := r.entry(path, p.Value, has(o.schema.Required, p.Key)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// entry writes one field.
func (r *reference) entry(path string, s *jsonschema.Schema, required bool) error {
	f, known := fieldsOf()[path]
	if !known || f.example == "" {
		return fmt.Errorf("it has no example: write one in examples.go")
	}
	if s.Description == "" {
		return fmt.Errorf("it has no text: write a doc comment at the Go field")
	}
	what, err := r.kind(s)
	if err != nil {
		return err
	}
	without := ""
	switch {
	case required && f.value+f.absent != "":
		return fmt.Errorf("it is required, and has a default in examples.go")
	case required:
		without = "Required"
	case f.value != "":
		without = "Default: `" + f.value + "`"
	case f.absent != "":
		without = "Without it: " + f.absent
	default:
		return fmt.Errorf("nothing says what holds without it: write value or absent in examples.go")
	}
	fmt.Fprintf(r, "\n#### %s\n\n%s\n%s\n```yaml\n%s\n```\n", path,
		wrapped(upper(what)+". "+without+"."), wrapped(sentence(s.Description)), f.example)
	return nil
}

// kind says what a value may be.
func (r *reference) kind(s *jsonschema.Schema) (string, error) {
	switch {
	case s.Const != nil:
		return fmt.Sprintf("always `%v`", s.Const), nil
	case len(s.Enum) > 0:
		return "one of " + enumerated(s), nil
	case target(s) != "":
		title := r.titles[target(s)]
		return fmt.Sprintf("an object, see [%s](#%s)", strings.ToLower(title[:1])+title[1:], anchor(title)), nil
	case len(s.OneOf) == 2:
		return "a port, or a range of ports such as 8000-8100", nil
	case s.Type == "integer":
		return fmt.Sprintf("a number, %s to %s", s.Minimum, s.Maximum), nil
	case s.Type == "boolean":
		return "`true` or `false`", nil
	case s.Type == "array":
		return r.list(s)
	case s.Type == "object" && s.AdditionalProperties != nil:
		return "labels: keys and values, as Kubernetes has them", nil
	case s.Type == "string" && s.Pattern != "":
		word, known := patternWords[s.Pattern]
		if !known {
			return "", fmt.Errorf("pattern %s has no words: write them into patternWords", s.Pattern)
		}
		return word, nil
	case s.Type == "string" && s.MaxLength != nil:
		return fmt.Sprintf("text, at most %d characters", *s.MaxLength), nil
	case s.Type == "string":
		return "text", nil
	}
	return "", fmt.Errorf("schema of type %q is not understood", s.Type)
}

// enumerated lists the words that a value may be. Those that are booleans to some YAML readers are there as such too.
func enumerated(s *jsonschema.Schema) string {
	var all []string
	for _, v := range s.Enum {
		if word, ok := v.(string); ok {
			all = append(all, word)
		}
	}
	return quotedList(all)
}

func (r *reference) list(s *jsonschema.Schema) (string, error) {
	item, err := r.kind(s.Items)
	if err != nil {
		return "", err
	}
	text := "a list; each item is " + item
	for _, part := range s.Items.AllOf {
		if len(part.Required) > 0 {
			text += ", which needs " + quotedList(part.Required)
		}
	}
	var bounds []string
	if s.MinItems != nil {
		bounds = append(bounds, fmt.Sprintf("at least %d", *s.MinItems))
	}
	if s.MaxItems != nil {
		bounds = append(bounds, fmt.Sprintf("at most %d", *s.MaxItems))
	}
	if s.UniqueItems {
		bounds = append(bounds, "none twice")
	}
	if len(bounds) > 0 {
		text += "; " + strings.Join(bounds, ", ")
	}
	return text, nil
}

// conditions says which fields of an object go together.
func conditions(s *jsonschema.Schema) (lines []string) {
	if names := alternatives(s.OneOf); names != "" {
		lines = append(lines, "Exactly one of "+names+" has to be there.")
	}
	if names := alternatives(s.AnyOf); names != "" {
		lines = append(lines, "At least one of "+names+" has to be there.")
	}
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		if needs := s.DependentRequired[p.Key]; needs != nil {
			lines = append(lines, fmt.Sprintf("`%s` needs %s.", p.Key, quotedList(needs)))
		}
		if d := s.DependentSchemas[p.Key]; d != nil {
			for q := d.Properties.Oldest(); q != nil; q = q.Next() {
				line := fmt.Sprintf("`%s` goes with `%s` %s", p.Key, q.Key, enumerated(q.Value))
				if has(d.Required, q.Key) {
					line += ", which has to be written"
				}
				lines = append(lines, line+".")
			}
		}
	}
	if s.Not != nil {
		var together []string
		for p := s.Not.Properties.Oldest(); p != nil; p = p.Next() {
			together = append(together, fmt.Sprintf("`%s: %v`", p.Key, p.Value.Const))
		}
		lines = append(lines, strings.Join(together, " and ")+" do not go together.")
	}
	return lines
}

func alternatives(list []*jsonschema.Schema) string {
	var names []string
	for _, s := range list {
		names = append(names, s.Required...)
	}
	return quotedList(names)
}

func quotedList(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, "`"+n+"`")
	}
	return strings.Join(out, ", ")
}

func has(list []string, name string) bool {
	for _, n := range list {
		if n == name {
			return true
		}
	}
	return false
}

// sentence begins with a capital letter and ends with a full stop. The names of fields are left as they are written.
func sentence(text string) string {
	first, _, _ := strings.Cut(text, " ")
	if first != "" && first != strings.ToUpper(first[:1])+first[1:] {
		text = "`" + first + "`" + strings.TrimPrefix(text, first)
	}
	if !strings.HasSuffix(text, ".") {
		text += "."
	}
	return text
}

// wrapped breaks a paragraph into lines.
func wrapped(text string) string {
	const most = 120
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
		case column+1+len(word) > most:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String() + "\n"
}

func upper(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// limits is a table of what one policy, and one file, may have.
func limits() string {
	var b strings.Builder
	b.WriteString("| at most | of |\n|---|---|\n")
	for _, l := range []struct {
		most int
		of   string
	}{
		{policy.MaxRules, "rules, rules for UNIX sockets and exclusions of a policy, together"},
		{policy.MaxPrefixes, "distinct networks and exceptions of a policy"},
		{policy.MaxNames, "distinct names of containers in the rules of a policy"},
		{policy.MaxPorts, "ports or ranges of one rule or exclusion"},
		{policy.MaxSidecarPorts, "ports or ranges in `sidecarPorts`"},
		{policy.MaxUnix, "rules for UNIX sockets of one role or container"},
		{policy.MaxProcesses, "executables of one role or container"},
		{policy.MaxEntries, "entries that a policy takes in the kernel; every combination of peer, protocol and range of ports is some"},
		{policy.MaxTLSRules, "rules of `tls.sni` and `tls.http`, together"},
		{policy.MaxTLSHosts, "hosts of one such rule"},
		{policy.MaxTLSWords, "methods, headers or upgrades of one such rule"},
		{httprule.MaxRegex, "bytes of a regular expression"},
		{httprule.MaxRegexSize, "characters that it stands for, with its counted repetitions written out"},
		{policy.MaxHeaders, "headers in events"},
		{policy.MaxTLSSize, "bytes that `tls` takes in the kernel"},
		{policy.MaxFileSize, "bytes of a file"},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", grouped(l.most), l.of)
	}
	return b.String()
}

// grouped writes 250,000.
func grouped(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
