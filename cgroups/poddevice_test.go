// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// What a second network of a pod has: net1 in it, out1 outside.
const (
	net4, net6         = "198.51.100.2", "2001:db8:1::2"
	gateway4, gateway6 = "198.51.100.1", "2001:db8:1::1"
)

var netAddrs = []netip.Addr{netip.MustParseAddr(net4), netip.MustParseAddr(net6)}

// network makes a veth pair, both ends of it outside. inner has an index of its
// own if that is not 0.
func (w *world) network(inner, outer string, index int) {
	w.t.Helper()
	must(w.t, inNS(w.outside, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: inner, Index: index}, PeerName: outer})
	}))
}

// join moves inner into the pod and makes both ends usable.
func (w *world) join(inner, outer string) {
	w.t.Helper()
	must(w.t, inNS(w.outside, func() error {
		l, err := netlink.LinkByName(inner)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(w.pod))
	}))
	for _, end := range []struct {
		ns     netns.NsHandle
		dev    string
		v4, v6 string
	}{{w.pod, inner, net4, net6}, {w.outside, outer, gateway4, gateway6}} {
		must(w.t, inNS(end.ns, func() error {
			l, err := netlink.LinkByName(end.dev)
			if err != nil {
				return err
			}
			for _, a := range []string{end.v4 + "/24", end.v6 + "/64"} {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(l)
		}))
	}
	w.waitLink(w.pod, inner)
	w.waitLink(w.outside, outer)
}

func (w *world) delete(ns netns.NsHandle, name string) {
	w.t.Helper()
	l := linkOf(w.t, ns, name)
	must(w.t, inNS(ns, func() error { return netlink.LinkDel(l) }))
}

// onPod calls f with the pod's namespace, where the runtime runs.
func (w *world) onPod(f func(*cgroups.Store, *cgroups.Netns) error) error {
	w.t.Helper()
	return w.store(func(s *cgroups.Store) error {
		ns, err := cgroups.OpenNetns(fmt.Sprintf("/proc/self/fd/%d", int(w.pod)))
		if err != nil {
			return err
		}
		defer ns.Close()
		return f(s, ns)
	})
}

func (w *world) addDevice(inner, outer string, addrs []netip.Addr) error {
	return w.onPod(func(s *cgroups.Store, ns *cgroups.Netns) error { return s.AddDevice(ns, inner, outer, addrs) })
}

func (w *world) removeDevice(cookie uint64, outer string, addrs []netip.Addr) {
	w.t.Helper()
	must(w.t, w.store(func(s *cgroups.Store) error { return s.RemoveDevice(cookie, outer, addrs) }))
}

func (w *world) syncDevices() {
	w.t.Helper()
	must(w.t, w.onPod(func(s *cgroups.Store, ns *cgroups.Netns) error { return s.SyncDevices(ns) }))
}

// podPins are the names of the pins of the one pod.
func (w *world) podPins() []string { return w.status().Pods[0].Hooks }

// networkFrame is a datagram from net1 to the gateway, port 5000.
func (w *world) networkFrame(inner, outer string) []byte {
	f := w.udpFrame()
	copy(f, linkOf(w.t, w.outside, outer).Attrs().HardwareAddr)
	copy(f[6:], linkOf(w.t, w.pod, inner).Attrs().HardwareAddr)
	copy(f[26:], net.ParseIP(net4).To4())
	copy(f[30:], net.ParseIP(gateway4).To4())
	ipv4Sum(f[14:])
	return f
}

