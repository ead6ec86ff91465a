// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"testing"

	"sidegate/bpf"
)

func TestRun(t *testing.T) {
	kernel, err := bpf.RunningKernel()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r, err := Run()
		if !kernel.AtLeast(6, 4) {
			if err == nil {
				t.Error("it ran on a kernel before 6.4")
			}
			t.Skipf("kernel: accelerates nothing: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Log(r.Took)
		n := 0
		for i, c := range Checks() {
			if r.Failed&(1<<i) == 0 {
				continue
			}
			t.Logf("%s (%d): %q %q", c.Name, c.Kind, r.Plain[n], r.Accelerated[n])
			n++
			if c.Kind == Breaks {
				t.Errorf("%s: plain %q, accelerated %q", c.Name, r.Plain[n-1], r.Accelerated[n-1])
			}
		}
	}
}
