// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// lab is a machine of our own, in whose network namespace the test runs, and
// another one outside, which has its default route by this one.
type lab struct {
	*testing.T
	machine, outside netns.NsHandle
}

var (
	machine4 = netip.MustParseAddr("10.99.0.1")
	machine6 = netip.MustParseAddr("fd99::1")
	outside4 = netip.MustParseAddr("10.99.0.2")
	outside6 = netip.MustParseAddr("fd99::2")
)

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes network namespaces: needs root")
	}
	t.Parallel()
	// Never unlocked: the thread ends with the test, and its namespace too.
	runtime.LockOSThread()
	l := &lab{T: t}
	l.outside = l.namespace()
	l.machine = l.namespace()
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName, veth.PeerNamespace = "uplink", "uplink", netlink.NsFd(l.outside)
	l.must(netlink.LinkAdd(veth))
	l.address("uplink", netip.PrefixFrom(machine4, 24), netip.PrefixFrom(machine6, 64))
	l.in(l.outside, func() {
		l.address("uplink", netip.PrefixFrom(outside4, 24), netip.PrefixFrom(outside6, 64))
		l.route(machine4)
		l.route(machine6)
	})
	l.must(ensureForwarding(true, true))
	return l
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// namespace makes a network namespace and enters it.
func (l *lab) namespace() netns.NsHandle {
	l.Helper()
	ns, err := netns.New()
	l.must(err)
	l.Cleanup(func() { ns.Close() })
	lo, err := netlink.LinkByName("lo")
	l.must(err)
	l.must(netlink.LinkSetUp(lo))
	return ns
}

// in runs f in a namespace, and goes back to the machine's.
func (l *lab) in(ns netns.NsHandle, f func()) {
	l.Helper()
	l.must(netns.Set(ns))
	defer func() { l.must(netns.Set(l.machine)) }()
	f()
}

func (l *lab) address(dev string, addrs ...netip.Prefix) {
	l.Helper()
	link, err := netlink.LinkByName(dev)
	l.must(err)
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		l.must(netlink.AddrAdd(link, addr))
	}
	l.must(netlink.LinkSetUp(link))
}

func (l *lab) route(gateway netip.Addr) {
	l.Helper()
	l.must(netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}))
}

// newNetwork is 10.<number>.0.0/24 and fd<number>::/64.
func newNetwork(number int) *network {
	return &network{
		id:  fmt.Sprintf("%04x%060x", number, 0xbeef),
		v4:  pool{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", number)), netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", number))},
		v6:  pool{netip.MustParsePrefix(fmt.Sprintf("fd%02d::/64", number)), netip.MustParseAddr(fmt.Sprintf("fd%02d::1", number))},
		nat: true,
	}
}

// box is a container.
type box struct {
	*endpoint
	ns netns.NsHandle
}

// run makes a container of a network, as driver and libnetwork together do.
func (l *lab) run(n *network, number int) *box {
	l.Helper()
	e := &endpoint{
		id:      fmt.Sprintf("%08x%s", number, n.id)[:64],
		network: n.id,
		v4:      netip.PrefixFrom(nth(n.v4.subnet, number), n.v4.subnet.Bits()),
		v6:      netip.PrefixFrom(nth(n.v6.subnet, number), n.v6.subnet.Bits()),
		mac:     net.HardwareAddr{0x02, 0x42, 0, 0, 0, byte(number)},
	}
	l.must(ensureVeth(n, e))
	b := &box{endpoint: e, ns: l.namespace()}
	l.must(netns.Set(l.machine))
	inner, err := netlink.LinkByName(e.inner())
	l.must(err)
	l.must(netlink.LinkSetNsFd(inner, int(b.ns)))
	l.in(b.ns, func() {
		inner, err := netlink.LinkByName(e.inner())
		l.must(err)
		l.must(netlink.LinkSetName(inner, "eth0"))
		l.address("eth0", e.v4, e.v6)
		l.route(n.v4.gateway)
		l.route(n.v6.gateway)
	})
	return b
}

// nth is the number-th address of a subnet.
func nth(subnet netip.Prefix, number int) netip.Addr {
	a := subnet.Addr()
	for range number {
		a = a.Next()
	}
	return a
}

