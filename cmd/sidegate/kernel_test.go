// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/cgroups"
	"sidegate/policy"
)

// least lets the app call its sidecar on 8000, and the sidecar everybody.
const least = `  rules:
  - role: app
    egress: [{to: [{role: sidecar}], ports: [8000]}]
  - role: sidecar
    egress: [{protocol: any}]
    ingress: [{from: [{role: app}], ports: [8000]}, {from: [{entity: world}]}]
`

// meshPod is a pod of a sidecar, which listens, and an app.
func meshPod(t *testing.T, spec string) (w *world, sidecar, app *container) {
	t.Helper()
	w = newWorld(t)
	w.write("web.yaml", named("web", spec))
	sidecar, app = w.start("shop", "proxy", policy.RoleSidecar, "web"), w.start("shop", "app", policy.RoleApp, "web")
	for _, port := range []string{"15001", "8000", "9901"} {
		sidecar.mustDo("listen", "tcp", "127.0.0.1:"+port)
	}
	return w, sidecar, app
}

func (c *container) want(want, verb, network, addr string) {
	c.t.Helper()
	if got := c.do(verb, network, addr); got != want {
		c.t.Errorf("%s %s %s: %s, want %s", verb, network, addr, got, want)
	}
}

func TestPolicyChangesUnderAPod(t *testing.T) {
	w, _, app := meshPod(t, "  nonTCP: deny\n")
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	w.want(0, []string{"web", "enforce", "in force"}, "list")
	w.want(0, []string{"policy web would be applied: nothing changes in 1 pod\n"}, "apply", "--dry-run")
	next := file(t, "next.yaml", named("web", least))
	out := w.want(1, []string{"--- policy web in force (revision 1)\n+++ " + next + ":2\n", "+spec.rules[0].egress[0]: role app egress to role sidecar tcp 8000\n"}, "diff", next)
	if strings.Contains(out, "\n-mode") {
		t.Errorf("the settings are the same:\n%s", out)
	}
	w.want(0, []string{"it changes in 1 pod\n"}, "apply", "--dry-run", next)
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	w.want(0, []string{"policy web: in force in 1 pod\n"}, "apply", next)
	app.want("EPERM", "dial", "tcp", "127.0.0.1:9901")
	app.want("ok", "dial", "tcp", "127.0.0.1:8000")
	w.want(0, nil, "diff", next)
	w.want(0, nil, "diff")
	w.want(0, []string{"DENY", "policy_egress", "ports: [9901]", "policy web, revision 2"}, "explain", "--from", "shop/app", "--to", "shop/proxy:9901")
	w.want(0, []string{"ALLOW", "inside the pod", "spec.rules[0].egress[0]", "spec.rules[1].ingress[0]"}, "explain", "--from", "shop/app", "--to", "localhost:8000")
	w.want(1, []string{"it is denied"}, "explain", "--exit-code", "--from", "shop/app", "--to", "192.0.2.1:80")
	w.want(0, []string{"ALLOW", "steered"}, "explain", "--from", "192.0.2.1", "--to", "shop/app:80")
	w.want(1, []string{"no managed container shop/nobody"}, "explain", "--from", "shop/nobody", "--to", "192.0.2.1:80")

	w.want(1, []string{"policy web: 1 pod is under it (shop): stop them, or use --force"}, "delete", "web")
	w.write("web.yaml", named("web", least+"    processes: [\n"))
	w.want(0, []string{"web   enforce  4", "in the kernel only", "broken: "}, "list")
	w.want(1, []string{"web.yaml:", "stay as they are in force"}, "apply")
	w.want(1, []string{"web.yaml:"}, "diff")
	app.want("EPERM", "dial", "tcp", "127.0.0.1:9901")
	w.write("web.yaml", web)
	w.want(0, []string{"changed: run sidegate policy apply"}, "list")
	w.want(1, []string{"-spec.rules[0].egress[0]: "}, "diff")
	w.want(0, []string{"in force in 1 pod"}, "apply")
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	w.want(0, []string{"removed "}, "delete", "--force", "web")
	w.want(0, []string{"in the kernel only"}, "list")
}

// TestDiffSaysThatItHasNoLine: it differs, and prints why it prints nothing.
func TestDiffSaysThatItHasNoLine(t *testing.T) {
	w, _, _ := meshPod(t, "  nonTCP: deny\n")
	w.write("web.yaml", named("web", "  rules: [{role: app, egress: []}]\n"))
	w.want(1, []string{"what differs has no line"}, "diff")
}

