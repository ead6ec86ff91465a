// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestVeth(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	n.mtu = 1400
	l.must(ensureBridge(n))
	e := &endpoint{
		id: strings.Repeat("ab", 32), network: n.id, v4: netip.MustParsePrefix("10.1.0.2/24"), v6: netip.MustParsePrefix("fd01::2/64"),
		mac: net.HardwareAddr{2, 0x42, 0, 0, 0, 2}, role: "app", policy: "web", pod: "some pod",
	}
	e.role = "app"
	for range 2 {
		l.must(ensureVeth(n, e))
		host, err := netlink.LinkByName(e.host())
		l.must(err)
		l.same(host.Attrs().Flags&net.FlagUp, net.Flags(0))
		l.same(host.Attrs().MasterIndex, 0)
		l.same(host.Attrs().MTU, 1400)
		inner, err := netlink.LinkByName(e.inner())
		l.must(err)
		l.same(inner.Attrs().MTU, 1400)
		l.same(inner.Attrs().HardwareAddr, e.mac)
	}
	listed := func() {
		t.Helper()
		all, err := listEndpoints()
		l.must(err)
		if !reflect.DeepEqual(all, []*endpoint{e}) {
			t.Errorf("listed %+v, want %+v", all, e)
		}
	}
	listed()
	for range 2 {
		l.must(plug(n, e))
	}
	// Once plugged, and the inner end moved, it stays so.
	inner, err := netlink.LinkByName(e.inner())
	l.must(err)
	l.must(netlink.LinkSetNsFd(inner, int(l.outside)))
	l.must(ensureVeth(n, e))
	host, err := netlink.LinkByName(e.host())
	l.must(err)
	br, err := netlink.LinkByName(n.bridge())
	l.must(err)
	l.same(host.Attrs().MasterIndex, br.Attrs().Index)
	l.same(host.Attrs().Flags&net.FlagUp, net.FlagUp)
	l.same(host.Attrs().MTU, 1400)
	port, err := netlink.LinkGetProtinfo(host)
	l.must(err)
	l.same([]bool{port.Hairpin, port.Learning, port.Isolated}, []bool{true, true, false})
	addrs, err := netlink.AddrList(host, netlink.FAMILY_ALL)
	l.must(err)
	l.same(len(addrs), 0)
	listed()

	// Without the bridge there is still what is needed to collect it.
	l.must(deleteBridge(n.id))
	all, err := listEndpoints()
	l.must(err)
	l.same(all[0].network, short(n.id))
	l.same(all[0].id, e.id)

	for range 2 {
		l.must(deleteVeth(e.id))
	}
	l.same(l.devices(), []string(nil))
}

func TestVethRefuses(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	e := &endpoint{id: strings.Repeat("ab", 32), network: n.id, pod: strings.Repeat("x", 200)}
	l.refused(ensureVeth(n, e), "endpoint abababababab", "choose shorter names")
	l.same(l.devices(), []string(nil))

	e.pod = ""
	l.must(ensureVeth(n, e))
	if len(e.mac) != 6 {
		t.Errorf("MAC %s", e.mac)
	}
	l.refused(plug(n, e), "plug endpoint abababababab", n.bridge())

	other := &endpoint{id: e.id[:60] + "0000", network: n.id}
	l.refused(ensureVeth(n, other), "not ours")
	l.refused(deleteVeth(other.id), "not ours")
	l.same(len(l.devices()), 2)
}

// What has no alias, and only that, goes when the driver starts.
func TestDeleteUnnamed(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	l.must(ensureBridge(n))
	e := &endpoint{id: strings.Repeat("ab", 32), network: n.id}
	l.must(ensureVeth(n, e))
	before := l.devices()
	add := func(link netlink.Link, name string) {
		link.Attrs().Name, link.Attrs().TxQLen = name, -1
		l.must(netlink.LinkAdd(link))
	}
	add(&netlink.Bridge{}, "sg-0123456789ab")
	add(&netlink.Veth{PeerName: "sgc0123456789ab"}, "sgh0123456789ab")
	l.must(deleteUnnamed())
	l.same(l.devices(), before)
	// Others have such names too.
	add(&netlink.Bridge{}, "sg-lan")
	add(&netlink.Bridge{}, "sgh0123456789ab")
	with := l.devices()
	l.must(deleteUnnamed())
	l.same(l.devices(), with)
}

func TestPlug(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	l.must(ensureBridge(n))
	a, b := l.run(n, 2), l.run(n, 3)
	l.serve(a.ns, 80)
	l.must(plug(n, b.endpoint))
	l.missed(b.ns, a.v4.Addr(), 80) // not plugged
	l.must(plug(n, a.endpoint))
	l.reaches(b.ns, a.v4.Addr(), 80, b.v4.Addr())
	l.reaches(b.ns, a.v6.Addr(), 80, b.v6.Addr())
	l.reaches(l.machine, a.v4.Addr(), 80, n.v4.gateway)
	l.reaches(l.machine, a.v6.Addr(), 80, n.v6.gateway)
}
