// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// runInherited uses a socket that somebody else made: it sends a nonce and waits for its echo, or is itself the echo.
func runInherited(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("inherited", flag.ContinueOnError)
	fd := fs.Int("fd", 3, "`descriptor` of the socket")
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "connect it to this IPv4 `address:port` first")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	accept := fs.Bool("accept", false, "it listens: take a connection, and echo its line")
	timeout := fs.Duration("timeout", 3*time.Second, "how long to wait for anything")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if *accept {
		return useSocket(*fd, true, *nonce)
	}
	defer watchdog(2 * *timeout).Stop()
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(*fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if to.IsValid() {
		if err := unix.Connect(*fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			return nil, os.NewSyscallError("connect", err)
		}
	}
	if _, err := unix.Write(*fd, []byte(*nonce+"\n")); err != nil {
		return nil, os.NewSyscallError("write", err)
	}
	b := make([]byte, 1500)
	n, err := unix.Read(*fd, b)
	if err != nil {
		return nil, os.NewSyscallError("read", err)
	}
	if got := string(b[:n]); !strings.Contains(got, *nonce) {
		return nil, failed("echo is %q", got)
	}
	return newResult(), nil
}
