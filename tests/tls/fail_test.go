// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
)

// kept is a connection in an app that is asked for paths.
type kept struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
}

// keep makes a connection and asks for a first path on it.
func (p *pod) keep(ctx context.Context, t *testing.T, version, more string) *kept {
	t.Helper()
	cmd := p.app.Command(ctx, "/usr/bin/python3", "-u", "-c", talk+`
s = connect(sys.argv[1], timeout=60)
`+more+`
for line in sys.stdin:
    try:
        s.sendall(req(line.strip(), headers if 'headers' in globals() else "").encode())
        got = s.recv(65536).decode()
        print(" ".join(hellos(got)) or "end")
    except Exception as e:
        print(repr(e))
`, version)
	k := &kept{t: t}
	var err error
	k.in, err = cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	k.out = bufio.NewScanner(out)
	must(t, cmd.Start())
	t.Cleanup(func() {
		k.in.Close()
		_ = cmd.Wait()
	})
	if got := k.ask("/v1/first"); got != "hello /v1/first" {
		t.Fatalf("the connection is not there: %q", got)
	}
	return k
}

func (k *kept) send(path string) {
	k.t.Helper()
	_, err := io.WriteString(k.in, path+"\n")
	must(k.t, err)
}

func (k *kept) answer() string {
	k.t.Helper()
	if !k.out.Scan() {
		k.t.Fatal("python has ended")
	}
	return k.out.Text()
}

func (k *kept) ask(path string) string {
	k.t.Helper()
	k.send(path)
	return k.answer()
}

// once asks for a path on a connection of its own.
const once = talk + `
try: print(*hellos(say(connect(sys.argv[1], timeout=20), req(sys.argv[2], close))[0]))
except Exception as e: print(repr(e))
`

func TestRelayKilled(t *testing.T) {
	ctx := begin(t)
	p, free := sharedPod(ctx, t, "inspect"), sharedPod(ctx, t, "free")
	var open []*kept
	for _, version := range versions {
		open = append(open, p.keep(ctx, t, version, ""))
	}
	other := free.keep(ctx, t, "TLSv1_3", "")
	w := watchAll(t)
	must(t, world.relay.Kill())
	defer func() {
		if t.Failed() {
			_ = world.relay.Start()
		}
	}()
	for _, k := range open {
		if got := k.ask("/v1/second"); strings.Contains(got, "hello") {
			t.Errorf("a connection outlives the relay: %q", got)
		}
	}
	if got := p.python(ctx, t, once, "TLSv1_3", "/v1/without")[0]; !strings.Contains(got, "ConnectionRefused") {
		t.Errorf("without a relay python says %q", got)
	}
	if got := other.ask("/secret/free"); got != "hello /secret/free" {
		t.Errorf("a pod without TLS in its policy: %q", got)
	}
	if got := free.python(ctx, t, once, "TLSv1_3", "/secret/new")[0]; got != "hello /secret/new" {
		t.Errorf("a pod without TLS in its policy: %q", got)
	}
	w.askedFor("GET api.example/secret/free", "GET api.example/secret/new")
	late, err := makePod(ctx, "inspect")
	if err == nil {
		t.Error("a pod starts without the relay")
		must(t, late.Remove(ctx))
	} else if !strings.Contains(err.Error(), "systemctl start sidegate-tls") {
		t.Errorf("what podman says does not help: %v", err)
	}
	must(t, world.relay.Start())
	for _, version := range versions {
		if got := p.python(ctx, t, once, version, "/v1/again")[0]; got != "hello /v1/again" {
			t.Errorf("after the restart: %q", got)
		}
		if got := p.python(ctx, t, once, version, "/secret/again")[0]; strings.Contains(got, "hello") {
			t.Errorf("after the restart: %q", got)
		}
	}
	if got := other.ask("/v1/end"); got != "hello /v1/end" {
		t.Errorf("a pod without TLS in its policy: %q", got)
	}
}

