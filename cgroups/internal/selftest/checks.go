// SPDX-License-Identifier: Apache-2.0

package selftest

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// In checks a is the client and b the server. What a script returns is all that
// either end was told: bytes, counts, events and errors.
var checks = []Check{
	{"echo", Breaks, "bytes are lost or changed", echo},
	{"order", Breaks, "bytes change places when a connection goes back to TCP", order},
	{"sendfile", Breaks, "sendfile(2) loses bytes", sendfile},
	{"peek", Breaks, "MSG_PEEK returns something else", peek},
	{"epoll", Breaks, "edge-triggered epoll misses what came", edges},
	{"half-close", Breaks, "shutdown(2) loses bytes, or is not seen", halfClose},
	{"reset", Breaks, "a reset is not seen, or loses bytes", reset},
	{"timeout", Breaks, "SO_RCVTIMEO is not kept", timeout},
	{"back-pressure", Breaks, "a sender is never stopped by a reader that does not read", backPressure},
	{"write to closed", Breaks, "a write to a closed connection is no error", writeToClosed},
	{"splice", Splices, "splice(2) from the socket waits for ever", splice},
	{"FIONREAD", Shows, "ioctl FIONREAD does not count what waits", fionread},
	{"MSG_WAITALL", Shows, "recv(2) with MSG_WAITALL returns before it has all", waitAll},
	{"MSG_TRUNC", Shows, "recv(2) with MSG_TRUNC copies what it should drop", truncate},
	{"MSG_OOB", Shows, "out-of-band data arrives in line", outOfBand},
	{"close unread", Shows, "close(2) with unread bytes ends the connection in order, not by a reset", closeUnread},
	{"TCP_INFO", Shows, "TCP_INFO does not count the bytes", info},
	{"blocking read", Shows, "a blocking recv(2) ends with EAGAIN when a signal comes, or its own shutdown(2) or a reset", blockingRead},
	{"empty read", Shows, "recv(2) of no bytes where none wait returns 0, and not EAGAIN", emptyRead},
	{"FIONREAD after TCP", Shows, "ioctl FIONREAD counts nothing of a connection that went back to TCP, and nginx waits for ever", fionreadAfter},
}

// socket is one end of a connection.
type socket struct {
	fd     int
	closed bool
}

// wait says how long reads of the socket wait.
func (s *socket) wait(d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func (s *socket) close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return unix.Close(s.fd)
}

// told is what a process learns from a call.
func told(n int, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(n)
}

func (s *socket) write(text string) string { return told(unix.Write(s.fd, []byte(text))) }

// read reads once.
func (s *socket) read(most int) string { return s.receive(most, 0) }

func (s *socket) receive(most, flags int) string {
	buf := make([]byte, most)
	n, _, err := unix.Recvfrom(s.fd, buf, flags)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %q", n, buf[:n])
}

// readAll reads until it has n bytes, or no more come.
func (s *socket) readAll(n int) ([]byte, error) {
	got := make([]byte, n)
	for have := 0; have < n; {
		k, err := unix.Read(s.fd, got[have:])
		if err != nil || k == 0 {
			return got[:have], err
		}
		have += k
	}
	return got, nil
}

// poll tells which of events there are within a while.
func (s *socket) poll(events int16, within time.Duration) string {
	p := []unix.PollFd{{Fd: int32(s.fd), Events: events}}
	n, err := unix.Poll(p, int(within.Milliseconds()))
	return fmt.Sprint(told(n, err), " ", p[0].Revents)
}

const readable = unix.POLLIN | unix.POLLRDHUP

func echo(a, b *socket) string {
	var told []string
	for _, size := range []int{1, 1000, 4096, 65537, 1 << 18} {
		sent := make([]byte, size)
		for i := range sent {
			sent[i] = byte(i*7 + i>>8)
		}
		for _, way := range [][2]*socket{{a, b}, {b, a}} {
			written := make(chan error, 1)
			go func() {
				rest := sent
				for len(rest) > 0 {
					n, err := unix.Write(way[0].fd, rest)
					if err != nil {
						written <- err
						return
					}
					rest = rest[n:]
				}
				written <- nil
			}()
			got, err := way[1].readAll(size)
			told = append(told, fmt.Sprint(bytes.Equal(got, sent), err, <-written))
		}
	}
	return strings.Join(told, ", ")
}

