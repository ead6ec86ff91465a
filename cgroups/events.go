// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// Event is something that a socket of a managed pod did, or was not let do.
type Event struct {
	Time      time.Time      `json:"time"`
	Kind      string         `json:"kind"`    // connect, accept, socket, bind, packet
	Verdict   string         `json:"verdict"` // allowed, redirected, denied, or audited: it would have been denied
	Direction string         `json:"direction"`
	Protocol  string         `json:"protocol,omitempty"`
	Address   netip.AddrPort `json:"address,omitzero"` // the other end outside, before redirection; the port is the destination's

	Pod         string `json:"pod"`
	Container   string `json:"container,omitempty"` // empty: it is no container's
	ContainerID string `json:"containerID,omitempty"`
	Role        string `json:"role,omitempty"`
	PID         int    `json:"pid,omitempty"`     // of who made the socket, or connected
	Process     string `json:"process,omitempty"` // its executable, if it lives still
	Peer        string `json:"peer,omitempty"`    // container at the other end

	Reason string `json:"reason"`         // as in counters
	Text   string `json:"text,omitempty"` // the same in words
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"` // that let it through

	Suppressed uint32 `json:"suppressed,omitempty"` // events of the same container before it, which were not told
}

// Events reads what happens from now on. It owns a ring buffer in the kernel until Close. A reader that is killed is
// forgotten by the programs within seconds.
type Events struct {
	maps    *bpf.Maps
	ring    *ebpf.Map
	reader  *ringbuf.Reader
	slot    uint32
	control []byte
	boot    time.Time // when CLOCK_BOOTTIME was 0

	stop    chan struct{}
	stopped sync.WaitGroup

	containers map[uint64]bpf.ContainerInfo
	pods       map[uint64]string
	rules      map[bpf.RuleInfoKey]string
	policies   map[uint32]string
}

const (
	eventLease = 3 * time.Second
	eventRenew = time.Second
)

// ErrTooManyReaders says that no reader more is possible.
var ErrTooManyReaders = fmt.Errorf("%d processes read events already, which is the most", bpf.EventReaders)

// OpenEvents begins to read, with a buffer of size bytes, a power of two of at least a page.
func OpenEvents(state string, size uint32) (_ *Events, err error) {
	s, err := OpenExisting(state)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }() // the lock, that no other takes the same slot
	e := &Events{
		boot: time.Now().Add(-bootTime()), stop: make(chan struct{}),
		containers: make(map[uint64]bpf.ContainerInfo), pods: make(map[uint64]string), rules: make(map[bpf.RuleInfoKey]string), policies: make(map[uint32]string),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.maps, err = bpf.OpenMaps(s.pinnedMap); err != nil {
		return nil, err
	}
	if e.control, err = unix.Mmap(e.maps.EventControl.FD(), 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map who reads events: %w", err)
	}
	c, now := e.readers(), uint64(bootTime())
	e.slot = uint32(bpf.EventReaders)
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
	if e.reader, err = ringbuf.NewReader(e.ring); err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	atomic.StoreUint64(&c.Lost[e.slot], 0)
	if err := e.maps.EventRings.Put(e.slot, e.ring); err != nil {
		return nil, fmt.Errorf("put a ring buffer: %w", err)
	}
	e.renew()
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

func bootTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // which every kernel here has
	return time.Duration(ts.Nano())
}

func (e *Events) readers() *bpf.EventControl { return (*bpf.EventControl)(unsafe.Pointer(&e.control[0])) }

func (e *Events) renew() {
	c := e.readers()
	atomic.StoreUint64(&c.Until[e.slot], uint64(bootTime()+eventLease))
	atomic.StoreUint64(&c.Any, 1)
}

// Lost is how many events this reader was too slow for.
func (e *Events) Lost() uint64 { return atomic.LoadUint64(&e.readers().Lost[e.slot]) }

// Close ends the reading: Read returns os.ErrClosed.
func (e *Events) Close() error {
	close(e.stop)
	e.stopped.Wait()
	var errs []error
	if e.reader != nil {
		errs = append(errs, e.reader.Close())
	}
	if e.control != nil && int(e.slot) < bpf.EventReaders {
		c, now := e.readers(), uint64(bootTime())
		atomic.StoreUint64(&c.Until[e.slot], 0)
		others := false
		for i := range c.Until {
			others = others || atomic.LoadUint64(&c.Until[i]) > now
		}
		if !others {
			atomic.StoreUint64(&c.Any, 0)
		}
		if e.ring != nil {
			if err := e.maps.EventRings.Delete(e.slot); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, fmt.Errorf("take a ring buffer away: %w", err))
			}
		}
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

