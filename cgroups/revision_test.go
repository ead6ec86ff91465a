// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"sidegate/policy"
)

func compileOne(t *testing.T, port int) *policy.Compiled {
	t.Helper()
	list, err := policy.Parse("web.yaml", fmt.Appendf(nil, `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: web}
spec:
  rules:
  - role: app
    egress: [{to: [{cidr: 192.0.2.0/24}], ports: [%d]}]
  - container: db
    ingress: [{from: [{role: app}]}]
    unix: {allow: [{path: /run/db.sock}], optional: true}
`, port))
	must(t, err)
	c, err := list[0].Compile()
	must(t, err)
	return c
}

// count is how many entries the maps of revisions have.
func (s *Store) count(t *testing.T) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for _, m := range []*ebpf.Map{s.maps.Policies, s.maps.Prefixes, s.maps.Rules, s.maps.Subjects, s.maps.UnixRules, s.maps.RuleInfo} {
		key := make([]byte, m.KeySize())
		n := 0
		for err := m.NextKey(nil, key); err == nil; err = m.NextKey(append([]byte{}, key...), key) {
			n++
		}
		counts[m.String()] = n
	}
	return counts
}

func TestGracePeriodByMap(t *testing.T) {
	openStore(t)
	must(t, gracePeriodByMap())
}

// TestKilledWhileAPolicyChanges: of each step at which a process can be killed, the
// next one that changes the policy leaves nothing, and what it says then holds.
func TestKilledWhileAPolicyChanges(t *testing.T) {
	s, _ := openStore(t)
	first, second := compileOne(t, 80), compileOne(t, 443)
	sum, err := digest(second)
	must(t, err)
	have, err := s.usePolicy(first, Source{})
	must(t, err)
	want := s.count(t)
	for name, leave := range map[string]func(){
		"before its tables": func() {
			must(t, s.maps.Policies.Put(uint32(1<<20), have.entry))
		},
		"before it is said which revision holds": func() {
			_, err := s.putRevision(second, sum, Source{})
			must(t, err)
		},
		"before it holds": func() {
			next, err := s.putRevision(second, sum, Source{})
			must(t, err)
			must(t, s.maps.PolicyInfo.Put(have.slot, next.info))
		},
		"before the old one is deleted": func() {
			next, err := s.putRevision(second, sum, Source{})
			must(t, err)
			next.slot = have.slot
			must(t, s.setSlot(next))
		},
	} {
		t.Run(name, func(t *testing.T) {
			leave()
			for _, c := range []*policy.Compiled{second, first} {
				_, err := s.usePolicy(c, Source{})
				must(t, err)
				now, err := s.appliedPolicy("web")
				must(t, err)
				var holds uint32
				must(t, s.maps.PolicySlots.Lookup(now.slot, &holds))
				if changed, err := digest(c); err != nil || now.info.Digest != changed || holds != now.entry.Revision {
					t.Errorf("revision %d holds, of the policy it is said to be %+v (%v)", holds, now.info, err)
				}
			}
			for m, n := range s.count(t) {
				if n != want[m] {
					t.Errorf("%s has %d entries, want %d", m, n, want[m])
				}
			}
		})
	}
}
