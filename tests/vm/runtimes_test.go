// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"sidegate/tests/vm"
	"sidegate/tests/vm/runtimes"
)

// TestRuntimes runs the tests of runtimes in a VM with the oldest kernel, or one per kernel: with crun, with runc, and with podman on both.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	kernels := oneOf(kernels(t), false)
	files, err := vm.PodmanFiles()
	if err != nil {
		t.Fatalf("%v: run 'make deps'", err)
	}
	dir := t.TempDir()
	binaries, err := vm.BuildTests(t.Context(), dir, []string{"vmguest"}, "sidegate/tests/vm/runtimes")
	if err != nil {
		t.Fatal(err)
	}
	tests := binaries[0]
	files = slices.Concat(files, tests.Files, []vm.File{
		buildProgram(t, dir, "sidegate/tests/vm/internal/hookprobe", runtimes.ProbePath),
	})
	if exec.CommandContext(t.Context(), "go", "list", "sidegate/oci-hook").Run() == nil {
		files = append(files, buildProgram(t, dir, "sidegate/oci-hook", runtimes.HookPath))
	}
	for _, kernel := range kernels {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			result := bootVM(t, bootLimit, vm.Config{
				Kernel:   kernel,
				Cmdline:  []string{bpfLSM},
				Modules:  modules,
				Files:    files,
				Commands: []vm.Command{tests.Command(testLimit)},
			})
			vm.CheckTests(t, result.Commands[0])
		})
	}
}

// buildProgram builds a static program of this module, to be at guest.
func buildProgram(t *testing.T, dir, pkg, guest string) vm.File {
	t.Helper()
	host := filepath.Join(dir, filepath.Base(guest))
	if err := vm.GoBuild(t.Context(), host, pkg); err != nil {
		t.Fatal(err)
	}
	return vm.File{Path: guest, Host: host, Mode: 0o755}
}