// SetDeadline is for Read.
func (e *Events) SetDeadline(t time.Time) { e.reader.SetDeadline(t) }

// Read waits for the next event.
func (e *Events) Read() (Event, error) {
	for {
		r, err := e.reader.Read()
		if err != nil {
			return Event{}, err
		}
		if len(r.RawSample) < int(unsafe.Sizeof(bpf.Event{})) {
			continue
		}
		return e.name((*bpf.Event)(unsafe.Pointer(&r.RawSample[0]))), nil
	}
}

// ProtocolName is tcp for 6, and the number for what has no name here.
func ProtocolName(n uint16) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_MPTCP: // no protocol of IP, and so none of rules
		return "mptcp"
	}
	return strconv.Itoa(int(n))
}

func eventKinds() []string { return []string{"connect", "accept", "socket", "bind", "packet", "unix"} }

// name says it in people's words.
func (e *Events) name(raw *bpf.Event) Event {
	out := Event{
		Time: e.boot.Add(time.Duration(raw.TimeNs)), Verdict: verdictOf(raw), Direction: "egress",
		PID: int(raw.Pid), Suppressed: raw.Suppressed, Pod: e.pod(raw.NetnsCookie), Policy: e.policy(raw.Revision),
	}
	if kinds := eventKinds(); int(raw.Kind) < len(kinds) {
		out.Kind = kinds[raw.Kind]
	}
	if raw.Dir != 0 {
		out.Direction = "ingress"
	}
	if raw.Proto != 0 {
		out.Protocol = ProtocolName(raw.Proto)
	}
	if addr := netip.AddrFrom16(raw.Addr.B).Unmap(); raw.Addr != (bpf.Addr{}) || raw.Port != 0 {
		out.Address = netip.AddrPortFrom(addr, raw.Port)
	}
	counter := bpf.Counter(raw.Counter)
	out.Reason = counter.String()
	out.Text = ReasonText(out.Reason)
	if info, ok := e.container(raw.CgroupId); ok {
		out.Container, out.ContainerID = infoName(info), bpf.CString(info.Id[:])
		out.Role = policy.Role(info.Role).String()
	}
	if info, ok := e.container(raw.Peer); ok {
		out.Peer = infoName(info)
	}
	if raw.Rule != 0 {
		out.Rule = e.rule(raw.Revision, raw.Rule)
	}
	if raw.Pid != 0 {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", raw.Pid)); err == nil {
			out.Process = strings.TrimSuffix(exe, " (deleted)")
		}
	}
	return out
}

func verdictOf(raw *bpf.Event) string {
	for _, i := range bpf.CounterInfos() {
		if i.Counter != bpf.Counter(raw.Counter) {
			continue
		}
		switch {
		case i.Drop && raw.Audit != 0:
			return "audited"
		case i.Drop:
			return "denied"
		case strings.HasSuffix(i.Name, "redirected"):
			return "redirected"
		}
	}
	return "allowed"
}

func (e *Events) container(id uint64) (bpf.ContainerInfo, bool) {
	if id == 0 {
		return bpf.ContainerInfo{}, false
	}
	info, ok := e.containers[id]
	if !ok {
		if err := e.maps.ContainerInfo.Lookup(id, &info); err != nil {
			return info, false
		}
		e.containers[id] = info
	}
	return info, true
}

func (e *Events) pod(cookie uint64) string {
	name, ok := e.pods[cookie]
	if !ok {
		var info bpf.PodInfo
		if err := e.maps.PodInfo.Lookup(cookie, &info); err != nil {
			return ""
		}
		name = bpf.CString(info.Pod[:])
		e.pods[cookie] = name
	}
	return name
}

func (e *Events) rule(revision, number uint32) string {
	key := bpf.RuleInfoKey{Revision: revision, Rule: number}
	text, ok := e.rules[key]
	if !ok {
		var info bpf.RuleInfo
		if err := e.maps.RuleInfo.Lookup(key, &info); err != nil {
			return ""
		}
		text = bpf.CString(info.Path[:]) + ": " + bpf.CString(info.Text[:])
		e.rules[key] = text
	}
	return text
}

func (e *Events) policy(revision uint32) string {
	name, ok := e.policies[revision]
	if !ok {
		slots, infos, err := entriesOf[uint32, bpf.PolicyInfo](e.maps.PolicyInfo)
		if err != nil {
			return ""
		}
		for i := range slots {
			if infos[i].Revision == revision {
				name = bpf.CString(infos[i].Name[:])
			}
		}
		e.policies[revision] = name
	}
	return name
}
