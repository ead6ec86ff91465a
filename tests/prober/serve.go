// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// serveBody is in every answer of serve.
const serveBody = "hello from the app"

// runServe is an application: an HTTP server that tells each client what both ends of its connection are to the server.
func runServe(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	on := fs.String("on", ":8080", "comma separated `addresses` to listen on")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	var listeners []net.Listener
	for address := range strings.SplitSeq(*on, ",") {
		// Plain TCP: what an app listens with unless it asks for more.
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return newResult(), err
		}
		listeners = append(listeners, l)
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(answer),
		ReadHeaderTimeout: 10 * time.Second,
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- srv.Serve(l) }()
	}
	select {
	case <-ctx.Done():
		return nil, srv.Close()
	case err := <-ended:
		return newResult(), err
	}
}

func answer(w http.ResponseWriter, r *http.Request) {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	res := newResult()
	res.Data = map[string]any{"body": serveBody, "peer": r.RemoteAddr, "local": local.String(), "uri": r.RequestURI}
	res.print(os.Stdout)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(res.Data)
}

// runOrigDst is a sidecar that only looks: it tells each client, and stdout, what the kernel answers about its connection.
func runOrigDst(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("origdst-server", flag.ContinueOnError)
	var on netip.AddrPort
	fs.TextVar(&on, "on", netip.AddrPort{}, "`address:port`")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !on.IsValid() {
		return nil, &usageError{errors.New("--on is missing")}
	}
	fd, err := bound(on, false, false)
	if err != nil {
		return newResult(), err
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		if err := poll(fd, unix.POLLIN, 200*time.Millisecond); errors.Is(err, unix.ETIMEDOUT) {
			continue
		} else if err != nil {
			return newResult(), err
		}
		nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return newResult(), os.NewSyscallError("accept", err)
		}
		c := &conn{fd: nfd}
		res := describe(c, on.Addr().Is6())
		res.print(os.Stdout)
		res.print(c)
		c.Close()
	}
	return nil, nil
}

// describe asks the kernel all that a transparent proxy asks.
func describe(c *conn, v6 bool) *result {
	res := newResult()
	c.addresses()
	c.report(res)
	for name, level6 := range map[string]bool{"original4": false, "original6": true} {
		if level6 && !v6 {
			continue
		}
		dst, err := originalDst(c.fd, level6)
		if err != nil {
			dst = newResult().withError(err).Errno
		}
		res.Data[name] = dst
	}
	return res
}
