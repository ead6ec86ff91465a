// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// spareSlots is how many sets of pod programs are loaded ahead, with everything
// else. A pod that ends gives its set back, so a node loads more only while it
// has more pods than ever before.
const spareSlots = 4

// takeSlot returns the programs of a free slot, loading them if need be. The
// slot is taken when its value says so, which is the caller's to write.
func (s *Store) takeSlot() (uint32, *bpf.PodPrograms, error) {
	numbers, slots, err := entriesOf[uint32, bpf.Slot](s.maps.PodSlots)
	if err != nil {
		return 0, nil, err
	}
	for i, n := range numbers {
		if slots[i].NetnsCookie != 0 {
			continue
		}
		progs, err := s.slotPrograms(n)
		return n, progs, err
	}
	return 0, nil, fmt.Errorf("%d pods are managed, which is the limit", s.maps.PodSlots.MaxEntries())
}

func (s *Store) slotPrograms(n uint32) (*bpf.PodPrograms, error) {
	dir := filepath.Join(s.dir, "slots", strconv.Itoa(int(n)))
	progs := new(bpf.PodPrograms)
	for name, f := range progs.Fields() {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return s.loadSlot(s.dir, n)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open programs of slot %d: %w", n, err), progs.Close())
		}
		*f = p
	}
	return progs, nil
}

// loadSlot loads and pins the programs of a slot, all or none, below root.
func (s *Store) loadSlot(root string, n uint32) (*bpf.PodPrograms, error) {
	progs, err := bpf.LoadPod(s.maps, n)
	if err != nil {
		return nil, err
	}
	err = s.transaction(filepath.Join(root, "slots", strconv.Itoa(int(n))), func(tmp string) error {
		for name, f := range progs.Fields() {
			if err := (*f).Pin(filepath.Join(tmp, name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pin programs of slot %d: %w", n, err), progs.Close())
	}
	return progs, nil
}

// freeSlot gives the slot of a pod back. Its programs are detached by then.
func (s *Store) freeSlot(cookie uint64) error {
	var info bpf.PodInfo
	err := s.maps.PodInfo.Lookup(cookie, &info)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // it never got one
	}
	if err != nil {
		return fmt.Errorf("look up pod %d: %w", cookie, err)
	}
	var slot bpf.Slot
	if err := s.maps.PodSlots.Lookup(info.Slot, &slot); err != nil {
		return fmt.Errorf("look up slot %d: %w", info.Slot, err)
	}
	if slot.NetnsCookie != cookie {
		return nil
	}
	if err := s.maps.PodSlots.Put(info.Slot, bpf.Slot{}); err != nil {
		return fmt.Errorf("free slot %d: %w", info.Slot, err)
	}
	return nil
}

// fillSlots loads the spare programs of a state that is being made at root.
func (s *Store) fillSlots(root string) error {
	if err := os.Mkdir(filepath.Join(root, "slots"), 0o700); err != nil {
		return err
	}
	for n := range uint32(spareSlots) {
		progs, err := s.loadSlot(root, n)
		if err != nil {
			return err
		}
		if err := progs.Close(); err != nil {
			return err
		}
	}
	return nil
}
