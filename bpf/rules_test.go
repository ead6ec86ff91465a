// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA4000 two draws from one stream are two numbers

package bpf

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
)

// ask asks the kernel's tables.
func ask(t testing.TB, j *verdicts.Judge, name string, a verdicts.Ask) verdicts.Ask {
	t.Helper()
	if err := j.Ask(name, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// rule returns the number of the rule that lets q through, or 0.
func rule(t testing.TB, j *verdicts.Judge, q verdicts.Query) uint32 {
	t.Helper()
	return uint32(ask(t, j, "rule", verdicts.Ask{Query: q}).Answer)
}

// asked is a question of testCookie's policy to TCP, out, between a role and a
// class.
func asked(change func(*verdicts.Query)) verdicts.Query {
	q := verdicts.Query{
		Revision: testRevision(testCookie), Subject: [2]uint32{subjectApp}, Peer: [2]uint32{classTen},
		Dir: dirEgress, Proto: unix.IPPROTO_TCP,
	}
	if change != nil {
		change(&q)
	}
	return q
}

// entries makes testCookie's policy one of these rules.
func (f *fixture) entries(t testing.TB, entries ...entry) *tables {
	t.Helper()
	f.forget(t)
	tab := &tables{policy: Policy{Revision: testRevision(testCookie)}, entries: entries}
	tab.put(t, f)
	return tab
}

// A port is allowed that has the first bits of a rule's; all ports at once only
// by a rule for all.
func TestPortsOfRules(t *testing.T) {
	f := loaded(t)
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	ofPorts := func(proto uint8, port uint16, bits uint8, number uint32) entry {
		return entry{subject: subjectApp, peer: classTen, proto: proto, port: port, bits: bits, number: number}
	}
	web := []entry{ofPorts(tcp, 80, 16, 1), ofPorts(tcp, 8000, 13, 2)} // 8000 to 8007
	halves := []entry{ofPorts(udp, 0, 1, 1), ofPorts(udp, 0x8000, 1, 2)}
	nested := []entry{ofPorts(tcp, 0, 0, 1), ofPorts(tcp, 0, 6, 2), ofPorts(tcp, 443, 16, 3)}
	everything := []entry{{subject: subjectApp, peer: classTen, anyProto: true, number: 7}}
	both := append(slices.Clone(everything), ofPorts(tcp, 443, 16, 8))
	for _, c := range []struct {
		name    string
		entries []entry
		proto   uint8
		port    uint16
		whole   bool
		want    uint32
	}{
		{"port", web, tcp, 80, false, 1},
		{"below", web, tcp, 79, false, 0},
		{"above", web, tcp, 81, false, 0},
		{"that port with its bytes exchanged", web, tcp, 80 << 8, false, 0},
		{"port 0", web, tcp, 0, false, 0},
		{"range, first", web, tcp, 8000, false, 2},
		{"range, last", web, tcp, 8007, false, 2},
		{"range, before", web, tcp, 7999, false, 0},
		{"range, after", web, tcp, 8008, false, 0},
		{"other protocol", web, udp, 80, false, 0},
		{"protocol 0", web, 0, 80, false, 0},
		{"all ports of a rule for one", web, tcp, 80, true, 0},
		{"all ports of two rules that have them", halves, udp, 0, true, 0},
		{"one half", halves, udp, 0x7fff, false, 1},
		{"other half", halves, udp, 0x8000, false, 2},
		{"last port", halves, udp, 65535, false, 2},
		{"nested, one port", nested, tcp, 443, false, 3},
		{"nested, range", nested, tcp, 444, false, 2},
		{"nested, range, last", nested, tcp, 1023, false, 2},
		{"nested, other ports", nested, tcp, 1024, false, 1},
		{"nested, all ports", nested, tcp, 443, true, 1},
		{"nested, other protocol", nested, udp, 443, false, 0},
		{"any protocol, TCP", everything, tcp, 443, false, 7},
		{"any protocol, ICMP", everything, 1, 8, false, 7},
		{"any protocol, 0", everything, 0, 0, false, 7},
		{"any protocol, 255", everything, 255, 65535, false, 7},
		{"any protocol, all ports", everything, gre, 0, true, 7},
		{"any protocol and one port", both, tcp, 443, false, 8},
		{"any protocol and another port", both, tcp, 444, false, 7},
		{"any protocol and one port, all ports", both, tcp, 443, true, 7},
		{"no rules", nil, tcp, 443, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := f.entries(t, c.entries...)
			q := asked(func(q *verdicts.Query) { q.Proto, q.Port, q.Whole = c.proto, c.port, bit(c.whole) })
			if got := rule(t, f.judge, q); got != c.want {
				t.Errorf("it is by rule %d, want %d", got, c.want)
			}
			if got := tab.numbers(q.Subject, q.Peer, q.Dir, q.Proto, q.Port, c.whole); (c.want == 0) != (len(got) == 0) || c.want != 0 && got[0] != c.want {
				t.Errorf("model: it is by rule %d, want %d", got, c.want)
			}
		})
	}
}

// All of a question has to be what the rule says, and 0 is nobody but the pod.
func TestQuestionsToRules(t *testing.T) {
	f := loaded(t)
	const other = subjectName | 1<<20 | 5
	f.entries(t,
		entry{subject: subjectApp, peer: classTen, proto: 6, number: 1},
		entry{subject: subjectPod, peer: classTen, proto: 6, number: 2},
		entry{subject: testName, peer: classTen, proto: 6, number: 3},
		entry{subject: subjectApp, peer: testName, proto: 6, number: 4},
		entry{subject: testName, peer: testName, proto: 6, number: 5},
		entry{subject: subjectApp, peer: 0, proto: 6, number: 6}, // of nobody: never an answer
		entry{subject: subjectApp, peer: classTen, dir: dirIngress, proto: 17, number: 7},
	)
	for _, c := range []struct {
		name   string
		change func(*verdicts.Query)
		want   uint32
	}{
		{"as it is", nil, 1},
		{"other revision", func(q *verdicts.Query) { q.Revision++ }, 0},
		{"revision 0", func(q *verdicts.Query) { q.Revision = 0 }, 0},
		{"other direction", func(q *verdicts.Query) { q.Dir = dirIngress }, 0},
		{"that direction's protocol", func(q *verdicts.Query) { q.Dir, q.Proto = dirIngress, 17 }, 7},
		{"other role", func(q *verdicts.Query) { q.Subject[0] = subjectSidecar }, 0},
		{"the pod", func(q *verdicts.Query) { q.Subject[0] = subjectPod }, 2},
		{"name", func(q *verdicts.Query) { q.Subject = [2]uint32{subjectSidecar, testName} }, 3},
		{"role and name", func(q *verdicts.Query) { q.Subject[1] = testName }, 1},
		{"role, and a name without rules", func(q *verdicts.Query) { q.Subject[1] = other }, 1},
		{"other name", func(q *verdicts.Query) { q.Subject = [2]uint32{subjectSidecar, other} }, 0},
		{"no name is not the pod", func(q *verdicts.Query) { q.Subject = [2]uint32{subjectSidecar, 0} }, 0},
		{"other peer", func(q *verdicts.Query) { q.Peer[0]++ }, 0},
		{"no peer", func(q *verdicts.Query) { q.Peer[0] = 0 }, 0},
		{"the second peer", func(q *verdicts.Query) { q.Peer = [2]uint32{0, testName} }, 4},
		{"either peer", func(q *verdicts.Query) { q.Peer = [2]uint32{peerWorld, classTen} }, 1},
		{"the role first", func(q *verdicts.Query) { q.Subject[1], q.Peer = testName, [2]uint32{0, testName} }, 4},
		{"name to name", func(q *verdicts.Query) {
			q.Subject, q.Peer = [2]uint32{subjectSidecar, testName}, [2]uint32{subjectApp, testName}
		}, 5},
	} {
		if got := rule(t, f.judge, asked(c.change)); got != c.want {
			t.Errorf("%s: it is by rule %d, want %d", c.name, got, c.want)
		}
	}
}

// Two revisions have all of this under the same numbers, and see their own.
func TestRevisionsAreApart(t *testing.T) {
	f := loaded(t)
	f.forget(t)
	a := netip.MustParseAddr("10.1.2.3")
	revisions := []uint32{1, 2, 1 << 24, 1<<32 - 1} // that differ in each byte
	for i, revision := range revisions {
		n := uint32(i)
		tab := &tables{
			policy:   Policy{Revision: revision},
			subjects: map[uint32]uint16{testName: uint16(n)},
			classes:  []classOf{{"10.0.0.0/8", 2000 + n}},
			entries:  []entry{{subject: subjectApp, peer: classTen, proto: 6, number: 100 + n}},
		}
		// The longest prefix is the first revision's alone.
		if i == 0 {
			tab.classes = append(tab.classes, classOf{"10.1.2.3/32", 3000})
			tab.entries = append(tab.entries, entry{subject: subjectApp, peer: classTen, proto: 6, port: 443, bits: 16, number: 200})
		}
		tab.put(t, f)
	}
	for i, revision := range revisions {
		n := uint32(i)
		class, number := 2000+n, 100+n
		if i == 0 {
			class, number = 3000, 200
		}
		in := verdicts.Ask{
			Policy:    verdicts.Policy{Revision: revision, Flags: PolicyPrefixes | PolicyNames},
			Container: verdicts.Container{Subject: subjectNone, Name: testName, CgroupId: 5},
			Addr:      as[verdicts.Addr](AddrFrom(a)),
		}
		if got := ask(t, f.judge, "peers", in).Peer; got != [2]uint32{class} {
			t.Errorf("revision %d: the address is of %d, want %d", revision, got, class)
		}
		if got := ask(t, f.judge, "end", in).End; got.Flags != n {
			t.Errorf("revision %d: the end is %+v, want flags %d", revision, got, n)
		}
		if got := rule(t, f.judge, asked(func(q *verdicts.Query) { q.Revision, q.Port = revision, 443 })); got != number {
			t.Errorf("revision %d: it is by rule %d, want %d", revision, got, number)
		}
	}
	// What is deleted of one is still there of the others.
	if err := f.maps.Prefixes.Delete(NewPrefixKey(1, netip.MustParsePrefix("10.0.0.0/8"))); err != nil {
		t.Fatal(err)
	}
	for revision, want := range map[uint32]uint32{1: 3000, 2: 2001} {
		in := verdicts.Ask{Policy: verdicts.Policy{Revision: revision, Flags: PolicyPrefixes}, Addr: as[verdicts.Addr](AddrFrom(a))}
		if got := ask(t, f.judge, "peers", in).Peer[0]; got != want {
			t.Errorf("revision %d: the address is of class %d, want %d", revision, got, want)
		}
	}
}

// An outside address has the class of its longest prefix, and is world or host.
func TestPeers(t *testing.T) {
	f := loaded(t)
	tab := testTables(subjectPod, PolicyWorld)
	tab.classes = append(slices.Clone(testClasses), classOf{"0.0.0.0/1", classEverybody}, classOf{"192.0.2.128/25", classEverybody + 1})
	tab.hosts = []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("2001:db8:1::1")}
	f.govern(t, tab)
	for _, c := range []struct {
		addr  string
		class uint32
		kind  uint32
	}{
		{"10.9.9.9", classTen, peerWorld},
		{"10.0.0.0", classTen, peerWorld},
		{"10.255.255.255", classTen, peerWorld},
		{"11.0.0.0", classEverybody, peerWorld},
		{"9.255.255.255", classEverybody, peerWorld},
		{"127.255.255.255", classEverybody, peerWorld},
		{"128.0.0.0", 0, peerWorld},
		{"10.1.0.1", classTenOne, peerWorld},
		{"10.1.2.3", classTenHost, peerHost},
		{"10.1.2.2", classTenOne, peerWorld},
		{"::ffff:10.1.2.3", classTenHost, peerHost},
		{"::ffff:128.0.0.1", 0, peerWorld}, // ::/0 is not for IPv4
		{"192.0.2.127", 0, peerWorld},
		{"192.0.2.128", classEverybody + 1, peerWorld},
		{"2001:db8:1::1", classLong6, peerHost},
		{"2001:db8:1::2", classLong6, peerWorld},
		{"2001:db8:2:ffff::", classCaller6, peerWorld},
		{"2001:db8:3::", classAll6, peerWorld},
		{"::10.1.2.3", classAll6, peerWorld}, // v4-compatible, not v4-mapped
		{"64:ff9b::10.1.2.3", classAll6, peerWorld},
		{"ffff::", classAll6, peerWorld},
	} {
		a := netip.MustParseAddr(c.addr)
		for _, flags := range []uint32{0, PolicyPrefixes, PolicyWorld, PolicyPrefixes | PolicyWorld} {
			tab.policy.Flags = flags
			in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Addr: as[verdicts.Addr](AddrFrom(a)), Peer: [2]uint32{9, 9}}
			var want [2]uint32
			if flags&PolicyPrefixes != 0 {
				want[0] = c.class
			}
			if flags&PolicyWorld != 0 {
				want[1] = c.kind
			}
			if got := ask(t, f.judge, "peers", in).Peer; got != want {
				t.Errorf("%s, flags %d: it is of %d, want %d", c.addr, flags, got, want)
			}
			if got := tab.peers(a); got != want {
				t.Errorf("model: %s, flags %d: it is of %d, want %d", c.addr, flags, got, want)
			}
		}
	}
}

