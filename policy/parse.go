// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Error is one fault in a policy.
type Error struct {
	File   string // empty for a policy that does not come from a file
	Line   int    // from 1; 0 if not known
	Column int    // from 1, in characters; 0 if not known
	Path   string // such as spec.redirect.outbound; empty for faults of the file as a whole
	Msg    string // what is wrong and what to write instead
}

// Error gives file:line:column: path: message, without the parts that are not known.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	for _, n := range []int{e.Line, e.Column} {
		if n > 0 {
			fmt.Fprintf(&b, ":%d", n)
		}
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	return b.String() + e.Msg
}

// Parse reads the policies of a file, which is one YAML document or several. file is for messages.
// The error joins one [Error] for each fault, in the order of the file; then no policy is returned.
// Whatever it returns compiles.
//
// It takes the part of YAML that all readers read alike: no anchors, aliases, merge keys, tags, directives, block
// scalars or tabs, a space after each colon, values on the line of their key, and quotes around text that some
// reader takes for a number, a truth value or null.
func Parse(file string, data []byte) ([]*PodPolicy, error) {
	d := &decoder{file: file}
	policies := d.parse(data)
	if len(d.errs) == 0 {
		return policies, nil
	}
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var errs []error
	for i, e := range d.errs {
		if i == MaxErrors {
			errs = append(errs, fmt.Errorf("%s: %d more errors", file, len(d.errs)-i))
			break
		}
		errs = append(errs, e)
	}
	return nil, errors.Join(errs...)
}

type position struct{ line, column int }

func tokenPosition(tk *token.Token) position {
	if tk == nil || tk.Position == nil {
		return position{1, 1}
	}
	return position{max(tk.Position.Line, 1), max(tk.Position.Column, 1)}
}

// decoder collects faults, and where each path of the current document is.
type decoder struct {
	file string
	errs []*Error
	at   map[string]position
}

func (d *decoder) fault(at position, path, format string, args ...any) {
	d.errs = append(d.errs, &Error{d.file, at.line, at.column, path, fmt.Sprintf(format, args...)})
}

// where finds the position of a path, or of the nearest thing around it.
func (d *decoder) where(path string) position {
	for {
		if at, has := d.at[path]; has {
			return at
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return d.at[""]
		}
		path = path[:i]
	}
}

func (d *decoder) parse(data []byte) []*PodPolicy {
	src, ok := d.text(data)
	if !ok {
		return nil
	}
	tokens := lexer.Tokenize(src)
	if !d.tokens(tokens) {
		return nil
	}
	file, err := parseTokens(tokens)
	if err != nil {
		d.syntax(err)
		return nil
	}
	var policies []*PodPolicy
	names := map[string]int{}
	if len(file.Docs) == 0 {
		d.fault(position{1, 1}, "", noPolicy)
	}
	for _, doc := range file.Docs {
		at := position{1, 1}
		if doc.Start != nil {
			at = tokenPosition(doc.Start)
		}
		if doc.Body == nil {
			if len(file.Docs) == 1 {
				d.fault(at, "", noPolicy)
			} else {
				d.fault(at, "", "the document is empty: write a policy, or remove the ---")
			}
			continue
		}
		p := d.document(doc.Body)
		if p == nil {
			continue
		}
		name := p.Metadata.Name
		if line, has := names[name]; has && name != "" {
			d.fault(d.where("metadata.name"), "metadata.name", "%s is the name of the policy at line %d too: write another", show(name), line)
			continue
		}
		names[name] = p.line
		policies = append(policies, p)
	}
	return policies
}

const noPolicy = "there is no policy here: write apiVersion: " + APIVersion + " and so on, or remove the file"

