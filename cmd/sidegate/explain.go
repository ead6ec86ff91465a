// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// errDenied is the answer of explain --exit-code.
var errDenied = errors.New("it is denied")

func newExplain(e *env) *cobra.Command {
	var from, to, file, output string
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "explain --from POD/CONTAINER --to HOST:PORT[/PROTO]",
		Short: "Say whether a connection is allowed, by which rule, or which one is missing",
		Long: "Asks the tables in the kernel that decide. HOST is an address, a host name, or pod/container;\n" +
			"--from may be an address too, for what comes from outside. PROTO is tcp, udp or sctp; for a ping\n" +
			"write HOST/icmp, and HOST/icmp:3 for another type of ICMP message.\n\n" +
			"With --policy a file is asked instead, and containers are role:NAME, or role:NAME,container:NAME.\n" +
			"It does not know which addresses are the node's own: all are entity world.",
		Example: "  sidegate policy explain --from shop/web --to 198.51.100.7:443\n" +
			"  sidegate policy explain --from shop/web --to shop/db:5432 --exit-code\n" +
			"  sidegate policy explain --from shop/web --to 192.0.2.53:53/udp\n" +
			"  sidegate policy explain --policy mesh.yaml --from role:app --to 198.51.100.7:443",
		Args: cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if from == "" || to == "" {
				return cli.Usage(errors.New("explain needs --from and --to"))
			}
			if err := checkOutput(output); err != nil {
				return err
			}
			t, err := parseTo(to)
			if err != nil {
				return cli.Usage(err)
			}
			list, err := explain(e, file, from, t)
			if err != nil {
				return err
			}
			if err := printExplanations(e.stdout, output, list); err != nil {
				return err
			}
			if exitCode && slices.ContainsFunc(list, func(x cgroups.Explanation) bool { return !x.Allow }) {
				return errDenied
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`who` calls: pod/container, or an address")
	cmd.Flags().StringVar(&to, "to", "", "`who` is called: host:port[/tcp|udp|sctp], host/icmp[:type] or pod/container:port")
	cmd.Flags().StringVar(&file, "policy", "", "ask this `file` instead of the kernel")
	addOutput(cmd, &output)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit 1 if it is denied")
	completeFlag(cmd, "from", podContainers(e))
	completeFlag(cmd, "to", podContainers(e))
	completeFlag(cmd, "policy", policyFiles)
	return cmd
}

var protocols = map[string]uint8{
	"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP, "icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6,
}

func isICMP[N uint8 | uint16](proto N) bool {
	return proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6
}

// Types of an echo request: RFC 792, RFC 4443.
const (
	echoRequest   = 8
	echoRequestV6 = 128
)

// destination is what --to says.
type destination struct {
	host   string
	proto  uint8
	port   uint16
	noType bool // ICMP: none was said, a ping is meant
}

// parseTo reads host:port[/proto] and host/icmp[:type].
func parseTo(s string) (d destination, err error) {
	rest, name := s, "tcp"
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		word, number, hasType := strings.Cut(s[i+1:], ":")
		proto, known := protocols[word]
		if known && isICMP(proto) {
			d = destination{host: unbracketed(s[:i]), proto: proto, noType: !hasType}
			return d, d.parseType(s, number)
		}
		if known && !hasType {
			rest, name = s[:i], word
		}
	}
	d.proto = protocols[name]
	i := strings.LastIndexByte(rest, ':')
	if i <= 0 || strings.HasSuffix(rest[:i], ":") || strings.Count(rest, ":") > 1 && !strings.HasPrefix(rest, "[") && !isEndpoint(rest) {
		return d, fmt.Errorf("--to %q is not host:port: write for example 192.0.2.1:443, [2001:db8::1]:443/udp or pod/container:8080", s)
	}
	d.host = unbracketed(rest[:i])
	n, err := strconv.ParseUint(rest[i+1:], 10, 16)
	if err != nil || n == 0 {
		return d, fmt.Errorf("--to %q has no port: write 1 to 65535", s)
	}
	d.port = uint16(n)
	return d, nil
}

