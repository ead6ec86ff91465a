// SPDX-License-Identifier: Apache-2.0

// Package policy turns what users write into what the kernel is given: labels into roles, policy files into
// [PodPolicy] values, and those into [Compiled] tables.
//
// It is pure: apart from [LoadDir], [LoadEach], [Find] and [Fingerprint], which read files, nothing here has side
// effects, and nothing here knows of BPF, cgroups or a runtime. It does no work at process start, because it is linked
// into an OCI hook that every container start waits for.
//
// Reading is strict. What is not understood whole is an error that says where it is and what to write instead: a
// policy that is read differently from what its author meant is worse than a container that does not start.
package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// What every policy file says about itself.
const (
	APIVersion = "sidegate/v1alpha1"
	Kind       = "PodPolicy"
)

// Ports that a policy has when it names none. They are those that Istio's images use.
const (
	DefaultOutbound = 15001
	DefaultInbound  = 15006
)

// Limits of one policy, and of one file. They bound what a policy can take of the node's maps, and the time and
// memory that reading takes.
const (
	MaxSidecarPorts = 8       // entries in spec.sidecarPorts
	MaxPorts        = 64      // port ranges of one rule
	MaxRules        = 1000    // rules, UNIX rules and exclusions together
	MaxPrefixes     = 10_000  // distinct CIDRs and exceptions
	MaxNames        = 16      // distinct container names in rules
	MaxUnix         = 16      // UNIX rules of one subject
	MaxProcesses    = 64      // executables of one subject
	MaxEntries      = 250_000 // entries of a compiled policy, those that several rules make counted for each
	MaxFileSize     = 4 << 20 // bytes in one file
	MaxErrors       = 20      // errors listed for one file
	maxTokens       = 500_000 // YAML tokens in one file
	maxFlowDepth    = 10      // nested [ and {; in JSON a policy needs nine
	maxKeys         = 256     // keys of one mapping
)

// DefaultName is the name of the policy that applies where none is named or selected.
const DefaultName = "default"

// PodPolicy says how the containers of a pod may talk, to each other and to the outside.
// The zero value of each field of Spec stands for its default, so that a Go literal needs only what differs.
type PodPolicy struct {
	// APIVersion is the version of this format.
	APIVersion string `yaml:"apiVersion" json:"apiVersion"`
	// Kind says that the document is a policy of this kind.
	Kind string `yaml:"kind" json:"kind"`
	// Metadata has the policy's name.
	Metadata Metadata `yaml:"metadata" json:"metadata"`
	// Spec is what the policy asks for; {} is all defaults.
	Spec Spec `yaml:"spec" json:"spec"`

	file  string // where it was read, or empty
	line  int
	lines map[string]int // of its rules, by their paths
}

// Metadata is the part of Kubernetes' ObjectMeta that a policy file may have.
type Metadata struct {
	// Name is how pods ask for the policy, and of which there is one in a directory: at most 63 of a-z 0-9 -.
	Name string `yaml:"name" json:"name"`
	// Labels are for whoever manages policies. Sidegate does not look at them.
	Labels map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
}

