// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf/verdicts"
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
	{"SCTP ports cut off", v4{proto: 132}.frame(make([]byte, 3)), nodeSgCounterSG_DROP_MALFORMED},
	{"no ICMP type", v4{proto: 1}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"no ICMPv6 type", v6{next: 58}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"no TCP header in IPv6", v6{next: 6}.frame(nil), nodeSgCounterSG_DROP_MALFORMED},
	{"extension header cut off", v6{next: 60}.frame(extension(6, 0)[:7]), nodeSgCounterSG_DROP_MALFORMED},
	{"extension header that is longer than the packet", v6{next: 60}.frame(append(extension(6, 0)[:1], append([]byte{255}, make([]byte, 30)...)...)), nodeSgCounterSG_DROP_MALFORMED},
	{"fragment header cut off", v6{next: 44}.frame(make([]byte, 4)), nodeSgCounterSG_DROP_MALFORMED},
	{"more headers than there is a use for", v6{next: 60}.frame(chain(bytes.Repeat(extension(60, 0), 16), extension(6, 0), tcp(rstFlag, 80, 1234, 0))), nodeSgCounterSG_DROP_MALFORMED},
}

func TestOrphans(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{Outbound: 15001, Inbound: 15006})
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
			for flags, drop := range map[uint32]Counter{0: c.strict, PolicyRuled: c.strict, PolicyNonTCP: c.nonTCP} {
				f.manage(t, testCookie, Policy{Flags: flags})
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
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyNonTCP})
	for _, c := range orphans {
		if got := runSkb(t, f.pod.Device, c.frame); got != devDrop {
			t.Errorf("%s: the verdict is %d, want drop", c.name, got)
		}
		f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_UNREGISTERED)
	}
}

func TestDevicesOfUnknownPod(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie+1, Policy{Outbound: 15001})
	for _, slot := range []Slot{NewSlot(testCookie), {}} { // not managed any more; free
		put(t, f.maps.PodSlots, uint32(testSlot), slot)
		for _, c := range orphans {
			for name, p := range map[string]*ebpf.Program{
				"device": f.pod.Device, "loopback": f.pod.Loopback, "loopback out": f.pod.LoopbackOut, "host": f.pod.Host,
			} {
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
	for i, p := range []*ebpf.Program{f.pod.Device, f.pod.Loopback, f.pod.LoopbackOut} {
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
	f.manage(t, testCookie, Policy{})
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

// mark makes token what packets have that sg_loopback_out, or sg_device, has let
// go. A frame of BPF_PROG_TEST_RUN has 0, which else is no token.
func (f *fixture) mark(t testing.TB, token uint32) {
	t.Helper()
	put(t, f.maps.PodSlots, uint32(testSlot), Slot{NetnsCookie: testCookie, Token: token})
}

// What has no mark came round the program at the other end of lo.
func TestLoopbackMark(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{})
	f.ownAddresses(t)
	for _, token := range []uint32{1, 1 << 31, 0xffffffff} {
		f.mark(t, token)
		for _, c := range orphans {
			if got := runSkb(t, f.pod.Loopback, c.frame); got != devDrop {
				t.Errorf("%s: the verdict is %d, want drop", c.name, got)
			}
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, nodeSgCounterSG_DROP_BYPASS)
			// A frame of BPF_PROG_TEST_RUN has a socket, and none of packets.
			if got := runSkb(t, f.pod.LoopbackOut, c.frame); got != devPass {
				t.Errorf("%s: on its way the verdict is %d, want pass", c.name, got)
			}
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie)
		}
	}
}

func TestLoopbackSources(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{})
	f.ownAddresses(t)
	f.mark(t, 0)
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
	// As if zeros were a pod, under whatever policy.
	for _, flags := range []uint32{PolicyNonTCP, PolicyNonTCP | PolicyRuled} {
		f.manage(t, 0, Policy{Flags: flags})
		for name, p := range programs {
			t.Run(fmt.Sprintf("%s, flags %d", name, flags), func(t *testing.T) {
				for _, c := range append(local, orphans...) {
					if got := runSkb(t, p, c.frame); got != 0 {
						t.Fatalf("%s: returns %d, want reject", c.name, got)
					}
					want := nodeSgCounterSG_DROP_UNREGISTERED
					if _, ok := parsePacket(c.frame); !ok {
						want = nodeSgCounterSG_DROP_MALFORMED
					}
					f.wantCounted(t, c.name, f.maps.Counters, 0, want)
				}
			})
		}
	}
}

