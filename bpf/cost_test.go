// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"sidegate/bpf/verdicts"
)

// TestCost: what is timed is what is meant: flows are counted as often, and nothing is said where somebody reads.
func TestCost(t *testing.T) {
	f := loaded(t)
	const repeat, times = 100, 64
	for _, of := range verdicts.Costs {
		if _, err := f.judge.Cost(of, repeat); err != nil {
			t.Errorf("%s: %v", of, err)
		}
	}
	var n SeenCount
	if err := f.maps.Flows.Lookup(Seen{NetnsCookie: testCookie}, &n); err != nil || n.Count != repeat*times {
		t.Errorf("%d flows were counted, want %d: %v", n.Count, repeat*times, err)
	}
	put(t, f.maps.EventControl, uint32(0), EventControl{Any: ^uint64(0)})
	defer put(t, f.maps.EventControl, uint32(0), EventControl{})
	if ns, err := f.judge.Cost("look", repeat); err == nil {
		t.Errorf("while somebody reads a look takes %v ns", ns)
	}
}
