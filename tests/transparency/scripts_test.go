// SPDX-License-Identifier: Apache-2.0

package transparency

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/prober/hands"
)

// A script is what processes at both ends of a connection do.
type script struct {
	name    string
	differs string // the self-test's name of what is different, on kernels that have it
	tcp     bool   // it needs what only TCP does, so no byte may go past it
	opens   bool   // it makes its connection itself
	chance  bool   // it differs, or does not
	play    func(*stage)
}

const stream = unix.IPPROTO_TCP

var scripts = []script{
	{name: "bytes", play: func(st *stage) {
		for _, size := range []int{1, 1000, 4096, 65537, 1 << 20} {
			carry(st.a, st.b, size, 0)
			carry(st.b, st.a, size, 0)
		}
	}},
	{name: "many small", play: func(st *stage) {
		carry(st.a, st.b, 20_000, 7)
		carry(st.b, st.a, 20_000, 7)
	}},
	{name: "both ways at once", play: func(st *stage) {
		bothWays(st, unix.MSG_DONTWAIT, "poll")
	}},
	{name: "both ways at once, blocking", differs: "blocking read", chance: true, play: func(st *stage) { bothWays(st, 0, "") }},
	{name: "64 MiB", play: func(st *stage) { carry(st.a, st.b, 64<<20, 0) }},
	{name: "slow reader", play: func(st *stage) {
		o := take(6<<20, 1<<18)
		o.Wait = 2 * time.Millisecond
		got := st.b.start("take", o)
		st.a.do("give", give(6<<20, 1<<17))
		got.wait()
		carry(st.b, st.a, 1000, 0)
	}},
	{name: "server first", play: func(st *stage) {
		st.b.send("welcome")
		st.a.recv(100)
		st.a.send("thanks")
		st.b.recv(100)
	}},
	{name: "before accept", opens: true, play: func(st *stage) {
		st.listen(nil)
		st.a.do("connect", hands.Order{Op: "connect", Addr: st.kind.addr})
		st.a.send("early")
		st.a.send("bird")
		st.a.shutdown(unix.SHUT_WR)
		st.accept()
		st.b.readable()
		st.b.recv(100)
		st.b.recv(100)
		st.b.send("late")
		st.a.recv(100)
	}},
	{name: "closed before accept", opens: true, play: func(st *stage) {
		st.listen(nil)
		st.a.do("connect", hands.Order{Op: "connect", Addr: st.kind.addr})
		st.a.send("gone")
		st.a.close()
		st.accept()
		st.b.recv(100)
		st.b.recv(100)
	}},
	{name: "vectors", play: func(st *stage) {
		st.a.do("writev", hands.Order{Op: "writev", Data: []byte("one two three four")})
		st.b.do("readv", hands.Order{Op: "readv", Size: 6})
		st.b.do("readv", hands.Order{Op: "readv", Size: 6})
	}},
	{name: "non-blocking", play: func(st *stage) {
		st.b.do("nonblock", hands.Order{Op: "nonblock", Value: 1})
		st.b.recv(10)
		st.b.recvAs(10, unix.MSG_PEEK)
		st.a.send("some")
		st.b.recv(10)
		st.b.recv(10)
		st.a.sendAs("", 0)
		st.b.recv(10)
		st.a.shutdown(unix.SHUT_WR)
		st.b.readable()
		st.b.recv(10)
		st.b.recv(10)
	}},
	{name: "MSG_DONTWAIT", play: func(st *stage) {
		st.b.recvAs(10, unix.MSG_DONTWAIT)
		st.a.send("some")
		st.b.recvAs(2, unix.MSG_DONTWAIT)
		st.b.recvAs(10, unix.MSG_DONTWAIT)
		st.b.recvAs(10, unix.MSG_DONTWAIT)
	}},
	{name: "peek", play: func(st *stage) {
		st.a.send("one")
		st.a.send("two")
		st.b.recvAs(10, unix.MSG_PEEK)
		st.b.recvAs(4, unix.MSG_PEEK)
		st.b.recv(2)
		st.b.recvAs(10, unix.MSG_PEEK)
		st.b.recv(10)
		st.b.recvAs(10, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		st.a.shutdown(unix.SHUT_WR)
		st.b.recvAs(10, unix.MSG_PEEK)
		st.b.recv(10)
	}},
	{name: "peek waits", play: func(st *stage) {
		got := st.b.start("peek", hands.Order{Op: "recv", Size: 10, Flags: unix.MSG_PEEK})
		st.a.send("now")
		got.wait()
		st.b.recv(10)
	}},
	{name: "recvmsg", play: func(st *stage) {
		st.a.send("message")
		st.b.recvmsg(4, 0)
		st.b.recvmsg(4, 0)
		st.a.sendAs("end of record", unix.MSG_EOR)
		st.b.recvmsg(100, 0)
		st.a.shutdown(unix.SHUT_WR)
		st.b.recvmsg(100, 0)
	}},
	{name: "waitall", differs: "MSG_WAITALL", play: func(st *stage) {
		st.a.send("one")
		got := st.b.start("recv all", hands.Order{Op: "recv", Size: 6, Flags: unix.MSG_WAITALL})
		time.Sleep(soon) // so that the reader has to wait for the rest, if it does
		st.a.send("two")
		got.wait()
	}},
	{name: "waitall at the end", differs: "MSG_WAITALL", play: func(st *stage) {
		got := st.b.start("recv all", hands.Order{Op: "recv", Size: 100, Flags: unix.MSG_WAITALL})
		st.a.send("one")
		time.Sleep(soon)
		st.a.send("two")
		st.a.shutdown(unix.SHUT_WR)
		got.wait()
	}},
	{name: "truncate", differs: "MSG_TRUNC", play: func(st *stage) {
		st.a.send("bytes")
		st.b.recvAs(5, unix.MSG_TRUNC)
	}},
	{name: "out of band", differs: "MSG_OOB", play: func(st *stage) {
		st.a.send("in")
		st.a.sendAs("!", unix.MSG_OOB)
		st.b.poll(unix.POLLPRI, soon)
		st.b.recvAs(1, unix.MSG_OOB|unix.MSG_DONTWAIT)
		st.b.recv(10)
	}},
	{name: "no out of band", differs: "MSG_OOB", play: func(st *stage) {
		st.a.send("in")
		st.b.recvAs(1, unix.MSG_OOB|unix.MSG_DONTWAIT)
		st.b.poll(unix.POLLPRI, 0)
		st.b.recv(10)
	}},
	{name: "close unread", differs: "close unread", play: func(st *stage) {
		st.a.send("unread")
		st.b.close()
		st.a.readable()
		st.a.recv(10)
	}},
	{name: "TCP_INFO", differs: "TCP_INFO", play: func(st *stage) {
		st.a.send("bytes")
		st.b.recv(10)
		st.b.do("TCP_INFO", hands.Order{Op: "tcp_info", Mode: "bytes"})
	}},
	{name: "state", play: func(st *stage) {
		state := func() {
			for _, e := range []*end{st.a, st.b} {
				e.do("state", hands.Order{Op: "tcp_info"})
			}
		}
		st.a.send("x")
		state()
		st.a.shutdown(unix.SHUT_WR)
		st.b.readable()
		time.Sleep(2 * soon) // for a delayed ACK
		state()
		st.b.recv(1)
		st.b.recv(1)
		st.b.send("y")
		st.b.shutdown(unix.SHUT_WR)
		st.a.recv(1)
		st.a.recv(1)
	}},
	{name: "options", play: func(st *stage) {
		st.a.send("x")
		for _, e := range []*end{st.a, st.b} {
			for _, o := range []int{unix.SO_ERROR, unix.SO_TYPE, unix.SO_DOMAIN, unix.SO_PROTOCOL, unix.SO_ACCEPTCONN, unix.SO_KEEPALIVE, unix.SO_RCVLOWAT, unix.SO_OOBINLINE} {
				e.get(unix.SOL_SOCKET, o)
			}
			for _, o := range []int{unix.TCP_NODELAY, unix.TCP_CORK, unix.TCP_QUICKACK, unix.TCP_USER_TIMEOUT, unix.TCP_ULP, unix.TCP_KEEPIDLE, unix.TCP_INQ} {
				e.get(stream, o)
			}
		}
		st.b.recv(1)
	}},
	{name: "TCP_MAXSEG", differs: "TCP_INFO", play: func(st *stage) {
		st.a.send("x")
		st.a.get(stream, unix.TCP_MAXSEG)
		st.b.recv(1)
	}},
	{name: "empty read", differs: "empty read", play: func(st *stage) {
		st.a.send("some")
		st.b.recvAs(0, unix.MSG_DONTWAIT)
		st.b.recv(10)
		st.b.recvAs(0, unix.MSG_DONTWAIT)
	}},
	{name: "signal", differs: "blocking read", play: func(st *stage) {
		st.b.do("SO_RCVTIMEO", hands.Order{Op: "setsockopt", Mode: "time", Level: unix.SOL_SOCKET, Opt: unix.SO_RCVTIMEO}) // for ever
		got := st.b.start("interrupted recv", hands.Order{Op: "interrupted", Size: 10, Wait: soon / 2})
		time.Sleep(2 * soon)
		st.a.send("late")
		got.wait()
	}},
	{name: "half-close beside a reader", differs: "blocking read", play: func(st *stage) {
		got := st.a.start("recv", hands.Order{Op: "recv", Size: 10})
		time.Sleep(soon)
		st.a.shutdown(unix.SHUT_WR)
		st.b.recv(10)
		time.Sleep(2 * soon)
		st.b.send("answer")
		got.wait()
	}},
	{name: "FIONREAD", differs: "FIONREAD", play: func(st *stage) {
		st.b.ioctl("FIONREAD", unix.TIOCINQ)
		st.a.send("bytes")
		st.b.ioctl("FIONREAD", unix.TIOCINQ)
		st.a.send("more")
		st.b.ioctl("FIONREAD", unix.TIOCINQ)
		st.b.recv(7)
		st.b.ioctl("FIONREAD", unix.TIOCINQ)
		st.b.recv(7)
		st.b.ioctl("FIONREAD", unix.TIOCINQ)
	}},
	{name: "SIOCOUTQ", play: func(st *stage) {
		st.a.send("bytes")
		st.b.recv(10)
		st.a.ioctl("SIOCOUTQ", unix.TIOCOUTQ)
		st.a.ioctl("SIOCATMARK", unix.SIOCATMARK)
	}},
	{name: "poll", play: func(st *stage) {
		const all = unix.POLLIN | unix.POLLOUT | unix.POLLRDHUP | 0x40 | 0x100 // POLLRDNORM, POLLWRNORM
		both := func() {
			st.a.poll(all, 0)
			st.b.poll(all, 0)
		}
		both()
		st.a.send("x")
		st.b.readable()
		both()
		st.b.recv(1)
		both()
		st.a.shutdown(unix.SHUT_WR)
		st.b.readable()
		both()
		st.b.recv(1)
		st.b.shutdown(unix.SHUT_WR)
		st.a.readable()
		both()
	}},
	{name: "poll waits", play: func(st *stage) {
		got := st.b.start("poll", hands.Order{Op: "poll", Flags: unix.POLLIN, Wait: within})
		time.Sleep(soon / 10)
		st.a.send("x")
		got.wait()
		st.b.recv(1)
		st.b.silent()
	}},
	{name: "epoll level", play: func(st *stage) { edges(st, unix.EPOLLIN|unix.EPOLLRDHUP) }},
	{name: "epoll edges", play: func(st *stage) { edges(st, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLET) }},
	{name: "epoll one shot", play: func(st *stage) { edges(st, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLONESHOT) }},
	{name: "short read at an edge", play: func(st *stage) {
		// So much that the connection goes back to TCP, all but a little of it read. TCP then takes as much as its window lets it.
		const size, first = 12 << 20, 65<<16 - 100
		given := st.a.start("give", give(size, 1<<16))
		time.Sleep(soon)
		st.b.do("take", take(first, 0))
		time.Sleep(time.Second)
		st.b.do("take by edges", hands.Order{Op: "edges", Size: size - first, Chunk: 60_000, Wait: time.Second})
		st.b.close() // whoever waits for it waits no more
		given.wait()
	}},
	{name: "FIONREAD after TCP", differs: "FIONREAD after TCP", play: func(st *stage) {
		const last = 1000
		st.a.do("nonblock", hands.Order{Op: "nonblock", Value: 1})
		// Until nothing more fits, which is more than may be redirected while nobody reads. How much that is is nobody's promise.
		n := st.a.w.do(st.t, hands.Order{Op: "give", FD: st.a.fd, Size: 64 << 20}).N
		some := func(size int) {
			if a := st.b.w.do(st.t, hands.Order{Op: "take", FD: st.b.fd, Size: size, Mode: "any"}); a.N != size || a.Err != "" {
				st.t.Errorf("%s: of %d bytes came %d, %s", st.s.name, size, a.N, a.Err)
			}
		}
		some(n - last)
		st.b.poll(unix.POLLIN, within)
		a := st.b.w.do(st.t, hands.Order{Op: "ioctl", FD: st.b.fd, Flags: unix.TIOCINQ})
		st.told = append(st.told, fmt.Sprint("b has some: ", a.N > 0, a.Err))
		some(last)
		st.a.do("nonblock", hands.Order{Op: "nonblock"})
		carry(st.a, st.b, 1000, 0)
	}},
	{name: "back-pressure", play: func(st *stage) {
		st.a.do("nonblock", hands.Order{Op: "nonblock", Value: 1})
		// How much the buffers take is nobody's promise.
		n := st.a.w.do(st.t, hands.Order{Op: "give", FD: st.a.fd, Size: 64 << 20})
		st.told = append(st.told, "a is told "+n.Err)
		st.a.poll(unix.POLLOUT, 0)
		got := st.b.start("take", hands.Order{Op: "take", Size: 1 << 18})
		got.wait()
		rest := st.b.w.start(hands.Order{Op: "take", FD: st.b.fd, Size: n.N - 1<<18, Mode: "any"})
		st.a.poll(unix.POLLOUT, within)
		if a := st.b.w.wait(st.t, rest); a.N != n.N-1<<18 || a.Err != "" {
			st.t.Errorf("%s: of %d bytes came %d and %d, %s", st.s.name, n.N, 1<<18, a.N, a.Err)
		}
		st.a.do("nonblock", hands.Order{Op: "nonblock"})
		carry(st.a, st.b, 1000, 0)
	}},
	{name: "half-close", play: func(st *stage) {
		st.a.send("question")
		st.a.shutdown(unix.SHUT_WR)
		st.b.readable()
		st.b.recv(20)
		st.b.recv(20)
		time.Sleep(2 * soon) // a delayed ACK wakes readers: see "half-close beside a reader"
		carry(st.b, st.a, 3<<20, 0)
		st.b.shutdown(unix.SHUT_WR)
		st.a.readable()
		st.a.recv(20)
		st.a.send("x")
		st.b.recv(1)
	}},
	{name: "half-close of the server", play: func(st *stage) {
		st.b.send("answer")
		st.b.shutdown(unix.SHUT_WR)
		st.a.recv(20)
		st.a.recv(20)
		time.Sleep(2 * soon)
		carry(st.a, st.b, 3<<20, 0)
		st.b.send("x")
		st.a.shutdown(unix.SHUT_WR)
		st.b.recv(1)
	}},
	{name: "shutdown for reading", play: func(st *stage) {
		st.a.send("before")
		st.b.shutdown(unix.SHUT_RD)
		st.b.poll(unix.POLLIN|unix.POLLRDHUP, 0)
		st.b.recv(20)
		st.b.recv(20)
		st.a.send("after")
		st.b.recv(20)
		st.b.recv(20)
		st.b.send("still")
		st.a.recv(20)
	}},
	{name: "shutdown both", play: func(st *stage) {
		st.a.send("x")
		st.b.recv(1)
		st.a.shutdown(unix.SHUT_RDWR)
		st.b.readable()
		st.b.recv(1)
		st.a.recv(1)
		st.a.send("y")
		st.a.shutdown(unix.SHUT_RDWR)
	}},
	{name: "reset", play: func(st *stage) {
		st.a.send("last")
		st.a.linger(0)
		st.a.close()
		st.b.poll(unix.POLLIN|unix.POLLRDHUP, within)
		st.b.get(unix.SOL_SOCKET, unix.SO_ERROR)
		st.b.recv(10)
		st.b.recv(10)
		st.b.send("x")
	}},
	{name: "reset wakes a reader", differs: "blocking read", play: func(st *stage) {
		st.b.send("hello")
		st.a.recv(5)
		got := st.b.start("recv", hands.Order{Op: "recv", Size: 10})
		st.a.linger(0)
		time.Sleep(soon / 5)
		st.a.close()
		got.wait()
		st.b.recv(10)
	}},
	{name: "write to closed", play: func(st *stage) {
		st.a.send("x")
		st.b.recv(1)
		st.a.close()
		st.b.readable()
		st.b.send("x")
		st.b.poll(unix.POLLERR, within)
		st.b.send("y")
		st.b.recv(1)
	}},
	{name: "close with all sent", play: func(st *stage) {
		st.a.do("give", give(300_000, 0))
		st.a.close()
		st.b.do("take", take(400_000, 0))
	}},
	{name: "lingering close", play: func(st *stage) {
		st.a.send("some")
		st.a.linger(2)
		st.a.close()
		st.b.recv(10)
		st.b.recv(10)
	}},
	{name: "close wakes nobody", play: func(st *stage) { // the other descriptor keeps it
		other := st.a.must(hands.Order{Op: "dup"}).N
		st.a.close()
		st.b.silent()
		st.a.fd, st.a.open = other, true
		st.a.send("still")
		st.b.recv(10)
	}},
	{name: "SO_RCVTIMEO", play: func(st *stage) {
		st.b.do("SO_RCVTIMEO", hands.Order{Op: "setsockopt", Mode: "time", Level: unix.SOL_SOCKET, Opt: unix.SO_RCVTIMEO, Wait: soon})
		began := time.Now()
		st.b.recv(10)
		if took := time.Since(began); took < soon {
			st.t.Errorf("%s: a read with SO_RCVTIMEO of %s took %s", st.s.name, soon, took)
		}
		st.a.send("x")
		st.b.recv(10)
		st.b.recvAs(10, unix.MSG_PEEK)
	}},
	{name: "SO_SNDTIMEO", play: func(st *stage) {
		st.a.do("SO_SNDTIMEO", hands.Order{Op: "setsockopt", Mode: "time", Level: unix.SOL_SOCKET, Opt: unix.SO_SNDTIMEO, Wait: soon})
		a := st.a.w.do(st.t, hands.Order{Op: "give", FD: st.a.fd, Size: 64 << 20})
		st.told = append(st.told, "a is told "+a.Err)
		st.b.do("take", take(1<<18, 0))
	}},
	{name: "keep-alive", play: func(st *stage) {
		for _, e := range []*end{st.a, st.b} {
			e.set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
			e.set(stream, unix.TCP_KEEPIDLE, 1)
			e.set(stream, unix.TCP_KEEPINTVL, 1)
			e.set(stream, unix.TCP_KEEPCNT, 1)
		}
		st.a.send("x")
		st.b.recv(1)
		st.b.poll(unix.POLLIN|unix.POLLRDHUP, 2500*time.Millisecond)
		st.b.send("y")
		st.a.recv(1)
	}},
	{name: "TCP_NODELAY", play: func(st *stage) {
		st.a.set(stream, unix.TCP_NODELAY, 1)
		st.a.send("x")
		st.b.recv(1)
		carry(st.a, st.b, 100_000, 11_000)
	}},
	{name: "TCP_CORK", play: func(st *stage) {
		st.a.set(stream, unix.TCP_CORK, 1)
		st.a.send("one")
		st.a.send("two")
		st.a.set(stream, unix.TCP_CORK, 0)
		st.b.do("take", hands.Order{Op: "take", Size: 6, Mode: "any"})
		st.a.sendAs("three", unix.MSG_MORE)
		st.a.send("four")
		st.b.do("take", hands.Order{Op: "take", Size: 9, Mode: "any"})
	}},
	{name: "TCP_QUICKACK", play: func(st *stage) {
		st.b.set(stream, unix.TCP_QUICKACK, 0)
		carry(st.a, st.b, 50_000, 100)
	}},
	{name: "TCP_USER_TIMEOUT", play: func(st *stage) {
		st.a.set(stream, unix.TCP_USER_TIMEOUT, 100)
		st.a.send("x")
		time.Sleep(3 * soon)
		st.a.send("y")
		st.b.do("take", hands.Order{Op: "take", Size: 2, Mode: "any"})
	}},
	{name: "tiny buffers", opens: true, play: func(st *stage) {
		st.open(func(client, listener *end) {
			for _, e := range []*end{client, listener} {
				e.set(unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
				e.set(unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
			}
		})
		carry(st.a, st.b, 200_000, 0)
		carry(st.b, st.a, 200_000, 0)
	}},
	{name: "big buffers", opens: true, play: func(st *stage) {
		st.open(func(client, listener *end) {
			for _, e := range []*end{client, listener} {
				e.set(unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
				e.set(unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
			}
		})
		carry(st.a, st.b, 8<<20, 1<<20)
		carry(st.b, st.a, 8<<20, 1<<20)
	}},
	{name: "sendfile", play: func(st *stage) {
		const size = 3 << 20
		got := st.b.start("take", take(size, 0))
		st.a.do("sendfile", hands.Order{Op: "sendfile", Size: size})
		got.wait()
	}},
	{name: "threads", play: func(st *stage) {
		const each, n = 500_000, 8
		var calls []later
		for range n {
			calls = append(calls, st.a.start("give", give(each, 10_000)))
		}
		o := take(each*n, 0)
		o.Mode = "any"
		st.b.do("take", o)
		for _, c := range calls {
			c.wait()
		}
		// And many that read: what each gets is chance, what all get is not.
		var readers []<-chan hands.Answer
		for range n {
			readers = append(readers, st.b.w.start(hands.Order{Op: "take", FD: st.b.fd, Size: each * n, Mode: "any"}))
		}
		st.a.do("give", give(each, 0))
		st.a.shutdown(unix.SHUT_WR)
		sum := 0
		for _, r := range readers {
			sum += st.b.w.wait(st.t, r).N
		}
		st.told = append(st.told, fmt.Sprintf("all readers have %d", sum))
	}},
	{name: "fork", play: func(st *stage) { handOver(st, "fork") }},
	{name: "SCM_RIGHTS", play: func(st *stage) { handOver(st, "rights") }},
	{name: "SO_RCVLOWAT", tcp: true, play: func(st *stage) {
		st.b.set(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 6)
		st.a.send("one")
		st.b.silent()
		st.a.send("two")
		st.b.readable()
		st.b.recv(10)
		st.b.send("back")
		st.a.recv(10)
	}},
	{name: "SO_RCVLOWAT of a listener", tcp: true, opens: true, play: func(st *stage) {
		st.open(func(_, listener *end) { listener.set(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 6) })
		st.a.send("one")
		st.b.silent()
		st.a.send("two")
		st.b.readable()
		st.b.recv(10)
	}},
	{name: "SO_OOBINLINE", tcp: true, play: func(st *stage) {
		st.b.set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		st.a.send("in")
		st.a.sendAs("!", unix.MSG_OOB)
		st.b.poll(unix.POLLPRI, within)
		st.b.recv(10)
		st.b.ioctl("SIOCATMARK", unix.SIOCATMARK)
		st.b.recv(10)
	}},
	{name: "SO_TIMESTAMP", tcp: true, play: func(st *stage) {
		st.b.set(unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1)
		st.a.send("when")
		st.b.recvmsg(10, 0)
	}},
	{name: "SO_TIMESTAMPING", tcp: true, play: func(st *stage) {
		st.a.set(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_TX_ACK|unix.SOF_TIMESTAMPING_SOFTWARE|unix.SOF_TIMESTAMPING_OPT_TSONLY|unix.SOF_TIMESTAMPING_OPT_ID)
		st.a.send("when")
		st.b.recv(10)
		st.a.poll(0, within)
		st.a.recvmsg(100, unix.MSG_ERRQUEUE)
	}},
	{name: "SO_ZEROCOPY", tcp: true, play: func(st *stage) {
		st.a.set(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
		st.a.sendAs("without a copy", unix.MSG_ZEROCOPY)
		st.b.recv(100)
		st.a.poll(0, within)
		st.a.recvmsg(100, unix.MSG_ERRQUEUE)
	}},
	{name: "MSG_ZEROCOPY without the option", play: func(st *stage) {
		st.a.sendAs("with a copy", unix.MSG_ZEROCOPY)
		st.b.recv(100)
		st.a.poll(0, 0)
		st.a.recvmsg(100, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	}},
	{name: "TCP_INQ", tcp: true, play: func(st *stage) {
		st.b.set(stream, unix.TCP_INQ, 1)
		st.a.send("bytes")
		st.b.recvmsg(2, 0)
	}},
	{name: "TCP_ULP of another name", play: func(st *stage) {
		st.a.send("x")
		st.b.recv(1)
		st.a.do("TCP_CONGESTION", hands.Order{Op: "setsockopt", Mode: "text", Level: stream, Opt: unix.TCP_CONGESTION, Data: []byte("reno")})
		st.a.send("y")
		st.b.recv(1)
	}},
	{name: "late option", play: func(st *stage) { // in the middle of what waits: no byte changes its place
		st.a.send("one")
		st.b.set(unix.SOL_SOCKET, unix.SO_RCVLOWAT, 2)
		st.a.send("two")
		st.a.shutdown(unix.SHUT_WR)
		st.b.do("take", hands.Order{Op: "take", Size: 100, Mode: "any"})
	}},
	{name: "late option, in order", play: func(st *stage) {
		got := st.b.start("take", take(4<<20, 1000))
		st.a.do("give", hands.Order{Op: "give", Size: 4 << 20, Chunk: 10_000})
		st.b.set(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		got.wait()
		carry(st.a, st.b, 100_000, 0)
	}},
	{name: "connect in the background", opens: true, play: func(st *stage) {
		st.listen(nil)
		st.a.do("nonblock", hands.Order{Op: "nonblock", Value: 1})
		st.a.do("connect", hands.Order{Op: "connect", Addr: st.kind.addr})
		st.a.poll(unix.POLLOUT, within)
		st.a.get(unix.SOL_SOCKET, unix.SO_ERROR)
		st.a.do("connect", hands.Order{Op: "connect", Addr: st.kind.addr})
		st.accept()
		st.a.send("x")
		st.b.recv(1)
		st.b.send("y")
		st.a.readable()
		st.a.recv(1)
	}},
}

// bothWays has two threads at each end, of which one reads and one writes.
func bothWays(st *stage, flags int, mode string) {
	const size = 8 << 20
	order := func(op string, chunk int) hands.Order {
		return hands.Order{Op: op, Size: size, Chunk: chunk, Flags: flags, Mode: mode}
	}
	calls := []later{
		st.a.start("give", order("give", 0)), st.b.start("give", order("give", 100_000)),
		st.a.start("take", order("take", 0)), st.b.start("take", order("take", 5000)),
	}
	for _, c := range calls {
		c.wait()
	}
}

// edges tells of what an epoll sees.
func edges(st *stage, events uint32) {
	wait, done := st.b.epoll(events)
	defer done()
	st.a.send("some")
	wait(within)
	wait(soon)
	st.a.send("more")
	wait(soon)
	st.b.recv(6)
	wait(soon)
	st.b.recv(6)
	st.b.recvAs(6, unix.MSG_DONTWAIT)
	wait(soon)
	st.a.send("again")
	wait(soon)
	st.a.shutdown(unix.SHUT_WR)
	wait(soon)
	st.b.recv(6)
	st.b.recv(6)
	wait(soon)
}

// handOver lets other processes have the sockets for a while.
func handOver(st *stage, mode string) {
	child := func(e *end, do hands.Order) {
		e.do(mode+" "+do.Op, hands.Order{Op: "child", Mode: mode, Do: &do})
	}
	st.a.send("one ")
	child(st.a, hands.Order{Op: "send", Data: []byte("two")})
	child(st.b, hands.Order{Op: "recv", Size: 5})
	st.b.recv(10)
	child(st.b, hands.Order{Op: "send", Data: []byte("three")})
	st.a.recv(10)
	child(st.a, hands.Order{Op: "shutdown", Value: unix.SHUT_WR})
	st.b.recv(10)
}

// TestScripts plays all of them, and wants the differences that are known, and all of these.
func TestScripts(t *testing.T) {
	differ := map[string]bool{}
	for _, sc := range scripts {
		for _, k := range kinds {
			t.Run(sc.name+"/"+k.name, func(t *testing.T) {
				plain := sc.perform(t, world.plain, k)
				fast := sc.perform(t, world.fast, k)
				if t.Failed() {
					return
				}
				t.Logf("plain:\n%s", plain)
				known := sc.differs != "" && slices.Contains(world.known, sc.differs)
				switch {
				case plain == fast && known && !sc.chance:
					t.Errorf("the self-test says that %s differs on this kernel, and nothing does:\n%s", sc.differs, plain)
				case plain != fast && !known:
					t.Errorf("plain:\n%s\naccelerated:\n%s", plain, fast)
				case plain != fast:
					differ[sc.differs] = true
					t.Logf("accelerated:\n%s", fast)
				}
			})
		}
	}
	if t.Failed() {
		return
	}
	for _, name := range world.known {
		if !differ[name] && !strings.Contains(flagRun(), "/") {
			t.Errorf("the self-test says that %s differs, and no script shows it", name)
		}
	}
}
