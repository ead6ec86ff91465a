// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestBridge(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	n.mtu, n.internal = 1400, true
	plain := &network{id: "short", v4: newNetwork(2).v4}
	for range 2 {
		l.must(ensureBridge(n))
		l.must(ensureBridge(plain))
	}
	check := func() {
		t.Helper()
		br, err := netlink.LinkByName(n.bridge())
		l.must(err)
		l.same(br.Attrs().MTU, 1400)
		l.same(br.Attrs().HardwareAddr, bridgeMAC(n.id))
		l.same(br.Attrs().Flags&net.FlagUp != 0, true)
		for family, want := range map[int]string{netlink.FAMILY_V4: "10.1.0.1/24", netlink.FAMILY_V6: "fd01::1/64"} {
			addrs, err := netlink.AddrList(br, family)
			l.must(err)
			var got []string
			for _, a := range addrs {
				if !a.IP.IsLinkLocalUnicast() {
					got = append(got, a.IPNet.String())
				}
			}
			l.same(got, []string{want})
		}
		for name, want := range map[string]string{
			n.bridge() + "/accept_ra": "0", n.bridge() + "/disable_ipv6": "0", plain.bridge() + "/disable_ipv6": "1",
		} {
			got, err := readSysctl("ipv6/conf/" + name)
			l.must(err)
			l.same(got, want)
		}
		all, err := listNetworks()
		l.must(err)
		if want := []*network{n, plain}; !reflect.DeepEqual(all, want) {
			t.Errorf("listed %+v", all)
		}
	}
	check()

	// What others broke is repaired.
	br, err := netlink.LinkByName(n.bridge())
	l.must(err)
	l.must(netlink.LinkSetDown(br))
	l.must(netlink.LinkSetMTU(br, 1300))
	l.must(netlink.LinkSetAlias(br, ""))
	l.must(netlink.AddrDel(br, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.1.0.1/24"))}))
	l.must(ensureBridge(n))
	check()

	for range 2 {
		l.must(deleteBridge(n.id))
		l.must(deleteBridge(plain.id))
	}
	l.same(l.devices(), []string(nil))
}

func TestBridgeRefuses(t *testing.T) {
	l := newLab(t)
	over := func(subnet, gateway string) *network {
		return &network{id: "0123456789abcdef", v4: pool{netip.MustParsePrefix(subnet), netip.MustParseAddr(gateway)}}
	}
	l.refused(ensureBridge(over("10.99.0.0/25", "10.99.0.1")), "subnet 10.99.0.0/25", "network 0123456789ab", "uplink", "--subnet")
	l.refused(ensureBridge(over("10.0.0.0/8", "10.0.0.1")), "overlaps", "uplink")

	l.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.50.0.0/16")), Gw: outside4.AsSlice()}))
	l.refused(ensureBridge(over("10.50.0.0/16", "10.50.0.1")), "overlaps route 10.50.0.0/16 dev uplink")
	l.same(l.devices(), []string(nil))
	l.must(ensureBridge(over("10.50.1.0/24", "10.50.1.1"))) // cut out of what a gateway has
	l.must(deleteBridge("0123456789abcdef"))

	n := newNetwork(1)
	l.must(ensureBridge(n))
	other := newNetwork(1)
	other.id = "ffff" + other.id[4:]
	l.refused(ensureBridge(other), "overlaps", n.bridge())
	other = newNetwork(2)
	other.id = n.id[:60] + "0000"
	l.refused(ensureBridge(other), n.bridge(), "another network", "remove")
	l.refused(deleteBridge(other.id), "another network")

	attrs := netlink.NewLinkAttrs()
	attrs.Name = newNetwork(3).bridge()
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "peer"
	l.must(netlink.LinkAdd(veth))
	l.refused(ensureBridge(newNetwork(3)), "is a veth, not ours")
}

func TestForwarding(t *testing.T) {
	l := newLab(t)
	l.must(sysctl("ipv4/ip_forward", "0"))
	l.must(sysctl("ipv6/conf/all/forwarding", "0"))
	l.must(sysctl("ipv6/conf/uplink/accept_ra", "1"))
	for range 2 {
		l.must(ensureForwarding(true, false))
	}
	read := func(name string) string {
		v, err := readSysctl(name)
		l.must(err)
		return v
	}
	l.same(read("ipv4/ip_forward")+read("ipv6/conf/all/forwarding")+read("ipv6/conf/uplink/accept_ra"), "101")
	for range 2 {
		l.must(ensureForwarding(false, true))
	}
	l.same(read("ipv6/conf/all/forwarding")+read("ipv6/conf/uplink/accept_ra"), "12")
}

// randomID is Docker's kind, or anything.
func randomID(r *rand.Rand) string {
	if r.IntN(3) > 0 {
		return randomWord(r, "0123456789abcdef", 64, 64)
	}
	return randomWord(r, "0123456789abcdefXYZ~-_% =", 1, 64)
}

func randomWord(r *rand.Rand, from string, least, most int) string {
	b := make([]byte, least+r.IntN(most-least+1))
	for i := range b {
		b[i] = from[r.IntN(len(from))]
	}
	return string(b)
}

func randomAddr(r *rand.Rand, size int) netip.Addr {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func randomPrefix(r *rand.Rand, size int) netip.Prefix {
	if r.IntN(3) == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(randomAddr(r, size), r.IntN(8*size+1))
}

func TestAliasEndpoint(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var whole []byte
	for c := range 256 {
		whole = append(whole, byte(c))
	}
	fits := 0
	for range 5000 {
		e := &endpoint{
			id: randomID(r), network: randomWord(r, "0123456789abcdef", 12, 12), v4: randomPrefix(r, 4), v6: randomPrefix(r, 16),
			role: randomWord(r, "abc", 0, 12), policy: randomWord(r, string(whole), 0, 20), pod: randomWord(r, "abc-/.", 0, 50),
		}
		if r.IntN(4) > 0 {
			e.mac = net.HardwareAddr(randomWord(r, string(whole), 6, 6))
		}
		alias, err := e.alias()
		if err != nil {
			continue
		}
		fits++
		if len(alias) > aliasMax {
			t.Fatalf("alias %q has %d bytes", alias, len(alias))
		}
		if strings.ContainsFunc(alias, func(c rune) bool { return c < ' ' }) || !isAlias(aliasEndpoint, alias) {
			t.Fatalf("alias %q", alias)
		}
		back, err := endpointOfAlias(alias)
		if err != nil {
			t.Fatalf("read alias %q: %v", alias, err)
		}
		if !reflect.DeepEqual(e, back) {
			t.Fatalf("alias %q\nis   %+v\nwant %+v", alias, back, e)
		}
	}
	if fits < 2500 {
		t.Errorf("only %d of 5000 fit", fits)
	}
}

// TestAliasLimit proves how much room names have in the worst case.
func TestAliasLimit(t *testing.T) {
	const room = 117
	hex := strings.Repeat("0123456789abcdef", 4)
	for _, tc := range []struct {
		length int
		ok     bool
	}{{room, true}, {room + 1, false}} {
		e := &endpoint{
			id: hex, network: hex, v4: netip.MustParsePrefix("192.168.100.200/24"),
			v6:  netip.MustParsePrefix("fd00:1111:2222:3333:4444:5555:6666:7777/64"),
			mac: net.HardwareAddr{2, 3, 4, 5, 6, 7}, role: "sidecar", policy: "policy", pod: strings.Repeat("p", tc.length-13),
		}
		alias, err := e.alias()
		if (err == nil) != tc.ok {
			t.Errorf("names of %d bytes: %d bytes, error %v", tc.length, len(alias), err)
		}
		if err != nil && !strings.Contains(err.Error(), "choose shorter names") {
			t.Error(err)
		}
	}
}

func TestAliasNetwork(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	randomPool := func(size int) (p pool) {
		if p.subnet = randomPrefix(r, size); p.subnet.IsValid() && r.IntN(4) > 0 {
			p.gateway = randomAddr(r, size)
		}
		return p
	}
	for range 5000 {
		n := &network{id: randomID(r), v4: randomPool(4), v6: randomPool(16), mtu: r.IntN(65536) * r.IntN(2), internal: r.IntN(2) == 0, nat: r.IntN(2) == 0}
		alias, err := n.alias()
		if err != nil {
			if len(n.id) < 64 {
				t.Fatal(err)
			}
			continue
		}
		back, err := networkOfAlias(alias)
		if err != nil {
			t.Fatalf("read alias %q: %v", alias, err)
		}
		if len(alias) > aliasMax || !reflect.DeepEqual(n, back) {
			t.Fatalf("alias %q\nis   %+v\nwant %+v", alias, back, n)
		}
	}
}

func TestAliasBroken(t *testing.T) {
	for _, alias := range []string{
		aliasNetwork, aliasNetwork + " id=", aliasNetwork + " id=!!", aliasNetwork + " id=~a 4=x", aliasNetwork + " id=~a 4=10.0.0.0/8,x",
		aliasNetwork + " id=~a mtu=x", aliasNetwork + " id=~%4",
	} {
		if n, err := networkOfAlias(alias); err == nil {
			t.Errorf("%q: %+v", alias, n)
		}
	}
	for _, alias := range []string{
		aliasEndpoint + " 4=AA", aliasEndpoint + " id=~a 4=AAA", aliasEndpoint + " id=~a 6=!", aliasEndpoint + " id=~a m=!",
	} {
		if e, err := endpointOfAlias(alias); err == nil {
			t.Errorf("%q: %+v", alias, e)
		}
	}
	if os.Getuid() == 0 {
		l := newLab(t)
		n := newNetwork(1)
		l.must(ensureBridge(n))
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "sg-broken", TxQLen: -1}}
		l.must(netlink.LinkAdd(br))
		l.must(netlink.LinkSetAlias(br, aliasNetwork+" id=!"))
		all, err := listNetworks()
		l.refused(err, "sg-broken")
		l.same(len(all), 1)
	}
}
