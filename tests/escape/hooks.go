// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sidegate/cgroups"
)

// counts are what Sidegate has counted, by the names of its counters, over all pods and containers.
type counts map[string]uint64

// counters asks the operator's command.
func (w *world) counters(ctx context.Context) (counts, error) {
	all := counts{}
	if !w.sidegate {
		return all, nil
	}
	out, err := w.command(ctx, "status", "--output", "json")
	if err != nil {
		return nil, err
	}
	var st cgroups.Status
	if err := json.Unmarshal(out, &st); err != nil {
		return nil, fmt.Errorf("sidegate status: %w", err)
	}
	add := func(each ...map[string]uint64) {
		for _, m := range each {
			for name, n := range m {
				all[name] += n
			}
		}
	}
	for _, p := range st.Pods {
		add(p.Counters, p.Drops)
		for _, c := range p.Containers {
			add(c.Counters, c.Drops)
		}
	}
	return all, nil
}

// until returns what was counted between two answers.
func (c counts) until(later counts) counts {
	d := counts{}
	for name, n := range later {
		if n > c[name] {
			d[name] = n - c[name]
		}
	}
	return d
}

// reasons says which hooks count a reason. % stands for the system call's own hook, with the family.
var reasons = map[string]string{
	"redirected":     "cgroup/connect%",
	"dns_redirected": "cgroup/%",
	"steered":        "sk_lookup",
	"unregistered":   "guard on the root cgroup, cgroup/%",
	"udp":            "cgroup/%",
	"icmp":           "cgroup/sock_create",
	"raw_socket":     "cgroup/sock_create",
	"protocol":       "cgroup/sock_create",
	"bind_reserved":  "cgroup/bind%",
	"egress":         "cgroup_skb/egress",
	"ingress":        "cgroup_skb/ingress",
	"fragment":       "cgroup_skb",
	"malformed":      "cgroup_skb",
	"device":         "tcx/egress of the pod's device",
	"packet_socket":  "tcx/egress of the pod's device",
	"no_listener":    "sk_lookup",
	"outbound_port":  "sk_lookup",
	"origdst_full":   "sock_ops",
	"no_memory":      "cgroup/sock_create",
	"init":           "cgroup/sock_create",
	"spoofed":        "tcx/ingress of lo",
	"bypass":         "tcx/ingress of the veth's end on the host",
	"policy_egress":  "cgroup/%",
	"policy_ingress": "cgroup/%",
	"process":        "cgroup/sock_create",
	"stranger":       "cgroup/sock_create",
	"unix":           "cgroup/connect_unix, or lsm/unix_stream_connect",
}

// hooks names the hooks that counted something, each with its reason, and by what the attacker was told. Counters that do not say that
// anything was refused or sent elsewhere are none of them.
func (c counts) hooks(t *try) []string {
	family := "4"
	if t.v6 {
		family = "6"
	}
	call := "cgroup_skb"
	for prefix, hook := range map[string]string{
		"socket": "sock_create", "connect": "connect" + family, "sendto": "sendmsg" + family, "sendmsg": "sendmsg" + family,
		"sendmmsg": "sendmsg" + family, "io_uring connect": "connect" + family, "bind": "bind" + family,
	} {
		if strings.HasPrefix(t.said.Err, prefix+":") || strings.HasPrefix(t.said.Err, prefix+" ") {
			call = hook
		}
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		hook, ok := reasons[name]
		if !ok || name == "redirected" && !strings.Contains(t.Detail, throughSidecar) && len(c) > 1 {
			continue
		}
		switch {
		case hook == "cgroup/%" && call == "cgroup_skb":
			hook = call
		case call == "cgroup_skb" && strings.HasSuffix(hook, ", cgroup/%"): // the guard has none of that
			hook = strings.TrimSuffix(hook, ", cgroup/%")
		case strings.HasSuffix(hook, "/%"):
			hook = strings.TrimSuffix(hook, "%") + call
		default:
			hook = strings.ReplaceAll(hook, "%", family)
		}
		list = append(list, fmt.Sprintf("%s: %s", hook, name))
	}
	// The guard comes after the container's own programs, and counts what they refused as well.
	if own := slices.DeleteFunc(slices.Clone(list), func(s string) bool { return strings.HasPrefix(s, "guard") }); len(own) > 0 {
		list = own
	}
	// What a container counted that has gone since is gone too.
	if len(list) == 0 && strings.Contains(t.Detail, throughSidecar) {
		list = append(list, "cgroup/connect"+family+": redirected")
	}
	if strings.Contains(t.Detail, notStarted) {
		list = append(list, "OCI hook at createRuntime")
	}
	if len(list) == 0 && t.said.Errno != "" {
		// No counter moved: the kernel's own answer, such as for want of a capability.
		list = append(list, "the kernel: "+t.said.Errno)
	}
	return list
}
