// SPDX-License-Identifier: Apache-2.0

// Package vm boots Debian's stock kernels in QEMU and runs programs in them,
// to prove Sidegate on kernels other than the one of the machine at hand.
//
// A VM is an initramfs and nothing else: no disk, no network device, no shared
// directory. It has busybox, the files it is given, all of cgroup v2, a BPF
// file system, and a root that container runtimes can pivot away from. PID 1
// is a Go program (internal/guest) that runs the commands and reports what
// they wrote and how they ended on a second serial port; the first one is the
// kernel's log, which is searched for reports of kernel bugs.
//
// Neither root nor KVM is needed; /dev/kvm is used where it can be opened.
package vm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/vm/internal/wire"
)

// Environment is that of every command, before its own Env.
var Environment = []string{
	"PATH=" + wire.Path,
	"HOME=/root",
	"TMPDIR=/tmp",
	"SIDEGATE_VM=1",
}

// Config describes one VM, and what to run in it. Run changes nothing in it.
type Config struct {
	Kernel Kernel
	// Cmdline is added to the kernel's command line, e.g. "lsm=landlock,bpf".
	Cmdline []string
	// Modules are kernel modules to load at boot, by name and in this order.
	// What they depend on comes with them, except algorithms that they ask
	// the crypto API for at run time: name those too, and before them.
	Modules []string
	// OptionalModules are loaded after Modules, those of them that the kernel
	// has.
	OptionalModules []string
	// Files are put into the root. A later one takes the place of an earlier
	// one, and of a busybox applet.
	Files []File
	// Commands run one after the other, as root, also after one has failed.
	Commands []Command
	// MemoryMiB is 2048 if zero; the files live in it.
	MemoryMiB int
	// CPUs is 1 if zero: two that are emulated mostly wait for each other.
	CPUs int
	// Log, if any, is written what the kernel and the commands write, as it
	// comes. Calls are serialized.
	Log io.Writer
}

// Command is one program to run in the guest.
type Command struct {
	// Args is the program, looked up in PATH if it has no slash, and its
	// arguments.
	Args []string
	// Env is added to Environment.
	Env []string
	// Dir is the working directory, / if empty.
	Dir string
	// Timeout, if not zero, kills the program (not its children).
	Timeout time.Duration
}

// Result is what came of a VM that was started.
type Result struct {
	// Commands are in the order of Config.Commands; those that did not end,
	// because the VM did, have Code -1 and Err set.
	Commands []CommandResult
	// Console is the kernel's log.
	Console []byte
	// Boot is the time from the start of QEMU to the first command.
	Boot time.Duration
	// Kernel is the part of Boot before PID 1 started, on the guest's clock.
	Kernel time.Duration
	// Total is the time from the start of QEMU to its end.
	Total time.Duration
}

// CommandResult is how one command ended.
type CommandResult struct {
	Command
	// Output is stdout and stderr.
	Output []byte
	// Code is the exit status, or -1 if the program was not started, was
	// killed, or did not end before the VM did; Err then says which.
	Code int
	Err  string
	// Elapsed is on the guest's clock.
	Elapsed time.Duration
}

// KernelError says that the kernel reported bugs of its own: a panic, an oops,
// a BUG, a WARNING, or what a sanitizer found.
type KernelError struct {
	// Reports are the lines of the kernel's log that say so.
	Reports []string
}

func (e *KernelError) Error() string {
	return "kernel reported: " + strings.Join(e.Reports, "; ")
}

// Run builds the VM, boots it and waits until it has run its commands and
// ended. The deadline of ctx kills QEMU.
//
// The error is about the VM: it could not be built, or did not get to its end,
// or its kernel reported a bug (*KernelError). A command that fails is no
// error. The result is nil only if QEMU was never started.
//
// A fault of the emulator's starts the VM again, from its beginning.
func Run(ctx context.Context, config Config) (*Result, error) {
	dir, err := os.MkdirTemp("", "sidegate-vm-")
	if err != nil {
		return nil, fmt.Errorf("make directory for the VM: %w", err)
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "initramfs")
	if err := buildImage(ctx, config, dir, image); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		result, err := boot(ctx, config, image)
		if try == bootTries || !emulatorsFault(err) {
			return result, err
		}
		if config.Log != nil {
			fmt.Fprintf(config.Log, "vm: once more: %v\n", err)
		}
	}
}

