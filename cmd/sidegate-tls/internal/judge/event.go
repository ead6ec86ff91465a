// SPDX-License-Identifier: Apache-2.0

package judge

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sidegate/policy/httprule"
)

// Denied is a request, or a connection, that the policy is against.
type Denied struct {
	Request *httprule.Request // nil if the connection is not HTTP
	Rule    string            // empty if it is none's
	Reason  string            // for people
}

// Error has the query of no request, nor the value of a header.
func (d *Denied) Error() string {
	if d.Request == nil {
		return "connection denied: " + d.Reason
	}
	target := httprule.Cut(d.Request.Host+d.Request.Path, 256)
	return fmt.Sprintf("%s %q denied: %s", d.Request.Method, target, d.Reason)
}

// Malformed is what cannot be read, or not in one way only.
type Malformed struct {
	Protocol string // http/1.1 or h2; empty if it is not known yet
	Stream   uint32 // as in [Event]; 0 if it is about the connection
	Reason   string // for people
}

func (m *Malformed) Error() string {
	what := "bytes"
	if m.Protocol != "" {
		what = m.Protocol
	}
	if m.Stream > 0 {
		what += " request " + strconv.FormatUint(uint64(m.Stream), 10)
	}
	return "malformed " + what + ": " + m.Reason
}

// Kind is what an Event is about.
type Kind string

// The kinds. In brackets, what is set besides Kind, Protocol and Stream.
const (
	KindRequest  Kind = "request"  // judged [Method to Reason]
	KindResponse Kind = "response" // its head was seen, interim ones (1xx) apart [Status, Duration since the request was let through]
	KindRefused  Kind = "refused"  // malformed, or not HTTP: the connection ends [Reason]
	KindOpaque   Kind = "opaque"   // bytes pass unread from now on [Reason]
	KindBlind    Kind = "blind"    // answers are unread from now on [Reason]
	KindEnd      Kind = "end"      // of the connection [ClientBytes to Duration since it began]
)

// Event is something that happened. Its strings are bounded: Truncated says that some were cut.
type Event struct {
	Kind     Kind   `json:"kind"`
	Protocol string `json:"protocol,omitempty"` // http/1.1, h2, other, or not known yet
	Stream   uint32 `json:"stream,omitempty"`   // of HTTP/2; in HTTP/1.1, the number of the request, from 1

	Method  string   `json:"method,omitempty"`
	Host    string   `json:"host,omitempty"` // see [httprule.Request], as for Port and Upgrade
	Port    uint16   `json:"port,omitempty"`
	Path    string   `json:"path,omitempty"`  // decoded once
	Query   bool     `json:"query,omitempty"` // there is one
	Upgrade string   `json:"upgrade,omitempty"`
	Headers []Header `json:"headers,omitempty"` // those to show
	Rule    string   `json:"rule,omitempty"`    // that matched
	Allowed bool     `json:"allowed,omitempty"`
	Reason  string   `json:"reason,omitempty"` // for people

	Status int `json:"status,omitempty"`

	ClientBytes int64         `json:"clientBytes,omitempty"` // that were ready
	HeldBytes   int64         `json:"heldBytes,omitempty"`   // of the client, that never were
	ServerBytes int64         `json:"serverBytes,omitempty"`
	Duration    time.Duration `json:"duration,omitempty"` // in nanoseconds

	Truncated bool `json:"truncated,omitempty"`
}

// Header is a header to show.
type Header struct {
	Name  string `json:"name"` // lower case
	Value string `json:"value"`
}

// The longest strings of events, in bytes. Others are bounded by what is read: a method, a host.
const (
	maxPath    = 512
	maxValue   = 256
	maxHeaders = 32
)

// bound cuts what may be long.
func (e *Event) bound() {
	limit := func(s string, most int) string {
		short := httprule.Cut(s, most)
		e.Truncated = e.Truncated || len(short) < len(s)
		return strings.ToValidUTF8(short, "\uFFFD")
	}
	e.Path = limit(e.Path, maxPath)
	if len(e.Headers) > maxHeaders {
		e.Headers, e.Truncated = e.Headers[:maxHeaders], true
	}
	for i := range e.Headers {
		e.Headers[i].Value = limit(e.Headers[i].Value, maxValue)
	}
}