// text checks what can be checked byte by byte.
func (d *decoder) text(data []byte) (string, bool) {
	start := position{1, 1}
	if len(data) > MaxFileSize {
		d.fault(start, "", "the file has %d bytes: write at most %d, and split it", len(data), MaxFileSize)
		return "", false
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	src := strings.ReplaceAll(string(data), "\r\n", "\n")
	line := 0
	for text := range strings.SplitSeq(src, "\n") {
		line++
		column := 0
		comment := false
		for i, c := range text {
			column++
			at := position{line, column}
			switch {
			case c == utf8.RuneError && !strings.HasPrefix(text[i:], "\uFFFD"):
				d.fault(at, "", "this is not UTF-8: save the file as UTF-8")
				return "", false
			case c == '#' && (i == 0 || text[i-1] == ' ' || text[i-1] == '\t'):
				comment = true
			case c == '\t' && !comment:
				d.fault(at, "", "there is a tab: write spaces")
				return "", false
			case c != '\t' && c < ' ' || c == 0x7f || c == '\uFEFF' || c == 0x85 || c == '\u2028' || c == '\u2029':
				d.fault(at, "", "there is a control character, %U: remove it", c)
				return "", false
			}
		}
	}
	return src, true
}

// tokens refuses the parts of YAML that policies do without, and what would take the parser too long.
func (d *decoder) tokens(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		d.fault(tokenPosition(tokens[maxTokens]), "", "the file is too long: split it")
		return false
	}
	flow, line, dashes := 0, 0, 0
	keys := map[int]int{} // by column, of the block mappings that are open here
	for i, tk := range tokens {
		at := tokenPosition(tk)
		if at.line != line {
			line, dashes = at.line, 0
		}
		msg := ""
		switch tk.Type {
		case token.AnchorType, token.AliasType:
			msg = "anchors and aliases (& and *) are not taken: write the value out, or put it in quotes"
		case token.MergeKeyType:
			msg = "merge keys (<<) are not taken: write the fields out"
		case token.TagType:
			msg = "tags (!) are not taken: leave it out, or put the text in quotes"
		case token.DirectiveType:
			msg = "directives (%) are not taken: leave it out"
		case token.MappingKeyType:
			msg = "keys with ? are not taken: write key: value"
		case token.LiteralType, token.FoldedType:
			msg = "block text (| and >) is not taken: write the value on the same line"
		case token.InvalidType:
			msg = "this is not YAML: " + cmp.Or(tk.Error, "unexpected text")
		case token.SequenceStartType, token.MappingStartType:
			if flow++; flow > maxFlowDepth {
				msg = "there are too many [ and { inside each other: a policy needs nine at most"
			}
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.CollectEntryType:
			switch prev := tokens[max(i-1, 0)].Type; prev {
			case token.CollectEntryType, token.SequenceStartType, token.MappingStartType:
				msg = "there is nothing before the comma: leave it out"
			}
		case token.DocumentHeaderType:
			clear(keys)
		case token.SequenceEntryType:
			if dashes++; dashes > 2 {
				msg = "there are too many - on a line: a policy needs one"
			}
			closeDeeper(keys, at.column)
		case token.MappingValueType:
			if i+1 < len(tokens) && tokenPosition(tokens[i+1]) == (position{at.line, at.column + 1}) {
				// {cidr:10.0.0.0/8} is one key to some readers, and a key and its value to others.
				msg = "there is no space after the colon: write one, or put text that has a colon in it in quotes"
				break
			}
			if flow > 0 || i == 0 {
				break
			}
			column := tokenPosition(tokens[i-1]).column
			closeDeeper(keys, column)
			if keys[column]++; keys[column] > maxKeys {
				msg = "there are too many keys here: write at most " + strconv.Itoa(maxKeys)
			}
		}
		if msg != "" {
			d.fault(at, "", "%s", msg)
			return false
		}
	}
	return true
}

func closeDeeper(keys map[int]int, column int) {
	for c := range keys {
		if c > column {
			delete(keys, c)
		}
	}
}

// errParser stands for a panic of the YAML parser, on what is not YAML.
var errParser = errors.New("this is not YAML: check the indentation, the brackets and the quotes")

