// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

func TestEgressGoesThroughTheSidecar(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	for _, c := range []struct{ network, addr, orig4, orig6 string }{
		{"tcp4", outside4 + ":80", outside4 + ":80", "ENOPROTOOPT"},
		{"tcp6", "[" + outside6 + "]:80", "ENOPROTOOPT", "[" + outside6 + "]:80"},
		{"tcpmapped", outside4 + ":80", outside4 + ":80", "ENOPROTOOPT"},
		// There is no such host, no route to it, and no need for one.
		{"tcp4", "203.0.113.9:4711", "203.0.113.9:4711", "ENOPROTOOPT"},
		{"tcp6", "[2001:db8:ffff::9]:4711", "ENOPROTOOPT", "[2001:db8:ffff::9]:4711"},
	} {
		t.Run(c.network+" "+c.addr, func(t *testing.T) {
			got := dial(t, m.app, c.network, c.addr)
			wantBanner(t, "app", got, "outbound")
			if got.Peer != c.addr {
				t.Errorf("getpeername of the app is %s, want %s", got.Peer, c.addr)
			}
			if got.Banner.Orig4 != c.orig4 && !noDst(got.Banner.Orig4, c.orig4) {
				t.Errorf("SO_ORIGINAL_DST of the sidecar is %s, want %s", got.Banner.Orig4, c.orig4)
			}
			if got.Banner.Orig6 != c.orig6 && !noDst(got.Banner.Orig6, c.orig6) {
				t.Errorf("IP6T_SO_ORIGINAL_DST of the sidecar is %s, want %s", got.Banner.Orig6, c.orig6)
			}
		})
	}
	wantBanner(t, "sidecar", dial(t, m.sidecar, "tcp4", outside4+":80"), "outside")
	wantBanner(t, "sidecar", dial(t, m.sidecar, "tcp6", "["+outside6+"]:80"), "outside")
}

// noDst: a kernel with netfilter says ENOENT where one without says ENOPROTOOPT.
func noDst(got, want string) bool {
	return want == "ENOPROTOOPT" && (got == "ENOENT" || got == "ENOTSUP")
}

func TestLocalConnectionsStayLocal(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	listen(t, m.app, "app", "0.0.0.0:8080")
	listen(t, m.app, "app", "[::]:8081")
	for _, addr := range []string{"127.0.0.1:8080", pod4 + ":8080", "0.0.0.0:8080", "127.9.8.7:8080", "[::1]:8081", "[" + pod6 + "]:8081", "[::]:8081"} {
		got := dial(t, m.app, "tcp", addr)
		wantBanner(t, "app to "+addr, got, "app")
		wantBanner(t, "sidecar to "+addr, dial(t, m.sidecar, "tcp", addr), "app")
	}
}

func TestIngressLandsOnTheSidecar(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	listen(t, m.app, "app", pod4+":8080")
	listen(t, m.app, "app", "["+pod6+"]:8080")
	for _, addr := range []string{pod4 + ":8080", "[" + pod6 + "]:8080", pod4 + ":9999", "[" + pod6 + "]:15006"} {
		got := dial(t, m.out, "tcp", addr)
		wantBanner(t, "outside to "+addr, got, "inbound")
		if got.Banner.Local != addr {
			t.Errorf("getsockname of the sidecar is %s, want %s", got.Banner.Local, addr)
		}
		orig := got.Banner.Orig4
		if net.ParseIP(addrIP(addr)).To4() == nil {
			orig = got.Banner.Orig6
		}
		if orig != addr {
			t.Errorf("SO_ORIGINAL_DST of the sidecar is %s, want %s", orig, addr)
		}
	}
	// The outbound listener is an open proxy: nobody outside reaches it.
	wantErr(t, "outside to the outbound port", dial(t, m.out, "tcp", pod4+":15001"), "ECONNREFUSED")
}

