// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// start makes a network with a container that serves port 80.
func (l *lab) start(n *network) *box {
	l.Helper()
	l.must(ensureBridge(n))
	b := l.run(n, 2)
	l.must(plug(n, b.endpoint))
	l.serve(b.ns, 80)
	return b
}

// publishAt are port 80 of b, tcp and udp, IPv4 and IPv6.
func publishAt(b *box, port uint16, v4, v6 netip.Addr) (ports []publish) {
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		ports = append(ports,
			publish{b.id, proto, v4, port, netip.AddrPortFrom(b.v4.Addr(), 80)},
			publish{b.id, proto, v6, port, netip.AddrPortFrom(b.v6.Addr(), 80)})
	}
	return ports
}

func TestNAT(t *testing.T) {
	l := newLab(t)
	l.serve(l.outside, 53)
	n, routed := newNetwork(1), newNetwork(2)
	routed.nat = false
	a, b := l.start(n), l.start(routed)
	l.must(applyRules([]*network{n, routed}, nil))

	l.reaches(a.ns, outside4, 53, machine4)
	l.reaches(a.ns, outside6, 53, machine6)
	l.reaches(b.ns, outside4, 53, b.v4.Addr())
	l.reaches(b.ns, outside6, 53, b.v6.Addr())

	// A routed network can be reached, a translated one only where it publishes.
	l.reaches(l.outside, b.v4.Addr(), 80, outside4)
	l.reaches(l.outside, b.v6.Addr(), 80, outside6)
	l.missed(l.outside, a.v4.Addr(), 80)
	l.missed(l.outside, a.v6.Addr(), 80)
}

func TestInternal(t *testing.T) {
	l := newLab(t)
	l.serve(l.outside, 53)
	n, other := newNetwork(1), newNetwork(2)
	n.internal = true
	a, c := l.start(n), l.start(other)
	b := l.run(n, 3)
	l.must(plug(n, b.endpoint))
	l.brNetfilter("1")
	ports := append(publishAt(a, 8080, netip.IPv4Unspecified(), netip.IPv6Unspecified()),
		publishAt(c, 8081, netip.IPv4Unspecified(), netip.IPv6Unspecified())...)
	l.must(applyRules([]*network{n, other}, ports))

	l.reaches(b.ns, a.v4.Addr(), 80, b.v4.Addr())
	l.reaches(b.ns, a.v6.Addr(), 80, b.v6.Addr())
	l.missed(a.ns, outside4, 53)
	l.missed(a.ns, outside6, 53)
	l.missed(l.outside, a.v4.Addr(), 80)
	l.missed(l.outside, machine4, 8080)
	l.missed(l.outside, machine6, 8080)
	l.missed(c.ns, machine4, 8080)
	l.missed(a.ns, machine4, 8081)
	l.missed(a.ns, c.v4.Addr(), 80)
	l.missed(c.ns, a.v4.Addr(), 80)
	l.reaches(c.ns, outside4, 53, machine4)
}

func TestIsolation(t *testing.T) {
	l := newLab(t)
	n, routed := newNetwork(1), newNetwork(2)
	routed.nat = false
	a, b := l.start(n), l.start(routed)
	// Docker's own bridges, and one of somebody else.
	docker := map[string]*box{}
	for i, name := range []string{"docker0", "br-0123456789ab", "br-0123456789a"} {
		other := newNetwork(10 + i)
		docker[name] = l.start(other)
		l.command("ip link set dev " + other.bridge() + " down")
		l.command("ip link set dev " + other.bridge() + " name " + name)
		l.command("ip link set dev " + name + " up")
	}
	l.must(applyRules([]*network{n, routed}, publishAt(b, 8080, machine4, machine6)))

	l.missed(a.ns, b.v4.Addr(), 80)
	l.missed(a.ns, b.v6.Addr(), 80)
	l.missed(b.ns, a.v4.Addr(), 80)
	for name, d := range docker {
		if name == "br-0123456789a" {
			l.reaches(b.ns, d.v4.Addr(), 80, b.v4.Addr())
			l.reaches(d.ns, b.v4.Addr(), 80, d.v4.Addr())
			continue
		}
		l.missed(b.ns, d.v4.Addr(), 80)
		l.missed(d.ns, b.v4.Addr(), 80)
	}
	// What is published is for everybody, other networks too.
	l.reaches(a.ns, machine4, 8080, routed.v4.gateway)
	l.reaches(a.ns, machine6, 8080, routed.v6.gateway)
}