// TestFailedApplyChangesNothing: the second policy cannot be applied, and the first
// one does not stay.
func TestFailedApplyChangesNothing(t *testing.T) {
	w, _, app := meshPod(t, "  nonTCP: deny\n")
	w.write("other.yaml", named("other", "  nonTCP: deny\n"))
	w.ns = nil
	w.start("store", "db", policy.RoleApp, "other")
	first := file(t, "a.yaml", named("web", least))
	second := file(t, "b.yaml", named("other", "  rules: [{role: app, processes: [/nowhere]}]\n"))
	w.want(1, []string{"policy web: in force in 1 pod", "/nowhere", "the policy directory is as it was"}, "apply", first, second)
	w.wantFiles(map[string]string{"web.yaml": named("web", "  nonTCP: deny\n"), "other.yaml": named("other", "  nonTCP: deny\n")})
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	w.want(0, nil, "diff")
	out := w.want(0, nil, "list")
	if strings.Count(out, "in force") != 2 {
		t.Errorf("the kernel has something else:\n%s", out)
	}
}

// TestBrokenDefaultStays: the default policy that is in force is not replaced by
// the built-in one because its file has a fault.
func TestBrokenDefaultStays(t *testing.T) {
	w := newWorld(t)
	w.write("default.yaml", named("default", "  rules: [{role: app, egress: []}]\n"))
	app := w.start("shop", "app", policy.RoleApp, "")
	app.want("EPERM", "dial", "tcp", "192.0.2.1:80")
	w.write("default.yaml", "spec: [")
	w.want(1, []string{"stay as they are"}, "apply")
	w.want(0, []string{"in the kernel only"}, "list")
	app.want("EPERM", "dial", "tcp", "192.0.2.1:80")
	// Without a file it is the built-in one that containers get.
	must(t, os.Remove(filepath.Join(w.dir, "default.yaml")))
	w.want(0, []string{"changed", "built in"}, "list")
	w.want(1, []string{"+++ built in"}, "diff")
	w.want(0, []string{"policy default: in force in 1 pod"}, "apply")
	app.want("ECONNREFUSED", "dial", "tcp", "192.0.2.1:80")
}

// TestApplyNamesWhoWouldNotStart: a policy takes no capability from a container that
// runs.
func TestApplyNamesWhoWouldNotStart(t *testing.T) {
	w := newWorld(t)
	w.write("web.yaml", named("web", "  adminCapabilities: allow\n"))
	w.capabilities = []string{"CAP_NET_ADMIN", "CAP_NET_RAW"}
	w.start("shop", "app", policy.RoleApp, "web")
	w.start("shop", "proxy", policy.RoleSidecar, "web")
	if out := w.want(0, nil, "apply"); strings.Contains(out, "warning") {
		t.Errorf("under a policy that allows it:\n%s", out)
	}
	w.write("web.yaml", named("web", "  nonTCP: allow\n"))
	w.want(1, []string{"adminCapabilities allow", "adminCapabilities deny"}, "diff")
	out := w.want(0, []string{"warning: container app of pod shop runs on", "CAP_NET_ADMIN", "adminCapabilities: allow into policy web"}, "apply")
	if strings.Contains(out, "container proxy") {
		t.Errorf("nothing binds the sidecar:\n%s", out)
	}
	w.write("web.yaml", named("web", "  rules: [{role: sidecar, egress: []}]\n"))
	w.want(0, []string{"warning: container app", "warning: container proxy"}, "apply")
	if out, _, _ := call(w.state, "status"); !strings.Contains(out, "app,CAP_NET_ADMIN") {
		t.Errorf("status does not tell:\n%s", out)
	}
}

// TestStatusTellsModeAndRevision of each pod.
func TestStatusTellsModeAndRevision(t *testing.T) {
	w, _, _ := meshPod(t, "  mode: audit\n")
	if out, errs, code := call(w.state, "status"); code != 0 || !strings.Contains(out, "Pod shop  policy web  mode audit  revision 1  addresses none\n") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
}

