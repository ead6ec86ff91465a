// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPolicyCommands changes the policy of a running pod and back, by the
// commands that people use.
func TestPolicyCommands(t *testing.T) {
	ctx := begin(t)
	hooks, err := writeHooks(t.TempDir(), hookBinary(), policies)
	must(t, err)
	dir := filepath.Join(filepath.Dir(hooks), "policies")
	p := newPod(ctx, t, hooks)
	p.startSidecar()
	p.startApp()
	p.wantEnforced(p.app)
	name := status(t).Pods[0].Policy
	run := func(code int, words []string, args ...string) string {
		t.Helper()
		stdout, stderr, got := sidegate(t, append([]string{"policy", "--policy-dir", dir}, args...)...)
		for _, w := range words {
			if !strings.Contains(stdout+stderr, w) {
				t.Errorf("%v: nothing of %q in\n%s%s", args, w, stdout, stderr)
			}
		}
		if got != code {
			t.Errorf("%v: exit code %d, want %d:\n%s%s", args, got, code, stdout, stderr)
		}
		return stdout
	}
	file := filepath.Join(dir, "mesh.yaml")
	before, err := os.ReadFile(file)
	must(t, err)
	id := id(ctx, t, p.app)
	outside := world.Outside.HTTP(false).String()
	run(0, []string{name, "in force"}, "list")
	run(0, []string{"ALLOW", "redirected"}, "explain", "--from", id, "--to", outside)

	// The app may call nobody any more.
	edited := filepath.Join(t.TempDir(), "new.yaml")
	must(t, os.WriteFile(edited, append(before, "  rules: [{role: app, egress: [], ingress: [{from: [{role: sidecar}]}]}]\n"...), 0o644))
	run(0, []string{"1 rules"}, "validate", edited)
	run(1, []string{"+spec.rules[0].ingress[0]"}, "diff", edited)
	run(0, []string{name, "in force in 1 pods"}, "apply", edited)
	run(0, []string{"DENY", "policy_egress", "egress:"}, "explain", "--from", id, "--to", outside)
	run(1, nil, "explain", "--exit-code", "--from", id, "--to", outside)
	if r := p.probe(p.app, tcp(newNonce())...); r.OK || r.Errno != "EPERM" {
		t.Errorf("the app calls out: %s", r)
	}
	p.wantServed()
	run(1, []string{"1 pods are under it"}, "delete", name)

	// A fault in the file changes nothing.
	must(t, os.WriteFile(file, []byte("spec: ["), 0o644))
	run(1, []string{file + ":1"}, "apply")
	run(0, []string{"broken"}, "list")
	if r := p.probe(p.app, tcp(newNonce())...); r.OK {
		t.Errorf("the app calls out: %s", r)
	}

	must(t, os.WriteFile(file, before, 0o644))
	run(0, []string{"in force in 1 pods"}, "apply")
	run(0, nil, "diff")
	p.wantEnforced(p.app)
	p.wantServed()

	// Audit: what would be denied happens, and is written down.
	must(t, os.WriteFile(edited, append(before, "  mode: audit\n"...), 0o644))
	run(0, nil, "apply", edited)
	nonce := newNonce()
	if r := p.probe(p.app, udp(nonce)...); !r.OK {
		t.Errorf("UDP under audit: %s", r)
	}
	run(0, []string{"udp"}, "audit", "--pod", status(t).Pods[0].Pod)
	starter := run(0, []string{"mode: audit", "protocol: udp"}, "init", "--pod", status(t).Pods[0].Pod, "--name", name)
	must(t, os.WriteFile(edited, []byte(strings.ReplaceAll(starter, "mode: audit", "mode: enforce")), 0o644))
	run(0, nil, "validate", edited)
}
