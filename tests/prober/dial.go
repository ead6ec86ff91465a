// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dialer says how to open a stream connection; each field is one way in which a connection can be odd.
type dialer struct {
	to         netip.AddrPort
	proto      string         // tcp, mptcp or sctp
	mapped     bool           // IPv4 through an IPv6 socket
	nonblock   bool           // O_NONBLOCK connect, then poll
	fastopen   bool           // sendto with MSG_FASTOPEN instead of connect
	tfoConnect bool           // TCP_FASTOPEN_CONNECT: the SYN leaves with the first write
	uring      bool           // connect by io_uring
	uringMake  bool           // make the socket by io_uring
	repair     bool           // TCP_REPAIR: connect without a handshake
	unspecFrom netip.AddrPort // connect here first, then dissolve with AF_UNSPEC
	uid        int            // become this user first
	gid        int            // and this group alone
	late       bool           // become it when the socket is there already
	mark       int            // SO_MARK
	bindSrc    netip.Addr     // bind to this source address
	bindDev    string         // SO_BINDTODEVICE
	bindAny    string         // transparent or freebind: bindSrc need not be ours
	route      netip.Addr     // first hop of a loose source route
	timeout    time.Duration
}

// flags registers the dialer's options.
func (d *dialer) flags(fs *flag.FlagSet) {
	fs.TextVar(&d.to, "to", netip.AddrPort{}, "destination `address:port`")
	fs.StringVar(&d.proto, "proto", "tcp", "tcp, mptcp or sctp")
	fs.BoolVar(&d.mapped, "mapped", false, "reach IPv4 through an IPv6 socket")
	fs.BoolVar(&d.nonblock, "nonblock", false, "connect without blocking")
	fs.BoolVar(&d.fastopen, "fastopen", false, "connect by sendto with MSG_FASTOPEN")
	fs.BoolVar(&d.tfoConnect, "fastopen-connect", false, "connect with TCP_FASTOPEN_CONNECT")
	fs.BoolVar(&d.uring, "uring", false, "connect by io_uring")
	fs.BoolVar(&d.uringMake, "uring-socket", false, "make the socket by io_uring")
	fs.BoolVar(&d.repair, "repair", false, "connect with TCP_REPAIR, without a handshake")
	fs.IntVar(&d.gid, "gid", -1, "become this group first")
	fs.BoolVar(&d.late, "late", false, "change user and group when the socket is there already")
	fs.StringVar(&d.bindAny, "bind-any", "", "transparent or freebind: the source address may be a foreign one")
	fs.TextVar(&d.route, "lsrr", netip.Addr{}, "loose source route through this `address`")
	fs.TextVar(&d.unspecFrom, "unspec-from", netip.AddrPort{}, "connect to this `address:port` first and dissolve it with AF_UNSPEC")
	fs.IntVar(&d.uid, "uid", -1, "become this user first")
	fs.IntVar(&d.mark, "mark", 0, "set SO_MARK")
	fs.TextVar(&d.bindSrc, "bind-src", netip.Addr{}, "bind to this source `address`")
	fs.StringVar(&d.bindDev, "bind-dev", "", "bind to this `device`")
	fs.DurationVar(&d.timeout, "timeout", 3*time.Second, "how long to wait for anything")
}

func (d *dialer) check() error {
	if !d.to.IsValid() {
		return &usageError{errors.New("--to is missing")}
	}
	return nil
}

// conn is a connected stream socket. Its reads and writes end with EAGAIN after the dialer's timeout.
type conn struct {
	fd    int
	local string // getsockname
	peer  string // getpeername
}

func (c *conn) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, errEOF
		}
		return n, nil
	}
}

func (c *conn) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(c.fd, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, os.NewSyscallError("write", err)
		}
		done += n
	}
	return done, nil
}

func (c *conn) Close() error { return unix.Close(c.fd) }

