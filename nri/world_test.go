// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/policy"
)

// envProcess makes the test binary be a process in a container: it says "ready", and then
// answers each line on its standard input, such as "udp 192.0.2.1:9", with one.
const envProcess = "SIDEGATE_TEST_PROCESS"

// hookBinary is sidegate-oci-hook, which the runtime of these tests runs as a real one does.
var hookBinary string

// Capabilities are a thread's, and /proc shows the first one's.
func init() {
	if os.Getenv(envProcess) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(envProcess) != "" {
		process()
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	nrilog.Set(nriLogger{quiet}) // the runtime's messages
	os.Exit(withHook(m.Run))
}

func withHook(body func() int) int {
	dir, err := os.MkdirTemp("", "sgtest-nri-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	hookBinary = filepath.Join(dir, "sidegate-oci-hook")
	build := exec.Command("go", "build", "-o", hookBinary, "sidegate/oci-hook")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the hook: %v: %s\n", err, out)
		return 1
	}
	return body()
}

// process is the program of a container.
func process() {
	if err := dropCapabilities(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	open := make(map[io.Closer]bool) // as long as the process lives
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		network, address, _ := strings.Cut(s.Text(), " ")
		var c io.Closer
		var err error
		if listen, ok := strings.CutPrefix(network, "listen-"); ok {
			c, err = net.Listen(listen, address)
		} else {
			var conn net.Conn
			if conn, err = net.DialTimeout(network, address, time.Second); err == nil {
				_, err = conn.Write([]byte("x"))
				c = conn
			}
		}
		var errno syscall.Errno
		switch {
		case errors.As(err, &errno):
			fmt.Println(unix.ErrnoName(errno))
		case err != nil:
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		default:
			open[c] = true
			fmt.Println("ok")
		}
	}
	os.Exit(0)
}

// dropCapabilities leaves the calling thread, and what it starts, without those that a
// container does not have by default.
func dropCapabilities() error {
	var keep uint64 = 1<<unix.CAP_CHOWN | 1<<unix.CAP_NET_BIND_SERVICE
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
				return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
			}
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&head, &[]unix.CapUserData{{Effective: uint32(keep), Permitted: uint32(keep)}, {}}[0])
}

// counting is a runtime's count of its plugins.
type counting struct {
	adaptation.Metrics
	plugins atomic.Int32
}

func (c *counting) RecordPluginInvocation(string, string, error)                               {}
func (c *counting) RecordPluginLatency(string, string, time.Duration)                          {}
func (c *counting) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}
func (c *counting) UpdatePluginCount(n int)                                                    { c.plugins.Store(int32(n)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a runtime, NRI's own adaptation, and the plugin, each of which can go and come
// again, with pods whose containers are processes in cgroups and namespaces.
type world struct {
	t       *testing.T
	dir     string
	config  config
	options options
	log     *bytes.Buffer
	logMu   sync.Mutex
	runtime *adaptation.Adaptation
	count   *counting // of the runtime
	wire    *wire     // to it
	plugin  *plugin
	stopped chan error
	stop    context.CancelFunc
	cgroup  string
	mu      sync.Mutex // of
	pods    []*sandbox
}

// Write is the log's.
func (w *world) Write(b []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(b)
}

func (w *world) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

var serial atomic.Int64

// newWorld starts a runtime and a plugin. policies are files, by name.
func newWorld(t *testing.T, policies map[string]string) *world {
	t.Helper()
	w := newRuntime(t, policies)
	w.startPlugin()
	return w
}

// newRuntime starts a runtime without a plugin.
func newRuntime(t *testing.T, policies map[string]string) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups, namespaces and BPF programs")
	}
	w := &world{t: t, dir: t.TempDir(), log: &bytes.Buffer{}}
	w.config = defaultConfig()
	w.config.Hook = hookBinary
	w.config.PolicyDir = filepath.Join(w.dir, "policies")
	w.config.StateDir = fmt.Sprintf("/sys/fs/bpf/sgtest-nri-%d-%d", os.Getpid(), serial.Add(1))
	w.options.config = "of the test"
	w.options.socket = filepath.Join(w.dir, "nri.sock")
	must(t, os.Mkdir(w.config.PolicyDir, 0o755))
	for name, text := range policies {
		w.writePolicy(name, text)
	}
	mount, err := cgroups.FindMount()
	must(t, err)
	w.cgroup, err = os.MkdirTemp(mount.Dir, "sgtest-nri-")
	must(t, err)
	t.Cleanup(func() { must(t, os.Remove(w.cgroup)) })
	t.Cleanup(func() { must(t, cgroups.Unload(w.config.StateDir, true)) })
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the plugin's log:\n%s", w.logged())
		}
	})
	w.startRuntime()
	t.Cleanup(func() { w.stopRuntime() })
	t.Cleanup(func() {
		for _, p := range w.list() {
			p.kill()
		}
	})
	return w
}

