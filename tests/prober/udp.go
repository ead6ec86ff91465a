// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// runUDP sends one datagram and waits for its echo. An error of the send is reported at once; silence is ETIMEDOUT.
func runUDP(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("udp", flag.ContinueOnError)
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "destination `address:port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	connected := fs.Bool("connected", false, "connect the socket first")
	mapped := fs.Bool("mapped", false, "reach IPv4 through an IPv6 socket")
	lite := fs.Bool("lite", false, "UDP-Lite instead of UDP")
	timeout := fs.Duration("timeout", time.Second, "how long to wait for the echo")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !to.IsValid() {
		return nil, &usageError{errors.New("--to is missing")}
	}
	proto := unix.IPPROTO_UDP
	if *lite {
		proto = unix.IPPROTO_UDPLITE
	}
	res := newResult()
	fd, err := unix.Socket(family(to.Addr(), *mapped), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)

	if *connected {
		if err := unix.Connect(fd, sockaddr(to, *mapped)); err != nil {
			return res, os.NewSyscallError("connect", err)
		}
		if err := unix.Send(fd, []byte(*nonce), unix.MSG_NOSIGNAL); err != nil {
			return res, os.NewSyscallError("send", err)
		}
	} else if err := unix.Sendto(fd, []byte(*nonce), unix.MSG_NOSIGNAL, sockaddr(to, *mapped)); err != nil {
		return res, os.NewSyscallError("sendto", err)
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		res.Data["local"] = addrPort(sa)
	}
	b := make([]byte, 2048)
	n, from, err := receive(fd, b, *timeout)
	if err != nil {
		return res, fmt.Errorf("echo: %w", err)
	}
	res.Data["peer"] = addrPort(from)
	if !bytes.Equal(b[:n], []byte(*nonce)) {
		return res, fmt.Errorf("echo is %q", b[:n])
	}
	return res, nil
}

// receive waits for one datagram.
func receive(fd int, b []byte, timeout time.Duration) (int, unix.Sockaddr, error) {
	if err := poll(fd, unix.POLLIN, timeout); err != nil {
		return 0, nil, err
	}
	n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	return n, from, os.NewSyscallError("recvfrom", err)
}
