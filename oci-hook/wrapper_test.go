// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestParseInvocation(t *testing.T) {
	for line, want := range map[string]invocation{
		"--root /r --log /l --log-format json create --bundle /b --pid-file /p id": {"create", "/b", "/l", "json"},
		"--root=/r -log=/l create -b /b --console-socket /create id":               {"create", "/b", "/l", ""},
		"--systemd-cgroup --debug --log /l run --bundle=/b id":                     {"run", "/b", "/l", ""},
		"--cgroup-manager cgroupfs --log-level debug create id":                    {"create", ".", "", ""},
		"--log create create -- --bundle":                                          {"create", ".", "create", ""},
		"--version":                                                                {"", ".", "", ""},
		"--root create state id":                                                   {"state", ".", "", ""},
		"exec --process /p --bundle id":                                            {"exec", ".", "", ""},
		"--new v create --bundle /b id":                                            {"create", "/b", "", ""},
		"create -preserve-fds 1 -pid-file /p -bundle /b id":                        {"create", "/b", "", ""},
		"create --bundle":                                                          {"create", ".", "", ""},
		"--log":                                                                    {"", ".", "", ""},
		"":                                                                         {"", ".", "", ""},
		"--root /run/containerd/runc/k8s.io --log /x/log.json --log-format json delete --force x": {"delete", ".", "/x/log.json", "json"},
	} {
		if got, err := parseInvocation(strings.Fields(line)); got != want || err != nil {
			t.Errorf("%q: got %+v, %v, want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{
		"create -b/b id", "create --bund /b id", "create --bund=/b id", "run -db /b id", "create --config /c id", "create --conf=/c id", "run -f /c id", "run -config /c id",
	} {
		if got, err := parseInvocation(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), "write --bundle DIRECTORY") {
			t.Errorf("%q: got %+v, %v", line, got, err)
		}
	}
}

func TestWraps(t *testing.T) {
	for line, want := range map[string]bool{
		"": false, "createRuntime": false, "poststop": false, "prestart": false, "creatRuntime": false, "list": true, "--version": true,
		"state id": true, "create --bundle /b id": true, "poststop id": true,
	} {
		if got := wraps(append([]string{"sidegate-oci-hook"}, strings.Fields(line)...)); got != want {
			t.Errorf("%q: got %v", line, got)
		}
	}
}

const hookPath = "/usr/local/libexec/sidegate/sidegate-oci-hook"

// hooked is withHooks of a configuration's text.
func hooked(config []byte) ([]byte, error) {
	spec, err := parseObject(config)
	if err != nil {
		return nil, err
	}
	spec, err = withHooks(spec, hookPath, []string{"GOMAXPROCS=1"}, nil)
	return writeObject(spec), err
}

func TestWithHooks(t *testing.T) {
	const (
		createOurs = `{"args":["sidegate-oci-hook","createRuntime"],"env":["GOMAXPROCS=1"],"path":"` + hookPath + `"}`
		stopOurs   = `{"args":["sidegate-oci-hook","poststop"],"env":["GOMAXPROCS=1"],"path":"` + hookPath + `"}`
		other      = `{"path":"/bin/other", "timeout": 12345678901234567890, "unknown": [1e999]}`
	)
	for _, tt := range []struct{ name, in, want string }{
		{"none", `{"ociVersion":"1.2.0","process":{"x":12345678901234567890}, "unknown": {"a" : 1.0}}`,
			`{"ociVersion":"1.2.0","process":{"x":12345678901234567890},"unknown":{"a" : 1.0},"hooks":{"createRuntime":[` + createOurs + `],"poststop":[` + stopOurs + `]}}`},
		{"null", `{"hooks":null,"root":{"path":"rootfs"}}`, `{"hooks":{"createRuntime":[` + createOurs + `],"poststop":[` + stopOurs + `]},"root":{"path":"rootfs"}}`},
		{"others", `{"hooks":{"prestart":[` + other + `],"createRuntime":[` + other + `]}}`,
			`{"hooks":{"prestart":[` + other + `],"createRuntime":[` + other + `,` + createOurs + `],"poststop":[` + stopOurs + `]}}`},
		{"ours", `{"hooks":{"createRuntime":[` + createOurs + `],"poststop":[` + stopOurs + `]}}`, `{"hooks":{"createRuntime":[` + createOurs + `],"poststop":[` + stopOurs + `]}}`},
		{"null lists", `{"hooks":{"createRuntime":null,"poststop":[]}}`, `{"hooks":{"createRuntime":[` + createOurs + `],"poststop":[` + stopOurs + `]}}`},
	} {
		got, err := hooked([]byte(tt.in))
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", tt.name, err, got, tt.want)
		}
		again, err := hooked(got)
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s: once more: %v\ngot  %s\nwant %s", tt.name, err, again, got)
		}
	}
	for in, want := range map[string]string{
		``: "EOF", `[]`: "no JSON object", `{"hooks":[]}`: "hooks: it is no JSON object", `{"hooks":{"poststop":{}}}`: "hooks.poststop",
		`{"hooks":{},"Hooks":{}}`: `it has "Hooks" twice`, `{"Hooks":{}}`: `it has "Hooks": write "hooks"`,
		`{"hooks":{"Poststop":[]}}`: `it has "Poststop": write "poststop"`, `{} {}`: "something follows", `{"hooks":`: "EOF",
	} {
		if got, err := hooked([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v, want %q", in, got, err, want)
		}
	}
}