// echo sends a nonce as a line and reads it back.
func (c *conn) echo(nonce string) error {
	line := []byte(nonce + "\n")
	if _, err := c.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	if !bytes.Equal(got, line) {
		return fmt.Errorf("echo is %q, not %q", got, line)
	}
	return nil
}

// limitWaits ends reads, writes and connects of a socket with EAGAIN or EINPROGRESS after a while.
func limitWaits(fd int, limit time.Duration) error {
	tv := unix.NsecToTimeval(int64(limit))
	for _, name := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, name, &tv); err != nil {
			return os.NewSyscallError("setsockopt timeout", err)
		}
	}
	return nil
}

// addresses fills in what the kernel says of both ends.
func (c *conn) addresses() {
	if sa, err := unix.Getsockname(c.fd); err == nil {
		c.local = addrPort(sa)
	}
	if sa, err := unix.Getpeername(c.fd); err == nil {
		c.peer = addrPort(sa)
	}
}

// report puts the connection's addresses into res.
func (c *conn) report(res *result) {
	res.Data["local"], res.Data["peer"] = c.local, c.peer
}

// dial opens the connection. first is what the caller writes first: with TCP Fast Open it rides on the connect, and the returned
// count says how much of it is gone.
func (d *dialer) dial(first []byte) (*conn, int, error) {
	if !d.late {
		if err := d.become(); err != nil {
			return nil, 0, err
		}
	}
	fd, err := d.socket()
	if err != nil {
		return nil, 0, err
	}
	c := &conn{fd: fd}
	if d.late {
		err = d.become()
	}
	sent := 0
	if err == nil {
		sent, err = d.connect(c, first)
	}
	if err != nil {
		c.Close()
		return nil, 0, err
	}
	c.addresses()
	return c, sent, nil
}

// become changes user and group, as far as asked.
func (d *dialer) become() error {
	if d.gid >= 0 {
		if err := unix.Setresgid(d.gid, d.gid, d.gid); err != nil {
			return os.NewSyscallError("setresgid", err)
		}
	}
	if d.uid < 0 {
		return nil
	}
	return become(d.uid)
}

// become gives up root, as a process in a container does.
func become(uid int) error {
	if err := unix.Setresgid(uid, uid, uid); err != nil {
		return os.NewSyscallError("setresgid", err)
	}
	return os.NewSyscallError("setresuid", unix.Setresuid(uid, uid, uid))
}

// socket makes and configures the socket.
func (d *dialer) socket() (int, error) {
	proto, ok := map[string]int{"tcp": unix.IPPROTO_TCP, "mptcp": unix.IPPROTO_MPTCP, "sctp": unix.IPPROTO_SCTP}[d.proto]
	if !ok {
		return -1, &usageError{fmt.Errorf("unknown protocol %q", d.proto)}
	}
	create := socketBySyscall
	if d.uringMake {
		create = uringSocket
	}
	fd, err := create(family(d.to.Addr(), d.mapped), unix.SOCK_STREAM, proto)
	if err != nil {
		return -1, err
	}
	if err := d.configure(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func socketBySyscall(family, kind, proto int) (int, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	return fd, os.NewSyscallError("socket", err)
}

func (d *dialer) configure(fd int) error {
	if err := limitWaits(fd, d.timeout); err != nil {
		return err
	}
	if d.mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, d.mark); err != nil {
			return os.NewSyscallError("setsockopt SO_MARK", err)
		}
	}
	if d.bindDev != "" {
		if err := unix.BindToDevice(fd, d.bindDev); err != nil {
			return os.NewSyscallError("setsockopt SO_BINDTODEVICE", err)
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
	if d.repair {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			return os.NewSyscallError("setsockopt TCP_REPAIR", err)
		}
	}
	if d.bindSrc.IsValid() {
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(d.bindSrc, 0), d.mapped)); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	if d.tfoConnect {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
			return os.NewSyscallError("setsockopt TCP_FASTOPEN_CONNECT", err)
		}
	}
	return nil
}