func parseTokens(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if recover() != nil {
			file, err = nil, errParser
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// syntax reports what the YAML parser says.
func (d *decoder) syntax(err error) {
	var at interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &at) {
		d.fault(position{1, 1}, "", "%s", err)
		return
	}
	msg := at.GetMessage()
	hint := "check the indentation, the brackets and the quotes"
	if strings.Contains(msg, "mapping value is not allowed") {
		hint = "check the indentation, and put text that has \": \" in it in quotes"
	}
	d.fault(tokenPosition(at.GetToken()), "", "this is not YAML (%s): %s", msg, hint)
}

// document reads one policy, or nil if its faults make the values meaningless.
func (d *decoder) document(body ast.Node) *PodPolicy {
	before := len(d.errs)
	d.at = map[string]position{"": nodePosition(body)}
	top, ok := d.object("", body, "apiVersion", "kind", "metadata", "spec")
	if !ok {
		return nil
	}
	p := &PodPolicy{file: d.file, line: nodePosition(body).line}
	d.constant(top, "apiVersion", APIVersion, &p.APIVersion)
	d.constant(top, "kind", Kind, &p.Kind)
	if p.APIVersion+p.Kind != APIVersion+Kind && top["apiVersion"] != nil && top["kind"] != nil {
		// Another kind of object: its other fields are not ours to judge.
		d.errs = slices.DeleteFunc(d.errs, func(e *Error) bool {
			return e.Path != "apiVersion" && e.Path != "kind" && e.Line >= p.line
		})
		return nil
	}
	d.metadata(top, &p.Metadata)
	d.spec(top, &p.Spec)
	// Values that could not be read are zero now. What follows from that is no news.
	unread := newCauses(d.errs[before:])
	c, problems := p.compile()
	for _, pr := range problems {
		if !unread.explain(pr.path) {
			d.fault(d.where(pr.path), pr.path, "%s", pr.msg)
		}
	}
	if c != nil {
		p.lines = make(map[string]int, len(c.Rules))
		for _, r := range c.Rules {
			p.lines[r.Path] = d.where(r.Path).line
		}
	}
	return p
}

// causes are paths of values that could not be read, and those of the mappings that have them for a field.
type causes struct {
	values, owners map[string]bool
	redirect       bool // one of the redirection's ports, which are compared with each other and with that of spec.tls
}

const redirectPath = "spec.redirect"

func newCauses(errs []*Error) causes {
	c := causes{values: make(map[string]bool, len(errs)), owners: make(map[string]bool)}
	for _, e := range errs {
		c.values[e.Path] = true
		if i := strings.LastIndexAny(e.Path, ".["); i >= 0 && e.Path[i] == '.' {
			c.owners[e.Path[:i]] = true
		}
		c.redirect = c.redirect || strings.HasPrefix(e.Path, redirectPath)
	}
	return c
}

// explain says whether a fault at path may come from one of these: from the same value, from one around it, or from a
// field of it, which then seems to be missing.
func (c causes) explain(path string) bool {
	if c.owners[path] || c.redirect && (strings.HasPrefix(path, redirectPath) || path == tlsPath+".port") {
		return true
	}
	for {
		if c.values[path] {
			return true
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return false
		}
		path = path[:i]
	}
}

func (d *decoder) constant(top fields, name, want string, out *string) {
	n := d.required(top, "", name, want)
	if n == nil {
		return
	}
	s, ok := d.str(name, n, want)
	if ok && s != want {
		d.fault(nodePosition(n), name, "%s is not known: write %s", show(s), want)
	}
	*out = s
}

func (d *decoder) metadata(top fields, out *Metadata) {
	n := d.required(top, "", "metadata", "{name: web}")
	if n == nil {
		return
	}
	f, ok := d.object("metadata", n, "name", "labels")
	if !ok {
		return
	}
	if n := d.required(f, "metadata", "name", "web"); n != nil {
		out.Name, _ = d.str("metadata.name", n, "a name such as web")
	}
	if n := f["labels"]; n != nil {
		out.Labels = d.labels("metadata.labels", n)
	}
}

func (d *decoder) spec(top fields, out *Spec) {
	n := d.required(top, "", "spec", "{} for the defaults")
	if n == nil {
		return
	}
	f, ok := d.object("spec", n, "mode", "podSelector", "roles", "redirect", "sidecarPorts", "exclude", "nonTCP", "init", "adminCapabilities", "accelerate", "tls", "rules")
	if !ok {
		return
	}
	if n := f["podSelector"]; n != nil {
		out.PodSelector = d.selector("spec.podSelector", n)
	}
	d.list("spec.roles", f["roles"], func(path string, n ast.Node) {
		out.Roles = append(out.Roles, d.containerRole(path, n))
	})
	out.Redirect = d.redirect("spec.redirect", f["redirect"])
	d.list("spec.sidecarPorts", f["sidecarPorts"], func(path string, n ast.Node) {
		out.SidecarPorts = append(out.SidecarPorts, d.ports(path, n))
	})
	if n := f["exclude"]; n != nil {
		if ex, ok := d.object("spec.exclude", n, "egress", "ingress"); ok {
			out.Exclude.Egress = d.exclusions("spec.exclude.egress", ex["egress"])
			out.Exclude.Ingress = d.exclusions("spec.exclude.ingress", ex["ingress"])
		}
	}
	out.NonTCP = Action(d.oneOf("spec.nonTCP", f["nonTCP"], actionWords()))
	out.Init = InitMode(d.oneOf("spec.init", f["init"], initWords()))
	out.AdminCapabilities = Action(d.oneOf("spec.adminCapabilities", f["adminCapabilities"], actionWords()))
	out.Accelerate = d.acceleration("spec.accelerate", f["accelerate"])
	out.Mode = Mode(d.oneOf("spec.mode", f["mode"], modeWords()))
	if n := f["tls"]; n != nil {
		out.TLS = d.tls(tlsPath, n)
	}
	d.list("spec.rules", f["rules"], func(path string, n ast.Node) {
		out.Rules = append(out.Rules, d.subjectRules(path, n))
	})
}

func (d *decoder) subjectRules(path string, n ast.Node) (out SubjectRules) {
	f, ok := d.object(path, n, "role", "container", "egress", "ingress", "unix", "processes")
	if !ok {
		return out
	}
	if n := f["role"]; n != nil {
		out.Role = Role(d.oneOf(path+".role", n, roleWords()))
	}
	if n := f["container"]; n != nil {
		out.Container = d.name(path+".container", n)
	}
	if n := f["egress"]; n != nil {
		out.Egress = []EgressRule{}
		d.list(path+".egress", n, func(path string, n ast.Node) {
			var r EgressRule
			if f, ok := d.object(path, n, "to", "protocol", "ports", "types"); ok {
				r.To, r.Traffic = d.peers(path+".to", f["to"]), d.traffic(path, f)
			}
			out.Egress = append(out.Egress, r)
		})
	}
	if n := f["ingress"]; n != nil {
		out.Ingress = []IngressRule{}
		d.list(path+".ingress", n, func(path string, n ast.Node) {
			var r IngressRule
			if f, ok := d.object(path, n, "from", "protocol", "ports", "types"); ok {
				r.From, r.Traffic = d.peers(path+".from", f["from"]), d.traffic(path, f)
			}
			out.Ingress = append(out.Ingress, r)
		})
	}
	if n := f["unix"]; n != nil {
		out.Unix = d.unix(path+".unix", n)
	}
	if n := f["processes"]; n != nil {
		out.Processes = []string{}
		d.list(path+".processes", n, func(path string, n ast.Node) {
			p, _ := d.str(path, n, "the path of an executable")
			out.Processes = append(out.Processes, p)
		})
	}
	return out
}

// name reads the name of a container, which is not empty.
func (d *decoder) name(path string, n ast.Node) string {
	s, ok := d.str(path, n, "the name of a container")
	if ok && s == "" {
		d.fault(nodePosition(n), path, "%s", nameProblem("", "the name of a container"))
	}
	return s
}

// peers reads a list of peers. An empty one would be nobody, while none at all is everybody: that must not look alike.
func (d *decoder) peers(path string, n ast.Node) []Peer {
	var out []Peer
	d.list(path, n, func(path string, n ast.Node) {
		var p Peer
		defer func() { out = append(out, p) }()
		f, ok := d.object(path, n, "role", "container", "cidr", "except", "entity")
		if !ok {
			return
		}
		if n := f["role"]; n != nil {
			p.Role = Role(d.oneOf(path+".role", n, roleWords()))
		}
		if n := f["container"]; n != nil {
			p.Container = d.name(path+".container", n)
		}
		if n := f["cidr"]; n != nil {
			p.CIDR = d.cidr(path+".cidr", n)
		}
		d.list(path+".except", f["except"], func(path string, n ast.Node) {
			p.Except = append(p.Except, d.cidr(path, n))
		})
		if n := f["entity"]; n != nil {
			p.Entity = Entity(d.oneOf(path+".entity", n, entityWords()))
		}
	})
	d.notEmpty(path, n, "nobody at all", "list some, or leave it out for everybody")
	return out
}

// notEmpty refuses a list that is there and has nothing in it.
func (d *decoder) notEmpty(path string, n ast.Node, what, instead string) {
	if s, ok := n.(*ast.SequenceNode); ok && len(s.Values) == 0 {
		d.fault(nodePosition(n), path, "[] is %s: %s", what, instead)
	}
}

func (d *decoder) cidr(path string, n ast.Node) string {
	s, ok := d.str(path, n, "a CIDR such as 10.0.0.0/8")
	if ok && s == "" {
		d.fault(nodePosition(n), path, "\"\" is not a CIDR: write an address and a length, such as 10.0.0.0/8 or fd00::/8")
	}
	return s
}

func (d *decoder) traffic(path string, f fields) (t Traffic) {
	t.Protocol = RuleProto(d.oneOf(path+".protocol", f["protocol"], ruleProtoWords()))
	d.list(path+".ports", f["ports"], func(path string, n ast.Node) {
		t.Ports = append(t.Ports, d.ports(path, n))
	})
	d.notEmpty(path+".ports", f["ports"], "no port at all", "list some, or leave ports out for all of them")
	d.list(path+".types", f["types"], func(path string, n ast.Node) {
		t.Types = append(t.Types, d.icmpType(path, n))
	})
	d.notEmpty(path+".types", f["types"], "no type at all", "list some, or leave types out for all of them")
	return t
}

// icmpType reads a number of one byte, in the exact decimal form and without quotes.
func (d *decoder) icmpType(path string, n ast.Node) ICMPType {
	s, quoted, ok := d.scalar(path, n, "an ICMP type, 0 to 255")
	if !ok {
		return 0
	}
	v, err := strconv.ParseUint(s, 10, 8)
	switch {
	case err != nil || len(s) > 1 && s[0] == '0':
		d.fault(nodePosition(n), path, "%s is not an ICMP type: write 0 to 255", show(s))
	case quoted:
		d.fault(nodePosition(n), path, "%q is text: write %s without quotes", s, s)
	}
	return ICMPType(v)
}

func (d *decoder) unix(path string, n ast.Node) *Unix {
	out := &Unix{}
	f, ok := d.object(path, n, "optional", "allow")
	if !ok {
		return out
	}
	if n := f["optional"]; n != nil {
		out.Optional = d.boolean(path+".optional", n)
	}
	d.list(path+".allow", f["allow"], func(path string, n ast.Node) {
		var a UnixAllow
		defer func() { out.Allow = append(out.Allow, a) }()
		f, ok := d.object(path, n, "path", "abstract", "type", "to")
		if !ok {
			return
		}
		if n := f["path"]; n != nil {
			a.Path, _ = d.str(path+".path", n, "a path such as /run/db/*.sock")
		}
		if n := f["abstract"]; n != nil {
			a.Abstract, _ = d.str(path+".abstract", n, "a name such as \"@bus\"")
		}
		a.Type = UnixType(d.oneOf(path+".type", f["type"], unixTypeWords()))
		a.To = d.peers(path+".to", f["to"])
	})
	return out
}

// boolean reads true or false, as these words only.
func (d *decoder) boolean(path string, n ast.Node) bool {
	if tk := n.GetToken(); tk != nil {
		if _, ok := n.(*ast.BoolNode); ok && (tk.Value == "true" || tk.Value == "false") {
			return tk.Value == "true"
		}
	}
	d.wrongType(path, n, "true or false")
	return false
}

func (d *decoder) selector(path string, n ast.Node) *LabelSelector {
	s := &LabelSelector{}
	f, ok := d.object(path, n, "matchLabels", "matchExpressions")
	if !ok {
		return s
	}
	if n := f["matchLabels"]; n != nil {
		s.MatchLabels = d.labels(path+".matchLabels", n)
	}
	d.list(path+".matchExpressions", f["matchExpressions"], func(path string, n ast.Node) {
		var r Requirement
		defer func() { s.MatchExpressions = append(s.MatchExpressions, r) }()
		f, ok := d.object(path, n, "key", "operator", "values")
		if !ok {
			return
		}
		if n := d.required(f, path, "key", "app"); n != nil {
			r.Key, _ = d.str(path+".key", n, "a label's key")
		}
		if n := d.required(f, path, "operator", or(operatorWords())); n != nil {
			op, _ := d.str(path+".operator", n, or(operatorWords()))
			r.Operator = Operator(op)
		}
		d.list(path+".values", f["values"], func(path string, n ast.Node) {
			v, _ := d.str(path, n, "a label's value")
			r.Values = append(r.Values, v)
		})
	})
	return s
}

func (d *decoder) containerRole(path string, n ast.Node) (out ContainerRole) {
	f, ok := d.object(path, n, "container", "role")
	if !ok {
		return out
	}
	if n := d.required(f, path, "container", "envoy"); n != nil {
		out.Container, _ = d.str(path+".container", n, "the name of a container")
	}
	if n := d.required(f, path, "role", or(roleWords()[1:])); n != nil {
		out.Role = Role(d.oneOf(path+".role", n, roleWords()))
	}
	return out
}

func (d *decoder) redirect(path string, n ast.Node) Redirect {
	out := Redirect{Outbound: DefaultOutbound, Inbound: DefaultInbound}
	if n == nil {
		return out
	}
	f, ok := d.object(path, n, "outbound", "inbound", "dns", "getsockname")
	if !ok {
		return out
	}
	if n := f["outbound"]; n != nil {
		out.Outbound = d.port(path+".outbound", n)
	}
	if n := f["inbound"]; n != nil {
		out.Inbound = d.port(path+".inbound", n)
	}
	if n := f["getsockname"]; n != nil {
		out.Getsockname = SockName(d.oneOf(path+".getsockname", n, sockNameWords()))
	}
	if n := f["dns"]; n != nil {
		if n.GetToken().Value == "0" {
			d.fault(nodePosition(n), path+".dns", "0 is not a port: leave it out to switch it off")
		} else {
			out.DNS = d.port(path+".dns", n)
		}
	}
	// A default must not be blamed for meeting what was written.
	if f["inbound"] == nil && out.Outbound == out.Inbound {
		out.Inbound = 0
	}
	return out
}

func (d *decoder) exclusions(path string, n ast.Node) []Exclusion {
	var out []Exclusion
	d.list(path, n, func(path string, n ast.Node) {
		e := Exclusion{Protocol: ProtoTCP}
		defer func() { out = append(out, e) }()
		f, ok := d.object(path, n, "cidr", "ports", "protocol")
		if !ok {
			return
		}
		if n := f["cidr"]; n != nil {
			e.CIDR = d.cidr(path+".cidr", n)
		}
		d.list(path+".ports", f["ports"], func(path string, n ast.Node) {
			e.Ports = append(e.Ports, d.ports(path, n))
		})
		d.notEmpty(path+".ports", f["ports"], "no port at all", "list some, or leave ports out of an egress rule for all of them")
		if n := f["protocol"]; n != nil {
			e.Protocol = Proto(d.oneOf(path+".protocol", n, protoWords()))
		}
	})
	return out
}

// fields are the known fields of a mapping that are there.
type fields map[string]ast.Node

// object reads a mapping and reports unknown and double fields. It is false if there is nothing to go on with.
func (d *decoder) object(path string, n ast.Node, known ...string) (fields, bool) {
	out := fields{}
	ok := d.mapping(path, n, join, "a mapping with "+or(known), func(key string, at position, v ast.Node) {
		if !slices.Contains(known, key) {
			d.fault(at, join(path, key), "unknown field: %s", didYouMean(key, known))
			return
		}
		out[key] = v
	})
	return out, ok
}

// mapping calls fn with each key of a mapping, in order, the second and later ones of a kind left out.
// child makes the path of a field.
func (d *decoder) mapping(path string, n ast.Node, child func(path, key string) string, want string, fn func(key string, at position, v ast.Node)) bool {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		d.wrongType(path, n, want)
		return false
	}
	lines := make(map[string]int, len(values))
	for _, v := range values {
		at := nodePosition(v.Key)
		key, ok := d.str(path, v.Key, "a key")
		if !ok {
			continue
		}
		if line, has := lines[key]; has {
			d.fault(at, child(path, key), "the key is there twice, first at line %d: leave one out", line)
			continue
		}
		lines[key] = at.line
		if startsLate(at, v.Value) {
			d.fault(nodePosition(v.Value), child(path, key), "the value is not on the line of its key: write it there")
		}
		d.at[child(path, key)] = nodePosition(v.Value)
		if implicitNull(v.Value) {
			d.at[child(path, key)] = at
		}
		fn(key, at, v.Value)
	}
	return true
}

