// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{7}, 7},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{1, 1, 1, 100}, 1},
	} {
		in := slices.Clone(c.in)
		if got := median(in); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.in, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("median sorted its input %v", c.in)
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("median of nothing is a number")
	}
}

func TestPercentile(t *testing.T) {
	var hundred, fifty []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	fifty = hundred[50:] // 50 ... 1
	for _, c := range []struct {
		in   []float64
		p    float64
		want float64
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{fifty, 99, 50}, // the worst of fifty
		{fifty, 98, 49},
		{[]float64{5}, 99, 5},
		{[]float64{5}, 1, 5},
	} {
		if got := percentile(c.in, c.p); got != c.want {
			t.Errorf("p%v of %d values is %v, want %v", c.p, len(c.in), got, c.want)
		}
	}
	if !math.IsNaN(percentile(nil, 99)) {
		t.Error("percentile of nothing is a number")
	}
}

func TestPairs(t *testing.T) {
	a, b := []float64{2, 6, 9}, []float64{1, 3, 3, 7}
	if got, want := pairs(a, b, ratio), []float64{2, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("ratios are %v, want %v", got, want)
	}
	if got, want := pairs(a, b, minus), []float64{1, 3, 6}; !slices.Equal(got, want) {
		t.Errorf("differences are %v, want %v", got, want)
	}
	if got := pairs(nil, b, ratio); len(got) != 0 {
		t.Errorf("ratios of nothing are %v", got)
	}
	if got, want := spreadOf([]float64{2, 9, 4}), (spread{Median: 4, Min: 2, Max: 9}); got != want {
		t.Errorf("spread is %+v, want %+v", got, want)
	}
}

func TestRotated(t *testing.T) {
	in := []string{"a", "b", "c"}
	var firsts []string
	for round := range 4 {
		r := rotated(in, round)
		if len(r) != len(in) {
			t.Fatalf("round %d has %v", round, r)
		}
		firsts = append(firsts, r[0])
	}
	if want := []string{"a", "b", "c", "a"}; !slices.Equal(firsts, want) {
		t.Errorf("rounds start with %v, want %v", firsts, want)
	}
	if rotated([]int(nil), 3) != nil {
		t.Error("nothing was rotated into something")
	}
}
