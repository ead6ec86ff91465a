// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"

	"sidegate/tests/lab"
)

// datagrams are what iptables' REDIRECT does not redirect.
func datagrams() []*escape {
	udp := func(name, what string, flags ...string) *escape {
		to := "TO"
		if len(flags) > 0 && flags[0] == "TO6" {
			to, flags = "TO6", flags[1:]
		}
		return &escape{name: name, what: what, run: app(append([]string{"udp", "--to", to, "--timeout", "200ms"}, flags...)...)}
	}
	cases := []*escape{
		udp("udp", "a datagram by sendto"),
		udp("udp-v6", "the same by IPv6", "TO6"),
		udp("udp-connected", "connect, then send", "--connected"),
		udp("udp-connected-v6", "the same by IPv6", "TO6", "--connected"),
		udp("udp-mapped", "a v4-mapped address on an IPv6 socket", "--mapped"),
		udp("udp-uid", "a datagram as the sidecar's UID", "--uid", "1337"),
		udp("udp-unspec", "connect elsewhere, dissolve with AF_UNSPEC, connect", "--unspec-from", "127.0.0.1:9", "--connected"),
		udp("udp-bindtodevice", "SO_BINDTODEVICE eth0", "--bind-dev", "eth0"),
		udp("udp-pktinfo", "device and source by IP_PKTINFO", "--how", "pktinfo"),
		udp("udp-writev", "connected, writev", "--connected", "--how", "writev"),
		udp("udp-sendmmsg", "sendmmsg", "--how", "sendmmsg"),
		udp("udp-gso", "UDP_SEGMENT", "--how", "gso"),
		udp("udp-cork", "UDP_CORK", "--how", "cork"),
		udp("udp-zerocopy", "MSG_ZEROCOPY", "--how", "zerocopy"),
		udp("udp-uring", "io_uring SENDMSG", "--how", "uring"),
		udp("udp-uring-zc", "io_uring SEND_ZC with an address", "--how", "uring-zc"),
		udp("udp-uring-msg-zc", "io_uring SENDMSG_ZC", "--how", "uring-msg-zc"),
		udp("udp-large", "a datagram of 8,000 bytes, which the kernel fragments", "--size", "8000"),
		udp("udp-transparent", "IP_TRANSPARENT and a foreign source", "--bind-any", "transparent", "--bind-src", "198.51.100.222"),
		udp("udp-source-route", "a loose source route through the gateway", "--lsrr", "NODE"),
		udp("udp-lite", "UDP-Lite", "--lite"),
		{name: "dns-udp", what: "a query to a name server outside", run: app("dns", "--to", "HOST")},
		{name: "dns-tcp", what: "a query by TCP, as the sidecar's UID", run: app("dns", "--to", "HOST", "--proto", "tcp", "--uid", "1337")},
		{name: "broadcast", what: "a broadcast to the pods' network", run: app("udp", "--to", "198.51.100.255:7", "--broadcast", "--no-echo")},
		{name: "broadcast-all", what: "a broadcast to 255.255.255.255", run: app("udp", "--to", "255.255.255.255:7", "--broadcast", "--no-echo", "--bind-dev", "eth0")},
		{name: "multicast", what: "a datagram to a multicast group", run: app("udp", "--to", "239.7.7.7:7", "--multicast-if", "eth0", "--no-echo")},
		{name: "multicast-v6", what: "the same by IPv6", run: app("udp", "--to", "[ff02::7777]:7", "--multicast-if", "eth0", "--no-echo")},
		{name: "ping", what: "a ping socket", run: app("ping", "--to", "HOST", "--timeout", "200ms")},
		{name: "ping-v6", what: "the same by IPv6", run: app("ping", "--to", "HOST6", "--timeout", "200ms")},
	}
	return group("datagrams", cases...)
}

