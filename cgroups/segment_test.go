// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// ruled is a pod whose app may call its sidecar on 8000 and the outside on 80,
// and be called on 8080; the sidecar may call the app there, and the outside on
// 80. Both serve an admin port too, 9901 and 9902, that is nobody's business.
const ruled = `  rules:
  - role: app
    egress:
    - to: [{role: sidecar}]
      ports: [8000]
    - to: [{role: sidecar}]
      ports: [8000]
      protocol: udp
    - to: [{cidr: 192.0.2.0/24}, {cidr: "2001:db8::/64"}]
      ports: [80]
    ingress:
    - from: [{role: sidecar}]
      ports: [8080]
  - role: sidecar
    egress:
    - to: [{role: app}]
      ports: [8080]
    - to: [{entity: world}, {entity: host}]
      ports: [80]
    ingress:
    - from: [{role: app}]
      ports: [8000]
    - from: [{role: app}]
      ports: [8000]
      protocol: udp
    - from: [{entity: world}, {entity: host}]
      ports: [8080]
`

// ownAddrs are all names of the pod itself, for a service on all its addresses.
func ownAddrs(port int) []string {
	var list []string
	for _, ip := range []string{"127.0.0.1", "127.9.8.7", "0.0.0.0", pod4, "::1", "::", pod6} {
		list = append(list, net.JoinHostPort(ip, fmt.Sprint(port)))
	}
	return list
}

func listenAll(t testing.TB, a *agent.Agent, name string, ports ...int) {
	t.Helper()
	for _, port := range ports {
		listen(t, a, name, fmt.Sprintf("[::]:%d", port))
		udpListen(t, a, name, fmt.Sprintf("[::]:%d", port))
	}
}

func TestContainersReachOnlyWhatRulesAllow(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		denied     string // error of what the rules deny
	}{{"without rules", "  nonTCP: deny\n", ""}, {"with rules", ruled, "EPERM"}} {
		t.Run(c.name, func(t *testing.T) {
			m := newMeshPod(t, parse(t, c.spec))
			listenAll(t, m.sidecar, "sidecar", 8000, 9901)
			listenAll(t, m.app, "app", 8080, 9902)
			try := func(from *agent.Agent, network, addr, want, wantErr string) {
				t.Helper()
				var got agent.Answer
				if network == "udp" {
					got = from.Do(t, agent.Request{Op: "udp", Network: network, Addr: addr, Data: "x"})
				} else {
					got = dial(t, from, network, addr)
				}
				what := network + " to " + want + " at " + addr
				if got.Err != wantErr || wantErr == "" && got.Banner.Name != want && got.Data != want+":x" {
					t.Errorf("%s: error %q, answer %q%q; want error %q", what, got.Err, got.Banner.Name, got.Data, wantErr)
				}
			}
			for _, network := range []string{"tcp", "udp"} {
				for _, addr := range ownAddrs(8000) {
					try(m.app, network, addr, "sidecar", "")
				}
				for _, addr := range ownAddrs(9901) {
					try(m.app, network, addr, "sidecar", c.denied)
				}
				for _, addr := range ownAddrs(9902) {
					try(m.sidecar, network, addr, "app", c.denied)
					try(m.app, network, addr, "app", "") // itself
				}
			}
			try(m.app, "tcpmapped", "127.0.0.1:8000", "sidecar", "")
			try(m.app, "tcpmapped", pod4+":9901", "sidecar", c.denied)
			for _, addr := range ownAddrs(8080) {
				try(m.sidecar, "tcp", addr, "app", "")
			}
		})
	}
}

