// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// A screen is the command in a terminal.
type screen struct {
	t     *testing.T
	cmd   *exec.Cmd
	pty   *os.File
	tty   *os.File // kept, so that the terminal's settings outlive the command
	vt    *vt.Emulator
	mu    sync.Mutex    // of vt: its own safe one is not
	wrote chan struct{} // something was written to it
	raw   chan []byte   // all of it, when it has ended
}

// newScreen runs the command, on a terminal of a kind and size, with more of an environment.
func newScreen(t *testing.T, state, kind string, cols, rows uint16, environ []string, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, vt: vt.NewEmulator(int(cols), int(rows)), wrote: make(chan struct{}, 1), raw: make(chan []byte, 1)}
	var err error
	s.pty, s.tty, err = pty.Open()
	must(t, err)
	must(t, pty.Setsize(s.pty, &pty.Winsize{Cols: cols, Rows: rows}))
	s.cmd = exec.Command("/proc/self/exe", append(args, "--state-dir", state)...)
	// At its end bubbletea's reader closes what it waits for, which is a race of two libraries, and no failure of this one.
	s.cmd.Env = append(os.Environ(), envMain+"=1", "GORACE=atexit_sleep_ms=0 exitcode=0", "TERM="+kind, "COLORTERM=", "NO_COLOR=", "TMUX=")
	s.cmd.Env = append(s.cmd.Env, environ...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = s.tty, s.tty, s.tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	must(t, s.cmd.Start())
	answered := make(chan struct{})
	go func() { // what the terminal answers
		defer close(answered)
		_, _ = io.Copy(s.pty, s.vt)
	}()
	go s.show()
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
		s.tty.Close()
		s.pty.Close()
		s.vt.InputPipe().(io.Closer).Close()
		<-answered
	})
	return s
}

func (s *screen) show() {
	var all []byte
	buf := make([]byte, 1<<16)
	for {
		n, err := s.pty.Read(buf)
		all = append(all, buf[:n]...)
		s.with(func() { _, _ = s.vt.Write(buf[:n]) })
		select {
		case s.wrote <- struct{}{}:
		default:
		}
		if err != nil {
			s.raw <- all
			return
		}
	}
}

func (s *screen) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// modes tells whether the alternate screen is shown, and no cursor.
func (s *screen) modes() (alternate, hidden bool) {
	s.with(func() { alternate, hidden = s.vt.IsAltScreen(), s.vt.CursorHidden() })
	return alternate, hidden
}

func (s *screen) lines() []string {
	var list []string
	text := ""
	s.with(func() { text = s.vt.String() })
	for l := range strings.SplitSeq(text, "\n") {
		list = append(list, strings.TrimRight(l, " \r"))
	}
	return list
}

// wait waits until the screen is as is says.
func (s *screen) wait(what string, is func(lines []string) bool) {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	for !is(s.lines()) {
		select {
		case <-s.wrote:
		case <-deadline:
			s.t.Fatalf("no %s on the screen:\n%s", what, strings.Join(s.lines(), "\n"))
		}
	}
}

// see waits until the screen has all words.
func (s *screen) see(words ...string) {
	s.t.Helper()
	s.wait(strings.Join(words, ", "), func(lines []string) bool {
		all := strings.Join(lines, "\n")
		for _, w := range words {
			if !strings.Contains(all, w) {
				return false
			}
		}
		return true
	})
}

func (s *screen) press(keys string) {
	s.t.Helper()
	_, err := s.pty.WriteString(keys)
	must(s.t, err)
}

func (s *screen) resize(cols, rows uint16) {
	s.t.Helper()
	s.with(func() { s.vt.Resize(int(cols), int(rows)) })
	must(s.t, pty.Setsize(s.pty, &pty.Winsize{Cols: cols, Rows: rows}))
}

// end waits for the command and returns its exit code and all that it wrote.
func (s *screen) end() (code int, raw []byte) {
	s.t.Helper()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	must(s.t, s.tty.Close()) // then reading ends
	return s.cmd.ProcessState.ExitCode(), <-s.raw
}

// settings are those of the terminal's line discipline.
func (s *screen) settings() unix.Termios {
	s.t.Helper()
	v, err := unix.IoctlGetTermios(int(s.tty.Fd()), unix.TCGETS)
	must(s.t, err)
	return *v
}

// deniedIn counts all that was denied.
func deniedIn(t *testing.T, state string) (n uint64) {
	t.Helper()
	st, err := cgroups.ReadStatus(state)
	must(t, err)
	for _, p := range st.Pods {
		for _, v := range p.Drops {
			n += v
		}
		for _, c := range p.Containers {
			for _, v := range c.Drops {
				n += v
			}
		}
	}
	return n
}

