// SPDX-License-Identifier: Apache-2.0

// Package agent is a process inside a container of a test: it makes sockets
// where and when it is told, and says what came of it. The test binary runs
// itself again as the agent, so that a VM needs one file.
package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const envAgent = "SIDEGATE_TEST_AGENT"

// Main runs the agent and never returns, if this process is to be one. It must
// be the first thing in TestMain.
func Main() {
	if os.Getenv(envAgent) == "" {
		return
	}
	dec, enc := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	s := &server{open: map[int]io.Closer{}}
	for {
		var r Request
		if err := dec.Decode(&r); err != nil {
			os.Exit(0) // the test is over
		}
		a := s.do(r)
		if err := enc.Encode(a); err != nil {
			os.Exit(1)
		}
	}
}

// Request is one thing to do.
type Request struct {
	Op        string // dial, listen, close, udp, udplisten, socket, packet, sockopt
	Network   string // as in package net
	Addr      string
	Local     string // dial: source address
	Reuse     bool   // listen: SO_REUSEPORT
	Echo      bool   // listen: send back what comes after the banner
	Name      string // listen: what the banner says
	Data      string
	Sock      [3]int // socket: family, type, protocol
	Level     int    // sockopt
	Opt       int
	Len       int
	ID        int    // close
	Connected bool   // udp
	Frame     []byte // packet
	Bypass    bool   // packet: PACKET_QDISC_BYPASS
	Cgroup    string // child, thread, move: directory of a cgroup
	Flags     uintptr
	Do        *Request // child, thread: what it does
}

// Answer is what came of it.
type Answer struct {
	Err    string // name of the errno, or text; empty: it worked
	ID     int    // of what was opened
	Local  string
	Peer   string
	Banner Banner // dial: what the other end said of itself
	Data   string // udp: what came back, and from where in Peer
	Len    int    // sockopt
	Raw    []byte
}

// Banner is what a listener of an agent says to each connection.
type Banner struct {
	Name  string
	Local string // getsockname
	Peer  string // getpeername
	Orig4 string // SO_ORIGINAL_DST, or the error
	Orig6 string // IP6T_SO_ORIGINAL_DST, or the error
}

const timeout = 2 * time.Second

type server struct {
	mu   sync.Mutex
	open map[int]io.Closer
	next int
}

func (s *server) keep(c io.Closer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	s.open[s.next] = c
	return s.next
}

