// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
)

// A side is a world without or with Sidegate.
type side string

const (
	off side = "without"
	on  side = "with"
)

// An outcome is what became of an attempt, by evidence from its other end.
type outcome string

const (
	direct    outcome = "direct"      // it got through, round the sidecar
	carried   outcome = "via sidecar" // it got through, and the sidecar says that it carried it
	blocked   outcome = "blocked"     // nothing got through
	absent    outcome = "not here"    // this kernel, or machine, has no such thing
	undecided outcome = "undecided"   // the evidence contradicts itself, or there is none
)

// A finding is an outcome and what it was concluded from.
type finding struct {
	Outcome outcome `json:"outcome"`
	Detail  string  `json:"detail"`
	// Fingerprint must be the same on both sides, where an attempt has one.
	Fingerprint string `json:"fingerprint,omitempty"`
}

func findingf(o outcome, format string, args ...any) finding {
	return finding{Outcome: o, Detail: fmt.Sprintf(format, args...)}
}

// A kind says which outcomes are right.
type kind string

const (
	allowed   kind = "allowed"   // works without, and with Sidegate goes through the sidecar
	private   kind = "private"   // works the same, and is none of the sidecar's business
	forbidden kind = "forbidden" // open without, and not with
)

// An attempt is one thing to try in a pod.
type attempt struct {
	name string
	kind kind
	how  string // how Sidegate enforces it
	run  func(context.Context, *scene) (finding, error)
}

// A verdict is the judgement on an attempt.
type verdict string

const (
	pass    verdict = "pass"
	fail    verdict = "FAIL"
	skipped verdict = "skipped"
)

// judge compares what became of an attempt with what should have. A finding may be missing: then only the other is judged.
func judge(k kind, without, with *finding) (verdict, string) {
	if (without == nil && with.Outcome == absent) || (without != nil && without.Outcome == absent) {
		return skipped, "this machine cannot do it"
	}
	// Without Sidegate everything must work, or the attempt proves nothing.
	if without != nil && without.Outcome != direct {
		return fail, "no control: does not work without Sidegate"
	}
	if with == nil {
		return pass, ""
	}
	switch {
	case k == allowed && with.Outcome != carried:
		return fail, "should go through the sidecar"
	case k == private && with.Outcome != direct:
		return fail, "should work as it does without"
	case k == forbidden && with.Outcome != blocked && with.Outcome != carried:
		return fail, "should not get through"
	case without != nil && without.Fingerprint != with.Fingerprint:
		return fail, "differs from what it is without"
	}
	return pass, ""
}

// A row is one attempt with all that is known of it.
type row struct {
	Name    string   `json:"name"`
	Kind    kind     `json:"kind"`
	Without *finding `json:"without,omitempty"`
	With    *finding `json:"with,omitempty"`
	How     string   `json:"how"`
	Verdict verdict  `json:"verdict"`
	Why     string   `json:"why,omitempty"`
}

// report is the JSON form of a run.
type report struct {
	Passed   int   `json:"passed"`
	Failed   int   `json:"failed"`
	Skipped  int   `json:"skipped"`
	Attempts []row `json:"attempts"`
}

func judgeAll(attempts []attempt, sides []side, findings map[side][]finding) []row {
	rows := make([]row, len(attempts))
	for i, a := range attempts {
		r := row{Name: a.name, Kind: a.kind, How: a.how}
		for _, s := range sides {
			if s == off {
				r.Without = &findings[s][i]
			} else {
				r.With = &findings[s][i]
			}
		}
		// What is there without Sidegate, and not with it, is denied: EPROTONOSUPPORT makes programs fall back to what is allowed.
		if r.Without != nil && r.With != nil && r.Without.Outcome != absent && r.With.Outcome == absent {
			r.With.Outcome = blocked
		}
		r.Verdict, r.Why = judge(a.kind, r.Without, r.With)
		rows[i] = r
	}
	return rows
}

// summary counts verdicts.
type summary struct{ passed, failed, skipped int }

func count(rows []row) (s summary) {
	for _, r := range rows {
		switch r.Verdict {
		case pass:
			s.passed++
		case fail:
			s.failed++
		case skipped:
			s.skipped++
		}
	}
	return s
}

func (s summary) String() string {
	return fmt.Sprintf("demo: %d passed, %d failed", s.passed, s.failed)
}
