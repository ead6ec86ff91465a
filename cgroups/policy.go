// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// A policy in the kernel is a revision: entries of maps policies, subjects,
// prefixes, rules and rule_info that never change. A slot points to the revision
// that holds, and each pod to a slot. To change a policy is to write another
// revision and to store its number in the slot, one word, so that no packet
// meets half a policy.

// Source says where a policy was read.
type Source struct {
	Place       string // file:line, for people
	Fingerprint uint64 // of the directory then (policy.Fingerprint)
}

// lastRevision is the slot that has the last revision given, and no policy.
const lastRevision uint32 = 0

// applied is a policy that the kernel has.
type applied struct {
	slot  uint32
	info  bpf.PolicyInfo
	entry bpf.Policy
}

// appliedPolicy returns the policy of this name, or nil.
func (s *Store) appliedPolicy(name string) (*applied, error) {
	var slot uint32
	var info bpf.PolicyInfo
	it := s.maps.PolicyInfo.Iterate()
	for it.Next(&slot, &info) {
		if bpf.CString(info.Name[:]) == name {
			a, err := s.policyAt(slot)
			return &a, err
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	return nil, nil
}

// appliedPolicies returns all of them, by slot.
func (s *Store) appliedPolicies() ([]applied, error) {
	slots, err := keysOf[uint32](s.maps.PolicyInfo)
	if err != nil {
		return nil, err
	}
	slices.Sort(slots)
	all := make([]applied, 0, len(slots))
	for _, slot := range slots {
		a, err := s.policyAt(slot)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

func (s *Store) policyAt(slot uint32) (applied, error) {
	a := applied{slot: slot}
	if err := s.maps.PolicyInfo.Lookup(slot, &a.info); err != nil {
		return a, fmt.Errorf("look up policy in slot %d: %w", slot, err)
	}
	if err := s.maps.Policies.Lookup(a.info.Revision, &a.entry); err != nil {
		return a, fmt.Errorf("look up policy %s: %w", bpf.CString(a.info.Name[:]), err)
	}
	var holds uint32
	if err := s.maps.PolicySlots.Lookup(slot, &holds); err != nil {
		return a, fmt.Errorf("look up what holds in slot %d: %w", slot, err)
	}
	if holds != a.info.Revision {
		// Whoever changed the policy was killed before it held: what is said of
		// it is true of no policy, so that it is applied again.
		a.info.Digest, a.info.Fingerprint = 0, 0
	}
	return a, nil
}

// sweepRevisions removes what processes left that were killed while they changed
// a policy. The entry in map policies is the first that they make of a revision,
// and the last that they delete.
func (s *Store) sweepRevisions() error {
	have, err := keysOf[uint32](s.maps.Policies)
	if err != nil {
		return err
	}
	slots, err := keysOf[uint32](s.maps.PolicyInfo)
	if err != nil {
		return err
	}
	used := make(map[uint32]bool)
	for _, slot := range slots {
		var info bpf.PolicyInfo
		var holds uint32
		if err := errors.Join(s.maps.PolicyInfo.Lookup(slot, &info), s.maps.PolicySlots.Lookup(slot, &holds)); err != nil {
			return fmt.Errorf("look up policy in slot %d: %w", slot, err)
		}
		used[info.Revision], used[holds] = true, true
	}
	var errs []error
	for _, rev := range have {
		if !used[rev] { // and no slot does, so that no program reads it
			errs = append(errs, s.deleteRevision(&bpf.PolicyInfo{Revision: rev, Nsubjects: 1, Nprefixes: 1, Nrules: 1, Ninfos: 1}))
		}
	}
	return errors.Join(errs...)
}

// digest tells two compiled policies apart.
func digest(c *policy.Compiled) (uint64, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return 0, fmt.Errorf("digest policy %s: %w", c.Name, err)
	}
	sum := sha256.Sum256(b)
	return binary.NativeEndian.Uint64(sum[:]), nil
}

// usePolicy returns the policy of c's name as the kernel has it, after it was
// brought in line with c. Running containers that are under it are taken along.
func (s *Store) usePolicy(c *policy.Compiled, src Source) (*applied, error) {
	sum, err := digest(c)
	if err != nil {
		return nil, err
	}
	have, err := s.appliedPolicy(c.Name)
	if err != nil {
		return nil, err
	}
	if have != nil && have.info.Digest == sum {
		return have, s.touchPolicy(have, src)
	}
	if err := s.prepareUnix(c); err != nil {
		return nil, fmt.Errorf("policy %s: %w", c.Name, err)
	}
	next, err := s.putRevision(c, sum, src)
	if err != nil {
		return nil, fmt.Errorf("write policy %s: %w", c.Name, err)
	}
	if have != nil {
		next.slot = have.slot
		return next, s.replacePolicy(have, next, c)
	}
	if next.slot, err = s.freePolicySlot(); err == nil {
		err = s.setSlot(next)
	}
	if err != nil {
		return nil, errors.Join(err, s.deleteRevision(&next.info))
	}
	return next, nil
}

// Knows tells whether the kernel has the policy of this name so that a container
// can be put under it as it is, and whether it was read from a directory with
// this fingerprint. One that names executables has to be read again: which files
// those are differs between containers.
func (s *Store) Knows(name string, fingerprint uint64) (known, same bool, err error) {
	a, err := s.appliedPolicy(name)
	if err != nil || a == nil || a.entry.Flags&bpf.PolicyFiles != 0 {
		return false, false, err
	}
	return true, a.info.Fingerprint == fingerprint, nil
}

// Apply makes c hold for all pods that are under the policy of its name. It
// returns how many there are; where there is none, the kernel needs nothing.
func (s *Store) Apply(c *policy.Compiled, src Source) (pods int, err error) {
	have, err := s.appliedPolicy(c.Name)
	if err != nil || have == nil {
		return 0, err
	}
	under, err := s.podsByPolicy()
	if err != nil {
		return 0, err
	}
	_, err = s.usePolicy(c, src)
	return len(under[have.slot]), err
}

// ApplyPolicy applies to what is loaded at state, if anything is. It must run in
// the node's network namespace, whose addresses are entity host.
func ApplyPolicy(state string, c *policy.Compiled, src Source) (pods int, err error) {
	err = IfLoaded(state, func(s *Store) (err error) {
		pods, err = s.Apply(c, src)
		return err
	})
	return pods, err
}

// podsByPolicy returns the pods that are under each policy, by its slot.
func (s *Store) podsByPolicy() (map[uint32][]uint64, error) {
	cookies, err := keysOf[uint64](s.maps.Pods)
	if err != nil {
		return nil, err
	}
	under := make(map[uint32][]uint64)
	for _, c := range cookies {
		var p bpf.Pod
		if err := s.maps.Pods.Lookup(c, &p); err != nil {
			return nil, fmt.Errorf("look up pod %d: %w", c, err)
		}
		under[p.Policy] = append(under[p.Policy], c)
	}
	return under, nil
}

// touchPolicy notes that what was read again is the same.
func (s *Store) touchPolicy(a *applied, src Source) error {
	if a.info.Fingerprint == src.Fingerprint {
		return nil
	}
	a.info.Fingerprint = src.Fingerprint
	bpf.SetCString(a.info.Source[:], src.Place)
	if err := s.maps.PolicyInfo.Put(a.slot, a.info); err != nil {
		return fmt.Errorf("put policy info: %w", err)
	}
	return nil
}

func (s *Store) freePolicySlot() (uint32, error) {
	used, err := keysOf[uint32](s.maps.PolicyInfo)
	if err != nil {
		return 0, err
	}
	for slot := lastRevision + 1; slot < s.maps.PolicySlots.MaxEntries(); slot++ {
		if !slices.Contains(used, slot) {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("pods are under %d policies, which is the limit", len(used))
}

// setSlot makes a revision the one that holds.
func (s *Store) setSlot(a *applied) error {
	if err := s.maps.PolicyInfo.Put(a.slot, a.info); err != nil {
		return fmt.Errorf("put policy info: %w", err)
	}
	return s.storeSlot(a.slot, a.entry.Revision)
}

// storeSlot stores one aligned word in the memory of the map: a program reads
// the old one or the new one.
func (s *Store) storeSlot(slot, revision uint32) error {
	m := s.maps.PolicySlots
	size := int(m.MaxEntries()) * 8 // array elements are rounded up to 8 bytes
	mem, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map policy slots: %w", err)
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&mem[slot*8])), revision)
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("unmap policy slots: %w", err)
	}
	return nil
}

// putRevision writes a revision that nothing points to yet, all or nothing.
func (s *Store) putRevision(c *policy.Compiled, sum uint64, src Source) (_ *applied, err error) {
	if err := s.sweepRevisions(); err != nil {
		return nil, err
	}
	var last uint32
	if err := s.maps.PolicySlots.Lookup(lastRevision, &last); err != nil {
		return nil, fmt.Errorf("read last revision: %w", err)
	}
	rev := last + 1
	// First of all: nobody goes on with what a process leaves that is killed.
	if err := s.storeSlot(lastRevision, rev); err != nil {
		return nil, err
	}
	entry, err := s.policyEntry(c, rev)
	if err != nil {
		return nil, err
	}
	a := &applied{entry: entry, info: bpf.PolicyInfo{
		Revision: rev, Init: uint8(c.Init), Accelerate: uint8(c.Accelerate), Digest: sum, Fingerprint: src.Fingerprint, AppliedNs: uint64(time.Now().UnixNano()),
		Nprefixes: uint32(len(c.Prefixes)), Nrules: uint32(len(c.Entries)), Nsubjects: uint32(len(c.Subjects)), Ninfos: uint32(len(c.Rules)),
	}}
	bpf.SetCString(a.info.Name[:], c.Name)
	bpf.SetCString(a.info.Source[:], src.Place)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.deleteRevision(&a.info))
		}
	}()
	if err := s.maps.Policies.Put(rev, entry); err != nil {
		return nil, fmt.Errorf("put policy: %w", err)
	}
	if err := s.putTables(c, rev); err != nil {
		return nil, err
	}
	return a, nil
}

