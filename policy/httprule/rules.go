// SPDX-License-Identifier: Apache-2.0

// Package httprule decides about HTTP requests, and has the words that rules and requests are made of: hosts, methods,
// names of headers. What it takes of a rule and what is taken of a request is thus the same.
//
// It needs nothing but the standard library, and does no work at process start: package policy, which checks rules with
// it, is linked into an OCI hook that every container start waits for.
package httprule

import (
	"errors"
	"net/netip"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Rules decide about requests. Decide may be called several times for one request, with each way to read its path, and at
// the same time by several callers. It must not keep r.
type Rules interface {
	Decide(r *Request) Decision
}

// Decision is what rules say of a request.
type Decision struct {
	Allow  bool
	Rule   string // that matched, empty if none did
	Tunnel bool   // the rule names the method CONNECT, or the upgrade: without it, neither is allowed
}

// Rule matches a request where each of its fields that is set matches.
type Rule struct {
	Name    string // unique
	Allow   bool
	Hosts   []string // see Pattern
	Methods []string // upper case
	Path    Path
	Headers []string // names of headers that all have to be there
	SNI     []string // like Hosts; a connection without an SNI matches none
	// Upgrades are protocols such as websocket. A rule that allows needs it to match an upgrade, and CONNECT in Methods
	// to match that method; in HTTP/2 a request to upgrade has the method CONNECT.
	Upgrades []string
}

// Path matches the decoded path of a request. At most one field is set.
type Path struct {
	Exact  string
	Prefix string // up to the end of a segment: /api matches /api and /api/x, not /apix; /api/ matches /api/x, not /api
	Regex  string // RE2, of the whole path
}

// Error is one fault of a rule.
type Error struct {
	Index int    // of the rule
	Name  string // of the rule, if it has one
	Field string // such as name, hosts[0] or path.regex
	Msg   string // what is wrong, and what to write instead
}

// Error gives rule "name": field: message.
func (e *Error) Error() string {
	name := Quote(e.Name)
	if e.Name == "" {
		name = strconv.Itoa(e.Index + 1)
	}
	return "rule " + name + ": " + e.Field + ": " + e.Msg
}

// RuleSet is compiled rules. A rule that denies wins over those that allow, then the first one wins.
type RuleSet struct {
	deny, allow []compiled
	fallback    bool
}

// compiled is a rule to match. What is nil matches everything.
type compiled struct {
	name       string
	hosts, sni func(string) bool
	path       func(string) bool
	methods    []string
	headers    []string
	upgrades   []string
}

// Limits of one rule. RE2 takes time that is linear in the path, and in the size of what the expression stands for:
// a{1000} is as large as a thousand a.
const (
	MaxName      = 128  // bytes
	MaxRegex     = 1024 // bytes
	MaxRegexSize = 1024 // characters, classes and repetitions, each as often as it is repeated
)

// Compile checks rules. What no rule matches is allowed if allow says so, but for tunnels. The error joins an [*Error] for
// each fault.
func Compile(rules []Rule, allow bool) (*RuleSet, error) {
	set := &RuleSet{fallback: allow}
	seen := make(map[string]int)
	var errs []error
	for i := range rules {
		r := &rules[i]
		fault := func(field, msg string) { errs = append(errs, &Error{Index: i, Name: r.Name, Field: field, Msg: msg}) }
		first, twice := seen[r.Name]
		switch {
		case r.Name == "":
			fault("name", "missing: name it, events say which rule matched")
		case twice:
			fault("name", "is the name of rule "+strconv.Itoa(first+1)+" too: write another")
		case len(r.Name) > MaxName:
			fault("name", "has "+strconv.Itoa(len(r.Name))+" bytes: write at most "+strconv.Itoa(MaxName))
		default:
			seen[r.Name] = i
		}
		c := r.compile(fault)
		if r.Allow {
			set.allow = append(set.allow, c)
		} else {
			set.deny = append(set.deny, c)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return set, nil
}

func (r *Rule) compile(fault func(field, msg string)) compiled {
	each := func(field string, words []string, problem func(string) string) {
		for i, w := range words {
			if msg := problem(w); msg != "" {
				fault(field+"["+strconv.Itoa(i)+"]", msg)
			}
		}
	}
	c := compiled{name: r.Name, hosts: hosts(r.Hosts), sni: hosts(r.SNI), methods: r.Methods}
	each("hosts", r.Hosts, patternProblem)
	each("sni", r.SNI, func(p string) string {
		pattern, problem := Pattern(p)
		if problem == "" && IsAddress(pattern) {
			problem = Quote(p) + " is an address, and an SNI is a name: write a name"
		}
		return problem
	})
	c.path = r.Path.compile(fault)
	each("methods", r.Methods, func(m string) string {
		switch problem := MethodProblem(m); {
		case problem != "" && MethodProblem(strings.ToUpper(m)) == "":
			return problem + ": write " + strings.ToUpper(m)
		case problem != "":
			return problem + ": write one such as GET"
		}
		return ""
	})
	each("headers", r.Headers, HeaderProblem)
	each("upgrades", r.Upgrades, func(u string) string {
		switch problem := UpgradeProblem(Lower(u)); {
		case problem != "":
			return problem + ": write one such as websocket"
		case !r.Allow:
			return "the rule denies: leave it out, upgrades are denied unless a rule allows them"
		}
		return ""
	})
	for _, h := range r.Headers {
		c.headers = append(c.headers, Lower(h))
	}
	for _, u := range r.Upgrades {
		c.upgrades = append(c.upgrades, Lower(u))
	}
	return c
}

// Pattern returns the one way to write a pattern of hosts: a name or an address, or *.example.com for all names below
// example.com, at any depth.
func Pattern(p string) (pattern, problem string) {
	const instead = ": write a name such as api.example, or *.example for those below one"
	rest, below := strings.CutPrefix(p, "*.")
	if strings.Contains(rest, ":") && !strings.HasPrefix(rest, "[") {
		if a, err := netip.ParseAddr(rest); err != nil || !a.Is6() {
			return "", "there is a colon, and it is no IPv6 address: " + Quote(p) + instead + ", without a port"
		}
		rest = "[" + rest + "]"
	}
	host, problem := Host(rest)
	switch {
	case problem != "":
		return "", problem + instead
	case !below:
		return host, ""
	case IsAddress(host):
		return "", "there is no name below an address: " + Quote(p) + instead
	}
	return "*." + host, ""
}

func patternProblem(p string) string {
	_, problem := Pattern(p)
	return problem
}

// hosts compiles patterns, but for those that have faults.
func hosts(patterns []string) func(string) bool {
	if len(patterns) == 0 {
		return nil
	}
	names := make(map[string]bool)
	var suffixes []string
	for _, p := range patterns {
		switch p, problem := Pattern(p); {
		case problem != "":
		case strings.HasPrefix(p, "*."):
			suffixes = append(suffixes, p[1:])
		default:
			names[p] = true
		}
	}
	return func(s string) bool {
		return names[s] || slices.ContainsFunc(suffixes, func(suffix string) bool { return len(s) > len(suffix) && strings.HasSuffix(s, suffix) })
	}
}

func (p Path) compile(fault func(field, msg string)) func(string) bool {
	set := 0
	for _, s := range []string{p.Exact, p.Prefix, p.Regex} {
		if s != "" {
			set++
		}
	}
	switch {
	case set > 1:
		fault("path", "has "+strconv.Itoa(set)+" kinds of match: write one of exact, prefix and regex")
	case p.Exact == "*": // OPTIONS *
		return func(s string) bool { return s == "*" }
	case p.Exact != "":
		if msg := pathProblem(p.Exact); msg != "" {
			fault("path.exact", msg)
		}
		return func(s string) bool { return s == p.Exact }
	case p.Prefix != "":
		if msg := pathProblem(p.Prefix); msg != "" {
			fault("path.prefix", msg)
		}
		return func(s string) bool {
			rest, ok := strings.CutPrefix(s, p.Prefix)
			return ok && (rest == "" || rest[0] == '/' || strings.HasSuffix(p.Prefix, "/"))
		}
	case p.Regex != "":
		if msg := regexProblem(p.Regex); msg != "" {
			fault("path.regex", msg)
			return nil
		}
		return regexp.MustCompile(`\A(?:` + p.Regex + `)\z`).MatchString
	}
	return nil
}

// pathProblem returns why no decoded path is like p.
func pathProblem(p string) string {
	if !strings.HasPrefix(p, "/") {
		return "a path begins with a /: write " + Quote("/"+p)
	}
	if !utf8.ValidString(p) {
		return "no request is allowed whose path is no UTF-8: " + Quote(p)
	}
	if strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }) {
		return "no request is allowed with a backslash or a control character: " + Quote(p)
	}
	for s := range strings.SplitSeq(p, "/") {
		if s == "." || s == ".." {
			return "no request is allowed with " + s + " as a segment: " + Quote(p)
		}
	}
	return ""
}

// regexProblem looks at the expression alone, so that a ) in it closes nothing of ours.
func regexProblem(s string) string {
	if len(s) > MaxRegex {
		return "has " + strconv.Itoa(len(s)) + " bytes: write at most " + strconv.Itoa(MaxRegex)
	}
	re, err := syntax.Parse(s, syntax.Perl)
	var fault *syntax.Error
	switch {
	case errors.As(err, &fault):
		return "is no regular expression (RE2): " + fault.Code.String() + ": " + Quote(fault.Expr)
	case err != nil:
		return "is no regular expression (RE2): " + Quote(err.Error())
	}
	if n := size(re); n > MaxRegexSize {
		return "has repetitions that make it about " + strconv.Itoa(n) + " characters long: at most " + strconv.Itoa(MaxRegexSize) + ", write * or + in place of a count"
	}
	return ""
}

// size is about how many instructions an expression takes, and counts no further than a billion.
func size(re *syntax.Regexp) int {
	const most = 1_000_000_000
	n := 1
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpConcat, syntax.OpRepeat:
		n = 0
	}
	for _, sub := range re.Sub {
		n += size(sub)
	}
	if re.Op == syntax.OpRepeat {
		if re.Max < 0 {
			return min(n*(re.Min+1), most)
		}
		n *= max(re.Max, 1)
	}
	return min(n, most)
}