// Spec is what a policy asks for.
type Spec struct {
	// PodSelector chooses pods by their labels. As in Kubernetes, {} selects all, and none selects none: the policy is
	// then used by name only.
	PodSelector *LabelSelector `yaml:"podSelector,omitempty" json:"podSelector,omitempty"`
	// Roles gives containers their role by name.
	Roles []ContainerRole `yaml:"roles,omitempty" json:"roles,omitempty"`
	// Redirect says where on loopback the sidecar listens.
	Redirect Redirect `yaml:"redirect" json:"redirect"`
	// SidecarPorts are further ports that only the sidecar may bind, with TCP and UDP; at most 8 ports or ranges.
	SidecarPorts []PortRange `yaml:"sidecarPorts,omitempty" json:"sidecarPorts,omitempty"`
	// Exclude lists what goes round the sidecar.
	Exclude Exclude `yaml:"exclude" json:"exclude"`
	// NonTCP is what an app that has no rules may do with what is not TCP: UDP and ICMP. The default is deny.
	NonTCP Action `yaml:"nonTCP" json:"nonTCP"`
	// Init says how init containers are treated: as apps are (sidecar, the default), without going through the sidecar
	// (direct), or with no network (deny).
	Init InitMode `yaml:"init" json:"init"`
	// AdminCapabilities says whether containers may start that have CAP_NET_ADMIN, CAP_SYS_ADMIN or CAP_SYS_MODULE, with
	// which they can change what others of the pod send, what the host has, or what enforces. The default is deny. It is
	// not asked of a sidecar, or of a container outside the mesh, under a policy without rules: nothing binds those.
	AdminCapabilities Action `yaml:"adminCapabilities,omitempty" json:"adminCapabilities,omitempty"`
	// Mode says whether what the policy denies is denied (enforce, the default), or counted and recorded only (audit).
	Mode Mode `yaml:"mode,omitempty" json:"mode,omitempty"`
	// Accelerate says whether bytes between apps and their sidecar skip the node's TCP: where neither end could notice
	// (auto, the default), never (off), wherever nothing breaks (on), or as on, and between sidecars of two pods on the
	// node too (node). It holds for connections that begin from then on.
	Accelerate Acceleration `yaml:"accelerate,omitempty" json:"accelerate,omitempty"`
	// TLS says how apps' connections are judged by what they say inside TLS. They are not if it is not there.
	TLS *TLS `yaml:"tls,omitempty" json:"tls,omitempty"`
	// Rules say what each role, or container, may reach and be reached by, at all.
	Rules []SubjectRules `yaml:"rules,omitempty" json:"rules,omitempty"`
}

// SubjectRules are the rules for a role or for a container of a name: one of the two is set. A container to which both
// apply may do what either allows.
//
// Egress and Ingress are nil if the policy does not have them. If either is there, even empty, all that no rule allows
// is denied, both ways.
type SubjectRules struct {
	// Role says that these are the rules of all containers of this role.
	Role Role `yaml:"role,omitempty" json:"role,omitempty"`
	// Container says that these are the rules of the container of this name.
	Container string `yaml:"container,omitempty" json:"container,omitempty"`
	// Egress lists what the subject may call. [] is nothing.
	Egress []EgressRule `yaml:"egress,omitempty" json:"egress,omitzero"`
	// Ingress lists what may call the subject. [] is nothing.
	Ingress []IngressRule `yaml:"ingress,omitempty" json:"ingress,omitzero"`
	// Unix says which UNIX sockets the subject may connect or send to; all, if it is not there.
	Unix *Unix `yaml:"unix,omitempty" json:"unix,omitempty"`
	// Processes are the executables that may have IP sockets at all, by their paths in the container; at most 64. It is
	// the file that counts, not its name: a copy of it is another one.
	Processes []string `yaml:"processes,omitempty" json:"processes,omitzero"`
}

// EgressRule lets the subject call peers. No peers are all of them: every role of the pod, world and host.
type EgressRule struct {
	// To lists whom the subject may call; everybody, if it is not there.
	To      []Peer `yaml:"to,omitempty" json:"to,omitempty"`
	Traffic `yaml:",inline"`
}

// IngressRule lets peers call the subject. No peers are all of them.
type IngressRule struct {
	// From lists who may call the subject; everybody, if it is not there.
	From    []Peer `yaml:"from,omitempty" json:"from,omitempty"`
	Traffic `yaml:",inline"`
}

// Traffic is what a rule is about. No ports and no types are all of them.
type Traffic struct {
	// Protocol is tcp by default. any is every protocol; with ports, TCP, UDP and SCTP.
	Protocol RuleProto `yaml:"protocol,omitempty" json:"protocol,omitempty"`
	// Ports are those of whoever is called, at most 64 ports or ranges; all, if it is not there.
	Ports []PortRange `yaml:"ports,omitempty" json:"ports,omitempty"`
	// Types are those of ICMP messages; all, if it is not there.
	Types []ICMPType `yaml:"types,omitempty" json:"types,omitempty"`
}

