// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Kernel is the kernel that runs, as uname(2) names it.
type Kernel struct {
	Release, Version string
	// Major and Minor are those of Release. What follows them is a distribution's.
	Major, Minor int
}

// RunningKernel asks the kernel for its name.
func RunningKernel() (Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, fmt.Errorf("uname: %w", err)
	}
	k := Kernel{Release: unix.ByteSliceToString(u.Release[:]), Version: unix.ByteSliceToString(u.Version[:])}
	if _, err := fmt.Sscanf(k.Release, "%d.%d", &k.Major, &k.Minor); err != nil {
		return k, fmt.Errorf("kernel release %q: %w", k.Release, err)
	}
	return k, nil
}

// AtLeast tells whether k is this version or a later one.
func (k Kernel) AtLeast(major, minor int) bool {
	return k.Major > major || k.Major == major && k.Minor >= minor
}

// haveKptrs tells whether programs can read what pointers in maps point to. It is not
// to be found out by trying: a kernel takes the tag of such a pointer that it does not
// know, and makes the map without.
func (k Kernel) haveKptrs() bool { return k.AtLeast(6, 4) }
