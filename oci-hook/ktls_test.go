// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

var update = flag.Bool("update", false, "write the files in testdata")

// ktlsFiles is a directory as `make install` makes it.
func ktlsFiles(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for _, name := range ktls.Files() {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		must(t, os.Chmod(filepath.Join(dir, name), 0o644))
	}
	return dir
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "ktls", name)
	if *update {
		must(t, os.WriteFile(file, append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if string(got)+"\n" != string(want) {
		t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
	}
}

// What precreate and the wrapper make of a configuration: once, and the same again.
func TestKTLS(t *testing.T) {
	dir := ktlsFiles(t)
	const fixed = "/usr/local/share/sidegate/ktls" // in the files
	before, err := os.ReadFile("testdata/ktls/before.json")
	must(t, err)
	policies := accelerated(t)
	pre := func(config []byte) []byte {
		var stdout bytes.Buffer
		must(t, run(env{
			args: []string{"sidegate-oci-hook", "precreate"}, stdin: bytes.NewReader(config), stdout: &stdout, stderr: io.Discard,
			policyDir: policies, state: "/sys/fs/bpf/nowhere", ktlsDir: dir,
		}))
		return stdout.Bytes()
	}
	wrapped := func(config []byte) []byte {
		out, err := env{self: hookPath, policyDir: policies, state: "/sys/fs/bpf/nowhere", ktlsDir: dir}.edit(config, nil)
		must(t, err)
		return out
	}
	text := func(config []byte) []byte { return bytes.ReplaceAll(config, []byte(dir), []byte(fixed)) }
	golden(t, "precreate.json", text(pre(before)))
	golden(t, "wrapper.json", text(wrapped(before)))
	for name, again := range map[string][]byte{
		"precreate twice": pre(pre(before)), "the wrapper twice": wrapped(wrapped(before)), "both": wrapped(pre(before)),
	} {
		want := pre(before)
		if name != "precreate twice" {
			want = wrapped(before)
		}
		if !bytes.Equal(again, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, again, want)
		}
		if strings.Count(string(again), `"OPENSSL_CONF=`) != 1 || strings.Count(string(again), `"destination":"/run/sidegate/ktls"`) != 1 {
			t.Errorf("%s: %s", name, again)
		}
	}
	// What createRuntime then finds.
	bundle := t.TempDir()
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), pre(before), 0o644))
	c, err := readConfiguration(bundle, true)
	must(t, err)
	if err := (env{ktlsDir: "/nonexistent"}).checkKTLS(c, order{ktls: true}); err != nil {
		t.Error(err)
	}
}

// By what Docker says of a container too.
func TestKTLSOfDocker(t *testing.T) {
	e := env{self: hookPath, policyDir: accelerated(t), state: "/sys/fs/bpf/nowhere", ktlsDir: ktlsFiles(t)}
	asks := map[string]string{"sidegate/ktls": "mount", annotationDockerName: "shop"}
	out, err := e.edit([]byte(`{"process":{}}`), asks)
	must(t, err)
	var spec specs.Spec
	must(t, json.Unmarshal(out, &spec))
	want := specs.Mount{Destination: "/run/sidegate/ktls", Type: "bind", Source: e.ktlsDir, Options: ktls.MountOptions()}
	if len(spec.Mounts) != 1 || spec.Mounts[0].Source != want.Source || spec.Mounts[0].Destination != want.Destination ||
		spec.Mounts[0].Type != want.Type || !slices.Equal(spec.Mounts[0].Options, want.Options) ||
		!slices.Equal(spec.Process.Env, []string{"OPENSSL_CONF=/run/sidegate/ktls/openssl.cnf", "GNUTLS_SYSTEM_PRIORITY_FILE=/run/sidegate/ktls/gnutls.conf"}) {
		t.Errorf("%s", out)
	}
	_, err = e.edit([]byte(`{"process":{"env":["OPENSSL_CONF=/x"]}}`), asks)
	if err == nil || !strings.Contains(err.Error(), `sidegate/ktls: the container has OPENSSL_CONF="/x" already`) {
		t.Error(err)
	}
	e.ktlsDir = t.TempDir()
	must(t, os.Chmod(e.ktlsDir, 0o755))
	_, err = e.edit([]byte(`{"process":{}}`), asks)
	if err == nil || !strings.Contains(err.Error(), e.ktlsDir+"/openssl.cnf is not there: install it there (make install)") {
		t.Error(err)
	}
}

