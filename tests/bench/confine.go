// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// confineEnv makes this program become the one that its arguments name, under the seccomp filter that confinement describes. The
// containers of all setups have it, also those that need it for nothing: acceleration is for containers that cannot splice(2).
const confineEnv = "SIDEGATE_BENCH_CONFINE"

// confinement is the filter as a container's configuration has it.
func confinement() *specs.LinuxSeccomp {
	eperm, einval := uint(unix.EPERM), uint(unix.EINVAL)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"splice"}, Action: specs.ActErrno, ErrnoRet: &einval},
			{Names: []string{"io_uring_setup"}, Action: specs.ActErrno, ErrnoRet: &eperm},
		},
	}
}

// confine does not return, unless it fails.
func confine(argv []string) error {
	if len(argv) == 0 {
		return errors.New("no program to confine")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	if err := os.Unsetenv(confineEnv); err != nil {
		return err
	}
	runtime.LockOSThread() // it is this thread that becomes the program
	if err := loadFilter(); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", path, unix.Exec(path, argv, os.Environ()))
}

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

func loadFilter() error {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("seccomp on %s is not known here", runtime.GOARCH)
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		above  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
		x32    = 0x40000000 // the bit of system calls of another ABI
	)
	filter := []unix.SockFilter{
		{Code: load, K: 4}, // architecture
		{Code: equal, Jt: 1, K: arch},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: 0}, // number
		{Code: above, Jf: 1, K: x32},
		{Code: answer, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: equal, Jf: 1, K: unix.SYS_SPLICE},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)},
		{Code: equal, Jf: 1, K: unix.SYS_IO_URING_SETUP},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	return asError("seccomp", errno)
}

// confined returns the command of a confined program, and what its environment needs for that.
func confined(argv ...string) (env, command []string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	return []string{confineEnv + "=1"}, append([]string{exe}, argv...), nil
}
