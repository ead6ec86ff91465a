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
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectUNIX connects to a path, or to an abstract name after an @. A padded name has zeros up to the end of the address, which count.
func connectUNIX(fd int, path string, padded bool) error {
	if !padded {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	sa := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i, b := range []byte(strings.TrimPrefix(path, "@")) {
		sa.Path[1+i] = int8(b)
	}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	if errno != 0 {
		return errno
	}
	return nil
}

// runHandoverServe gives each client of a UNIX socket a TCP socket of its own making: one that is connected to --to, or one that listens
// on --on.
func runHandoverServe(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("handover-serve", flag.ContinueOnError)
	path := fs.String("path", "", "`path` or @name of the UNIX socket")
	kind := fs.String("kind", "connected", "connected or listening")
	var to, on netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "`address:port` to connect to")
	fs.TextVar(&on, "on", netip.AddrPort{}, "`address:port` to listen on")
	count := fs.Int("count", 1, "for how many clients")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	l, err := socketBySyscall(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return newResult(), err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrUnix{Name: *path}); err != nil {
		return newResult(), os.NewSyscallError("bind", err)
	}
	if !strings.HasPrefix(*path, "@") {
		if err := os.Chmod(*path, 0o777); err != nil {
			return newResult(), err
		}
	}
	if err := unix.Listen(l, 8); err != nil {
		return newResult(), os.NewSyscallError("listen", err)
	}
	newResult().print(os.Stdout)
	for range *count {
		c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return newResult(), os.NewSyscallError("accept", err)
		}
		give := -1
		if *kind == "listening" {
			give, err = bound(on, false, true)
		} else if give, err = socketBySyscall(family(to.Addr(), false), unix.SOCK_STREAM, 0); err == nil {
			err = os.NewSyscallError("connect", unix.Connect(give, sockaddr(to, false)))
		}
		if err == nil {
			err = os.NewSyscallError("sendmsg", unix.Sendmsg(c, []byte("x"), unix.UnixRights(give), nil, 0))
			unix.Close(give)
		}
		unix.Close(c)
		newResult().withError(err).print(os.Stdout)
	}
	return nil, nil
}

// runHandoverTake takes a TCP socket from handover-serve and uses it.
func runHandoverTake(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("handover-take", flag.ContinueOnError)
	path := fs.String("path", "", "`path` or @name of the UNIX socket")
	accept := fs.Bool("accept", false, "the socket listens: say so in a line, and take a connection")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	c, err := socketBySyscall(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return res, err
	}
	defer unix.Close(c)
	if err := unix.Connect(c, &unix.SockaddrUnix{Name: *path}); err != nil {
		return res, os.NewSyscallError("connect", err)
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(c, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return res, os.NewSyscallError("recvmsg", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return res, errors.Join(errors.New("no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return res, errors.Join(errors.New("no descriptor came"), err)
	}
	defer unix.Close(fds[0])
	return useSocket(fds[0], *accept, *nonce)
}

// handoverLimit is how long the other end of a socket of others may take.
const handoverLimit = 5 * time.Second

// useSocket sends a nonce on a connected socket and reads it back, or echoes a line of a connection to one that listens.
func useSocket(fd int, accept bool, nonce string) (*result, error) {
	if accept {
		newResult().print(os.Stdout)
		return takeConn(fd, handoverLimit)
	}
	res := newResult()
	c := &conn{fd: fd}
	c.addresses()
	c.report(res)
	if _, err := c.Write([]byte(nonce + "\n")); err != nil {
		return res, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	res.Data["line"] = line
	return res, err
}

// runUNIX sends a text to a UNIX socket and reports the beginning of the answer.
func runUNIX(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("unix", flag.ContinueOnError)
	path := fs.String("path", "", "`path` or @name of the socket")
	padded := fs.Bool("padded", false, "the abstract name has zeros up to its end")
	rootOf := fs.String("root-of", "", "look for the path in the root directory of the process of this `name`")
	send := fs.String("send", "", "`text` to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	if *rootOf != "" {
		pids, err := processesNamed(*rootOf)
		if err != nil {
			return res, err
		}
		// It is too long for an address, but not below a descriptor.
		root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pids[0]), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return res, os.NewSyscallError("open", err)
		}
		defer unix.Close(root)
		*path = fmt.Sprintf("/proc/self/fd/%d%s", root, *path)
	}
	fd, err := socketBySyscall(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return res, err
	}
	c := &conn{fd: fd}
	defer c.Close()
	if err := connectUNIX(fd, *path, *padded); err != nil {
		return res, os.NewSyscallError("connect", err)
	}
	if _, err := c.Write([]byte(*send)); err != nil {
		return res, err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return res, os.NewSyscallError("shutdown", err)
	}
	b, err := io.ReadAll(io.LimitReader(c, 4096))
	res.Data["answer"] = string(b)
	return res, err
}

// processesNamed are those whose program has this name, at least one.
func processesNamed(name string) ([]int, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, pid := range all {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) == name {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		return nil, failed("no process is named %q", name)
	}
	return pids, nil
}

// runSteal takes a listening socket of another process by pidfd_getfd, says so in a line, and takes a connection that is meant for that.
func runSteal(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("steal", flag.ContinueOnError)
	comm := fs.String("comm", "haproxy", "`name` of the process")
	uid := fs.Int("uid", -1, "become this user first")
	port := fs.Uint("port", 0, "`port` that the socket listens on")
	timeout := fs.Duration("timeout", time.Second, "how long to wait for a connection")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	pids, err := processesNamed(*comm)
	if err != nil {
		return newResult(), err
	}
	if *uid >= 0 {
		if err := become(*uid); err != nil {
			return newResult(), err
		}
	}
	var stolen []int
	// It does not take its connections itself meanwhile.
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return newResult(), os.NewSyscallError("kill", err)
		}
		defer func() { _ = unix.Kill(pid, unix.SIGCONT) }()
	}
	err = anyOf(pids, func(pid int) error {
		fds, err := listeners(pid, uint16(*port))
		stolen = append(stolen, fds...)
		return err
	})
	if err != nil {
		return newResult(), err
	}
	res := newResult()
	res.Data["listening"] = fmt.Sprintf("%d stolen sockets", len(stolen))
	res.print(os.Stdout)
	return takeConn(stolen[0], *timeout)
}

// listeners takes the sockets of a process that listen on a port.
func listeners(pid int, port uint16) ([]int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	var taken []int
	for n := range 64 {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err == unix.EBADF {
			continue
		}
		if err != nil {
			return taken, os.NewSyscallError("pidfd_getfd", err)
		}
		listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		sa, err := unix.Getsockname(fd)
		if local, perr := netip.ParseAddrPort(addrPort(sa)); err == nil && perr == nil && listens == 1 && local.Addr().Is4() && local.Port() == port {
			taken = append(taken, fd)
			continue
		}
		unix.Close(fd)
	}
	if len(taken) == 0 {
		return nil, failed("process %d listens on no port %d", pid, port)
	}
	return taken, nil
}