// A container has what its policy says of its role and of its name.
func TestEnds(t *testing.T) {
	f := loaded(t)
	policy := Policy{Revision: testRevision(testCookie), Flags: PolicyNames}
	policy.Subjects = [8]uint16{1: SubjectRuled, 2: SubjectICMP, 7: SubjectUnix}
	tab := &tables{policy: policy, subjects: map[uint32]uint16{testName: SubjectSCTP | SubjectProcesses}}
	tab.put(t, f)
	for _, c := range []struct {
		name      string
		container Container
		flags     uint16 // with names
		subjects  [2]uint32
	}{
		{"app", Container{Subject: subjectApp}, SubjectRuled, [2]uint32{subjectApp}},
		{"sidecar", Container{Subject: subjectSidecar}, SubjectICMP, [2]uint32{subjectSidecar}},
		{"init", Container{Subject: subjectInit}, 0, [2]uint32{subjectInit}},
		{"the last role", Container{Subject: 7}, SubjectUnix, [2]uint32{7}},
		{"role and name", Container{Subject: subjectApp, Name: testName}, SubjectRuled | SubjectSCTP | SubjectProcesses, [2]uint32{subjectApp, testName}},
		{"name alone", Container{Subject: subjectNone, Name: testName}, SubjectSCTP | SubjectProcesses, [2]uint32{subjectNone, testName}},
		{"a name of no rules", Container{Subject: subjectApp, Name: testName + 1}, SubjectRuled, [2]uint32{subjectApp, testName + 1}},
	} {
		c.container.CgroupId = 1<<40 | 7
		for _, flags := range []uint32{PolicyNames, 0} {
			tab.policy.Flags = flags
			in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Container: as[verdicts.Container](c.container)}
			in.End = verdicts.End{CgroupId: 1, Subject: [2]uint32{1, 1}, Flags: 1, Reserved: 1}
			want := verdicts.End{CgroupId: 1<<40 | 7, Subject: c.subjects, Flags: uint32(c.flags)}
			if flags == 0 {
				want.Subject[1], want.Flags = 0, uint32(policy.Subjects[c.container.Subject])
			}
			if got := ask(t, f.judge, "end", in).End; got != want {
				t.Errorf("%s, flags %d: the end is %+v, want %+v", c.name, flags, got, want)
			}
			if got := tab.end(c.container); got != want {
				t.Errorf("model: %s, flags %d: the end is %+v, want %+v", c.name, flags, got, want)
			}
		}
	}
}