// wantEnforced fails the test unless a registered socket's packets go through the
// pair and nothing else does.
func (m *meshPod) wantEnforced(what, inner, outer string) {
	m.t.Helper()
	t := m.t
	id := udpListen(t, m.out, "outside", gateway4+":5000")
	id6 := udpListen(t, m.out, "outside", "["+gateway6+"]:5000")
	defer m.out.Do(t, agent.Request{Op: "close", ID: id})
	defer m.out.Do(t, agent.Request{Op: "close", ID: id6})
	received := func() int { return m.out.Do(t, agent.Request{Op: "received", ID: id}).Len }
	for _, ip := range []string{gateway4, gateway6} {
		// Once more where a neighbour was looked for while it was closed.
		eventually(t, what+": sidecar to "+ip, func() bool {
			return m.sidecar.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: net.JoinHostPort(ip, "5000"), Data: "x"}).Err == ""
		})
	}
	n, drops := received(), m.status().Pods[0].Drops
	frame := m.networkFrame(inner, outer)
	for _, bypass := range []bool{false, true} {
		m.app.Do(t, agent.Request{Op: "packet", Addr: inner, Frame: frame, Bypass: bypass})
	}
	wantErr(t, what+": app", m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"}), "EPERM")
	wantErr(t, what+": sidecar", m.sidecar.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"}), "")
	if got := received(); got != n+1 {
		t.Errorf("%s: %d others got out", what, got-n-1)
	}
	now := m.status().Pods[0].Drops
	if now["packet_socket"] != drops["packet_socket"]+1 || now["bypass"] != drops["bypass"]+1 {
		t.Errorf("%s: drops are %v after %v", what, now, drops)
	}
}

// wantOwnAddresses fails the test unless the pod has those of the network, or none.
func (m *meshPod) wantOwnAddresses(what string, want bool) {
	m.t.Helper()
	have := m.status().Pods[0].Addresses
	for _, a := range netAddrs {
		if slices.Contains(have, a) != want {
			m.t.Errorf("%s: the pod has the addresses %v", what, have)
		}
	}
}

// wantMoved waits for what only kernels without tcx need after a move.
func (m *meshPod) wantMoved() {
	m.t.Helper()
	if kernelHasTCX(m.t) {
		return
	}
	got := m.sidecar.Do(m.t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"})
	if got.Err == "" {
		m.t.Error("a device without a program lets out what has no mark")
	}
	m.syncDevices()
}

func TestAddDeviceBeforeItMoves(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	pins := m.podPins()
	for range 2 { // the second has the first's names
		m.network("net1", "out1", 0)
		must(t, m.addDevice("net1", "out1", netAddrs))
		must(t, m.addDevice("net1", "out1", netAddrs)) // and again
		if n := hooksOn(t, m.outside, "out1") + hooksOn(t, m.outside, "net1"); n != 2 {
			t.Errorf("%d programs are attached, want 2", n)
		}
		m.wantOwnAddresses("added", true)
		m.join("net1", "out1")
		m.wantMoved()
		m.wantEnforced("moved", "net1", "out1")
		late := m.container("late" + fmt.Sprint(serial.Add(1)))
		wantErr(t, "stranger", late.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"}), "EPERM")
		late.Stop()
		after := m.podPins()
		must(t, m.addDevice("net1", "out1", netAddrs)) // as after a restart
		m.syncDevices()
		if got := m.podPins(); !slices.Equal(got, after) {
			t.Errorf("pins are %q, then %q", after, got)
		}
		m.wantEnforced("synced", "net1", "out1")

		// What leaves first is the pod's addresses: the device is still in it.
		m.removeDevice(m.att.Cookie, "out1", netAddrs)
		m.wantOwnAddresses("removed", false)
		if n := hooksOn(t, m.outside, "out1") + hooksOn(t, m.pod, "net1"); n != 2 {
			t.Errorf("%d programs stay while the device is in the pod, want 2", n)
		}
		m.delete(m.outside, "out1")
		m.removeDevice(m.att.Cookie, "out1", netAddrs)
		if got := m.podPins(); !slices.Equal(got, pins) {
			t.Errorf("pins are %q after it is gone, before it came %q", got, pins)
		}
	}
	// Moved back: nothing of the pod stays on the pair.
	m.network("net1", "out1", 0)
	must(t, m.addDevice("net1", "out1", netAddrs))
	m.join("net1", "out1")
	m.wantMoved()
	net1 := linkOf(t, m.pod, "net1")
	must(t, inNS(m.pod, func() error { return netlink.LinkSetNsFd(net1, int(m.outside)) }))
	m.removeDevice(m.att.Cookie, "out1", netAddrs)
	m.removeDevice(m.att.Cookie, "out1", netAddrs)
	if n := hooksOn(t, m.outside, "out1") + hooksOn(t, m.outside, "net1"); n != 0 {
		t.Errorf("%d programs stay on a pair that has left", n)
	}
	if got := m.podPins(); !slices.Equal(got, pins) {
		t.Errorf("pins are %q after it left, before it came %q", got, pins)
	}
	m.removeDevice(m.att.Cookie+1, "out1", netAddrs) // of a pod that is gone
}

// TestAddDeviceWhoseIndexIsTaken: it gets another one when it moves.
func TestAddDeviceWhoseIndexIsTaken(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	pins := m.podPins()
	const taken = 5000
	must(t, inNS(m.pod, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "taken", Index: taken}, PeerName: "taker"})
	}))
	m.network("net1", "out1", taken)
	must(t, m.addDevice("net1", "out1", netAddrs))
	m.join("net1", "out1")
	if got := linkOf(t, m.pod, "net1").Attrs().Index; got == taken {
		t.Fatalf("the index stays %d", got)
	}
	m.wantMoved()
	m.syncDevices()
	m.wantEnforced("moved", "net1", "out1")
	m.delete(m.pod, "taken")
	m.delete(m.outside, "out1")
	m.removeDevice(m.att.Cookie, "out1", netAddrs)
	if got := m.podPins(); !slices.Equal(got, pins) {
		t.Errorf("pins are %q after it is gone, before it came %q", got, pins)
	}
}