// connect connects c in the way that d says and returns how much of first it sent on the way.
func (d *dialer) connect(c *conn, first []byte) (int, error) {
	if d.unspecFrom.IsValid() {
		if err := unix.Connect(c.fd, sockaddr(d.unspecFrom, d.mapped)); err != nil {
			return 0, os.NewSyscallError("first connect", err)
		}
		if err := dissolve(c.fd); err != nil {
			return 0, err
		}
	}
	to := sockaddr(d.to, d.mapped)
	switch {
	case d.fastopen:
		n, err := unix.SendmsgN(c.fd, first, nil, to, unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL)
		return n, os.NewSyscallError("sendto MSG_FASTOPEN", err)
	case d.uring:
		return 0, uringConnect(c.fd, rawSockaddr(d.to, d.mapped), d.timeout)
	case d.nonblock:
		return 0, connectNonblock(c.fd, to, d.timeout)
	}
	err := unix.Connect(c.fd, to)
	if err == nil && d.repair {
		// struct tcp_repair_window: what the other end, which knows of nothing, would take.
		const repairWindow, window = 29, 1 << 15
		b := make([]byte, 0, 20)
		for _, v := range []uint32{0, window, window, window, 0} {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		err = unix.SetsockoptString(c.fd, unix.IPPROTO_TCP, repairWindow, string(b))
	}
	if err == nil && d.repair {
		const offWithoutProbe = -1
		err = unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, offWithoutProbe)
	}
	if err == unix.EINPROGRESS { // SO_SNDTIMEO ran out
		err = unix.ETIMEDOUT
	}
	if err != nil || !d.tfoConnect {
		return 0, os.NewSyscallError("connect", err)
	}
	return c.Write(first)
}

// bindAny lets a socket be bound to addresses that are not the machine's.
func bindAny(fd int, how string, v6 bool) error {
	level, transparent, freebind := unix.IPPROTO_IP, unix.IP_TRANSPARENT, unix.IP_FREEBIND
	if v6 {
		level, transparent, freebind = unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_FREEBIND
	}
	switch how {
	case "":
		return nil
	case "transparent":
		return os.NewSyscallError("setsockopt IP_TRANSPARENT", unix.SetsockoptInt(fd, level, transparent, 1))
	case "freebind":
		return os.NewSyscallError("setsockopt IP_FREEBIND", unix.SetsockoptInt(fd, level, freebind, 1))
	}
	return &usageError{fmt.Errorf("--bind-any is transparent or freebind, not %q", how)}
}

// sourceRoute lets all packets of a socket go through hop first (RFC 791, "Loose Source and Record Route"). The kernel takes the first
// address for the hop, and keeps room for the destination in the second.
func sourceRoute(fd int, hop netip.Addr) error {
	const nop, lsrr = 1, 131
	option := append([]byte{nop, lsrr, 3 + 2*4, 4}, hop.AsSlice()...)
	option = append(option, hop.AsSlice()...)
	return os.NewSyscallError("setsockopt IP_OPTIONS", unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(option)))
}

// dissolve takes the peer away from a connected socket.
func dissolve(fd int) error {
	var sa unix.RawSockaddr
	sa.Family = unix.AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	if errno != 0 {
		return os.NewSyscallError("connect AF_UNSPEC", errno)
	}
	return nil
}

func connectNonblock(fd int, to unix.Sockaddr, timeout time.Duration) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	err := unix.Connect(fd, to)
	if err == unix.EINPROGRESS {
		if err = poll(fd, unix.POLLOUT, timeout); err != nil {
			return err
		}
		var value int
		if value, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && value != 0 {
			err = unix.Errno(value)
		}
	}
	if err != nil {
		return os.NewSyscallError("connect", err)
	}
	return os.NewSyscallError("fcntl", unix.SetNonblock(fd, false))
}

// poll waits until fd has one of events, or returns ETIMEDOUT.
func poll(fd int, events int16, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		left := max(time.Until(deadline), 0)
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return os.NewSyscallError("poll", unix.ETIMEDOUT)
		}
		return nil
	}
}
