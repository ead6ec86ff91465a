// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// agentEnv makes this program an agent, with the user id that it names: a process that waits for orders on its standard input, makes
// load with plain blocking system calls, and answers on its standard output. It is the first process of a container, or the outside.
const agentEnv = "SIDEGATE_BENCH_AGENT"

// An order is bounded in count and in time.
type order struct {
	Op      string        `json:"op"`
	Addr    string        `json:"addr"`
	Workers int           `json:"workers,omitempty"`
	Count   int64         `json:"count,omitempty"` // connections, bytes or datagrams
	For     time.Duration `json:"for"`
	Kind    string        `json:"kind,omitempty"` // of a client's load
	Size    int           `json:"size,omitempty"` // bytes of its requests
}

// An answer is what came of an order.
type answer struct {
	Done   int64   `json:"done"`             // as Count in the order
	Failed int64   `json:"failed"`           // attempts
	Took   float64 `json:"took"`             // seconds
	Err    string  `json:"err"`              // the first failure
	Opened int64   `json:"opened,omitempty"` // connections, since the client was opened
	// Of each connection or datagram, where the order times them.
	Latency *latency `json:"latency,omitempty"`
}

// ioTimeout bounds every blocking call of an agent.
const ioTimeout = 3 * time.Second

func agentMain(uid string) int {
	var id int
	if _, err := fmt.Sscan(uid, &id); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s=%q: %v\n", agentEnv, uid, err)
		return 2
	}
	if id != 0 {
		if err := errors.Join(syscall.Setgid(id), syscall.Setuid(id)); err != nil {
			fmt.Fprintln(os.Stderr, "bench: become user:", err)
			return 1
		}
	}
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	var h held
	for in.Scan() {
		var o order
		err := json.Unmarshal(in.Bytes(), &o)
		var a answer
		if err == nil {
			a, err = h.obey(&o)
		}
		if err != nil && a.Err == "" {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return 1
		}
	}
	return 0
}

// held is what an agent keeps between two orders.
type held struct {
	relay  *relay
	client *client
}

// obey also takes the orders for what an agent keeps.
func (h *held) obey(o *order) (a answer, err error) {
	began := time.Now()
	switch o.Op {
	case "relay":
		h.relay, err = newRelay(o.Addr)
	case "relayed":
		if h.relay == nil {
			return a, errors.New("there is no relay")
		}
		a.Done = h.relay.taken.Load()
	case "upstream":
		err = upstream(o.Addr)
	case "open":
		if h.client != nil {
			return a, errors.New("there is a client already")
		}
		runtime.LockOSThread() // for its whole life
		h.client, err = openClient(o)
	case "run":
		if h.client == nil {
			return a, errors.New("there is no client")
		}
		a, err = h.client.run(o)
	case "close":
		if h.client != nil {
			err = h.client.close()
			h.client = nil
		}
	default:
		return o.obey()
	}
	a.Took = time.Since(began).Seconds()
	return a, err
}

func (o *order) obey() (answer, error) {
	addr, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return answer{}, err
	}
	began := time.Now()
	var a answer
	switch o.Op {
	case "serve":
		err = serve(addr)
	case "connect":
		a, err = o.connections(addr)
	case "accept":
		err = accept(addr)
	case "echo":
		err = echo(addr)
	case "calls":
		a, err = o.calls(addr)
	case "pings":
		a, err = o.pings(addr)
	case "stream":
		a, err = o.stream(addr)
	case "sockets":
		a, err = o.sockets(addr)
	case "download":
		a.Done, err = download(addr, o.Count)
	case "upload":
		a.Done, err = upload(addr, o.Count)
	case "datagrams":
		a, err = o.datagrams(addr)
	default:
		err = fmt.Errorf("unknown order %q", o.Op)
	}
	a.Took = time.Since(began).Seconds()
	return a, err
}