func (s *server) do(r Request) Answer {
	var a Answer
	var err error
	switch r.Op {
	case "dial":
		a, err = dial(r)
	case "connect": // dial, and keep the connection
		a, err = s.connect(r)
	case "talk": // over a kept connection
		a, err = s.talk(r)
	case "open": // any socket of package net, connected to Addr
		var c net.Conn
		if c, err = net.DialTimeout(r.Network, r.Addr, timeout); err == nil {
			a.ID = s.keep(c)
		}
	case "write": // to one that is open
		_, err = s.open[r.ID].(net.Conn).Write([]byte(r.Data))
	case "listen":
		a, err = s.listen(r)
	case "close":
		err = s.open[r.ID].Close()
		delete(s.open, r.ID)
	case "udp":
		a, err = udp(r)
	case "udplisten":
		a, err = s.udpListen(r)
	case "unix": // connect to the UNIX socket at Addr, @ for an abstract one
		err = dialUnix(r)
	case "unixlisten":
		var l net.Listener
		if l, err = net.Listen(r.Network, r.Addr); err == nil {
			a.ID = s.keep(l)
		}
	case "rawudp": // a datagram from Local, whoever has that
		err = rawUDP(r)
	case "groupjoin":
		a, err = s.joinGroup(r)
	case "received": // datagrams, by the listener with this id
		a.Len = int(s.open[r.ID].(*echo).received.Load())
	case "socket":
		var fd int
		if fd, err = unix.Socket(r.Sock[0], r.Sock[1]|unix.SOCK_CLOEXEC, r.Sock[2]); err == nil {
			err = unix.Close(fd)
		}
	case "deny": // Len times make a socket that is refused
		for range r.Len {
			if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP); err == nil {
				_ = unix.Close(fd)
			}
		}
	case "scatter": // from one socket two datagrams to each of Len ports from Addr's on
		err = scatter(r.Addr, r.Len)
	case "rush": // Len connections to Addr, at most Level a second, each at an end when it is there
		err = rush(r.Addr, r.Len, r.Level)
	case "hold": // a TCP socket, bound to Addr
		a.ID, err = s.hold(r.Addr)
	case "holdconnect":
		var to netip.AddrPort
		if to, err = netip.ParseAddrPort(r.Addr); err == nil {
			err = unix.Connect(int(s.open[r.ID].(*os.File).Fd()), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		}
	case "holdlisten":
		err = unix.Listen(int(s.open[r.ID].(*os.File).Fd()), 8)
	case "setsockopt": // of a kept connection, to 1 or, with Data, to that
		err = s.setsockopt(r)
	case "sockopt":
		a, err = sockopt(r)
	case "echo":
		err = echoRequest(r.Addr)
	case "sctplisten": // at port Addr of all addresses
		a.ID, err = s.sctpListen(r.Addr)
	case "sctp": // connect to an IPv4 address and port
		err = sctp(r.Addr)
	case "mount9p": // port in Addr, directory in Data
		err = unix.Mount("127.0.0.1", r.Data, "9p", 0, "trans=tcp,port="+r.Addr)
	case "packet":
		err = packet(r)
	case "move": // this process
		err = os.WriteFile(filepath.Join(r.Cgroup, "cgroup.procs"), []byte("0"), 0)
	case "child": // a process with flags of clone(2), made in a cgroup if that is said
		return child(r)
	case "thread": // one that moves alone
		a, err = s.thread(r)
	default:
		err = errors.New("unknown op " + r.Op)
	}
	a.Err = errName(err)
	return a
}

func errName(err error) string {
	if err == nil {
		return ""
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "ETIMEDOUT"
	}
	return err.Error()
}

func dial(r Request) (a Answer, err error) {
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	if r.Local != "" {
		if d.LocalAddr, err = net.ResolveTCPAddr(r.Network, r.Local); err != nil {
			return a, err
		}
	}
	var c net.Conn
	if strings.HasSuffix(r.Network, "mapped") {
		c, err = dialMapped(r.Addr)
	} else {
		c, err = d.Dial(r.Network, r.Addr)
	}
	if err != nil {
		return a, err
	}
	defer c.Close()
	a.Local = c.LocalAddr().String()
	if a.Peer, err = peer(c); err != nil {
		return a, err
	}
	_ = c.SetDeadline(time.Now().Add(timeout))
	return a, json.NewDecoder(c).Decode(&a.Banner)
}

// connect dials and keeps the connection, behind its banner.
func (s *server) connect(r Request) (a Answer, err error) {
	c, err := net.DialTimeout(r.Network, r.Addr, timeout)
	if err != nil {
		return a, err
	}
	_ = c.SetDeadline(time.Now().Add(timeout))
	k := &kept{Conn: c, r: bufio.NewReader(c)}
	line, err := k.r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a.Banner)
	}
	if err != nil {
		return a, errors.Join(err, c.Close())
	}
	a.ID = s.keep(k)
	return a, nil
}

type kept struct {
	net.Conn
	r *bufio.Reader
}

// talk sends a line over a kept connection and waits for it to come back.
func (s *server) talk(r Request) (a Answer, err error) {
	k := s.open[r.ID].(*kept)
	_ = k.SetDeadline(time.Now().Add(timeout))
	if _, err := k.Write([]byte(r.Data + "\n")); err != nil {
		return a, err
	}
	a.Data, err = k.r.ReadString('\n')
	a.Data = strings.TrimSuffix(a.Data, "\n")
	return a, err
}

