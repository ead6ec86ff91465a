// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/policy"
)

func newInit(e *env) *cobra.Command {
	var pod, name string
	cmd := &cobra.Command{
		Use:   "init --pod POD",
		Short: "Write a starter policy from what mode audit saw of a pod",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			if pod == "" {
				return usageError{errors.New("init needs --pod: the beginning of its name or id")}
			}
			list, err := seenOf(e.state, pod)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return fmt.Errorf("mode audit has seen nothing of pod %s: give it a policy with `mode: audit`, and let it work", pod)
			}
			text := starter(name, list)
			if _, err := policy.Parse("starter policy", []byte(text)); err != nil {
				return err
			}
			_, err = fmt.Fprint(e.stdout, text)
			return err
		},
	}
	cmd.Flags().StringVar(&pod, "pod", "", "which pod: the beginning of its name or id")
	cmd.Flags().StringVar(&name, "name", "starter", "name of the policy")
	return cmd
}

// flow is a rule to be: who, which way, with whom and by what protocol.
type flow struct {
	role, dir, peer, proto string
}

// need is what a rule has to allow.
type need struct {
	ports map[uint16]uint64 // and how often each was seen
}

// starter writes a policy that allows all that was seen. Both ends of what stays
// in the pod get their rule.
func starter(name string, list []cgroups.Seen) string {
	needs := make(map[flow]*need)
	add := func(f flow, s cgroups.Seen) {
		if needs[f] == nil {
			needs[f] = &need{ports: make(map[uint16]uint64)}
		}
		needs[f].ports[s.Port] += s.Count
	}
	for _, s := range list {
		proto := protocolName(s.Proto)
		if protocols[proto] == 0 || s.Port == 0 && !strings.HasPrefix(proto, "icmp") {
			continue
		}
		switch {
		case s.PeerRole != "":
			from, to := s.Role, s.PeerRole
			if s.Dir == policy.Ingress.String() {
				from, to = to, from
			}
			add(flow{from, policy.Egress.String(), "role: " + to, proto}, s)
			add(flow{to, policy.Ingress.String(), "role: " + from, proto}, s)
		case s.Address.IsValid() && !s.Address.IsLoopback() && !s.Address.IsUnspecified():
			cidr := netip.PrefixFrom(s.Address, s.Address.BitLen())
			add(flow{s.Role, s.Dir, fmt.Sprintf("cidr: %q", cidr), proto}, s)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What mode audit saw. Read it before you enforce it: networks are wider than the addresses that were\n"+
		"# called so far, and what happens once a month is not in it.\n"+
		"apiVersion: %s\nkind: %s\nmetadata: {name: %q}\nspec:\n  mode: audit # or enforce, when `sidegate policy audit` shows nothing that is missed\n",
		policy.APIVersion, policy.Kind, name)
	flows := slices.SortedFunc(maps.Keys(needs), func(a, b flow) int {
		return cmp.Or(cmp.Compare(a.role, b.role), cmp.Compare(a.dir, b.dir), cmp.Compare(a.peer, b.peer), cmp.Compare(a.proto, b.proto))
	})
	if len(flows) > 0 {
		fmt.Fprintln(&b, "  rules:")
	}
	var last flow
	for _, f := range flows {
		if f.role != last.role {
			fmt.Fprintf(&b, "  - role: %s\n", f.role)
			last = flow{}
		}
		if f.dir != last.dir {
			fmt.Fprintf(&b, "    %s:\n", f.dir)
		}
		last = f
		writeRule(&b, f, needs[f])
	}
	return b.String()
}

func writeRule(b *strings.Builder, f flow, n *need) {
	key, what := "to", "ports"
	if f.dir == policy.Ingress.String() {
		key = "from"
	}
	if strings.HasPrefix(f.proto, "icmp") {
		what = "types"
	}
	var count uint64
	var words []string
	for _, p := range slices.Sorted(maps.Keys(n.ports)) {
		words = append(words, strconv.Itoa(int(p)))
		count += n.ports[p]
	}
	fmt.Fprintf(b, "    - %s: [{%s}] # seen %d times\n      protocol: %s\n", key, f.peer, count, f.proto)
	if len(words) <= policy.MaxPorts {
		fmt.Fprintf(b, "      %s: [%s]\n", what, strings.Join(words, ", "))
		return
	}
	fmt.Fprintf(b, "      # all %s: it was called on %d of them\n", what, len(words))
}
