// SPDX-License-Identifier: Apache-2.0

// Package observetest is for tests of programs that have metrics.
package observetest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// Documented fails the test unless the metrics of g are, row by row, the table of docs/metrics.md (file) below the heading,
// and free of lint. Rows of other headings, named by besides, may be in g too. What Go and the kernel tell of a process is
// not looked at.
func Documented(t *testing.T, g prometheus.Gatherer, file, heading string, besides ...string) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(g)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "sidegate_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	want, known := Rows(t, file, heading), []string{}
	for _, h := range besides {
		known = append(known, Rows(t, file, h)...)
	}
	var got []string
	for _, f := range families {
		if row := rowOf(f); strings.HasPrefix(f.GetName(), "sidegate_") && !slices.Contains(known, row) {
			got = append(got, row)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s has not what there is below %q. Write\n%s", file, heading, strings.Join(got, "\n"))
	}
}

// Rows are the lines of the table below a heading.
func Rows(t *testing.T, file, heading string) (rows []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("%s has no heading %q", file, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	return rows
}

// Names are the metrics of all tables, with those that a histogram is made of.
func Names(t *testing.T, file string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, " | ")
		if len(cells) != 4 || !strings.HasPrefix(line, "| `") {
			continue
		}
		name := strings.Trim(cells[0], "| `")
		names[name] = true
		if cells[1] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[name+suffix] = true
			}
		}
	}
	return names
}

func rowOf(f *dto.MetricFamily) string {
	var labels []string
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if name := "`" + l.GetName() + "`"; !slices.Contains(labels, name) {
				labels = append(labels, name)
			}
		}
	}
	slices.Sort(labels)
	return fmt.Sprintf("| `%s` | %s | %s | %s |", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, ", "), f.GetHelp())
}
