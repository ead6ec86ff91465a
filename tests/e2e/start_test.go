// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
)

// A container that asks for what cannot be had does not start, and podman's
// own error says why and what to do.
func TestStartFailsWithAMessage(t *testing.T) {
	ctx := begin(t)
	broken, err := lab.Install(t.TempDir(), hookBinary(), map[string]string{
		"bad.yaml": strings.ReplaceAll(policies["mesh.yaml"], "sidecarPorts:", "sidecarPort:"),
	})
	must(t, err)
	p := newPod(ctx, t, world.hooks)
	for _, c := range []struct {
		name, hooks string
		annotations map[string]string
		words       []string
	}{
		{"unknown policy", world.hooks, appAnnotations("sidegate/policy", "mehs"),
			[]string{"sidegate/policy", `no policy is named "mehs"`, "default, mesh, other"}},
		{"malformed policy", broken, appAnnotations(),
			[]string{"bad.yaml:7:3", "sidecarPort: unknown field", "did you mean sidecarPorts"}},
		{"two wrong annotations", world.hooks, appAnnotations("sidegate/role", "boss", "sidegate/wait", "soon"),
			[]string{`"boss" is not a role`, "write app, sidecar, init or none", `"soon" is not a duration`}},
		{"unknown annotation", world.hooks, appAnnotations("sidegate/rolle", "app"),
			[]string{"did you mean sidegate/role"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := p.runArgs("run", strings.ReplaceAll(c.name, " ", "-"), c.annotations, "/bin/sh", "-c", "echo it ran")
			out, err := world.Podman.Run(ctx, append([]string{"--hooks-dir", c.hooks}, args...)...)
			wantMessage(t, err, c.words...)
			if len(out) > 0 {
				t.Errorf("the app ran: %s", out)
			}
			wantNoState(t)
		})
	}
	// The pod is no managed one, and can be used by others.
	other, err := p.Run(ctx, "other", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/sleep", "60"}})
	must(t, err)
	p.wantDirect(other, udp(newNonce()))
}

// TestAdminCapabilities: a container that could get out of its policy does not
// start, unless the policy says that it may.
func TestAdminCapabilities(t *testing.T) {
	ctx := begin(t)
	hooks, err := lab.Install(t.TempDir(), hookBinary(), map[string]string{
		"mesh.yaml": strings.Replace(policies["mesh.yaml"], "adminCapabilities: allow", "adminCapabilities: deny", 1),
	})
	must(t, err)
	p := newPod(ctx, t, hooks)
	p.startSidecar()
	run := func(name string, opts lab.ContainerOptions) (*lab.Container, error) {
		opts.Annotations, opts.Args = appAnnotations(), []string{"/bin/sleep", "60"}
		return p.Run(ctx, name, lab.AppImage, opts)
	}
	_, err = run("admin", lab.ContainerOptions{CapAdd: []string{"NET_ADMIN"}})
	wantMessage(t, err, "CAP_NET_ADMIN", "adminCapabilities: allow into policy mesh")
	_, err = run("system", lab.ContainerOptions{CapAdd: []string{"SYS_ADMIN"}})
	wantMessage(t, err, "CAP_SYS_ADMIN", "leave its cgroup")
	_, err = p.Run(ctx, "stranger", lab.AppImage, lab.ContainerOptions{CapAdd: []string{"NET_ADMIN"}, Args: []string{"/bin/sleep", "60"}})
	wantMessage(t, err, "managed pod, without annotations", "CAP_NET_ADMIN")
	app, err := run("plain", lab.ContainerOptions{CapAdd: []string{"NET_RAW"}})
	must(t, err)
	p.wantEnforced(app)
}

// given starts a container in the pod whose descriptor 3 is f, and which uses that.
func (p *pod) given(f *os.File, hooks, name string, annotations map[string]string, args ...string) (lab.Result, error) {
	p.t.Helper()
	all := p.runArgs("run", name, annotations, append([]string{"/bin/prober", "inherited"}, args...)...)
	all = append([]string{all[0], "--rm", "--preserve-fds=1"}, all[1:]...)
	if hooks != "" {
		all = append([]string{"--hooks-dir", hooks}, all...)
	}
	out, err := world.Podman.RunWith(p.ctx, []*os.File{f}, all...)
	if len(out) == 0 {
		return lab.Result{}, err
	}
	return parseResult(p.t, string(out), ""), nil
}

// TestInheritedSockets: a descriptor that a container gets at its start is no way
// round its sidecar.
func TestInheritedSockets(t *testing.T) {
	ctx := begin(t)
	echo := world.Outside.Echo(false)
	// Sockets of the node: a connection, and one that is none yet.
	connection := func() *os.File {
		t.Helper()
		c, err := net.Dial("tcp4", echo.String())
		must(t, err)
		defer c.Close()
		f, err := c.(*net.TCPConn).File()
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	unconnected := func() *os.File {
		t.Helper()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	ways := func(use func(name string, f *os.File, nonce string, args ...string)) {
		nonce := newNonce()
		use("connection", connection(), nonce, "--nonce", nonce)
		nonce = newNonce()
		use("socket", unconnected(), nonce, "--nonce", nonce, "--to", echo.String())
	}
	out := func(p *pod, hooks, who string, annotations map[string]string) {
		t.Helper()
		ways(func(name string, f *os.File, nonce string, args ...string) {
			if r, err := p.given(f, hooks, who+"-"+name, annotations, args...); err != nil || !r.OK {
				t.Errorf("%s with a %s: %s, %v", who, name, r, err)
			}
			wantSeen(t, nonce)
		})
	}
	in := func(p *pod, who string, annotations map[string]string, words ...string) {
		t.Helper()
		ways(func(name string, f *os.File, nonce string, args ...string) {
			_, err := p.given(f, world.hooks, who+"-"+name, annotations, args...)
			wantMessage(t, err, append(words, "descriptor 3", "AF_INET, TCP", "--preserve-fds")...)
			wantUnseen(t, nonce)
		})
	}
	other := newPod(ctx, t, "")
	out(other, "", "unmanaged", appAnnotations())

	p := newMeshPod(ctx, t)
	in(p, "app", appAnnotations(), "policy mesh")
	in(p, "late", nil, "managed pod, without annotations")
	out(p, world.hooks, "exempt", map[string]string{"sidegate/role": "none"})
	// A descriptor that is none of a network is as it was.
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	if r, err := p.given(null, world.hooks, "null", appAnnotations()); err != nil || r.Errno != "ENOTSOCK" {
		t.Errorf("with /dev/null: %s, %v", r, err)
	}
	p.wantEnforced(p.app)

	// A sidecar that no rule binds may listen where its starter says.
	fresh := newPod(ctx, t, world.hooks)
	out(fresh, world.hooks, "sidecar", sidecarAnnotations())
}

// wantMessage fails the test unless podman's error has one line with "sidegate:"
// and all words.
func wantMessage(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("the container started")
		return
	}
	t.Log(err)
	_, message, ok := strings.Cut(err.Error(), "sidegate: ")
	if !ok {
		t.Errorf("error has no message of ours: %v", err)
	}
	message, _, _ = strings.Cut(message, "\n")
	for _, w := range words {
		if !strings.Contains(strings.ReplaceAll(message, `\"`, `"`), w) {
			t.Errorf("message does not say %q: %s", w, message)
		}
	}
}

// An app that is started first waits, not having run, until its sidecar
// listens.
func TestAppWaitsForItsSidecar(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, world.hooks)
	app, err := podman(ctx, p.runArgs("create", "app", appAnnotations("sidegate/wait", "30s"), "/bin/prober", "serve")...)
	must(t, err)
	started := make(chan error, 1)
	go func() {
		_, err := podman(ctx, "start", app)
		started <- err
	}()
	var pid int
	must(t, lab.WaitFor(10*time.Second, "the app to be attached", func() (bool, error) {
		c, ok := find(t, app)
		pid = c.PID
		return ok, nil
	}))
	wantWaiting := func(when string) {
		t.Helper()
		if cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(cmdline), "runc\x00init") {
			t.Errorf("%s the app is %q, %v", when, cmdline, err)
		}
		select {
		case err := <-started:
			t.Fatalf("%s the app started: %v", when, err)
		default:
		}
	}
	wantWaiting("without a sidecar")
	// A sidecar that is there, but does not listen, is not enough.
	idle, err := p.Run(ctx, "idle", lab.AppImage, lab.ContainerOptions{Annotations: sidecarAnnotations(), Args: []string{"/bin/sleep", "60"}})
	must(t, err)
	wantWaiting("with a sidecar that does not listen")
	must(t, idle.Remove(ctx))
	p.startSidecar()
	must(t, <-started)
	must(t, lab.WaitFor(5*time.Second, "the app to run", func() (bool, error) {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return strings.HasPrefix(string(cmdline), "/bin/prober\x00serve"), err
	}))
	p.wantServed()
}

