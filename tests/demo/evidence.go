// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	"sidegate/tests/lab"
)

// IP protocols.
const (
	protoTCP  = 6
	protoSCTP = 132
)

// arrival decides what became of something that reached the outside from src. local is the address that the app's own socket had,
// if known.
func (s *scene) arrival(src, local netip.AddrPort) (finding, *lab.Carried, error) {
	if src == local {
		return findingf(direct, "arrived from the app's own socket %s", src), nil, nil
	}
	c, ok, err := s.sidecar.WaitCarried(logTime, func(c lab.Carried) bool { return c.Source == src })
	if err != nil {
		return finding{}, nil, err
	}
	if !ok {
		return findingf(direct, "arrived from %s, which the sidecar does not know", src), nil, nil
	}
	return findingf(carried, "arrived from %s, the sidecar's socket for %s to %s", src, c.Client, c.Dst), &c, nil
}

// refusal is the finding on an attempt that nothing of was seen outside.
func refusal(r lab.Result) finding {
	if r.Errno != "" {
		return findingf(blocked, "%s %s", r.Err, r.Errno)
	}
	return findingf(blocked, "%s", r.Err)
}

// nowhere says whether the kernel has no such socket at all.
func nowhere(r lab.Result) bool {
	return !r.OK && (r.Errno == "EPROTONOSUPPORT" || r.Errno == "ESOCKTNOSUPPORT" || r.Errno == "EAFNOSUPPORT" || r.Errno == "ENOPROTOOPT")
}

// tcp lets the app connect to the outside's echo server with the prober's flags and decides by what the server saw.
func (s *scene) tcp(ctx context.Context, v6 bool, flags ...string) (finding, *lab.Carried, lab.Result, error) {
	nonce := newNonce()
	before, err := s.begun(v6, protoTCP)
	if err != nil {
		return finding{}, nil, lab.Result{}, err
	}
	args := append([]string{"tcp", "--to", s.lab.Outside.Echo(v6).String(), "--nonce", nonce, "--timeout", "1500ms"}, flags...)
	r, err := s.app.Probe(ctx, args...)
	if err != nil {
		return finding{}, nil, r, err
	}
	seen, err := s.lab.Outside.Seen(nonce)
	if err != nil {
		return finding{}, nil, r, err
	}
	for _, sight := range seen {
		if sight.How == "tcp" {
			f, c, err := s.arrival(sight.Src, r.Addr("local"))
			return f, c, r, err
		}
	}
	after, err := s.begun(v6, protoTCP)
	switch {
	case err != nil:
		return finding{}, nil, r, err
	case r.OK:
		return findingf(undecided, "an echo came back, but the server did not see the nonce"), nil, r, nil
	case after > before:
		return findingf(direct, "%d packets of the handshake reached the outside (%s)", after-before, r.Err), nil, r, nil
	}
	return refusal(r), nil, r, nil
}

// begun is how many packets of a protocol the outside has seen from the pod; of TCP, only those that begin a connection.
func (s *scene) begun(v6 bool, proto int) (int, error) {
	counts, err := s.lab.Outside.Counts()
	return counts[fmt.Sprintf("%s/%d", s.pod.Addr(v6), proto)], err
}

// sctp is tcp for SCTP. The sidecar has none, so any packet that the outside sees went round it.
func (s *scene) sctp(ctx context.Context, v6 bool) (finding, error) {
	before, err := s.begun(v6, protoSCTP)
	if err != nil {
		return finding{}, err
	}
	f, err := s.appPacket(ctx, "tcp", "--proto", "sctp", "--to", s.lab.Outside.Echo(v6).String(), "--timeout", "1500ms")
	if err != nil {
		return finding{}, err
	}
	after, err := s.begun(v6, protoSCTP)
	if f.Outcome != direct && after > before {
		return findingf(direct, "%d packets of the handshake reached the outside (%s)", after-before, f.Detail), err
	}
	return f, err
}

// http lets the app get something from nginx and decides by nginx's log.
func (s *scene) http(ctx context.Context, command string, v6 bool, path string, flags ...string) (finding, *lab.Carried, lab.Result, error) {
	nonce := newNonce()
	args := append([]string{command, "--to", s.lab.Outside.HTTP(v6).String(), "--path", path + "?" + nonce}, flags...)
	r, err := s.app.Probe(ctx, args...)
	if err != nil {
		return finding{}, nil, r, err
	}
	if !r.OK {
		return refusal(r), nil, r, nil
	}
	var requests []lab.Request
	err = lab.WaitFor(logTime, "nginx's log", func() (bool, error) {
		requests, err = s.lab.Outside.Requests(nonce)
		return len(requests) > 0, err
	})
	if err != nil {
		return finding{}, nil, r, err
	}
	f, c, err := s.arrival(requests[0].Client, r.Addr("local"))
	return f, c, r, err
}

// packet decides an attempt that sends nonce in a packet of its own, by whether the outside saw it.
func (s *scene) packet(nonce string, r lab.Result) (finding, error) {
	if nowhere(r) {
		return findingf(absent, "%s %s", r.Err, r.Errno), nil
	}
	seen, err := s.lab.Outside.Seen(nonce)
	switch {
	case err != nil:
		return finding{}, err
	case len(seen) > 0:
		return findingf(direct, "IP protocol %d from %s seen outside", seen[0].Proto, seen[0].Src.Addr()), nil
	case r.OK:
		return findingf(blocked, "sent, but nothing came out"), nil
	}
	return refusal(r), nil
}

// appPacket lets the app send a packet by one of the prober's commands.
func (s *scene) appPacket(ctx context.Context, args ...string) (finding, error) {
	nonce := newNonce()
	r, err := s.app.Probe(ctx, append(args, "--nonce", nonce)...)
	if err != nil {
		return finding{}, err
	}
	return s.packet(nonce, r)
}
