// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// Seen is what a container did under mode audit, or would have been denied.
type Seen struct {
	Pod       string     `json:"pod"`
	Policy    string     `json:"policy"`
	Container string     `json:"container"`
	Role      string     `json:"role"`
	Dir       string     `json:"direction"`
	Peer      string     `json:"peer,omitempty"`     // the other container of the pod
	PeerRole  string     `json:"peerRole,omitempty"` // and its role
	Address   netip.Addr `json:"address,omitzero"`   // or the other end outside
	Proto     uint16     `json:"protocol"`           // IP protocol number, or IPPROTO_MPTCP
	Port      uint16     `json:"port"`               // of whom was called; or ICMP type
	Unix      string     `json:"unix,omitempty"`     // name of a UNIX socket, @ before an abstract one; then Proto is 0
	Type      string     `json:"type,omitempty"`     // of a UNIX socket
	Reason    string     `json:"reason,omitempty"`   // why not; empty: it is allowed
	Missing   string     `json:"missing,omitempty"`  // the rule that would allow it, in YAML
	Count     uint64     `json:"count"`
}

// unixReason is the name of its counter.
const unixReason = "unix"

// ReadSeen lists what mode audit has recorded, the most frequent first.
func ReadSeen(state string) (list []Seen, err error) {
	err = IfLoaded(state, func(s *Store) error {
		packets, err := recorded(s.maps.Seen, s.seen)
		if err != nil {
			return err
		}
		sockets, err := recorded(s.maps.SeenUnix, s.seenUnix)
		list = append(packets, sockets...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b Seen) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Unix, b.Unix))
	})
	return list, nil
}

// recorded lists what a map of mode audit has, each as row makes it.
func recorded[K any](m *ebpf.Map, row func(K) (Seen, error)) (list []Seen, err error) {
	keys, err := keysOf[K](m)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		var n bpf.SeenCount
		if err := m.Lookup(k, &n); err != nil {
			continue // the kernel made room for another one
		}
		r, err := row(k)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // recorded after its container was forgotten
		}
		if err != nil {
			return nil, err
		}
		r.Count = n.Count
		list = append(list, r)
	}
	return list, nil
}

// seenUnix names the ends of a record of a UNIX socket.
func (s *Store) seenUnix(k bpf.SeenUnix) (Seen, error) {
	row, err := s.seen(bpf.Seen{CgroupId: k.CgroupId, Peer: k.Peer})
	if err != nil {
		return row, err
	}
	role, err := policy.ParseRole(row.Role)
	if err != nil {
		return row, err
	}
	kind := policy.UnixAny
	for t, number := range unixTypes {
		if number == k.Type {
			kind = t
		}
	}
	row.Unix, row.Type, row.Reason = unixName(k.Name[:min(int(k.Len), len(k.Name))], k.Abstract != 0), kind.String(), unixReason
	row.Missing = policy.MissingUnix(policy.Endpoint{Role: role, Name: row.Container}, row.Unix, kind)
	return row, nil
}

// seen names the ends of a record.
func (s *Store) seen(k bpf.Seen) (Seen, error) {
	row := Seen{Dir: policy.Dir(k.Dir).String(), Proto: k.Proto, Port: k.Port}
	self, err := s.info(k.CgroupId)
	if err != nil {
		return row, err
	}
	row.Pod, row.Policy = bpf.CString(self.Pod[:]), bpf.CString(self.Policy[:])
	row.Container, row.Role = infoName(self), policy.Role(self.Role).String()
	from, to := policy.Inside(endpointOf(self)), policy.End{}
	addr := netip.AddrFrom16(k.Addr.B).Unmap()
	switch {
	case k.Peer > 1:
		peer, err := s.info(k.Peer)
		if err != nil {
			return row, err
		}
		row.Peer, row.PeerRole = infoName(peer), policy.Role(peer.Role).String()
		to = policy.Inside(endpointOf(peer))
	case addr != netip.IPv6Unspecified():
		row.Address = addr
		to = policy.Outside(addr)
	}
	if k.Reason == 0 {
		return row, nil
	}
	if k.Dir == uint8(policy.Ingress) {
		from, to = to, from
	}
	row.Reason = fmt.Sprint(bpf.Counter(k.Reason))
	row.Missing = policy.Missing(policy.Query{From: from, To: to, Proto: uint8(min(k.Proto, unix.IPPROTO_RAW)), Port: k.Port}, row.Reason)
	return row, nil
}

func endpointOf(i bpf.ContainerInfo) policy.Endpoint {
	return policy.Endpoint{Role: policy.Role(i.Role), Name: bpf.CString(i.Name[:])}
}
