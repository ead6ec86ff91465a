// SPDX-License-Identifier: Apache-2.0

package otlp

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logpb "go.opentelemetry.io/proto/otlp/logs/v1"
	spanpb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"sidegate/cgroups"
)

// receiver is a collector: it decodes what comes by the protocol's own definitions.
type receiver struct {
	t *testing.T

	mu       sync.Mutex
	records  []*logpb.LogRecord
	spans    []*spanpb.Span
	headers  http.Header
	resource map[string]string
	hold     chan struct{} // answers wait for it to be closed; nil: they do not
	status   int           // of answers; 0: they are good
	asked    int
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return // the client has gone
	}
	r.mu.Lock()
	hold, status := r.hold, r.status
	r.asked++
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = req.Header
	switch req.URL.Path {
	case "/in/v1/logs":
		var m logspb.ExportLogsServiceRequest
		if err = proto.Unmarshal(b, &m); err == nil {
			for _, res := range m.GetResourceLogs() {
				r.resource = attributesOf(res.GetResource().GetAttributes())
				for _, scope := range res.GetScopeLogs() {
					r.records = append(r.records, scope.GetLogRecords()...)
				}
			}
		}
	case "/in/v1/traces":
		var m tracepb.ExportTraceServiceRequest
		if err = proto.Unmarshal(b, &m); err == nil {
			for _, res := range m.GetResourceSpans() {
				for _, scope := range res.GetScopeSpans() {
					r.spans = append(r.spans, scope.GetSpans()...)
				}
			}
		}
	default:
		err = fmt.Errorf("path %s", req.URL.Path)
	}
	if err != nil {
		r.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// listen serves on addr until the test ends, or the server is closed.
func (r *receiver) listen(addr string) (*http.Server, string) {
	r.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	s := &http.Server{Handler: r}
	go func() { _ = s.Serve(l) }()
	r.t.Cleanup(func() { _ = s.Close() })
	return s, l.Addr().String()
}

func attributesOf(list []*commonpb.KeyValue) map[string]string {
	m := make(map[string]string)
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			m[kv.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[kv.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			m[kv.GetKey()] = fmt.Sprint(v)
		}
	}
	return m
}

func newExporter(t *testing.T, addr string) *Exporter {
	t.Helper()
	log := logrus.New()
	log.SetOutput(t.Output())
	e, err := New(t.Context(), Options{Endpoint: addr + "/in", Insecure: true, Version: "1.2.3", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func finish(t *testing.T, e *Exporter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// wantCounts fails the test unless so many of a signal were sent, dropped and failed, by the metrics.
func wantCounts(t *testing.T, e *Exporter, signal string, sent, dropped, failed int) {
	t.Helper()
	got := make(map[string]int)
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(e)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == signal {
				got[f.GetName()] = int(m.GetCounter().GetValue())
			}
		}
	}
	want := map[string]int{"sidegate_otlp_sent_total": sent, "sidegate_otlp_dropped_total": dropped, "sidegate_otlp_failed_total": failed}
	if !maps.Equal(got, want) {
		t.Errorf("%s: %v, want %v", signal, got, want)
	}
	if problems, err := testutil.GatherAndLint(r); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// wantAttributes fails the test unless all of want are there; an empty value is for one that is not to be there.
func wantAttributes(t *testing.T, what string, got map[string]string, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if have, ok := got[k]; have != v || ok && v == "" {
			t.Errorf("%s: %s is %q, want %q, in %v", what, k, have, v, got)
		}
	}
}

var when = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func flow() *cgroups.Event {
	return &cgroups.Event{
		Time: when, Kind: "connect", Verdict: cgroups.Denied, Direction: "egress", Protocol: "udp", Address: netip.MustParseAddrPort("192.0.2.1:53"),
		Pod: "prod/shop-0", Container: "app", ContainerID: "c0ffee", Role: "app", PID: 42, Process: "/usr/bin/dig\xff", Reason: "udp", Text: "UDP that no rule allows",
		Policy: "web", Rule: "spec.rules[0]",
	}
}

func TestFlows(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
	r := &receiver{t: t}
	_, addr := r.listen("127.0.0.1:0")
	e := newExporter(t, addr)
	e.Event(flow())
	in := flow()
	in.Direction, in.Verdict, in.Pod, in.Address = "ingress", cgroups.Allowed, "shop", netip.MustParseAddrPort("[2001:db8::1]:8080")
	e.Event(in)
	e.Event(&cgroups.Event{Time: when, Kind: "unix", Verdict: cgroups.Denied, Protocol: "unix", Direction: "egress", Pod: "shop", Socket: "/run/db.sock", Reason: "unix"})
	e.Event(&cgroups.Event{Time: when, Kind: "tls", Verdict: cgroups.Allowed, Pod: "shop", TLS: &cgroups.TLSEvent{Kind: "opaque", SNI: "a.example", From: "127.0.0.1:1", Version: "TLS 1.3"}})
	e.Lost(7)
	finish(t, e)
	wantCounts(t, e, "logs", 5, 0, 0)
	wantCounts(t, e, "traces", 0, 0, 0)
	if len(r.records) != 5 {
		t.Fatalf("%d records", len(r.records))
	}
	wantAttributes(t, "resource", r.resource, map[string]string{"service.name": "sidegate", "service.version": "1.2.3", "deployment.environment.name": "test"})
	if got := r.headers.Get("Authorization"); got != "Bearer x" {
		t.Errorf("header %q", got)
	}
	out := r.records[0]
	if out.GetEventName() != "sidegate.connect" || out.GetTimeUnixNano() != uint64(when.UnixNano()) || out.GetSeverityNumber() != logpb.SeverityNumber_SEVERITY_NUMBER_WARN ||
		out.GetBody().GetStringValue() != "connect denied: UDP that no rule allows" {
		t.Errorf("record %v", out)
	}
	wantAttributes(t, "out", attributesOf(out.GetAttributes()), map[string]string{
		"destination.address": "192.0.2.1", "destination.port": "53", "source.address": "", "network.transport": "udp", "network.type": "ipv4",
		"network.io.direction": "transmit", "container.id": "c0ffee", "container.name": "app", "k8s.pod.name": "shop-0", "k8s.namespace.name": "prod",
		"process.pid": "42", "process.executable.path": "/usr/bin/dig\uFFFD", "sidegate.verdict": "denied", "sidegate.reason": "udp", "sidegate.rule": "spec.rules[0]",
		"sidegate.policy": "web", "sidegate.role": "app", "sidegate.pod": "prod/shop-0",
	})
	wantAttributes(t, "in", attributesOf(r.records[1].GetAttributes()), map[string]string{
		"source.address": "2001:db8::1", "destination.port": "8080", "destination.address": "", "network.type": "ipv6", "k8s.pod.name": "",
	})
	wantAttributes(t, "unix", attributesOf(r.records[2].GetAttributes()), map[string]string{"destination.address": "/run/db.sock", "destination.port": "", "network.transport": "unix"})
	wantAttributes(t, "tls", attributesOf(r.records[3].GetAttributes()), map[string]string{
		"server.address": "a.example", "tls.protocol.name": "tls", "tls.protocol.version": "1.3", "sidegate.tls.kind": "opaque",
	})
	wantAttributes(t, "lost", attributesOf(r.records[4].GetAttributes()), map[string]string{"sidegate.lost": "7"})
}

// tlsEvent is of a connection, after so many milliseconds.
func tlsEvent(from string, after int, kind string, h *cgroups.HTTPEvent) *cgroups.Event {
	v := flow()
	v.Kind, v.Time, v.Protocol, v.Address = "http", when.Add(time.Duration(after)*time.Millisecond), "tcp", netip.MustParseAddrPort("192.0.2.1:443")
	v.Verdict, v.Reason, v.Text, v.Rule = cgroups.Allowed, "http", "", ""
	v.TLS = &cgroups.TLSEvent{Kind: kind, From: from, SNI: "a.example", HTTP: h}
	return v
}

func request(stream uint32, method, path string) *cgroups.HTTPEvent {
	return &cgroups.HTTPEvent{Kind: "request", Protocol: "h2", Stream: stream, Method: method, Host: "a.example", Path: path, Allowed: true}
}

func response(stream uint32, status int) *cgroups.HTTPEvent {
	return &cgroups.HTTPEvent{Kind: "response", Protocol: "h2", Stream: stream, Status: status}
}

func TestRequests(t *testing.T) {
	r := &receiver{t: t}
	_, addr := r.listen("127.0.0.1:0")
	e := newExporter(t, addr)
	const a, b = "127.0.0.1:4001", "127.0.0.1:4002"
	hello := tlsEvent(a, 0, "tls", nil)
	hello.TLS.Version, hello.TLS.Suite, hello.TLS.ALPN = "TLS 1.3", "TLS_AES_128_GCM_SHA256", "h2"
	brew := request(1, "BREW", "/pot")
	brew.Allowed = false
	denied := tlsEvent(b, 21, "http", brew)
	denied.Text, denied.Rule = "no rule allows it", "api"
	for _, v := range []*cgroups.Event{
		hello,
		tlsEvent(a, 1, "http", response(9, 200)), // of a request that nobody saw
		tlsEvent(a, 10, "http", request(1, "GET", "/one")),
		tlsEvent(a, 20, "http", request(3, "POST", "/two")),
		denied,
		tlsEvent(b, 22, "http", response(3, 500)), // of another connection
		tlsEvent(a, 30, "http", response(3, 503)),
		tlsEvent(a, 40, "http", response(1, 200)),
		tlsEvent(a, 50, "http", request(5, "HEAD", "/three")),
		tlsEvent(a, 60, "end", nil),
		tlsEvent(a, 70, "http", response(5, 200)),
	} {
		e.Event(v)
	}
	finish(t, e)
	wantCounts(t, e, "traces", 4, 0, 0)
	wantCounts(t, e, "logs", 2, 0, 0) // handshake and end
	byName := make(map[string]*spanpb.Span)
	for _, s := range r.spans {
		byName[s.GetName()] = s
	}
	if got := slices.Sorted(maps.Keys(byName)); !slices.Equal(got, []string{"HTTP", "HTTP GET", "HTTP HEAD", "HTTP POST"}) {
		t.Fatalf("spans %q", got)
	}
	for _, c := range []struct {
		name       string
		begin, end int
		status     spanpb.Status_StatusCode
		message    string
		want       map[string]string
	}{
		{"HTTP GET", 10, 40, spanpb.Status_STATUS_CODE_UNSET, "", map[string]string{
			"http.request.method": "GET", "url.path": "/one", "url.scheme": "https", "server.address": "a.example", "server.port": "443", "http.response.status_code": "200",
			"network.protocol.name": "http", "network.protocol.version": "2", "network.peer.address": "192.0.2.1", "tls.protocol.version": "1.3",
			"tls.cipher": "TLS_AES_128_GCM_SHA256", "tls.next_protocol": "h2", "container.id": "c0ffee", "k8s.pod.name": "shop-0", "sidegate.tls.from": a,
		}},
		{"HTTP POST", 20, 30, spanpb.Status_STATUS_CODE_ERROR, "", map[string]string{"http.response.status_code": "503", "url.path": "/two"}},
		{"HTTP HEAD", 50, 60, spanpb.Status_STATUS_CODE_ERROR, "no response was seen", map[string]string{"http.response.status_code": ""}},
		{"HTTP", 21, 21, spanpb.Status_STATUS_CODE_ERROR, "no rule allows it", map[string]string{
			"http.request.method": "_OTHER", "http.request.method_original": "BREW", "sidegate.rule": "api", "tls.protocol.version": "",
		}},
	} {
		s := byName[c.name]
		begin, end := when.Add(time.Duration(c.begin)*time.Millisecond), when.Add(time.Duration(c.end)*time.Millisecond)
		if s.GetKind() != spanpb.Span_SPAN_KIND_CLIENT || s.GetStartTimeUnixNano() != uint64(begin.UnixNano()) || s.GetEndTimeUnixNano() != uint64(end.UnixNano()) ||
			s.GetStatus().GetCode() != c.status || s.GetStatus().GetMessage() != c.message {
			t.Errorf("%s: %v", c.name, s)
		}
		wantAttributes(t, c.name, attributesOf(s.GetAttributes()), c.want)
	}
}

// While the collector is slow no more than so many wait; the others are dropped, and nobody waits for it.
func TestSlowCollector(t *testing.T) {
	r := &receiver{t: t, hold: make(chan struct{})}
	_, addr := r.listen("127.0.0.1:0")
	e := newExporter(t, addr)
	const most, more = 700, 50 // one batch is on its way, and the rest is not
	e.records.most = most
	for range most + more {
		e.Event(flow())
	}
	wantCounts(t, e, "logs", 0, more, 0)
	close(r.hold)
	finish(t, e)
	wantCounts(t, e, "logs", most, more, 0)
	if len(r.records) != most {
		t.Errorf("the collector has %d", len(r.records))
	}
}

// What comes while the collector is away is there when it is back.
func TestCollectorIsAway(t *testing.T) {
	r := &receiver{t: t}
	s, addr := r.listen("127.0.0.1:0")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	e := newExporter(t, addr)
	e.Event(flow())
	e.Event(tlsEvent("127.0.0.1:1", 0, "http", &cgroups.HTTPEvent{Kind: "request", Method: "GET"}))
	for deadline := time.Now().Add(10 * time.Second); !e.records.away.Load() || !e.spans.away.Load(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody notices that the collector is away")
		}
	}
	r.listen(addr)
	for deadline := time.Now().Add(20 * time.Second); e.records.sent.Load() != 1 || e.spans.sent.Load() != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what waited is not sent")
		}
	}
	finish(t, e)
	wantCounts(t, e, "logs", 1, 0, 0)
	wantCounts(t, e, "traces", 1, 0, 0)
}

