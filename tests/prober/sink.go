// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A sighting is one thing that reached the sink.
type sighting struct {
	How     string `json:"how"` // packet, or tcp for a connection that the echo server accepted
	Proto   int    `json:"proto"`
	Src     string `json:"src"`
	Dst     string `json:"dst"`
	MPTCP   bool   `json:"mptcp,omitempty"` // an MPTCP connection
	payload []byte
}

// record holds what reached the sink, newest last, up to a bound.
type record struct {
	mu     sync.Mutex
	seen   []sighting
	counts map[string]int // by "source address/protocol"
}

const recordBound = 20000

func (r *record) add(s sighting, src netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == recordBound {
		r.seen = append(r.seen[:0], r.seen[recordBound/2:]...)
	}
	r.seen = append(r.seen, s)
	r.counts[fmt.Sprintf("%s/%d", src, s.Proto)]++
}

// find returns what carried the nonce.
func (r *record) find(nonce string) []sighting {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := []sighting{}
	for _, s := range r.seen {
		if strings.Contains(string(s.payload), nonce) {
			found = append(found, s)
		}
	}
	return found
}

// runSink serves TCP, SCTP, UDP and UDP-Lite echo and records each packet of a device that is not part of an established TCP connection.
// One request per connection to its control socket: "find NONCE", "counts" or "reset"; the answer is JSON.
func runSink(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("sink", flag.ContinueOnError)
	ports := idList{}
	fs.Var(&ports, "port", "`ports` of the echo servers")
	dev := fs.String("dev", "eth0", "device to record from")
	control := fs.String("control", "", "path of the control socket")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if *control == "" || len(ports) == 0 {
		return nil, &usageError{errors.New("--control or --port is missing")}
	}
	r := &record{counts: map[string]int{}}
	ended := make(chan error, 2+4*len(ports))
	start := func(f func() error) { go func() { ended <- f() }() }

	capture, err := openCapture(*dev)
	if err != nil {
		return newResult(), err
	}
	start(func() error { return capture.run(r) })
	for _, port := range ports {
		if err := echoOn(uint16(port), r, start); err != nil {
			return newResult(), err
		}
	}
	// Last, as it tells that all of the sink is there.
	ctl, err := net.Listen("unix", *control)
	if err != nil {
		return newResult(), err
	}
	start(func() error { return serveControl(ctl, r) })

	select {
	case <-ctx.Done():
		return nil, nil
	case err := <-ended:
		return newResult(), err
	}
}

// echoOn starts the echo servers of a port.
func echoOn(port uint16, r *record, start func(func() error)) error {
	tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", port)) // MPTCP as well, if the kernel has it
	if err != nil {
		return err
	}
	start(func() error { return echoTCP(tcp, r) })
	for _, echo := range []struct {
		kind, proto int
		serve       func(fd int) error
	}{
		{unix.SOCK_DGRAM, unix.IPPROTO_UDP, echoDatagrams},
		{unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, echoDatagrams},
		{unix.SOCK_STREAM, unix.IPPROTO_SCTP, echoStreams},
	} {
		fd, err := boundSocket(echo.kind, echo.proto, port)
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			continue // not in every kernel
		} else if err != nil {
			return err
		}
		start(func() error { return echo.serve(fd) })
	}
	return nil
}

func echoTCP(l net.Listener, r *record) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, 64<<10)
			for {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // of silence
				n, err := c.Read(b)
				if err != nil {
					return
				}
				tc := c.(*net.TCPConn)
				multipath, _ := tc.MultipathTCP()
				peer := unmapped(c.RemoteAddr())
				r.add(sighting{
					How: "tcp", Proto: unix.IPPROTO_TCP, Src: peer.String(), Dst: unmapped(c.LocalAddr()).String(),
					MPTCP: multipath, payload: bytes.Clone(b[:n]),
				}, peer.Addr())
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
			}
		}()
	}
}

func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// boundSocket returns a dual stack socket of the protocol.
func boundSocket(kind, proto int, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}))
}

// echoStreams serves connections of a protocol other than TCP. The recorder sees their packets.
func echoStreams(fd int) error {
	if err := unix.Listen(fd, 16); err != nil {
		return os.NewSyscallError("listen", err)
	}
	for {
		peer, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		go func() {
			// Neither end of a connection may end the sink.
			c := &conn{fd: peer}
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoDatagrams(fd int) error {
	b := make([]byte, 64<<10)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EINTR || err == unix.ECONNREFUSED {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		_ = unix.Sendto(fd, b[:n], 0, from) // a sender that is gone is none of ours
	}
}

func serveControl(l net.Listener, r *record) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		line, _ := bufio.NewReader(c).ReadString('\n')
		_ = json.NewEncoder(c).Encode(r.answer(strings.Fields(line)))
		c.Close()
	}
}

func (r *record) answer(request []string) any {
	switch {
	case len(request) == 2 && request[0] == "find":
		return r.find(request[1])
	case len(request) == 1 && request[0] == "counts":
		r.mu.Lock()
		defer r.mu.Unlock()
		counts := make(map[string]int, len(r.counts))
		for k, v := range r.counts {
			counts[k] = v
		}
		return counts
	case len(request) == 1 && request[0] == "reset":
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen, r.counts = nil, map[string]int{}
		return "ok"
	}
	return map[string]string{"err": "unknown request"}
}
