// SPDX-License-Identifier: Apache-2.0

package httprule

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	get := Request{Method: "GET", Host: "a.example", Path: "/api/x", SNI: "a.example", Names: []string{"accept", "x-a"}}
	with := func(change func(*Request)) Request {
		r := get
		change(&r)
		return r
	}
	rules := func(list ...Rule) []Rule { return list }
	for name, tt := range map[string]struct {
		rules []Rule
		allow bool
		r     Request
		want  Decision
	}{
		"none":                 {r: get, want: Decision{}},
		"none, allow":          {r: get, allow: true, want: Decision{Allow: true}},
		"an empty rule":        {rules: rules(Rule{Name: "r", Allow: true}), r: get, want: Decision{Allow: true, Rule: "r"}},
		"an empty denial":      {rules: rules(Rule{Name: "r"}), allow: true, r: get, want: Decision{Rule: "r"}},
		"the first wins":       {rules: rules(Rule{Name: "a", Allow: true}, Rule{Name: "b", Allow: true}), r: get, want: Decision{Allow: true, Rule: "a"}},
		"the first denial":     {rules: rules(Rule{Name: "a"}, Rule{Name: "b"}), r: get, want: Decision{Rule: "a"}},
		"denials win":          {rules: rules(Rule{Name: "a", Allow: true}, Rule{Name: "b"}), r: get, want: Decision{Rule: "b"}},
		"a denial is no match": {rules: rules(Rule{Name: "a", Allow: true}, Rule{Name: "b", Methods: []string{"PUT"}}), r: get, want: Decision{Allow: true, Rule: "a"}},
		"all fields": {
			rules: rules(Rule{
				Name: "a", Allow: true, Hosts: []string{"A.example"}, Methods: []string{"PUT", "GET"}, Path: Path{Exact: "/api/x"},
				Headers: []string{"X-A", "Accept"}, SNI: []string{"*.example"},
			}),
			r: get, want: Decision{Allow: true, Rule: "a"},
		},
		"another host":   {rules: rules(Rule{Name: "a", Allow: true, Hosts: []string{"b.example"}}), r: get},
		"another method": {rules: rules(Rule{Name: "a", Allow: true, Methods: []string{"PUT"}}), r: get},
		"another path":   {rules: rules(Rule{Name: "a", Allow: true, Path: Path{Exact: "/api"}}), r: get},
		"no header":      {rules: rules(Rule{Name: "a", Allow: true, Headers: []string{"Accept", "X-B"}}), r: get},
		"another SNI":    {rules: rules(Rule{Name: "a", Allow: true, SNI: []string{"b.example"}}), r: get},
		"no SNI":         {rules: rules(Rule{Name: "a", Allow: true, SNI: []string{"*.example"}}), r: with(func(r *Request) { r.SNI = "" })},

		"CONNECT, not named":     {rules: rules(Rule{Name: "a", Allow: true}), r: with(func(r *Request) { r.Method = "CONNECT" }), want: Decision{Allow: true, Rule: "a"}},
		"CONNECT, by default":    {allow: true, r: with(func(r *Request) { r.Method = "CONNECT" }), want: Decision{Allow: true}},
		"CONNECT":                {rules: rules(Rule{Name: "a", Allow: true}, Rule{Name: "b", Allow: true, Methods: []string{"CONNECT"}}), r: with(func(r *Request) { r.Method = "CONNECT" }), want: Decision{Allow: true, Rule: "b", Tunnel: true}},
		"CONNECT is denied":      {rules: rules(Rule{Name: "a"}, Rule{Name: "b", Allow: true, Methods: []string{"CONNECT"}}), r: with(func(r *Request) { r.Method = "CONNECT" }), want: Decision{Rule: "a"}},
		"upgrade, not named":     {rules: rules(Rule{Name: "a", Allow: true, Upgrades: []string{"other"}}), r: with(func(r *Request) { r.Upgrade = "websocket" }), want: Decision{Allow: true, Rule: "a"}},
		"upgrade":                {rules: rules(Rule{Name: "a", Allow: true, Upgrades: []string{"WebSocket"}}), r: with(func(r *Request) { r.Upgrade = "websocket" }), want: Decision{Allow: true, Rule: "a", Tunnel: true}},
		"upgrade, no upgrade":    {rules: rules(Rule{Name: "a", Allow: true, Upgrades: []string{"websocket"}}), r: get, want: Decision{Allow: true, Rule: "a"}},
		"extended CONNECT":       {rules: rules(Rule{Name: "a", Allow: true, Methods: []string{"GET", "CONNECT"}, Upgrades: []string{"websocket"}}), r: with(func(r *Request) { r.Method, r.Upgrade = "CONNECT", "websocket" }), want: Decision{Allow: true, Rule: "a", Tunnel: true}},
		"extended, CONNECT only": {rules: rules(Rule{Name: "a", Allow: true, Methods: []string{"CONNECT"}}), r: with(func(r *Request) { r.Method, r.Upgrade = "CONNECT", "websocket" }), want: Decision{Allow: true, Rule: "a"}},
		"extended, upgrade only": {rules: rules(Rule{Name: "a", Allow: true, Methods: []string{"GET"}, Upgrades: []string{"websocket"}}), r: with(func(r *Request) { r.Method, r.Upgrade = "CONNECT", "websocket" })},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := Compile(tt.rules, tt.allow)
			if err != nil {
				t.Fatal(err)
			}
			if d := set.Decide(&tt.r); d != tt.want {
				t.Errorf("%+v", d)
			}
		})
	}
}

