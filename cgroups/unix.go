// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// prepareUnix loads what c's rules for UNIX sockets need. The error wraps
// ErrUnsupported where the kernel cannot enforce them and they are not optional.
func (s *Store) prepareUnix(c *policy.Compiled) error {
	wanted, optional, peers := unixNeeds(c)
	if !wanted {
		return nil
	}
	kind, err := s.unixKind()
	if err != nil {
		return err
	}
	if kind == bpf.UnixNone {
		kind = bpf.ProbeUnix()
		if err := s.loadUnix(kind); err != nil {
			return err
		}
	}
	switch {
	case optional:
		return nil
	case kind == bpf.UnixNone:
		return fmt.Errorf("%w: its rules for UNIX sockets need Linux 6.7, or BPF LSM (boot with lsm=...,bpf): "+
			"write `optional: true` below `unix` to go on without them", ErrUnsupported)
	case kind == bpf.UnixCgroup && peers:
		return fmt.Errorf("%w: its rules for UNIX sockets say whose they are (`to`), which needs BPF LSM (boot with lsm=...,bpf): "+
			"leave `to` out, or write `optional: true` below `unix`", ErrUnsupported)
	}
	return nil
}

// unixNeeds tells whether c has rules for UNIX sockets, whether all of them are
// optional, and whether some name a peer.
func unixNeeds(c *policy.Compiled) (wanted, optional, peers bool) {
	optional = true
	for _, sub := range c.Subjects {
		if sub.Flags&policy.HasUnix == 0 {
			continue
		}
		wanted = true
		optional = optional && sub.Flags&policy.UnixOptional != 0
		for _, r := range sub.Unix {
			peers = peers || len(r.Peers) > 0
		}
	}
	return wanted, optional, peers
}

// unixKind says which programs for UNIX sockets are loaded.
func (s *Store) unixKind() (bpf.UnixKind, error) {
	for _, kind := range []bpf.UnixKind{bpf.UnixLSM, bpf.UnixCgroup} {
		if has, err := s.hasProgram(bpf.UnixHooks(kind)[0].Program); has || err != nil {
			return kind, err
		}
	}
	return bpf.UnixNone, nil
}

// hasProgram tells whether a program is loaded that some kernels cannot run.
func (s *Store) hasProgram(name string) (bool, error) {
	_, err := os.Stat(filepath.Join(s.dir, "progs", name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for programs: %w", err)
	}
	return true, nil
}

// loadUnix loads and pins these programs, for all policies from now on. The one
// that unixKind looks for is pinned last.
func (s *Store) loadUnix(kind bpf.UnixKind) error {
	if kind == bpf.UnixNone {
		return nil
	}
	programs, err := bpf.LoadUnix(s.maps, kind)
	if err != nil {
		return fmt.Errorf("load programs for UNIX sockets: %w", explain(err))
	}
	var errs []error
	hooks := bpf.UnixHooks(kind)
	for i := len(hooks) - 1; i >= 0; i-- {
		pin := filepath.Join(s.dir, "progs", hooks[i].Program)
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		errs = append(errs, programs[hooks[i].Program].Pin(pin))
	}
	for _, p := range programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// pinFamily loads the program for sockets of other families and pins it below
// dir, where the kernel can run it.
func (s *Store) pinFamily(dir string) error {
	p, err := bpf.LoadFamily(s.maps)
	if err != nil || p == nil {
		return err
	}
	defer p.Close()
	hook, _ := bpf.FamilyHook(bpf.RoleApp, false)
	return p.Pin(filepath.Join(dir, "progs", hook.Program))
}

// hooksFor returns what is attached to a container under pol.
func (s *Store) hooksFor(entry bpf.Container, role bpf.Role, pol *applied) ([]bpf.Hook, error) {
	hooks := bpf.ContainerHooks(role, pol.entry)
	t := &tables{maps: s.maps, pol: pol}
	flags := t.Subject(entry.Subject)
	if entry.Name != 0 && pol.entry.Flags&bpf.PolicyNames != 0 {
		flags |= t.Subject(entry.Name)
	}
	if t.err != nil {
		return hooks, t.err
	}
	if hook, wanted := bpf.FamilyHook(role, flags&policy.Ruled != 0); wanted {
		has, err := s.hasProgram(hook.Program)
		if err != nil {
			return hooks, err
		}
		if has {
			hooks = append(hooks, hook)
		}
	}
	if flags&policy.HasUnix == 0 {
		return hooks, nil
	}
	kind, err := s.unixKind()
	if err != nil || kind == bpf.UnixNone {
		return hooks, err
	}
	return append(hooks, bpf.UnixHooks(kind)...), nil
}

// unixTypes are the types of sockets that rules name. Any has none.
var unixTypes = map[policy.UnixType]uint8{
	policy.UnixStream: unix.SOCK_STREAM, policy.UnixDgram: unix.SOCK_DGRAM, policy.UnixSeqpacket: unix.SOCK_SEQPACKET,
}

// putUnix writes the rules of one revision for UNIX sockets.
func (s *Store) putUnix(c *policy.Compiled, rev uint32) error {
	for _, sub := range c.Subjects {
		for i, r := range sub.Unix {
			rule, err := bpf.NewUnixRule(r.Pattern, r.Abstract, unixTypes[r.Type], uint32(r.Rule), r.Peers)
			if err != nil {
				return fmt.Errorf("%s: %w", c.Rules[r.Rule-1].Path, err)
			}
			key := bpf.UnixKey{Revision: rev, Subject: sub.ID, N: uint32(i)}
			if err := s.maps.UnixRules.Put(key, rule); err != nil {
				return fmt.Errorf("put rule for UNIX sockets: %w", err)
			}
		}
	}
	return nil
}
