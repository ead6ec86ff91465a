// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
)

// LabelSelector is Kubernetes' selector: all of MatchLabels and all of MatchExpressions must hold.
// An empty one selects everything.
type LabelSelector struct {
	// MatchLabels are labels that the pod has.
	MatchLabels map[string]string `yaml:"matchLabels,omitempty" json:"matchLabels,omitempty"`
	// MatchExpressions are further conditions on the pod's labels.
	MatchExpressions []Requirement `yaml:"matchExpressions,omitempty" json:"matchExpressions,omitempty"`
}

// Requirement is one of a selector's MatchExpressions.
type Requirement struct {
	// Key is that of a label.
	Key string `yaml:"key" json:"key"`
	// Operator relates the label to values. NotIn also holds where the label is not there at all.
	Operator Operator `yaml:"operator" json:"operator"`
	// Values are those of In and NotIn. Exists and DoesNotExist have none.
	Values []string `yaml:"values,omitempty" json:"values,omitempty"`
}

// Operator relates a label to the values of a requirement.
type Operator string

// Kubernetes' operators. OpNotIn also holds where the label is not there at all.
const (
	OpIn           Operator = "In"
	OpNotIn        Operator = "NotIn"
	OpExists       Operator = "Exists"
	OpDoesNotExist Operator = "DoesNotExist"
)

func operatorWords() []string {
	return []string{string(OpIn), string(OpNotIn), string(OpExists), string(OpDoesNotExist)}
}

// Matches says whether the selector selects an object with these labels. As in Kubernetes, a nil selector selects
// nothing; an operator that does not exist (which no parsed policy has) does not either.
func (s *LabelSelector) Matches(labels map[string]string) bool {
	if s == nil {
		return false
	}
	for k, want := range s.MatchLabels {
		if v, has := labels[k]; !has || v != want {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		v, has := labels[r.Key]
		var ok bool
		switch r.Operator {
		case OpIn:
			ok = has && slices.Contains(r.Values, v)
		case OpNotIn:
			ok = !has || !slices.Contains(r.Values, v)
		case OpExists:
			ok = has
		case OpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

// Selects says whether the policy's podSelector selects a pod with these labels. Without a podSelector it selects none.
func (p *PodPolicy) Selects(labels map[string]string) bool {
	return p.Spec.PodSelector.Matches(labels)
}

// Choose returns the policy for a pod: the named one; else, if name is empty, the one whose podSelector selects the
// pod's labels; else the one named "default", or [Default]. A name that does not exist is an error that lists those
// that do, and so are two policies that select the same pod.
func Choose(policies map[string]*PodPolicy, name string, labels map[string]string) (*PodPolicy, error) {
	names := slices.Sorted(maps.Keys(policies))
	if name == "" {
		var chosen *PodPolicy
		for _, n := range names {
			p := policies[n]
			if !p.Selects(labels) {
				continue
			}
			if chosen != nil {
				return nil, fmt.Errorf("policies %s (%s) and %s (%s) both select the pod: narrow one podSelector, or name one with the label %s",
					chosen.Metadata.Name, chosen.Source(), n, p.Source(), KeyPolicy)
			}
			chosen = p
		}
		if chosen != nil {
			return chosen, nil
		}
		name = DefaultName
	}
	if p := policies[name]; p != nil {
		return p, nil
	}
	if name == DefaultName {
		return Default(), nil
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no policy is named %s: there are none but %s", show(name), DefaultName)
	}
	if !slices.Contains(names, DefaultName) {
		names = append(names, DefaultName)
		slices.Sort(names)
	}
	return nil, fmt.Errorf("no policy is named %s: there are %s", show(name), list(names))
}

// Narrows tells whether the selector says anything: neither none, nor {}, which selects every pod.
func (s *LabelSelector) Narrows() bool {
	return s != nil && (len(s.MatchLabels) > 0 || len(s.MatchExpressions) > 0)
}
