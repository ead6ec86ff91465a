// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

func newAudit(e *env) *cobra.Command {
	var pod, output string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show what mode audit has seen, and what would have been denied",
		Long: "List what pods under a policy of mode audit did, how often, and what their policy would have refused if it were enforced.\n" +
			"The kernel keeps the newest of it: what is rare may be gone when much else has come.",
		Example: "  sidegate policy audit --pod shop\n  sidegate policy audit -o json",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			list, err := seenOf(e.state, pod)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(e.stdout, list)
			}
			return printSeen(e.stdout, list)
		},
	}
	cmd.Flags().StringVar(&pod, "pod", "", "of this `pod` only: its name or id, or the beginning")
	addOutput(cmd, &output)
	completeFlag(cmd, "pod", podNames(e))
	return cmd
}

// seenOf is what mode audit saw in the pods that name stands for.
func seenOf(state, pod string) ([]cgroups.Seen, error) {
	list, err := cgroups.ReadSeen(state)
	exact := slices.ContainsFunc(list, func(s cgroups.Seen) bool { return s.Pod == pod })
	other := func(s cgroups.Seen) bool { return !isPod(s.Pod, pod, exact) }
	return append([]cgroups.Seen{}, slices.DeleteFunc(list, other)...), err
}

// isPod tells whether name stands for a pod: by the beginning, unless some pod has
// that very name.
func isPod(pod, name string, exact bool) bool {
	if exact {
		return pod == name
	}
	return strings.HasPrefix(pod, name)
}

func printSeen(w io.Writer, list []cgroups.Seen) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POD\tCONTAINER\tDIR\tPEER\tPROTO\tPORT\tREASON\tCOUNT")
	for _, s := range list {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\n", cmp.Or(short(s.Pod), "-"), short(s.Container), s.Dir,
			peerOf(s), protocolOf(s), s.Port, cmp.Or(s.Reason, "-"), s.Count)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	missing := mergeMissing(list)
	if missing == "" {
		return nil
	}
	_, err := fmt.Fprintf(w, "\nBelow spec.rules, these would allow what is denied and can be allowed:\n  %s\n",
		strings.ReplaceAll(strings.TrimSpace(missing), "\n", "\n  "))
	return err
}

// mergeMissing puts the missing rules together as a policy has them: one item for
// each subject. Each rule names its subject, then its direction, or that it is about
// UNIX sockets.
func mergeMissing(list []cgroups.Seen) string {
	subjects := make(map[string]map[string][]string)
	for _, s := range list {
		subject, rest, _ := strings.Cut(s.Missing, "\n")
		dir, rule, ok := strings.Cut(rest, "\n")
		if !ok {
			continue
		}
		dir, rule = beforeList(dir, rule)
		if subjects[subject] == nil {
			subjects[subject] = make(map[string][]string)
		}
		subjects[subject][dir] = append(subjects[subject][dir], rule)
	}
	var b strings.Builder
	for _, subject := range slices.Sorted(maps.Keys(subjects)) {
		fmt.Fprintln(&b, subject)
		for _, dir := range slices.Sorted(maps.Keys(subjects[subject])) {
			fmt.Fprintln(&b, dir)
			rules := slices.Compact(slices.Sorted(slices.Values(subjects[subject][dir])))
			b.WriteString(strings.Join(rules, ""))
		}
	}
	return b.String()
}

// beforeList moves "allow:", which all rules about UNIX sockets are below, to what
// is written once.
func beforeList(dir, rule string) (string, string) {
	const allow = "    allow:\n"
	if rest, ok := strings.CutPrefix(rule, allow); ok {
		return dir + "\n" + strings.TrimSuffix(allow, "\n"), rest
	}
	return dir, rule
}

func peerOf(s cgroups.Seen) string {
	switch {
	case isUnix(s) && s.Peer != "":
		return fmt.Sprintf("%s of %s", cmp.Or(s.Unix, "unnamed"), short(s.Peer))
	case isUnix(s):
		return cmp.Or(s.Unix, "unnamed")
	case s.Peer != "":
		return short(s.Peer)
	case s.Address.IsValid():
		return s.Address.String()
	}
	return "-"
}

func isUnix(s cgroups.Seen) bool { return s.Type != "" }

// protocolOf is a record's protocol, of UNIX sockets their type.
func protocolOf(s cgroups.Seen) string {
	if isUnix(s) {
		return "unix " + s.Type
	}
	return cgroups.ProtocolName(s.Proto)
}