func addrIP(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

func TestOnlyTheSidecarBindsItsPorts(t *testing.T) {
	m := newMeshPod(t, parse(t, "  sidecarPorts: [\"15020-15021\"]\n"))
	for _, addr := range []string{"127.0.0.1:15001", "0.0.0.0:15006", "[::]:15001", pod4 + ":15006", "127.0.0.1:15021"} {
		for _, reuse := range []bool{false, true} {
			got := m.app.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: addr, Reuse: reuse})
			wantErr(t, fmt.Sprintf("app binds %s, reuse %v", addr, reuse), got, "EPERM")
		}
	}
	got := m.app.Do(t, agent.Request{Op: "udplisten", Network: "udp", Addr: "127.0.0.1:15020"})
	wantErr(t, "app binds UDP port of the sidecar", got, "EPERM")
	listen(t, m.app, "app", "0.0.0.0:15002")
	listen(t, m.sidecar, "sidecar", "0.0.0.0:15021")
	wantBanner(t, "outside to a further port of the sidecar", dial(t, m.out, "tcp", pod4+":15021"), "sidecar")
	if n := m.drops("app")["bind_reserved"]; n != 11 {
		t.Errorf("%d refused binds are counted, want 11", n)
	}
	exempt := m.container("exempt")
	m.attach(exempt, "exempt", policy.RoleNone, parse(t, "  sidecarPorts: [\"15020-15021\"]\n"))
	for _, addr := range []string{"127.0.0.1:15001", "[::]:15006", "127.0.0.1:15020"} {
		got := exempt.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: addr, Reuse: true})
		wantErr(t, "exempt container binds "+addr, got, "EPERM")
	}
	listen(t, exempt, "exempt", "0.0.0.0:15003")
}

// TestPodHasAShareOfPendingConnections: a pod whose connections fill its share
// of map origdst has further ones refused, and others go on.
func TestPodHasAShareOfPendingConnections(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	pending, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(m.state), "maps", "pending"), nil)
	must(t, err)
	defer pending.Close()
	count := func() (n uint64) {
		must(t, pending.Lookup(m.att.Cookie, &n))
		return n
	}
	for _, addr := range []string{outside4 + ":80", "[" + outside6 + "]:80"} {
		wantBanner(t, "app to "+addr, dial(t, m.app, "tcp", addr), "outbound")
	}
	m.sidecar.Stop()
	wantErr(t, "app without sidecar", dial(t, m.app, "tcp", outside4+":80"), "ECONNREFUSED")
	if n := count(); n != 0 {
		t.Fatalf("%d connections are pending when all have ended", n)
	}
	const share = bpf.MaxPending
	must(t, pending.Put(m.att.Cookie, uint64(share-1)))
	wantErr(t, "the last of the share", dial(t, m.app, "tcp", outside4+":80"), "ECONNREFUSED")
	must(t, pending.Put(m.att.Cookie, uint64(share)))
	if got := dial(t, m.app, "tcp", outside4+":80"); got.Err == "" || got.Err == "ECONNREFUSED" {
		t.Errorf("beyond the share: error %q, want one of a connection whose SYN went nowhere", got.Err)
	}
	if n := m.drops("app")["origdst_full"]; n == 0 {
		t.Error("a connection beyond the share is not counted")
	}
	if n := count(); n != share {
		t.Errorf("%d are pending after a refusal, want %d", n, share)
	}
}

func TestPortsStayClosedWithoutSidecar(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	listen(t, m.app, "app", "0.0.0.0:8080")
	m.sidecar.Stop()
	for _, addr := range []string{outside4 + ":80", "[" + outside6 + "]:80"} {
		wantErr(t, "app to "+addr, dial(t, m.app, "tcp", addr), "ECONNREFUSED")
	}
	wantErr(t, "outside to app", dial(t, m.out, "tcp", pod4+":8080"), "ECONNREFUSED")
	wantErr(t, "app takes the port", m.app.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: "127.0.0.1:15001"}), "EPERM")
	if st := m.status(); len(st.Pods) != 1 || st.Pods[0].Listening {
		t.Errorf("status does not say that the sidecar is gone: %+v", st.Pods)
	}
}

