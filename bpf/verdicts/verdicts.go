// SPDX-License-Identifier: Apache-2.0

package verdicts

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The structs and numbers of src/verdict.h, src/common.h and the test object,
// generated.
type (
	Action      = verdictsSgAction
	Addr        = verdictsSgAddr
	Ask         = verdictsSgAsk
	Case        = verdictsSgCase
	Container   = verdictsSgContainer
	Counter     = verdictsSgCounter
	End         = verdictsSgEnd
	Flow        = verdictsSgFlow
	Inside      = verdictsSgInside
	InsideQuery = verdictsSgInsideQuery
	Outside     = verdictsSgOutside
	Policy      = verdictsSgPolicy
	Ports       = verdictsSgPorts
	Query       = verdictsSgQuery
	Role        = verdictsSgRole
	Sock        = verdictsSgSock
	Steer       = verdictsSgSteer
	View        = verdictsSgView
)

// What a verdict may say.
const (
	Deny        = verdictsSgActionSG_DENY
	Allow       = verdictsSgActionSG_ALLOW
	Redirect    = verdictsSgActionSG_REDIRECT
	RedirectDNS = verdictsSgActionSG_REDIRECT_DNS

	InsideAllow   = verdictsSgInsideSG_INSIDE_ALLOW
	InsideEgress  = verdictsSgInsideSG_INSIDE_EGRESS
	InsideIngress = verdictsSgInsideSG_INSIDE_INGRESS

	SteerNone     = verdictsSgSteerSG_STEER_NONE
	SteerInbound  = verdictsSgSteerSG_STEER_INBOUND
	SteerOutbound = verdictsSgSteerSG_STEER_OUTBOUND
	SteerRefuse   = verdictsSgSteerSG_STEER_REFUSE
	SteerTLS      = verdictsSgSteerSG_STEER_TLS
)

// Judge runs the functions. The caller owns it until Close.
type Judge struct{ coll *ebpf.Collection }

// Load loads the test object on the maps of a node, by their names, for the
// pod with this cookie. The maps stay the caller's.
func Load(node map[string]*ebpf.Map, cookie uint64) (*Judge, error) {
	spec, err := loadVerdicts()
	if err != nil {
		return nil, fmt.Errorf("parse test object: %w", err)
	}
	// skb.h and device.h bring programs that are not for here.
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return strings.HasPrefix(name, "sg_") })
	replace := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") || name == verdictsMapAsks || name == verdictsMapViews {
			continue
		}
		m, ok := node[name]
		if !ok {
			return nil, fmt.Errorf("load test object: the node has no map %s", name)
		}
		replace[name] = m
	}
	if err := spec.Variables[verdictsVarPacketCookie].Set(cookie); err != nil {
		return nil, fmt.Errorf("set cookie: %w", err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load test object: %w", err)
	}
	return &Judge{coll}, nil
}

// Close closes the descriptors.
func (j *Judge) Close() { j.coll.Close() }

// Functions returns the names that Run takes, sorted.
func (j *Judge) Functions() []string {
	var names []string
	for name, p := range j.coll.Programs {
		if p.Type() == ebpf.Syscall {
			names = append(names, strings.TrimPrefix(name, "judge_"))
		}
	}
	slices.Sort(names)
	return names
}

// Run runs the function sg_<name> or sg_verdict_<name> on c, which holds its
// arguments and then its answer.
func (j *Judge) Run(name string, c *Case) error {
	p, ok := j.coll.Programs["judge_"+name]
	if !ok || p.Type() != ebpf.Syscall {
		return fmt.Errorf("run function: there is no %s", name)
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
	if _, err := p.Run(&ebpf.RunOptions{Context: b, ContextOut: b}); err != nil {
		return fmt.Errorf("run function %s: %w", name, err)
	}
	return nil
}

// nothing is a frame of no protocol, on which the programs run that look at none.
var nothing = make([]byte, 64)

// Ask asks the maps of the node by sg_<name> or sg_<name>_of. a holds the
// question and then the answer.
func (j *Judge) Ask(name string, a *Ask) error {
	p, ok := j.coll.Programs["ask_"+name]
	if !ok {
		return fmt.Errorf("ask: there is no %s", name)
	}
	m := j.coll.Maps[verdictsMapAsks]
	if err := m.Put(uint32(0), a); err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	if _, err := p.Run(&ebpf.RunOptions{Data: nothing}); err != nil {
		return fmt.Errorf("ask %s: %w", name, err)
	}
	if err := m.Lookup(uint32(0), a); err != nil {
		return fmt.Errorf("read answer of %s: %w", name, err)
	}
	return nil
}

// Packet parses a frame, and judges it as one that a registered container sends,
// from a socket with these flags, and as one that it gets, on lo or on another
// device. In it are the answers alone.
func (j *Judge) Packet(frame []byte, cgroup uint64, loopback bool, flags uint32) (View, error) {
	if err := j.Expect(cgroup, loopback, flags); err != nil {
		return View{}, err
	}
	if _, err := j.coll.Programs[verdictsProgJudgePacket].Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return View{}, fmt.Errorf("judge packet: %w", err)
	}
	return j.Seen()
}

