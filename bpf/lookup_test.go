// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What an sk_lookup program returns (enum sk_action).
const (
	skDrop uint32 = 0
	skPass uint32 = 1
)

// skLookup is struct bpf_sk_lookup of linux/bpf.h: addresses in network order,
// remotePort in network order, LocalPort in host order. The kernel wants a zero
// for the device it came from, which is no device, and not lo.
type skLookup struct {
	Cookie     uint64 // out: of the socket that was chosen
	Family     uint32
	Protocol   uint32
	Remote4    [4]byte
	Remote6    [16]byte
	RemotePort [2]byte
	_          [2]byte
	Local4     [4]byte
	Local6     [16]byte
	LocalPort  uint32
	Ingress    uint32
	_          [4]byte
}

func lookup(t testing.TB, p *ebpf.Program, ctx *skLookup) uint32 {
	t.Helper()
	ret, err := p.Run(&ebpf.RunOptions{Context: ctx, ContextOut: ctx})
	if err != nil {
		t.Fatalf("look up %+v: %v", *ctx, err)
	}
	return ret
}

// syn is the lookup for a segment that found no connection.
func syn(from string, port uint16) *skLookup {
	a := netip.MustParseAddr(from)
	c := &skLookup{Protocol: unix.IPPROTO_TCP, RemotePort: [2]byte{0x12, 0x34}, LocalPort: uint32(port)}
	if a.Is4() {
		c.Family, c.Remote4, c.Local4 = unix.AF_INET, a.As4(), netip.MustParseAddr(pod4).As4()
	} else {
		c.Family, c.Remote6, c.Local6 = unix.AF_INET6, a.As16(), netip.MustParseAddr(pod6).As16()
	}
	return c
}

// listenOn opens a TCP listener on a port that the kernel chooses, and returns
// its descriptor and cookie.
func listenOn(t testing.TB, family int, v6only bool) (fd int, cookie uint64) {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatalf("open socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	var addr unix.Sockaddr = new(unix.SockaddrInet4)
	if family == unix.AF_INET6 {
		addr = new(unix.SockaddrInet6)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, int(bit(v6only))); err != nil {
			t.Fatalf("set IPV6_V6ONLY: %v", err)
		}
	}
	if err := unix.Bind(fd, addr); err != nil {
		t.Fatalf("bind: %v", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatalf("listen: %v", err)
	}
	cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatalf("read cookie: %v", err)
	}
	return fd, cookie
}

func lookupPolicy() Policy {
	p := Policy{Outbound: 15001, Inbound: 15006, Dns: 15053, Nreserved: 5}
	copy(p.Reserved[:], []Ports{{Lo: 15001, Hi: 15001}, {Lo: 15006, Hi: 15006}, {Lo: 15053, Hi: 15053}, {Lo: 15090, Hi: 15090}, {Lo: 15020, Hi: 15021}})
	return p
}

