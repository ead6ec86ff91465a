// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// latency is how long the parts of an order took one by one, in microseconds.
type latency struct {
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Longest float64 `json:"longest"`
}

func latencyOf(values []float64) *latency {
	if len(values) == 0 {
		return nil
	}
	return &latency{P50: median(values), P99: percentile(values, 99), Longest: slices.Max(values)}
}

// each does one thing again and again until the order is done, and times each. What fails is counted.
func (o *order) each(one func() error) (a answer) {
	var took []float64
	deadline := time.Now().Add(o.For)
	for last := time.Now(); a.Done+a.Failed < o.Count && last.Before(deadline); {
		err := one()
		now := time.Now()
		took = append(took, now.Sub(last).Seconds()*1e6)
		last = now
		if err == nil {
			a.Done++
			continue
		}
		if a.Failed++; a.Err == "" {
			a.Err = err.Error()
		}
	}
	a.Latency = latencyOf(took)
	return a
}

// calls makes connections to whom "accept" listens for: connect, wait until the other end has taken it and closes, reset, which
// leaves no port behind.
func (o *order) calls(addr netip.AddrPort) (answer, error) {
	buf := make([]byte, 1)
	return o.each(func() error {
		fd, err := connect(addr, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		n, err := read(fd, buf)
		if err == nil && n > 0 {
			err = errors.New("it says something")
		}
		return errors.Join(err, reset(fd))
	}), nil
}

// reset closes a connection without a TIME-WAIT.
func reset(fd int) error {
	err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return errors.Join(err, unix.Close(fd))
}

// pings sends numbered datagrams to whom "echo" listens for, one after the other came back.
func (o *order) pings(addr netip.AddrPort) (answer, error) {
	fd, err := connect(addr, unix.SOCK_DGRAM)
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	payload, buf, n := make([]byte, 64), make([]byte, 128), uint64(0)
	return o.each(func() error {
		n++
		binary.NativeEndian.PutUint64(payload, n)
		if _, err := write(fd, payload); err != nil {
			return err
		}
		for {
			got, err := read(fd, buf)
			if err != nil {
				return err
			}
			if bytes.Equal(buf[:got], payload) {
				return nil
			}
			if got < 8 || binary.NativeEndian.Uint64(buf) >= n { // else it is late, and was counted as lost
				return fmt.Errorf("%d bytes came back", got)
			}
		}
	}), nil
}

const smallWrite = 64

// stream sends small writes over one connection, and waits until the other end has read all of it.
func (o *order) stream(addr netip.AddrPort) (a answer, err error) {
	fd, err := connect(addr, unix.SOCK_STREAM)
	if err != nil {
		return a, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return a, os.NewSyscallError("setsockopt", err)
	}
	payload := make([]byte, smallWrite)
	deadline := time.Now().Add(o.For)
	for a.Done < o.Count && (a.Done%64 != 0 || time.Now().Before(deadline)) {
		n, err := write(fd, payload)
		if err == nil && n != smallWrite {
			err = fmt.Errorf("wrote %d bytes", n)
		}
		if err != nil {
			return a, err
		}
		a.Done++
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return a, os.NewSyscallError("shutdown", err)
	}
	_, err = read(fd, payload)
	return a, err
}

// accept listens for TCP on addr until the agent ends, and closes whatever comes at once, on a thread of its own.
func accept(addr netip.AddrPort) error {
	fd, err := bound(addr, unix.SOCK_STREAM)
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 4096))
	}
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			switch err {
			case nil:
				_ = unix.Close(c)
			case unix.EINTR, unix.ECONNABORTED:
			default:
				return // whoever calls finds out
			}
		}
	}()
	return nil
}

// echo sends datagrams to addr back until the agent ends, on a thread of its own.
func echo(addr netip.AddrPort) error {
	fd, err := bound(addr, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		buf := make([]byte, 2048)
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if err == nil {
				err = unix.Sendto(fd, buf[:n], 0, from)
			}
			if err != nil && err != unix.EINTR && err != unix.ECONNREFUSED {
				return
			}
		}
	}()
	return nil
}

// bound returns a blocking socket with an address, which is IPv4.
func bound(addr netip.AddrPort, kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return -1, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return fd, nil
}
