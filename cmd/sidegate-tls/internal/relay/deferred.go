// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
)

// Deferred is where a connection's plaintext goes, and where what is sent on comes from. See the package about it.
type Deferred struct {
	// DialSidecar connects to where the sidecar takes plaintext.
	DialSidecar func(ctx context.Context) (Stream, error)
	// Upstream waits for the next connection that the sidecar opens to the server. It returns when ctx is done.
	Upstream func(ctx context.Context) (Stream, error)
}

// deferral is a session's second part in deferred mode. Four goroutines work on it: up, from the app to the sidecar;
// fromSidecar, to the app; upstreams, from the sidecar's connections to the server; and down, from the server to these. Each
// Sealer has one of them, but for the app's tickets and alerts.
type deferral struct {
	*session
	ctx     context.Context
	cancel  context.CancelFunc
	sidecar Stream

	appMu sync.Mutex
	toApp *record.Sealer
	torn  bool // half a record was written, or the last one
	out   []byte

	toServer      *record.Sealer // of upstreams; of up when that is done
	answersDone   chan struct{}  // the sidecar says nothing more, and the app knows
	upstreamsDone chan struct{}

	link     sync.Mutex
	linked   *sync.Cond   // upstream or over was set
	upstream Stream       // that is served
	watch    *judge.Judge // sees upstream's requests and the answers
	former   bool         // there was one before
	closed   bool         // the server gets and says nothing more
	ending   bool         // so does the sidecar
}

var errDeferred = errors.New("go on deferred")

// deferNext is a step: with the app's first record after the handshake all records are made anew.
func (s *session) deferNext(r record.Record) error {
	s.rest = append(s.rest, r...)
	return errDeferred
}

// held tells whether the server's records wait for a deferral: they come after both ends' Finished. It is under mu.
func (s *session) held() bool {
	if s.Deferred == nil || s.released || s.hellos.answer == nil {
		return false
	}
	if isTLS13(s.hellos.answer) {
		return s.appFinished
	}
	return s.answers.finished
}

// waitHeld returns the deferral that there is now, if there is one.
func (s *session) waitHeld() *deferral {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.held() && !s.deferred && !s.stopped {
		s.idle.Wait()
	}
	if !s.deferred {
		return nil
	}
	return s.deferral
}

// release lets down go on, which no deferral follows any more.
func (s *session) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = true
	s.idle.Broadcast()
}

// takeOver makes the Sealers. From here on no record of one end can reach the other one: Pass is an error.
func (s *session) takeOver() (*deferral, error) {
	d := &deferral{session: s, answersDone: make(chan struct{}), upstreamsDone: make(chan struct{})}
	d.linked = sync.NewCond(&d.link)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.writing {
		s.idle.Wait()
	}
	ok, err := s.openAnswers()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, refuse(record.AccessDenied, "tls: deferred needs the server's keys, and the app's TLS library has handed over only its own "+
			"(OpenSSL does from 3.2 on, or with TLS 1.2)")
	}
	if err := s.readBacklog(); err != nil {
		return nil, err
	}
	switch {
	case s.answers.unread:
		return nil, refuse(record.AccessDenied, "tls: deferred needs the server's keys, and those handed over do not open what it sends")
	case s.answers.waits:
		return nil, refuse(record.AccessDenied, "tls: deferred: the server changes its keys")
	case s.answers.data:
		return nil, refuse(record.AccessDenied, "tls: deferred: the server sends data before the app's Finished")
	}
	if d.toServer, err = s.tx.Reseal(); err != nil {
		return nil, fmt.Errorf("seal for the server: %w", err)
	}
	if d.toApp, err = s.answers.rx.Reseal(); err != nil {
		d.toServer.Wipe()
		return nil, fmt.Errorf("seal for the app: %w", err)
	}
	d.ctx, d.cancel = context.WithCancel(s.ctx)
	s.deferral = d
	return d, nil
}