// Without a sidecar the app does not start, and is forgotten.
func TestAppWaitsInVain(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, world.hooks)
	began := time.Now()
	_, err := podman(ctx, p.runArgs("run", "app", appAnnotations("sidegate/wait", "700ms"), "/bin/prober", "serve")...)
	wantMessage(t, err, "did not listen on its outbound port within 700ms", "sidegate/wait", "start the sidecar")
	if took := time.Since(began); took < 700*time.Millisecond || took > 10*time.Second {
		t.Errorf("it failed after %s", took)
	}
	if st := status(t); len(st.Pods) > 0 && len(st.Pods[0].Containers) > 0 {
		t.Errorf("the container is registered: %+v", st.Pods)
	}
	must(t, p.Remove(ctx))
	wantNothingManaged(t)
}

// What does not ask for Sidegate has nothing of it.
func TestUnannotatedContainerIsUntouched(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, world.hooks)
	app, err := p.StartApp(ctx, powerful(nil))
	must(t, err)
	for _, attempt := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce())} {
		p.wantDirect(app, attempt)
	}
	wantNoState(t)
	must(t, p.Remove(ctx))
	wantNoState(t)
}

// wantDirect fails the test unless the attempt arrives outside from c itself.
func (p *pod) wantDirect(c *lab.Container, attempt []string) {
	p.t.Helper()
	r := p.probe(c, attempt...)
	if !r.OK {
		p.t.Errorf("%s: %v: %s", c.Name, attempt, r)
		return
	}
	for _, s := range wantSeen(p.t, attempt[4]) {
		if s.Src.Addr() != p.V4 {
			p.t.Errorf("%s: %v: seen from %s", c.Name, attempt, s.Src)
		}
		if s.How == "tcp" && s.Src != r.Addr("local") {
			p.t.Errorf("%s: %v: arrived from %s, sent from %s", c.Name, attempt, s.Src, r.Addr("local"))
		}
	}
}

