// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sidegate/policy"
)

// accelerated is a directory of policies: the default one and "mesh" accelerate, "off" does not.
func accelerated(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, word := range map[string]string{policy.DefaultName: "on", "mesh": "node", "off": "off"} {
		text := "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: \"" + name + "\"}\nspec: {accelerate: \"" + word + "\"}\n"
		must(t, os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o644))
	}
	return dir
}

// preCreate runs the hook at precreate.
func preCreate(config, policyDir string) (string, error) {
	var stdout bytes.Buffer
	err := run(env{
		args: []string{"sidegate-oci-hook", "precreate"}, stdin: strings.NewReader(config), stdout: &stdout, stderr: io.Discard,
		policyDir: policyDir, state: "/sys/fs/bpf/nowhere",
	})
	return stdout.String(), err
}

const spliceRule = `{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22}`

func annotated(annotations, linux string) string {
	return `{"ociVersion":"1.2.0","process":{"x":12345678901234567890}, "annotations":` + annotations + `,"linux":` + linux + `,"unknown": {"a" : 1.0}}`
}

func TestPrecreate(t *testing.T) {
	const (
		app     = `{"sidegate/role":"app"}`
		profile = `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","splice"],"action":"SCMP_ACT_ALLOW"}]}`
		merged  = `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[` + spliceRule + `,{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`
	)
	dir := accelerated(t)
	compact := func(s string) string { // what the program writes around what it keeps
		return strings.ReplaceAll(strings.ReplaceAll(s, ", \"annotations\"", ",\"annotations\""), `"unknown": {`, `"unknown":{`)
	}
	for name, tt := range map[string]struct{ in, want string }{ // want "" is in, to the byte
		"an app":                     {annotated(app, `{"seccomp":`+profile+`,"later": [1e999]}`), compact(annotated(app, `{"seccomp":`+merged+`,"later":[1e999]}`))},
		"a sidecar":                  {annotated(`{"sidegate/role":"sidecar"}`, `{"seccomp":`+profile+`}`), compact(annotated(`{"sidegate/role":"sidecar"}`, `{"seccomp":`+merged+`}`))},
		"its policy decides":         {annotated(`{"sidegate/policy":"mesh"}`, `{"seccomp":`+profile+`}`), compact(annotated(`{"sidegate/policy":"mesh"}`, `{"seccomp":`+merged+`}`))},
		"no annotations":             {in: annotated(`null`, `{"seccomp":`+profile+`}`)},
		"others' annotations":        {in: annotated(`{"a":"b"}`, `{"seccomp":`+profile+`}`)},
		"an init container":          {in: annotated(`{"sidegate/role":"init"}`, `{"seccomp":`+profile+`}`)},
		"exempt":                     {in: annotated(`{"sidegate/role":"none"}`, `{"seccomp":`+profile+`}`)},
		"a typo":                     {in: annotated(`{"sidegate/role":"ap"}`, `{"seccomp":`+profile+`}`)},
		"has it":                     {in: annotated(app, `{"seccomp":`+merged+`}`)},
		"kills some":                 {in: annotated(app, `{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["splice"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}}`)},
		"a field of tomorrow":        {in: annotated(app, `{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","tomorrow":1}}`)},
		"a rule's field of tomorrow": {in: annotated(app, `{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","tomorrow":1}]}}`)},
		"twice":                      {in: annotated(app, `{"seccomp":`+profile+`,"Seccomp":null}`)},
	} {
		got, err := preCreate(tt.in, dir)
		if tt.want == "" {
			tt.want = tt.in
		}
		if err != nil || got != tt.want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", name, err, got, tt.want)
		}
	}
	for _, linux := range []string{`{}`, `{"seccomp":null}`, `{"seccomp":{}}`} {
		got, err := preCreate(annotated(app, linux), dir)
		if err != nil || !strings.Contains(got, `"defaultAction":"SCMP_ACT_ALLOW"`) || !strings.Contains(got, spliceRule) || !strings.Contains(got, `"SCMP_ARCH_`) {
			t.Errorf("%s: %s, %v", linux, got, err)
		}
	}
	for _, in := range []string{``, `[]`, `{} {}`, `{"annotations":[]}`} {
		if got, err := preCreate(in, dir); err == nil || got != "" {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
}

// Of a managed container's configuration nothing changes but linux.seccomp, whatever else is in it.
func FuzzPrecreate(f *testing.F) {
	f.Add(`"process":{"args":["a"]},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"x":[1.0]}`)
	dir := accelerated(f)
	f.Fuzz(func(t *testing.T, in string) {
		in = `{"annotations":{"sidegate/role":"app"},` + in + `}`
		got, err := preCreate(in, dir)
		if err != nil {
			return
		}
		var before, after map[string]any
		if json.Unmarshal([]byte(in), &before) != nil {
			return // such as invalid UTF-8, which comes out as it went in
		}
		if err := json.Unmarshal([]byte(got), &after); err != nil {
			t.Fatalf("%s became %s: %v", in, got, err)
		}
		for _, config := range []map[string]any{before, after} {
			if linux, ok := config["linux"].(map[string]any); ok {
				delete(linux, "seccomp")
				if len(linux) == 0 {
					delete(config, "linux")
				}
			} else if config["linux"] == nil {
				delete(config, "linux")
			}
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s became %s", in, got)
		}
	})
}

// The wrapper gives a container hooks and rule at once, by what Docker says of it too.
func TestWrapperAddsTheRule(t *testing.T) {
	e := env{self: hookPath, policyDir: accelerated(t), state: "/sys/fs/bpf/nowhere"}
	const config = `{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}},"process":{}}`
	for name, tt := range map[string]struct {
		annotations map[string]string
		want        bool
	}{
		"none":   {nil, false},
		"docker": {map[string]string{"sidegate/role": "app", annotationDockerName: "shop"}, true},
		"exempt": {map[string]string{"sidegate/role": "none", annotationDockerName: "shop"}, false},
		"a name": {map[string]string{annotationDockerName: policy.DefaultSidecarNames()[0]}, true},
	} {
		got, err := e.edit([]byte(config), tt.annotations)
		if err != nil || strings.Contains(string(got), spliceRule) != tt.want || !strings.Contains(string(got), "poststop") {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// What is handed to cgroups is what the bundle says, and not what somebody meant to put there.
func TestSplice(t *testing.T) {
	for config, want := range map[string]string{ // why
		`{"root":{},"process":{}}`:                                                        "no linux",
		`{"linux":{},"root":{},"process":{}}`:                                             "no seccomp profile",
		`{"root":{},"process":{},"linux":{"seccomp":null}}`:                               "no seccomp profile",
		`{"root":{},"process":{},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`: "errno 1",
		`{"root":{},"process":{},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[` + spliceRule + `]}}}`: "",
		`{"root":{},"process":{},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","tomorrow":1}}}`:                    "not understood",
		`{"root":{},"process":{},"linux":{"Seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[` + spliceRule + `]}}}`: "not understood",
		`{"root":{},"process":{},"linux":[]}`: "not understood",
	} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644))
		c, err := readConfiguration(dir, true)
		must(t, err)
		s := c.splice()
		if s.Impossible != (want == "") || !strings.Contains(s.Why, want) || (s.Why == "") != s.Impossible {
			t.Errorf("%s: %+v", config, s)
		}
		if c, err = readConfiguration(dir, false); err != nil || c.splice().Impossible {
			t.Errorf("%s: what was not read is fine: %+v, %v", config, c, err)
		}
	}
}

// The configuration that a container of podman has: some hundred rules.
func BenchmarkSplice(b *testing.B) {
	text, err := os.ReadFile("/usr/share/containers/seccomp.json")
	if err != nil {
		b.Skip(err)
	}
	var profile map[string]any
	if err := json.Unmarshal(text, &profile); err != nil {
		b.Fatal(err)
	}
	names := []string{}
	for _, rule := range profile["syscalls"].([]any) {
		for _, name := range rule.(map[string]any)["names"].([]any) {
			names = append(names, fmt.Sprintf(`{"names":[%q],"action":"SCMP_ACT_ALLOW"}`, name))
		}
	}
	config := annotated(`{"sidegate/role":"app"}`, `{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[`+strings.Join(names, ",")+`]}}`)
	policies := accelerated(b)
	b.Run("precreate", func(b *testing.B) {
		for b.Loop() {
			if _, err := preCreate(config, policies); err != nil {
				b.Fatal(err)
			}
		}
	})
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o644); err != nil {
		b.Fatal(err)
	}
	for _, all := range []bool{false, true} {
		b.Run(fmt.Sprintf("createRuntime/%v", all), func(b *testing.B) {
			for b.Loop() {
				c, err := readConfiguration(dir, all)
				if err != nil {
					b.Fatal(err)
				}
				if all {
					c.splice()
				}
			}
		})
	}
}
