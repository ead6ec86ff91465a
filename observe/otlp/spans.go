// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"cmp"
	"container/list"
	"context"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"sidegate/cgroups"
)

// requests makes spans of requests inside TLS and their responses. Its methods must not be called at the same time.
type requests struct {
	tracer trace.Tracer
	out    *outlet
	conns  map[connKey]*list.Element
	recent *list.List // of *tlsConn, the one that was used last first
}

// connKey is of one connection of an app.
type connKey struct{ pod, container, from string }

type tlsConn struct {
	key  connKey
	tls  *cgroups.TLSEvent         // what the handshake said, or nil
	open map[uint32]*cgroups.Event // requests that have no response yet, by stream
}

const (
	maxConns    = 1024 // that are remembered
	maxRequests = 64   // of one connection
)

func (q *requests) init(t trace.Tracer, out *outlet) {
	q.tracer, q.out, q.conns, q.recent = t, out, make(map[connKey]*list.Element), list.New()
}

// event tells whether v is part of a span.
func (q *requests) event(v *cgroups.Event) bool {
	if v.TLS == nil || v.TLS.From == "" {
		return false
	}
	key := connKey{v.Pod, cmp.Or(v.ContainerID, v.Container), v.TLS.From}
	h := v.TLS.HTTP
	switch {
	case h != nil && h.Kind == "request":
		q.request(key, v)
		return true
	case h != nil && h.Kind == "response":
		q.response(key, v)
		return true
	case v.TLS.Kind == "tls":
		q.conn(key).tls = v.TLS
	case v.TLS.Kind == "end":
		if e, ok := q.conns[key]; ok {
			q.forget(e, v.Time)
		}
	}
	return false
}

// conn finds a connection, or makes it in the place of the one that was idle for the longest.
func (q *requests) conn(key connKey) *tlsConn {
	if e, ok := q.conns[key]; ok {
		q.recent.MoveToFront(e)
		return e.Value.(*tlsConn)
	}
	if len(q.conns) >= maxConns {
		q.forget(q.recent.Back(), time.Now())
	}
	c := &tlsConn{key: key, open: make(map[uint32]*cgroups.Event)}
	q.conns[key] = q.recent.PushFront(c)
	return c
}

// forget ends what has no response yet.
func (q *requests) forget(e *list.Element, when time.Time) {
	c := e.Value.(*tlsConn)
	for _, r := range c.open {
		q.span(c, r, nil, when)
	}
	q.recent.Remove(e)
	delete(q.conns, c.key)
}

func (q *requests) request(key connKey, v *cgroups.Event) {
	c := q.conn(key)
	if v.Verdict == cgroups.Denied || !v.TLS.HTTP.Allowed && v.Verdict != cgroups.Audited {
		q.span(c, v, nil, v.Time)
		return
	}
	if old := c.open[v.TLS.HTTP.Stream]; old != nil {
		q.span(c, old, nil, v.Time)
	} else if len(c.open) >= maxRequests {
		q.out.dropped.Add(1)
		return
	}
	kept := *v
	c.open[v.TLS.HTTP.Stream] = &kept
}

// response ends the span of its request. Of one from before this exporter there is none.
func (q *requests) response(key connKey, v *cgroups.Event) {
	e, ok := q.conns[key]
	if !ok {
		return
	}
	c := e.Value.(*tlsConn)
	if r := c.open[v.TLS.HTTP.Stream]; r != nil {
		delete(c.open, v.TLS.HTTP.Stream)
		q.span(c, r, v.TLS.HTTP, v.Time)
	}
}

// knownMethods is a function's: see semantic conventions, http.request.method.
func knownMethods() []string {
	return []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
}

// span tells of one request. answer is nil if none came.
func (q *requests) span(c *tlsConn, v *cgroups.Event, answer *cgroups.HTTPEvent, end time.Time) {
	if !q.out.admit() {
		return
	}
	h := v.TLS.HTTP
	a := &attributes{}
	a.who(v)
	name := "HTTP"
	if slices.Contains(knownMethods(), h.Method) {
		name += " " + h.Method
		a.str(semconv.HTTPRequestMethodKey, h.Method)
	} else {
		a.str(semconv.HTTPRequestMethodKey, "_OTHER")
		a.str(semconv.HTTPRequestMethodOriginalKey, h.Method)
	}
	a.str(semconv.URLSchemeKey, "https")
	a.str(semconv.URLPathKey, h.Path)
	host := v.TLS.SNI
	if c.tls != nil {
		host = cmp.Or(host, c.tls.SNI)
	}
	a.str(semconv.ServerAddressKey, cmp.Or(h.Host, host))
	a.num(semconv.ServerPortKey, int64(v.Address.Port()))
	if addr := v.Address.Addr().Unmap(); addr.IsValid() {
		a.str(semconv.NetworkPeerAddressKey, addr.String())
		a.num(semconv.NetworkPeerPortKey, int64(v.Address.Port()))
	}
	a.str(semconv.NetworkTransportKey, v.Protocol)
	switch {
	case h.Protocol == "h2":
		a.str(semconv.NetworkProtocolNameKey, "http")
		a.str(semconv.NetworkProtocolVersionKey, "2")
	case strings.HasPrefix(h.Protocol, "http/"):
		a.str(semconv.NetworkProtocolNameKey, "http")
		a.str(semconv.NetworkProtocolVersionKey, strings.TrimPrefix(h.Protocol, "http/"))
	}
	if c.tls != nil {
		t := cgroups.TLSEvent{Version: c.tls.Version, Suite: c.tls.Suite, ALPN: c.tls.ALPN}
		a.tls(&t)
	}
	a.str("sidegate.tls.from", v.TLS.From)
	if answer != nil {
		a.num(semconv.HTTPResponseStatusCodeKey, int64(answer.Status))
	}
	_, s := q.tracer.Start(context.Background(), name, trace.WithTimestamp(v.Time),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(a.list...))
	switch {
	case answer != nil && answer.Status >= 400:
		s.SetStatus(codes.Error, "")
	case answer == nil && !h.Allowed:
		s.SetStatus(codes.Error, text(cmp.Or(v.Text, "denied")))
	case answer == nil:
		s.SetStatus(codes.Error, "no response was seen")
	}
	if !s.IsRecording() || !s.SpanContext().IsSampled() { // $OTEL_TRACES_SAMPLER is against it
		q.out.withdraw()
	}
	s.End(trace.WithTimestamp(end))
}