func TestOutsideByRules(t *testing.T) {
	m := newMeshPod(t, parse(t, ruled))
	for _, ip := range []string{outside4, outside6} {
		listen(t, m.out, "other", net.JoinHostPort(ip, "81"))
		wantBanner(t, "app to 80", dial(t, m.app, "tcp", net.JoinHostPort(ip, "80")), "outbound")
		wantErr(t, "app to 81", dial(t, m.app, "tcp", net.JoinHostPort(ip, "81")), "EPERM")
		wantBanner(t, "sidecar to 80", dial(t, m.sidecar, "tcp", net.JoinHostPort(ip, "80")), "outside")
		wantErr(t, "sidecar to 81", dial(t, m.sidecar, "tcp", net.JoinHostPort(ip, "81")), "EPERM")
		wantErr(t, "sidecar by UDP", m.sidecar.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: net.JoinHostPort(ip, "53")}), "EPERM")
	}
	wantErr(t, "app to another network", dial(t, m.app, "tcp", "203.0.113.1:80"), "EPERM")
	for _, ip := range []string{pod4, pod6} {
		wantBanner(t, "outside to 8080", dial(t, m.out, "tcp", net.JoinHostPort(ip, "8080")), "inbound")
		if got := dial(t, m.out, "tcp", net.JoinHostPort(ip, "8081")); got.Err == "" {
			t.Errorf("outside to 8081 of %s: answered by %q", ip, got.Banner.Name)
		}
	}
	for name, reason := range map[string]string{"app": "policy_egress", "sidecar": "policy_ingress"} {
		if m.drops(name)[reason] == 0 {
			t.Errorf("%s: no %s is counted", name, reason)
		}
	}
}

// TestHostIsNotWorld: the other end of the pod's link is where the runtime runs.
func TestHostIsNotWorld(t *testing.T) {
	for entity, want := range map[string]string{"host": "", "world": "EPERM"} {
		m := newMeshPod(t, parse(t, "  rules: [{role: sidecar, egress: [{to: [{entity: "+entity+"}]}]}]\n"))
		for _, ip := range []string{outside4, outside6} {
			wantErr(t, "sidecar to "+ip+" by "+entity, dial(t, m.sidecar, "tcp", net.JoinHostPort(ip, "80")), want)
		}
	}
}

// TestNamesHaveRules: a rule for one container of a role, and about one.
func TestNamesHaveRules(t *testing.T) {
	p := parse(t, `  rules:
  - container: db
    ingress:
    - from: [{container: app}]
      ports: [5432]
`)
	m := newMeshPod(t, p)
	db, other := m.container("db"), m.container("other")
	m.attach(db, "db", policy.RoleApp, p)
	m.attach(other, "other", policy.RoleApp, p)
	listenAll(t, db, "db", 5432)
	wantBanner(t, "app to db", dial(t, m.app, "tcp", "127.0.0.1:5432"), "db")
	wantErr(t, "other to db", dial(t, other, "tcp", "127.0.0.1:5432"), "EPERM")
	wantErr(t, "db to the outside", dial(t, db, "tcp", outside4+":80"), "EPERM")
	wantBanner(t, "other to the outside", dial(t, other, "tcp", outside4+":80"), "outbound")
}

// TestInitContainersHaveRules: they run before there is a sidecar.
func TestInitContainersHaveRules(t *testing.T) {
	p := parse(t, `  init: direct
  rules: [{role: init, egress: [{to: [{entity: host}], ports: [80]}]}]
`)
	w := newWorld(t)
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	first := w.container("init")
	w.attach(first, "init", policy.RoleInit, p)
	for _, ip := range []string{outside4, outside6} {
		for _, port := range []string{"80", "81"} {
			listen(t, out, "outside", net.JoinHostPort(ip, port))
		}
		wantBanner(t, "init to 80", dial(t, first, "tcp", net.JoinHostPort(ip, "80")), "outside")
		wantErr(t, "init to 81", dial(t, first, "tcp", net.JoinHostPort(ip, "81")), "EPERM")
	}
}

// TestNestedCgroupsHaveRules: a process that a container's own manager has put
// into a cgroup below, as exec sessions are.
func TestNestedCgroupsHaveRules(t *testing.T) {
	m := newMeshPod(t, parse(t, ruled))
	listenAll(t, m.sidecar, "sidecar", 8000, 9901)
	nested := agent.Start(t, m.pod, m.mkcgroup("app/nested"))
	wantBanner(t, "nested to 8000", dial(t, nested, "tcp", "127.0.0.1:8000"), "sidecar")
	wantErr(t, "nested to the admin port", dial(t, nested, "tcp", "127.0.0.1:9901"), "EPERM")
	listen(t, nested, "nested", "127.0.0.1:8080")
	wantBanner(t, "sidecar to nested", dial(t, m.sidecar, "tcp", "127.0.0.1:8080"), "nested")
}

