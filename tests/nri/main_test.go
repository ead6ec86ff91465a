// SPDX-License-Identifier: Apache-2.0

// Package nri has the tests of the NRI plugin with a real containerd, driven by CRI, runc,
// CNI plugins, HAProxy and nginx, in a machine inside the machine (see package lab).
package nri

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

var commands = flag.Bool("commands", false, "print each command that the lab runs")

// world is what all tests share: a containerd and an outside, no plugin and no pods.
var world struct {
	*lab.Lab
	bin      string // directory of the binaries
	policies string // directory
	config   string // of the plugin, a file
}

// policies are what an administrator has installed.
var policies = map[string]string{
	"default.yaml": podPolicy("default", ""),
	"other.yaml":   podPolicy("other", ""),
	"fast.yaml":    podPolicy("fast", "  accelerate: on\n"),
}

func podPolicy(name, more string) string {
	return fmt.Sprintf(`apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: %s}
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
%s`, name, more)
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.RunTests("nri", func() (int, error) { return runTests(m) }))
}

func runTests(m *testing.M) (status int, err error) {
	opts := lab.Options{Containerd: &lab.ContainerdOptions{}}
	built := os.Getenv(underSystemd)
	if built != "" {
		opts.Containerd.SystemdCgroup = true
		opts.Prober = filepath.Join(built, "prober")
	}
	if *commands {
		opts.Log = os.Stderr
	}
	l, err := lab.New(context.Background(), opts)
	if err != nil {
		return 1, err
	}
	defer func() {
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}()
	world.Lab, world.bin = l, built
	ktls := filepath.Join(built, "ktls") // the repository is not where systemd runs this
	if built == "" {
		world.bin, ktls = filepath.Join(l.Dir, "bin"), "../../contrib/ktls"
		if err := lab.Build(world.bin); err != nil {
			return 1, err
		}
	}
	if _, err := lab.Install(filepath.Join(l.Dir, "installed"), hookBinary(), policies); err != nil {
		return 1, err
	}
	if err := lab.InstallKTLS(filepath.Join(l.Dir, "installed"), ktls); err != nil {
		return 1, err
	}
	world.policies = lab.PolicyDir(filepath.Join(l.Dir, "installed"))
	world.config = filepath.Join(l.Dir, "nri.yaml")
	if err := os.WriteFile(world.config, []byte(pluginConfig()), 0o644); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func pluginConfig() string {
	return fmt.Sprintf("hook: %s\npolicyDir: %s\nktlsDir: %s\n", hookBinary(), world.policies, filepath.Join(filepath.Dir(world.policies), "ktls"))
}

func hookBinary() string { return filepath.Join(world.bin, "sidegate-oci-hook") }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin gives a test its context and checks at its end that nothing is left: pods, plugins, state.
func begin(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		must(t, world.Containerd.RemoveAll(context.WithoutCancel(ctx)))
		out, err := exec.Command(filepath.Join(world.bin, "sidegate"), "unload").CombinedOutput()
		if err != nil {
			t.Errorf("unload at the end: %v: %s", err, out)
			must(t, lab.Unload(context.WithoutCancel(ctx), filepath.Join(world.bin, "sidegate")))
		}
		if _, err := os.Stat(cgroups.DefaultState); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s exists: %v", cgroups.DefaultState, err)
		}
		if t.Failed() && *commands {
			log, _ := world.Containerd.Log()
			t.Logf("containerd's log:\n%s", log)
		}
	})
	return ctx
}

// plugin is a process of sidegate-nri.
type plugin struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string
	ended chan error
}

const metricsAddress = "127.0.0.1:9464"

// startPlugin starts the plugin as a service does, and waits until it is ready.
func startPlugin(ctx context.Context, t *testing.T, flags ...string) *plugin {
	t.Helper()
	p := launchPlugin(t, flags...)
	p.waitReady(ctx)
	return p
}

func launchPlugin(t *testing.T, flags ...string) *plugin {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "nri.log")
	must(t, err)
	defer log.Close()
	p := &plugin{t: t, log: log.Name(), ended: make(chan error, 1)}
	args := append([]string{"--config", world.config, "--socket-path", world.Containerd.NRISocket(), "--metrics-address", metricsAddress, "--log-level=debug"}, flags...)
	p.cmd = exec.Command(filepath.Join(world.bin, "sidegate-nri"), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, p.cmd.Start())
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", p.logged())
		}
	})
	return p
}