// Inside the pod the rules of the sender and of the receiver both have to name
// the other, if they have any.
func TestInside(t *testing.T) {
	f := loaded(t)
	const ruled = uint32(SubjectRuled)
	const allowed, egress, ingress = verdicts.InsideAllow, verdicts.InsideEgress, verdicts.InsideIngress
	app := verdicts.End{CgroupId: 1, Subject: [2]uint32{subjectApp}}
	named := verdicts.End{CgroupId: 2, Subject: [2]uint32{subjectApp, testName}}
	sidecar := verdicts.End{CgroupId: 3, Subject: [2]uint32{subjectSidecar}}
	with := func(e verdicts.End) verdicts.End { e.Flags = ruled; return e }
	out := func(subject, peer uint32, port uint16) entry {
		return entry{subject: subject, peer: peer, dir: dirEgress, proto: 6, port: port, bits: 16, number: 1}
	}
	in := func(subject, peer uint32, port uint16) entry {
		e := out(subject, peer, port)
		e.dir = dirIngress
		return e
	}
	for _, c := range []struct {
		name     string
		from, to verdicts.End
		entries  []entry
		want     verdicts.Inside
	}{
		{"no rules", app, sidecar, nil, allowed},
		{"rules of somebody else", app, sidecar, []entry{in(testName, subjectApp, 80)}, allowed},
		{"the sender's rules name nobody", with(app), sidecar, nil, egress},
		{"the sender's rules name the receiver", with(app), sidecar, []entry{out(subjectApp, subjectSidecar, 80)}, allowed},
		{"by another port", with(app), sidecar, []entry{out(subjectApp, subjectSidecar, 81)}, egress},
		{"by its name", with(named), sidecar, []entry{out(testName, subjectSidecar, 80)}, allowed},
		{"to a role, which a name has too", with(sidecar), named, []entry{out(subjectSidecar, subjectApp, 80)}, allowed},
		{"to a name", with(sidecar), named, []entry{out(subjectSidecar, testName, 80)}, allowed},
		{"to a name that another has", with(sidecar), app, []entry{out(subjectSidecar, testName, 80)}, egress},
		{"a rule for the other way", with(app), sidecar, []entry{in(subjectApp, subjectSidecar, 80)}, egress},
		{"a rule of the receiver, which has none to keep", with(app), sidecar, []entry{in(subjectSidecar, subjectApp, 80)}, egress},
		{"the receiver's rules name nobody", app, with(sidecar), nil, ingress},
		{"the receiver's rules name the sender", app, with(sidecar), []entry{in(subjectSidecar, subjectApp, 80)}, allowed},
		{"the receiver's rules name another", app, with(sidecar), []entry{in(subjectSidecar, testName, 80)}, ingress},
		{"both have rules, the sender's are missing", with(app), with(sidecar), []entry{in(subjectSidecar, subjectApp, 80)}, egress},
		{"both have rules, the receiver's are missing", with(app), with(sidecar), []entry{out(subjectApp, subjectSidecar, 80)}, ingress},
		{"both have them", with(app), with(sidecar), []entry{out(subjectApp, subjectSidecar, 80), in(subjectSidecar, subjectApp, 80)}, allowed},
		{"neither has any", with(app), with(sidecar), nil, egress},
		{"a container of the same role", with(app), with(named), nil, egress},
		{"such containers, by their role", with(app), with(named), []entry{out(subjectApp, subjectApp, 80), in(subjectApp, subjectApp, 80)}, allowed},
		{"itself", with(app), with(app), nil, allowed},
		{"the world is outside", with(app), sidecar, []entry{out(subjectApp, peerWorld, 80), out(subjectApp, peerHost, 80)}, egress},
		{"an exclusion is about the outside", with(app), sidecar, []entry{out(subjectPod, subjectSidecar, 80)}, egress},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := f.entries(t, c.entries...)
			q := verdicts.InsideQuery{From: c.from, To: c.to, Revision: tab.policy.Revision, Proto: 6, Port: 80}
			if got := verdicts.Inside(ask(t, f.judge, "inside", verdicts.Ask{Inside: q}).Answer); got != c.want {
				t.Errorf("it is %d, want %d", got, c.want)
			}
			if got := tab.inside(c.from, c.to, 6, 80); got != c.want {
				t.Errorf("model: it is %d, want %d", got, c.want)
			}
		})
	}
}

