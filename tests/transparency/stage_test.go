// SPDX-License-Identifier: Apache-2.0

package transparency

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/prober/hands"
)

// A stage is one connection for a script, and what both ends were told so far.
type stage struct {
	t    *testing.T
	s    *scene
	kind kind
	a, b *end // client and server
	l    *end // the server's listener
	told []string
}

// kind is how a connection comes about.
type kind struct {
	name   string
	addr   string // where the client connects to
	on     string // where the server listens
	client func(*scene) *worker
	server func(*scene) *worker
}

func inApp(s *scene) *worker { return s.inApp }
func inCar(s *scene) *worker { return s.inCar }

var kinds = []kind{
	{"redirected", "192.0.2.80:5000", "127.0.0.1:15001", inApp, inCar}, // to the outside, as the app thinks
	{"inbound", fmt.Sprintf("[::1]:%d", portApp), fmt.Sprintf("[::1]:%d", portApp), inCar, inApp},
}

// An end is a socket in a container.
type end struct {
	st   *stage
	name string
	w    *worker
	fd   int
	open bool
}

// open makes the listener and the client's socket, lets a script set options of both, and connects.
func (st *stage) open(before func(client, listener *end)) {
	st.listen(before)
	st.a.do("connect", hands.Order{Op: "connect", Addr: st.kind.addr})
	st.accept()
}

func (st *stage) listen(before func(client, listener *end)) {
	st.t.Helper()
	st.l, st.a = st.socket("l", st.kind.server(st.s)), st.socket("a", st.kind.client(st.s))
	st.l.must(hands.Order{Op: "bind", Addr: st.kind.on})
	if before != nil {
		before(st.a, st.l)
	}
	st.l.must(hands.Order{Op: "listen", Size: 16})
}

func (st *stage) accept() {
	st.t.Helper()
	st.b = &end{st: st, name: "b", w: st.l.w, open: true}
	st.b.fd = st.l.must(hands.Order{Op: "accept"}).N
}

func (st *stage) socket(name string, w *worker) *end {
	st.t.Helper()
	e := &end{st: st, name: name, w: w}
	e.fd = e.must(hands.Order{Op: "socket", Addr: st.kind.addr}).N
	e.open = true
	return e
}

// close closes what the script left open.
func (st *stage) close() {
	for _, e := range []*end{st.l, st.a, st.b} {
		if e != nil && e.open {
			e.must(hands.Order{Op: "close"})
			e.open = false
		}
	}
}

// must does what works on any connection, so that it is told to nobody.
func (e *end) must(o hands.Order) hands.Answer {
	e.st.t.Helper()
	o.FD = e.fd
	a := e.w.do(e.st.t, o)
	if a.Err != "" {
		e.st.t.Fatalf("%s: %s %s: %s", e.st.s.name, e.name, o.Op, a.Err)
	}
	return a
}

// later is a call that is under way.
type later struct {
	e    *end
	what string
	ch   <-chan hands.Answer
}

func (e *end) start(what string, o hands.Order) later {
	if o.FD == 0 {
		o.FD = e.fd
	}
	return later{e, what, e.w.start(o)}
}

// wait adds what a call was told to what the script has seen.
func (l later) wait() hands.Answer {
	l.e.st.t.Helper()
	a := l.e.w.wait(l.e.st.t, l.ch)
	l.e.st.told = append(l.e.st.told, fmt.Sprintf("%s %s: %s", l.e.name, l.what, a.Told()))
	return a
}

func (e *end) do(what string, o hands.Order) hands.Answer {
	e.st.t.Helper()
	return e.start(what, o).wait()
}

func (e *end) send(text string) { e.sendAs(text, 0) }

func (e *end) sendAs(text string, flags int) {
	e.do(fmt.Sprintf("send %q %#x", text, flags), hands.Order{Op: "send", Data: []byte(text), Flags: flags})
}

func (e *end) recv(most int) { e.recvAs(most, 0) }

func (e *end) recvAs(most, flags int) {
	e.do(fmt.Sprintf("recv %d %#x", most, flags), hands.Order{Op: "recv", Size: most, Flags: flags})
}