func (p *plugin) signal(s syscall.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Error(err)
	}
}

// kill ends it with SIGKILL. It may be called again.
func (p *plugin) kill() {
	p.signal(syscall.SIGKILL)
	err := <-p.ended
	p.ended <- err
}

func (p *plugin) logged() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

func (p *plugin) waitReady(ctx context.Context) {
	p.t.Helper()
	var last string
	err := lab.WaitFor(30*time.Second, "the plugin to be ready", func() (bool, error) {
		select {
		case err := <-p.ended:
			p.ended <- err
			return false, fmt.Errorf("it has ended: %w", err)
		default:
		}
		code, text, err := lab.Get(ctx, metricsAddress, "/readyz")
		last = fmt.Sprint(code, text, err)
		return code == http.StatusOK, ctx.Err()
	})
	if err != nil {
		p.t.Fatalf("%v: %s\n%s", err, last, p.logged())
	}
}

// status is what the command says, by the names of pods.
func status(t testing.TB) map[string]cgroups.PodStatus {
	t.Helper()
	out, err := exec.Command(filepath.Join(world.bin, "sidegate"), "status", "--output", "json").Output()
	must(t, err)
	var st cgroups.Status
	must(t, json.Unmarshal(out, &st))
	pods := make(map[string]cgroups.PodStatus)
	for _, p := range st.Pods {
		pods[p.Pod] = p
	}
	return pods
}

// roles returns name=role of a pod's containers, sorted; "-" if it is not managed.
func roles(t testing.TB, pod string) string {
	t.Helper()
	p, ok := status(t)["lab/"+pod]
	if !ok {
		return "-"
	}
	var list []string
	for _, c := range p.Containers {
		list = append(list, c.Name+"="+c.Role)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func wantRoles(t testing.TB, pod, want string) {
	t.Helper()
	if got := roles(t, pod); got != want {
		t.Errorf("pod %s has %q, want %q", pod, got, want)
	}
}

// istio is what its injector leaves on a pod.
func istio() map[string]string {
	return map[string]string{"sidecar.istio.io/status": `{"containers":["istio-proxy"]}`}
}

func newNonce() string { return "n" + rand.Text() }

// joiner is a program that tries every simple way out as the first thing it does.
func joiner(nonce string) lab.ContainerOptions {
	return lab.ContainerOptions{Args: []string{"/bin/prober", "joiner", "--to", world.Outside.Echo(false).String(), "--nonce", nonce}}
}

// seen returns what of a nonce reached the outside.
func seen(t testing.TB, nonce string) []lab.Sighting {
	t.Helper()
	list, err := world.Outside.Seen(nonce)
	must(t, err)
	return list
}

// runJoiner runs a joiner in the pod to its end, and says what reached the outside.
func runJoiner(ctx context.Context, t testing.TB, p *lab.Pod, name string) (got []lab.Sighting, err error) {
	t.Helper()
	nonce := newNonce()
	c, err := p.Run(ctx, name, lab.AppImage, joiner(nonce))
	if err != nil {
		return seen(t, nonce), err
	}
	must(t, c.Wait(ctx))
	return seen(t, nonce), nil
}

func newPod(ctx context.Context, t testing.TB, o lab.PodOptions) *lab.Pod {
	t.Helper()
	p, err := world.Containerd.NewPod(ctx, o)
	must(t, err)
	return p
}

// startSidecar runs HAProxy under the name of Istio's sidecar.
func startSidecar(ctx context.Context, t testing.TB, p *lab.Pod) *lab.Container {
	t.Helper()
	c, err := p.StartSidecarAs(ctx, "istio-proxy", lab.ContainerOptions{})
	must(t, err)
	return c
}

func startApp(ctx context.Context, t testing.TB, p *lab.Pod, o lab.ContainerOptions) *lab.Container {
	t.Helper()
	c, err := p.StartApp(ctx, o)
	must(t, err)
	return c
}

func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error is %v, want %q in it", err, part)
		}
	}
}
