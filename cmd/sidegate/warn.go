// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"

	"sidegate/policy"
)

// warnings are about what a policy may say, but hardly means.
func warnings(p *policy.PodPolicy) (list []string) {
	if p.Spec.Mode == policy.ModeAudit {
		list = append(list, "spec.mode: audit denies nothing: write enforce when `sidegate policy audit` shows nothing that is missed")
	}
	for i := range p.Spec.Rules {
		s := &p.Spec.Rules[i]
		at := fmt.Sprintf("spec.rules[%d]", i)
		if msg := neverUsed(p, s); msg != "" {
			list = append(list, at+": "+msg)
			continue
		}
		for _, msg := range deadEnds(p, s) {
			list = append(list, at+": "+msg)
		}
	}
	return list
}

// roleOf is the role of a subject's containers, as far as the policy says it.
// RoleUnset may be any.
func roleOf(p *policy.PodPolicy, s *policy.SubjectRules) policy.Role {
	if s.Role != policy.RoleUnset {
		return s.Role
	}
	return roleOfName(p, s.Container)
}

func roleOfName(p *policy.PodPolicy, name string) policy.Role {
	for _, r := range p.Spec.Roles {
		if r.Container == name {
			return r.Role
		}
	}
	if slices.Contains(policy.DefaultSidecarNames(), name) {
		return policy.RoleSidecar
	}
	return policy.RoleUnset
}

// neverUsed says why no container can make use of the rules.
func neverUsed(p *policy.PodPolicy, s *policy.SubjectRules) string {
	if roleOf(p, s) != policy.RoleInit || p.Spec.Init != policy.InitDeny {
		return ""
	}
	return "these rules never apply: init containers have no network under spec.init: deny. Write init: sidecar, or leave the rules out"
}

// deadEnds says what an app or a sidecar cannot do by its rules, without which it
// is of little use.
func deadEnds(p *policy.PodPolicy, s *policy.SubjectRules) (list []string) {
	if s.Egress == nil && s.Ingress == nil {
		return nil // it is free to talk
	}
	egress, ingress := reach(p, s)
	switch roleOf(p, s) {
	case policy.RoleApp:
		if !slices.ContainsFunc(egress, isAway) {
			list = append(list, "the app cannot call out: no egress rule is about world or a cidr")
		}
	case policy.RoleSidecar:
		if !slices.ContainsFunc(ingress, isOutside) {
			list = append(list, "nothing reaches the sidecar from outside: no ingress rule is about world, host or a cidr")
		}
		if !slices.ContainsFunc(egress, func(q policy.Peer) bool { return mayBeApp(p, q) }) {
			list = append(list, "the sidecar cannot pass on what comes in: no egress rule is about role app")
		}
	}
	return list
}

// reach lists the peers of a subject, and if it is a container, those of its role,
// whose rules hold for it as well.
func reach(p *policy.PodPolicy, s *policy.SubjectRules) (egress, ingress []policy.Peer) {
	role := roleOf(p, s)
	for i := range p.Spec.Rules {
		r := &p.Spec.Rules[i]
		if r != s && (r.Role == policy.RoleUnset || r.Role != role) {
			continue
		}
		for _, e := range r.Egress {
			egress = append(egress, orAnybody(e.To)...)
		}
		for _, e := range r.Ingress {
			ingress = append(ingress, orAnybody(e.From)...)
		}
	}
	return egress, ingress
}

// orAnybody are the peers of a rule, of which none are all.
func orAnybody(peers []policy.Peer) []policy.Peer {
	if len(peers) > 0 {
		return peers
	}
	return []policy.Peer{{Role: policy.RoleApp}, {Role: policy.RoleSidecar}, {Entity: policy.EntityWorld}, {Entity: policy.EntityHost}}
}

func isAway(q policy.Peer) bool { return q.CIDR != "" || q.Entity == policy.EntityWorld }

func isOutside(q policy.Peer) bool { return isAway(q) || q.Entity == policy.EntityHost }

// mayBeApp tells whether the peer is an app. Who a name is, the policy need not say.
func mayBeApp(p *policy.PodPolicy, q policy.Peer) bool {
	if q.Container == "" {
		return q.Role == policy.RoleApp
	}
	role := roleOfName(p, q.Container)
	return role == policy.RoleApp || role == policy.RoleUnset
}
