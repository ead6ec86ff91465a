// SPDX-License-Identifier: Apache-2.0

//go:build transparency

package vm_test

import (
	"slices"
	"testing"

	"sidegate/tests/vm"
)

// TestTransparency plays the scripts over plain and accelerated connections in a VM per kernel: the calls, and not the proxies,
// whose programs a VM has not. It takes five minutes, so that it is asked for by its tag.
func TestTransparency(t *testing.T) {
	t.Parallel()
	kernels := kernels(t)
	dir := t.TempDir()
	const bin = "/usr/libexec/sidegate/"
	tests, err := vm.BuildTests(t.Context(), dir, nil, "sidegate/tests/transparency")
	if err != nil {
		t.Fatal(err)
	}
	files := append(tests[0].Files,
		buildProgram(t, dir, "sidegate/tests/prober", bin+"prober"),
		buildProgram(t, dir, "sidegate/cmd/sidegate", bin+"sidegate"),
		buildProgram(t, dir, "sidegate/oci-hook", bin+"sidegate-oci-hook"))
	labFiles, err := vm.LabFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, kernel := range kernels {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			result := bootVM(t, bootLimit, vm.Config{
				Kernel: kernel, Modules: vm.LabModules, MemoryMiB: 3072,
				Files:    slices.Concat(labFiles, files),
				Commands: []vm.Command{tests[0].Command(testLimit, "-test.run=^TestScripts$", "-bin="+bin, "-prober="+bin+"prober")},
			})
			vm.CheckTests(t, result.Commands[0])
		})
	}
}
