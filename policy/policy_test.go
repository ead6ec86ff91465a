// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRoleWords(t *testing.T) {
	for r := RoleApp; r <= RoleNone; r++ {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
	if RoleUnset.String() != "" {
		t.Errorf("RoleUnset is %q", RoleUnset)
	}
	for _, s := range []string{"", "App", " app", "proxy"} {
		_, err := ParseRole(s)
		if err == nil || !strings.Contains(err.Error(), "app, sidecar, init or none") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// container reads name, or name=role, or name=+ for one that has some other sidegate/ label.
func container(s string) Container {
	name, role, _ := strings.Cut(s, "=")
	c := Container{Name: name}
	switch role {
	case "":
	case "+":
		c.Request.Managed = true
	default:
		r, err := ParseRole(role)
		if err != nil {
			panic(err)
		}
		c.Request = Request{Role: r, Managed: true}
	}
	return c
}

func TestRoles(t *testing.T) {
	p := Default()
	p.Spec.Roles = []ContainerRole{{"haproxy", RoleSidecar}, {"migrate", RoleInit}, {"logs", RoleNone}, {"envoy", RoleApp}}
	for _, tc := range []struct {
		pod    string
		policy *PodPolicy
		want   string // of Roles; starts with ! for an error that has the rest
		alone  string // of RoleOf for each
	}{
		{"", nil, "", ""},
		{"web db", nil, "none none", "none none"},
		{"web envoy", nil, "app sidecar", "none sidecar"},
		{"istio-proxy web db", nil, "sidecar app app", "sidecar none none"},
		{"linkerd-proxy", nil, "sidecar", "sidecar"},
		{"consul-dataplane web", nil, "sidecar app", "sidecar none"},
		{"kuma-sidecar web=none", nil, "sidecar none", "sidecar none"},
		{"web=app proxy=sidecar", nil, "app sidecar", "app sidecar"},
		{"web=+ db", nil, "app app", "app none"},
		{"web=none db", nil, "none none", "none none"},
		{"web=none envoy=none db", nil, "none none none", "none none none"},
		{"envoy=app proxy=sidecar", nil, "app sidecar", "app sidecar"},
		{"envoy=+ web", nil, "sidecar app", "sidecar none"},
		{"web=init db envoy", nil, "init app sidecar", "init none sidecar"},
		{"envoy istio-proxy", nil, `!two sidecars in the pod: "envoy" (by its name) and "istio-proxy" (by its name)`, "sidecar sidecar"},
		{"proxy=sidecar envoy", nil, `!"proxy" (by its label) and "envoy" (by its name)`, "sidecar sidecar"},
		{"web web", nil, `!two containers of the pod are named "web"`, "none none"},

		{"haproxy web", p, "sidecar app", "sidecar none"},
		{"haproxy envoy", p, "sidecar app", "sidecar app"},
		{"haproxy=app web=sidecar", p, "app sidecar", "app sidecar"},
		{"migrate web", p, "init app", "init none"},
		{"logs web", p, "none none", "none none"},
		{"logs web haproxy", p, "none app sidecar", "none none sidecar"},
		{"haproxy istio-proxy", p, `!"haproxy" (by the policy) and "istio-proxy" (by its name)`, "sidecar sidecar"},
		{"haproxy web=sidecar", p, `!"haproxy" (by the policy) and "web" (by its label)`, "sidecar sidecar"},
	} {
		var cs []Container
		var alone []string
		for s := range strings.FieldsSeq(tc.pod) {
			c := container(s)
			cs = append(cs, c)
			r, err := RoleOf(c, tc.policy)
			if err != nil {
				t.Errorf("%s: %v", s, err)
			}
			alone = append(alone, r.String())
		}
		if got := strings.Join(alone, " "); got != tc.alone {
			t.Errorf("%s: alone %s, want %s", tc.pod, got, tc.alone)
		}
		roles, err := Roles(cs, tc.policy)
		if want, isErr := strings.CutPrefix(tc.want, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), want) || roles != nil {
				t.Errorf("%s: %v, %v, want %s", tc.pod, roles, err, want)
			}
			continue
		}
		var words []string
		for _, r := range roles {
			words = append(words, r.String())
		}
		if got := strings.Join(words, " "); err != nil || got != tc.want {
			t.Errorf("%s: %s, %v, want %s", tc.pod, got, err, tc.want)
		}
	}
	bad := Container{Name: "web", Request: Request{Role: 9}}
	if _, err := RoleOf(bad, nil); err == nil {
		t.Error("RoleOf takes role 9")
	}
	if _, err := Roles([]Container{bad}, nil); err == nil {
		t.Error("Roles takes role 9")
	}
	DefaultSidecarNames()[0] = "x"
	if DefaultSidecarNames()[0] != "istio-proxy" {
		t.Error("the default names can be changed from outside")
	}
}

