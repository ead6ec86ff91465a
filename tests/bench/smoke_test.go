// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sidegate/tests/lab"
)

func TestMain(m *testing.M) {
	becomeAnother()
	if err := lab.Supported(); err != nil {
		os.Exit(m.Run()) // what needs a node is skipped
	}
	os.Exit(lab.Main(m.Run))
}

// TestOnePoint makes one point of each load in all setups, in a world of its own. What it measures is of no interest.
func TestOnePoint(t *testing.T) {
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	dir := t.TempDir()
	if err := lab.Build(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bench.json")
	e, err := parseFlags([]string{"-quick", "-only", "^hop$", "-loads", "64 bytes, 1 conn|bulk|mixed|close", "-json", file, "-bin", dir, "-hooks", "../../contrib/oci-hooks.d"})
	if err != nil {
		t.Fatal(err)
	}
	e.stdout, e.stderr = io.Discard, io.Discard
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
	if len(r.Missing)+len(r.Failed) > 0 {
		t.Errorf("missing %q, failed %q", r.Missing, r.Failed)
	}
	have := map[string]bool{}
	for _, p := range r.Points {
		have[p.Load+" "+p.Setup] = true
		if p.RateMin <= 0 || p.RateMin > p.RateMedian || p.RateMedian > p.RateMax || p.CPUPerRequest <= 0 || p.RatioToIptables <= 0 {
			t.Errorf("point %+v", p)
		}
		if p.Setup == baseline && p.RatioToIptables != 1 {
			t.Errorf("the baseline is %v of itself", p.RatioToIptables)
		}
	}
	_, why := acceleratedPolicy()
	for _, load := range []string{loadRequest, loadHop, loadConnect, loadUp, loadDown, loadMixed} {
		for _, setup := range setups {
			want := !(setup == setupAccelerated && why != nil) && !(setup == setupDirect && load == loadHop)
			if name := fmt.Sprint(load, " ", setup); have[name] != want {
				t.Errorf("%s: %v, want %v", name, have[name], want)
			}
		}
	}
	if why != nil && !slices.ContainsFunc(r.Notes, func(n string) bool { return n == "data plane: accelerated is left out: "+why.Error() }) {
		t.Errorf("nothing says why accelerated is left out: %q", r.Notes)
	}
}