// TestInitAllowsWhatWasSeen: the policy that init writes, enforced, lets the same
// pod do the same, and nothing else.
func TestInitAllowsWhatWasSeen(t *testing.T) {
	w, sidecar, app := meshPod(t, "  mode: audit\n  redirect: {dns: 15053}\n")
	app.mustDo("listen", "tcp", "127.0.0.1:8080")
	app.mustDo("listen", "udp", "127.0.0.1:5353")
	sidecar.mustDo("listen", "udp", "127.0.0.1:15053")
	work := func() {
		t.Helper()
		app.mustDo("dial", "tcp", "192.0.2.1:443")
		app.mustDo("dial", "tcp", "192.0.2.2:443")
		app.mustDo("dial", "tcp", "127.0.0.1:8000")
		app.mustDo("dial", "udp", "192.0.2.53:53")
		app.mustDo("dial", "udp", "192.0.2.9:123")
		sidecar.mustDo("dial", "tcp", "192.0.2.1:443")
		sidecar.mustDo("dial", "tcp", "127.0.0.1:8080")
		sidecar.mustDo("dial", "udp", "127.0.0.1:5353")
	}
	work()
	app.mustDo("dial", "tcp", "127.0.0.1:15099") // nobody listens: a rule would be for nobody
	w.want(0, []string{"app ", "proxy ", "192.0.2.9", "udp", "123", "mptcp", "  - role: app\n    egress:\n"}, "audit", "--pod", "shop")
	text := w.want(0, nil, "init", "--pod", "shop")
	golden(t, "init.golden", strings.ReplaceAll(text, w.dir, "DIR"))
	enforced := file(t, "web.yaml", strings.Replace(text, "mode: audit", "mode: enforce", 1))
	w.want(0, []string{"policy web: "}, "validate", enforced)
	w.want(0, []string{"in force in 1 pod"}, "apply", enforced)
	work()
	app.want("EPERM", "dial", "tcp", "127.0.0.1:9901")
	app.want("EPERM", "dial", "tcp", "127.0.0.1:15001") // the way of what is redirected is nobody's to call
	app.want("EPERM", "dial", "tcp", "192.0.2.3:443")
	app.want("EPERM", "dial", "udp", "192.0.2.9:124")
	sidecar.want("EPERM", "dial", "tcp", "192.0.2.2:443")
}

func TestInitNamesNobodyWhereNobodyListens(t *testing.T) {
	w, _, app := meshPod(t, "  mode: audit\n")
	w.want(1, []string{"seen nothing of pod shopping"}, "init", "--pod", "shopping")
	app.mustDo("dial", "tcp", "127.0.0.1:15099")
	w.want(0, []string{"name nobody"}, "init", "--pod", "shop")
}

var outsideAddr = netip.MustParseAddr("192.0.2.1")

func baseOf(t *testing.T, spec string) *policy.PodPolicy {
	t.Helper()
	list, err := policy.Parse("base", []byte(named("web", spec)))
	must(t, err)
	return list[0]
}

