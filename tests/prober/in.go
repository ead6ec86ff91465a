// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// runIn goes somewhere else, but not to another cgroup (see runStray), and becomes another of the prober's commands there.
func runIn(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("in", flag.ContinueOnError)
	netns := fs.String("netns", "", "enter the network namespace at this `path`")
	uid := fs.Int("uid", -1, "become this user")
	userns := fs.Int("userns", -1, "become this user in a user namespace of one's own")
	if err := fs.Parse(args); err != nil {
		return nil, &usageError{err}
	}
	if fs.NArg() == 0 {
		return nil, &usageError{flag.ErrHelp}
	}
	runtime.LockOSThread()
	if *netns != "" {
		fd, err := unix.Open(*netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return newResult(), os.NewSyscallError("open", err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return newResult(), os.NewSyscallError("setns", err)
		}
	}
	if *userns >= 0 {
		return inUserns(*userns, fs.Args())
	}
	if *uid >= 0 {
		if err := become(*uid); err != nil {
			return newResult(), err
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return newResult(), err
	}
	return newResult(), os.NewSyscallError("exec", syscall.Exec(exe, append([]string{exe}, fs.Args()...), os.Environ()))
}

// inUserns runs a command as a user of a user namespace of its own.
func inUserns(uid int, args []string) (*result, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	ids := []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}}
	return nil, runForItself(cmd)
}