func TestPublish(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	n.nat = false // ports are translated all the same
	a := l.start(n)
	b := l.run(n, 3)
	l.must(plug(n, b.endpoint))
	none := netip.Addr{}
	for _, at := range []struct {
		v4, v6    netip.Addr
		netfilter string
	}{{none, none, "0"}, {netip.IPv4Unspecified(), netip.IPv6Unspecified(), "1"}} {
		l.brNetfilter(at.netfilter)
		l.must(applyRules([]*network{n}, publishAt(a, 8080, at.v4, at.v6)))
		l.reaches(l.outside, machine4, 8080, outside4)
		l.reaches(l.outside, machine6, 8080, outside6)
		l.reaches(l.machine, machine4, 8080, none)
		l.reaches(l.machine, machine6, 8080, none)
		l.reaches(l.machine, netip.MustParseAddr("127.0.0.1"), 8080, n.v4.gateway)
		for _, c := range []*box{a, b} { // its own, and a neighbour's
			l.reaches(c.ns, machine4, 8080, n.v4.gateway)
			l.reaches(c.ns, machine6, 8080, n.v6.gateway)
			l.reaches(c.ns, n.v4.gateway, 8080, n.v4.gateway)
		}
		_, err := ask("tcp", netip.IPv6Loopback(), 8080, time.Now().Add(5*time.Second))
		l.refused(err, "connection refused") // so that clients of localhost go on to 127.0.0.1
		l.missed(l.outside, machine4, 80)
	}
	// What only passes the machine is not its own.
	l.serve(l.outside, 8080)
	l.reaches(a.ns, outside4, 8080, a.v4.Addr())

	l.must(applyRules([]*network{n}, nil))
	l.missed(l.outside, machine4, 8080)
	l.missed(l.machine, machine4, 8080)
}

// brNetfilter lets the rules see, or not, what stays within a bridge.
func (l *lab) brNetfilter(on string) {
	l.Helper()
	for _, name := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"} {
		if err := sysctl(name, on); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.Fatal(err)
		}
	}
}

func TestPublishOnAddress(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	a := l.start(n)
	l.address("uplink", netip.MustParsePrefix("10.99.0.3/24"), netip.MustParsePrefix("fd99::3/64"))
	l.must(applyRules([]*network{n}, publishAt(a, 8080, machine4, machine6)))
	l.reaches(l.outside, machine4, 8080, outside4)
	l.reaches(l.outside, machine6, 8080, outside6)
	l.missed(l.outside, netip.MustParseAddr("10.99.0.3"), 8080)
	l.missed(l.outside, netip.MustParseAddr("fd99::3"), 8080)
	l.missed(l.machine, netip.MustParseAddr("127.0.0.1"), 8080)
	l.same(l.routeLocalnet(n), "0")
}

func (l *lab) routeLocalnet(n *network) string {
	l.Helper()
	v, err := readSysctl("ipv4/conf/" + n.bridge() + "/route_localnet")
	l.must(err)
	return v
}

// TestLoopback: what is published on 127.0.0.1 is for this machine only, and
// nothing on its 127.0.0.1 is for the containers.
func TestLoopback(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	a := l.start(n)
	localhost := netip.MustParseAddr("127.0.0.1")
	var ports []publish
	for _, p := range publishAt(a, 8080, localhost, netip.Addr{}) {
		if p.to.Addr().Is4() {
			ports = append(ports, p)
		}
	}
	l.must(applyRules([]*network{n}, ports))
	l.reaches(l.machine, localhost, 8080, n.v4.gateway)
	l.missed(l.machine, machine4, 8080)
	l.missed(l.outside, machine4, 8080)
	l.same(l.routeLocalnet(n), "1")

	l.serve(l.machine, 9090)
	sneak := func(ns netns.NsHandle, dev string, gateway netip.Addr) {
		t.Helper()
		l.in(ns, func() {
			l.command("ip addr flush dev lo")
			l.command("ip route flush table local dev lo")
			l.command("ip route add 127.0.0.0/8 dev " + dev + " via " + gateway.String())
			l.must(sysctl("ipv4/conf/"+dev+"/route_localnet", "1"))
		})
		l.missed(ns, localhost, 8080)
		l.missed(ns, localhost, 9090)
		l.reaches(ns, gateway, 9090, netip.Addr{}) // the way is there
	}
	sneak(a.ns, "eth0", n.v4.gateway)
	sneak(l.outside, "uplink", machine4)

	l.must(applyRules([]*network{n}, nil))
	l.same(l.routeLocalnet(n), "0")
}