func TestWhatTheSidecarCannotCarry(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	for _, a := range []*agent.Agent{m.sidecar, m.app} {
		want, wantProto, wantPing := "", "", ""
		if a == m.app {
			want, wantProto, wantPing = "EPERM", "EPROTONOSUPPORT", "EPERM"
		}
		for _, addr := range []string{outside4 + ":53", "[" + outside6 + "]:53"} {
			for _, connected := range []bool{false, true} {
				got := a.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: addr, Data: "x", Connected: connected})
				wantErr(t, fmt.Sprintf("UDP to %s, connected %v", addr, connected), got, want)
			}
		}
		for _, s := range []struct {
			name string
			sock [3]int
			want string
		}{
			{"raw", [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP}, want},
			{"raw6", [3]int{unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_TCP}, want},
			{"hdrincl", [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, want},
			{"icmp", [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, want},
			{"icmp6", [3]int{unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6}, want},
			{"ping", [3]int{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, wantPing},
			{"udplite", [3]int{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE}, wantProto},
			{"mptcp", [3]int{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, wantProto},
			{"sctp", [3]int{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, wantProto},
		} {
			got := a.Do(t, agent.Request{Op: "socket", Sock: s.sock})
			switch {
			case a == m.sidecar && (got.Err == "EPROTONOSUPPORT" || got.Err == "EACCES" || got.Err == "ESOCKTNOSUPPORT"):
				// Not in this kernel, or not for this group: nothing to forbid.
			default:
				wantErr(t, s.name, got, s.want)
			}
		}
	}
	d := m.drops("app")
	for _, reason := range []string{"udp", "icmp", "raw_socket", "protocol"} {
		if d[reason] == 0 {
			t.Errorf("drops of reason %s are not counted: %v", reason, d)
		}
	}
}

func TestInboundUDPDoesNotReachTheApp(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	udpListen(t, m.app, "app", pod4+":5353")
	udpListen(t, m.sidecar, "sidecar", pod4+":5354")
	udp := func(port string) agent.Answer {
		return m.out.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: pod4 + ":" + port, Data: "x"})
	}
	wantErr(t, "outside to the sidecar", udp("5354"), "")
	wantErr(t, "outside to the app", udp("5353"), "ETIMEDOUT")
	if d := m.drops("app"); d["ingress"] == 0 {
		t.Errorf("drop is not counted: %v", d)
	}
}

// TestWhatMayGoOutAdmitsAnswersOnly: a network that an app may send datagrams to
// sends it none that it has not asked for, also without rules.
func TestWhatMayGoOutAdmitsAnswersOnly(t *testing.T) {
	m := newMeshPod(t, parse(t, "  exclude: {egress: [{cidr: 192.0.2.0/24, protocol: udp}]}\n"))
	udpListen(t, m.app, "app", pod4+":5353")
	call := agent.Request{Op: "udp", Network: "udp", Addr: pod4 + ":5353", Data: "x"}
	wantErr(t, "unasked", m.out.Do(t, call), "ETIMEDOUT")
	for _, connected := range []bool{false, true} {
		got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53", Data: "q", Connected: connected})
		if got.Data != "outside:q" {
			t.Errorf("the app asks, connected %v: %+v", connected, got)
		}
	}
}

func TestDNSGoesToTheSidecar(t *testing.T) {
	m := newMeshPod(t, parse(t, "  redirect: {dns: 15053}\n"))
	udpListen(t, m.sidecar, "dns", "127.0.0.1:15053")
	udpListen(t, m.sidecar, "dns", "[::1]:15053")
	for _, addr := range []string{outside4 + ":53", "[" + outside6 + "]:53"} {
		for _, connected := range []bool{false, true} {
			got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: addr, Data: "q", Connected: connected})
			if got.Err != "" || got.Data != "dns:q" || got.Peer != addr {
				t.Errorf("query to %s, connected %v: %+v, want dns:q from there", addr, connected, got)
			}
		}
	}
}

func TestExclusions(t *testing.T) {
	m := newMeshPod(t, parse(t, `  exclude:
    egress:
    - {cidr: 192.0.2.1/32, ports: [80]}
    - {cidr: "2001:db8::/64", ports: [53], protocol: udp}
    ingress:
    - {ports: [9090]}
`))
	listen(t, m.app, "app", "0.0.0.0:9090")
	listen(t, m.app, "app", "0.0.0.0:9091")
	listen(t, m.out, "outside", outside4+":81")
	wantBanner(t, "excluded port", dial(t, m.app, "tcp", outside4+":80"), "outside")
	wantBanner(t, "other port", dial(t, m.app, "tcp", outside4+":81"), "outbound")
	wantBanner(t, "TCP where UDP is excluded", dial(t, m.app, "tcp", "["+outside6+"]:80"), "outbound")
	udp := agent.Request{Op: "udp", Network: "udp", Addr: "[" + outside6 + "]:53", Data: "x"}
	wantErr(t, "excluded UDP", m.app.Do(t, udp), "")
	udp.Addr = outside4 + ":53"
	wantErr(t, "other UDP", m.app.Do(t, udp), "EPERM")
	wantBanner(t, "excluded ingress", dial(t, m.out, "tcp", pod4+":9090"), "app")
	wantBanner(t, "other ingress", dial(t, m.out, "tcp", pod4+":9091"), "inbound")
}

