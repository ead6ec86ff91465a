// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// AttachTimes are how long it took to attach containers since the state was loaded, by whatever front-end.
type AttachTimes struct {
	Sum     time.Duration            `json:"sum"`
	Failed  uint64                   `json:"failed"` // which are in the others too
	Buckets map[time.Duration]uint64 `json:"buckets"`
	More    uint64                   `json:"more"` // than the longest of Buckets
}

// ReadAttachTimes reads them. Buckets is of less than each of its keys, and not of less than the key before: all are
// there, the empty ones too.
func ReadAttachTimes(state string) (t AttachTimes, err error) {
	err = IfLoaded(state, func(s *Store) error {
		var raw bpf.AttachTimes
		if err := s.maps.AttachTimes.Lookup(uint32(0), &raw); err != nil {
			return fmt.Errorf("look up how long it took to attach: %w", err)
		}
		last := len(raw.Count) - 1
		t = AttachTimes{Sum: time.Duration(raw.Ns), Failed: raw.Failed, Buckets: make(map[time.Duration]uint64, last), More: raw.Count[last]}
		for i, n := range raw.Count[:last] {
			t.Buckets[time.Millisecond<<i] = n
		}
		return nil
	})
	return t, err
}

// countAttach counts one, under the state's lock.
func (s *Store) countAttach(took time.Duration, failed error) error {
	var t bpf.AttachTimes
	if err := s.maps.AttachTimes.Lookup(uint32(0), &t); err != nil {
		return fmt.Errorf("look up how long it took to attach: %w", err)
	}
	t.Ns += uint64(took)
	if failed != nil {
		t.Failed++
	}
	t.Count[min(bits.Len64(uint64(took/time.Millisecond)), len(t.Count)-1)]++
	if err := s.maps.AttachTimes.Update(uint32(0), t, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("put how long it took to attach: %w", err)
	}
	return nil
}
