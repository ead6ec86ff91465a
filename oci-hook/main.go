// SPDX-License-Identifier: Apache-2.0

// Command sidegate-oci-hook is an OCI runtime hook (runtime-spec, "Lifecycle"):
// at createRuntime it attaches Sidegate to a container whose process exists but
// has not run, at poststop it forgets it. podman runs it before, at precreate, to have
// the container's seccomp profile as acceleration needs it, and the configuration for kTLS in it. Called with the arguments of an OCI
// runtime it is one: it adds itself to the container's hooks and becomes runc.
package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// env is all that the hook takes from its process.
type env struct {
	args      []string
	stdin     io.Reader
	stdout    io.Writer
	stderr    io.Writer
	state     string // directory of pins
	policyDir string
	ktlsDir   string // directory of the files that containers mount for kTLS

	// As a runtime.
	self        string // path of this program
	runtimeFile string
	environ     []string
}

// The signal that containerd's shim asks for at its own end (PR_SET_PDEATHSIG) is the first
// thread's, and execve(2) by another one would lose it.
func init() { runtime.LockOSThread() }

func main() {
	e := env{
		args:      os.Args,
		stdin:     os.Stdin,
		stdout:    os.Stdout,
		stderr:    os.Stderr,
		state:     cgroups.StateDir(),
		policyDir: cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir),
		ktlsDir:   ktls.HostDir(),
	}
	var err error
	if !wraps(e.args) {
		runtime.UnlockOSThread()
		err = run(e)
	} else {
		e.environ, e.runtimeFile = os.Environ(), runtimeFile
		if e.self, err = os.Executable(); err == nil {
			err = wrap(e, syscall.Exec)
		}
	}
	if err != nil {
		// The runtime shows this in its own error message: one line, whole.
		fmt.Fprintf(e.stderr, "sidegate: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(exitCode(err))
	}
}
