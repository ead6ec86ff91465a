// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, file, got string) {
	t.Helper()
	name := strings.TrimSuffix(file, ".yaml") + ".golden"
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (write it with -update):\n--- got\n%s--- want\n%s", name, got, want)
	}
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	return names
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestErrors(t *testing.T) {
	for _, file := range files(t, "testdata/errors/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data := read(t, file)
			ps, err := Parse(filepath.Base(file), data)
			if err == nil || ps != nil {
				t.Fatalf("Parse gives %v, %v", ps, err)
			}
			golden(t, file, err.Error()+"\n")
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				checkPosition(t, data, e)
			}
		})
	}
}

// checkPosition wants an error of the file to be in the file.
func checkPosition(t *testing.T, data []byte, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	lines := strings.Split(string(data), "\n")
	if e.Line < 1 || e.Line > len(lines) {
		t.Errorf("%v: there is no line %d of %d", e, e.Line, len(lines))
		return
	}
	if e.Column < 1 || e.Column > len(lines[e.Line-1])+1 {
		t.Errorf("%v: line %d has no column %d", e, e.Line, e.Column)
	}
}

func TestCompile(t *testing.T) {
	for _, file := range files(t, "testdata/compile/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			ps, err := Parse(file, read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for _, p := range ps {
				out.WriteString(dump(t, p, compileAgain(t, p)))
			}
			golden(t, file, out.String())
		})
	}
}

func TestExamples(t *testing.T) {
	names := map[string]string{}
	for _, file := range files(t, "../contrib/examples/*.yaml") {
		ps, err := Parse(file, read(t, file))
		if err != nil {
			t.Error(err)
		}
		for _, p := range ps {
			roundTrip(t, p)
			if first, has := names[p.Metadata.Name]; has {
				t.Errorf("%s: %s has a policy %s too", file, first, p.Metadata.Name)
			}
			names[p.Metadata.Name] = file
		}
	}
	if len(names) < 3 {
		t.Errorf("only %v", names)
	}
}

// roundTrip marshals the policy, directly and by goccy/go-yaml, and wants the same back.
func roundTrip(t *testing.T, p *PodPolicy) *Compiled {
	t.Helper()
	want, err := p.Compile()
	if err != nil {
		t.Fatalf("what parses does not compile: %v", err)
	}
	checkTLS(t, p, want)
	text, err := p.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("marshalled", text)
	if err != nil || len(again) != 1 {
		t.Fatalf("parse what was marshalled: %v\n%s", err, text)
	}
	got, err := again[0].Compile()
	if err != nil || !reflect.DeepEqual(unlined(got), unlined(want)) {
		t.Fatalf("round trip: %v\ngot  %+v\nwant %+v\n%s", err, got, want, text)
	}
	if !reflect.DeepEqual(clean(p), clean(again[0])) {
		t.Fatalf("round trip:\ngot  %.2000s\nwant %.2000s", fmt.Sprintf("%+v", again[0]), fmt.Sprintf("%+v", p))
	}
	return want
}

// compileAgain wants the same from a second time, from what was marshalled, and as JSON.
func compileAgain(t *testing.T, p *PodPolicy) *Compiled {
	t.Helper()
	roundTrip(t, p)
	a, err := p.Compile()
	b, err2 := p.Compile()
	if err != nil || err2 != nil || !reflect.DeepEqual(a, b) {
		t.Fatalf("compiled again:\n%+v, %v\n%+v, %v", a, err, b, err2)
	}
	text, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Parse("json", text); err == nil {
		c, err := again[0].Compile()
		if err != nil || !reflect.DeepEqual(unlined(c), unlined(a)) {
			t.Fatalf("by way of JSON: %v\ngot  %+v\nwant %+v\n%s", err, c, a, text)
		}
	} else {
		t.Fatalf("%v\n%s", err, text)
	}
	return a
}

// unlined drops the lines of the rules.
func unlined(c *Compiled) Compiled {
	out := *c
	out.Rules = slices.Clone(c.Rules)
	for i := range out.Rules {
		out.Rules[i].Line = 0
	}
	return out
}