// What goes the other way is let through as an answer, unless it opens.
func TestPermits(t *testing.T) {
	f := loaded(t)
	tab := f.entries(t,
		entry{subject: subjectApp, peer: classTen, dir: dirEgress, proto: 6, port: 443, bits: 16, number: 1},
		entry{subject: subjectApp, peer: classTen, dir: dirIngress, proto: 17, number: 1},
		entry{subject: subjectApp, peer: peerWorld, dir: dirEgress, proto: 132, anyProto: true, number: 1},
		entry{subject: subjectPod, peer: classTen, dir: dirEgress, proto: 6, port: 99, bits: 16, number: 1},
	)
	app := verdicts.End{Subject: [2]uint32{subjectApp}}
	for _, c := range []struct {
		name string
		self *verdicts.End
		o    verdicts.Outside
		want bool
	}{
		{"by rule", &app, verdicts.Outside{Proto: 6, Port: 443}, true},
		{"opening", &app, verdicts.Outside{Proto: 6, Port: 443, Opening: 1}, true},
		{"other port", &app, verdicts.Outside{Proto: 6, Port: 444}, false},
		{"answer", &app, verdicts.Outside{Proto: 6, Dir: dirIngress, Port: 9, Reply: 443}, true},
		{"opening from that port", &app, verdicts.Outside{Proto: 6, Dir: dirIngress, Port: 9, Reply: 443, Opening: 1}, false},
		{"from that port, out", &app, verdicts.Outside{Proto: 6, Port: 9, Reply: 443}, false},
		{"fragment", &app, verdicts.Outside{Proto: 6, Port: 443, Fragment: 1}, false},
		{"fragment, all ports", &app, verdicts.Outside{Proto: 17, Dir: dirIngress, Fragment: 1, Opening: 1}, true},
		{"fragment of an answer, all ports", &app, verdicts.Outside{Proto: 17, Fragment: 1}, true},
		{"fragment that opens, all ports the other way", &app, verdicts.Outside{Proto: 17, Fragment: 1, Opening: 1}, false},
		{"a rule of the pod", &app, verdicts.Outside{Proto: 6, Port: 99}, false},
		{"the pod by that", nil, verdicts.Outside{Proto: 6, Port: 99}, true},
		{"the pod, answer", nil, verdicts.Outside{Proto: 6, Dir: dirIngress, Reply: 99}, true},
		{"the pod by a container's", nil, verdicts.Outside{Proto: 6, Port: 443}, false},
	} {
		in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Outside: c.o}
		if c.self != nil {
			in.HasSelf, in.Self = 1, *c.self
		}
		for _, peers := range [][2]uint32{{classTen}, {classTenOne, classTen}, {}, {classTenOne}} {
			in.Outside.Peer = peers
			want := c.want && slices.Contains(peers[:], classTen)
			if got := ask(t, f.judge, "permits", in).Answer != 0; got != want {
				t.Errorf("%s, peers %d: it is %v, want %v", c.name, peers, got, want)
			}
			if got := tab.permits(c.self, in.Outside); got != want {
				t.Errorf("model: %s, peers %d: it is %v, want %v", c.name, peers, got, want)
			}
		}
	}
	// To the world every protocol may go, and what answers it come.
	for _, proto := range []uint8{0, 6, 17, 132, 255} {
		for dir := range uint8(2) {
			in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), HasSelf: 1, Self: app}
			in.Outside = verdicts.Outside{Peer: [2]uint32{0, peerWorld}, Dir: dir, Proto: proto, Fragment: 1}
			if ask(t, f.judge, "permits", in).Answer == 0 {
				t.Errorf("protocol %d, direction %d: the world is not permitted", proto, dir)
			}
			in.Outside.Opening = 1
			if got := ask(t, f.judge, "permits", in).Answer != 0; got != (dir == dirEgress) {
				t.Errorf("protocol %d, direction %d, opening: permitted is %v", proto, dir, got)
			}
		}
	}
}

