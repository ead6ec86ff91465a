// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"net/netip"

	"golang.org/x/sys/unix"
)

// runJoiner is a process that came into a network namespace uninvited: it tries every simple way out. ok means that at least one
// worked; data has the result of each.
func runJoiner(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("joiner", flag.ContinueOnError)
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "TCP and UDP echo server, `address:port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	where := []string{"--to", to.String(), "--nonce", *nonce, "--timeout", "700ms"}
	ways := map[string]func() (*result, error){
		"tcp": func() (*result, error) { return runTCP(ctx, where) },
		"udp": func() (*result, error) { return runUDP(ctx, where) },
		"ping": func() (*result, error) {
			return runPing(ctx, []string{"--to", to.Addr().String(), "--nonce", *nonce, "--timeout", "700ms"})
		},
		"listen": func() (*result, error) {
			fd, err := bound(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), false, false)
			if err == nil {
				unix.Close(fd)
			}
			return newResult(), err
		},
	}
	all := newResult()
	all.OK = false
	for name, way := range ways {
		r, err := way()
		r = r.withError(err)
		all.Data[name] = r
		all.OK = all.OK || (r.OK && name != "listen")
	}
	return all, nil
}