func (w *world) writePolicy(name, text string) {
	w.t.Helper()
	must(w.t, os.WriteFile(filepath.Join(w.config.PolicyDir, name), []byte(text), 0o644))
}

func (w *world) list() []*sandbox {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.pods)
}

// startRuntime is a start of the runtime, which knows its pods.
func (w *world) startRuntime() {
	w.t.Helper()
	synchronize := func(ctx context.Context, f adaptation.SyncCB) error {
		var sandboxes []*api.PodSandbox
		var all []*api.Container
		for _, p := range w.list() {
			sandboxes = append(sandboxes, p.api)
			for _, c := range p.containers {
				all = append(all, c.api)
			}
		}
		_, err := f(ctx, sandboxes, all)
		return err
	}
	update := func(context.Context, []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) { return nil, nil }
	var err error
	w.count = &counting{}
	w.runtime, err = adaptation.New("containerd", "2.4.2", synchronize, update, adaptation.WithSocketPath(w.runtimeSocket()),
		adaptation.WithPluginPath(filepath.Join(w.dir, "plugins")), adaptation.WithPluginConfigPath(filepath.Join(w.dir, "conf.d")),
		adaptation.WithMetrics(w.count))
	must(w.t, err)
	must(w.t, w.runtime.Start())
	w.wire, err = newWire(w.options.socket, w.runtimeSocket())
	must(w.t, err)
}

// stopRuntime is its end: all connections end with it.
func (w *world) stopRuntime() {
	w.runtime.Stop()
	w.wire.cut()
}

func (w *world) runtimeSocket() string { return filepath.Join(w.dir, "runtime.sock") }

// wire hands on connections, and can be cut: NRI's adaptation keeps those of plugins that it
// has not started, which a process that ends does not.
type wire struct {
	l     net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newWire(from, to string) (*wire, error) {
	if err := os.RemoveAll(from); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", from)
	if err != nil {
		return nil, err
	}
	w := &wire{l: l}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", to)
			if err != nil {
				_ = a.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, a, b)
			w.mu.Unlock()
			for from, to := range map[net.Conn]net.Conn{a: b, b: a} {
				go func() {
					_, _ = io.Copy(to, from)
					_, _ = a.Close(), b.Close()
				}()
			}
		}
	}()
	return w, nil
}

func (w *wire) cut() {
	_ = w.l.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
}

// startPlugin runs the plugin as main does, and waits until it is ready.
func (w *world) startPlugin() {
	w.t.Helper()
	w.launchPlugin()
	w.waitReady()
}

func (w *world) launchPlugin() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(logrus.DebugLevel)
	must(w.t, preload(&w.config))
	w.plugin = newPlugin(w.config, w.options, newMetrics(w.config.StateDir), log)
	stopped := make(chan error, 1)
	w.stopped = stopped
	go func() { stopped <- w.plugin.connect(ctx, w.options) }()
	w.t.Cleanup(func() { // also one that a test has stopped
		stop()
		<-stopped
		stopped <- nil
	})
}

func (w *world) stopPlugin() {
	w.t.Helper()
	w.stop()
	err := <-w.stopped
	w.stopped <- nil
	must(w.t, err)
	w.count.plugins.Store(0) // the runtime looks at the next request only
}

func (w *world) waitReady() {
	w.t.Helper()
	w.waitFor("the plugin to be ready", func() error { return w.plugin.metrics.ready() })
	w.waitCounted()
}

// waitCounted waits until the runtime sends requests.
func (w *world) waitCounted() {
	w.t.Helper()
	w.waitFor("the runtime to have the plugin in its list", func() error {
		if n := w.count.plugins.Load(); n != 1 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
}

// waitFor waits until f returns nil.
func (w *world) waitFor(what string, f func() error) {
	w.t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if err = f(); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond) // between two looks
	}
	w.t.Fatalf("waited for %s: %v\n%s", what, err, w.logged())
}

// sandbox is a pod: a network namespace with a process in it.
type sandbox struct {
	w          *world
	api        *api.PodSandbox
	netns      string
	pause      *program
	containers []*ctr
}

// program is a process that a container runs.
type program struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	cgroup string
}

// podOptions is a pod's configuration.
type podOptions struct {
	labels, annotations map[string]string
	host                bool // shares the host's network
}