// TestGroupsAreJudgedWhereTheyArrive: sendmsg cannot know who has joined a group.
func TestGroupsAreJudgedWhereTheyArrive(t *testing.T) {
	const group = "224.0.0.251:5353"
	for _, c := range []struct {
		name, spec string
		want       int
	}{
		{"without rules", "  nonTCP: allow\n", 1},
		{"with rules", `  rules:
  - role: app
    egress: [{to: [{entity: world}], protocol: udp}]
  - role: sidecar
    ingress: [{from: [{role: app}], ports: [8000]}]
`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMeshPod(t, parse(t, c.spec))
			joined := m.sidecar.Do(t, agent.Request{Op: "groupjoin", Addr: group})
			wantErr(t, "sidecar joins", joined, "")
			// It is sent, and nobody answers.
			wantErr(t, "app sends", m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: group, Data: "x"}), "ETIMEDOUT")
			if n := m.sidecar.Do(t, agent.Request{Op: "received", ID: joined.ID}).Len; n != c.want {
				t.Errorf("%d datagrams reached the sidecar, want %d", n, c.want)
			}
		})
	}
}

// TestRawSocketsPassForNobody: a container without rules of its own, and with
// CAP_NET_RAW, sends from the address and port of one that may.
func TestRawSocketsPassForNobody(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		want       int
	}{
		{"without rules", "  nonTCP: allow\n", 1},
		{"with rules", "  rules: [{role: sidecar, ingress: [{from: [{role: app}], protocol: udp, ports: [8000]}]}]\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse(t, c.spec)
			m := newMeshPod(t, p)
			other := m.container("other")
			m.attach(other, "other", policy.RoleNone, p)
			id := udpListen(t, m.sidecar, "sidecar", "127.0.0.1:8000")
			udpListen(t, m.app, "", "127.0.0.1:7000")
			other.Do(t, agent.Request{Op: "rawudp", Local: "127.0.0.1:7000", Addr: "127.0.0.1:8000", Data: "forged"})
			// What the app sends after it arrives after it.
			got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: "127.0.0.1:8000", Data: "x"})
			if got.Data != "sidecar:x" {
				t.Errorf("the app itself: %+v", got)
			}
			if n := m.sidecar.Do(t, agent.Request{Op: "received", ID: id}).Len; n != c.want+1 {
				t.Errorf("%d forged datagrams arrived, want %d", n-1, c.want)
			}
		})
	}
}

// TestRedirectedDNSNeedsNoRuleOfTheSidecar: it is judged as what it was meant to be.
func TestRedirectedDNSNeedsNoRuleOfTheSidecar(t *testing.T) {
	m := newMeshPod(t, parse(t, `  redirect: {dns: 15053}
  rules:
  - role: app
    egress: [{to: [{cidr: 192.0.2.0/24}], protocol: udp, ports: [53]}]
  - role: sidecar
    ingress: []
`))
	udpListen(t, m.sidecar, "dns", "127.0.0.1:15053")
	for _, connected := range []bool{false, true} {
		got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: outside4 + ":53", Data: "q", Connected: connected})
		if got.Err != "" || got.Data != "dns:q" || got.Peer != outside4+":53" {
			t.Errorf("query, connected %v: %+v", connected, got)
		}
		got = m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: "127.0.0.1:15053", Data: "q", Connected: connected})
		wantErr(t, "to the sidecar's port itself", got, "EPERM")
	}
}

func TestAudit(t *testing.T) {
	m := newMeshPod(t, parse(t, "  mode: audit\n"+ruled))
	listenAll(t, m.sidecar, "sidecar", 9901)
	wantBanner(t, "app to the admin port", dial(t, m.app, "tcp", "127.0.0.1:9901"), "sidecar")
	wantBanner(t, "app to the outside", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: outside4 + ":53", Data: "x"})
	if got.Data != "outside:x" {
		t.Errorf("UDP of the app: %+v", got)
	}
	wantErr(t, "app makes a raw socket", m.app.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}}), "")
	listen(t, m.app, "app", "127.0.0.1:15007")
	m.sidecar.Stop()
	wantBanner(t, "app without sidecar", dial(t, m.app, "tcp", outside4+":80"), "outside")
	if d := m.drops("app"); len(d) > 0 {
		t.Errorf("drops are counted: %v", d)
	}
	seen, err := cgroups.ReadSeen(m.state)
	must(t, err)
	want := map[string]bool{"policy_egress": false, "no_listener": false, "raw_socket": false}
	for _, s := range seen {
		if _, has := want[s.Reason]; has {
			want[s.Reason] = true
		}
	}
	for reason, is := range want {
		if !is {
			t.Errorf("no %s is recorded: %+v", reason, seen)
		}
	}
}

