// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// member is a running container that is under a policy.
type member struct {
	entry bpf.Container
	info  bpf.ContainerInfo
}

func (m *member) String() string { return infoName(m.info) }

// root is its root directory, as this process can reach it.
func (m *member) root() string { return rootOf(int(m.info.Pid)) }

// members returns the living containers of the pods whose policy is in slot.
func (s *Store) members(slot uint32) ([]member, error) {
	var list []member
	ids, err := keysOf[uint64](s.maps.Containers)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		var m member
		var pod bpf.Pod
		if err := s.maps.Containers.Lookup(id, &m.entry); err != nil {
			return nil, fmt.Errorf("look up container of cgroup %d: %w", id, err)
		}
		err := s.maps.Pods.Lookup(m.entry.NetnsCookie, &pod)
		if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && pod.Policy != slot {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up pod: %w", err)
		}
		alive, err := s.mount.Alive(id)
		if err != nil {
			return nil, err
		}
		if !alive {
			continue
		}
		if m.info, err = s.info(id); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// replacePolicy makes next hold where have did, for all running containers at
// once: what they need for it is attached before, what they had for the other is
// taken away after. On error nothing has changed.
func (s *Store) replacePolicy(have, next *applied, c *policy.Compiled) error {
	list, err := s.members(have.slot)
	if err != nil {
		return errors.Join(err, s.deleteRevision(&next.info))
	}
	undo, err := s.prepare(list, have, next, c)
	if err == nil {
		err = s.setSlot(next)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("apply policy %s: %w", c.Name, explain(err)), undo(), s.deleteRevision(&next.info))
	}
	// From here on next holds. What fails now leaves too much, not too little.
	errs := []error{s.setInitRoles(list, policy.InitMode(next.info.Init)), gracePeriod(), s.deleteRevision(&have.info)}
	for i := range list {
		errs = append(errs, s.trim(&list[i], next))
		if have.entry.Flags&bpf.PolicyFiles != 0 {
			errs = append(errs, s.trimExecutables(list[i].entry, c, list[i].root()))
		}
	}
	return errors.Join(append(errs, s.closeDenied(next, list, false))...)
}

// prepare gives each container what it needs under pol and had not under have.
// undo takes it away.
func (s *Store) prepare(list []member, have, pol *applied, c *policy.Compiled) (undo func() error, err error) {
	var pins []string
	undo = func() error {
		var errs []error
		for _, pin := range pins {
			errs = append(errs, removePins(pin))
		}
		return errors.Join(errs...)
	}
	if err := s.relayForAll(list, pol); err != nil {
		return undo, err
	}
	if pol.entry.Flags&bpf.PolicyWorld != 0 {
		if err := s.putHostAddrs(); err != nil {
			return undo, err
		}
	}
	for i := range list {
		m := &list[i]
		added, err := s.addHooks(m, pol)
		pins = append(pins, added...)
		if err != nil {
			return undo, fmt.Errorf("container %s: %w", m, err)
		}
		if err := s.putExecutables(m.entry, c, m.root()); err != nil {
			return undo, fmt.Errorf("container %s: %w", m, err)
		}
	}
	if have.entry.Nreserved == pol.entry.Nreserved && have.entry.Reserved == pol.entry.Reserved {
		return undo, nil
	}
	return undo, s.reserveAgain(list, pol.entry)
}

// addHooks attaches what the container has not and needs. It returns the pins.
func (s *Store) addHooks(m *member, pol *applied) (pins []string, err error) {
	role, err := bpfRole(policy.Role(m.info.Role), policy.InitMode(pol.info.Init))
	if err != nil {
		return nil, err
	}
	path, exists, err := s.mount.PathOf(m.entry.CgroupId)
	if err != nil || !exists {
		return nil, err
	}
	cg, err := s.mount.Open(path)
	if err != nil {
		return nil, err
	}
	defer cg.Close()
	dir := s.path("containers", m.entry.CgroupId)
	hooks, err := s.hooksFor(m.entry, role, pol)
	if err != nil {
		return nil, err
	}
	for _, h := range hooks {
		pin := filepath.Join(dir, h.Program)
		if _, err := os.Stat(pin); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := attachOne(cg, h, dir, s.program); err != nil {
			return pins, fmt.Errorf("attach %s: %w", h.Program, err)
		}
		pins = append(pins, pin)
	}
	return pins, nil
}

// trim detaches what the container had for another policy.
func (s *Store) trim(m *member, pol *applied) error {
	role, err := bpfRole(policy.Role(m.info.Role), policy.InitMode(pol.info.Init))
	if err != nil {
		return err
	}
	keep, err := s.hooksFor(m.entry, role, pol)
	if err != nil {
		return err
	}
	dir := s.path("containers", m.entry.CgroupId)
	pins, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list hooks: %w", err)
	}
	for _, pin := range pins {
		if slices.ContainsFunc(keep, func(h bpf.Hook) bool { return h.Program == pin.Name() }) {
			continue
		}
		if err := removePins(filepath.Join(dir, pin.Name())); err != nil {
			return err
		}
	}
	return nil
}

// setInitRoles follows a change of how init containers are treated.
func (s *Store) setInitRoles(list []member, init policy.InitMode) error {
	for i := range list {
		m := &list[i]
		role, err := bpfRole(policy.Role(m.info.Role), init)
		if err != nil {
			return err
		}
		if role == m.entry.Role {
			continue
		}
		m.entry.Role = role
		if err := s.maps.Containers.Put(m.entry.CgroupId, m.entry); err != nil {
			return fmt.Errorf("put container %s: %w", m, err)
		}
		if err := s.maps.Identity.Update(m.entry.CgroupId, m.entry, ebpf.UpdateExist); err != nil {
			return fmt.Errorf("set identity of container %s: %w", m, err)
		}
	}
	return nil
}

// reserveAgain keeps the kernel off the ports that the policy reserves now.
func (s *Store) reserveAgain(list []member, pol bpf.Policy) error {
	done := make(map[uint64]bool)
	for i := range list {
		m := &list[i]
		if done[m.entry.NetnsCookie] {
			continue
		}
		done[m.entry.NetnsCookie] = true
		ns, err := NetnsOf(int(m.info.Pid))
		if err != nil {
			return err
		}
		if ns.Cookie == m.entry.NetnsCookie { // else the number is another process' now
			err = ns.Do(func() error { return reservePorts("/proc/sys/net/ipv4", pol) })
		}
		if err := errors.Join(err, ns.Close()); err != nil {
			return err
		}
	}
	return nil
}
