// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A loop is a thread's epoll. Its system calls are not told to the Go runtime, which would look for other work on each: a request
// through client, relay and upstream costs what the same programs in C would cost, so that the hop is what is measured. Nobody
// collects garbage in a program that has one (GOGC=off), and nothing in a loop makes any.
type loop struct {
	ep     int
	events []unix.EpollEvent
	ends   []end // by descriptor
	buf    []byte
}

// An end is an open descriptor. Its number may be used again while events of the one before are still in the list, hence the life.
type end struct {
	h    handler
	life int32
}

// A handler is told what can be done with a descriptor.
type handler interface {
	ready(fd int, events uint32)
}

const (
	loopEvents = 256
	loopBuffer = 128 << 10
	maxEnds    = 1 << 15
)

func newLoop() (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &loop{ep: ep, events: make([]unix.EpollEvent, loopEvents), ends: make([]end, maxEnds), buf: make([]byte, loopBuffer)}, nil
}

func (l *loop) close() error { return unix.Close(l.ep) }

// add takes an open descriptor. It is closed by drop.
func (l *loop) add(fd int, events uint32, h handler) error {
	if fd >= len(l.ends) {
		return errors.New("too many descriptors")
	}
	l.ends[fd].h = h
	return l.control(unix.EPOLL_CTL_ADD, fd, events)
}

// want says which events of a descriptor are waited for. Its end, and errors, always are.
func (l *loop) want(fd int, events uint32) error { return l.control(unix.EPOLL_CTL_MOD, fd, events) }

func (l *loop) control(op, fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: l.ends[fd].life}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return asError("epoll_ctl", errno)
}

// drop closes a descriptor, at once and without a TIME-WAIT if it is a connection that is to be broken off.
func (l *loop) drop(fd int, breakOff bool) {
	l.ends[fd].h = nil
	l.ends[fd].life++
	if breakOff {
		_ = reset(fd) // else the other end sees an ordinary one
		return
	}
	_ = unix.Close(fd)
}

// wait waits for events, at most this many milliseconds, or for ever if there are less than 0, and has them handled.
func (l *loop) wait(ms int) (events int, err error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(l.ep), uintptr(unsafe.Pointer(&l.events[0])), loopEvents, uintptr(ms), 0, 0)
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, os.NewSyscallError("epoll_wait", errno)
	}
	for _, ev := range l.events[:n] {
		if e := &l.ends[ev.Fd]; e.h != nil && e.life == ev.Pad {
			e.h.ready(int(ev.Fd), ev.Events)
		}
	}
	return int(n), nil
}

func asError(name string, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(name, errno)
}

// rawRead and rawWrite are for descriptors that do not block.
func rawRead(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// writeSome writes what the descriptor takes now.
func writeSome(fd int, b []byte) (int, error) {
	n, errno := rawWrite(fd, b)
	switch errno {
	case 0:
		return n, nil
	case unix.EAGAIN:
		return 0, nil
	}
	return 0, os.NewSyscallError("write", errno)
}

// rawAccept takes a connection, without a wait.
func rawAccept(fd int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno != unix.EINTR && errno != unix.ECONNABORTED {
			return int(n), errno
		}
	}
}

// noDelay has small writes sent at once. Sockets that are not TCP's do that anyway.
func noDelay(fd int) { _ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// An acceptor takes connections.
type acceptor struct {
	l    *loop
	take func(fd int)
}

// ready takes what is there, but not for ever.
func (a *acceptor) ready(fd int, _ uint32) {
	for range 64 {
		c, errno := rawAccept(fd)
		if errno != 0 {
			return
		}
		if c >= maxEnds {
			_ = unix.Close(c)
			continue
		}
		a.take(c)
	}
}

// listen has a loop take the connections to an address.
func (l *loop) listen(addr string, take func(fd int)) error {
	sa, family, err := parseTarget(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return errors.Join(os.NewSyscallError("listen", err), unix.Close(fd))
	}
	return l.add(fd, unix.EPOLLIN, &acceptor{l, take})
}

// start begins a connection. The descriptor is writable when it is there.
func start(family int, sa unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if family != unix.AF_UNIX {
		noDelay(fd)
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return -1, errors.Join(os.NewSyscallError("connect", err), unix.Close(fd))
	}
	return fd, nil
}
