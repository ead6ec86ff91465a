// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command guest is PID 1 of a test VM. It makes the initramfs into a root that
// container runtimes can pivot away from, mounts what a system has mounted,
// and starts itself again as a runner of the job's commands, while it reaps
// what they leave behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/vm/internal/wire"
)

// workGroup is the cgroup of all commands. As on a real system, nothing but
// PID 1 lives in the root.
const workGroup = "/sys/fs/cgroup/vm"

func main() {
	if os.Getpid() == 1 {
		if err := initialize(); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			report(wire.Event{Kind: wire.Fatal, Err: err.Error()})
		}
		// The VM runs with -no-reboot: this ends it, with or without ACPI.
		unix.Sync()
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
			fmt.Fprintln(os.Stderr, "guest: restart:", err)
		}
		select {}
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		report(wire.Event{Kind: wire.Fatal, Err: err.Error()})
		os.Exit(1)
	}
}

// report is for those that have no stream yet, or no longer.
func report(event wire.Event) {
	stream, err := openStream()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return
	}
	if err := errors.Join(stream.send(event), stream.Close()); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
}

// initialize is the work of PID 1.
func initialize() error {
	start := time.Now()
	if err := leaveRootfs(); err != nil {
		return err
	}
	if err := mountAll(); err != nil {
		return err
	}
	up, err := uptime()
	if err != nil {
		return err
	}
	job, err := readJob()
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(job.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := enableControllers(); err != nil {
		return err
	}
	for _, module := range job.Modules {
		if err := loadModule(module); err != nil {
			return err
		}
	}
	if err := os.Mkdir(workGroup, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	group, err := os.Open(workGroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer group.Close()
	report(wire.Event{Kind: wire.Boot, Uptime: up, Setup: time.Since(start)})

	runner := exec.Command(wire.GuestPath, "run")
	runner.Stdout, runner.Stderr = os.Stdout, os.Stderr
	runner.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := runner.Start(); err != nil {
		return fmt.Errorf("start runner: %w", err)
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case pid == runner.Process.Pid:
			return nil
		}
	}
}

// leaveRootfs makes the root a mount that has a parent. pivot_root(2) refuses
// to leave the kernel's first mount, which an initramfs is; a bind mount of it
// on top of itself will do, and copies nothing.
func leaveRootfs() error {
	const stage = "/vm/root"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", stage, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := unix.Chdir(stage); err != nil {
		return fmt.Errorf("enter new root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return nil
}

func mountAll() error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	mounts := []struct {
		target, fs string
		flags      uintptr
		data       string
	}{
		{"/proc", "proc", safe, ""},
		{"/sys", "sysfs", safe, ""},
		{"/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000"},
		{"/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, ""},
		{"/dev/mqueue", "mqueue", safe, ""},
		{"/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"/sys/fs/cgroup", "cgroup2", safe, "nsdelegate"},
		{"/sys/fs/bpf", "bpf", safe, "mode=0700"},
		{"/sys/kernel/security", "securityfs", safe, ""},
		{"/sys/kernel/debug", "debugfs", safe, "mode=0700"},
		{"/sys/kernel/tracing", "tracefs", safe, "mode=0700"},
	}
	for _, m := range mounts {
		// What lies in sysfs is made by the kernel.
		if !strings.HasPrefix(m.target, "/sys/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.fs, m.target, m.fs, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.target, err)
		}
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
		"/dev/ptmx": "pts/ptmx",
	} {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		if err := os.Symlink(target, name); err != nil {
			return err
		}
	}
	return nil
}

func readJob() (*wire.Job, error) {
	data, err := os.ReadFile(wire.JobPath)
	if err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	var job wire.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return nil, fmt.Errorf("read job: %w", err)
	}
	return &job, nil
}

func uptime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	first, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("name lo: %w", err)
	}
	ifreq.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

func enableControllers() error {
	data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return fmt.Errorf("read controllers: %w", err)
	}
	for _, name := range strings.Fields(string(data)) {
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+"+name), 0); err != nil {
			return fmt.Errorf("enable controller %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer file.Close()
	err = unix.FinitModule(int(file.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}

// run is the work of the runner: all commands, one after the other.
func run() error {
	job, err := readJob()
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", wire.Path); err != nil {
		return err
	}
	stream, err := openStream()
	if err != nil {
		return err
	}
	for i, command := range job.Commands {
		if err := stream.send(runOne(i, command, stream)); err != nil {
			return err
		}
	}
	return errors.Join(stream.send(wire.Event{Kind: wire.Done}), stream.Close())
}

func runOne(index int, command wire.Command, stream *stream) wire.Event {
	event := wire.Event{Kind: wire.Exit, Command: index}
	ctx := context.Background()
	if command.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, command.Timeout)
		defer cancel()
	}
	start := time.Now()
	cmd := exec.CommandContext(ctx, command.Args[0], command.Args[1:]...)
	cmd.Env = command.Env
	cmd.Dir = command.Dir
	output := &output{stream: stream, command: index}
	cmd.Stdout, cmd.Stderr = output, output
	// A daemon that a command leaves behind keeps its output open.
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	event.Elapsed = time.Since(start)
	switch {
	case cmd.ProcessState == nil:
		event.Code, event.Err = -1, err.Error()
	case ctx.Err() != nil:
		event.Code, event.Err = -1, fmt.Sprintf("killed after %v", command.Timeout)
	case cmd.ProcessState.Exited():
		event.Code = cmd.ProcessState.ExitCode()
	default:
		event.Code, event.Err = -1, cmd.ProcessState.String()
	}
	return event
}

// output sends what is written to it as events of one command.
type output struct {
	stream  *stream
	command int
}

func (o *output) Write(data []byte) (int, error) {
	if err := o.stream.send(wire.Event{Kind: wire.Output, Command: o.command, Data: data}); err != nil {
		return 0, err
	}
	return len(data), nil
}

// stream is the second serial port.
type stream struct {
	mu   sync.Mutex
	port *os.File
}

func openStream() (*stream, error) {
	port, err := os.OpenFile(wire.EventPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open event port: %w", err)
	}
	// Raw: no byte is translated, none comes back.
	termios := &unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200}
	if err := unix.IoctlSetTermios(int(port.Fd()), unix.TCSETS, termios); err != nil {
		return nil, errors.Join(fmt.Errorf("set up event port: %w", err), port.Close())
	}
	return &stream{port: port}, nil
}

func (s *stream) send(event wire.Event) error {
	data, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.port.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}

// Close waits until the last byte has left the port.
func (s *stream) Close() error {
	const drain = 1
	var errs []error
	if err := unix.IoctlSetInt(int(s.port.Fd()), unix.TCSBRK, drain); err != nil {
		errs = append(errs, fmt.Errorf("drain event port: %w", err))
	}
	return errors.Join(append(errs, s.port.Close())...)
}