func TestRelayStopped(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	k := p.keep(ctx, t, "TLSv1_3", "")
	w := watchAll(t)
	must(t, world.relay.Signal(syscall.SIGSTOP))
	defer func() { _ = world.relay.Signal(syscall.SIGCONT) }()
	k.send("/v1/stopped")
	fresh := make(chan string, 1)
	go func() {
		out, err := run(ctx, p.app, once, "/usr/bin/python3", "-", "TLSv1_2", "/v1/fresh")
		fresh <- fmt.Sprint(strings.TrimSpace(out), err)
	}()
	// Whoever starts a pod meanwhile is told, after the relay's time.
	late, err := makePod(ctx, "inspect")
	if err == nil {
		t.Error("a pod starts without an answer of the relay")
		must(t, late.Remove(ctx))
	} else if !strings.Contains(err.Error(), "the TLS relay") {
		t.Errorf("what podman says does not help: %v", err)
	}
	w.askedFor()
	must(t, world.relay.Signal(syscall.SIGCONT))
	if got := k.answer(); got != "hello /v1/stopped" {
		t.Errorf("the connection that was there: %q", got)
	}
	if got := <-fresh; got != "hello /v1/fresh<nil>" {
		t.Errorf("the connection that came meanwhile: %q", got)
	}
	w.askedFor("GET api.example/v1/stopped", "GET api.example/v1/fresh")
}

func TestNoDescriptors(t *testing.T) {
	ctx := begin(t)
	p := sharedPod(ctx, t, "inspect")
	pid := world.relay.PID()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	var was unix.Rlimit
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was))
	few := was
	few.Cur = uint64(len(list) + 12)
	must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil))
	restore := func() error { return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil) }
	defer func() { must(t, restore()) }()
	w := p.watch(t)
	// Each holds its connection until all have tried.
	lines := p.python(ctx, t, talk+`
import threading
n = 30
held, results = threading.Barrier(n), [None] * n
def one(i):
    s = None
    try:
        s = connect(["TLSv1_2", "TLSv1_3"][i % 2], timeout=2)
        path = "/secret/none" if i % 5 == 0 else f"/v1/{i}"
        s.sendall(req(path).encode())
        results[i] = "hello " + path in s.recv(65536).decode()
    except Exception as e: results[i] = repr(e)
    held.wait()
    if s: s.close()
threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
for t in threads: t.start()
for t in threads: t.join()
print(results.count(True))
print(results)
`)
	must(t, restore())
	var answered int
	_, err = fmt.Sscan(lines[0], &answered)
	must(t, err)
	if answered == 0 || answered >= 24 {
		t.Errorf("%d connections were answered with descriptors for six", answered)
	}
	log, err := world.relay.Log()
	must(t, err)
	if !strings.Contains(log, "too many open files") {
		t.Error("the relay does not say that it has no descriptors")
	}
	w.settled()
	for _, r := range w.requests() {
		if strings.Contains(r.Path, "secret") {
			t.Errorf("the site was asked %s", r)
		}
	}
	for _, version := range versions {
		if got := p.python(ctx, t, once, version, "/v1/after")[0]; got != "hello /v1/after" {
			t.Errorf("after it: %q", got)
		}
	}
}

// TestPodGone: what the relay has in a pod goes with it.
func TestPodGone(t *testing.T) {
	ctx := begin(t)
	fds := func() (n int, namespaces string) {
		dir := fmt.Sprintf("/proc/%d/fd", world.relay.PID())
		list, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range list {
			if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(to, "net:") {
				namespaces += to
			}
		}
		return len(list), namespaces
	}
	before, _ := fds()
	p, err := makePod(ctx, "inspect")
	must(t, err)
	pid, err := p.PausePID(ctx)
	must(t, err)
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	must(t, err)
	k := p.keep(ctx, t, "TLSv1_3", "") // a connection that is there when it goes
	during, namespaces := fds()
	if during <= before || !strings.Contains(namespaces, ns) {
		t.Fatalf("the relay has %d descriptors, %d before, and %s", during, before, namespaces)
	}
	k.in.Close()
	must(t, p.Remove(ctx))
	must(t, lab.WaitFor(5*time.Second, "the relay to let go of the pod's namespace", func() (bool, error) {
		n, namespaces := fds()
		return n <= before && !strings.Contains(namespaces, ns), nil
	}))
}
