// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"sidegate/bpf/internal/verdicts"
)

func TestMain(m *testing.M) {
	warmUp()
	before := descriptors()
	code := m.Run()
	closeShared()
	if leaked := newDescriptors(before, descriptors()); code == 0 && len(leaked) > 0 {
		fmt.Fprintf(os.Stderr, "leaked %d descriptors: %q\n", len(leaked), leaked)
		code = 1
	}
	os.Exit(code)
}

// warmUp makes the runtime open what it keeps open: its poller.
func warmUp() {
	if l, err := net.Listen("unix", ""); err == nil {
		l.Close()
	}
}

// descriptors returns what each open descriptor is.
func descriptors() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	var all []string
	for _, e := range entries {
		// The directory that was just read is closed again.
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			all = append(all, to)
		}
	}
	slices.Sort(all)
	return all
}

func newDescriptors(before, after []string) []string {
	if len(after) <= len(before) {
		return nil
	}
	var extra []string
	for _, fd := range after {
		if i := slices.Index(before, fd); i >= 0 {
			before = slices.Delete(slices.Clone(before), i, i+1)
		} else {
			extra = append(extra, fd)
		}
	}
	return extra
}

// needRoot is the one reason to skip, but for a kernel that is too old.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
}

// testCookie is the pod that testSlot's programs work for. It is no real
// namespace's: the kernel counts them from 1.
const (
	testCookie = 0x51de_0001_0000_0001
	testSlot   = 7
	testCgroup = 0x51de_0002_0000_0002
)

// fixture is what all tests load once. Maps are emptied by reset.
type fixture struct {
	node  *Node
	maps  *Maps
	pod   *PodPrograms
	judge *verdicts.Judge
}

var shared struct {
	sync.Mutex
	f   *fixture
	err error
}

// loaded returns the programs, with empty maps.
func loaded(t testing.TB) *fixture {
	t.Helper()
	needRoot(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.f == nil && shared.err == nil {
		shared.f, shared.err = load()
	}
	if shared.err != nil {
		t.Fatalf("load programs: %+v", shared.err)
	}
	shared.f.reset(t)
	return shared.f
}

func load() (_ *fixture, err error) {
	f := new(fixture)
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if f.node, err = LoadNode(); err != nil {
		return nil, err
	}
	if f.maps, err = OpenMaps(func(name string) (*ebpf.Map, error) { return f.node.Maps[name].Clone() }); err != nil {
		return nil, err
	}
	if f.pod, err = LoadPod(f.maps, testSlot); err != nil {
		return nil, err
	}
	f.judge, err = verdicts.Load(f.node.Maps, testCookie)
	return f, err
}

func (f *fixture) close() error {
	var errs []error
	if f.judge != nil {
		f.judge.Close()
	}
	if f.pod != nil {
		errs = append(errs, f.pod.Close())
	}
	if f.maps != nil {
		errs = append(errs, f.maps.Close())
	}
	if f.node != nil {
		f.node.Close()
	}
	return errors.Join(errs...)
}

func closeShared() {
	shared.Lock()
	defer shared.Unlock()
	if shared.f == nil {
		return
	}
	if err := shared.f.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	shared.f = nil
}

// reset empties the maps, and gives testSlot to testCookie.
func (f *fixture) reset(t testing.TB) {
	t.Helper()
	empty[uint64, Pod](t, f.maps.Pods)
	empty[uint64, Container](t, f.maps.Containers)
	empty[PodAddr, uint8](t, f.maps.PodAddrs)
	empty[RuleKey, Rule](t, f.maps.Rules)
	empty[uint64, []Counters](t, f.maps.Counters)
	empty[uint64, []Counters](t, f.maps.PodCounters)
	put(t, f.maps.PodSlots, uint32(testSlot), NewSlot(testCookie))
}

func empty[K, V any](t testing.TB, m *ebpf.Map) {
	t.Helper()
	var keys []K
	var k K
	var v V
	all := m.Iterate()
	for all.Next(&k, &v) {
		keys = append(keys, k)
	}
	if err := all.Err(); err != nil {
		t.Fatalf("read map %v: %v", m, err)
	}
	for _, k := range keys {
		if err := m.Delete(k); err != nil {
			t.Fatalf("delete from map %v: %v", m, err)
		}
	}
}

func put(t testing.TB, m *ebpf.Map, key, value any) {
	t.Helper()
	if err := m.Put(key, value); err != nil {
		t.Fatalf("put %v into map %v: %v", key, m, err)
	}
}

// manage makes a pod known.
func (f *fixture) manage(t testing.TB, cookie uint64, pod Pod) {
	t.Helper()
	put(t, f.maps.Pods, cookie, pod)
	f.count(t, f.maps.PodCounters, cookie)
}

// count makes the programs count for key, from 0.
func (f *fixture) count(t testing.TB, m *ebpf.Map, key uint64) {
	t.Helper()
	put(t, m, key, make([]Counters, ebpf.MustPossibleCPU()))
}

// counted returns the counters of key that are not 0.
func counted(t testing.TB, m *ebpf.Map, key uint64) map[Counter]uint64 {
	t.Helper()
	var cpus []Counters
	if err := m.Lookup(key, &cpus); err != nil {
		t.Fatalf("read counters: %v", err)
	}
	var sum Counters
	for _, c := range cpus {
		sum.Add(c)
	}
	got := map[Counter]uint64{}
	for i, n := range sum.V {
		if n != 0 {
			got[Counter(i)] = n
		}
	}
	return got
}

// wantCounted checks that one counter alone has counted since the last call,
// or none with no counter.
func (f *fixture) wantCounted(t testing.TB, what string, m *ebpf.Map, key uint64, counter ...Counter) {
	t.Helper()
	got := counted(t, m, key)
	ok := len(got) == len(counter)
	for _, c := range counter {
		ok = ok && got[c] > 0
	}
	if !ok {
		t.Errorf("%s: counted %v, want %v", what, got, counter)
	}
	f.count(t, m, key)
}