// What is inside the pod: loopback, and the pod's own addresses, of no other.
func TestLocal(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	for a, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "0.0.0.0": true, "::1": true, "::": true,
		pod4: true, pod6: true, "::ffff:" + pod4: true, "::" + pod4: false,
		outside4: false, outside6: false, "192.0.2.3": false, "2001:db8::3": false,
	} {
		in := verdicts.Ask{NetnsCookie: testCookie, Addr: as[verdicts.Addr](AddrFrom(netip.MustParseAddr(a)))}
		if got := ask(t, f.judge, "local", in).Answer != 0; got != want {
			t.Errorf("%s is local: %v", a, got)
		}
	}
}

// As many prefixes and rules as a large policy has do not change an answer.
func TestManyPrefixesAndRules(t *testing.T) {
	f := loaded(t)
	f.forget(t)
	const prefixes, rules = 10_000, 1_000
	revision := testRevision(testCookie)
	nth := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{100, 64 + byte(i>>14), byte(i >> 6), byte(i<<2) & 0xfc})
	}
	for i := range prefixes {
		put(t, f.maps.Prefixes, NewPrefixKey(revision, netip.PrefixFrom(nth(i), 30)), uint32(classFirst+i%rules))
	}
	put(t, f.maps.Prefixes, NewPrefixKey(revision, netip.MustParsePrefix("100.64.0.0/10")), uint32(classEverybody+rules))
	tab := &tables{policy: Policy{Revision: revision, Flags: PolicyPrefixes}}
	for i := range uint32(rules) {
		tab.entries = append(tab.entries,
			entry{subject: subjectApp, peer: classFirst + i, proto: 6, port: uint16(i), bits: 16, number: 1 + i},
			entry{subject: subjectApp, peer: classFirst + i, dir: dirIngress, proto: 6, port: uint16(i) << 4, bits: 12, number: 5000 + i})
	}
	tab.put(t, f)
	for i := 0; i < prefixes; i += 7 {
		in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy)}
		host := nth(i).As4()
		host[3] += byte(i % 4)
		in.Addr = as[verdicts.Addr](AddrFrom(netip.AddrFrom4(host)))
		class := uint32(classFirst + i%rules)
		if got := ask(t, f.judge, "peers", in).Peer[0]; got != class {
			t.Fatalf("prefix %d is of class %d, want %d", i, got, class)
		}
		n := uint32(i % rules)
		for port, want := range map[uint16]uint32{uint16(n): 1 + n, uint16(n) + 1: 0} {
			if got := rule(t, f.judge, asked(func(q *verdicts.Query) { q.Peer[0], q.Port = class, port })); got != want {
				t.Fatalf("class %d, port %d: it is by rule %d, want %d", class, port, got, want)
			}
		}
		if got := rule(t, f.judge, asked(func(q *verdicts.Query) { q.Peer[0], q.Port, q.Dir = class, uint16(n)<<4|15, dirIngress })); got != 5000+n {
			t.Fatalf("class %d: it is by rule %d, want %d", class, got, 5000+n)
		}
	}
	for a, want := range map[string]uint32{"100.127.0.1": classEverybody + rules, "100.128.0.1": 0, "100.63.255.255": 0} {
		in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Addr: as[verdicts.Addr](AddrFrom(netip.MustParseAddr(a)))}
		if got := ask(t, f.judge, "peers", in).Peer[0]; got != want {
			t.Errorf("%s is of class %d, want %d", a, got, want)
		}
	}
}

