// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
)

// sender is a socket that a packet seems to come from: the local end of it.
type sender struct {
	fd   int
	addr netip.AddrPort
	peer netip.AddrPort // of a connection
}

func udpSender(t testing.TB, addr string) sender {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return sender{fd: fdOf(t, c.(*net.UDPConn)), addr: netip.MustParseAddrPort(c.LocalAddr().String())}
}

// tcpSenders are a client, and the listener that it is connected to.
func tcpSenders(t testing.TB, addr string) (client, listener sender) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	at := netip.MustParseAddrPort(l.Addr().String())
	client = sender{fd: fdOf(t, c.(*net.TCPConn)), addr: netip.MustParseAddrPort(c.LocalAddr().String()), peer: at}
	return client, sender{fd: fdOf(t, l.(*net.TCPListener)), addr: at}
}

// arrivals is a namespace in which packets are judged as a container gets them,
// by the sockets that are there.
type arrivals struct {
	f       *fixture
	packets int // AF_PACKET: whose record says what the receiver's would
}

func newArrivals(t *testing.T, f *fixture) *arrivals {
	t.Helper()
	filtered(t)
	filter(t, netlink.HANDLE_MIN_EGRESS, f.judge.OnDevice())
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return &arrivals{f, fd}
}

// own makes a socket a container's, with these flags.
func (a *arrivals) own(t testing.TB, s sender, c Container, flags uint32) {
	t.Helper()
	put(t, a.f.node.Maps[nodeMapSocks], int32(s.fd), nodeSgSock{NetnsCookie: testCookie, CgroupId: c.CgroupId, Role: c.Role, Flags: flags})
}

// get judges a packet from a socket that to gets on lo, to port, with a socket
// that has these flags.
func (a *arrivals) get(t testing.TB, tab *tables, from sender, to Container, proto byte, payload []byte, flags uint32) verdicts.View {
	t.Helper()
	a.own(t, sender{fd: a.packets}, to, flags)
	if err := a.f.judge.Expect(to.CgroupId, true, 0); err != nil {
		t.Fatal(err)
	}
	src := from.addr.Addr().String()
	frame := segment(src, src, proto, payload, false)
	if err := unix.Sendto(a.packets, frame, 0, &unix.SockaddrLinklayer{Ifindex: 1, Protocol: htons(etherType(frame))}); err != nil {
		t.Fatal(err)
	}
	got, err := a.f.judge.Seen()
	if err != nil {
		t.Fatal(err)
	}
	if want := tab.wantView(to, frame, true, 0, verdicts.Inside(got.In.Inside)); !sameView(got, want) {
		t.Errorf("the packet is\n%+v, want\n%+v", got, want)
	}
	return got
}

