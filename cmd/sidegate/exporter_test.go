// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/sirupsen/logrus"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/observe"
	"sidegate/observe/cli"
	"sidegate/observe/observetest"
	"sidegate/policy"
)

// testExporter is one that runs.
type testExporter struct {
	t    *testing.T
	addr string
	log  *lockedBuffer
	stop func() error
}

// startExporter runs one on the state until the test ends, or it is stopped.
func startExporter(t *testing.T, state string, x exporter) *testExporter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if x.recordSize == "" {
		x.recordSize = "1MiB"
	}
	x.buffer = 1 << 20
	must(t, x.check())
	out := new(lockedBuffer)
	log := logrus.New()
	log.SetOutput(out)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- x.serve(ctx, l, &env{state: state}, log) }()
	e := &testExporter{t: t, addr: l.Addr().String(), log: out}
	stopped := false
	e.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { must(t, e.stop()) })
	return e
}

func (e *testExporter) get(path string) (body string, code int) {
	e.t.Helper()
	resp, err := http.Get("http://" + e.addr + path)
	must(e.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(e.t, err)
	return string(b), resp.StatusCode
}

// Gather implements prometheus.Gatherer by a scrape.
func (e *testExporter) Gather() (list []*dto.MetricFamily, err error) {
	e.t.Helper()
	body, code := e.get("/metrics")
	if code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", code, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	for _, f := range families {
		list = append(list, f)
	}
	return list, err
}

// value is of one series, as it is written; -1 if it is not there.
func (e *testExporter) value(series string) float64 {
	e.t.Helper()
	body, _ := e.get("/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			var v float64
			_, err := fmt.Sscan(rest, &v)
			must(e.t, err)
			return v
		}
	}
	return -1
}

// until polls until ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

const reading = "sidegate_exporter_reading"

// What differs from run to run, or from one version to the next.
var volatile = regexp.MustCompile(`(?m)^(sidegate_(attach_duration_seconds(_sum|_bucket\{le="[0-9.]+"\})|record_bytes|` +
	`otlp_sent_total\{signal="logs"\}|map_(entries|capacity)\{map="[a-z_]+"\}|exporter_events_total|loaded\{abi=)).*$`)

func TestExporter(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "events")
	var collector logCollector
	e := startExporter(t, w.state, exporter{record: dir, endpoint: collector.start(t), insecure: true})
	if v := e.value(fmt.Sprintf(`sidegate_loaded{abi="%d"}`, bpf.ABI)); v != 0 {
		t.Errorf("with nothing loaded it is %v", v)
	}
	if body, code := e.get("/readyz"); code != http.StatusOK {
		t.Errorf("with nothing loaded: %d, %s", code, body)
	}
	w.write("web.yaml", named("web", "  nonTCP: deny\n"))
	sidecar, app := w.start("shop", "proxy", policy.RoleSidecar, "web"), w.start("shop", "app", policy.RoleApp, "web")
	sidecar.mustDo("listen", "tcp", "127.0.0.1:15001")
	until(t, "events are read", func() bool { return e.value(reading) == 1 })
	app.want("ok", "dial", "tcp", "192.0.2.1:80")
	app.want("EPERM", "dial", "udp", "192.0.2.1:53")
	app.want("EPERM", "dial", "udp", "192.0.2.2:53")
	until(t, "it is recorded", func() bool {
		list, _, err := observe.Recorded(dir, time.Time{}, 0)
		return err == nil && slices.ContainsFunc(list, func(v cgroups.Event) bool { return v.Address.String() == "192.0.2.2:53" })
	})
	body, _ := e.get("/metrics")
	var lines strings.Builder
	for line := range strings.Lines(body) {
		if strings.Contains(line, "sidegate_") && !strings.Contains(line, "sidegate_build_info{") {
			lines.WriteString(line)
		}
	}
	golden(t, "scrape.golden", volatile.ReplaceAllString(lines.String(), "$1 *"))
	observetest.Documented(t, prometheus.GathererFunc(e.Gather), "../../docs/metrics.md", "State of the node", "All programs", "sidegate exporter", "Acceleration")
	observetest.Documented(t, prometheus.GathererFunc(e.Gather), "../../docs/metrics.md", "sidegate exporter", "All programs", "State of the node", "Acceleration")

	// What is loaded goes, and comes again.
	must(t, cgroups.Unload(w.state, true))
	until(t, "nothing is read", func() bool { return e.value(reading) == 0 })
	w.ns = nil
	other := w.start("store", "db", policy.RoleApp, "web")
	until(t, "events are read again", func() bool { return e.value(reading) == 1 })
	other.want("EPERM", "dial", "udp", "192.0.2.3:53")
	must(t, e.stop())
	list, _, err := observe.Recorded(dir, time.Time{}, 1)
	must(t, err)
	if len(list) != 1 || list[0].Pod != "store" || list[0].Container != "db" || list[0].Reason != "udp" || list[0].Verdict != cgroups.Denied {
		t.Errorf("the last that is recorded: %+v", list)
	}
	if got := collector.count(); got < 4 {
		t.Errorf("the collector got %d requests or records", got)
	}
}

// Scrapes while pods come and go are whole, each one.
func TestScrapeWhilePodsComeAndGo(t *testing.T) {
	w := newWorld(t)
	e := startExporter(t, w.state, exporter{})
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		defer func() { done <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			n++
			if families, err := e.Gather(); err != nil || len(families) < 10 {
				t.Errorf("scrape %d: %d families, %v", n, len(families), err)
				return
			}
		}
	}()
	for i := range 10 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			pod := &world{t: t, state: w.state, dir: w.dir}
			app := pod.start(fmt.Sprintf("pod-%d", i), "app", policy.RoleApp, "")
			app.want("EPERM", "dial", "udp", "192.0.2.1:53")
		})
	}
	close(stop)
	if n := <-done; n < 5 {
		t.Errorf("only %d scrapes", n)
	}
	until(t, "all are gone", func() bool {
		return e.value(`sidegate_containers{role="app"}`) == -1 && e.value(`sidegate_map_entries{map="containers"}`) == 0
	})
	for _, reason := range []string{"permission", "version", "other"} {
		if n := e.value(fmt.Sprintf("sidegate_state_errors_total{reason=%q}", reason)); n != 0 {
			t.Errorf("%v scrapes failed (%s)", n, reason)
		}
	}
}

func TestExporterOptions(t *testing.T) {
	for _, c := range []struct{ args, word string }{
		{"--record-size 3parsecs", "3parsecs"},
		{"--record-size 4KiB", "1MiB"},
		{"--otlp-endpoint http://c:4318", "--otlp-insecure"},
		{"--otlp-endpoint ftp://c", "ftp://c"},
		{"--otlp-endpoint https://u:secret@c", "OTEL_EXPORTER_OTLP_HEADERS"},
		{"--buffer 5000", "power of two"},
		{"--listen nowhere", "nowhere"},
		{"more", "more"},
	} {
		_, stderr, code := call("/nowhere", append([]string{"exporter"}, strings.Fields(c.args)...)...)
		if code != cli.ExitUsage || !strings.Contains(stderr, c.word) || strings.Contains(stderr, "secret") {
			t.Errorf("%s: %d, %q", c.args, code, stderr)
		}
	}
}
