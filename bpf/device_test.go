// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace puts the test's thread into a new network namespace, in which lo
// is up, until the test ends. A subtest would run on another thread.
func inNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		t.Fatalf("get namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(back); err != nil {
			t.Errorf("leave namespace: %v", err)
		} else {
			runtime.UnlockOSThread() // else the thread ends with the test
		}
		ns.Close()
		back.Close()
	})
	if err := netlink.LinkSetUp(loopbackDevice(t)); err != nil {
		t.Fatalf("set lo up: %v", err)
	}
}

func loopbackDevice(t testing.TB) netlink.Link {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatalf("find lo: %v", err)
	}
	return lo
}

// filter attaches a program to lo, as kernels of all versions can. It runs after
// those that were attached before.
func filter(t testing.TB, parent uint32, p *ebpf.Program) {
	t.Helper()
	before, err := netlink.FilterList(loopbackDevice(t), parent)
	if err != nil {
		t.Fatalf("list filters of lo: %v", err)
	}
	err = netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: 1, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: uint16(1 + len(before))},
		Fd:           p.FD(),
		Name:         "test",
		DirectAction: true,
	})
	if err != nil {
		t.Fatalf("attach to lo: %v", err)
	}
}

// deviceNamespace is a namespace in which lo is a pod's device and, at its other
// end, the host's.
func deviceNamespace(t *testing.T, f *fixture) {
	t.Helper()
	filtered(t)
	filter(t, netlink.HANDLE_MIN_EGRESS, f.pod.Device)
	filter(t, netlink.HANDLE_MIN_INGRESS, f.pod.Host)
}

// filtered is a namespace in which lo can have filters.
func filtered(t *testing.T) {
	t.Helper()
	inNamespace(t)
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: 1, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil {
		t.Fatalf("add clsact to lo: %v", err)
	}
}

// sent returns how many packets left through lo while do ran.
func sent(t testing.TB, do func()) uint64 {
	t.Helper()
	before := loopbackDevice(t).Attrs().Statistics.TxPackets
	do()
	return loopbackDevice(t).Attrs().Statistics.TxPackets - before
}

// The frames of TestOrphans on a real device, whose packets have no socket.
func TestOrphansOnDevice(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyNonTCP})
	f.ownAddresses(t)
	deviceNamespace(t, f)
	for _, c := range orphans {
		var counters []Counter
		want := uint64(1)
		if c.drop != 0 {
			want, counters = 0, []Counter{c.drop}
		}
		var ret int32
		var err error
		got := sent(t, func() { ret, err = f.judge.SendOrphan(c.frame) })
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got != want || (ret == 0) != (c.drop == 0) {
			t.Errorf("%s: sending says %d, %d packets left, want %d", c.name, ret, got, want)
		}
		// The host's end takes what the pod's has let out, and no other.
		f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, counters...)
	}
	detach(t, netlink.HANDLE_MIN_EGRESS, 1)
	if _, err := f.judge.SendOrphan(orphans[0].frame); err != nil {
		t.Fatal(err)
	}
	f.wantCounted(t, "round the pod's end", f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_BYPASS)
}

// udpOnLo returns a UDP socket that sends through lo, wherever to.
func udpOnLo(t testing.TB, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"); err != nil {
		t.Fatalf("bind to lo: %v", err)
	}
	return fd
}

func sockaddr(a string, port int) unix.Sockaddr {
	ip := netip.MustParseAddr(a)
	if ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: ip.As16(), Port: port}
}

