// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// tables answers from the maps that the programs ask, for one policy.
// It implements policy.Tables; err is the first failure of a lookup, after which
// its answers deny.
type tables struct {
	maps *bpf.Maps
	pol  *applied
	err  error
}

// Settings implements policy.Tables.
func (t *tables) Settings() policy.Settings {
	e := t.pol.entry
	st := policy.Settings{
		Mode: modeOf(e), Outbound: e.Outbound, Inbound: e.Inbound, DNS: e.Dns, TLS: e.Tls,
		NonTCP: policy.ActionDeny, Init: policy.InitMode(t.pol.info.Init),
	}
	if e.Flags&bpf.PolicyNonTCP != 0 {
		st.NonTCP = policy.ActionAllow
	}
	if e.Flags&bpf.PolicyAdmin != 0 {
		st.AdminCapabilities = policy.ActionAllow
	}
	for _, r := range e.Reserved[:e.Nreserved] {
		st.Reserved = append(st.Reserved, policy.PortRange{First: r.Lo, Last: r.Hi})
	}
	return st
}

// Subject implements policy.Tables.
func (t *tables) Subject(id uint32) policy.SubjectFlags {
	if id < uint32(len(t.pol.entry.Subjects)) {
		return policyFlags(t.pol.entry.Subjects[id])
	}
	var flags uint32
	t.lookup(t.maps.Subjects, bpf.SubjectKey{Revision: t.pol.entry.Revision, Subject: id}, &flags)
	return policyFlags(uint16(flags))
}

// Class implements policy.Tables.
func (t *tables) Class(a netip.Addr) uint32 {
	a = a.Unmap().WithZone("")
	var class uint32
	t.lookup(t.maps.Prefixes, bpf.NewPrefixKey(t.pol.entry.Revision, netip.PrefixFrom(a, a.BitLen())), &class)
	return class
}

// IsHost implements policy.Tables.
func (t *tables) IsHost(a netip.Addr) bool {
	var is uint8
	return t.lookup(t.maps.HostAddrs, bpf.AddrFrom(a), &is)
}

// Match implements policy.Tables.
func (t *tables) Match(subject uint32, dir policy.Dir, peer uint32, proto uint8, port uint16, whole bool) (uint16, bool) {
	r := bpf.RuleFor{
		Revision: t.pol.entry.Revision, Subject: subject, Peer: peer, Dir: uint8(dir), Proto: proto, Port: port, PortBits: 16,
	}
	if whole {
		r.Port, r.PortBits = 0, 0
	}
	var rule uint32
	ok := t.lookup(t.maps.Rules, bpf.NewRuleKey(r), &rule)
	return uint16(rule), ok
}

func (t *tables) lookup(m *ebpf.Map, key, value any) bool {
	err := m.Lookup(key, value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && t.err == nil {
		t.err = fmt.Errorf("look up in %s: %w", m, err)
	}
	return err == nil
}