// streams are connections in every way but the plain one, of whoever is not redirected: the sidecar's user.
func streams() []*escape {
	tcp := func(name, what string, flags ...string) *escape {
		to := "TO"
		if len(flags) > 0 && flags[0] == "TO6" {
			to, flags = "TO6", flags[1:]
		}
		return &escape{name: name, what: what, run: app(append([]string{"tcp", "--to", to, "--timeout", "1500ms"}, flags...)...)}
	}
	cases := []*escape{
		tcp("tcp", "a plain connection"),
		tcp("tcp-v6", "the same by IPv6", "TO6"),
		tcp("tcp-mapped", "a v4-mapped address on an IPv6 socket", "--mapped"),
		tcp("tcp-nonblock", "connect without waiting", "--nonblock"),
		tcp("tcp-fastopen", "data on the SYN: MSG_FASTOPEN", "--fastopen"),
		tcp("tcp-fastopen-connect", "data on the SYN: TCP_FASTOPEN_CONNECT", "--fastopen-connect"),
		tcp("tcp-unspec", "connect to loopback, dissolve with AF_UNSPEC, connect", "--unspec-from", fmt.Sprintf("127.0.0.1:%d", neighbourPort)),
		tcp("tcp-bindtodevice", "SO_BINDTODEVICE eth0", "--bind-dev", "eth0"),
		tcp("tcp-bind-pod", "bound to the pod's address", "--bind-src", "POD"),
		{name: "tcp-transparent", what: "IP_TRANSPARENT and a foreign source", pod: scratch, run: fromForeign("transparent")},
		{name: "tcp-freebind", what: "IP_FREEBIND and a foreign source", pod: scratch, run: fromForeign("freebind")},
		{name: "tcp-source-route", what: "a loose source route through the gateway, data on the SYN", run: after(
			[]string{"tcp", "--to", "TO", "--fastopen", "--lsrr", "NODE", "--timeout", "500ms"},
			[]string{"tcp", "--to", "TO", "--fastopen", "--timeout", "1s"})}, // for the cookie
		{name: "tcp-repair", what: "TCP_REPAIR: a connection without a handshake", run: app("tcp", "--to", "NONE", "--repair", "--timeout", "500ms")},
		tcp("tcp-uring", "connect by io_uring", "--uring"),
		tcp("tcp-uring-socket", "socket and connect by io_uring", "--uring-socket", "--uring"),
		tcp("mptcp", "MPTCP", "--proto", "mptcp"),
		{name: "sctp", what: "SCTP", run: counted(132, "tcp", "--to", "TO", "--proto", "sctp", "--timeout", "1s")},
		{name: "dccp", what: "DCCP", run: counted(33, "dccp", "--to", "TO")},
		{name: "smc", what: "AF_SMC, which falls back to TCP in the kernel", run: app("smc", "--to", "TO")},
		{name: "simultaneous-open", what: "both ends connect, nobody listens", run: simultaneousOpen},
	}
	return group("streams", cases...)
}

// fromForeign connects from an address that the pod does not have, but answers for: the node has a route to it, as for an address that a
// proxy spoofs.
func fromForeign(how string) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		const foreign = "198.51.100.222"
		add := exec.CommandContext(ctx, "ip", "route", "replace", foreign, "via", st.pod.V4.String())
		if out, err := add.CombinedOutput(); err != nil {
			return t, fmt.Errorf("ip route: %w: %s", err, out)
		}
		defer func() {
			err = errors.Join(err, exec.CommandContext(context.WithoutCancel(ctx), "ip", "route", "delete", foreign).Run())
		}()
		if r, err := st.app.Probe(ctx, "address", "--add", foreign+"/32", "--dev", "lo"); err != nil || !r.OK {
			return refused(r), err
		}
		return st.attempt(ctx, st.app, "tcp", "--to", st.echo(false), "--bind-any", how, "--bind-src", foreign, "--timeout", "1s")
	}
}