// order has so much wait that the connection goes back to TCP in the middle.
func order(a, b *socket) string {
	sent := make([]byte, 5<<18)
	for i := range sent {
		sent[i] = byte(i>>12 + i)
	}
	written := make(chan string, 1)
	go func() {
		rest := sent
		for len(rest) > 0 {
			n, err := unix.Write(a.fd, rest[:min(len(rest), 1<<17)])
			if err != nil {
				written <- err.Error()
				return
			}
			rest = rest[n:]
		}
		written <- "all"
	}()
	time.Sleep(wait) // for as much as the buffers take: nothing depends on how much that is
	got, err := b.readAll(len(sent))
	return fmt.Sprint(bytes.Equal(got, sent), err, <-written)
}

func sendfile(a, b *socket) string {
	const size = 100_000
	fd, err := unix.MemfdCreate("sidegate", unix.MFD_CLOEXEC)
	if err != nil {
		return err.Error()
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	sent := bytes.Repeat([]byte("sendfile"), size/8)
	if _, err := f.Write(sent); err != nil {
		return err.Error()
	}
	done := make(chan string, 1)
	go func() {
		var off int64
		for off < size {
			if n, err := unix.Sendfile(a.fd, fd, &off, size-int(off)); err != nil || n == 0 {
				done <- told(n, err)
				return
			}
		}
		done <- "all"
	}()
	got, err := b.readAll(size)
	return fmt.Sprint(bytes.Equal(got, sent), err, <-done)
}

func peek(a, b *socket) string {
	return strings.Join([]string{a.write("one"), a.write("two"), b.receive(10, unix.MSG_PEEK), b.receive(4, unix.MSG_PEEK), b.read(10)}, ", ")
}

func edges(a, b *socket) string {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(ep)
	err = unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, b.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET})
	if err != nil {
		return err.Error()
	}
	var seen []string
	next := func(within time.Duration) {
		var ev [1]unix.EpollEvent
		n, err := unix.EpollWait(ep, ev[:], int(within.Milliseconds()))
		seen = append(seen, fmt.Sprint(told(n, err), " ", ev[0].Events))
	}
	a.write("some")
	next(limit)
	next(wait) // no new edge
	a.write("more")
	next(limit)
	seen = append(seen, b.read(6))
	next(wait)
	_ = unix.Shutdown(a.fd, unix.SHUT_WR)
	next(limit)
	return strings.Join(append(seen, b.read(6), b.read(6)), ", ")
}

func halfClose(a, b *socket) string {
	seen := []string{a.write("question"), told(0, unix.Shutdown(a.fd, unix.SHUT_WR)), b.poll(readable, limit), b.read(20), b.read(20)}
	seen = append(seen, b.write("answer"), a.read(20), told(0, unix.Shutdown(b.fd, unix.SHUT_WR)), a.poll(readable, limit), a.read(20))
	return strings.Join(append(seen, told(unix.SendmsgN(a.fd, []byte("x"), nil, nil, unix.MSG_NOSIGNAL))), ", ")
}

func reset(a, b *socket) string {
	seen := []string{a.write("last"), told(0, unix.SetsockoptLinger(a.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))}
	_ = a.close()
	return strings.Join(append(seen, b.poll(readable, limit), b.read(20), b.read(20)), ", ")
}

func timeout(_, b *socket) string {
	if err := b.wait(wait); err != nil {
		return err.Error()
	}
	began := time.Now()
	got := b.read(1)
	return fmt.Sprint(got, time.Since(began) >= wait)
}

// backPressure writes more than TCP's buffers take.
func backPressure(a, _ *socket) string {
	most := 64 << 20
	buf := make([]byte, 1<<20)
	for sent := 0; sent < most; {
		n, err := unix.SendmsgN(a.fd, buf, nil, nil, unix.MSG_DONTWAIT)
		if err != nil {
			return err.Error()
		}
		sent += n
	}
	return "never"
}

