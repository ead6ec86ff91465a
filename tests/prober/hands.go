// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"os"
	"sync"

	"sidegate/tests/prober/hands"
)

// runHands does what it is told on stdin.
func runHands(_ context.Context, args []string) (*result, error) {
	if err := parse(flag.NewFlagSet("hands", flag.ContinueOnError), args); err != nil {
		return nil, err
	}
	return nil, hands.Serve(os.Stdin, os.Stdout)
}

func runHandsChild(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet(hands.ChildCommand, flag.ContinueOnError)
	mode := fs.String("mode", "", "rights: descriptor 3 is a UNIX socket by which the socket comes")
	order := fs.String("order", "", "what to do, in JSON")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	a, err := hands.Child(*mode, *order)
	if err != nil {
		return nil, err
	}
	return nil, json.NewEncoder(os.Stdout).Encode(a)
}

// runRelay carries connections on as any proxy written in Go does: by io.Copy between TCP sockets, which is splice(2) where that works.
func runRelay(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	on := fs.String("on", "", "`address:port` to listen on")
	to := fs.String("to", "", "`address:port` to connect to for each connection")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", *on)
	if err != nil {
		return newResult(), err
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	newResult().print(os.Stdout)
	for {
		c, err := l.Accept()
		if err != nil {
			return nil, nil // the end
		}
		go relay(c.(*net.TCPConn), *to)
	}
}

func relay(from *net.TCPConn, to string) {
	defer from.Close()
	c, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer c.Close()
	server := c.(*net.TCPConn)
	var both sync.WaitGroup
	carry := func(w, r *net.TCPConn) {
		if _, err := io.Copy(w, r); err != nil {
			_ = w.SetLinger(0) // who is at the other end learns that it is no good end
			_ = w.Close()
		}
		_ = w.CloseWrite()
	}
	both.Go(func() { carry(server, from) })
	both.Go(func() { carry(from, server) })
	both.Wait()
}
