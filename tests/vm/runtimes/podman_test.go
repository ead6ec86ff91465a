// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package runtimes

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// hooksDir is the one directory where podman looks for hooks by default.
const hooksDir = "/usr/share/containers/oci/hooks.d"

// TestPodman proves what podman does with hooks, and that hooks see which pod a
// container is in.
func TestPodman(t *testing.T) {
	importImage(t, "busybox")
	for _, runtime := range runtimeNames {
		t.Run(runtime, func(t *testing.T) {
			t.Run("record", func(t *testing.T) { testPodmanRecord(t, runtime) })
			t.Run("failure", func(t *testing.T) { testPodmanFailure(t, runtime) })
		})
	}
	// What podman does alone, with either runtime.
	t.Run("no annotation", func(t *testing.T) { testPodmanOther(t, "crun") })
	t.Run("pod", func(t *testing.T) { testPodmanPod(t, "crun") })
}

// A container with the annotation has the hook called, with its cgroup made.
func testPodmanRecord(t *testing.T, runtime string) {
	created := filepath.Join(t.TempDir(), "created")
	installHook(t, "record", created)
	code, shown := podman(t, "--runtime", runtime, "run", "--rm", "--network", "none",
		"--annotation", "sidegate/role=app", "localhost/busybox", "sh", "-c", "echo from inside; exit 3")
	if code != 3 || !strings.Contains(shown, "from inside") {
		t.Fatalf("got exit status %d and %q, want 3 and the program's output", code, shown)
	}
	record, state := readRecord(t, created)
	if !record.InCgroup || !record.OwnNetNS || !strings.Contains(record.Cgroup, state.ID) || state.Annotations["sidegate/role"] != "app" {
		t.Errorf("got %+v, state %s", record, record.State)
	}
	t.Logf("cgroup %s", record.Cgroup)
}

// One without it does not.
func testPodmanOther(t *testing.T, runtime string) {
	created := filepath.Join(t.TempDir(), "created")
	installHook(t, "record", created)
	code, _ := podman(t, "--runtime", runtime, "run", "--rm", "--network", "none", "localhost/busybox", "true")
	if _, err := os.Stat(created); code != 0 || err == nil {
		t.Errorf("got exit status %d, hook called: %v; want 0, false", code, err == nil)
	}
}

// A hook that fails keeps the container from starting, and says why.
func testPodmanFailure(t *testing.T, runtime string) {
	installHook(t, "fail", "because of the test")
	hookErrors := filepath.Join(t.TempDir(), "hook-errors")
	code, shown := podman(t, "--runtime", runtime, "run", "--rm", "--network", "none",
		"--annotation", "sidegate/role=app", "--annotation", "run.oci.hooks.stderr="+hookErrors,
		"localhost/busybox", "echo", "from inside")
	if code == 0 || strings.Contains(shown, "from inside\n") {
		t.Errorf("got exit status %d and %q, want a failure", code, shown)
	}
	if runtime == "crun" {
		data, err := os.ReadFile(hookErrors)
		if err != nil {
			t.Fatal(err)
		}
		shown = string(data)
	}
	if !strings.Contains(shown, "because of the test") {
		t.Errorf("the hook's message is not in %q", shown)
	}
}

// Two containers of a pod share a network namespace, and say so to the hook.
func testPodmanPod(t *testing.T, runtime string) {
	created := filepath.Join(t.TempDir(), "created")
	installHook(t, "record", created)
	// Podman 4.3 with cgroupfs gives a pod's own cgroup a device program that
	// denies all; with --share-parent=false, no container is below it.
	if code, shown := podman(t, "--runtime", runtime, "pod", "create", "--share-parent=false", "--name", "pod", "--network", "none"); code != 0 {
		t.Fatalf("make pod: %s", shown)
	}
	defer podman(t, "--runtime", runtime, "pod", "rm", "--force", "--time", "0", "pod")
	var sandbox string
	for range 2 {
		code, shown := podman(t, "--runtime", runtime, "run", "--rm", "--pod", "pod",
			"--annotation", "sidegate/role=app", "localhost/busybox", "readlink", "/proc/self/ns/net")
		if code != 0 {
			t.Fatalf("run in pod: %s", shown)
		}
		_, state := readRecord(t, created)
		id := state.Annotations["io.kubernetes.cri-o.SandboxID"]
		if id == "" || sandbox != "" && (sandbox != id) {
			t.Errorf("got annotations %q, sandbox before: %q", state.Annotations, sandbox)
		}
		sandbox = id
	}
}

// installHook makes the stand-in, with args, the createRuntime hook of every
// container that has the annotation sidegate/role, until the test ends.
func installHook(t *testing.T, args ...string) {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"version": "1.0.0",
		"hook":    newHook(append([]string{ProbePath}, args...)...),
		"when":    map[string]any{"annotations": map[string]string{"^sidegate/role$": ".*"}},
		"stages":  []string{"createRuntime"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(hooksDir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(hooksDir, "test.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
}

// importImage makes an image of busybox alone.
func importImage(t *testing.T, name string) {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(file)
	write := func(header tar.Header, data []byte) {
		header.Size = int64(len(data))
		if err := archive.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	write(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	write(tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, applet := range []string{"sh", "echo", "true", "sleep", "cat", "readlink", "nc", "wget"} {
		write(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := errors.Join(archive.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	if code, shown := podman(t, "import", file.Name(), "localhost/"+name); code != 0 {
		t.Fatalf("import image: %s", shown)
	}
}

// podman runs it to its end.
func podman(t *testing.T, args ...string) (code int, shown string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "podman", args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run podman: %v", err)
	}
	t.Logf("podman %s: exit status %d\n%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), &output)
	return cmd.ProcessState.ExitCode(), output.String()
}
