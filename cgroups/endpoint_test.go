// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"maps"
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
)

// store calls f where the runtime runs.
func (w *world) store(f func(*cgroups.Store) error) error {
	w.t.Helper()
	return inNS(w.host, func() (err error) {
		s, err := cgroups.Open(w.state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return f(s)
	})
}

func linkOf(t testing.TB, ns netns.NsHandle, name string) (l netlink.Link) {
	t.Helper()
	must(t, inNS(ns, func() (err error) {
		l, err = netlink.LinkByName(name)
		return err
	}))
	return l
}

// kernelHasTCX asks whether there are tcx links: Linux 6.6.
func kernelHasTCX(t testing.TB) bool {
	t.Helper()
	_, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

// hooksOn counts the programs at both directions of a device.
func hooksOn(t testing.TB, ns netns.NsHandle, name string) (n int) {
	t.Helper()
	l := linkOf(t, ns, name)
	must(t, inNS(ns, func() error {
		for attach, parent := range map[ebpf.AttachType]uint32{
			ebpf.AttachTCXIngress: netlink.HANDLE_MIN_INGRESS, ebpf.AttachTCXEgress: netlink.HANDLE_MIN_EGRESS,
		} {
			if kernelHasTCX(t) {
				res, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: attach})
				if err != nil {
					return err
				}
				n += len(res.Programs)
				continue
			}
			filters, err := netlink.FilterList(l, parent)
			if err != nil {
				return err
			}
			n += len(filters)
		}
		return nil
	}))
	return n
}

// guardedWorld is a pod that nobody manages, whose host's end is guarded.
type guardedWorld struct {
	*world
	in, out       *agent.Agent
	e             cgroups.Endpoint
	inUDP, outUDP int // their listeners
}

func newGuardedWorld(t testing.TB) *guardedWorld {
	t.Helper()
	w := newWorld(t)
	g := &guardedWorld{world: w, in: w.container("in"), out: agent.Start(t, w.outside, w.mkcgroup("outside"))}
	g.e = cgroups.Endpoint{
		Name: "out0", MAC: linkOf(t, w.pod, "eth0").Attrs().HardwareAddr,
		V4: netip.MustParseAddr(pod4), V6: netip.MustParseAddr(pod6),
	}
	for _, ip := range []string{outside4, outside6} {
		listen(t, g.out, "outside", net.JoinHostPort(ip, "80"))
	}
	for _, ip := range []string{pod4, pod6} {
		listen(t, g.in, "pod", net.JoinHostPort(ip, "80"))
	}
	g.outUDP = udpListen(t, g.out, "outside", "[::]:5000")
	g.inUDP = udpListen(t, g.in, "pod", "[::]:5000")
	return g
}

func (g *guardedWorld) guard() {
	g.t.Helper()
	must(g.t, g.store(func(s *cgroups.Store) error { return s.GuardEndpoint(&g.e) }))
}

func (g *guardedWorld) setOpen(open bool) {
	g.t.Helper()
	must(g.t, g.store(func(s *cgroups.Store) error {
		if open {
			return s.OpenEndpoint(g.e.Name)
		}
		return s.CloseEndpoint(g.e.Name)
	}))
}

func (g *guardedWorld) endpoints() (list []cgroups.EndpointStatus) {
	g.t.Helper()
	must(g.t, g.store(func(s *cgroups.Store) (err error) {
		list, err = s.Endpoints()
		return err
	}))
	return list
}

// endpoint returns the one that there is to be.
func (g *guardedWorld) endpoint() cgroups.EndpointStatus {
	g.t.Helper()
	list := g.endpoints()
	if len(list) != 1 {
		g.t.Fatalf("endpoints are %+v, want one", list)
	}
	return list[0]
}

// wantOpen fails the test unless all gets through, both ways.
func (g *guardedWorld) wantOpen(what string) {
	g.t.Helper()
	g.wantNeighbours(what)
	for _, ip := range []string{outside4, outside6} {
		wantBanner(g.t, what+": to "+ip, dial(g.t, g.in, "tcp", net.JoinHostPort(ip, "80")), "outside")
		wantErr(g.t, what+": UDP to "+ip, g.in.Do(g.t, agent.Request{Op: "udp", Network: "udp", Addr: net.JoinHostPort(ip, "5000"), Data: "x"}), "")
	}
	for _, ip := range []string{pod4, pod6} {
		wantBanner(g.t, what+": to "+ip, dial(g.t, g.out, "tcp", net.JoinHostPort(ip, "80")), "pod")
		wantErr(g.t, what+": UDP to "+ip, g.out.Do(g.t, agent.Request{Op: "udp", Network: "udp", Addr: net.JoinHostPort(ip, "5000"), Data: "x"}), "")
	}
}

