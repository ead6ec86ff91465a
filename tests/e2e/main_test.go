// SPDX-License-Identifier: Apache-2.0

// Package e2e has the tests of the OCI hook and the command with real podman,
// runc, HAProxy and nginx, in a machine inside the machine (see package lab).
package e2e

import (
	"context"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sidegate/tests/lab"
)

var (
	update   = flag.Bool("update", false, "write the golden files")
	commands = flag.Bool("commands", false, "print each command that the lab runs")
)

// world is what all tests share. It has no hooks and no pods of its own.
var world struct {
	*lab.Lab
	bin   string // directory of sidegate and sidegate-oci-hook
	hooks string // hooks.d that runs sidegate-oci-hook with the policies below
}

// policies are what an administrator has installed.
var policies = map[string]string{
	"mesh.yaml": `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: mesh
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
  adminCapabilities: allow # so that what holds even then is seen
`,
	"other.yaml": `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: other
spec: {}
`,
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.RunTests("e2e", func() (int, error) { return runTests(m) }))
}

func runTests(m *testing.M) (status int, err error) {
	opts := lab.Options{}
	if *commands {
		opts.Log = os.Stderr
	}
	l, err := lab.New(context.Background(), opts)
	if err != nil {
		return 1, err
	}
	defer func() {
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}()
	world.Lab, world.bin = l, filepath.Join(l.Dir, "bin")
	if err := lab.Build(world.bin); err != nil {
		return 1, err
	}
	if world.hooks, err = lab.Install(filepath.Join(l.Dir, "installed"), hookBinary(), policies); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func hookBinary() string { return filepath.Join(world.bin, "sidegate-oci-hook") }

// sidegate runs the command and returns what it printed and its exit status.
func sidegate(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return runCommand(t, exec.Command(filepath.Join(world.bin, "sidegate"), args...))
}

func runCommand(t testing.TB, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	outR, outW := tempFile(t), tempFile(t)
	cmd.Stdout, cmd.Stderr = outR, outW
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return contents(t, outR), contents(t, outW), cmd.ProcessState.ExitCode()
}

// tempFile takes the output of a command, since a pipe would be held open by
// what the command leaves running, such as a container.
func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "output")
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func contents(t testing.TB, f *os.File) string {
	t.Helper()
	_, err := f.Seek(0, io.SeekStart)
	must(t, err)
	b, err := io.ReadAll(f)
	must(t, err)
	return string(b)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