// What arrives from inside the pod is judged by whose socket sent it, of TCP
// once a connection, of UDP each datagram.
func TestArrivals(t *testing.T) {
	f := loaded(t)
	a := newArrivals(t, f)
	const nobody, stranger = 0, 1 // who has no socket there, and whose has no record
	app := Container{NetnsCookie: testCookie, CgroupId: testCgroup, Role: RoleApp, Subject: subjectApp}
	sidecar := Container{NetnsCookie: testCookie, CgroupId: testCgroup + 1, Role: RoleSidecar, Subject: subjectSidecar}
	helper := Container{NetnsCookie: testCookie, CgroupId: testCgroup + 2, Role: RoleExempt, Subject: subjectNone, Name: testName}
	gone := Container{NetnsCookie: testCookie, CgroupId: testCgroup + 3, Role: RoleApp}
	for _, c := range []Container{app, sidecar, helper} {
		f.register(t, c)
	}
	const port, outbound, dns = 8080, 15001, 15053
	udp4, udp6 := udpSender(t, "127.0.0.1:0"), udpSender(t, "[::1]:0")
	client4, listener4 := tcpSenders(t, "127.0.0.1:0")
	client6, _ := tcpSenders(t, "[::1]:0")
	none4 := sender{addr: netip.MustParseAddrPort("127.0.0.1:1")}

	names := func(subject, peer uint32, dir uint8, port uint16) entry {
		return entry{subject: subject, peer: peer, dir: dir, proto: 17, port: port, bits: 16, number: 1}
	}
	// Of TCP too.
	both := func(e entry) []entry {
		tcp := e
		tcp.proto = 6
		return []entry{e, tcp}
	}
	const allowed, egress, ingress = verdicts.InsideAllow, verdicts.InsideEgress, verdicts.InsideIngress
	type ruled uint8
	const (
		appRuled ruled = 1 << iota
		sidecarRuled
	)
	for _, c := range []struct {
		name    string
		ruled   ruled
		entries []entry
		from    Container
		flags   uint32 // of its socket
		to      Container
		port    uint16
		want    verdicts.Inside
	}{
		{"no rules of either end", 0, nil, helper, 0, sidecar, port, allowed},
		{"the sender has rules, and none for this", appRuled, nil, app, 0, sidecar, port, egress},
		{"the sender has one", appRuled, both(names(subjectApp, subjectSidecar, dirEgress, port)), app, 0, sidecar, port, allowed},
		{"the sender has one for another port", appRuled, both(names(subjectApp, subjectSidecar, dirEgress, port+1)), app, 0, sidecar, port, egress},
		{"the sender has one for a name", appRuled, both(names(subjectApp, testName, dirEgress, port)), app, 0, helper, port, allowed},
		{"the receiver has rules, and none for this", appRuled, nil, sidecar, 0, app, port, ingress},
		{"the receiver has one", appRuled, both(names(subjectApp, subjectSidecar, dirIngress, port)), sidecar, 0, app, port, allowed},
		{"the receiver has one for a name", appRuled, both(names(subjectApp, testName, dirIngress, port)), helper, 0, app, port, allowed},
		{"the receiver has one for another name", appRuled, both(names(subjectApp, testName+1, dirIngress, port)), helper, 0, app, port, ingress},
		{"both have rules, the receiver none for this", appRuled | sidecarRuled, both(names(subjectApp, subjectSidecar, dirEgress, port)), app, 0, sidecar, port, ingress},
		{"both have one", appRuled | sidecarRuled, append(both(names(subjectApp, subjectSidecar, dirEgress, port)),
			both(names(subjectSidecar, subjectApp, dirIngress, port))...), app, 0, sidecar, port, allowed},
		{"to itself", appRuled, nil, app, 0, app, port, allowed},
		{"of a container that is gone, to one with rules", appRuled, nil, gone, 0, app, port, ingress},
		{"redirected, to another port", appRuled, nil, app, SockRedirected | SockDNS, sidecar, port, egress},
	} {
		tab := &tables{policy: Policy{Flags: PolicyRuled | PolicyNames, Outbound: outbound, Dns: dns}, entries: c.entries}
		if c.ruled&appRuled != 0 {
			tab.policy.Subjects[subjectApp] = SubjectRuled
		}
		if c.ruled&sidecarRuled != 0 {
			tab.policy.Subjects[subjectSidecar] = SubjectRuled
		}
		f.govern(t, tab)
		for _, s := range []sender{udp4, udp6} {
			a.own(t, s, c.from, c.flags)
			if got := a.get(t, tab, s, c.to, 17, udp(s.addr.Port(), c.port), 0); verdicts.Inside(got.In.Inside) != c.want || got.Peer != c.from.CgroupId {
				t.Errorf("%s, from %v: it is %d, of %#x, want %d", c.name, s.addr, got.In.Inside, got.Peer, c.want)
			}
		}
		// The listener's port is what the connection is to; the rules are for another.
		for i, s := range []sender{client4, client6} {
			other := tab
			for _, e := range tab.entries {
				if e.proto == 6 {
					e.port += s.peer.Port() - port
					put(t, f.maps.Rules, other.key(e), e.number)
				}
			}
			a.own(t, s, c.from, c.flags)
			to := s.peer.Port() + c.port - port
			if got := a.get(t, tab, s, c.to, 6, tcp(synFlag, s.addr.Port(), to, 0), 0); verdicts.Inside(got.In.Inside) != c.want || got.Peer != c.from.CgroupId {
				t.Errorf("%s, TCP %d: it is %d, of %#x, want %d", c.name, i, got.In.Inside, got.Peer, c.want)
			}
			// Only the first packet of a connection is asked about.
			for _, flags := range []byte{ackFlag, synFlag | ackFlag, rstFlag} {
				if got := a.get(t, tab, s, c.to, 6, tcp(flags, s.addr.Port(), to, 0), 0); got.In.Inside != 0 {
					t.Errorf("%s, TCP flags %#x: it is %d, want %d", c.name, flags, got.In.Inside, allowed)
				}
			}
		}
		f.forget(t)
	}

	// From here on the app alone has rules, which name nobody.
	tab := &tables{policy: Policy{Flags: PolicyRuled, Outbound: client4.peer.Port(), Dns: dns}}
	tab.policy.Subjects[subjectApp] = SubjectRuled
	f.govern(t, tab)
	if err := f.node.Maps[nodeMapSocks].Delete(int32(udp4.fd)); err != nil {
		t.Fatal(err)
	}
	a.own(t, udp6, app, SockDNS)
	a.own(t, client4, app, SockRedirected)
	a.own(t, client6, app, SockDNS)
	a.own(t, listener4, sidecar, 0)
	for _, c := range []struct {
		name    string
		from    sender
		proto   byte
		payload []byte
		to      Container
		want    verdicts.Inside
		peer    uint64
	}{
		{"no record, to one with rules", udp4, 17, udp(udp4.addr.Port(), port), app, ingress, stranger},
		{"no record, to one without", udp4, 17, udp(udp4.addr.Port(), port), sidecar, allowed, stranger},
		{"no socket", none4, 17, udp(1, port), app, egress, nobody},
		{"no socket, to one without rules", none4, 17, udp(1, port), sidecar, egress, nobody},
		{"a connection that is gone", none4, 6, tcp(synFlag, 1, port, 0), sidecar, egress, nobody},
		{"a listener calls nobody", listener4, 6, tcp(synFlag, listener4.addr.Port(), port, 0), sidecar, egress, nobody},
		{"redirected to the outbound port", client4, 6, tcp(synFlag, client4.addr.Port(), client4.peer.Port(), 0), sidecar, allowed, testCgroup},
		{"DNS that is redirected", udp6, 17, udp(udp6.addr.Port(), dns), sidecar, allowed, testCgroup},
		{"such a socket to another port", udp6, 17, udp(udp6.addr.Port(), port), sidecar, egress, testCgroup},
		{"TCP to the DNS port", client6, 6, tcp(synFlag, client6.addr.Port(), client6.peer.Port(), 0), sidecar, egress, testCgroup},
		{"ICMP is judged with its socket", none4, 1, icmp6(8), app, allowed, nobody},
		{"a protocol that no sender is known of", none4, sctp, tcp(0, 1, 2, 0), app, ingress, nobody},
		{"such a protocol, to one without rules", none4, sctp, tcp(0, 1, 2, 0), sidecar, allowed, nobody},
	} {
		if got := a.get(t, tab, c.from, c.to, c.proto, c.payload, 0); verdicts.Inside(got.In.Inside) != c.want || got.Peer != c.peer {
			t.Errorf("%s: it is %d, of %#x, want %d of %#x", c.name, got.In.Inside, got.Peer, c.want, c.peer)
		}
	}
}

