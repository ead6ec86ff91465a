// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package runtimes

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// runtimeNames are the low-level runtimes to test.
var runtimeNames = []string{"crun", "runc"}

// TestHookSemantics proves on real runtimes what Sidegate relies on.
func TestHookSemantics(t *testing.T) {
	for _, runtime := range runtimeNames {
		t.Run(runtime, func(t *testing.T) {
			t.Run("order", func(t *testing.T) { testHookOrder(t, runtime) })
			t.Run("failure", func(t *testing.T) { testHookFailure(t, runtime) })
			t.Run("missing", func(t *testing.T) { testHookMissing(t, runtime) })
			t.Run("poststop failure", func(t *testing.T) { testPoststopFailure(t, runtime) })
		})
	}
}

// createRuntime comes when the cgroup has the init process in it and the
// program has not begun; poststop comes after its end.
func testHookOrder(t *testing.T, runtime string) {
	dir := t.TempDir()
	created, stopped := filepath.Join(dir, "created"), filepath.Join(dir, "stopped")
	b := newBundle(t, "order", "echo from inside; exit 3", map[string]string{"sidegate/role": "app"}, map[string][]hook{
		"createRuntime": {newHook(ProbePath, "record", created, "an argument")},
		"poststop":      {newHook(ProbePath, "record", stopped)},
	})
	code, shown := b.run(t, runtime)
	if code != 3 || !strings.Contains(shown, "from inside\n") {
		t.Fatalf("got exit status %d and %q, want 3 and the program's output", code, shown)
	}

	record, state := readRecord(t, created)
	if want := []string{ProbePath, "record", created, "an argument"}; !slices.Equal(record.Args, want) {
		t.Errorf("createRuntime: got arguments %q, want %q", record.Args, want)
	}
	if state.ID != b.id || state.Bundle != b.dir || state.Pid == 0 || state.Annotations["sidegate/role"] != "app" {
		t.Errorf("createRuntime: got state %s", record.State)
	}
	// crun 1.8.1 says "created", where the specification says "creating".
	if state.Status != "creating" && state.Status != "created" {
		t.Errorf("createRuntime: got status %q", state.Status)
	}
	if want := "/sidegate-test/" + b.id; record.Cgroup != want || !record.InCgroup {
		t.Errorf("createRuntime: init is in cgroup %q (listed there: %v), want %q", record.Cgroup, record.InCgroup, want)
	}
	if !record.OwnNetNS {
		t.Error("createRuntime: init is in the network namespace of the host")
	}
	if record.ProgramStarted {
		t.Error("createRuntime: the program had started")
	}

	record, state = readRecord(t, stopped)
	if state.ID != b.id || state.Status != "stopped" || !record.ProgramStarted {
		t.Errorf("poststop: got state %s, program started: %v", record.State, record.ProgramStarted)
	}
	if gone(t, "/sys/fs/cgroup/sidegate-test/"+b.id); t.Failed() {
		t.Logf("poststop saw cgroup %q", record.Cgroup)
	}
}

// A createRuntime hook that fails keeps the program from starting, and its
// reason is shown.
func testHookFailure(t *testing.T, runtime string) {
	stopped := filepath.Join(t.TempDir(), "stopped")
	b := newBundle(t, "failure", "exit 0", nil, map[string][]hook{
		"createRuntime": {newHook(ProbePath, "fail", "because of the test")},
		"poststop":      {newHook(ProbePath, "record", stopped)},
	})
	code, shown := b.run(t, runtime)
	if code == 0 || b.started() {
		t.Errorf("got exit status %d, program started: %v; want a failure", code, b.started())
	}
	if !strings.Contains(shown, "hookprobe: because of the test") {
		t.Errorf("the hook's message is not in %q", shown)
	}
	_, err := os.Stat(stopped)
	t.Logf("poststop was called after createRuntime failed: %v", err == nil)
	gone(t, "/sys/fs/cgroup/sidegate-test/"+b.id)
}

// A hook whose program is missing is a failure, at this level.
func testHookMissing(t *testing.T, runtime string) {
	b := newBundle(t, "missing", "exit 0", nil, map[string][]hook{
		"createRuntime": {newHook("/no/such/hook")},
	})
	if code, _ := b.run(t, runtime); code == 0 || b.started() {
		t.Errorf("got exit status %d, program started: %v; want a failure", code, b.started())
	}
}

// A poststop hook that fails changes nothing for the container.
func testPoststopFailure(t *testing.T, runtime string) {
	b := newBundle(t, "poststop", "exit 4", nil, map[string][]hook{
		"poststop": {newHook(ProbePath, "fail", "too late")},
	})
	if code, _ := b.run(t, runtime); code != 4 || !b.started() {
		t.Errorf("got exit status %d, program started: %v; want 4, true", code, b.started())
	}
	gone(t, "/sys/fs/cgroup/sidegate-test/"+b.id)
}

// hookCase is one container with the real hook.
type hookCase struct {
	name string
	// args are those of the hook, at createRuntime and at poststop, without
	// the program.
	createArgs, stopArgs []string
	annotations          map[string]string
	// script is the container's program; code is its exit status, or -1 if
	// the container must not start, for a reason that has shown in it.
	script string
	code   int
	shown  string
	// check, if any, looks at what is left when the container is gone.
	check func(t *testing.T, b *bundle)
}

// hookCases are those of sidegate-oci-hook.
var hookCases []hookCase

// TestSidegateHook runs hookCases under each runtime.
func TestSidegateHook(t *testing.T) {
	for _, runtime := range runtimeNames {
		for _, test := range hookCases {
			t.Run(runtime+"/"+test.name, func(t *testing.T) {
				if _, err := os.Stat(HookPath); err != nil {
					t.Fatal(err)
				}
				b := newBundle(t, "real", test.script, maps.Clone(test.annotations), map[string][]hook{
					"createRuntime": {newHook(append([]string{HookPath}, test.createArgs...)...)},
					"poststop":      {newHook(append([]string{HookPath}, test.stopArgs...)...)},
				})
				code, shown := b.run(t, runtime)
				if want := test.code >= 0; b.started() != want || want && code != test.code || !want && code == 0 {
					t.Errorf("got exit status %d, program started: %v; want %d, %v", code, b.started(), test.code, want)
				}
				if !strings.Contains(shown, test.shown) {
					t.Errorf("%q is not in %q", test.shown, shown)
				}
				gone(t, "/sys/fs/cgroup/sidegate-test/"+b.id)
				if test.check != nil {
					test.check(t, b)
				}
			})
		}
	}
}

// gone fails the test if a file or directory is still there.
func gone(t *testing.T, name string) {
	t.Helper()
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", name, err)
	}
}