// list calls fn with each item. n may be nil.
func (d *decoder) list(path string, n ast.Node, fn func(path string, n ast.Node)) {
	if n == nil {
		return
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrongType(path, n, "a list")
		return
	}
	for i, v := range s.Values {
		at := indexPath(path, i)
		d.at[at] = nodePosition(v)
		if !s.IsFlowStyle && i < len(s.Entries) {
			dash := tokenPosition(s.Entries[i].Start)
			if implicitNull(v) {
				d.at[at] = dash
			}
			if startsLate(dash, v) {
				d.fault(nodePosition(v), at, "the item is not on the line of its dash: write it there")
			}
			if start := nodePosition(v); !implicitNull(v) && start.line != dash.line && start.column <= dash.column {
				// To others the item is empty, and this belongs to what is around the list.
				d.fault(start, at, "the item is not further to the right than its dash: write it on the line of the dash")
				continue
			}
		}
		fn(at, v)
	}
}

func (d *decoder) labels(path string, n ast.Node) map[string]string {
	out := map[string]string{}
	d.mapping(path, n, keyPath, "a mapping of labels, such as app: web", func(key string, at position, v ast.Node) {
		path := keyPath(path, key)
		if msg := labelKeyProblem(key); msg != "" {
			d.fault(at, path, "%s", msg)
			return
		}
		out[key], _ = d.str(path, v, "a label's value")
	})
	return out
}