func (d *dice) subject() uint32 {
	return pick[uint32](d, 0, 1, 1, 2, 3, 4, subjectName|1, subjectName|2, subjectName|1<<30)
}

func (d *dice) peer() uint32 {
	return pick(d, d.subject(), d.subject(), peerWorld, peerHost, classFirst, classFirst+1, 1<<24)
}

// tables makes a table of rules in which much is about the same.
func (d *dice) tables(revision uint32) *tables {
	t := &tables{policy: Policy{Revision: revision}}
	seen := map[RuleKey]bool{}
	for i := range uint32(d.byte() % 24) {
		e := entry{
			subject: d.subject(), peer: d.peer(), dir: d.bit(), proto: d.proto(),
			anyProto: d.byte()%8 == 0, bits: pick[uint8](d, 16, 16, 0, 1, 8, d.byte()%17), number: 1 + i,
		}
		if e.anyProto {
			e.proto, e.bits = 0, 0
		}
		e.port = uint16(uint32(d.port()) >> (16 - e.bits) << (16 - e.bits))
		if key := t.key(e); !seen[key] {
			seen[key] = true
			t.entries = append(t.entries, e)
		}
	}
	return t
}

// near is a port that an entry is about, or one beside it.
func (d *dice) near(t *tables) uint16 {
	if len(t.entries) == 0 || d.byte()%4 == 0 {
		return d.port()
	}
	e := t.entries[int(d.byte())%len(t.entries)]
	return e.port + pick[uint16](d, 0, 0, 1, 65535, 1<<(16-e.bits)-1, 1<<(16-e.bits))
}

