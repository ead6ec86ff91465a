// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"sidegate/bpf"
	"sidegate/observe/cli"
)

// version is set by the linker (-X main.version).
var version = "devel"

func newVersion(e *env) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version, the ABI of the state and the Go version",
		Long:    "State of another ABI in the kernel is refused, not touched: see `sidegate unload`.",
		Example: "  sidegate version",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.stdout, versionLine())
			return err
		},
	}
}

func versionLine() string {
	return fmt.Sprintf("sidegate %s, ABI %d, %s %s/%s", version, bpf.ABI, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