// wantNeighbours waits until both ends know each other's MAC again.
func (g *guardedWorld) wantNeighbours(what string) {
	g.t.Helper()
	for _, ip := range []string{outside4, outside6} {
		eventually(g.t, what+": ping "+ip, func() bool { return g.in.Do(g.t, agent.Request{Op: "echo", Addr: ip}).Err == "" })
	}
	for _, ip := range []string{pod4, pod6} {
		eventually(g.t, what+": ping "+ip, func() bool { return g.out.Do(g.t, agent.Request{Op: "echo", Addr: ip}).Err == "" })
	}
}

func (g *guardedWorld) received(a *agent.Agent, id int) int {
	g.t.Helper()
	return a.Do(g.t, agent.Request{Op: "received", ID: id}).Len
}

// wantClosed fails the test if anything gets through. A frame that is dropped on
// its way in never arrives later: there is no queue.
func (g *guardedWorld) wantClosed(what string) {
	g.t.Helper()
	in, out := g.received(g.in, g.inUDP), g.received(g.out, g.outUDP)
	packets := func(ns netns.NsHandle, dev string) uint64 { return linkOf(g.t, ns, dev).Attrs().Statistics.RxPackets }
	before := packets(g.pod, "eth0")
	for from, addrs := range map[*agent.Agent][]string{g.in: {outside4, outside6}, g.out: {pod4, pod6}} {
		for _, ip := range addrs {
			got := from.Do(g.t, agent.Request{Op: "open", Network: "udp", Addr: net.JoinHostPort(ip, "5000")})
			wantErr(g.t, what, got, "")
			from.Do(g.t, agent.Request{Op: "write", ID: got.ID, Data: "x"})
			from.Do(g.t, agent.Request{Op: "close", ID: got.ID})
		}
	}
	for from, ip := range map[*agent.Agent]string{g.in: outside4, g.out: pod6} {
		if got := from.Do(g.t, agent.Request{Op: "echo", Addr: ip}); got.Err == "" {
			g.t.Errorf("%s: ping %s gets through", what, ip)
		}
	}
	for from, ip := range map[*agent.Agent]string{g.in: outside6, g.out: pod4} {
		if got := dial(g.t, from, "tcp", net.JoinHostPort(ip, "80")); got.Err == "" {
			g.t.Errorf("%s: a connection to %s gets through", what, ip)
		}
	}
	if n := g.received(g.in, g.inUDP) - in; n != 0 {
		g.t.Errorf("%s: %d datagrams get in", what, n)
	}
	if n := g.received(g.out, g.outUDP) - out; n != 0 {
		g.t.Errorf("%s: %d datagrams get out", what, n)
	}
	if n := packets(g.pod, "eth0") - before; n != 0 {
		g.t.Errorf("%s: %d packets arrive in the pod", what, n)
	}
}

func TestEndpointIsClosedUntilItOpens(t *testing.T) {
	g := newGuardedWorld(t)
	g.wantOpen("before")
	if list := g.endpoints(); len(list) != 0 {
		t.Errorf("endpoints are %+v", list)
	}
	g.guard()
	g.wantClosed("guarded")
	st := g.endpoint()
	if st.Open || st.Name != "out0" || st.Index != linkOf(t, g.outside, "out0").Attrs().Index ||
		st.MAC != g.e.MAC.String() || st.V4 != g.e.V4 || st.V6 != g.e.V6 {
		t.Errorf("endpoint is %+v", st)
	}
	if st.Drops["closed"] < 4 || len(st.Drops) != 1 {
		t.Errorf("drops are %v", st.Drops)
	}
	g.setOpen(true)
	st = g.endpoint() // a neighbour may have been asked for once more meanwhile
	g.wantOpen("open")
	if now := g.endpoint(); !now.Open || !maps.Equal(now.Drops, st.Drops) {
		t.Errorf("endpoint is %+v after %v", now, st.Drops)
	}
	g.setOpen(false)
	g.wantClosed("closed again")
	must(t, g.store(func(s *cgroups.Store) error { return errors.Join(s.ForgetEndpoint("out0"), s.ForgetEndpoint("out0")) }))
	g.wantOpen("forgotten")
	if n := hooksOn(t, g.outside, "out0"); n != 0 {
		t.Errorf("%d programs stay", n)
	}
}

