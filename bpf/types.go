// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ABI is the version of everything in src/abi.h. State of another ABI is
// never touched.
const ABI = 5

// The structs of src/abi.h, generated. Ports are in host order.
type (
	AccelCounters = nodeSgAccelCounters
	AccelInfo     = nodeSgAccelInfo
	Addr          = nodeSgAddr
	AttachTimes   = nodeSgAttachTimes
	ConnKey       = nodeSgConnKey
	Container     = nodeSgContainer
	ContainerInfo = nodeSgContainerInfo
	Counter       = nodeSgCounter
	Counters      = nodeSgCounters
	EmitArgs      = nodeSgEmitArgs
	Event         = nodeSgEvent
	EventBudget   = nodeSgEventBudget
	EventControl  = nodeSgEventControl
	EventSource   = nodeSgEventSource
	EventText     = nodeSgEventText
	EventUnix     = unixSgEventUnix
	Executable    = nodeSgExecutable
	ListenerKey   = nodeSgListenerKey
	Pod           = nodeSgPod
	PodAddr       = nodeSgPodAddr
	PodInfo       = nodeSgPodInfo
	Policy        = nodeSgPolicy
	PolicyInfo    = nodeSgPolicyInfo
	Ports         = nodeSgPorts
	PrefixKey     = nodeSgPrefixKey
	Role          = nodeSgRole
	Route         = nodeSgRoute
	RuleInfo      = nodeSgRuleInfo
	RuleInfoKey   = nodeSgRuleInfoKey
	RuleKey       = nodeSgRuleKey
	Seen          = nodeSgSeen
	SeenCount     = nodeSgSeenCount
	SeenUnix      = nodeSgSeenUnix
	Slot          = nodeSgSlot
	Sock          = nodeSgSock
	SubjectKey    = nodeSgSubjectKey
	TLSKeys       = nodeSgTlsKeys
	TLSPolicy     = nodeSgTlsPolicy
	TLSPolicyKey  = nodeSgTlsPolicyKey
	TLSRing       = nodeSgTlsRing
	TLSTarget     = nodeSgTlsTarget
	Tuple         = nodeSgTuple
)

// Roles as the programs know them (enum sg_role).
const (
	RoleDead    = nodeSgRoleSG_ROLE_DEAD
	RoleApp     = nodeSgRoleSG_ROLE_APP
	RoleSidecar = nodeSgRoleSG_ROLE_SIDECAR
	RoleExempt  = nodeSgRoleSG_ROLE_EXEMPT
	RoleDenied  = nodeSgRoleSG_ROLE_DENIED
	RoleRelay   = nodeSgRoleSG_ROLE_RELAY // of sockets, not of containers
)

// Flags of a policy (enum sg_policy_flags).
const (
	PolicyNonTCP   uint32 = 1
	PolicySockName uint32 = 2
	PolicyAudit    uint32 = 4
	PolicyRuled    uint32 = 8
	PolicyNames    uint32 = 16
	PolicyPrefixes uint32 = 32
	PolicyWorld    uint32 = 64
	PolicyFiles    uint32 = 128
	PolicyAdmin    uint32 = 256

	PolicyAccelerate     uint32 = 512
	PolicyAccelerateNode uint32 = 1024
	// PolicyAccelerateUnseen leaves out containers with ContainerIOUring.
	PolicyAccelerateUnseen uint32 = 2048
	PolicyTLSDeferred      uint32 = 4096
)

// Flags of a container (enum sg_container_flags). ContainerKTLS is in map identity alone.
const (
	ContainerAccelerate uint32 = 1
	ContainerKTLS       uint32 = 2
	ContainerIOUring    uint32 = 4
)

// Flags of a socket's record (enum sg_sock_flags).
const (
	SockRedirected uint32 = 1
	SockDNS        uint32 = 2
	SockPassive    uint32 = 4
	SockOrigdst    uint32 = 8
	SockSent       uint32 = 16
	SockRelayed    uint32 = 256
)

// Flags of a subject (enum sg_subject_flags).
const (
	SubjectRuled     uint16 = 1
	SubjectICMP      uint16 = 2
	SubjectICMPv6    uint16 = 4
	SubjectSCTP      uint16 = 8
	SubjectProcesses uint16 = 16
	SubjectUnix      uint16 = 32
)

