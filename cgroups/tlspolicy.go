// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// putTLS writes what a revision says of TLS, for the relay to read, in pieces.
func (s *Store) putTLS(c *policy.Compiled, rev uint32) error {
	for n, rest := uint32(0), c.TLSRules; len(rest) > 0; n++ {
		var piece bpf.TLSPolicy
		rest = rest[copy(piece.B[:], rest):]
		if err := s.maps.TLSPolicies.Put(bpf.TLSPolicyKey{Revision: rev, N: n}, piece); err != nil {
			return fmt.Errorf("put what the policy says of TLS: %w", err)
		}
	}
	return nil
}

func (s *Store) deleteTLS(rev uint32) error {
	for n := uint32(0); ; n++ {
		err := s.maps.TLSPolicies.Delete(bpf.TLSPolicyKey{Revision: rev, N: n})
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("delete what a policy says of TLS: %w", err)
		}
	}
}

// relayFor has the relay listen in the pod of a container whose connections go there.
func (s *Store) relayFor(r *registration) error {
	if r.pol.entry.Tls == 0 || r.entry.Role != bpf.RoleApp {
		return nil
	}
	return s.askRelay([]TLSPod{{Cookie: r.ns.Cookie, PID: r.c.PID, Port: r.pol.entry.Tls}})
}

// relayForAll does so for the running containers of a policy that is about to hold.
func (s *Store) relayForAll(list []member, pol *applied) error {
	if pol.entry.Tls == 0 {
		return nil
	}
	var pods []TLSPod
	seen := make(map[uint64]bool)
	for i := range list {
		m := &list[i]
		role, err := bpfRole(policy.Role(m.info.Role), policy.InitMode(pol.info.Init))
		if err != nil {
			return err
		}
		if role == bpf.RoleApp && !seen[m.entry.NetnsCookie] {
			seen[m.entry.NetnsCookie] = true
			pods = append(pods, TLSPod{Cookie: m.entry.NetnsCookie, PID: int(m.info.Pid), Port: pol.entry.Tls})
		}
	}
	if len(pods) == 0 {
		return nil
	}
	return s.askRelay(pods)
}