// counted makes an attempt by a protocol that begins without the nonce: every packet of it is one too many.
func counted(proto int, args ...string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) {
		key := fmt.Sprintf("%s/%d", st.pod.V4, proto)
		before, err := st.lab.Outside.Counts()
		if err != nil {
			return try{}, err
		}
		t, err := st.attempt(ctx, st.app, st.words(args)...)
		if err != nil || t.State == open {
			return t, err
		}
		after, err := st.lab.Outside.Counts()
		if n := after[key] - before[key]; n > 0 {
			return openf("%d packets of IP protocol %d from %s seen outside", n, proto, st.pod.V4), err
		}
		return t, err
	}
}

// simultaneousOpen lets the app and the outside connect to each other at once.
func simultaneousOpen(ctx context.Context, st *stage) (try, error) {
	const near, far = 40411, 40412
	out := netip.AddrPortFrom(st.lab.Outside.Addr(false), far)
	type end struct {
		r   lab.Result
		err error
	}
	other := make(chan end, 1)
	nonce := newNonce()
	go func() {
		r, err := st.lab.Outside.Probe(ctx, "simopen", "--to", st.podAddr(false, near).String(), "--sport", fmt.Sprint(far), "--timeout", "3s", "--nonce", nonce+"out")
		other <- end{r, err}
	}()
	r, err := st.app.Probe(ctx, "simopen", "--to", out.String(), "--sport", fmt.Sprint(near), "--timeout", "3s", "--nonce", nonce)
	peer := <-other
	if err != nil || peer.err != nil {
		return try{}, fmt.Errorf("%w, %w", err, peer.err)
	}
	if peer.r.OK {
		return openf("connected, the outside read %q", peer.r.Text("read")), nil
	}
	return st.arrived(ctx, nonce, r)
}

// packets are what an attacker builds itself.
func packets() []*escape {
	frame := func(name, what string, args ...string) *escape {
		return &escape{name: name, what: what, run: app(append(args, "--to", "TO", "--gw-mac", "MAC")...)}
	}
	raw := func(name, what string, args ...string) *escape {
		return &escape{name: name, what: what, run: app(append(args, "--to", "TO")...)}
	}
	tunnel := func(kind, what string) *escape {
		return frame("device-"+kind, what, "tunnel", "--kind", kind)
	}
	cases := []*escape{
		raw("raw-udp", "UDP by a raw socket", "rawudp"),
		{name: "raw-udp-v6", what: "the same by IPv6", run: app("rawudp", "--to", "TO6")},
		raw("raw-tcp", "a SYN with data by a raw socket", "rawtcp"),
		raw("raw-source-route", "the same with a source route", "rawudp", "--lsrr", "NODE"),
		raw("raw-gre", "IP protocol 47", "rawip", "--proto", "47"),
		raw("raw-esp", "IP protocol 50", "rawip", "--proto", "50"),
		raw("raw-sctp", "IP protocol 132", "rawip", "--proto", "132"),
		raw("raw-253", "IP protocol 253, for experiments", "rawip", "--proto", "253"),
		raw("fragments", "a datagram in two fragments, the ports in the first", "rawudp", "--fragment", "16"),
		{name: "ping-raw", what: "an echo request by a raw socket", run: app("ping", "--to", "HOST", "--timeout", "200ms", "--raw")},
		{name: "ping-raw-v6", what: "the same by IPv6", run: app("ping", "--to", "HOST6", "--timeout", "200ms", "--raw")},
		frame("af-packet", "a frame by AF_PACKET", "packet"),
		{name: "af-packet-v6", what: "the same with IPv6 in it", run: app("packet", "--to", "TO6", "--gw-mac", "MAC")},
		frame("af-packet-dgram", "AF_PACKET, SOCK_DGRAM", "packet", "--dgram"),
		frame("af-packet-ring", "AF_PACKET with a ring in shared memory", "packet", "--ring"),
		frame("af-packet-bypass", "AF_PACKET with PACKET_QDISC_BYPASS", "packet", "--qdisc-bypass"),
		frame("af-packet-ring-bypass", "both", "packet", "--ring", "--qdisc-bypass"),
		frame("af-xdp", "a frame by AF_XDP", "xdp"),
		tunnel("vxlan", "a VXLAN device"),
		tunnel("geneve", "a Geneve device"),
		tunnel("gre", "a GRE device"),
		tunnel("gretap", "Ethernet in GRE"),
		tunnel("ipip", "IPv4 in IPv4"),
		tunnel("sit", "IPv6 in IPv4 (6in4)"),
		{name: "device-ip6tnl", what: "a tunnel in IPv6", run: app("tunnel", "--kind", "ip6tnl", "--to", "TO6", "--gw-mac", "MAC")},
		on(devices, tunnel("macvlan", "a macvlan on the pod's device")),
		on(devices, tunnel("ipvlan", "an ipvlan on the pod's device")),
		{name: "device-tun", what: "a TUN device whose packets the pod forwards", run: withTUN},
		{name: "netns-veth", what: "own namespaces behind a veth pair, forwarded by the pod", pod: devices, run: tampering("escape: through a pair into own namespaces")},
		{name: "netns-macvlan", what: "a macvlan on the pod's device in own namespaces", pod: devices, run: tampering("escape: through a macvlan on eth0 in own namespaces")},
		{name: "netns-eth0", what: "the pod's device itself in own namespaces", pod: ownPod, run: destroying("escape: with eth0 in own namespaces")},
	}
	return group("packets", cases...)
}