// TestTop goes through what people do, on a pod that exists.
func TestTop(t *testing.T) {
	w, _, app := meshPod(t, "  nonTCP: deny\n")
	app.want("ok", "dial", "tcp", "127.0.0.1:9901")
	app.mustDo("dial", "tcp", "192.0.2.1:443")
	for range 3 {
		app.want("EPERM", "dial", "udp", "192.0.2.53:53")
	}
	denied := deniedIn(t, w.state)
	s := newScreen(t, w.state, "xterm-256color", 120, 30, nil, "top", "--interval", "100ms")
	s.see("sidegate top", "loaded", "pods 1, containers 2", "shop", "web", "enforce", "UDP that no")
	if alternate, _ := s.modes(); !alternate {
		t.Error("it is not on the alternate screen")
	}
	app.want("EPERM", "dial", "udp", "192.0.2.53:53") // counts go on
	s.see(fmt.Sprintf("denied %d", denied+1))

	s.press("?")
	s.see("page up", "any key goes back")
	s.press("x")
	s.see("sorted by drops")
	s.press("s")
	s.see("sorted by connections")

	s.resize(40, 10)
	s.wait("screen of 40x10", func(l []string) bool {
		return len(l) == 10 && strings.HasPrefix(l[0], "sidegate top") && strings.HasSuffix(l[0], "…") && strings.HasPrefix(l[3], "> shop") &&
			strings.HasPrefix(l[9], "sorted by connections") && l[4]+l[5]+l[6]+l[7]+l[8] == ""
	})
	s.resize(120, 30)
	s.wait("screen of 120x30", func(l []string) bool {
		return len(l) == 30 && strings.Contains(l[2], "MOSTLY DENIED") && strings.HasPrefix(l[29], "sorted by connections")
	})

	s.press("/zzz\r")
	s.see("no such pods", "filter zzz")
	s.press("\x1b")
	s.see("> shop")

	s.press("\r")
	s.see("pod shop", "policy web", "proxy", "sidecar", "192.0.2.53", "udp/53", "192.0.2.1", "tcp/443", "redirected")
	s.press("\x1b")
	s.see("POLICY", "> shop")

	must(t, cgroups.Unload(w.state, true)) // under its feet
	s.see("not loaded", "no pods")
	w.ns = nil
	w.start("store", "db", policy.RoleApp, "web")
	s.see("pods 1, containers 1", "store")

	// Somebody has the state's lock for long: keys work nevertheless, also the last one.
	store, err := cgroups.Open(w.state)
	must(t, err)
	s.see("waiting for the state")
	s.press("?")
	s.see("any key goes back")
	s.press("xq")
	code, raw := s.end()
	must(t, store.Close())
	if code != 0 {
		t.Errorf("exit code %d:\n%s", code, raw)
	}
	if alternate, hidden := s.modes(); alternate || hidden {
		t.Errorf("the terminal is not as it was: %t, %t", alternate, hidden)
	}
}

// TestTopOnTerminals of all kinds: it starts, and leaves them as they were.
func TestTopOnTerminals(t *testing.T) {
	state := newState(t)
	for _, c := range []struct {
		kind    string
		environ []string
		colored bool
		end     func(*screen)
	}{
		{"xterm", nil, true, func(s *screen) { s.press("q") }},
		{"xterm-256color", []string{"NO_COLOR=yes"}, false, func(s *screen) { s.press("\x03") }},
		{"screen", []string{"SSH_TTY=/dev/pts/0"}, true, func(s *screen) { must(t, s.cmd.Process.Signal(unix.SIGTERM)) }},
		{"linux", nil, true, func(s *screen) { must(t, s.cmd.Process.Signal(unix.SIGINT)) }},
		{"vt100", nil, false, func(s *screen) { s.press("q") }},
	} {
		t.Run(c.kind, func(t *testing.T) {
			s := newScreen(t, state, c.kind, 80, 24, c.environ, "top", "--interval", "100ms")
			before := s.settings()
			s.see("not loaded", "no pods", "q quit")
			c.end(s)
			must(t, ignoreExit(s.cmd.Wait()))
			if got := s.settings(); got != before {
				t.Errorf("settings are %+v, were %+v", got, before)
			}
			code, raw := s.cmd.ProcessState.ExitCode(), s.rest()
			if alternate, hidden := s.modes(); code != 0 || alternate || hidden {
				t.Errorf("exit code %d, alternate screen %t, cursor hidden %t\n%q", code, alternate, hidden, raw)
			}
			if colored := strings.Contains(raw, "\x1b[33m"); colored != c.colored {
				t.Errorf("colours: %t\n%q", colored, raw)
			}
		})
	}
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// rest is all that the command wrote, which has ended.
func (s *screen) rest() string {
	must(s.t, s.tty.Close())
	return string(<-s.raw)
}

func TestTopRefuses(t *testing.T) {
	state := newState(t)
	for _, kind := range []string{"dumb", ""} {
		s := newScreen(t, state, kind, 80, 24, nil, "top")
		code, raw := s.end()
		if code != cli.ExitFailed || !strings.Contains(string(raw), "use --once") || strings.Contains(string(raw), "\x1b") {
			t.Errorf("TERM=%s: exit code %d, %q", kind, code, raw)
		}
	}
	if stdout, stderr, code := call(state, "top"); code != cli.ExitFailed || stdout != "" || !strings.Contains(stderr, "use --once") {
		t.Errorf("no terminal: %d, %q, %q", code, stdout, stderr)
	}
	if stdout, stderr, code := call(state, "top", "--once"); code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Not loaded") {
		t.Errorf("once: %d, %q, %q", code, stdout, stderr)
	}
}

func TestTopOnce(t *testing.T) {
	w, _, app := meshPod(t, "  nonTCP: deny\n")
	for range 3 {
		app.want("EPERM", "dial", "udp", "192.0.2.53:53")
	}
	stdout, stderr, code := call(w.state, "top", "--once")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "shop  web     enforce  2           yes") || !strings.Contains(stdout, "UDP that no rule allows") {
		t.Errorf("%d, %q:\n%s", code, stderr, stdout)
	}
}