// ipv4Sum writes the header's checksum.
func ipv4Sum(ip []byte) {
	ip[10], ip[11] = 0, 0
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
}

func TestEndpointSaysNothingOfOthers(t *testing.T) {
	g := newGuardedWorld(t)
	g.guard()
	g.setOpen(true)
	own := g.udpFrame()
	own[35]++ // what is at its own port there answers too
	spoofed := func(change func(f []byte) []byte) []byte { return change(slices.Clone(own)) }
	frames := []struct {
		name, reason string
		frame        []byte
	}{
		{"its own", "", own},
		{"another source", "address", spoofed(func(f []byte) []byte {
			copy(f[26:], net.IP{192, 0, 2, 77})
			ipv4Sum(f[14:])
			return f
		})},
		{"another MAC", "mac", spoofed(func(f []byte) []byte {
			f[11] ^= 1
			return f
		})},
		{"a VLAN", "ethertype", spoofed(func(f []byte) []byte { return slices.Insert(f, 12, 0x81, 0, 0, 7) })},
		{"priority, in VLAN 0", "ethertype", spoofed(func(f []byte) []byte { return slices.Insert(f, 12, 0x81, 0, 0, 0) })},
		{"two VLANs", "ethertype", spoofed(func(f []byte) []byte { return slices.Insert(f, 12, 0x88, 0xa8, 0, 7, 0x81, 0, 0, 8) })},
		{"RARP", "ethertype", spoofed(func(f []byte) []byte {
			f[12], f[13] = 0x80, 0x35
			return f
		})},
	}
	for _, bypass := range []bool{false, true} {
		for _, c := range frames {
			what := fmt.Sprintf("%s, bypass %v", c.name, bypass)
			before, drops := g.received(g.out, g.outUDP), g.endpoint().Drops
			wantErr(t, what, g.in.Do(t, agent.Request{Op: "packet", Addr: "eth0", Frame: c.frame, Bypass: bypass}), "")
			if c.reason == "" {
				eventually(t, what+" arrives", func() bool { return g.received(g.out, g.outUDP) == before+1 })
				continue
			}
			drops[c.reason]++
			eventually(t, what+" is counted", func() bool { return maps.Equal(g.endpoint().Drops, drops) })
			if n := g.received(g.out, g.outUDP) - before; n != 0 {
				t.Errorf("%s: it arrives", what)
			}
		}
	}
	// What the kernel itself says with other addresses.
	eth0 := linkOf(t, g.pod, "eth0")
	must(t, inNS(g.pod, func() error {
		return netlink.LinkSetHardwareAddr(eth0, net.HardwareAddr{2, 1, 2, 3, 4, 5})
	}))
	before := g.endpoint().Drops["mac"]
	if got := g.in.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":5000", Data: "x"}); got.Err == "" {
		t.Error("a changed MAC gets through")
	}
	if n := g.endpoint().Drops["mac"]; n <= before {
		t.Error("a changed MAC is not counted")
	}
	// GuardEndpoint replaces addresses, and says nothing of being open.
	g.e.MAC = net.HardwareAddr{2, 1, 2, 3, 4, 5}
	g.guard()
	g.wantNeighbours("the new MAC")
	wantErr(t, "the new MAC", g.in.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":5000", Data: "x"}), "")
	g.e.V4 = netip.MustParseAddr("192.0.2.99")
	g.guard()
	if got := g.in.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":5000", Data: "x"}); got.Err == "" {
		t.Error("the old address gets through")
	}
	wantErr(t, "IPv6 as before", g.in.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: "[" + outside6 + "]:5000", Data: "x"}), "")
}

func (w *world) endpointDir(index int, name string) string {
	return filepath.Join(cgroups.VersionDir(w.state), "endpoints", "devices", fmt.Sprintf("%d-%s", index, name))
}

// endpointEntries opens the map of endpoints.
func (w *world) endpointEntries() *ebpf.Map {
	w.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(w.state), "endpoints", "maps", "endpoints"), nil)
	must(w.t, err)
	w.t.Cleanup(func() { m.Close() })
	return m
}

