// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/cgroups"
	"sidegate/policy"
)

const web = "# ours\napiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: web}\nspec: {}\n"

var outsideAddr = netip.MustParseAddr("192.0.2.1")

// TestPolicyFiles uses the commands without anything in the kernel.
func TestPolicyFiles(t *testing.T) {
	state := newState(t)
	dir, files := filepath.Join(t.TempDir(), "policies"), t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(files, name)
		must(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	try := func(code int, words string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		got := run(env{stdout: &out, stderr: &errs, args: append([]string{"policy"}, args...), state: state, policyDir: dir})
		if all := out.String() + errs.String(); got != code || !strings.Contains(all, words) {
			t.Errorf("%v: exit code %d, want %d, and %q in\n%s", args, got, code, words, all)
		}
	}
	one := file("one.yaml", web)
	broken := file("broken.yaml", strings.Replace(web, "spec: {}", "spec: {nonTCP: perhaps}", 1))
	try(0, "policy web: 0 rules", "validate", one)
	try(1, broken+":5:16: spec.nonTCP: ", "validate", one, broken)
	try(2, "needs files", "validate")
	try(0, "NAME", "list")
	try(1, "spec.nonTCP", "apply", one, broken)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a wrong file made the directory: %v", err)
	}
	try(0, "would be applied", "apply", "--dry-run", one)
	try(0, "in force in 0 pods", "apply", one)
	got, err := os.ReadFile(filepath.Join(dir, "web.yaml"))
	must(t, err)
	if string(got) != web {
		t.Errorf("the file became\n%s", got)
	}
	try(0, "unused", "list")
	both := file("both.yaml", web+"---\n"+strings.Replace(web, "name: web", "name: api", 1))
	try(1, "web.yaml:", "apply", both)
	try(0, "removed", "delete", "web")
	try(0, "in force in 0 pods", "apply", both)
	try(1, "has policy", "delete", "web")
	try(1, "it is not in", "delete", "nothing")
	must(t, os.WriteFile(filepath.Join(dir, "bad.yaml"), []byte("spec: ["), 0o644))
	try(0, "broken: ", "list")
	try(1, "stay as they are in force", "apply")
	try(1, cgroups.ErrNotLoaded.Error(), "explain", "--from", "a/b", "--to", "192.0.2.1:80")
	try(2, "is not host:port", "explain", "--from", "a/b", "--to", "192.0.2.1")
	try(1, "seen nothing", "init", "--pod", "a")
}

func TestParseTo(t *testing.T) {
	for in, want := range map[string]struct {
		host  string
		port  uint16
		proto uint8
	}{
		"192.0.2.1:80":          {"192.0.2.1", 80, 6},
		"[2001:db8::1]:443/udp": {"2001:db8::1", 443, 17},
		"shop/db:5432":          {"shop/db", 5432, 6},
		"shop/db:5432/sctp":     {"shop/db", 5432, 132},
		"192.0.2.1/icmp":        {"192.0.2.1", echoRequest, 1},
		"2001:db8::1/icmpv6":    {"2001:db8::1", echoRequestV6, 58},
	} {
		host, port, proto, err := parseTo(in)
		if err != nil || host != want.host || port != want.port || proto != want.proto {
			t.Errorf("%s is %q, %d, %d, %v", in, host, port, proto, err)
		}
	}
	for _, in := range []string{"", "x", "x:0", "x:65536", "x:http", "x:80/gre"} {
		if _, _, _, err := parseTo(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}

// TestStarter: the policy that init writes allows what was seen.
func TestStarter(t *testing.T) {
	seen := []cgroups.Seen{
		{Role: "app", Dir: "egress", PeerRole: "sidecar", Proto: 6, Port: 8000, Count: 3},
		{Role: "sidecar", Dir: "ingress", PeerRole: "app", Proto: 6, Port: 8000, Count: 3},
		{Role: "sidecar", Dir: "egress", Address: outsideAddr, Proto: 6, Port: 443, Count: 2},
		{Role: "sidecar", Dir: "egress", Address: outsideAddr, Proto: 6, Port: 80, Count: 1},
		{Role: "sidecar", Dir: "ingress", Address: outsideAddr, Proto: 6, Port: 8080, Count: 1},
		{Role: "app", Dir: "egress", Address: outsideAddr, Proto: 1, Port: 8, Count: 1, Reason: "icmp"},
		{Role: "app", Dir: "egress", Proto: 255, Count: 1, Reason: "raw_socket"},
	}
	text := starter("web", seen)
	golden(t, "starter.golden", text)
	list, err := policy.Parse("starter", []byte(text))
	must(t, err)
	c, err := list[0].Compile()
	must(t, err)
	app, sidecar := policy.Inside(policy.Endpoint{Role: policy.RoleApp}), policy.Inside(policy.Endpoint{Role: policy.RoleSidecar})
	world := policy.Outside(outsideAddr)
	c.Mode = policy.ModeEnforce
	tables := policy.NewTables(c, nil)
	for _, q := range []policy.Query{
		{From: app, To: sidecar, Proto: 6, Port: 8000}, {From: sidecar, To: world, Proto: 6, Port: 443}, {From: sidecar, To: world, Proto: 6, Port: 80},
		{From: world, To: sidecar, Proto: 6, Port: 8080}, {From: app, To: world, Proto: 1, Port: 8},
	} {
		if d := policy.Decide(tables, q); !d.Allow {
			t.Errorf("%s to %s %d/%d: %+v", q.From, q.To, q.Port, q.Proto, d)
		}
	}
	if d := policy.Decide(tables, policy.Query{From: app, To: sidecar, Proto: 6, Port: 9901}); d.Allow {
		t.Errorf("what was not seen: %+v", d)
	}
}
