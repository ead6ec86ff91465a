// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestComplaints runs a package of tests of every outcome, here and without a
// VM, and proves which of them count as failures.
func TestComplaints(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module sample\n",
		"sample_test.go": `package sample

import "testing"

func TestPass(t *testing.T)       { t.Log("kernel: fine") }
func TestFail(t *testing.T)       { t.Error("broken") }
func TestKernel(t *testing.T)     { t.Skip("kernel: has no tcx\nin this version") }
func TestKernelLog(t *testing.T)  { t.Log("kernel: 6.1"); t.Skip("too lazy") }
func TestSkip(t *testing.T)       { t.Skip("needs root, not kernel: things") }
func TestSilent(t *testing.T)     { t.SkipNow() }
func TestSub(t *testing.T) {
	t.Run("kernel", func(t *testing.T) { t.Skipf("kernel: %s", "old") })
	t.Run("other", func(t *testing.T) { t.Parallel(); t.Skip("other") })
}
func TestPanic(t *testing.T) { println("--- PASS: TestPanic (0.00s)"); panic("at the disco") }
func TestNever(t *testing.T) {}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "sample.test")
	build := exec.Command("go", "test", "-c", "-o", binary)
	build.Dir = dir
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, output)
	}
	// It fails, as it should: only what it says is of interest.
	output, err := exec.Command(binary, "-test.v=test2json").CombinedOutput()
	if err == nil {
		t.Error("the sample did not fail")
	}
	results, _, err := parseTests(t.Context(), output)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ name, complaint string }{
		{"TestPass", ""},
		{"TestFail", "failed in the VM"},
		{"TestKernel", ""},
		{"TestKernelLog", "too lazy"},
		{"TestSkip", "needs root, not kernel: things"},
		{"TestSilent", "none"},
		{"TestSub", ""},
		{"TestSub/kernel", ""},
		{"TestSub/other", "other"},
		{"TestPanic", "did not end"},
	}
	for i, result := range results {
		if i >= len(want) {
			t.Errorf("%s: not expected", result.name)
			continue
		}
		complaint := result.complaint()
		if result.name != want[i].name || !strings.Contains(complaint, want[i].complaint) || (complaint == "") != (want[i].complaint == "") {
			t.Errorf("got %s %q, want %s %q", result.name, complaint, want[i].name, want[i].complaint)
		}
	}
	if len(results) < len(want) {
		t.Errorf("got %d results, want %d", len(results), len(want))
	}
	results, _, err = parseTests(t.Context(), []byte("PASS\n"))
	if err != nil || len(results) != 0 {
		t.Errorf("empty run: got %d results, %v", len(results), err)
	}
}

// TestKernelReports proves what counts as a kernel's bug, on lines as kernels
// write them.
func TestKernelReports(t *testing.T) {
	for line, want := range map[string]bool{
		"[    1.234567] Kernel panic - not syncing: sysrq triggered crash":                         true,
		"[    5.1] WARNING: CPU: 1 PID: 77 at net/core/sock_map.c:1234 sock_map_free+0x12/0x34":    true,
		"[   15.100000][  T123] BUG: KASAN: use-after-free in sk_psock_drop+0x1/0x2":               true,
		"[   15.100000] BUG: kernel NULL pointer dereference, address: 0000000000000000":           true,
		"[   15.100000] refcount_t: underflow; use-after-free.":                                    true,
		"[   15.100000] Oops: 0000 [#1] PREEMPT SMP NOPTI":                                         true,
		"[  150.100000] INFO: task kworker/0:1:12 blocked for more than 120 seconds.":              true,
		"[   15.100000] unregister_netdevice: waiting for lo to become free. Usage count = 2":      true,
		"[    0.000000] Spectre V2 : WARNING: Unprivileged eBPF is enabled, data leaks possible":   false,
		"[    0.000000] Kernel command line: console=ttyS0 panic=-1 oops=panic":                    false,
		"[    3.000000] guest: WARNING: CPU: of a program":                                         false,
		"[    0.000000] DMI: BUG: nothing":                                                         false,
		"[    0.100000] x86/cpu: SGX disabled or unsupported by BIOS.":                             false,
		"[    2.500000] module: module verification failed: signature and/or required key missing": false,
	} {
		if got := len(kernelReports([]byte("[    0.0] first\r\n"+line+"\r\nlast"))) == 1; got != want {
			t.Errorf("%q: got %v", line, got)
		}
	}
}
