// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const web = "# ours\napiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: web}\nspec: {}\n"

// named is web by another name, with another spec.
func named(name, spec string) string {
	return strings.NewReplacer("name: web", "name: "+name, "spec: {}\n", "spec:\n"+spec).Replace(web)
}

// policies are the commands with a directory that does not exist yet, and nothing
// in the kernel.
func policies(t *testing.T) *world {
	t.Helper()
	return &world{t: t, state: newState(t), dir: filepath.Join(t.TempDir(), "policies")}
}

// file makes one outside of the directory of policies.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

func TestPolicyFiles(t *testing.T) {
	w := policies(t)
	one := file(t, "one.yaml", web)
	broken := file(t, "broken.yaml", strings.Replace(web, "spec: {}", "spec: {nonTCP: perhaps}", 1))
	w.want(0, []string{one + ": policy web: 0 rules, 0 prefixes, 0 entries\n"}, "validate", one)
	w.want(1, []string{broken + ":5:16: spec.nonTCP: ", one + ": policy web: "}, "validate", one, broken)
	w.want(1, []string{"no such file"}, "validate", "/nowhere")
	w.want(1, []string{"there is no policy here"}, "validate", file(t, "empty.yaml", "# nothing\n"))
	w.want(0, []string{"NAME"}, "list")
	w.want(1, []string{"spec.nonTCP"}, "apply", one, broken)
	w.want(0, []string{"policy web would be applied, as " + w.dir + "/web.yaml: no pod is under it"}, "apply", "--dry-run", one)
	if _, err := os.Stat(w.dir); !os.IsNotExist(err) {
		t.Errorf("a wrong file made the directory: %v", err)
	}
	w.want(0, []string{"policy web: in force in 0 pods"}, "apply", one)
	w.wantFiles(map[string]string{"web.yaml": web})
	w.want(0, []string{"web", "unused"}, "list")
	w.want(0, []string{"web"}, "apply", filepath.Join(w.dir, "web.yaml"))
	w.want(0, []string{"no pod is under it"}, "diff", one)
	w.want(0, []string{"removed " + w.dir + "/web.yaml"}, "delete", "web", "web")
	w.want(1, []string{"policy web: it is not in"}, "delete", "web")
	w.wantFiles(nil)
	w.want(1, []string{"seen nothing"}, "init", "--pod", "a")
	w.want(1, []string{"not loaded"}, "explain", "--from", "a/b", "--to", "192.0.2.1:80")
}

func TestStandardInput(t *testing.T) {
	w := policies(t)
	if out, code := w.pipe(web, "validate", "-"); code != 0 || !strings.HasPrefix(out, "-: policy web: ") {
		t.Errorf("validate: %d, %s", code, out)
	}
	if out, code := w.pipe("spec: [", "apply", "-"); code != 1 || !strings.Contains(out, "-:1") {
		t.Errorf("apply nonsense: %d, %s", code, out)
	}
	if out, code := w.pipe(web, "apply", "-"); code != 0 {
		t.Errorf("apply: %d, %s", code, out)
	}
	w.wantFiles(map[string]string{"web.yaml": web})
	if out, code := w.pipe(web, "diff", "-"); code != 0 {
		t.Errorf("diff: %d, %s", code, out)
	}
	if out, code := w.pipe(web+"---\n"+named("api", "  nonTCP: deny\n"), "apply", "-"); code != 1 || !strings.Contains(out, "several policies") {
		t.Errorf("apply several: %d, %s", code, out)
	}
	w.wantFiles(map[string]string{"web.yaml": web})
}