// TestSCTP: without rules an app has none; with them, it goes outside by rule, and
// inside the pod it goes nowhere.
func TestSCTP(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		t.Skip("this kernel has no SCTP; Debian's in the VM have")
	}
	must(t, err)
	must(t, unix.Close(fd))
	m := newMeshPod(t, parse(t, "  nonTCP: allow\n"))
	wantErr(t, "outside listens", m.out.Do(t, agent.Request{Op: "sctplisten", Addr: "80"}), "")
	wantErr(t, "sidecar listens", m.sidecar.Do(t, agent.Request{Op: "sctplisten", Addr: "8000"}), "")
	try := func(what string, from *agent.Agent, addr string, errs ...string) {
		t.Helper()
		if got := from.Do(t, agent.Request{Op: "sctp", Addr: addr}); !slices.Contains(errs, got.Err) {
			t.Errorf("%s: error %q, want one of %q", what, got.Err, errs)
		}
	}
	try("app without rules", m.app, outside4+":80", "EPROTONOSUPPORT")
	try("sidecar without rules", m.sidecar, outside4+":80", "")
	try("sidecar to itself", m.sidecar, "127.0.0.1:8000", "")
	m.apply(`  rules:
  - role: app
    egress:
    - {to: [{cidr: 192.0.2.0/24}], protocol: sctp, ports: [80]}
    - {to: [{role: sidecar}], protocol: any}
    ingress: []
`)
	// connect(2) of SCTP passes the hooks for TCP's on no kernel: its packets stop.
	lost := []string{"EPERM", "EINPROGRESS", "EAGAIN", "ETIMEDOUT", "ECONNREFUSED", "EACCES"}
	try("app by rule", m.app, outside4+":80", "")
	try("app to another port", m.app, outside4+":81", lost...)
	try("app to the sidecar, which a rule for any cannot let through", m.app, "127.0.0.1:8000", lost...)
	try("app to the sidecar by the pod's address", m.app, pod4+":8000", lost...)
	if d := m.drops("app"); d["policy_egress"] == 0 {
		t.Errorf("nothing is counted: %v", d)
	}
}

// TestFamilies: where BPF LSM is on, an app has no sockets that leave the machine in
// ways of their own; nor has a sidecar with rules.
func TestFamilies(t *testing.T) {
	needRoot(t)
	const bluetooth = 31 // there need be none: the hook comes first
	m := newMeshPod(t, parse(t, "  nonTCP: allow\n"))
	want := func(what string, a *agent.Agent, family [3]int, err string) {
		t.Helper()
		wantErr(t, what, a.Do(t, agent.Request{Op: "socket", Sock: family}), err)
	}
	vsock := [3]int{unix.AF_VSOCK, unix.SOCK_STREAM, 0}
	usual := m.out.Do(t, agent.Request{Op: "socket", Sock: vsock}).Err // of a container that is none of Sidegate's
	if bpf.ProbeUnix() != bpf.UnixLSM {
		want("app without BPF LSM", m.app, vsock, usual)
		return
	}
	if usual != "" {
		t.Fatalf("this kernel has no AF_VSOCK to refuse: %s", usual)
	}
	refused := uint64(0)
	for _, family := range [][3]int{vsock, {bluetooth, unix.SOCK_RAW, 1}, {unix.AF_TIPC, unix.SOCK_RDM, 0}, {unix.AF_RDS, unix.SOCK_SEQPACKET, 0}} {
		want(fmt.Sprint("app's family ", family[0]), m.app, family, "EAFNOSUPPORT")
		refused++
	}
	if n := m.drops("app")["protocol"]; n != refused {
		t.Errorf("%d are counted, want %d", n, refused)
	}
	for _, family := range [][3]int{{unix.AF_UNIX, unix.SOCK_STREAM, 0}, {unix.AF_NETLINK, unix.SOCK_RAW, 0}, {unix.AF_INET, unix.SOCK_STREAM, 0}} {
		want(fmt.Sprint("app's family ", family[0]), m.app, family, "")
	}
	want("sidecar without rules", m.sidecar, vsock, "")
	m.apply("  rules:\n  - role: sidecar\n    egress: [{to: [{entity: world}]}]\n")
	want("sidecar with rules", m.sidecar, vsock, "EAFNOSUPPORT")
	m.apply("  mode: audit\n")
	want("app under audit", m.app, vsock, "")
}