func TestSocketsOnDevice(t *testing.T) {
	f := loaded(t)
	deviceNamespace(t, f)
	f.ownAddresses(t)
	socks := f.node.Maps[nodeMapSocks]
	fd := udpOnLo(t, unix.AF_INET)
	send := func(to string, port int) uint64 {
		return sent(t, func() {
			// Where a drop is told depends on the kernel.
			unix.Sendto(fd, []byte("x"), 0, sockaddr(to, port))
		})
	}
	const (
		unregistered = nodeSgCounterSG_DROP_UNREGISTERED
		egress       = nodeSgCounterSG_DROP_EGRESS
		noRule       = nodeSgCounterSG_DROP_POLICY_EGRESS
		audited      = nodeSgCounterSG_COUNT_AUDIT
	)
	record := func(role Role) *nodeSgSock {
		return &nodeSgSock{NetnsCookie: testCookie, CgroupId: testCgroup, Role: role}
	}
	elsewhere := record(RoleSidecar)
	elsewhere.NetnsCookie++
	for _, c := range []struct {
		name       string
		record     *nodeSgSock
		registered bool
		flags      uint32
		subject    uint32 // whose the rules are
		to         string
		port       int
		pod, own   Counter // what counts the drop: the pod's or the container's counters
	}{
		{"no record", nil, true, PolicyNonTCP, subjectPod, outside4, 53, unregistered, 0},
		{"record of another pod", elsewhere, true, PolicyNonTCP, subjectPod, outside4, 53, unregistered, 0},
		{"sidecar", record(RoleSidecar), true, 0, subjectPod, outside4, 53, 0, 0},
		{"sidecar that is gone", record(RoleSidecar), false, 0, subjectPod, outside4, 53, unregistered, 0},
		{"sidecar to the pod itself, through a device", record(RoleSidecar), true, 0, subjectPod, "192.0.2.2", 53, nodeSgCounterSG_DROP_DEVICE, 0},
		{"exempt", record(RoleExempt), true, 0, subjectPod, outside4, 53, 0, 0},
		{"exempt that is gone", record(RoleExempt), false, 0, subjectPod, outside4, 53, unregistered, 0},
		{"app", record(RoleApp), true, 0, subjectPod, outside4, 53, 0, egress},
		{"app that may", record(RoleApp), true, PolicyNonTCP, subjectPod, outside4, 53, 0, 0},
		{"app by exclusion", record(RoleApp), true, 0, subjectPod, "10.1.2.3", 53, 0, 0},
		{"app to another port than the exclusion's", record(RoleApp), true, 0, subjectPod, "10.1.2.3", 54, 0, egress},
		{"app to the pod itself, through a device", record(RoleApp), true, 0, subjectPod, "192.0.2.2", 53, 0, egress},
		{"dead", record(RoleDead), true, PolicyNonTCP, subjectPod, outside4, 53, 0, unregistered},
		{"denied", record(RoleDenied), true, PolicyNonTCP, subjectPod, outside4, 53, 0, nodeSgCounterSG_DROP_INIT},
		{"unknown role", record(unknownRole), true, PolicyNonTCP, subjectPod, outside4, 53, 0, unregistered},

		{"app with rules, by one", record(RoleApp), true, 0, subjectApp, "10.1.2.3", 53, 0, 0},
		{"app with rules, by none", record(RoleApp), true, 0, subjectApp, "10.1.2.3", 54, 0, noRule},
		{"app with rules, by none, where others may", record(RoleApp), true, PolicyNonTCP, subjectApp, outside4, 53, 0, noRule},
		{"app with rules to the pod itself, through a device", record(RoleApp), true, 0, subjectApp, "192.0.2.2", 53, 0, noRule},
		{"app with rules of its name, by one", record(RoleApp), true, 0, testName, "10.1.2.3", 53, 0, 0},
		{"app with rules of its name, by none", record(RoleApp), true, 0, testName, outside4, 53, 0, noRule},
		{"app, where a sidecar has rules", record(RoleApp), true, 0, subjectSidecar, "10.1.2.3", 53, 0, egress},
		{"denied, whatever the rules", record(RoleDenied), true, 0, subjectApp, "10.1.2.3", 53, 0, nodeSgCounterSG_DROP_INIT},

		{"audit: no record", nil, true, PolicyAudit, subjectPod, outside4, 53, audited, 0},
		{"audit: gone", record(RoleSidecar), false, PolicyAudit, subjectPod, outside4, 53, audited, 0},
		{"audit: app", record(RoleApp), true, PolicyAudit, subjectPod, outside4, 53, 0, audited},
		{"audit: app by exclusion", record(RoleApp), true, PolicyAudit, subjectPod, "10.1.2.3", 53, 0, 0},
		{"audit: app with rules, by none", record(RoleApp), true, PolicyAudit, subjectApp, outside4, 53, 0, audited},
	} {
		f.govern(t, testTables(c.subject, c.flags))
		empty[Seen, SeenCount](t, f.maps.Seen)
		f.register(t, Container{Role: RoleApp, Subject: subjectApp, Name: testName})
		if !c.registered {
			empty[uint64, Container](t, f.maps.Containers)
		}
		if c.record != nil {
			put(t, socks, int32(fd), *c.record)
		} else if err := socks.Delete(int32(fd)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		want := uint64(1)
		if c.flags&PolicyAudit == 0 && (c.pod != 0 || c.own != 0) {
			want = 0
		}
		if got := send(c.to, c.port); got != want {
			t.Errorf("%s: %d packets left, want %d", c.name, got, want)
		}
		// What a container would have been denied is on record, with the reason.
		seen := seenBy(t, f)
		if c.own != audited {
			if len(seen) > 0 {
				t.Errorf("%s: %+v is on record", c.name, seen)
			}
		} else {
			why := egress
			if c.subject != subjectPod {
				why = noRule
			}
			key := Seen{
				NetnsCookie: testCookie, CgroupId: testCgroup, Addr: AddrFrom(netip.MustParseAddr(c.to)),
				Port: uint16(c.port), Proto: unix.IPPROTO_UDP, Dir: dirEgress, Reason: uint8(why),
			}
			if n := seen[key]; len(seen) != 1 || n.Count != 1 || n.LastNs == 0 {
				t.Errorf("%s: %+v is on record, want %+v once", c.name, seen, key)
			}
		}
		for _, of := range []struct {
			counters *ebpf.Map
			key      uint64
			counter  Counter
		}{{f.maps.PodCounters, testCookie, c.pod}, {f.maps.Counters, testCgroup, c.own}} {
			if of.counter == 0 {
				f.wantCounted(t, c.name, of.counters, of.key)
			} else {
				f.wantCounted(t, c.name, of.counters, of.key, of.counter)
			}
		}
	}
}

// seenBy returns what mode audit has a record of.
func seenBy(t testing.TB, f *fixture) map[Seen]SeenCount {
	t.Helper()
	all := map[Seen]SeenCount{}
	var k Seen
	var v SeenCount
	it := f.maps.Seen.Iterate()
	for it.Next(&k, &v) {
		all[k] = v
	}
	if err := it.Err(); err != nil {
		t.Fatalf("read what was seen: %v", err)
	}
	return all
}

// What leaves through lo arrives with the mark, if a socket or the kernel sent
// it; and what comes round the program there does not arrive.
func TestMarkOnLoopback(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyRuled})
	f.ownAddresses(t)
	const token = 0x5eed_0001
	f.mark(t, token)
	filtered(t)
	hash := func() uint32 {
		t.Helper()
		h, err := f.judge.Hash()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	filter(t, netlink.HANDLE_MIN_EGRESS, f.pod.LoopbackOut)
	filter(t, netlink.HANDLE_MIN_INGRESS, f.judge.SeeHash())
	for _, c := range orphans {
		ret, err := f.judge.SendOrphan(c.frame)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if (ret == 0) != (c.drop == 0) {
			t.Errorf("%s: sending says %d", c.name, ret)
		}
		if c.drop != 0 {
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, c.drop)
			continue
		}
		f.wantCounted(t, c.name, f.maps.PodCounters, testCookie)
		if got := hash(); got != token {
			t.Errorf("%s: it arrives with hash %#x, want %#x", c.name, got, token)
		}
	}

	// The other end: a datagram of the pod arrives, and its mark does not.
	fd := udpOnLo(t, unix.AF_INET)
	if err := unix.Bind(fd, sockaddr("127.0.0.1", 0)); err != nil {
		t.Fatal(err)
	}
	to, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	send := func() (arrived bool) {
		t.Helper()
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
			t.Fatal(err)
		}
		n, _, err := unix.Recvfrom(fd, make([]byte, 8), unix.MSG_DONTWAIT)
		return err == nil && n == 1
	}
	if !send() || hash() != token {
		t.Errorf("a datagram arrives with hash %#x, want %#x", hash(), token)
	}
	detach(t, netlink.HANDLE_MIN_INGRESS, 1)
	filter(t, netlink.HANDLE_MIN_INGRESS, f.pod.Loopback)
	filter(t, netlink.HANDLE_MIN_INGRESS, f.judge.SeeHash())
	if !send() {
		t.Error("a datagram with the mark does not arrive")
	}
	if got := hash(); got == token {
		t.Error("a datagram keeps the mark")
	}
	f.wantCounted(t, "datagram", f.maps.PodCounters, testCookie)

	// Packet sockets: on the way, and round it.
	for _, c := range []struct {
		bypass int
		drop   Counter
	}{{0, nodeSgCounterSG_DROP_PACKET_SOCKET}, {1, nodeSgCounterSG_DROP_BYPASS}} {
		packets, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(packets, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, c.bypass); err != nil {
			t.Fatal(err)
		}
		frame := v4{src: "127.0.0.1", dst: "127.0.0.1", proto: 17}.frame(udp(1234, 53, 'x'))
		unix.Sendto(packets, frame, 0, &unix.SockaddrLinklayer{Ifindex: 1, Protocol: htons(unix.ETH_P_IP)})
		unix.Close(packets)
		f.wantCounted(t, "packet socket", f.maps.PodCounters, testCookie, c.drop)
	}
	detach(t, netlink.HANDLE_MIN_EGRESS, 1)
	if send() {
		t.Error("a datagram without the mark arrives")
	}
	f.wantCounted(t, "datagram without the mark", f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_BYPASS)
	// Under mode audit it does.
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyRuled | PolicyAudit})
	if !send() {
		t.Error("under mode audit a datagram without the mark does not arrive")
	}
	f.wantCounted(t, "audit", f.maps.PodCounters, testCookie, nodeSgCounterSG_COUNT_AUDIT)
}

// detach removes the n-th filter, from 1.
func detach(t testing.TB, parent uint32, n uint16) {
	t.Helper()
	if err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: 1, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: n,
	}}); err != nil {
		t.Fatalf("detach from lo: %v", err)
	}
}

// An AF_PACKET socket says what it likes, and nothing of it leaves.
func TestPacketSocketOnDevice(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyNonTCP})
	deviceNamespace(t, f)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open packet socket: %v", err)
	}
	defer unix.Close(fd)
	for _, c := range orphans {
		to := &unix.SockaddrLinklayer{Ifindex: 1, Protocol: htons(etherType(c.frame))}
		if got := sent(t, func() { unix.Sendto(fd, c.frame, 0, to) }); got != 0 {
			t.Errorf("%s: %d packets left", c.name, got)
		}
		// A frame may be too short for the socket, ARP is a full one.
		if c.name == "ARP" {
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_PACKET_SOCKET)
		}
	}
}

func htons(x uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(x >> 8), byte(x)}) }

// fdOf returns the descriptor of a socket, which stays the socket's.
func fdOf(t testing.TB, c syscall.Conn) (fd int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}
