// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"bytes"
	"context"
	"regexp"
	"testing"

	"sidegate/tests/vm"
)

// labAttempts are those of the demo that are made in a VM: what is carried, what
// is refused, and what the kernel of a test machine may lack.
const labAttempts = "^(HTTP to the outside|SCTP|UDP|MPTCP)(, IPv[46])?$"

var (
	demoResult  = regexp.MustCompile(`(?m)^demo: ([1-9]\d*) passed, 0 failed$`)
	demoSkipped = regexp.MustCompile(`(?m)^0 not possible on this machine;`)
	demoSCTP    = regexp.MustCompile(`(?m)^SCTP, IPv[46] +open +blocked EPROTONOSUPPORT +pass `)
)

// TestLab runs the demo in a VM with the newest kernel, or one per kernel: real podman, runc, HAProxy and nginx
// on Debian's kernels, with all of their protocols.
func TestLab(t *testing.T) {
	t.Parallel()
	kernels := oneOf(kernels(t), true)
	dir := t.TempDir()
	const bin = "/usr/libexec/sidegate/"
	demo := buildProgram(t, dir, "sidegate/tests/demo", bin+"demo")
	files := []vm.File{
		buildProgram(t, dir, "sidegate/tests/prober", bin+"prober"),
		buildProgram(t, dir, "sidegate/cmd/sidegate", bin+"sidegate"),
		buildProgram(t, dir, "sidegate/oci-hook", bin+"sidegate-oci-hook"),
	}
	for _, kernel := range kernels {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
			defer cancel()
			result, err := vm.RunLab(ctx, kernel, vm.LabConfig{
				Program: demo,
				Args:    []string{"-v", "-bin", bin, "-prober", bin + "prober", "-only", labAttempts},
				Files:   files,
				Timeout: testLimit,
			})
			if err != nil {
				t.Fatal(err)
			}
			logTimes(t, kernel, result)
			demo := result.Commands[0]
			if demo.Code != 0 || !demoResult.Match(demo.Output) || !demoSkipped.Match(demo.Output) || len(demoSCTP.FindAll(demo.Output, -1)) != 2 {
				t.Fatalf("demo ended with code %d %s, and not with all attempts passed:\n%s", demo.Code, demo.Err, demo.Output)
			}
			t.Logf("%v: %s", demo.Elapsed, bytes.TrimSpace(demoResult.Find(demo.Output)))
			if testing.Verbose() {
				t.Logf("%s", demo.Output)
			}
		})
	}
}
