// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
)

// median returns the middle of the values, or the mean of the two in the middle; NaN if there are none.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	switch n := len(s); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

// percentile returns the smallest value that at least p percent of the values do not exceed (nearest rank); NaN if there are none.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(s))))
	return s[min(max(rank, 1), len(s))-1]
}

// spread is how a set of values lies.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf returns the spread of at least one value.
func spreadOf(values []float64) spread {
	return spread{Median: median(values), Min: slices.Min(values), Max: slices.Max(values)}
}

// pairs applies f to what a and b were in the same round, so that what the machine did to a whole round cancels out. Rounds that
// only one of them has are left out.
func pairs(a, b []float64, f func(a, b float64) float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		out = append(out, f(a[i], b[i]))
	}
	return out
}

func ratio(a, b float64) float64 { return a / b }
func minus(a, b float64) float64 { return a - b }

// rotated returns the items in an order that starts one further on in each round, so that none is always the first.
func rotated[T any](items []T, round int) []T {
	if len(items) == 0 {
		return nil
	}
	k := round % len(items)
	return append(slices.Clone(items[k:]), items[:k]...)
}
