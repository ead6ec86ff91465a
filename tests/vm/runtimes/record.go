// SPDX-License-Identifier: Apache-2.0

// Package runtimes has tests of real container runtimes that run inside a test
// VM; TestRuntimes of the package above boots it. They are built with
// the tag vmguest alone, since they change the machine they run on.
package runtimes

import "encoding/json"

// Paths of the files in the guest that the tests use.
const (
	// ProbePath is internal/hookprobe, the stand-in for an OCI hook.
	ProbePath = "/usr/local/bin/hookprobe"
	// HookPath is the real hook, sidegate-oci-hook; it may be missing.
	HookPath = "/usr/local/bin/sidegate-oci-hook"
	// Started is the file in a container's root that its program makes first.
	Started = "started"
)

// Record is what the stand-in hook saw when it was called.
type Record struct {
	Args []string
	// State is the hook's stdin as it came.
	State json.RawMessage
	// Cgroup is that of the init process, in cgroup v2, below the mount.
	Cgroup string
	// InCgroup says that this cgroup exists and has the init process in it.
	InCgroup bool
	// OwnNetNS says that the init process has a network namespace other than
	// the hook's.
	OwnNetNS bool
	// ProgramStarted says that the container's program had begun.
	ProgramStarted bool
}

// State is the part of the OCI state that the tests look at.
type State struct {
	ID          string
	Pid         int
	Status      string
	Bundle      string
	Annotations map[string]string
}