// required returns a field, and reports it if it is missing.
func (d *decoder) required(f fields, path, name, example string) ast.Node {
	if n := f[name]; n != nil {
		return n
	}
	d.fault(d.where(path), join(path, name), "missing: write %s: %s", name, example)
	return nil
}

// str reads text. Plain scalars that some YAML reader takes for something else than text must be quoted.
func (d *decoder) str(path string, n ast.Node, want string) (string, bool) {
	at := nodePosition(n)
	switch n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
	default:
		d.wrongType(path, n, want)
		return "", false
	}
	tk := n.GetToken()
	if tk.Type == token.SingleQuoteType || tk.Type == token.DoubleQuoteType {
		return tk.Value, true
	}
	if kind := ambiguous(tk.Value); kind != "" || tk.Type != token.StringType {
		d.fault(at, path, "%s is %s, and text is wanted: write it in quotes, %q", clip(tk.Value), cmp.Or(kind, "a number"), clip(tk.Value))
		return "", false
	}
	return tk.Value, true
}

// oneOf reads one of the words (an empty one cannot be written) and returns its index, 0 if n is nil.
func (d *decoder) oneOf(path string, n ast.Node, words []string) uint8 {
	if n == nil {
		return 0
	}
	can := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
	s, ok := d.str(path, n, or(can))
	if !ok {
		return 0
	}
	i := slices.Index(words, s)
	if i < 0 || s == "" {
		d.fault(nodePosition(n), path, "%s is not known: write %s", show(s), or(can))
		return 0
	}
	return uint8(i)
}