// Expect says whose the next packet is that the program of OnDevice sees.
func (j *Judge) Expect(cgroup uint64, loopback bool, flags uint32) error {
	v := View{CgroupId: cgroup, SockFlags: flags}
	if loopback {
		v.LoopbackDevice = 1
	}
	if err := j.coll.Maps[verdictsMapViews].Put(uint32(0), &v); err != nil {
		return fmt.Errorf("judge packet: %w", err)
	}
	return nil
}

// OnDevice returns the program of Packet, for a device: a packet has a socket
// there. It is the Judge's.
func (j *Judge) OnDevice() *ebpf.Program { return j.coll.Programs[verdictsProgJudgePacket] }

// Seen returns what it made of the packet.
func (j *Judge) Seen() (v View, err error) {
	if err := j.coll.Maps[verdictsMapViews].Lookup(uint32(0), &v); err != nil {
		return v, fmt.Errorf("read packet: %w", err)
	}
	v.CgroupId, v.LoopbackDevice, v.SockFlags = 0, 0, 0
	return v, nil
}

// Orphan returns what a device program says to a frame that has no socket.
func (j *Judge) Orphan(frame []byte) (int32, error) {
	ret, err := j.coll.Programs[verdictsProgJudgeOrphan].Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return 0, fmt.Errorf("judge packet: %w", err)
	}
	return int32(ret), nil
}

// Kernel returns what a device program says to a frame of a socket that is the
// kernel's own, of a pod that map pods must have.
func (j *Judge) Kernel(frame []byte) (int32, error) {
	ret, err := j.coll.Programs[verdictsProgJudgeKernel].Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return 0, fmt.Errorf("judge packet: %w", err)
	}
	return int32(ret), nil
}

// SendOrphan sends a frame that has no socket on lo of the calling thread's
// network namespace, and returns what sending it said: 0 if it went.
func (j *Judge) SendOrphan(frame []byte) (int32, error) {
	ret, err := j.coll.Programs[verdictsProgSendOrphan].Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		return 0, fmt.Errorf("send packet: %w", err)
	}
	return int32(ret), nil
}

// Costs are what Cost measures: what an event costs while nobody reads, and the counting of a flow that is known, which
// goes on always.
var Costs = []string{"look", "flow"}

// Cost returns what it costs once, in nanoseconds: the mean of 64 times repeat runs, without what an empty program
// costs. A flow is counted in the maps, for the pod's cookie.
func (j *Judge) Cost(of string, repeat int) (float64, error) {
	var took [2]time.Duration
	for i, name := range []string{"nothing", of} {
		p, ok := j.coll.Programs["cost_"+name]
		if !ok {
			return 0, fmt.Errorf("measure cost: there is no %s", name)
		}
		ret, d, err := p.Benchmark(nothing, repeat, nil)
		if err != nil {
			return 0, fmt.Errorf("measure cost of %s: %w", name, err)
		}
		if ret != 0 {
			return 0, fmt.Errorf("measure cost of %s: somebody reads", name)
		}
		took[i] = d
	}
	return float64(took[1]-took[0]) / float64(verdictsSgCostSG_COST_TIMES), nil
}

// SeeHash returns a program that notes the hash of packets, for a device. It is
// the Judge's.
func (j *Judge) SeeHash() *ebpf.Program { return j.coll.Programs[verdictsProgSeeHash] }

// Hash returns the hash of the last packet that it saw.
func (j *Judge) Hash() (hash uint32, err error) {
	if err := j.coll.Variables[verdictsVarHashSeen].Get(&hash); err != nil {
		return 0, fmt.Errorf("read hash: %w", err)
	}
	return hash, nil
}

// Enum returns the values of an enum of the sources.
func Enum(name string) (map[string]uint64, error) {
	spec, err := loadVerdicts()
	if err != nil {
		return nil, fmt.Errorf("parse test object: %w", err)
	}
	var e *btf.Enum
	if err := spec.Types.TypeByName(name, &e); err != nil {
		return nil, fmt.Errorf("find enum %s: %w", name, err)
	}
	values := map[string]uint64{}
	for _, v := range e.Values {
		values[v.Name] = v.Value
	}
	return values, nil
}
