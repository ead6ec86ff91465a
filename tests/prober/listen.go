// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// runListen binds and listens, says so in a line of its own, and echoes one line of each connection that it accepts. With --accept 0
// it ends after the first line: the attempt is the bind.
func runListen(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("listen", flag.ContinueOnError)
	var on netip.AddrPort
	fs.TextVar(&on, "on", netip.AddrPort{}, "`address:port`")
	udp := fs.Bool("udp", false, "UDP: bind, and echo datagrams")
	reuseport := fs.Bool("reuseport", false, "set SO_REUSEPORT")
	foreign := fs.String("bind-any", "", "transparent or freebind")
	accept := fs.Int("accept", 0, "how many connections (or datagrams) to take")
	timeout := fs.Duration("timeout", 10*time.Second, "how long to wait for each")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !on.IsValid() {
		return nil, &usageError{errors.New("--on is missing")}
	}
	fd, err := boundAs(on, *udp, func(fd int) error {
		return errors.Join(bindAny(fd, *foreign, on.Addr().Is6()), reusePort(fd, *reuseport))
	})
	if err != nil {
		return newResult(), err
	}
	defer unix.Close(fd)

	res := newResult()
	if sa, err := unix.Getsockname(fd); err == nil {
		res.Data["listening"] = addrPort(sa)
	}
	if *accept == 0 {
		return res, nil
	}
	res.print(os.Stdout)
	take := takeConn
	if *udp {
		take = takeDatagram
	}
	for range *accept {
		res, err := take(fd, *timeout)
		res.withError(err).print(os.Stdout)
		if err != nil {
			return nil, nil
		}
	}
	return nil, nil
}

// bound returns a bound socket, which listens if it is TCP.
func bound(on netip.AddrPort, udp, reuseport bool) (int, error) {
	return boundAs(on, udp, func(fd int) error { return reusePort(fd, reuseport) })
}

func reusePort(fd int, on bool) error {
	if !on {
		return nil
	}
	return os.NewSyscallError("setsockopt SO_REUSEPORT", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

// boundAs is bound, and sets options before.
func boundAs(on netip.AddrPort, udp bool, options func(fd int) error) (int, error) {
	kind := unix.SOCK_STREAM
	if udp {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family(on.Addr(), false), kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = func() error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
		if err := options(fd); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(on, false)); err != nil {
			return os.NewSyscallError("bind", err)
		}
		if udp {
			return nil
		}
		return os.NewSyscallError("listen", unix.Listen(fd, 16))
	}()
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// takeConn accepts one connection and echoes its first line.
func takeConn(fd int, timeout time.Duration) (*result, error) {
	res := newResult()
	if err := poll(fd, unix.POLLIN, timeout); err != nil {
		return res, fmt.Errorf("accept: %w", err)
	}
	nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return res, os.NewSyscallError("accept", err)
	}
	c := &conn{fd: nfd}
	defer c.Close()
	c.addresses()
	c.report(res)
	tv := unix.NsecToTimeval(int64(timeout))
	if err := unix.SetsockoptTimeval(nfd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return res, os.NewSyscallError("setsockopt SO_RCVTIMEO", err)
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	res.Data["line"] = line
	if err != nil {
		return res, fmt.Errorf("line: %w", err)
	}
	_, err = io.WriteString(c, line)
	return res, err
}

// takeDatagram receives one datagram and sends it back.
func takeDatagram(fd int, timeout time.Duration) (*result, error) {
	res := newResult()
	b := make([]byte, 2048)
	n, from, err := receive(fd, b, timeout)
	if err != nil {
		return res, err
	}
	res.Data["peer"], res.Data["line"] = addrPort(from), string(b[:n])
	return res, os.NewSyscallError("sendto", unix.Sendto(fd, b[:n], 0, from))
}