func (d *dice) end() verdicts.End {
	return verdicts.End{
		CgroupId: pick[uint64](d, 1, 2, 3), Subject: [2]uint32{d.subject(), d.subject()},
		Flags: uint32(pick(d, SubjectRuled, SubjectRuled, 0, uint16(d.byte()))),
	}
}

// checkTables puts tables into the maps, asks, and takes them out again.
func checkTables(t *testing.T, f *fixture, data []byte) {
	t.Helper()
	d := &dice{data}
	mine, other := d.tables(testRevision(testCookie)), d.tables(testRevision(testCookie+1))
	for _, tab := range []*tables{mine, other} {
		tab.put(t, f)
		defer func() {
			for _, e := range tab.entries {
				if err := f.maps.Rules.Delete(tab.key(e)); err != nil {
					t.Errorf("delete rule: %v", err)
				}
			}
		}()
	}
	for range 8 {
		tab := pick(d, mine, mine, other)
		q := verdicts.Query{
			Revision: tab.policy.Revision, Subject: [2]uint32{d.subject(), d.subject()}, Peer: [2]uint32{d.peer(), d.peer()},
			Dir: d.bit(), Proto: d.proto(), Port: d.near(tab), Whole: d.seldom(),
		}
		want := tab.numbers(q.Subject, q.Peer, q.Dir, q.Proto, q.Port, q.Whole != 0)
		if got := rule(t, f.judge, q); got == 0 && len(want) > 0 || got != 0 && !slices.Contains(want, got) {
			t.Errorf("%+v is by rule %d, the model says %d, of %+v", q, got, want, tab.entries)
		}
		// All ports are no more than any one of them.
		if all := q; rule(t, f.judge, q) == 0 {
			all.Whole = 1
			if n := rule(t, f.judge, all); n != 0 {
				t.Errorf("%+v is by no rule, but all ports are by rule %d, of %+v", q, n, tab.entries)
			}
		}

		in := verdicts.InsideQuery{From: d.end(), To: d.end(), Revision: q.Revision, Proto: d.proto(), Port: d.near(tab)}
		inside := tab.inside(in.From, in.To, in.Proto, in.Port)
		if got := verdicts.Inside(ask(t, f.judge, "inside", verdicts.Ask{Inside: in}).Answer); got != inside {
			t.Errorf("%+v is %d, the model says %d, of %+v", in, got, inside, tab.entries)
		}

		a := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Self: d.end(), HasSelf: uint32(d.bit())}
		a.Outside = verdicts.Outside{
			Peer: q.Peer, Dir: q.Dir, Proto: q.Proto, Fragment: d.seldom(), Opening: d.bit(), Port: d.near(tab), Reply: d.near(tab),
		}
		if icmp(uint32(q.Proto)) {
			a.Outside.Port = pick[uint16](d, 0, 8, 128, 129, a.Outside.Port)
		}
		self := &a.Self
		if a.HasSelf == 0 {
			self = nil
		}
		permitted := tab.permits(self, a.Outside)
		if got := ask(t, f.judge, "permits", a).Answer != 0; got != permitted {
			t.Errorf("%+v of %+v is permitted: %v, the model says %v, of %+v", a.Outside, self, got, permitted, tab.entries)
		}
	}
}

