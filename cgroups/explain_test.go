// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// randomRules writes rules about a pod of app, sidecar and db (an app), and
// about the outside of newWorld.
func randomRules(r *rand.Rand) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	peer := func() string {
		return pick("role: app", "role: sidecar", "container: db", "container: app", "entity: world", "entity: host",
			`cidr: "192.0.2.0/24"`, `cidr: "192.0.2.0/24", except: ["192.0.2.0/31"]`, `cidr: "2001:db8::/32"`, `cidr: "0.0.0.0/0"`, `cidr: "::/0"`,
			`cidr: "203.0.113.0/24"`)
	}
	rules := func(key string) string {
		var b strings.Builder
		for range r.IntN(4) {
			fmt.Fprintf(&b, "    - protocol: %s\n", pick("tcp", "tcp", "tcp", "udp", "any"))
			if r.IntN(5) > 0 {
				fmt.Fprintf(&b, "      %s: [{%s}, {%s}]\n", key, peer(), peer())
			}
			if r.IntN(4) > 0 {
				fmt.Fprintf(&b, "      ports: [%s]\n", pick("80", "81", "80-8000", "8000, 8001", "1-8000", "53, 80"))
			}
		}
		if b.Len() == 0 {
			return " []\n"
		}
		return "\n" + b.String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  nonTCP: %s\n", pick("deny", "allow"))
	fmt.Fprintf(&b, "  exclude: {egress: [{cidr: 192.0.2.0/24, ports: [81], protocol: %s}]}\n", pick("tcp", "udp", "any"))
	subjects := []string{"role: app", "role: sidecar", "container: db"}
	r.Shuffle(len(subjects), func(i, j int) { subjects[i], subjects[j] = subjects[j], subjects[i] })
	fmt.Fprintf(&b, "  rules:\n")
	for _, s := range subjects[:1+r.IntN(3)] {
		fmt.Fprintf(&b, "  - %s\n", s)
		if r.IntN(4) > 0 {
			fmt.Fprintf(&b, "    egress:%s", rules("to"))
		}
		fmt.Fprintf(&b, "    ingress:%s", rules("from"))
	}
	return b.String()
}

// TestExplainIsWhatHappens compares the answers of Explain with what the kernel
// does, for random policies on running containers.
func TestExplainIsWhatHappens(t *testing.T) {
	const policies = 40
	const enough = 10 * time.Second // an emulated machine does fewer
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	p := parse(t, "  nonTCP: deny\n")
	m := newMeshPod(t, p)
	db := m.container("db")
	m.attach(db, "db", policy.RoleApp, p)
	agents := map[string]*agent.Agent{"app": m.app, "sidecar": m.sidecar, "db": db}
	for name, port := range map[string]int{"app": 80, "sidecar": 8000, "db": 8001} {
		listenAll(t, agents[name], name, port)
	}
	for _, ip := range []string{outside4, outside6} {
		listen(t, m.out, "outside", net.JoinHostPort(ip, "81"))
		for _, port := range []string{"80", "81"} {
			udpListen(t, m.out, "outside", net.JoinHostPort(ip, port))
		}
	}
	tried, allowed := 0, 0
	n := 0
	for start := time.Now(); n < policies && (n < 3 || time.Since(start) < enough); n++ {
		spec := randomRules(r)
		m.apply(spec)
		for _, from := range []string{"app", "sidecar", "db"} {
			for _, to := range []string{
				"127.0.0.1:80", "[::1]:80", "127.0.0.1:8000", pod4 + ":8000", "[" + pod6 + "]:8001", "0.0.0.0:8001", "127.0.0.1:7999",
				outside4 + ":80", outside4 + ":81", "[" + outside6 + "]:80", "[" + outside6 + "]:81",
			} {
				for _, network := range []string{"tcp", "udp"} {
					ok := m.compare(agents[from], from, network, to)
					tried++
					if ok {
						allowed++
					}
				}
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d, policy %d:\n%s", seed, n, spec)
		}
	}
	t.Logf("%d attempts under %d policies, %d of them allowed", tried, n, allowed)
	if allowed == 0 || allowed == tried {
		t.Errorf("%d of %d attempts are allowed: the policies say nothing", allowed, tried)
	}
}

// compare fails the test unless the kernel does what Explain says. It returns
// whether that was to allow it.
func (m *meshPod) compare(a *agent.Agent, from, network, to string) bool {
	m.t.Helper()
	host, port, err := net.SplitHostPort(to)
	must(m.t, err)
	number, err := strconv.ParseUint(port, 10, 16)
	must(m.t, err)
	proto := uint8(unix.IPPROTO_TCP)
	req := agent.Request{Op: "dial", Network: network, Addr: to}
	if network == "udp" {
		proto, req.Op, req.Data, req.Connected = unix.IPPROTO_UDP, "udp", "x", true
	}
	var x cgroups.Explanation
	must(m.t, inNS(m.host, func() (err error) {
		x, err = cgroups.Explain(m.state, cgroups.Target{Container: "pod/" + from}, cgroups.Target{Addr: netip.MustParseAddr(host)}, proto, uint16(number))
		return err
	}))
	got := a.Do(m.t, req)
	want := ""
	switch {
	case !x.Allow:
		want = "EPERM"
	case x.Nobody:
		want = "ECONNREFUSED"
	}
	if got.Err != want {
		m.t.Errorf("%s to %s %s: error %q, Explain says %+v", from, network, to, got.Err, x)
		return x.Allow
	}
	by := map[policy.Route]string{policy.RouteRedirect: "outbound", policy.RouteDirect: "outside"}[x.Route]
	if who := answerer(got); want == "" && by != "" && who != by {
		m.t.Errorf("%s to %s %s: answered by %s, Explain says %+v", from, network, to, who, x)
	}
	return x.Allow
}

// answerer is who answered a dial or a datagram.
func answerer(a agent.Answer) string {
	name, _, _ := strings.Cut(a.Data, ":")
	return a.Banner.Name + name
}

// apply makes a policy of a spec hold for the pod.
func (m *meshPod) apply(spec string) {
	m.t.Helper()
	must(m.t, m.tryApply(spec))
}

func (m *meshPod) tryApply(spec string) error {
	m.t.Helper()
	c, err := parse(m.t, spec).Compile()
	must(m.t, err)
	return inNS(m.host, func() (err error) {
		s, err := cgroups.OpenExisting(m.state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		_, err = s.Apply(c, cgroups.Source{})
		return err
	})
}
