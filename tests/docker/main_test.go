// SPDX-License-Identifier: Apache-2.0

// Package docker has the tests of the network driver with real dockerds, runc, HAProxy and nginx, in a machine inside
// the machine (see package lab): moby's, which tells the driver of a container before it runs, and Debian's 20.10,
// which does not.
package docker

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

// world is what tests share: binaries, policies, and a lab with the dockerd that the last test wanted.
var world struct {
	*lab.Lab
	flavour  lab.DockerFlavour
	dir      string
	bin      string // directory of the binaries
	policies string // directory
}

// policies are what an administrator has installed.
var policies = map[string]string{
	"default.yaml": podPolicy("default"),
	"other.yaml":   podPolicy("other"),
	"fast.yaml":    podPolicy("fast") + "  accelerate: on\n",
}

func podPolicy(name string) string {
	return fmt.Sprintf(`apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: %s}
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
`, name)
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.RunTests("docker", func() (int, error) { return runTests(m) }))
}

func runTests(m *testing.M) (status int, err error) {
	if world.dir, err = os.MkdirTemp("", "sidegate-docker-test-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(world.dir)) }()
	world.bin = filepath.Join(world.dir, "bin")
	if err := lab.Build(world.bin); err != nil {
		return 1, err
	}
	if _, err := lab.Install(filepath.Join(world.dir, "installed"), hookBinary(), policies); err != nil {
		return 1, err
	}
	if err := lab.InstallKTLS(filepath.Join(world.dir, "installed"), "../../contrib/ktls"); err != nil {
		return 1, err
	}
	world.policies = lab.PolicyDir(filepath.Join(world.dir, "installed"))
	status = m.Run()
	if world.Lab != nil {
		err = world.Close()
	}
	return status, err
}

func hookBinary() string { return filepath.Join(world.bin, "sidegate-oci-hook") }

// wrapper is the name of the runtime that is the wrapper in front of runc.
const wrapper = "sidegate"

func dockerOptions(flavour lab.DockerFlavour) lab.DockerOptions {
	o := lab.DockerOptions{Flavour: flavour, Runtimes: map[string]string{wrapper: hookBinary()}}
	o.Env = []string{"SIDEGATE_POLICY_DIR=" + world.policies, "SIDEGATE_KTLS_DIR=" + filepath.Join(world.dir, "installed", "ktls")}
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin gives a test its context, a dockerd of a flavour without containers and networks, and checks at its end that
// nothing is left.
func begin(t *testing.T, flavour lab.DockerFlavour) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	if world.Lab != nil && world.flavour != flavour {
		err := world.Close()
		world.Lab = nil
		must(t, err)
	}
	if world.Lab == nil {
		o := dockerOptions(flavour)
		opts := lab.Options{Docker: &o}
		if *commands {
			opts.Log = os.Stderr
		}
		l, err := lab.New(ctx, opts)
		must(t, err)
		world.Lab, world.flavour = l, flavour
	}
	return ctx
}

// driver is a process of sidegate-docker.
type driver struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string
	ended chan error
}

const (
	metricsAddress = "127.0.0.1:9465"
	mesh           = "mesh" // the network of most tests
)

// startDriver starts the driver as a service does and waits until it is ready. At the test's end what the test made is
// removed, and the kernel has to have nothing left.
func startDriver(ctx context.Context, t *testing.T, flags ...string) *driver {
	t.Helper()
	d := launchDriver(t, flags...)
	d.waitReady(ctx)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		defer func() {
			current.kill()
			if t.Failed() {
				t.Logf("the driver's log:\n%s", current.logged())
			}
		}()
		must(t, world.Docker.RemoveAll(ctx))
		wantNothing(t)
		out, err := exec.Command(filepath.Join(world.bin, "sidegate"), "unload").CombinedOutput()
		if err != nil {
			t.Errorf("unload at the end: %v: %s", err, out)
			must(t, lab.Unload(ctx, filepath.Join(world.bin, "sidegate")))
		}
		if _, err := os.Stat(cgroups.DefaultState); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s exists: %v", cgroups.DefaultState, err)
		}
		if t.Failed() && *commands {
			log, _ := world.Docker.Log()
			t.Logf("dockerd's log:\n%s", log)
		}
	})
	return d
}

// current is the driver that was started last. It has to be there when a test's networks are removed.
var current *driver

// dataDir is where drivers of all tests remember networks.
func dataDir() string { return filepath.Join(world.dir, "data") }

func launchDriver(t *testing.T, flags ...string) *driver {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "docker.log")
	must(t, err)
	defer log.Close()
	d := &driver{t: t, log: log.Name(), ended: make(chan error, 1)}
	args := append([]string{"--policy-dir", world.policies, "--data-dir", dataDir(), "--metrics-address", metricsAddress, "--log-level=debug"}, flags...)
	d.cmd = exec.Command(filepath.Join(world.bin, "sidegate-docker"), args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, d.cmd.Start())
	go func() { d.ended <- d.cmd.Wait() }()
	current = d
	return d
}

// kill ends it with SIGKILL. It may be called again.
func (d *driver) kill() {
	if err := d.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	err := <-d.ended
	d.ended <- err
}

func (d *driver) logged() string {
	b, _ := os.ReadFile(d.log)
	return string(b)
}