func (e *end) recvmsg(most, flags int) {
	e.do(fmt.Sprintf("recvmsg %d %#x", most, flags), hands.Order{Op: "recvmsg", Size: most, Flags: flags})
}

func give(size, chunk int) hands.Order { return hands.Order{Op: "give", Size: size, Chunk: chunk} }
func take(size, chunk int) hands.Order { return hands.Order{Op: "take", Size: size, Chunk: chunk} }

// carry moves so many bytes, and both ends work at it.
func carry(from, to *end, size, chunk int) {
	got := to.start(fmt.Sprintf("take %d", size), take(size, 0))
	from.do(fmt.Sprintf("give %d by %d", size, chunk), give(size, chunk))
	got.wait()
}

// within is how long what comes may take; soon is long enough for what has to come by itself to be seen, and is waited for in vain
// where nothing comes.
const (
	within = 5 * time.Second
	soon   = 50 * time.Millisecond
)

func (e *end) poll(events int, limit time.Duration) {
	e.do(fmt.Sprintf("poll %#x", events), hands.Order{Op: "poll", Flags: events, Wait: limit})
}

func (e *end) readable() { e.poll(unix.POLLIN|unix.POLLRDHUP, within) }
func (e *end) silent()   { e.poll(unix.POLLIN|unix.POLLRDHUP, soon) }

func (e *end) shutdown(how int) {
	e.do(fmt.Sprintf("shutdown %d", how), hands.Order{Op: "shutdown", Value: how})
}

func (e *end) close() {
	e.open = false
	e.do("close", hands.Order{Op: "close"})
}

func (e *end) set(level, opt, value int) {
	e.do(fmt.Sprintf("setsockopt %d/%d=%d", level, opt, value), hands.Order{Op: "setsockopt", Level: level, Opt: opt, Value: value})
}

func (e *end) get(level, opt int) {
	e.do(fmt.Sprintf("getsockopt %d/%d", level, opt), hands.Order{Op: "getsockopt", Level: level, Opt: opt})
}

func (e *end) ioctl(name string, req int) {
	e.do(name, hands.Order{Op: "ioctl", Flags: req})
}

func (e *end) linger(seconds int) {
	e.do("linger", hands.Order{Op: "setsockopt", Mode: "linger", Value: seconds})
}

// epoll is one that waits for edges of the socket.
func (e *end) epoll(events uint32) (wait func(time.Duration), done func()) {
	ep := e.must(hands.Order{Op: "epoll", Flags: int(events)}).N
	return func(limit time.Duration) {
			e.do("epoll_wait", hands.Order{Op: "epoll_wait", FD: ep, Wait: limit})
		}, func() {
			e.w.do(e.st.t, hands.Order{Op: "close", FD: ep})
		}
}

// perform plays a script in a scene, and returns all that was told.
func (sc *script) perform(t *testing.T, s *scene, k kind) string {
	t.Helper()
	before := s.acceleration(t)
	st := &stage{t: t, s: s, kind: k}
	defer st.close()
	if !sc.opens {
		st.open(nil)
	}
	sc.play(st)
	st.close()
	if t.Failed() {
		return ""
	}
	sc.judge(t, s, before["app"].Connections, before["app"].Messages+before["sidecar"].Messages)
	return strings.Join(st.told, "\n")
}

// judge looks whether the connection was what it was meant to be.
func (sc *script) judge(t *testing.T, s *scene, connections, messages uint64) {
	t.Helper()
	now := s.acceleration(t)
	connections = now["app"].Connections - connections
	messages = now["app"].Messages + now["sidecar"].Messages - messages
	switch {
	case (s == world.plain || world.off != "") && (connections > 0 || messages > 0):
		t.Errorf("%s: %d connections, %d messages are accelerated", s.name, connections, messages)
	case s == world.plain || world.off != "":
	case sc.tcp != (messages == 0):
		t.Errorf("accelerated: %d connections, %d messages past TCP; it has to be TCP: %v", connections, messages, sc.tcp)
	case !sc.tcp && connections == 0:
		t.Errorf("accelerated: no connection is: %+v", now)
	}
}
