// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

func newDelete(e *env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME...",
		Short: "Remove policies from the directory",
		Long: "Refused while pods are under the policy: with --force they keep it until they end,\n" +
			"and no other pod can be put under it.",
		Example:           "  sidegate policy delete old-mesh",
		ValidArgsFunction: policyNames(e),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage(fmt.Errorf("%s needs names of policies", cmd.CommandPath()))
			}
			slices.Sort(args)
			return deletePolicies(e, slices.Compact(args), force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while pods are under it")
	return cmd
}

// deletePolicies removes the files of all of them, or of none.
func deletePolicies(e *env, names []string, force bool) error {
	good, _, err := loadDir(e)
	if err != nil {
		return err
	}
	kernel, err := kernelPolicies(e)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := deletable(e, name, good, kernel, force); err != nil {
			return fmt.Errorf("policy %s: %w", name, err)
		}
	}
	for _, name := range names {
		file := fileOf(good[name])
		if err := removeFile(file); err != nil {
			return fmt.Errorf("policy %s: %w", name, err)
		}
		fmt.Fprintf(e.stdout, "policy %s: removed %s\n", name, file)
	}
	return nil
}

// deletable says why a policy cannot be deleted.
func deletable(e *env, name string, good map[string]*policy.PodPolicy, kernel map[string]cgroups.PolicyStatus, force bool) error {
	p := good[name]
	if p == nil {
		return fmt.Errorf("it is not in %s: `sidegate policy list` shows what is", e.policyDir)
	}
	for _, other := range good {
		if other != p && fileOf(other) == fileOf(p) {
			return fmt.Errorf("%s has policy %s too: remove this one with an editor", fileOf(p), other.Metadata.Name)
		}
	}
	if pods := kernel[name].Pods; len(pods) > 0 && !force {
		are := "are"
		if len(pods) == 1 {
			are = "is"
		}
		return fmt.Errorf("%s %s under it (%s): stop them, or use --force to let them keep it until they end",
			count(len(pods), "pod"), are, strings.Join(pods, ", "))
	}
	return nil
}
