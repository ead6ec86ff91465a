// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// attachAcceleration gives map ends its program. It is no link, which is newer than
// what 6.4 has: the map keeps the program for as long as it lives.
func attachAcceleration(ends *ebpf.Map, prog *ebpf.Program) error {
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: ends.FD(), Program: prog, Attach: ebpf.AttachSkMsgVerdict})
	if err != nil {
		return fmt.Errorf("attach program %s: %w", accelProgSgMsg, err)
	}
	return nil
}

// Accelerate loads the program of accelerated sockets and attaches it to n's map of
// them, which keeps it. It needs Linux 6.4: a program cannot see before how much
// waits for a slow reader. Without it no socket must get into that map.
func (n *Node) Accelerate() error {
	kernel, err := RunningKernel()
	if err != nil {
		return err
	}
	if !kernel.haveKptrs() {
		return errors.New("needs Linux 6.4")
	}
	spec, err := loadAccel()
	if err != nil {
		return fmt.Errorf("parse acceleration object: %w", err)
	}
	replace := make(map[string]*ebpf.Map)
	for _, name := range []string{accelMapEnds, accelMapLinks, accelMapConns, accelMapAccelCounters} {
		replace[name] = n.Maps[name]
	}
	var a struct {
		Program *ebpf.Program `ebpf:"sg_msg"`
	}
	if err := spec.LoadAndAssign(&a, &ebpf.CollectionOptions{MapReplacements: replace}); err != nil {
		return fmt.Errorf("load acceleration object: %w", err)
	}
	return errors.Join(attachAcceleration(n.Maps[accelMapEnds], a.Program), a.Program.Close())
}

// SelfTest is the program of accelerated sockets with maps of its own. The caller
// owns it until Close, which ends what it accelerates.
type SelfTest struct {
	objects struct {
		Conns    *ebpf.Map     `ebpf:"conns"`
		Counters *ebpf.Map     `ebpf:"accel_counters"`
		Ends     *ebpf.Map     `ebpf:"ends"`
		Joining  *ebpf.Map     `ebpf:"joining"`
		Links    *ebpf.Map     `ebpf:"links"`
		Msg      *ebpf.Program `ebpf:"sg_msg"`
		Join     *ebpf.Program `ebpf:"sg_selftest_join"`
	}
	joined uint32
}

// maxUnreadInTest is little, so that a test of what comes then is short. In bytes.
const maxUnreadInTest = 1 << 18

// LoadSelfTest loads one, with room for n connections.
func LoadSelfTest(n int) (*SelfTest, error) {
	spec, err := loadSelftest()
	if err != nil {
		return nil, fmt.Errorf("parse self-test object: %w", err)
	}
	spec.Maps[selftestMapConns].MaxEntries = uint32(max(n, 64)) // an LRU map is kept in batches
	spec.Maps[selftestMapEnds].MaxEntries = uint32(2 * n)
	if err := spec.Variables[selftestVarSgMaxUnread].Set(int32(maxUnreadInTest)); err != nil {
		return nil, fmt.Errorf("set what may wait: %w", err)
	}
	t := new(SelfTest)
	if err := spec.LoadAndAssign(&t.objects, nil); err != nil {
		return nil, fmt.Errorf("load self-test object: %w", err)
	}
	if err := attachAcceleration(t.objects.Ends, t.objects.Msg); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Join accelerates the connection of two sockets, given by their descriptors: as
// from its first moment on, so nothing may have been sent over it.
func (t *SelfTest) Join(client, server int) error {
	t.joined++
	for side, fd := range []int{client, server} {
		key := ConnKey{Sseq: t.joined, Side: uint32(side)}
		if err := t.objects.Links.Put(int32(fd), key); err != nil {
			return fmt.Errorf("put link: %w", err)
		}
		if err := t.objects.Ends.Put(key, uint64(fd)); err != nil {
			return fmt.Errorf("put end: %w", err)
		}
	}
	if err := t.objects.Joining.Put(uint32(0), ConnKey{Sseq: t.joined}); err != nil {
		return fmt.Errorf("put what to join: %w", err)
	}
	ret, err := t.objects.Join.Run(&ebpf.RunOptions{Data: make([]byte, 64)}) // a packet that nobody looks at
	if err == nil && ret != 0 {
		err = errors.New("a socket is not in its map")
	}
	if err != nil {
		return fmt.Errorf("join connection: %w", err)
	}
	return nil
}

// Close closes the descriptors.
func (t *SelfTest) Close() error {
	o := &t.objects
	return errors.Join(o.Conns.Close(), o.Counters.Close(), o.Ends.Close(), o.Joining.Close(), o.Links.Close(), o.Msg.Close(), o.Join.Close())
}
