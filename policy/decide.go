// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tables are a compiled policy to ask: the kernel's maps, or [NewTables].
type Tables interface {
	Settings() Settings
	// Subject returns the flags of a role's or name's number, 0 if the policy has no rules for it.
	Subject(id uint32) SubjectFlags
	// Class returns that of the longest prefix that covers an outside address, or 0.
	Class(a netip.Addr) uint32
	// IsHost says whether the address is the node's own.
	IsHost(a netip.Addr) bool
	// Match returns the rule that lets a subject and a peer talk: the most specific one. whole asks for one about all
	// ports, which is what a fragment without ports needs.
	Match(subject uint32, dir Dir, peer uint32, proto uint8, port uint16, whole bool) (rule uint16, ok bool)
}

// Settings is what a policy says besides its rules.
type Settings struct {
	Mode                   Mode
	Outbound, Inbound, DNS uint16
	TLS                    uint16 // the relay's port, or 0
	NonTCP                 Action
	AdminCapabilities      Action
	Init                   InitMode
	Reserved               []PortRange
}

// Endpoint is a container, as rules know it.
type Endpoint struct {
	Role Role
	Name string
}

func (e Endpoint) String() string {
	if e.Name != "" {
		return "container " + e.Name
	}
	return "role " + e.Role.String()
}

// End is one end of a connection: a container of the pod or an address outside.
type End struct {
	container *Endpoint
	addr      netip.Addr
}

// Inside is a container of the pod.
func Inside(e Endpoint) End { return End{container: &e} }

// Outside is an address that is not the pod's.
func Outside(a netip.Addr) End { return End{addr: a.Unmap().WithZone("")} }

// String names the end for people.
func (e End) String() string {
	if e.container != nil {
		return e.container.String()
	}
	return e.addr.String()
}

// named says whether the end is one that a rule can be about.
func (e End) named() bool {
	return e.container != nil && *e.container != (Endpoint{}) || e.addr.IsValid() && !e.addr.IsLoopback()
}

// Query is a connection, a datagram or an ICMP message.
type Query struct {
	From, To End
	Same     bool   // From and To are the same container
	Proto    uint8  // IP protocol number
	Port     uint16 // of To; the type of an ICMP message
}

// Route is the way that something takes.
type Route uint8

// The routes.
const (
	RouteNone     Route = iota
	RouteDirect         // round the sidecar, or without one
	RouteRedirect       // to the sidecar's outbound port
	RouteDNS            // to the sidecar's DNS port
	RouteLocal          // inside the pod
	RouteSteered        // to the sidecar's inbound port
	RouteRelayed        // to the TLS relay, and by it to the sidecar's outbound port
)

// String names the route.
func (r Route) String() string {
	return word([]string{"none", "direct", "redirect", "dns", "local", "steered", "relayed"}, uint8(r))
}

// MarshalText writes what String gives.
func (r Route) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// The reasons of denials, named like the counters of drops.
const (
	ReasonEgress   = "policy_egress"  // no rule of From
	ReasonIngress  = "policy_ingress" // no rule of To
	ReasonUDP      = "udp"            // the sidecar cannot carry it, and nothing lets it out
	ReasonICMP     = "icmp"
	ReasonProtocol = "protocol"
	ReasonInbound  = "ingress"       // not TCP, from outside
	ReasonPort     = "outbound_port" // a port of the sidecar that is for its own pod
	ReasonInit     = "init"          // an init container under init: deny
)

// Decision is what the kernel's programs do.
type Decision struct {
	Allow    bool   `json:"allow"`
	Audit    bool   `json:"audit,omitempty"` // it is allowed by mode: audit alone
	Route    Route  `json:"route"`
	Reason   string `json:"reason,omitempty"`
	Rule     uint16 `json:"rule,omitempty"`     // of From, or that excludes it from the sidecar
	PeerRule uint16 `json:"peerRule,omitempty"` // of To
	// Missing is the rule that would allow what is denied, in YAML.
	Missing string `json:"missing,omitempty"`
}

// Decide says what the kernel's programs do with the first packet.
func Decide(t Tables, q Query) Decision {
	d := decider{Tables: t, Settings: t.Settings(), q: q}.decide()
	if d.Reason == "" {
		d.Allow = true
		return d
	}
	d.Route = RouteNone
	d.Missing = Missing(q, d.Reason)
	if t.Settings().Mode == ModeAudit {
		d.Allow, d.Audit = true, true
	}
	return d
}

type decider struct {
	Tables
	Settings
	q Query
}

