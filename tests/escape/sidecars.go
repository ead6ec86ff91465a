// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"sidegate/tests/lab"
)

// sidecars is the sidecar itself: who else is it, and what can be done to it or with it.
func sidecars() []*escape {
	outbound := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), lab.OutboundPort)
	admin := netip.AddrPortFrom(outbound.Addr(), lab.AdminPort)
	return group("sidecar",
		&escape{name: "port-before", what: "take its outbound port before it starts", pod: emptyPod, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.startApp(ctx, st.appOptions()); err != nil {
				return try{}, err
			}
			return st.impersonate(ctx, outbound)
		}},
		&escape{name: "port-restart", what: "take its outbound port while it restarts", pod: headless, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.sidecar.Stop(ctx); err != nil {
				return try{}, err
			}
			return st.impersonate(ctx, outbound)
		}},
		&escape{name: "port-reuseport", what: "share its outbound port with SO_REUSEPORT, as its UID", run: func(ctx context.Context, st *stage) (try, error) {
			return st.impersonate(ctx, outbound, "--reuseport")
		}},
		&escape{name: "admin-port", what: "its port for administration", pod: ruled, run: func(ctx context.Context, st *stage) (try, error) {
			r, err := st.app.Probe(ctx, "http", "--to", admin.String(), "--path", "/stats", "--timeout", "1s")
			return adminAnswer(r), err
		}},
		&escape{name: "admin-unix", what: "its UNIX socket in a directory of both", pod: ruled, run: func(ctx context.Context, st *stage) (try, error) {
			r, err := st.app.Probe(ctx, "unix", "--path", "/run/shared/admin.sock", "--send", "show info\n")
			return adminAnswer(r), err
		}},
		&escape{name: "admin-abstract", what: "its abstract socket", pod: ruled, run: func(ctx context.Context, st *stage) (try, error) {
			r, err := st.app.Probe(ctx, "unix", "--path", "@sidecar", "--padded", "--send", "show info\n")
			return adminAnswer(r), err
		}},
		&escape{name: "flood", what: "2,000 connections to it, then one round it", pod: scratch, run: flood},
		&escape{name: "compromised-port", what: "a compromised sidecar calls a port of the app that it may not", pod: compromised, run: withCompromised(func(ctx context.Context, st *stage) (try, error) {
			r, err := st.sidecar.Probe(ctx, "http", "--to", fmt.Sprintf("127.0.0.1:%d", otherPort), "--contains", "hello from the app", "--timeout", "1s")
			if err != nil || !r.OK {
				return refused(r), err
			}
			return openf("the app answered on port %d", otherPort), nil
		})},
		&escape{name: "compromised-tcp", what: "a compromised sidecar connects where it may not", pod: compromised, run: withCompromised(func(ctx context.Context, st *stage) (try, error) {
			return st.attempt(ctx, st.sidecar, "tcp", "--to", st.lab.Outside.DNS(false).String(), "--timeout", "1s")
		})},
		&escape{name: "compromised-udp", what: "a compromised sidecar sends UDP", pod: compromised, run: withCompromised(func(ctx context.Context, st *stage) (try, error) {
			return st.attempt(ctx, st.sidecar, "udp", "--to", st.echo(false), "--timeout", "200ms")
		})},
	)
}

// otherPort is one of the app's that its sidecar has no business with.
const otherPort = 9902

// compromised is a pod whose sidecar is the attacker's, under rules.
var compromised = podKind{policy: "ruled", bare: true, use: "its sidecar is compromised"}

// withCompromised puts the attacker into the sidecar's place.
func withCompromised(run runFunc) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		if st.sidecar != nil {
			return run(ctx, st)
		}
		opts := st.options("sidecar")
		opts.CapAdd, opts.User = st.caps, st.user
		if opts.User == "" && st.iptables {
			opts.User = meshUser
		}
		opts.Args = []string{"/bin/prober", "serve", "--on", fmt.Sprintf("127.0.0.1:%d", lab.OutboundPort)}
		if st.sidecar, err = st.pod.Run(ctx, "sidecar", lab.AppImage, opts); err != nil {
			return t, err
		}
		opts = st.appOptions()
		opts.Args = []string{"/bin/prober", "serve", "--on", fmt.Sprintf(":%d,:%d", lab.AppPort, otherPort)}
		if st.app, err = st.pod.Run(ctx, "app", lab.AppImage, opts); err != nil {
			return t, err
		}
		if err := st.app.WaitListening(ctx, otherPort); err != nil {
			return t, err
		}
		return run(ctx, st)
	}
}

// impersonate lets the app listen where the sidecar does, and another app of the pod connect to the outside: to that port itself, where
// nothing redirects it.
func (st *stage) impersonate(ctx context.Context, on netip.AddrPort, flags ...string) (t try, err error) {
	if st.neighbour == nil {
		if err := st.startNeighbour(ctx); err != nil {
			return t, err
		}
	}
	args := []string{"listen", "--on", on.String(), "--accept", "1", "--timeout", "5s"}
	if st.user == "" {
		args = append([]string{"in", "--uid", meshUser}, args...)
	}
	p, err := st.app.StartProbe(ctx, append(args, flags...)...)
	if err != nil {
		return t, err
	}
	return st.intercepted(ctx, p, newNonce())
}

// intercepted lets another app of the pod connect to the outside, or, where nothing redirects it, to the sidecar itself. p is about to
// say that it listens in the sidecar's place, and then what came.
func (st *stage) intercepted(ctx context.Context, p *lab.Probing, nonce string) (try, error) {
	first, err := p.Next()
	if err != nil {
		return try{}, err
	}
	if !first.OK {
		_ = p.Wait() // its exit status says the same
		return refused(first), nil
	}
	to := st.echo(false)
	if !st.iptables && !st.sidegate {
		to = fmt.Sprintf("127.0.0.1:%d", lab.OutboundPort)
	}
	// Of several that listen, the kernel chooses one for each connection.
	var said lab.Result
	for range 20 {
		if said, err = st.neighbour.Probe(ctx, "tcp", "--to", to, "--nonce", nonce, "--timeout", "200ms"); err != nil {
			return try{}, err
		}
	}
	got, err := p.Next()
	if err != nil {
		return try{}, err
	}
	_ = p.Wait() // its exit status says the same
	if got.OK {
		return openf("the attacker took a connection of another container, and read what it sent"), nil
	}
	t := refused(got)
	t.Detail = fmt.Sprintf("it listens on %s, and nothing comes there; the other container: %s", first.Text("listening"), said)
	return t, nil
}

// flood keeps the sidecar busy and tries to get round it meanwhile.
func flood(ctx context.Context, st *stage) (t try, err error) {
	p, err := st.app.StartProbe(ctx, "hold", "--count", "2000", "--kind", "tcp-connect", "--to", st.echo(false))
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, p.End(), p.Wait()) }()
	held, err := p.Next()
	if err != nil {
		return t, err
	}
	for range 5 {
		if t, err = st.attempt(ctx, st.app, "tcp", "--to", st.echo(false), "--timeout", "500ms"); err != nil || t.State == open {
			return t, err
		}
	}
	t.Detail = fmt.Sprintf("%v connections held; %s", held.Data["open"], t.Detail)
	return t, nil
}