func TestNonTCPAllow(t *testing.T) {
	m := newMeshPod(t, parse(t, "  nonTCP: allow\n"))
	for _, addr := range []string{outside4 + ":53", "[" + outside6 + "]:53"} {
		wantErr(t, "UDP to "+addr, m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: addr, Data: "x"}), "")
	}
	wantErr(t, "raw", m.app.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP}}), "EPERM")
	wantBanner(t, "TCP", dial(t, m.app, "tcp", outside4+":80"), "outbound")
}

func TestGuard(t *testing.T) {
	w := newWorld(t)
	app, stranger := w.container("app"), w.container("stranger")
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	listen(t, out, "outside", outside4+":80")
	wantBanner(t, "stranger in an unmanaged pod", dial(t, stranger, "tcp", outside4+":80"), "outside")
	listen(t, stranger, "early", pod4+":7000")

	w.attach(app, "app", policy.RoleApp, policy.Default())
	wantErr(t, "stranger in a managed pod", dial(t, stranger, "tcp", outside4+":80"), "EPERM")
	wantErr(t, "stranger over UDP", stranger.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53"}), "EPERM")
	wantErr(t, "stranger listens", stranger.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: pod4 + ":7001"}), "EPERM")
	wantErr(t, "outside to a listener from before", dial(t, out, "tcp", pod4+":7000"), "ECONNREFUSED")
	if st := w.status(); st.Pods[0].Drops["unregistered"] == 0 {
		t.Errorf("drops of the guard are not counted: %+v", st.Pods[0].Drops)
	}

	// A process that leaves its cgroup takes no right with it.
	must(t, os.WriteFile(filepath.Join(w.cgroup, "stranger", "cgroup.procs"), fmt.Append(nil, app.PID), 0))
	wantErr(t, "app that moved away", dial(t, app, "tcp", outside4+":80"), "EPERM")
	app.Stop() // before its new cgroup is removed
}

// A runtime's own process serves the containers of a pod on loopback, and does nothing else there.
func TestAgentStaysOnLoopback(t *testing.T) {
	w := newWorld(t)
	app, server := w.container("app"), w.container("server")
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	listen(t, out, "outside", outside4+":80")
	w.attach(app, "app", policy.RoleApp, policy.Default())
	names := agent.Request{Op: "udplisten", Network: "udp", Addr: "127.0.0.11:5353"}
	wantErr(t, "without leave", server.Do(t, names), "EPERM")
	must(t, w.store(func(s *cgroups.Store) error { return s.AddAgent(server.PID) }))
	wantErr(t, "with leave", server.Do(t, names), "")
	listen(t, server, "names", "127.0.0.11:5353")
	wantBanner(t, "an app calls it", dial(t, app, "tcp", "127.0.0.11:5353"), "names")
	wantErr(t, "it listens elsewhere", server.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: pod4 + ":7001"}), "EPERM")
	wantErr(t, "it listens anywhere", server.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: ":7001"}), "EPERM")
	wantErr(t, "it calls the outside", dial(t, server, "tcp", outside4+":80"), "EPERM")
	wantErr(t, "over IPv6", dial(t, server, "tcp", "["+outside6+"]:80"), "EPERM")
	wantErr(t, "over UDP", server.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53"}), "EPERM")
	wantErr(t, "by a raw socket", server.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}}), "EPERM")
	below := agent.Start(t, w.pod, w.mkcgroup("server/below"))
	wantErr(t, "below its cgroup", below.Do(t, agent.Request{Op: "udplisten", Network: "udp", Addr: "127.0.0.12:5353"}), "EPERM")
}

