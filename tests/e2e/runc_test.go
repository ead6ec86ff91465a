// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/tests/lab"
)

// hookCall runs the hook as a runtime does.
func hookCall(t testing.TB, stage, state string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(hookBinary(), stage)
	cmd.Stdin = strings.NewReader(state)
	cmd.Env = append(os.Environ(), "SIDEGATE_POLICY_DIR="+filepath.Join(filepath.Dir(world.hooks), "policies"))
	return runCommand(t, cmd)
}

// A plain is a network namespace for containers of runc alone, linked to the
// node. Its address is one that the outside knows the way to.
type plain struct {
	ctx  context.Context
	t    *testing.T
	name string
	addr netip.Addr
	hook string // binary
}

func newPlain(ctx context.Context, t *testing.T) *plain {
	t.Helper()
	p := &plain{ctx: ctx, t: t, name: "plain", addr: netip.MustParseAddr("198.51.100.200"), hook: hookBinary()}
	ip(t, "netns", "add", p.name)
	t.Cleanup(func() { ip(t, "netns", "del", p.name) })
	ip(t, "link", "add", "plain0", "type", "veth", "peer", "name", "eth0", "netns", p.name)
	t.Cleanup(func() { ip(t, "link", "del", "plain0") })
	ip(t, "link", "set", "plain0", "up")
	ip(t, "addr", "add", "198.51.100.254", "peer", p.addr.String(), "dev", "plain0")
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", p.addr.String(), "peer", "198.51.100.254", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", "198.51.100.254"},
	} {
		ip(t, append([]string{"-n", p.name}, args...)...)
	}
	return p
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// bundle writes a bundle whose container has the prober for a root, and our
// hook if hooked.
func (p *plain) bundle(id string, annotations map[string]string, args ...string) string {
	p.t.Helper()
	dir := p.t.TempDir()
	for _, sub := range []string{"bin", "proc"} {
		must(p.t, os.MkdirAll(filepath.Join(dir, "rootfs", sub), 0o755))
	}
	must(p.t, os.Link(world.Prober, filepath.Join(dir, "rootfs", "bin", "prober")))
	capabilities := []string{"CAP_NET_RAW", "CAP_NET_ADMIN"}
	hook := func(stage string) []specs.Hook {
		return []specs.Hook{{
			Path: p.hook,
			Args: []string{filepath.Base(p.hook), stage},
			Env:  []string{"SIDEGATE_POLICY_DIR=" + filepath.Join(filepath.Dir(world.hooks), "policies"), "PATH=" + os.Getenv("PATH")},
		}}
	}
	spec := specs.Spec{
		Version:     "1.0.2",
		Annotations: annotations,
		Root:        &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Cwd:          "/",
			Args:         append([]string{"/bin/prober"}, args...),
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Hooks:  &specs.Hooks{CreateRuntime: hook("createRuntime"), Poststop: hook("poststop")},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(cgroupParent(p.t), id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: "/run/netns/" + p.name},
			},
		},
	}
	b, err := json.Marshal(spec)
	must(p.t, err)
	must(p.t, os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644))
	return dir
}

// run runs the container to its end.
func (p *plain) run(id string, annotations map[string]string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	return runCommand(p.t, exec.CommandContext(p.ctx, "runc", "run", "--bundle", p.bundle(id, annotations, args...), id))
}

// attempt makes one attempt in a container of its own.
func (p *plain) attempt(id string, annotations map[string]string, args ...string) lab.Result {
	p.t.Helper()
	stdout, stderr, _ := p.run(id, annotations, args...)
	return parseResult(p.t, stdout, stderr)
}

// background starts the container and returns a function that ends it. What it
// prints is in the file.
func (p *plain) background(id string, annotations map[string]string, args ...string) (output string, stop func()) {
	p.t.Helper()
	dir := p.bundle(id, annotations, args...)
	f, err := os.Create(filepath.Join(dir, "output"))
	must(p.t, err)
	defer f.Close()
	cmd := exec.CommandContext(p.ctx, "runc", "run", "--detach", "--bundle", dir, id)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(f.Name())
		p.t.Fatalf("runc run %s: %v: %s", id, err, b)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			endContainer(p.t, id)
		}
	}
	p.t.Cleanup(stop)
	return f.Name(), stop
}

