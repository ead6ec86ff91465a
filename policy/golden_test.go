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
				out.WriteString(dump(t, roundTrip(t, p)))
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
	text, err := p.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("marshalled", text)
	if err != nil || len(again) != 1 {
		t.Fatalf("parse what was marshalled: %v\n%s", err, text)
	}
	got, err := again[0].Compile()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("round trip: %v\ngot  %+v\nwant %+v\n%s", err, got, want, text)
	}
	if !reflect.DeepEqual(clean(p), clean(again[0])) {
		t.Fatalf("round trip:\ngot  %.2000s\nwant %.2000s", fmt.Sprintf("%+v", again[0]), fmt.Sprintf("%+v", p))
	}
	return want
}

// clean drops what a round trip need not keep: the place, and empty lists as against none.
func clean(p *PodPolicy) PodPolicy {
	c := *p
	c.file, c.line = "", 0
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

func dump(t *testing.T, c *Compiled) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s: outbound %d, inbound %d, dns %d, nonTCP %s, init %s\n", c.Name, c.Outbound, c.Inbound, c.DNS, c.NonTCP, c.Init)
	fmt.Fprintf(&b, "  reserved %v\n", c.Reserved)
	for _, way := range []struct {
		name  string
		rules []Rule
	}{{"egress", c.Egress}, {"ingress", c.Ingress}} {
		for _, r := range way.rules {
			fmt.Fprintf(&b, "  %-7s %s %s %s\n", way.name, r.Prefix, r.Proto, r.Ports)
		}
	}
	if _, err := json.Marshal(c); err != nil {
		t.Error(err)
	}
	return b.String()
}