func TestNestedCgroupInherits(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	nested := m.mkcgroup("app/nested")
	a := agent.Start(t, m.pod, nested)
	wantBanner(t, "nested", dial(t, a, "tcp", outside4+":80"), "outbound")
	wantErr(t, "nested over UDP", a.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53", Data: "x"}), "EPERM")
	if m.drops("app")["udp"] == 0 {
		t.Error("the drop is not counted for the container")
	}
}

// TestOthersAreLeftAlone compares the host and an unmanaged pod with and
// without a managed pod beside them.
func TestOthersAreLeftAlone(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	for _, c := range []struct {
		name string
		a    *agent.Agent
	}{
		{"host", agent.Start(t, currentNetns(t), m.mkcgroup("host"))},
		{"unmanaged", agent.Start(t, newNetns(t), m.mkcgroup("unmanaged"))},
	} {
		ans := c.a.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: "127.0.0.1:15001", Name: c.name})
		wantErr(t, c.name+" binds port 15001", ans, "")
		wantBanner(t, c.name, dial(t, c.a, "tcp", "127.0.0.1:15001"), c.name)
		wantErr(t, c.name+" opens a raw socket", c.a.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}}), "")
	}
}

// TestKernelDoesNotAnswerPings: an answer carries what was asked, and an app
// could ask in another's name.
func TestKernelDoesNotAnswerPings(t *testing.T) {
	for _, c := range []struct {
		spec string
		want string
	}{{"  nonTCP: deny\n", "EAGAIN"}, {"  nonTCP: allow\n", ""}} {
		w := newWorld(t)
		app := w.container("app")
		out := agent.Start(t, w.outside, w.mkcgroup("outside"))
		ping := agent.Request{Op: "echo", Addr: pod4}
		wantErr(t, "ping to an unmanaged pod", out.Do(t, ping), "")
		w.attach(app, "app", policy.RoleApp, parse(t, c.spec))
		wantErr(t, "ping under"+strings.TrimRight(c.spec, "\n"), out.Do(t, ping), c.want)
	}
}

// TestKernelSocketsAreLeftAlone has the kernel connect by itself, as it does for
// NFS: to refuse that has frozen whole machines.
func TestKernelSocketsAreLeftAlone(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	host := agent.Start(t, currentNetns(t), m.mkcgroup("host"))
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	first := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 64)
		n, _ := c.Read(b)
		first <- b[:n]
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	got := host.Do(t, agent.Request{Op: "mount9p", Addr: port, Data: t.TempDir()})
	if got.Err == "ENODEV" || got.Err == "ESRCH" { // no file system, no transport
		t.Skip("kernel: no 9p over TCP; the stock kernels of tests/vm have it")
	}
	select {
	case b := <-first:
		if !bytes.Contains(b, []byte("9P2000")) {
			t.Errorf("the kernel's first message is %q", b)
		}
	case <-time.After(10 * time.Second):
		t.Errorf("the kernel did not connect: mount says %q", got.Err)
	}
}

// TestSockoptsAreUntouched asks a socket of the sidecar, where the hook is, and
// one outside for the same options with every odd length.
func TestSockoptsAreUntouched(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	tcp := [3]int{unix.AF_INET, unix.SOCK_STREAM, 0}
	for _, o := range []struct{ level, opt int }{
		{unix.SOL_SOCKET, unix.SO_SNDBUF},
		{unix.SOL_SOCKET, unix.SO_TYPE},
		{unix.SOL_SOCKET, agent.SoOriginalDst},
		{unix.SOL_TCP, unix.TCP_INFO},
		{unix.SOL_TCP, unix.TCP_CONGESTION},
		{unix.SOL_TCP, agent.SoOriginalDst},
		{unix.SOL_IP, unix.IP_TOS},
		{unix.SOL_IP, agent.SoOriginalDst}, // not connected: no answer of ours
		{unix.SOL_IPV6, agent.SoOriginalDst},
		{unix.SOL_UDP, agent.SoOriginalDst},
		{9999, 80},
	} {
		for _, size := range []int{0, 1, 3, 4, 15, 16, 28, 256, 4095, 4096, 4097, 8192, 65536} {
			r := agent.Request{Op: "sockopt", Sock: tcp, Level: o.level, Opt: o.opt, Len: size}
			got, want := m.sidecar.Do(t, r), m.out.Do(t, r)
			if o.level == unix.SOL_TCP && o.opt == unix.TCP_INFO {
				got.Raw, want.Raw = nil, nil // has clocks in it
			}
			if got.Err != want.Err || got.Len != want.Len || !bytes.Equal(got.Raw, want.Raw) {
				t.Errorf("level %d option %d length %d: error %q length %d, without Sidegate %q and %d",
					o.level, o.opt, size, got.Err, got.Len, want.Err, want.Len)
			}
		}
	}
}

