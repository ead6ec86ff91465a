// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"
	"time"
)

func TestLatency(t *testing.T) {
	if got := latencyOf(nil); got != nil {
		t.Errorf("nothing took %+v", got)
	}
	if got, want := *latencyOf([]float64{3, 1, 2}), (latency{P50: 2, P99: 3, Longest: 3}); got != want {
		t.Errorf("latency is %+v, want %+v", got, want)
	}
}

func TestEach(t *testing.T) {
	n := 0
	a := (&order{Count: 5, For: time.Hour}).each(func() error {
		if n++; n%2 == 0 {
			return errors.New("it is even")
		}
		return nil
	})
	if a.Done != 3 || a.Failed != 2 || a.Err != "it is even" || a.Latency == nil {
		t.Errorf("answer is %+v", a)
	}
	// An order that has no time does nothing.
	if a := (&order{Count: 5}).each(func() error { return nil }); a.Done != 0 || a.Latency != nil {
		t.Errorf("without time: %+v", a)
	}
}
