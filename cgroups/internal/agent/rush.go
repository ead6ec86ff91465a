// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// rush makes n connections to addr one after the other, at most perSecond. They end by a reset, which leaves no port in
// TIME_WAIT.
func rush(addr string, n, perSecond int) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	var last time.Time
	for i := range n {
		// In busy waiting: a timer is late by more than a connection takes. What was lost is not made up for, which
		// would be more in a short time.
		for time.Since(last) < time.Second/time.Duration(perSecond) {
		}
		last = time.Now()
		if err := touch(to); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	return nil
}

func touch(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		return err
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func scatter(addr string, n int) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range n {
		for range 2 {
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port()) + i}); err != nil {
				return err
			}
		}
	}
	return nil
}
