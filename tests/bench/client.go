// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// What the connections of a client do.
const (
	kindEcho  = "echo"  // a request of Size bytes, its answer of as many, the next one
	kindPage  = "page"  // a new connection for each request, which the upstream closes
	kindMixed = "mixed" // of ten connections six echo 64 B, two 1 KiB, one 16 KiB, and one is a page's
	kindUp    = "up"    // send
	kindDown  = "down"  // receive
)

// A client makes load on one thread, over connections that are opened before.
type client struct {
	l           *loop
	kind        string
	to          string
	sa          unix.Sockaddr
	family      int
	flows       []*flow
	request     []byte // the longest one
	broken      int64
	first       error
	running     bool // requests that are done are followed by the next
	done, moved int64
	opened      int64 // connections
	busy        int   // flows that have something to do
}

// A flow is one connection of a client, or one after the other.
type flow struct {
	c       *client
	fd      int
	size    int // of request and answer
	page    bool
	sent    int // of the request
	got     int // of the answer
	stage   stage
	active  bool
	blocked bool // waits for room
}

// stage is how far a connection is.
type stage int

const (
	stageConnects stage = iota // to the next hop
	stageGreets                // its first byte is on the way to the upstream and back
	stageWorks
)

// maxFlows bounds an order.
const maxFlows = 2000

// openClient opens the connections of an order, and waits until each has gone all the way.
func openClient(o *order) (*client, error) {
	if o.Workers < 1 || o.Workers > maxFlows || o.Size < 1 || o.Size > 1<<20 {
		return nil, fmt.Errorf("%d connections of %d bytes", o.Workers, o.Size)
	}
	c := &client{kind: o.Kind, to: o.Addr}
	var err error
	if c.sa, c.family, err = parseTarget(o.Addr); err != nil {
		return nil, err
	}
	if c.l, err = newLoop(); err != nil {
		return nil, err
	}
	if err := c.open(o); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *client) open(o *order) error {
	longest := 0
	for i := range o.Workers {
		f := &flow{c: c, fd: -1, size: o.Size, page: o.Kind == kindPage}
		if o.Kind == kindMixed {
			f.size, f.page = mixedFlow(i)
		}
		if f.page {
			f.size = pageSize
		}
		longest = max(longest, f.size)
		c.flows = append(c.flows, f)
	}
	c.request = make([]byte, longest)
	for _, f := range c.flows {
		if f.page {
			continue // it has nothing to open before
		}
		if err := f.open(); err != nil {
			return err
		}
	}
	return c.until(func() bool { return c.busy == 0 })
}

// mixedFlow is what the i-th of mixed connections does.
func mixedFlow(i int) (size int, page bool) {
	switch i % 10 {
	case 9:
		return pageSize, true
	case 8:
		return 16 << 10, false
	case 6, 7:
		return 1 << 10, false
	}
	return 64, false
}

// run has the connections work for some time, and until what has begun is done. The answer's Done is requests, or bytes.
func (c *client) run(o *order) (answer, error) {
	c.done, c.moved, c.running = 0, 0, true
	deadline := time.Now().Add(o.For)
	for _, f := range c.flows {
		f.begin()
	}
	err := c.until(func() bool {
		if c.running && !time.Now().Before(deadline) {
			c.running = false
			c.stop()
		}
		return c.busy == 0
	})
	a := answer{Done: c.done, Failed: c.broken, Opened: c.opened}
	if c.kind == kindUp || c.kind == kindDown {
		a.Done = c.moved
	}
	return a, err
}

// until handles events until something is so. It is an error if a connection breaks, or if nothing moves for a while.
func (c *client) until(so func() bool) error {
	last := time.Now()
	for {
		if c.first != nil {
			return c.first
		}
		if so() {
			return nil
		}
		n, err := c.l.wait(50)
		if err != nil {
			return err
		}
		if n > 0 {
			last = time.Now()
		} else if time.Since(last) > ioTimeout {
			return fmt.Errorf("%d of %d connections to %s stall", c.busy, len(c.flows), c.to)
		}
	}
}

// close breaks off what is open.
func (c *client) close() error {
	for _, f := range c.flows {
		if f.fd >= 0 {
			c.l.drop(f.fd, true)
			f.fd = -1
		}
	}
	return c.l.close()
}

// stop has bulk come to its end. Requests end by themselves.
func (c *client) stop() {
	if c.kind != kindUp && c.kind != kindDown {
		return
	}
	for _, f := range c.flows {
		if err := unix.Shutdown(f.fd, unix.SHUT_WR); err != nil {
			f.fail(err)
			return
		}
		f.want(unix.EPOLLIN)
	}
}

func (f *flow) fail(err error) {
	f.c.broken++
	if f.c.first == nil {
		f.c.first = fmt.Errorf("connection to %s: %w", f.c.to, err)
	}
}