// A datagram may answer one, by the rules that let that through; a connection
// answers nothing.
func TestAnswers(t *testing.T) {
	f := loaded(t)
	a := newArrivals(t, f)
	app := f.register(t, Container{Role: RoleApp, Subject: subjectApp})
	sidecar := f.register(t, Container{Role: RoleSidecar, Subject: subjectSidecar, CgroupId: testCgroup + 1})
	datagrams := udpSender(t, "127.0.0.1:0")
	stream, _ := tcpSenders(t, "127.0.0.1:0")
	a.own(t, datagrams, sidecar, 0)
	a.own(t, stream, sidecar, 0)
	for _, c := range []struct {
		name   string
		tcp    bool
		peer   uint32
		port   uint16 // of the rule, beside the sender's
		proto  uint8
		flags  uint32
		answer bool
	}{
		{"answer", false, subjectSidecar, 0, 17, sockSent, true},
		{"nothing was sent", false, subjectSidecar, 0, 17, ^uint32(sockSent), false},
		{"another port was let through", false, subjectSidecar, 1, 17, sockSent, false},
		{"another protocol was", false, subjectSidecar, 0, 6, sockSent, false},
		{"another container was", false, subjectInit, 0, 17, sockSent, false},
		{"a connection is no answer", true, subjectSidecar, 0, 6, sockSent, false},
	} {
		tab := &tables{policy: Policy{Flags: PolicyRuled, Outbound: 15001, Dns: 15053}}
		tab.policy.Subjects[subjectApp] = SubjectRuled
		from, proto, kind := datagrams, byte(17), udp(datagrams.addr.Port(), 9)
		if c.tcp {
			from, proto, kind = stream, 6, tcp(synFlag, stream.addr.Port(), stream.peer.Port(), 0)
		}
		tab.entries = []entry{{
			subject: subjectApp, peer: c.peer, dir: dirEgress, proto: c.proto, port: from.addr.Port() + c.port, bits: 16, number: 1,
		}}
		f.govern(t, tab)
		want := verdicts.InsideIngress
		if c.answer {
			want = verdicts.InsideAllow
		}
		if got := a.get(t, tab, from, app, proto, kind, c.flags); verdicts.Inside(got.In.Inside) != want {
			t.Errorf("%s: it is %d, want %d", c.name, got.In.Inside, want)
		}
	}

	// From outside as well, and what answers an exclusion.
	tab := testTables(subjectApp, 0)
	for _, e := range testEntries {
		e.subject = subjectPod
		tab.entries = append(tab.entries, e)
	}
	f.govern(t, tab)
	for _, c := range []struct {
		name  string
		src   string
		flags uint32
		want  bool
	}{
		{"answer", "10.1.2.3", sockSent, true},
		{"nothing was sent", "10.1.2.3", ^uint32(sockSent), false},
		{"from elsewhere", "10.9.9.9", sockSent, false},
	} {
		a.own(t, sender{fd: a.packets}, app, c.flags)
		if err := f.judge.Expect(app.CgroupId, false, 0); err != nil {
			t.Fatal(err)
		}
		frame := segment(c.src, "198.51.100.1", 17, udp(53, 1234), false)
		if err := unix.Sendto(a.packets, frame, 0, &unix.SockaddrLinklayer{Ifindex: 1, Protocol: htons(unix.ETH_P_IP)}); err != nil {
			t.Fatal(err)
		}
		got, err := f.judge.Seen()
		if err != nil {
			t.Fatal(err)
		}
		if got.In.Permitted != bit(c.want) || got.In.Excluded != bit(c.want) || got.In.Local != 0 {
			t.Errorf("%s: it is %+v, want %v", c.name, got.In, c.want)
		}
	}
}