// Peer is one of: a role of the pod, a container of it, an outside network, or an entity.
type Peer struct {
	// Role is all containers of the pod with this role.
	Role Role `yaml:"role,omitempty" json:"role,omitempty"`
	// Container is the container of the pod with this name.
	Container string `yaml:"container,omitempty" json:"container,omitempty"`
	// CIDR is a network outside the pod. IPv4 and IPv6 are separate: ::/0 has no IPv4 in it.
	CIDR string `yaml:"cidr,omitempty" json:"cidr,omitempty"`
	// Except lists networks inside of cidr that are not meant.
	Except []string `yaml:"except,omitempty" json:"except,omitempty"`
	// Entity is host, the addresses of the pod's node, or world, all others outside the pod.
	Entity Entity `yaml:"entity,omitempty" json:"entity,omitempty"`
}

// Unix says which UNIX sockets a subject may connect or send to. It may do so to no others.
type Unix struct {
	// Optional lets containers start where the kernel cannot enforce it.
	Optional bool `yaml:"optional,omitempty" json:"optional,omitempty"`
	// Allow lists sockets, at most 16 patterns.
	Allow []UnixAllow `yaml:"allow,omitempty" json:"allow,omitempty"`
}

// UnixAllow is one rule about UNIX sockets. One of Path and Abstract is set; both are globs, of at most 107 bytes:
//
//	?        one byte but /
//	*        any run of such bytes
//	**       any run of bytes
//	[a-z]    one of these bytes, which are ASCII and never /
//	[!a-z]   one byte that is neither one of these nor /
//	\x       the byte x itself; also in classes, where - [ and ] are written so
type UnixAllow struct {
	// Path is a pattern of paths, such as /run/db/*.sock: with * and **, the latter also across /, ? and [a-z] or [!a-z];
	// a \ quotes.
	Path string `yaml:"path,omitempty" json:"path,omitempty"`
	// Abstract is a pattern of abstract names, with an @ before it: "@bus-*".
	Abstract string `yaml:"abstract,omitempty" json:"abstract,omitempty"`
	// Type is the socket's; any, if it is not there.
	Type UnixType `yaml:"type,omitempty" json:"type,omitempty"`
	// To says who may have bound the socket, at most 8 roles or containers. Only BPF LSM can tell.
	To []Peer `yaml:"to,omitempty" json:"to,omitempty"`
}

// ContainerRole gives the container of a name its role.
type ContainerRole struct {
	// Container is the container's name.
	Container string `yaml:"container" json:"container"`
	// Role is what it is to its pod; none is left alone, inside a managed pod as well.
	Role Role `yaml:"role" json:"role"`
}

// Redirect has the sidecar's own ports. Zero in Outbound and Inbound stands for the default, in DNS for off.
type Redirect struct {
	// Outbound is the port that gets what apps send; 15001 by default.
	Outbound uint16 `yaml:"outbound" json:"outbound"`
	// Inbound is the port that gets what comes from outside; 15006 by default.
	Inbound uint16 `yaml:"inbound" json:"inbound"`
	// DNS is the port that gets the apps' UDP to port 53. If it is not there, such UDP is as any other.
	DNS uint16 `yaml:"dns,omitempty" json:"dns,omitempty"`
	// Getsockname says what getsockname(2) answers the sidecar on a redirected connection: the listener's address, which
	// is the default, or the original destination.
	Getsockname SockName `yaml:"getsockname,omitempty" json:"getsockname,omitempty"`
}

// Exclude lists what an app may reach, and what may reach it, without the sidecar.
type Exclude struct {
	// Egress lists destinations that apps reach directly.
	Egress []Exclusion `yaml:"egress,omitempty" json:"egress,omitempty"`
	// Ingress lists the apps' ports that are reached directly.
	Ingress []Exclusion `yaml:"ingress,omitempty" json:"ingress,omitempty"`
}

