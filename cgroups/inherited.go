// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// socket is a descriptor of a process that is a network socket.
type socket struct {
	fd               int
	family, protocol int // AF_* and IPPROTO_*
}

func (s socket) String() string {
	family, ok := map[int]string{
		unix.AF_INET: "AF_INET", unix.AF_INET6: "AF_INET6", unix.AF_PACKET: "AF_PACKET", unix.AF_VSOCK: "AF_VSOCK", unix.AF_XDP: "AF_XDP",
	}[s.family]
	if !ok {
		family = fmt.Sprint("address family ", s.family)
	}
	if s.family == unix.AF_INET || s.family == unix.AF_INET6 {
		name, ok := map[int]string{
			unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_ICMPV6: "ICMPv6", unix.IPPROTO_SCTP: "SCTP",
			unix.IPPROTO_MPTCP: "MPTCP",
		}[s.protocol]
		if !ok {
			name = fmt.Sprint("protocol ", s.protocol)
		}
		family += ", " + name
	}
	return fmt.Sprintf("descriptor %d, a socket of %s", s.fd, family)
}

// inheritedSockets returns the network sockets that process pid, which a runtime has
// made and which has not executed its program, would give to that. Sockets of
// AF_UNIX and AF_NETLINK are the runtime's own, or lead no further than rules for
// them say.
func inheritedSockets(pid int) (list []socket, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list its descriptors: %w", err)
	}
	pidfd := -1
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, fmt.Errorf("list its descriptors: %w", err)
		}
		name, err := os.Readlink(dir + "/" + e.Name())
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // closed meanwhile
			return nil, fmt.Errorf("look at its descriptor %d: %w", fd, err)
		}
		if !strings.HasPrefix(name, "socket:[") {
			continue
		}
		if pidfd < 0 {
			if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
				return nil, fmt.Errorf("open process %d: %w", pid, err)
			}
			defer unix.Close(pidfd)
		}
		s, found, err := socketOf(pidfd, fd)
		if err != nil {
			return nil, fmt.Errorf("look at its descriptor %d: %w", fd, err)
		}
		if !found || s.family == unix.AF_UNIX || s.family == unix.AF_NETLINK {
			continue
		}
		closes, err := closesOnExec(pid, fd)
		if err != nil {
			return nil, fmt.Errorf("look at its descriptor %d: %w", fd, err)
		}
		if !closes {
			list = append(list, s)
		}
	}
	return list, nil
}

// socketOf takes descriptor fd of a process and asks what it is. It is not found if
// it was closed meanwhile.
func socketOf(pidfd, fd int) (s socket, found bool, err error) {
	err = withSocket(pidfd, fd, func(_ int, its socket) error {
		s, found = its, true
		return nil
	})
	return s, found, err
}

// takeSocket calls a func with a descriptor of this process' own for a socket, and what
// it is; not if it was closed meanwhile.
type takeSocket func(func(own int, s socket) error) error

// eachSocketOf calls f with the inode of each socket that a process has a descriptor of.
func eachSocketOf(pid int, f func(inode uint64, take takeSocket) error) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list its descriptors: %w", err)
	}
	pidfd := -1
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		number, ok := strings.CutPrefix(name, "socket:[")
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
		if err != nil {
			return fmt.Errorf("list its descriptors: %w", err)
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return fmt.Errorf("list its descriptors: %w", err)
		}
		take := func(use func(own int, s socket) error) error {
			if pidfd < 0 {
				var err error
				if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
					return fmt.Errorf("open process: %w", err)
				}
			}
			return withSocket(pidfd, fd, use)
		}
		if err := f(inode, take); err != nil {
			err = fmt.Errorf("look at its descriptor %d: %w", fd, err)
			return errors.Join(err, closeDescriptor(pidfd))
		}
	}
	return closeDescriptor(pidfd)
}

// closeDescriptor closes one that may be none: -1.
func closeDescriptor(fd int) error {
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// withSocket calls f with a descriptor of the socket that is descriptor fd of a
// process, and what it is; not if that was closed meanwhile.
func withSocket(pidfd, fd int, f func(own int, s socket) error) error {
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if errors.Is(err, unix.EBADF) {
		return nil
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: it takes CAP_SYS_PTRACE, and kernel.yama.ptrace_scope below 3", err)
	}
	if err != nil {
		return err
	}
	defer unix.Close(own)
	s := socket{fd: fd}
	s.family, err = unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if errors.Is(err, unix.ENOTSOCK) {
		return nil // another file has the number now
	}
	if err != nil {
		return err
	}
	if s.protocol, err = unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil {
		return err
	}
	return f(own, s)
}

// closesOnExec tells whether a descriptor ends when its process executes another
// program (proc_pid_fdinfo(5)).
func closesOnExec(pid, fd int) (bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return flags&unix.O_CLOEXEC != 0, err
		}
	}
	return false, nil
}

// inheritance says what of it a container may not have, "" if there is nothing.
func inheritance(list []socket) string {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0].String()
	}
	return fmt.Sprintf("%s, and %d more", list[0], len(list)-1)
}

// inheritedCount is what map container_info keeps of them.
func inheritedCount(n int) uint8 { return uint8(min(n, math.MaxUint8)) }

// inheritanceOf is inheritance of a container that runs, of which nothing else is kept.
func inheritanceOf(count uint8) string {
	switch count {
	case 0:
		return ""
	case 1:
		return "a network socket"
	}
	return fmt.Sprintf("%d network sockets", count)
}

// socketRefusal says why a container that is given these sockets does not start: they
// were made outside of the pod, and no program that is attached there sees them.
func socketRefusal(sockets string, role bpf.Role, pol *applied) string {
	if sockets == "" || !binds(role, pol) {
		return ""
	}
	return fmt.Sprintf("it is given %s, made outside of its pod, with which it gets round policy %s: "+
		"start it without --preserve-fds or socket activation, and let it make its sockets itself", sockets, bpf.CString(pol.info.Name[:]))
}
