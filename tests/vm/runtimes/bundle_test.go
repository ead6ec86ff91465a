// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package runtimes

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bundle is an OCI bundle with busybox for a root.
type bundle struct {
	dir string
	id  string
	// hookErrors is the file where crun puts what hooks write to stderr.
	hookErrors string
}

// hook is one entry of a kind of OCI hooks.
type hook struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"`
}

// newHook is a hook with these arguments, the program first.
func newHook(args ...string) hook { return hook{args[0], args} }

// newBundle makes a bundle whose container has namespaces of its own and runs
// script in busybox's shell, after it has left the file Started.
func newBundle(t *testing.T, id, script string, annotations map[string]string, hooks map[string][]hook) *bundle {
	t.Helper()
	b := &bundle{dir: t.TempDir(), id: id}
	b.hookErrors = filepath.Join(b.dir, "hook-errors")

	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(b.dir, "rootfs", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(b.dir, "rootfs/bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}

	type object = map[string]any
	all := map[string]string{"run.oci.hooks.stderr": b.hookErrors}
	for key, value := range annotations {
		all[key] = value
	}
	config := object{
		"ociVersion":  "1.0.2",
		"hostname":    id,
		"annotations": all,
		"hooks":       hooks,
		"root":        object{"path": "rootfs"},
		"process": object{
			"terminal": false,
			"cwd":      "/",
			"user":     object{"uid": 0, "gid": 0},
			"env":      []string{"PATH=/bin"},
			"args":     []string{"/bin/busybox", "sh", "-c", "echo >/" + Started + "; " + script},
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "ro"}},
		},
		"linux": object{
			"cgroupsPath": "/sidegate-test/" + id,
			"namespaces": []object{
				{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
			},
		},
	}
	data, err := json.MarshalIndent(config, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

// run runs the container to its end and returns its exit status, and all that
// the runtime shows somebody who looks for the reason.
func (b *bundle) run(t *testing.T, runtime string) (code int, shown string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), runtime, "run", "--bundle", b.dir, b.id)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", runtime, err)
	}
	hookErrors, err := os.ReadFile(b.hookErrors)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	t.Logf("%s: exit status %d, output:\n%shook errors:\n%s", runtime, cmd.ProcessState.ExitCode(), &output, hookErrors)
	return cmd.ProcessState.ExitCode(), output.String() + string(hookErrors)
}

// started says whether the container's program ran at all.
func (b *bundle) started() bool {
	_, err := os.Stat(filepath.Join(b.dir, "rootfs", Started))
	return err == nil
}

func readRecord(t *testing.T, file string) (Record, State) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var record Record
	if err := json.Unmarshal(data, &record); err != nil {
		t.Fatal(err)
	}
	var state State
	if err := json.Unmarshal(record.State, &state); err != nil {
		t.Fatal(err)
	}
	return record, state
}
