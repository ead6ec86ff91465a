// SPDX-License-Identifier: Apache-2.0

// Package selftest finds out what accelerated sockets do differently from TCP on
// this kernel. It makes each check twice, over a connection that is accelerated and
// over one that is not, and compares what the processes at both ends would see.
package selftest

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// Kind is what a difference means.
type Kind uint8

const (
	// Breaks is a difference that no program expects: nothing is accelerated.
	Breaks Kind = iota
	// Splices is one that is not there where splice(2) is refused.
	Splices
	// Shows is one that a program can see if it looks for it.
	Shows
)

// Check is one of the questions.
type Check struct {
	Name string
	Kind Kind
	// Differs says what happens where the answers differ.
	Differs string

	script func(a, b *socket) string
}

// Checks are all of them, at most 64. Their places are kept in the state: new ones
// go to the end.
func Checks() []Check { return checks }

// Result is what was found.
type Result struct {
	Failed uint64 // the checks whose answers differ, as bits by their places
	Took   time.Duration
	// What each that failed was answered, plainly and accelerated.
	Plain, Accelerated []string
}

// wait is how long a check waits for what need not come. What has to come is there
// already when it is looked for: nothing leaves this machine.
const wait = 2 * time.Millisecond

// limit ends a check that waits for what never comes.
// It is for a machine that has other things to do.
const limit = 2 * time.Second

// Run makes all checks, on the loopback device of the namespace that it is called
// in. Its error says that they could not be made.
func Run() (r Result, err error) {
	began := time.Now()
	t, err := bpf.LoadSelfTest(attempts * len(checks))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	for i, c := range checks {
		plain, accelerated, err := compare(c, t)
		if err != nil {
			return r, fmt.Errorf("%s: %w", c.Name, err)
		}
		if plain != accelerated {
			r.Failed |= 1 << i
			r.Plain, r.Accelerated = append(r.Plain, plain), append(r.Accelerated, accelerated)
		}
	}
	r.Took = time.Since(began)
	return r, nil
}

// attempts are how often a check may differ, or not be made, before that is believed:
// the Go runtime sends signals of its own, which end calls on either side.
const attempts = 3

func compare(c Check, t *bpf.SelfTest) (plain, accelerated string, err error) {
	made := false
	for range attempts {
		p, perr := answer(c, nil)
		if perr != nil {
			err = perr
			continue
		}
		a, aerr := answer(c, t)
		if aerr != nil {
			err = aerr
			continue
		}
		if plain, accelerated, made = p, a, true; p == a {
			break
		}
	}
	if made {
		err = nil
	}
	return plain, accelerated, err
}

// answer makes a check over a new connection, accelerated by t unless that is nil.
func answer(c Check, t *bpf.SelfTest) (got string, err error) {
	client, server, err := connect()
	if err != nil {
		return "", err
	}
	a, b := &socket{fd: client}, &socket{fd: server}
	defer func() { err = errors.Join(err, a.close(), b.close()) }()
	if t != nil {
		if err := t.Join(client, server); err != nil {
			return "", err
		}
	}
	return c.script(a, b), nil
}

// connect makes a connection on loopback, and gives both its ends.
func connect() (client, server int, err error) {
	listener, err := newSocket()
	if err != nil {
		return -1, -1, err
	}
	defer func() { err = errors.Join(err, unix.Close(listener)) }()
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return -1, -1, fmt.Errorf("bind to loopback: %w", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return -1, -1, fmt.Errorf("listen: %w", err)
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return -1, -1, fmt.Errorf("getsockname: %w", err)
	}
	if client, err = newSocket(); err != nil {
		return -1, -1, err
	}
	if err := unix.Connect(client, at); err != nil && !errors.Is(err, unix.EINTR) { // a signal leaves it under way
		return -1, -1, errors.Join(fmt.Errorf("connect: %w", err), unix.Close(client))
	}
	for {
		if server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return -1, -1, errors.Join(fmt.Errorf("accept: %w", err), unix.Close(client))
	}
	if err := patience(server); err != nil {
		return -1, -1, errors.Join(err, unix.Close(client), unix.Close(server))
	}
	return client, server, nil
}

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	if err := patience(fd); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// patience keeps a socket from waiting for ever.
func patience(fd int) error {
	tv := unix.NsecToTimeval(limit.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
}