// Under mode audit everything passes that would have been dropped, and is
// counted as such alone.
func TestAuditOnDevices(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, Policy{Outbound: 15001, Flags: PolicyAudit})
	f.ownAddresses(t)
	f.mark(t, 1)
	audited := nodeSgCounterSG_COUNT_AUDIT
	for _, c := range orphans {
		got, err := f.judge.Orphan(c.frame)
		if err != nil || got != devPass {
			t.Errorf("%s: without a socket the verdict is %d (%v), want pass", c.name, got, err)
		}
		if c.drop == 0 {
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie)
		} else {
			f.wantCounted(t, c.name, f.maps.PodCounters, testCookie, audited)
		}
		for name, p := range map[string]*ebpf.Program{"device": f.pod.Device, "loopback": f.pod.Loopback, "host": f.pod.Host} {
			if got := runSkb(t, p, c.frame); got != devPass {
				t.Errorf("%s: %s says %d, want pass", c.name, name, got)
			}
			f.wantCounted(t, c.name+", "+name, f.maps.PodCounters, testCookie, audited)
		}
	}
	if got, err := f.judge.Kernel(v4{proto: 1}.frame(make([]byte, 8))); err != nil || got != devPass {
		t.Errorf("of the kernel the verdict is %d (%v), want pass", got, err)
	}
	f.wantCounted(t, "kernel", f.maps.PodCounters, testCookie, audited)
}

// The classes of the tests' policies.
const (
	classTen = classFirst + iota
	classTenOne
	classTenHost
	classAll6
	classLong6
	classCaller4
	classCaller6
	classOwn
	classEverybody
)

var testClasses = []classOf{
	{"10.0.0.0/8", classTen},
	{"10.1.0.0/16", classTenOne},
	{"10.1.2.3/32", classTenHost},
	{"::/0", classAll6},
	{"2001:db8:1::/48", classLong6},
	{"198.51.100.0/24", classCaller4},
	{"2001:db8:2::/48", classCaller6},
	{"192.0.2.2/32", classOwn}, // the pod's own: never asked for
}

// allPorts is about all ports, or ICMP types, of a protocol; onePort about one.
func allPorts(dir uint8, peer uint32, proto uint8) entry {
	return entry{dir: dir, peer: peer, proto: proto, number: 1}
}

func onePort(dir uint8, peer uint32, proto uint8, port uint16) entry {
	return entry{dir: dir, peer: peer, proto: proto, port: port, bits: 16, number: 2}
}

var testEntries = []entry{
	onePort(dirEgress, classTen, 6, 443),
	allPorts(dirEgress, classTenOne, 17),
	onePort(dirEgress, classTenHost, 6, 53),
	onePort(dirEgress, classTenHost, 17, 53),
	onePort(dirEgress, classAll6, 6, 80),
	onePort(dirEgress, classLong6, 6, 443),
	onePort(dirIngress, classCaller4, 6, 22),
	allPorts(dirIngress, classCaller6, 6),
	allPorts(dirIngress, classCaller6, 17),
	allPorts(dirEgress, classOwn, 6),
	allPorts(dirEgress, classOwn, 17),
}

// testName is a container's name, as programs know it.
const testName = subjectName | 77

