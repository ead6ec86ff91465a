// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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

// runSink serves TCP, UDP and UDP-Lite echo and records each packet of a device that is not part of an established TCP connection.
// One request per connection to its control socket: "find NONCE", "counts" or "reset"; the answer is JSON.
func runSink(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("sink", flag.ContinueOnError)
	port := fs.Uint("port", 7, "port of the echo servers")
	dev := fs.String("dev", "eth0", "device to record from")
	control := fs.String("control", "", "path of the control socket")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if *control == "" {
		return nil, &usageError{errors.New("--control is missing")}
	}
	r := &record{counts: map[string]int{}}
	ended := make(chan error, 5)
	start := func(f func() error) { go func() { ended <- f() }() }

	capture, err := openCapture(*dev)
	if err != nil {
		return newResult(), err
	}
	start(func() error { return capture.run(r) })
	tcp, err := net.Listen("tcp", fmt.Sprintf(":%d", *port)) // MPTCP as well, if the kernel has it
	if err != nil {
		return newResult(), err
	}
	start(func() error { return echoTCP(tcp, r) })
	for _, proto := range []int{unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE} {
		fd, err := datagramSocket(proto, uint16(*port))
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			continue // UDP-Lite is optional
		} else if err != nil {
			return newResult(), err
		}
		start(func() error { return echoDatagrams(fd) })
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

func echoTCP(l net.Listener, r *record) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			br := bufio.NewReader(c)
			for {
				line, err := br.ReadBytes('\n')
				if err != nil {
					return
				}
				tc := c.(*net.TCPConn)
				multipath, _ := tc.MultipathTCP()
				peer := unmapped(c.RemoteAddr())
				r.add(sighting{
					How: "tcp", Proto: unix.IPPROTO_TCP, Src: peer.String(), Dst: unmapped(c.LocalAddr()).String(),
					MPTCP: multipath, payload: line,
				}, peer.Addr())
				if _, err := c.Write(line); err != nil {
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

// datagramSocket returns a dual stack socket of the protocol.
func datagramSocket(proto int, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
		return -1, os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet6{Port: int(port)}))
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
