// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/bpf"
	"sidegate/cgroups/internal/selftest"
	"sidegate/policy"
)

func TestKernelFault(t *testing.T) {
	for _, c := range []struct{ release, version, want string }{
		{"6.18.44-fc-v782", "#1 SMP PREEMPT_DYNAMIC", ""},
		{"6.12.117+deb12-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~deb12u1 (2026-09-01)", ""},
		{"6.1.0-57-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1 (2026-10-01)", ""},
		// The ABI's number is no version.
		{"6.1.0-28-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)", "CVE-2024-56633 in kernel 6.1.119: "},
		{"6.1.120", "", "CVE-2024-56664 "},
		{"6.1.141", "", "CVE-2025-38154 "},
		{"6.1.142", "", ""},
		{"6.6.94-generic", "", ""},
		{"6.6.93-generic", "", "CVE-2025-38154 "},
		{"6.8.0-60-generic", "#63-Ubuntu SMP PREEMPT_DYNAMIC", "CVE-2024-56633 "},
		{"6.14.8", "", "CVE-2025-38154 "},
		{"6.15.2", "", "CVE-2025-38154 "},
		{"6.15.3", "", ""},
		{"7.2", "", ""},
		{"5.15.200", "", "CVE-2024-56633 "},
		{"next", "", `cannot tell what kernel "next" is`},
	} {
		got := kernelFault(c.release, c.version)
		if !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%s %s: %q, want %q", c.release, c.version, got, c.want)
		}
	}
}

func TestAccelerationOffWords(t *testing.T) {
	bits := func(kinds ...selftest.Kind) (b uint64) {
		for i, c := range selftest.Checks() {
			for _, k := range kinds {
				if c.Kind == k {
					b |= 1 << i
				}
			}
		}
		return b
	}
	var why bpf.AccelInfo
	bpf.SetCString(why.Why[:], "CVE-1")
	for _, c := range []struct {
		a    policy.Acceleration
		info bpf.AccelInfo
		want string
	}{
		{policy.AccelerateAuto, bpf.AccelInfo{Done: 1}, ""},
		{policy.AccelerateAuto, bpf.AccelInfo{Done: 1, Failed: bits(selftest.Splices)}, ""},
		{policy.AccelerateAuto, bpf.AccelInfo{Done: 1, Failed: bits(selftest.Shows)}, "programs could notice: "},
		{policy.AccelerateOn, bpf.AccelInfo{Done: 1, Failed: bits(selftest.Shows, selftest.Splices)}, ""},
		{policy.AccelerateNode, bpf.AccelInfo{Done: 1, Failed: bits(selftest.Shows)}, ""},
		{policy.AccelerateOn, bpf.AccelInfo{Done: 1, Failed: bits(selftest.Breaks)}, "the kernel does not keep: echo, "},
		{policy.AccelerateOn, why, "CVE-1"},
		{policy.AccelerateOff, bpf.AccelInfo{Done: 1}, "its policy says off"},
	} {
		got := accelerationOff(c.a, c.info)
		if !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%v, %+v: %q, want %q", c.a, c.info, got, c.want)
		}
	}
}

func TestConfiguresKTLS(t *testing.T) {
	shipped := func(name string) string {
		text, err := os.ReadFile(filepath.Join("../contrib/ktls", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, c := range []struct {
		path, text string
		want       bool
	}{
		{"etc/ssl/openssl.cnf", "[system_default_sect]\nOptions = KTLS\n", true},
		{"etc/ssl/openssl.cnf", "Options = ServerPreference, KTLS # all\n", true},
		{"etc/ssl/openssl.cnf", "#Options = KTLS\n", false},
		{"etc/ssl/openssl.cnf", "Options = ServerPreference # not KTLS\n", false},
		{"etc/ssl/openssl.cnf", "", false},
		{"etc/gnutls/config", "[global]\nktls = true\n", true},
		{"etc/gnutls/config", "[global]\nktls = false\n", false},
		{"etc/pki/tls/openssl.cnf", "Options=KTLS", true},
		{"run/sidegate/ktls/openssl.cnf", shipped("openssl.cnf"), true},
		{"run/sidegate/ktls/gnutls.conf", shipped("gnutls.conf"), true},
		{"etc/other", "Options = KTLS", false},
	} {
		root := t.TempDir()
		file := filepath.Join(root, c.path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := configuresKTLS(root)
		if err != nil || got != c.want {
			t.Errorf("%s with %q: %v, %v", c.path, c.text, got, err)
		}
	}
	// A link out of the container's root is one into it.
	root, outside := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc/ssl"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(outside, "openssl.cnf")
	if err := os.WriteFile(file, []byte("Options = KTLS\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, filepath.Join(root, "etc/ssl/openssl.cnf")); err != nil {
		t.Fatal(err)
	}
	if got, err := configuresKTLS(root); err != nil || got {
		t.Errorf("a link out of the root: %v, %v", got, err)
	}
}
