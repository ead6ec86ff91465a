// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
)

// ABI is the version of everything in src/abi.h. State of another ABI is
// never touched.
const ABI = 1

// The structs of src/abi.h, generated. Ports are in host order.
type (
	Addr          = nodeSgAddr
	Container     = nodeSgContainer
	ContainerInfo = nodeSgContainerInfo
	Counter       = nodeSgCounter
	Counters      = nodeSgCounters
	Dir           = nodeSgDir
	ListenerKey   = nodeSgListenerKey
	Pod           = nodeSgPod
	PodAddr       = nodeSgPodAddr
	PodInfo       = nodeSgPodInfo
	Ports         = nodeSgPorts
	Proto         = nodeSgProto
	Role          = nodeSgRole
	Rule          = nodeSgRule
	RuleKey       = nodeSgRuleKey
	RulePort      = nodeSgRulePort
	Slot          = nodeSgSlot
	Tuple         = nodeSgTuple
)

// Roles as the programs know them (enum sg_role).
const (
	RoleDead    = nodeSgRoleSG_ROLE_DEAD
	RoleApp     = nodeSgRoleSG_ROLE_APP
	RoleSidecar = nodeSgRoleSG_ROLE_SIDECAR
	RoleExempt  = nodeSgRoleSG_ROLE_EXEMPT
	RoleDenied  = nodeSgRoleSG_ROLE_DENIED
)

// Protocols of a rule.
const (
	ProtoAny = nodeSgProtoSG_PROTO_ANY
	ProtoTCP = nodeSgProtoSG_PROTO_TCP
	ProtoUDP = nodeSgProtoSG_PROTO_UDP
)

// Flags of a pod (enum sg_pod_flags).
const (
	PodNonTCP   uint8 = 1
	PodSockName uint8 = 2
)

// Directions of a rule.
const (
	DirEgress  = nodeSgDirSG_DIR_EGRESS
	DirIngress = nodeSgDirSG_DIR_INGRESS
)

// Limits of src/abi.h that user space must keep.
const (
	MaxReserved    = len(Pod{}.Reserved)
	MaxRulePorts   = len(Rule{}.P)
	NameLen        = len(ContainerInfo{}.Id) - 1
	ListenerSlots  = 8
	rulePrefixBits = 96
)

// Kinds of a listener key (enum sg_listener_kind).
const (
	ListenOutbound = 0
	ListenInbound  = 1
)

// AddrFrom returns a as the programs want it: 16 bytes, IPv4 v4-mapped.
func AddrFrom(a netip.Addr) Addr { return Addr{B: a.As16()} }

// NewRuleKey returns the key of a rule for prefix, which must be valid.
func NewRuleKey(cookie uint64, dir Dir, prefix netip.Prefix) RuleKey {
	bits := prefix.Bits()
	if prefix.Addr().Is4() {
		bits += 96
		dir += nodeSgDirSG_DIR_V4
	}
	return RuleKey{
		Prefixlen:   uint32(rulePrefixBits + bits),
		Dir:         dir,
		NetnsCookie: cookie,
		Addr:        AddrFrom(prefix.Addr()),
	}
}

// CString returns the bytes of a fixed, zero-terminated field.
func CString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// SetCString puts s into a fixed field and always leaves a terminating zero.
// What does not fit is cut off: the fields are for people.
func SetCString(b []byte, s string) {
	clear(b)
	copy(b[:len(b)-1], s)
}

// CounterInfo describes a counter to people.
type CounterInfo struct {
	Counter Counter
	Name    string // as in metrics and JSON: lower case, underscores
	Drop    bool
	Text    string
}

// CounterInfos lists all counters in the order of their numbers.
func CounterInfos() []CounterInfo { return counterInfos }

var counterInfos = []CounterInfo{
	{nodeSgCounterSG_COUNT_REDIRECT, "redirected", false, "connections sent to the sidecar"},
	{nodeSgCounterSG_COUNT_DNS, "dns_redirected", false, "DNS queries sent to the sidecar"},
	{nodeSgCounterSG_COUNT_DIRECT, "direct", false, "let out directly by an exclusion"},
	{nodeSgCounterSG_COUNT_LOCAL, "local", false, "connections inside the pod"},
	{nodeSgCounterSG_COUNT_ACCEPT_OUT, "accepted_outbound", false, "redirected connections the sidecar took"},
	{nodeSgCounterSG_COUNT_ACCEPT_IN, "accepted_inbound", false, "connections from outside the sidecar took"},
	{nodeSgCounterSG_COUNT_STEERED, "steered", false, "lookups answered with the inbound listener"},
	{nodeSgCounterSG_DROP_UNREGISTERED, "unregistered", true, "socket of a process that is in no registered container"},
	{nodeSgCounterSG_DROP_UDP, "udp", true, "UDP that no rule allows"},
	{nodeSgCounterSG_DROP_ICMP, "icmp", true, "ICMP that no rule allows"},
	{nodeSgCounterSG_DROP_RAW, "raw_socket", true, "raw socket"},
	{nodeSgCounterSG_DROP_PROTOCOL, "protocol", true, "socket of a protocol the sidecar cannot carry (SCTP, MPTCP, UDP-Lite, DCCP)"},
	{nodeSgCounterSG_DROP_BIND, "bind_reserved", true, "bind to a port of the sidecar"},
	{nodeSgCounterSG_DROP_EGRESS, "egress", true, "packet out of the pod round the sidecar"},
	{nodeSgCounterSG_DROP_INGRESS, "ingress", true, "packet from outside round the sidecar"},
	{nodeSgCounterSG_DROP_FRAGMENT, "fragment", true, "fragment whose ports cannot be known"},
	{nodeSgCounterSG_DROP_MALFORMED, "malformed", true, "packet that cannot be parsed"},
	{nodeSgCounterSG_DROP_DEVICE, "device", true, "packet at the device that no allowed socket sent"},
	{nodeSgCounterSG_DROP_PACKET_SOCKET, "packet_socket", true, "packet of an AF_PACKET socket"},
	{nodeSgCounterSG_DROP_NO_LISTENER, "no_listener", true, "the sidecar does not listen: connection refused"},
	{nodeSgCounterSG_DROP_OUTBOUND_PORT, "outbound_port", true, "connection from outside to the outbound or DNS port"},
	{nodeSgCounterSG_DROP_ORIGDST_FULL, "origdst_full", true, "too many connections are waiting for the sidecar"},
	{nodeSgCounterSG_DROP_NO_MEMORY, "no_memory", true, "no memory for the socket's record (net.core.optmem_max)"},
	{nodeSgCounterSG_DROP_INIT, "init", true, "init container under `init: deny`"},
	{nodeSgCounterSG_DROP_SPOOFED, "spoofed", true, "foreign source address on loopback"},
	{nodeSgCounterSG_DROP_BYPASS, "bypass", true, "packet round the pod's own device hook (PACKET_QDISC_BYPASS, AF_XDP)"},
}

// String returns the counter's name.
func (c nodeSgCounter) String() string {
	for _, i := range counterInfos {
		if i.Counter == c {
			return i.Name
		}
	}
	return fmt.Sprintf("counter_%d", uint32(c))
}

// Add adds o to c. The kernel keeps one value a CPU.
func (c *nodeSgCounters) Add(o Counters) {
	for i := range c.V {
		c.V[i] += o.V[i]
	}
}
