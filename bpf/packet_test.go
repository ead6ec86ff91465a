// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf/internal/verdicts"
)

// orphans are frames, and whether a pod's device lets them out if they have no
// socket: only ARP, and the resets by which the kernel answers what nobody
// wants. drop is the reason if not.
var orphans = []struct {
	name  string
	frame []byte
	drop  Counter
}{
	{"ARP", arp(pod4), 0},
	{"ARP probe", arp("0.0.0.0"), 0},
	{"ARP for another", arp(outside4), nodeSgCounterSG_DROP_DEVICE},
	{"ARP for another pod", arp("192.0.2.3"), nodeSgCounterSG_DROP_DEVICE},
	{"ARP with a trailer", trailer(arp(pod4), 1), nodeSgCounterSG_DROP_DEVICE},
	{"ARP cut off", arp(pod4)[:41], nodeSgCounterSG_DROP_DEVICE},
	{"ARP of another protocol", ether(unix.ETH_P_ARP, append([]byte{0, 1, 0x86, 0xdd, 6, 4, 0, 1}, make([]byte, 20)...)...), nodeSgCounterSG_DROP_DEVICE},
	{"ARP of other lengths", ether(unix.ETH_P_ARP, append([]byte{0, 1, 8, 0, 6, 16, 0, 1}, make([]byte, 20)...)...), nodeSgCounterSG_DROP_DEVICE},

	{"RST", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6", v6{next: 6, src: pod6}.frame(tcp(rstFlag, 80, 1234, 0)), 0},
	{"RST and ACK", v4{proto: 6}.frame(tcp(rstFlag|ackFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"RST with options", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 3)), nodeSgCounterSG_DROP_DEVICE},
	{"RST behind IP options", v4{proto: 6, options: 2}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"RST behind a destination header", v6{next: 60}.frame(chain(extension(6, 0), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},
	{"RST behind an authentication header", v6{next: 51}.frame(chain(auth(6, 4), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 for another", v6{next: 6}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 with a trailer", trailer(v6{next: 6, src: pod6}.frame(tcp(rstFlag, 80, 1234, 0)), 1), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 with options", v6{next: 6, src: pod6}.frame(tcp(rstFlag, 80, 1234, 3)), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 behind a header", v6{next: 60, src: pod6}.frame(chain(extension(6, 0), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 that claims no length", v6{next: 6, src: pod6, length: -1}.frame(tcp(rstFlag, 80, 1234, 0, 'x')), nodeSgCounterSG_DROP_DEVICE},
	{"SYN of IPv6 of the pod", v6{next: 6, src: pod6}.frame(tcp(synFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"RST behind seven headers", v6{next: 0}.frame(chain(extension(43, 0), extension(60, 1), extension(51, 0), auth(60, 4),
		extension(60, 2), extension(44, 0), fragment6(6, 0, false), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},
	{"RST in a first fragment", v4{proto: 6, fragment: 0x2000}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},

	{"RST with a payload", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 0, 'x')), nodeSgCounterSG_DROP_DEVICE},
	{"RST with options and a payload", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 3, 'x')), nodeSgCounterSG_DROP_DEVICE},
	{"RST of IPv6 with a payload", v6{next: 6}.frame(tcp(rstFlag, 80, 1234, 0, 'x')), nodeSgCounterSG_DROP_DEVICE},
	{"RST with a payload behind a header", v6{next: 60}.frame(chain(extension(6, 1), tcp(rstFlag, 80, 1234, 0, 'x'))), nodeSgCounterSG_DROP_DEVICE},
	{"RST with a header of no size", v4{proto: 6}.frame(append(tcp(rstFlag, 80, 1234, 0)[:12], 0, rstFlag, 0, 0, 0, 0, 0, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"SYN", v4{proto: 6}.frame(tcp(synFlag, 1234, 80, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"SYN of IPv6", v6{next: 6}.frame(tcp(synFlag, 1234, 80, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"ACK", v4{proto: 6}.frame(tcp(ackFlag, 1234, 80, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"no flags", v4{proto: 6}.frame(tcp(0, 1234, 80, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"UDP", v4{proto: 17}.frame(udp(1234, 53)), nodeSgCounterSG_DROP_DEVICE},
	{"UDP of IPv6", v6{next: 17}.frame(udp(1234, 53)), nodeSgCounterSG_DROP_DEVICE},
	{"UDP to the pod itself", v4{proto: 17, dst: pod4}.frame(udp(1234, 53)), nodeSgCounterSG_DROP_DEVICE},
	{"ICMP", v4{proto: 1}.frame(make([]byte, 8)), nodeSgCounterSG_DROP_DEVICE},
	{"ICMPv6", v6{next: 58}.frame(make([]byte, 8)), nodeSgCounterSG_DROP_DEVICE},
	{"SCTP", v4{proto: 132}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"GRE", v4{proto: 47}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"no next header", v6{next: 59}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"fragment that looks like a RST", v4{proto: 6, fragment: 1}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"last such fragment", v4{proto: 6, fragment: 0x1fff}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_DEVICE},
	{"such a fragment of IPv6", v6{next: 44}.frame(chain(fragment6(6, 1, true), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},
	{"fragment whose next header looks like one", v6{next: 44}.frame(chain(fragment6(60, 1, false), extension(6, 0), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_DEVICE},

	{"VLAN", ether(0x8100, 0, 1, 8, 0), nodeSgCounterSG_DROP_MALFORMED},
	{"MPLS", ether(0x8847, make([]byte, 40)...), nodeSgCounterSG_DROP_MALFORMED},
	{"802.3 frame", ether(40, make([]byte, 40)...), nodeSgCounterSG_DROP_MALFORMED},
	{"IPv4 header of four words", v4{proto: 6, words: 4}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_MALFORMED},
	{"IPv4 header that is longer than the packet", v4{proto: 6, words: 15}.frame(tcp(rstFlag, 80, 1234, 0)), nodeSgCounterSG_DROP_MALFORMED},
	{"TCP header cut off", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 0)[:19]), nodeSgCounterSG_DROP_MALFORMED},
	{"no TCP header", v4{proto: 6}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"UDP ports cut off", v4{proto: 17}.frame(make([]byte, 3)), nodeSgCounterSG_DROP_MALFORMED},
	{"no ICMPv6 type", v6{next: 58}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"no TCP header in IPv6", v6{next: 6}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"extension header cut off", v6{next: 60}.frame(extension(6, 0)[:7]), nodeSgCounterSG_DROP_MALFORMED},
	{"extension header that is longer than the packet", v6{next: 60}.frame(append(extension(6, 0)[:1], append([]byte{255}, make([]byte, 30)...)...)), nodeSgCounterSG_DROP_MALFORMED},
	{"fragment header cut off", v6{next: 44}.frame(make([]byte, 4)), nodeSgCounterSG_DROP_MALFORMED},
	{"more headers than there is a use for", v6{next: 60}.frame(chain(bytes.Repeat(extension(60, 0), 16), extension(6, 0), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_MALFORMED},
}

func TestOrphans(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Pod{Outbound: 15001, Inbound: 15006})
	f.ownAddresses(t)
	for _, c := range orphans {
		t.Run(c.name, func(t *testing.T) {
			got, err := f.judge.Orphan(c.frame)
			if err != nil {
				t.Fatalf("%v on %x", err, c.frame)
			}
			want, counter := devPass, []Counter(nil)
			if c.drop != 0 {
				want, counter = devDrop, []Counter{c.drop}
			}
			if got != want {
				t.Errorf("the verdict is %d, want %d, on %x", got, want, c.frame)
			}
			f.wantCounted(t, "pod", f.maps.PodCounters, testCookie, counter...)
		})
	}
}

// What the kernel says of itself: neighbours and groups have to be found, what
// nobody wants is reset. Its answers to a ping, and its errors, quote what they
// answer.
func TestKernelPackets(t *testing.T) {
	f := loaded(t)
	const (
		device    = nodeSgCounterSG_DROP_DEVICE
		noICMP    = nodeSgCounterSG_DROP_ICMP
		malformed = nodeSgCounterSG_DROP_MALFORMED
	)
	mld := chain(extension(58, 0), icmp6(143)) // behind a router alert
	for _, c := range []struct {
		name   string
		frame  []byte
		strict Counter // 0: passes
		nonTCP Counter
	}{
		{"neighbour solicitation", v6{next: 58}.frame(icmp6(135)), 0, 0},
		{"neighbour advertisement", v6{next: 58}.frame(icmp6(136)), 0, 0},
		{"router solicitation", v6{next: 58}.frame(icmp6(133)), 0, 0},
		{"redirect", v6{next: 58}.frame(icmp6(137)), noICMP, 0},
		{"MLD report", v6{next: 58}.frame(icmp6(131)), noICMP, 0},
		{"MLDv2 report", v6{next: 0}.frame(mld), 0, 0},
		{"report of the pod's groups", report("ff02::1:ff00:2", "ff02::1:ff12:3456"), 0, 0},
		{"report of as many as may be", report(slices.Repeat([]string{"ff02::1:ff00:2"}, 8)...), 0, 0},
		{"report of more", report(slices.Repeat([]string{"ff02::1:ff00:2"}, 9)...), noICMP, 0},
		{"report of another group", report("ff02::1:ff00:2", "ff0e::1:ff00:2"), noICMP, 0},
		{"report of a group that an app can write in", report("ff02::1:fe00:2"), noICMP, 0},
		{"report with a trailer", trailer(report("ff02::1:ff00:2"), 1), noICMP, 0},
		{"report that is cut off", report("ff02::1:ff00:2")[:80], noICMP, 0},
		{"long solicitation", v6{next: 58}.frame(append(icmp6(135), make([]byte, 60)...)), noICMP, 0},
		{"echo", v6{next: 58}.frame(icmp6(128)), noICMP, 0},
		{"echo reply", v6{next: 58}.frame(icmp6(129)), noICMP, 0},
		{"unreachable", v6{next: 58}.frame(icmp6(1)), noICMP, 0},
		{"time exceeded", v6{next: 58}.frame(icmp6(3)), noICMP, 0},
		{"node information", v6{next: 58}.frame(icmp6(139)), noICMP, 0},
		{"type 0", v6{next: 58}.frame(icmp6(0)), noICMP, 0},
		{"type 142", v6{next: 58}.frame(icmp6(142)), noICMP, 0},
		{"type 144", v6{next: 58}.frame(icmp6(144)), noICMP, 0},
		{"fragment that looks like a solicitation", v6{next: 44}.frame(chain(fragment6(58, 1, false), icmp6(135))), noICMP, 0},
		{"echo reply, IPv4", v4{proto: 1}.frame(make([]byte, 8)), noICMP, 0},
		{"unreachable, IPv4", v4{proto: 1}.frame([]byte{3, 7: 0}), noICMP, 0},
		{"reset", v4{proto: 6}.frame(tcp(rstFlag, 80, 1234, 0)), 0, 0},
		{"reset, IPv6", v6{next: 6}.frame(tcp(rstFlag|ackFlag, 80, 1234, 0)), 0, 0},
		{"acknowledgement", v4{proto: 6}.frame(tcp(ackFlag, 80, 1234, 3)), 0, 0},
		{"TCP with a trailer", trailer(v4{proto: 6}.frame(tcp(ackFlag, 80, 1234, 0)), 200), device, device},
		{"fragment of TCP", v4{proto: 6, fragment: 1}.frame(tcp(ackFlag, 80, 1234, 0)), device, device},
		{"TCP with a payload", v4{proto: 6}.frame(tcp(ackFlag, 80, 1234, 0, 'x')), device, device},
		{"UDP", v4{proto: 17}.frame(udp(1, 2)), device, device},
		{"SCTP", v4{proto: 132}.frame(make([]byte, 20)), device, device},
		{"no TCP header", v4{proto: 6}.frame(nil), malformed, malformed},
		{"ARP", arp(pod4), malformed, malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			for flags, drop := range map[uint8]Counter{0: c.strict, PodNonTCP: c.nonTCP} {
				f.manage(t, testCookie, Pod{Flags: flags})
				want, counter := devPass, []Counter(nil)
				if drop != 0 {
					want, counter = devDrop, []Counter{drop}
				}
				if got, err := f.judge.Kernel(c.frame); err != nil || got != want {
					t.Errorf("flags %d: the verdict is %d (%v), want %d", flags, got, err, want)
				}
				f.wantCounted(t, "pod", f.maps.PodCounters, testCookie, counter...)
			}
		})
	}
}

// A frame of BPF_PROG_TEST_RUN has a socket of no family, which nobody has
// registered: nothing of it passes, whatever it looks like.
func TestDeviceOfUnknownSocket(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Pod{Outbound: 15001, Flags: PodNonTCP})
	for _, c := range orphans {
		if got := runSkb(t, f.pod.Device, c.frame); got != devDrop {
			t.Errorf("%s: the verdict is %d, want drop", c.name, got)
		}
		f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_UNREGISTERED)
	}
}

func TestDevicesOfUnknownPod(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie+1, Pod{Outbound: 15001})
	for _, slot := range []Slot{NewSlot(testCookie), {}} { // not managed any more; free
		put(t, f.maps.PodSlots, uint32(testSlot), slot)
		for _, c := range orphans {
			for name, p := range map[string]*ebpf.Program{"device": f.pod.Device, "loopback": f.pod.Loopback, "host": f.pod.Host} {
				if got := runSkb(t, p, c.frame); got != devPass {
					t.Errorf("%s: %s says %d, want pass", c.name, name, got)
				}
			}
		}
	}
	f.wantCounted(t, "other pod", f.maps.PodCounters, testCookie+1)
}

// A tail call that finds nothing drops.
func TestDeviceWithoutItsProgram(t *testing.T) {
	f := loaded(t)
	put(t, f.maps.PodSlots, uint32(testSlot), NewSlot(testCookie))
	for i, p := range []*ebpf.Program{f.pod.Device, f.pod.Loopback} {
		var id uint32
		if err := f.maps.DeviceProgs.Lookup(uint32(i), &id); err != nil {
			t.Fatal(err)
		}
		back, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.maps.DeviceProgs.Delete(uint32(i)); err != nil {
			t.Fatal(err)
		}
		got := runSkb(t, p, arp(pod4))
		put(t, f.maps.DeviceProgs, uint32(i), back)
		back.Close()
		if got != devDrop {
			t.Errorf("program %d returns %d, want drop", i, got)
		}
	}
}

func TestHostEnd(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Pod{})
	for _, c := range orphans {
		// Its hash is 0, which is no token.
		if got := runSkb(t, f.pod.Host, c.frame); got != devDrop {
			t.Errorf("%s: the verdict is %d, want drop", c.name, got)
		}
	}
	f.wantCounted(t, "pod", f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_BYPASS)
}

// ownAddresses makes pod4 and pod6 addresses of the pod, and others' of another.
func (f *fixture) ownAddresses(t testing.TB) {
	t.Helper()
	for _, a := range []string{pod4, pod6} {
		put(t, f.maps.PodAddrs, PodAddr{NetnsCookie: testCookie, Addr: AddrFrom(netip.MustParseAddr(a))}, uint8(1))
	}
	for _, a := range []string{"192.0.2.3", "2001:db8::3"} {
		put(t, f.maps.PodAddrs, PodAddr{NetnsCookie: testCookie + 1, Addr: AddrFrom(netip.MustParseAddr(a))}, uint8(1))
	}
}

func TestLoopbackSources(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Pod{})
	f.ownAddresses(t)
	for _, c := range []struct {
		src  string
		want int32
	}{
		{"127.0.0.1", devPass},
		{"127.255.255.254", devPass},
		{"0.0.0.0", devPass},
		{pod4, devPass},
		{"::1", devPass},
		{"::", devPass},
		{pod6, devPass},
		{"::ffff:127.0.0.1", devPass},
		{outside4, devDrop},
		{"126.0.0.1", devDrop},
		{"128.0.0.1", devDrop},
		{"192.0.2.3", devDrop}, // of another pod
		{outside6, devDrop},
		{"2001:db8::3", devDrop},
		{"::2", devDrop},
		{"fe80::1", devDrop},
	} {
		for _, payload := range [][]byte{tcp(synFlag, 1234, 80, 0), tcp(rstFlag, 80, 1234, 0)} {
			frame := v6{src: c.src, dst: "::1", next: 6}.frame(payload)
			if netip.MustParseAddr(c.src).Is4() {
				frame = v4{src: c.src, dst: "127.0.0.1", proto: 6}.frame(payload)
			}
			if got := runSkb(t, f.pod.Loopback, frame); got != c.want {
				t.Errorf("source %s: the verdict is %d, want %d", c.src, got, c.want)
			}
			if c.want == devDrop {
				f.wantCounted(t, c.src, f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_SPOOFED)
			} else {
				f.wantCounted(t, c.src, f.maps.PodCounters, testCookie)
			}
		}
	}
	for _, c := range orphans {
		if c.drop == nodeSgCounterSG_DROP_MALFORMED {
			if got := runSkb(t, f.pod.Loopback, c.frame); got != devDrop {
				t.Errorf("%s: the verdict is %d, want drop", c.name, got)
			}
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, c.drop)
		}
	}
}

// The kernel gives a run of a cgroup program a storage of its own, all zeros:
// a dead container's. What is left to see is that nothing is let through.
func TestCgroupPacketsOfTheDead(t *testing.T) {
	f := loaded(t)
	f.count(t, f.maps.Counters, 0)
	programs := map[string]*ebpf.Program{
		"egress": f.node.Programs[nodeProgSgEgress], "ingress": f.node.Programs[nodeProgSgIngress],
	}
	local := []struct {
		name  string
		frame []byte
		drop  Counter
	}{
		{"inside", v4{src: "127.0.0.1", dst: "127.0.0.1", proto: 6}.frame(tcp(synFlag, 1234, 80, 0)), 1},
		{"inside, IPv6", v6{src: "::1", dst: "::1", next: 17}.frame(udp(1234, 80)), 1},
	}
	for name, p := range programs {
		for _, c := range append(local, orphans...) {
			if got := runSkb(t, p, c.frame); got != 0 {
				t.Errorf("%s, %s, no pod: returns %d, want reject", c.name, name, got)
			}
			f.wantCounted(t, c.name, f.maps.Counters, 0, nodeSgCounterSG_DROP_UNREGISTERED)
		}
	}
	put(t, f.maps.Pods, uint64(0), Pod{Flags: PodNonTCP}) // as if zeros were a pod
	for name, p := range programs {
		for _, c := range append(local, orphans...) {
			if got := runSkb(t, p, c.frame); got != 0 {
				t.Errorf("%s, %s: returns %d, want reject", c.name, name, got)
			}
			want := nodeSgCounterSG_DROP_UNREGISTERED
			if _, ok := parsePacket(c.frame); !ok {
				want = nodeSgCounterSG_DROP_MALFORMED
			}
			f.wantCounted(t, c.name, f.maps.Counters, 0, want)
		}
	}
}

type testRule struct {
	dir    Dir
	prefix string
	rule   Rule
}

func ruleOf(proto Proto, lo, hi uint16) Rule {
	return Rule{N: 1, P: [MaxRulePorts]RulePort{{Lo: lo, Hi: hi, Proto: proto}}}
}

var testRules = []testRule{
	{DirEgress, "10.0.0.0/8", ruleOf(ProtoTCP, 443, 443)},
	{DirEgress, "10.1.0.0/16", ruleOf(ProtoUDP, 0, 65535)},
	{DirEgress, "10.1.2.3/32", ruleOf(ProtoAny, 53, 53)},
	{DirEgress, "::/0", ruleOf(ProtoTCP, 80, 80)},
	{DirEgress, "2001:db8:1::/48", ruleOf(ProtoTCP, 443, 443)},
	{DirIngress, "198.51.100.0/24", ruleOf(ProtoTCP, 22, 22)},
	{DirIngress, "2001:db8:2::/48", ruleOf(ProtoAny, 1, 65535)},
	{DirEgress, "192.0.2.2/32", ruleOf(ProtoAny, 0, 65535)}, // the pod's own: never asked for
}

func (f *fixture) putRules(t testing.TB) {
	t.Helper()
	for _, r := range testRules {
		prefix := netip.MustParsePrefix(r.prefix)
		put(t, f.maps.Rules, NewRuleKey(testCookie, r.dir, prefix), r.rule)
		// Another pod may do all.
		put(t, f.maps.Rules, NewRuleKey(testCookie+1, r.dir, prefix), ruleOf(ProtoAny, 0, 65535))
	}
	for _, dir := range []Dir{DirEgress, DirIngress} {
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			put(t, f.maps.Rules, NewRuleKey(testCookie+1, dir, netip.MustParsePrefix(all)), ruleOf(ProtoAny, 0, 65535))
		}
	}
}

// ruleHit is the longest prefix's answer. An IPv4 address that is written as
// IPv6 is an IPv4 address.
func ruleHit(dir Dir, a netip.Addr, proto byte, port uint16, fragment bool) bool {
	best, hit := -1, false
	for _, r := range testRules {
		prefix := netip.MustParsePrefix(r.prefix)
		if r.dir != dir || !prefix.Contains(a.Unmap()) || prefix.Bits() <= best {
			continue
		}
		p := r.rule.P[0]
		best = prefix.Bits()
		hit = (proto == 6 || proto == 17) && (p.Proto == ProtoAny || byte(p.Proto) == proto)
		if fragment {
			hit = hit && p.Lo <= 1 && p.Hi == 65535
		} else {
			hit = hit && p.Lo <= port && port <= p.Hi
		}
	}
	return hit
}

func isLocal(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a == netip.MustParseAddr(pod4) || a == netip.MustParseAddr(pod6)
}

// wantSeen is what the programs must make of a frame.
func wantSeen(frame []byte) (s verdicts.Seen) {
	p, ok := parsePacket(frame)
	if !ok {
		s.Malformed = 1
		return s
	}
	s.Packet.Saddr.B, s.Packet.Daddr.B = p.src.As16(), p.dst.As16()
	s.Packet.Sport, s.Packet.Dport, s.Packet.Proto = p.sport, p.dport, p.proto
	s.Packet.Fragment, s.Packet.TcpFlags, s.Packet.TcpPayload = bit(p.fragment), p.flags, bit(p.payload)
	s.Packet.IcmpType = p.icmp6
	local := isLocal(p.dst)
	s.Out.Proto, s.Out.Fragment, s.Out.Port, s.Out.Local = p.proto, bit(p.fragment), p.dport, bit(local)
	s.Out.EgressRule = bit(!local && ruleHit(DirEgress, p.dst, p.proto, p.dport, p.fragment))
	calls := p.proto == unix.IPPROTO_TCP && p.flags&(synFlag|ackFlag) == synFlag
	s.Out.IngressRule = bit(!local && !calls && ruleHit(DirIngress, p.dst, p.proto, p.sport, p.fragment))
	s.In.Proto, s.In.Fragment, s.In.Port = p.proto, bit(p.fragment), p.sport
	s.In.EgressRule = bit(ruleHit(DirEgress, p.src, p.proto, p.sport, p.fragment))
	s.In.IngressRule = bit(ruleHit(DirIngress, p.src, p.proto, p.dport, p.fragment))
	return s
}

func TestFlows(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	f.putRules(t)
	frame := func(src, dst string, proto byte, payload []byte, fragment bool) []byte {
		switch {
		case netip.MustParseAddr(dst).Is4():
			return v4{src: src, dst: dst, proto: proto, fragment: uint16(bit(fragment))}.frame(payload)
		case fragment:
			return v6{src: src, dst: dst, next: 44}.frame(chain(fragment6(proto, 1, false), payload))
		}
		return v6{src: src, dst: dst, next: proto}.frame(payload)
	}
	for _, c := range []struct {
		name            string
		dst             string
		udp, fragment   bool
		sport, dport    uint16
		egress, ingress bool // of the packet out; that of the answer is the same
	}{
		{"by rule", "10.9.9.9", false, false, 1234, 443, true, false},
		{"other port", "10.9.9.9", false, false, 1234, 444, false, false},
		{"from that port", "10.9.9.9", false, false, 443, 1234, false, false},
		{"other protocol", "10.9.9.9", true, false, 1234, 443, false, false},
		{"the longer prefix decides", "10.1.9.9", false, false, 1234, 443, false, false},
		{"the longer prefix", "10.1.9.9", true, false, 1234, 4433, true, false},
		{"fragment, all ports", "10.1.9.9", true, true, 0, 0, true, false},
		{"the longest prefix decides", "10.1.2.3", true, false, 1234, 4433, false, false},
		{"the longest prefix", "10.1.2.3", true, false, 1234, 53, true, false},
		{"fragment, one port", "10.1.2.3", true, true, 0, 0, false, false},
		{"::/0 is not for IPv4", outside4, false, false, 1234, 80, false, false},
		{"::/0 is not for IPv4 in IPv6", "::ffff:203.0.113.9", false, false, 1234, 80, false, false},
		{"IPv4 in IPv6", "::ffff:10.9.9.9", false, false, 1234, 443, true, false},
		{"::/0", outside6, false, false, 1234, 80, true, false},
		{"::/0, longer prefix", "2001:db8:1::1", false, false, 1234, 80, false, false},
		{"IPv6", "2001:db8:1::1", false, false, 1234, 443, true, false},
		{"answer", "198.51.100.7", false, false, 22, 1234, false, true},
		{"no answer", "198.51.100.7", false, false, 1234, 22, false, false},
		{"answer over IPv6", "2001:db8:2::1", true, false, 22, 1234, false, true},
		{"fragment of it", "2001:db8:2::1", true, true, 0, 0, false, true},
		{"no rule", outside4, false, false, 1234, 443, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			proto, payload, back := byte(6), tcp(ackFlag, c.sport, c.dport, 0), tcp(ackFlag, c.dport, c.sport, 0)
			if c.udp {
				proto, payload, back = 17, udp(c.sport, c.dport), udp(c.dport, c.sport)
			}
			own := pod4
			if !netip.MustParseAddr(c.dst).Is4() {
				own = pod6
			}
			out, err := f.judge.Packet(frame(own, c.dst, proto, payload, c.fragment))
			if err != nil {
				t.Fatal(err)
			}
			if out.Malformed != 0 || out.Out.EgressRule != bit(c.egress) || out.Out.IngressRule != bit(c.ingress) || out.Out.Local != 0 {
				t.Errorf("out: %+v, want egress %v, ingress %v", out, c.egress, c.ingress)
			}
			f6 := frame(c.dst, own, proto, back, c.fragment)
			if netip.MustParseAddr(own).Is4() != netip.MustParseAddr(c.dst).Is4() {
				t.Fatal("mixed families")
			}
			in, err := f.judge.Packet(f6)
			if err != nil {
				t.Fatal(err)
			}
			if in.Malformed != 0 || in.In.EgressRule != bit(c.egress) || in.In.IngressRule != bit(c.ingress) {
				t.Errorf("in: %+v, want egress %v, ingress %v", in, c.egress, c.ingress)
			}
			if in.Out.Local != 1 || in.Out.EgressRule != 0 || in.Out.IngressRule != 0 {
				t.Errorf("a packet to the pod itself is %+v, want a local one without rules", in.Out)
			}
		})
	}
	// Who may call in on a port is answered from it, and not called.
	for flags, want := range map[byte]uint8{synFlag: 0, synFlag | ackFlag: 1, ackFlag: 1, rstFlag: 1} {
		got, err := f.judge.Packet(v4{src: pod4, dst: "198.51.100.7", proto: 6}.frame(tcp(flags, 22, 1234, 0)))
		if err != nil {
			t.Fatal(err)
		}
		if got.Out.IngressRule != want {
			t.Errorf("flags %#x: %+v, want ingress %d", flags, got.Out, want)
		}
	}
	for _, c := range orphans {
		got, err := f.judge.Packet(c.frame)
		if err != nil {
			t.Fatal(err)
		}
		if want := wantSeen(c.frame); got != want {
			t.Errorf("%s is\n%+v, want\n%+v", c.name, got, want)
		}
	}
}

func (d *dice) host(six bool) string {
	if six {
		return pick(d, pod6, outside6, "::1", "::", "2001:db8:1::1", "2001:db8:2::1", "::ffff:10.1.9.9", "::ffff:127.0.0.1", "2001:db8::3")
	}
	return pick(d, pod4, outside4, "127.0.0.1", "10.9.9.9", "10.1.9.9", "10.1.2.3", "198.51.100.7", "0.0.0.0", "192.0.2.3")
}

func (d *dice) ports() (uint16, uint16) {
	return pick(d, d.port(), 22, 443), pick(d, d.port(), 22, 443, 53)
}

// upper is what IP carries.
func (d *dice) upper(proto byte) []byte {
	sport, dport := d.ports()
	b := make([]byte, d.byte()%24)
	switch proto {
	case 6:
		b = tcp(pick(d, rstFlag, rstFlag, rstFlag|ackFlag, synFlag, d.byte()), sport, dport, pick(d, 0, 0, 3, 10), b[:pick(d, 0, len(b))]...)
		b[12] = pick(d, b[12], b[12], b[12], d.byte())
	case 17:
		b = udp(sport, dport, b...)
	}
	return b
}

// frame makes frames of all kinds, and breaks some.
func (d *dice) frame() []byte {
	var b []byte
	switch pick[byte](d, 4, 4, 4, 6, 6, 6, 1, 2, 3, 0) {
	case 4:
		proto := d.proto()
		b = v4{
			src: d.host(false), dst: d.host(false), proto: proto,
			fragment: pick[uint16](d, 0, 0, 0, 0x2000, 0x4000, 1, 0x1fff, 0x8000),
			words:    pick(d, 0, 0, 0, 5, 4, 6, 15),
			options:  pick(d, 0, 0, 1, 10),
			total:    pick(d, 0, 0, 0, 20, 40, 41, int(d.byte())),
		}.frame(d.upper(proto))
	case 6:
		proto := d.proto()
		headers := pick(d, 0, 0, 1, 2, 3, 6, 7, 8, 9)
		kinds := make([]byte, headers)
		for i := range kinds {
			kinds[i] = pick[byte](d, 0, 43, 60, 51, 44)
		}
		kinds = append(kinds, proto)
		var exts []byte
		for i, kind := range kinds[:headers] {
			switch next := kinds[i+1]; kind {
			case 51:
				exts = append(exts, auth(next, pick(d, 0, 2, 4))...)
			case 44:
				exts = append(exts, fragment6(next, pick[uint16](d, 0, 0, 0, 0, 1, 0x1fff), d.bit() == 1)...)
			default:
				exts = append(exts, extension(next, pick(d, 0, 0, 1, 3))...)
			}
		}
		b = v6{src: d.host(true), dst: d.host(true), next: kinds[0], length: pick(d, 0, 0, 0, -1, 20, int(d.byte()))}.frame(append(exts, d.upper(proto)...))
	case 1:
		b = arp(d.host(false))
	case 2:
		b = v6{src: d.host(true), dst: d.host(true), next: 6}.frame(tcp(pick[byte](d, rstFlag, rstFlag|ackFlag, d.byte()), 80, 1234, 0))
	case 3:
		groups := make([]string, d.byte()%10)
		for i := range groups {
			groups[i] = pick(d, "ff02::1:ff00:2", "ff02::1:ff00:2", "ff02::1:ffff:ffff", "ff02::1:ff12:3456", "ff0e::1", d.host(true))
		}
		b = report(groups...)
	default:
		b = ether(pick(d, uint16(unix.ETH_P_IP), unix.ETH_P_IPV6, 0x8100, 0x88cc, 46, binary.BigEndian.Uint16([]byte{d.byte(), d.byte()})), d.b...)
	}
	switch pick[byte](d, 0, 0, 0, 0, 1, 2, 3) {
	case 1: // cut
		b = b[:int(d.byte())*len(b)/256]
	case 2: // one byte changed
		b[int(d.byte())%len(b)] = d.byte()
	case 3: // a trailer
		b = append(b, make([]byte, d.byte())...)
	}
	return b[:min(len(b), 1500)]
}

// FuzzPacket: no frame makes a program fail, all are seen as the model sees
// them, and none without a socket passes but ARP and resets without a payload.
func FuzzPacket(f *testing.F) {
	for _, s := range seeds(500, 300) {
		f.Add(s)
	}
	x := loaded(f)
	x.manage(f, testCookie, Pod{Outbound: 15001})
	x.ownAddresses(f)
	x.putRules(f)
	put(f, x.maps.Pods, uint64(0), Pod{Flags: PodNonTCP})
	f.Fuzz(func(t *testing.T, data []byte) {
		checkFrame(t, x, (&dice{data}).frame())
		checkFrame(t, x, data[:min(len(data), 1500)])
	})
}

// ctlMax is the longest frame that the kernel itself makes.
const ctlMax = 14 + 40 + 60

// isResolution is true of an ARP packet that asks or answers for the pod.
func isResolution(frame []byte) bool {
	return etherType(frame) == unix.ETH_P_ARP && len(frame) == 42 &&
		bytes.Equal(frame[14:20], []byte{0, 1, 8, 0, 6, 4}) && isLocal(netip.AddrFrom4([4]byte(frame[28:32])))
}

// isReset is true of an IPv6 reset as the kernel makes it.
func isReset(frame []byte, p packet) bool {
	return etherType(frame) == unix.ETH_P_IPV6 && len(frame) == 14+40+20 && p.proto == unix.IPPROTO_TCP &&
		!p.fragment && p.flags&rstFlag != 0 && !p.payload && isLocal(p.src)
}

// isDiscovery is true of neighbour discovery and of reports of its groups.
func isDiscovery(frame []byte, p packet) bool {
	if p.proto != unix.IPPROTO_ICMPV6 || p.fragment {
		return false
	}
	if p.icmp6 >= 133 && p.icmp6 <= 136 {
		return len(frame) <= ctlMax
	}
	if p.icmp6 != 143 || len(frame) < 70 || frame[62] != 143 {
		return false
	}
	n := int(binary.BigEndian.Uint16(frame[68:]))
	if n > 8 || len(frame) != 70+20*n {
		return false
	}
	for i := range n {
		group := netip.AddrFrom16([16]byte(frame[74+20*i:]))
		if !netip.MustParsePrefix("ff02::1:ff00:0/104").Contains(group) {
			return false
		}
	}
	return true
}

func checkFrame(t *testing.T, x *fixture, frame []byte) {
	t.Helper()
	orphan, err := x.judge.Orphan(frame)
	if refused(frame, err) {
		return
	}
	if err != nil {
		t.Fatalf("%v on %x", err, frame)
	}
	p, ok := parsePacket(frame)
	want := devDrop
	if isResolution(frame) || ok && isReset(frame, p) {
		want = devPass
	}
	if orphan != want {
		t.Errorf("without a socket the verdict is %d, want %d, on %x", orphan, want, frame)
	}
	want = devDrop
	switch {
	case !ok:
	case p.proto == unix.IPPROTO_TCP && !p.payload && !p.fragment && len(frame) <= ctlMax, isDiscovery(frame, p):
		want = devPass
	}
	if got, err := x.judge.Kernel(frame); err != nil || got != want {
		t.Errorf("of the kernel the verdict is %d (%v), want %d, on %x", got, err, want, frame)
	}
	seen, err := x.judge.Packet(frame)
	if err != nil {
		t.Fatalf("%v on %x", err, frame)
	}
	if want := wantSeen(frame); seen != want {
		t.Errorf("the packet is\n%+v, want\n%+v, of %x", seen, want, frame)
	}
	want = devDrop
	if ok && isLocal(p.src) {
		want = devPass
	}
	if got := runSkb(t, x.pod.Loopback, frame); got != want {
		t.Errorf("on lo the verdict is %d, want %d, on %x", got, want, frame)
	}
	if got := runSkb(t, x.pod.Device, frame); got != devDrop {
		t.Errorf("of an unknown socket the verdict is %d, want drop, on %x", got, frame)
	}
	if got := runSkb(t, x.pod.Host, frame); got != devDrop {
		t.Errorf("without the token the verdict is %d, want drop, on %x", got, frame)
	}
	for _, name := range []string{nodeProgSgEgress, nodeProgSgIngress} {
		if got := runSkb(t, x.node.Programs[name], frame); got != 0 {
			t.Errorf("%s of a dead container returns %d, want reject, on %x", name, got, frame)
		}
	}
}