// A collector that is away, or takes nothing, does not keep the exporter from ending.
func TestEndWithoutCollector(t *testing.T) {
	r := &receiver{t: t, status: http.StatusBadRequest}
	s, addr := r.listen("127.0.0.1:0")
	e := newExporter(t, addr)
	e.Event(flow())
	finish(t, e)
	wantCounts(t, e, "logs", 0, 0, 1)
	if r.asked != 1 {
		t.Errorf("what is of no use was sent %d times", r.asked)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	e = newExporter(t, addr)
	e.Event(flow())
	began := time.Now()
	finish(t, e)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s to end", took)
	}
	wantCounts(t, e, "logs", 0, 0, 1)
}

// Connections of which nobody hears again are forgotten.
func TestConnectionsAreBounded(t *testing.T) {
	r := &receiver{t: t}
	_, addr := r.listen("127.0.0.1:0")
	e := newExporter(t, addr)
	for i := range maxConns + 10 {
		e.Event(tlsEvent(fmt.Sprintf("127.0.0.1:%d", i), i, "http", request(1, "GET", "/")))
	}
	if len(e.open.conns) != maxConns || e.open.recent.Len() != maxConns {
		t.Errorf("%d connections are remembered", len(e.open.conns))
	}
	for i := range uint32(maxRequests + 10) {
		e.Event(tlsEvent("127.0.0.1:1", 0, "http", request(i, "GET", "/")))
	}
	finish(t, e)
	// The connection that began anew pushes out one more, and has requests beyond the most.
	wantCounts(t, e, "traces", 11, 10, 0)
}

func TestEndpoint(t *testing.T) {
	for _, c := range []struct {
		endpoint string
		insecure bool
		want     string // or a word of the error, after a !
	}{
		{"https://c:4318", false, "https://c:4318"},
		{"https://c:4318/", true, "https://c:4318"},
		{"c:4318", false, "https://c:4318"},
		{"c:4318", true, "http://c:4318"},
		{"http://c/otlp/", true, "http://c/otlp"},
		{"http://c", false, "!--otlp-insecure"},
		{"https://u:p@c", false, "!OTEL_EXPORTER_OTLP_HEADERS"},
		{"https://", false, "!no URL"},
		{"grpc://c", true, "!no URL"},
	} {
		got, err := CheckEndpoint(c.endpoint, c.insecure)
		if word, isError := strings.CutPrefix(c.want, "!"); isError && (err == nil || !strings.Contains(err.Error(), word)) || !isError && (err != nil || got != c.want) {
			t.Errorf("%s: %q, %v, want %q", c.endpoint, got, err, c.want)
		}
	}
}
