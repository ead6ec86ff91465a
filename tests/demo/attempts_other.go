// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"

	"sidegate/tests/lab"
)

// otherProtocols is what the sidecar cannot carry.
func otherProtocols() []attempt {
	udp := func(v6 bool, flags ...string) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			return s.appPacket(ctx, append([]string{"udp", "--to", s.lab.Outside.Echo(v6).String(), "--timeout", replyTime}, flags...)...)
		}
	}
	ping := func(v6 bool, flags ...string) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			return s.appPacket(ctx, append([]string{"ping", "--to", s.lab.Outside.Addr(v6).String(), "--timeout", replyTime}, flags...)...)
		}
	}
	raw := func(command string, v6 bool) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			return s.appPacket(ctx, command, "--to", s.lab.Outside.Echo(v6).String())
		}
	}
	const noUDP = "sendmsg and connect: UDP by rule only"
	const noSocket = "sock_create: family and type by role"
	var all []attempt
	all = append(all, byFamily("UDP", forbidden, noUDP, func(v6 bool) runFunc { return udp(v6) })...)
	all = append(all, byFamily("UDP, connected", forbidden, noUDP, func(v6 bool) runFunc { return udp(v6, "--connected") })...)
	all = append(all,
		attempt{"UDP, v4-mapped", forbidden, noUDP, udp(false, "--mapped")},
		attempt{"UDP-Lite", forbidden, noSocket, udp(false, "--lite")},
	)
	all = append(all, byFamily("ping, ping socket", forbidden, noSocket, func(v6 bool) runFunc { return ping(v6) })...)
	all = append(all, byFamily("ping, raw socket", forbidden, noSocket, func(v6 bool) runFunc { return ping(v6, "--raw") })...)
	all = append(all, byFamily("TCP SYN by raw socket", forbidden, noSocket, func(v6 bool) runFunc { return raw("rawtcp", v6) })...)
	return append(all, byFamily("UDP by raw socket", forbidden, noSocket, func(v6 bool) runFunc { return raw("rawudp", v6) })...)
}

// belowSockets is what passes by the hooks of a cgroup.
func belowSockets() []attempt {
	frame := func(v6 bool, command string, flags ...string) runFunc {
		return func(ctx context.Context, s *scene) (finding, error) {
			args := append([]string{command, "--to", s.lab.Outside.Echo(v6).String(), "--gw-mac", s.gateway}, flags...)
			return s.appPacket(ctx, args...)
		}
	}
	const device = "tcx on the pod's devices: packets of known sockets only"
	const host = "host side of the pod's veth"
	all := byFamily("frame by AF_PACKET", forbidden, device, func(v6 bool) runFunc { return frame(v6, "packet") })
	return append(all,
		attempt{"packet by AF_PACKET, SOCK_DGRAM", forbidden, device, frame(false, "packet", "--dgram")},
		attempt{"frame by AF_PACKET, PACKET_QDISC_BYPASS", forbidden, host, frame(false, "packet", "--qdisc-bypass")},
		attempt{"frame by AF_XDP", forbidden, host, frame(false, "xdp")},
		attempt{"frame through a VXLAN device", forbidden, device, frame(false, "tunnel", "--kind", "vxlan")},
		attempt{"frame through a macvlan device", forbidden, device, frame(false, "tunnel", "--kind", "macvlan")},
	)
}

// strangers are processes in the pod's network namespace that are not of the pod.
func strangers() []attempt {
	const how = "guard on the root cgroup: unknown cgroups are dead in a managed namespace"
	joiner := func(s *scene, nonce string) []string {
		return []string{"joiner", "--to", s.lab.Outside.Echo(false).String(), "--nonce", nonce}
	}
	decide := func(s *scene, nonce string, r lab.Result, err error) (finding, error) {
		if err != nil {
			return finding{}, err
		}
		seen, err := s.lab.Outside.Seen(nonce)
		if err != nil {
			return finding{}, err
		}
		f := findingf(blocked, "TCP: %s; UDP: %s; ping: %s", nested(r, "tcp"), nested(r, "udp"), nested(r, "ping"))
		for _, sight := range seen {
			if sight.How != "tcp" {
				return findingf(direct, "IP protocol %d seen outside", sight.Proto), nil
			}
			if f, _, err = s.arrival(sight.Src, nestedLocal(r)); err != nil || f.Outcome == direct {
				return f, err
			}
		}
		return f, nil
	}
	return []attempt{
		{"container that joins the namespace later", forbidden, how, func(ctx context.Context, s *scene) (finding, error) {
			nonce := newNonce()
			r, err := s.pod.JoinNetns(ctx, s.app, lab.ContainerOptions{}, joiner(s, nonce)...)
			return decide(s, nonce, r, err)
		}},
		{"container that joins the pod later, without labels", forbidden, how, func(ctx context.Context, s *scene) (finding, error) {
			nonce := newNonce()
			r, err := s.pod.JoinPod(ctx, lab.ContainerOptions{}, joiner(s, nonce)...)
			return decide(s, nonce, r, err)
		}},
		{"process of the host that enters the namespace", forbidden, how, func(ctx context.Context, s *scene) (finding, error) {
			nonce := newNonce()
			r, err := s.pod.Enter(ctx, joiner(s, nonce)...)
			return decide(s, nonce, r, err)
		}},
	}
}

// nested returns one way's word of the prober's joiner.
func nested(r lab.Result, way string) string {
	one, _ := r.Data[way].(map[string]any)
	if ok, _ := one["ok"].(bool); ok {
		return "ok"
	}
	text, _ := one["err"].(string)
	return text
}

// nestedLocal returns the address that the joiner's TCP connection had.
func nestedLocal(r lab.Result) netip.AddrPort {
	one, _ := r.Data["tcp"].(map[string]any)
	data, _ := one["data"].(map[string]any)
	return lab.Result{Data: data}.Addr("local")
}
