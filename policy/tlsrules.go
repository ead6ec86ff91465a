// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sidegate/policy/httprule"
)

const tlsPath = "spec.tls"

// TLSVersion is that of the form which [Compiled.TLSRules] has.
const TLSVersion = 1

// TLSRules is what the relay goes by. Its methods may be called at the same time.
type TLSRules struct {
	// TLS has every default filled in, and hosts and the names of headers and upgrades in lower case. SNI and HTTP are
	// nil if the policy does not have them, and Mode is not TLSOff.
	TLS TLS

	sni, http *httprule.RuleSet
}

// HTTP returns the rules about requests, or nil if requests are not judged.
func (r *TLSRules) HTTP() *httprule.RuleSet { return r.http }

// SNI judges a connection by the name that its client sent, or none: "". What is no name is as none. rule is the one that
// matched, if one did.
func (r *TLSRules) SNI(name string) (allow bool, rule string) {
	if r.sni == nil {
		return true, ""
	}
	host, problem := httprule.Host(strings.TrimSuffix(name, "."))
	if problem != "" || httprule.IsAddress(host) {
		return r.TLS.SNI.Absent == VerdictAllow, ""
	}
	d := r.sni.Decide(&httprule.Request{SNI: host})
	return d.Allow, d.Rule
}

// encoded is a TLS as the relay is given it.
type encoded struct {
	Version int `json:"version"`
	TLS
}