// runDeferred is up's, from the app's record in rest on.
func (s *session) runDeferred() error {
	d, err := s.takeOver()
	if err != nil {
		return err
	}
	sidecar, err := s.Deferred.DialSidecar(d.ctx)
	if err != nil {
		return &Refused{Alert: record.InternalError, Reason: "dial sidecar: " + err.Error(), cause: err}
	}
	s.startDeferredJudge()
	d.sidecar = sidecar
	go d.fromSidecar()
	go d.upstreams()
	s.mu.Lock()
	s.deferred = true
	s.idle.Broadcast()
	s.mu.Unlock()
	first := s.rest
	s.rest = nil
	err = d.requests(first)
	if err == nil {
		err = d.end()
	}
	return err
}

// requests opens, judges, and writes plaintext to the sidecar, until the app or the sidecar has ended.
func (d *deferral) requests(next record.Record) error {
	for next != nil {
		err := d.request(next)
		if err == nil && d.app.Ready() && !d.over {
			next, err = d.nextRequest()
			if err == nil {
				continue
			}
		}
		if err = d.passPlain(err); err != nil || d.over {
			next = nil
		} else {
			next, err = d.nextRequest()
		}
		if err != nil {
			return err
		}
	}
	if d.sidecarEnded() {
		return nil
	}
	_ = d.sidecar.CloseWrite()
	for !d.sidecarEnded() {
		select {
		case <-d.woken:
		case <-d.answersDone:
		}
		if err := d.passPlain(d.reconsider()); err != nil {
			return err
		}
	}
	return d.failure()
}

// nextRequest returns nil at the end of either side.
func (d *deferral) nextRequest() (record.Record, error) {
	for {
		next, err := d.app.Next()
		switch {
		case err == nil:
			return next, nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, nil
		case !isWoken(err):
			return nil, readError("the app", err)
		}
		err = d.look()
		if err = d.passPlain(err); err != nil || d.sidecarEnded() {
			return nil, err
		}
	}
}

func (d *deferral) sidecarEnded() bool {
	select {
	case <-d.answersDone:
		return true
	default:
		return false
	}
}

// request takes one of the app's records.
func (d *deferral) request(r record.Record) error {
	d.plain = slices.Grow(d.plain[:0], len(r))
	t, content, err := d.tx.Open(d.plain, r)
	switch {
	case errors.Is(err, record.ErrNotOpened):
		return refuse(record.AccessDenied, "the keys that the app has handed over do not open what it sends")
	case err != nil:
		return refusal("the app", err)
	case t == record.TypeHandshake:
		return refuse(record.UnexpectedMessage, "tls: deferred: the app changes its keys, renegotiates or authenticates itself")
	case t == record.TypeAlert:
		a, _, err := record.ParseAlert(content)
		d.appSide.over = a.Ends()
		return refusal("the app", err)
	case t != record.TypeApplicationData:
		return refuse(record.UnexpectedMessage, "the app sends content of type %d", t)
	case len(d.unsent)+len(content) > maxHeld:
		return refuse(record.AccessDenied, "the app sends %d bytes, and nothing of them can be judged", len(d.unsent))
	}
	d.unsent = append(d.unsent, content...)
	return d.data(content)
}

// passPlain sends to the sidecar what is ready, and returns err, or what came of that.
func (d *deferral) passPlain(err error) error {
	n := len(d.unsent) - int(d.given-d.ready.Load())
	if n == 0 {
		return err
	}
	_, failed := d.sidecar.Write(d.unsent[:n])
	d.unsent = d.unsent[:copy(d.unsent, d.unsent[n:])]
	d.upBytes.Add(int64(n))
	if failed == nil || err != nil {
		return err
	}
	_ = d.sidecar.SetReadDeadline(time.Now().Add(linger)) // it may have answered before it closed
	<-d.answersDone
	d.appSide.over = true
	return d.failure()
}

