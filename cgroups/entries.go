// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// keysOf returns all keys of m. They are gathered before anything is deleted:
// a map that shrinks under its iterator starts over.
func keysOf[K any](m *ebpf.Map) ([]K, error) {
	var keys []K
	var next K
	err := m.NextKey(nil, &next)
	for ; err == nil; err = m.NextKey(&keys[len(keys)-1], &next) {
		keys = append(keys, next)
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, fmt.Errorf("list %s: %w", m, err)
	}
	return keys, nil
}

// deleteKeys deletes the keys that match.
func deleteKeys[K any](m *ebpf.Map, match func(*K) bool) error {
	keys, err := keysOf[K](m)
	if err != nil {
		return err
	}
	return deleteThose(m, keys, match)
}

func deleteThose[K any](m *ebpf.Map, keys []K, match func(*K) bool) error {
	for i := range keys {
		if !match(&keys[i]) {
			continue
		}
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete from %s: %w", m, err)
		}
	}
	return nil
}

// batch is how many entries one system call fetches.
const batch = 1024

// deleteEntries is deleteKeys for a map that may have many entries, by few system
// calls where none matches.
func deleteEntries[K, V any](m *ebpf.Map, match func(*K) bool) error {
	keys, _, err := entriesOf[K, V](m)
	if err != nil {
		return err
	}
	return deleteThose(m, keys, match)
}

// entriesOf returns all entries of a hash map or array: by few system calls, since
// what a container's start waits for must not grow with what runs.
func entriesOf[K, V any](m *ebpf.Map) (keys []K, values []V, err error) {
	var cursor ebpf.MapBatchCursor
	k, v := make([]K, batch), make([]V, batch)
	for {
		n, err := m.BatchLookup(&cursor, k, v, nil)
		keys, values = append(keys, k[:n]...), append(values, v[:n]...)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return keys, values, nil
		case errors.Is(err, unix.ENOSPC): // a bucket has more than there is room for
			k, v = make([]K, 2*len(k)), make([]V, 2*len(v))
		case err != nil:
			return nil, nil, fmt.Errorf("list %s: %w", m, err)
		}
	}
}

// deleteMany does what deleteEntries does, and deletes by few system calls too: of a
// map from which nobody else takes.
func deleteMany[K, V any](m *ebpf.Map, match func(*K) bool) error {
	keys, _, err := entriesOf[K, V](m)
	if err != nil {
		return err
	}
	keys = slices.DeleteFunc(keys, func(k K) bool { return !match(&k) })
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchDelete(keys, nil); err != nil {
		return fmt.Errorf("delete %d entries from %s: %w", len(keys), m, err)
	}
	return nil
}
