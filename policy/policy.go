// SPDX-License-Identifier: Apache-2.0

// Package policy turns what users write into what the kernel is given: labels into roles, policy files into
// [PodPolicy] values, and those into [Compiled] tables.
//
// It is pure: apart from [LoadDir] and [Find], which read files, nothing here has side effects, and nothing here
// knows of BPF, cgroups or a runtime. It does no work at process start, because it is linked into an OCI hook that
// every container start waits for.
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
	MaxSidecarPorts    = 8       // entries in spec.sidecarPorts
	MaxRangesPerPrefix = 16      // port ranges of one rule, and of one prefix after compiling
	MaxRules           = 1000    // entries in spec.exclude.egress and spec.exclude.ingress together
	MaxPrefixes        = 10_000  // distinct prefixes of a compiled policy, both ways together
	MaxFileSize        = 1 << 20 // bytes in one file
	MaxErrors          = 20      // errors listed for one file
	maxTokens          = 100_000 // YAML tokens in one file
	maxFlowDepth       = 8       // nested [ and {
	maxKeys            = 256     // keys of one mapping
)

// A rule has one prefix, or none, which stands for two. So MaxPrefixes holds by construction; this line does not
// compile if that ends.
const _ uint = MaxPrefixes - (MaxRules + 2)

// DefaultName is the name of the policy that applies where none is named or selected.
const DefaultName = "default"

// PodPolicy says how the containers of a pod may talk, to each other and to the outside.
// The zero value of each field of Spec stands for its default, so that a Go literal needs only what differs.
type PodPolicy struct {
	APIVersion string   `yaml:"apiVersion" json:"apiVersion"`
	Kind       string   `yaml:"kind" json:"kind"`
	Metadata   Metadata `yaml:"metadata" json:"metadata"`
	Spec       Spec     `yaml:"spec" json:"spec"`

	file string // where it was read, or empty
	line int
}

// Metadata is the part of Kubernetes' ObjectMeta that a policy file may have.
type Metadata struct {
	Name   string            `yaml:"name" json:"name"` // a DNS label
	Labels map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
}

// Spec is what a policy asks for.
type Spec struct {
	// PodSelector chooses pods by their labels. As in Kubernetes, nil selects none (the policy is then used by
	// name only) and an empty selector selects all.
	PodSelector *LabelSelector `yaml:"podSelector,omitempty" json:"podSelector,omitempty"`
	// Roles gives containers their role by name.
	Roles []ContainerRole `yaml:"roles,omitempty" json:"roles,omitempty"`
	// Redirect says where on loopback the sidecar listens.
	Redirect Redirect `yaml:"redirect" json:"redirect"`
	// SidecarPorts are further ports that only the sidecar may bind, with TCP and UDP.
	SidecarPorts []PortRange `yaml:"sidecarPorts,omitempty" json:"sidecarPorts,omitempty"`
	// Exclude lists what goes round the sidecar.
	Exclude Exclude `yaml:"exclude" json:"exclude"`
	// NonTCP is what an app may do with what is not TCP: UDP and ICMP.
	NonTCP Action `yaml:"nonTCP" json:"nonTCP"`
	// Init says how init containers are treated.
	Init InitMode `yaml:"init" json:"init"`
}

// ContainerRole gives the container of a name its role.
type ContainerRole struct {
	Container string `yaml:"container" json:"container"`
	Role      Role   `yaml:"role" json:"role"`
}

// Redirect has the sidecar's own ports. Zero in Outbound and Inbound stands for the default, in DNS for off.
type Redirect struct {
	Outbound uint16 `yaml:"outbound" json:"outbound"`
	Inbound  uint16 `yaml:"inbound" json:"inbound"`
	DNS      uint16 `yaml:"dns,omitempty" json:"dns,omitempty"`
	// Getsockname says what getsockname(2) answers the sidecar on a redirected connection.
	Getsockname SockName `yaml:"getsockname,omitempty" json:"getsockname,omitempty"`
}

// Exclude lists what an app may reach, and what may reach it, without the sidecar.
type Exclude struct {
	Egress  []Exclusion `yaml:"egress,omitempty" json:"egress,omitempty"`
	Ingress []Exclusion `yaml:"ingress,omitempty" json:"ingress,omitempty"`
}

// Exclusion is one rule. In egress CIDR is the destination and required, and no ports means all of them.
// In ingress CIDR is the source, all sources if empty, and Ports are required.
type Exclusion struct {
	CIDR     string      `yaml:"cidr,omitempty" json:"cidr,omitempty"`
	Ports    []PortRange `yaml:"ports,omitempty" json:"ports,omitempty"`
	Protocol Proto       `yaml:"protocol,omitempty" json:"protocol,omitempty"` // zero stands for ProtoTCP
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
