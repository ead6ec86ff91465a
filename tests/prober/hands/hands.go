// SPDX-License-Identifier: Apache-2.0

// Package hands makes system calls on sockets as it is told, one order a line, and says what each call returned. A test that has two of
// them in two containers is in both ends of a connection at once.
package hands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Order is one thing to do. What else than Op counts depends on that.
type Order struct {
	ID                int           `json:"id"`
	Op                string        `json:"op"`
	FD                int           `json:"fd,omitempty"`
	Addr              string        `json:"addr,omitempty"`
	Data              []byte        `json:"data,omitempty"`
	Size              int           `json:"size,omitempty"`
	Chunk             int           `json:"chunk,omitempty"` // most of one call; 0 is all
	Flags             int           `json:"flags,omitempty"`
	Level, Opt, Value int           `json:",omitempty"`
	Seed              byte          `json:"seed,omitempty"` // of the bytes
	Wait              time.Duration `json:"wait,omitempty"`
	Mode              string        `json:"mode,omitempty"`
	Do                *Order        `json:"do,omitempty"` // child: what it does
}

// Answer is what came of it.
type Answer struct {
	ID   int    `json:"id"`
	N    int    `json:"n"`
	Data []byte `json:"data,omitempty"`
	Err  string `json:"err,omitempty"` // name of the errno, or text
	Text string `json:"text,omitempty"`
}

// Told is all that a process would know of it.
func (a Answer) Told() string {
	if a.Err != "" {
		return strings.TrimSpace(fmt.Sprintf("%s %s", a.Err, a.Text))
	}
	told := fmt.Sprint(a.N)
	if len(a.Data) > 0 {
		told += fmt.Sprintf(" %q", a.Data)
	}
	if a.Text != "" {
		told += " " + a.Text
	}
	return told
}

// Serve does what it reads, each order for itself: one that waits keeps no other from being done.
func Serve(in io.Reader, out io.Writer) error {
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	var mu sync.Mutex
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		go func() {
			a := Do(o)
			a.ID = o.ID
			mu.Lock()
			defer mu.Unlock()
			_ = enc.Encode(a) // nobody listens any more
		}()
	}
}

