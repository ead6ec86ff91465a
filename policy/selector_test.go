// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/rand/v2"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Selectors select what those of Kubernetes select. Its packages would cost the hook 0.8 to 5.6 MB and 2 to 6 ms.
func TestSelectorLikeKubernetes(t *testing.T) {
	operators := map[Operator]selection.Operator{
		OpIn: selection.In, OpNotIn: selection.NotIn, OpExists: selection.Exists, OpDoesNotExist: selection.DoesNotExist,
	}
	d := dice{rand.New(rand.NewPCG(5, 6))}
	key := func() string { return pick(d, "app", "tier", "example.com/x") }
	value := func() string { return pick(d, "", "a", "b", "c") }
	set := func(most int) map[string]string {
		m := map[string]string{}
		for range d.n(most + 1) {
			m[key()] = value()
		}
		return m
	}
	selected := 0
	const rounds = 10_000
	for range rounds {
		p := Default()
		p.Spec.PodSelector = &LabelSelector{MatchLabels: set(1), MatchExpressions: many(d, 3, func() Requirement {
			r := Requirement{Key: key(), Operator: pick(d, OpIn, OpNotIn, OpExists, OpDoesNotExist)}
			if r.Operator == OpIn || r.Operator == OpNotIn {
				r.Values = append(many(d, 2, value), value())
			}
			return r
		})}
		if _, err := p.Compile(); err != nil {
			t.Fatal(err)
		}
		theirs := labels.SelectorFromSet(p.Spec.PodSelector.MatchLabels)
		for _, r := range p.Spec.PodSelector.MatchExpressions {
			req, err := labels.NewRequirement(r.Key, operators[r.Operator], r.Values)
			if err != nil {
				t.Fatal(err)
			}
			theirs = theirs.Add(*req)
		}
		pod := set(3)
		want := theirs.Matches(labels.Set(pod))
		if got := p.Selects(pod); got != want {
			t.Fatalf("%v, %+v: %v, want %v", pod, p.Spec.PodSelector, got, want)
		}
		if want {
			selected++
		}
	}
	if selected < rounds/10 || selected > rounds*9/10 {
		t.Errorf("%d of %d are selected", selected, rounds)
	}
}

// Labels are taken that Kubernetes takes.
func TestLabelsLikeKubernetes(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(7, 8))}
	word := func() string {
		b := make([]byte, pick(d, 0, 1, 2, 3, 62, 63, 64))
		for i := range b {
			b[i] = pick(d, []byte("aaaaaZ9-_./")...)
		}
		return string(b)
	}
	for range 5_000 {
		key, value := word(), word()
		_, err := labels.NewRequirement(key, selection.Equals, []string{"x"})
		if problem := labelKeyProblem(key); (problem == "") != (err == nil) {
			t.Fatalf("key %q: %s; %v", key, problem, err)
		}
		_, err = labels.NewRequirement("x", selection.Equals, []string{value})
		if problem := labelValueProblem(value); (problem == "") != (err == nil) {
			t.Fatalf("value %q: %s; %v", value, problem, err)
		}
	}
}
