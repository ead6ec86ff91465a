// SPDX-License-Identifier: Apache-2.0

// Package cli is what Sidegate's commands have in common for those who start them: exit codes, errors of usage, what
// the programs that run for long log and how, and manual pages.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidegate/cgroups"
)

// Exit codes.
const (
	ExitFailed      = 1
	ExitUsage       = 2
	ExitUnsupported = 3 // by this kernel
)

// usageError marks what is wrong with the command line or the configuration, not with the world.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks an error as one of usage, for which commands exit with 2. Of nil it is nil.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// loggedError is one that people have seen.
type loggedError struct{ error }

func (e loggedError) Unwrap() error { return e.error }

// ExitCode is the exit code for an error: 0 for nil.
func ExitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return ExitUsage
	case errors.Is(err, cgroups.ErrUnsupported):
		return ExitUnsupported
	}
	return ExitFailed
}

// Env is what a command takes from its process.
type Env struct {
	Args           []string // without the program's name
	Stdout, Stderr io.Writer
}

// Main runs the command of this process, and does not return.
func Main(root *cobra.Command) {
	os.Exit(Run(root, Env{Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr}))
}

// Run runs a command, says what went wrong unless that has been logged, and returns the exit code.
func Run(root *cobra.Command, e Env) int {
	root.SetArgs(append([]string{}, e.Args...)) // of nil cobra takes those of the process
	root.SetOut(e.Stdout)
	root.SetErr(e.Stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return Usage(flagError(cmd, e.Args, err)) })
	cmd, err := root.ExecuteC()
	if err == nil {
		return 0
	}
	var logged loggedError
	if errors.As(err, &logged) {
		return ExitCode(err)
	}
	if cmd == root && !root.Runnable() {
		err = Usage(err) // cobra's, about a command that there is not
	}
	fmt.Fprintf(e.Stderr, "%s: %v\n", root.Name(), err)
	code := ExitCode(err)
	if code == ExitUsage {
		fmt.Fprintf(e.Stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// flagError says how to write an option of one dash, as Go's own parser takes them.
func flagError(cmd *cobra.Command, args []string, err error) error {
	var missing *pflag.NotExistError
	if !errors.As(err, &missing) || missing.GetSpecifiedShortnames() == "" {
		return err
	}
	for _, arg := range args {
		name, single := strings.CutPrefix(arg, "-")
		if !single || !strings.HasSuffix(name, missing.GetSpecifiedShortnames()) {
			continue
		}
		if name, _, _ = strings.Cut(name, "="); cmd.Flag(name) != nil {
			return fmt.Errorf("-%s: options have two dashes: write --%s", name, name)
		}
	}
	return err
}

// NoArgs is for commands that take options alone.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usage(fmt.Errorf("unknown argument %q for %s", args[0], cmd.CommandPath()))
	}
	return nil
}