// Kinds of events (enum sg_event_kind).
const (
	KindConnect uint8 = iota
	KindAccept
	KindSocket
	KindBind
	KindPacket
	KindUnix
	KindAttach // this and the following by user space
	KindDetach
	KindTLS
	KindHTTP
)

// Limits of src/abi.h and src/maps.h that user space must keep.
const (
	MaxReserved   = len(Policy{}.Reserved)
	MaxPending    = 8192 // connections on their way to a sidecar, of one pod
	NameLen       = len(ContainerInfo{}.Id) - 1
	ListenerSlots = 8
	EventReaders  = len(EventControl{}.Until)
)

const (
	prefixBits    = 64  // of a prefix key before the address
	ruleBits      = 104 // of a rule key before the protocol
	ruleProtoBits = 112 // and before the port
)

// AddrFrom returns a as the programs want it: 16 bytes, IPv4 v4-mapped.
func AddrFrom(a netip.Addr) Addr { return Addr{B: a.As16()} }

// NewPrefixKey returns the key of a prefix, which must be valid, in a revision
// of a policy.
func NewPrefixKey(revision uint32, prefix netip.Prefix) PrefixKey {
	k := PrefixKey{Revision: revision, Addr: AddrFrom(prefix.Addr())}
	bits := prefix.Bits()
	if prefix.Addr().Is4() {
		bits += 96
		k.Ipv4 = 1
	}
	k.Prefixlen = uint32(prefixBits + bits)
	return k
}

// RuleFor says what an entry of map rules is about: protocol 0 with AnyProto, and
// the first PortBits bits of a port, which the others of it must be 0.
type RuleFor struct {
	Revision, Subject, Peer uint32
	Dir, Proto              uint8
	AnyProto                bool
	Port                    uint16
	PortBits                uint8
}

// NewRuleKey returns its key.
func NewRuleKey(r RuleFor) RuleKey {
	k := RuleKey{Revision: r.Revision, Subject: r.Subject, Peer: r.Peer, Dir: r.Dir, Prefixlen: ruleBits}
	if r.AnyProto {
		return k
	}
	k.Proto = r.Proto
	k.Prefixlen = ruleProtoBits + uint32(r.PortBits)
	k.Port = bigEndian16(r.Port)
	return k
}

// bigEndian16 returns the number that has x's bytes in network order in memory.
func bigEndian16(x uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, x))
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
	{nodeSgCounterSG_COUNT_AUDIT, "audited", false, "would have been denied, but for `mode: audit`"},
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
	{nodeSgCounterSG_DROP_POLICY_EGRESS, "policy_egress", true, "no rule of the container lets it out"},
	{nodeSgCounterSG_DROP_POLICY_INGRESS, "policy_ingress", true, "no rule of the receiver lets it in"},
	{nodeSgCounterSG_DROP_PROCESS, "process", true, "socket of an executable that may have none"},
	{nodeSgCounterSG_DROP_UNIX, "unix", true, "UNIX socket that no rule lets it reach"},
	{nodeSgCounterSG_DROP_STRANGER, "stranger", true, "process of another container that moved into this cgroup"},
	{nodeSgCounterSG_DROP_TLS_KEYS, "tls_keys", true, "TLS keys that no relay could take"},
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

// AccelCounterInfo describes one counter of accelerated connections.
type AccelCounterInfo struct {
	Name  string
	Plain bool // counts what goes through TCP, for one reason
	Help  string
}

var accelCounterInfos = [...]AccelCounterInfo{
	nodeSgAccelCounterSG_ACCEL_CONNECTIONS:  {"connections", false, "connections that began accelerated"},
	nodeSgAccelCounterSG_ACCEL_MESSAGES:     {"messages", false, "sent past TCP"},
	nodeSgAccelCounterSG_ACCEL_BYTES:        {"bytes", false, "sent past TCP"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_EARLY:  {"early", true, "sent before the other end was there"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_UNREAD: {"unread", true, "too much waits for the other end to read"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_OPTION: {"option", true, "a socket option that only TCP keeps"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_KTLS:   {"ktls", true, "the container uses TLS in the kernel"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_PEER:   {"peer", true, "the container at the other end is not accelerated"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_FULL:   {"full", true, "no room in a map"},
	nodeSgAccelCounterSG_ACCEL_PLAIN_GONE:   {"gone", true, "an end has closed"},
}

// AccelCounterInfos returns what each counter of accelerated connections is, by its place.
func AccelCounterInfos() []AccelCounterInfo { return accelCounterInfos[:] }
