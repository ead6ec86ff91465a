// SPDX-License-Identifier: Apache-2.0

// Command sidegate shows and removes what Sidegate has in the kernel.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/policy"
)

// Exit codes.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnsupported = 3
)

// env is all that the commands take from their process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	args           []string
	state          string // directory of pins
	policyDir      string
}

func main() {
	os.Exit(run(env{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		args:   os.Args[1:],
		state:  cgroups.StateDir(),

		policyDir: cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir),
	}))
}

// usageError marks what is wrong with the command line, not with the world.
type usageError struct{ error }

func run(e env) int {
	root := newRoot(&e)
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	fmt.Fprintf(e.stderr, "sidegate: %v\n", err)
	var usage usageError
	switch {
	case errors.As(err, &usage), cmd == root:
		fmt.Fprintf(e.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return exitUsage
	case errors.Is(err, cgroups.ErrUnsupported):
		return exitUnsupported
	}
	return exitFailed
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "sidegate",
		Short:         "Make a sidecar impossible to walk around",
		Long:          "Sidegate forces a pod's traffic through its sidecar, in the kernel.\nThis command shows and removes what is attached, and changes policies; containers are attached by the runtime's hook.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&e.state, "state-dir", e.state, "directory of pins on a BPF file system ($"+cgroups.StateEnv+")")
	root.AddCommand(newStatus(e), newDoctor(e), newObserve(e), newExporter(e), newUnload(e), newVersion(e), newPolicy(e))
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown argument %q for %s", args[0], cmd.CommandPath())}
	}
	return nil
}
