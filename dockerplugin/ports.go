// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// protoName is as Docker writes it.
func protoName(proto uint8) string {
	switch proto {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(proto))
}

func parseProto(name string) (uint8, error) {
	for _, p := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		if protoName(p) == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q is not tcp, udp or sctp", name)
}

// reservePort holds a port of the machine until release is closed, so that no
// program gets one whose packets go elsewhere. An invalid ip is all addresses
// of both families.
func reservePort(proto uint8, ip netip.Addr, port uint16) (release io.Closer, err error) {
	release, err = bindPort(proto, ip, port)
	host := "this machine"
	if ip.IsValid() && !ip.IsUnspecified() {
		host = ip.String()
	}
	switch {
	case err == nil:
		return release, nil
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%s port %d is taken by another program on %s: stop it or publish another port: %w",
			protoName(proto), port, host, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s is no address of this machine: publish on another: %w", host, err)
	}
	return nil, fmt.Errorf("reserve %s port %d on %s: %w", protoName(proto), port, host, err)
}

// heldPort is a bound socket. Nobody listens: what reaches the port in spite of
// the rules (::1 does) is refused as if it were free.
type heldPort int

func (h heldPort) Close() error {
	if err := unix.Close(int(h)); err != nil {
		return fmt.Errorf("release port: %w", err)
	}
	return nil
}

func bindPort(proto uint8, ip netip.Addr, port uint16) (io.Closer, error) {
	kind := unix.SOCK_STREAM
	if proto == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	family := unix.AF_INET6
	if ip = ip.Unmap(); ip.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(proto))
	if errors.Is(err, unix.EAFNOSUPPORT) && !ip.IsValid() {
		return bindPort(proto, netip.IPv4Unspecified(), port)
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) && proto == unix.IPPROTO_SCTP {
		return bindName(proto, ip, port)
	}
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	if err := bindSocket(fd, proto, ip, port); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return heldPort(fd), nil
}

func bindSocket(fd int, proto uint8, ip netip.Addr, port uint16) error {
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: int(port), Addr: ip6(ip)}
	set := func(level, opt, value int) error { return unix.SetsockoptInt(fd, level, opt, value) }
	var err error
	switch {
	case ip.Is4():
		addr = &unix.SockaddrInet4{Port: int(port), Addr: ip.As4()}
	case ip.IsValid():
		err = set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	default:
		err = set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err != nil {
		return fmt.Errorf("set IPV6_V6ONLY: %w", err)
	}
	// Old connections of a program that ended are no conflict, a program that
	// starts is: so reuse holds for bind only.
	if proto == unix.IPPROTO_TCP {
		if err := set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
	}
	if err := unix.Bind(fd, addr); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 0); err != nil {
		return fmt.Errorf("set SO_REUSEADDR: %w", err)
	}
	if proto == unix.IPPROTO_UDP {
		// Nobody reads it: the kernel's least.
		if err := set(unix.SOL_SOCKET, unix.SO_RCVBUF, 0); err != nil {
			return fmt.Errorf("set SO_RCVBUF: %w", err)
		}
	}
	return nil
}

// bindName reserves a port of a protocol that the kernel has no sockets for,
// among ourselves, by an abstract UNIX socket.
func bindName(proto uint8, ip netip.Addr, port uint16) (io.Closer, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	name := fmt.Sprintf("@sidegate-docker/%s/%s/%d", protoName(proto), ip, port)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind: %w", err), unix.Close(fd))
	}
	return heldPort(fd), nil
}

// ip6 is :: for an invalid address.
func ip6(ip netip.Addr) [16]byte {
	if !ip.IsValid() {
		return [16]byte{}
	}
	return ip.As16()
}