const bootTries = 3

// emulatorsFault says whether a kernel met the breakpoint that it puts into its
// own code while it changes that: QEMU's emulation of two processors sometimes
// shows it to the other one after it is gone. No code of ours makes this oops.
func emulatorsFault(err error) bool {
	var kernel *KernelError
	return errors.As(err, &kernel) && slices.ContainsFunc(kernel.Reports, func(r string) bool { return strings.Contains(r, "Oops: int3") })
}

// buildImage writes the initramfs, uncompressed: without KVM, the guest takes
// longer to decompress than the host to copy.
func buildImage(ctx context.Context, config Config, dir, image string) error {
	guest := filepath.Join(dir, "guest")
	if err := GoBuild(ctx, guest, "sidegate/tests/vm/internal/guest"); err != nil {
		return err
	}
	modules, err := config.Kernel.modules(config.Modules, config.OptionalModules)
	if err != nil {
		return err
	}
	job := wire.Job{Hostname: "vm"}
	for _, module := range modules {
		job.Modules = append(job.Modules, module.Path)
	}
	for _, command := range config.Commands {
		if len(command.Args) == 0 {
			return errors.New("build the VM: a command has no program")
		}
		if command.Dir == "" {
			command.Dir = "/"
		}
		job.Commands = append(job.Commands, wire.Command{
			Args:    command.Args,
			Env:     slices.Concat(Environment, command.Env),
			Dir:     command.Dir,
			Timeout: command.Timeout,
		})
	}
	encoded, err := json.Marshal(job)
	if err != nil {
		return fmt.Errorf("encode job: %w", err)
	}
	busybox, err := busyboxFiles()
	if err != nil {
		return err
	}
	files := slices.Concat(baseFiles(), busybox, modules, config.Files, []File{
		{Path: wire.GuestPath, Host: guest},
		{Path: wire.JobPath, Data: encoded},
		{Path: "/init", Link: wire.GuestPath},
	})
	out, err := os.Create(image)
	if err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return errors.Join(writeInitramfs(out, files), out.Close())
}

// machine is what QEMU emulates, and how.
func machine(config Config) []string {
	accelerator, cpu := "tcg,thread=multi", "max"
	if kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		kvm.Close()
		accelerator, cpu = "kvm", "host"
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", accelerator, "-cpu", cpu,
		"-smp", strconv.Itoa(cmp.Or(config.CPUs, 1)),
		"-m", strconv.Itoa(cmp.Or(config.MemoryMiB, 2048)),
	}
}

// cmdline is the kernel's. A crash ends the VM; the watchdogs are off, since
// on a busy machine an emulated CPU may well stand still for their time. Nothing
// waits for a grace period of RCU longer than it must.
func cmdline(config Config) string {
	return strings.Join(append([]string{
		"console=ttyS0", "rcupdate.rcu_expedited=1", "panic=-1", "oops=panic", "nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1",
	}, config.Cmdline...), " ")
}