// ErrName is the name of an errno, or an error's text.
func ErrName(err error) string {
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

// Patience ends a call that waits for what never comes: a program would hang there.
const Patience = 5 * time.Second

// Fill writes the bytes of a place in a stream.
func Fill(b []byte, at int, seed byte) {
	for i := range b {
		k := at + i
		b[i] = byte(k*7+k>>8+k>>16) + seed
	}
}

// Do does one thing.
func Do(o Order) (a Answer) {
	var err error
	defer func() {
		if err != nil {
			a.Err = ErrName(err)
		}
	}()
	switch o.Op {
	case "socket":
		a.N, err = socket(strings.HasPrefix(o.Addr, "["))
	case "bind":
		err = addressed(unix.Bind, o)
	case "connect":
		err = addressed(unix.Connect, o)
	case "listen":
		err = unix.Listen(o.FD, o.Size)
	case "accept":
		if a.N, _, err = unix.Accept4(o.FD, unix.SOCK_CLOEXEC|o.Flags); err == nil {
			err = patient(a.N)
		}
	case "send":
		a.N, err = unix.SendmsgN(o.FD, o.Data, nil, nil, o.Flags|unix.MSG_NOSIGNAL)
	case "writev":
		a.N, err = unix.Writev(o.FD, bytes.SplitAfter(o.Data, []byte(" ")))
	case "recv":
		buf := bytes.Repeat([]byte("-"), o.Size)
		if a.N, _, err = unix.Recvfrom(o.FD, buf, o.Flags); err == nil {
			a.Data = buf
			if o.Flags&unix.MSG_TRUNC == 0 {
				a.Data = buf[:a.N]
			}
		}
	case "interrupted":
		a, err = interrupted(o)
	case "readv":
		one, two := make([]byte, o.Size), make([]byte, o.Size)
		if a.N, err = unix.Readv(o.FD, [][]byte{one, two}); err == nil {
			a.Data = append(one, two...)[:a.N]
		}
	case "recvmsg":
		a, err = recvmsg(o)
	case "give":
		a.N, err = give(o)
	case "take":
		a, err = take(o)
	case "sendfile":
		a.N, err = sendfile(o)
	case "shutdown":
		err = unix.Shutdown(o.FD, o.Value)
	case "close":
		err = unix.Close(o.FD)
	case "dup":
		a.N, err = unix.Dup(o.FD)
	case "ioctl":
		a.N, err = unix.IoctlGetInt(o.FD, uint(o.Flags))
	case "getsockopt":
		a.N, err = unix.GetsockoptInt(o.FD, o.Level, o.Opt)
	case "setsockopt":
		err = setsockopt(o)
	case "nonblock":
		err = unix.SetNonblock(o.FD, o.Value != 0)
	case "poll":
		p := []unix.PollFd{{Fd: int32(o.FD), Events: int16(o.Flags)}}
		a.N, err = poll(p, o.Wait)
		a.Text = fmt.Sprintf("%#x", p[0].Revents)
	case "epoll":
		if a.N, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
			err = unix.EpollCtl(a.N, unix.EPOLL_CTL_ADD, o.FD, &unix.EpollEvent{Events: uint32(o.Flags)})
		}
	case "epoll_wait":
		var ev [4]unix.EpollEvent
		a.N, err = epollWait(o.FD, ev[:], o.Wait)
		a.Text = fmt.Sprintf("%#x", ev[0].Events)
	case "tcp_info":
		var i *unix.TCPInfo
		if i, err = unix.GetsockoptTCPInfo(o.FD, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			a.Text = fmt.Sprintf("state %d", i.State)
			if o.Mode == "bytes" {
				a.Text += fmt.Sprintf(" received %d acked %d", i.Bytes_received, i.Bytes_acked)
			}
		}
	case "edges":
		a, err = takeByEdges(o)
	case "child":
		return child(o)
	case "serve":
		err = serve(o.Addr)
	case "talk":
		a, err = talk(o)
	case "crowd":
		a, err = crowd(o)
	case "get":
		a, err = get(o)
	default:
		err = errors.New("unknown op " + o.Op)
	}
	return a
}

func socket(v6 bool) (int, error) {
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(patient(fd), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

func patient(fd int) error {
	tv := unix.NsecToTimeval(Patience.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
}

func addressed(call func(int, unix.Sockaddr) error, o Order) error {
	at, err := netip.ParseAddrPort(o.Addr)
	if err != nil {
		return err
	}
	if at.Addr().Is4() {
		return call(o.FD, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())})
	}
	return call(o.FD, &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())})
}

// takeByEdges reads as event loops with edge-triggered epoll may (epoll(7)): a read that gets less than it asked for has got all there is,
// and only an event says that there is more.
func takeByEdges(o Order) (a Answer, err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return a, err
	}
	defer unix.Close(ep)
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, o.FD, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET})
	if err != nil {
		return a, err
	}
	buf := make([]byte, o.Chunk)
	for a.N < o.Size {
		var ev [1]unix.EpollEvent
		if n, err := epollWait(ep, ev[:], o.Wait); err != nil || n == 0 {
			a.Text = "no more events"
			return a, err
		}
		for n := o.Chunk; n == o.Chunk; {
			n, _, err = unix.Recvfrom(o.FD, buf, unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				return a, err
			}
			a.N += n
		}
	}
	return a, nil
}

// await waits as an event loop does for a socket that it must not wait in.
func await(fd int, events int16) error {
	if n, err := poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, Patience); err != nil || n > 0 {
		return err
	}
	return unix.ETIMEDOUT
}

// interrupted is a read that a signal comes to, whose handler lets calls go on (SA_RESTART), after Wait.
func interrupted(o Order) (a Answer, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	timer := time.AfterFunc(o.Wait, func() { _ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG) }) // the Go runtime handles it
	defer timer.Stop()
	buf := make([]byte, o.Size)
	if a.N, _, err = unix.Recvfrom(o.FD, buf, o.Flags); err == nil {
		a.Data = buf[:a.N]
	}
	return a, err
}