func (s *server) setsockopt(r Request) error {
	raw, err := s.open[r.ID].(*kept).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		if r.Data != "" {
			set = unix.SetsockoptString(int(fd), r.Level, r.Opt, r.Data)
			return
		}
		set = unix.SetsockoptInt(int(fd), r.Level, r.Opt, 1)
	})
	return errors.Join(err, set)
}

// dialMapped connects an AF_INET6 socket to ::ffff:a.b.c.d.
func dialMapped(addr string) (net.Conn, error) {
	t, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	sa := &unix.SockaddrInet6{Port: t.Port}
	copy(sa.Addr[:], t.IP.To16())
	if err := unix.Connect(fd, sa); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// peer asks the kernel again: package net remembers what it dialled.
func peer(c net.Conn) (string, error) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return "", err
	}
	var s string
	var perr error
	err = raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, perr = unix.Getpeername(int(fd)); perr == nil {
			s = addrString(sa)
		}
	})
	return s, errors.Join(err, perr)
}

func addrString(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
	case *unix.SockaddrInet6:
		return (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
	}
	return fmt.Sprintf("%T", sa)
}

func (s *server) listen(r Request) (a Answer, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if !r.Reuse {
			return nil
		}
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
		return errors.Join(err, serr)
	}}
	l, err := lc.Listen(context.Background(), r.Network, r.Addr)
	if err != nil {
		return a, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = json.NewEncoder(c).Encode(banner(r.Name, c))
			if !r.Echo {
				_ = c.Close()
				continue
			}
			go func() {
				// Not by splice(2): agents have no seccomp profile that refuses it.
				_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				_ = c.Close()
			}()
		}
	}()
	return Answer{ID: s.keep(l), Local: l.Addr().String()}, nil
}

func banner(name string, c net.Conn) Banner {
	b := Banner{Name: name, Local: c.LocalAddr().String(), Peer: c.RemoteAddr().String()}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return b
	}
	_ = raw.Control(func(fd uintptr) {
		b.Orig4 = origDst(int(fd), unix.SOL_IP, 16)
		b.Orig6 = origDst(int(fd), unix.SOL_IPV6, 28)
	})
	return b
}

// SoOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const SoOriginalDst = 80

func origDst(fd, level, size int) string {
	b, n, err := Getsockopt(fd, level, SoOriginalDst, size)
	if err != nil {
		return errName(err)
	}
	if n != size {
		return fmt.Sprintf("length %d", n)
	}
	port := int(b[2])<<8 | int(b[3])
	ip := net.IP(b[4:8])
	if size == 28 {
		ip = net.IP(b[8:24])
	}
	return (&net.TCPAddr{IP: ip, Port: port}).String()
}

func udp(r Request) (a Answer, err error) {
	addr, err := net.ResolveUDPAddr(r.Network, r.Addr)
	if err != nil {
		return a, err
	}
	buf := make([]byte, 1500)
	deadline := time.Now().Add(time.Second)
	if r.Connected {
		c, err := net.DialUDP(r.Network, nil, addr)
		if err != nil {
			return a, err
		}
		defer c.Close()
		if a.Peer, err = peer(c); err != nil {
			return a, err
		}
		_ = c.SetDeadline(deadline)
		if _, err := c.Write([]byte(r.Data)); err != nil {
			return a, err
		}
		n, err := c.Read(buf)
		a.Data = string(buf[:n])
		return a, err
	}
	c, err := net.ListenUDP(r.Network, nil)
	if err != nil {
		return a, err
	}
	defer c.Close()
	_ = c.SetDeadline(deadline)
	if _, err := c.WriteToUDP([]byte(r.Data), addr); err != nil {
		return a, err
	}
	n, from, err := c.ReadFromUDP(buf)
	if err != nil {
		return a, err
	}
	a.Data, a.Peer = string(buf[:n]), from.String()
	return a, nil
}

