// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"sidegate/tests/lab"
)

// waitLimit is how long anything that will come may take.
const waitLimit = 5 * time.Second

// inbound is what an app listens on, and whether the outside gets there.
func inbound() []*escape {
	const port = 9090
	listen := func(name, what string, on func(*stage) netip.AddrPort, flags ...string) *escape {
		return &escape{name: name, what: what, run: func(ctx context.Context, st *stage) (try, error) {
			return st.listen(ctx, on(st), netip.Addr{}, "tcp", flags...)
		}}
	}
	fixed := func(addr string) func(*stage) netip.AddrPort {
		return func(*stage) netip.AddrPort { return netip.MustParseAddrPort(addr) }
	}
	pod := func(v6 bool) func(*stage) netip.AddrPort {
		return func(st *stage) netip.AddrPort { return st.podAddr(v6, port) }
	}
	return group("inbound",
		listen("listen-any", "the app listens on 0.0.0.0", fixed("0.0.0.0:9090")),
		listen("listen-any-v6", "on ::", fixed("[::]:9090")),
		listen("listen-pod", "on the pod's address, where the sidecar does not forward to", pod(false)),
		listen("listen-pod-v6", "the same by IPv6", pod(true)),
		listen("listen-reuseport", "with SO_REUSEPORT", pod(false), "--reuseport"),
		listen("listen-transparent", "with IP_TRANSPARENT", pod(false), "--bind-any", "transparent"),
		listen("listen-freebind", "with IP_FREEBIND", pod(false), "--bind-any", "freebind"),
		listen("listen-ephemeral", "on a port that the kernel chooses", func(st *stage) netip.AddrPort { return st.podAddr(false, 0) }),
		listen("listen-status", "on the port of the sidecar's status, which the mesh's rules leave alone", fixed("0.0.0.0:15020")),
		listen("listen-tunnel", "on the port of the mesh's tunnels, which they leave alone too", fixed("0.0.0.0:15008")),
		&escape{name: "listen-secondary", what: "on a second address that the app gives the pod's device", pod: scratch, run: func(ctx context.Context, st *stage) (try, error) {
			addr := lab.PodsV4.Addr()
			for range 200 {
				addr = addr.Next()
			}
			if r, err := st.app.Probe(ctx, "address", "--add", addr.String()+"/24", "--dev", "eth0"); err != nil || !r.OK {
				return refused(r), err
			}
			return st.listen(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), port), addr, "tcp")
		}},
		&escape{name: "listen-udp", what: "UDP", run: func(ctx context.Context, st *stage) (try, error) {
			return st.listen(ctx, st.podAddr(false, port), netip.Addr{}, "udp", "--udp")
		}},
		&escape{name: "listen-udp-v6", what: "UDP by IPv6", run: func(ctx context.Context, st *stage) (try, error) {
			return st.listen(ctx, st.podAddr(true, port), netip.Addr{}, "udp", "--udp")
		}},
		&escape{name: "half-open", what: "a handshake that began before a policy change", pod: scratch, run: halfOpen(false)},
		&escape{name: "accepted-before", what: "a connection from before a policy change", pod: scratch, run: halfOpen(true)},
	)
}

// listen lets the app listen, and the outside send to that port of addr, or of where it listens, or of the pod. Only what the listener
// heard counts, and from whom.
func (st *stage) listen(ctx context.Context, on netip.AddrPort, addr netip.Addr, command string, flags ...string) (try, error) {
	p, err := st.app.StartProbe(ctx, append([]string{"listen", "--on", on.String(), "--accept", "1", "--timeout", "1500ms"}, flags...)...)
	if err != nil {
		return try{}, err
	}
	if !addr.IsValid() {
		if addr = on.Addr(); addr.IsUnspecified() {
			addr = st.pod.Addr(addr.Is6())
		}
	}
	return st.heard(ctx, p, command, netip.AddrPortFrom(addr, on.Port()).String(), newNonce())
}

// heard lets the outside send to a listener that is about to say that it listens, and asks it what came.
func (st *stage) heard(ctx context.Context, p *lab.Probing, command, to, nonce string) (try, error) {
	first, err := p.Next()
	if err != nil {
		return try{}, err
	}
	if !first.OK {
		return refused(first), nil
	}
	target, err := netip.ParseAddrPort(to)
	if err != nil {
		return try{}, err
	}
	if target.Port() == 0 {
		target = netip.AddrPortFrom(target.Addr(), first.Addr("listening").Port())
	}
	sent, err := st.lab.Outside.Probe(ctx, command, "--to", target.String(), "--nonce", nonce, "--timeout", "700ms")
	if err != nil {
		return try{}, err
	}
	got, err := p.Next()
	if err != nil {
		return try{}, err
	}
	_ = p.Wait() // its exit status says the same
	t := refused(sent)
	peer := got.Addr("peer")
	switch {
	case !got.OK:
		t.Detail = fmt.Sprintf("the app heard nothing, the outside: %s", t.Detail)
	case peer.Addr().IsLoopback():
		t.Detail = fmt.Sprintf("%s: the app heard %s", throughSidecar, peer)
	default:
		t = openf("the app heard %s", peer)
	}
	return t, nil
}

// halfOpen begins a connection to a port of the app that goes round the sidecar, changes what holds so that it may not any more, and goes
// on with it. Without accepted the handshake is stopped in the middle: the outside does not hear the answer until then.
func halfOpen(accepted bool) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		const port = 9090
		if err := st.permit(ctx, port); err != nil {
			return t, err
		}
		p, err := st.app.StartProbe(ctx, "listen", "--on", st.podAddr(false, port).String(), "--accept", "1", "--timeout", "8s")
		if err != nil {
			return t, err
		}
		first, err := p.Next()
		if err != nil {
			return t, err
		}
		if !first.OK {
			return refused(first), nil
		}
		open := func() error { return nil }
		if !accepted {
			if open, err = st.lab.Outside.Deaf(ctx, st.pod.V4, port); err != nil {
				return t, err
			}
		}
		client, err := st.lab.Outside.StartProbe(ctx, "later", "--to", st.podAddr(false, port).String(), "--timeout", "6s")
		if err != nil {
			return t, errors.Join(err, open())
		}
		if _, err = client.Next(); err == nil {
			err = st.waitState(ctx, port, accepted)
		}
		if err == nil {
			err = st.forbid(ctx, port)
		}
		if err = errors.Join(err, open()); err != nil {
			return t, err
		}
		if err := client.End(); err != nil {
			return t, err
		}
		sent, err := client.Next()
		if err != nil {
			return t, err
		}
		got, err := p.Next()
		if err != nil {
			return t, err
		}
		_, _ = p.Wait(), client.Wait() // their exit status says the same
		if got.OK {
			return openf("the app heard %s", got.Addr("peer")), nil
		}
		t = refused(sent)
		t.Detail = fmt.Sprintf("the app heard nothing, the outside: %s", t.Detail)
		return t, nil
	}
}

// waitState waits until the pod has a connection on a port, whose handshake is over, or is not.
func (st *stage) waitState(ctx context.Context, port uint16, over bool) error {
	pid, err := st.app.PID(ctx)
	if err != nil {
		return err
	}
	state := "03" // TCP_SYN_RECV
	if over {
		state = "01" // TCP_ESTABLISHED
	}
	return lab.WaitFor(waitLimit, "the connection", func() (bool, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
		for line := range strings.Lines(string(b)) {
			// slot, local address, remote address, state
			f := strings.Fields(line)
			if len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == state {
				return true, err
			}
		}
		return false, err
	})
}
