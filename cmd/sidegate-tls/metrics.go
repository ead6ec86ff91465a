// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/observe"
)

// metrics is what the relay counts: by connection, request and key, never by record, which is the path of the data.
// Labels have words of the relay's own only: what apps and servers say is in none.
type metrics struct {
	registry    *prometheus.Registry
	connections prometheus.Counter
	open        prometheus.Gauge
	pods        prometheus.Gauge
	ended       *prometheus.CounterVec
	handshakes  *prometheus.CounterVec
	opaque      prometheus.Counter
	requests    *prometheus.CounterVec
	responses   *prometheus.CounterVec
	took        prometheus.Histogram
	bytes       *prometheus.CounterVec
	keys        *prometheus.CounterVec
	lost        prometheus.Counter
}

// What became of a connection, and of keys.
const (
	resultClosed  = "closed"
	resultDenied  = "denied"
	resultRefused = "refused"
	resultFailed  = "failed"

	keysTaken   = "taken"
	keysRefused = "refused"
	keysStray   = "stray"
)

const otherWord = "other"

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "sidegate_tls_" + name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sidegate_tls_" + name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "sidegate_tls_" + name, Help: help})
	}
	m := &metrics{
		registry:    observe.NewRegistry("tls", version),
		connections: counter("connections_total", "Connections of apps that came to the relay."),
		open:        gauge("open_connections", "Connections that the relay has now."),
		pods:        gauge("pods", "Pods that the relay listens in."),
		ended: vec("ended_total", "Connections that ended: closed by their ends, denied by the policy, refused since they cannot be judged or break a rule, "+
			"or failed.", "result"),
		handshakes: vec("handshakes_total", "Handshakes that were seen, by version of TLS, and whether the app handed over its keys.", "version", "keys"),
		opaque:     counter("opaque_total", "Connections that passed unread from some point on."),
		requests:   vec("requests_total", "Requests inside TLS, by protocol, and what the policy says of them.", "protocol", "verdict"),
		responses:  vec("responses_total", "Responses inside TLS, by class of their status.", "class"),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sidegate_tls_response_seconds", Help: "How long it took from a request that was let through to the head of its response.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}),
		bytes: vec("bytes_total", "Bytes of connections that have ended, by whose they are: the app's (client) or the server's.", "side"),
		keys: vec("keys_total", "Keys that TLS libraries handed over: taken, refused, or for no connection that is there (stray). "+
			"What the kernel could not hand on is in sidegate_drops_total.", "result"),
		lost: counter("events_lost_total", "Events for which there was no room in the queue of the file for events."),
	}
	// Rates need series that begin with 0.
	for _, result := range []string{resultClosed, resultDenied, resultRefused, resultFailed} {
		m.ended.WithLabelValues(result)
	}
	for _, version := range []string{"1.2", "1.3", otherWord} {
		m.handshakes.WithLabelValues(version, "true")
		m.handshakes.WithLabelValues(version, "false")
	}
	for _, protocol := range []string{"http/1.1", "h2", otherWord} {
		m.requests.WithLabelValues(protocol, "allowed")
		m.requests.WithLabelValues(protocol, "denied")
	}
	for class := 1; class <= 5; class++ {
		m.responses.WithLabelValues(strconv.Itoa(class) + "xx")
	}
	m.responses.WithLabelValues(otherWord)
	m.bytes.WithLabelValues("client")
	m.bytes.WithLabelValues("server")
	for _, result := range []string{keysTaken, keysRefused, keysStray} {
		m.keys.WithLabelValues(result)
	}
	m.registry.MustRegister(m.connections, m.open, m.pods, m.ended, m.handshakes, m.opaque, m.requests, m.responses, m.took, m.bytes, m.keys, m.lost)
	return m
}

// begin counts a connection, and end what became of it.
func (m *metrics) begin(c *connEvents) (end func()) {
	m.connections.Inc()
	m.open.Inc()
	return func() {
		m.open.Dec()
		m.ended.WithLabelValues(cmp.Or(c.result, resultFailed)).Inc()
	}
}

// event counts what a connection tells. result is set to what becomes of it: denied and refused come before the end.
func (m *metrics) event(e *relay.Event, result *string) {
	switch e.Kind {
	case relay.KindTLS:
		version := otherWord
		switch e.Version {
		case "TLS 1.2", "TLS 1.3":
			version = e.Version[len("TLS "):]
		}
		m.handshakes.WithLabelValues(version, strconv.FormatBool(e.ClientKeys)).Inc()
	case relay.KindHTTP:
		m.http(e.HTTP)
	case relay.KindDenied:
		*result = resultDenied
	case relay.KindRefused:
		*result = resultRefused
	case relay.KindOpaque:
		m.opaque.Inc()
	case relay.KindEnd:
		switch {
		case *result != "":
		case e.Reason != "":
			*result = resultFailed
		default:
			*result = resultClosed
		}
		m.bytes.WithLabelValues("client").Add(float64(e.ClientBytes))
		m.bytes.WithLabelValues("server").Add(float64(e.ServerBytes))
	}
}

func (m *metrics) http(e *judge.Event) {
	if e == nil {
		return
	}
	switch e.Kind {
	case judge.KindRequest:
		protocol, verdict := otherWord, "denied"
		if e.Protocol == "http/1.1" || e.Protocol == "h2" {
			protocol = e.Protocol
		}
		if e.Allowed {
			verdict = "allowed"
		}
		m.requests.WithLabelValues(protocol, verdict).Inc()
	case judge.KindResponse:
		class := otherWord
		if c := e.Status / 100; c >= 1 && c <= 5 {
			class = strconv.Itoa(c) + "xx"
		}
		m.responses.WithLabelValues(class).Inc()
		m.took.Observe(e.Duration.Seconds())
	}
}
