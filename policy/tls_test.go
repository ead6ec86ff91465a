// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"sidegate/policy/httprule"
)

// tlsOf compiles a policy that has this spec.tls, and gives the relay's side of it.
func tlsOf(t *testing.T, tls string) (*Compiled, *TLSRules) {
	t.Helper()
	ps, err := Parse("tls", []byte(header+"  tls: "+tls+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	c := roundTrip(t, ps[0])
	r, err := ParseTLS(c.TLSRules)
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

// checkTLS wants the relay to read what the policy says.
func checkTLS(t *testing.T, p *PodPolicy, c *Compiled) {
	t.Helper()
	s := p.Spec.TLS
	if s == nil || s.Mode == TLSOff {
		if c.TLS != TLSOff || c.TLSPort != 0 || c.TLSRules != nil {
			t.Fatalf("TLS is off: %s, %d, %s", c.TLS, c.TLSPort, c.TLSRules)
		}
		return
	}
	r, err := ParseTLS(c.TLSRules)
	if err != nil {
		t.Fatalf("%v\n%s", err, c.TLSRules)
	}
	if want := s.normal(); c.TLS != s.Mode || c.TLSPort != r.TLS.Port || jsonOf(t, r.TLS) != jsonOf(t, want) {
		t.Fatalf("%s, port %d, read %+v\nwant %+v", c.TLS, c.TLSPort, r.TLS, want)
	}
	if (s.HTTP == nil) != (r.HTTP() == nil) {
		t.Fatalf("http: %v, and rules %v", s.HTTP, r.HTTP())
	}
	reserved := false
	for _, ports := range c.Reserved {
		reserved = reserved || ports.Contains(c.TLSPort)
	}
	if !reserved {
		t.Fatalf("port %d is not in %v", c.TLSPort, c.Reserved)
	}
	again := *p
	again.Spec.TLS = &r.TLS // the normal form means the same
	if c2, err := again.Compile(); err != nil || !bytes.Equal(c2.TLSRules, c.TLSRules) {
		t.Fatalf("the normal form: %v\n%s\nwant %s", err, c2.TLSRules, c.TLSRules)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestSNI(t *testing.T) {
	const rules = "rules: [{name: bad, action: deny, hosts: [\"*.Bad.example\"]}, {name: first, action: allow, hosts: [\"*.example\"]}, {name: second, action: allow, hosts: [a.example, b.test]}]"
	for _, tt := range []struct {
		sni, name string
		allow     bool
		rule      string
	}{
		{"", "a.example", true, ""},
		{"", "", true, ""},
		{"sni: {default: deny, " + rules + "}", "a.example", true, "first"},
		{"sni: {default: deny, " + rules + "}", "A.EXAMPLE.", true, "first"},
		{"sni: {default: deny, " + rules + "}", "b.test", true, "second"},
		{"sni: {default: deny, " + rules + "}", "c.test", false, ""},
		{"sni: {default: deny, " + rules + "}", "x.bad.example", false, "bad"},
		{"sni: {default: deny, " + rules + "}", "bad.example", true, "first"},
		{"sni: {default: allow, " + rules + "}", "x.bad.example.", false, "bad"},
		{"sni: {default: allow, " + rules + "}", "c.test", true, ""},
		{"sni: {default: allow, " + rules + "}", "", false, ""},
		{"sni: {default: allow, " + rules + "}", "x..bad.example", false, ""},
		{"sni: {default: allow, " + rules + "}", "10.0.0.1", false, ""},
		{"sni: {default: allow, " + rules + "}", "[::1]", false, ""},
		{"sni: {default: allow, absent: allow, " + rules + "}", "", true, ""},
		{"sni: {default: deny, absent: allow, " + rules + "}", "", true, ""},
		{"sni: {default: deny, absent: allow, " + rules + "}", "10.0.0.1", true, ""},
		{"sni: {default: deny, absent: allow, " + rules + "}", "c.test", false, ""},
	} {
		_, r := tlsOf(t, "{mode: inspect, "+strings.TrimSuffix(tt.sni+", ", ", ")+"}")
		if allow, rule := r.SNI(tt.name); allow != tt.allow || rule != tt.rule {
			t.Errorf("%s: %q is %t, %q", tt.sni, tt.name, allow, rule)
		}
	}
}

func TestHTTP(t *testing.T) {
	_, r := tlsOf(t, `{mode: inspect, http: {default: deny, rules: [
    {name: all, action: allow, hosts: ["*.Example"], methods: [GET], path: {prefix: /v1}, headers: [X-ID], sni: [a.Example], upgrades: [WebSocket]},
    {name: exact, action: allow, path: {exact: /x}}, {name: regex, action: allow, path: {regex: "/[a-z]"}},
    {name: last, action: deny, path: {exact: /secret}}, {name: any, action: allow, path: {prefix: /secret}}]}}`)
	get := httprule.Request{Method: "GET", Host: "a.example", Path: "/v1/x", SNI: "a.example", Names: []string{"x-id"}}
	with := func(change func(*httprule.Request)) httprule.Request {
		r := get
		change(&r)
		return r
	}
	for want, q := range map[httprule.Decision]httprule.Request{
		{Allow: true, Rule: "all"}:               get,
		{Allow: true, Rule: "all", Tunnel: true}: with(func(r *httprule.Request) { r.Upgrade = "websocket" }),
		{Allow: true, Rule: "exact"}:             with(func(r *httprule.Request) { r.Path = "/x" }),
		{Allow: true, Rule: "regex"}:             with(func(r *httprule.Request) { r.Path = "/y" }),
		{Rule: "last"}:                           with(func(r *httprule.Request) { r.Path = "/secret" }),
		{Allow: true, Rule: "any"}:               with(func(r *httprule.Request) { r.Path = "/secret/x" }),
		{}:                                       with(func(r *httprule.Request) { r.Names = nil }),
	} {
		if d := r.HTTP().Decide(&q); d != want {
			t.Errorf("%+v: %+v", q, d)
		}
	}
	for name, change := range map[string]func(*httprule.Request){
		"host":   func(r *httprule.Request) { r.Host = "a.test" },
		"method": func(r *httprule.Request) { r.Method = "PUT" },
		"path":   func(r *httprule.Request) { r.Path = "/v10" },
		"sni":    func(r *httprule.Request) { r.SNI = "" },
	} {
		q := with(change)
		if d := r.HTTP().Decide(&q); d.Allow {
			t.Errorf("another %s: %+v", name, d)
		}
	}
	if _, r := tlsOf(t, "{mode: inspect, http: {default: allow}}"); !r.HTTP().Decide(&get).Allow {
		t.Error("the default is allow")
	}
	if _, r := tlsOf(t, "{mode: inspect}"); r.HTTP() != nil {
		t.Error("there are rules")
	}
}

// What a policy says of TLS is in what tells two compiled policies apart, and what says nothing is as it was.
func TestTLSDiffers(t *testing.T) {
	plain, err := Default().Compile()
	if err != nil {
		t.Fatal(err)
	}
	if text := jsonOf(t, plain); strings.Contains(text, "TLS") {
		t.Errorf("a policy without TLS has changed: %s", text)
	}
	seen := map[string]string{jsonOf(t, plain): "none"}
	for _, tls := range []string{
		"{mode: inspect}", "{mode: deferred}", "{mode: inspect, port: 15044}", "{mode: inspect, require: ktls}", "{mode: inspect, plaintext: deny}",
		"{mode: inspect, other: deny}", "{mode: inspect, fronting: allow}", "{mode: inspect, sni: {default: allow}}",
		"{mode: inspect, sni: {default: deny}}", "{mode: inspect, sni: {default: deny, absent: allow}}",
		"{mode: inspect, sni: {default: allow, rules: [{name: a, action: deny, hosts: [a.example]}]}}", "{mode: inspect, http: {default: allow}}",
		"{mode: inspect, http: {default: allow, rules: [{name: a, action: deny}]}}", "{mode: inspect, headers: [accept]}",
	} {
		c, _ := tlsOf(t, tls)
		c.Name = DefaultName
		text := jsonOf(t, c)
		if other, has := seen[text]; has {
			t.Errorf("%s is as %s", tls, other)
		}
		seen[text] = tls
	}
	a, _ := tlsOf(t, "{mode: inspect, http: {default: deny, rules: [{name: a, action: allow, hosts: [A.example], headers: [X-A]}]}}")
	b, _ := tlsOf(t, "{http: {rules: [{hosts: [a.example], name: a, headers: [x-a], action: allow}], default: deny}, other: deny, port: 15043, require: ktls, mode: inspect}")
	if !reflect.DeepEqual(a, b) {
		t.Errorf("the same in two styles:\n%s\n%s", a.TLSRules, b.TLSRules)
	}
}

// What the relay reads, and cannot understand whole, is an error.
func TestParseTLSErrors(t *testing.T) {
	c, _ := tlsOf(t, "{mode: inspect, http: {default: deny, rules: [{name: a, action: allow, hosts: [a.example]}]}}")
	good := string(c.TLSRules)
	for name, tt := range map[string]struct{ text, want string }{
		"empty":          {"", "read TLS rules: unexpected end of JSON input"},
		"padded":         {good + "\x00", "invalid character '\\x00'"},
		"version":        {strings.Replace(good, `"version":1`, `"version":2`, 1), "they are of version 2, and version 1 is known: use programs of one version"},
		"no version":     {strings.Replace(good, `"version":1,`, "", 1), "they are of version 0"},
		"unknown field":  {strings.Replace(good, `"mode"`, `"more":1,"mode"`, 1), `unknown field "more"`},
		"unknown inside": {strings.Replace(good, `"name"`, `"more":1,"name"`, 1), `unknown field "more"`},
		"twice":          {strings.Replace(good, `"mode"`, `"mode":"deferred","mode"`, 1), "not in their normal form"},
		"case":           {strings.Replace(good, `"mode"`, `"Mode"`, 1), "not in their normal form"},
		"space":          {good + " ", "not in their normal form"},
		"more":           {good + "{}", "invalid character '{' after top-level value"},
		"a default":      {strings.Replace(good, `"port":15043,`, "", 1), "not in their normal form"},
		"no mode":        {strings.Replace(good, `"mode":"inspect",`, "", 1), "spec.tls.mode: is off: there is nothing to relay"},
		"a word":         {strings.Replace(good, `"inspect"`, `"observe"`, 1), `"observe" is not known: write off, inspect or deferred`},
		"an empty word":  {strings.Replace(good, `"other":"deny"`, `"other":""`, 1), `"" is not known: write allow or deny`},
		"a number":       {strings.Replace(good, `"inspect"`, "1", 1), "cannot unmarshal number"},
		"a rule":         {strings.Replace(good, "a.example", "a..example", 1), "spec.tls.http.rules[0].hosts[0]: the host is no name"},
		"require":        {strings.Replace(strings.Replace(good, "ktls", "none", 1), "inspect", "deferred", 1), "spec.tls.require: none is not for the mode deferred"},
		"size":           {strings.Repeat(" ", MaxTLSSize+1), "read TLS rules: 65537 bytes: 65536 is the most"},
	} {
		if tt.text == good {
			t.Errorf("%s: nothing is replaced in %s", name, good)
		}
		if r, err := ParseTLS([]byte(tt.text)); r != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v\nwant %s", name, r, err, tt.want)
		}
	}
}

// The rules that were read do not depend on the bytes any more.
func TestParseTLSKeeps(t *testing.T) {
	c, _ := tlsOf(t, "{mode: inspect, sni: {default: deny, rules: [{name: a, action: allow, hosts: [a.example]}]}}")
	r, err := ParseTLS(c.TLSRules)
	if err != nil {
		t.Fatal(err)
	}
	clear(c.TLSRules)
	if allow, rule := r.SNI("a.example"); !allow || rule != "a" {
		t.Error(allow, rule)
	}
}

// FuzzParseTLS wants no panic, and what is read to be what Compile writes of it.
func FuzzParseTLS(f *testing.F) {
	for _, name := range files(f, "testdata/compile/tls.yaml") {
		ps, err := Parse(name, read(f, name))
		if err != nil {
			f.Fatal(err)
		}
		for _, p := range ps {
			c, err := p.Compile()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(c.TLSRules)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseTLS(data)
		if err != nil {
			return
		}
		p := Default()
		p.Spec.Redirect = Redirect{Outbound: r.TLS.Port%3 + 1, Inbound: r.TLS.Port%3 + 4}
		p.Spec.TLS = &r.TLS
		c, err := p.Compile()
		if err != nil {
			if r.TLS.Port < 10 {
				return // a collision
			}
			t.Fatal(err)
		}
		if !bytes.Equal(c.TLSRules, data) {
			t.Errorf("%s\nread as %s", data, c.TLSRules)
		}
		checkTLS(t, p, c)
		roundTrip(t, p)
	})
}
