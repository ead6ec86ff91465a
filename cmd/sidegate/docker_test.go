// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/cgroups"
)

func TestProbeDocker(t *testing.T) {
	dir := t.TempDir()
	p := places{
		docker: filepath.Join(dir, "docker"), driver: filepath.Join(dir, "driver"), plugin: filepath.Join(dir, "*", "plugin"), config: filepath.Join(dir, "daemon.json"), nri: filepath.Join(dir, "nri"),
	}
	want := func(when, want string) {
		t.Helper()
		var got []string
		for _, c := range p.probe() {
			word := "missing"
			if c.OK {
				word = "ok"
			}
			if !c.OK && c.Cost == "" {
				t.Errorf("%s: %s does not say what that costs", when, c.Name)
			}
			if c.Name != "NRI plugin" { // that is the machine's
				got = append(got, c.Name+" "+word)
			}
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: got %s, want %s", when, text, want)
		}
	}
	serve := func(path string) net.Listener {
		t.Helper()
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	want("nothing there", "NRI missing, Docker missing")
	serve(p.nri)
	serve(p.docker)
	want("Docker alone", "NRI ok, Docker ok, Docker network driver missing, Docker runtime missing")
	if err := os.Mkdir(filepath.Join(dir, "id"), 0o700); err != nil {
		t.Fatal(err)
	}
	plugin := serve(filepath.Join(dir, "id", "plugin"))
	want("a managed plugin", "NRI ok, Docker ok, Docker network driver ok, Docker runtime missing")
	plugin.Close()
	want("it has ended", "NRI ok, Docker ok, Docker network driver missing, Docker runtime missing")
	serve(p.driver)
	hook := filepath.Join(dir, "sidegate-oci-hook")
	config := func(text string) cgroups.Check {
		t.Helper()
		if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return probeDockerRuntime(p.config)
	}
	for text, detail := range map[string]string{
		`{`:                                "unexpected end",
		`{"runtimes":{"x":{"path":"/x"}}}`: "none of the runtimes",
		`{"runtimes":{"x":{"path":"` + hook + `"}}}`: "no such file",
	} {
		if c := config(text); c.OK || c.Required || !strings.Contains(c.Detail, detail) {
			t.Errorf("%s: %+v, want %q", text, c, detail)
		}
	}
	if c := config(`{"default-runtime":"x","runtimes":{"x":{"path":"` + hook + `"}}}`); c.OK || !c.Required {
		t.Errorf("a default runtime that is not there: %+v", c)
	}
	if err := os.WriteFile(hook, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if c := config(`{"default-runtime":"x","runtimes":{"x":{"path":"` + hook + `"}}}`); !c.OK || !strings.Contains(c.Detail, "the default") {
		t.Errorf("it is there: %+v", c)
	}
	want("all there", "NRI ok, Docker ok, Docker network driver ok, Docker runtime ok")
}
