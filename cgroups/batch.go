// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

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
