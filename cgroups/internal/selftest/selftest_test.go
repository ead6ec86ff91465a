// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	for range 3 {
		r, err := Run()
		if before64(t) {
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

func before64(t *testing.T) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major < 6 || major == 6 && minor < 4
}
