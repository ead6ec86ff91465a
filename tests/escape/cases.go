// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
)

// A runFunc makes one attempt.
type runFunc = func(context.Context, *stage) (try, error)

// escapes lists all cases, by group, in the order in which they are tried.
func escapes() []*escape {
	return slices.Concat(identity(), datagrams(), streams(), packets(), families(), handOver(), sidecars(), rules(), inbound(), times(), limits())
}

// group sets the group of cases, and the pod of those that do not care.
func group(name string, cases ...*escape) []*escape {
	for _, c := range cases {
		c.group = name
		if c.pod == (podKind{}) {
			c.pod = plain
		}
	}
	return cases
}

// app lets the app make an attempt. In its arguments TO stands for the outside's echo server and HOST for its address, POD for the pod's
// address, each with a 6 at its end by IPv6, NONE for a port of the outside that nobody listens on, NODE for the node on the pods' network, and MAC for the hardware address of that.
func app(args ...string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) { return st.attempt(ctx, st.app, st.words(args)...) }
}

func (st *stage) words(args []string) []string {
	words := map[string]string{
		"TO": st.echo(false), "TO6": st.echo(true), "NONE": netip.AddrPortFrom(st.lab.Outside.Addr(false), 9).String(),
		"HOST": st.lab.Outside.Addr(false).String(), "HOST6": st.lab.Outside.Addr(true).String(),
		"POD": st.pod.V4.String(), "POD6": st.pod.V6.String(),
		"NODE": st.node.String(), "MAC": st.gateway,
	}
	out := slices.Clone(args)
	for i, a := range out {
		if w, ok := words[a]; ok {
			out[i] = w
		}
	}
	return out
}