// TestAuditTellsCallersFromCalled: also of a policy without rules, it is known who
// called whom, and what is an answer is no call.
func TestAuditTellsCallersFromCalled(t *testing.T) {
	for name, spec := range map[string]string{"without rules": "  mode: audit\n", "nothing denied": "  mode: audit\n  nonTCP: allow\n", "with rules": "  mode: audit\n" + ruled} {
		t.Run(name, func(t *testing.T) {
			m := newMeshPod(t, parse(t, spec))
			listenAll(t, m.sidecar, "sidecar", 8000)
			udpListen(t, m.app, "app", "[::]:5353")
			wantBanner(t, "app to the outside", dial(t, m.app, "tcp", outside4+":80"), "outbound")
			wantBanner(t, "app to the sidecar", dial(t, m.app, "tcp", "127.0.0.1:8000"), "sidecar")
			for _, c := range []struct {
				from     *agent.Agent
				to, want string
			}{
				{m.app, "127.0.0.1:8000", "sidecar:x"}, {m.app, "[::1]:8000", "sidecar:x"},
				{m.out, pod4 + ":5353", "app:x"}, {m.out, "[" + pod6 + "]:5353", "app:x"},
				{m.app, "0.0.0.0:8000", "sidecar:x"}, {m.sidecar, pod4 + ":5353", "app:x"}, {m.sidecar, outside4 + ":53", "outside:x"},
			} {
				if got := c.from.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: c.to, Data: "x"}); got.Data != c.want {
					t.Errorf("datagram to %s: %+v", c.to, got)
				}
			}
			for _, addr := range []string{"127.0.0.1:8000", pod4 + ":8000", outside4 + ":53"} {
				if got := m.app.Do(t, agent.Request{Op: "udp", Network: "udp4", Addr: addr, Data: "x", Connected: true}); got.Err != "" {
					t.Errorf("connected to %s: %+v", addr, got)
				}
			}
			for _, ip := range []string{outside4, outside6} {
				wantErr(t, "ping "+ip, m.app.Do(t, agent.Request{Op: "echo", Addr: ip}), "")
			}
			seen, err := cgroups.ReadSeen(m.state)
			must(t, err)
			got := make(map[string]bool)
			for _, s := range seen {
				peer := s.Peer
				if peer == "" {
					peer = s.Address.String()
				}
				if s.Proto != unix.IPPROTO_RAW && s.Reason != "raw_socket" && s.Reason != "icmp" || s.Port != 0 {
					got[fmt.Sprintf("%s %s %s %d/%d", s.Container, s.Dir, peer, s.Proto, s.Port)] = true
				}
			}
			want := map[string]bool{
				"app egress 192.0.2.1 6/80": true, "sidecar ingress app 6/15001": true,
				"app egress sidecar 6/8000": true, "sidecar ingress app 6/8000": true,
				"app egress sidecar 17/8000": true, "sidecar ingress app 17/8000": true,
				"sidecar egress app 17/5353": true, "app ingress sidecar 17/5353": true,
				"app ingress 192.0.2.1 17/5353": true, "app ingress 2001:db8::1 17/5353": true,
				"sidecar egress 192.0.2.1 17/53": true, "app egress 192.0.2.1 17/53": true,
				"app egress 192.0.2.1 1/8": true, "app egress 2001:db8::1 58/128": true,
			}
			if !maps.Equal(got, want) {
				t.Errorf("on record is\n%s\nwant\n%s", strings.Join(slices.Sorted(maps.Keys(got)), "\n"), strings.Join(slices.Sorted(maps.Keys(want)), "\n"))
			}
		})
	}
}

// TestSidecarsHaveNoMPTCP, also under audit: connections are not steered to such a
// listener. Go's listeners, as those of the agents, ask for it and fall back.
func TestSidecarsHaveNoMPTCP(t *testing.T) {
	for _, mode := range []string{"enforce", "audit"} {
		m := newMeshPod(t, parse(t, "  mode: "+mode+"\n"))
		got := m.sidecar.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}})
		wantErr(t, "MPTCP, "+mode, got, "EPROTONOSUPPORT")
		wantBanner(t, "app to the outside, "+mode, dial(t, m.app, "tcp", outside4+":80"), "outbound")
	}
}

