// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// Hook is a program and where it is attached.
type Hook struct {
	Program string // name in the object
	Attach  ebpf.AttachType
}

// ContainerHooks returns what is attached to the cgroup of a container of this
// role under policy: the hooks that do something for it, since each costs its
// start and its traffic. Under a policy with rules every container has those that
// judge, the receiver for the sender too.
func ContainerHooks(role Role, policy Policy) []Hook {
	hooks := []Hook{{nodeProgSgSockCreate, ebpf.AttachCGroupInetSockCreate}}
	switch role {
	case RoleSidecar:
		hooks = append(hooks,
			Hook{nodeProgSgSockops, ebpf.AttachCGroupSockOps},
			Hook{nodeProgSgGetsockopt, ebpf.AttachCGroupGetsockopt})
		hooks = append(hooks, accelerateHooks(policy)...)
		if policy.Flags&PolicySockName != 0 {
			hooks = append(hooks,
				Hook{nodeProgSgGetsockname4, ebpf.AttachCgroupInet4GetSockname},
				Hook{nodeProgSgGetsockname6, ebpf.AttachCgroupInet6GetSockname})
		}
		if policy.Tls != 0 { // the relay's port is not its own either
			hooks = append(hooks, bindHooks()...)
		}
		if policy.Flags&PolicyTLSDeferred != 0 && policy.Flags&(PolicyRuled|PolicyAudit) == 0 {
			hooks = append(hooks, connectHooks()...)
		}
	case RoleExempt:
		hooks = append(hooks, bindHooks()...)
	default:
		hooks = append(hooks, bindHooks()...)
		hooks = append(hooks,
			Hook{nodeProgSgGetpeername4, ebpf.AttachCgroupInet4GetPeername},
			Hook{nodeProgSgGetpeername6, ebpf.AttachCgroupInet6GetPeername},
			Hook{nodeProgSgSockops, ebpf.AttachCGroupSockOps})
		hooks = append(hooks, accelerateHooks(policy)...)
		hooks = append(hooks, judgeHooks()...)
		if policy.Dns != 0 {
			hooks = append(hooks,
				Hook{nodeProgSgRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg},
				Hook{nodeProgSgRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg})
		}
		if policy.Tls != 0 && role == RoleApp {
			hooks = append(hooks, Hook{nodeProgSgTlsSetsockopt, ebpf.AttachCGroupSetsockopt})
		}
		return hooks
	}
	if policy.Flags&(PolicyRuled|PolicyAudit) != 0 { // to know who is at the other end
		hooks = append(hooks, judgeHooks()...)
	}
	return hooks
}

// accelerateHooks see what acceleration must not come in the way of.
func accelerateHooks(policy Policy) []Hook {
	if policy.Flags&PolicyAccelerate == 0 {
		return nil
	}
	return []Hook{{nodeProgSgSetsockopt, ebpf.AttachCGroupSetsockopt}, {nodeProgSgHold, ebpf.AttachCGroupInetIngress}}
}

// bindHooks keep everybody but the sidecar off the sidecar's ports, and all off the relay's.
func bindHooks() []Hook {
	return []Hook{
		{nodeProgSgBind4, ebpf.AttachCGroupInet4Bind},
		{nodeProgSgBind6, ebpf.AttachCGroupInet6Bind},
		{nodeProgSgPostBind4, ebpf.AttachCGroupInet4PostBind},
		{nodeProgSgPostBind6, ebpf.AttachCGroupInet6PostBind},
	}
}

// connectHooks say where a container may connect.
func connectHooks() []Hook {
	return []Hook{{nodeProgSgConnect4, ebpf.AttachCGroupInet4Connect}, {nodeProgSgConnect6, ebpf.AttachCGroupInet6Connect}}
}

