// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/policy"
)

// errDiffers is the exit status of diff(1).
var errDiffers = errors.New("what is in force differs")

func newDiff(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "diff [FILE...|-]",
		Short: "Show what applying policies would change in force; exit 1 if anything",
		Long: "Compare files, or the policy directory, with what is in force: - is in force, + would be.\n" +
			"Policies that no pod is under are not compared: there is nothing to change.",
		Example:           "  sidegate policy diff mesh.yaml && echo nothing to do",
		ValidArgsFunction: policyFiles,
		RunE: func(_ *cobra.Command, args []string) error {
			policies, broken, err := policiesOf(e, args)
			if err != nil {
				return err
			}
			kernel, err := kernelPolicies(e)
			if err != nil {
				return err
			}
			errs := []error{diffAll(e, policies, kernel, len(args) > 0)}
			for _, file := range slices.Sorted(maps.Keys(broken)) {
				errs = append(errs, broken[file])
			}
			return errors.Join(errs...)
		},
	}
}

// policiesOf are those of some files, or of the directory, by name.
func policiesOf(e *env, files []string) (policies map[string]*policy.PodPolicy, broken map[string]error, err error) {
	if len(files) == 0 {
		return loadEffective(e)
	}
	list, err := readFiles(e, files)
	if err := errors.Join(err, sameNames(list)); err != nil {
		return nil, nil, err
	}
	policies = make(map[string]*policy.PodPolicy, len(list))
	for _, s := range list {
		policies[s.compiled.Name] = s.PodPolicy
	}
	return policies, nil, nil
}

// diffAll compares each policy that pods are under. asked says that somebody wants
// to know of the others too.
func diffAll(e *env, policies map[string]*policy.PodPolicy, kernel map[string]cgroups.PolicyStatus, asked bool) error {
	changed := false
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		k, used := kernel[name]
		if !used {
			if asked {
				fmt.Fprintf(e.stderr, "policy %s: no pod is under it\n", name)
			}
			continue
		}
		one, err := diffPolicy(e.stdout, policies[name], k)
		if err != nil {
			return err
		}
		changed = changed || one
	}
	if changed {
		return errDiffers
	}
	return nil
}

func diffPolicy(w io.Writer, p *policy.PodPolicy, k cgroups.PolicyStatus) (bool, error) {
	c, err := p.Compile()
	if err != nil {
		return false, err
	}
	changed, err := cgroups.Differs(c, k)
	if err != nil || !changed {
		return false, err
	}
	removed, added := lineDiff(k.Lines(), cgroups.PolicyLines(c))
	fmt.Fprintf(w, "--- policy %s in force (revision %d)\n+++ %s\n", k.Name, k.Revision, p.Source())
	for _, line := range removed {
		fmt.Fprintln(w, "-"+line)
	}
	for _, line := range added {
		fmt.Fprintln(w, "+"+line)
	}
	if len(removed)+len(added) == 0 {
		fmt.Fprintln(w, " what differs has no line: the order of rules, a role or container without any, processes, or getsockname")
	}
	return true, nil
}

// lineDiff returns the lines that only one side has. Where in the policy a rule
// stands is no difference.
func lineDiff(before, after []string) (removed, added []string) {
	have := make(map[string]int)
	for _, line := range after {
		have[ruleText(line)]++
	}
	for _, line := range before {
		if text := ruleText(line); have[text] > 0 {
			have[text]--
		} else {
			removed = append(removed, line)
		}
	}
	// What is left of have was not there before: its last ones, as they are read.
	for _, line := range slices.Backward(after) {
		if text := ruleText(line); have[text] > 0 {
			have[text]--
			added = append(added, line)
		}
	}
	slices.Reverse(added)
	return removed, added
}

// ruleText is a rule's line without its path.
func ruleText(line string) string {
	path, text, isRule := strings.Cut(line, ": ")
	if !isRule || !strings.HasPrefix(path, "spec.") {
		return line
	}
	return text
}
