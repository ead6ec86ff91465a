// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

// tablesOf compiles what stands below spec. The node has the address 10.0.0.1.
func tablesOf(t *testing.T, spec string) (*Compiled, Tables) {
	t.Helper()
	ps, err := Parse("f", []byte(header+spec))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ps[0].Compile()
	if err != nil {
		t.Fatal(err)
	}
	return c, NewTables(c, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
}

// end reads app, app/web for the container web of this role, or an address.
func end(s string) End {
	if a, err := netip.ParseAddr(s); err == nil {
		return Outside(a)
	}
	role, name, _ := strings.Cut(s, "/")
	for r := RoleUnset; r <= RoleNone; r++ {
		if r.String() == role {
			return Inside(Endpoint{Role: r, Name: name})
		}
	}
	panic(s)
}

// A case of TestDecide: protocol and port, then what is decided, as "route", or "reason" of a denial, and by which rules.
type decided struct {
	from, to string
	proto    uint8
	port     uint16
	want     string
	rule     string // path of Rule below spec, or empty
	peer     string // of PeerRule
}

func TestDecide(t *testing.T) {
	const gre = 47
	for _, tc := range []struct {
		name, spec string
		cases      []decided
	}{
		{"no rules", "  redirect: {dns: 15053}\n", []decided{
			{"app", "app/db", protoTCP, 5432, "local", "", ""},
			{"app", "sidecar", protoSCTP, 1, "protocol", "", ""},
			{"sidecar", "app", protoSCTP, 1, "local", "", ""},
			{"sidecar", "app", protoICMP, 8, "local", "", ""},
			{"app", "8.8.8.8", protoTCP, 443, "redirect", "", ""},
			{"app", "2001:db8::1", protoTCP, 443, "redirect", "", ""},
			{"app", "10.0.0.1", protoTCP, 443, "redirect", "", ""},
			{"app", "8.8.8.8", protoUDP, 53, "dns", "", ""},
			{"app", "8.8.8.8", protoUDP, 54, "udp", "", ""},
			{"app", "8.8.8.8", protoICMP, 8, "icmp", "", ""},
			{"app", "2001:db8::1", protoICMPv6, 128, "icmp", "", ""},
			{"app", "8.8.8.8", protoSCTP, 1, "protocol", "", ""},
			{"app", "8.8.8.8", gre, 0, "protocol", "", ""},
			{"sidecar", "8.8.8.8", protoTCP, 443, "direct", "", ""},
			{"sidecar", "8.8.8.8", gre, 0, "direct", "", ""},
			{"none", "8.8.8.8", protoUDP, 1, "direct", "", ""},
			{"8.8.8.8", "sidecar", protoTCP, 443, "direct", "", ""},
			{"8.8.8.8", "app", protoTCP, 443, "steered", "", ""},
			{"8.8.8.8", "none", protoTCP, 443, "steered", "", ""},
			{"8.8.8.8", "app", protoTCP, 15006, "steered", "", ""},
			{"8.8.8.8", "sidecar", protoTCP, 15006, "direct", "", ""},
			{"8.8.8.8", "sidecar", protoTCP, 15001, "outbound_port", "", ""},
			{"8.8.8.8", "sidecar", protoTCP, 15053, "outbound_port", "", ""},
			{"8.8.8.8", "sidecar", protoUDP, 15053, "direct", "", ""},
			{"8.8.8.8", "app", protoUDP, 53, "ingress", "", ""},
			{"8.8.8.8", "app", protoICMP, 8, "ingress", "", ""},
			{"8.8.8.8", "none", protoUDP, 53, "direct", "", ""},
			{"8.8.8.8", "8.8.4.4", protoTCP, 1, "protocol", "", ""},
		}},
		{"nonTCP: allow", "  nonTCP: allow\n", []decided{
			{"app", "8.8.8.8", protoUDP, 53, "direct", "", ""}, // no DNS port
			{"app", "8.8.8.8", protoICMP, 8, "direct", "", ""},
			{"app", "2001:db8::1", protoICMPv6, 128, "direct", "", ""},
			{"app", "8.8.8.8", protoSCTP, 1, "protocol", "", ""},
			{"app", "8.8.8.8", gre, 0, "protocol", "", ""},
			{"app", "8.8.8.8", protoTCP, 443, "redirect", "", ""},
			{"8.8.8.8", "app", protoUDP, 1, "direct", "", ""},
			{"8.8.8.8", "app", protoICMP, 8, "direct", "", ""},
			{"8.8.8.8", "app", protoSCTP, 1, "ingress", "", ""},
		}},
		{"init: sidecar", "  mode: enforce\n", []decided{
			{"init", "8.8.8.8", protoTCP, 443, "redirect", "", ""},
			{"init", "8.8.8.8", protoUDP, 53, "udp", "", ""},
		}},
		{"init: direct", "  init: direct\n", []decided{
			{"init", "8.8.8.8", protoTCP, 443, "direct", "", ""},
			{"init", "8.8.8.8", protoUDP, 53, "direct", "", ""},
		}},
		{"init: deny", "  init: deny\n", []decided{
			{"init", "8.8.8.8", protoTCP, 443, "init", "", ""},
			{"init", "app", protoTCP, 443, "init", "", ""},
			{"8.8.8.8", "init", protoUDP, 1, "init", "", ""},
		}},
		{"init: direct, ruled", "  init: direct\n  rules: [{role: init, egress: [{to: [{entity: world}], ports: [443]}]}]\n", []decided{
			{"init", "8.8.8.8", protoTCP, 443, "direct", "rules[0].egress[0]", ""},
			{"init", "8.8.8.8", protoTCP, 80, "policy_egress", "", ""},
			{"init", "10.0.0.1", protoTCP, 443, "policy_egress", "", ""},
		}},
		{"exclusions", `  sidecarPorts: [8404]
  exclude:
    egress: [{cidr: 10.0.0.0/8, ports: [5432]}, {cidr: "::/0", protocol: any}, {cidr: 0.0.0.0/0, ports: [99]}]
    ingress: [{ports: ["9090-9091"]}, {ports: [9092, 15006], cidr: 10.0.0.0/8, protocol: any}]
`, []decided{
			{"app", "10.9.9.9", protoTCP, 5432, "direct", "exclude.egress[0]", ""},
			{"app", "10.0.0.1", protoTCP, 5432, "direct", "exclude.egress[0]", ""}, // the node's as well
			{"app", "10.9.9.9", protoTCP, 5433, "redirect", "", ""},
			{"app", "10.9.9.9", protoUDP, 5432, "udp", "", ""},
			{"app", "11.9.9.9", protoTCP, 99, "direct", "exclude.egress[2]", ""},
			{"app", "2001:db8::1", protoTCP, 443, "direct", "exclude.egress[1]", ""},
			{"app", "2001:db8::1", protoUDP, 443, "direct", "exclude.egress[1]", ""},
			{"app", "::ffff:8.8.8.8", protoTCP, 443, "redirect", "", ""}, // which is IPv4
			{"8.8.8.8", "app", protoTCP, 9091, "direct", "exclude.ingress[0]", ""},
			{"10.0.0.1", "app", protoTCP, 9090, "direct", "exclude.ingress[0]", ""},
			{"8.8.8.8", "app", protoTCP, 9092, "steered", "", ""},
			{"10.2.2.2", "app", protoUDP, 9092, "direct", "exclude.ingress[1]", ""},
			{"10.2.2.2", "app", protoTCP, 15006, "steered", "", ""}, // excluded or not
			{"8.8.8.8", "app", protoTCP, 8404, "ingress", "", ""},   // the sidecar's alone
			{"8.8.8.8", "sidecar", protoTCP, 8404, "direct", "", ""},
		}},
		{"exclusions and rules", `  exclude:
    egress: [{cidr: 10.0.0.0/8, ports: [5432, 5433]}]
    ingress: [{ports: [9090, 9091]}]
  rules:
  - role: app
    egress: [{to: [{cidr: 10.0.0.0/8}], ports: [5432, 443]}]
    ingress: [{from: [{entity: world}], ports: [9090, 3000]}]
`, []decided{
			{"app", "10.9.9.9", protoTCP, 5432, "direct", "rules[0].egress[0]", ""},
			{"app", "10.9.9.9", protoTCP, 443, "redirect", "rules[0].egress[0]", ""},
			{"app", "10.9.9.9", protoTCP, 5433, "policy_egress", "", ""},
			{"8.8.8.8", "app", protoTCP, 9090, "direct", "", "rules[0].ingress[0]"},
			{"8.8.8.8", "app", protoTCP, 9091, "policy_ingress", "", ""},
			{"8.8.8.8", "app", protoTCP, 3000, "steered", "", ""}, // the sidecar's rules hold for this
			{"10.0.0.1", "app", protoTCP, 9090, "policy_ingress", "", ""},
		}},
		{"inside", `  rules:
  - role: app
    egress: [{to: [{role: sidecar}], ports: [8080]}]
    ingress: [{from: [{container: proxy}, {role: none}], ports: [3000]}]
  - container: db
    egress: [{to: [{container: web}]}]
    ingress: []
  - role: none
    unix: {}
    processes: []
`, []decided{
			{"app/web", "sidecar/proxy", protoTCP, 8080, "local", "rules[0].egress[0]", ""},
			{"app/web", "sidecar/proxy", protoTCP, 8081, "policy_egress", "", ""},
			{"app/web", "sidecar/proxy", protoUDP, 8080, "policy_egress", "", ""},
			{"sidecar/proxy", "app/web", protoTCP, 3000, "local", "", "rules[0].ingress[0]"},
			{"sidecar/other", "app/web", protoTCP, 3000, "policy_ingress", "", ""},
			{"none", "app/web", protoTCP, 3000, "local", "", "rules[0].ingress[0]"}, // which has no IP rules
			{"none", "sidecar", protoTCP, 1, "local", "", ""},
			{"app/db", "app/web", protoTCP, 3000, "policy_ingress", "rules[1].egress[0]", ""},
			{"app/db", "sidecar", protoTCP, 8080, "local", "rules[0].egress[0]", ""}, // by its role
			{"none/db", "app/web", protoTCP, 3000, "local", "rules[1].egress[0]", "rules[0].ingress[0]"},
			{"app/web", "app/web", protoICMP, 8, "icmp", "", ""},
			{"sidecar", "app/web", protoICMP, 8, "local", "", ""}, // the kernel answers
			{"sidecar", "app/web", protoSCTP, 1, "policy_ingress", "", ""},
			{"sidecar", "none", protoSCTP, 1, "local", "", ""},
		}},
		{"protocols of rules", `  redirect: {dns: 15053}
  rules:
  - role: app
    egress:
    - {to: [{entity: world}], protocol: icmp, types: [8]}
    - {to: [{entity: world}], protocol: sctp, ports: ["36412-36413"]}
    - {to: [{entity: world}], protocol: udp, ports: [53, 123]}
    - {to: [{entity: host}], protocol: any}
    ingress:
    - {from: [{cidr: 10.0.0.0/8}], protocol: udp, ports: [53]}
  - role: sidecar
    egress: [{protocol: any, ports: [7]}]
  - role: init
    egress: [{protocol: icmpv6}]
`, []decided{
			{"app", "8.8.8.8", protoICMP, 8, "direct", "rules[0].egress[0]", ""},
			{"app", "8.8.8.8", protoICMP, 0, "policy_egress", "", ""},
			{"app", "2001:db8::1", protoICMPv6, 8, "policy_egress", "", ""},
			{"app", "8.8.8.8", protoSCTP, 36413, "direct", "rules[0].egress[1]", ""},
			{"app", "8.8.8.8", protoSCTP, 36414, "policy_egress", "", ""},
			{"app", "sidecar", protoSCTP, 36413, "policy_egress", "", ""},
			{"app", "sidecar", protoICMP, 8, "local", "", ""},
			{"app", "8.8.8.8", protoUDP, 53, "dns", "rules[0].egress[2]", ""},
			{"app", "8.8.8.8", protoUDP, 123, "direct", "rules[0].egress[2]", ""},
			{"app", "8.8.8.8", protoUDP, 124, "policy_egress", "", ""},
			{"app", "8.8.8.8", protoTCP, 53, "policy_egress", "", ""},
			{"app", "10.0.0.1", protoTCP, 1, "redirect", "rules[0].egress[3]", ""},
			{"app", "10.0.0.1", protoUDP, 1, "direct", "rules[0].egress[3]", ""},
			{"app", "10.0.0.1", gre, 0, "protocol", "", ""}, // any has no socket of it
			{"10.2.2.2", "app", protoUDP, 53, "direct", "", "rules[0].ingress[0]"},
			{"11.2.2.2", "app", protoUDP, 53, "policy_ingress", "", ""},
			{"sidecar", "8.8.8.8", protoTCP, 7, "direct", "rules[1].egress[0]", ""},
			{"sidecar", "10.0.0.1", protoSCTP, 7, "direct", "rules[1].egress[0]", ""},
			{"sidecar", "8.8.8.8", protoICMP, 7, "icmp", "", ""}, // which has no ports
			{"sidecar", "none", protoTCP, 7, "local", "rules[1].egress[0]", ""},
			{"init", "2001:db8::1", protoICMPv6, 128, "direct", "rules[2].egress[0]", ""},
			{"init", "8.8.8.8", protoICMP, 8, "icmp", "", ""},
		}},
		{"the most specific rule", `  rules:
  - role: sidecar
    egress:
    - {protocol: any}
    - {to: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}, {cidr: 10.1.1.0/24}], ports: ["1-1023"]}
    - {to: [{entity: world}], ports: [443]}
    - {to: [{entity: world}], ports: [443]}
  - container: proxy
    egress: [{ports: [443]}]
`, []decided{
			{"sidecar/proxy", "10.2.2.2", protoTCP, 443, "direct", "rules[0].egress[1]", ""}, // its class before world
			{"sidecar/proxy", "10.1.2.2", protoTCP, 443, "direct", "rules[0].egress[2]", ""}, // excepted
			{"sidecar/proxy", "10.1.1.1", protoTCP, 443, "direct", "rules[0].egress[1]", ""}, // by another peer
			{"sidecar/proxy", "10.0.0.1", protoTCP, 443, "direct", "rules[0].egress[1]", ""},
			{"sidecar/proxy", "8.8.8.8", protoTCP, 80, "direct", "rules[0].egress[0]", ""},
			{"sidecar/proxy", "8.8.8.8", gre, 0, "protocol", "", ""},
			{"none/proxy", "8.8.8.8", protoTCP, 443, "direct", "rules[1].egress[0]", ""},
			{"none/proxy", "8.8.8.8", protoTCP, 444, "policy_egress", "", ""},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, tables := tablesOf(t, tc.spec)
			path := func(rule uint16) string {
				if rule == 0 {
					return ""
				}
				return strings.TrimPrefix(c.Rules[rule-1].Path, "spec.")
			}
			for _, k := range tc.cases {
				q := Query{From: end(k.from), To: end(k.to), Proto: k.proto, Port: k.port}
				d := Decide(tables, q)
				got := d.Route.String()
				if !d.Allow {
					got = d.Reason
				}
				if d.Allow != (d.Reason == "") || d.Allow == (d.Route == RouteNone) || d.Audit {
					t.Errorf("%s: %+v", q, d)
				}
				if got != k.want || path(d.Rule) != k.rule || path(d.PeerRule) != k.peer {
					t.Errorf("%s: %s, %q, %q, want %+v", q, got, path(d.Rule), path(d.PeerRule), k)
				}
			}
		})
	}
}

// A container is free to talk to itself, but for what nobody can tell the receiver of.
func TestDecideSame(t *testing.T) {
	_, tables := tablesOf(t, "  rules: [{role: app, egress: [{to: [{entity: world}], protocol: any}]}]\n")
	for proto, want := range map[uint8]string{protoTCP: "", protoUDP: "", protoICMP: "", protoSCTP: ReasonEgress} {
		q := Query{From: end("app/web"), To: end("app/web"), Same: true, Proto: proto, Port: 1}
		if d := Decide(tables, q); d.Reason != want {
			t.Errorf("%s: %+v", q, d)
		}
	}
	q := Query{From: end("app/web"), To: end("app/web"), Proto: protoTCP, Port: 1}
	if d := Decide(tables, q); d.Reason != ReasonEgress {
		t.Errorf("two of them: %+v", d)
	}
}

func TestDecideAudit(t *testing.T) {
	_, tables := tablesOf(t, "  mode: audit\n  rules: [{role: app, egress: []}]\n")
	d := Decide(tables, Query{From: end("app"), To: end("8.8.8.8"), Proto: protoTCP, Port: 443})
	if !d.Allow || !d.Audit || d.Reason != ReasonEgress || d.Missing == "" {
		t.Errorf("%+v", d)
	}
	d = Decide(tables, Query{From: end("sidecar"), To: end("8.8.8.8"), Proto: protoTCP, Port: 443})
	if !d.Allow || d.Audit || d.Reason != "" {
		t.Errorf("%+v", d)
	}
}

func TestMissingUnix(t *testing.T) {
	app := Endpoint{Role: RoleApp, Name: "web"}
	for name, pattern := range map[string]string{
		"/run/db.sock": "path: \"/run/db.sock\"", "@bus": "abstract: \"@bus\"", `/run/a*[b]?\c`: `path: "/run/a\\*\\[b]\\?\\\\c"`,
		"": "", "@": "", "db.sock": "", "/run/../db": "", "/run//db": "", "/\xff": "", "/" + strings.Repeat("x", 106): `path: "/` + strings.Repeat("x", 106) + `"`,
		"/" + strings.Repeat("*", 106): "",
	} {
		want := ""
		if pattern != "" {
			want = "- role: app\n  unix:\n    allow:\n    - {" + pattern + ", type: stream}\n"
		}
		got := MissingUnix(app, name, UnixStream)
		if got != want {
			t.Errorf("of %q %q is missing, want %q", name, got, want)
			continue
		}
		if got == "" {
			continue
		}
		list, err := Parse("missing", []byte("apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  "+strings.ReplaceAll(got, "\n", "\n  ")))
		if err != nil || len(list) != 1 || len(list[0].Spec.Rules) != 1 || len(list[0].Spec.Rules[0].Unix.Allow) != 1 {
			t.Errorf("%q is no rule: %v", got, err)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		proto    uint8
		port     uint16
		reason   string
		want     string
	}{
		{"app/web", "8.8.8.8", protoTCP, 443, ReasonEgress, "- role: app\n  egress:\n  - to: [{cidr: \"8.8.8.8/32\"}]\n    protocol: tcp\n    ports: [443]\n"},
		{"unset", "2001:db8::1", protoTCP, 443, ReasonEgress, ""},
		{"app", "2001:db8::1", protoICMPv6, 0, ReasonICMP, "- role: app\n  egress:\n  - to: [{cidr: \"2001:db8::1/128\"}]\n    protocol: icmpv6\n    types: [0]\n"},
		{"sidecar", "app/web", protoUDP, 53, ReasonIngress, "- role: app\n  ingress:\n  - from: [{role: sidecar}]\n    protocol: udp\n    ports: [53]\n"},
		{"8.8.8.8", "sidecar", protoSCTP, 1, ReasonIngress, "- role: sidecar\n  ingress:\n  - from: [{cidr: \"8.8.8.8/32\"}]\n    protocol: sctp\n    ports: [1]\n"},
		{"sidecar", "app", protoSCTP, 1, ReasonEgress, ""},
		{"app", "8.8.8.8", 47, 0, ReasonProtocol, ""},
		{"init", "8.8.8.8", protoTCP, 443, ReasonInit, ""},
		{"8.8.8.8", "sidecar", protoTCP, 15001, ReasonPort, ""},
		{"8.8.8.8", "app", protoUDP, 53, ReasonInbound, ""},
	} {
		q := Query{Proto: tc.proto, Port: tc.port, To: end(tc.to)}
		if tc.from != "unset" {
			q.From = end(tc.from)
		}
		if got := Missing(q, tc.reason); got != tc.want {
			t.Errorf("%s, %s: %q", q, tc.reason, got)
		}
	}
	name := Inside(Endpoint{Name: "db"})
	want := "- container: \"db\"\n  ingress:\n  - from: [{container: \"db\"}]\n    protocol: tcp\n    ports: [1]\n"
	if got := Missing(Query{From: name, To: name, Proto: protoTCP, Port: 1}, ReasonIngress); got != want {
		t.Errorf("%q", got)
	}
}

func TestWords(t *testing.T) {
	for want, e := range map[string]End{
		"role app": end("app"), "container web": end("app/web"), "8.8.8.8": end("::ffff:8.8.8.8"), "fe80::1": end("fe80::1%eth0"),
	} {
		if e.String() != want {
			t.Errorf("%s, want %s", e, want)
		}
	}
	text, err := json.Marshal(Decision{Allow: true, Route: RouteSteered})
	if err != nil || string(text) != `{"allow":true,"route":"steered"}` {
		t.Errorf("%s, %v", text, err)
	}
}

func TestNames(t *testing.T) {
	for _, id := range []uint32{SubjectPod, uint32(RoleNone), PeerHost, FirstClass + MaxPrefixes} {
		if IsName(id) {
			t.Errorf("%d is a name", id)
		}
	}
	if id := NameID("web"); !IsName(id) || id == NameID("db") {
		t.Errorf("%d", id)
	}
	for spec, want := range map[string]bool{
		"  mode: enforce\n": false,
		"  rules: [{role: app, egress: [], unix: {}}]\n":                  false,
		"  rules: [{role: app, egress: []}, {role: init, processes: []}]": true,
	} {
		if c, _ := tablesOf(t, spec); c.NamesExecutables() != want {
			t.Errorf("%s: %v", spec, !want)
		}
	}
}

// Who digests a compiled policy by its JSON sees no change where only comments moved its lines.
func TestLinesAreNotInJSON(t *testing.T) {
	const spec = "  rules: [{role: app, egress: [{ports: [1]}]}]\n"
	a, _ := tablesOf(t, spec)
	b, _ := tablesOf(t, "  # a comment\n"+spec)
	if a.Rules[0].Line == 0 || a.Rules[0].Line == b.Rules[0].Line {
		t.Errorf("lines %d, %d", a.Rules[0].Line, b.Rules[0].Line)
	}
	one, err := json.Marshal(a)
	two, err2 := json.Marshal(b)
	if err != nil || err2 != nil || !bytes.Equal(one, two) {
		t.Errorf("%s, %v\n%s, %v", one, err, two, err2)
	}
}