// The members are those that encoding/json finds.
func FuzzParseObject(f *testing.F) {
	f.Add(`{"a":"\\\"}","b" : [1, {"c":"]"}] ,"\u0063":1e9,"d":null,"e":{}}`)
	f.Fuzz(func(t *testing.T, in string) {
		var want map[string]json.RawMessage
		werr := json.Unmarshal([]byte(in), &want)
		members, err := parseObject([]byte(in))
		if err != nil {
			if werr == nil && !strings.Contains(err.Error(), "twice") {
				t.Errorf("%q: %v", in, err)
			}
			return
		}
		got := make(map[string]json.RawMessage)
		for _, m := range members {
			got[m.key] = m.value
		}
		if werr != nil || len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q, %v", in, got, want, werr)
		}
	})
}

func FuzzWithHooks(f *testing.F) {
	f.Add(`{"hooks":{"createRuntime":[{"path":"/x"}]},"process":{"args":["a"]}}`)
	f.Fuzz(func(t *testing.T, in string) {
		var before, after map[string]any
		got, err := hooked([]byte(in))
		if err != nil {
			return
		}
		if err := errors.Join(json.Unmarshal([]byte(in), &before), json.Unmarshal(got, &after)); err != nil {
			t.Fatalf("%s became %s: %v", in, got, err)
		}
		for key := range after {
			if strings.EqualFold(key, "hooks") {
				delete(after, key)
				delete(before, key)
			}
		}
		if len(before) > 0 && !reflect.DeepEqual(before, after) {
			t.Errorf("%s became %s", in, got)
		}
	})
}

func FuzzParseInvocation(f *testing.F) {
	f.Add("--root /r create --bundle /b id")
	f.Fuzz(func(_ *testing.T, line string) {
		args := strings.Split(line, " ")
		_, _ = parseInvocation(args)
		_ = wraps(args)
	})
}

// wrapping is the wrapper in a directory with a runtime that does what a test says.
type wrapping struct {
	env
	bundle, log string
	executed    []string
}