func (d decider) decide() Decision {
	from, to := d.q.From.container, d.q.To.container
	switch {
	case from == nil && to == nil:
		return Decision{Reason: ReasonProtocol} // no business of a pod
	case from == nil:
		return d.inbound(*to)
	case d.denied(from.Role):
		return Decision{Reason: ReasonInit}
	}
	if reason := d.socket(*from); reason != "" {
		return Decision{Reason: reason}
	}
	if to == nil {
		return d.outbound(*from)
	}
	return d.inside(*from, *to)
}

// The treatment of a role by the programs.
func (d decider) denied(r Role) bool { return r == RoleInit && d.Init == InitDeny }

func (d decider) redirected(r Role) bool {
	return r == RoleApp || r == RoleInit && d.Init == InitSidecar
}

// subjects are the numbers of a container. Which of them has no rules does not matter.
func (d decider) subjects(e Endpoint) (ids []uint32) {
	if e.Role != RoleUnset { // whose number is the exclusions'
		ids = append(ids, uint32(e.Role))
	}
	if e.Name != "" {
		ids = append(ids, NameID(e.Name))
	}
	return ids
}

func (d decider) flags(e Endpoint) (f SubjectFlags) {
	for _, id := range d.subjects(e) {
		f |= d.Subject(id)
	}
	return f
}

func (d decider) ruled(e Endpoint) bool { return d.flags(e)&Ruled != 0 }

// permits returns the rule that lets the subjects talk with any of the peers.
func (d decider) permits(subjects []uint32, dir Dir, peers []uint32) (uint16, bool) {
	for _, s := range subjects {
		for _, p := range peers {
			if p == 0 {
				continue
			}
			if rule, ok := d.Match(s, dir, p, d.q.Proto, d.q.Port, false); ok {
				return rule, true
			}
		}
	}
	return 0, false
}

// outsiders are the numbers of an address.
func (d decider) outsiders(a netip.Addr) []uint32 {
	if d.IsHost(a) {
		return []uint32{d.Class(a), PeerHost}
	}
	return []uint32{d.Class(a), PeerWorld}
}

// socket says why the container cannot even have a socket of this protocol.
func (d decider) socket(e Endpoint) string {
	f := d.flags(e)
	isICMP := d.q.Proto == protoICMP || d.q.Proto == protoICMPv6
	switch {
	case d.q.Proto == protoTCP || d.q.Proto == protoUDP:
		return ""
	case f&Ruled != 0 && (d.q.Proto == protoICMP && f&HasICMP != 0 || d.q.Proto == protoICMPv6 && f&HasICMPv6 != 0 ||
		d.q.Proto == protoSCTP && f&HasSCTP != 0):
		return ""
	case f&Ruled == 0 && (!d.redirected(e.Role) || isICMP && d.NonTCP == ActionAllow):
		return ""
	case isICMP:
		return ReasonICMP
	}
	return ReasonProtocol
}

func (d decider) inside(from, to Endpoint) Decision {
	out := Decision{Route: RouteLocal}
	switch d.q.Proto {
	case protoICMP, protoICMPv6: // the kernel answers
		return out
	case protoTCP, protoUDP:
	default: // whose socket gets it cannot be told
		switch {
		case d.ruled(from):
			out.Reason = ReasonEgress
		case d.ruled(to):
			out.Reason = ReasonIngress
		}
		return out
	}
	if d.q.Same {
		return out
	}
	ok := true
	if d.ruled(from) {
		if out.Rule, ok = d.permits(d.subjects(from), Egress, d.subjects(to)); !ok {
			out.Reason = ReasonEgress
			return out
		}
	}
	if d.ruled(to) {
		if out.PeerRule, ok = d.permits(d.subjects(to), Ingress, d.subjects(from)); !ok {
			out.Reason = ReasonIngress
		}
	}
	return out
}

func (d decider) outbound(from Endpoint) Decision {
	out := Decision{Route: RouteDirect}
	ruled, ok := d.ruled(from), true
	peers := d.outsiders(d.q.To.addr)
	if ruled {
		if out.Rule, ok = d.permits(d.subjects(from), Egress, peers); !ok {
			out.Reason = ReasonEgress
			return out
		}
	}
	if !d.redirected(from.Role) {
		return out
	}
	if rule, excluded := d.permits([]uint32{SubjectPod}, Egress, peers); excluded {
		if out.Rule == 0 {
			out.Rule = rule
		}
		return out
	}
	switch {
	case d.q.Proto == protoTCP && d.TLS != 0:
		out.Route = RouteRelayed
	case d.q.Proto == protoTCP:
		out.Route = RouteRedirect
	case d.q.Proto == protoUDP && d.q.Port == 53 && d.DNS != 0:
		out.Route = RouteDNS
	case ruled, d.NonTCP == ActionAllow:
	case d.q.Proto == protoUDP:
		out.Reason = ReasonUDP
	default:
		out.Reason = d.socket(from)
	}
	return out
}