// Exclusion is one rule. In egress CIDR is the destination and required, and no ports means all of them.
// In ingress CIDR is the source, all sources if empty, and Ports are required.
type Exclusion struct {
	// CIDR is the destination in egress, where it is required, and the source in ingress, where none is all.
	CIDR string `yaml:"cidr,omitempty" json:"cidr,omitempty"`
	// Ports are those of the destination, required in ingress, and all if there are none in egress; at most 64.
	Ports []PortRange `yaml:"ports,omitempty" json:"ports,omitempty"`
	// Protocol is tcp by default; any is TCP and UDP.
	Protocol Proto `yaml:"protocol,omitempty" json:"protocol,omitempty"`
}

// Default returns the policy that applies where none is named: both ways through a sidecar on the default ports, no
// DNS redirection, nothing excluded, nothing but TCP.
func Default() *PodPolicy {
	return &PodPolicy{
		APIVersion: APIVersion,
		Kind:       Kind,
		Metadata:   Metadata{Name: DefaultName},
		Spec:       Spec{Redirect: Redirect{Outbound: DefaultOutbound, Inbound: DefaultInbound}},
	}
}

// Source says where the policy was read, as file:line, or "built in".
func (p *PodPolicy) Source() string {
	if p.file == "" {
		return "built in"
	}
	return p.file + ":" + strconv.Itoa(p.line)
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ First, Last uint16 }

// AllPorts is what a rule without ports has.
var AllPorts = PortRange{First: 1, Last: 65535}

// Contains says whether the port is in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String gives 443 or 8000-8100.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}

// MarshalText writes what String gives.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// ParsePortRange reads 443 or 8000-8100: decimal, no spaces, no leading zeros.
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange || first == "" {
		p, err := parsePort(s)
		return PortRange{p, p}, err
	}
	if strings.ContainsAny(s, " \t") {
		return PortRange{}, fmt.Errorf("%s is not a port range: write it without spaces, such as 8000-8100", show(s))
	}
	a, err := parsePort(first)
	if err != nil {
		return PortRange{}, fmt.Errorf("%s is not a port range: %w", show(s), err)
	}
	b, err := parsePort(last)
	if err != nil {
		return PortRange{}, fmt.Errorf("%s is not a port range: %w", show(s), err)
	}
	if a > b {
		return PortRange{}, fmt.Errorf("%s is reversed: write %d-%d", show(s), b, a)
	}
	return PortRange{a, b}, nil
}

// parsePort takes the exact decimal form only: 080, 0x50, 1e3 and 1_000 mean different things to different readers.
func parsePort(s string) (uint16, error) {
	digits := s != ""
	for _, c := range []byte(s) {
		digits = digits && c >= '0' && c <= '9'
	}
	if !digits || (len(s) > 1 && s[0] == '0') {
		return 0, fmt.Errorf("%s is not a port: write a plain decimal number, 1 to 65535", show(s))
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s is not a port: write 1 to 65535", show(s))
	}
	return uint16(n), nil
}

// Proto is what a rule is for. The zero value stands for ProtoTCP in a [PodPolicy] and does not occur in a [Compiled].
type Proto uint8

// ProtoAny is TCP and UDP. ICMP has no ports and is not subject to rules but to Spec.NonTCP.
const (
	ProtoTCP Proto = iota + 1
	ProtoUDP
	ProtoAny
)

// SockName is what getsockname(2) answers the sidecar on a connection that was redirected to its outbound port.
type SockName uint8

// What getsockname answers: the listener's address, as under iptables' REDIRECT, or the original destination, as under
// its TPROXY. HAProxy asks SO_ORIGINAL_DST for IPv4 only and needs the latter for IPv6.
const (
	SockNameListener SockName = iota
	SockNameOriginal
)

func sockNameWords() []string { return []string{"listener", "original"} }

// String returns the word that stands in a policy.
func (n SockName) String() string { return word(sockNameWords(), uint8(n)) }

// MarshalText writes the word.
func (n SockName) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// Action is what happens to traffic.
type Action uint8

// The actions; the default is to deny.
const (
	ActionDeny Action = iota
	ActionAllow
)