// on is a case for this kind of pod.
func on(pod podKind, c *escape) *escape {
	c.pod = pod
	return c
}

// destroying is tampering that the pod does not survive.
func destroying(name string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) {
		return tampering(name, "--destroy")(ctx, st)
	}
}

// withTUN gives an app the device that a runtime can give.
func withTUN(ctx context.Context, st *stage) (try, error) {
	opts := st.appOptions()
	opts.Flags = append(opts.Flags, "--device", "/dev/net/tun")
	return st.with(ctx, "tunneller", opts, func(c *lab.Container) (try, error) {
		return st.attempt(ctx, c, st.words([]string{"tunnel", "--kind", "tun", "--to", "TO", "--gw-mac", "MAC"})...)
	})
}

// families are sockets of other address families, which leave the machine in their own ways.
func families() []*escape {
	return group("families",
		&escape{name: "l2tp", what: "IPPROTO_L2TP", run: app("l2tp", "--to", "TO")},
		&escape{name: "vsock", what: "AF_VSOCK to another process of the machine", run: vsock},
		&escape{name: "alg", what: "AF_ALG has to work: it leads nowhere", allowed: true, run: func(ctx context.Context, st *stage) (try, error) {
			r, err := st.app.Probe(ctx, "alg", "--nonce", newNonce())
			if err != nil || !r.OK {
				return refused(r), err
			}
			return openf("it works"), nil
		}},
		&escape{name: "netlink", what: "AF_NETLINK has to work", allowed: true, run: func(ctx context.Context, st *stage) (try, error) {
			r, err := st.app.Probe(ctx, "family", "--family", "16", "--type", "3", "--proto", "0")
			if err != nil || !r.OK {
				return refused(r), err
			}
			return openf("it works"), nil
		}},
	)
}

// vsock lets the app connect to a process of the host on AF_VSOCK's own loopback.
func vsock(ctx context.Context, st *stage) (try, error) {
	const port = "7007"
	nonce := newNonce()
	p, err := st.lab.StartProbe(ctx, "vsock", "--listen", "--port", port, "--timeout", "2s")
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
	r, err := st.app.Probe(ctx, "vsock", "--port", port, "--nonce", nonce)
	if err != nil {
		return try{}, err
	}
	got, err := p.Next()
	if err != nil {
		return try{}, err
	}
	if got.OK {
		return openf("a process of the host read %q", got.Text("line")), p.Wait()
	}
	t := refused(r)
	_ = p.Wait() // its exit status says the same
	return t, nil
}