func writeToClosed(a, b *socket) string {
	_ = a.close()
	send := func() string { return told(unix.SendmsgN(b.fd, []byte("x"), nil, nil, unix.MSG_NOSIGNAL)) }
	return strings.Join([]string{b.poll(readable, limit), send(), b.poll(unix.POLLERR, limit), send(), b.read(1)}, ", ")
}

func splice(a, b *socket) string {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err.Error()
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	if err := b.wait(wait); err != nil { // SPLICE_F_NONBLOCK is about the pipe
		return err.Error()
	}
	a.write("bytes")
	n, err := unix.Splice(b.fd, nil, p[1], nil, 100, unix.SPLICE_F_NONBLOCK)
	return told(int(n), err)
}

func fionread(a, b *socket) string {
	a.write("bytes")
	n, err := unix.IoctlGetInt(b.fd, unix.TIOCINQ)
	return told(n, err)
}

func waitAll(a, b *socket) string {
	a.write("one")
	sent := make(chan string, 1)
	go func() {
		time.Sleep(wait / 2) // so that the reader has to wait for it, if it does
		sent <- a.write("two")
	}()
	got := b.receive(6, unix.MSG_WAITALL)
	return got + <-sent
}

// blockingRead shuts down what a reader waits at.
func blockingRead(a, b *socket) string {
	got, reader := make(chan string, 1), make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		reader <- unix.Gettid()
		got <- b.read(10)
	}()
	untilAsleep(<-reader) // if it does not wait yet, nothing shows
	_ = unix.Shutdown(b.fd, unix.SHUT_WR)
	first := ""
	select {
	case first = <-got:
	case <-time.After(wait):
	}
	a.write("answer")
	if first == "" {
		first = <-got
	}
	return first
}

// untilAsleep waits until a thread of this process sleeps, which has nothing to sleep in but a read; on a busy machine that may
// take a while.
func untilAsleep(tid int) {
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
		// Its state is behind the name, which is in brackets and may have any in it (proc_pid_stat(5)).
		if i := strings.LastIndexByte(string(b), ')'); err != nil || i >= 0 && strings.HasPrefix(string(b[i:]), ") S") {
			return
		}
	}
}

// fionreadAfter asks for the last of so many bytes that the connection went back to TCP.
func fionreadAfter(a, b *socket) string {
	const last = 1000
	sent := 0
	buf := make([]byte, 1<<16)
	for sent < 5<<18 {
		n, err := unix.SendmsgN(a.fd, buf, nil, nil, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		sent += n
	}
	if got, err := b.readAll(sent - last); err != nil {
		return fmt.Sprint(len(got), err)
	}
	b.poll(unix.POLLIN, limit)
	n, err := unix.IoctlGetInt(b.fd, unix.TIOCINQ)
	return fmt.Sprint(n > 0, err)
}

func emptyRead(_, b *socket) string {
	n, _, err := unix.Recvfrom(b.fd, []byte{}, unix.MSG_DONTWAIT)
	return told(n, err)
}

func truncate(a, b *socket) string {
	a.write("bytes")
	buf := []byte("-----")
	n, _, err := unix.Recvfrom(b.fd, buf, unix.MSG_TRUNC)
	return fmt.Sprintf("%s %q", told(n, err), buf)
}

func outOfBand(a, b *socket) string {
	a.write("in")
	sent := told(unix.SendmsgN(a.fd, []byte("!"), nil, nil, unix.MSG_OOB))
	return strings.Join([]string{sent, b.receive(1, unix.MSG_OOB|unix.MSG_DONTWAIT), b.read(10)}, ", ")
}

func closeUnread(a, b *socket) string {
	a.write("unread")
	_ = b.close()
	return strings.Join([]string{a.poll(readable, limit), a.read(1)}, ", ")
}

func info(a, b *socket) string {
	a.write("bytes")
	seen := b.read(10)
	i, err := unix.GetsockoptTCPInfo(b.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(seen, i.Bytes_received)
}