// acceleration reads its words, two of which are true and false to some YAML readers, so that those are taken too.
func (d *decoder) acceleration(path string, n ast.Node) Acceleration {
	if n != nil {
		switch tk := n.GetToken(); {
		case n.Type() != ast.StringType && n.Type() != ast.BoolType, tk.Type == token.SingleQuoteType, tk.Type == token.DoubleQuoteType:
		case tk.Value == "on", tk.Value == "true":
			return AccelerateOn
		case tk.Value == "off", tk.Value == "false":
			return AccelerateOff
		}
	}
	return Acceleration(d.oneOf(path, n, accelerationWords()))
}

// port reads a port, in the exact decimal form and without quotes.
func (d *decoder) port(path string, n ast.Node) uint16 {
	s, quoted, ok := d.scalar(path, n, "a port, 1 to 65535")
	if !ok {
		return 0
	}
	p, err := parsePort(s)
	switch {
	case err != nil:
		d.fault(nodePosition(n), path, "%s", err)
	case quoted:
		d.fault(nodePosition(n), path, "%q is text: write %s without quotes", s, s)
	}
	return p
}

// ports reads a port or a range. Quotes make no difference to the exact decimal form.
func (d *decoder) ports(path string, n ast.Node) PortRange {
	s, _, ok := d.scalar(path, n, "a port or a range, such as 443 or 8000-8100")
	if !ok {
		return PortRange{}
	}
	r, err := ParsePortRange(s)
	if err != nil {
		d.fault(nodePosition(n), path, "%s", err)
	}
	return r
}

