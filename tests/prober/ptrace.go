// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A puppet is a stopped process that makes system calls for another (ptrace(2)). It has to be in one, after whose instruction it stops.
type puppet struct {
	pid   int
	regs  unix.PtraceRegs // as they were
	stack uintptr         // where there is room for what the calls point to
}

// seize takes hold of a process. The calling thread, which must be locked, is its tracer from now on.
func seize(pid int) (*puppet, error) {
	if err := unix.PtraceAttach(pid); err != nil {
		return nil, os.NewSyscallError("ptrace", err)
	}
	p := &puppet{pid: pid}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		return nil, os.NewSyscallError("wait4", err)
	}
	if err := unix.PtraceGetRegs(pid, &p.regs); err != nil {
		return nil, os.NewSyscallError("ptrace", err)
	}
	instruction := make([]byte, 2)
	if _, err := unix.PtracePeekText(pid, uintptr(p.regs.Rip)-2, instruction); err != nil {
		return nil, os.NewSyscallError("ptrace", err)
	}
	if instruction[0] != 0x0f || instruction[1] != 0x05 { // syscall
		return nil, errors.Join(failed("process %d is in no system call", pid), p.release())
	}
	const belowRedZone = 4096
	p.stack = (uintptr(p.regs.Rsp) - belowRedZone) &^ 15
	return p, nil
}

// release lets it go on with what it did.
func (p *puppet) release() error {
	return errors.Join(os.NewSyscallError("ptrace", unix.PtraceSetRegs(p.pid, &p.regs)), os.NewSyscallError("ptrace", unix.PtraceDetach(p.pid)))
}

// put writes b where the next call may point to, and returns where that is.
func (p *puppet) put(b []byte) (uint64, error) {
	_, err := unix.PtracePokeData(p.pid, p.stack, b)
	return uint64(p.stack), os.NewSyscallError("ptrace", err)
}

// call lets it make a system call.
func (p *puppet) call(name string, number uint64, args ...uint64) (int, error) {
	regs := p.regs
	regs.Rip -= 2
	regs.Rax, regs.Orig_rax = number, ^uint64(0) // nothing to restart
	for i, r := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx} {
		if i < len(args) {
			*r = args[i]
		}
	}
	if err := unix.PtraceSetRegs(p.pid, &regs); err != nil {
		return -1, os.NewSyscallError("ptrace", err)
	}
	if err := unix.PtraceSingleStep(p.pid); err != nil {
		return -1, os.NewSyscallError("ptrace", err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(p.pid, &ws, unix.WALL, nil); err != nil {
		return -1, os.NewSyscallError("wait4", err)
	}
	if !ws.Stopped() {
		return -1, fmt.Errorf("the process ended: %#x", ws)
	}
	if err := unix.PtraceGetRegs(p.pid, &regs); err != nil {
		return -1, os.NewSyscallError("ptrace", err)
	}
	if n := int64(regs.Rax); n < 0 {
		return -1, os.NewSyscallError(name, unix.Errno(-n))
	}
	return int(regs.Rax), nil
}

// runPtrace lets another process connect, and send a nonce as a line.
func runPtrace(_ context.Context, args []string) (*result, error) {
	var t target
	var comm string
	var uid int
	err := t.parse("ptrace", args, func(fs *flag.FlagSet) {
		fs.StringVar(&comm, "comm", "haproxy", "`name` of the process")
		fs.IntVar(&uid, "uid", -1, "become this user first")
	})
	if err != nil {
		return nil, err
	}
	pids, err := processesNamed(comm)
	if err != nil {
		return newResult(), err
	}
	if uid >= 0 {
		if err := become(uid); err != nil {
			return newResult(), err
		}
	}
	defer watchdog(10 * time.Second).Stop()
	runtime.LockOSThread() // one thread traces
	defer runtime.UnlockOSThread()
	return newResult(), anyOf(pids, func(pid int) error {
		p, err := seize(pid)
		if err != nil {
			return err
		}
		return errors.Join(p.send(&t), p.release())
	})
}

func (p *puppet) send(t *target) error {
	fd, err := p.call("socket", unix.SYS_SOCKET, uint64(family(t.to.Addr(), false)), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	sa := rawSockaddr(t.to, false)
	at, err := p.put(sa)
	if err != nil {
		return err
	}
	if _, err := p.call("connect", unix.SYS_CONNECT, uint64(fd), at, uint64(len(sa))); err != nil {
		return err
	}
	line := []byte(t.nonce + "\n")
	if at, err = p.put(line); err != nil {
		return err
	}
	_, err = p.call("write", unix.SYS_WRITE, uint64(fd), at, uint64(len(line)))
	return errors.Join(err, closeIn(p, fd))
}

func closeIn(p *puppet, fd int) error {
	_, err := p.call("close", unix.SYS_CLOSE, uint64(fd))
	return err
}