// unbracketed is an address without what sets it off from a port.
func unbracketed(host string) string {
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

func (d *destination) parseType(s, number string) error {
	if d.host == "" {
		return fmt.Errorf("--to %q has no host: write for example 192.0.2.1/icmp", s)
	}
	d.port = echoRequest
	if d.proto == unix.IPPROTO_ICMPV6 {
		d.port = echoRequestV6
	}
	if d.noType {
		return nil
	}
	n, err := strconv.ParseUint(number, 10, 8)
	if err != nil {
		return fmt.Errorf("--to %q has no type of ICMP messages: write 0 to 255", s)
	}
	d.port = uint16(n)
	return nil
}

// of is the destination at one of its addresses: icmp is ICMPv6 for IPv6.
func (d destination) of(a netip.Addr) destination {
	if d.proto == unix.IPPROTO_ICMP && a.Is6() && !a.Is4In6() {
		d.proto = unix.IPPROTO_ICMPV6
		if d.noType {
			d.port = echoRequestV6
		}
	}
	return d
}

// explain asks about each address that the destination's host has: a policy of a
// file, or the kernel if file is "".
func explain(e *env, file, from string, to destination) ([]cgroups.Explanation, error) {
	ask := func(from, host string, to destination) ([]cgroups.Explanation, error) {
		x, err := cgroups.Explain(e.state, targetOf(from), targetOf(host), to.proto, to.port)
		return []cgroups.Explanation{x}, err
	}
	if file != "" {
		list, err := readFiles(e, []string{file})
		if err != nil {
			return nil, err
		}
		ask = func(from, host string, to destination) ([]cgroups.Explanation, error) {
			return explainFile(list, from, host, to)
		}
	}
	addrs, resolveErr := resolve(to.host)
	if len(addrs) == 0 {
		list, err := ask(from, to.host, to)
		if err != nil {
			return nil, errors.Join(err, resolveErr)
		}
		return list, nil
	}
	var list []cgroups.Explanation
	for _, a := range addrs {
		some, err := ask(from, a.String(), to.of(a))
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	return list, nil
}

// resolve returns the addresses that host stands for. It has none if it is a
// container.
func resolve(host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if strings.Contains(host, "/") || isEndpoint(host) {
		return nil, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", host)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	return addrs, err
}

func targetOf(s string) cgroups.Target {
	if a, err := netip.ParseAddr(s); err == nil {
		return cgroups.Target{Addr: a}
	}
	return cgroups.Target{Container: s}
}

// isEndpoint tells whether s names a container as a policy does.
func isEndpoint(s string) bool {
	return strings.HasPrefix(s, "role:") || strings.HasPrefix(s, "container:")
}

// parseEnd reads role:NAME, role:NAME,container:NAME or an address.
func parseEnd(s string) (end policy.End, at policy.Endpoint, err error) {
	if !isEndpoint(s) {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			return end, at, fmt.Errorf("%q is neither an address nor a container that a file can know: write role:app, or role:app,container:web", s)
		case a.Unmap().IsLoopback(), a.IsUnspecified():
			return end, at, fmt.Errorf("%s is inside the pod, where a file cannot know who listens: write role:sidecar instead", a)
		}
		return policy.Outside(a), at, nil
	}
	for word := range strings.SplitSeq(s, ",") {
		key, value, _ := strings.Cut(word, ":")
		switch {
		case key == "role" && at.Role == policy.RoleUnset:
			if at.Role, err = policy.ParseRole(value); err != nil {
				return end, at, err
			}
		case key == "container" && at.Name == "" && value != "":
			at.Name = value
		default:
			return end, at, fmt.Errorf("%q is not one container: write role:app, or role:app,container:web", s)
		}
	}
	return policy.Inside(at), at, nil
}

// explainFile asks each policy of a file what the kernel would do by it.
func explainFile(list []source, from, host string, to destination) (all []cgroups.Explanation, err error) {
	q := policy.Query{Proto: to.proto, Port: to.port}
	var a, b policy.Endpoint
	if q.From, a, err = parseEnd(from); err != nil {
		return nil, cli.Usage(fmt.Errorf("--from %w", err))
	}
	if q.To, b, err = parseEnd(host); err != nil {
		return nil, cli.Usage(fmt.Errorf("--to %w", err))
	}
	if a == (policy.Endpoint{}) && b == a {
		return nil, cli.Usage(errors.New("neither end is a container: write one as role:app"))
	}
	q.Same = a == b && a.Name != ""
	for _, s := range list {
		x := cgroups.Explanation{
			Decision: policy.Decide(policy.NewTables(s.compiled, nil), q),
			Policy:   s.compiled.Name, From: q.From.String(), To: q.To.String(),
		}
		for _, n := range []uint16{x.Rule, x.PeerRule} {
			if n > 0 {
				x.Rules = append(x.Rules, s.compiled.Rules[n-1])
			}
		}
		all = append(all, x)
	}
	return all, nil
}

func printExplanations(w io.Writer, output string, list []cgroups.Explanation) error {
	if output == "json" {
		return printJSON(w, list)
	}
	for _, x := range list {
		if err := printExplanation(w, x); err != nil {
			return err
		}
	}
	return nil
}

var routeWords = map[policy.Route]string{
	policy.RouteRelayed: "redirected to the TLS relay, and by it to the sidecar's outbound port",
	policy.RouteDirect:  "direct", policy.RouteRedirect: "redirected to the sidecar's outbound port", policy.RouteDNS: "redirected to the sidecar's DNS port",
	policy.RouteLocal: "inside the pod", policy.RouteSteered: "steered to the sidecar's inbound port, whose rules then apply",
}

func printExplanation(w io.Writer, x cgroups.Explanation) error {
	verdict := "DENY"
	switch {
	case x.Audit:
		verdict = "ALLOW (audit: would be denied)"
	case x.Allow:
		verdict = "ALLOW"
	}
	where := "policy " + x.Policy
	if x.Pod != "" {
		where = fmt.Sprintf("pod %s, policy %s, revision %d", short(x.Pod), x.Policy, x.Revision)
	}
	fmt.Fprintf(w, "%s  %s -> %s  (%s)\n", verdict, x.From, x.To, where)
	if text := routeWords[x.Route]; text != "" {
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
