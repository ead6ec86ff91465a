// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// Events reads what happens from now on. It owns a ring buffer in the kernel until Close. A reader that is killed is
// forgotten by the programs within seconds.
type Events struct {
	state   string
	maps    *bpf.Maps
	ring    *ebpf.Map
	reader  *ringbuf.Reader
	id      ebpf.MapID // of ring
	slot    uint32
	control []byte
	boot    atomic.Int64 // when CLOCK_BOOTTIME was 0, in ns since 1970: clocks are set
	taken   atomic.Bool  // somebody else has the slot

	deadline time.Time // of Read
	idle     bool      // nothing has come for a while

	stop    chan struct{}
	stopped sync.WaitGroup

	names *eventNames
}

const (
	eventLease = 3 * time.Second
	eventRenew = time.Second
)

// How long Read waits before it looks by itself. The kernel wakes a reader, and then not for SG_EVENT_QUIET: after a
// record there may be others within that time, and later ones wake it. A program that is held up on its way for longer
// than the difference tells up to eventLookIdle late.
const (
	eventLook     = 5 * time.Millisecond
	eventLookIdle = 100 * time.Millisecond
)

// ErrTooManyReaders says that no reader more is possible.
var ErrTooManyReaders = fmt.Errorf("%d processes read events already, which is the most: end a `sidegate observe`, or an exporter", bpf.EventReaders)

// OpenEvents begins to read, with a buffer of size bytes, a power of two of at least a page.
func OpenEvents(state string, size uint32) (_ *Events, err error) {
	s, err := OpenExisting(state)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }() // the lock, that no other takes the same slot
	e := &Events{state: state, slot: uint32(bpf.EventReaders), stop: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.maps, err = bpf.OpenMaps(s.pinnedMap); err != nil {
		return nil, err
	}
	if e.control, err = mapControl(e.maps, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	c, now := e.readers(), uint64(bootTime())
	for i := range c.Until {
		if atomic.LoadUint64(&c.Until[i]) < now {
			e.slot = uint32(i)
			break
		}
	}
	if int(e.slot) == bpf.EventReaders {
		return nil, ErrTooManyReaders
	}
	if e.ring, err = ebpf.NewMap(&ebpf.MapSpec{Name: "sg_events", Type: ebpf.RingBuf, MaxEntries: size}); err != nil {
		return nil, fmt.Errorf("make a ring buffer of %d bytes: %w", size, explain(err))
	}
	if e.id, err = mapID(e.ring); err != nil {
		return nil, err
	}
	if e.reader, err = ringbuf.NewReader(e.ring); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	atomic.StoreUint64(&c.Lost[e.slot], 0)
	if err := e.maps.EventRings.Put(e.slot, e.ring); err != nil {
		return nil, fmt.Errorf("put a ring buffer: %w", err)
	}
	e.renew()
	// After that: of whatever begins later an event tells.
	if e.names, err = newEventNames(e.maps); err != nil {
		return nil, err
	}
	e.stopped.Go(func() {
		tick := time.NewTicker(eventRenew)
		defer tick.Stop()
		for {
			select {
			case <-e.stop:
				return
			case <-tick.C:
				e.renew()
			}
		}
	})
	return e, nil
}

// mapControl maps who reads into memory.
func mapControl(m *bpf.Maps, prot int) ([]byte, error) {
	b, err := unix.Mmap(m.EventControl.FD(), 0, unix.Getpagesize(), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map who reads events: %w", err)
	}
	return b, nil
}

func controlOf(b []byte) *bpf.EventControl { return (*bpf.EventControl)(unsafe.Pointer(&b[0])) }

func bootTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // which every kernel here has
	return time.Duration(ts.Nano())
}

func (e *Events) readers() *bpf.EventControl { return controlOf(e.control) }

// renew holds the slot for a while longer, if it is still this reader's: one that was stopped for longer than its lease,
// as by a suspend of the machine, may have lost it.
func (e *Events) renew() {
	e.boot.Store(time.Now().Add(-bootTime()).UnixNano())
	if !e.own() {
		e.taken.Store(true)
		_ = e.reader.Flush()
		return
	}
	c, until := e.readers(), uint64(bootTime()+eventLease)
	atomic.StoreUint64(&c.Until[e.slot], until)
	for {
		last := atomic.LoadUint64(&c.Any)
		if last >= until || atomic.CompareAndSwapUint64(&c.Any, last, until) {
			return
		}
	}
}

// own tells whether the slot has this reader's ring.
func (e *Events) own() bool {
	var id ebpf.MapID
	return e.maps.EventRings.Lookup(e.slot, &id) == nil && id == e.id
}