// A container that cannot have it all has none of it at precreate, and createRuntime, whose words reach people, says why.
func TestKTLSRefused(t *testing.T) {
	dir := ktlsFiles(t)
	const asks = `{"io.container.manager":"libpod","sidegate/ktls":"mount"}`
	for name, tt := range map[string]struct{ config, dir, want string }{
		"a variable":     {`{"process":{"env":["A=b","GNUTLS_SYSTEM_PRIORITY_FILE=/my"]},"annotations":` + asks + `}`, dir, `sidegate/ktls: the container has GNUTLS_SYSTEM_PRIORITY_FILE="/my" already`},
		"a mount":        {`{"process":{},"mounts":[{"destination":"/run/sidegate/ktls/"}],"annotations":` + asks + `}`, dir, "has a mount at /run/sidegate/ktls already"},
		"no files":       {`{"process":{"env":["A=b"]},"annotations":` + asks + `}`, "/nonexistent", "/nonexistent/openssl.cnf is not there"},
		"not at all":     {`{"process":{},"annotations":{"sidegate/ktls":"mount"}}`, "", "run it by sidegate-oci-hook as its runtime"},
		"no precreate":   {`{"process":{},"annotations":` + asks + `}`, "", "let podman run this hook at precreate too"},
		"no list":        {`{"process":{"env":{}},"annotations":` + asks + `}`, dir, "cannot unmarshal object"},
		"no environment": {`{"process":{"env":[1]},"annotations":` + asks + `}`, dir, "process.env: json: cannot unmarshal number"},
	} {
		var stdout bytes.Buffer
		e := env{
			args: []string{"sidegate-oci-hook", "precreate"}, stdin: strings.NewReader(tt.config), stdout: &stdout, stderr: io.Discard,
			policyDir: t.TempDir(), state: "/sys/fs/bpf/nowhere", ktlsDir: tt.dir,
		}
		if tt.dir == "" { // the hook does not run
			stdout.WriteString(tt.config)
			e.ktlsDir = dir
		} else if err := run(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if out := stdout.String(); out != tt.config {
			// The rule for splice(2) may be there.
			if strings.Contains(out, "OPENSSL_CONF") || strings.Contains(out, dir) {
				t.Errorf("%s: half of it is there: %s", name, out)
			}
		}
		bundle := t.TempDir()
		must(t, os.WriteFile(filepath.Join(bundle, "config.json"), stdout.Bytes(), 0o644))
		c, err := readConfiguration(bundle, true)
		if err == nil {
			o := order{ktls: true, runtime: "podman"}
			if name == "not at all" {
				o.runtime = "docker"
			}
			err = e.checkKTLS(c, o)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if err := (env{}).checkKTLS(&configuration{}, order{}); err != nil {
		t.Errorf("who does not ask: %v", err)
	}
}

// Who gets it.
func TestKTLSOrder(t *testing.T) {
	cri := map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.sandbox-name": "w", "io.kubernetes.cri.sandbox-namespace": "s",
	}
	for name, tt := range map[string]struct {
		base map[string]string
		more map[string]string
		want bool
	}{
		"podman":                 {nil, map[string]string{"io.container.manager": "libpod", "sidegate/ktls": "mount"}, true},
		"podman, off":            {nil, map[string]string{"io.container.manager": "libpod", "sidegate/ktls": "off"}, false},
		"podman, not":            {nil, map[string]string{"io.container.manager": "libpod", "sidegate/role": "app"}, false},
		"docker, by name":        {nil, map[string]string{annotationDockerName: "web", "sidegate/ktls.web": "mount"}, true},
		"docker, off by name":    {nil, map[string]string{annotationDockerName: "web", "sidegate/ktls": "mount", "sidegate/ktls.web": "off"}, false},
		"a pod's app":            {cri, map[string]string{"sidegate/ktls": "mount"}, true},
		"a pod's init container": {cri, map[string]string{"sidegate/ktls": "mount", "sidegate/role.web": "init"}, true},
		"a pod's sidecar":        {cri, map[string]string{"sidegate/ktls": "mount", "sidegate/role.web": "sidecar"}, false},
		"a pod's sandbox":        {cri, map[string]string{"sidegate/ktls": "mount", "io.kubernetes.cri.container-type": "sandbox"}, false},
		"said of another":        {cri, map[string]string{"sidegate/ktls.db": "mount"}, false},
	} {
		a := maps.Clone(tt.base)
		if a == nil {
			a = map[string]string{}
		}
		maps.Copy(a, tt.more)
		o, err := readOrder(&specs.State{Annotations: a})
		if err != nil || o.ktls != tt.want {
			t.Errorf("%s: %v, %v", name, o.ktls, err)
		}
	}
	if _, err := readOrder(&specs.State{Annotations: map[string]string{policy.KeyKTLS: "yes"}}); err == nil || !strings.Contains(err.Error(), "write mount") {
		t.Error(err)
	}
}

// Nothing changes but the environment and the mounts, whatever else is there.
func FuzzKTLS(f *testing.F) {
	f.Add(`"process":{"args":["a"],"env":["A=b"]},"mounts":[{"destination":"/x"}],"x":[1.0]`)
	dir := ktlsFiles(f)
	f.Fuzz(func(t *testing.T, in string) {
		in = `{"annotations":{"sidegate/ktls":"mount"},` + in + `}`
		spec, err := parseObject([]byte(in))
		if err != nil {
			return
		}
		spec, changed, err := (env{ktlsDir: dir}).withKTLS(spec, order{ktls: true})
		if err != nil || !changed {
			return
		}
		var before, after map[string]any
		if json.Unmarshal([]byte(in), &before) != nil {
			return
		}
		got := writeObject(spec)
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%s became %s: %v", in, got, err)
		}
		cut := func(config map[string]any, key string, n int) {
			list, _ := config[key].([]any)
			if len(list) < n {
				t.Fatalf("%s became %s", in, got)
			}
			config[key] = list[:len(list)-n]
			if len(list) == n {
				delete(config, key)
			}
		}
		process := func(config map[string]any) map[string]any {
			p, _ := config["process"].(map[string]any)
			if p == nil {
				p = map[string]any{}
			}
			config["process"] = p
			return p
		}
		cut(process(after), "env", 2)
		cut(process(before), "env", 0)
		cut(after, "mounts", 1)
		cut(before, "mounts", 0)
		a, _ := json.Marshal(before)
		b, _ := json.Marshal(after)
		if !bytes.Equal(a, b) {
			t.Errorf("%s became %s", in, got)
		}
	})
}