func TestPatterns(t *testing.T) {
	for _, tt := range []struct {
		rule    Rule
		yes, no string // hosts or paths
	}{
		{rule: Rule{Hosts: []string{"a.example"}}, yes: "a.example", no: "b.example x.a.example xa.example a.example.org"},
		{rule: Rule{Hosts: []string{"*.a.example"}}, yes: "b.a.example c.b.a.example", no: "a.example ba.example .a.example"},
		{rule: Rule{Hosts: []string{"*.A.Example", "B.example"}}, yes: "x.a.example b.example", no: "a.example"},
		{rule: Rule{Hosts: []string{"10.0.0.1", "2001:DB8:0:0::1", "[::2]"}}, yes: "10.0.0.1 2001:db8::1 ::2", no: "10.0.0.2 ::1"},
		{rule: Rule{Path: Path{Exact: "/a"}}, yes: "/a", no: "/a/ /ab / /A *"},
		{rule: Rule{Path: Path{Exact: "*"}}, yes: "*", no: "/ /a"},
		{rule: Rule{Path: Path{Prefix: "/api"}}, yes: "/api /api/ /api/x", no: "/apix /api;x / /ap *"},
		{rule: Rule{Path: Path{Prefix: "/api/"}}, yes: "/api/ /api/x", no: "/api /apix"},
		{rule: Rule{Path: Path{Prefix: "/"}}, yes: "/ /x //x", no: "*"},
		{rule: Rule{Path: Path{Regex: "/a|/b+"}}, yes: "/a /b /bb", no: "/ax x/a /ab /b/"},
		{rule: Rule{Path: Path{Regex: "(?m)^/a$"}}, yes: "/a", no: "/a\n/b /b\n/a"},
		{rule: Rule{Path: Path{Regex: "(?i)/a.*"}}, yes: "/a /A/b", no: "/b"},
	} {
		tt.rule.Name, tt.rule.Allow = "r", true
		set, err := Compile([]Rule{tt.rule}, false)
		if err != nil {
			t.Errorf("%+v: %v", tt.rule, err)
			continue
		}
		for list, want := range map[string]bool{tt.yes: true, tt.no: false} {
			for _, s := range strings.Split(list, " ") {
				if d := set.Decide(&Request{Host: s, Path: s}); d.Allow != want {
					t.Errorf("%+v: %q is %t", tt.rule, s, d.Allow)
				}
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for _, tt := range []struct {
		rules []Rule
		want  string
	}{
		{[]Rule{{Name: "a"}, {}}, "rule 2: name: missing: name it, events say which rule matched"},
		{[]Rule{{Name: "a"}, {Name: "a"}}, `rule "a": name: is the name of rule 1 too: write another`},
		{[]Rule{{Name: strings.Repeat("a", 129)}}, `rule "` + strings.Repeat("a", 64) + `"...: name: has 129 bytes: write at most 128`},
		{[]Rule{{Name: "a", Hosts: []string{"a.example", ""}}}, `rule "a": hosts[1]: the host is empty: write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Hosts: []string{"*"}}}, `rule "a": hosts[0]: the host is no name: "*": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Hosts: []string{"a.*.example"}}}, `rule "a": hosts[0]: the host is no name: "a.*.example": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Hosts: []string{"a.example:443"}}}, `rule "a": hosts[0]: there is a colon, and it is no IPv6 address: "a.example:443": write a name such as api.example, or *.example for those below one, without a port`},
		{[]Rule{{Name: "a", Hosts: []string{"*.10.0.0.1"}}}, `rule "a": hosts[0]: there is no name below an address: "*.10.0.0.1": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Hosts: []string{"*.::1"}}}, `rule "a": hosts[0]: there is no name below an address: "*.::1": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Hosts: []string{"a.example."}}}, `rule "a": hosts[0]: the host ends with a dot, which servers do not agree on: "a.example.": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", SNI: []string{"ä.example"}}}, `rule "a": sni[0]: the host is no name: "ä.example": write a name such as api.example, or *.example for those below one`},
		{[]Rule{{Name: "a", Methods: []string{"GET", "get"}}}, `rule "a": methods[1]: the method has lower-case letters: "get": write GET`},
		{[]Rule{{Name: "a", Methods: []string{"G T"}}}, `rule "a": methods[0]: the method is no token: "G T": write one such as GET`},
		{[]Rule{{Name: "a", Headers: []string{"X A"}}}, `rule "a": headers[0]: "X A" is no name of a header: write one such as x-request-id`},
		{[]Rule{{Name: "a", Allow: true, Upgrades: []string{"h2c"}}}, `rule "a": upgrades[0]: Upgrade: h2c is for cleartext only (RFC 9113, 3.1): write one such as websocket`},
		{[]Rule{{Name: "a", Allow: true, Upgrades: []string{"a, b"}}}, `rule "a": upgrades[0]: the upgrade is not one protocol: "a, b": write one such as websocket`},
		{[]Rule{{Name: "a", Upgrades: []string{"websocket"}}}, `rule "a": upgrades[0]: the rule denies: leave it out, upgrades are denied unless a rule allows them`},
		{[]Rule{{Name: "a", Path: Path{Exact: "/a", Regex: "/b"}}}, `rule "a": path: has 2 kinds of match: write one of exact, prefix and regex`},
		{[]Rule{{Name: "a", Path: Path{Exact: "a"}}}, `rule "a": path.exact: a path begins with a /: write "/a"`},
		{[]Rule{{Name: "a", Path: Path{Prefix: "/a/../b"}}}, `rule "a": path.prefix: no request is allowed with .. as a segment: "/a/../b"`},
		{[]Rule{{Name: "a", Path: Path{Prefix: `/a\b`}}}, `rule "a": path.prefix: no request is allowed with a backslash or a control character: "/a\\b"`},
		{[]Rule{{Name: "a", Path: Path{Regex: "/a)|(/b"}}}, `rule "a": path.regex: is no regular expression (RE2): unexpected ): "/a)|(/b"`},
		{[]Rule{{Name: "a", Path: Path{Regex: strings.Repeat("a", 1025)}}}, `rule "a": path.regex: has 1025 bytes: write at most 1024`},
		{[]Rule{{Name: "a", Path: Path{Regex: "/((ab){30}c){30}"}}}, `rule "a": path.regex: has repetitions that make it about 2761 characters long: at most 1024, write * or + in place of a count`},
		{[]Rule{{Name: "a", Path: Path{Regex: "/(a{1000}){2}"}}}, `rule "a": path.regex: is no regular expression (RE2): invalid repeat count: "{2}"`},
		{[]Rule{{Name: "a", Path: Path{Regex: "/\xff"}}}, `rule "a": path.regex: is no regular expression (RE2): invalid UTF-8: "\xff"`},
		{[]Rule{{Name: "a", Path: Path{Exact: "/\xff"}}}, `rule "a": path.exact: no request is allowed whose path is no UTF-8: "/\xff"`},
		{[]Rule{{Name: "a", SNI: []string{"10.0.0.1"}}}, `rule "a": sni[0]: "10.0.0.1" is an address, and an SNI is a name: write a name`},
		{[]Rule{{Name: "a", Methods: []string{""}, Path: Path{Exact: "a"}}}, "rule \"a\": path.exact: a path begins with a /: write \"/a\"\nrule \"a\": methods[0]: the method is no token: \"\": write one such as GET"},
	} {
		set, err := Compile(tt.rules, true)
		if set != nil || err == nil || err.Error() != tt.want {
			t.Errorf("%.200s:\n%v\nwant %s", fmt.Sprintf("%+v", tt.rules), err, tt.want)
		}
	}
}

