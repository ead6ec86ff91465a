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
	"unsafe"

	"github.com/cilium/ebpf"

	"sidegate/bpf/verdicts"
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

// warmUp opens what stays open: the runtime's poller.
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

// policySlot is where the policy of a pod is, other than all others', and
// testRevision what is in it if a test says nothing else.
func policySlot(cookie uint64) uint32   { return 10 + uint32(cookie%64) }
func testRevision(cookie uint64) uint32 { return 100 + uint32(cookie%64) }

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
	empty[uint32, Policy](t, f.maps.Policies)
	f.forget(t)
	empty[Seen, SeenCount](t, f.maps.Seen)
	empty[Seen, SeenCount](t, f.maps.Flows)
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

// manage makes a pod known, and the policy that it is under.
func (f *fixture) manage(t testing.TB, cookie uint64, policy Policy) {
	t.Helper()
	if policy.Revision == 0 {
		policy.Revision = testRevision(cookie)
	}
	put(t, f.maps.Policies, policy.Revision, policy)
	put(t, f.maps.PolicySlots, policySlot(cookie), policy.Revision)
	put(t, f.maps.Pods, cookie, Pod{Policy: policySlot(cookie)})
	f.count(t, f.maps.PodCounters, cookie)
}

// register makes a container of testCookie known.
func (f *fixture) register(t testing.TB, c Container) Container {
	t.Helper()
	c.NetnsCookie = testCookie
	if c.CgroupId == 0 {
		c.CgroupId = testCgroup
	}
	put(t, f.maps.Containers, c.CgroupId, c)
	f.count(t, f.maps.Counters, c.CgroupId)
	return c
}

// as returns x as the type that another object has of the same struct.
func as[T, F any](x F) T {
	var to T
	if unsafe.Sizeof(x) != unsafe.Sizeof(to) {
		panic(fmt.Sprintf("%T is no %T", x, to))
	}
	return *(*T)(unsafe.Pointer(&x))
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