func TestGuardEndpointAgain(t *testing.T) {
	g := newGuardedWorld(t)
	g.guard()
	index := linkOf(t, g.outside, "out0").Attrs().Index
	entries := g.endpointEntries()
	want := func(what string, open bool) {
		t.Helper()
		if st := g.endpoint(); st.Open != open {
			t.Errorf("%s: open is %v", what, st.Open)
		}
		if n := hooksOn(t, g.outside, "out0"); n != 2 {
			t.Errorf("%s: %d programs are attached, want 2", what, n)
		}
		if k, err := entries.NextKeyBytes(nil); err != nil || k == nil {
			t.Errorf("%s: there is no entry (%v)", what, err)
		}
	}
	want("guarded", false)
	g.guard()
	want("twice", false)
	g.setOpen(true)
	g.guard()
	want("while open", true)
	g.setOpen(false)
	g.guard()
	want("while closed", false)

	// What a killed process leaves.
	g.setOpen(true)
	must(t, entries.Delete(uint32(index)))
	g.wantClosed("pins without an entry")
	if st := g.endpoint(); st.Open {
		t.Errorf("pins without an entry: %+v", st)
	}
	if err := g.store(func(s *cgroups.Store) error { return s.OpenEndpoint("out0") }); err == nil {
		t.Error("an endpoint without an entry opens")
	}
	g.guard()
	want("pins without an entry", false)
	g.setOpen(true)
	for _, pin := range []string{"from", "to"} {
		l, err := link.LoadPinnedLink(filepath.Join(g.endpointDir(index, "out0"), pin), nil)
		if err != nil && !kernelHasTCX(t) {
			break // filters have no pins
		}
		must(t, err)
		must(t, errors.Join(l.Detach(), l.Unpin(), l.Close()))
		g.guard()
		want("without "+pin, false)
		g.setOpen(true)
	}
	must(t, g.store(func(s *cgroups.Store) error { return s.ForgetEndpoint("out0") }))
	must(t, entries.Put(uint32(index), bpf.NewEndpoint([6]byte(g.e.MAC), g.e.V4, g.e.V6, bpf.EndpointOpen)))
	if err := g.store(func(s *cgroups.Store) error { return s.OpenEndpoint("out0") }); err == nil || !strings.Contains(err.Error(), "out0") {
		t.Errorf("an endpoint without pins opens: %v", err)
	}
	g.guard()
	want("an entry without pins", false)
	g.e.Open = true
	g.guard()
	want("open at once", true)
	must(t, os.Mkdir(filepath.Join(filepath.Dir(g.endpointDir(index, "x")), "tmp-1"), 0o700))
	g.guard()
	if n := pinsBelow(t, filepath.Dir(g.endpointDir(index, "x"))); kernelHasTCX(t) && n != 3 {
		t.Errorf("%d pins, want a directory of two", n)
	}
}

