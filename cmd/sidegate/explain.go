// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/policy"
)

// errDenied is the answer of explain --exit-code.
var errDenied = errors.New("it is denied")

func newExplain(e *env) *cobra.Command {
	var from, to, output string
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "explain --from POD/CONTAINER --to HOST:PORT[/PROTO]",
		Short: "Say whether a connection is allowed, by which rule, or which one is missing",
		Long: "Asks the tables in the kernel that decide. HOST is an address, a host name, or pod/container;\n" +
			"--from may be an address too, for what comes from outside. PROTO is tcp, udp or sctp; for a ping write HOST/icmp.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if from == "" || to == "" {
				return usageError{errors.New("explain needs --from and --to")}
			}
			if !slices.Contains(outputs, output) {
				return usageError{fmt.Errorf("unknown output %q: write %s", output, strings.Join(outputs, " or "))}
			}
			host, port, proto, err := parseTo(to)
			if err != nil {
				return usageError{err}
			}
			list, err := explain(e.state, from, host, proto, port)
			if err != nil {
				return err
			}
			denied := false
			for _, x := range list {
				denied = denied || !x.Allow
				if output == "json" {
					err = json.NewEncoder(e.stdout).Encode(x)
				} else {
					err = printExplanation(e.stdout, x)
				}
				if err != nil {
					return err
				}
			}
			if denied && exitCode {
				return errDenied
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "who calls: pod/container, or an address")
	cmd.Flags().StringVar(&to, "to", "", "who is called: host:port[/tcp|udp|sctp], host/icmp or pod/container:port")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit 1 if it is denied")
	return cmd
}

var protocols = map[string]uint8{
	"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP, "icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6,
}

// Types of an echo request: RFC 792, RFC 4443.
const (
	echoRequest   = 8
	echoRequestV6 = 128
)

// parseTo reads host:port[/proto], host/icmp.
func parseTo(s string) (host string, port uint16, proto uint8, err error) {
	rest, name := s, "tcp"
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		if _, known := protocols[s[i+1:]]; known {
			rest, name = s[:i], s[i+1:]
		}
	}
	proto = protocols[name]
	switch name {
	case "icmp":
		return rest, echoRequest, proto, nil
	case "icmpv6":
		return rest, echoRequestV6, proto, nil
	}
	host, text, err := net.SplitHostPort(rest)
	if err != nil {
		return "", 0, 0, fmt.Errorf("--to %q is not host:port: write for example 192.0.2.1:443, [2001:db8::1]:443/udp or pod/container:8080", s)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, 0, fmt.Errorf("--to %q has no port: write 1 to 65535", s)
	}
	return host, uint16(n), proto, nil
}

// explain asks about each address that host has.
func explain(state, from, host string, proto uint8, port uint16) ([]cgroups.Explanation, error) {
	source := targetOf(from)
	targets := []cgroups.Target{targetOf(host)}
	if !strings.Contains(host, "/") && targets[0].Container != "" {
		addrs, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", host)
		if err == nil {
			targets = nil
		}
		for _, a := range addrs {
			targets = append(targets, cgroups.Target{Addr: a.Unmap()})
		}
	}
	var list []cgroups.Explanation
	for _, t := range targets {
		x, err := cgroups.Explain(state, source, t, proto, port)
		if err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	return list, nil
}

func targetOf(s string) cgroups.Target {
	if a, err := netip.ParseAddr(s); err == nil {
		return cgroups.Target{Addr: a}
	}
	return cgroups.Target{Container: s}
}

func printExplanation(w io.Writer, x cgroups.Explanation) error {
	verdict := "DENY"
	switch {
	case x.Audit:
		verdict = "ALLOW (mode audit: would be denied)"
	case x.Allow:
		verdict = "ALLOW"
	}
	fmt.Fprintf(w, "%s  %s -> %s  (pod %s, policy %s, revision %d)\n", verdict, x.From, x.To, short(x.Pod), x.Policy, x.Revision)
	routes := map[policy.Route]string{
		policy.RouteDirect: "direct", policy.RouteRedirect: "redirected to the sidecar's outbound port", policy.RouteDNS: "redirected to the sidecar's DNS port",
		policy.RouteLocal: "inside the pod", policy.RouteSteered: "steered to the sidecar's inbound port, whose rules then apply",
	}
	if text := routes[x.Route]; text != "" {
		fmt.Fprintf(w, "  way: %s\n", text)
	}
	if x.Nobody {
		fmt.Fprintln(w, "  nobody listens there: it would be refused")
	}
	for _, r := range x.Rules {
		fmt.Fprintf(w, "  rule: %s: %s\n", r.Path, r.Text)
	}
	if x.Reason != "" {
		fmt.Fprintf(w, "  reason: %s: %s\n", x.Reason, cgroups.ReasonText(x.Reason))
	}
	if x.Missing != "" {
		fmt.Fprintf(w, "  below spec.rules, this would allow it:\n    %s\n", strings.ReplaceAll(strings.TrimSpace(x.Missing), "\n", "\n    "))
	}
	return nil
}

func newAudit(e *env) *cobra.Command {
	var pod, output string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show what mode audit has seen, and what would have been denied",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if !slices.Contains(outputs, output) {
				return usageError{fmt.Errorf("unknown output %q: write %s", output, strings.Join(outputs, " or "))}
			}
			list, err := seenOf(e.state, pod)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(e.stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			}
			t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "POD\tCONTAINER\tROLE\tDIRECTION\tPEER\tPROTOCOL\tPORT\tCOUNT\tWOULD BE DENIED")
			for _, s := range list {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", short(s.Pod), short(s.Container), s.Role, s.Dir,
					peerOf(s), protocolName(s.Proto), s.Port, s.Count, cmp.Or(s.Reason, "-"))
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVar(&pod, "pod", "", "of this pod only: the beginning of its name or id")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// seenOf is what mode audit saw in the pods whose name begins so.
func seenOf(state, pod string) ([]cgroups.Seen, error) {
	list, err := cgroups.ReadSeen(state)
	return slices.DeleteFunc(list, func(s cgroups.Seen) bool { return !strings.HasPrefix(s.Pod, pod) }), err
}

func peerOf(s cgroups.Seen) string {
	switch {
	case s.Peer != "":
		return short(s.Peer)
	case s.Address.IsValid():
		return s.Address.String()
	}
	return "-"
}

func protocolName(n uint8) string {
	for name, number := range protocols {
		if number == n {
			return name
		}
	}
	return strconv.Itoa(int(n))
}