// policyEntry translates what a policy says besides its tables.
func (s *Store) policyEntry(c *policy.Compiled, rev uint32) (e bpf.Policy, err error) {
	e = bpf.Policy{Revision: rev, Outbound: c.Outbound, Inbound: c.Inbound, Dns: c.DNS, Tls: c.TLSPort}
	if e.Flags, err = s.accelerationFlags(c.Accelerate); err != nil {
		return e, err
	}
	if c.NonTCP == policy.ActionAllow {
		e.Flags |= bpf.PolicyNonTCP
	}
	if c.AdminCapabilities == policy.ActionAllow {
		e.Flags |= bpf.PolicyAdmin
	}
	if c.Getsockname == policy.SockNameOriginal {
		e.Flags |= bpf.PolicySockName
	}
	if c.Mode == policy.ModeAudit {
		e.Flags |= bpf.PolicyAudit
	}
	if c.TLS == policy.TLSDeferred {
		e.Flags |= bpf.PolicyTLSDeferred
	}
	if len(c.Prefixes) > 0 {
		e.Flags |= bpf.PolicyPrefixes
	}
	for _, sub := range c.Subjects {
		if sub.Flags&policy.Ruled != 0 {
			e.Flags |= bpf.PolicyRuled
		}
		if sub.Flags&policy.HasProcesses != 0 {
			e.Flags |= bpf.PolicyFiles
		}
		if sub.Container != "" {
			e.Flags |= bpf.PolicyNames
			continue
		}
		e.Subjects[sub.ID] = subjectFlags(sub.Flags)
	}
	for _, r := range c.Entries {
		switch {
		case r.Peer == policy.PeerWorld, r.Peer == policy.PeerHost:
			e.Flags |= bpf.PolicyWorld
		case policy.IsName(r.Peer):
			e.Flags |= bpf.PolicyNames
		}
	}
	if len(c.Reserved) > bpf.MaxReserved {
		return e, fmt.Errorf("it reserves %d ranges of ports, at most %d can be enforced", len(c.Reserved), bpf.MaxReserved)
	}
	for i, r := range c.Reserved {
		e.Reserved[i] = bpf.Ports{Lo: r.First, Hi: r.Last}
	}
	e.Nreserved = uint16(len(c.Reserved))
	return e, nil
}