// TestSyncDevices finds what was moved without a word.
func TestSyncDevices(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	pins := m.podPins()
	m.syncDevices()
	if got := m.podPins(); !slices.Equal(got, pins) {
		t.Errorf("pins are %q, then %q", pins, got)
	}
	m.network("net1", "out1", 0)
	m.join("net1", "out1")
	m.syncDevices()
	m.wantOwnAddresses("synced", true)
	m.wantEnforced("synced", "net1", "out1")
	m.syncDevices()
	if n := hooksOn(t, m.outside, "out1") + hooksOn(t, m.pod, "net1") + hooksOn(t, m.pod, "eth0") + hooksOn(t, m.pod, "lo"); n != 5 {
		t.Errorf("%d programs are attached, want 5", n)
	}
	// A pin that was lost, and the program with it.
	if kernelHasTCX(t) {
		for _, pin := range slices.DeleteFunc(m.podPins(), func(name string) bool { return name == "lookup" }) {
			l, err := link.LoadPinnedLink(filepath.Join(cgroups.VersionDir(m.state), "pods", fmt.Sprint(m.att.Cookie), pin), nil)
			must(t, err)
			must(t, errors.Join(l.Detach(), l.Unpin(), l.Close()))
		}
		m.syncDevices()
		m.wantEnforced("synced again", "net1", "out1")
	}
	// One that leaves keeps its program, and its pin has the index that another
	// one gets.
	net1 := linkOf(t, m.pod, "net1")
	must(t, inNS(m.pod, func() error { return netlink.LinkSetNsFd(net1, int(m.outside)) }))
	must(t, inNS(m.pod, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net2", Index: net1.Attrs().Index}, PeerName: "peer2"})
	}))
	m.syncDevices()
	if n := hooksOn(t, m.pod, "net2") + hooksOn(t, m.pod, "peer2"); n != 2 {
		t.Errorf("%d programs are attached to a pair in the pod, want 2", n)
	}
	m.delete(m.pod, "net2")
	m.delete(m.outside, "net1")
	m.syncDevices()
	if got := m.podPins(); !slices.Equal(got, pins) {
		t.Errorf("pins are %q after it is gone, before it came %q", got, pins)
	}
}

// TestDeviceOfAGuardedEndpoint is all that the network driver does.
func TestDeviceOfAGuardedEndpoint(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	m.network("net1", "out1", 0)
	e := &cgroups.Endpoint{Name: "out1", MAC: linkOf(t, m.outside, "net1").Attrs().HardwareAddr, V4: netAddrs[0], V6: netAddrs[1]}
	must(t, m.store(func(s *cgroups.Store) error { return s.GuardEndpoint(e) }))
	must(t, m.addDevice("net1", "out1", netAddrs))
	m.join("net1", "out1")
	m.wantMoved()
	if got := m.sidecar.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"}); got.Err == "" {
		t.Error("closed, and the sidecar gets through")
	}
	must(t, m.store(func(s *cgroups.Store) error { return s.OpenEndpoint("out1") }))
	m.wantEnforced("open", "net1", "out1")
	must(t, m.store(func(s *cgroups.Store) error { return s.GuardEndpoint(e) }))
	m.wantEnforced("guarded again", "net1", "out1")
	if n := hooksOn(t, m.outside, "out1"); n != 3 {
		t.Errorf("out1 has %d programs, want 3", n)
	}
	// Another address than its own, of a socket that may send.
	must(t, inNS(m.pod, func() error {
		l, err := netlink.LinkByName("net1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("198.51.100.77/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, addr)
	}))
	got := m.sidecar.Do(t, agent.Request{Op: "dial", Network: "tcp", Addr: gateway4 + ":80", Local: "198.51.100.77:0"})
	if got.Err == "" || got.Err == "ECONNREFUSED" {
		t.Errorf("a spoofed source: %+v", got)
	}
	must(t, m.store(func(s *cgroups.Store) error {
		list, err := s.Endpoints()
		if err == nil && (len(list) != 1 || list[0].Drops["address"] == 0) {
			t.Errorf("endpoints are %+v", list)
		}
		return err
	}))
}