// TestApplyLosesNoPolicy: what would take a policy away from the directory, or
// make one that nobody reads, is refused and changes nothing.
func TestApplyLosesNoPolicy(t *testing.T) {
	api := named("api", "  nonTCP: deny\n")
	both := web + "---\n" + api
	for _, c := range []struct {
		name   string
		there  map[string]string
		given  map[string]string
		want   string // in the message; none: it is applied
		become map[string]string
	}{
		{"another file has the name", map[string]string{"mine.yml": web}, map[string]string{"x.yaml": web}, "is in DIR/mine.yml:2 already", nil},
		{"a file of several has the name", map[string]string{"both.yaml": both}, map[string]string{"x.yaml": web}, "DIR/both.yaml:2 already", nil},
		{"the file has another one", map[string]string{"web.yaml": both}, map[string]string{"x.yaml": web}, "policy api is in DIR/web.yaml too", nil},
		{"a broken file has the name", map[string]string{"a.yaml": web, "b.yaml": web}, map[string]string{"x.yaml": web}, "policy web cannot be in DIR/web.yaml", nil},
		{"two of a name", nil, map[string]string{"x.yaml": web, "y.yaml": web}, "give one of them", nil},
		{"no name for several", nil, map[string]string{"both.txt": both}, "rename it to *.yaml", nil},
		{"hidden name for several", nil, map[string]string{".both.yaml": both}, "rename it to *.yaml", nil},
		{"several, as they were", map[string]string{"both.yaml": both}, map[string]string{"both.yaml": both + "# new\n"}, "", map[string]string{"both.yaml": both + "# new\n"}},
		{"a broken file is repaired", map[string]string{"web.yaml": "spec: ["}, map[string]string{"x.yaml": web}, "", map[string]string{"web.yaml": web}},
		{"any name for one", nil, map[string]string{"policy.txt": web}, "", map[string]string{"web.yaml": web}},
		{"one that takes over and one that gives up", map[string]string{"web.yaml": both}, map[string]string{"web.yaml": both, "x.yaml": named("new", "  nonTCP: allow\n")}, "",
			map[string]string{"web.yaml": both, "new.yaml": named("new", "  nonTCP: allow\n")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := policies(t)
			must(t, os.Mkdir(w.dir, 0o755))
			for name, text := range c.there {
				w.write(name, text)
			}
			args := []string{"apply"}
			for name, text := range c.given {
				args = append(args, file(t, name, text))
			}
			code, become := 0, c.become
			if c.want != "" {
				code, become = 1, c.there
			}
			w.want(code, []string{strings.ReplaceAll(c.want, "DIR", w.dir)}, args...)
			w.wantFiles(become)
		})
	}
}

// wantFiles fails the test unless the directory of policies has these and nothing
// else.
func (w *world) wantFiles(files map[string]string) {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	must(w.t, err)
	if len(entries) != len(files) {
		w.t.Errorf("the directory has %v, want %d files", entries, len(files))
	}
	for name, text := range files {
		got, err := os.ReadFile(filepath.Join(w.dir, name))
		if err != nil || string(got) != text {
			w.t.Errorf("%s is %q, %v; want %q", name, got, err, text)
		}
	}
}

func TestDeleteAllOrNone(t *testing.T) {
	w := policies(t)
	must(t, os.Mkdir(w.dir, 0o755))
	files := map[string]string{"web.yaml": web, "both.yaml": named("a", "  nonTCP: deny\n") + "---\n" + named("b", "  nonTCP: deny\n")}
	for name, text := range files {
		w.write(name, text)
	}
	w.want(1, []string{"policy a: ", "both.yaml has policy b too"}, "delete", "web", "a")
	w.wantFiles(files)
}