func newWrapping(t *testing.T, args ...string) *wrapping {
	t.Helper()
	dir := t.TempDir()
	w := &wrapping{bundle: dir, log: filepath.Join(dir, "log.json")}
	w.self = filepath.Join(dir, "sidegate-oci-hook")
	w.runtimeFile = filepath.Join(dir, "runtime")
	for _, program := range []string{w.self, filepath.Join(dir, "runc")} {
		must(t, os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"process":{}}`), 0o640))
	w.environ = []string{"PATH=" + dir, "SIDEGATE_POLICY_DIR=/policies", "SECRET=1"}
	w.args = append([]string{"runc", "--log", w.log, "--log-format", "json"}, args...)
	return w
}

func (w *wrapping) wrap() error {
	return wrap(w.env, func(path string, args, _ []string) error {
		w.executed = append([]string{path}, args...)
		return errors.New("this is a test")
	})
}

func (w *wrapping) config(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.bundle, "config.json"))
	must(t, err)
	return string(b)
}

func TestWrapCreate(t *testing.T) {
	w := newWrapping(t)
	w.args = append(w.args, "create", "--bundle", w.bundle, "id")
	_ = w.wrap()
	runc := filepath.Join(w.bundle, "runc")
	if want := append([]string{runc, runc}, w.args[1:]...); !slices.Equal(w.executed, want) {
		t.Errorf("executed %q, want %q", w.executed, want)
	}
	config := w.config(t)
	for _, want := range []string{`"path":"` + w.self + `"`, `"GOMAXPROCS=1"`, `"SIDEGATE_POLICY_DIR=/policies"`, `"PATH=`, "createRuntime", "poststop"} {
		if !strings.Contains(config, want) {
			t.Errorf("config.json has no %s: %s", want, config)
		}
	}
	if strings.Contains(config, "SECRET") {
		t.Errorf("config.json has a variable that is no business of the hook: %s", config)
	}
	st, err := os.Stat(filepath.Join(w.bundle, "config.json"))
	must(t, err)
	if st.Mode().Perm() != 0o640 {
		t.Errorf("config.json has mode %v", st.Mode())
	}
	left, err := filepath.Glob(filepath.Join(w.bundle, ".config*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// Nothing but a new container is touched.
func TestWrapOthers(t *testing.T) {
	for _, command := range []string{"start id", "state id", "kill id 9", "delete --force id", "exec --process p id", "--version", "features"} {
		w := newWrapping(t, strings.Fields(command)...)
		_ = w.wrap()
		if w.executed == nil || w.config(t) != `{"process":{}}` {
			t.Errorf("%s: executed %q, config.json is %s", command, w.executed, w.config(t))
		}
	}
}

func TestWrapFailsClosed(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*wrapping)
		want  string
	}{
		"no config":      {func(w *wrapping) { _ = os.Remove(filepath.Join(w.bundle, "config.json")) }, "config.json: stat"},
		"no JSON":        {func(w *wrapping) { _ = os.WriteFile(filepath.Join(w.bundle, "config.json"), []byte("{"), 0o600) }, "config.json: unexpected EOF"},
		"no runtime":     {func(w *wrapping) { _ = os.Remove(filepath.Join(w.bundle, "runc")) }, "there is no runc or crun in PATH but this program"},
		"itself":         {func(w *wrapping) { _ = os.WriteFile(w.runtimeFile, []byte(w.self+"\n"), 0o600) }, "is this program itself"},
		"relative":       {func(w *wrapping) { w.environ = append(w.environ, "SIDEGATE_RUNTIME=runc") }, "is no absolute path"},
		"missing":        {func(w *wrapping) { w.environ = append(w.environ, "SIDEGATE_RUNTIME=/nonexistent/runc") }, "runtime of SIDEGATE_RUNTIME: stat"},
		"a directory":    {func(w *wrapping) { w.environ = append(w.environ, "SIDEGATE_RUNTIME="+w.bundle) }, "is no program"},
		"itself in PATH": {func(w *wrapping) { r := filepath.Join(w.bundle, "runc"); _ = os.Remove(r); _ = os.Link(w.self, r) }, "but this program"},
	} {
		w := newWrapping(t)
		w.args = append(w.args, "create", "--bundle", w.bundle, "id")
		tt.spoil(w)
		err := w.wrap()
		if err == nil || !strings.Contains(err.Error(), tt.want) || w.executed != nil {
			t.Errorf("%s: executed %q, error %v, want %q", name, w.executed, err, tt.want)
		}
		b, _ := os.ReadFile(w.log)
		var line struct{ Level, Msg, Time string }
		if jerr := json.Unmarshal(b, &line); jerr != nil || line.Level != "error" || !strings.Contains(line.Msg, tt.want) || line.Time == "" {
			t.Errorf("%s: log is %s, %v", name, b, jerr)
		}
	}
}

// Arguments, environment, standard streams, exit codes and signals are the runtime's.
func TestWrapBecomesTheRuntime(t *testing.T) {
	dir := t.TempDir()
	wrapper := filepath.Join(dir, "wrapper")
	build := exec.Command("go", "build", "-o", wrapper, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := filepath.Join(dir, "runc")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho \"$X $*\"\n[ \"$1\" = kill ] && exec sleep 100\ncat\nexit 42\n"), 0o755))
	run := func(args ...string) *exec.Cmd {
		cmd := exec.Command(wrapper, args...)
		cmd.Env = append(os.Environ(), "SIDEGATE_RUNTIME="+script, "X=x y")
		return cmd
	}
	cmd := run("state", "a b", "", "*")
	cmd.Stdin = strings.NewReader("input")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 || string(out) != "x y state a b  *\ninput" {
		t.Errorf("%q, %v", out, err)
	}
	cmd = run("kill", "id")
	pipe, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = io.ReadFull(pipe, make([]byte, len("x y kill id\n")))
	must(t, err)
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	err = cmd.Wait()
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("after SIGTERM: %v", err)
	}
}