// testTables are a policy in which the rules above are of this subject: of the
// pod, and so exclusions, or of the containers that have its role or name.
func testTables(subject uint32, flags uint32) *tables {
	t := &tables{policy: Policy{Outbound: 15001, Inbound: 15006, Flags: flags | PolicyPrefixes}, classes: testClasses}
	switch subject {
	case subjectPod:
	case testName:
		t.policy.Flags |= PolicyRuled | PolicyNames
		t.subjects = map[uint32]uint16{testName: SubjectRuled}
	default:
		t.policy.Flags |= PolicyRuled
		t.policy.Subjects[subject] = SubjectRuled
	}
	for _, e := range testEntries {
		e.subject = subject
		t.entries = append(t.entries, e)
	}
	return t
}

// forget deletes what is in the tables.
func (f *fixture) forget(t testing.TB) {
	t.Helper()
	empty[RuleKey, uint32](t, f.maps.Rules)
	empty[PrefixKey, uint32](t, f.maps.Prefixes)
	empty[SubjectKey, uint32](t, f.maps.Subjects)
	empty[Addr, uint8](t, f.maps.HostAddrs)
}

// govern puts testCookie under a policy, and forgets any other. Another pod's lets everybody do all.
func (f *fixture) govern(t testing.TB, tab *tables) {
	t.Helper()
	f.forget(t)
	tab.policy.Revision = testRevision(testCookie)
	f.manage(t, testCookie, tab.policy)
	tab.put(t, f)
	other := &tables{policy: Policy{Revision: testRevision(testCookie + 1), Flags: PolicyPrefixes | PolicyRuled | PolicyNames}}
	for _, c := range append(testClasses, classOf{"0.0.0.0/0", 0}, classOf{"::/0", 0}) {
		other.classes = append(other.classes, classOf{c.prefix, classEverybody})
	}
	for _, subject := range []uint32{subjectPod, subjectApp, subjectSidecar, testName} {
		for _, dir := range []uint8{dirEgress, dirIngress} {
			for _, peer := range []uint32{classEverybody, subjectApp, subjectSidecar, testName} {
				other.entries = append(other.entries, entry{subject: subject, dir: dir, peer: peer, anyProto: true, number: 9})
			}
		}
	}
	other.put(t, f)
}

func isLocal(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a == netip.MustParseAddr(pod4) || a == netip.MustParseAddr(pod6)
}

// calls is true of what opens a TCP connection.
func calls(p packet) bool {
	return p.proto == unix.IPPROTO_TCP && p.flags&(synFlag|ackFlag) == synFlag
}

// flow is what rules say of a packet to or from outside; an opening one answers
// nothing.
func (t *tables) flow(end verdicts.End, p packet, dir uint8, opening bool) (f verdicts.Flow) {
	o := verdicts.Outside{Dir: dir, Proto: p.proto, Fragment: bit(p.fragment), Opening: bit(opening), Port: p.dport, Reply: p.sport}
	other := p.dst
	if dir == dirIngress {
		other = p.src
	}
	if icmp(uint32(p.proto)) {
		o.Port = uint16(p.icmp)
	}
	o.Peer = t.peers(other)
	f.Excluded = bit(t.permits(nil, o))
	if end.Flags&uint32(SubjectRuled) != 0 {
		f.Permitted = bit(t.permits(&end, o))
	}
	return f
}