func (s *server) udpListen(r Request) (a Answer, err error) {
	addr, err := net.ResolveUDPAddr(r.Network, r.Addr)
	if err != nil {
		return a, err
	}
	c, err := net.ListenUDP(r.Network, addr)
	if err != nil {
		return a, err
	}
	e := &echo{UDPConn: c}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFromUDP(buf)
			if err != nil {
				return
			}
			e.received.Add(1)
			if r.Name != "" { // else it only listens
				_, _ = c.WriteToUDP(append([]byte(r.Name+":"), buf[:n]...), from)
			}
		}
	}()
	return Answer{ID: s.keep(e), Local: c.LocalAddr().String()}, nil
}

// rawUDP writes a UDP header of its own through a raw socket (raw(7)).
func rawUDP(r Request) error {
	from, err := netip.ParseAddrPort(r.Local)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(r.Addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(r.Data)))
	b = append(append(b, 0, 0), r.Data...) // no checksum
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.Addr().As4()}); err != nil {
		return err
	}
	return unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
}

func dialUnix(r Request) error {
	c, err := net.DialTimeout(r.Network, r.Addr, timeout)
	if err != nil {
		return err
	}
	return c.Close()
}

// joinGroup receives datagrams to a multicast group on eth0.
func (s *server) joinGroup(r Request) (a Answer, err error) {
	addr, err := net.ResolveUDPAddr("udp", r.Addr)
	if err != nil {
		return a, err
	}
	dev, err := net.InterfaceByName("eth0")
	if err != nil {
		return a, err
	}
	c, err := net.ListenMulticastUDP("udp", dev, addr)
	if err != nil {
		return a, err
	}
	e := &echo{UDPConn: c}
	go func() {
		for buf := make([]byte, 1500); ; {
			if _, _, err := c.ReadFromUDP(buf); err != nil {
				return
			}
			e.received.Add(1)
		}
	}()
	return Answer{ID: s.keep(e)}, nil
}

// echo sends datagrams back and counts them.
type echo struct {
	*net.UDPConn
	received atomic.Int64
}

// Getsockopt calls getsockopt(2) with a buffer of size bytes and returns the
// buffer and the length that came back.
func Getsockopt(fd, level, opt, size int) ([]byte, int, error) {
	b := make([]byte, max(size, 1))
	n := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return b, int(n), errno
	}
	return b, int(n), nil
}

// sockopt asks a new TCP socket.
func sockopt(r Request) (a Answer, err error) {
	fd, err := unix.Socket(r.Sock[0], r.Sock[1]|unix.SOCK_CLOEXEC, r.Sock[2])
	if err != nil {
		return a, err
	}
	defer unix.Close(fd)
	a.Raw, a.Len, err = Getsockopt(fd, r.Level, r.Opt, r.Len)
	return a, err
}

// echoRequest pings an address through a ping socket (icmp(7)), which it connects
// first.
func echoRequest(addr string) error {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	family, proto, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	var sa unix.Sockaddr
	if ip.Is4() {
		sa = &unix.SockaddrInet4{Addr: ip.As4()}
	} else {
		family, proto, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
		sa = &unix.SockaddrInet6{Addr: ip.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{kind, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		return err
	}
	_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
	return err
}

func (s *server) sctpListen(port string) (int, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: int(n)}), unix.Listen(fd, 8)); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	return s.keep(f), nil
}

// sctp opens an association and closes it.
func sctp(addr string) error {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Of connect(2) too.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return err
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
}

// hold makes a socket and does nothing with it.
func (s *server) hold(addr string) (int, error) {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "held")
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		return 0, errors.Join(err, f.Close())
	}
	return s.keep(f), nil
}

