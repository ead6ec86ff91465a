// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	f := func(o outcome, fingerprint ...string) *finding {
		return &finding{Outcome: o, Fingerprint: strings.Join(fingerprint, "")}
	}
	for _, test := range []struct {
		name          string
		kind          kind
		without, with *finding
		want          verdict
	}{
		{"carried", allowed, f(direct), f(carried), pass},
		{"not carried", allowed, f(direct), f(direct), fail},
		{"broken", allowed, f(direct), f(blocked), fail},
		{"denied", forbidden, f(direct), f(blocked), pass},
		{"redirected", forbidden, f(direct), f(carried), pass},
		{"escaped", forbidden, f(direct), f(direct), fail},
		{"unclear", forbidden, f(direct), f(undecided), fail},
		{"no control", forbidden, f(blocked), f(blocked), fail},
		{"unclear control", allowed, f(undecided), f(carried), fail},
		{"left alone", private, f(direct), f(direct), pass},
		{"not left alone", private, f(direct), f(carried), fail},
		{"same", allowed, f(direct, "a"), f(carried, "a"), pass},
		{"other", allowed, f(direct, "a"), f(carried, "b"), fail},
		{"absent", forbidden, f(absent), f(blocked), skipped},
		{"absent on the only side", forbidden, nil, f(absent), skipped},
		{"made absent", forbidden, f(direct), f(absent), pass},
		{"made absent, though allowed", allowed, f(direct), f(absent), fail},
		{"without only", forbidden, f(direct), nil, pass},
		{"with only", forbidden, nil, f(direct), fail},
	} {
		var sides []side
		findings := map[side][]finding{}
		if test.without != nil {
			sides, findings[off] = append(sides, off), []finding{*test.without}
		}
		if test.with != nil {
			sides, findings[on] = append(sides, on), []finding{*test.with}
		}
		rows := judgeAll([]attempt{{name: test.name, kind: test.kind}}, sides, findings)
		if got := rows[0].Verdict; got != test.want {
			t.Errorf("%s: %s (%s), want %s", test.name, got, rows[0].Why, test.want)
		}
	}
}

func TestTable(t *testing.T) {
	rows := judgeAll([]attempt{{name: "one", kind: forbidden, how: "by magic"}, {name: "another", kind: forbidden, how: "by force"}},
		[]side{off, on}, map[side][]finding{
			off: {findingf(direct, "seen"), findingf(direct, "seen")},
			on:  {findingf(blocked, "sendto: operation not permitted EPERM"), findingf(direct, "seen again")},
		})
	var b bytes.Buffer
	printTable(&b, rows, []side{off, on})
	want := `attempt  without Sidegate  with Sidegate        how it is enforced
------------------------------------------------------------------
one      open              blocked EPERM  pass  by magic
another  open              open           FAIL  by force
    should not get through
    direct: seen
    direct: seen again
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
	if got := count(rows).String(); got != "demo: 1 passed, 1 failed" {
		t.Error(got)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"--side", "left"}, {"--only", "("}, {"more"}} {
		if _, err := parseFlags(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
	e, err := parseFlags([]string{"--side", "on", "--only", "UDP"})
	if err != nil || len(e.sides) != 1 || e.sides[0] != on || !e.only.MatchString("UDP, IPv4") {
		t.Errorf("%+v, %v", e, err)
	}
}

// Names identify attempts in --only and in reports.
func TestAttempts(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range attempts() {
		if a.name == "" || a.how == "" || a.run == nil || seen[a.name] {
			t.Errorf("%+v", a)
		}
		seen[a.name] = true
	}
}
