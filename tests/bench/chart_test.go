// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		top  float64
		want []float64
	}{
		{3.4, []float64{0, 1, 2, 3, 4}},
		{1, []float64{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1}},
		{74, []float64{0, 20, 40, 60, 80}},
		{0, []float64{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1}},
	} {
		if got := ticks(c.top, 5); !slices.Equal(got, c.want) {
			t.Errorf("ticks up to %v are %v", c.top, got)
		}
	}
}

func TestCharts(t *testing.T) {
	r := exampleReport(t)
	r.Quick = false
	all := charts(r)
	if len(all) != 3 {
		t.Fatalf("%d charts", len(all))
	}
	for name, svg := range all {
		d := xml.NewDecoder(bytes.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for _, want := range []string{"<svg ", ">redirect<", "Some CPU", pens[setupRedirect].colour} {
			if !strings.Contains(string(svg), want) {
				t.Errorf("%s lacks %s", name, want)
			}
		}
		// A setup that was not measured is not there, and nothing has no place.
		for _, no := range []string{">accelerated<", "NaN", "Inf"} {
			if strings.Contains(string(svg), no) {
				t.Errorf("%s has %s", name, no)
			}
		}
	}
	for _, s := range setups {
		if pens[s].mark == "" {
			t.Errorf("%s has no mark", s)
		}
	}
}

func TestDrawAll(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "bench.json")
	if err := drawAll(from, dir); err == nil {
		t.Error("nothing was drawn")
	}
	r := exampleReport(t)
	for _, c := range []struct {
		quick  bool
		points []point
		files  int
	}{{true, r.Points, 0}, {false, nil, 0}, {false, r.Points, 3}} {
		r.Quick, r.Points = c.quick, c.points
		if err := writeJSON(from, r); err != nil {
			t.Fatal(err)
		}
		err := drawAll(from, filepath.Join(dir, "docs"))
		files, _ := os.ReadDir(filepath.Join(dir, "docs"))
		if len(files) != c.files || (err == nil) != (c.files > 0) {
			t.Errorf("quick %v, %d points: %d files, %v", c.quick, len(c.points), len(files), err)
		}
	}
}