// flagBits pairs what policy and programs call the kinds of a subject's rules.
func flagBits() map[policy.SubjectFlags]uint16 {
	return map[policy.SubjectFlags]uint16{
		policy.Ruled:        bpf.SubjectRuled,
		policy.HasICMP:      bpf.SubjectICMP,
		policy.HasICMPv6:    bpf.SubjectICMPv6,
		policy.HasSCTP:      bpf.SubjectSCTP,
		policy.HasProcesses: bpf.SubjectProcesses,
		policy.HasUnix:      bpf.SubjectUnix,
	}
}

func subjectFlags(f policy.SubjectFlags) (out uint16) {
	for flag, bit := range flagBits() {
		if f&flag != 0 {
			out |= bit
		}
	}
	return out
}

// policyFlags undoes subjectFlags.
func policyFlags(b uint16) (out policy.SubjectFlags) {
	for flag, bit := range flagBits() {
		if b&bit != 0 {
			out |= flag
		}
	}
	return out
}

func (s *Store) putTables(c *policy.Compiled, rev uint32) error {
	for _, sub := range c.Subjects {
		if sub.Container == "" {
			continue
		}
		key := bpf.SubjectKey{Revision: rev, Subject: sub.ID}
		if err := s.maps.Subjects.Put(key, uint32(subjectFlags(sub.Flags))); err != nil {
			return fmt.Errorf("put subject %s: %w", sub.Container, err)
		}
	}
	if err := s.putUnix(c, rev); err != nil {
		return err
	}
	prefixes, classes := make([]bpf.PrefixKey, len(c.Prefixes)), make([]uint32, len(c.Prefixes))
	for i, p := range c.Prefixes {
		prefixes[i], classes[i] = bpf.NewPrefixKey(rev, p.Prefix), p.Class
	}
	if err := putAll(s.maps.Prefixes, prefixes, classes); err != nil {
		return err
	}
	rules, numbers := make([]bpf.RuleKey, len(c.Entries)), make([]uint32, len(c.Entries))
	for i, e := range c.Entries {
		rules[i], numbers[i] = bpf.NewRuleKey(bpf.RuleFor{
			Revision: rev, Subject: e.Subject, Peer: e.Peer, Dir: uint8(e.Dir),
			Proto: e.Proto, AnyProto: e.AnyProto, Port: e.Port, PortBits: e.PortBits,
		}), uint32(e.Rule)
	}
	if err := putAll(s.maps.Rules, rules, numbers); err != nil {
		return err
	}
	if err := s.putTLS(c, rev); err != nil {
		return err
	}
	keys, infos := make([]bpf.RuleInfoKey, len(c.Rules)), make([]bpf.RuleInfo, len(c.Rules))
	for i, r := range c.Rules {
		keys[i] = bpf.RuleInfoKey{Revision: rev, Rule: uint32(i + 1)}
		bpf.SetCString(infos[i].Path[:], r.Path)
		bpf.SetCString(infos[i].Text[:], r.Text)
	}
	return putAll(s.maps.RuleInfo, keys, infos)
}

