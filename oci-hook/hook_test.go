// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups"
	"sidegate/policy"
)

const mesh = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: mesh
spec:
  redirect: {outbound: 15101}
`

// policies makes a directory of policy files.
func policies(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return dir
}

// call runs the hook in process.
func call(t *testing.T, state, policyDir, stage string, st any) error {
	t.Helper()
	b, err := json.Marshal(st)
	must(t, err)
	return run(env{args: []string{"sidegate-oci-hook", stage}, stdin: bytes.NewReader(b), stderr: io.Discard, state: state, policyDir: policyDir})
}

// state is what a runtime says of the container.
func (c *container) state(annotations map[string]string) *specs.State {
	return &specs.State{Version: specs.Version, ID: "c0ffee", Status: specs.StateCreating, Pid: c.pid, Bundle: c.bundle, Annotations: annotations}
}

// wantError fails the test unless err is one line with all the words, and of
// the exit code.
func wantError(t *testing.T, err error, code int, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	t.Log(err)
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has several lines: %q", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error does not name %q: %v", w, err)
		}
	}
	if got := exitCode(err); got != code {
		t.Errorf("exit code is %d, want %d: %v", got, code, err)
	}
}

func TestInputThatIsNoState(t *testing.T) {
	state := newState(t)
	big, err := json.Marshal(map[string]any{"id": "c0ffee", "annotations": map[string]string{"x": strings.Repeat("y", 10<<20)}})
	must(t, err)
	for _, c := range []struct {
		name, input string
		words       []string
	}{
		{"empty", "", []string{"unexpected end"}},
		{"not JSON", "hello", []string{"invalid character"}},
		{"half", `{"id":"c0ffee","pid":1`, []string{"unexpected end"}},
		{"two", `{"id":"a"}{"id":"b"}`, []string{"invalid character"}},
		{"list", `[{"id":"c0ffee"}]`, []string{"array"}},
		{"text", `"c0ffee"`, []string{"string"}},
		{"null", `null`, []string{"no id"}},
		{"no id", `{"pid":1,"bundle":"/"}`, []string{"no id"}},
		{"id of another type", `{"id":7}`, []string{"id"}},
		{"annotations of another type", `{"id":"c0ffee","annotations":["sidegate/role=app"]}`, []string{"annotations"}},
		{"pid of another type", `{"id":"c0ffee","pid":"7"}`, []string{"pid"}},
		{"10 MiB", string(big), []string{"larger than 1048576 bytes"}},
		{"10 MiB of nothing", strings.Repeat(" ", 10<<20), []string{"larger than 1048576 bytes"}},
	} {
		for _, stage := range []string{"createRuntime", "poststop"} {
			t.Run(c.name+" "+stage, func(t *testing.T) {
				err := run(env{args: []string{"hook", stage}, stdin: strings.NewReader(c.input), state: state, policyDir: t.TempDir()})
				wantError(t, err, 1, append(c.words, "read container state from standard input")...)
				wantNoState(t, state)
			})
		}
	}
}

func TestContainerThatCannotBeAttached(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	good := policies(t, map[string]string{"mesh.yaml": mesh, "web.yaml": strings.ReplaceAll(mesh, "mesh", "web"), "README": "not a policy"})
	broken := policies(t, map[string]string{"mesh.yaml": mesh, "bad.yaml": strings.ReplaceAll(mesh, "{outbound:", "{outbond:")})
	dangling := policies(t, nil)
	must(t, os.Symlink("/nowhere/at/all", filepath.Join(dangling, "mesh.yaml")))
	fifo := policies(t, nil)
	must(t, syscall.Mkfifo(filepath.Join(fifo, "mesh.yaml"), 0o644))
	file := filepath.Join(good, "mesh.yaml")
	empty := t.TempDir()
	dead := deadPID(t)

	app := func(extra ...string) map[string]string {
		m := map[string]string{policy.KeyRole: "app"}
		for i := 0; i < len(extra); i += 2 {
			m[extra[i]] = extra[i+1]
		}
		return m
	}
	with := func(annotations map[string]string, change func(*specs.State)) *specs.State {
		st := c.state(annotations)
		if change != nil {
			change(st)
		}
		return st
	}
	for _, tc := range []struct {
		name  string
		dir   string
		state *specs.State
		words []string
	}{
		{"no pid", good, with(app(), func(s *specs.State) { s.Pid = 0 }), []string{"no pid", "createRuntime"}},
		{"negative pid", good, with(app(), func(s *specs.State) { s.Pid = -1 }), []string{"no pid"}},
		{"pid of a dead process", good, with(app(), func(s *specs.State) { s.Pid = dead }), []string{fmt.Sprintf("process %d does not exist", dead)}},
		{"no bundle", good, with(app(), func(s *specs.State) { s.Bundle = "" }), []string{`bundle ""`}},
		{"missing bundle", good, with(app(), func(s *specs.State) { s.Bundle = "/nowhere" }), []string{`bundle "/nowhere" has no config.json`}},
		{"bundle without config.json", good, with(app(), func(s *specs.State) { s.Bundle = empty }), []string{empty, "config.json"}},
		{"unknown key", good, with(map[string]string{"sidegate/rol": "app"}, nil), []string{"sidegate/rol", "did you mean sidegate/role"}},
		{"unknown role", good, with(map[string]string{policy.KeyRole: "boss"}, nil), []string{policy.KeyRole, "boss", "app, sidecar, init"}},
		{"empty role", good, with(map[string]string{policy.KeyRole: ""}, nil), []string{policy.KeyRole}},
		{"wait that is no duration", good, with(app(policy.KeyWait, "soon"), nil), []string{policy.KeyWait, "soon", "30s"}},
		{"wait that is too long", good, with(app(policy.KeyWait, "11m"), nil), []string{policy.KeyWait, "11m"}},
		{"negative wait", good, with(app(policy.KeyWait, "-1s"), nil), []string{policy.KeyWait, "-1s"}},
		{"wait of a sidecar", good, with(map[string]string{policy.KeyRole: "sidecar", policy.KeyWait: "1s"}, nil), []string{policy.KeyWait, "sidecar"}},
		{"policy that is no name", good, with(app(policy.KeyPolicy, "../mesh"), nil), []string{policy.KeyPolicy, "../mesh"}},
		{"unknown policy", good, with(app(policy.KeyPolicy, "mehs"), nil), []string{policy.KeyPolicy, "mehs", good, "mesh", "web", "default"}},
		{"unknown policy, no directory", filepath.Join(good, "none"), with(app(policy.KeyPolicy, "mesh"), nil), []string{"mesh", "none"}},
		{"broken policy file", broken, with(app(policy.KeyPolicy, "mesh"), nil), []string{filepath.Join(broken, "bad.yaml") + ":6:14", "outbond", "outbound"}},
		{"broken policy file, no policy named", broken, with(app(), nil), []string{filepath.Join(broken, "bad.yaml") + ":6:14"}},
		{"policy directory is a file", file, with(app(policy.KeyPolicy, "mesh"), nil), []string{file, "not a directory"}},
		{"policy file is a dangling link", dangling, with(app(policy.KeyPolicy, "mesh"), nil), []string{filepath.Join(dangling, "mesh.yaml")}},
		{"policy file is a FIFO", fifo, with(app(policy.KeyPolicy, "mesh"), nil), []string{filepath.Join(fifo, "mesh.yaml"), "regular"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantError(t, call(t, state, tc.dir, "createRuntime", tc.state), 1, append(tc.words, "container c0ffee")...)
			wantNoState(t, state)
			wantNothing(t, state, c)
		})
	}
}

// TestAdminCapabilities: whatever set has them, who could get out of the policy
// that binds it does not start.
func TestAdminCapabilities(t *testing.T) {
	state := newState(t)
	const ruled = "  rules: [{role: sidecar, egress: []}]\n"
	for _, tc := range []struct {
		name, config, role, spec string
		flags                    uintptr
		want                     string // part of the error
	}{
		{"none", `{}`, "app", "", 0, ""},
		{"others", `{"bounding":["CAP_NET_RAW","CAP_SYS_PTRACE"]}`, "app", "", 0, ""},
		{"NET_ADMIN", `{"bounding":["CAP_CHOWN","CAP_NET_ADMIN"]}`, "app", "", 0, "CAP_NET_ADMIN"},
		{"NET_ADMIN, in another set", `{"bounding":[],"ambient":["CAP_NET_ADMIN"]}`, "app", "", 0, "CAP_NET_ADMIN"},
		{"NET_ADMIN, in small letters", `{"bounding":["cap_net_admin"]}`, "app", "", 0, "CAP_NET_ADMIN"},
		{"NET_ADMIN, init container", `{"permitted":["CAP_NET_ADMIN"]}`, "init", "", 0, "CAP_NET_ADMIN"},
		{"NET_ADMIN, user namespace", `{"bounding":["CAP_NET_ADMIN"]}`, "app", "", syscall.CLONE_NEWUSER, "CAP_NET_ADMIN"},
		{"NET_ADMIN, sidecar", `{"bounding":["CAP_NET_ADMIN"]}`, "sidecar", "", 0, ""},
		{"NET_ADMIN, sidecar with rules", `{"bounding":["CAP_NET_ADMIN"]}`, "sidecar", ruled, 0, "CAP_NET_ADMIN"},
		{"NET_ADMIN, exempt", `{"bounding":["CAP_NET_ADMIN"]}`, "none", "", 0, ""},
		{"NET_ADMIN, allowed", `{"bounding":["CAP_NET_ADMIN"]}`, "app", "  adminCapabilities: allow\n", 0, ""},
		{"NET_ADMIN, audit", `{"bounding":["CAP_NET_ADMIN"]}`, "app", "  mode: audit\n", 0, ""},
		{"SYS_ADMIN", `{"effective":["CAP_SYS_ADMIN"]}`, "app", "", 0, "CAP_SYS_ADMIN"},
		{"SYS_ADMIN, user namespace", `{"effective":["CAP_SYS_ADMIN"]}`, "app", "", syscall.CLONE_NEWUSER, ""},
		{"SYS_MODULE", `{"inheritable":["CAP_SYS_MODULE"]}`, "app", "", 0, "CAP_SYS_MODULE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newContainer(t, syscall.CLONE_NEWNET|tc.flags)
			must(t, os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte(`{"process":{"capabilities":`+tc.config+`}}`), 0o644))
			st := c.state(map[string]string{policy.KeyRole: tc.role, policy.KeyPolicy: "mesh"})
			dir := policies(t, map[string]string{"mesh.yaml": mesh + tc.spec})
			err := call(t, state, dir, "createRuntime", st)
			if tc.want == "" {
				must(t, err)
				c.stop()
				must(t, call(t, state, dir, "poststop", st))
			} else {
				wantError(t, err, 1, tc.want, "take that away", "adminCapabilities: allow into policy mesh")
			}
			wantNothing(t, state, c)
		})
	}
}

// TestStrangersInAManagedPod: one without annotations has no sockets there, and
// starts unless it needs none to do harm.
func TestStrangersInAManagedPod(t *testing.T) {
	state := newState(t)
	for _, spec := range []string{"", "  adminCapabilities: allow\n"} {
		c := newContainer(t, syscall.CLONE_NEWNET)
		dir := policies(t, map[string]string{"mesh.yaml": mesh + spec})
		stranger := c.state(nil)
		stranger.ID = "stranger"
		try := func(capabilities string) error {
			t.Helper()
			config := `{"ociVersion":"1.0.2","hooks":{"a":[1,{}]},"process":{"capabilities":{"bounding":` + capabilities + `}},"linux":{}}`
			must(t, os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte(config), 0o644))
			return call(t, state, dir, "createRuntime", stranger)
		}
		must(t, try(`["CAP_NET_ADMIN"]`)) // it is no managed pod yet
		must(t, os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte(`{}`), 0o644))
		must(t, call(t, state, dir, "createRuntime", c.state(map[string]string{policy.KeyRole: "app", policy.KeyPolicy: "mesh"})))
		must(t, try(`["CAP_NET_RAW"]`))
		if err := try(`["CAP_CHOWN","CAP_NET_ADMIN"]`); spec == "" {
			wantError(t, err, 1, "container stranger", "managed pod", "CAP_NET_ADMIN", "adminCapabilities: allow into policy mesh")
		} else {
			must(t, err)
		}
		c.stop()
		must(t, call(t, state, dir, "poststop", c.state(nil)))
	}
}

// TestConfigurationIsNoJSON of a bundle.
func TestConfigurationIsNoJSON(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	for _, text := range []string{"", "{", "process", `{"process":`, `{"process":{"capabilities":7}}`, `{"root":[]}`} {
		must(t, os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte(text), 0o644))
		wantError(t, call(t, state, policies(t, nil), "createRuntime", c.state(map[string]string{policy.KeyRole: "app"})), 1, "config.json", "OCI configuration")
	}
	wantNoState(t, state)
}

func TestWrongUsage(t *testing.T) {
	state := newState(t)
	for _, args := range [][]string{nil, {"hook"}, {"hook", ""}, {"hook", "poststart"}, {"hook", "createRuntime", "poststop"}, {"hook", "--help"}} {
		err := run(env{args: args, stdin: strings.NewReader(`{"id":"c0ffee"}`), state: state})
		wantError(t, err, 2, "createRuntime", "poststop")
	}
	wantNoState(t, state)
}

func TestUnannotatedContainerIsLeftAlone(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	for _, annotations := range []map[string]string{
		nil,
		{"io.kubernetes.cri-o.SandboxID": "pod", "io.container.manager": "libpod"},
		{"io.kubernetes.cri-o.ContainerName": "web"},
		{"sidegate.example.com/role": "app", "my.sidegate/role": "app", "sidegate": "app"},
	} {
		for _, stage := range []string{"createRuntime", "prestart", "poststop"} {
			// A policy directory that is broken is nothing to it either.
			if err := call(t, state, "/dev/null", stage, c.state(annotations)); err != nil {
				t.Errorf("%s with %v: %v", stage, annotations, err)
			}
		}
	}
	wantNoState(t, state)
	wantNothing(t, state, c)
}

func TestAttachAndForget(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	dir := policies(t, map[string]string{"mesh.yaml": mesh})
	st := c.state(map[string]string{
		policy.KeyRole: "app", policy.KeyPolicy: "mesh",
		"io.container.manager":              "libpod",
		"io.kubernetes.cri-o.SandboxID":     "podid",
		"io.kubernetes.cri-o.ContainerName": "web",
	})
	// Both stages, as where a hooks.d file lists both.
	for _, stage := range []string{"createRuntime", "prestart"} {
		must(t, call(t, state, dir, stage, st))
		pod, got := only(t, state)
		if pod.Pod != "podid" || pod.Policy != "mesh" || pod.Outbound != 15101 {
			t.Errorf("after %s the pod is %+v", stage, pod)
		}
		if got.ID != "c0ffee" || got.Name != "web" || got.Runtime != "podman" || got.Role != "app" || got.PID != c.pid || len(got.Missing) > 0 ||
			filepath.Base(got.Cgroup) != filepath.Base(c.cgroup) || c.programs(t) != len(got.Hooks) {
			t.Errorf("after %s the container is %+v", stage, got)
		}
	}
	c.stop()
	// poststop comes when the process is gone, with or without a pid.
	st.Pid, st.Status = 0, specs.StateStopped
	for range 2 {
		must(t, call(t, state, dir, "poststop", st))
		wantNothing(t, state, c)
	}
}

func TestContainerWithoutPolicyIsUnderItsPods(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	dir := policies(t, map[string]string{"mesh.yaml": mesh})
	must(t, call(t, state, dir, "createRuntime", c.state(map[string]string{policy.KeyPolicy: "mesh"})))
	// The same container by another id is not attached again, but found to be under the same policy.
	again := c.state(map[string]string{policy.KeyRole: "app"})
	must(t, call(t, state, dir, "createRuntime", again))
	if pod, got := only(t, state); pod.Policy != "mesh" || got.Role != "app" || got.Policy != "mesh" {
		t.Errorf("status is %+v", pod)
	}
}

// The state is open while the policy is read: it must not stay locked.
func TestWrongPolicyOfAnUnknownPod(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{"mesh.yaml": mesh})
	known := newContainer(t, syscall.CLONE_NEWNET)
	must(t, call(t, state, dir, "createRuntime", known.state(map[string]string{policy.KeyPolicy: "mesh"})))
	broken := policies(t, map[string]string{"mesh.yaml": "spec: ["})
	c := newContainer(t, syscall.CLONE_NEWNET)
	err := call(t, state, broken, "createRuntime", c.state(map[string]string{policy.KeyRole: "app"}))
	wantError(t, err, 1, "container c0ffee", filepath.Join(broken, "mesh.yaml"))
	if n := c.programs(t); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
	if pod, _ := only(t, state); pod.Policy != "mesh" {
		t.Errorf("status is %+v", pod)
	}
}

// TestPolicyFollowsItsFile: a start brings all pods of the policy in line with
// its file, and a fault in the file stops no pod that ran before.
func TestPolicyFollowsItsFile(t *testing.T) {
	state := newState(t)
	dir := policies(t, map[string]string{"mesh.yaml": mesh})
	start := func(id string) (warnings string, err error) {
		c := newContainer(t, syscall.CLONE_NEWNET)
		st := c.state(map[string]string{policy.KeyRole: "app", policy.KeyPolicy: "mesh"})
		st.ID = id
		b, err := json.Marshal(st)
		must(t, err)
		var stderr bytes.Buffer
		err = run(env{args: []string{"sidegate-oci-hook", "createRuntime"}, stdin: bytes.NewReader(b), stderr: &stderr, state: state, policyDir: dir})
		return stderr.String(), err
	}
	wantPorts := func(n int, port uint16) {
		t.Helper()
		st, err := cgroups.ReadStatus(state)
		must(t, err)
		if len(st.Pods) != n {
			t.Fatalf("%d pods, want %d", len(st.Pods), n)
		}
		for _, p := range st.Pods {
			if p.Outbound != port {
				t.Errorf("outbound port of pod %s is %d, want %d", p.Pod, p.Outbound, port)
			}
		}
	}
	_, err := start("one")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(strings.Replace(mesh, "15101", "15201", 1)), 0o644))
	_, err = start("two")
	must(t, err)
	wantPorts(2, 15201)
	must(t, os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte("spec: ["), 0o644))
	warnings, err := start("three")
	must(t, err)
	wantPorts(3, 15201)
	for _, word := range []string{"warning", "mesh", filepath.Join(dir, "mesh.yaml") + ":1"} {
		if !strings.Contains(warnings, word) {
			t.Errorf("%q does not say %s", warnings, word)
		}
	}
}

// TestPodmanName lays a bundle out as containers/storage does.
func TestPodmanName(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	root := t.TempDir()
	bundle := filepath.Join(root, "c0ffee", "userdata")
	must(t, os.MkdirAll(bundle, 0o755))
	must(t, os.Rename(filepath.Join(c.bundle, "config.json"), filepath.Join(bundle, "config.json")))
	c.bundle = bundle
	st := c.state(map[string]string{policy.KeyRole: "app", annotationManager: "libpod"})
	list := filepath.Join(root, "containers.json")
	must(t, os.WriteFile(list, []byte("not JSON"), 0o644))
	wantError(t, call(t, state, t.TempDir(), "createRuntime", st), 1, "find its name", list)
	must(t, os.WriteFile(list, []byte(`[{"id":"other","names":["x"]},{"id":"c0ffee","names":["shop-db","y"],"layer":"z"}]`), 0o644))
	must(t, call(t, state, t.TempDir(), "createRuntime", st))
	if _, got := only(t, state); got.Name != "shop-db" {
		t.Errorf("container is %+v", got)
	}
}

func TestKnownSidecarNameNeedsNoAnnotation(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	must(t, call(t, state, t.TempDir(), "createRuntime", c.state(map[string]string{annotationName: "istio-proxy"})))
	if pod, got := only(t, state); got.Role != "sidecar" || pod.Policy != policy.DefaultName {
		t.Errorf("status is %+v", pod)
	}
}

func TestNoSidecarInTime(t *testing.T) {
	state := newState(t)
	c := newContainer(t, syscall.CLONE_NEWNET)
	err := call(t, state, t.TempDir(), "createRuntime", c.state(map[string]string{policy.KeyRole: "app", policy.KeyWait: "50ms"}))
	wantError(t, err, 1, "container c0ffee", "sidecar", "50ms", policy.KeyWait, "redirect.outbound")
	wantNothing(t, state, c)
}

func TestHostNamespaceIsRefused(t *testing.T) {
	state := newState(t)
	c := newContainer(t, 0)
	err := call(t, state, t.TempDir(), "createRuntime", c.state(map[string]string{policy.KeyRole: "app"}))
	wantError(t, err, 1, "container c0ffee", "host's network namespace")
	wantNothing(t, state, c)
}

func TestNoBPFFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a cgroup")
	}
	c := newContainer(t, syscall.CLONE_NEWNET)
	state := filepath.Join(t.TempDir(), "sidegate")
	err := call(t, state, t.TempDir(), "createRuntime", c.state(map[string]string{policy.KeyRole: "app"}))
	wantError(t, err, 1, filepath.Dir(state), "no BPF file system", "mount -t bpf bpf /sys/fs/bpf")
	wantNoState(t, state)
	wantNothing(t, state, c)
}

func FuzzReadState(f *testing.F) {
	for _, seed := range []string{
		"", "null", "[]", `"x"`, `{"id":""}`, `{"id":"a"} `, `{"id":"a"}{}`, `{"ID":"a"}`,
		`{"ociVersion":"1.0.2","id":"c0ffee","status":"created","pid":7,"bundle":"/b","annotations":{"sidegate/role":"app","sidegate/wait":"1s"}}`,
		`{"id":"a","annotations":{"sidegate/role":"` + strings.Repeat("\\u0000", 100) + `"}}`,
		strings.Repeat("[", 20000),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		st, err := readState(bytes.NewReader(in))
		if err != nil {
			if st != nil {
				t.Errorf("state %+v with error %v", st, err)
			}
			return
		}
		if st.ID == "" || len(in) > maxState {
			t.Errorf("state %+v of %d bytes is taken", st, len(in))
		}
		// What was read is read the same way again.
		b, err := json.Marshal(st)
		must(t, err)
		again, err := readState(bytes.NewReader(b))
		if len(b) <= maxState && (err != nil || again.ID != st.ID || again.Pid != st.Pid) {
			t.Errorf("%s is read as %+v, %v", b, again, err)
		}
		if req, err := policy.ParseRequest(st.Annotations); err == nil && !slices.Contains(
			[]policy.Role{policy.RoleUnset, policy.RoleApp, policy.RoleSidecar, policy.RoleInit, policy.RoleNone}, req.Role) {
			t.Errorf("annotations %v ask for role %d", st.Annotations, req.Role)
		}
	})
}

// brokenReader fails in the middle.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestInputThatBreaks(t *testing.T) {
	err := run(env{args: []string{"hook", "createRuntime"}, stdin: brokenReader{}})
	wantError(t, err, 1, "standard input", "broken pipe")
}