// TestStarter has all kinds of records.
func TestStarter(t *testing.T) {
	seen := []cgroups.Seen{
		{Container: "web", Role: "app", Dir: "egress", Peer: "proxy", PeerRole: "sidecar", Proto: 6, Port: 8000, Count: 3},
		{Container: "proxy", Role: "sidecar", Dir: "ingress", Peer: "web", PeerRole: "app", Proto: 6, Port: 8000, Count: 2},
		{Container: "api", Role: "app", Dir: "egress", Peer: "web", PeerRole: "app", Proto: 6, Port: 80, Count: 1},
		{Container: "web", Role: "app", Dir: "egress", Peer: "web", PeerRole: "app", Proto: 6, Port: 81, Count: 1},
		{Container: "proxy", Role: "sidecar", Dir: "ingress", Peer: "web", PeerRole: "app", Proto: 6, Port: 16001, Count: 9},
		{Container: "proxy", Role: "sidecar", Dir: "egress", Address: outsideAddr, Proto: 6, Port: 443, Count: 2},
		{Container: "proxy", Role: "sidecar", Dir: "egress", Address: outsideAddr, Proto: 6, Port: 80, Count: 1},
		{Container: "proxy", Role: "sidecar", Dir: "egress", Address: netip.MustParseAddr("2001:db8::1"), Proto: 6, Port: 443, Count: 1},
		{Container: "proxy", Role: "sidecar", Dir: "ingress", Address: outsideAddr, Proto: 6, Port: 8080, Count: 1},
		{Container: "web", Role: "app", Dir: "egress", Address: outsideAddr, Proto: 1, Port: 8, Count: 1, Reason: "icmp"},
		{Container: "web", Role: "app", Dir: "egress", Address: netip.MustParseAddr("192.0.2.2"), Proto: 1, Port: 8, Count: 1},
		{Container: "web", Role: "app", Dir: "egress", Address: outsideAddr, Proto: 17, Port: 40000, Count: 1},
		{Container: "web", Role: "app", Dir: "egress", Proto: 255, Count: 1, Reason: "raw_socket"},
		{Container: "web", Role: "app", Dir: "ingress", Proto: 6, Port: 15020, Count: 2, Reason: "bind_reserved"},
		{Container: "web", Role: "app", Dir: "egress", Address: outsideAddr, Proto: 47, Count: 1, Reason: "egress"},
		{Container: "web", Role: "app", Dir: "ingress", Address: netip.MustParseAddr("127.0.0.1"), Proto: 6, Port: 80, Count: 4},
		{Container: "web", Role: "app", Dir: "egress", Address: netip.MustParseAddr("127.0.0.1"), Proto: 1, Port: 8, Count: 4},
		{Container: "web", Role: "app", Dir: "egress", Address: netip.MustParseAddr("198.51.100.2"), Proto: 6, Port: 80, Count: 4},
	}
	for i := range 20 {
		seen = append(seen, cgroups.Seen{Container: "web", Role: "app", Dir: "egress", Address: netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), Proto: 6, Port: 443, Count: 1})
	}
	base := baseOf(t, `  nonTCP: allow
  redirect: {outbound: 16001}
  exclude: {egress: [{cidr: 10.0.0.0/8, ports: [5432]}]}
  rules: [{role: app, processes: [/bin/web]}, {container: api, unix: {allow: [{path: /run/*.sock}]}}]
`)
	pods := []cgroups.PodStatus{{Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.2")}}}
	text, err := starter(base, "All is as in a test.", gather(base, pods, seen))
	must(t, err)
	golden(t, "starter.golden", text)
	wantAllowed(t, text, seen[:3], true)
	wantAllowed(t, text, seen[4:5], false) // what is redirected calls nobody there
	wantAllowed(t, text, append(seen[5:10:10], seen[18:]...), true)
}

// wantAllowed fails the test unless the policy, enforced, decides so of all records.
func wantAllowed(t *testing.T, text string, seen []cgroups.Seen, want bool) {
	t.Helper()
	list, err := policy.Parse("starter", []byte(strings.Replace(text, "mode: audit", "mode: enforce", 1)))
	must(t, err)
	c, err := list[0].Compile()
	must(t, err)
	tables := policy.NewTables(c, nil)
	for _, s := range seen {
		role, err := policy.ParseRole(s.Role)
		must(t, err)
		self, other := policy.Inside(policy.Endpoint{Role: role, Name: s.Container}), policy.Outside(s.Address)
		if s.Peer != "" {
			role, err := policy.ParseRole(s.PeerRole)
			must(t, err)
			other = policy.Inside(policy.Endpoint{Role: role, Name: s.Peer})
		}
		q := policy.Query{From: self, To: other, Proto: uint8(s.Proto), Port: s.Port, Same: s.Peer == s.Container}
		if s.Dir == policy.Ingress.String() {
			q.From, q.To = other, self
		}
		if d := policy.Decide(tables, q); d.Allow != want {
			t.Errorf("%+v: %+v\n%s", s, d, text)
		}
	}
}

// TestStarterOfAnything: whatever was seen, the policy is right and allows it.
func TestStarterOfAnything(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	names := map[string]string{"web": "app", "api": "app", "proxy": "sidecar", "setup": "init", "log": "none"}
	keys := slices.Sorted(maps.Keys(names))
	for range 200 {
		base := baseOf(t, []string{"  nonTCP: deny\n", "  nonTCP: allow\n", "  redirect: {outbound: 5, dns: 7}\n", "  rules: [{role: app, egress: [{}]}]\n"}[r.IntN(4)])
		base.Spec.Rules = nil
		var seen []cgroups.Seen
		for range 1 + r.IntN(300) {
			who := keys[r.IntN(len(keys))]
			s := cgroups.Seen{
				Container: who, Role: names[who], Dir: []string{"egress", "ingress"}[r.IntN(2)],
				Proto: []uint16{1, 6, 6, 17, 58, 132}[r.IntN(6)], Port: uint16(1 + r.IntN(1<<r.IntN(8))), Count: uint64(r.IntN(9)),
			}
			if isPeer := r.IntN(3) == 0 && (s.Proto == 6 || s.Proto == 17); isPeer {
				s.Peer = keys[r.IntN(len(keys))]
				s.PeerRole = names[s.Peer]
			} else {
				s.Address = netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(1 << r.IntN(8)))})
				if s.Proto == 58 {
					s.Address = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(r.IntN(9))})
				}
			}
			seen = append(seen, s)
		}
		// From outside an app gets what the sidecar carries, and no TCP else; and what
		// was redirected is no call.
		seen = slices.DeleteFunc(seen, func(s cgroups.Seen) bool { return s.Dir == "ingress" && (s.Proto == 6 || s.Port == 7) })
		text, err := starter(base, "All is random.", gather(base, nil, seen))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if wantAllowed(t, text, seen, true); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestStarterOfTheWorld: of more addresses than anybody lists.