// fromSidecar seals what the sidecar answers.
func (d *deferral) fromSidecar() {
	b := make([]byte, 1<<14)
	for {
		n, err := d.sidecar.Read(b)
		if n > 0 {
			d.heed(d.judge.Server(b[:n]))
			if failed := d.sealForApp(record.TypeApplicationData, b[:n]); failed != nil {
				err = failed
			}
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			d.appMu.Lock()
			_ = d.writeApp(d.toApp.Alert(d.out[:0], record.CloseNotify))
			d.torn = true
			_ = d.App.CloseWrite()
			d.appMu.Unlock()
		case !errors.Is(err, errStopped):
			d.fail(streamError("read from the sidecar", err))
		}
		close(d.answersDone)
		d.wake()
		return
	}
}

func (d *deferral) sealForApp(t record.ContentType, content []byte) error {
	d.appMu.Lock()
	defer d.appMu.Unlock()
	return d.writeApp(d.toApp.Seal(d.out[:0], t, content))
}

// writeApp is under appMu.
func (d *deferral) writeApp(sealed []byte, err error) error {
	if d.torn {
		return errStopped
	}
	if err != nil {
		return fmt.Errorf("seal for the app: %w", err)
	}
	d.out = sealed
	n, err := d.App.Write(sealed)
	d.downBytes.Add(int64(n))
	d.torn = n < len(sealed)
	if err != nil {
		return streamError("write to the app", err)
	}
	return nil
}

// upstreams seals what the sidecar sends to the server, by one connection after the other.
func (d *deferral) upstreams() {
	defer close(d.upstreamsDone)
	b := make([]byte, 1<<14)
	out := make([]byte, 0, record.MaxRecord)
	for d.ctx.Err() == nil {
		u, err := d.Deferred.Upstream(d.ctx)
		if err == nil {
			err = d.serve(u, b, out)
			_ = u.Close()
		}
		if err != nil {
			if d.ctx.Err() == nil {
				d.fail(err)
			}
			return
		}
	}
}

// serve owns u until the sidecar has ended it.
func (d *deferral) serve(u Stream, b, out []byte) error {
	stop := context.AfterFunc(d.ctx, func() { _ = u.Close() })
	defer stop()
	watch := judge.New(judge.Config{Rules: everything{}, AnyHost: true, Other: true, GetBodies: true, Answers: true, ALPN: d.judge.ALPN})
	if !d.attach(u, watch) {
		setReset(u)
		return nil
	}
	for {
		n, err := u.Read(b)
		if n > 0 {
			if d.serverClosed() {
				setReset(u)
				return nil
			}
			_, _ = watch.Client(b[:n])
			sealed, failed := d.toServer.Seal(out[:0], record.TypeApplicationData, b[:n])
			if failed != nil {
				return fmt.Errorf("seal for the server: %w", failed)
			}
			if _, failed := d.Server.Write(sealed); failed != nil {
				return streamError("write to the server", failed)
			}
		}
		if err != nil {
			d.detach()
			return nil
		}
	}
}

// attach makes u the one that the server's answers go to.
func (d *deferral) attach(u Stream, watch *judge.Judge) bool {
	d.link.Lock()
	defer d.link.Unlock()
	if d.closed {
		return false
	}
	d.upstream, d.watch, d.former = u, watch, true
	d.linked.Broadcast()
	return true
}

// detach is after an upstream's end. If its answer is under way, which must not go to the next one, there is no next one.
func (d *deferral) detach() {
	d.link.Lock()
	defer d.link.Unlock()
	d.upstream = nil
	d.closed = d.closed || !d.watch.Idle()
}

func (d *deferral) serverClosed() bool {
	d.link.Lock()
	defer d.link.Unlock()
	return d.closed
}

// fromServer is down's, from a record on.
func (d *deferral) fromServer(r *record.Reader, next record.Record) error {
	rx := d.answers.rx
	for {
		d.answers.plain = slices.Grow(d.answers.plain[:0], len(next))
		t, content, err := rx.Open(d.answers.plain, next)
		switch {
		case errors.Is(err, record.ErrNotOpened):
			return refuse(record.AccessDenied, "the server's keys do not open what it sends")
		case err != nil:
			return refusal("the server", err)
		}
		switch t {
		case record.TypeApplicationData:
			err = d.answer(content)
		case record.TypeHandshake:
			err = d.serverMessage(content)
		case record.TypeAlert:
			var a record.Alert
			if a, _, err = record.ParseAlert(content); err == nil && a.Ends() {
				return d.serverEnds(a == record.CloseNotify)
			}
		}
		if err != nil {
			return err
		}
		next, err = r.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return d.serverEnds(false)
		case err != nil:
			return serverError(err)
		}
	}
}