// makePod makes a pod, and tells nobody.
func (w *world) makePod(name string, o podOptions) *sandbox {
	w.t.Helper()
	p := &sandbox{w: w, api: &api.PodSandbox{
		Id: fmt.Sprintf("%s-%d", name, serial.Add(1)), Name: name, Namespace: "shop", Uid: name,
		Labels: o.labels, Annotations: o.annotations, Linux: &api.LinuxPodSandbox{},
	}}
	if o.host {
		p.pause = w.start("", 0)
		p.netns = "/proc/self/ns/net"
	} else {
		p.pause = w.start("", unix.CLONE_NEWNET|unix.CLONE_NEWPID)
		p.netns = fmt.Sprintf("/proc/%d/ns/net", p.pause.cmd.Process.Pid)
		p.api.Linux.Namespaces = []*api.LinuxNamespace{{Type: "ipc"}, {Type: "network", Path: p.netns}}
		must(w.t, inNetns(p.netns, func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() }))
	}
	p.api.Pid = uint32(p.pause.cmd.Process.Pid)
	w.mu.Lock()
	w.pods = append(w.pods, p)
	w.mu.Unlock()
	return p
}

// run makes a pod and tells the plugin, as RunPodSandbox of CRI does.
func (w *world) run(name string, o podOptions) (*sandbox, error) {
	w.t.Helper()
	p := w.makePod(name, o)
	err := w.runtime.RunPodSandbox(context.Background(), &api.RunPodSandboxRequest{Pod: p.api})
	if err != nil {
		w.forget(p)
		p.kill()
	}
	return p, err
}

func (w *world) mustRun(name string, o podOptions) *sandbox {
	w.t.Helper()
	p, err := w.run(name, o)
	must(w.t, err)
	return p
}

func (w *world) forget(p *sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods = slices.DeleteFunc(w.pods, func(other *sandbox) bool { return other == p })
}

// kill ends all processes of the pod. It may be called again.
func (p *sandbox) kill() {
	for _, c := range p.containers {
		c.program.kill()
	}
	p.pause.kill()
}

// remove is StopPodSandbox and RemovePodSandbox.
func (p *sandbox) remove() {
	p.w.t.Helper()
	p.kill()
	for _, c := range p.containers {
		must(p.w.t, p.w.runtime.RemoveContainer(context.Background(), &api.RemoveContainerRequest{Pod: p.api, Container: c.api}))
	}
	p.api.Linux.Namespaces = slices.DeleteFunc(p.api.Linux.Namespaces, func(n *api.LinuxNamespace) bool { return n.Type == "network" })
	must(p.w.t, p.w.runtime.StopPodSandbox(context.Background(), &api.StopPodSandboxRequest{Pod: p.api}))
	must(p.w.t, p.w.runtime.RemovePodSandbox(context.Background(), &api.RemovePodSandboxRequest{Pod: p.api}))
	p.w.forget(p)
}

// ctr is a container.
type ctr struct {
	*program
	pod    *sandbox
	api    *api.Container
	config specs.Spec // what the runtime made of it
}

// ctrOptions is a container's configuration.
type ctrOptions struct {
	labels, annotations map[string]string
	env, mounts         []string // variables, and destinations
	away                bool     // nobody hears of CreateContainer
	between             func()   // runs between CreateContainer and StartContainer
	silent              bool     // nobody hears of either
}

// start does what a runtime does: CreateContainer, a process, its hooks, StartContainer.
// The process runs from its beginning here, but does nothing yet that it is not told.
func (p *sandbox) start(name string, o ctrOptions) (*ctr, error) {
	p.w.t.Helper()
	ctx := context.Background()
	c := &ctr{pod: p, api: &api.Container{
		Id: fmt.Sprintf("%s-%s", p.api.Id, name), PodSandboxId: p.api.Id, Name: name, State: api.ContainerState_CONTAINER_CREATED,
		Labels: o.labels, Annotations: o.annotations, Env: o.env,
	}}
	for _, destination := range o.mounts {
		c.api.Mounts = append(c.api.Mounts, &api.Mount{Destination: destination, Source: "/tmp", Type: "bind"})
	}
	var adjust *api.ContainerAdjustment
	if !o.silent && !o.away {
		r, err := p.w.runtime.CreateContainer(ctx, &api.CreateContainerRequest{Pod: p.api, Container: c.api})
		if err != nil {
			return nil, err
		}
		adjust = r.GetAdjust()
	}
	c.program = p.w.start(p.netns, unix.CLONE_NEWPID|unix.CLONE_NEWNS)
	fail := func(err error) (*ctr, error) {
		c.program.kill()
		return nil, err
	}
	if err := c.hooks(adjust); err != nil {
		return fail(err)
	}
	if o.between != nil {
		o.between()
	}
	c.api.Pid = uint32(c.cmd.Process.Pid)
	if !o.silent {
		if err := p.w.runtime.StartContainer(ctx, &api.StartContainerRequest{Pod: p.api, Container: c.api}); err != nil {
			return fail(err)
		}
	}
	c.api.State = api.ContainerState_CONTAINER_RUNNING
	p.containers = append(p.containers, c)
	return c, nil
}