func TestParseRequest(t *testing.T) {
	for _, tc := range []struct {
		in   string // key=value, separated by spaces; _ stands for a space
		want Request
		errs []string
	}{
		{in: "", want: Request{}},
		{in: "app=web io.kubernetes.pod=x sidegate=x Sidegate/role=x sidegate.io/role=x", want: Request{}},
		{in: "sidegate/role=app", want: Request{Role: RoleApp, Managed: true}},
		{in: "sidegate/policy=web-1", want: Request{Policy: "web-1", Managed: true}},
		{in: "sidegate/role=init sidegate/policy=p sidegate/pod=Shop_1.x sidegate/wait=1m30s sidegate/ktls=mount", want: Request{RoleInit, "p", "Shop_1.x", 90 * time.Second, KTLSMount, true}},
		{in: "sidegate/wait=0", want: Request{Managed: true}},
		{in: "sidegate/ktls=off sidegate/role=sidecar", want: Request{Role: RoleSidecar, KTLS: KTLSOff, Managed: true}},
		{in: "sidegate/ktls=mount", want: Request{KTLS: KTLSMount, Managed: true}},
		{in: "sidegate/wait=10m", want: Request{Wait: MaxWait, Managed: true}},

		{in: "sidegate/rule=app", errs: []string{`"sidegate/rule" is not known: did you mean sidegate/role? The keys are sidegate/role, sidegate/policy, sidegate/pod, sidegate/wait or sidegate/ktls`}},
		{in: "sidegate/Policy=x", errs: []string{"did you mean sidegate/policy?"}},
		{in: "sidegate/=x", errs: []string{`"sidegate/" is not known: did you mean sidegate/pod?`}},
		{in: "sidegate/role=", errs: []string{`sidegate/role: "" is not a role: write app, sidecar, init or none`}},
		{in: "sidegate/role=proxy", errs: []string{`sidegate/role: "proxy" is not a role: write app`}},
		{in: "sidegate/policy=", errs: []string{`sidegate/policy: "" is not a name: write at most 63`}},
		{in: "sidegate/policy=../x", errs: []string{`sidegate/policy: ../x is not a name`}},
		{in: "sidegate/policy=Web", errs: []string{`sidegate/policy: "Web" is not a name`}},
		{in: "sidegate/pod=", errs: []string{`sidegate/pod: "" is not the name of a pod`}},
		{in: "sidegate/pod=..", errs: []string{`sidegate/pod: .. is not the name of a pod`}},
		{in: "sidegate/wait=30", errs: []string{`sidegate/wait: 30 is not a duration: write a number and a unit, such as 500ms, 30s or 2m`}},
		{in: "sidegate/wait=", errs: []string{`sidegate/wait: "" is not a duration`}},
		{in: "sidegate/wait=_5s", errs: []string{`sidegate/wait: " 5s" is not a duration`}},
		{in: "sidegate/wait=-5s", errs: []string{`sidegate/wait: -5s is negative: write 0s to 10m0s`}},
		{in: "sidegate/wait=10m1ns", errs: []string{`sidegate/wait: 10m1ns is too long: write at most 10m`}},
		{in: "sidegate/role=sidecar sidegate/wait=5s", errs: []string{`sidegate/wait: 5s has no meaning with sidegate/role=sidecar`}},
		{in: "sidegate/role=none sidegate/wait=5s", errs: []string{`sidegate/wait: 5s has no meaning with sidegate/role=none`}},
		{in: "sidegate/ktls=on", errs: []string{`sidegate/ktls: "on" is no way to opt in to kTLS: write mount for the configuration that Sidegate has, or off`}},
		{in: "sidegate/ktls=", errs: []string{`sidegate/ktls: "" is no way`}},
		{in: "sidegate/role=sidecar sidegate/ktls=mount", errs: []string{`sidegate/ktls: mount has no meaning with sidegate/role=sidecar`}},
		{in: "sidegate/role=none sidegate/ktls=mount", errs: []string{`sidegate/ktls: mount has no meaning with sidegate/role=none`}},
		{in: "sidegate/role=x sidegate/policy=_ sidegate/wait=x sidegate/zzz=1", errs: []string{"sidegate/role:", "sidegate/policy:", "sidegate/wait:", `"sidegate/zzz"`}},
		{in: "sidegate/" + strings.Repeat("x", 10000) + "=1", errs: []string{"did you mean"}},
	} {
		in := map[string]string{}
		for kv := range strings.FieldsSeq(tc.in) {
			k, v, _ := strings.Cut(kv, "=")
			in[k] = strings.ReplaceAll(v, "_", " ")
			if k == KeyPod {
				in[k] = v
			}
		}
		got, err := ParseRequest(in)
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.in, got, tc.want)
		}
		if (err != nil) != (tc.errs != nil) {
			t.Errorf("%s: %v", tc.in, err)
		}
		for _, want := range tc.errs {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: error %q has no %q", tc.in, err, want)
			}
		}
		if len(fmt.Sprint(err)) > 1000 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	}
}