// Decide is what [Rules] wants. Where a rule would allow a tunnel if it named it, Tunnel is not set.
func (s *RuleSet) Decide(r *Request) Decision {
	d := Decision{Allow: s.fallback}
	for i := range s.deny {
		if s.deny[i].match(r) {
			return Decision{Rule: s.deny[i].name}
		}
	}
	for i := range s.allow {
		switch c := &s.allow[i]; {
		case !c.match(r):
		case c.tunnels(r):
			return Decision{Allow: true, Rule: c.name, Tunnel: r.Tunnel()}
		case d.Rule == "":
			d = Decision{Allow: true, Rule: c.name}
		}
	}
	return d
}

func (c *compiled) match(r *Request) bool {
	return (c.hosts == nil || c.hosts(r.Host)) &&
		(c.sni == nil || r.SNI != "" && c.sni(r.SNI)) &&
		(c.path == nil || c.path(r.Path)) &&
		(len(c.methods) == 0 || slices.Contains(c.methods, r.Method)) &&
		!slices.ContainsFunc(c.headers, func(name string) bool { return !r.Has(name) })
}

// tunnels tells whether the rule names the tunnel, if the request is for one.
func (c *compiled) tunnels(r *Request) bool {
	switch {
	case r.Upgrade != "":
		return slices.Contains(c.upgrades, r.Upgrade)
	case r.Method == "CONNECT":
		return slices.Contains(c.methods, "CONNECT")
	}
	return true
}
