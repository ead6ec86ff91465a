// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

// What runs under systemd is in systemd's machine, can ask it for a cgroup, and is gone with it.
func TestSystemd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	before := traces(t)
	s, err := lab.StartSystemd(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range []struct{ argv, want string }{
		{"cat /proc/1/comm", "systemd"},
		{"cat /proc/self/cgroup", "0::/node"},
		{"systemd-run --quiet --scope --slice lab-a --unit lab-b cat /proc/self/cgroup", "0::/lab.slice/lab-a.slice/lab-b.scope"},
		{"systemd-run --quiet --property DefaultDependencies=no --unit lab-c sleep 1000", ""},
	} {
		out, err := s.Command(ctx, strings.Fields(one.argv)...).CombinedOutput()
		// Controllers of cgroup v1 have lines of their own.
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil || lines[len(lines)-1] != one.want {
			t.Errorf("%s: %q, %v", one.argv, out, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantTraces(t, before)
}
