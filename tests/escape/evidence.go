// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sidegate/tests/lab"
)

// A state is what became of a case in a set-up, by evidence from its other end.
type state string

const (
	open    state = "open"    // a byte arrived, round the sidecar
	blocked state = "blocked" // none did
	broken  state = "error"   // it could not be found out
)

// A try is what became of a case in a set-up.
type try struct {
	State  state  `json:"state"`
	Detail string `json:"detail"`
	// Hooks are those of Sidegate that took part, as the kernel names them, each with the reason that it counted.
	Hooks []string `json:"hooks,omitempty"`

	said lab.Result // the attacker's word
	v6   bool
}

// throughSidecar begins the detail of what arrived, but the sidecar carried it.
const throughSidecar = "through the sidecar"

func openf(format string, args ...any) try {
	return try{State: open, Detail: fmt.Sprintf(format, args...)}
}
func blockedf(format string, args ...any) try {
	return try{State: blocked, Detail: fmt.Sprintf(format, args...)}
}

// notStarted begins the detail of a case whose container Sidegate did not let start.
const notStarted = "it does not start"

// dead is the try of a container that did not start. Of the runtime's words those of the hook matter.
func dead(err error) try {
	text := err.Error()
	if i := strings.Index(text, "sidegate: "); i >= 0 {
		text = text[i:]
	}
	return blockedf("%s: %s", notStarted, text)
}

// newNonce marks what one attempt sends. It is lower case, since names in DNS queries may be.
func newNonce() string { return "n" + fmt.Sprintf("%x", rand.Text())[:20] }

// refused is the try of which nothing was seen.
func refused(r lab.Result) try {
	t := blockedf("sent, but nothing arrived")
	switch {
	case !r.OK && r.Errno != "":
		t.Detail = fmt.Sprintf("%s (%s)", r.Err, r.Errno)
	case !r.OK:
		t.Detail = r.Err
	}
	t.said = r
	return t
}

// attempt lets a container send something by one of the prober's commands, and says what came of it.
func (st *stage) attempt(ctx context.Context, c *lab.Container, args ...string) (try, error) {
	nonce := newNonce()
	r, err := c.Probe(ctx, append(args, "--nonce", nonce)...)
	if err != nil {
		return try{}, err
	}
	t, err := st.arrived(ctx, nonce, r)
	t.v6 = slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "[") })
	return t, err
}

// arrived decides an attempt by what the outside saw, and the node. r is the attacker's word, for its own address and for the reason.
func (st *stage) arrived(ctx context.Context, nonce string, r lab.Result) (try, error) {
	for settled := false; ; settled = true {
		t, seen, err := st.seen(nonce, r)
		if err != nil || seen {
			t.said = r
			return t, err
		}
		if settled {
			return refused(r), nil
		}
		// What was sent before this has been recorded when this has.
		if err := st.settle(ctx); err != nil {
			return try{}, err
		}
	}
}

func (st *stage) seen(nonce string, r lab.Result) (try, bool, error) {
	for where, sink := range map[string]*lab.Sink{"outside": st.lab.Outside.Sink, "on the host": st.bridge} {
		all, err := sink.Seen(nonce)
		if err != nil {
			return try{}, false, err
		}
		for _, s := range all {
			if s.How != "tcp" {
				return openf("IP protocol %d from %s seen %s", s.Proto, s.Src.Addr(), where), true, nil
			}
		}
		for _, s := range all {
			t, err := st.connection(s.Src, r.Addr("local"))
			return t, true, err
		}
	}
	return try{}, false, nil
}

// connection tells whose a connection is that reached the outside from src. local is the address that the attacker's own socket had.
func (st *stage) connection(src, local netip.AddrPort) (try, error) {
	if src == local {
		return openf("arrived from the attacker's own socket %s", src), nil
	}
	if st.sidecar != nil {
		c, ok, err := st.sidecar.WaitCarried(waitLimit, func(c lab.Carried) bool { return c.Source == src })
		if err != nil {
			return try{}, err
		}
		if ok {
			return blockedf("%s: arrived from %s, its socket for %s", throughSidecar, src, c.Client), nil
		}
	}
	return openf("arrived from %s, which the sidecar does not know", src), nil
}

// settle waits until the recorders have what came before.
func (w *world) settle(ctx context.Context) error {
	nonce := newNonce()
	to := w.lab.Outside.Echo(false).String()
	r, err := w.lab.Probe(ctx, "udp", "--to", to, "--nonce", nonce)
	if err != nil {
		return err
	}
	if !r.OK {
		return fmt.Errorf("the node does not reach the outside: %s", r)
	}
	return lab.WaitFor(2*time.Second, "the recorder", func() (bool, error) {
		seen, err := w.lab.Outside.Seen(nonce)
		return len(seen) > 0, err
	})
}

// noneDirect decides many attempts with one nonce: open if one of them came round the sidecar, from one of the attacker's own addresses.
// (The sidecar's log does not have all of them: HAProxy drops what its standard output does not take at once.)
func (st *stage) noneDirect(ctx context.Context, nonce string, own map[netip.AddrPort]bool) (try, error) {
	if err := st.settle(ctx); err != nil {
		return try{}, err
	}
	all, err := st.lab.Outside.Seen(nonce)
	if err != nil {
		return try{}, err
	}
	through := 0
	for _, s := range all {
		switch {
		case s.How != "tcp":
			return openf("IP protocol %d from %s seen outside", s.Proto, s.Src.Addr()), nil
		case own[s.Src]:
			return openf("arrived from the attacker's own socket %s", s.Src), nil
		}
		through++
	}
	t := blockedf("nothing arrived")
	if through > 0 {
		t.Detail = fmt.Sprintf("%s: %d connections arrived, none of them the attacker's own", throughSidecar, through)
	}
	return t, nil
}
