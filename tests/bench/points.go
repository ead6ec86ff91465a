// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"slices"
)

// Setups of the data plane: how an app's data comes to the sidecar.
const (
	setupDirect      = "direct"      // not at all: the app talks to the upstream
	setupExplicit    = "explicit"    // the app is told to talk to the sidecar's port
	setupIptables    = "iptables"    // the rules of a mesh redirect it
	setupRedirect    = "redirect"    // Sidegate redirects it
	setupAccelerated = "accelerated" // and joins the two sockets
	setupUnix        = "unix"        // the app talks to the sidecar by a UNIX socket: the floor
)

var setups = []string{setupDirect, setupExplicit, setupIptables, setupRedirect, setupAccelerated, setupUnix}

// baseline is what all others are compared with.
const baseline = setupIptables

// Loads of the data plane.
const (
	loadRequest = "request/response"
	loadHop     = "request/response, sidecar answers"
	loadConnect = "connect/request/close"
	loadUp      = "bulk to upstream"
	loadDown    = "bulk from upstream"
	loadMixed   = "mixed"
	loadWrk     = "HAProxy and wrk"
)

// A point is what one load at one size and number of connections was in one setup. Rates are requests per second, or MiB per second of bulk,
// whose "request" is 1 MiB.
type point struct {
	Load             string  `json:"load"`
	Size             int     `json:"size"` // bytes of request and of answer; 0 is several
	Connections      int     `json:"connections"`
	Setup            string  `json:"setup"`
	RateMedian       float64 `json:"rate_median"`
	RateMin          float64 `json:"rate_min"`
	RateMax          float64 `json:"rate_max"`
	CPUPerRequest    float64 `json:"cpu_us_per_request"`
	RatioToIptables  float64 `json:"ratio_to_iptables"` // of rates, the median of the rounds' ratios
	ratio, cpuRatio  spread  // to the baseline, round by round
	rounds, ofRounds int     // that count
}

// A dose is a load at one size and number of connections.
type dose struct {
	load  string
	size  int
	conns int
}

func (d dose) String() string {
	if d.size == 0 {
		return fmt.Sprintf("%s, %d connections", d.load, d.conns)
	}
	return fmt.Sprintf("%s, %d bytes, %d connections", d.load, d.size, d.conns)
}

// A sample is what a round was for a setup.
type sample struct {
	rate float64 // per second
	cpu  float64 // microseconds a request
}

// failed stands for a round that was none, so that the others stay where they are.
var failed = sample{math.NaN(), math.NaN()}

// A series has the samples of each setup, one a round.
type series map[string][]sample

// A collection is all points so far, and what was not to be had.
type collection struct {
	late    func() bool // nothing more is begun
	points  []point
	failed  []string // rounds
	missing []string // points
}

// tooMany failures in a row are the end of a setup's rounds for a dose: each costs seconds.
const tooMany = 3

// measure makes n rounds of a dose, after one that warms up, in each of which the setups take turns.
func (c *collection) measure(d dose, setups []string, n int, one func(setup string, warm bool) (sample, error)) {
	if c.late() {
		c.missing = append(c.missing, fmt.Sprintf("%s: %v", d, errLate))
		return
	}
	s, row := series{}, map[string]int{}
	for round := range n + 1 {
		for _, setup := range rotated(setups, round) {
			if row[setup] >= tooMany {
				s[setup] = append(s[setup], failed)
				continue
			}
			got, err := one(setup, round == 0)
			if err == nil && !(got.rate > 0 && got.cpu > 0) {
				err = fmt.Errorf("it made %v a second with %v us", got.rate, got.cpu)
			}
			if err != nil {
				row[setup]++
				c.failed = append(c.failed, fmt.Sprintf("%s, %s, round %d of %d: %v", d, setup, round, n, err))
				got = failed
			} else {
				row[setup] = 0
			}
			if round > 0 {
				s[setup] = append(s[setup], got)
			}
		}
	}
	c.add(d, setups, s)
}