// wantView is what the programs must make of a frame that c sends, with a socket
// of these flags, or gets, with one that has sent nothing. Whose packet it is
// that comes from inside the pod is not in tables: known says what sg_arrives
// makes of it.
func (t *tables) wantView(c Container, frame []byte, lo bool, flags uint32, known verdicts.Inside) (v verdicts.View) {
	p, ok := parsePacket(frame)
	if !ok {
		v.Malformed = 1
		return v
	}
	v.Packet.Saddr.B, v.Packet.Daddr.B = p.src.As16(), p.dst.As16()
	v.Packet.Sport, v.Packet.Dport, v.Packet.Proto = p.sport, p.dport, p.proto
	v.Packet.Fragment, v.Packet.TcpFlags, v.Packet.TcpPayload = bit(p.fragment), p.flags, bit(p.payload)
	v.Packet.IcmpType = p.icmp
	end := t.end(c)
	ruled := end.Flags&uint32(SubjectRuled) != 0
	carried := p.proto == unix.IPPROTO_TCP || p.proto == unix.IPPROTO_UDP || icmp(uint32(p.proto))

	// A datagram answers one that the socket got.
	unasked := p.proto == unix.IPPROTO_UDP && flags&sockCalled == 0
	switch own := isLocal(p.dst); {
	case !own:
		v.Out = t.flow(end, p, dirEgress, calls(p) || unasked)
	case lo:
		v.Out.Local = 1
		if ruled && !carried {
			v.Out.Inside = uint8(verdicts.InsideEgress) // nobody can tell to whom
		}
	}
	v.Out.Proto, v.Out.Fragment, v.Out.Port, v.Out.LoopbackDevice, v.Out.Ruled = p.proto, bit(p.fragment), p.dport, bit(lo), bit(ruled)

	rules := t.policy.Flags&PolicyRuled != 0
	switch inside := lo || rules && isLocal(p.src); {
	case !inside:
		// And one that comes answers what the socket has sent, of which here is none.
		v.In = t.flow(end, p, dirIngress, asksForSender(p))
	case rules && !carried && ruled:
		v.In.Local, v.In.Inside = 1, uint8(verdicts.InsideIngress)
	case rules && asksForSender(p):
		v.In.Local, v.In.Inside = 1, uint8(known)
	default:
		v.In.Local = 1
	}
	v.In.Proto, v.In.Fragment, v.In.Port, v.In.LoopbackDevice, v.In.Ruled = p.proto, bit(p.fragment), p.sport, bit(lo), bit(ruled)
	return v
}

// asksForSender is true of what is judged by its sender if it is from inside
// the pod: what opens a connection, and each datagram.
func asksForSender(p packet) bool { return calls(p) || p.proto == unix.IPPROTO_UDP }

// segment is a packet without a payload, or a fragment of one.
func segment(src, dst string, proto byte, payload []byte, fragment bool) []byte {
	switch {
	case netip.MustParseAddr(dst).Is4():
		return v4{src: src, dst: dst, proto: proto, fragment: uint16(bit(fragment))}.frame(payload)
	case fragment:
		return v6{src: src, dst: dst, next: 44}.frame(chain(fragment6(proto, 1, false), payload))
	}
	return v6{src: src, dst: dst, next: proto}.frame(payload)
}

// view judges a frame in the kernel, and in the model unless its answer depends
// on who sends it.
func (f *fixture) view(t testing.TB, tab *tables, c Container, frame []byte, lo bool, flags uint32) verdicts.View {
	t.Helper()
	got, err := f.judge.Packet(frame, c.CgroupId, lo, flags)
	if err != nil {
		t.Fatalf("%v on %x", err, frame)
	}
	if want := tab.wantView(c, frame, lo, flags, verdicts.Inside(got.In.Inside)); !sameView(got, want) {
		t.Errorf("of container %+v the packet is\n%+v, want\n%+v, of %x", c, got, want, frame)
	}
	return got
}

// sameView compares all but who sends, which a model does not know.
func sameView(a, b verdicts.View) bool {
	a.Peer, b.Peer = 0, 0
	return a == b
}