func TestHas(t *testing.T) {
	r := Request{Names: []string{"a", "c"}}
	got := []bool{r.Has("a"), r.Has("b"), r.Has("c"), r.Has("A")}
	if !slices.Equal(got, []bool{true, false, true, false}) {
		t.Error(got)
	}
}

// The largest expression that is taken still compiles to few instructions.
func TestRegexSize(t *testing.T) {
	for _, s := range []string{"[^/]{1,500}", "(a|b|c){100}", "(?i)" + strings.Repeat("k", MaxRegex-4), "(x{10}y{10}){20}", "(((a?){10}){10})"} {
		if _, err := Compile([]Rule{{Name: "a", Path: Path{Regex: s}}}, true); err != nil {
			t.Errorf("%.20s: %v", s, err)
			continue
		}
		re, err := syntax.Parse(s, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		prog, err := syntax.Compile(re.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if len(prog.Inst) > 4*MaxRegexSize {
			t.Errorf("%.20s: %d instructions, and a size of %d", s, len(prog.Inst), size(re))
		}
	}
}

func TestPattern(t *testing.T) {
	for p, want := range map[string]string{"A.example": "a.example", "*.B.Example": "*.b.example", "2001:DB8:0::1": "2001:db8::1", "[::1]": "::1", "10.0.0.1": "10.0.0.1"} {
		if got, problem := Pattern(p); got != want || problem != "" {
			t.Errorf("%s: %q, %s", p, got, problem)
		}
		if again, problem := Pattern(want); again != want || problem != "" {
			t.Errorf("%s again: %q, %s", want, again, problem)
		}
	}
}