func TestPolicyChangesUnderRunningContainers(t *testing.T) {
	m := newMeshPod(t, parse(t, "  nonTCP: deny\n"))
	listenAll(t, m.sidecar, "sidecar", 8000)
	for _, port := range []int{9901} {
		got := m.sidecar.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: fmt.Sprintf("[::]:%d", port), Name: "sidecar", Echo: true})
		wantErr(t, "listen", got, "")
	}
	open := func(addr string) int {
		got := m.app.Do(t, agent.Request{Op: "connect", Network: "tcp", Addr: addr})
		wantErr(t, "connect to "+addr, got, "")
		return got.ID
	}
	talk := func(id int) agent.Answer { return m.app.Do(t, agent.Request{Op: "talk", ID: id, Data: "hello"}) }
	ids := []int{open("127.0.0.1:9901"), open("[::1]:9901"), open(pod4 + ":9901")}
	for _, id := range ids {
		if got := talk(id); got.Data != "hello" {
			t.Fatalf("before the change: %+v", got)
		}
	}
	m.apply(ruled)
	for _, id := range ids {
		if got := talk(id); got.Err != "ECONNABORTED" && got.Err != "ECONNRESET" && got.Err != "EPIPE" {
			t.Errorf("a connection that is denied now: %+v", got)
		}
	}
	wantErr(t, "app to the admin port", dial(t, m.app, "tcp", "127.0.0.1:9901"), "EPERM")
	wantBanner(t, "app to 8000", dial(t, m.app, "tcp", "127.0.0.1:8000"), "sidecar")
	for _, c := range m.status().Pods[0].Containers {
		if len(c.Missing) > 0 {
			t.Errorf("container %s misses %v", c.Name, c.Missing)
		}
	}
	kept := m.app.Do(t, agent.Request{Op: "connect", Network: "tcp", Addr: outside4 + ":80"})
	wantErr(t, "connect to the outside", kept, "")
	m.apply(strings.Replace(ruled, "ports: [8000]", "ports: [8000, 9901]", -1))
	wantBanner(t, "app to the admin port", dial(t, m.app, "tcp", "127.0.0.1:9901"), "sidecar")
	m.apply("  nonTCP: deny\n")
	wantBanner(t, "sidecar to 81", dial(t, m.sidecar, "tcp", outside4+":80"), "outside")
	for _, c := range m.status().Pods[0].Containers {
		if c.Name == "sidecar" && len(c.Hooks) != 3 {
			t.Errorf("the sidecar keeps hooks that it needs no more: %v", c.Hooks)
		}
	}
}

// TestProcesses: it is the file that may have sockets. Neither a copy of it nor
// its name helps another one.
func TestProcesses(t *testing.T) {
	dir := t.TempDir()
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	write := func(name string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, self, 0o755))
		return path
	}
	allowed, copied := write("proxy"), write("copy")
	p := parse(t, fmt.Sprintf("  rules:\n  - role: app\n    processes: [%q, /nowhere]\n", allowed))
	w := newWorld(t)
	start := func(name, file string) *agent.Agent {
		a := agent.StartFile(t, w.pod, w.mkcgroup(name), file)
		w.attach(a, name, policy.RoleApp, p)
		return a
	}
	socket := agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_STREAM, 0}}
	proxy := start("proxy", allowed)
	wantErr(t, "the executable", proxy.Do(t, socket), "")
	other := start("other", copied)
	wantErr(t, "a copy", other.Do(t, socket), "EPERM")
	// Under the name of the other one.
	must(t, os.Rename(allowed, filepath.Join(dir, "moved")))
	must(t, os.Rename(copied, allowed))
	wantErr(t, "the executable, renamed", proxy.Do(t, socket), "")
	wantErr(t, "a copy, under its name", other.Do(t, socket), "EPERM")
	wantErr(t, "what the name stood for before", start("third", filepath.Join(dir, "moved")).Do(t, socket), "EPERM")
	if n := w.drops("other")["process"]; n != 2 {
		t.Errorf("%d are counted, want 2", n)
	}
	none := parse(t, "  rules: [{role: app, processes: [/nowhere]}]\n")
	if _, err := newWorld(t).tryAttach(w.container("none"), "none", policy.RoleApp, none); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("no executable of the list exists: %v", err)
	}
}

