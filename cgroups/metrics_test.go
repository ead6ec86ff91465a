// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// pinned opens a map of the world.
func (w *world) pinned(name string) *ebpf.Map {
	w.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(w.state), "maps", name), nil)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, m.Close()) })
	return m
}

func fillOf(t *testing.T, f *cgroups.MapFills, name string) cgroups.MapFill {
	t.Helper()
	list, err := f.Read()
	must(t, err)
	i := slices.IndexFunc(list, func(m cgroups.MapFill) bool { return m.Name == name })
	if i < 0 {
		t.Fatalf("map %s is not counted", name)
	}
	return list[i]
}

// Maps of all types are counted: few entries, and more than one system call gives.
func TestMapFills(t *testing.T) {
	w := newWorld(t)
	f := cgroups.NewMapFills(w.state)
	if list, err := cgroups.NewMapFills(w.state + "-none").Read(); err != nil || len(list) != 0 {
		t.Fatalf("of what is not loaded: %v, %v", list, err)
	}
	app := w.container("app")
	w.attach(app, "app", policy.RoleApp, policy.Default())
	for _, c := range []struct {
		name     string
		capacity int
	}{{"pods", 4096}, {"containers", 16384}, {"counters", 16384}, {"pod_counters", 4096}} {
		if got := fillOf(t, f, c.name); got.Entries != 1 || got.Capacity != c.capacity {
			t.Errorf("%+v, want 1 of %d", got, c.capacity)
		}
	}
	if got := fillOf(t, f, "listeners"); got.Entries != 0 {
		t.Errorf("%+v", got)
	}
	seen, rules := w.pinned("seen"), w.pinned("rules")
	rulesBefore, before := fillOf(t, f, "rules").Entries, fillOf(t, f, "seen").Entries
	const n = 3000
	rule := func(i uint16) bpf.RuleKey {
		return bpf.NewRuleKey(bpf.RuleFor{Revision: 4711, Proto: 6, Port: i, PortBits: 16})
	}
	t.Cleanup(func() { // the state is other tests' too
		for i := range uint16(2 * n) {
			_, _ = seen.Delete(bpf.Seen{NetnsCookie: 1, Port: i}), rules.Delete(rule(i))
		}
	})
	for i := range uint16(n) {
		must(t, seen.Put(bpf.Seen{NetnsCookie: 1, Port: i}, bpf.SeenCount{Count: 1}))
		must(t, rules.Put(rule(i), uint32(1)))
	}
	if got := fillOf(t, f, "seen").Entries; got != before+n {
		t.Errorf("map seen has %d entries, want %d", got, before+n)
	}
	if got := fillOf(t, f, "rules").Entries; got != rulesBefore+n {
		t.Errorf("map rules has %d entries, want %d", got, rulesBefore+n)
	}
	// Of many the last count is told for a while.
	for i := range uint16(2000) {
		must(t, seen.Put(bpf.Seen{NetnsCookie: 1, Port: n + i}, bpf.SeenCount{Count: 1}))
	}
	if got := fillOf(t, f, "seen").Entries; got != before+n+2000 {
		t.Errorf("map seen has %d entries, want %d", got, before+n+2000)
	}
	must(t, seen.Delete(bpf.Seen{NetnsCookie: 1}))
	if got := fillOf(t, f, "seen").Entries; got != before+n+2000 {
		t.Errorf("map seen was counted again at once: %d", got)
	}
}

// What is forgotten by the kernel stays in the sums, and what comes again is added.
func TestFlowSums(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	f := cgroups.NewFlowSums(m.state)
	sums := func() map[string]uint64 {
		t.Helper()
		list, err := f.Read()
		must(t, err)
		got := make(map[string]uint64)
		for _, s := range list {
			if s.Pod != "pod" {
				t.Errorf("a sum of %q", s.Pod)
			}
			got[s.Container+" "+s.Direction+" "+s.Verdict+" "+s.Reason] += s.Count
		}
		return got
	}
	udp := func(addr string) {
		t.Helper()
		wantErr(t, "UDP", m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: addr, Data: "x"}), "EPERM")
	}
	const denied = "app egress denied udp"
	udp(outside4 + ":53")
	udp(outside4 + ":54")
	if got := sums()[denied]; got != 2 {
		t.Fatalf("%d are denied, want 2: %v", got, sums())
	}
	wantBanner(t, "TCP", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	if got := sums()["app egress redirected redirected"]; got != 1 {
		t.Errorf("%d are redirected, want 1", got)
	}
	flows := m.pinned("flows")
	var key bpf.Seen
	var keys []bpf.Seen
	for entries, count := flows.Iterate(), (bpf.SeenCount{}); entries.Next(&key, &count); {
		keys = append(keys, key)
	}
	for _, k := range keys {
		must(t, flows.Delete(k))
	}
	if got := sums()[denied]; got != 2 {
		t.Errorf("after the kernel has forgotten them it is %d", got)
	}
	udp(outside4 + ":53")
	if got := sums()[denied]; got != 3 {
		t.Errorf("after one more it is %d", got)
	}
}

func TestEventStats(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	reads := func() (n int, lost uint64, suppressed uint64) {
		t.Helper()
		st, err := cgroups.ReadEventStats(m.state)
		must(t, err)
		for _, r := range st.Readers {
			if r.Reads {
				n++
			}
			lost += r.Lost
		}
		for _, s := range st.Suppressed {
			if s.Pod == "pod" && s.Container == "app" {
				suppressed += s.Count
			}
		}
		return n, lost, suppressed
	}
	if n, _, _ := reads(); n != 0 {
		t.Errorf("%d read", n)
	}
	e := m.observe(1 << 12) // and does not
	if current, err := e.Current(); err != nil || !current {
		t.Errorf("what is loaded is another: %v", err)
	}
	n, lost, suppressed := 0, uint64(0), uint64(0)
	for deadline := time.Now().Add(20 * time.Second); suppressed == 0 && time.Now().Before(deadline); n, lost, suppressed = reads() {
		wantErr(t, "flood", m.app.Do(t, agent.Request{Op: "deny", Len: 20_000}), "")
	}
	if n != 1 || lost == 0 || lost != e.Lost() || suppressed == 0 {
		t.Errorf("%d read, %d are lost (%d), %d suppressed", n, lost, e.Lost(), suppressed)
	}
}
