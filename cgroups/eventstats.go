// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sidegate/bpf"
)

// EventStats is about the telling of events itself.
type EventStats struct {
	Readers    []ReaderStats `json:"readers"`    // all slots
	Suppressed []Suppressed  `json:"suppressed"` // of each container that has told any
}

// ReaderStats is about one of the readers that there may be at a time.
type ReaderStats struct {
	Slot  int    `json:"slot"`
	Reads bool   `json:"reads"` // somebody does
	Lost  uint64 `json:"lost"`  // events that it, or who read here last, was too slow for
}

// Suppressed is how many events of a container were not told, since they were too many.
type Suppressed struct {
	Pod       string `json:"pod"`
	Container string `json:"container,omitempty"` // empty: of what is no container's
	Count     uint64 `json:"count"`
}

// eventClasses are the bits of a key of map event_budgets that say which of a container's budgets it is (SG_EVENT_CLASS).
const eventClasses = 3 << 62

// ReadEventStats reads them. Of a state that is not loaded there is nothing.
func ReadEventStats(state string) (st EventStats, err error) {
	err = IfLoaded(state, func(s *Store) error {
		var control bpf.EventControl
		if err := s.maps.EventControl.Lookup(uint32(0), &control); err != nil {
			return fmt.Errorf("look up who reads events: %w", err)
		}
		now := uint64(bootTime())
		for i, until := range control.Until {
			st.Readers = append(st.Readers, ReaderStats{Slot: i, Reads: until >= now, Lost: control.Lost[i]})
		}
		names, err := newEventNames(s.maps)
		if err != nil {
			return err
		}
		keys, budgets, err := entriesOf[bpf.EventSource, bpf.EventBudget](s.maps.EventBudgets)
		if err != nil {
			return err
		}
		sums := make(map[[2]string]uint64)
		for i, k := range keys {
			if pod, container, ok := names.whose(k.NetnsCookie&^eventClasses, k.CgroupId); ok {
				sums[[2]string{pod, container}] += budgets[i].Total
			}
		}
		for who, n := range sums {
			st.Suppressed = append(st.Suppressed, Suppressed{who[0], who[1], n})
		}
		slices.SortFunc(st.Suppressed, func(a, b Suppressed) int {
			return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container))
		})
		return nil
	})
	return st, err
}

// whose names the pod and the container, if any, of a key. It is false if they are gone. A name whose end was cut off is
// valid UTF-8 nevertheless.
func (n *eventNames) whose(cookie, cgroup uint64) (pod, container string, ok bool) {
	if pod = n.pod(cookie); pod == "" {
		return "", "", false
	}
	info, ok := bpf.ContainerInfo{}, true
	if cgroup != 0 {
		info, ok = n.container(cgroup)
	}
	return strings.ToValidUTF8(pod, "\uFFFD"), strings.ToValidUTF8(infoName(info), "\uFFFD"), ok
}

// FlowSum is how often something became of what the sockets of a container did.
type FlowSum struct {
	Pod, Container, Direction, Verdict, Reason string // as of Flow
	Count                                      uint64
}

// FlowSums sums flows over addresses and ports. The kernel forgets flows, the least recent first: it remembers what they
// were, so that sums grow only, until their container is gone. What comes and is forgotten between two calls is not in
// them. Where flows are many it does not look again at once. Its methods must not be called at the same time.
type FlowSums struct {
	state string
	last  map[bpf.Seen]uint64
	sums  map[flowSumKey]uint64
	when  time.Time // of list
	list  []FlowSum
}

type flowSumKey struct {
	cookie, cgroup uint64
	reason, dir    uint8
}

// NewFlowSums makes one for the state, which may be loaded later.
func NewFlowSums(state string) *FlowSums {
	return &FlowSums{state: state, sums: make(map[flowSumKey]uint64)}
}

// Read adds what has happened since, and returns all sums, sorted.
func (f *FlowSums) Read() ([]FlowSum, error) {
	if len(f.last) >= manyEntries && time.Since(f.when) < recountAfter {
		return f.list, nil
	}
	loaded := false
	err := IfLoaded(f.state, func(s *Store) error {
		loaded = true
		keys, counts, err := entriesOf[bpf.Seen, bpf.SeenCount](s.maps.Flows)
		if err != nil {
			return err
		}
		names, err := newEventNames(s.maps)
		if err != nil {
			return err
		}
		audited, err := s.auditedPods()
		if err != nil {
			return err
		}
		f.add(keys, counts)
		f.list, f.when = f.named(names, audited), time.Now()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !loaded {
		f.last, f.list = nil, nil
		clear(f.sums)
	}
	return f.list, nil
}

func (f *FlowSums) add(keys []bpf.Seen, counts []bpf.SeenCount) {
	next := make(map[bpf.Seen]uint64, len(keys))
	for i, k := range keys {
		n := counts[i].Count
		next[k] = n
		if last := f.last[k]; n >= last { // less: it was forgotten, and is counted anew
			n -= last
		}
		f.sums[flowSumKey{k.NetnsCookie, k.CgroupId, k.Reason, k.Dir}] += n
	}
	f.last = next
}

// named forgets sums of who is gone, and names the others. Pods of one name have one sum.
func (f *FlowSums) named(names *eventNames, audited map[uint64]bool) (list []FlowSum) {
	byName := make(map[FlowSum]uint64)
	for k, n := range f.sums {
		pod, container, ok := names.whose(k.cookie, k.cgroup)
		if !ok {
			delete(f.sums, k)
			continue
		}
		v := names.event(&bpf.Event{Counter: k.reason, Dir: k.dir})
		sum := FlowSum{Pod: pod, Container: container, Direction: v.Direction, Verdict: v.Verdict, Reason: v.Reason}
		if audited[k.cookie] && sum.Verdict == Denied {
			sum.Verdict = Audited
		}
		byName[sum] += n
	}
	for _, sum := range slices.SortedFunc(maps.Keys(byName), compareFlowSums) {
		n := byName[sum]
		sum.Count = n
		list = append(list, sum)
	}
	return list
}

func compareFlowSums(a, b FlowSum) int {
	return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Direction, b.Direction),
		cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Reason, b.Reason))
}
