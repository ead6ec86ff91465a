// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"sidegate/tests/lab"
)

// proxied is what an app does all day.
func proxied() []attempt {
	var all []attempt
	all = append(all, byFamily("HTTP to the outside", allowed, "connect rewritten to the sidecar's outbound port", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			f, _, _, err := s.http(ctx, "http", v6, lab.PagePath, "--contains", lab.PageText)
			return f, err
		}
	})...)
	all = append(all, byFamily("64 MiB download", allowed, "connect rewritten to the sidecar's outbound port", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			f, _, r, err := s.http(ctx, "download", v6, lab.FilePath, "--timeout", "20s")
			if err == nil && r.OK && (r.Text("sha256") != lab.FileSHA256() || r.Data["bytes"] != float64(lab.FileSize)) {
				return findingf(undecided, "%v bytes arrived, with SHA-256 %s", r.Data["bytes"], r.Text("sha256")), nil
			}
			return f, err
		}
	})...)
	all = append(all, byFamily("sidecar learns the destination", allowed, "getsockopt(SO_ORIGINAL_DST) answered on the sidecar's socket", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			f, c, _, err := s.tcp(ctx, v6)
			if c != nil && c.Dst != s.lab.Outside.Echo(v6) {
				return findingf(undecided, "HAProxy took %s for the destination", c.Dst), err
			}
			return f, err
		}
	})...)
	all = append(all, byFamily("app learns its peer", allowed, "getpeername answered with the original destination", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			f, _, r, err := s.tcp(ctx, v6)
			if err == nil && r.OK && r.Addr("peer") != s.lab.Outside.Echo(v6) {
				return findingf(undecided, "getpeername says %s", r.Text("peer")), nil
			}
			f.Fingerprint = r.Text("peer")
			return f, err
		}
	})...)
	return append(all,
		attempt{"another sidecar learns the destination, IPv4", allowed, "getsockopt(SO_ORIGINAL_DST) answered on the sidecar's socket", otherSidecar(false)},
		attempt{"another sidecar learns the destination, IPv6", allowed, "getsockopt(IP6T_SO_ORIGINAL_DST) answered on the sidecar's socket", otherSidecar(true)},
		attempt{"app talks to itself on loopback", private, "connections within a container are its own", ownLoopback},
		attempt{"other getsockopt answers", allowed, "only SO_ORIGINAL_DST of redirected sockets is answered", sameOptions},
	)
}

// otherSidecar takes a pod whose sidecar only asks, of both families, where its clients meant to go. HAProxy asks for IPv4 only.
func otherSidecar(v6 bool) runFunc {
	return func(ctx context.Context, s *scene) (_ finding, err error) {
		pod, err := s.newPod(ctx)
		if err != nil {
			return finding{}, err
		}
		defer func() { err = errors.Join(err, pod.Remove(ctx)) }()
		on, field := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), lab.OutboundPort), "original4"
		if v6 {
			on, field = netip.AddrPortFrom(netip.IPv6Loopback(), lab.OutboundPort), "original6"
		}
		sidecar, err := pod.Run(ctx, "sidecar", lab.AppImage, s.joining(lab.ContainerOptions{
			Annotations: sidecarAnnotations(),
			Args:        []string{"/bin/prober", "origdst-server", "--on", on.String()},
		}))
		if err != nil {
			return finding{}, err
		}
		if err := sidecar.WaitListening(ctx, lab.OutboundPort); err != nil {
			return finding{}, err
		}
		app, err := pod.StartApp(ctx, s.joining(appOptions()))
		if err != nil {
			return finding{}, err
		}
		to := s.lab.Outside.Echo(v6)
		r, err := app.Probe(ctx, "tcp", "--to", to.String(), "--timeout", "1s")
		if err != nil {
			return finding{}, err
		}
		results, err := sidecar.Results()
		if err != nil {
			return finding{}, err
		}
		for _, told := range results {
			if told.Addr("peer") == r.Addr("local") && r.Addr("local").IsValid() {
				if told.Text(field) != to.String() {
					return findingf(undecided, "the sidecar was told %q", told.Text(field)), nil
				}
				return findingf(carried, "the sidecar was told %s", told.Text(field)), nil
			}
		}
		if r.OK {
			return findingf(direct, "arrived without the sidecar"), nil
		}
		return refusal(r), nil
	}
}

func ownLoopback(ctx context.Context, s *scene) (finding, error) {
	r, err := s.app.Probe(ctx, "http", "--to", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), lab.AppPort).String(), "--contains", "hello from the app")
	if err != nil || !r.OK {
		return refusal(r), err
	}
	return findingf(direct, "answered"), nil
}

