// SPDX-License-Identifier: Apache-2.0

package verdicts

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
)

// The structs and numbers of src/verdict.h and of the test object, generated.
type (
	Action    = verdictsSgAction
	Addr      = verdictsSgAddr
	Case      = verdictsSgCase
	Container = verdictsSgContainer
	Counter   = verdictsSgCounter
	Flow      = verdictsSgFlow
	Pod       = verdictsSgPod
	Ports     = verdictsSgPorts
	Role      = verdictsSgRole
	Rule      = verdictsSgRule
	RulePort  = verdictsSgRulePort
	Proto     = verdictsSgProto
	Seen      = verdictsSgSeen
	Sock      = verdictsSgSock
	Steer     = verdictsSgSteer
)

// What a verdict may say.
const (
	Deny        = verdictsSgActionSG_DENY
	Allow       = verdictsSgActionSG_ALLOW
	Redirect    = verdictsSgActionSG_REDIRECT
	RedirectDNS = verdictsSgActionSG_REDIRECT_DNS

	SteerNone     = verdictsSgSteerSG_STEER_NONE
	SteerInbound  = verdictsSgSteerSG_STEER_INBOUND
	SteerOutbound = verdictsSgSteerSG_STEER_OUTBOUND
	SteerRefuse   = verdictsSgSteerSG_STEER_REFUSE
)

// Judge runs the functions. The caller owns it until Close.
type Judge struct {
	coll *ebpf.Collection
	seen *ebpf.Variable
}

// Load loads the test object on the maps of a node, by their names, for the
// pod with this cookie. The maps stay the caller's.
func Load(node map[string]*ebpf.Map, cookie uint64) (*Judge, error) {
	spec, err := loadVerdicts()
	if err != nil {
		return nil, fmt.Errorf("parse test object: %w", err)
	}
	// device.h brings programs that are not for here.
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return strings.HasPrefix(name, "sg_") })
	replace := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if strings.HasPrefix(name, ".") {
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
	return &Judge{coll, coll.Variables[verdictsVarSeen]}, nil
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

// Packet parses a frame, and looks its ends up.
func (j *Judge) Packet(frame []byte) (Seen, error) {
	var s Seen
	if _, err := j.coll.Programs[verdictsProgJudgePacket].Run(&ebpf.RunOptions{Data: frame}); err != nil {
		return s, fmt.Errorf("parse packet: %w", err)
	}
	if err := j.seen.Get(&s); err != nil {
		return s, fmt.Errorf("read packet: %w", err)
	}
	return s, nil
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