// TestEndpointOfAnotherDevice: what was said of a device holds for no other one of
// its name or its index.
func TestEndpointOfAnotherDevice(t *testing.T) {
	g := newGuardedWorld(t)
	const index = 4242
	add := func(name string, index int) {
		t.Helper()
		must(t, inNS(g.outside, func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: "inner"})
		}))
	}
	del := func(name string) {
		t.Helper()
		l := linkOf(t, g.outside, name)
		must(t, inNS(g.outside, func() error { return netlink.LinkDel(l) }))
	}
	do := func(f func(s *cgroups.Store) error) error { return g.store(f) }
	e := g.e
	for _, name := range []string{"veth.1", "other-1"} {
		add("veth.1", index)
		e.Name = "veth.1"
		must(t, do(func(s *cgroups.Store) error { return errors.Join(s.GuardEndpoint(&e), s.OpenEndpoint(e.Name)) }))
		if st := g.endpoint(); !st.Open || st.Name != e.Name || st.Index != index {
			t.Errorf("endpoint is %+v", st)
		}
		del("veth.1")
		add(name, index)
		e.Name = name
		if err := do(func(s *cgroups.Store) error { return s.OpenEndpoint(name) }); err == nil {
			t.Errorf("%s opens, which nobody guards", name)
		}
		must(t, do(func(s *cgroups.Store) error { return s.GuardEndpoint(&e) }))
		if st := g.endpoint(); st.Open || st.Name != name || st.Index != index {
			t.Errorf("endpoint is %+v", st)
		}
		del(name)
		must(t, do(func(s *cgroups.Store) error { return s.ForgetEndpoint(name) }))
	}
	// Of its name, with another index.
	add("veth", index)
	e.Name = "veth"
	must(t, do(func(s *cgroups.Store) error { return errors.Join(s.GuardEndpoint(&e), s.OpenEndpoint("veth")) }))
	del("veth")
	add("veth", index+1)
	if err := do(func(s *cgroups.Store) error { return s.OpenEndpoint("veth") }); err == nil {
		t.Error("a new device opens")
	}
	must(t, do(func(s *cgroups.Store) error { return s.GuardEndpoint(&e) }))
	collected := 0
	must(t, do(func(s *cgroups.Store) (err error) {
		collected, err = s.CollectEndpoints()
		return err
	}))
	if st := g.endpoint(); collected != 1 || st.Open || st.Index != index+1 {
		t.Errorf("collected %d, endpoint is %+v", collected, st)
	}
	del("veth")
	// Nothing is left to do for what is gone.
	must(t, do(func(s *cgroups.Store) error {
		return errors.Join(s.CloseEndpoint("veth"), s.ForgetEndpoint("veth"), s.CloseEndpoint("veth"))
	}))
	if k, _ := g.endpointEntries().NextKeyBytes(nil); k != nil || len(g.endpoints()) != 0 {
		t.Errorf("endpoints are %+v, entry of %v", g.endpoints(), k)
	}
}

func TestEndpointErrors(t *testing.T) {
	g := newGuardedWorld(t)
	for name, e := range map[string]cgroups.Endpoint{
		"no device":       {Name: "nothere", MAC: g.e.MAC},
		"no MAC":          {Name: "out0"},
		"long MAC":        {Name: "out0", MAC: make([]byte, 8)},
		"IPv6 as IPv4":    {Name: "out0", MAC: g.e.MAC, V4: g.e.V6},
		"IPv4 as IPv6":    {Name: "out0", MAC: g.e.MAC, V6: g.e.V4},
		"mapped as IPv6":  {Name: "out0", MAC: g.e.MAC, V6: netip.AddrFrom16(g.e.V4.As16())},
		"mapped for IPv4": {Name: "out0", MAC: g.e.MAC, V4: netip.AddrFrom16(g.e.V4.As16())},
	} {
		if err := g.store(func(s *cgroups.Store) error { return s.GuardEndpoint(&e) }); err == nil || !strings.Contains(err.Error(), e.Name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, f := range map[string]func(*cgroups.Store) error{
		"open":  func(s *cgroups.Store) error { return s.OpenEndpoint("out0") },
		"close": func(s *cgroups.Store) error { return s.CloseEndpoint("out0") },
	} {
		if err := g.store(f); err == nil || !strings.Contains(err.Error(), "not guarded") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := hooksOn(t, g.outside, "out0"); n != 0 || len(g.endpoints()) != 0 {
		t.Errorf("%d programs, endpoints %+v", n, g.endpoints())
	}
}

// TestUnloadRefusesWhileEndpointsAreGuarded: their containers would be open.
func TestUnloadRefusesWhileEndpointsAreGuarded(t *testing.T) {
	g := newGuardedWorld(t)
	g.guard()
	unload := func(force bool) error {
		return inNS(g.outside, func() error { return cgroups.Unload(g.state, force) })
	}
	if err := unload(false); !errors.Is(err, cgroups.ErrManaged) {
		t.Errorf("unload says %v", err)
	}
	if n := hooksOn(t, g.outside, "out0"); n != 2 {
		t.Errorf("%d programs are attached after a refused unload", n)
	}
	must(t, unload(true))
	if n := hooksOn(t, g.outside, "out0"); n != 0 {
		t.Errorf("%d programs are attached after unload", n)
	}
	g.wantOpen("unloaded")
	// Devices that are gone are nobody's enforcement.
	g.guard()
	out0 := linkOf(t, g.outside, "out0")
	must(t, inNS(g.outside, func() error { return netlink.LinkDel(out0) }))
	if kernelHasTCX(t) {
		st := g.status() // collects
		if list := g.endpoints(); !st.Loaded || len(list) != 0 {
			t.Errorf("endpoints are %+v", list)
		}
	}
	must(t, unload(false))
}
