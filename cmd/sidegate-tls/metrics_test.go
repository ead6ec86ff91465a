// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"

	"sidegate/cmd/sidegate-tls/internal/judge"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/observe/observetest"
)

// What connections tell is counted, and no word of an app's or a server's becomes a series.
func TestMetrics(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	n := newNode(&options{}, &events{}, log)
	m := n.metrics
	observetest.Documented(t, m.registry, "../../docs/metrics.md", "sidegate-tls", "All programs")
	series := testutil.CollectAndCount(m.registry)
	connection := func(list ...relay.Event) {
		c := &connEvents{node: n}
		end := m.begin(c)
		defer end()
		for _, e := range list {
			c.event(e)
		}
	}
	request := func(protocol string, allowed bool) relay.Event {
		return relay.Event{Kind: relay.KindHTTP, HTTP: &judge.Event{Kind: judge.KindRequest, Protocol: protocol, Method: "EVIL", Host: "evil.example", Allowed: allowed}}
	}
	response := func(status int) relay.Event {
		return relay.Event{Kind: relay.KindHTTP, HTTP: &judge.Event{Kind: judge.KindResponse, Protocol: "h2", Status: status, Duration: 3 * time.Millisecond}}
	}
	end := relay.Event{Kind: relay.KindEnd, ClientBytes: 10, ServerBytes: 200}
	broken := end
	broken.Reason = "connection reset"
	connection(relay.Event{Kind: relay.KindTLS, Version: "TLS 1.3", ClientKeys: true}, request("h2", true), response(200), response(999), end)
	connection(relay.Event{Kind: relay.KindTLS, Version: "0x4242"}, relay.Event{Kind: relay.KindOpaque}, broken)
	connection(request("http/1.1", false), relay.Event{Kind: relay.KindDenied}, broken)
	connection(request("evil/9", true), relay.Event{Kind: relay.KindRefused}, end)
	c := &connEvents{node: n}
	over := m.begin(c)
	if got := testutil.ToFloat64(m.open); got != 1 {
		t.Errorf("%v connections are open", got)
	}
	c.fail(errors.New("no sidecar"))
	over()
	if got := testutil.CollectAndCount(m.registry); got != series {
		t.Errorf("%d series have become %d", series, got)
	}
	if err := testutil.GatherAndCompare(m.registry, strings.NewReader(`
# HELP sidegate_tls_bytes_total Bytes of connections that have ended, by whose they are: the app's (client) or the server's.
# TYPE sidegate_tls_bytes_total counter
sidegate_tls_bytes_total{side="client"} 40
sidegate_tls_bytes_total{side="server"} 800
# HELP sidegate_tls_connections_total Connections of apps that came to the relay.
# TYPE sidegate_tls_connections_total counter
sidegate_tls_connections_total 5
# HELP sidegate_tls_ended_total Connections that ended: closed by their ends, denied by the policy, refused since they cannot be judged or break a rule, or failed.
# TYPE sidegate_tls_ended_total counter
sidegate_tls_ended_total{result="closed"} 1
sidegate_tls_ended_total{result="denied"} 1
sidegate_tls_ended_total{result="failed"} 2
sidegate_tls_ended_total{result="refused"} 1
# HELP sidegate_tls_handshakes_total Handshakes that were seen, by version of TLS, and whether the app handed over its keys.
# TYPE sidegate_tls_handshakes_total counter
sidegate_tls_handshakes_total{keys="false",version="1.2"} 0
sidegate_tls_handshakes_total{keys="false",version="1.3"} 0
sidegate_tls_handshakes_total{keys="false",version="other"} 1
sidegate_tls_handshakes_total{keys="true",version="1.2"} 0
sidegate_tls_handshakes_total{keys="true",version="1.3"} 1
sidegate_tls_handshakes_total{keys="true",version="other"} 0
# HELP sidegate_tls_opaque_total Connections that passed unread from some point on.
# TYPE sidegate_tls_opaque_total counter
sidegate_tls_opaque_total 1
# HELP sidegate_tls_open_connections Connections that the relay has now.
# TYPE sidegate_tls_open_connections gauge
sidegate_tls_open_connections 0
# HELP sidegate_tls_requests_total Requests inside TLS, by protocol, and what the policy says of them.
# TYPE sidegate_tls_requests_total counter
sidegate_tls_requests_total{protocol="h2",verdict="allowed"} 1
sidegate_tls_requests_total{protocol="h2",verdict="denied"} 0
sidegate_tls_requests_total{protocol="http/1.1",verdict="allowed"} 0
sidegate_tls_requests_total{protocol="http/1.1",verdict="denied"} 1
sidegate_tls_requests_total{protocol="other",verdict="allowed"} 1
sidegate_tls_requests_total{protocol="other",verdict="denied"} 0
# HELP sidegate_tls_responses_total Responses inside TLS, by class of their status.
# TYPE sidegate_tls_responses_total counter
sidegate_tls_responses_total{class="1xx"} 0
sidegate_tls_responses_total{class="2xx"} 1
sidegate_tls_responses_total{class="3xx"} 0
sidegate_tls_responses_total{class="4xx"} 0
sidegate_tls_responses_total{class="5xx"} 0
sidegate_tls_responses_total{class="other"} 1
`), "sidegate_tls_bytes_total", "sidegate_tls_connections_total", "sidegate_tls_ended_total", "sidegate_tls_handshakes_total", "sidegate_tls_opaque_total",
		"sidegate_tls_open_connections", "sidegate_tls_requests_total", "sidegate_tls_responses_total"); err != nil {
		t.Error(err)
	}
	if err := n.ready(); err == nil {
		t.Error("a relay that has not opened the state is ready")
	}
}