// What exclusions let round the sidecar, rules of a container let it do, by its
// role and by its name: of packets out, and of their answers.
func TestFlows(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	cases := []struct {
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
		{"fragment of TCP, one port", "10.9.9.9", false, true, 0, 0, false, false},
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
	}
	for subject, c := range map[uint32]Container{
		subjectPod:     {Role: RoleApp, Subject: subjectApp},
		subjectApp:     {Role: RoleApp, Subject: subjectApp, Name: subjectName | 5},
		subjectSidecar: {Role: RoleSidecar, Subject: subjectSidecar},
		testName:       {Role: RoleExempt, Subject: subjectNone, Name: testName},
	} {
		self := f.register(t, c)
		tab := testTables(subject, 0)
		f.govern(t, tab)
		ruled := subject != subjectPod
		for _, c := range cases {
			t.Run(fmt.Sprintf("subject %d/%s", subject, c.name), func(t *testing.T) {
				proto, payload, back := byte(6), tcp(ackFlag, c.sport, c.dport, 0), tcp(ackFlag, c.dport, c.sport, 0)
				if c.udp {
					proto, payload, back = 17, udp(c.sport, c.dport), udp(c.dport, c.sport)
				}
				own := pod4
				if !netip.MustParseAddr(c.dst).Is4() {
					own = pod6
				}
				// Rules are a container's, exclusions the pod's.
				says := func(f verdicts.Flow) (let, other bool) {
					if ruled {
						return f.Permitted != 0, f.Excluded != 0
					}
					return f.Excluded != 0, f.Permitted != 0
				}
				// Of a socket that has got a datagram, and of one that has none to answer.
				for _, flags := range []uint32{sockCalled, ^uint32(sockCalled)} {
					out := f.view(t, tab, self, segment(own, c.dst, proto, payload, c.fragment), false, flags)
					want := c.egress || c.ingress && (!c.udp || flags&sockCalled != 0)
					if let, other := says(out.Out); let != want || other || out.Malformed != 0 || out.Nobody != 0 || out.Out.Local != 0 || out.Out.Ruled != bit(ruled) {
						t.Errorf("out, socket's flags %#x: %+v, want %v", flags, out, want)
					}
				}
				in := f.view(t, tab, self, segment(c.dst, own, proto, back, c.fragment), false, 0)
				// The socket has sent no datagram, so a rule of its own has nothing to answer.
				want := c.ingress || c.egress && !c.udp
				if let, other := says(in.In); let != want || other || in.Malformed != 0 || in.In.Local != 0 {
					t.Errorf("in: %+v, want %v", in, want)
				}
				if in.Out.Local != 0 || in.Out.Excluded != 0 || in.Out.Permitted != 0 {
					t.Errorf("a packet to the pod itself is %+v on a device, want one that nothing lets through", in.Out)
				}
				if on := f.view(t, tab, self, segment(c.dst, own, proto, back, c.fragment), true, 0); on.Out.Local != 1 || on.In.Local != 1 || on.Out.Excluded != 0 || on.In.Permitted != 0 {
					t.Errorf("on lo the packet is %+v, want a local one without rules", on)
				}
			})
		}
		// Who may call in on a port is answered from it, and not called; and the
		// other way round.
		for flags, want := range map[byte]uint8{synFlag: 0, synFlag | ackFlag: 1, ackFlag: 1, rstFlag: 1} {
			out := f.view(t, tab, self, v4{src: pod4, dst: "198.51.100.7", proto: 6}.frame(tcp(flags, 22, 1234, 0)), false, 0)
			in := f.view(t, tab, self, v4{src: "10.9.9.9", dst: pod4, proto: 6}.frame(tcp(flags, 443, 1234, 0)), false, 0)
			if out.Out.Excluded|out.Out.Permitted != want || in.In.Excluded|in.In.Permitted != want {
				t.Errorf("subject %d, flags %#x: out %+v, in %+v, want %d", subject, flags, out.Out, in.In, want)
			}
		}
		for _, c := range orphans {
			f.view(t, tab, self, c.frame, false, 0)
			f.view(t, tab, self, c.frame, true, sockCalled)
		}
	}
}