func TestAFPacketStopsAtTheDevice(t *testing.T) {
	w := newWorld(t)
	app, sidecar := w.container("app"), w.container("sidecar")
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	id := udpListen(t, out, "outside", outside4+":5000")
	received := func() int { return out.Do(t, agent.Request{Op: "received", ID: id}).Len }
	frame := w.udpFrame()
	for _, bypass := range []bool{false, true} {
		n := received()
		wantErr(t, "AF_PACKET", app.Do(t, agent.Request{Op: "packet", Addr: "eth0", Frame: frame, Bypass: bypass}), "")
		eventually(t, fmt.Sprintf("frame arrives without Sidegate, bypass %v", bypass), func() bool { return received() > n })
	}
	w.attach(app, "app", policy.RoleApp, policy.Default())
	w.attach(sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	n := received()
	for _, bypass := range []bool{false, true} {
		app.Do(t, agent.Request{Op: "packet", Addr: "eth0", Frame: frame, Bypass: bypass})
	}
	// What the sidecar sends after them arrives after them.
	wantErr(t, "sidecar", sidecar.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":5000", Data: "x"}), "")
	if got := received(); got != n+1 {
		t.Errorf("%d frames got out", got-n-1)
	}
	d := w.status().Pods[0].Drops
	if d["packet_socket"] != 1 || d["bypass"] != 1 {
		t.Errorf("drops are %v, want one of packet_socket and one of bypass", d)
	}
}

// TestSpoofedLoopback writes packets that seem to come from the outside to lo:
// the kernel would answer a ping among them, a way out for data.
func TestSpoofedLoopback(t *testing.T) {
	w := newWorld(t)
	app := w.container("app")
	w.attach(app, "app", policy.RoleApp, policy.Default())
	frame := w.udpFrame()
	ip := frame[14:34]
	copy(ip[12:16], net.ParseIP(outside4).To4())
	copy(ip[16:20], net.ParseIP(pod4).To4())
	for _, bypass := range []bool{false, true} {
		app.Do(t, agent.Request{Op: "packet", Addr: "lo", Frame: frame, Bypass: bypass})
	}
	// The first on its way into lo, the second, which went round that, out of it.
	eventually(t, "both are dropped", func() bool {
		d := w.status().Pods[0].Drops
		return d["packet_socket"] == 1 && d["bypass"] == 1
	})
}

func TestGetsocknameByPolicy(t *testing.T) {
	for _, c := range []struct{ spec, want4, want6 string }{
		{"  redirect: {getsockname: listener}\n", "127.0.0.1:15001", "[::1]:15001"},
		{"  redirect: {getsockname: original}\n", outside4 + ":80", "[" + outside6 + "]:80"},
	} {
		m := newMeshPod(t, parse(t, c.spec))
		for addr, want := range map[string]string{outside4 + ":80": c.want4, "[" + outside6 + "]:80": c.want6} {
			got := dial(t, m.app, "tcp", addr)
			wantBanner(t, "app", got, "outbound")
			if got.Banner.Local != want {
				t.Errorf("%s: getsockname of the sidecar is %s, want %s", strings.TrimSpace(c.spec), got.Banner.Local, want)
			}
		}
		// A connection that was not redirected keeps its own.
		if got := dial(t, m.app, "tcp", "127.0.0.1:15001"); got.Banner.Local != "127.0.0.1:15001" {
			t.Errorf("%s: getsockname of a local connection is %s", strings.TrimSpace(c.spec), got.Banner.Local)
		}
	}
}

// udpFrame is an Ethernet frame with a datagram for the outside.
func (w *world) udpFrame() []byte {
	w.t.Helper()
	mac := func(ns netns.NsHandle, dev string) (hw net.HardwareAddr) {
		must(w.t, inNS(ns, func() error {
			l, err := netlink.LinkByName(dev)
			if err == nil {
				hw = l.Attrs().HardwareAddr
			}
			return err
		}))
		return hw
	}
	f := append(append(append([]byte{}, mac(w.outside, "out0")...), mac(w.pod, "eth0")...), 8, 0)
	ip := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, net.ParseIP(pod4).To4()...), net.ParseIP(outside4).To4()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	ip[10], ip[11] = byte(^sum>>8), byte(^sum)
	return append(append(f, ip...), 0x13, 0x88, 0x13, 0x88, 0, 9, 0, 0, 'x')
}