// putAll writes many entries by few system calls.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("put %d entries into %s: %w", len(keys), m, err)
	}
	return nil
}

// deleteRevision removes all of a revision that no slot points to.
func (s *Store) deleteRevision(info *bpf.PolicyInfo) error {
	rev := info.Revision
	var errs []error
	if info.Nsubjects > 0 {
		errs = append(errs, deleteKeys(s.maps.Subjects, func(k *bpf.SubjectKey) bool { return k.Revision == rev }),
			deleteKeys(s.maps.UnixRules, func(k *bpf.UnixKey) bool { return k.Revision == rev }))
	}
	if info.Nprefixes > 0 {
		errs = append(errs, deleteMany[bpf.PrefixKey, uint32](s.maps.Prefixes, func(k *bpf.PrefixKey) bool { return k.Revision == rev }))
	}
	if info.Nrules > 0 {
		errs = append(errs, deleteMany[bpf.RuleKey, uint32](s.maps.Rules, func(k *bpf.RuleKey) bool { return k.Revision == rev }))
	}
	if info.Ninfos > 0 {
		errs = append(errs, deleteMany[bpf.RuleInfoKey, bpf.RuleInfo](s.maps.RuleInfo, func(k *bpf.RuleInfoKey) bool { return k.Revision == rev }))
	}
	errs = append(errs, s.deleteTLS(rev))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := s.maps.Policies.Delete(rev); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete policy: %w", err)
	}
	return nil
}

// gracePeriod returns when every program that may have read a slot before has
// ended: the system call waits for an RCU grace period (membarrier(2)).
func gracePeriod() error {
	const membarrierCmdGlobal = 1
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierCmdGlobal, 0, 0)
	if errno == 0 {
		return nil
	}
	if err := gracePeriodByMap(); err != nil {
		return fmt.Errorf("wait for a grace period: membarrier: %w; by a map of maps: %w", errno, err)
	}
	return nil
}

// gracePeriodByMap is for kernels that isolate CPUs by nohz_full, where membarrier
// refuses: to change a map of maps waits too, so that no program has the old one
// (maybe_wait_bpf_programs in kernel/bpf/syscall.c).
func gracePeriodByMap() (err error) {
	inner := ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	m, err := ebpf.NewMap(&inner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: &inner})
	if err != nil {
		return err
	}
	return errors.Join(outer.Put(uint32(0), m), outer.Close())
}

// dropPolicy forgets the policy in a slot that no pod points to.
func (s *Store) dropPolicy(slot uint32) error {
	a, err := s.policyAt(slot)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.storeSlot(slot, 0); err != nil {
		return err
	}
	if err := gracePeriod(); err != nil {
		return err
	}
	if err := s.deleteRevision(&a.info); err != nil {
		return err
	}
	if err := s.maps.PolicyInfo.Delete(slot); err != nil {
		return fmt.Errorf("delete policy info: %w", err)
	}
	return nil
}

// dropUnusedPolicies forgets those that no pod is under.
func (s *Store) dropUnusedPolicies() error {
	slots, err := keysOf[uint32](s.maps.PolicyInfo)
	if err != nil {
		return err
	}
	under, err := s.podsByPolicy()
	if err != nil {
		return err
	}
	for _, slot := range slots {
		if len(under[slot]) > 0 {
			continue
		}
		if err := s.dropPolicy(slot); err != nil {
			return err
		}
	}
	return nil
}