// TestPublishFollows: a client that sends all the time is no reason to keep to
// what was before a port was published, or after.
func TestPublishFollows(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	a := l.start(n)
	b := l.run(n, 3)
	l.must(plug(n, b.endpoint))
	var c *net.UDPConn
	l.in(l.outside, func() {
		var err error
		c, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: machine4.AsSlice(), Port: 8080})
		l.must(err)
	})
	defer c.Close()
	l.must(applyRules([]*network{n}, nil))
	if _, err := answer(c, time.Now().Add(300*time.Millisecond)); err == nil {
		t.Error("answered before the port is published")
	}
	ports := publishAt(a, 8080, machine4, machine6)
	l.must(applyRules([]*network{n}, ports))
	if _, err := answer(c, time.Now().Add(5*time.Second)); err != nil {
		t.Error(err)
	}
	l.must(applyRules([]*network{n}, nil))
	// Answers from before may still be under way.
	l.must(c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)))
	for b := make([]byte, 64); ; {
		if _, err := c.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	if _, err := answer(c, time.Now().Add(300*time.Millisecond)); err == nil {
		t.Error("answered after the port is published no more")
	}
}

func TestRulesReadBack(t *testing.T) {
	l := newLab(t)
	ports, err := listPublished()
	l.must(err)
	l.same(ports, []publish(nil))
	l.must(deleteRules())

	n, internal := newNetwork(1), newNetwork(2)
	internal.internal = true
	id := strings.Repeat("0123456789abcdef", 4)
	to4, to6 := netip.MustParseAddrPort("10.1.0.2:80"), netip.MustParseAddrPort("[fd01:1111:2222:3333:4444:5555:6666:7777]:65535")
	want := []publish{
		{id, unix.IPPROTO_TCP, netip.Addr{}, 8080, to4},
		{id, unix.IPPROTO_UDP, netip.IPv4Unspecified(), 8081, to4},
		{id, unix.IPPROTO_SCTP, netip.MustParseAddr("192.168.100.200"), 8082, to4},
		{"other", unix.IPPROTO_TCP, netip.Addr{}, 8080, to6},
		{"other", unix.IPPROTO_UDP, netip.IPv6Unspecified(), 8080, to6},
		{id, unix.IPPROTO_SCTP, netip.MustParseAddr("fd99:1111:2222:3333:4444:5555:6666:7777"), 65535, to6},
	}
	var first string
	for range 3 {
		l.must(applyRules([]*network{n, internal}, want))
		ports, err = listPublished()
		l.must(err)
		l.same(ports, want)
		rules := l.command("nft list ruleset")
		if strings.Contains(rules, "Error") {
			t.Fatal(rules) // nft does not know them
		}
		if first == "" {
			first = rules
			t.Log(rules)
		}
		l.same(rules, first)
	}
	l.must(applyRules([]*network{n}, want[:1]))
	ports, err = listPublished()
	l.must(err)
	l.same(ports, want[:1])

	// A refused state leaves the one before.
	for _, bad := range []publish{
		{id, unix.IPPROTO_TCP, machine6, 80, to4}, {id, unix.IPPROTO_TCP, machine4, 0, to4}, {id, unix.IPPROTO_ICMP, machine4, 80, to4},
		{"a b", unix.IPPROTO_TCP, machine4, 80, to4}, {id, unix.IPPROTO_TCP, machine4, 80, netip.AddrPort{}},
	} {
		l.refused(applyRules(nil, []publish{bad}))
	}
	ports, err = listPublished()
	l.must(err)
	l.same(ports, want[:1])

	for range 2 {
		l.must(deleteRules())
	}
	l.same(l.command("nft list ruleset"), "")
}