// sameOptions asks for many options of a connected socket, with many lengths, and takes the answers for a fingerprint.
func sameOptions(ctx context.Context, s *scene) (finding, error) {
	r, err := s.app.Probe(ctx, "sockopt", "--to", s.lab.Outside.Echo(false).String())
	if err != nil || !r.OK {
		return refusal(r), err
	}
	answers, err := json.Marshal(r.Data["options"])
	if err != nil {
		return finding{}, err
	}
	f, _, _, err := s.tcp(ctx, false)
	f.Fingerprint = string(answers)
	return f, err
}

// inbound is what comes to an app.
func inbound() []attempt {
	all := byFamily("HTTP from the outside", allowed, "steered to the sidecar's inbound port, original address in getsockname", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) { return s.request(ctx, v6) }
	})
	all = append(all, byFamily("from the outside, to a port round the sidecar", forbidden, "sk_lookup takes every port of the pod", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) { return s.roundInbound(ctx, v6, 9090) }
	})...)
	return append(all, attempt{"UDP from the outside to the app", forbidden, "cgroup_skb ingress: only from loopback", func(ctx context.Context, s *scene) (finding, error) {
		return s.toAppListener(ctx, s.podAddr(false, 9091), "udp", "--udp")
	}})
}

// request gets the app's page from the outside. The app tells whom it answered.
func (s *scene) request(ctx context.Context, v6 bool) (finding, error) {
	to := s.podAddr(v6, lab.AppPort)
	r, err := s.outside(ctx, "http", "--to", to.String(), "--contains", "hello from the app")
	if err != nil || !r.OK {
		return refusal(r), err
	}
	var told struct{ Peer, Local string }
	if err := json.Unmarshal([]byte(r.Text("body")), &told); err != nil {
		return finding{}, fmt.Errorf("the app's answer: %w", err)
	}
	if told.Peer == r.Addr("local").String() {
		return findingf(direct, "the app answered %s itself", told.Peer), nil
	}
	c, ok, err := s.sidecar.WaitCarried(logTime, func(c lab.Carried) bool { return c.Frontend == "inbound" && c.Client == r.Addr("local") })
	switch {
	case err != nil || !ok:
		return findingf(undecided, "the app answered %s, which the sidecar does not know", told.Peer), err
	case c.Dst != to:
		return findingf(undecided, "the sidecar took %s for the destination, and not %s", c.Dst, to), nil
	}
	return findingf(carried, "the app answered %s, the sidecar %s", told.Peer, c.Client), nil
}

// roundInbound lets the app listen on the pod's own address, where the sidecar cannot forward to, and the outside connect.
func (s *scene) roundInbound(ctx context.Context, v6 bool, port uint16) (finding, error) {
	return s.toAppListener(ctx, s.podAddr(v6, port), "tcp")
}

// toAppListener starts a listener in the app and lets the outside send to it. Only what the listener saw counts.
func (s *scene) toAppListener(ctx context.Context, on netip.AddrPort, command string, flags ...string) (finding, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := s.app.StartProbe(ctx, append([]string{"listen", "--on", on.String(), "--accept", "1", "--timeout", "1s"}, flags...)...)
	if err != nil {
		return finding{}, err
	}
	first, err := p.Next()
	if err != nil {
		return finding{}, err
	}
	if !first.OK {
		return refusal(first), nil
	}
	nonce := newNonce()
	sent, err := s.outside(ctx, command, "--to", on.String(), "--nonce", nonce, "--timeout", "700ms")
	if err != nil {
		return finding{}, err
	}
	got, err := p.Next()
	if err != nil {
		return finding{}, err
	}
	if got.OK {
		return findingf(direct, "the app heard %s", got.Text("peer")), p.Wait()
	}
	return findingf(blocked, "the app heard nothing, the outside: %s %s", sent.Err, sent.Errno), p.Wait()
}

