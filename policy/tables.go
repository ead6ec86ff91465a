// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"
)

// NewTables returns tables that answer from c itself. host are the node's own addresses. c must not change meanwhile.
func NewTables(c *Compiled, host []netip.Addr) Tables {
	t := &memory{c: c, classes: make(map[netip.Prefix]uint32, len(c.Prefixes)), rules: make(map[Entry]uint16, len(c.Entries))}
	for _, a := range host {
		t.host = append(t.host, a.Unmap().WithZone(""))
	}
	for _, p := range c.Prefixes {
		t.classes[p.Prefix] = p.Class
	}
	for _, e := range c.Entries {
		rule := e.Rule
		e.Rule = 0
		t.rules[e] = rule
	}
	return t
}

type memory struct {
	c       *Compiled
	host    []netip.Addr
	classes map[netip.Prefix]uint32
	rules   map[Entry]uint16
}

// Settings implements [Tables].
func (t *memory) Settings() Settings {
	return Settings{
		Mode: t.c.Mode, Outbound: t.c.Outbound, Inbound: t.c.Inbound, DNS: t.c.DNS, TLS: t.c.TLSPort,
		NonTCP: t.c.NonTCP, Init: t.c.Init, AdminCapabilities: t.c.AdminCapabilities, Reserved: t.c.Reserved,
	}
}

// Subject implements [Tables].
func (t *memory) Subject(id uint32) SubjectFlags {
	for _, s := range t.c.Subjects {
		if s.ID == id {
			return s.Flags
		}
	}
	return 0
}

// Class implements [Tables].
func (t *memory) Class(a netip.Addr) uint32 {
	a = a.Unmap().WithZone("")
	for bits := a.BitLen(); bits >= 0; bits-- {
		if class, has := t.classes[netip.PrefixFrom(a, bits).Masked()]; has {
			return class
		}
	}
	return 0
}

// IsHost implements [Tables].
func (t *memory) IsHost(a netip.Addr) bool {
	return slices.Contains(t.host, a.Unmap().WithZone(""))
}

// Match implements [Tables].
func (t *memory) Match(subject uint32, dir Dir, peer uint32, proto uint8, port uint16, whole bool) (uint16, bool) {
	e := Entry{Subject: subject, Dir: dir, Peer: peer, Proto: proto}
	for bits := 16; bits >= 0; bits-- {
		if whole && bits > 0 {
			continue
		}
		e.PortBits = uint8(bits)
		e.Port = uint16(uint32(port) >> (16 - bits) << (16 - bits))
		if rule, has := t.rules[e]; has {
			return rule, true
		}
	}
	rule, has := t.rules[Entry{Subject: subject, Dir: dir, Peer: peer, AnyProto: true}]
	return rule, has
}
