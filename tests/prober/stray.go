// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

func init() { // it looks at the commands itself
	commands["stray"] = command{"run another command in another cgroup", runStray}
}

// runStray runs another command, whose arguments follow --, in a cgroup that is none of this process' business, but can be written to.
func runStray(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("stray", flag.ContinueOnError)
	dir := fs.String("cgroup", "", "`directory` of the cgroup")
	how := fs.String("how", "move", "how the process gets there: move, below (into a child of it), thread (one of its threads does), clone (made there)")
	if err := fs.Parse(args); err != nil {
		return nil, &usageError{err}
	}
	cmd, ok := commands[fs.Arg(0)]
	if !ok {
		return nil, &usageError{fmt.Errorf("stray: unknown command %q", fs.Arg(0))}
	}
	do := func() (*result, error) { return cmd.run(ctx, fs.Args()[1:]) }
	runtime.LockOSThread() // the thread that moves is the one that does it
	switch *how {
	case "move":
		if err := moveTo(*dir); err != nil {
			return nil, err
		}
		return do()
	case "below":
		return strayBelow(*dir, func(below string) error { return moveTo(below) }, do)
	case "thread":
		return strayBelow(*dir, func(below string) error {
			if err := os.WriteFile(filepath.Join(below, "cgroup.type"), []byte("threaded"), 0); err != nil {
				return err
			}
			if err := moveTo(*dir); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(below, "cgroup.threads"), []byte("0"), 0)
		}, do)
	case "clone":
		return nil, strayClone(ctx, *dir, fs.Args())
	}
	return nil, &usageError{fmt.Errorf("stray: unknown way %q", *how)}
}

// strayBelow gets into a child of the cgroup at dir, which it removes in the end.
func strayBelow(dir string, enter func(below string) error, do func() (*result, error)) (*result, error) {
	below := filepath.Join(dir, "stray")
	if err := os.Mkdir(below, 0o755); err != nil {
		return nil, err
	}
	err := enter(below)
	var r *result
	if err == nil {
		r, err = do()
	}
	leave := os.WriteFile(filepath.Join(dir, "cgroup.threads"), []byte("0"), 0)
	if leave != nil {
		leave = moveTo(dir)
	}
	return r, errors.Join(err, leave, os.Remove(below))
}

// strayClone makes a process in the cgroup, which prints its own result.
func strayClone(ctx context.Context, dir string, args []string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	return runForItself(cmd)
}

// runForItself runs a prober that prints its own result.
func runForItself(cmd *exec.Cmd) error {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil // it has said why
	}
	return err
}