// ICMP is by its type, and an echo reply by what it answers.
func TestICMPFlows(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	self := f.register(t, Container{Role: RoleApp, Subject: subjectApp})
	tab := testTables(subjectApp, 0)
	tab.entries = []entry{
		onePort(dirEgress, classTen, 1, 8),
		onePort(dirIngress, classCaller4, 1, 8),
		allPorts(dirEgress, classTenOne, 1),
		onePort(dirEgress, classLong6, 58, 128),
		onePort(dirIngress, classCaller6, 58, 128),
		allPorts(dirEgress, classTenHost, 58), // of IPv6, to an IPv4 address
		onePort(dirEgress, classAll6, 1, 128), // of IPv4, to an IPv6 address
	}
	for i := range tab.entries {
		tab.entries[i].subject = subjectApp
	}
	f.govern(t, tab)
	for _, c := range []struct {
		name     string
		other    string
		kind     byte
		fragment bool
		out, in  bool
	}{
		{"echo", "10.9.9.9", 8, false, true, false},
		{"reply", "10.9.9.9", 0, false, false, true},
		{"unreachable", "10.9.9.9", 3, false, false, false},
		{"type 129, which is ICMPv6's reply", "10.9.9.9", 129, false, false, false},
		{"called: echo", "198.51.100.7", 8, false, false, true},
		{"called: reply", "198.51.100.7", 0, false, true, false},
		{"all types: echo", "10.1.9.9", 8, false, true, false},
		{"all types: reply", "10.1.9.9", 0, false, true, true},
		{"all types: unreachable", "10.1.9.9", 3, false, true, false},
		{"all types: fragment", "10.1.9.9", 8, true, true, true},
		{"one type: fragment", "10.9.9.9", 8, true, false, false},
		{"ICMPv6 to IPv4", "10.1.2.3", 8, false, false, false},
		{"IPv6: echo", "2001:db8:1::1", 128, false, true, false},
		{"IPv6: reply", "2001:db8:1::1", 129, false, false, true},
		{"IPv6: unreachable", "2001:db8:1::1", 1, false, false, false},
		{"IPv6: type 8", "2001:db8:1::1", 8, false, false, false},
		{"IPv6: type 0", "2001:db8:1::1", 0, false, false, false},
		{"IPv6, called: echo", "2001:db8:2::1", 128, false, false, true},
		{"IPv6, called: reply", "2001:db8:2::1", 129, false, true, false},
		{"ICMP to IPv6", outside6, 128, false, false, false},
	} {
		proto, own := byte(1), pod4
		if !netip.MustParseAddr(c.other).Is4() {
			proto, own = 58, pod6
		}
		out := f.view(t, tab, self, segment(own, c.other, proto, icmp6(c.kind), c.fragment), false, 0)
		in := f.view(t, tab, self, segment(c.other, own, proto, icmp6(c.kind), c.fragment), false, 0)
		if out.Out.Permitted != bit(c.out) || in.In.Permitted != bit(c.in) {
			t.Errorf("%s: out %+v, in %+v, want %v and %v", c.name, out.Out, in.In, c.out, c.in)
		}
	}
}

