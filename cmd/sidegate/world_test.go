// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/policy"
)

// envProcess makes the test binary be a container's process, which does what its
// standard input says.
const envProcess = "SIDEGATE_TEST_PROCESS"

// envMain makes it be the command.
const envMain = "SIDEGATE_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(envMain) != "" {
		main()
	}
	if os.Getenv(envProcess) != "" {
		obey(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

// obey listens, or dials and sends a byte, as each line of in says: "dial udp
// 192.0.2.1:53". It answers each by the name of an error, or by "ok". Sockets stay
// open.
func obey(in io.Reader, out io.Writer) {
	var open []io.Closer
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var verb, network, addr string
		_, err := fmt.Sscan(lines.Text(), &verb, &network, &addr)
		var s io.Closer
		switch {
		case err != nil:
		case verb == "dial":
			var c net.Conn
			if c, err = net.Dial(network, addr); err == nil {
				_, err = c.Write([]byte("x"))
				s = c
			}
		case strings.HasPrefix(network, "udp"):
			s, err = net.ListenPacket(network, addr)
		default:
			s, err = net.Listen(network, addr)
		}
		answer := "ok"
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			answer = unix.ErrnoName(errno)
		case err != nil:
			answer = err.Error()
		}
		open = append(open, s)
		fmt.Fprintln(out, answer)
	}
	runtime.KeepAlive(open) // the collector closes sockets that nobody has
}

// A world is a pod without a device of its own, and its state.
type world struct {
	t          *testing.T
	state, dir string // dir is of policies
	ns         *cgroups.Netns

	capabilities []string // of the containers that start
	args, env    []string // of their processes, which ignore them
}

// A container is a process that obeys, in a cgroup of its own.
type container struct {
	t   *testing.T
	pid int
	in  io.Writer
	out *bufio.Reader
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, state: newState(t), dir: filepath.Join(t.TempDir(), "policies")}
	must(t, os.Mkdir(w.dir, 0o755))
	t.Cleanup(func() { must(t, cgroups.Unload(w.state, true)) })
	return w
}

// write makes a file in the directory of policies.
func (w *world) write(name, text string) {
	w.t.Helper()
	must(w.t, os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644))
}

// run runs a policy command and returns what it printed, on both outputs.
func (w *world) run(args ...string) (out string, code int) {
	w.t.Helper()
	return w.pipe("", args...)
}

// pipe is run with something on standard input.
func (w *world) pipe(stdin string, args ...string) (out string, code int) {
	w.t.Helper()
	var b strings.Builder
	code = run(env{
		stdin: strings.NewReader(stdin), stdout: &b, stderr: &b, args: append([]string{"policy"}, args...), state: w.state, policyDir: w.dir,
	})
	return b.String(), code
}

// want runs a policy command and fails the test unless it ends with code and
// prints all words.
func (w *world) want(code int, words []string, args ...string) string {
	w.t.Helper()
	out, got := w.run(args...)
	if got != code {
		w.t.Errorf("%v: exit code %d, want %d:\n%s", args, got, code, out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			w.t.Errorf("%v: nothing of %q in\n%s", args, word, out)
		}
	}
	return out
}

// start puts a process into the pod as a container of this name and role, under
// the policy of the directory.
func (w *world) start(pod, name string, role policy.Role, policyName string) *container {
	w.t.Helper()
	c := w.process(w.ns)
	ns, err := cgroups.NetnsOf(c.pid)
	must(w.t, err)
	if w.ns == nil {
		w.ns = ns
		must(w.t, ns.Do(loopbackUp))
	}
	w.t.Cleanup(func() { must(w.t, ns.Close()) })
	p, err := policy.Find(w.dir, policyName)
	must(w.t, err)
	compiled, err := p.Compile()
	must(w.t, err)
	mark, err := policy.Fingerprint(w.dir)
	must(w.t, err)
	s, err := cgroups.Open(w.state)
	must(w.t, err)
	_, err = s.Attach(ns, &cgroups.Container{
		ID: fmt.Sprintf("%s-%d", name, c.pid), Name: name, Pod: pod, Runtime: "test", Role: role, PID: c.pid,
		Policy: compiled, Source: cgroups.Source{Place: p.Source(), Fingerprint: mark}, Capabilities: w.capabilities,
	})
	must(w.t, errors.Join(err, s.Close()))
	return c
}

// process starts one in a new cgroup, and in ns, or a new one.
func (w *world) process(ns *cgroups.Netns) *container {
	w.t.Helper()
	mount, err := cgroups.FindMount()
	must(w.t, err)
	path, err := os.MkdirTemp(mount.Dir, "sgtest-cmd-")
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, os.Remove(path)) })
	dir, err := os.Open(path)
	must(w.t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe", w.args...)
	cmd.Env = append(append(os.Environ(), envProcess+"=1", "GORACE=atexit_sleep_ms=0"), w.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	must(w.t, err)
	out, err := cmd.StdoutPipe()
	must(w.t, err)
	if ns == nil {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
		must(w.t, cmd.Start())
	} else {
		must(w.t, ns.Do(cmd.Start))
	}
	w.t.Cleanup(func() { must(w.t, errors.Join(in.Close(), cmd.Wait())) })
	return &container{t: w.t, pid: cmd.Process.Pid, in: in, out: bufio.NewReader(out)}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// do returns "ok" or the name of an error.
func (c *container) do(verb, network, addr string) string {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, verb, network, addr)
	must(c.t, err)
	answer, err := c.out.ReadString('\n')
	must(c.t, err)
	return strings.TrimSpace(answer)
}

// mustDo fails the test unless it is done, or the error is one of those that come
// after all that Sidegate decides: this pod has no way out, and not all answer.
func (c *container) mustDo(verb, network, addr string) {
	c.t.Helper()
	switch got := c.do(verb, network, addr); got {
	case "ok", "ENETUNREACH", "ECONNREFUSED":
	default:
		c.t.Errorf("%s %s %s: %s", verb, network, addr, got)
	}
}