// TestUnixSockets: by name, and where the kernel can tell by whose they are.
func TestUnixSockets(t *testing.T) {
	needRoot(t)
	kind := bpf.ProbeUnix()
	t.Logf("this kernel judges UNIX sockets by: %s", kind)
	dir := t.TempDir()
	spec := func(more string) string {
		return fmt.Sprintf("  rules:\n  - role: app\n    unix:\n%s      allow:\n      - {path: %q, type: stream}\n      - {abstract: \"@sidegate-*\"}\n",
			more, dir+"/ok*.sock")
	}
	if kind == bpf.UnixNone {
		w := newWorld(t)
		_, err := w.tryAttach(w.container("app"), "app", policy.RoleApp, parse(t, spec("")))
		if !errors.Is(err, cgroups.ErrUnsupported) || !strings.Contains(err.Error(), "optional: true") {
			t.Errorf("attach says %v", err)
		}
		newMeshPod(t, parse(t, spec("      optional: true\n")))
		return
	}
	m := newMeshPod(t, parse(t, "  nonTCP: deny\n"))
	abstract := fmt.Sprintf("sidegate-%d", os.Getpid())
	for _, addr := range []string{dir + "/ok-1.sock", dir + "/other.sock", "@" + abstract, "@x" + abstract, "@y" + abstract} {
		wantErr(t, "sidecar listens on "+addr, m.sidecar.Do(t, agent.Request{Op: "unixlisten", Network: "unix", Addr: addr}), "")
	}
	connect := func(addr, want string) {
		t.Helper()
		wantErr(t, "app to "+addr, m.app.Do(t, agent.Request{Op: "unix", Network: "unix", Addr: addr}), want)
	}
	connect(dir+"/other.sock", "") // without the rules
	m.apply(spec(""))
	connect(dir+"/ok-1.sock", "")
	connect("@"+abstract, "")
	connect(dir+"/other.sock", "EPERM")
	connect(dir+"/../"+filepath.Base(dir)+"/other.sock", "EPERM")
	connect("@x"+abstract, "EPERM")
	wantErr(t, "sidecar, which has no rules", m.sidecar.Do(t, agent.Request{Op: "unix", Network: "unix", Addr: dir + "/other.sock"}), "")
	if n := m.drops("app")["unix"]; n != 3 {
		t.Errorf("%d are counted, want 3", n)
	}
	peers := strings.Replace(spec(""), "type: stream", "type: stream, to: [{role: sidecar}]", 1)
	if kind == bpf.UnixLSM {
		m.apply(peers)
		connect(dir+"/ok-1.sock", "")
		m.apply(strings.Replace(peers, "role: sidecar}", "role: init}", 1))
		connect(dir+"/ok-1.sock", "EPERM")
	} else if err := m.tryApply(peers); !errors.Is(err, cgroups.ErrUnsupported) {
		t.Errorf("rules about whose sockets they are: %v", err)
	}
	m.apply("  mode: audit\n" + spec(""))
	connect(dir+"/ok-1.sock", "")
	connect(dir+"/other.sock", "")
	connect("@x"+abstract, "")
	connect("@x"+abstract, "")
	seen, err := cgroups.ReadSeen(m.state)
	must(t, err)
	missing := ""
	got := make(map[string]uint64)
	for _, s := range seen {
		if s.Type != "" {
			got[s.Container+" "+s.Type+" "+s.Unix] = s.Count
			_, rule, _ := strings.Cut(s.Missing, "    allow:\n")
			missing += strings.ReplaceAll(rule, "    -", "      -")
		}
	}
	if want := map[string]uint64{"app stream " + dir + "/other.sock": 1, "app stream @x" + abstract: 2}; !maps.Equal(got, want) {
		t.Errorf("on record is %v, want %v", got, want)
	}
	m.apply(spec("") + missing)
	for _, addr := range []string{dir + "/ok-1.sock", dir + "/other.sock", "@x" + abstract} {
		connect(addr, "")
	}
	connect("@y"+abstract, "EPERM")
	m.apply("  nonTCP: deny\n")
	connect("@y"+abstract, "")
}