func (f *flow) want(events uint32) {
	if err := f.c.l.want(f.fd, events); err != nil {
		f.fail(err)
	}
}

// open begins the connection.
func (f *flow) open() (err error) {
	if f.fd, err = start(f.c.family, f.c.sa); err != nil {
		return err
	}
	f.stage, f.got, f.blocked = stageConnects, 0, false
	f.c.opened++
	f.busy(true)
	return f.c.l.add(f.fd, unix.EPOLLOUT, f)
}

func (f *flow) busy(yes bool) {
	if f.active == yes {
		return
	}
	if f.active = yes; yes {
		f.c.busy++
	} else {
		f.c.busy--
	}
}

// mode is the connection's first byte.
func (f *flow) mode() byte {
	switch {
	case f.page:
		return modePage
	case f.c.kind == kindUp:
		return modeSink
	case f.c.kind == kindDown:
		return modeSource
	}
	return modeEcho
}

// begin begins the first request of a run.
func (f *flow) begin() {
	if f.page {
		if err := f.open(); err != nil {
			f.fail(err)
		}
		return
	}
	f.busy(true)
	switch f.c.kind {
	case kindUp:
		f.want(unix.EPOLLOUT)
	case kindDown:
		if n, err := writeSome(f.fd, zeros[:1]); err != nil || n != 1 {
			f.fail(errors.Join(err, errors.New("no room for a byte")))
		}
	default:
		f.next()
	}
}

// next sends a request.
func (f *flow) next() {
	f.sent, f.got = 0, 0
	f.send(f.c.request[:f.size])
}

// send sends the rest of a request.
func (f *flow) send(b []byte) {
	n, err := writeSome(f.fd, b[f.sent:])
	if err != nil {
		f.fail(err)
		return
	}
	f.sent += n
	if blocked := f.sent < len(b); blocked != f.blocked {
		f.blocked = blocked
		if blocked {
			f.want(unix.EPOLLIN | unix.EPOLLOUT)
		} else {
			f.want(unix.EPOLLIN)
		}
	}
}

func (f *flow) ready(_ int, events uint32) {
	switch {
	case f.stage == stageConnects:
		f.connected()
	case f.page:
		f.readPage()
	case f.c.kind == kindUp && f.c.running && f.stage == stageWorks:
		n, err := writeSome(f.fd, zeros)
		if err != nil {
			f.fail(err)
		}
		f.c.moved += int64(n)
	default:
		if f.blocked && events&unix.EPOLLOUT != 0 {
			f.send(f.c.request[:f.size])
		}
		if events&^unix.EPOLLOUT != 0 {
			f.read()
		}
	}
}

// connected sends the first byte, or a page's whole request.
func (f *flow) connected() {
	if err := socketError(f.fd); err != nil {
		f.fail(err)
		return
	}
	b := []byte{f.mode()}
	if f.stage = stageGreets; f.page {
		f.stage, b = stageWorks, pageAsked
	}
	if n, err := writeSome(f.fd, b); err != nil || n != len(b) {
		f.fail(errors.Join(err, errors.New("no room for a request")))
		return
	}
	f.want(unix.EPOLLIN)
}

var pageAsked = append([]byte{modePage}, make([]byte, pageSize-1)...)

// readPage reads to the end.
func (f *flow) readPage() {
	n, errno := rawRead(f.fd, f.c.l.buf)
	switch {
	case errno == unix.EAGAIN:
	case errno != 0:
		f.fail(errno)
	case n > 0:
		f.got += n
	case f.got != pageSize:
		f.fail(fmt.Errorf("answer has %d bytes", f.got))
	default:
		f.c.l.drop(f.fd, false)
		f.fd = -1
		f.c.done++
		f.busy(false)
		if f.c.running {
			if err := f.open(); err != nil {
				f.fail(err)
			}
		}
	}
}

// read reads an answer, or bulk.
func (f *flow) read() {
	n, errno := rawRead(f.fd, f.c.l.buf)
	bulk := f.c.kind == kindUp || f.c.kind == kindDown
	switch {
	case errno == unix.EAGAIN:
	case errno != 0:
		f.fail(errno)
	case n == 0 && bulk && f.stage == stageWorks && !f.c.running:
		f.c.l.drop(f.fd, false)
		f.fd = -1
		f.busy(false)
	case n == 0:
		f.fail(errors.New("it ends early"))
	case f.stage == stageGreets:
		f.stage = stageWorks
		f.busy(false)
	case bulk:
		f.c.moved += int64(n)
	default:
		f.answered(n)
	}
}

// answered has got n more bytes of an answer.
func (f *flow) answered(n int) {
	f.got += n
	switch {
	case f.got < f.size:
	case f.got > f.size || f.sent < f.size:
		f.fail(fmt.Errorf("%d bytes came back of %d", f.got, f.sent))
	default:
		f.c.done++
		if f.c.running {
			f.next()
		} else {
			f.busy(false)
		}
	}
}
