// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func TestFigure(t *testing.T) {
	values := map[string][]float64{"old": {10, 20, 40}, "new": {5, 20, 80}}
	f, err := newFigure("connect", "rate", "1/s", []string{"old", "new"}, values, compare{"new", "old"})
	if err != nil {
		t.Fatal(err)
	}
	f.difference(values, compare{"new", "old"})
	if got, want := f.Ratios[0].spread, (spread{Median: 1, Min: 0.5, Max: 2}); got != want {
		t.Errorf("ratio is %+v, want %+v", got, want)
	}
	if got, want := f.Differences[0].spread, (spread{Median: 0, Min: -5, Max: 40}); got != want {
		t.Errorf("difference is %+v, want %+v", got, want)
	}
	var out bytes.Buffer
	(&report{Figures: []figure{f}, Missing: []string{"guard: no"}}).print(&out)
	for _, want := range []string{"rate, 1/s", " 3     20.0     40.0", "new / old", "x1.00", "x0.50", "x2.00", "new - old, paired", "-5.00", "NOT MEASURED: guard: no"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("report lacks %q:\n%s", want, out.String())
		}
	}
	if _, err := json.Marshal(f); err != nil {
		t.Error(err)
	}
}

func TestFigureThatIsNone(t *testing.T) {
	for name, values := range map[string]map[string][]float64{
		"a side without values": {"a": {1}},
		"not a number":          {"a": {1}, "b": {math.NaN()}},
		"division by nothing":   {"a": {1}, "b": {0}},
	} {
		if f, err := newFigure("m", "n", "u", []string{"a", "b"}, values, compare{"a", "b"}); err == nil {
			t.Errorf("%s: no error, and %+v", name, f)
		}
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{12345.6: "12346", 99.94: "99.9", 9.876: "9.88", 0.004: "0.00", -12.3: "-12.3"} {
		if got := number(x); got != want {
			t.Errorf("%v is printed as %s, want %s", x, got, want)
		}
	}
}