// endContainer kills a container of runc and deletes it when it has ended: runc
// delete --force can find the cgroup busy, and leaves it there.
func endContainer(t testing.TB, id string) {
	t.Helper()
	out, err := exec.Command("runc", "state", id).Output()
	must(t, err)
	var st specs.State
	must(t, json.Unmarshal(out, &st))
	if out, err := exec.Command("runc", "kill", id, "KILL").CombinedOutput(); err != nil {
		t.Errorf("runc kill %s: %v: %s", id, err, out)
	}
	waitEnd(t, st.Pid)
	if out, err := exec.Command("runc", "delete", id).CombinedOutput(); err != nil {
		t.Errorf("runc delete %s: %v: %s", id, err, out)
	}
}

// sidecar starts one that tells where its clients meant to go.
func (p *plain) sidecar() (output string, stop func()) {
	p.t.Helper()
	output, stop = p.background("plain-sidecar", sidecarAnnotations(), "origdst-server", "--on", "127.0.0.1:15001")
	must(p.t, lab.WaitFor(10*time.Second, "the sidecar to listen", func() (bool, error) {
		st := status(p.t)
		return len(st.Pods) == 1 && st.Pods[0].Listening, nil
	}))
	return output, stop
}

// wantEnforced fails the test unless an app's connection is carried by the
// sidecar whose output this is, and its datagram nowhere.
func (p *plain) wantEnforced(id, output string) {
	p.t.Helper()
	nonce := newNonce()
	r := p.attempt(id, appAnnotations(), tcp(nonce)...)
	b, err := os.ReadFile(output)
	must(p.t, err)
	told := false
	for line := range strings.Lines(string(b)) {
		one := parseResult(p.t, line, "")
		told = told || one.Text("peer") == r.Text("local") && one.Text("original4") == world.Outside.Echo(false).String()
	}
	if !told || r.Addr("peer") != world.Outside.Echo(false) {
		p.t.Errorf("%s: TCP from %s to %s is unknown to the sidecar: %s", id, r.Text("local"), r.Text("peer"), b)
	}
	wantUnseen(p.t, nonce)
	for _, args := range [][]string{udp(newNonce()), rawUDP(newNonce())} {
		if r := p.attempt(id, appAnnotations(), args...); r.OK || r.Errno != "EPERM" {
			p.t.Errorf("%s: %v: %s", id, args, r)
		}
		wantUnseen(p.t, args[4])
	}
}

func TestPlainRunc(t *testing.T) {
	ctx := begin(t)
	p := newPlain(ctx, t)
	for _, args := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce())} {
		if r := p.attempt("plain-other", nil, args...); !r.OK {
			t.Errorf("without annotations: %v: %s", args, r)
		}
		wantSeen(t, args[4])
	}
	wantNoState(t)
	stdout, stderr, code := p.run("plain-bad", appAnnotations("sidegate/policy", "mehs"), tcp(newNonce())...)
	if code == 0 || stdout != "" || !strings.Contains(stderr, "sidegate: container plain-bad: sidegate/policy: ") ||
		!strings.Contains(stderr, "there are default, mesh, other") {
		t.Errorf("unknown policy: %d, printed %q, error %q", code, stdout, stderr)
	}
	wantNoState(t)
	output, stop := p.sidecar()
	p.wantEnforced("plain-app", output)
	for range 2 { // a container's id may be used again
		p.wantEnforced("plain-app", output)
	}
	if c, ok := find(t, "plain-sidecar"); !ok || c.Runtime != "oci" {
		t.Errorf("the sidecar is registered as %+v", c)
	}
	if st := status(t); len(st.Pods) != 1 || len(st.Pods[0].Containers) != 1 {
		t.Errorf("the status is %+v", st.Pods)
	}
	// Without annotations there is no way out of a managed namespace.
	for _, args := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce())} {
		if r := p.attempt("plain-other", nil, args...); r.OK {
			t.Errorf("stranger: %v: %s", args, r)
		}
		wantUnseen(t, args[4])
	}
	stop()
	wantNothingManaged(t)
}

// killer writes a hook that is killed after a time, and a function that sets
// the time. Zero is never. podman's precreate, which comes first and changes
// nothing but what it prints, is left alone.
func killer(t *testing.T) (binary string, after func(time.Duration)) {
	t.Helper()
	dir := t.TempDir()
	binary = filepath.Join(dir, "killer")
	// timeout(1) takes 0 for never.
	script := fmt.Sprintf("#!/bin/sh\nread -r after <%s/after\n[ \"$1\" = precreate ] && after=0\nexec timeout --signal=KILL \"$after\" %s \"$@\"\n", dir, hookBinary())
	must(t, os.WriteFile(binary, []byte(script), 0o755))
	return binary, func(d time.Duration) {
		must(t, os.WriteFile(filepath.Join(dir, "after"), []byte(strconv.FormatFloat(d.Seconds(), 'f', 6, 64)+"\n"), 0o644))
	}
}

