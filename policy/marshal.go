// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// MarshalYAML writes the policy as a document that Parse reads back, with the defaults written out, but for those of
// spec.tls: some depend on what else is there.
// The policy must be one that compiles; goccy/go-yaml uses it too.
func (p *PodPolicy) MarshalYAML() ([]byte, error) {
	if _, err := p.Compile(); err != nil {
		return nil, err
	}
	var w writer
	w.line(0, "apiVersion: "+APIVersion)
	w.line(0, "kind: "+Kind)
	w.line(0, "metadata:")
	w.line(1, "name: "+strconv.Quote(p.Metadata.Name))
	w.labels(1, "labels", p.Metadata.Labels)
	w.line(0, "spec:")
	if s := p.Spec.PodSelector; s != nil {
		w.selector(s)
	}
	if len(p.Spec.Roles) > 0 {
		w.line(1, "roles:")
	}
	for _, r := range p.Spec.Roles {
		w.line(1, "- container: "+strconv.Quote(r.Container))
		w.line(2, "role: "+r.Role.String())
	}
	r := p.Spec.Redirect
	w.line(1, "redirect:")
	w.line(2, "outbound: "+strconv.Itoa(int(cmp.Or(r.Outbound, DefaultOutbound))))
	w.line(2, "inbound: "+strconv.Itoa(int(cmp.Or(r.Inbound, DefaultInbound))))
	if r.DNS != 0 {
		w.line(2, "dns: "+strconv.Itoa(int(r.DNS)))
	}
	w.line(2, "getsockname: "+r.Getsockname.String())
	w.ports(1, "sidecarPorts", p.Spec.SidecarPorts)
	if ex := p.Spec.Exclude; len(ex.Egress)+len(ex.Ingress) > 0 {
		w.line(1, "exclude:")
		w.exclusions("egress", ex.Egress)
		w.exclusions("ingress", ex.Ingress)
	}
	w.line(1, "nonTCP: "+p.Spec.NonTCP.String())
	w.line(1, "init: "+p.Spec.Init.String())
	w.line(1, "adminCapabilities: "+p.Spec.AdminCapabilities.String())
	w.line(1, "accelerate: "+strconv.Quote(p.Spec.Accelerate.String())) // not a boolean to anybody
	w.line(1, "mode: "+p.Spec.Mode.String())
	w.tls(p.Spec.TLS)
	if len(p.Spec.Rules) > 0 {
		w.line(1, "rules:")
	}
	for i := range p.Spec.Rules {
		w.rules(&p.Spec.Rules[i])
	}
	return []byte(w.String()), nil
}

// writer quotes all text, so that no reader takes it for anything else.
type writer struct{ strings.Builder }

func (w *writer) line(depth int, text string) {
	w.WriteString(strings.Repeat("  ", depth) + text + "\n")
}

func (w *writer) labels(depth int, name string, labels map[string]string) {
	if len(labels) == 0 {
		return
	}
	w.line(depth, name+":")
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		w.line(depth+1, strconv.Quote(k)+": "+strconv.Quote(labels[k]))
	}
}

func (w *writer) selector(s *LabelSelector) {
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		w.line(1, "podSelector: {}")
		return
	}
	w.line(1, "podSelector:")
	w.labels(2, "matchLabels", s.MatchLabels)
	if len(s.MatchExpressions) > 0 {
		w.line(2, "matchExpressions:")
	}
	for _, r := range s.MatchExpressions {
		w.line(2, "- key: "+strconv.Quote(r.Key))
		w.line(3, "operator: "+string(r.Operator))
		if len(r.Values) == 0 {
			continue
		}
		quoted := make([]string, len(r.Values))
		for i, v := range r.Values {
			quoted[i] = strconv.Quote(v)
		}
		w.line(3, "values: ["+strings.Join(quoted, ", ")+"]")
	}
}

func (w *writer) ports(depth int, name string, ports []PortRange) {
	if len(ports) == 0 {
		return
	}
	words := make([]string, len(ports))
	for i, r := range ports {
		words[i] = r.String()
		if r.First != r.Last {
			words[i] = strconv.Quote(words[i])
		}
	}
	w.line(depth, name+": ["+strings.Join(words, ", ")+"]")
}

func (w *writer) exclusions(name string, rules []Exclusion) {
	if len(rules) == 0 {
		return
	}
	w.line(2, name+":")
	for _, e := range rules {
		w.line(2, "- protocol: "+cmp.Or(e.Protocol, ProtoTCP).String())
		if e.CIDR != "" {
			w.line(3, "cidr: "+strconv.Quote(e.CIDR))
		}
		w.ports(3, "ports", e.Ports)
	}
}

// rules writes an item of spec.rules.
func (w *writer) rules(s *SubjectRules) {
	if s.Role != RoleUnset {
		w.line(1, "- role: "+s.Role.String())
	} else {
		w.line(1, "- container: "+strconv.Quote(s.Container))
	}
	w.open(2, "egress", s.Egress != nil, len(s.Egress))
	for i := range s.Egress {
		w.traffic("to", s.Egress[i].To, &s.Egress[i].Traffic)
	}
	w.open(2, "ingress", s.Ingress != nil, len(s.Ingress))
	for i := range s.Ingress {
		w.traffic("from", s.Ingress[i].From, &s.Ingress[i].Traffic)
	}
	w.unix(s.Unix)
	w.open(2, "processes", s.Processes != nil, len(s.Processes))
	for _, p := range s.Processes {
		w.line(2, "- "+strconv.Quote(p))
	}
}