// What a pod says holds for its apps and init containers, what it says of one of them comes first.
func TestKTLSIn(t *testing.T) {
	r, err := ParsePod(map[string]string{"sidegate/ktls": "mount"}, map[string]string{"sidegate/ktls.go": "off", "sidegate/ktls.proxy": "mount"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		role Role
		want KTLS
	}{
		{"web", RoleApp, KTLSMount}, {"migrate", RoleInit, KTLSMount}, {"go", RoleApp, KTLSOff}, {"proxy", RoleSidecar, KTLSUnset}, {"x", RoleNone, KTLSUnset},
	} {
		if got := r.KTLSIn(tc.name, tc.role); got != tc.want {
			t.Errorf("%s, %s: %q, want %q", tc.name, tc.role, got, tc.want)
		}
	}
	r, err = ParsePod(nil, map[string]string{"sidegate/ktls.web": "mount"})
	if err != nil || !r.Managed || !r.Wants() || r.KTLSIn("web", RoleApp) != KTLSMount || r.KTLSIn("db", RoleApp) != KTLSUnset {
		t.Errorf("%+v, %v", r, err)
	}
	for key, value := range map[string]string{"sidegate/ktls.web": "yes", "sidegate/ktls.": "off"} {
		if _, err := ParsePod(nil, map[string]string{key: value}); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
	for key, want := range map[string]bool{"sidegate/ktls.web": true, "sidegate/role.web": true, "sidegate/wait.web": true, "sidegate/ktls": false, "x": false} {
		if IsKeyOfContainer(key) != want {
			t.Errorf("%s: %v", key, !want)
		}
	}
}

// The cases are those of Kubernetes' own documentation and of its labels package: NotIn and DoesNotExist hold where
// the key is missing, a value may be empty, all requirements must hold.
func TestSelector(t *testing.T) {
	labels := func(s string) map[string]string {
		m := map[string]string{}
		for kv := range strings.FieldsSeq(s) {
			k, v, _ := strings.Cut(kv, "=")
			m[k] = v
		}
		return m
	}
	expr := func(key string, op Operator, values ...string) *LabelSelector {
		return &LabelSelector{MatchExpressions: []Requirement{{key, op, values}}}
	}
	both := expr("tier", OpIn, "a", "b")
	both.MatchLabels = labels("app=web")
	two := &LabelSelector{MatchExpressions: []Requirement{{"x", OpExists, nil}, {"x", OpNotIn, []string{"1"}}}}
	for _, tc := range []struct {
		s      *LabelSelector
		labels string
		want   bool
	}{
		{nil, "", false},
		{nil, "app=web", false},
		{&LabelSelector{}, "", true},
		{&LabelSelector{}, "app=web", true},
		{&LabelSelector{MatchLabels: labels("app=web")}, "app=web x=y", true},
		{&LabelSelector{MatchLabels: labels("app=web")}, "app=db", false},
		{&LabelSelector{MatchLabels: labels("app=web")}, "", false},
		{&LabelSelector{MatchLabels: labels("app=web tier=a")}, "app=web", false},
		{&LabelSelector{MatchLabels: labels("app=")}, "app=", true},
		{&LabelSelector{MatchLabels: labels("app=")}, "", false},
		{expr("app", OpIn, "web", "db"), "app=db", true},
		{expr("app", OpIn, "web", "db"), "app=x", false},
		{expr("app", OpIn, "web"), "", false},
		{expr("app", OpIn, ""), "", false},
		{expr("app", OpIn, ""), "app=", true},
		{expr("app", OpNotIn, "web"), "app=db", true},
		{expr("app", OpNotIn, "web"), "app=web", false},
		{expr("app", OpNotIn, "web"), "", true},
		{expr("app", OpNotIn, ""), "app=", false},
		{expr("app", OpExists), "app=", true},
		{expr("app", OpExists), "x=y", false},
		{expr("app", OpDoesNotExist), "app=", false},
		{expr("app", OpDoesNotExist), "x=y", true},
		{expr("app", "Gt", "1"), "app=2", false},
		{both, "app=web tier=b", true},
		{both, "app=web tier=c", false},
		{both, "tier=b", false},
		{two, "x=2", true},
		{two, "", false},
	} {
		p := Default()
		p.Spec.PodSelector = tc.s
		if got := p.Selects(labels(tc.labels)); got != tc.want {
			t.Errorf("%+v, %s: %v", tc.s, tc.labels, got)
		}
	}
	p := Default()
	p.Spec.PodSelector = &LabelSelector{}
	if !p.Selects(nil) {
		t.Error("an empty selector does not select a pod without labels")
	}
}

func TestCompileLiterals(t *testing.T) {
	// The zero values stand for the defaults.
	got, err := (&PodPolicy{Metadata: Metadata{Name: DefaultName}}).Compile()
	want, err2 := Default().Compile()
	if err != nil || err2 != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; %+v, %v", got, err, want, err2)
	}
	rule := func(r EgressRule) func(*PodPolicy) {
		return func(p *PodPolicy) { p.Spec.Rules = []SubjectRules{{Role: RoleApp, Egress: []EgressRule{r}}} }
	}
	for want, change := range map[string]func(*PodPolicy){
		`apiVersion: "v1" is not known`:                  func(p *PodPolicy) { p.APIVersion = "v1" },
		`kind: "Pod" is not known`:                       func(p *PodPolicy) { p.Kind = "Pod" },
		`metadata.name: "" is not a name`:                func(p *PodPolicy) { p.Metadata.Name = "" },
		"spec.sidecarPorts[0]: 2-1 is not a port range":  func(p *PodPolicy) { p.Spec.SidecarPorts = []PortRange{{2, 1}} },
		"spec.sidecarPorts[0]: 0-1 is not a port range":  func(p *PodPolicy) { p.Spec.SidecarPorts = []PortRange{{0, 1}} },
		"spec.nonTCP: invalid(7) does not exist":         func(p *PodPolicy) { p.Spec.NonTCP = 7 },
		"spec.init: invalid(7) does not exist":           func(p *PodPolicy) { p.Spec.Init = 7 },
		"egress[0].protocol: invalid(7) does not exist":  func(p *PodPolicy) { p.Spec.Exclude.Egress = []Exclusion{{"10.0.0.0/8", nil, 7}} },
		`spec.roles[0].role: "" is not a role`:           func(p *PodPolicy) { p.Spec.Roles = []ContainerRole{{"a", RoleUnset}} },
		`spec.roles[0].role: "invalid(9)" is not a role`: func(p *PodPolicy) { p.Spec.Roles = []ContainerRole{{"a", 9}} },
		"spec.mode: invalid(7) does not exist":           func(p *PodPolicy) { p.Spec.Mode = 7 },
		"spec.redirect.getsockname: invalid(7) does not exist: use listener or original": func(p *PodPolicy) {
			p.Spec.Redirect.Getsockname = 7
		},
		`spec.rules[0].role: "invalid(9)" is not a role`:                   func(p *PodPolicy) { p.Spec.Rules = []SubjectRules{{Role: 9, Processes: []string{}}} },
		"spec.rules[0].egress[0].protocol: invalid(9) does not exist: use": rule(EgressRule{Traffic: Traffic{Protocol: 9}}),
		`egress[0].to[0].role: "invalid(9)" is not a role`:                 rule(EgressRule{To: []Peer{{Role: 9}}}),
		"egress[0].to[0].entity: invalid(9) does not exist: use world":     rule(EgressRule{To: []Peer{{Entity: 9}}}),
		"spec.rules[0].egress[0].ports[1]: 9-8 is not a port range":        rule(EgressRule{Traffic: Traffic{Ports: []PortRange{{1, 2}, {9, 8}}}}),
		"spec.rules[0].unix.allow[0].type: invalid(9) does not exist: use": func(p *PodPolicy) {
			p.Spec.Rules = []SubjectRules{{Role: RoleApp, Unix: &Unix{Allow: []UnixAllow{{Path: "/x", Type: 9}}}}}
		},
		`allow[0].path: "/\xff" is not a clean absolute path`: func(p *PodPolicy) {
			p.Spec.Rules = []SubjectRules{{Role: RoleApp, Unix: &Unix{Allow: []UnixAllow{{Path: "/\xff"}}}}}
		},
		`allow[0].abstract: "\x00" has bytes that are no text`: func(p *PodPolicy) {
			p.Spec.Rules = []SubjectRules{{Role: RoleApp, Unix: &Unix{Allow: []UnixAllow{{Abstract: "@\x00"}}}}}
		},
		"spec.tls.mode: invalid(9) does not exist: use off, inspect or deferred": func(p *PodPolicy) { p.Spec.TLS = &TLS{Mode: 9} },
		"spec.tls.require: invalid(9) does not exist: use ktls or none":          func(p *PodPolicy) { p.Spec.TLS = &TLS{Require: 9} },
		"spec.tls.other: invalid(9) does not exist: use allow or deny":           func(p *PodPolicy) { p.Spec.TLS = &TLS{Other: 9} },
		"spec.tls.http.default: invalid(9) does not exist: use allow or deny":    func(p *PodPolicy) { p.Spec.TLS = &TLS{HTTP: &HTTP{Default: 9}} },
		`http.rules[0].path.prefix: no request is allowed whose path is no UTF-8: "/\xff"`: func(p *PodPolicy) {
			p.Spec.TLS = &TLS{HTTP: &HTTP{Default: VerdictDeny, Rules: []HTTPRule{{Name: "a", Action: VerdictAllow, Path: HTTPPath{Prefix: "/\xff"}}}}}
		},
		`spec.rules[0].processes[0]: "/\x00" is not a clean`: func(p *PodPolicy) {
			p.Spec.Rules = []SubjectRules{{Role: RoleApp, Processes: []string{"/\x00"}}}
		},
	} {
		p := Default()
		change(p)
		c, err := p.Compile()
		if err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		if _, err := p.MarshalYAML(); err == nil {
			t.Errorf("%s: it is marshalled", want)
		}
	}
}

// What would keep the YAML parser busy for minutes, or overflow its stack, does not reach it.
func TestHostileSize(t *testing.T) {
	// A sixteenth of what a file may have, to be done in reasonable time with the race detector.
	const size = MaxFileSize / 16
	for name, text := range map[string]string{
		"keys":    strings.Repeat("a: b\n", size/5),
		"flow":    strings.Repeat("[", size),
		"braces":  strings.Repeat("{a: ", size/4),
		"dashes":  strings.Repeat("- ", size/2),
		"queries": strings.Repeat("? ", size/2),
		"items":   "[" + strings.Repeat("a,", size/2-1),
		"aliases": "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
	} {
		start := time.Now()
		if _, err := Parse(name, []byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		} else if len(err.Error()) > 300 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: took %s", name, d)
		}
	}
}

