// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"context"
	"net"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
)

// Stream is a TCP or UNIX connection. Where it has SetLinger, as TCP's do, it can be reset.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// Side is whose records keys are for.
type Side uint8

// The sides. The app's library calls their keys TX and RX.
const (
	Client Side = iota // what the app sends
	Server             // what the server sends
)

// Keys is what the app's library has handed over for one connection. Its methods may be called at the same time.
type Keys interface {
	// Next returns the oldest keys of that side which it has not returned before; they are the caller's then. Before
	// it answers it has taken all that the kernel has recorded until now. ok is false if there are none. An error ends
	// the connection.
	Next(Side) (k record.Keys, ok bool, err error)
}

// Policy is what is asked of a connection.
type Policy struct {
	RequireKeys bool // end a TLS connection whose keys do not come. Without it only its SNI is judged
	Plaintext   bool // let through what is not TLS. It may become TLS later on, as SMTP does, and is not judged then

	// SNI says whether a name may be connected to, "" if the client sends none, and by which rule. Nil allows all.
	SNI func(name string) (allow bool, rule string)

	// Judge is a template: SNI, ALPN, Answers and Events are set here. Without Rules every request is allowed, for every
	// host, tunnels too; what cannot be read still ends the connection.
	Judge judge.Config
}

// judges tells whether a client could gain by hiding something.
func (p *Policy) judges() bool { return p.RequireKeys || p.SNI != nil || p.Judge.Rules != nil }

// Conn is one connection of an app.
type Conn struct {
	App, Server Stream
	Keys        Keys
	Policy      Policy
	Deferred    *Deferred   // nil: records pass unchanged
	Events      func(Event) // may be nil. Calls come one at a time, and must not block
}

// Run relays until both directions have ended, or one cannot go on, or ctx is done. Then both streams are closed and all
// keys wiped, those too that are still in Keys. It returns nil if both ends have said all that they had to say, else why
// not: a [*Refused], a [*judge.Denied], a [*judge.Malformed], an error of a stream or of Keys, or ctx's.
func (c *Conn) Run(ctx context.Context) error {
	s := newSession(ctx, c)
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	go s.down()
	err := s.up()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return s.finish(err)
}
