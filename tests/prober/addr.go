// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// family returns the address family of a socket for addr; mapped asks for an IPv6 socket that carries IPv4.
func family(addr netip.Addr, mapped bool) int {
	if addr.Is4() && !mapped {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr converts ap; an IPv4 address becomes v4-mapped if mapped is set.
func sockaddr(ap netip.AddrPort, mapped bool) unix.Sockaddr {
	if ap.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// rawSockaddr is sockaddr as the bytes that the kernel reads.
func rawSockaddr(ap netip.AddrPort, mapped bool) []byte {
	if ap.Addr().Is4() && !mapped {
		b := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(b, unix.AF_INET)
		binary.BigEndian.PutUint16(b[2:], ap.Port())
		a := ap.Addr().As4()
		copy(b[4:], a[:])
		return b
	}
	b := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	binary.BigEndian.PutUint16(b[2:], ap.Port())
	a := ap.Addr().As16()
	copy(b[8:], a[:])
	return b
}

// addrPort converts what the kernel answered. v4-mapped addresses stay so: the difference is worth seeing.
func addrPort(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case nil:
		return ""
	default:
		return fmt.Sprintf("%T", sa)
	}
}

// Levels and names that netfilter answers, and that Sidegate answers for it.
const (
	soOriginalDst     = 80 // at IPPROTO_IP
	ip6tSoOriginalDst = 80 // at IPPROTO_IPV6
)

// originalDst asks fd for the address that its peer meant to reach, with the level of the address family v6 says.
func originalDst(fd int, v6 bool) (string, error) {
	level, name, size := unix.IPPROTO_IP, soOriginalDst, unix.SizeofSockaddrInet4
	if v6 {
		level, name, size = unix.IPPROTO_IPV6, ip6tSoOriginalDst, unix.SizeofSockaddrInet6
	}
	b := make([]byte, size)
	n, err := getsockopt(fd, level, name, b, len(b))
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("SO_ORIGINAL_DST has %d bytes, not %d", n, size)
	}
	port := binary.BigEndian.Uint16(b[2:])
	if v6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port).String(), nil
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port).String(), nil
}

// getsockopt is the system call itself: it says claimed as the length of b and returns the length that the kernel answered.
func getsockopt(fd, level, name int, b []byte, claimed int) (int, error) {
	length := uint32(claimed)
	var p unsafe.Pointer
	if len(b) > 0 {
		p = unsafe.Pointer(&b[0])
	}
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(p),
		uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(length), nil
}