// clean drops what a round trip need not keep: the place, and empty lists as against none.
func clean(p *PodPolicy) PodPolicy {
	c := *p
	c.file, c.line, c.lines = "", 0, nil
	if len(c.Metadata.Labels) == 0 {
		c.Metadata.Labels = nil
	}
	if s := c.Spec.PodSelector; s != nil {
		s := *s
		if len(s.MatchLabels) == 0 {
			s.MatchLabels = nil
		}
		c.Spec.PodSelector = &s
	}
	return c
}

func TestMarshalByYAMLPackage(t *testing.T) {
	ps, err := Parse("full.yaml", read(t, "testdata/compile/full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(ps[0])
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("marshalled", text)
	if err != nil || len(again) != 1 {
		t.Fatalf("%v\n%s", err, text)
	}
	if !reflect.DeepEqual(clean(ps[0]), clean(again[0])) {
		t.Errorf("got %+v\nwant %+v", again[0], ps[0])
	}
}

// dump writes a compiled policy with names in place of numbers.
func dump(t *testing.T, p *PodPolicy, c *Compiled) string {
	t.Helper()
	number := names(p)
	class := func(id uint32) string { return "class" + strconv.Itoa(int(id)) }
	var b strings.Builder
	fmt.Fprintf(&b, "%s: mode %s, outbound %d, inbound %d, dns %d, getsockname %s, nonTCP %s, init %s\n",
		c.Name, c.Mode, c.Outbound, c.Inbound, c.DNS, c.Getsockname, c.NonTCP, c.Init)
	fmt.Fprintf(&b, "  reserved %v\n", c.Reserved)
	if c.TLS != TLSOff {
		fmt.Fprintf(&b, "  tls %s, port %d, %s\n", c.TLS, c.TLSPort, c.TLSRules)
	}
	for _, s := range c.Subjects {
		fmt.Fprintf(&b, "  subject %s: %s\n", number(s.ID), flagWords(s.Flags))
		for _, u := range s.Unix {
			var peers []string
			for _, id := range u.Peers {
				peers = append(peers, number(id))
			}
			fmt.Fprintf(&b, "    unix %q abstract %v, type %s, peers %v, rule %d\n", u.Pattern, u.Abstract, u.Type, peers, u.Rule)
		}
		if s.Processes != nil {
			fmt.Fprintf(&b, "    processes %q\n", s.Processes)
		}
	}
	for _, x := range c.Prefixes {
		fmt.Fprintf(&b, "  prefix %s: %s\n", x.Prefix, class(x.Class))
	}
	for _, e := range c.Entries {
		proto := protoName(e.Proto)
		if e.AnyProto {
			proto = "any"
		}
		fmt.Fprintf(&b, "  %s %s %s %s %d/%d: rule %d\n", number(e.Subject), e.Dir, number(e.Peer), proto, e.Port, e.PortBits, e.Rule)
	}
	for i, r := range c.Rules {
		fmt.Fprintf(&b, "  rule %d, line %d: %s: %s\n", i+1, r.Line, r.Path, r.Text)
	}
	if _, err := json.Marshal(c); err != nil {
		t.Error(err)
	}
	return b.String()
}

// names returns what stands for a number in dumps.
func names(p *PodPolicy) func(id uint32) string {
	words := map[uint32]string{SubjectPod: "pod", PeerWorld: "world", PeerHost: "host"}
	for r := RoleApp; r <= RoleNone; r++ {
		words[uint32(r)] = r.String()
	}
	add := func(peers []Peer) {
		for _, peer := range peers {
			words[NameID(peer.Container)] = "name:" + peer.Container
		}
	}
	for _, s := range p.Spec.Rules {
		add([]Peer{{Container: s.Container}})
		for _, r := range s.Egress {
			add(r.To)
		}
		for _, r := range s.Ingress {
			add(r.From)
		}
		if s.Unix != nil {
			for _, a := range s.Unix.Allow {
				add(a.To)
			}
		}
	}
	return func(id uint32) string {
		if w, has := words[id]; has {
			return w
		}
		return "class" + strconv.Itoa(int(id))
	}
}

func flagWords(f SubjectFlags) string {
	var words []string
	for i, w := range []string{"ruled", "icmp", "icmpv6", "sctp", "processes", "unix", "optional"} {
		if f&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}