// However far a hook came before it was killed, the container does not start,
// nothing opens, and the next start is as if it had never been.
func TestHookIsKilled(t *testing.T) {
	ctx := begin(t)
	p := newPlain(ctx, t)
	var after func(time.Duration)
	p.hook, after = killer(t)
	killed := 0
	// kill starts a container whose hook may take d, and tells whether it did not.
	kill := func(d time.Duration) bool {
		t.Helper()
		after(d)
		nonce := newNonce()
		stdout, stderr, code := p.run("plain-app", appAnnotations(), udp(nonce)...)
		after(0)
		wantUnseen(t, nonce)
		if code == 0 || stdout == "" && !strings.Contains(stderr, "hook") {
			t.Errorf("killed after %s: %d, printed %q, error %q", d, code, stdout, stderr)
		}
		if stdout == "" {
			killed++
		}
		return stdout == ""
	}
	// The first loads everything, which takes longest.
	for d := 2 * time.Millisecond; kill(d); d = d*3/2 + time.Millisecond {
		must(t, lab.WaitFor(5*time.Second, "nothing managed", func() (bool, error) {
			return len(status(t).Pods) == 0, nil
		}))
		sidegate(t, "unload")
	}
	t.Logf("killed %d times while it loaded", killed)
	wantNothingManaged(t)
	first := killed
	// Then in a pod that is in use, and is enforced all the time.
	output, stop := p.sidecar()
	for d := time.Millisecond; kill(d); d += 3 * time.Millisecond {
		if st := status(t); len(st.Pods) != 1 || len(st.Pods[0].Containers) != 1 {
			t.Errorf("killed after %s, the status is %+v", d, st.Pods)
		}
	}
	t.Logf("killed %d times while it attached", killed-first)
	p.wantEnforced("plain-app", output)
	stop()
	wantNothingManaged(t)
	if first < 3 || killed-first < 3 {
		t.Errorf("killed only %d and %d times", first, killed-first)
	}
	// The last hook of all is killed: there is nobody to tell of it, and the next one cleans up.
	for _, d := range []time.Duration{time.Millisecond, 4 * time.Millisecond, 10 * time.Millisecond} {
		_, stop := p.background("plain-last", appAnnotations(), "listen", "--on", "127.0.0.1:8080", "--accept", "1", "--timeout", "60s")
		after(d)
		stop()
		after(0)
		if st := status(t); len(st.Pods) != 0 {
			t.Errorf("poststop killed after %s, the status is %+v", d, st.Pods)
		}
		wantNothingManaged(t)
	}
}

// The same with podman, in a pod.
func TestHookIsKilledUnderPodman(t *testing.T) {
	ctx := begin(t)
	binary, after := killer(t)
	after(0)
	hooks, err := lab.Install(t.TempDir(), binary, policies)
	must(t, err)
	p := newPod(ctx, t, hooks)
	p.startSidecar()
	p.startApp()
	for i, d := range []time.Duration{time.Millisecond, 8 * time.Millisecond, 15 * time.Millisecond} {
		after(d)
		nonce := newNonce()
		args := p.runArgs("run", fmt.Sprint("victim", i), appAnnotations(), append([]string{"/bin/prober"}, udp(nonce)...)...)
		out, err := world.Podman.Run(ctx, append([]string{"--hooks-dir", hooks}, args...)...)
		after(0)
		if err == nil {
			t.Errorf("killed after %s: it ran: %s", d, out)
		}
		t.Logf("killed after %s: %v", d, err)
		wantUnseen(t, nonce)
		if st := status(t); len(st.Pods) != 1 || len(st.Pods[0].Containers) != 2 {
			t.Errorf("killed after %s, the status is %+v", d, st.Pods)
		}
		p.wantEnforced(p.app)
	}
	late, err := p.Run(ctx, "late", lab.AppImage, func() lab.ContainerOptions {
		o := powerful(appAnnotations())
		o.Args = []string{"/bin/sleep", "60"}
		return o
	}())
	must(t, err)
	p.wantEnforced(late)
	must(t, p.Remove(ctx))
	wantNothingManaged(t)
}
