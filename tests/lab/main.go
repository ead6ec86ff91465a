// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nodeEnv carries a Node from Main to the program that it re-executes.
const nodeEnv = "SIDEGATE_LAB_NODE"

// orphaned is what the program in a node gets when the process that made the node is gone. Its parent's id does not tell: it stays
// the same until the last thread of the parent is gone.
const orphaned = syscall.SIGUSR1

// graceTime is how long a node may take to clean up after a signal before it is killed.
const graceTime = 20 * time.Second

// NodeOptions says what a node shares with the machine.
type NodeOptions struct {
	// MachineBPFFS keeps the machine's BPF file system, if there is one. By default a node has its own, so that pins of several
	// labs, and those of a machine that uses Sidegate, never meet, and all go away with the node.
	MachineBPFFS bool
}

// Supported returns nil if this process can make a node, else why not.
func Supported() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root")
	}
	return nil
}

// Main runs body in a node and returns the exit status of the program: MainWith with default options.
func Main(body func() int) int { return MainWith(NodeOptions{}, body) }

// MainWith runs body in a node of its own and returns what body returned. It must be the first thing that main or TestMain does,
// from the main goroutine, and its value is for os.Exit: body runs in a child process, which is this same program with the same
// arguments.
func MainWith(opts NodeOptions, body func() int) int {
	if state := os.Getenv(nodeEnv); state != "" {
		return inside(state, body)
	}
	status, err := outer(opts)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		if status == 0 {
			status = 1
		}
	}
	return status
}

// outer makes the node, runs this program in it, and removes all that is left of it.
func outer(opts NodeOptions) (status int, err error) {
	if err := Supported(); err != nil {
		return 1, err
	}
	// This thread moves into the node's namespaces; the child is bound to its life by PR_SET_PDEATHSIG.
	runtime.LockOSThread()
	node, err := makeNode(opts)
	if err != nil {
		return 1, fmt.Errorf("make node: %w", err)
	}
	defer func() { err = errors.Join(err, node.sweep()) }()

	// Orphans of the node come to us, so that none stays a zombie on a machine whose init does not care.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, os.NewSyscallError("prctl PR_SET_CHILD_SUBREAPER", err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	child, err := node.start()
	if err != nil {
		return 1, err
	}
	ended := make(chan unix.WaitStatus, 1)
	go func() { ended <- reap(child.Pid) }()
	var limit <-chan time.Time
	for {
		select {
		case s := <-signals:
			if limit != nil { // asked twice
				_ = child.Kill()
			}
			_ = child.Signal(s)
			limit = time.After(graceTime)
		case <-limit:
			_ = child.Kill()
		case ws := <-ended:
			subreaper = true
			if ws.Signaled() {
				return 128 + int(ws.Signal()), nil
			}
			return ws.ExitStatus(), nil
		}
	}
}

// reap waits for children of any kind until pid has ended.
func reap(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if got == pid {
			return ws
		}
		if err == unix.ECHILD {
			return 1 << 8 // it cannot have got lost; exit status 1
		}
	}
}

// start re-executes this program in the node.
func (n *Node) start() (*os.Process, error) {
	state, err := json.Marshal(n)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cgroup, err := os.Open(n.cgroupPath("node"))
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	p, err := os.StartProcess(exe, os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), nodeEnv+"="+string(state)),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Setpgid:     true, // a terminal's Ctrl-C comes from us, and not to podman in the middle of something
			Pdeathsig:   orphaned,
			UseCgroupFD: true,
			CgroupFD:    int(cgroup.Fd()),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s in its node: %w", exe, err)
	}
	return p, nil
}

// The node that this process is in, and what is open in it.
var (
	currentMu sync.Mutex
	current   *Node
	openLab   *Lab
	nodeNetns string
)

// NodeNetns returns a path of the node's network namespace, for any process of this machine. That of /proc/PID/ns is another one
// once the first thread of this process has been in a namespace on a goroutine that ended there: the Go runtime keeps that thread.
func NodeNetns() string { return nodeNetns }

// inside runs body in the node that outer made.
func inside(state string, body func() int) int {
	n := &Node{}
	if err := json.Unmarshal([]byte(state), n); err != nil {
		fmt.Fprintf(os.Stderr, "lab: %s: %v\n", nodeEnv, err)
		return 1
	}
	os.Unsetenv(nodeEnv)
	netns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: open own network namespace:", err)
		return 1
	}
	defer netns.Close()
	nodeNetns = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), netns.Fd())
	if err := n.setup(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: set up node:", err)
		return 1
	}
	currentMu.Lock()
	current = n
	currentMu.Unlock()

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, orphaned)
	var exiting sync.Mutex // held by who ends the process
	go func() {
		s := <-signals
		exiting.Lock()
		fmt.Fprintf(os.Stderr, "lab: %v: cleaning up\n", s)
		defer os.Exit(128 + int(s.(syscall.Signal)))
		if s == orphaned { // nobody else is left to do it
			defer func() {
				if err := errors.Join(n.leave(), n.sweep()); err != nil {
					fmt.Fprintln(os.Stderr, "lab:", err)
				}
			}()
		}
		closeOpenLab()
	}()
	// Also while a panic goes by.
	defer closeOpenLab()
	status := body()
	exiting.Lock()
	return status
}

func closeOpenLab() {
	currentMu.Lock()
	l := openLab
	currentMu.Unlock()
	if l == nil {
		return
	}
	if err := l.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: close:", err)
	}
}

// RunTests is Main for the tests of a package, by name, which it skips on a machine that cannot have a node. An error of
// theirs fails them.
func RunTests(name string, run func() (status int, err error)) int {
	if err := Supported(); err != nil {
		fmt.Fprintln(os.Stderr, "skipped:", err)
		return 0
	}
	return Main(func() int {
		status, err := run()
		if err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			return 1
		}
		return status
	})
}
