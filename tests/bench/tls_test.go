// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/policy"
	"sidegate/tests/lab"
)

const wrkOutput = `Running 1s test @ https://api.example/keep/64
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.47ms    3.20ms  40.86ms   92.66%
    Req/Sec     9.19k     1.64k   11.15k    60.00%
  Latency Distribution
     50%    1.61ms
     75%    2.32ms
     90%  900.00us
     99%    0.02s
  9168 requests in 1.00s, 2.76MB read
Requests/sec:   9163.12
Transfer/sec:      2.76MB
`

func TestParseTLS(t *testing.T) {
	if p50, p99, err := parseLatency([]byte(wrkOutput)); err != nil || p50 != 1.61 || p99 != 20 {
		t.Errorf("latency is %v, %v, %v", p50, p99, err)
	}
	if n, err := parseRead([]byte(wrkOutput)); err != nil || n != 2.76*(1<<20) {
		t.Errorf("read are %v, %v", n, err)
	}
	if n, err := parseStatus([]byte("Active connections: 17 \nserver accepts handled requests\n 115 115 4711 \nReading: 0 Writing: 1 Waiting: 16 \n")); err != nil || n != 4711 {
		t.Errorf("nginx has served %v, %v", n, err)
	}
	events := `{"kind":"http","http":{"kind":"request","allowed":true}}
{"time":"2026-01-01T00:00:00Z","kind":"lost","lost":40}
{"kind":"http","http":{"kind":"request","reason":"no rule"}}
{"time":"2026-01-01T00:00:00Z","kind":"lost","lost":2}
`
	if allowed, lost, err := countEvents([]byte(events)); err != nil || allowed != 1 || lost != 42 {
		t.Errorf("events are %v, lost %v, %v", allowed, lost, err)
	}
	for name, f := range map[string]func([]byte) error{
		"latency": func(b []byte) error { _, _, err := parseLatency(b); return err },
		"read":    func(b []byte) error { _, err := parseRead(b); return err },
		"status":  func(b []byte) error { _, err := parseStatus(b); return err },
	} {
		if f([]byte("nothing")) == nil {
			t.Errorf("%s of nothing", name)
		}
	}
}

func TestRequests(t *testing.T) {
	rows := [][]string{{"# pxname", "svname", "req_tot"}, {"outbound", "FRONTEND", ""}, {"direct", "FRONTEND", "3"}}
	if n, err := requests(rows); err != nil || n != 0 {
		t.Errorf("requests in mode tcp are %d, %v", n, err)
	}
	rows[1][2] = "12"
	if n, err := requests(rows); err != nil || n != 12 {
		t.Errorf("requests are %d, %v", n, err)
	}
	for _, bad := range [][][]string{nil, rows[:1], {{"# pxname", "svname"}, {"outbound", "FRONTEND"}}} {
		if n, err := requests(bad); err == nil {
			t.Errorf("%q has %d requests", bad, n)
		}
	}
}

func TestTLSPolicies(t *testing.T) {
	for name, mode := range map[string]string{tlsInspectName: "inspect", tlsDeferredName: "deferred"} {
		list, err := policy.Parse("bench.yaml", []byte(tlsPolicy(name, mode)))
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := list[0].Compile(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, side := range tlsSides {
		if policyOf[side] == "" || pens[side].mark == "" {
			t.Errorf("%s has no policy, or no pen", side)
		}
	}
}

// TestTLSProxy has HAProxy read what it is given.
func TestTLSProxy(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/haproxy"); err != nil {
		t.Skip(err)
	}
	b := &tlsBench{dir: t.TempDir()}
	if err := b.certificates(); err != nil {
		t.Fatal(err)
	}
	for _, side := range tlsSides {
		text := strings.Replace(tlsProxyConfig(side, b.dir), "%s", filepath.Join(b.dir, "stats"), 1)
		if got, want := strings.Count(text, "ssl"), map[string]int{tlsMiddle: 4}[side]; got < want || want == 0 && got > 0 {
			t.Errorf("%s: ssl is there %d times", side, got)
		}
		file := filepath.Join(b.dir, "haproxy.cfg")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("/usr/sbin/haproxy", "-c", "-f", file).CombinedOutput(); err != nil || strings.Contains(string(out), "WARNING") {
			t.Errorf("%s: %v: %s", side, err, out)
		}
	}
}

// tlsFigures are those of one load, in which inspect takes this part of what the man in the middle does.
func tlsFigures(t *testing.T, inspect float64) []figure {
	t.Helper()
	var list []figure
	for _, what := range []string{tlsRate, tlsCPU} {
		f, err := newFigure("tls", "TLS 1.2, 64 B: "+what, "u", tlsSides, map[string][]float64{
			tlsPass: {30, 30}, tlsInspect: {100 * inspect, 100 * inspect}, tlsDeferred: {150, 150}, tlsMiddle: {100, 100},
		}, tlsRatios...)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

func TestTLSJudgement(t *testing.T) {
	for part, want := range map[float64]string{0.5: "inspect REACHED with all of 1 loads: median x0.50", 1.5: "inspect MISSED with 1 of 1 loads: median x1.50"} {
		lines := strings.Join(tlsJudgement(tlsFigures(t, part)), "\n")
		if !strings.Contains(lines, want) || !strings.Contains(lines, "deferred MISSED") {
			t.Errorf("%s: %s", want, lines)
		}
	}
	if lines := tlsJudgement(nil); len(lines) > 0 {
		t.Errorf("nothing was measured: %q", lines)
	}
}

func TestTLSCharts(t *testing.T) {
	all := charts(&report{Figures: tlsFigures(t, 0.5)})
	for _, name := range []string{"bench-tls-cpu.svg", "bench-tls-rate.svg"} {
		for _, want := range []string{">TLS 1.2, 64 B<", ">inspect<", pens[tlsInspect].colour} {
			if !strings.Contains(string(all[name]), want) {
				t.Errorf("%s lacks %s", name, want)
			}
		}
	}
	if len(all) != 2 {
		t.Errorf("%d charts", len(all))
	}
}

// TestHTTPS measures one load on all sides, in a world of its own. What it measures is of no interest.
func TestHTTPS(t *testing.T) {
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	dir := t.TempDir()
	if err := lab.Build(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bench.json")
	e, err := parseFlags([]string{"-quick", "-only", "^tls$", "-loads", "1.2, 64 B, 16", "-json", file, "-bin", dir, "-hooks", "../../contrib/oci-hooks.d"})
	if err != nil {
		t.Fatal(err)
	}
	e.stdout, e.stderr = io.Discard, t.Output()
	if err := run(context.Background(), e); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Missing) > 0 || len(r.Figures) != 4 {
		t.Fatalf("missing %q, %d figures", r.Missing, len(r.Figures))
	}
	for _, f := range r.Figures {
		var sides []string
		for _, s := range f.Sides {
			sides = append(sides, s.Side)
			if s.Min <= 0 {
				t.Errorf("%s: %s: %+v", f.Name, s.Side, s)
			}
		}
		if !slices.Equal(sides, tlsSides) || len(f.Ratios) != len(tlsRatios) {
			t.Errorf("%s has %q and %d ratios", f.Name, sides, len(f.Ratios))
		}
	}
}