// TestWarnings: of what is right, and hardly meant.
func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"nothing", "  nonTCP: deny\n", ""},
		{"audit", "  mode: audit\n", "spec.mode: audit denies nothing"},
		{"init that has no network", "  init: deny\n  rules: [{role: init, egress: []}]\n", "spec.rules[0]: these rules never apply"},
		{"init by name", "  init: deny\n  roles: [{container: setup, role: init}]\n  rules: [{container: setup, egress: []}]\n", "spec.rules[0]: these rules never apply"},
		{"init", "  rules: [{role: init, egress: []}]\n", ""},
		{"app that cannot call out", "  rules: [{role: app, egress: [{to: [{role: sidecar}]}]}]\n", "spec.rules[0]: the app cannot call out"},
		{"app that calls its host only", "  rules: [{role: app, egress: [{to: [{entity: host}]}]}]\n", "the app cannot call out"},
		{"app that calls a network", "  rules: [{role: app, egress: [{to: [{cidr: 192.0.2.0/24}]}]}]\n", ""},
		{"app that calls anybody", "  rules: [{role: app, egress: [{ports: [80]}]}]\n", ""},
		{"app with rules for UNIX sockets", "  rules: [{role: app, unix: {optional: true}}]\n", ""},
		{"app by name, whose role calls out", "  roles: [{container: web, role: app}]\n" +
			"  rules: [{role: app, egress: [{to: [{entity: world}]}]}, {container: web, ingress: []}]\n", ""},
		{"sidecar that nothing reaches", "  rules: [{role: sidecar, egress: [{to: [{role: app}]}], ingress: [{from: [{role: app}]}]}]\n", "nothing reaches the sidecar from outside"},
		{"sidecar that passes nothing on", "  rules: [{role: sidecar, egress: [], ingress: [{from: [{entity: host}]}]}]\n", "the sidecar cannot pass on"},
		{"sidecar by name", "  rules: [{container: envoy, egress: [], ingress: []}]\n", "nothing reaches the sidecar"},
		{"sidecar of a named app", "  rules: [{role: sidecar, egress: [{to: [{container: web}]}], ingress: [{from: [{cidr: \"::/0\"}]}]}]\n", ""},
		{"sidecar of a named init container", "  roles: [{container: setup, role: init}]\n" +
			"  rules: [{role: sidecar, egress: [{to: [{container: setup}]}], ingress: [{}]}]\n", "the sidecar cannot pass on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			path := file(t, "web.yaml", named("web", c.spec))
			code := run(env{stdout: &out, stderr: &errs, args: []string{"policy", "validate", path}, state: "/nowhere"})
			if code != 0 || !strings.Contains(out.String(), "policy web: ") || strings.Contains(out.String(), "warning") {
				t.Errorf("exit code %d:\n%s%s", code, &out, &errs)
			}
			switch {
			case c.want == "" && errs.Len() > 0:
				t.Errorf("warned for nothing:\n%s", &errs)
			case !strings.Contains(errs.String(), c.want), c.want != "" && !strings.HasPrefix(errs.String(), path+":2: warning: "):
				t.Errorf("nothing of %q in\n%s", c.want, &errs)
			}
		})
	}
}

// TestExamplesAreNotSuspicious: but for what they say themselves.
func TestExamplesAreNotSuspicious(t *testing.T) {
	files, err := filepath.Glob("../../contrib/examples/*.yaml")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("no examples")
	}
	var out, errs bytes.Buffer
	if code := run(env{stdout: &out, stderr: &errs, args: append([]string{"policy", "validate"}, files...), state: "/nowhere"}); code != 0 || errs.Len() > 0 {
		t.Errorf("exit code %d:\n%s%s", code, &out, &errs)
	}
}

func TestLineDiff(t *testing.T) {
	before := []string{"mode enforce, outbound 1", "spec.rules[0].egress[0]: a", "spec.rules[0].egress[1]: b", "spec.rules[1].egress[0]: b"}
	after := []string{"mode audit, outbound 1", "spec.rules[0].egress[0]: c", "spec.rules[0].egress[1]: a", "spec.rules[0].egress[2]: b"}
	removed, added := lineDiff(before, after)
	if got := strings.Join(append(removed, added...), "|"); got != "mode enforce, outbound 1|spec.rules[1].egress[0]: b|mode audit, outbound 1|spec.rules[0].egress[0]: c" {
		t.Errorf("removed %q, added %q", removed, added)
	}
}

func TestParseTo(t *testing.T) {
	for in, want := range map[string]destination{
		"192.0.2.1:80":                {"192.0.2.1", 6, 80, false},
		"example.org:80":              {"example.org", 6, 80, false},
		"[2001:db8::1]:443/udp":       {"2001:db8::1", 17, 443, false},
		"shop/db:5432":                {"shop/db", 6, 5432, false},
		"shop/db:5432/sctp":           {"shop/db", 132, 5432, false},
		"shop/tcp:80":                 {"shop/tcp", 6, 80, false},
		"role:app:80":                 {"role:app", 6, 80, false},
		"role:app,container:db:1/udp": {"role:app,container:db", 17, 1, false},
		"192.0.2.1/icmp":              {"192.0.2.1", 1, echoRequest, true},
		"192.0.2.1/icmp:3":            {"192.0.2.1", 1, 3, false},
		"192.0.2.1/icmp:0":            {"192.0.2.1", 1, 0, false},
		"2001:db8::1/icmpv6":          {"2001:db8::1", 58, echoRequestV6, true},
		"[2001:db8::1]/icmpv6:135":    {"2001:db8::1", 58, 135, false},
	} {
		if d, err := parseTo(in); err != nil || d != want {
			t.Errorf("%s is %+v, %v", in, d, err)
		}
	}
	for _, in := range []string{"", "x", ":80", "x:0", "x:65536", "x:http", "x:80/gre", "2001:db8::1:80", "x/icmp:256", "x/icmp:", "/icmp", "x/udp"} {
		if d, err := parseTo(in); err == nil {
			t.Errorf("%q is taken for %+v", in, d)
		}
	}
}

