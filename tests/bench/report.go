// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// A report is all that a run found.
type report struct {
	Machine machine  `json:"machine"`
	Quick   bool     `json:"quick,omitempty"` // few rounds
	Took    float64  `json:"took_seconds"`
	Figures []figure `json:"figures"`
	Points  []point  `json:"points"` // of the data plane
	Notes   []string `json:"notes"`
	Failed  []string `json:"failed_rounds,omitempty"` // of points, and why
	Missing []string `json:"missing,omitempty"`       // measurements that could not be made, and why
}

// A figure is one quantity, measured on several sides in the same rounds.
type figure struct {
	Measurement string  `json:"measurement"` // what -only selects
	Name        string  `json:"name"`
	Unit        string  `json:"unit"`
	Sides       []sided `json:"sides"`
	Ratios      []rated `json:"ratios"`
	Differences []rated `json:"differences,omitempty"`
}

// sided has the values of one side, one a round.
type sided struct {
	Side   string    `json:"side"`
	Values []float64 `json:"values"`
	spread
	P99 float64 `json:"p99"`
}

// rated compares two sides round by round.
type rated struct {
	Of string `json:"of"`
	To string `json:"to"`
	spread
}

// compare says which ratios a figure has: of and to are sides.
type compare struct{ of, to string }

// newFigure computes a figure from the values of each side, in the order of sides. A side without a value is an error.
func newFigure(measurement, name, unit string, sides []string, values map[string][]float64, ratios ...compare) (figure, error) {
	f := figure{Measurement: measurement, Name: name, Unit: unit}
	for _, s := range sides {
		v := values[s]
		if len(v) == 0 {
			return f, fmt.Errorf("%s: no value of %s", name, s)
		}
		for _, x := range v {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return f, fmt.Errorf("%s: %s has the value %v", name, s, x)
			}
		}
		f.Sides = append(f.Sides, sided{Side: s, Values: v, spread: spreadOf(v), P99: percentile(v, 99)})
	}
	for _, c := range ratios {
		r := pairs(values[c.of], values[c.to], ratio)
		for _, x := range r {
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return f, fmt.Errorf("%s: %s/%s is no number", name, c.of, c.to)
			}
		}
		f.Ratios = append(f.Ratios, rated{c.of, c.to, spreadOf(r)})
	}
	return f, nil
}

// difference adds how much larger one side was than another.
func (f *figure) difference(values map[string][]float64, c compare) {
	f.Differences = append(f.Differences, rated{c.of, c.to, spreadOf(pairs(values[c.of], values[c.to], minus))})
}

// print writes the report for people.
func (r *report) print(w io.Writer) {
	fmt.Fprintln(w, r.Machine)
	if r.Quick {
		fmt.Fprintln(w, "quick: too few rounds for more than a rough look")
	}
	last := ""
	for _, f := range r.Figures {
		if f.Measurement != last {
			fmt.Fprintf(w, "\n%s\n", f.Measurement)
			last = f.Measurement
		}
		f.print(w)
	}
	printPoints(w, r.Points)
	if len(r.Notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "- %s\n", n)
	}
	for _, f := range r.Failed {
		fmt.Fprintf(w, "FAILED ROUND, not counted: %s\n", f)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "NOT MEASURED: %s\n", m)
	}
}

func (f *figure) print(w io.Writer) {
	rows := [][]string{{f.Name + ", " + f.Unit, "n", "p50", "p99", "min", "max"}}
	for _, s := range f.Sides {
		rows = append(rows, []string{"  " + s.Side, fmt.Sprint(len(s.Values)), number(s.Median), number(s.P99), number(s.Min), number(s.Max)})
	}
	for _, d := range f.Differences {
		rows = append(rows, []string{fmt.Sprintf("  %s - %s, paired", d.Of, d.To), "", number(d.Median), "", number(d.Min), number(d.Max)})
	}
	for _, r := range f.Ratios {
		rows = append(rows, []string{fmt.Sprintf("  %s / %s", r.Of, r.To), "", times(r.Median), "", times(r.Min), times(r.Max)})
	}
	width := 58
	for _, row := range rows {
		width = max(width, utf8.RuneCountInString(row[0]))
	}
	for _, row := range rows {
		name := row[0] + strings.Repeat(" ", width-utf8.RuneCountInString(row[0]))
		line := "  " + name
		for i, cell := range row[1:] {
			line += fmt.Sprintf("%*s", []int{4, 9, 9, 9, 9}[i], cell)
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

// printPoints writes a table for each load.
func printPoints(w io.Writer, points []point) {
	last := dose{}
	for _, p := range points {
		if p.Load != last.load {
			unit := "1/s"
			if p.Load == loadUp || p.Load == loadDown {
				unit = "MiB/s"
			}
			fmt.Fprintf(w, "\n%s\n", p.Load)
			fmt.Fprintf(w, "  %6s %5s  %-11s %2s %9s %9s %9s  %-21s %8s  %s\n", "bytes", "conns", "setup", "n", unit, "min", "max", "/ "+baseline, "CPU us", "/ "+baseline)
		} else if p.Size != last.size || p.Connections != last.conns {
			fmt.Fprintln(w)
		}
		last = dose{p.Load, p.Size, p.Connections}
		size := fmt.Sprint(p.Size)
		if p.Size == 0 {
			size = "mixed"
		}
		fmt.Fprintf(w, "  %6s %5d  %-11s %2d %9s %9s %9s  %-6s %-14s %8s  %s\n", strings.Replace(size, "1048576", "1 MiB", 1), p.Connections, p.Setup, p.rounds,
			number(p.RateMedian), number(p.RateMin), number(p.RateMax), times(p.RatioToIptables), fmt.Sprintf("(%.2f-%.2f)", p.ratio.Min, p.ratio.Max),
			number(p.CPUPerRequest), times(p.cpuRatio.Median))
	}
}

// number prints three significant digits or so.
func number(x float64) string {
	switch a := math.Abs(x); {
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}

func times(x float64) string { return fmt.Sprintf("x%.2f", x) }