func (d decider) inbound(to Endpoint) Decision {
	out := Decision{Route: RouteDirect}
	peers := d.outsiders(d.q.From.addr)
	rule, excluded := d.permits([]uint32{SubjectPod}, Ingress, peers)
	if d.q.Proto == protoTCP {
		if d.q.Port == d.Outbound || d.DNS != 0 && d.q.Port == d.DNS || d.TLS != 0 && d.q.Port == d.TLS {
			out.Reason = ReasonPort
			return out
		}
		// Without an exclusion a sidecar gets it, whoever listens; and what is for its inbound port always.
		own := d.q.Port != d.Inbound &&
			(excluded || slices.ContainsFunc(d.Reserved, func(r PortRange) bool { return r.Contains(d.q.Port) }))
		if to.Role != RoleSidecar && !own {
			out.Route = RouteSteered
			return out
		}
	}
	if d.denied(to.Role) {
		out.Reason = ReasonInit
		return out
	}
	if d.ruled(to) {
		ok := false
		if out.PeerRule, ok = d.permits(d.subjects(to), Ingress, peers); !ok {
			out.Reason = ReasonIngress
		} else if d.q.Proto == protoTCP && d.redirected(to.Role) && !excluded {
			out.Reason = ReasonInbound
		}
		return out
	}
	if !d.redirected(to.Role) {
		return out
	}
	isICMP := d.q.Proto == protoICMP || d.q.Proto == protoICMPv6
	switch {
	case excluded:
		out.Rule = rule
	case d.NonTCP == ActionAllow && (isICMP || d.q.Proto == protoUDP):
	default:
		out.Reason = ReasonInbound
	}
	return out
}

// Missing writes the rule, an item of spec.rules in YAML, that would let through what was denied for this reason, if one
// would. A subject that has no rules yet is denied all else by its first.
func Missing(q Query, reason string) string {
	subject, other, dir, key := q.From, q.To, "egress", "to"
	if reason == ReasonIngress {
		subject, other, dir, key = q.To, q.From, "ingress", "from"
	}
	switch reason {
	case ReasonUDP, ReasonICMP, ReasonProtocol, ReasonEgress, ReasonIngress:
	default:
		return ""
	}
	proto, isICMP := protoName(q.Proto), q.Proto == protoICMP || q.Proto == protoICMPv6
	switch {
	case proto == "" || subject.container == nil || !subject.named() || !other.named():
		return ""
	case q.Proto == protoSCTP && other.container != nil: // no rule allows it
		return ""
	case isICMP && q.Port > 255 || !isICMP && q.Port == 0: // nor this
		return ""
	}
	ports := "ports"
	if isICMP {
		ports = "types"
	}
	return "- " + subject.container.yaml() + "\n  " + dir + ":\n  - " + key + ": [{" + peerYAML(other) + "}]\n    protocol: " + proto +
		"\n    " + ports + ": [" + strconv.Itoa(int(q.Port)) + "]\n"
}

func peerYAML(e End) string {
	if e.container == nil {
		return "cidr: " + strconv.Quote(netip.PrefixFrom(e.addr, e.addr.BitLen()).String())
	}
	return e.container.yaml()
}

func protoName(proto uint8) string {
	switch proto {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmpv6"
	case protoSCTP:
		return "sctp"
	}
	return ""
}

// MissingUnix is Missing for a UNIX socket that was refused: its path, or its name with an @ before it. Where nothing
// about it can be written, as about a path that is not absolute, it is empty.
func MissingUnix(e Endpoint, name string, kind UnixType) string {
	key, pattern := "path", quotePattern(name)
	if strings.HasPrefix(name, "@") {
		key = "abstract"
	} else if !cleanPath(name) {
		return ""
	}
	if len(name) < 2 || patternProblem(pattern) != "" {
		return ""
	}
	return "- " + e.yaml() + "\n  unix:\n    allow:\n    - {" + key + ": " + strconv.Quote(pattern) + ", type: " + kind.String() + "}\n"
}

// yaml is how a rule names a container.
func (e Endpoint) yaml() string {
	if e.Role == RoleUnset {
		return "container: " + strconv.Quote(e.Name)
	}
	return "role: " + e.Role.String()
}

// quotePattern makes a pattern that stands for name alone.
func quotePattern(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if strings.IndexByte(`?*[\`, name[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

func cleanPath(name string) bool { return path.IsAbs(name) && path.Clean(name) == name }
