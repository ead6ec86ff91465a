// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"hash/fnv"
	"net/netip"
	"slices"
)

// Numbers that rules are about, as subjects or as peers. A role's is its Role.
const (
	SubjectPod uint32 = 0 // the exclusions, which are about all apps
	PeerWorld  uint32 = 8 // outside addresses that are not the node's
	PeerHost   uint32 = 9 // the node's own addresses
	FirstClass uint32 = 1024
	nameBit    uint32 = 1 << 31
)

// NameID is the number of a container name: its FNV-1a hash, with the top bit set.
func NameID(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	return h.Sum32() | nameBit
}

// IsName says whether a number is a container name's.
func IsName(id uint32) bool { return id&nameBit != 0 }

// Compiled is a policy as the kernel's maps want it: every default filled in, every list in normal form. Two policies
// with the same rules, written in the same order, compile to equal values, wherever and in whatever style they are
// written; but for the lines of Rules, which JSON leaves out.
type Compiled struct {
	Name     string
	Mode     Mode
	Outbound uint16
	Inbound  uint16
	DNS      uint16 // 0: off
	// Getsockname is what the sidecar's redirected connections are told.
	Getsockname SockName
	// TLS, TLSPort and TLSRules are for Sidegate's TLS relay; they are zero where it is off. TLSPort is among Reserved, and
	// not even the sidecar may bind it: what is bound there gets the app's connections and is taken for the relay.
	// TLSRules is what [ParseTLS] reads, of at most MaxTLSSize bytes.
	TLS      TLSMode `json:",omitempty"`
	TLSPort  uint16  `json:",omitempty"`
	TLSRules []byte  `json:",omitempty"`
	// Reserved are the ports that only the sidecar may bind: sorted, neither overlapping nor adjacent.
	Reserved []PortRange
	NonTCP   Action
	Init     InitMode
	// AdminCapabilities is asked when a container starts.
	AdminCapabilities Action
	Accelerate        Acceleration
	// Subjects are those that have rules, sorted by ID.
	Subjects []Subject
	// Prefixes say which class an outside address is of: that of the longest one that covers it, or 0.
	// IPv4 prefixes match IPv4 only, also where IPv4 is written as ::ffff:a.b.c.d, and IPv6 prefixes match the rest.
	Prefixes []Prefix
	// Entries all allow. They are sorted.
	Entries []Entry
	// Rules are in words what the numbers of entries stand for: rule n is Rules[n-1].
	Rules []RuleInfo
}

// NamesExecutables says whether some subject's sockets depend on the executable.
func (c *Compiled) NamesExecutables() bool {
	return slices.ContainsFunc(c.Subjects, func(s Subject) bool { return s.Flags&HasProcesses != 0 })
}

// Subject is a role, or a container's name, that a policy has rules for.
type Subject struct {
	ID        uint32
	Flags     SubjectFlags
	Role      Role   // RoleUnset if it is a name
	Container string // empty if it is a role
	Unix      []UnixRule
	Processes []string
}

// SubjectFlags say what kinds of rules a subject has.
type SubjectFlags uint16

// The kinds of rules. A subject that is Ruled is denied, both ways, what no rule allows. HasICMP, HasICMPv6 and HasSCTP
// are those that have a rule about this protocol and so may have sockets of it, HasProcesses and HasUnix those whose
// executables and UNIX sockets are listed, even if the list is empty.
const (
	Ruled SubjectFlags = 1 << iota
	HasICMP
	HasICMPv6
	HasSCTP
	HasProcesses
	HasUnix
	UnixOptional
)

// Prefix gives addresses their class, which is a set of CIDR peers.
type Prefix struct {
	Prefix netip.Prefix
	Class  uint32
}

// Dir is the direction of a rule, as its subject sees it.
type Dir uint8

// The directions.
const (
	Egress Dir = iota
	Ingress
)

// Entry lets a subject and a peer talk: Egress the subject to the peer, Ingress the other way. The port is that of the
// one that is called; of ICMP it is the type.
type Entry struct {
	Subject  uint32
	Dir      Dir
	Peer     uint32
	Proto    uint8 // IP protocol number
	AnyProto bool
	Port     uint16
	PortBits uint8 // how many bits of Port count: 0 is all ports, 16 one
	Rule     uint16
}

// RuleInfo is a rule in words.
type RuleInfo struct {
	Path string `json:"path"` // spec.rules[0].egress[1]
	Line int    `json:"-"`    // in its file, if it has one
	Text string `json:"text"`
}

// UnixRule lets a subject connect or send to UNIX sockets.
type UnixRule struct {
	Pattern  string // a glob, see UnixAllow: of a path, or of an abstract name without its @; at most 107 bytes
	Abstract bool
	Type     UnixType
	Peers    []uint32 // who bound it, at most 8, sorted; empty: anybody
	Rule     uint16
}

// String gives the word that is written in a policy.
func (d Dir) String() string { return word([]string{"egress", "ingress"}, uint8(d)) }