// A container is its role and its name to the rules, and an address outside its
// class and world or host. Any of them will do.
func TestSubjectsAndPeers(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	node4, node6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr(outside6)
	base := func() *tables {
		tab := testTables(subjectApp, PolicyNames|PolicyWorld)
		tab.subjects = map[uint32]uint16{testName: SubjectRuled}
		tab.hosts = []netip.Addr{node4, node6}
		tab.entries = []entry{
			{subject: subjectApp, peer: peerWorld, dir: dirEgress, proto: 6, port: 80, bits: 16, number: 1},
			{subject: subjectApp, peer: peerHost, dir: dirEgress, proto: 6, port: 81, bits: 16, number: 2},
			{subject: subjectApp, peer: classTen, dir: dirEgress, proto: 6, port: 82, bits: 16, number: 3},
			{subject: testName, peer: peerWorld, dir: dirEgress, proto: 6, port: 90, bits: 16, number: 4},
			{subject: testName, peer: classTen, dir: dirEgress, proto: 6, port: 92, bits: 16, number: 5},
			{subject: subjectPod, peer: peerWorld, dir: dirEgress, proto: 6, port: 99, bits: 16, number: 6},
		}
		return tab
	}
	app, named, other := Container{Subject: subjectApp}, Container{Subject: subjectApp, Name: testName}, Container{Subject: subjectApp, Name: testName + 1}
	nameAlone, free := Container{Subject: subjectNone, Name: testName}, Container{Subject: subjectSidecar}
	const in10 = "10.9.9.9"
	for _, c := range []struct {
		name      string
		container Container
		dst       string
		ports     []uint16 // that a rule lets it reach, of 80 to 82, 90 to 92 and 99
		excluded  []uint16
	}{
		{"world", app, outside4, []uint16{80}, []uint16{99}},
		{"world, IPv6", app, "2001:db8::3", []uint16{80}, []uint16{99}},
		{"host", app, node4.String(), []uint16{81}, nil},
		{"host, IPv6", app, outside6, []uint16{81}, nil},
		{"host, IPv4 in IPv6", app, "::ffff:198.51.100.7", []uint16{81}, nil},
		{"class and world", app, in10, []uint16{80, 82}, []uint16{99}},
		{"role and name", named, outside4, []uint16{80, 90}, []uint16{99}},
		{"role and name, class and world", named, in10, []uint16{80, 82, 90, 92}, []uint16{99}},
		{"another name", other, in10, []uint16{80, 82}, []uint16{99}},
		{"a name alone", nameAlone, in10, []uint16{90, 92}, []uint16{99}},
		{"no rules", free, in10, nil, []uint16{99}},
	} {
		t.Run(c.name, func(t *testing.T) {
			self := f.register(t, c.container)
			tab := base()
			f.govern(t, tab)
			ask := func() (permitted, excluded []uint16) {
				own := pod4
				if !netip.MustParseAddr(c.dst).Is4() {
					own = pod6
				}
				for _, port := range []uint16{80, 81, 82, 90, 91, 92, 99} {
					v := f.view(t, tab, self, segment(own, c.dst, 6, tcp(synFlag, 1234, port, 0), false), false, 0)
					if v.Out.Permitted != 0 {
						permitted = append(permitted, port)
					}
					if v.Out.Excluded != 0 {
						excluded = append(excluded, port)
					}
				}
				return permitted, excluded
			}
			if permitted, excluded := ask(); !slices.Equal(permitted, c.ports) || !slices.Equal(excluded, c.excluded) {
				t.Errorf("ports %v are permitted and %v excluded, want %v and %v", permitted, excluded, c.ports, c.excluded)
			}
			// What a policy does not say that it has is not looked for.
			for _, flag := range []uint32{PolicyNames, PolicyPrefixes, PolicyWorld} {
				tab = base()
				tab.policy.Flags &^= flag
				f.govern(t, tab)
				ask()
			}
		})
	}
}