// A container of role none goes its own way in a managed pod, and changes
// nothing for the others.
func TestRoleNoneIsExempt(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	exempt, err := p.Run(ctx, "exempt", lab.AppImage, func() lab.ContainerOptions {
		o := powerful(appAnnotations("sidegate/role", "none"))
		o.Args = []string{"/bin/sleep", "60"}
		return o
	}())
	must(t, err)
	if c, ok := find(t, id(ctx, t, exempt)); !ok || c.Role != "none" {
		t.Errorf("it is registered as %+v", c)
	}
	for _, attempt := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce())} {
		p.wantDirect(exempt, attempt)
	}
	p.wantEnforced(p.app)
	p.wantServed()
}

// A process that podman exec starts, and containers and processes that come
// late, are no way round.
func TestLateComers(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app) // by podman exec
	for _, c := range []struct {
		name string
		run  func(args ...string) (lab.Result, error)
	}{
		{"container that joins the namespace", func(args ...string) (lab.Result, error) {
			return p.JoinNetns(ctx, p.app, powerful(nil), args...)
		}},
		{"container that joins the pod", func(args ...string) (lab.Result, error) {
			return p.JoinPod(ctx, powerful(nil), args...)
		}},
		{"process that enters the namespace", func(args ...string) (lab.Result, error) {
			return p.Enter(ctx, args...)
		}},
	} {
		for _, attempt := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce()), joiner(newNonce())} {
			if r, err := c.run(attempt...); err != nil || r.OK {
				t.Errorf("%s: %v: %s, %v", c.name, attempt, r, err)
			}
			wantUnseen(t, attempt[4])
		}
	}
	// One that says what it is gets what the pod's policy gives.
	late, err := p.Run(ctx, "late", lab.AppImage, func() lab.ContainerOptions {
		o := powerful(map[string]string{"sidegate/role": "app"})
		o.Args = []string{"/bin/sleep", "60"}
		return o
	}())
	must(t, err)
	if c, ok := find(t, id(ctx, t, late)); !ok || c.Policy != "mesh" {
		t.Errorf("the late app is registered as %+v", c)
	}
	p.wantEnforced(late)
	// And no second sidecar.
	_, err = p.Run(ctx, "second", lab.AppImage, lab.ContainerOptions{Annotations: sidecarAnnotations(), Args: []string{"/bin/sleep", "60"}})
	wantMessage(t, err, "a pod has one sidecar", p.sidecar.Name)
	_, err = p.Run(ctx, "third", lab.AppImage, lab.ContainerOptions{Annotations: appAnnotations("sidegate/policy", "other"), Args: []string{"/bin/sleep", "60"}})
	wantMessage(t, err, `under policy "mesh"`, `asks for "other"`, "sidegate/policy=mesh")
	p.wantEnforced(p.app)
}

