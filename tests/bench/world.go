// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sidegate/tests/lab"
)

// A world is what all measurements share, in the node that package lab made: the node's namespaces, file systems and cgroups end
// with it, whatever happens here.
type world struct {
	dir      string // temporary files
	cgroup   string // directory of the cgroup that holds all of ours
	hook     string // binaries
	cli      string
	hookEnv  []string
	began    int // serial number of processes and cgroups
	progress io.Writer
}

const cgroupRoot = "/sys/fs/cgroup"

// policyName is the policy that every container here asks for; it is what a pod with HAProxy has.
const policyName = "bench"

const policyText = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: ` + policyName + `
spec:
  redirect: {getsockname: original}
  sidecarPorts: [15002]
`

func newWorld(e *env) (*world, error) {
	w := &world{
		hook:     filepath.Join(e.bin, "sidegate-oci-hook"),
		cli:      filepath.Join(e.bin, "sidegate"),
		progress: e.stderr,
	}
	for _, b := range []string{w.hook, w.cli} {
		if _, err := os.Stat(b); err != nil {
			return nil, fmt.Errorf("%w: build it first (make build)", err)
		}
	}
	var err error
	// The node's own file system, which goes away with it.
	if w.dir, err = os.MkdirTemp("/run", "sidegate-bench-"); err != nil {
		return nil, err
	}
	if err := w.fill(e); err != nil {
		return nil, errors.Join(err, os.RemoveAll(w.dir))
	}
	return w, nil
}

func (w *world) fill(e *env) error {
	// nginx's and HAProxy's users look into it.
	if err := os.Chmod(w.dir, 0o755); err != nil {
		return err
	}
	shipped, err := shippedEnv(e.hooks)
	if err != nil {
		return err
	}
	policies := filepath.Join(w.dir, "policies")
	w.hookEnv = append([]string{"SIDEGATE_POLICY_DIR=" + policies, "PATH=" + os.Getenv("PATH")}, shipped...)
	if err := os.Mkdir(policies, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(policies, policyName+".yaml"), []byte(policyText), 0o644); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	own, ok := unifiedCgroup(string(b))
	if !ok || filepath.Dir(own) == "/" {
		return fmt.Errorf("cgroup of this process is %q, which is no node's", own)
	}
	w.cgroup = filepath.Join(cgroupRoot, filepath.Dir(own), "bench")
	return os.MkdirAll(w.cgroup, 0o755) // an earlier world of this node may have had it
}

// unifiedCgroup finds the cgroup v2 in a listing of /proc/<pid>/cgroup.
func unifiedCgroup(listing string) (string, bool) {
	for line := range strings.Lines(listing) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, true
		}
	}
	return "", false
}

// shippedEnv returns what the hooks.d file that an administrator installs gives the hook as its environment.
func shippedEnv(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "50-sidegate-createruntime.json"))
	if err != nil {
		return nil, err
	}
	var f struct {
		Hook struct {
			Env []string `json:"env"`
		} `json:"hook"`
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("hooks.d file in %s: %w", dir, err)
	}
	return f.Hook.Env, nil
}

func (w *world) close() error { return os.RemoveAll(w.dir) }

func (w *world) logf(format string, args ...any) {
	fmt.Fprintf(w.progress, "bench: "+format+"\n", args...)
}

// mkcgroup makes a cgroup; rmcgroup removes it when its last process is gone.
func (w *world) mkcgroup(name string) (string, error) {
	w.began++
	dir := filepath.Join(w.cgroup, name+"-"+strconv.Itoa(w.began))
	return dir, os.Mkdir(dir, 0o755)
}

func rmcgroup(dir string) error {
	return lab.WaitFor(5*time.Second, "removal of "+dir, func() (bool, error) {
		err := syscall.Rmdir(dir)
		if errors.Is(err, syscall.EBUSY) {
			return false, nil
		}
		return err == nil, err
	})
}

// cpuUsage returns the CPU time, in seconds, that the cgroups have used, with those below them. It needs no controller.
func cpuUsage(dirs ...string) (float64, error) {
	total := 0.0
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
		if err != nil {
			return 0, err
		}
		used, err := parseUsage(string(b))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", dir, err)
		}
		total += used
	}
	return total, nil
}

// parseUsage reads a cpu.stat.
func parseUsage(stat string) (float64, error) {
	for line := range strings.Lines(stat) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return float64(n) / 1e6, err
		}
	}
	return 0, errors.New("cpu.stat has no usage_usec")
}

// A proc is a process of ours in a cgroup.
type proc struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Scanner
	stderr bytes.Buffer
	ended  chan struct{}
}

// spawn starts a process in a cgroup, and in the network namespace at netns unless that is "". With "new" it gets one of its own.
func (w *world) spawn(cgroup, netns string, env []string, argv ...string) (*proc, error) {
	return w.clone(cgroup, netns, 0, env, argv...)
}

// clone is spawn in new namespaces, too, that flags name.
func (w *world) clone(cgroup, netns string, flags uintptr, env []string, argv ...string) (*proc, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	attr := &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: flags}
	p := &proc{name: filepath.Base(argv[0]), ended: make(chan struct{})}
	switch netns {
	case "":
	case "new":
		attr.Cloneflags |= syscall.CLONE_NEWNET
	default:
		argv = append([]string{"nsenter", "--net=" + netns, "--"}, argv...)
	}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.SysProcAttr, p.cmd.Stderr, p.cmd.Dir = attr, &p.stderr, w.dir
	p.cmd.Env = append(os.Environ(), env...)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, wr, err := os.Pipe() // not StdoutPipe, which Wait closes
	if err != nil {
		return nil, err
	}
	defer wr.Close()
	p.cmd.Stdout, p.stdout = wr, bufio.NewScanner(r)
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.name, err), r.Close())
	}
	go func() {
		_ = p.cmd.Wait()
		r.Close()
		close(p.ended)
	}()
	return p, nil
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// stop ends the process and waits: SIGTERM, of which nginx tells its workers, and SIGKILL if that does not help. It may be called
// again.
func (p *proc) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(3 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// alive returns an error if the process has ended.
func (p *proc) alive() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %s: %s", p.name, p.cmd.ProcessState, strings.TrimSpace(p.stderr.String()))
	default:
		return nil
	}
}

// agent starts this program as an agent, and returns when it is one.
func (w *world) agent(cgroup, netns string, uid int, env ...string) (*proc, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	env = append([]string{agentEnv + "=" + strconv.Itoa(uid), "GODEBUG=asyncpreemptoff=1"}, env...)
	argv := []string{exe}
	if slices.Contains(env, confineEnv+"=1") {
		argv = append(argv, exe) // it becomes itself
	}
	p, err := w.spawn(cgroup, netns, env, argv...)
	if err != nil {
		return nil, err
	}
	if err := waitExe(p, filepath.Base(exe)); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// waitExe waits until a process has become the program of this name, after nsenter.
func waitExe(p *proc, name string) error {
	return lab.WaitFor(5*time.Second, "process "+name, func() (bool, error) {
		if err := p.alive(); err != nil {
			return false, err
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid()))
		return filepath.Base(exe) == name, err
	})
}

// do gives an agent an order and waits for the answer. Any failure in it is an error.
func (p *proc) do(o order) (answer, error) {
	a, err := p.ask(o)
	if err == nil && (a.Err != "" || a.Failed > 0) {
		err = fmt.Errorf("%s %s: %d of %d failed: %s", o.Op, o.Addr, a.Failed, a.Failed+a.Done, a.Err)
	}
	return a, err
}

// doOn also returns the CPU time, in seconds, that the cgroups have used meanwhile.
func (p *proc) doOn(o order, cgroups ...string) (answer, float64, error) {
	before, err := cpuUsage(cgroups...)
	if err != nil {
		return answer{}, 0, err
	}
	a, err := p.do(o)
	if err != nil {
		return a, 0, err
	}
	after, err := cpuUsage(cgroups...)
	if err == nil && (a.Done == 0 || a.Took <= 0) {
		err = fmt.Errorf("%s did nothing", o.Op)
	}
	return a, after - before, err
}

// ask gives an agent an order and waits for the answer, which may tell of failures.
func (p *proc) ask(o order) (answer, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return answer{}, err
	}
	kill := time.AfterFunc(o.For+60*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	if _, err := p.stdin.Write(append(b, '\n')); err != nil {
		return answer{}, errors.Join(err, p.alive())
	}
	var a answer
	if !p.stdout.Scan() {
		return a, fmt.Errorf("%s gave no answer to %s: %w", p.name, b, errors.Join(p.stdout.Err(), p.alive()))
	}
	return a, json.Unmarshal(p.stdout.Bytes(), &a)
}

// command runs a program to its end.
func command(ctx context.Context, argv ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return out, nil
}

// ip runs lines of iproute2's batch language in the network namespace at netns, or in the node's if that is "".
func ip(ctx context.Context, netns string, lines ...string) error {
	argv := []string{"ip", "-batch", "-"}
	if netns != "" {
		argv = append([]string{"nsenter", "--net=" + netns, "--"}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// unload takes Sidegate out of the kernel.
func (w *world) unload(ctx context.Context) error {
	_, err := command(ctx, w.cli, "unload", "--force")
	return err
}
