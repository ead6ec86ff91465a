// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseUsage(t *testing.T) {
	got, err := parseUsage("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
	if err != nil || got != 2.5 {
		t.Errorf("usage is %v, %v", got, err)
	}
	for _, bad := range []string{"", "user_usec 1\n", "usage_usec many\n"} {
		if got, err := parseUsage(bad); err == nil {
			t.Errorf("%q has usage %v", bad, got)
		}
	}
}

func TestUnifiedCgroup(t *testing.T) {
	if got, ok := unifiedCgroup("9:cpu:/a\n0::/b/c\n"); !ok || got != "/b/c" {
		t.Errorf("cgroup is %q, %v", got, ok)
	}
	if got, ok := unifiedCgroup("9:cpu:/a\n"); ok {
		t.Errorf("cgroup v1 is %q", got)
	}
}

func TestListens(t *testing.T) {
	const listing = "LISTEN 0 4096 127.0.0.1:15001 0.0.0.0:*\nLISTEN 0 511 0.0.0.0:80 0.0.0.0:*\n\n"
	for addr, want := range map[string]bool{"127.0.0.1:15001": true, "192.0.2.80:80": true, "192.0.2.80:15001": false, "127.0.0.1:1": false} {
		if got := listens(listing, addr); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestSessions(t *testing.T) {
	row := func(proxy, service, total string) []string {
		return []string{proxy, service, "", "", "0", "1", "400", total, "0"}
	}
	rows := [][]string{
		{"# pxname", "svname", "qcur", "qmax", "scur", "smax", "slim", "stot", "bin"},
		row("outbound", "FRONTEND", "7"), row("direct", "FRONTEND", "5"), row("inbound", "FRONTEND", "100"), row("fixed", "BACKEND", "5"), {""},
	}
	if got, err := sessions(rows); err != nil || got != 12 {
		t.Errorf("sessions are %d, %v", got, err)
	}
	if got, err := sessions(rows[:2]); err == nil {
		t.Errorf("sessions of half the frontends are %d", got)
	}
	rows[1][7] = "x"
	if got, err := sessions(rows); err == nil {
		t.Errorf("sessions that are no number are %d", got)
	}
}

func TestCPUModel(t *testing.T) {
	if got := cpuModel("processor\t: 0\nmodel name\t: Some CPU: fast\nmodel name\t: other\n"); got != "Some CPU: fast" {
		t.Errorf("model is %q", got)
	}
	if got := cpuModel(""); got == "" {
		t.Error("no model at all")
	}
}

func TestShippedEnv(t *testing.T) {
	dir := t.TempDir()
	if _, err := shippedEnv(dir); err == nil {
		t.Error("no file, no error")
	}
	file := filepath.Join(dir, "50-sidegate-createruntime.json")
	if err := os.WriteFile(file, []byte(`{"hook":{"path":"/x","env":["A=1"]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := shippedEnv(dir); err != nil || !slices.Equal(got, []string{"A=1"}) {
		t.Errorf("environment is %q, %v", got, err)
	}
	// What is in this tree.
	if _, err := shippedEnv("../../contrib/oci-hooks.d"); err != nil {
		t.Error(err)
	}
}

func TestFlags(t *testing.T) {
	e, err := parseFlags([]string{"-quick", "-only", "^hook$", "-json", ""})
	if err != nil {
		t.Fatal(err)
	}
	if e.json != "" || !e.only.MatchString("hook") || e.only.MatchString("hooks") || !filepath.IsAbs(e.bin) {
		t.Errorf("flags are %+v", e)
	}
	if got := []int{e.rounds(50), e.rounds(7), e.rounds(3)}; !slices.Equal(got, []int{10, 1, 1}) {
		t.Errorf("quick rounds are %v", got)
	}
	for _, bad := range [][]string{{"-only", "("}, {"extra"}, {"-none"}} {
		if _, err := parseFlags(bad); err == nil {
			t.Errorf("%q are flags", bad)
		}
	}
}
