// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"

	"sidegate/policy"
)

// ChoosePolicy finds the policy named wanted, or else that of the pod which ns is, in
// directory dir, and puts it into c. role says which role the container has under a
// policy, nil for the default one; it is asked only if c has none. A policy that
// the kernel has is not read again while its directory is as it was; nor if the
// directory has a fault now, so that a slip of the pen stops no pod that ran before:
// that is a warning. s is nil if nothing is loaded.
func ChoosePolicy(s *Store, dir string, ns *Netns, wanted string, role func(*policy.PodPolicy) (policy.Role, error), c *Container) (warning string, err error) {
	mark, err := policy.Fingerprint(dir)
	if err != nil {
		return "", err
	}
	if s != nil {
		have, err := s.PolicyOf(ns)
		if err != nil {
			return "", err
		}
		if have == RefusedPolicy {
			return "", errors.New("its pod is closed, since a container in it was refused: start all of them again")
		}
		wanted = cmp.Or(wanted, have)
	}
	wanted = cmp.Or(wanted, policy.DefaultName)
	known, same := false, false
	if s != nil {
		if known, same, err = s.Knows(wanted, mark); err != nil {
			return "", err
		}
	}
	if same && c.Role != policy.RoleUnset {
		c.PolicyName = wanted
		return "", nil
	}
	p, err := policy.Find(dir, wanted)
	switch {
	case err != nil && !known:
		return "", fmt.Errorf("%s: %w", policy.KeyPolicy, err)
	case err != nil:
		warning = fmt.Sprintf("policy %s stays as it is in force: %v", wanted, err)
		c.PolicyName = wanted
	default:
		if c.Policy, err = p.Compile(); err != nil {
			return "", fmt.Errorf("policy %s: %w", p.Metadata.Name, err)
		}
		c.Source = Source{Place: p.Source(), Fingerprint: mark}
	}
	if c.Role != policy.RoleUnset {
		return warning, nil
	}
	c.Role, err = role(p)
	return warning, err
}

// WantsSpliceRule tells whether a new container is to get the seccomp rule without which
// its sockets are not accelerated (cgroups/seccomp): it cannot come later. p is its
// policy, nil if nobody knows it before the container runs. RoleUnset is of one whose
// policy has a say.
func WantsSpliceRule(role policy.Role, p *policy.PodPolicy) bool {
	if role != policy.RoleUnset && role != policy.RoleApp && role != policy.RoleSidecar {
		return false
	}
	// Under auto a rule would be noticed, and no kernel is known on which it is all
	// that lacks.
	return p != nil && (p.Spec.Accelerate == policy.AccelerateOn || p.Spec.Accelerate == policy.AccelerateNode)
}
