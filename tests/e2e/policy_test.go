// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// policyPod is a mesh pod with a policy directory of its own.
type policyPod struct {
	*pod
	dir    string
	before string // the text of its policy, whose spec is the end
	file   string // and where it is
}

func newPolicyPod(ctx context.Context, t *testing.T) *policyPod {
	t.Helper()
	hooks, err := lab.Install(t.TempDir(), hookBinary(), policies)
	must(t, err)
	p := &policyPod{pod: newPod(ctx, t, hooks), dir: filepath.Join(filepath.Dir(hooks), "policies"), before: policies["mesh.yaml"]}
	p.file = filepath.Join(p.dir, "mesh.yaml")
	p.startSidecar()
	p.startApp()
	return p
}

// policy runs a command and fails the test unless it ends with code and prints all
// words.
func (p *policyPod) policy(code int, words []string, args ...string) string {
	p.t.Helper()
	stdout, stderr, got := sidegate(p.t, append([]string{"policy", "--policy-dir", p.dir}, args...)...)
	for _, w := range words {
		if !strings.Contains(stdout+stderr, w) {
			p.t.Errorf("%v: nothing of %q in\n%s%s", args, w, stdout, stderr)
		}
	}
	if got != code {
		p.t.Errorf("%v: exit code %d, want %d:\n%s%s", args, got, code, stdout, stderr)
	}
	return stdout
}

// edited is the pod's policy with more in its spec, elsewhere.
func (p *policyPod) edited(more string) string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "new.yaml")
	must(p.t, os.WriteFile(file, []byte(p.before+more), 0o644))
	return file
}

// wantRefused fails the test unless c is refused to connect.
func (p *policyPod) wantRefused(c *lab.Container, what string, args ...string) {
	p.t.Helper()
	if r := p.probe(c, args...); r.OK || r.Errno != "EPERM" {
		p.t.Errorf("%s: %s", what, r)
	}
}

// hold opens a connection from the app to a port of its pod, and returns how it
// ends.
func (p *policyPod) hold(port uint16) <-chan error {
	p.t.Helper()
	pid, err := p.app.PID(p.ctx)
	must(p.t, err)
	ended := make(chan error, 1)
	go func() {
		// cat has the connection as its input, and waits for it.
		_, err := p.app.Exec(p.ctx, "/bin/busybox", "nc", "127.0.0.1", fmt.Sprint(port), "-e", "/bin/cat")
		ended <- err
	}()
	must(p.t, lab.WaitFor(10*time.Second, "the app's connection", func() (bool, error) {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		return strings.Contains(string(table), fmt.Sprintf(" 0100007F:%04X 01 ", port)), err
	}))
	return ended
}

// TestPolicyTakesAPortAway: an app loses its sidecar's admin port while it runs,
// and what it has open there; all else goes on.
func TestPolicyTakesAPortAway(t *testing.T) {
	p := newPolicyPod(begin(t), t)
	p.wantEnforced(p.app)
	app, sidecar := id(p.ctx, t, p.app), id(p.ctx, t, p.sidecar)
	admin := []string{"explain", "--from", app, "--to", fmt.Sprintf("%s:%d", sidecar, lab.AdminPort)}
	p.policy(0, []string{"ALLOW", "inside the pod"}, admin...)
	held := p.hold(lab.AdminPort)

	rules := fmt.Sprintf(`  rules:
  - role: app
    egress: [{to: [{entity: world}, {entity: host}]}]
    ingress: [{from: [{role: sidecar}], ports: [%d]}]
`, lab.AppPort)
	p.policy(0, []string{"policy mesh: in force in 1 pod\n"}, "apply", p.edited(rules))
	select {
	case err := <-held:
		if err == nil || !strings.Contains(err.Error(), "connection abort") && !strings.Contains(err.Error(), "reset by peer") {
			t.Errorf("the app's connection ended by itself: %v", err)
		}
	case <-p.ctx.Done():
		t.Error("the app's connection stays open")
	}
	p.wantRefused(p.app, "the admin port", "tcp", "--to", fmt.Sprintf("127.0.0.1:%d", lab.AdminPort), "--nonce", newNonce(), "--timeout", "1s")
	p.policy(0, []string{"DENY", "policy_egress", "- role: app\n", fmt.Sprintf("ports: [%d]", lab.AdminPort), "policy mesh, revision 2"}, admin...)
	p.policy(0, []string{"ALLOW", "redirected", "spec.rules[0].egress[0]"}, "explain", "--from", app, "--to", world.Outside.HTTP(false).String())
	p.wantCarried(p.app)
	p.wantServed()
	if got, err := os.ReadFile(p.file); err != nil || string(got) != p.before+rules {
		t.Errorf("the directory has %q, %v", got, err)
	}

	p.policy(1, []string{"policy mesh: 1 pod is under it (" + status(t).Pods[0].Pod + ")"}, "delete", "mesh")
	must(t, os.WriteFile(p.file, []byte(p.before+"  rules: [{role: app, egress: everything}]\n"), 0o644))
	p.policy(1, []string{p.file + ":", "spec.rules[0].egress", "stay as they are in force"}, "apply")
	p.wantRefused(p.app, "the admin port, with a broken file", "tcp", "--to", fmt.Sprintf("127.0.0.1:%d", lab.AdminPort), "--nonce", newNonce(), "--timeout", "1s")
	p.wantServed()
}

