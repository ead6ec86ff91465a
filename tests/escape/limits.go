// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"sidegate/tests/lab"
)

// limits are what Sidegate does not block where the operator allows it, each beside the same under the default policy.
func limits() []*escape {
	const refusedByDefault = "; under the default (adminCapabilities: deny) such a container does not start"
	return group("limits",
		&escape{name: "privileged", what: "a privileged app with the host's PID namespace enters the host's network namespace, from the root cgroup", pod: mighty, run: privileged,
			limit: "whoever has CAP_SYS_ADMIN on the host is the operator: do not run such apps" + refusedByDefault},
		&escape{name: "privileged-default", what: "the same under the default policy", pod: strict, run: privileged},
		&escape{name: "host-device", what: "a macvlan on a device of the host, through the other end's namespace number", pod: mighty, run: onHostDevice,
			limit: "without a user namespace CAP_NET_ADMIN reaches the host's devices (IFLA_TARGET_NETNSID): take it away, or use --userns=auto" + refusedByDefault},
		&escape{name: "host-device-default", what: "the same under the default policy", pod: strict, run: onHostDevice},
		&escape{name: "nft-rewrite", what: "nftables in the pod sends the sidecar's own packets elsewhere", pod: mighty, run: rewrite,
			limit: "packets of a sidecar without rules may go anywhere, and CAP_NET_ADMIN can change where: write rules for role sidecar, which are " +
				"asked again at the device" + refusedByDefault},
		&escape{name: "nft-rewrite-ruled", what: "the same where the sidecar has rules", pod: ruled, run: rewrite},
		&escape{name: "sniff", what: "AF_PACKET reads what the outside sends to another app of the pod", pod: scratch, run: sniff,
			limit: "taps come before every hook: take CAP_NET_RAW away, which podman does not give by default. Nothing is sent that way"},
		&escape{name: "unload-force", last: true, what: "the operator removes Sidegate under running containers", pod: mighty, run: unloaded,
			limit: "sidegate unload --force says so; it needs root on the host. Without --force it is refused"},
	)
}

// privileged leaves the pod's network namespace for the node's, and its cgroup for the root, where nobody asks.
func privileged(ctx context.Context, st *stage) (try, error) {
	opts := st.options("app")
	opts.HostCgroups, opts.Flags = true, append(opts.Flags, "--privileged", "--pid", "host")
	return st.with(ctx, "mighty", opts, func(c *lab.Container) (try, error) {
		args := []string{"stray", "--how", "move", "--cgroup", lab.HostCgroups, "--", "in", "--netns", lab.NodeNetns()}
		return st.attempt(ctx, c, append(args, st.words(everyWay)...)...)
	})
}

func onHostDevice(ctx context.Context, st *stage) (try, error) {
	opts := st.options("app")
	opts.CapAdd = []string{"NET_ADMIN", "NET_RAW"}
	return st.with(ctx, "mighty", opts, func(c *lab.Container) (try, error) {
		return st.tamperingIn(ctx, c, "escape: through a macvlan on a device of the host")
	})
}

// rewrite turns packets to the web into ones to another server, by nftables in the pod, as an app can that has CAP_NET_ADMIN. What the
// sidecar carries then is not what it was asked for.
func rewrite(ctx context.Context, st *stage) (try, error) {
	opts := st.appOptions()
	opts.User = ""
	// The machine's nft, with its libraries.
	for _, dir := range []string{"/usr/sbin", "/lib", "/lib64", "/usr/lib"} {
		opts.Flags = append(opts.Flags, "--volume", dir+":"+dir+":ro")
	}
	return st.with(ctx, "rewriter", opts, func(c *lab.Container) (try, error) {
		var made error
		for _, command := range []string{
			"add table ip attack",
			"add chain ip attack out { type nat hook output priority -90; }",
			fmt.Sprintf("add rule ip attack out tcp dport %d dnat to %s", lab.HTTPPort, st.lab.Outside.DNS(false)),
		} {
			_, err := c.Exec(ctx, "/usr/sbin/nft", command)
			made = errors.Join(made, err)
		}
		defer func() { _, _ = c.Exec(context.WithoutCancel(ctx), "/usr/sbin/nft", "delete table ip attack") }() // if there is one
		nonce := newNonce()
		r, err := c.Probe(ctx, "tcp", "--to", st.lab.Outside.HTTP(false).String(), "--nonce", nonce, "--timeout", "1s")
		if err != nil {
			return try{}, err
		}
		if err := st.settle(ctx); err != nil {
			return try{}, err
		}
		seen, err := st.lab.Outside.Seen(nonce)
		if err != nil || len(seen) > 0 {
			return openf("arrived at %s, to which nobody sent it", st.lab.Outside.DNS(false)), err
		}
		t := refused(r)
		if made != nil {
			t.said.Errno = "EPERM"
			t.Detail = fmt.Sprintf("%v; then: %s", made, t.Detail)
		}
		return t, nil
	})
}

// sniff reads what the outside sends to the neighbour.
func sniff(ctx context.Context, st *stage) (try, error) {
	nonce := newNonce()
	p, err := st.app.StartProbe(ctx, "sniff", "--nonce", nonce, "--for", "3s")
	if err != nil {
		return try{}, err
	}
	first, err := p.Next()
	if err != nil {
		return try{}, err
	}
	if !first.OK {
		return refused(first), nil
	}
	if _, err := st.lab.Outside.Probe(ctx, "http", "--to", st.podAddr(false, neighbourPort).String(), "--path", "/"+nonce, "--timeout", "1s"); err != nil {
		return try{}, err
	}
	got, err := p.Next()
	if err != nil {
		return try{}, err
	}
	_ = p.Wait() // its exit status says the same
	if got.OK {
		return openf("the attacker read a request to another container"), nil
	}
	return refused(got), nil
}

// unloaded is last of all: it takes Sidegate from under all pods of the world.
func unloaded(ctx context.Context, st *stage) (try, error) {
	if st.sidegate {
		if err := st.uninstall(ctx); err != nil {
			return try{}, err
		}
	}
	return st.attempt(ctx, st.app, "tcp", "--to", st.echo(false))
}
