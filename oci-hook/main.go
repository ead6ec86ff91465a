// SPDX-License-Identifier: Apache-2.0

// Command sidegate-oci-hook is an OCI runtime hook (runtime-spec, "Lifecycle"):
// at createRuntime it attaches Sidegate to a container whose process exists but
// has not run, at poststop it forgets it.
package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"sidegate/cgroups"
	"sidegate/policy"
)

// env is all that the hook takes from its process.
type env struct {
	args      []string
	stdin     io.Reader
	stderr    io.Writer
	state     string // directory of pins
	policyDir string
}

func main() {
	e := env{
		args:      os.Args,
		stdin:     os.Stdin,
		stderr:    os.Stderr,
		state:     cgroups.StateDir(),
		policyDir: cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir),
	}
	if err := run(e); err != nil {
		// The runtime shows this in its own error message: one line, whole.
		fmt.Fprintf(e.stderr, "sidegate: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(exitCode(err))
	}
}