func TestLookupWithoutListeners(t *testing.T) {
	f := loaded(t)
	tab := testTables(subjectPod, 0)
	// Rules of a container say nothing of where its connections arrive.
	tab.entries = append(tab.entries, entry{subject: subjectApp, dir: dirIngress, peer: classTen, proto: 6, number: 3})
	flags := tab.policy.Flags
	tab.policy = lookupPolicy()
	tab.policy.Flags = flags
	f.govern(t, tab)
	f.ownAddresses(t)
	audited := new(tables)
	*audited = *tab
	audited.policy.Flags |= PolicyAudit
	const (
		noListener = nodeSgCounterSG_DROP_NO_LISTENER
		outbound   = nodeSgCounterSG_DROP_OUTBOUND_PORT
	)
	for _, c := range []struct {
		name string
		from string
		port uint16
		drop Counter // 0: the kernel's own lookup
	}{
		{"app's port", outside4, 8080, noListener},
		{"app's port, IPv6", outside6, 8080, noListener},
		{"SSH", outside4, 22, noListener},
		{"port 65535", outside4, 65535, noListener},
		{"metrics", outside4, 15090, 0},
		{"health", outside4, 15020, 0},
		{"health, IPv6", outside6, 15021, 0},
		{"beside health", outside4, 15022, noListener},
		{"inbound", outside4, 15006, noListener},
		{"outbound", outside4, 15001, outbound},
		{"outbound, IPv6", outside6, 15001, outbound},
		{"DNS", outside4, 15053, outbound},
		{"by exclusion", "198.51.100.7", 22, 0},
		{"other port than the exclusion's", "198.51.100.7", 23, noListener},
		{"outbound, from where an exclusion lets in", "2001:db8:2::1", 15001, outbound},
		{"by exclusion, IPv6", "2001:db8:2::1", 8080, 0},
		{"an exclusion for the other way", "10.9.9.9", 443, noListener},
		{"a rule of a container", "10.9.9.9", 8080, noListener},
		{"IPv4 in IPv6 by exclusion", "::ffff:198.51.100.7", 22, 0},
		{"of another pod", "192.0.2.3", 8080, noListener},

		{"inside, app's port", "127.0.0.1", 8080, 0},
		{"inside, IPv6, app's port", "::1", 8080, 0},
		{"inside, own address", pod4, 8080, 0},
		{"inside, own address, IPv6", pod6, 8080, 0},
		{"inside, outbound", "127.0.0.1", 15001, noListener},
		{"inside, IPv6, outbound", "::1", 15001, noListener},
		{"inside, own address, outbound", pod4, 15001, noListener},
		{"inside, inbound", "127.0.0.1", 15006, noListener},
		{"inside, DNS over TCP", "127.0.0.1", 15053, 0},
		{"inside, metrics", "127.0.0.1", 15090, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, counters := skDrop, []Counter{c.drop}
			if c.drop == 0 {
				want, counters = skPass, nil
			}
			ctx := syn(c.from, c.port)
			if got := lookup(t, f.pod.Lookup, ctx); got != want || ctx.Cookie != 0 {
				t.Errorf("the verdict is %d with socket %#x, want %d with none", got, ctx.Cookie, want)
			}
			f.wantCounted(t, "pod", f.maps.PodCounters, testCookie, counters...)
			// Under mode audit the kernel looks itself.
			f.govern(t, audited)
			if got := lookup(t, f.pod.Lookup, syn(c.from, c.port)); got != skPass {
				t.Errorf("under mode audit the verdict is %d, want pass", got)
			}
			if c.drop != 0 {
				counters = []Counter{nodeSgCounterSG_COUNT_AUDIT}
			}
			f.wantCounted(t, "pod, audit", f.maps.PodCounters, testCookie, counters...)
			f.govern(t, tab)
			// sk_lookup is asked for UDP too, which is none of its business.
			ctx = syn(c.from, c.port)
			ctx.Protocol = unix.IPPROTO_UDP
			if got := lookup(t, f.pod.Lookup, ctx); got != skPass || ctx.Cookie != 0 {
				t.Errorf("of UDP the verdict is %d with socket %#x, want pass with none", got, ctx.Cookie)
			}
			f.wantCounted(t, "pod, UDP", f.maps.PodCounters, testCookie)
		})
	}
}

func TestLookupInUnknownPod(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie+1, lookupPolicy())
	for _, port := range []uint16{80, 15001, 15006} {
		for _, from := range []string{outside4, outside6, "127.0.0.1"} {
			if got := lookup(t, f.pod.Lookup, syn(from, port)); got != skPass {
				t.Errorf("from %s to port %d: the verdict is %d, want pass", from, port, got)
			}
		}
	}
	f.wantCounted(t, "other pod", f.maps.PodCounters, testCookie+1)
}