func TestManyPorts(t *testing.T) {
	l := newLab(t)
	var ports []publish
	for port := uint16(10000); port < 12000; port++ {
		ports = append(ports, publish{strings.Repeat("ab", 32), unix.IPPROTO_TCP, netip.Addr{}, port, netip.AddrPortFrom(outside4, port)})
	}
	began := time.Now()
	l.must(applyRules([]*network{newNetwork(1)}, ports))
	t.Logf("applied %d ports in %s", len(ports), time.Since(began))
	back, err := listPublished()
	l.must(err)
	if !slices.Equal(back, ports) {
		t.Errorf("read back %d ports of %d", len(back), len(ports))
	}
}

// TestDockerUser has dockerd's chains, made as dockerd makes them.
func TestDockerUser(t *testing.T) {
	l := newLab(t)
	n := newNetwork(1)
	a := l.start(n)
	l.serve(l.outside, 53)
	tools := []string{"iptables", "ip6tables"}
	for _, ipt := range tools {
		if !strings.Contains(l.command(ipt+" --version"), "nf_tables") {
			t.Skip("needs iptables-nft")
		}
		for _, rule := range []string{
			"-N DOCKER-USER", "-A DOCKER-USER -i uplink -p tcp --dport 22 -j DROP", "-A DOCKER-USER -j RETURN",
			"-A FORWARD -j DOCKER-USER", "-P FORWARD DROP",
		} {
			l.command(ipt + " -w " + rule)
		}
	}
	list := func(ipt string) string { return l.command(ipt + " -w -S DOCKER-USER") }
	before := list("iptables")
	l.missed(a.ns, outside4, 53)

	var after string
	for range 3 {
		l.must(applyRules([]*network{n}, publishAt(a, 8080, netip.Addr{}, netip.Addr{})))
		for _, ipt := range tools {
			rules := list(ipt)
			if after == "" {
				after = rules
				t.Log(rules)
			}
			l.same(rules, after)
		}
	}
	for _, rule := range []string{"-i sg-+", "-o sg-+"} {
		l.same(strings.Count(after, rule), 1)
	}
	if lines := strings.Split(strings.TrimSpace(after), "\n"); len(lines) != 5 || lines[4] != "-A DOCKER-USER -j RETURN" || !strings.Contains(lines[1], "DROP") {
		t.Errorf("rules are\n%s", after)
	}
	l.reaches(a.ns, outside4, 53, machine4)
	l.reaches(a.ns, outside6, 53, machine6)
	l.reaches(l.outside, machine4, 8080, outside4)
	l.reaches(l.outside, machine6, 8080, outside6)
	l.missed(l.outside, a.v4.Addr(), 80)

	// Rules that an iptables command moved behind the end are made again.
	l.command("iptables -w -I DOCKER-USER -j RETURN")
	l.must(applyRules([]*network{n}, nil))
	l.reaches(a.ns, outside4, 53, machine4)
	l.command("iptables -w -D DOCKER-USER -j RETURN")

	for range 2 {
		l.must(deleteRules())
	}
	for _, ipt := range tools {
		l.same(list(ipt), before)
	}
	if rules := l.command("nft list tables"); strings.Contains(rules, tableName) {
		t.Error(rules)
	}
	l.same(l.routeLocalnet(n), "0")
}

func TestPublishComment(t *testing.T) {
	for _, comment := range []string{"publish a", "publish a tcp :80 x", "publish a xtp :80 1.2.3.4:80", "publish a tcp :99999 1.2.3.4:80", "publish a tcp 1:2 1.2.3.4:80"} {
		if p, err := parsePublish(comment); err == nil {
			t.Errorf("%q: %+v", comment, p)
		}
	}
	// What nft itself writes is at most 128 bytes: the usual ones can be restored.
	p := publish{strings.Repeat("ab", 32), unix.IPPROTO_SCTP, netip.MustParseAddr("192.168.100.200"), 65535, netip.MustParseAddrPort("192.168.100.200:65535")}
	if c := p.comment(); len(c) >= 128 {
		t.Error(fmt.Sprint(len(c)), c)
	}
}