// add computes the points of a dose. Of a setup at least two of three rounds must count, and have a baseline.
func (c *collection) add(d dose, setups []string, s series) {
	for _, setup := range setups {
		p, err := newPoint(d, setup, s[setup], s[baseline])
		if err != nil {
			c.missing = append(c.missing, fmt.Sprintf("%s, %s: %v", d, setup, err))
			continue
		}
		c.points = append(c.points, p)
	}
}

func newPoint(d dose, setup string, own, base []sample) (point, error) {
	rates, cpus := unzip(own)
	baseRates, baseCPUs := unzip(base)
	ratios, cpuRatios := finite(pairs(rates, baseRates, ratio)), finite(pairs(cpus, baseCPUs, ratio))
	rates, cpus = finite(rates), finite(cpus)
	p := point{Load: d.load, Size: d.size, Connections: d.conns, Setup: setup, rounds: len(rates), ofRounds: len(own)}
	if 3*len(rates) < 2*len(own) || len(rates) == 0 {
		return p, fmt.Errorf("%d of %d rounds failed", len(own)-len(rates), len(own))
	}
	if 3*len(ratios) < 2*len(own) {
		return p, fmt.Errorf("%d of %d rounds have no %s to compare with", len(own)-len(ratios), len(own), baseline)
	}
	rate := spreadOf(rates)
	p.RateMedian, p.RateMin, p.RateMax = rate.Median, rate.Min, rate.Max
	p.CPUPerRequest = median(cpus)
	p.ratio, p.cpuRatio = spreadOf(ratios), spreadOf(cpuRatios)
	p.RatioToIptables = p.ratio.Median
	return p, nil
}

func unzip(samples []sample) (rates, cpus []float64) {
	for _, s := range samples {
		rates, cpus = append(rates, s.rate), append(cpus, s.cpu)
	}
	return rates, cpus
}

// finite leaves out what is no number.
func finite(values []float64) []float64 {
	return slices.DeleteFunc(slices.Clone(values), func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) })
}

// A target is how much better than the rules of a mesh Sidegate is meant to be.
type target struct {
	name  string
	loads []string
	least float64 // ratio of rates
}

var targets = []target{
	{"request/response through the hop", []string{loadRequest}, 2.0},
	{"HAProxy and wrk", []string{loadWrk}, 1.2},
	{"connect/request/close", []string{loadConnect}, 1.3},
	{"bulk", []string{loadUp, loadDown}, 1.0},
}

// judge says whether a setup reached the target: it must at each point.
func (t target) judge(points []point, setup string) string {
	var ratios []float64
	met := 0
	for _, p := range points {
		if p.Setup != setup || !slices.Contains(t.loads, p.Load) {
			continue
		}
		ratios = append(ratios, p.RatioToIptables)
		if p.RatioToIptables >= t.least {
			met++
		}
	}
	head := fmt.Sprintf("target: %s, at least %s of %s: %s ", t.name, times(t.least), baseline, setup)
	if len(ratios) == 0 {
		return head + "was not measured"
	}
	s := spreadOf(ratios)
	is := fmt.Sprintf("median %s, %s to %s", times(s.Median), times(s.Min), times(s.Max))
	if met == len(ratios) {
		return head + fmt.Sprintf("REACHED at all of %d points: %s", len(ratios), is)
	}
	return head + fmt.Sprintf("MISSED at %d of %d points: %s", len(ratios)-met, len(ratios), is)
}

// judgements are of all targets that have any points.
func judgements(points []point) (lines []string) {
	for _, t := range targets {
		if !slices.ContainsFunc(points, func(p point) bool { return slices.Contains(t.loads, p.Load) }) {
			continue
		}
		for _, setup := range []string{setupRedirect, setupAccelerated} {
			lines = append(lines, t.judge(points, setup))
		}
	}
	return lines
}