const minimal = "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: %s}\nspec: {redirect: {outbound: 9000}}\n"

func TestLoadDir(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fails := func(want ...string) {
		t.Helper()
		_, err := LoadDir(dir)
		_, findErr := Find(dir, DefaultName)
		for _, w := range want {
			if err == nil || findErr == nil || !strings.Contains(err.Error(), w) || !strings.Contains(findErr.Error(), w) {
				t.Errorf("LoadDir: %v; Find: %v; want %s", err, findErr, w)
			}
		}
	}

	missing := filepath.Join(dir, "missing")
	if _, err := LoadDir(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	for _, d := range []string{missing, dir} {
		for _, name := range []string{"", DefaultName} {
			if p, err := Find(d, name); err != nil || p.Source() != "built in" {
				t.Errorf("%v, %v", p, err)
			}
		}
		if _, err := Find(d, "web"); err == nil || !strings.Contains(err.Error(), `no policy is named "web": there are none but default`) {
			t.Errorf("%v", err)
		}
	}

	a := write("a.yaml", fmt.Sprintf(minimal, "web")+"---\n"+fmt.Sprintf(minimal, "db"))
	write("b.yml", fmt.Sprintf(minimal, "default"))
	write(".hidden.yaml", "not: [a policy")
	write("README", "not: [a policy")
	write("c.yaml~", "not: [a policy")
	if err := os.Symlink("b.yml", filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	ps, err := LoadDir(dir)
	if err != nil || len(ps) != 3 {
		t.Fatalf("%v, %v", ps, err)
	}
	if got := ps["db"].Source(); got != a+":6" {
		t.Errorf("source %s", got)
	}
	for _, name := range []string{"", DefaultName, "web"} {
		if p, err := Find(dir, name); err != nil || p.Spec.Redirect.Outbound != 9000 {
			t.Errorf("%q: %v, %v", name, p, err)
		}
	}
	if _, err := Find(dir, "wbe"); err == nil || !strings.Contains(err.Error(), "there are db, default, web") || !strings.Contains(err.Error(), dir) {
		t.Error(err)
	}

	z := write("z.yaml", "# comment\n"+fmt.Sprintf(minimal, "web"))
	fails(z+":2: metadata.name: \"web\" is the name of the policy at "+a+":1 too", "rename or remove one")
	write("z.yaml", "kind: x\n")
	write("y.yaml", "")
	fails(z+":1:7: kind:", "y.yaml:1:1: there is no policy here")
	_ = os.Remove(z)
	_ = os.Remove(filepath.Join(dir, "y.yaml"))

	// A dangling link is a fault of the directory, not a directory that does not exist.
	link := filepath.Join(dir, "l.yaml")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	fails("l.yaml: no such file")
	_ = os.Remove(link)
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	fails("l.yaml: not a regular file")
	_ = os.Remove(link)
	if err := syscall.Mkfifo(link, 0o600); err != nil {
		t.Fatal(err)
	}
	fails("l.yaml: not a regular file")
	_ = os.Remove(link)
	write("big.yaml", strings.Repeat("#", MaxFileSize+100))
	fails("big.yaml:1:1: the file has 4194305 bytes")
}

func TestLoadEach(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, policies ...string) {
		t.Helper()
		text := ""
		for _, p := range policies {
			text += "---\n" + fmt.Sprintf(minimal, p)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := LoadEach(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if good, broken, err := LoadEach(dir); err != nil || len(good)+len(broken) > 0 {
		t.Errorf("%v, %v, %v", good, broken, err)
	}
	write("good.yaml", "web", "db")
	write("good.yml", "cache")
	write(".hidden.yaml", "Bad")
	good, broken, err := LoadEach(dir)
	all, err2 := LoadDir(dir)
	if err != nil || err2 != nil || len(broken) != 0 || !reflect.DeepEqual(good, all) {
		t.Errorf("%v, %v, %v; LoadDir: %v, %v", good, broken, err, all, err2)
	}

	write("a.yaml", "twice", "only-a")
	write("b.yaml", "only-b", "twice")
	write("c.yaml", "twice", "only-b")
	write("bad.yaml", "fine", "Bad")
	if err := os.Symlink("nowhere", filepath.Join(dir, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	good, broken, err = LoadEach(dir)
	if err != nil || len(good) != 3 || good["web"] == nil || good["db"] == nil || good["cache"] == nil {
		t.Errorf("good: %v, %v", good, err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, want := range map[string][]string{
		"a.yaml":    {at("a.yaml") + `:2: metadata.name: "twice" is the name of the policy at ` + at("b.yaml") + ":7 too"},
		"b.yaml":    {`b.yaml:7: metadata.name: "twice" is`, `b.yaml:2: metadata.name: "only-b" is the name of the policy at ` + at("c.yaml") + ":7 too"},
		"c.yaml":    {`"twice" is the name of the policy at ` + at("a.yaml") + ":2 too", `"only-b" is the name of the policy at ` + at("b.yaml") + ":2 too"},
		"bad.yaml":  {`bad.yaml:9:18: metadata.name: "Bad" is not a name`},
		"link.yaml": {"link.yaml: no such file"},
	} {
		for _, w := range want {
			if err := broken[at(name)]; err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %s", name, err, w)
			}
		}
	}
	if len(broken) != 5 {
		t.Errorf("broken: %v", broken)
	}
}

func TestFingerprint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	seen := map[uint64]string{}
	last := uint64(0)
	step := func(what string, differs bool) {
		t.Helper()
		got, err := Fingerprint(dir)
		again, err2 := Fingerprint(dir)
		if err != nil || err2 != nil || got != again || got == 0 {
			t.Fatalf("%s: %d, %v, again %d, %v", what, got, err, again, err2)
		}
		if differs == (got == last) {
			t.Errorf("%s: %d, before %d", what, got, last)
		}
		if other, has := seen[got]; has && differs {
			t.Errorf("%s and %s: %d", what, other, got)
		}
		seen[got], last = what, got
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	step("missing", true)
	if last != FingerprintNone {
		t.Errorf("missing: %d", last)
	}
	must(os.Mkdir(dir, 0o755))
	step("empty", true)
	must(os.WriteFile(path("a.yaml"), []byte("a"), 0o644))
	step("a file", true)
	for _, name := range []string{".b.yaml", "b", "b.yaml~"} {
		must(os.WriteFile(path(name), []byte("b"), 0o644))
		step("a file that is no policy", false)
	}
	must(os.WriteFile(path("a.yaml"), []byte("bb"), 0o644))
	step("another size", true)
	must(os.Chtimes(path("a.yaml"), time.Time{}, time.Unix(1, 1)))
	step("another time", true)
	must(os.Chtimes(path("a.yaml"), time.Time{}, time.Unix(1, 2)))
	step("another nanosecond", true)
	must(os.Rename(path("a.yaml"), path("b.yml")))
	step("another name", true)
	must(os.WriteFile(path("new"), []byte("bb"), 0o644))
	must(os.Chtimes(path("new"), time.Time{}, time.Unix(1, 2)))
	must(os.Rename(path("new"), path("b.yml")))
	step("another inode", true)
	must(os.Symlink("nowhere", path("link.yaml")))
	step("a dangling link", true)
	must(os.WriteFile(path("nowhere"), nil, 0o644))
	step("the link's target", true)
	must(os.RemoveAll(dir))
	must(os.WriteFile(dir, nil, 0o644))
	if got, err := Fingerprint(dir); err == nil {
		t.Errorf("of a file: %d", got)
	}
}

func BenchmarkFingerprint(b *testing.B) {
	for b.Loop() {
		if _, err := Fingerprint("../contrib/examples"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestChoose(t *testing.T) {
	policy := func(name, app string) *PodPolicy {
		p := Default()
		p.Metadata.Name = name
		if app != "" {
			p.Spec.PodSelector = &LabelSelector{MatchLabels: map[string]string{"app": app}}
		}
		return p
	}
	ps := map[string]*PodPolicy{"web": policy("web", "web"), "web-2": policy("web-2", "web"), "db": policy("db", "db"), "x": policy("x", "")}
	for _, tc := range []struct{ name, app, want string }{
		{"", "db", "db"},
		{"x", "db", "x"},
		{"", "other", "default"},
		{"default", "db", "default"},
		{"", "web", `!policies web (built in) and web-2 (built in) both select the pod`},
		{"web", "web", "web"},
		{"y", "db", `!no policy is named "y": there are db, default, web, web-2, x`},
	} {
		p, err := Choose(ps, tc.name, map[string]string{"app": tc.app})
		if want, isErr := strings.CutPrefix(tc.want, "!"); isErr {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v", tc, err)
			}
		} else if err != nil || p.Metadata.Name != tc.want {
			t.Errorf("%+v: %v, %v", tc, p, err)
		}
	}
}

func TestPortRange(t *testing.T) {
	for _, s := range []string{"1", "443", "65535", "1-65535", "8000-8100"} {
		r, err := ParsePortRange(s)
		if err != nil || r.String() != s {
			t.Errorf("%s: %v, %v", s, r, err)
		}
	}
	if r, err := ParsePortRange("7-7"); err != nil || r.String() != "7" {
		t.Errorf("7-7: %v, %v", r, err)
	}
	r := PortRange{10, 20}
	if r.Contains(9) || !r.Contains(10) || !r.Contains(20) || r.Contains(21) || !AllPorts.Contains(65535) {
		t.Error("Contains is off")
	}
	if got := mergeRanges([]PortRange{{65535, 65535}, {5, 9}, {1, 3}, {4, 4}, {11, 12}, {65000, 65534}, {6, 7}}); !reflect.DeepEqual(got, []PortRange{{1, 9}, {11, 12}, {65000, 65535}}) {
		t.Errorf("merged %v", got)
	}
}

// BenchmarkFind is what an OCI hook does at each container's start.
func BenchmarkFind(b *testing.B) {
	for b.Loop() {
		p, err := Find("../contrib/examples", "envoy")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Compile(); err != nil {
			b.Fatal(err)
		}
	}
}

// The example of rules means what its comments say.
func TestLeastPrivilege(t *testing.T) {
	p, err := Find("../contrib/examples", "least-privilege")
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	tables := NewTables(c, []netip.Addr{netip.MustParseAddr("10.0.0.1")})
	app, sidecar := Inside(Endpoint{Role: RoleApp, Name: "web"}), Inside(Endpoint{Role: RoleSidecar, Name: "haproxy"})
	out := func(a string) End { return Outside(netip.MustParseAddr(a)) }
	for _, tc := range []struct {
		from, to End
		proto    uint8
		port     uint16
		route    Route
		reason   string
	}{
		{app, sidecar, protoTCP, 8080, RouteLocal, ""},
		{app, sidecar, protoTCP, 8404, RouteNone, ReasonEgress},
		{app, sidecar, protoUDP, 8080, RouteNone, ReasonEgress},
		{app, out("10.96.0.10"), protoUDP, 53, RouteDirect, ""},
		{app, out("10.96.0.10"), protoTCP, 53, RouteNone, ReasonEgress},
		{app, out("10.96.0.11"), protoUDP, 53, RouteNone, ReasonEgress},
		{app, out("10.20.0.1"), protoTCP, 443, RouteNone, ReasonEgress},
		{app, out("10.20.0.1"), protoICMP, 8, RouteNone, ReasonICMP},
		{sidecar, app, protoTCP, 3000, RouteLocal, ""},
		{sidecar, app, protoTCP, 3001, RouteNone, ReasonEgress},
		{sidecar, out("10.20.0.1"), protoTCP, 443, RouteDirect, ""},
		{sidecar, out("10.20.255.1"), protoTCP, 443, RouteNone, ReasonEgress},
		{sidecar, out("fd00:20::1"), protoTCP, 8443, RouteDirect, ""},
		{sidecar, out("8.8.8.8"), protoTCP, 443, RouteNone, ReasonEgress},
		{out("8.8.8.8"), sidecar, protoTCP, 443, RouteDirect, ""},
		{out("8.8.8.8"), app, protoTCP, 443, RouteSteered, ""},
		{out("8.8.8.8"), sidecar, protoTCP, 8404, RouteNone, ReasonIngress},
		{out("10.0.0.1"), sidecar, protoTCP, 8404, RouteDirect, ""},
		{out("10.0.0.1"), sidecar, protoTCP, 443, RouteNone, ReasonIngress},
		{out("10.30.0.7"), sidecar, protoTCP, 8404, RouteDirect, ""},
		{out("8.8.8.8"), app, protoUDP, 3000, RouteNone, ReasonIngress},
	} {
		q := Query{From: tc.from, To: tc.to, Proto: tc.proto, Port: tc.port}
		if d := Decide(tables, q); d.Route != tc.route || d.Reason != tc.reason {
			t.Errorf("%s: %+v, want %s %s", q, d, tc.route, tc.reason)
		}
	}
}
