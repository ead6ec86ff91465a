// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// samples makes rounds of these rates, each with a CPU time of 1 ms/rate; 0 is a round that failed.
func samples(rates ...float64) (list []sample) {
	for _, r := range rates {
		if r == 0 {
			list = append(list, failed)
			continue
		}
		list = append(list, sample{rate: r, cpu: 1000 / r})
	}
	return list
}

func TestPoint(t *testing.T) {
	d := dose{loadRequest, 64, 5}
	// Each round is twice as fast as the baseline, though the medians are not.
	p, err := newPoint(d, setupRedirect, samples(20, 200, 60), samples(10, 100, 30))
	if err != nil {
		t.Fatal(err)
	}
	want := point{Load: loadRequest, Size: 64, Connections: 5, Setup: setupRedirect, RateMedian: 60, RateMin: 20, RateMax: 200, CPUPerRequest: 1000. / 60,
		RatioToIptables: 2, ratio: spread{2, 2, 2}, cpuRatio: spread{0.5, 0.5, 0.5}, rounds: 3, ofRounds: 3}
	if p != want {
		t.Errorf("point is\n%+v, want\n%+v", p, want)
	}
}

func TestPointWithFailedRounds(t *testing.T) {
	d := dose{loadRequest, 64, 5}
	// The second round counts for neither, and the pairs stay together.
	p, err := newPoint(d, setupUnix, samples(20, 0, 60), samples(10, 5, 30))
	if err != nil || p.rounds != 2 || p.RatioToIptables != 2 || p.RateMin != 20 {
		t.Errorf("with a failed round: %+v, %v", p, err)
	}
	for name, c := range map[string]struct{ own, base []sample }{
		"two of three failed":       {samples(20, 0, 0), samples(10, 5, 30)},
		"all failed":                {samples(0, 0, 0), samples(10, 5, 30)},
		"none at all":               {nil, samples(10)},
		"the baseline failed":       {samples(1, 2, 3), samples(0, 0, 0)},
		"they failed in turns":      {samples(1, 0, 3), samples(0, 2, 0)},
		"there is no baseline then": {samples(1, 2, 3), nil},
	} {
		if p, err := newPoint(d, setupUnix, c.own, c.base); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestMeasure(t *testing.T) {
	c := collection{late: func() bool { return false }}
	var order []string
	calls := map[string]int{}
	c.measure(dose{loadConnect, 64, 1}, []string{setupIptables, setupRedirect, setupUnix}, 9, func(setup string, warm bool) (sample, error) {
		if warm != (calls[setup] == 0) {
			t.Errorf("%s: round %d warms up: %v", setup, calls[setup], warm)
		}
		calls[setup]++
		order = append(order, setup)
		switch {
		case setup == setupUnix:
			return sample{}, errors.New("it is broken")
		case setup == setupRedirect && calls[setup] == 4:
			return sample{}, nil // nothing was done
		}
		return sample{rate: float64(len(setup)), cpu: 1}, nil
	})
	if calls[setupIptables] != 10 || calls[setupRedirect] != 10 || calls[setupUnix] != tooMany {
		t.Errorf("calls are %v", calls)
	}
	if want := []string{setupIptables, setupRedirect, setupUnix, setupRedirect, setupUnix, setupIptables}; !slices.Equal(order[:6], want) {
		t.Errorf("they take turns so: %v", order[:6])
	}
	if len(c.points) != 2 || c.points[1].Setup != setupRedirect || c.points[1].rounds != 8 || c.points[1].ofRounds != 9 {
		t.Errorf("points are %+v", c.points)
	}
	if len(c.failed) != tooMany+1 || len(c.missing) != 1 || !strings.Contains(c.missing[0], "9 of 9 rounds failed") {
		t.Errorf("failed %q, missing %q", c.failed, c.missing)
	}
	c = collection{late: func() bool { return true }}
	c.measure(dose{loadConnect, 64, 1}, setups, 9, nil)
	if len(c.missing) != 1 || len(c.points) > 0 {
		t.Errorf("without time: %+v", c)
	}
}

func TestPointJSON(t *testing.T) {
	b, err := json.Marshal(point{ratio: spread{1, 2, 3}, rounds: 9})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want := []string{"connections", "cpu_us_per_request", "load", "rate_max", "rate_median", "rate_min", "ratio_to_iptables", "setup", "size"}
	if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
		t.Errorf("a point has %v, want %v", keys, want)
	}
}

func TestJudge(t *testing.T) {
	points := []point{
		{Load: loadUp, Setup: setupRedirect, RatioToIptables: 1.1}, {Load: loadDown, Setup: setupRedirect, RatioToIptables: 1},
		{Load: loadUp, Setup: setupAccelerated, RatioToIptables: 0.9}, {Load: loadDown, Setup: setupAccelerated, RatioToIptables: 2},
		{Load: loadConnect, Setup: setupRedirect, RatioToIptables: 1.29},
	}
	got := judgements(points)
	want := []string{
		"target: connect/request/close, at least x1.30 of iptables: redirect MISSED at 1 of 1 points: median x1.29, x1.29 to x1.29",
		"target: connect/request/close, at least x1.30 of iptables: accelerated was not measured",
		"target: bulk, at least x1.00 of iptables: redirect REACHED at all of 2 points: median x1.05, x1.00 to x1.10",
		"target: bulk, at least x1.00 of iptables: accelerated MISSED at 1 of 2 points: median x1.45, x0.90 to x2.00",
	}
	if !slices.Equal(got, want) {
		t.Errorf("judgements are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// exampleReport has a bit of everything.
func exampleReport(t *testing.T) *report {
	t.Helper()
	c := collection{late: func() bool { return false }}
	for _, d := range []dose{{loadRequest, 64, 1}, {loadRequest, 64, 1000}, {loadRequest, 16 << 10, 1}, {loadUp, 1 << 20, 4}, {loadMixed, 0, 50}} {
		c.add(d, []string{setupDirect, setupIptables, setupRedirect}, series{
			setupDirect: samples(30000, 31000, 29000), setupIptables: samples(10000, 12000, 11000), setupRedirect: samples(9000, 0, 12100),
		})
	}
	values := map[string][]float64{"old": {10, 20, 40}, "new": {5, 20, 80}}
	f, err := newFigure("connect", "rate", "1/s", []string{"old", "new"}, values, compare{"new", "old"})
	if err != nil {
		t.Fatal(err)
	}
	return &report{
		Machine: machine{Kernel: "6.1.0", CPUs: 2, Model: "Some CPU", Load: 0.5, Date: "2026-01-02 03:04:05"}, Quick: true,
		Figures: []figure{f}, Points: c.points, Notes: append([]string{"a note"}, judgements(c.points)...),
		Failed: []string{"mixed, 50 connections, redirect, round 2 of 3: it broke"}, Missing: []string{"guard: no"},
	}
}

func TestReportGolden(t *testing.T) {
	var out bytes.Buffer
	exampleReport(t).print(&out)
	const file = "testdata/report.txt"
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("the report is not %s (go test ./tests/bench -update):\n%s", file, out.String())
	}
}

func TestDoses(t *testing.T) {
	for _, quick := range []bool{false, true} {
		have := map[string]bool{}
		for _, l := range relayLoads {
			for _, d := range l.doses(quick) {
				if d.load != l.name || have[d.String()] || d.conns < 1 || d.conns > maxFlows {
					t.Errorf("quick %v: dose %q", quick, d)
				}
				have[d.String()] = true
			}
		}
		if want := map[bool]int{false: 15 + 4 + 2 + 2 + 2 + 1, true: 9}[quick]; len(have) != want {
			t.Errorf("quick %v: %d doses, want %d", quick, len(have), want)
		}
	}
	if n, _ := (&env{}).pace(); n < 9 {
		t.Errorf("%d rounds a point", n)
	}
}

func TestMixedFlow(t *testing.T) {
	count := map[string]int{}
	for i := range 50 {
		size, page := mixedFlow(i)
		count[fmt.Sprint(size, page)]++
	}
	if want := map[string]int{"64 false": 30, "1024 false": 10, "16384 false": 5, "64 true": 5}; !maps.Equal(count, want) {
		t.Errorf("of 50 connections: %v", count)
	}
}

// Either a policy can ask for acceleration, or it is said that it cannot.
func TestAcceleratedPolicy(t *testing.T) {
	text, err := acceleratedPolicy()
	if err == nil {
		_, err = compile(text)
	} else if strings.Contains(err.Error(), "accelerate: unknown field") {
		err = nil
	}
	if err != nil {
		t.Error(err)
	}
}
