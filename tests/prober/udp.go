// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A datagram says how one is sent.
type datagram struct {
	to        netip.AddrPort
	how       string
	connected bool
	mapped    bool
	lite      bool
	broadcast bool
	uid       int
	bindDev   string
	bindSrc   netip.Addr
	bindAny   string
	route     netip.Addr
	unspec    netip.AddrPort
	multicast string
}

// runUDP sends one datagram and waits for its echo. An error of the send is reported at once; silence is ETIMEDOUT.
func runUDP(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("udp", flag.ContinueOnError)
	var d datagram
	fs.TextVar(&d.to, "to", netip.AddrPort{}, "destination `address:port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	size := fs.Int("size", 0, "fill up to this many bytes, and end with the nonce again")
	fs.BoolVar(&d.connected, "connected", false, "connect the socket first")
	fs.BoolVar(&d.mapped, "mapped", false, "reach IPv4 through an IPv6 socket")
	fs.BoolVar(&d.lite, "lite", false, "UDP-Lite instead of UDP")
	fs.BoolVar(&d.broadcast, "broadcast", false, "set SO_BROADCAST")
	fs.StringVar(&d.how, "how", "sendto", "sendto, writev, sendmmsg, gso, cork, zerocopy, pktinfo, uring, uring-zc or uring-msg-zc")
	fs.IntVar(&d.uid, "uid", -1, "become this user first")
	fs.StringVar(&d.bindDev, "bind-dev", "", "bind to this `device`")
	fs.TextVar(&d.bindSrc, "bind-src", netip.Addr{}, "bind to this source `address`")
	fs.StringVar(&d.bindAny, "bind-any", "", "transparent or freebind: the source address may be a foreign one")
	fs.TextVar(&d.route, "lsrr", netip.Addr{}, "loose source route through this `address`")
	fs.TextVar(&d.unspec, "unspec-from", netip.AddrPort{}, "connect to this `address:port` first and dissolve it with AF_UNSPEC")
	fs.StringVar(&d.multicast, "multicast-if", "", "send to a group through this `device`")
	silent := fs.Bool("no-echo", false, "do not wait for an echo")
	timeout := fs.Duration("timeout", time.Second, "how long to wait for the echo")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !d.to.IsValid() {
		return nil, &usageError{errors.New("--to is missing")}
	}
	payload := []byte(*nonce)
	if fill := *size - 2*len(payload); fill > 0 {
		payload = slices.Concat(payload, bytes.Repeat([]byte{'.'}, fill), payload)
	}
	res := newResult()
	if d.uid >= 0 {
		if err := become(d.uid); err != nil {
			return res, err
		}
	}
	fd, err := d.socket()
	if err != nil {
		return res, err
	}
	defer unix.Close(fd)
	if err := d.send(fd, payload); err != nil {
		return res, err
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		res.Data["local"] = addrPort(sa)
	}
	if *silent {
		return res, nil
	}
	b := make([]byte, 64<<10)
	n, from, err := receive(fd, b, *timeout)
	if err != nil {
		return res, fmt.Errorf("echo: %w", err)
	}
	res.Data["peer"] = addrPort(from)
	if !bytes.Contains(b[:n], []byte(*nonce)) {
		return res, fmt.Errorf("echo is %q", b[:min(n, 100)])
	}
	return res, nil
}

// socket makes and configures the socket.
func (d *datagram) socket() (int, error) {
	proto := unix.IPPROTO_UDP
	if d.lite {
		proto = unix.IPPROTO_UDPLITE
	}
	fd, err := socketBySyscall(family(d.to.Addr(), d.mapped), unix.SOCK_DGRAM, proto)
	if err != nil {
		return -1, err
	}
	if err := d.configure(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (d *datagram) configure(fd int) error {
	if d.broadcast {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_BROADCAST", err)
		}
	}
	if d.bindDev != "" {
		if err := unix.BindToDevice(fd, d.bindDev); err != nil {
			return os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
		}
	}
	if d.multicast != "" {
		ifi, err := net.InterfaceByName(d.multicast)
		if err != nil {
			return err
		}
		if d.to.Addr().Is6() {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index)
		} else {
			err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ifi.Index)})
		}
		if err != nil {
			return os.NewSyscallError("setsockopt MULTICAST_IF", err)
		}
	}
	if err := bindAny(fd, d.bindAny, d.to.Addr().Is6()); err != nil {
		return err
	}
	if d.route.IsValid() {
		if err := sourceRoute(fd, d.route); err != nil {
			return err
		}
	}
	if d.bindSrc.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(d.bindSrc, 0), d.mapped)); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	if d.unspec.IsValid() {
		if err := unix.Connect(fd, sockaddr(d.unspec, d.mapped)); err != nil {
			return os.NewSyscallError("first connect", err)
		}
		if err := dissolve(fd); err != nil {
			return err
		}
	}
	if d.connected {
		return os.NewSyscallError("connect", unix.Connect(fd, sockaddr(d.to, d.mapped)))
	}
	return nil
}

