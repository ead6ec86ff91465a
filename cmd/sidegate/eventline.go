// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

// The colours of verdicts: SGR parameters.
var verdictColors = map[string]string{
	cgroups.Allowed: "32", cgroups.Redirected: "36", cgroups.Denied: "31", cgroups.Audited: "33",
}

// eventLine is an event for people.
func eventLine(v *observed, colored bool) string {
	verdict := fmt.Sprintf("%-10s", v.Verdict)
	if colored {
		verdict = "\x1b[" + verdictColors[v.Verdict] + "m" + verdict + "\x1b[0m"
	}
	parts := []string{v.Time.Format("15:04:05.000"), verdict, eventWho(v), eventWhat(v.Event, v.AddressName)}
	if why := eventWhy(v.Event); why != "" {
		parts = append(parts, why)
	}
	if v.Rule != "" {
		parts = append(parts, "by "+text.Clean(v.Rule))
	}
	switch program := cmp.Or(v.Comm, filepath.Base(v.Process)); {
	case program != ".":
		parts = append(parts, fmt.Sprintf("(%s, pid %d)", text.Clean(program), v.PID))
	case v.PID != 0:
		parts = append(parts, fmt.Sprintf("(pid %d)", v.PID))
	}
	if v.Suppressed > 0 {
		parts = append(parts, fmt.Sprintf("[%d more before it]", v.Suppressed))
	}
	return strings.Join(parts, "  ")
}

func eventWho(v *observed) string {
	who := cmp.Or(v.Container, "(no container)")
	if pod := cmp.Or(v.PodName, short(v.Pod)); pod != "" {
		who = pod + "/" + who
	}
	return text.Clean(who)
}

// eventWhat is what was done, and with whom.
func eventWhat(v *cgroups.Event, name string) string {
	switch v.Kind {
	case "attach", "detach":
		return text.Clean(fmt.Sprintf("%s %s %s as %s under policy %s", v.Kind, v.Runtime, short(v.ContainerID), v.Role, v.Policy))
	case "http":
		return text.Clean("http " + httpWhat(v.TLS))
	case "tls":
		return text.Clean("tls " + tlsWhat(v.TLS) + " -> " + eventOther(v, name))
	}
	what := v.Kind
	if v.Protocol != "" && v.Protocol != v.Kind {
		what += " " + v.Protocol
	}
	other := eventOther(v, name)
	switch {
	case other == "":
		return text.Clean(what)
	case v.Direction == "ingress":
		return text.Clean(what + " <- " + other)
	}
	return text.Clean(what + " -> " + other)
}

// eventOther is the other end.
func eventOther(v *cgroups.Event, name string) string {
	if v.Socket != "" {
		return strings.TrimSpace(v.Peer + " " + v.Socket)
	}
	addr := ""
	switch a := v.Address; {
	case a.IsValid() && !a.Addr().IsUnspecified():
		addr = a.String()
	case a.Port() != 0:
		addr = ":" + strconv.Itoa(int(a.Port()))
	}
	if name != "" {
		addr += " (" + name + ")"
	}
	if v.Kind == "accept" && v.Peer != "" {
		return addr + " of " + v.Peer
	}
	return strings.TrimSpace(v.Peer + " " + addr)
}

func httpWhat(t *cgroups.TLSEvent) string {
	if t == nil || t.HTTP == nil {
		return "?"
	}
	h := t.HTTP
	switch h.Kind {
	case "request":
		what := h.Method + " https://" + cmp.Or(h.Host, t.SNI) + h.Path
		if t.Truncated {
			what += "..."
		}
		return what
	case "response":
		return fmt.Sprintf("%d from %s after %v", h.Status, t.SNI, h.Duration.Round(100*time.Microsecond))
	}
	return h.Kind + " " + t.SNI
}

func tlsWhat(t *cgroups.TLSEvent) string {
	if t == nil {
		return "?"
	}
	switch t.Kind {
	case "tls":
		return strings.Join(strings.Fields(strings.Join([]string{t.SNI, t.Version, t.Suite, t.ALPN}, " ")), " ")
	case "end":
		return fmt.Sprintf("%s ended after %v, %d bytes out and %d in", t.SNI, t.Duration.Round(100*time.Microsecond), t.ClientBytes, t.ServerBytes)
	}
	return t.Kind + " " + t.SNI
}

// eventWhy is the reason, in words where it was refused, and nothing where what happened says it.
func eventWhy(v *cgroups.Event) string {
	refused := v.Verdict == cgroups.Denied || v.Verdict == cgroups.Audited
	if !refused && (v.TLS != nil || v.Reason == v.Kind || v.Reason == v.Verdict) {
		return ""
	}
	if v.Text != "" && refused {
		return text.Clean(v.Reason + ": " + v.Text)
	}
	return text.Clean(v.Reason)
}
