// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"strings"
	"time"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/record"
)

// Kind is what an Event is about.
type Kind string

// The kinds. In brackets, what is set besides Kind and SNI.
const (
	KindTLS     Kind = "tls"     // the handshake is over, or as far as it can be seen [Version to ServerKeys]
	KindHTTP    Kind = "http"    // inside TLS [HTTP]
	KindDenied  Kind = "denied"  // the policy is against it [Rule, Reason; HTTP said more before]
	KindRefused Kind = "refused" // it breaks a rule of TLS or HTTP, or cannot be judged [Reason]
	KindOpaque  Kind = "opaque"  // it passes unread from now on [Reason]
	KindEnd     Kind = "end"     // of the connection [ClientBytes to Duration, Reason if it did not end by itself]
)

// Event is something that happened. Its strings are bounded.
type Event struct {
	Kind Kind   `json:"kind"`
	SNI  string `json:"sni,omitempty"`

	Version    string   `json:"version,omitempty"` // such as "TLS 1.3"; empty if the server did not answer
	Suite      string   `json:"suite,omitempty"`
	Offered    []string `json:"offered,omitempty"`    // ALPN of the client
	ALPN       string   `json:"alpn,omitempty"`       // the server's choice, which TLS 1.3 hides
	ClientKeys bool     `json:"clientKeys,omitempty"` // came
	ServerKeys bool     `json:"serverKeys,omitempty"`

	HTTP *judge.Event `json:"http,omitempty"`

	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"` // for people

	ClientBytes int64         `json:"clientBytes,omitempty"` // that went on to the server, with TLS's own
	ServerBytes int64         `json:"serverBytes,omitempty"` // that went on to the app
	Duration    time.Duration `json:"duration,omitempty"`    // in nanoseconds
}

// The longest strings, in bytes, and list.
const (
	maxReason  = 512
	maxName    = 64
	maxOffered = 8
)

func (e *Event) bound() {
	e.Reason = bounded(e.Reason, maxReason)
	e.Rule = bounded(e.Rule, maxReason)
	e.ALPN = bounded(e.ALPN, maxName)
	offered := e.Offered[:min(len(e.Offered), maxOffered)]
	e.Offered = nil
	for _, name := range offered {
		e.Offered = append(e.Offered, bounded(name, maxName))
	}
}

// bounded is also fit for JSON: names of ALPN are any bytes.
func bounded(s string, most int) string {
	return strings.ToValidUTF8(s[:min(len(s), most)], "\uFFFD")
}

// Refused is why a connection was ended that no rule is against.
type Refused struct {
	Alert  record.Alert // what the app is told, where it can be
	Rule   string       // of the policy about SNI, if that denies
	Denied bool         // by that policy
	Reason string
	cause  error
}

func (r *Refused) Error() string { return r.Reason }

// Unwrap is a *record.ProtocolError, or nothing.
func (r *Refused) Unwrap() error { return r.cause }