// mode audit, and being ruled, are read with each packet: another revision
// holds from the moment that its slot has it.
func TestRevisionsOfSlot(t *testing.T) {
	f := loaded(t)
	f.ownAddresses(t)
	first, second := testTables(subjectApp, 0), testTables(subjectPod, 0)
	f.govern(t, first)
	second.policy.Revision = 4_000_000_000
	second.put(t, f)
	self := f.register(t, Container{Role: RoleApp, Subject: subjectApp})
	frame := v4{src: pod4, dst: "10.9.9.9", proto: 6}.frame(tcp(synFlag, 1234, 443, 0))
	slots, err := f.maps.PolicySlots.Memory()
	if err != nil {
		t.Fatalf("map the slots: %v", err)
	}
	at := int64(policySlot(testCookie)) * 8 // of each element of an array map
	for _, tab := range []*tables{first, second, first} {
		// As user space does it: one aligned word.
		if _, err := slots.WriteAt(binary.NativeEndian.AppendUint32(nil, tab.policy.Revision), at); err != nil {
			t.Fatal(err)
		}
		ask := verdicts.Ask{NetnsCookie: testCookie}
		if err := f.judge.Ask("policy", &ask); err != nil || uint32(ask.Answer) != tab.policy.Revision {
			t.Errorf("the pod's revision is %d (%v), want %d", uint32(ask.Answer), err, tab.policy.Revision)
		}
		if got := f.view(t, tab, self, frame, false, 0).Out; got.Ruled != bit(tab == first) {
			t.Errorf("under revision %d the flow is %+v", tab.policy.Revision, got)
		}
	}
	// A slot, a revision or a pod that is not there is no policy.
	for what, spoil := range map[string]func(){
		"no such revision": func() { put(t, f.maps.PolicySlots, policySlot(testCookie), uint32(7)) },
		"no such slot":     func() { put(t, f.maps.Pods, uint64(testCookie), Pod{Policy: f.maps.PolicySlots.MaxEntries()}) },
		"no such pod":      func() { empty[uint64, Pod](t, f.maps.Pods) },
	} {
		f.govern(t, first)
		spoil()
		ask := verdicts.Ask{NetnsCookie: testCookie}
		if err := f.judge.Ask("policy", &ask); err != nil || ask.Answer != -1 {
			t.Errorf("%s: the pod's revision is %d (%v)", what, ask.Answer, err)
		}
		if v, err := f.judge.Packet(frame, self.CgroupId, false, 0); err != nil || v.Nobody != 1 {
			t.Errorf("%s: the packet is %+v (%v)", what, v, err)
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
	x.ownAddresses(f)
	x.manage(f, 0, Policy{Flags: PolicyNonTCP | PolicyRuled})
	// Exclusions and rules in one policy.
	tab := testTables(subjectPod, PolicyRuled|PolicyNames|PolicyWorld)
	tab.policy.Subjects[subjectApp] = SubjectRuled
	tab.subjects = map[uint32]uint16{testName: SubjectRuled}
	tab.hosts = []netip.Addr{netip.MustParseAddr(outside6)}
	for i, e := range testEntries {
		e.subject = []uint32{subjectApp, testName}[i%2]
		tab.entries = append(tab.entries, e)
	}
	for _, subject := range []uint32{subjectApp, testName} {
		tab.entries = append(tab.entries,
			entry{subject: subject, peer: peerWorld, dir: dirEgress, proto: 1, number: 1},
			entry{subject: subject, peer: peerHost, dir: dirIngress, proto: 58, port: 128, bits: 16, number: 1},
			entry{subject: subject, peer: peerWorld, dir: dirIngress, proto: 132, port: 0x4000, bits: 2, number: 1})
	}
	x.govern(f, tab)
	var selves []Container
	for i, c := range []Container{{Subject: subjectApp}, {Subject: subjectApp, Name: testName}, {Subject: subjectNone, Name: testName}, {Subject: subjectSidecar}} {
		c.CgroupId = testCgroup + uint64(i)
		selves = append(selves, x.register(f, c))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		self := selves[int(d.byte())%len(selves)]
		checkFrame(t, x, tab, self, d.frame())
		checkFrame(t, x, tab, self, data[:min(len(data), 1500)])
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
	if p.icmp >= 133 && p.icmp <= 136 {
		return len(frame) <= ctlMax
	}
	if p.icmp != 143 || len(frame) < 70 || frame[62] != 143 {
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

func checkFrame(t *testing.T, x *fixture, tab *tables, self Container, frame []byte) {
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
	x.view(t, tab, self, frame, false, 0)
	x.view(t, tab, self, frame, false, sockCalled)
	x.view(t, tab, self, frame, true, sockCalled)
	want = devDrop
	if ok && isLocal(p.src) {
		want = devPass
	}
	x.mark(t, 0)
	if got := runSkb(t, x.pod.Loopback, frame); got != want {
		t.Errorf("on lo the verdict is %d, want %d, on %x", got, want, frame)
	}
	x.mark(t, 1)
	if got := runSkb(t, x.pod.Loopback, frame); got != devDrop {
		t.Errorf("on lo without the mark the verdict is %d, want drop, on %x", got, frame)
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