// scalar returns a number or text exactly as it is written.
func (d *decoder) scalar(path string, n ast.Node, want string) (s string, quoted, ok bool) {
	switch n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode:
	default:
		d.wrongType(path, n, want)
		return "", false, false
	}
	tk := n.GetToken()
	return tk.Value, tk.Type == token.SingleQuoteType || tk.Type == token.DoubleQuoteType, true
}

func (d *decoder) wrongType(path string, n ast.Node, want string) {
	kind := "of the wrong type"
	switch n.(type) {
	case nil, *ast.NullNode:
		kind = "empty"
	case *ast.MappingNode, *ast.MappingValueNode:
		kind = "a mapping"
	case *ast.SequenceNode:
		kind = "a list"
	case *ast.StringNode:
		kind = "text"
	case *ast.BoolNode:
		kind = "true or false"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		kind = "a number"
	}
	msg := "is " + kind + ": write " + want
	if path == "" {
		msg = "the document " + msg
	}
	at := nodePosition(n)
	if implicitNull(n) {
		at = d.where(path) // the key, or the item's dash
	}
	d.fault(at, path, "%s", msg)
}

// implicitNull says whether the node stands for a value that was not written. Its token is beyond the end of the line.
func implicitNull(n ast.Node) bool {
	null, ok := n.(*ast.NullNode)
	return ok && null.Token.Type == token.ImplicitNullType
}