func (p *sandbox) mustStart(name string, o ctrOptions) *ctr {
	p.w.t.Helper()
	c, err := p.start(name, o)
	must(p.w.t, err)
	return c
}

// hooks runs those of createRuntime, as runc does.
func (c *ctr) hooks(adjust *api.ContainerAdjustment) error {
	bundle := c.pod.w.t.TempDir()
	config := specs.Spec{Root: &specs.Root{Path: "/"}, Process: &specs.Process{Env: slices.Clone(c.api.Env)}}
	for _, m := range c.api.Mounts { // also those that were added: NRI's adaptation puts them there
		config.Mounts = append(config.Mounts, specs.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o644); err != nil {
		return err
	}
	c.config = config
	annotations := map[string]string{"io.kubernetes.cri.container-name": c.api.Name, "io.kubernetes.cri.container-type": "container"}
	maps.Copy(annotations, adjust.GetAnnotations())
	state, err := json.Marshal(specs.State{
		Version: specs.Version, ID: c.api.Id, Status: specs.StateCreating, Pid: c.cmd.Process.Pid, Bundle: bundle, Annotations: annotations,
	})
	if err != nil {
		return err
	}
	for _, h := range adjust.GetHooks().GetCreateRuntime() {
		cmd := &exec.Cmd{Path: h.Path, Args: h.Args, Env: h.Env, Stdin: bytes.NewReader(state)}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("hook: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// start runs the test binary as a process in a cgroup of its own, in a network namespace.
func (w *world) start(netnsPath string, flags uintptr) *program {
	w.t.Helper()
	p := &program{cgroup: filepath.Join(w.cgroup, fmt.Sprint(serial.Add(1)))}
	must(w.t, os.Mkdir(p.cgroup, 0o755))
	dir, err := os.Open(p.cgroup)
	must(w.t, err)
	defer dir.Close()
	p.cmd = exec.Command("/proc/self/exe")
	p.cmd.Env = append(os.Environ(), envProcess+"=1", "GORACE=atexit_sleep_ms=0")
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: flags}
	p.in, err = p.cmd.StdinPipe()
	must(w.t, err)
	out, err := p.cmd.StdoutPipe()
	must(w.t, err)
	p.out = bufio.NewReader(out)
	must(w.t, inNetns(cmp.Or(netnsPath, "/proc/self/ns/net"), p.cmd.Start))
	w.t.Cleanup(func() {
		p.kill()
		must(w.t, os.Remove(p.cgroup))
	})
	if line, err := p.out.ReadString('\n'); err != nil || line != "ready\n" {
		w.t.Fatalf("process says %q, %v", line, err)
	}
	return p
}

// do lets the process do something and returns what came of it, such as EPERM.
func (p *program) do(t *testing.T, what string) string {
	t.Helper()
	_, err := fmt.Fprintln(p.in, what)
	must(t, err)
	line, err := p.out.ReadString('\n')
	must(t, err)
	return strings.TrimSuffix(line, "\n")
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // may have been waited for
}

// inNetns runs f on a thread in a network namespace.
func inNetns(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread goes with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// status returns what is managed, by the names of pods.
func (w *world) status() map[string]cgroups.PodStatus {
	w.t.Helper()
	st, err := cgroups.ReadStatus(w.config.StateDir)
	must(w.t, err)
	pods := make(map[string]cgroups.PodStatus)
	for _, p := range st.Pods {
		pods[p.Pod] = p
	}
	return pods
}

// roles returns the roles of a pod's registered containers, as name=role, sorted; "-" if
// it is not managed.
func (w *world) roles(pod string) string {
	w.t.Helper()
	p, ok := w.status()[pod]
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

func (w *world) wantRoles(pod, want string) {
	w.t.Helper()
	if got := w.roles(pod); got != want {
		w.t.Errorf("pod %s has %q, want %q", pod, got, want)
	}
}

// waitForgotten waits until nothing is known of a pod that has ended: collectSoon does not do it at once.
func (w *world) waitForgotten(pod string) {
	w.t.Helper()
	w.waitFor("the end of pod "+pod, func() error {
		if got := w.roles(pod); got != "-" {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error is %q, want %q in it", err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error has several lines: %q", err)
	}
}

func podPolicy(name, spec string) string {
	return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s}\nspec: {%s}\n", policy.APIVersion, policy.Kind, name, spec)
}