func TestLookupFindsListeners(t *testing.T) {
	f := loaded(t)
	f.manage(t, testCookie, lookupPolicy())
	out4, out4Cookie := listenOn(t, unix.AF_INET, false)
	in4, in4Cookie := listenOn(t, unix.AF_INET, false)
	in6, in6Cookie := listenOn(t, unix.AF_INET6, true)
	dual, dualCookie := listenOn(t, unix.AF_INET6, false)
	const outbound, inbound = 15001, 15006
	key := func(cookie uint64, port uint16, six, slot uint8) ListenerKey {
		return ListenerKey{NetnsCookie: cookie, Port: port, Ipv6: six, Slot: slot}
	}
	drop := func(k ListenerKey) {
		if err := f.maps.Listeners.Delete(k); err != nil {
			t.Fatalf("delete listener: %v", err)
		}
	}
	want := func(what, from string, port uint16, cookie uint64, counter ...Counter) {
		t.Helper()
		verdict := skPass
		if cookie == 0 {
			verdict = skDrop
		}
		ctx := syn(from, port)
		if got := lookup(t, f.pod.Lookup, ctx); got != verdict || ctx.Cookie != cookie {
			t.Errorf("%s, from %s to port %d: the verdict is %d with socket %#x, want %d with %#x", what, from, port, got, ctx.Cookie, verdict, cookie)
		}
		f.wantCounted(t, what, f.maps.PodCounters, testCookie, counter...)
	}
	const steered, noListener = nodeSgCounterSG_COUNT_STEERED, nodeSgCounterSG_DROP_NO_LISTENER

	put(t, f.maps.Listeners, key(testCookie+1, inbound, 0, 0), uint64(in4))
	want("another pod's listener", outside4, 8080, 0, noListener)
	drop(key(testCookie+1, inbound, 0, 0))

	put(t, f.maps.Listeners, key(testCookie, outbound, 0, 0), uint64(out4))
	want("only outbound listens", outside4, 8080, 0, noListener)
	want("outbound", "127.0.0.1", 15001, out4Cookie)
	want("outbound from outside", outside4, 15001, 0, nodeSgCounterSG_DROP_OUTBOUND_PORT)
	want("outbound over IPv6", "::1", 15001, 0, noListener)

	put(t, f.maps.Listeners, key(testCookie, inbound, 0, 0), uint64(in4))
	want("inbound", outside4, 8080, in4Cookie, steered)
	want("inbound's own port", outside4, 15006, in4Cookie, steered)
	want("inbound from inside", "127.0.0.1", 15006, in4Cookie)
	want("IPv4 only", outside6, 8080, 0, noListener)

	put(t, f.maps.Listeners, key(testCookie, inbound, 1, 0), uint64(in6))
	want("inbound", outside6, 8080, in6Cookie, steered)
	want("both families", outside4, 8080, in4Cookie, steered)
	drop(key(testCookie, inbound, 0, 0))
	want("IPv6 only", outside4, 8080, 0, noListener)
	put(t, f.maps.Listeners, key(testCookie, inbound, 1, 1), uint64(dual))
	want("IPv4 by the second listener", outside4, 8080, dualCookie, steered)
	want("IPv6 by the first", outside6, 8080, in6Cookie, steered)
	drop(key(testCookie, inbound, 1, 0))
	want("IPv6 by what is left", outside6, 8080, dualCookie, steered)
	drop(key(testCookie, inbound, 1, 1))
	want("none is left", outside6, 8080, 0, noListener)

	// The redirect ports are the policy's: with another revision, others.
	policy := lookupPolicy()
	policy.Inbound = 16006
	f.manage(t, testCookie, policy)
	put(t, f.maps.Listeners, key(testCookie, inbound, 0, 0), uint64(in4))
	want("the old port listens", outside4, 8080, 0, noListener)
	put(t, f.maps.Listeners, key(testCookie, 16006, 0, 0), uint64(in4))
	want("the new port listens", outside4, 8080, in4Cookie, steered)
	f.manage(t, testCookie, lookupPolicy())
	want("both listen", outside4, 8080, in4Cookie, steered)
	drop(key(testCookie, inbound, 0, 0))
	want("the new port alone listens", outside4, 8080, 0, noListener)
	drop(key(testCookie, 16006, 0, 0))

	// Any slot will do, and one beyond the last will not.
	for slot := range uint8(ListenerSlots) {
		put(t, f.maps.Listeners, key(testCookie, inbound, 0, slot), uint64(in4))
		want("one slot", outside4, 8080, in4Cookie, steered)
		drop(key(testCookie, inbound, 0, slot))
	}
	put(t, f.maps.Listeners, key(testCookie, inbound, 0, ListenerSlots), uint64(in4))
	want("no slot", outside4, 8080, 0, noListener)
	drop(key(testCookie, inbound, 0, ListenerSlots))

	// The kernel deletes a listener that closes.
	put(t, f.maps.Listeners, key(testCookie, inbound, 0, 0), uint64(in4))
	if err := unix.Shutdown(in4, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	want("closed", outside4, 8080, 0, noListener)
	// The socket's own end may have deleted it.
	f.maps.Listeners.Delete(key(testCookie, inbound, 0, 0))
	drop(key(testCookie, outbound, 0, 0))
}
