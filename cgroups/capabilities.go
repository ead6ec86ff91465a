// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"fmt"
	mathbits "math/bits"
	"os"
	"slices"
	"strings"

	"sidegate/bpf"
)

// adminCapabilities are those with which a container gets round what is enforced,
// and how. Where it has a user namespace of its own only the first is of any use
// (user_namespaces(7)): a pod's network namespace may belong to that.
var adminCapabilities = []struct {
	name, how string
	anywhere  bool
}{
	{"CAP_NET_ADMIN", "it can rewrite what others of its pod send, and, without a user namespace, add devices of the host to it", true},
	{"CAP_SYS_ADMIN", "it can leave its cgroup, and undo what is attached there", false},
	{"CAP_SYS_MODULE", "it can load code into the kernel", false},
}

// adminOf tells which of adminCapabilities a container has that are of use to it:
// bit n stands for the nth.
func adminOf(c *Container) (bits uint8, err error) {
	for i, a := range adminCapabilities {
		if !hasCapability(c.Capabilities, a.name) {
			continue
		}
		if !a.anywhere {
			own, err := ownUserns(c.PID)
			if err != nil {
				return 0, err
			}
			if own {
				continue
			}
		}
		bits |= 1 << i
	}
	return bits, nil
}

func adminNames(bits uint8) (names []string) {
	for i, a := range adminCapabilities {
		if bits&(1<<i) != 0 {
			names = append(names, a.name)
		}
	}
	return names
}

// refusal says why a container that has these of adminCapabilities does not start:
// the policy binds it, and it could get out of that.
func refusal(bits uint8, role bpf.Role, pol *applied) string {
	free := (role == bpf.RoleSidecar || role == bpf.RoleExempt) && pol.entry.Flags&bpf.PolicyRuled == 0
	if bits == 0 || free || pol.entry.Flags&(bpf.PolicyAdmin|bpf.PolicyAudit) != 0 {
		return ""
	}
	a := adminCapabilities[mathbits.TrailingZeros8(bits)]
	return fmt.Sprintf("it has %s, with which %s: take that away (a mesh needs no capabilities here), or write adminCapabilities: allow into policy %s",
		a.name, a.how, bpf.CString(pol.info.Name[:]))
}

// Admit is asked of a container that is not to be registered: it refuses one that
// is about to start in a managed pod, has no sockets there, and could do without.
func (s *Store) Admit(ns *Netns, c *Container) error {
	pol, err := s.podPolicy(ns)
	if err != nil || pol == nil {
		return err
	}
	admin, err := adminOf(c)
	if err != nil {
		return err
	}
	if why := refusal(admin, bpf.RoleDead, pol); why != "" {
		return fmt.Errorf("it is about to start in a managed pod, without annotations; %s", why)
	}
	return nil
}

// HasAdminCapabilities tells whether some of these capabilities are such that Admit
// has to be asked. It is cheap.
func HasAdminCapabilities(capabilities []string) bool {
	for _, a := range adminCapabilities {
		if hasCapability(capabilities, a.name) {
			return true
		}
	}
	return false
}

// hasCapability ignores case: crun takes names in small letters too.
func hasCapability(capabilities []string, name string) bool {
	return slices.ContainsFunc(capabilities, func(s string) bool { return strings.EqualFold(s, name) })
}

// ownUserns tells whether a process has another user namespace than this one.
func ownUserns(pid int) (bool, error) {
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return false, fmt.Errorf("find its user namespace: %w", err)
	}
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false, fmt.Errorf("find the host's user namespace: %w", err)
	}
	return its != ours, nil
}