func TestStarterOfTheWorld(t *testing.T) {
	var seen []cgroups.Seen
	for i := range maxAddresses + 1 {
		seen = append(seen, cgroups.Seen{Container: "web", Role: "app", Dir: "egress", Address: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Proto: 6, Port: 443, Count: 1})
	}
	for port := range uint16(policy.MaxPorts + 1) {
		seen = append(seen, cgroups.Seen{Container: "web", Role: "app", Dir: "egress", Address: netip.MustParseAddr("2001:db8::1"), Proto: 6, Port: 1 + port, Count: 1})
	}
	base := policy.Default()
	text, err := starter(base, "All is large.", gather(base, nil, seen))
	must(t, err)
	for _, want := range []string{"entity: world", "entity: host", fmt.Sprintf("these were %d addresses", maxAddresses+1), "all ports, since it was called on 65"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing of %q in\n%s", want, text)
		}
	}
	wantAllowed(t, text, seen, true)
}

// TestStarterTLS: what does not work in mode audit is switched off, and said to be.
func TestStarterTLS(t *testing.T) {
	base := baseOf(t, "  tls: {mode: deferred, http: {default: deny, rules: [{name: api, action: allow, hosts: [api.example]}]}}\n")
	seen := []cgroups.Seen{{Container: "web", Role: "app", Dir: "egress", Address: netip.MustParseAddr("192.0.2.1"), Proto: 6, Port: 443, Count: 1}}
	text, err := starter(base, "All is as in a test.", gather(base, nil, seen))
	must(t, err)
	const want = "  tls:\n    mode: \"off\" # it was deferred, which works under mode: enforce only\n    http:\n"
	if !strings.Contains(text, want) || base.Spec.TLS.Mode != policy.TLSDeferred {
		t.Errorf("nothing of %q in\n%s", want, text)
	}
	wantAllowed(t, text, seen, true)
}

func TestPrintSeen(t *testing.T) {
	missing := func(port int) string {
		return fmt.Sprintf("- role: app\n  egress:\n  - to: [{role: sidecar}]\n    protocol: tcp\n    ports: [%d]\n", port)
	}
	var b strings.Builder
	must(t, printSeen(&b, []cgroups.Seen{
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Peer: "proxy", Proto: 6, Port: 9901, Count: 12, Reason: "policy_egress", Missing: missing(9901)},
		{Pod: "shop", Container: "api", Role: "app", Dir: "egress", Peer: "proxy", Proto: 6, Port: 9901, Count: 3, Reason: "policy_egress", Missing: missing(9901)},
		{Pod: "shop", Container: "api", Role: "app", Dir: "egress", Peer: "proxy", Proto: 6, Port: 9902, Count: 2, Reason: "policy_egress", Missing: missing(9902)},
		{Pod: "shop", Container: "proxy", Role: "sidecar", Dir: "ingress", Address: outsideAddr, Proto: 6, Port: 8080, Count: 1, Reason: "policy_ingress",
			Missing: "- role: sidecar\n  ingress:\n  - from: [{cidr: \"192.0.2.1/32\"}]\n    protocol: tcp\n    ports: [8080]\n"},
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Proto: 255, Count: 1, Reason: "raw_socket"},
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Address: outsideAddr, Proto: 6, Port: 443, Count: 1},
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Unix: "/run/db.sock", Type: "stream", Peer: "db", Count: 4, Reason: "unix",
			Missing: policy.MissingUnix(policy.Endpoint{Role: policy.RoleApp}, "/run/db.sock", policy.UnixStream)},
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Unix: "@bus", Type: "dgram", Count: 1, Reason: "unix",
			Missing: policy.MissingUnix(policy.Endpoint{Role: policy.RoleApp}, "@bus", policy.UnixDgram)},
		{Pod: "shop", Container: "web", Role: "app", Dir: "egress", Type: "dgram", Count: 1, Reason: "unix"},
	}))
	golden(t, "audit.golden", b.String())
	_, rules, _ := strings.Cut(b.String(), "denied and can be allowed:\n")
	if _, err := policy.Parse("missing", []byte(named("web", "  rules:\n"+rules))); err != nil {
		t.Errorf("the rules are no policy: %v", err)
	}
}