// The DNS port's answer to a query that was redirected there is let in: no rule
// of the app names the sidecar, since it asked somebody outside.
func TestAnswerOfRedirectedDNS(t *testing.T) {
	f := loaded(t)
	a := newArrivals(t, f)
	app := f.register(t, Container{Role: RoleApp, Subject: subjectApp})
	sidecar := f.register(t, Container{Role: RoleSidecar, Subject: subjectSidecar, CgroupId: testCgroup + 1})
	dns := udpSender(t, "127.0.0.1:0")
	a.own(t, dns, sidecar, sockCalled)
	tab := testTables(subjectApp, 0)
	tab.policy.Dns = dns.addr.Port()
	f.govern(t, tab)
	for _, c := range []struct {
		name  string
		flags uint32
		want  verdicts.Inside
	}{
		{"answer", sockSent | SockDNS, verdicts.InsideAllow},
		{"no query was redirected", sockSent, verdicts.InsideIngress},
		{"nothing was sent", 0, verdicts.InsideIngress},
	} {
		if got := a.get(t, tab, dns, app, 17, udp(dns.addr.Port(), 1234), c.flags); verdicts.Inside(got.In.Inside) != c.want {
			t.Errorf("%s: it is %d, want %d", c.name, got.In.Inside, c.want)
		}
	}
}