const ruled = `  redirect: {dns: 15053}
  exclude: {egress: [{cidr: 10.0.0.0/8, ports: [5432]}]}
  rules:
  - role: app
    egress:
    - {to: [{role: sidecar}], ports: [8000]}
    - {to: [{entity: world}], ports: [443]}
    - {to: [{cidr: 10.0.0.0/8}], ports: [5432]}
    - {to: [{cidr: 192.0.2.53/32}], protocol: udp, ports: [53]}
    ingress: [{from: [{role: sidecar}], ports: [8080]}]
  - container: db
    egress: []
    ingress: [{from: [{container: web}], ports: [5432]}]
`

// TestExplainFile asks a policy that nothing is under.
func TestExplainFile(t *testing.T) {
	w := policies(t)
	plain, audit := file(t, "plain.yaml", named("web", ruled)), file(t, "audit.yaml", named("web", "  mode: audit\n"+ruled))
	var b strings.Builder
	for _, q := range []struct{ file, from, to string }{
		{plain, "role:app", "role:sidecar:8000"},
		{plain, "role:app", "role:sidecar:9901"},
		{plain, "role:app", "192.0.2.1:443"},
		{plain, "role:app", "192.0.2.1:80/tcp"},
		{plain, "role:app", "10.1.2.3:5432"},
		{plain, "role:app", "192.0.2.53:53/udp"},
		{plain, "role:app", "192.0.2.1/icmp"},
		{plain, "role:app", "2001:db8::1/icmp"},
		{plain, "192.0.2.1", "role:app:8080"},
		{plain, "role:none,container:web", "role:none,container:db:5432"},
		{plain, "role:app,container:web", "container:db:5432"},
		{plain, "role:app,container:web", "role:app,container:web:1"},
		{audit, "role:app", "role:sidecar:9901"},
	} {
		b.WriteString("$ sidegate policy explain --policy " + filepath.Base(q.file) + " --from " + q.from + " --to " + q.to + "\n")
		b.WriteString(w.want(0, nil, "explain", "--policy", q.file, "--from", q.from, "--to", q.to))
	}
	golden(t, "explain.golden", b.String())
	w.want(0, nil, "explain", "--exit-code", "--policy", plain, "--from", "role:app", "--to", "192.0.2.1:443")
	w.want(1, []string{"it is denied"}, "explain", "--exit-code", "--policy", plain, "--from", "role:app", "--to", "192.0.2.1:80")
	w.want(0, nil, "explain", "--exit-code", "--policy", audit, "--from", "role:app", "--to", "192.0.2.1:80")
	for _, c := range []struct{ from, to, want string }{
		{"shop/app", "192.0.2.1:80", "write role:app"},
		{"role:ap", "192.0.2.1:80", "is not a role"},
		{"role:app,role:app", "192.0.2.1:80", "is not one container"},
		{"role:app", "127.0.0.1:80", "inside the pod"},
		{"192.0.2.1", "192.0.2.2:80", "neither end is a container"},
	} {
		w.want(2, []string{c.want}, "explain", "--policy", plain, "--from", c.from, "--to", c.to)
	}
	w.want(1, []string{"no such file"}, "explain", "--policy", "/nowhere", "--from", "role:app", "--to", "192.0.2.1:80")
	var list []map[string]any
	must(t, json.Unmarshal([]byte(w.want(0, nil, "explain", "-o", "json", "--policy", plain, "--from", "role:app", "--to", "192.0.2.1:80")), &list))
	if len(list) != 1 || list[0]["allow"] != false || list[0]["reason"] != "policy_egress" || list[0]["policy"] != "web" {
		t.Errorf("as JSON: %v", list)
	}
}