// TestPolicyCommands changes the policy of a running pod and back, by the
// commands that people use.
func TestPolicyCommands(t *testing.T) {
	p := newPolicyPod(begin(t), t)
	p.wantEnforced(p.app)
	id := id(p.ctx, t, p.app)
	outside := world.Outside.HTTP(false).String()
	p.policy(0, []string{"mesh", "in force"}, "list")
	p.policy(0, []string{"ALLOW", "redirected"}, "explain", "--from", id, "--to", outside)

	// The app may call nobody any more.
	edited := p.edited("  rules: [{role: app, egress: [], ingress: [{from: [{role: sidecar}]}]}]\n")
	p.policy(0, []string{"policy mesh: 1 rules", "warning: spec.rules[0]: the app cannot call out"}, "validate", edited)
	p.policy(1, []string{"+spec.rules[0].ingress[0]"}, "diff", edited)
	p.policy(0, []string{"policy mesh: in force in 1 pod\n"}, "apply", edited)
	p.policy(0, []string{"DENY", "policy_egress", "egress:"}, "explain", "--from", id, "--to", outside)
	p.policy(1, nil, "explain", "--exit-code", "--from", id, "--to", outside)
	p.wantRefused(p.app, "the app calls out", tcp(newNonce())...)
	p.wantServed()

	// A fault in the file changes nothing.
	must(t, os.WriteFile(p.file, []byte("spec: ["), 0o644))
	p.policy(1, []string{p.file + ":1"}, "apply")
	p.policy(0, []string{"broken"}, "list")
	p.wantRefused(p.app, "the app calls out, with a broken file", tcp(newNonce())...)

	must(t, os.WriteFile(p.file, []byte(p.before), 0o644))
	p.policy(0, []string{"in force in 1 pod\n"}, "apply")
	p.policy(0, nil, "diff")
	p.wantEnforced(p.app)
	p.wantServed()

	// Audit: what would be denied happens, and is written down.
	p.policy(0, []string{"in force in 1 pod\n"}, "apply", p.edited("  mode: audit\n"))
	if r := p.probe(p.app, udp(newNonce())...); !r.OK {
		t.Errorf("UDP under audit: %s", r)
	}
	p.wantCarried(p.app)
	p.wantServed()
	name := status(t).Pods[0].Pod
	p.policy(0, []string{"udp", "- role: app\n"}, "audit", "--pod", name)
	starter := p.policy(0, []string{"mode: audit", "protocol: udp", "- role: sidecar\n"}, "init", "--pod", name)

	// Enforced, it lets the pod do that and nothing else.
	enforced := filepath.Join(t.TempDir(), "starter.yaml")
	must(t, os.WriteFile(enforced, []byte(strings.ReplaceAll(starter, "mode: audit", "mode: enforce")), 0o644))
	p.policy(0, []string{"policy mesh: "}, "validate", enforced)
	p.policy(0, []string{"in force in 1 pod\n"}, "apply", enforced)
	if r := p.probe(p.app, udp(newNonce())...); !r.OK {
		t.Errorf("UDP that was seen: %s", r)
	}
	p.wantCarried(p.app)
	p.wantServed()
	p.wantRefused(p.app, "an address that was not seen", "tcp", "--to", "203.0.113.9:80", "--nonce", newNonce(), "--timeout", "1s")
}
