// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"fmt"

	"sidegate/policy"
)

// RefusedPolicy is the name of the policy of pods that Shut has made. No policy of a directory can have it.
const RefusedPolicy = "(refused)"

// Shut closes the network namespace of a container that asks to be enforced, runs, and could not be registered: it makes
// ns a managed pod without containers, unless it is one already. It needs nothing that could be what is wrong, such as the
// directory of policies.
func (s *Store) Shut(ns *Netns, pod string) error {
	pol, err := s.podPolicy(ns)
	if err != nil || pol != nil {
		return err
	}
	compiled, err := policy.Default().Compile()
	if err != nil {
		return fmt.Errorf("built-in policy: %w", err)
	}
	compiled.Name = RefusedPolicy
	return s.Manage(ns, &PodSpec{Pod: pod, Policy: compiled, Source: Source{Place: policy.Default().Source()}})
}