// leave gives the slot back. Of the readers that are left the last lease counts.
func (e *Events) leave() error {
	if !e.own() {
		return nil
	}
	// The ring first: nobody takes the slot as long as there is a lease.
	err := e.maps.EventRings.Delete(e.slot)
	c := e.readers()
	atomic.StoreUint64(&c.Until[e.slot], 0)
	for {
		was, last := atomic.LoadUint64(&c.Any), uint64(0)
		for i := range c.Until {
			last = max(last, atomic.LoadUint64(&c.Until[i]))
		}
		if atomic.CompareAndSwapUint64(&c.Any, was, last) {
			break
		}
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take a ring buffer away: %w", err)
	}
	return nil
}

// ErrTaken is of a reader that was stopped for so long that its slot was taken for free.
var ErrTaken = errors.New("nothing was read for more than 3 seconds, and somebody else reads in this one's place: begin again")

// Lost is how many events this reader was too slow for.
func (e *Events) Lost() uint64 { return atomic.LoadUint64(&e.readers().Lost[e.slot]) }

// Current tells whether what is loaded is what this reads from: it may have been unloaded since, and loaded again.
func (e *Events) Current() (bool, error) {
	id, err := mapID(e.maps.Pods)
	if err != nil {
		return false, err
	}
	return isLoaded(e.state, id)
}

// Close ends the reading: Read returns os.ErrClosed.
func (e *Events) Close() error {
	close(e.stop)
	e.stopped.Wait()
	var errs []error
	if e.reader != nil {
		errs = append(errs, e.reader.Close())
	}
	if e.control != nil && e.ring != nil && int(e.slot) < bpf.EventReaders {
		errs = append(errs, e.leave())
	}
	if e.control != nil {
		errs = append(errs, unix.Munmap(e.control))
	}
	if e.ring != nil {
		errs = append(errs, e.ring.Close())
	}
	if e.maps != nil {
		errs = append(errs, e.maps.Close())
	}
	return errors.Join(errs...)
}

// SetDeadline is for the next Read, which returns os.ErrDeadlineExceeded then. It is for who calls that: one that waits
// already waits on, see Finish.
func (e *Events) SetDeadline(t time.Time) { e.deadline = t }

// Finish makes Read return what there is already, and then os.ErrClosed, also one that waits.
func (e *Events) Finish() error { return e.reader.Flush() }

// Read waits for the next event.
func (e *Events) Read() (Event, error) {
	for {
		r, err := e.next()
		if e.taken.Load() {
			return Event{}, ErrTaken
		}
		if errors.Is(err, ringbuf.ErrFlushed) {
			return Event{}, os.ErrClosed
		}
		if err != nil {
			return Event{}, err
		}
		if v, ok := e.decode(r.RawSample); ok {
			return v, nil
		}
	}
}

// next waits for a record, and looks for those that nobody wakes it for.
func (e *Events) next() (ringbuf.Record, error) {
	for {
		look := time.Now().Add(eventLook)
		if e.idle {
			look = time.Now().Add(eventLookIdle)
		}
		last := !e.deadline.IsZero() && e.deadline.Before(look)
		if last {
			look = e.deadline
		}
		e.reader.SetDeadline(look.Add(time.Millisecond)) // it waits for whole ones, rounded down
		r, err := e.reader.Read()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			e.idle = false
			return r, err
		}
		// After records that came when it looked, it says once more that the time was up.
		if time.Now().Before(look) {
			continue
		}
		if last {
			return r, err
		}
		e.idle = true
	}
}

// decode names what a record has. It is false for one that this version does not know.
func (e *Events) decode(record []byte) (v Event, ok bool) {
	const head = int(unsafe.Sizeof(bpf.Event{}))
	if len(record) < head {
		return v, false
	}
	raw := (*bpf.Event)(unsafe.Pointer(&record[0]))
	kinds := EventKinds()
	if int(raw.Kind) >= len(kinds) {
		return v, false
	}
	if raw.Kind == bpf.KindAttach {
		e.names.forget(raw.CgroupId)
	}
	v = e.names.event(raw)
	v.Kind, v.Time = kinds[raw.Kind], time.Unix(0, e.boot.Load()+int64(raw.TimeNs))
	switch {
	case raw.Kind == bpf.KindUnix:
		if len(record) < int(unsafe.Sizeof(bpf.EventUnix{})) {
			return v, false
		}
		u := (*bpf.EventUnix)(unsafe.Pointer(&record[0]))
		v.Protocol, v.Socket = "unix", unixName(u.Name[:min(int(u.Len), len(u.Name))], u.Abstract != 0)
	case raw.Kind >= bpf.KindAttach:
		// The record is shorter than the struct: no pointer to that may be made of it.
		const length, at = int(unsafe.Offsetof(bpf.EventText{}.Len)), int(unsafe.Offsetof(bpf.EventText{}.Text))
		if len(record) < at {
			return v, false
		}
		if raw.Kind <= bpf.KindDetach {
			v.Process = "" // not of a program that has begun
		}
		n := int(binary.NativeEndian.Uint32(record[length:]))
		// It says more, and better: whom it is about may be gone.
		if err := json.Unmarshal(record[at:min(at+n, len(record))], &v); err != nil {
			return v, false
		}
	}
	return v, true
}