// tableBytes are more than two tables and the questions take.
const tableBytes = 1200

// thrown are bytes by number. Tables are made of many, which the fuzzer would
// spend its time to make shorter; and it sees no branch of the kernel's.
func thrown(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, tableBytes)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// FuzzRules compares the kernel's tables with a matcher that looks at each of
// their entries.
func FuzzRules(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	x := loaded(f)
	f.Fuzz(func(t *testing.T, seed uint64) { checkTables(t, x, thrown(seed)) })
}

// FuzzPrefixes does so with prefixes.
func FuzzPrefixes(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	x := loaded(f)
	f.Fuzz(func(t *testing.T, seed uint64) {
		d := &dice{thrown(seed)}
		tab := &tables{policy: Policy{Revision: testRevision(testCookie), Flags: PolicyPrefixes}}
		seen := map[string]bool{}
		for i := range uint32(d.byte() % 24) {
			a := netip.AddrFrom16(d.addr()).Unmap()
			p, err := a.Prefix(int(pick(d, d.byte(), byte(a.BitLen()), 0, 8, 24)) % (a.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			if s := p.String(); !seen[s] {
				seen[s] = true
				tab.classes = append(tab.classes, classOf{s, classFirst + i})
			}
		}
		tab.put(t, x)
		defer func() {
			for _, c := range tab.classes {
				if err := x.maps.Prefixes.Delete(NewPrefixKey(tab.policy.Revision, netip.MustParsePrefix(c.prefix))); err != nil {
					t.Errorf("delete prefix %s: %v", c.prefix, err)
				}
			}
		}()
		for range 8 {
			a := netip.AddrFrom16(d.addr())
			if len(tab.classes) > 0 && d.bit() == 1 {
				a = netip.MustParsePrefix(tab.classes[int(d.byte())%len(tab.classes)].prefix).Addr()
			}
			in := verdicts.Ask{Policy: as[verdicts.Policy](tab.policy), Addr: as[verdicts.Addr](AddrFrom(a))}
			if got, want := ask(t, x.judge, "peers", in).Peer, tab.peers(a); got != want {
				t.Errorf("%s is of %d, the model says %d, of %v", a, got, want, tab.classes)
			}
		}
	})
}
