// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// runLater begins a connection, says so in a line of its own, and goes on with it when its standard input ends: it waits until the
// connection is there, sends a nonce as a line, and reads it back.
func runLater(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("later", flag.ContinueOnError)
	d.flags(fs)
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	fd, err := d.socket()
	if err != nil {
		return res, err
	}
	c := &conn{fd: fd}
	defer c.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		return res, os.NewSyscallError("fcntl", err)
	}
	if err := unix.Connect(fd, sockaddr(d.to, d.mapped)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return res, os.NewSyscallError("connect", err)
	}
	newResult().print(os.Stdout)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return res, err
	}
	if err := poll(fd, unix.POLLOUT, d.timeout); err != nil {
		return res, fmt.Errorf("connect: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return res, os.NewSyscallError("fcntl", err)
	}
	c.addresses()
	c.report(res)
	return res, c.echo(*nonce)
}

// runReap kills processes by name, again and again, until a time is over or standard input ends: whoever enforces by processes does not any more.
func runReap(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("reap", flag.ContinueOnError)
	name := fs.String("name", "sidegate", "beginning of the `name` of what to kill")
	limit := fs.Duration("for", time.Second, "for how long")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	newResult().print(os.Stdout)
	ctx, cancel := until(ctx, *limit)
	defer cancel()
	res := newResult()
	killed := 0
	var last error
	for ctx.Err() == nil {
		pids, err := processes()
		if err != nil {
			return res, err
		}
		for _, pid := range pids {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil || !bytes.HasPrefix(comm, []byte(*name)) {
				continue
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				last = os.NewSyscallError("kill", err)
				continue
			}
			killed++
		}
	}
	res.Data["killed"] = killed
	if killed == 0 && last != nil {
		return res, last
	}
	return res, nil
}

// runSniff reads the packets of a device until one has the nonce.
func runSniff(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("sniff", flag.ContinueOnError)
	nonce := fs.String("nonce", "", "what to look for")
	limit := fs.Duration("for", time.Second, "for how long")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL)))
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	newResult().print(os.Stdout)
	b := make([]byte, 64<<10)
	for until := time.Now().Add(*limit); ; {
		if err := poll(fd, unix.POLLIN, time.Until(until)); err != nil {
			return res, err
		}
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			continue
		}
		if bytes.Contains(b[:n], []byte(*nonce)) {
			res.Data["read"] = *nonce
			return res, nil
		}
	}
}
