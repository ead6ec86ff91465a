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

// runPing sends one echo request with a nonce in it and waits for a packet that brings the nonce back.
func runPing(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("ping", flag.ContinueOnError)
	var to netip.Addr
	fs.TextVar(&to, "to", netip.Addr{}, "destination `address`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	raw := fs.Bool("raw", false, "a raw socket instead of a ping socket")
	timeout := fs.Duration("timeout", time.Second, "how long to wait for the reply")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !to.IsValid() {
		return nil, &usageError{errors.New("--to is missing")}
	}
	proto, kind := unix.IPPROTO_ICMP, unix.SOCK_DGRAM
	if to.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	if *raw {
		kind = unix.SOCK_RAW
	}
	res := newResult()
	fd, err := unix.Socket(family(to, false), kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)

	request := echoRequest(to.Is6(), uint16(os.Getpid()), 1, []byte(*nonce))
	if err := unix.Sendto(fd, request, 0, sockaddr(netip.AddrPortFrom(to, 0), false)); err != nil {
		return res, os.NewSyscallError("sendto", err)
	}
	b := make([]byte, 2048)
	for deadline := time.Now().Add(*timeout); ; {
		n, from, err := receive(fd, b, time.Until(deadline))
		if err != nil {
			return res, fmt.Errorf("reply: %w", err)
		}
		// A raw socket sees others' packets too, and on loopback the request itself.
		if bytes.Contains(b[:n], []byte(*nonce)) && !bytes.Equal(b[:n], request) {
			res.Data["peer"] = addrPort(from)
			return res, nil
		}
	}
}