// connections opens short connections, one after the other in each worker: connect, one request, read to the end, close.
func (o *order) connections(addr netip.AddrPort) (answer, error) {
	var done, failed, left atomic.Int64
	left.Store(o.Count)
	var first atomic.Pointer[error]
	deadline := time.Now().Add(o.For)
	var wg sync.WaitGroup
	for range o.Workers {
		wg.Go(func() {
			runtime.LockOSThread() // blocking calls, without the runtime's poller
			buf := make([]byte, 4096)
			for time.Now().Before(deadline) && left.Add(-1) >= 0 {
				if err := request(addr, buf); err != nil {
					first.CompareAndSwap(nil, &err)
					failed.Add(1)
					continue
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	a := answer{Done: done.Load(), Failed: failed.Load()}
	if err := first.Load(); err != nil {
		a.Err = (*err).Error()
	}
	return a, nil
}

const pageRequest = "GET / HTTP/1.0\r\n\r\n"

// request makes one request of nginx, which closes the connection.
func request(addr netip.AddrPort, buf []byte) error {
	fd, err := connect(addr, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := write(fd, []byte(pageRequest)); err != nil {
		return err
	}
	got := 0
	for {
		n, err := read(fd, buf[got:])
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if got += n; got == len(buf) {
			return errors.New("answer is too long")
		}
	}
	if !strings.HasPrefix(string(buf[:got]), "HTTP/1.1 200 ") {
		return fmt.Errorf("answer is %q", buf[:min(got, 40)])
	}
	return nil
}

// connect returns a blocking, connected socket.
func connect(addr netip.AddrPort, kind int) (int, error) {
	family, sa := unix.AF_INET, unix.Sockaddr(nil)
	if addr.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	} else {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	tv := unix.NsecToTimeval(ioTimeout.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sa))
	}
	if errors.Is(err, unix.EINTR) {
		err = connected(fd)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// connected waits for the end of a connect(2) that a signal has interrupted: the Go runtime sends itself some.
func connected(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(ioTimeout.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ETIMEDOUT
		}
		if err == nil {
			err = socketError(fd)
		}
		return os.NewSyscallError("connect", err)
	}
}

func socketError(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

// again makes a system call again while signals interrupt it: a socket with a timeout is not restarted by the kernel.
func again(name string, call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if err != unix.EINTR {
			return n, os.NewSyscallError(name, err)
		}
	}
}

func read(fd int, b []byte) (int, error)  { return again("read", unix.Read, fd, b) }
func write(fd int, b []byte) (int, error) { return again("write", unix.Write, fd, b) }

// sockets makes, connects and resets sockets, and nothing more: what is reset leaves no port behind.
func (o *order) sockets(addr netip.AddrPort) (a answer, err error) {
	deadline := time.Now().Add(o.For)
	for a.Done < o.Count && time.Now().Before(deadline) {
		fd, err := connect(addr, unix.SOCK_STREAM)
		if err != nil {
			return a, err
		}
		if err := reset(fd); err != nil {
			return a, err
		}
		a.Done++
	}
	return a, nil
}

const bulkBuffer = 256 << 10

// download reads a file of want bytes from nginx.
func download(addr netip.AddrPort, want int64) (int64, error) {
	fd, err := connect(addr, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if _, err := write(fd, []byte("GET "+bulkPath+" HTTP/1.0\r\n\r\n")); err != nil {
		return 0, err
	}
	buf := make([]byte, bulkBuffer)
	got, header := int64(0), int64(0)
	for {
		n, err := read(fd, buf)
		if err != nil {
			return got, err
		}
		if n == 0 {
			break
		}
		if got == 0 {
			// nginx sends the header whole.
			header = int64(strings.Index(string(buf[:n]), "\r\n\r\n") + 4)
		}
		got += int64(n)
	}
	if got-header != want {
		return got, fmt.Errorf("download has %d bytes, not %d", got-header, want)
	}
	return want, nil
}

// upload sends count bytes and waits until the other end has read and closed.
func upload(addr netip.AddrPort, count int64) (int64, error) {
	fd, err := connect(addr, unix.SOCK_STREAM)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	buf := make([]byte, bulkBuffer)
	sent := int64(0)
	for sent < count {
		n, err := write(fd, buf[:min(int64(len(buf)), count-sent)])
		if err != nil {
			return sent, err
		}
		sent += int64(n)
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return sent, os.NewSyscallError("shutdown", err)
	}
	if _, err := read(fd, buf[:1]); err != nil {
		return sent, err
	}
	return sent, nil
}

// datagrams sends 64 bytes at a time.
func (o *order) datagrams(addr netip.AddrPort) (a answer, err error) {
	fd, err := connect(addr, unix.SOCK_DGRAM)
	if err != nil {
		return a, err
	}
	defer unix.Close(fd)
	payload := make([]byte, 64)
	deadline := time.Now().Add(o.For)
	for a.Done < o.Count && (a.Done%64 != 0 || time.Now().Before(deadline)) {
		if _, err := write(fd, payload); err != nil {
			return a, err
		}
		a.Done++
	}
	return a, nil
}

// serve listens on addr until the agent ends: over TCP it reads all and closes, over UDP it only has a socket, so that the kernel has
// somewhere to drop what comes.
func serve(addr netip.AddrPort) error {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	go func() {
		defer udp.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, bulkBuffer))
			}()
		}
	}()
	return nil
}