// startsLate says whether a value other than a block mapping or list is on another line than what it belongs to.
// Readers differ on how far such a value must be indented.
func startsLate(at position, n ast.Node) bool {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle {
			return false
		}
	case *ast.SequenceNode:
		if !m.IsFlowStyle {
			return false
		}
	case *ast.MappingValueNode:
		return false
	}
	return !implicitNull(n) && nodePosition(n).line != at.line
}

func nodePosition(n ast.Node) position {
	switch m := n.(type) {
	case nil:
		return position{1, 1}
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return nodePosition(m.Values[0])
		}
	case *ast.MappingValueNode:
		return nodePosition(m.Key)
	}
	return tokenPosition(n.GetToken())
}

// ambiguous says what else than text a plain scalar is to YAML 1.1 or 1.2, or to goccy's, Go's or libyaml's readers.
func ambiguous(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n":
		return "true or false to some YAML readers"
	case "null", "~", "":
		return "null"
	case ".inf", "-.inf", "+.inf", ".nan":
		return "a number"
	}
	if c := s[0]; c != '-' && c != '+' && c != '.' && (c < '0' || c > '9') {
		return ""
	}
	bare := strings.ReplaceAll(s, "_", "")
	_, intErr := strconv.ParseInt(bare, 0, 64)
	_, floatErr := strconv.ParseFloat(bare, 64)
	if intErr == nil || floatErr == nil || errors.Is(intErr, strconv.ErrRange) || errors.Is(floatErr, strconv.ErrRange) {
		return "a number"
	}
	return ""
}

func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

func join(path, name string) string {
	if path == "" {
		return clip(name)
	}
	return path + "." + clip(name)
}

func indexPath(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func keyPath(path, key string) string { return path + "[" + strconv.Quote(key) + "]" }
