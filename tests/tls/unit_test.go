// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

const unit = "../../contrib/systemd/sidegate-tls.service"

// confined makes a program that runs another with the capabilities that the unit leaves it, so that all tests are of that.
func confined(path, program string) error {
	text, err := os.ReadFile(unit)
	if err != nil {
		return err
	}
	m := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s has no CapabilityBoundingSet", unit)
	}
	set := "-all"
	for name := range strings.FieldsSeq(string(m[1])) {
		set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --bounding-set %s --no-new-privs -- %s \"$@\"\n", set, program)
	return os.WriteFile(path, []byte(script), 0o755)
}

// The unit under systemd: it is started when the relay says so, in a cgroup of its own, and is back after a crash.
func TestUnit(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s, err := lab.StartSystemd(ctx)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	text, err := os.ReadFile(unit)
	must(t, err)
	program := filepath.Join(world.bin, "sidegate-tls")
	// In /tmp, where the program is, the unit has another.
	installed := strings.Replace(string(text), "/usr/local/bin/sidegate-tls", "/run/lab/sidegate-tls", 1)
	// Nothing of the machine's own units is there.
	installed = strings.Replace(installed, "[Service]\n", "DefaultDependencies=no\n[Service]\n", 1)
	file := filepath.Join(t.TempDir(), "sidegate-tls.service")
	must(t, os.WriteFile(file, []byte(installed), 0o644))
	run := func(argv ...string) string {
		t.Helper()
		out, err := s.Command(ctx, argv...).CombinedOutput()
		if err != nil {
			log, _ := s.Command(ctx, "systemctl", "status", "sidegate-tls").CombinedOutput()
			t.Fatalf("%s: %v: %s%s", strings.Join(argv, " "), err, out, log)
		}
		return strings.TrimSpace(string(out))
	}
	show := func(property string) string {
		t.Helper()
		return run("systemctl", "show", "--property", property, "--value", "sidegate-tls")
	}
	run("install", "-D", "-m", "755", program, "/run/lab/sidegate-tls")
	run("install", "-D", "-m", "644", file, "/run/systemd/system/sidegate-tls.service")
	run("systemctl", "daemon-reload")
	// The page that it names comes with make install.
	if out := run("systemd-analyze", "verify", "--man=no", "/run/systemd/system/sidegate-tls.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	run("systemctl", "start", "sidegate-tls") // returns when it is ready
	pid := show("MainPID")
	if got := run("cat", "/proc/"+pid+"/cgroup"); !strings.HasSuffix(got, "0::/system.slice/sidegate-tls.service") {
		t.Errorf("it is in cgroup %s", got)
	}
	if got := run("stat", "-c", "%a %F", "/run/sidegate", "/run/sidegate/tls.sock"); got != "755 directory\n600 socket" {
		t.Errorf("its directory and socket: %s", got)
	}
	// What systemd is told: a machine may let it give less.
	for property, want := range map[string]string{"LimitCORE": "0", "LimitMEMLOCK": "infinity", "LimitNOFILE": "1048576", "OOMScoreAdjust": "-900"} {
		if got := show(property); got != want {
			t.Errorf("%s is %s, want %s", property, got, want)
		}
	}
	status := run("cat", "/proc/"+pid+"/status")
	if !regexp.MustCompile(`NoNewPrivs:\s1`).MatchString(status) || regexp.MustCompile(`VmLck:\s+0 kB`).MatchString(status) {
		t.Errorf("status:\n%s", status)
	}
	run("kill", "-9", pid)
	must(t, lab.WaitFor(lab.Patience, "systemd to start it again", func() (bool, error) {
		again := show("MainPID")
		return again != pid && again != "0" && show("ActiveState") == "active", nil
	}))
	run("systemctl", "stop", "sidegate-tls")
	if got := run("stat", "-c", "%a", "/run/sidegate"); got != "755" {
		t.Errorf("its directory is gone: %s", got)
	}
	run(filepath.Join(world.bin, "sidegate"), "unload", "--force")
}
