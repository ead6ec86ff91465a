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

func newStatus(e *env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show pods, containers, roles, policies, attached hooks and counters",
		Long: "List what is in the kernel: pods with their policy and ports, containers with their role, hooks that are attached or missing, counters,\n" +
			"and drops by reason. What has ended is forgotten first.",
		Example: "  sidegate status\n  sidegate status -o json | jq '.pods[].containers[] | select(.missingHooks)'",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			st, err := cgroups.ReadStatus(e.state)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(e.stdout, st)
			}
			return printStatus(e.stdout, st)
		},
	}
	addOutput(cmd, &output)
	return cmd
}

// idLen is how much of an id people are shown, as podman and docker do.
const idLen = 12

func short(id string) string {
	if len(id) > idLen {
		return id[:idLen]
	}
	return id
}

func printStatus(w io.Writer, st cgroups.Status) error {
	if !st.Loaded {
		_, err := fmt.Fprintln(w, "Not loaded: no container has been attached since boot.")
		return err
	}
	fmt.Fprintf(w, "Loaded (ABI %d, %s), guard on the root cgroup: %d programs, pods: %d\n",
		st.ABI, st.State, len(st.Guard), len(st.Pods))
	for _, p := range st.Pods {
		if err := printPod(w, p); err != nil {
			return err
		}
	}
	return nil
}

func printPod(w io.Writer, p cgroups.PodStatus) error {
	listening := "listening"
	if !p.Listening {
		listening = "NOT LISTENING: connections are refused"
	}
	var addrs []string
	for _, a := range p.Addresses {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			addrs = append(addrs, a.String())
		}
	}
	fmt.Fprintf(w, "\nPod %s  policy %s  mode %s  revision %d  addresses %s\n", short(p.Pod), p.Policy, p.Mode, p.Revision, cmp.Or(strings.Join(addrs, " "), "none"))
	if p.Policy == cgroups.RefusedPolicy {
		fmt.Fprintln(w, "  CLOSED: a container in it asked to be registered and was refused: the driver's log says why; start all in it again")
	}
	fmt.Fprintf(w, "  sidecar: outbound %d, inbound %d, %s; not TCP: %s\n", p.Outbound, p.Inbound, dns(p), p.NonTCP)
	fmt.Fprintf(w, "  %s; namespace hooks: %s\n", listening, strings.Join(p.Hooks, " "))
	if p.TLS != 0 {
		relay := "listening"
		if !p.Relayed {
			relay = "NOT LISTENING: connections are refused; start sidegate-tls"
		}
		fmt.Fprintf(w, "  TLS relay: port %d, %s\n", p.TLS, relay)
	}
	fmt.Fprintf(w, "  counters: %s; drops: %s\n", counts(p.Counters), counts(p.Drops))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  CONTAINER\tNAME\tROLE\tRUNTIME\tHOOKS\tCOUNTERS\tDROPS")
	for _, c := range p.Containers {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", short(c.ID), cmp.Or(c.Name, "-"), strings.Join(rights(c), ","), c.Runtime,
			hooks(c), counts(c.Counters), counts(c.Drops))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range p.Containers {
		fmt.Fprintf(w, "  %s: %s\n", cmp.Or(c.Name, short(c.ID)), acceleration(c.Acceleration))
	}
	return nil
}

// acceleration is a line about the connections of a container.
func acceleration(a cgroups.AccelerationStatus) string {
	if a.Off != "" && a.Connections == 0 {
		return "not accelerated: " + a.Off
	}
	line := fmt.Sprintf("accelerated: %d connections, %d messages, %d bytes; through TCP: %s", a.Connections, a.Messages, a.Bytes, counts(a.Plain))
	if a.Off != "" {
		line += "; no more: " + a.Off
	}
	return line
}

func dns(p cgroups.PodStatus) string {
	if p.DNS == 0 {
		return "dns off"
	}
	return fmt.Sprintf("dns %d", p.DNS)
}

func hooks(c cgroups.ContainerStatus) string {
	if len(c.Missing) > 0 {
		return "MISSING " + strings.Join(c.Missing, ",")
	}
	return fmt.Sprint(len(c.Hooks))
}

// counts prints counters sorted by name.
func counts(m map[string]uint64) string {
	var s []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s = append(s, fmt.Sprintf("%s=%d", k, m[k]))
	}
	return cmp.Or(strings.Join(s, " "), "-")
}

// rights are a container's role, and what it has besides by which it could get out of
// its policy.
func rights(c cgroups.ContainerStatus) []string {
	list := append([]string{c.Role}, c.Capabilities...)
	if c.InheritedSockets > 0 {
		list = append(list, fmt.Sprintf("inherited sockets: %d", c.InheritedSockets))
	}
	return list
}
