// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// keepSecret keeps what this process knows out of swap, core dumps, and other processes'
// reach (ptrace, /proc/<pid>/mem), but for those of root with CAP_SYS_PTRACE.
func keepSecret() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make this process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("have no core dumps: %w", err)
	}
	// On fault: the runtime reserves far more than it ever touches.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w (needs CAP_IPC_LOCK, or LimitMEMLOCK=infinity)", err)
	}
	return nil
}