// serve answers everybody with the address that it sees, on both families.
func (l *lab) serve(ns netns.NsHandle, port int) {
	l.Helper()
	l.in(ns, func() {
		tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		l.must(err)
		l.Cleanup(func() { tcp.Close() })
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr())
				c.Close()
			}
		}()
		for _, network := range []string{"udp4", "udp6"} {
			udp, err := net.ListenPacket(network, fmt.Sprintf(":%d", port))
			l.must(err)
			l.Cleanup(func() { udp.Close() })
			go func() {
				b := make([]byte, 16)
				for {
					_, from, err := udp.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = udp.WriteTo([]byte(from.String()), from)
				}
			}()
		}
	})
}

// ask returns as whom the server at addr sees a client in this thread's
// namespace.
func ask(protocol string, addr netip.Addr, port uint16, end time.Time) (who netip.Addr, err error) {
	c, err := (&net.Dialer{Deadline: end}).Dial(protocol, netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return who, err
	}
	defer c.Close()
	return answer(c, end)
}

// answer asks again as long as a datagram, or what it needs, may be lost.
func answer(c net.Conn, end time.Time) (netip.Addr, error) {
	b := make([]byte, 64)
	for {
		next := end
		if _, udp := c.(*net.UDPConn); udp {
			if _, err := c.Write([]byte("?")); err != nil && time.Now().After(end) {
				return netip.Addr{}, err
			}
			if retry := time.Now().Add(100 * time.Millisecond); retry.Before(end) {
				next = retry
			}
		}
		if err := c.SetReadDeadline(next); err != nil {
			return netip.Addr{}, err
		}
		n, err := c.Read(b)
		if err == nil {
			from, err := netip.ParseAddrPort(string(b[:n]))
			return from.Addr().Unmap(), err
		}
		if time.Now().After(end) || next.Equal(end) {
			return netip.Addr{}, err
		}
	}
}

// each asks by TCP and UDP at once, each on a thread of its own.
func (l *lab) each(ns netns.NsHandle, addr netip.Addr, port uint16, within time.Duration, then func(protocol string, who netip.Addr, err error)) {
	l.Helper()
	var wg sync.WaitGroup
	for _, p := range []string{"tcp", "udp"} {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked
			if err := netns.Set(ns); err != nil {
				l.Error(err)
				return
			}
			who, err := ask(p, addr, port, time.Now().Add(within))
			then(p, who, err)
		})
	}
	wg.Wait()
}

// reaches fails unless a client in ns is seen as who (invalid: anybody).
func (l *lab) reaches(ns netns.NsHandle, addr netip.Addr, port uint16, who netip.Addr) {
	l.Helper()
	l.each(ns, addr, port, 5*time.Second, func(p string, seen netip.Addr, err error) {
		l.Helper()
		if err != nil {
			l.Errorf("%s to %s port %d: %v", p, addr, port, err)
		} else if who.IsValid() && seen != who {
			l.Errorf("%s to %s port %d: seen as %s, want %s", p, addr, port, seen, who)
		}
	})
}

// missed fails if a client in ns gets an answer.
func (l *lab) missed(ns netns.NsHandle, addr netip.Addr, port uint16) {
	l.Helper()
	l.each(ns, addr, port, 300*time.Millisecond, func(p string, seen netip.Addr, err error) {
		l.Helper()
		if err == nil {
			l.Errorf("%s to %s port %d: answered %s", p, addr, port, seen)
		}
	})
}

// command runs a program in the current namespace.
func (l *lab) command(line string) string {
	l.Helper()
	args := strings.Fields(line)
	if _, err := exec.LookPath(args[0]); err != nil {
		l.Skipf("needs %s", args[0])
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		l.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// refused fails unless err is there and says all of what.
func (l *lab) refused(err error, what ...string) {
	l.Helper()
	if err == nil {
		l.Error("no error")
		return
	}
	for _, w := range what {
		if !strings.Contains(err.Error(), w) {
			l.Errorf("error %q does not say %q", err, w)
		}
	}
}

func (l *lab) same(got, want any) {
	l.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		l.Errorf("got  %s\nwant %s", g, w)
	}
}

// devices are the names of all devices but lo and the uplink.
func (l *lab) devices() (names []string) {
	l.Helper()
	links, err := netlink.LinkList()
	l.must(err)
	for _, link := range links {
		if name := link.Attrs().Name; name != "lo" && name != "uplink" {
			names = append(names, name)
		}
	}
	return names
}
