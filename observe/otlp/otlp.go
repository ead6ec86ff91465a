// SPDX-License-Identifier: Apache-2.0

// Package otlp tells OpenTelemetry what Sidegate does.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"sidegate/cgroups"
)

// Options say where events go.
type Options struct {
	// Endpoint is the URL of a collector that speaks OTLP over HTTP, without /v1/logs and /v1/traces.
	Endpoint string
	// Insecure lets http:// be. Events have addresses and paths of requests.
	Insecure bool
	Version  string
	Log      *logrus.Logger
}

// Exporter is an observe.Sink that tells an OpenTelemetry collector: of requests inside TLS by spans, and of everything else by log
// records. What is on its way is bounded: what is too much is dropped, and counted.
type Exporter struct {
	logs    *sdklog.LoggerProvider
	traces  *sdktrace.TracerProvider
	logger  otellog.Logger
	records outlet
	spans   outlet
	open    requests
}

const (
	scope        = "sidegate"
	mostInside   = 8192 // records, and spans, on their way
	batchSize    = 512
	batchDelay   = time.Second // until a batch goes that is not full
	batchTimeout = time.Minute // for a batch, with all attempts
	firstRetry   = time.Second // of a collector that is away
	lastRetry    = 15 * time.Second
)

// CheckEndpoint completes an address to a URL, or says what is wrong with it.
func CheckEndpoint(endpoint string, insecure bool) (string, error) {
	if !strings.Contains(endpoint, "://") {
		if endpoint = "https://" + endpoint; insecure {
			endpoint = strings.Replace(endpoint, "https:", "http:", 1)
		}
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return "", err
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", fmt.Errorf("%q is no URL of http or https", endpoint)
	case u.Scheme == "http" && !insecure:
		return "", fmt.Errorf("%q would send events unencrypted: write https, or allow it by --otlp-insecure", endpoint)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q has more than a host and a path: headers come from $OTEL_EXPORTER_OTLP_HEADERS", u.Redacted())
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// New connects when there is something to tell. Headers, certificates and compression are those of the environment
// (OTEL_EXPORTER_OTLP_*), and so are further attributes of the resource (OTEL_RESOURCE_ATTRIBUTES).
func New(ctx context.Context, o Options) (*Exporter, error) {
	endpoint, err := CheckEndpoint(o.Endpoint, o.Insecure)
	if err != nil {
		return nil, fmt.Errorf("OTLP endpoint: %w", err)
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(),
		resource.WithAttributes(semconv.ServiceName("sidegate"), semconv.ServiceVersion(o.Version)), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("describe this node to OTLP: %w", err)
	}
	logs, err := otlploghttp.New(ctx, otlploghttp.WithEndpointURL(endpoint+"/v1/logs"))
	if err != nil {
		return nil, fmt.Errorf("export logs by OTLP: %w", err)
	}
	spans, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint+"/v1/traces"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export spans by OTLP: %w", err), logs.Shutdown(ctx))
	}
	p := new(Exporter)
	p.records.init("logs", o.Log)
	p.spans.init("traces", o.Log)
	// Neither queue is ever full: an outlet admits less.
	p.logs = sdklog.NewLoggerProvider(sdklog.WithResource(res), sdklog.WithProcessor(sdklog.NewBatchProcessor(
		logExporter{logs, &p.records}, sdklog.WithMaxQueueSize(2*mostInside), sdklog.WithExportMaxBatchSize(batchSize),
		sdklog.WithExportInterval(batchDelay), sdklog.WithExportTimeout(batchTimeout))))
	p.traces = sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithSpanProcessor(sdktrace.NewBatchSpanProcessor(
		spanExporter{spans, &p.spans}, sdktrace.WithMaxQueueSize(2*mostInside), sdktrace.WithMaxExportBatchSize(batchSize),
		sdktrace.WithBatchTimeout(batchDelay), sdktrace.WithExportTimeout(batchTimeout))))
	p.logger = p.logs.Logger(scope, otellog.WithInstrumentationVersion(o.Version), otellog.WithSchemaURL(semconv.SchemaURL))
	p.open.init(p.traces.Tracer(scope, trace.WithInstrumentationVersion(o.Version), trace.WithSchemaURL(semconv.SchemaURL)), &p.spans)
	return p, nil
}

// Event implements observe.Sink.
func (p *Exporter) Event(v *cgroups.Event) {
	if p.open.event(v) {
		return
	}
	if p.records.admit() {
		p.logger.Emit(context.Background(), logRecord(v))
	}
}

