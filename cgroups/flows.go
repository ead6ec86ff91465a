// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"sidegate/bpf"
)

// Flow is who talked to whom, and what became of it: connections, first datagrams of a socket, and whatever was denied.
// The kernel keeps the last 32,768 of a node, and none of containers that are gone.
type Flow struct {
	Pod         string     `json:"pod"`
	Policy      string     `json:"policy,omitempty"`
	Container   string     `json:"container,omitempty"` // empty: it is no container's
	ContainerID string     `json:"containerID,omitempty"`
	Role        string     `json:"role,omitempty"`
	Direction   string     `json:"direction"`          // egress or ingress
	Protocol    string     `json:"protocol,omitempty"` // unix for UNIX sockets, empty where it does not matter
	Peer        string     `json:"peer,omitempty"`     // the other container of the pod
	Address     netip.Addr `json:"address,omitzero"`   // or the other end outside
	Port        uint16     `json:"port,omitempty"`     // of whom was called; or ICMP type
	Verdict     string     `json:"verdict"`            // as of events
	Reason      string     `json:"reason"`
	Count       uint64     `json:"count"`
	Last        time.Time  `json:"last"`
}

// ReadFlows lists them, the most frequent first.
func ReadFlows(state string) (list []Flow, err error) {
	boot := time.Now().Add(-bootTime())
	err = IfLoaded(state, func(s *Store) error {
		names, err := newEventNames(s.maps)
		if err != nil {
			return err
		}
		modes, err := s.auditedPods()
		if err != nil {
			return err
		}
		keys, counts, err := entriesOf[bpf.Seen, bpf.SeenCount](s.maps.Flows)
		if err != nil {
			return err
		}
		for i, k := range keys {
			f, ok := names.flow(k, modes[k.NetnsCookie])
			if !ok {
				continue // of a container that is gone
			}
			f.Count, f.Last = counts[i].Count, boot.Add(time.Duration(counts[i].LastNs)).UTC()
			list = append(list, f)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container),
			a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Reason, b.Reason))
	})
	return list, err
}

// auditedPods are those under mode audit, where what a reason is against goes on nevertheless.
func (s *Store) auditedPods() (map[uint64]bool, error) {
	cookies, pods, err := entriesOf[uint64, bpf.Pod](s.maps.Pods)
	if err != nil {
		return nil, err
	}
	audited := make(map[uint64]bool)
	for i, cookie := range cookies {
		pol, err := s.policyAt(pods[i].Policy)
		if err != nil {
			return nil, err
		}
		audited[cookie] = pol.entry.Flags&bpf.PolicyAudit != 0
	}
	return audited, nil
}

func (n *eventNames) flow(k bpf.Seen, audit bool) (f Flow, ok bool) {
	v := n.event(&bpf.Event{
		NetnsCookie: k.NetnsCookie, CgroupId: k.CgroupId, Peer: k.Peer, Addr: k.Addr, Port: k.Port, Proto: k.Proto, Dir: k.Dir,
		Counter: k.Reason,
	})
	if v.Pod == "" || k.CgroupId != 0 && v.Container == "" {
		return f, false
	}
	f = Flow{
		Pod: v.Pod, Container: v.Container, ContainerID: v.ContainerID, Role: v.Role, Direction: v.Direction, Protocol: v.Protocol,
		Peer: v.Peer, Port: k.Port, Verdict: v.Verdict, Reason: v.Reason,
	}
	if info, known := n.container(k.CgroupId); known {
		f.Policy = bpf.CString(info.Policy[:])
	}
	if audit && v.Verdict == Denied {
		f.Verdict = Audited
	}
	if v.Address.Addr() != netip.IPv6Unspecified() {
		f.Address = v.Address.Addr()
	}
	if k.Proto == 0 && (v.Reason == "local" || v.Reason == unixReason) {
		f.Protocol = "unix"
	}
	return f, true
}