// encode writes what ParseTLS reads. A TLS has one form only.
func (t *TLS) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a < takes a byte, not six
	if err := e.Encode(encoded{TLSVersion, *t}); err != nil {
		return nil, fmt.Errorf("encode spec.tls: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// ParseTLS reads [Compiled.TLSRules]. It takes what this version of Compile writes, to the byte, and nothing else.
func ParseTLS(b []byte) (*TLSRules, error) {
	if len(b) > MaxTLSSize {
		return nil, fmt.Errorf("read TLS rules: %d bytes: %d is the most", len(b), MaxTLSSize)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, fmt.Errorf("read TLS rules: %w", err)
	}
	if version.Version != TLSVersion {
		return nil, fmt.Errorf("read TLS rules: they are of version %d, and version %d is known: use programs of one version", version.Version, TLSVersion)
	}
	var in encoded
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("read TLS rules: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read TLS rules: there is more behind them")
	}
	var k checker
	r := k.tls(&in.TLS)
	if in.Mode == TLSOff {
		k.add(tlsPath+".mode", "is off: there is nothing to relay")
	}
	if len(k.problems) > 0 {
		errs := make([]error, 0, len(k.problems))
		for _, pr := range k.problems {
			errs = append(errs, &Error{Path: pr.path, Msg: pr.msg})
		}
		return nil, fmt.Errorf("read TLS rules: %w", errors.Join(errs...))
	}
	again, err := r.TLS.encode()
	if err != nil {
		return nil, fmt.Errorf("read TLS rules: %w", err)
	}
	if !bytes.Equal(again, b) {
		return nil, errors.New("read TLS rules: they are not in their normal form")
	}
	return r, nil
}

// tlsSection puts spec.tls into c, whose other ports are there already.
func (k *checker) tlsSection(c *Compiled, s *Spec) {
	t := s.TLS
	if t == nil {
		return
	}
	r := k.tls(t)
	if t.Mode == TLSOff {
		return
	}
	if s.Mode == ModeAudit {
		k.add(tlsPath+".mode", "%s works under spec.mode: enforce only, because the relay cannot yet let go on what it denies: write off here, or enforce there", t.Mode)
	}
	c.TLS, c.TLSPort = t.Mode, cmp.Or(t.Port, DefaultTLS)
	port := fmt.Sprint(c.TLSPort)
	if t.Port == 0 {
		port += ", the default,"
	}
	for _, other := range []struct {
		name string
		port uint16
	}{{"outbound", c.Outbound}, {"inbound", c.Inbound}, {"dns", c.DNS}} {
		if c.TLSPort == other.port {
			k.add(tlsPath+".port", "%s is spec.redirect.%s's port too: write different ports", port, other.name)
		}
	}
	for i, other := range s.SidecarPorts {
		if other.Contains(c.TLSPort) {
			k.add(tlsPath+".port", "%s is in %s, %s, too, and not even the sidecar may bind it: write different ports", port, indexPath("spec.sidecarPorts", i), other)
		}
	}
	if r == nil {
		return
	}
	var err error
	if c.TLSRules, err = r.TLS.encode(); err != nil {
		k.add(tlsPath, "%s", err)
	}
	if n := len(c.TLSRules); n > MaxTLSSize {
		k.add(tlsPath, "takes %d bytes in the kernel: write at most %d, with fewer rules or shorter ones, such as *.example for many names", n, MaxTLSSize)
	}
}

// tls checks and compiles. It returns nil if there is a problem.
func (k *checker) tls(t *TLS) *TLSRules {
	before := len(k.problems)
	if int(t.Mode) >= len(tlsModeWords()) {
		k.add(tlsPath+".mode", "%s does not exist: use %s", t.Mode, or(tlsModeWords()))
	}
	if int(t.Require) >= len(tlsRequireWords()) {
		k.add(tlsPath+".require", "%s does not exist: use %s", t.Require, or(written(tlsRequireWords())))
	}
	k.verdict(tlsPath+".plaintext", t.Plaintext)
	k.verdict(tlsPath+".other", t.Other)
	k.verdict(tlsPath+".fronting", t.Fronting)
	if t.Mode == TLSDeferred && t.Require == RequireNone {
		k.add(tlsPath+".require", "none is not for the mode deferred, because without its keys the sidecar cannot have a connection's plaintext: write ktls, or the mode inspect")
	}
	k.headers(t.Headers)
	r := &TLSRules{TLS: t.normal()}
	names, others := ruleNames{}, 0
	if t.SNI != nil {
		r.sni, others = k.sni(t.SNI, names), len(t.SNI.Rules)
	}
	if t.HTTP != nil {
		r.http = k.http(t.HTTP, names, others)
	}
	if len(k.problems) > before {
		return nil
	}
	return r
}

// normal fills in the defaults, and writes in one way what may be written in several. It shares nothing with t.
func (t *TLS) normal() TLS {
	n := *t
	n.Port = cmp.Or(t.Port, DefaultTLS)
	n.Plaintext = cmp.Or(t.Plaintext, VerdictAllow)
	n.Fronting = cmp.Or(t.Fronting, VerdictDeny)
	n.Headers = each(t.Headers, httprule.Lower)
	other, require := VerdictAllow, RequireNone
	if t.SNI != nil {
		sni := *t.SNI
		sni.Absent = cmp.Or(sni.Absent, VerdictDeny)
		sni.Rules = slices.Clone(sni.Rules)
		for i := range sni.Rules {
			sni.Rules[i].Hosts = each(sni.Rules[i].Hosts, hostPattern)
		}
		n.SNI = &sni
	}
	if t.HTTP != nil {
		http := *t.HTTP
		http.Rules = slices.Clone(http.Rules)
		for i := range http.Rules {
			r := &http.Rules[i]
			r.Hosts, r.SNI, r.Methods = each(r.Hosts, hostPattern), each(r.SNI, hostPattern), slices.Clone(r.Methods)
			r.Headers, r.Upgrades = each(r.Headers, httprule.Lower), each(r.Upgrades, httprule.Lower)
		}
		n.HTTP = &http
		other, require = http.Default, RequireKTLS
	}
	if t.Mode == TLSDeferred {
		require = RequireKTLS
	}
	n.Other, n.Require = cmp.Or(t.Other, other), cmp.Or(t.Require, require)
	return n
}

// each is nil if words is empty.
func each(words []string, fn func(string) string) (out []string) {
	for _, w := range words {
		out = append(out, fn(w))
	}
	return out
}

func hostPattern(p string) string {
	normal, _ := httprule.Pattern(p)
	return cmp.Or(normal, p)
}

func (k *checker) verdict(path string, v Verdict) {
	if int(v) >= len(verdictWords()) {
		k.add(path, "%s does not exist: use %s", v, or(written(verdictWords())))
	}
}

// must is verdict, of a field without a default.
func (k *checker) must(path string, v Verdict, what string) {
	if v == VerdictUnset {
		k.add(path, "missing: write %s, which is what happens to %s", or(written(verdictWords())), what)
	}
	k.verdict(path, v)
}

func (k *checker) most(path string, have, most int, what string) {
	if have > most {
		k.add(path, "%d %s: write at most %d", have, what, most)
	}
}

func (k *checker) headers(headers []string) {
	path := tlsPath + ".headers"
	k.most(path, len(headers), MaxHeaders, "headers")
	seen := map[string]int{}
	for i, h := range headers {
		at, name := indexPath(path, i), httprule.Lower(h)
		first, twice := seen[name]
		problem := httprule.HeaderProblem(h)
		switch {
		case problem != "":
			k.add(at, "%s", problem)
		case httprule.Secret(name):
			k.add(at, "%s is a credential, which events do not have: leave it out", name)
		case twice:
			k.add(at, "%s is there twice, first in %s: leave one out", name, indexPath(path, first))
		default:
			seen[name] = i
		}
	}
}

// ruleNames has the paths of the rules, by name.
type ruleNames map[string]string

// rule checks what all rules have.
func (k *checker) rule(path, name string, action Verdict, names ruleNames, matched string) {
	at := path + ".name"
	switch first, twice := names[name]; {
	case name == "":
		k.add(at, "missing: write one such as api, events say which rule matched")
	case !isDNSLabel(name):
		k.add(at, "%s", dnsLabelProblem(name))
	case twice:
		k.add(at, "%s is the name of %s too: write another", show(name), first)
	default:
		names[name] = path
	}
	k.must(path+".action", action, matched)
}

// fewRules says whether there are not too many rules, with those before.
func (k *checker) fewRules(path string, have, before int) bool {
	switch {
	case before+have <= MaxTLSRules:
		return true
	case before > MaxTLSRules: // which was said
		return false
	}
	k.add(indexPath(path, MaxTLSRules-before), "spec.tls has %d rules: write at most %d, each with several hosts", before+have, MaxTLSRules)
	return false
}

func (k *checker) sni(s *SNI, names ruleNames) *httprule.RuleSet {
	path := tlsPath + ".sni"
	k.must(path+".default", s.Default, "names that no rule matches")
	k.verdict(path+".absent", s.Absent)
	path += ".rules"
	if !k.fewRules(path, len(s.Rules), 0) {
		return nil
	}
	rules := make([]httprule.Rule, len(s.Rules))
	for i, r := range s.Rules {
		at := indexPath(path, i)
		k.rule(at, r.Name, r.Action, names, "names that it matches")
		k.most(at+".hosts", len(r.Hosts), MaxTLSHosts, "names")
		if len(r.Hosts) == 0 {
			k.add(at+".hosts", "missing: list names such as api.example, or *.example for those below one")
		}
		rules[i] = httprule.Rule{Name: r.Name, Allow: r.Action == VerdictAllow, SNI: r.Hosts}
	}
	return k.ruleSet(path, rules, s.Default, func(field string) string { return strings.Replace(field, "sni", "hosts", 1) })
}

func (k *checker) http(h *HTTP, names ruleNames, before int) *httprule.RuleSet {
	path := tlsPath + ".http"
	k.must(path+".default", h.Default, "requests that no rule matches")
	path += ".rules"
	if !k.fewRules(path, len(h.Rules), before) {
		return nil
	}
	rules := make([]httprule.Rule, len(h.Rules))
	for i, r := range h.Rules {
		at := indexPath(path, i)
		k.rule(at, r.Name, r.Action, names, "requests that it matches")
		k.most(at+".hosts", len(r.Hosts), MaxTLSHosts, "hosts")
		k.most(at+".sni", len(r.SNI), MaxTLSHosts, "names")
		k.most(at+".methods", len(r.Methods), MaxTLSWords, "methods")
		k.most(at+".headers", len(r.Headers), MaxTLSWords, "headers")
		k.most(at+".upgrades", len(r.Upgrades), MaxTLSWords, "upgrades")
		rules[i] = httprule.Rule{
			Name: r.Name, Allow: r.Action == VerdictAllow, Hosts: r.Hosts, Methods: r.Methods, Path: httprule.Path(r.Path),
			Headers: r.Headers, SNI: r.SNI, Upgrades: r.Upgrades,
		}
	}
	return k.ruleSet(path, rules, h.Default, func(field string) string { return field })
}

// ruleSet compiles rules whose names were checked. rename gives what a field is called here.
func (k *checker) ruleSet(path string, rules []httprule.Rule, fallback Verdict, rename func(field string) string) *httprule.RuleSet {
	set, err := httprule.Compile(rules, fallback == VerdictAllow)
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return set
	}
	for _, e := range joined.Unwrap() {
		var fault *httprule.Error
		if errors.As(e, &fault) && fault.Field != "name" {
			k.add(indexPath(path, fault.Index)+"."+rename(fault.Field), "%s", fault.Msg)
		}
	}
	return set
}