// Nothing that is not in a managed pod notices that there is one.
func TestOthersAreUntouched(t *testing.T) {
	ctx := begin(t)
	other := newPod(ctx, t, world.hooks)
	app, err := other.StartApp(ctx, powerful(nil))
	must(t, err)
	gateway, err := world.GatewayMAC()
	must(t, err)
	attempts := func() map[string][]string {
		all := map[string][]string{
			"TCP": tcp(newNonce()), "UDP": udp(newNonce()), "raw": rawUDP(newNonce()),
			"connected UDP": append(udp(newNonce()), "--connected"),
			"ping":          {"ping", "--to", world.Outside.Addr(false).String(), "--nonce", newNonce(), "--timeout", "300ms"},
			"MPTCP":         append(tcp(newNonce()), "--proto", "mptcp"),
			"bind":          {"listen", "--on", "0.0.0.0:15001"},
			"bind UDP":      {"listen", "--on", "0.0.0.0:15001", "--udp"},
			"options":       {"sockopt", "--to", world.Outside.Echo(false).String()},
			"TCP, IPv6":     {"tcp", "--to", world.Outside.Echo(true).String(), "--timeout", "1s"},
			"UDP, IPv6":     {"udp", "--to", world.Outside.Echo(true).String(), "--timeout", "300ms"},
			"refused":       {"tcp", "--to", world.Outside.Addr(false).String() + ":9", "--timeout", "1s"},
		}
		return all
	}
	// results makes all attempts, from the pod and from the node, and says what
	// does not differ from time to time.
	results := func() map[string]string {
		all := map[string]string{}
		for name, args := range attempts() {
			pod := other.probe(app, args...)
			all["pod: "+name] = describe(pod)
			node := probeHere(t, args...)
			all["node: "+name] = describe(node)
		}
		frame := []string{"packet", "--to", world.Outside.Echo(false).String(), "--nonce", newNonce(), "--gw-mac", gateway}
		all["pod: frame"] = describe(other.probe(app, frame...))
		wantSeen(t, frame[4])
		all["pod: from outside"] = describe(other.request())
		return all
	}
	before := results()
	managed := newMeshPod(ctx, t)
	managed.wantEnforced(managed.app)
	during := results()
	must(t, managed.Remove(ctx))
	after := results()
	for name, want := range before {
		if during[name] != want || after[name] != want {
			t.Errorf("%s: before %s, with a managed pod %s, afterwards %s", name, want, during[name], after[name])
		}
	}
	for _, name := range []string{"pod: TCP", "pod: UDP", "pod: frame", "node: TCP", "node: UDP", "pod: from outside"} {
		if !strings.HasPrefix(before[name], "ok") {
			t.Errorf("%s, with no managed pod: %s", name, before[name])
		}
	}
}

// describe is what a result says that is the same every time.
func describe(r lab.Result) string {
	s := "ok"
	if !r.OK {
		s = r.Errno
		if s == "" {
			s = r.Err
		}
	}
	if peer := r.Addr("peer"); peer.IsValid() {
		s += " peer " + peer.String()
	}
	if options, ok := r.Data["options"]; ok {
		s += fmt.Sprint(" ", options)
	}
	return s
}

// probeHere runs the prober as a process of the node.
func probeHere(t *testing.T, args ...string) lab.Result {
	t.Helper()
	stdout, stderr, _ := runCommand(t, exec.Command(world.Prober, args...))
	return parseResult(t, stdout, stderr)
}

// parseResult reads the last line that the prober printed.
func parseResult(t testing.TB, stdout, stderr string) lab.Result {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var r lab.Result
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Fatalf("prober printed no result: %v: %s%s", err, stdout, stderr)
	}
	return r
}