// answer goes to the upstream, for the first of which it waits. Later ones have to ask first.
func (d *deferral) answer(content []byte) error {
	if len(content) == 0 {
		return nil
	}
	d.link.Lock()
	for d.upstream == nil && !d.former && !d.ending {
		d.linked.Wait()
	}
	u := d.upstream
	if u == nil || d.ending {
		d.closed = true
		d.link.Unlock()
		return errStopped
	}
	_, _ = d.watch.Server(content)
	d.link.Unlock()
	if _, err := u.Write(content); err != nil {
		d.link.Lock()
		d.closed = true
		d.link.Unlock()
		return errStopped
	}
	return nil
}

// serverMessage passes tickets, by a record that is made for the app: its number is ours now, the ticket is bound to none.
func (d *deferral) serverMessage(content []byte) error {
	messages, err := d.answers.within.Add(content)
	if err != nil {
		return refusal("the server", err)
	}
	for _, m := range messages {
		switch {
		case m.Type == record.MessageHelloRequest && !isTLS13(d.appSide.answer): // which a client may ignore (RFC 5246 7.4.1.1)
			return nil
		case m.Type == record.MessageKeyUpdate:
			return refuse(record.UnexpectedMessage, "tls: deferred: the server changes its keys")
		case m.Type != record.MessageNewSessionTicket:
			return refuse(record.UnexpectedMessage, "tls: deferred: the server sends a handshake message of type %d", m.Type)
		}
	}
	return d.sealForApp(record.TypeHandshake, content)
}

// serverEnds tells the upstream, and that there will be none. Without an alert the last answer may be cut short.
func (d *deferral) serverEnds(clean bool) error {
	d.link.Lock()
	defer d.link.Unlock()
	d.closed = true
	switch {
	case d.upstream == nil:
	case clean:
		_ = d.upstream.CloseWrite()
	default:
		setReset(d.upstream)
		_ = d.upstream.Close()
	}
	return errStopped
}

// end is when the app has heard all. The server gets a close_notify.
func (d *deferral) end() error {
	d.quit()
	_ = d.Server.SetWriteDeadline(time.Now().Add(linger))
	if d.sidecar != nil {
		<-d.upstreamsDone
	}
	if b, err := d.toServer.Alert(nil, record.CloseNotify); err == nil {
		_, _ = d.Server.Write(b)
	}
	_ = d.Server.CloseWrite()
	_ = d.Server.SetReadDeadline(time.Now().Add(linger))
	_ = d.App.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.Copy(io.Discard, onlyReader{d.App})
	return nil
}

// quit ends the sidecar's connections.
func (d *deferral) quit() {
	d.mu.Lock()
	d.quitting = true
	d.mu.Unlock()
	d.link.Lock()
	d.ending = true
	d.linked.Broadcast()
	d.link.Unlock()
	d.cancel()
	if d.sidecar != nil {
		_ = d.sidecar.Close()
	}
}

// alert is the last record for the app, unless half a one was sent.
func (d *deferral) alert(a record.Alert) []byte {
	_ = d.App.SetWriteDeadline(time.Now().Add(linger))
	d.appMu.Lock()
	defer d.appMu.Unlock()
	if d.torn {
		return nil
	}
	d.torn = true
	b, _ := d.toApp.Alert(nil, a)
	return b
}

// wait closes what is left, and returns when no goroutine has the Sealers.
func (d *deferral) wait() {
	d.quit()
	if d.sidecar != nil {
		<-d.answersDone
		<-d.upstreamsDone
	}
	<-d.downDone
	d.toApp.Wipe()
	d.toServer.Wipe()
}