// judgeHooks say where a container may connect and send, and what it gets.
func judgeHooks() []Hook {
	return append(connectHooks(), []Hook{
		{nodeProgSgSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		{nodeProgSgSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		{nodeProgSgEgress, ebpf.AttachCGroupInetEgress},
		{nodeProgSgIngress, ebpf.AttachCGroupInetIngress},
	}...)
}

// AllContainerHooks returns every hook that any container may have.
func AllContainerHooks() []Hook {
	all := Policy{Dns: 1, Tls: 1, Flags: PolicySockName | PolicyRuled | PolicyAccelerate}
	hooks := ContainerHooks(RoleApp, all)
	for _, h := range ContainerHooks(RoleSidecar, all) {
		if !slices.Contains(hooks, h) {
			hooks = append(hooks, h)
		}
	}
	return hooks
}

// GuardHooks returns what is attached to the root cgroup, once a node.
func GuardHooks() []Hook {
	return []Hook{
		{nodeProgSgGuardCreate, ebpf.AttachCGroupInetSockCreate},
		{nodeProgSgGuardConnect4, ebpf.AttachCGroupInet4Connect},
		{nodeProgSgGuardConnect6, ebpf.AttachCGroupInet6Connect},
		{nodeProgSgGuardSendmsg4, ebpf.AttachCGroupUDP4Sendmsg},
		{nodeProgSgGuardSendmsg6, ebpf.AttachCGroupUDP6Sendmsg},
		{nodeProgSgGuardBind4, ebpf.AttachCGroupInet4Bind},
		{nodeProgSgGuardBind6, ebpf.AttachCGroupInet6Bind},
	}
}

// EmitProgram tells events of user space: run it with EmitArgs.
const EmitProgram = nodeProgSgEmit

// RelayHooks returns what the TLS relay attaches to its own cgroup.
func RelayHooks() []Hook { return []Hook{{nodeProgSgRelaySockops, ebpf.AttachCGroupSockOps}} }

// MapNames returns the names of all maps, sorted.
func MapNames() []string {
	return []string{
		nodeMapAccelCounters, nodeMapAccelInfo, nodeMapAgents, nodeMapAttachTimes, nodeMapConns, nodeMapContainerInfo, nodeMapContainers, nodeMapCounters,
		nodeMapDeviceProgs, nodeMapEnds, nodeMapEventBudgets, nodeMapEventControl, nodeMapEventRings, nodeMapExecutables, nodeMapFlows, nodeMapHostAddrs, nodeMapIdentity, nodeMapLinks, nodeMapListeners, nodeMapNodeAddrs, nodeMapOrigdst, nodeMapPending, nodeMapPodAddrs, nodeMapPodCounters,
		nodeMapPodInfo, nodeMapPodSlots, nodeMapPods, nodeMapPolicies, nodeMapPolicyInfo, nodeMapPolicySlots,
		nodeMapPrefixes, nodeMapRuleInfo, nodeMapRules, nodeMapSeen, nodeMapSeenUnix, nodeMapSocks, nodeMapSubjects,
		nodeMapTlsPolicies, nodeMapTlsRings, nodeMapTlsTargets, nodeMapUnixRules,
	}
}

// Maps are the maps that user space reads and writes. Whoever got it owns the
// descriptors until Close.
type Maps struct {
	AccelCounters *ebpf.Map `ebpf:"accel_counters"`
	AccelInfo     *ebpf.Map `ebpf:"accel_info"`
	Agents        *ebpf.Map `ebpf:"agents"`
	AttachTimes   *ebpf.Map `ebpf:"attach_times"`
	ContainerInfo *ebpf.Map `ebpf:"container_info"`
	Containers    *ebpf.Map `ebpf:"containers"`
	Counters      *ebpf.Map `ebpf:"counters"`
	DeviceProgs   *ebpf.Map `ebpf:"device_progs"`
	EventBudgets  *ebpf.Map `ebpf:"event_budgets"`
	EventControl  *ebpf.Map `ebpf:"event_control"`
	EventRings    *ebpf.Map `ebpf:"event_rings"`
	Executables   *ebpf.Map `ebpf:"executables"`
	Flows         *ebpf.Map `ebpf:"flows"`
	HostAddrs     *ebpf.Map `ebpf:"host_addrs"`
	Identity      *ebpf.Map `ebpf:"identity"`
	Listeners     *ebpf.Map `ebpf:"listeners"`
	NodeAddrs     *ebpf.Map `ebpf:"node_addrs"`
	Origdst       *ebpf.Map `ebpf:"origdst"`
	Pending       *ebpf.Map `ebpf:"pending"`
	PodAddrs      *ebpf.Map `ebpf:"pod_addrs"`
	PodCounters   *ebpf.Map `ebpf:"pod_counters"`
	PodInfo       *ebpf.Map `ebpf:"pod_info"`
	PodSlots      *ebpf.Map `ebpf:"pod_slots"`
	Pods          *ebpf.Map `ebpf:"pods"`
	Policies      *ebpf.Map `ebpf:"policies"`
	PolicyInfo    *ebpf.Map `ebpf:"policy_info"`
	PolicySlots   *ebpf.Map `ebpf:"policy_slots"`
	Prefixes      *ebpf.Map `ebpf:"prefixes"`
	RuleInfo      *ebpf.Map `ebpf:"rule_info"`
	Rules         *ebpf.Map `ebpf:"rules"`
	Seen          *ebpf.Map `ebpf:"seen"`
	SeenUnix      *ebpf.Map `ebpf:"seen_unix"`
	Socks         *ebpf.Map `ebpf:"socks"`
	Subjects      *ebpf.Map `ebpf:"subjects"`
	TLSPolicies   *ebpf.Map `ebpf:"tls_policies"`
	TLSRings      *ebpf.Map `ebpf:"tls_rings"`
	TLSTargets    *ebpf.Map `ebpf:"tls_targets"`
	UnixRules     *ebpf.Map `ebpf:"unix_rules"`
}

func (m *Maps) fields() map[string]**ebpf.Map {
	return map[string]**ebpf.Map{
		nodeMapAccelCounters: &m.AccelCounters,
		nodeMapAccelInfo:     &m.AccelInfo,
		nodeMapAgents:        &m.Agents,
		nodeMapAttachTimes:   &m.AttachTimes,
		nodeMapContainerInfo: &m.ContainerInfo,
		nodeMapContainers:    &m.Containers,
		nodeMapCounters:      &m.Counters,
		nodeMapDeviceProgs:   &m.DeviceProgs,
		nodeMapEventBudgets:  &m.EventBudgets,
		nodeMapEventControl:  &m.EventControl,
		nodeMapEventRings:    &m.EventRings,
		nodeMapExecutables:   &m.Executables,
		nodeMapFlows:         &m.Flows,
		nodeMapHostAddrs:     &m.HostAddrs,
		nodeMapIdentity:      &m.Identity,
		nodeMapListeners:     &m.Listeners,
		nodeMapNodeAddrs:     &m.NodeAddrs,
		nodeMapOrigdst:       &m.Origdst,
		nodeMapPending:       &m.Pending,
		nodeMapPodAddrs:      &m.PodAddrs,
		nodeMapPodCounters:   &m.PodCounters,
		nodeMapPodInfo:       &m.PodInfo,
		nodeMapPodSlots:      &m.PodSlots,
		nodeMapPods:          &m.Pods,
		nodeMapPolicies:      &m.Policies,
		nodeMapPolicyInfo:    &m.PolicyInfo,
		nodeMapPolicySlots:   &m.PolicySlots,
		nodeMapPrefixes:      &m.Prefixes,
		nodeMapRuleInfo:      &m.RuleInfo,
		nodeMapRules:         &m.Rules,
		nodeMapSeen:          &m.Seen,
		nodeMapSeenUnix:      &m.SeenUnix,
		nodeMapSocks:         &m.Socks,
		nodeMapSubjects:      &m.Subjects,
		nodeMapTlsPolicies:   &m.TLSPolicies,
		nodeMapTlsRings:      &m.TLSRings,
		nodeMapTlsTargets:    &m.TLSTargets,
		nodeMapUnixRules:     &m.UnixRules,
	}
}

// OpenMaps opens every map through open, which gets the map's name.
func OpenMaps(open func(name string) (*ebpf.Map, error)) (*Maps, error) {
	m := new(Maps)
	for name, f := range m.fields() {
		got, err := open(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open map %s: %w", name, err), m.Close())
		}
		*f = got
	}
	return m, nil
}

// Close closes the descriptors.
func (m *Maps) Close() error {
	var errs []error
	for _, f := range m.fields() {
		errs = append(errs, (*f).Close())
	}
	return errors.Join(errs...)
}

// Node is the node object, loaded. The caller owns it until Close.
type Node struct{ *ebpf.Collection }

// LoadNode loads all shared programs and makes new, empty maps. It needs
// CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and Linux 6.1. A verifier error is
// an *ebpf.VerifierError.
func LoadNode() (*Node, error) {
	spec, err := loadNode()
	if err != nil {
		return nil, fmt.Errorf("parse node object: %w", err)
	}
	kernel, err := RunningKernel()
	if err != nil {
		return nil, err
	}
	if kernel.haveKptrs() {
		if err := spec.Variables[nodeVarSgKptrs].Set(uint32(1)); err != nil {
			return nil, fmt.Errorf("set sg_kptrs: %w", err)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load node object: %w", err)
	}
	for i, name := range []string{nodeProgSgDevice, nodeProgSgLoopback, nodeProgSgLoopbackOut} { // enum sg_device_prog
		if err := coll.Maps[nodeMapDeviceProgs].Put(uint32(i), coll.Programs[name]); err != nil {
			coll.Close()
			return nil, fmt.Errorf("put program %s into map %s: %w", name, nodeMapDeviceProgs, err)
		}
	}
	return &Node{coll}, nil
}

// ProgramNames returns the names of the loaded programs, sorted.
func (n *Node) ProgramNames() []string { return slices.Sorted(maps.Keys(n.Programs)) }

// PodPrograms work for the pod that their slot names. The caller owns them
// until Close.
type PodPrograms struct {
	Device      *ebpf.Program `ebpf:"sg_pod_device"`
	Host        *ebpf.Program `ebpf:"sg_pod_host"`
	Loopback    *ebpf.Program `ebpf:"sg_pod_loopback"`
	LoopbackOut *ebpf.Program `ebpf:"sg_pod_loopback_out"`
	Lookup      *ebpf.Program `ebpf:"sg_pod_lookup"`
}

// Fields gives each program by its name in the object.
func (p *PodPrograms) Fields() map[string]**ebpf.Program {
	return map[string]**ebpf.Program{
		podProgSgPodDevice:      &p.Device,
		podProgSgPodHost:        &p.Host,
		podProgSgPodLoopback:    &p.Loopback,
		podProgSgPodLoopbackOut: &p.LoopbackOut,
		podProgSgPodLookup:      &p.Lookup,
	}
}

// LoadPod loads a set of pod programs for a slot, which may be free. They use
// m's maps.
func LoadPod(m *Maps, slot uint32) (*PodPrograms, error) {
	spec, err := loadPod()
	if err != nil {
		return nil, fmt.Errorf("parse pod object: %w", err)
	}
	if err := spec.Variables[podVarSgSlotNumber].Set(slot); err != nil {
		return nil, fmt.Errorf("set slot: %w", err)
	}
	p := new(PodPrograms)
	err = spec.LoadAndAssign(p, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		podMapDeviceProgs:  m.DeviceProgs,
		podMapEventBudgets: m.EventBudgets,
		podMapEventControl: m.EventControl,
		podMapEventRings:   m.EventRings,
		podMapFlows:        m.Flows,
		podMapHostAddrs:    m.HostAddrs,
		podMapListeners:    m.Listeners,
		podMapPodAddrs:     m.PodAddrs,
		podMapPodCounters:  m.PodCounters,
		podMapPodSlots:     m.PodSlots,
		podMapPods:         m.Pods,
		podMapPolicies:     m.Policies,
		podMapPolicySlots:  m.PolicySlots,
		podMapPrefixes:     m.Prefixes,
		podMapRules:        m.Rules,
	}})
	if err != nil {
		return nil, fmt.Errorf("load pod object: %w", err)
	}
	return p, nil
}

// NewSlot returns the value of a slot that works for the pod with this cookie,
// with a random token that nothing in a pod can set. It is never 0, the hash of a
// packet that nothing has hashed.
func NewSlot(cookie uint64) Slot {
	var b [4]byte
	for {
		rand.Read(b[:]) // never fails
		if token := binary.NativeEndian.Uint32(b[:]); token != 0 {
			return Slot{NetnsCookie: cookie, Token: token}
		}
	}
}

// Close closes the descriptors. Attached programs stay with their links.
func (p *PodPrograms) Close() error {
	var errs []error
	for _, f := range p.Fields() {
		errs = append(errs, (*f).Close())
	}
	return errors.Join(errs...)
}