// Lost implements observe.Sink.
func (p *Exporter) Lost(n uint64) {
	if !p.records.admit() {
		return
	}
	var r otellog.Record
	r.SetTimestamp(time.Now())
	r.SetSeverity(otellog.SeverityWarn)
	r.SetEventName("sidegate.lost")
	r.SetBody(attribute.StringValue("events were lost: they came faster than they were read"))
	r.AddAttributes(attribute.Int64("sidegate.lost", int64(n)))
	p.logger.Emit(context.Background(), r)
}

// Close sends what is on its way, until ctx ends. What is not sent by then is dropped.
func (p *Exporter) Close(ctx context.Context) error {
	close(p.records.closing)
	close(p.spans.closing)
	return errors.Join(p.logs.Shutdown(ctx), p.traces.Shutdown(ctx))
}

var (
	sentDesc    = desc("sent_total", "Log records and spans that the collector took.")
	droppedDesc = desc("dropped_total", "Log records and spans for which there was no room, since the collector is slow or away.")
	failedDesc  = desc("failed_total", "Log records and spans that the collector did not take, or not in time.")
)

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("sidegate_otlp_"+name, help, []string{"signal"}, nil)
}

// Describe implements prometheus.Collector.
func (p *Exporter) Describe(ch chan<- *prometheus.Desc) {
	ch <- sentDesc
	ch <- droppedDesc
	ch <- failedDesc
}

// Collect implements prometheus.Collector.
func (p *Exporter) Collect(ch chan<- prometheus.Metric) {
	for _, o := range []*outlet{&p.records, &p.spans} {
		for d, n := range map[*prometheus.Desc]uint64{sentDesc: o.sent.Load(), droppedDesc: o.dropped.Load(), failedDesc: o.failed.Load()} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), o.signal)
		}
	}
}

// outlet bounds and counts what is on its way to the collector: the SDK drops without a word.
type outlet struct {
	signal                string
	most                  int64 // inside
	log                   *logrus.Logger
	inside                atomic.Int64
	sent, dropped, failed atomic.Uint64
	away                  atomic.Bool   // was said
	closing               chan struct{} // closed: nothing is tried twice
}

func (o *outlet) init(signal string, log *logrus.Logger) {
	o.signal, o.most, o.log, o.closing = signal, mostInside, log, make(chan struct{})
}

// admit tells whether there is room for one more, which is then on its way.
func (o *outlet) admit() bool {
	if o.inside.Add(1) <= o.most {
		return true
	}
	o.inside.Add(-1)
	o.dropped.Add(1)
	return false
}

// withdraw is for one that was admitted and will not be exported.
func (o *outlet) withdraw() { o.inside.Add(-1) }

// export sends n, again and again while the collector is away. The SDK would report the error once more.
func (o *outlet) export(ctx context.Context, n int, send func(context.Context) error) error {
	defer o.inside.Add(int64(-n))
	err := o.attempts(ctx, send)
	if err != nil {
		o.failed.Add(uint64(n))
		if !o.away.Swap(true) {
			o.log.WithError(err).Warnf("OTLP collector does not take %s", o.signal)
		}
		return nil
	}
	o.sent.Add(uint64(n))
	if o.away.Swap(false) {
		o.log.Infof("OTLP collector takes %s again", o.signal)
	}
	return nil
}

func (o *outlet) attempts(ctx context.Context, send func(context.Context) error) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := send(ctx)
		// What has an answer of the collector, its exporter has tried again already, or it is of no use.
		if _, isAway := errors.AsType[*url.Error](err); !isAway {
			return err
		}
		if !o.away.Swap(true) {
			o.log.WithError(err).Warnf("OTLP collector is away: trying again, and dropping %s beyond %d", o.signal, o.most)
		}
		select {
		case <-ctx.Done():
			return err
		case <-o.closing:
			return err
		case <-time.After(pause/2 + rand.N(pause)/2): // not all nodes at once
		}
	}
}

type logExporter struct {
	sdklog.Exporter
	out *outlet
}

func (e logExporter) Export(ctx context.Context, records []sdklog.Record) error {
	return e.out.export(ctx, len(records), func(ctx context.Context) error { return e.Exporter.Export(ctx, records) })
}

type spanExporter struct {
	sdktrace.SpanExporter
	out *outlet
}

func (e spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	return e.out.export(ctx, len(spans), func(ctx context.Context) error { return e.SpanExporter.ExportSpans(ctx, spans) })
}
