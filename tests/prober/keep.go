// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// runKeep connects, and sends a line and waits for its echo, again and again on the one connection, until a signal. ok means that
// the connection never broke.
func runKeep(ctx context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("keep", flag.ContinueOnError)
	d.flags(fs)
	interval := fs.Duration("interval", 100*time.Millisecond, "between two echoes")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	res := newResult()
	c, _, err := d.dial(nil)
	if err != nil {
		return res, err
	}
	defer c.Close()
	c.report(res)
	echo := bufio.NewReader(c)
	for n := 0; ; n++ {
		res.Data["echoes"] = n
		if _, err := fmt.Fprintf(c, "%d\n", n); err != nil {
			return res, err
		}
		line, err := echo.ReadString('\n')
		if err != nil || line != fmt.Sprintln(n) {
			return res, fmt.Errorf("echo %d is %q: %w", n, line, err)
		}
		if n == 0 {
			res.print(os.Stdout)
		}
		select {
		case <-ctx.Done():
			return res, nil
		case <-time.After(*interval):
		}
	}
}

// runEcho is the other end of a kept connection.
func runEcho(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("echo", flag.ContinueOnError)
	on := fs.String("on", "", "`address:port`")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	// Not package net's listener, which is MPTCP's where the kernel has that.
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, "tcp", *on)
	if err != nil {
		return newResult(), err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, nil // the signal
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}
