// SPDX-License-Identifier: Apache-2.0

package vm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"sidegate/tests/vm"
)

// kernels are those to test: the newest of each series, or the releases that
// SIDEGATE_VM_KERNELS names, separated by spaces.
func kernels(t *testing.T) []vm.Kernel {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: no VM is booted")
	}
	all, err := vm.Kernels()
	if err != nil {
		t.Fatal(err)
	}
	releases := strings.Fields(os.Getenv("SIDEGATE_VM_KERNELS"))
	if len(releases) == 0 {
		return vm.Newest(all)
	}
	var chosen []vm.Kernel
	for _, release := range releases {
		kernel, err := vm.Find(all, release)
		if err != nil {
			t.Fatal(err)
		}
		chosen = append(chosen, kernel)
	}
	return chosen
}

// oneOf returns the first of the kernels, which is the oldest if none is named, or the last: whole runtimes are tried on one. With SIDEGATE_VM_ALL, as make
// kernels sets it, it returns all.
func oneOf(kernels []vm.Kernel, last bool) []vm.Kernel {
	switch {
	case os.Getenv("SIDEGATE_VM_ALL") != "":
		return kernels
	case last:
		return kernels[len(kernels)-1:]
	}
	return kernels[:1]
}

// Limits of a VM, and of one test binary in it. Both are far more than is needed
// on a quiet machine: they are there for what hangs.
const (
	bootLimit = 30 * time.Minute
	testLimit = 25 * time.Minute
)

// bootVM runs a VM that has to work, and to end within limit.
func bootVM(t *testing.T, limit time.Duration, config vm.Config) *vm.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	result, err := vm.Run(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	logTimes(t, config.Kernel, result)
	return result
}

func logTimes(t *testing.T, kernel vm.Kernel, result *vm.Result) {
	t.Helper()
	t.Logf("%s: first command after %v (kernel %v), %v in all", kernel.Release,
		result.Boot.Round(time.Millisecond), result.Kernel, result.Total.Round(time.Millisecond))
}

// TestRun proves the harness itself, on each kernel.
func TestRun(t *testing.T) {
	for _, kernel := range kernels(t) {
		t.Run(kernel.Release, func(t *testing.T) {
			t.Parallel()
			shell := func(script string) vm.Command {
				return vm.Command{Args: []string{"sh", "-c", script}, Timeout: 20 * time.Second}
			}
			commands := []struct {
				vm.Command
				code   int
				output string
			}{
				{shell("uname -r"), 0, kernel.Release + "\n"},
				{shell("echo out; echo err >&2; exit 7"), 7, "out\nerr\n"},
				{shell("kill -9 $$"), -1, ""},
				{vm.Command{Args: []string{"/no/such/program"}}, -1, ""},
				{vm.Command{Args: []string{"sleep", "60"}, Timeout: time.Second}, -1, ""},
				{vm.Command{Args: []string{"sh", "-c", "pwd; echo $A"}, Dir: "/data", Env: []string{"A=b"}}, 0, "/data\nb\n"},
				{shell("cat /data/file; readlink /data/link"), 0, "\x00\xff\r\nfile\n"},
				{shell("cat /proc/self/cgroup"), 0, "0::/vm\n"},
				{shell("ping -c 1 127.0.0.1 >/dev/null && hostname"), 0, "vm\n"},
				{shell("grep -c ' cgroup2 \\| bpf ' /proc/mounts; grep -qw memory /sys/fs/cgroup/vm/cgroup.controllers"), 0, "2\n"},
				{shell("grep -o capability,bpf /sys/kernel/security/lsm"), 0, "capability,bpf\n"},
				{shell("grep -cE '^(tls|gcm|ext4|jbd2|dummy) ' /proc/modules"), 0, "5\n"},
				{shell("dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x | md5sum"), 0, "b561f87202d04959e37588ee05cf5b10  -\n"},
			}
			config := vm.Config{
				Kernel:          kernel,
				Cmdline:         []string{"lsm=bpf"},
				Modules:         []string{"tls", "gcm", "ext4", "tcp_cubic"},
				OptionalModules: []string{"no_such_module", "dummy", "tcp_cubic"},
				Files: []vm.File{
					{Path: "/data/file", Data: []byte("\x00\xff\r\n")},
					{Path: "/data/link", Link: "file"},
				},
			}
			for _, command := range commands {
				config.Commands = append(config.Commands, command.Command)
			}
			// Any package with quick tests would do.
			binaries, err := vm.BuildTests(t.Context(), t.TempDir(), nil, "container/list")
			if err != nil {
				t.Fatal(err)
			}
			config.Files = append(config.Files, binaries[0].Files...)
			config.Commands = append(config.Commands, binaries[0].Command(20*time.Second))

			result := bootVM(t, bootLimit, config)
			vm.CheckTests(t, result.Commands[len(commands)])
			for i, want := range commands {
				got := result.Commands[i]
				if got.Code != want.code || string(got.Output) != want.output {
					t.Errorf("%q: got code %d (%s), output %q; want %d, %q",
						got.Args, got.Code, got.Err, got.Output, want.code, want.output)
				}
				if (got.Code < 0) != (got.Err != "") {
					t.Errorf("%q: code %d with error %q", got.Args, got.Code, got.Err)
				}
			}
		})
	}
}

// TestRunFails proves that what goes wrong in a kernel is not overlooked.
func TestRunFails(t *testing.T) {
	kernel := kernels(t)[0]
	for _, test := range []struct {
		name, script string
		check        func(error) bool
	}{
		{"panic", "echo c >/proc/sysrq-trigger", isKernelError("Kernel panic")},
		{"warning", "echo '<4>WARNING: CPU: 0 PID: 1 at here' >/dev/kmsg", isKernelError("WARNING: CPU: 0")},
		{"reset", "echo b >/proc/sysrq-trigger", func(err error) bool {
			return strings.Contains(err.Error(), "ended before its commands")
		}},
		{"cancel", "echo " + hanging + "; sleep 1000", func(err error) bool {
			return errors.Is(err, context.Canceled)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
			defer cancel()
			result, err := vm.Run(ctx, vm.Config{
				Kernel:   kernel,
				Commands: []vm.Command{{Args: []string{"sh", "-c", test.script}}},
				Log:      whenHanging(cancel),
			})
			if err == nil || !test.check(err) {
				t.Fatalf("got error %v", err)
			}
			if !bytes.Contains(result.Console, []byte("Linux version")) {
				t.Errorf("no kernel log in the result: %q", result.Console)
			}
		})
	}
}

// hanging is what a command says before it hangs.
const hanging = "hanging from now on"

// whenHanging is a VM's log that calls a function when it reads hanging.
type whenHanging func()

func (w whenHanging) Write(data []byte) (int, error) {
	if string(data) == hanging+"\n" {
		w()
	}
	return len(data), nil
}

func isKernelError(report string) func(error) bool {
	return func(err error) bool {
		var kernelErr *vm.KernelError
		return errors.As(err, &kernelErr) && strings.Contains(kernelErr.Error(), report)
	}
}
