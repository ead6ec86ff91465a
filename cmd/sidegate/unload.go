// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

func newUnload(e *env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "unload",
		Short: "Remove everything of Sidegate from the kernel",
		Long: "Remove all links, programs, maps and pins.\n" +
			"Refused while pods are managed: with --force their containers run on without enforcement.",
		Example: "  sidegate unload\n  sidegate unload --force    # whatever runs",
		Args:    cli.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return cgroups.Unload(e.state, force) },
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while pods are managed")
	return cmd
}
