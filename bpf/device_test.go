// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"runtime"
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

// filter attaches a program to lo, as kernels of all versions can.
func filter(t testing.TB, parent uint32, p *ebpf.Program) {
	t.Helper()
	err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: 1, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
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
	inNamespace(t)
	err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: 1, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err != nil {
		t.Fatalf("add clsact to lo: %v", err)
	}
	filter(t, netlink.HANDLE_MIN_EGRESS, f.pod.Device)
	filter(t, netlink.HANDLE_MIN_INGRESS, f.pod.Host)
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
	f.manage(t, testCookie, Pod{Outbound: 15001, Flags: PodNonTCP})
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
	if err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: 1, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
	}}); err != nil {
		t.Fatalf("detach from lo: %v", err)
	}
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
	f.putRules(t)
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
		flags      uint8
		to         string
		port       int
		pod, own   Counter // what counts the drop: the pod's or the container's counters
	}{
		{"no record", nil, true, PodNonTCP, outside4, 53, unregistered, 0},
		{"record of another pod", elsewhere, true, PodNonTCP, outside4, 53, unregistered, 0},
		{"sidecar", record(RoleSidecar), true, 0, outside4, 53, 0, 0},
		{"sidecar that is gone", record(RoleSidecar), false, 0, outside4, 53, unregistered, 0},
		{"sidecar to the pod itself, through a device", record(RoleSidecar), true, 0, "192.0.2.2", 53, nodeSgCounterSG_DROP_DEVICE, 0},
		{"exempt", record(RoleExempt), true, 0, outside4, 53, 0, 0},
		{"exempt that is gone", record(RoleExempt), false, 0, outside4, 53, unregistered, 0},
		{"app", record(RoleApp), true, 0, outside4, 53, 0, egress},
		{"app that may", record(RoleApp), true, PodNonTCP, outside4, 53, 0, 0},
		{"app by rule", record(RoleApp), true, 0, "10.1.2.3", 53, 0, 0},
		{"app to another port than the rule's", record(RoleApp), true, 0, "10.1.2.3", 54, 0, egress},
		{"app to the pod itself, through a device", record(RoleApp), true, 0, "192.0.2.2", 53, 0, egress},
		{"dead", record(RoleDead), true, PodNonTCP, outside4, 53, 0, unregistered},
		{"denied", record(RoleDenied), true, PodNonTCP, outside4, 53, 0, nodeSgCounterSG_DROP_INIT},
		{"unknown role", record(unknownRole), true, PodNonTCP, outside4, 53, 0, unregistered},
	} {
		f.manage(t, testCookie, Pod{Outbound: 15001, Flags: c.flags})
		f.count(t, f.maps.Counters, testCgroup)
		if c.registered {
			put(t, f.maps.Containers, uint64(testCgroup), Container{NetnsCookie: testCookie, CgroupId: testCgroup, Role: RoleApp})
		} else {
			empty[uint64, Container](t, f.maps.Containers)
		}
		if c.record != nil {
			put(t, socks, int32(fd), *c.record)
		}
		want := uint64(1)
		if c.pod != 0 || c.own != 0 {
			want = 0
		}
		if got := send(c.to, c.port); got != want {
			t.Errorf("%s: %d packets left, want %d", c.name, got, want)
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

// An AF_PACKET socket says what it likes, and nothing of it leaves.
func TestPacketSocketOnDevice(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Pod{Outbound: 15001, Flags: PodNonTCP})
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