// child starts an agent that does one thing.
func child(r Request) (a Answer) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Stderr = os.Environ(), os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: r.Flags}
	if r.Cgroup != "" {
		dir, err := os.Open(r.Cgroup)
		if err != nil {
			return Answer{Err: errName(err)}
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	what, err := json.Marshal(r.Do)
	if err != nil {
		return Answer{Err: errName(err)}
	}
	cmd.Stdin = bytes.NewReader(what)
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &a)
	}
	if err != nil {
		return Answer{Err: "child: " + errName(err)}
	}
	return a
}

// thread does one thing on a thread of its own, in a cgroup for threads.
func (s *server) thread(r Request) (a Answer, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends
		if err = os.WriteFile(filepath.Join(r.Cgroup, "cgroup.threads"), []byte("0"), 0); err == nil {
			a = s.do(*r.Do)
		}
	}()
	<-done
	if a.Err != "" {
		err = errors.New(a.Err)
	}
	return a, err
}

// packet sends Frame as a whole frame through the device named Addr.
func packet(r Request) error {
	dev, err := net.InterfaceByName(r.Addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if r.Bypass {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, r.Frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
}

// Agent is a running agent.
type Agent struct {
	PID  int
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *json.Decoder
	pipe io.Closer
}

// Start starts an agent in the network namespace and the cgroup directory. It
// ends with the test, or by Stop.
func Start(t testing.TB, ns netns.NsHandle, cgroup string) *Agent {
	t.Helper()
	return start(t, ns, cgroup, options{})
}

// StartFile starts an agent whose executable is a copy of this one.
func StartFile(t testing.TB, ns netns.NsHandle, cgroup, file string) *Agent {
	t.Helper()
	return start(t, ns, cgroup, options{file: file})
}

// StartIn starts an agent with flags of clone(2), as a runtime does a container's
// first process.
func StartIn(t testing.TB, ns netns.NsHandle, cgroup string, flags uintptr) *Agent {
	t.Helper()
	return start(t, ns, cgroup, options{flags: flags})
}

// StartBeside starts an agent as StartIn does, in the PID namespace of another one.
func StartBeside(t testing.TB, ns netns.NsHandle, cgroup string, flags uintptr, other *Agent) *Agent {
	t.Helper()
	return start(t, ns, cgroup, options{flags: flags, pidns: fmt.Sprintf("/proc/%d/ns/pid", other.PID)})
}

type options struct {
	file  string // its executable, or this one
	flags uintptr
	pidns string // path of an nsfs file
}

// enter has the processes that the calling thread starts be in a PID namespace.
func enter(pidns string) error {
	if pidns == "" {
		return nil
	}
	fd, err := unix.Open(pidns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWPID)
}

func start(t testing.TB, ns netns.NsHandle, cgroup string, o options) *Agent {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command(cmp.Or(o.file, "/proc/self/exe"))
	cmd.Env = append(os.Environ(), envAgent+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: o.flags}
	if o.pidns == "" { // there nobody has a parent's number, and so would seem to have lost it
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	ended := make(chan struct{})
	go func() {
		// The thread stays until the agent has ended: it is its parent, whose
		// death is the agent's.
		runtime.LockOSThread()
		err := errors.Join(netns.Set(ns), enter(o.pidns))
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		<-ended
	}()
	if err := <-started; err != nil {
		t.Fatalf("start agent: %v", err)
	}
	a := &Agent{PID: cmd.Process.Pid, cmd: cmd, in: json.NewEncoder(in), out: json.NewDecoder(out), pipe: in}
	t.Cleanup(func() {
		a.Stop()
		close(ended)
	})
	return a
}

// Stop ends the agent and waits for it. It may be called again.
func (a *Agent) Stop() {
	_ = a.pipe.Close()
	_ = a.cmd.Wait()
}

// Do has the agent do one thing.
func (a *Agent) Do(t testing.TB, r Request) Answer {
	t.Helper()
	if err := a.in.Encode(r); err != nil {
		t.Fatalf("ask agent: %v", err)
	}
	var ans Answer
	if err := a.out.Decode(&ans); err != nil {
		t.Fatalf("agent ended: %v", err)
	}
	return ans
}