// unusualTCP is TCP in every other way than a plain connect.
func unusualTCP() []attempt {
	ways := func(v6 bool, flags ...string) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			f, _, r, err := s.tcp(ctx, v6, flags...)
			if f.Outcome == blocked && nowhere(r) {
				return findingf(absent, "%s %s", r.Err, r.Errno), err
			}
			return f, err
		}
	}
	fromPod := func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			return ways(v6, "--bind-src", s.pod.Addr(v6).String())(ctx, s)
		}
	}
	dissolved := func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			return ways(v6, "--unspec-from", s.lab.Outside.HTTP(v6).String())(ctx, s)
		}
	}
	const rewrite = "connect rewritten to the sidecar's outbound port"
	const identity = "identity is the cgroup, not what a socket or process says of itself"
	all := []attempt{
		{"non-blocking connect", allowed, rewrite, ways(false, "--nonblock")},
		{"connect by io_uring", allowed, rewrite, ways(false, "--uring")},
		{"v4-mapped address", allowed, rewrite, ways(false, "--mapped")},
		{"TCP Fast Open, sendto", allowed, rewrite, ways(false, "--fastopen")},
		{"TCP Fast Open, connect", allowed, rewrite, ways(false, "--fastopen-connect")},
	}
	all = append(all, byFamily("TCP round the sidecar", forbidden, rewrite, func(v6 bool) runFunc { return ways(v6) })...)
	all = append(all, byFamily("as UID 1337", forbidden, identity, func(v6 bool) runFunc { return ways(v6, "--uid", "1337") })...)
	all = append(all,
		attempt{"with SO_MARK 1337", forbidden, identity, ways(false, "--mark", "1337")},
		attempt{"bound to the pod's address", forbidden, rewrite, fromPod(false)},
		attempt{"bound to the pod's device", forbidden, rewrite, ways(false, "--bind-dev", "eth0")},
		attempt{"connect, AF_UNSPEC, connect, IPv4", forbidden, rewrite, dissolved(false)},
		attempt{"connect, AF_UNSPEC, connect, IPv6", forbidden, rewrite, dissolved(true)},
		attempt{"MPTCP", forbidden, "sock_create: family and type by role", ways(false, "--proto", "mptcp")},
	)
	return append(all, byFamily("SCTP", forbidden, "sock_create: family and type by role", func(v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) { return s.sctp(ctx, v6) }
	})...)
}

// sidecarPorts is an app that wants to be the sidecar.
func sidecarPorts() []attempt {
	bind := func(on func(*scene) netip.AddrPort, flags ...string) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) { return s.bind(ctx, on(s), flags...) }
	}
	loopback := func(port uint16) func(*scene) netip.AddrPort {
		return func(*scene) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) }
	}
	pod := func(v6 bool, port uint16) func(*scene) netip.AddrPort {
		return func(s *scene) netip.AddrPort { return s.podAddr(v6, port) }
	}
	const how = "bind: the sidecar's ports are the sidecar's"
	return []attempt{
		{"app binds the outbound port elsewhere", forbidden, how, bind(pod(false, lab.OutboundPort))},
		{"app binds the outbound port elsewhere, IPv6", forbidden, how, bind(pod(true, lab.OutboundPort))},
		{"app shares the outbound port (SO_REUSEPORT)", forbidden, how, bind(loopback(lab.OutboundPort), "--reuseport")},
		{"app shares the inbound port (SO_REUSEPORT)", forbidden, how,
			bind(func(*scene) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), lab.InboundPort) }, "--reuseport")},
	}
}

// bind lets the app listen on an address.
func (s *scene) bind(ctx context.Context, on netip.AddrPort, flags ...string) (finding, error) {
	r, err := s.app.Probe(ctx, append([]string{"listen", "--on", on.String()}, flags...)...)
	if err != nil || !r.OK {
		return refusal(r), err
	}
	return findingf(direct, "listened on %s", r.Text("listening")), nil
}

// sidecarDown is what happens while there is no sidecar. The attempts depend on their order; each brings about what it needs.
func sidecarDown() []attempt {
	const how = "no sidecar, no way"
	down := func(run runFunc) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			if err := s.sidecar.Stop(ctx); err != nil {
				return finding{}, err
			}
			f, err := run(ctx, s)
			return f, err
		}
	}
	all := byFamily("TCP out while the sidecar is down", forbidden, how, func(v6 bool) runFunc {
		return down(func(ctx context.Context, s *scene) (finding, error) {
			f, _, _, err := s.tcp(ctx, v6)
			return f, err
		})
	})
	return append(all,
		attempt{"TCP in while the sidecar is down", forbidden, how, down(func(ctx context.Context, s *scene) (finding, error) { return s.request(ctx, false) })},
		attempt{"app takes the sidecar's port while it is down", forbidden, "bind: the sidecar's ports are the sidecar's",
			down(func(ctx context.Context, s *scene) (finding, error) {
				return s.bind(ctx, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), lab.OutboundPort))
			})},
		attempt{"HTTP after the sidecar came back", allowed, "listeners are recorded as they come", func(ctx context.Context, s *scene) (finding, error) {
			if err := s.sidecar.Start(ctx); err != nil {
				return finding{}, err
			}
			if err := s.sidecar.WaitListening(ctx, lab.InboundPort, lab.OutboundPort); err != nil {
				return finding{}, err
			}
			f, _, _, err := s.http(ctx, "http", false, lab.PagePath, "--contains", lab.PageText)
			if err != nil || f.Outcome == blocked {
				return f, err
			}
			in, err := s.request(ctx, false)
			if in.Outcome != f.Outcome {
				return in, err
			}
			return f, err
		}},
	)
}