// send sends b in the way that d says.
func (d *datagram) send(fd int, b []byte) error {
	to := sockaddr(d.to, d.mapped)
	if d.connected {
		to = nil
	}
	set := func(level, name, value int, what string) error {
		return os.NewSyscallError("setsockopt "+what, unix.SetsockoptInt(fd, level, name, value))
	}
	const udpCork, udpSegment, msgZerocopy = 1, 103, 0x4000000
	switch d.how {
	case "sendto":
		if d.connected {
			return os.NewSyscallError("send", unix.Send(fd, b, unix.MSG_NOSIGNAL))
		}
		return os.NewSyscallError("sendto", unix.Sendto(fd, b, unix.MSG_NOSIGNAL, to))
	case "writev":
		_, err := unix.Writev(fd, [][]byte{b[:len(b)/2], b[len(b)/2:]})
		return os.NewSyscallError("writev", err)
	case "sendmmsg":
		return d.sendmmsg(fd, b)
	case "gso": // two datagrams from one call
		if err := set(unix.IPPROTO_UDP, udpSegment, len(b), "UDP_SEGMENT"); err != nil {
			return err
		}
		return os.NewSyscallError("sendto", unix.Sendto(fd, slices.Concat(b, b), unix.MSG_NOSIGNAL, to))
	case "cork": // what has been sent leaves with the cork
		if err := set(unix.IPPROTO_UDP, udpCork, 1, "UDP_CORK"); err != nil {
			return err
		}
		if err := unix.Sendto(fd, b, unix.MSG_NOSIGNAL, to); err != nil {
			return os.NewSyscallError("sendto", err)
		}
		return set(unix.IPPROTO_UDP, udpCork, 0, "UDP_CORK")
	case "zerocopy":
		if err := set(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1, "SO_ZEROCOPY"); err != nil {
			return err
		}
		return os.NewSyscallError("sendto", unix.Sendto(fd, b, unix.MSG_NOSIGNAL|msgZerocopy, to))
	case "pktinfo":
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		_, err = unix.SendmsgN(fd, b, unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(ifi.Index)}), to, unix.MSG_NOSIGNAL)
		return os.NewSyscallError("sendmsg", err)
	case "uring":
		return uringSend(fd, uringOpSendmsg, b, rawSockaddr(d.to, d.mapped))
	case "uring-zc":
		return uringSend(fd, uringOpSendZC, b, rawSockaddr(d.to, d.mapped))
	case "uring-msg-zc":
		return uringSend(fd, uringOpSendmsgZC, b, rawSockaddr(d.to, d.mapped))
	}
	return &usageError{fmt.Errorf("--how %q is unknown", d.how)}
}

// sendmmsg sends b twice in one call.
func (d *datagram) sendmmsg(fd int, b []byte) error {
	type mmsghdr struct {
		hdr unix.Msghdr
		n   uint32
		_   [4]byte
	}
	sa := rawSockaddr(d.to, d.mapped)
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	msgs := make([]mmsghdr, 2)
	for i := range msgs {
		msgs[i].hdr = unix.Msghdr{Name: &sa[0], Namelen: uint32(len(sa)), Iov: &iov}
		msgs[i].hdr.SetIovlen(1)
	}
	_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_NOSIGNAL, 0, 0)
	runtime.KeepAlive(msgs)
	if errno != 0 {
		return os.NewSyscallError("sendmmsg", errno)
	}
	return nil
}

// receive waits for one datagram.
func receive(fd int, b []byte, timeout time.Duration) (int, unix.Sockaddr, error) {
	if err := poll(fd, unix.POLLIN, timeout); err != nil {
		return 0, nil, err
	}
	n, from, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	return n, from, os.NewSyscallError("recvfrom", err)
}