// TestAddDeviceIsAllOrNothing: whatever is missing, nothing stays.
func TestAddDeviceIsAllOrNothing(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	pins := m.podPins()
	m.network("net1", "out1", 0)
	m.network("net2", "out2", 0)
	for _, c := range []struct{ inner, outer, want string }{
		{"net1", "nothere", "nothere"},
		{"nothere", "out1", "nothere"},
		{"net2", "out1", "not the other end"},
		{"lo", "lo", "veth"},
		{"net1", "out0", "eth0"}, // out0's other end is in the pod already: see below
	} {
		err := m.addDevice(c.inner, c.outer, netAddrs)
		if c.outer == "out0" {
			must(t, err) // which is what SyncDevices does
			must(t, m.onPod(func(s *cgroups.Store, ns *cgroups.Netns) error { return s.RemoveDevice(ns.Cookie, "out0", netAddrs) }))
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "pod") {
			t.Errorf("%s and %s: %v", c.inner, c.outer, err)
		}
	}
	// The second program cannot be attached, as its link cannot be pinned.
	if kernelHasTCX(t) {
		cookie := fmt.Sprint(m.att.Cookie)
		prog := filepath.Join(cgroups.VersionDir(m.state), "slots", "0", "sg_pod_host")
		p, err := ebpf.LoadPinnedProgram(prog, nil)
		must(t, err)
		pinned, err := ebpf.LoadPinnedProgram(filepath.Join(cgroups.VersionDir(m.state), "progs", "sg_egress"), nil)
		must(t, err)
		other, err := pinned.Clone() // the other's Pin would move it
		must(t, errors.Join(err, pinned.Close()))
		must(t, errors.Join(p.Unpin(), other.Pin(prog))) // of a type that no device takes
		if err := m.addDevice("net1", "out1", netAddrs); err == nil {
			t.Errorf("pod %s: a device without a program for its other end is added", cookie)
		}
		must(t, os.Remove(prog))
		must(t, errors.Join(p.Pin(prog), p.Close(), other.Close()))
	}
	for _, dev := range []string{"net1", "out1", "net2", "out2"} {
		if n := hooksOn(t, m.outside, dev); n != 0 {
			t.Errorf("%d programs stay on %s", n, dev)
		}
	}
	m.wantOwnAddresses("after errors", false)
	if got := m.podPins(); !slices.Equal(got, pins) {
		t.Errorf("pins are %q, before %q", got, pins)
	}
}

func TestDevicesOfNoPod(t *testing.T) {
	w := newWorld(t)
	w.network("net1", "out1", 0)
	for what, err := range map[string]error{
		"add":  w.addDevice("net1", "out1", netAddrs),
		"sync": w.onPod(func(s *cgroups.Store, ns *cgroups.Netns) error { return s.SyncDevices(ns) }),
	} {
		if err == nil || !strings.Contains(err.Error(), "no managed pod") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := hooksOn(t, w.outside, "net1") + hooksOn(t, w.outside, "out1"); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
}

// TestDeviceGoesToAnotherPod: the first one's programs do not go with it.
func TestDeviceGoesToAnotherPod(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	m.network("net1", "out1", 0)
	must(t, m.addDevice("net1", "out1", netAddrs))
	first := m.pod
	m.pod = newNetns(t)
	other := m.container("other")
	m.attach(other, "other", policy.RoleSidecar, policy.Default())
	must(t, m.addDevice("net1", "out1", netAddrs))
	if n := hooksOn(t, m.outside, "net1") + hooksOn(t, m.outside, "out1"); n != 2 {
		t.Errorf("%d programs are attached, want 2", n)
	}
	m.join("net1", "out1")
	m.wantMoved()
	udpListen(t, m.out, "outside", gateway4+":5000")
	eventually(t, "the other pod's sidecar", func() bool {
		return other.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: gateway4 + ":5000", Data: "x"}).Err == ""
	})
	m.pod = first
}

// TestAddDeviceKnowsTheNode: a network's gateway is an address of the node, for
// rules that say so.
func TestAddDeviceKnowsTheNode(t *testing.T) {
	m := newMeshPod(t, parse(t, "  rules: [{role: sidecar, egress: [{to: [{entity: host}]}]}]\n"))
	m.network("net1", "out1", 0)
	must(t, inNS(m.outside, func() error {
		l, err := netlink.LinkByName("out1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("203.0.113.77/32")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, addr)
	}))
	must(t, m.addDevice("net1", "out1", netAddrs))
	hosts, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(m.state), "maps", "host_addrs"), nil)
	must(t, err)
	defer hosts.Close()
	var is uint8
	if err := hosts.Lookup(bpf.AddrFrom(netip.MustParseAddr("203.0.113.77")), &is); err != nil {
		t.Errorf("the gateway is not the node's: %v", err)
	}
}