// InitMode is how init containers are treated.
type InitMode uint8

// The ways of treating init containers: as an app's traffic, without restrictions, or with no traffic at all.
const (
	InitSidecar InitMode = iota
	InitDirect
	InitDeny
)

// Acceleration says which connections skip the node's TCP.
type Acceleration uint8

// The kinds of acceleration; the default is AccelerateAuto.
const (
	AccelerateAuto Acceleration = iota
	AccelerateOn
	AccelerateOff
	AccelerateNode
)

// Mode is whether a policy denies.
type Mode uint8

// The modes; the default is to enforce. In ModeAudit nothing is denied, and what would be is counted and recorded.
const (
	ModeEnforce Mode = iota
	ModeAudit
)

// RuleProto is what a rule's traffic is. The zero value is RuleTCP.
type RuleProto uint8

// The protocols of rules. RuleAny is every protocol there is; with ports it is those that have ports.
const (
	RuleTCP RuleProto = iota
	RuleUDP
	RuleICMP
	RuleICMPv6
	RuleSCTP
	RuleAny
)

// ICMPType is a type of ICMP or ICMPv6 messages.
type ICMPType uint8

// String gives the decimal number.
func (t ICMPType) String() string { return strconv.Itoa(int(t)) }

// MarshalJSON writes the number; a list of plain bytes would become base64.
func (t ICMPType) MarshalJSON() ([]byte, error) { return []byte(t.String()), nil }

// Entity is a peer that no address names.
type Entity uint8

// The entities: all outside addresses that are not the node's own, and those that are.
const (
	EntityUnset Entity = iota
	EntityWorld
	EntityHost
)

// UnixType is a type of UNIX socket; the zero value is any.
type UnixType uint8

// The types of UNIX sockets.
const (
	UnixAny UnixType = iota
	UnixStream
	UnixDgram
	UnixSeqpacket
)

func accelerationWords() []string { return []string{"auto", "on", "off", "node"} }
func modeWords() []string         { return []string{"enforce", "audit"} }
func ruleProtoWords() []string    { return []string{"tcp", "udp", "icmp", "icmpv6", "sctp", "any"} }
func entityWords() []string       { return []string{"", "world", "host"} }
func unixTypeWords() []string     { return []string{"any", "stream", "dgram", "seqpacket"} }

func protoWords() []string  { return []string{"", "tcp", "udp", "any"} }
func actionWords() []string { return []string{"deny", "allow"} }
func initWords() []string   { return []string{"sidecar", "direct", "deny"} }

func word(words []string, i uint8) string {
	if int(i) < len(words) {
		return words[i]
	}
	return "invalid(" + strconv.Itoa(int(i)) + ")"
}

// String gives the word that is written in a policy.
func (p Proto) String() string { return word(protoWords(), uint8(p)) }

// MarshalText writes what String gives.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String gives the word that is written in a policy.
func (a Action) String() string { return word(actionWords(), uint8(a)) }

// MarshalText writes what String gives.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String gives the word that is written in a policy.
func (m InitMode) String() string { return word(initWords(), uint8(m)) }

// MarshalText writes what String gives.
func (m InitMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// String gives the word that is written in a policy.
func (a Acceleration) String() string { return word(accelerationWords(), uint8(a)) }

// MarshalText writes what String gives.
func (a Acceleration) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String gives the word that is written in a policy.
func (m Mode) String() string { return word(modeWords(), uint8(m)) }

// MarshalText writes what String gives.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// String gives the word that is written in a policy.
func (p RuleProto) String() string { return word(ruleProtoWords(), uint8(p)) }

// MarshalText writes what String gives.
func (p RuleProto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String gives the word that is written in a policy.
func (e Entity) String() string { return word(entityWords(), uint8(e)) }

// MarshalText writes what String gives.
func (e Entity) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// String gives the word that is written in a policy.
func (t UnixType) String() string { return word(unixTypeWords(), uint8(t)) }

// MarshalText writes what String gives.
func (t UnixType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