func boot(ctx context.Context, config Config, image string) (*Result, error) {
	events, eventsWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer events.Close()

	log := &lockedWriter{out: config.Log}
	console := &bytes.Buffer{}
	complaints := &bytes.Buffer{}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", slices.Concat(machine(config), []string{
		"-kernel", filepath.Join(config.Kernel.Dir, "vmlinuz"),
		"-initrd", image,
		"-append", cmdline(config),
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
		// The first extra file of a child is its descriptor 3.
		"-chardev", "file,id=events,path=/dev/fd/3",
		"-serial", "chardev:events",
	})...)
	qemu.Stdout = io.MultiWriter(console, log)
	qemu.Stderr = complaints
	qemu.ExtraFiles = []*os.File{eventsWriter}

	start := time.Now()
	err = qemu.Start()
	eventsWriter.Close()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("start QEMU: %w: run 'make deps' (Debian package: qemu-system-x86)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	result := &Result{}
	for _, command := range config.Commands {
		result.Commands = append(result.Commands, CommandResult{Command: command, Code: -1, Err: "not ended"})
	}
	// The stream ends with QEMU, whose only writer it is.
	followErr := result.follow(events, log, start)
	waitErr := qemu.Wait()
	result.Total = time.Since(start)
	result.Console = console.Bytes()

	var errs []error
	if reports := kernelReports(result.Console); len(reports) > 0 {
		errs = append(errs, &KernelError{reports})
	}
	switch {
	case ctx.Err() != nil:
		errs = append(errs, fmt.Errorf("wait for the VM: %w after %v", ctx.Err(), result.Total.Round(time.Second)))
	case waitErr != nil:
		errs = append(errs, fmt.Errorf("run QEMU: %w: %s", waitErr, bytes.TrimSpace(complaints.Bytes())))
	case followErr != nil:
		errs = append(errs, followErr)
	}
	if len(errs) > 0 {
		errs = append(errs, fmt.Errorf("end of the kernel's log:\n%s", tail(result.Console, 30)))
	}
	return result, errors.Join(errs...)
}

// follow reads the guest's events until their end. It fails if that comes
// before the guest said that it is done.
func (r *Result) follow(events io.Reader, log io.Writer, start time.Time) error {
	lines := bufio.NewReader(events)
	done := false
	var errs []error
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var event wire.Event
		// The guest's crash may cut a line short.
		if err := json.Unmarshal(line, &event); err != nil || event.Command < 0 || event.Command >= max(1, len(r.Commands)) {
			errs = append(errs, fmt.Errorf("read event %q: %w", line, err))
			continue
		}
		switch event.Kind {
		case wire.Boot:
			r.Boot, r.Kernel = time.Since(start), event.Uptime
		case wire.Output:
			command := &r.Commands[event.Command]
			command.Output = append(command.Output, event.Data...)
			// The log is for reading along: the result has it all.
			_, _ = log.Write(event.Data)
		case wire.Exit:
			command := &r.Commands[event.Command]
			command.Code, command.Err, command.Elapsed = event.Code, event.Err, event.Elapsed
		case wire.Fatal:
			errs = append(errs, fmt.Errorf("run the guest: %s", event.Err))
		case wire.Done:
			done = true
		}
	}
	if !done && len(errs) == 0 {
		errs = append(errs, errors.New("run the guest: the VM ended before its commands did"))
	}
	return errors.Join(errs...)
}

// kernelReport matches what a kernel says of its own bugs, at the beginning of
// a message: what programs write to the log has their name there.
var kernelReport = regexp.MustCompile(`(?m)^(?:\[ *\d+\.\d+\](?:\[[^]]*\])? *)?(?:` + strings.Join([]string{
	`Kernel panic - not syncing`,
	`Oops:`,
	`BUG:`,
	`WARNING:`,
	`general protection fault`,
	`kernel BUG at`,
	`KASAN:`,
	`KCSAN:`,
	`UBSAN:`,
	`refcount_t:`,
	`unregister_netdevice: waiting for`,
	`INFO: task .* blocked for more than`,
	`======================================================`,
	`invalid opcode:`,
	`double fault:`,
	`stack segment:`,
	`traps: PANIC`,
}, "|") + `).*`)

func kernelReports(console []byte) []string {
	var reports []string
	for _, line := range kernelReport.FindAll(console, -1) {
		reports = append(reports, strings.TrimSpace(string(line)))
	}
	return reports
}

// GoBuild builds a package main of this module into the static program out.
func GoBuild(ctx context.Context, out, pkg string) error {
	return goTool(ctx, "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
}

// goTool runs a go command that makes static binaries for the guest.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run go %s: %w:\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}

// lockedWriter makes one writer out of several; without out it is none.
type lockedWriter struct {
	mu  sync.Mutex
	out io.Writer
}

func (w *lockedWriter) Write(data []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out != nil {
		// A log that cannot be written must not end the VM.
		_, _ = w.out.Write(data)
	}
	return len(data), nil
}

// tail is the last n lines.
func tail(text []byte, n int) []byte {
	lines := bytes.SplitAfter(bytes.TrimRight(text, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], nil)
}
