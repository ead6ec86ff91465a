// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// MapFill is how much of a map is in use.
type MapFill struct {
	Name     string `json:"name"`
	Entries  int    `json:"entries"`
	Capacity int    `json:"capacity"`
}

// MapFills counts entries of the state's maps. It remembers what it counted of maps with many, and asks for those again
// after a while: to count is to walk. Its methods may be called at the same time.
type MapFills struct {
	state string

	mu      sync.Mutex
	of      ebpf.MapID // of map pods, when counted was: another one is of another state
	counted map[string]countedMap
}

type countedMap struct {
	entries int
	when    time.Time
}

const (
	manyEntries  = 4096 // from which on a map is counted less often
	recountAfter = 10 * time.Second
)

// NewMapFills makes one for the state, which may be loaded later.
func NewMapFills(state string) *MapFills { return &MapFills{state: state} }

// Read counts all maps that have no fixed number of entries. It takes no lock: nobody waits for it. Of a state that is not
// loaded there are none.
func (f *MapFills) Read() (list []MapFill, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &Store{dir: VersionDir(f.state)}
	if err := f.forget(); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, name := range bpf.MapNames() {
		m, err := s.pinnedMap(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // it was just unloaded
		}
		if err != nil {
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		if counts(m.Type()) {
			var n int
			if n, err = f.count(name, m); err == nil {
				list = append(list, MapFill{Name: name, Entries: n, Capacity: int(m.MaxEntries())})
			}
		}
		if err := errors.Join(err, m.Close()); err != nil {
			return nil, fmt.Errorf("count entries of map %s: %w", name, err)
		}
	}
	return list, nil
}

// forget drops what is known of a state that was unloaded since.
func (f *MapFills) forget() error {
	id, err := loadedID(f.state)
	if err != nil {
		return err
	}
	if id != f.of || f.counted == nil {
		f.of, f.counted = id, make(map[string]countedMap)
	}
	return nil
}

// counts tells whether maps of this type get and lose entries.
func counts(t ebpf.MapType) bool {
	switch t {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.LPMTrie, ebpf.HashOfMaps, ebpf.SockHash:
		return true
	}
	return false
}

func (f *MapFills) count(name string, m *ebpf.Map) (int, error) {
	now := time.Now()
	if c, ok := f.counted[name]; ok && c.entries >= manyEntries && now.Sub(c.when) < recountAfter {
		return c.entries, nil
	}
	n, err := countEntries(m)
	if err == nil {
		f.counted[name] = countedMap{n, now}
	}
	return n, err
}

// countEntries walks m: by few system calls where its type can be asked for many entries at once.
func countEntries(m *ebpf.Map) (n int, err error) {
	switch m.Type() {
	case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
		n, err = countBatches(m)
	default: // of per-CPU values all would have to be copied
		n, err = countKeys(m)
	}
	return min(n, int(m.MaxEntries())), err
}

func countBatches(m *ebpf.Map) (n int, err error) {
	var cursor ebpf.MapBatchCursor
	size := 64 // most maps have few
	keys, values := rawEntries(size, m.KeySize()), rawEntries(size, m.ValueSize())
	for {
		k, err := m.BatchLookup(&cursor, keys, values, nil)
		n += k
		grow := errors.Is(err, unix.ENOSPC) // a bucket has more than there is room for
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return n, nil
		case err != nil && !grow:
			return 0, err
		}
		if grow || size < batch {
			size *= 2
			keys, values = rawEntries(size, m.KeySize()), rawEntries(size, m.ValueSize())
		}
		if n > 2*int(m.MaxEntries()) { // what comes and goes meanwhile makes a walk begin anew
			return n, nil
		}
	}
}

// rawEntries makes a slice of n arrays of size bytes: of a map's entries, whatever they are.
func rawEntries(n int, size uint32) any {
	return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n).Interface()
}

func countKeys(m *ebpf.Map) (n int, err error) {
	key, next := make([]byte, m.KeySize()), make([]byte, m.KeySize())
	err = m.NextKey(nil, &next)
	for ; err == nil && n <= 2*int(m.MaxEntries()); n++ {
		key, next = next, key
		err = m.NextKey(key, &next)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, err
	}
	return n, nil
}