// open writes the key of a list that is there, also if it is empty.
func (w *writer) open(depth int, name string, there bool, items int) {
	switch {
	case !there:
	case items == 0:
		w.line(depth, name+": []")
	default:
		w.line(depth, name+":")
	}
}

func (w *writer) traffic(key string, peers []Peer, t *Traffic) {
	w.line(2, "- protocol: "+t.Protocol.String())
	w.peers(3, key, peers)
	w.ports(3, "ports", t.Ports)
	if len(t.Types) == 0 {
		return
	}
	words := make([]string, len(t.Types))
	for i, n := range t.Types {
		words[i] = strconv.Itoa(int(n))
	}
	w.line(3, "types: ["+strings.Join(words, ", ")+"]")
}

func (w *writer) peers(depth int, key string, peers []Peer) {
	if len(peers) > 0 {
		w.line(depth, key+":")
	}
	for _, p := range peers {
		switch {
		case p.Role != RoleUnset:
			w.line(depth, "- role: "+p.Role.String())
		case p.Container != "":
			w.line(depth, "- container: "+strconv.Quote(p.Container))
		case p.Entity != EntityUnset:
			w.line(depth, "- entity: "+p.Entity.String())
		default:
			w.line(depth, "- cidr: "+strconv.Quote(p.CIDR))
		}
		if len(p.Except) == 0 {
			continue
		}
		quoted := make([]string, len(p.Except))
		for i, e := range p.Except {
			quoted[i] = strconv.Quote(e)
		}
		w.line(depth+1, "except: ["+strings.Join(quoted, ", ")+"]")
	}
}

func (w *writer) unix(u *Unix) {
	if u == nil {
		return
	}
	w.line(2, "unix:")
	w.line(3, "optional: "+strconv.FormatBool(u.Optional))
	for i, a := range u.Allow {
		if i == 0 {
			w.line(3, "allow:")
		}
		w.line(3, "- type: "+a.Type.String())
		if a.Path != "" {
			w.line(4, "path: "+strconv.Quote(a.Path))
		} else {
			w.line(4, "abstract: "+strconv.Quote(a.Abstract))
		}
		w.peers(4, "to", a.To)
	}
}

func (w *writer) tls(t *TLS) {
	if t == nil {
		return
	}
	w.line(1, "tls:")
	w.line(2, "mode: "+strconv.Quote(t.Mode.String())) // not a boolean to anybody
	if t.Port != 0 {
		w.line(2, "port: "+strconv.Itoa(int(t.Port)))
	}
	if t.Require != RequireUnset {
		w.line(2, "require: "+t.Require.String())
	}
	w.verdict(2, "plaintext", t.Plaintext)
	w.verdict(2, "other", t.Other)
	w.verdict(2, "fronting", t.Fronting)
	if s := t.SNI; s != nil {
		w.line(2, "sni:")
		w.verdict(3, "default", s.Default)
		w.verdict(3, "absent", s.Absent)
		w.open(3, "rules", len(s.Rules) > 0, len(s.Rules))
		for _, r := range s.Rules {
			w.line(3, "- name: "+strconv.Quote(r.Name))
			w.verdict(4, "action", r.Action)
			w.texts(4, "hosts", r.Hosts)
		}
	}
	if h := t.HTTP; h != nil {
		w.line(2, "http:")
		w.verdict(3, "default", h.Default)
		w.open(3, "rules", len(h.Rules) > 0, len(h.Rules))
		for i := range h.Rules {
			w.httpRule(&h.Rules[i])
		}
	}
	w.texts(2, "headers", t.Headers)
}

func (w *writer) httpRule(r *HTTPRule) {
	w.line(3, "- name: "+strconv.Quote(r.Name))
	w.verdict(4, "action", r.Action)
	w.texts(4, "hosts", r.Hosts)
	w.texts(4, "methods", r.Methods)
	switch p := r.Path; {
	case p.Exact != "":
		w.line(4, "path: {exact: "+strconv.Quote(p.Exact)+"}")
	case p.Prefix != "":
		w.line(4, "path: {prefix: "+strconv.Quote(p.Prefix)+"}")
	case p.Regex != "":
		w.line(4, "path: {regex: "+strconv.Quote(p.Regex)+"}")
	}
	w.texts(4, "headers", r.Headers)
	w.texts(4, "sni", r.SNI)
	w.texts(4, "upgrades", r.Upgrades)
}

// verdict writes one that is not left to the default.
func (w *writer) verdict(depth int, name string, v Verdict) {
	if v != VerdictUnset {
		w.line(depth, name+": "+v.String())
	}
}

// texts writes a list that is not empty.
func (w *writer) texts(depth int, name string, words []string) {
	if len(words) == 0 {
		return
	}
	quoted := make([]string, len(words))
	for i, s := range words {
		quoted[i] = strconv.Quote(s)
	}
	w.line(depth, name+": ["+strings.Join(quoted, ", ")+"]")
}
