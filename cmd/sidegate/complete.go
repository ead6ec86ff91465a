// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
)

// completeFlag gives shells the words for a flag. What cannot be read has none: a shell shows no errors.
func completeFlag(cmd *cobra.Command, flag string, words cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, words); err != nil {
		panic(err) // there is no such flag, or it is given twice
	}
}

// oneOf are words that are always the same.
func oneOf(words ...string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// policyFiles are files of policies.
func policyFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt
}

// podNames are those of managed pods.
func podNames(e *env) cobra.CompletionFunc {
	return fromStatus(e, func(p *cgroups.PodStatus) []string { return []string{p.Pod} })
}

// containerNames are those of registered containers.
func containerNames(e *env) cobra.CompletionFunc {
	return fromStatus(e, func(p *cgroups.PodStatus) (names []string) {
		for _, c := range p.Containers {
			names = append(names, cmp.Or(c.Name, c.ID))
		}
		return names
	})
}

// podContainers are pod/container of registered containers.
func podContainers(e *env) cobra.CompletionFunc {
	return fromStatus(e, func(p *cgroups.PodStatus) (names []string) {
		for _, c := range p.Containers {
			names = append(names, p.Pod+"/"+cmp.Or(c.Name, c.ID))
		}
		return names
	})
}

func fromStatus(e *env, words func(*cgroups.PodStatus) []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		st, err := cgroups.ReadStatus(e.state)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		all := make(map[string]bool)
		for i := range st.Pods {
			for _, word := range words(&st.Pods[i]) {
				all[word] = true
			}
		}
		return slices.Sorted(maps.Keys(all)), cobra.ShellCompDirectiveNoFileComp
	}
}

// policyNames are those of the directory that were not given yet.
func policyNames(e *env) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		good, _, err := loadDir(e)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(good)), func(name string) bool { return slices.Contains(args, name) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