func (d *driver) waitReady(ctx context.Context) {
	d.t.Helper()
	var last string
	err := lab.WaitFor(lab.Patience, "the driver to be ready", func() (bool, error) {
		select {
		case err := <-d.ended:
			d.ended <- err
			return false, fmt.Errorf("it has ended: %w", err)
		default:
		}
		code, text, err := lab.Get(ctx, metricsAddress, "/readyz")
		last = fmt.Sprint(code, text, err)
		return code == http.StatusOK, ctx.Err()
	})
	if err != nil {
		d.t.Fatalf("%v: %s\n%s", err, last, d.logged())
	}
}

// newMesh makes the network that the outside reaches without translation of addresses.
func newMesh(ctx context.Context, t testing.TB) {
	t.Helper()
	must(t, newMeshError(ctx))
}

func newMeshError(ctx context.Context) error {
	return world.Docker.NewNetwork(ctx, mesh, lab.SidegateDriver, "--opt", "com.docker.network.bridge.enable_ip_masquerade=false")
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
	p, ok := status(t)[pod]
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

func waitRoles(t testing.TB, pod, want string) {
	t.Helper()
	got := ""
	err := lab.WaitFor(lab.Patience, "pod "+pod+" to have "+want, func() (bool, error) {
		got = roles(t, pod)
		return got == want, nil
	})
	if err != nil {
		t.Fatalf("%v: it has %q", err, got)
	}
}

// wantNothing looks for devices, pins and rules of the driver.
func wantNothing(t testing.TB) {
	t.Helper()
	left := ""
	err := lab.WaitFor(lab.Patience, "the end of all that the driver made", func() (bool, error) {
		links, err := exec.Command("ip", "-brief", "link").Output()
		if err != nil {
			return false, err
		}
		left = ""
		for line := range strings.Lines(string(links)) {
			if strings.HasPrefix(line, "sg") {
				left += line
			}
		}
		rules, err := exec.Command("nft", "list", "tables").Output()
		if err != nil {
			return false, err
		}
		if strings.Contains(string(rules), "sidegate") {
			left += string(rules)
		}
		remembered, err := os.ReadDir(dataDir())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		for _, file := range remembered {
			left += file.Name() + "\n"
		}
		pods := status(t)
		for name := range pods {
			left += "pod " + name + "\n"
		}
		return left == "", nil
	})
	if err != nil {
		t.Errorf("%v: %s", err, left)
	}
}

func newNonce() string { return "n" + rand.Text() }

// joiner is a program that tries every simple way out as the first thing it does.
func joiner(nonce string) []string {
	return []string{"/bin/sh", "-c", "/bin/prober joiner --to " + world.Outside.Echo(false).String() + " --nonce " + nonce + "; exit 0"}
}

// seen returns what of a nonce reached the outside.
func seen(t testing.TB, nonce string) []lab.Sighting {
	t.Helper()
	list, err := world.Outside.Seen(nonce)
	must(t, err)
	return list
}

// runJoiner runs a joiner to its end, and says what reached the outside.
func runJoiner(ctx context.Context, t testing.TB, flags ...string) (got []lab.Sighting, err error) {
	t.Helper()
	nonce := newNonce()
	args := append(append([]string{"run", "--rm"}, flags...), lab.AppImage)
	_, err = world.Docker.CLI(ctx, append(args, joiner(nonce)...)...)
	return seen(t, nonce), err
}

// runApp runs the app that others join, on the mesh.
func runApp(ctx context.Context, t testing.TB, name string, flags ...string) (*lab.Container, *lab.Pod) {
	t.Helper()
	flags = append([]string{"--network", mesh}, flags...)
	c, err := world.Docker.Run(ctx, name, lab.AppImage, flags, "/bin/prober", "serve", "--on", fmt.Sprintf(":%d", lab.AppPort))
	must(t, err)
	must(t, c.WaitListening(ctx, lab.AppPort))
	p, err := world.Docker.PodOf(ctx, c, lab.PodOptions{})
	must(t, err)
	return c, p
}

// runPatientApp is runApp for one that is registered when its program runs already: it tries again to listen.
func runPatientApp(ctx context.Context, t testing.TB, name string, flags ...string) (*lab.Container, *lab.Pod) {
	t.Helper()
	flags = append([]string{"--network", mesh}, flags...)
	serve := fmt.Sprintf("while :; do /bin/prober serve --on :%d; done", lab.AppPort)
	c, err := world.Docker.Run(ctx, name, lab.AppImage, flags, "/bin/sh", "-c", serve)
	must(t, err)
	must(t, c.WaitListening(ctx, lab.AppPort))
	p, err := world.Docker.PodOf(ctx, c, lab.PodOptions{})
	must(t, err)
	return c, p
}

// label is the flag of a role.
func label(role string) []string { return []string{"--label", "sidegate/role=" + role} }

// wrapped is label for a container that the wrapper runs.
func wrapped(role string) []string { return append(label(role), "--runtime", wrapper) }

// sidecarIn runs HAProxy in the network namespace of the pod's app.
func sidecarIn(ctx context.Context, t testing.TB, p *lab.Pod, flags ...string) *lab.Container {
	t.Helper()
	c, err := p.StartSidecarAs(ctx, "sidecar", lab.ContainerOptions{Flags: flags})
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
