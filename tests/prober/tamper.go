// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tamperer is what an attacker knows: more than it could find out.
type tamperer struct {
	progs, maps, links idList         // kernel objects to take hold of
	pins               string         // directory where they are pinned
	to                 netip.AddrPort // echo servers that must not be reached
	peer               netip.AddrPort // a server of another container of the pod
	gateway            string         // hardware address of the next hop
	hostDev            string         // a device of the host, to delete
	dev                string         // device of an attempt in its own namespaces
	src                netip.Addr     // address there
	nonce              string         // what to send by every way; "" for a new one

	args []string       // the flags of the above
	data map[string]any // what an attempt has to say beside its error
}

// idList is a flag of numbers with commas.
type idList []uint32

func (l *idList) String() string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprint([]uint32(*l)), "[]"), " ", ",")
}

func (l *idList) Set(s string) error {
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return err
		}
		*l = append(*l, uint32(n))
	}
	return nil
}

// A tampering is one attempt to change what enforces, or to get away from it. That it succeeds means that the kernel did as it was
// told, not that anything was won.
type tampering struct {
	name string
	run  func(*tamperer) error
	// flags are CLONE_NEW*, of the process that makes the attempt.
	flags uintptr
	// alone is in a process of its own, which may not be of use afterwards.
	alone bool
	// destroys what the pod cannot work without.
	destroys bool
	// hidden ones are the other half of one that is not.
	hidden bool
}

// ownNamespaces gives a process all capabilities over file systems, cgroups and networks that nobody else has.
const ownNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// tamperLimit ends an attempt that hangs.
const tamperLimit = 4 * time.Second

func tamperings() []tampering {
	return slices.Concat(bpfTamperings(), cgroupTamperings(), namespaceTamperings(), socketTamperings(), deviceTamperings(), escapes())
}

// runTamper makes every attempt that there is, one after the other, and has the result of each in its data: name, ok, errno, err. ok
// means that they were made.
func runTamper(ctx context.Context, args []string) (*result, error) {
	t := &tamperer{data: map[string]any{}}
	fs := flag.NewFlagSet("tamper", flag.ContinueOnError)
	fs.Var(&t.progs, "progs", "`ids` of programs to take hold of")
	fs.Var(&t.maps, "maps", "`ids` of maps")
	fs.Var(&t.links, "links", "`ids` of links")
	fs.StringVar(&t.pins, "pins", "/sys/fs/bpf", "`directory` where they are pinned")
	fs.TextVar(&t.to, "to", netip.AddrPort{}, "TCP and UDP echo servers that must not be reached, `address:port`")
	fs.TextVar(&t.peer, "peer", netip.AddrPort{}, "HTTP server of another container, `address:port`")
	fs.StringVar(&t.gateway, "gw-mac", "", "hardware address of the next hop")
	fs.StringVar(&t.hostDev, "host-dev", "", "device of the host to delete")
	fs.StringVar(&t.dev, "dev", "eth0", "the pod's device")
	fs.TextVar(&t.src, "src", netip.Addr{}, "its `address`")
	destroy := fs.Bool("destroy", false, "make the attempts that the pod does not survive, instead of the others")
	only := fs.String("only", "", "make attempts with this `prefix` only")
	attempt := fs.String("attempt", "", "make this attempt only, and here")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !t.to.IsValid() {
		return nil, &usageError{errors.New("--to is missing")}
	}
	fs.Visit(func(f *flag.Flag) {
		if !slices.Contains([]string{"destroy", "only", "attempt"}, f.Name) {
			t.args = append(t.args, "--"+f.Name, f.Value.String())
		}
	})
	all := tamperings()
	if *attempt != "" {
		i := slices.IndexFunc(all, func(a tampering) bool { return a.name == *attempt })
		if i < 0 {
			return nil, &usageError{fmt.Errorf("no attempt is named %q", *attempt)}
		}
		return t.attempt(&all[i])
	}
	runtime.LockOSThread() // the threads that others lock end with them, and so would processes that these started
	defer runtime.UnlockOSThread()
	res := newResult()
	var done []map[string]any
	for _, a := range all {
		if a.hidden || a.destroys != *destroy || !strings.HasPrefix(a.name, *only) {
			continue
		}
		r := t.try(ctx, &a)
		one := map[string]any{"name": a.name, "ok": r.OK, "errno": r.Errno, "err": r.Err}
		if len(r.Data) > 0 {
			one["data"] = r.Data
		}
		done = append(done, one)
	}
	res.Data["attempts"] = done
	return res, nil
}

// try makes one, in a thread or a process of its own.
func (t *tamperer) try(ctx context.Context, a *tampering) *result {
	if a.alone || a.flags != 0 {
		return t.start(ctx, a, nil)
	}
	done := make(chan *result, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		own := *t
		own.data = map[string]any{}
		err := a.run(&own)
		r := newResult()
		r.Data = own.data
		done <- r.withError(err)
	}()
	select {
	case r := <-done:
		return r
	case <-time.After(tamperLimit):
		return newResult().withError(os.NewSyscallError("watchdog", unix.ETIMEDOUT))
	}
}

// attempt makes one, in this process.
func (t *tamperer) attempt(a *tampering) (*result, error) {
	defer watchdog(tamperLimit - time.Second).Stop()
	runtime.LockOSThread() // setns, ptrace and the parent's death signal are a thread's
	err := a.run(t)
	res := newResult()
	res.Data = t.data
	return res, err
}

// start makes an attempt in a new process. setup, if set, runs when its namespaces are there and it has not begun.
func (t *tamperer) start(ctx context.Context, a *tampering, setup func(pid int) error) *result {
	ctx, cancel := context.WithTimeout(ctx, tamperLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"tamper", "--attempt", a.name}, t.args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: a.flags, Pdeathsig: syscall.SIGKILL}
	if a.flags&unix.CLONE_NEWUSER != 0 {
		root := []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = root, root
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begin, err := cmd.StdinPipe()
	if err != nil {
		return newResult().withError(err)
	}
	if err := cmd.Start(); err != nil {
		return newResult().withError(fmt.Errorf("start: %w", err))
	}
	if setup != nil {
		err = setup(cmd.Process.Pid)
	}
	if err != nil {
		cancel()
	}
	begin.Close()
	werr := cmd.Wait()
	if err != nil {
		return newResult().withError(err)
	}
	r := &result{}
	if jerr := json.Unmarshal(bytes.TrimSpace(stdout.Bytes()), r); jerr != nil {
		if ctx.Err() != nil {
			werr = os.NewSyscallError("watchdog", unix.ETIMEDOUT)
		}
		return newResult().withError(fmt.Errorf("%w: %s%s", werr, &stdout, &stderr))
	}
	return r
}

// begun waits until the process that started this one has set it up.
func begun() { _, _ = io.Copy(io.Discard, os.Stdin) }

// failed is what an attempt returns that was not refused, but had nothing to take.
func failed(format string, args ...any) error { return fmt.Errorf(format, args...) }

// anyOf makes an attempt on each of list and returns nil if one succeeded, else why the kernel refused.
func anyOf[T any](list []T, f func(T) error) error {
	refused := failed("nothing to try it on")
	for _, v := range list {
		err := f(v)
		if err == nil {
			return nil
		}
		if errno := syscall.Errno(0); errors.As(err, &errno) || !errors.As(refused, &errno) {
			refused = err
		}
	}
	return refused
}

// processes returns the ids of all processes but this one.
func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