// give sends Size bytes, and goes on after calls that took less. With Mode "poll" it waits outside of the calls.
func give(o Order) (n int, err error) {
	buf := make([]byte, min(1<<20, o.Size))
	for n < o.Size {
		b := buf[:min(len(buf), o.Size-n)]
		if o.Chunk > 0 {
			b = b[:min(len(b), o.Chunk)]
		}
		Fill(b, n, o.Seed)
		k, err := unix.SendmsgN(o.FD, b, nil, nil, o.Flags|unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN && o.Mode == "poll" {
			err = await(o.FD, unix.POLLOUT)
			k = 0
		}
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// take reads until there are Size bytes, or no more, and looks whether they are those of give. Mode "any" is for bytes of several
// senders: it counts. "poll" is as in give.
func take(o Order) (a Answer, err error) {
	chunk := o.Chunk
	if chunk == 0 {
		chunk = 1 << 18
	}
	buf, want := make([]byte, chunk), make([]byte, chunk)
	for a.N < o.Size {
		n, _, err := unix.Recvfrom(o.FD, buf[:min(chunk, o.Size-a.N)], o.Flags)
		if err == unix.EAGAIN && o.Mode == "poll" {
			if err = await(o.FD, unix.POLLIN); err == nil {
				continue
			}
		}
		if err != nil || n == 0 {
			return a, err
		}
		Fill(want[:n], a.N, o.Seed)
		if o.Mode != "any" && a.Text == "" && !bytes.Equal(buf[:n], want[:n]) {
			a.Text = fmt.Sprintf("other bytes after %d", a.N)
		}
		a.N += n
		if o.Wait > 0 {
			time.Sleep(o.Wait) // a slow reader
		}
	}
	return a, nil
}

func recvmsg(o Order) (a Answer, err error) {
	buf, control := make([]byte, o.Size), make([]byte, 1024)
	n, k, flags, _, err := unix.Recvmsg(o.FD, buf, control, o.Flags)
	if err != nil {
		return a, err
	}
	a.N, a.Data, a.Text = n, buf[:n], fmt.Sprintf("flags %#x", flags)
	messages, err := unix.ParseSocketControlMessage(control[:k])
	for _, m := range messages {
		a.Text += fmt.Sprintf(" control %d/%d", m.Header.Level, m.Header.Type)
	}
	return a, err
}

func sendfile(o Order) (n int, err error) {
	fd, err := unix.MemfdCreate("hands", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	b := make([]byte, o.Size)
	Fill(b, 0, o.Seed)
	if _, err := f.Write(b); err != nil {
		return 0, err
	}
	var off int64
	for int(off) < o.Size {
		if n, err := unix.Sendfile(o.FD, fd, &off, o.Size-int(off)); err != nil || n == 0 {
			return int(off), err
		}
	}
	return int(off), nil
}

func setsockopt(o Order) error {
	switch o.Mode {
	case "linger":
		return unix.SetsockoptLinger(o.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(o.Value)})
	case "time":
		tv := unix.NsecToTimeval(o.Wait.Nanoseconds())
		return unix.SetsockoptTimeval(o.FD, o.Level, o.Opt, &tv)
	case "text":
		return unix.SetsockoptString(o.FD, o.Level, o.Opt, string(o.Data))
	}
	return unix.SetsockoptInt(o.FD, o.Level, o.Opt, o.Value)
}

// poll goes on after signals, of which the Go runtime sends some.
func poll(p []unix.PollFd, within time.Duration) (int, error) {
	for {
		n, err := unix.Poll(p, int(within.Milliseconds()))
		if err != unix.EINTR {
			return n, err
		}
	}
}

func epollWait(fd int, ev []unix.EpollEvent, within time.Duration) (int, error) {
	for {
		n, err := unix.EpollWait(fd, ev, int(within.Milliseconds()))
		if err != unix.EINTR {
			return n, err
		}
	}
}
