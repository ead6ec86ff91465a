// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// HandedOver are traffic keys that an app's TLS library gave the kernel for a
// connection to the relay.
type HandedOver struct {
	App   netip.AddrPort // the connection's end in the app, as the relay sees it
	RX    bool           // for what the app receives; else for what it sends
	PID   int            // of the process that gave them
	Bytes []byte         // struct tls12_crypto_info_*, the ring's own until the callback returns
}

// TLSRing is memory that is shared with the kernel (struct sg_tls_ring). It is not
// swapped, and in no other process.
type TLSRing struct {
	m   *ebpf.Map
	mem []byte // unmapped when nothing refers to the ring any more: connections outlive listeners

	mu    sync.Mutex
	taken atomic.Uint64
}

// newRing puts an empty ring in the place of what a relay before this one left.
func newRing(maps *bpf.Maps, cookie uint64) (_ *TLSRing, err error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "sg_tls_ring", Type: ebpf.Array, Flags: unix.BPF_F_MMAPABLE, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(bpf.TLSRing{})), MaxEntries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("make memory for keys: %w", explain(err))
	}
	ring := &TLSRing{m: m}
	page := unix.Getpagesize()
	size := (int(unsafe.Sizeof(bpf.TLSRing{})) + page - 1) &^ (page - 1)
	if ring.mem, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, errors.Join(fmt.Errorf("map memory for keys: %w", err), m.Close())
	}
	if err := unix.Madvise(ring.mem, unix.MADV_DONTDUMP); err != nil {
		return nil, errors.Join(fmt.Errorf("keep keys out of dumps: %w", err), unix.Munmap(ring.mem), m.Close())
	}
	if err := maps.TLSRings.Put(cookie, m); err != nil {
		return nil, errors.Join(fmt.Errorf("put memory for keys: %w", err), unix.Munmap(ring.mem), m.Close())
	}
	runtime.AddCleanup(ring, func(mem []byte) { _ = unix.Munmap(mem) }, ring.mem)
	return ring, nil
}

func (k *TLSRing) ring() *bpf.TLSRing { return (*bpf.TLSRing)(unsafe.Pointer(&k.mem[0])) }

// The states of a slot (enum sg_tls_state).
const (
	tlsFree  = 0
	tlsReady = 2
	tlsRX    = 2 // enum sg_tls_dir
)

// Take calls f with all that was handed over until now, oldest first, and wipes each
// when f returns. What an app handed over before it sent a byte is there once that
// byte is. Where there is nothing it costs one load.
func (k *TLSRing) Take(f func(HandedOver)) {
	defer runtime.KeepAlive(k)
	ring := k.ring()
	if atomic.LoadUint64(&ring.Given) == k.taken.Load() {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var ready []*bpf.TLSKeys
	for i := range ring.Slots {
		if atomic.LoadUint32(&ring.Slots[i].State) == tlsReady {
			ready = append(ready, &ring.Slots[i])
		}
	}
	slices.SortFunc(ready, func(a, b *bpf.TLSKeys) int { return cmp.Compare(int32(a.N-b.N), 0) })
	for _, s := range ready {
		f(HandedOver{
			App: netip.AddrPortFrom(netip.AddrFrom16(s.Tuple.Saddr.B).Unmap(), s.Tuple.Sport),
			RX:  s.Dir == tlsRX, PID: int(s.Pid), Bytes: s.Info[:s.Len],
		})
		s.Info = [len(s.Info)]uint8{}
		atomic.StoreUint32(&s.State, tlsFree)
		k.taken.Add(1)
	}
}

// close takes the ring from the kernel, unless another relay has put its own there,
// and wipes it.
func (k *TLSRing) close(maps *bpf.Maps, cookie uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	id, err := mapID(k.m)
	if err != nil {
		errs = append(errs, err)
	}
	var there uint32
	err = maps.TLSRings.Lookup(cookie, &there)
	if err == nil && ebpf.MapID(there) == id {
		err = maps.TLSRings.Delete(cookie)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		errs = append(errs, fmt.Errorf("take memory for keys from the kernel: %w", err))
	}
	clear(k.mem)
	return errors.Join(append(errs, k.m.Close())...)
}
