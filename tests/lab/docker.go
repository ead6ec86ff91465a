// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DockerFlavour says which Docker.
type DockerFlavour string

// Flavours of Docker. They differ in when they call a network driver's Join: Moby's with the container's process there, Debian's before.
const (
	Moby         DockerFlavour = "moby"   // moby v2 with containerd 2.4, from scripts/tools.sh
	DebianDocker DockerFlavour = "debian" // Debian 12's own: 20.10 with containerd 1.6
)

// DockerOptions configures a Docker.
type DockerOptions struct {
	Flavour DockerFlavour // "" for Moby
	// LiveRestore lets containers outlive dockerd, also if it is stopped.
	LiveRestore bool
	// Runtimes are more OCI runtimes, by name, and DefaultRuntime the one that containers have; "" for runc.
	Runtimes       map[string]string
	DefaultRuntime string
	// UserlandProxy publishes ports by processes, which is the only way here: there are no rules of iptables.
	UserlandProxy bool
	// Flags are more flags of dockerd; a later one overrides what the lab says.
	Flags []string
	// Env is in the environment of dockerd, containerd, shims and so of Runtimes, as "KEY=VALUE". containerd's does not change with Configure.
	Env []string
}

// Docker is a dockerd and its containerd, with storage, state, configuration and networks of its own.
type Docker struct {
	lab        *Lab
	opts       DockerOptions
	dir        string // images, containers, logs
	node       *Node
	path       string // PATH of the daemons
	cli        string
	runc       string
	containerd *daemon
	daemon     *daemon
	http       *http.Client
	serial     atomic.Int32
	device     string // that the last network's containers are linked to
}

const (
	dockerSocket = "/run/docker.sock"
	dockerState  = "/run/docker" // as mounts have it; Docker says /var/run
	dockerEtc    = "/etc/docker"
	dockerBridge = "br-lab" // Docker's own bridges are br-ID
)

const (
	// DockerPlugins is where dockerd looks for the sockets of plugins. It is the node's own, and exists as long as a lab with Docker does.
	DockerPlugins = dockerState + "/plugins"
	// DockerSpecs is the other place, for files that say where sockets are. It is the node's own, too.
	DockerSpecs = dockerEtc + "/plugins"
)

const dockerContainerdConfig = `version = 2
root = %[1]q
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = %[2]q
`

// newDocker configures and starts Docker and loads the images.
func newDocker(ctx context.Context, l *Lab, n *Node, opts DockerOptions) (*Docker, error) {
	e := &Docker{lab: l, dir: filepath.Join(l.Dir, "docker"), node: n}
	var dialer net.Dialer
	e.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", dockerSocket)
	}}}
	if err := e.find(ctx, cmp.Or(opts.Flavour, Moby)); err != nil {
		return nil, err
	}
	for _, d := range []string{filepath.Join(e.dir, "cli"), DockerPlugins, e.cgroup(), dockerEtc} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, errors.Join(err, e.close())
		}
	}
	// The machine's stays as it is: its daemon.json and plugins, and key.json, which 20.10 writes there whatever its configuration.
	if err := unix.Mount("sidegate-lab", dockerEtc, "tmpfs", 0, "mode=755"); err != nil {
		return nil, errors.Join(fmt.Errorf("mount tmpfs on %s: %w", dockerEtc, err), e.close())
	}
	err := os.Mkdir(DockerSpecs, 0o755)
	if err == nil {
		err = e.Configure(opts)
	}
	if err == nil {
		err = e.startContainerd(ctx)
	}
	if err == nil {
		err = e.Start(ctx)
	}
	if err == nil {
		err = e.loadImages(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// find says where the programs of a flavour are.
func (e *Docker) find(ctx context.Context, flavour DockerFlavour) error {
	switch flavour {
	case Moby:
		docker, err := toolsDir(ctx, dockerTools, dockerToolsEnv)
		if err != nil {
			return err
		}
		containerd, err := toolsDir(ctx, containerdTools, containerdToolsEnv)
		if err != nil {
			return err
		}
		e.path, e.cli, e.runc = docker+":"+containerd+":"+os.Getenv("PATH"), filepath.Join(docker, "docker"), filepath.Join(containerd, "runc")
	case DebianDocker:
		// Whatever else the machine has in PATH.
		e.path, e.cli, e.runc = "/usr/sbin:/usr/bin:/sbin:/bin", "/usr/bin/docker", "/usr/sbin/runc"
		if _, err := os.Stat("/usr/sbin/dockerd"); err != nil {
			return fmt.Errorf("%w (install docker.io)", err)
		}
	default:
		return fmt.Errorf("docker of flavour %q", flavour)
	}
	return nil
}

// cgroup is where the daemons, shims and proxies are, so that they end together.
func (e *Docker) cgroup() string { return e.node.cgroupPath("docker") }

// Configure writes another configuration, which holds from the next start on. The flavour stays.
func (e *Docker) Configure(opts DockerOptions) error {
	opts.Flavour = cmp.Or(opts.Flavour, Moby)
	if e.daemon != nil && opts.Flavour != e.opts.Flavour {
		return errors.New("a lab has one flavour of docker")
	}
	e.opts = opts
	type runtime struct {
		Path string `json:"path"`
	}
	config := struct {
		LiveRestore    bool               `json:"live-restore"`
		UserlandProxy  bool               `json:"userland-proxy"`
		DefaultRuntime string             `json:"default-runtime,omitempty"`
		Runtimes       map[string]runtime `json:"runtimes,omitempty"`
	}{opts.LiveRestore, opts.UserlandProxy, opts.DefaultRuntime, map[string]runtime{}}
	for name, path := range opts.Runtimes {
		config.Runtimes[name] = runtime{path}
	}
	b, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dockerEtc, "daemon.json"), append(b, '\n'), 0o644)
}

// Runc is the runtime of containers that have no other.
func (e *Docker) Runc() string { return e.runc }

// Socket is that of dockerd's API.
func (e *Docker) Socket() string { return dockerSocket }

// PID returns dockerd's process id.
func (e *Docker) PID() int { return e.daemon.cmd.Process.Pid }

// Log returns what dockerd has logged since its start.
func (e *Docker) Log() ([]byte, error) { return os.ReadFile(e.daemon.logPath) }

// service starts a daemon in Docker's cgroup.
func (e *Docker) service(name string, argv ...string) (*daemon, error) {
	cgroup, err := os.Open(e.cgroup())
	if err != nil {
		return nil, err
	}
	defer cgroup.Close()
	program, err := e.lookPath(name)
	if err != nil {
		return nil, err
	}
	d := newDaemon(e.dir, name, append([]string{program}, argv...)...)
	d.cmd.Env = append(append(os.Environ(), "PATH="+e.path), e.opts.Env...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := d.start(); err != nil {
		return nil, err
	}
	return d, nil
}

// lookPath finds a program in the daemons' PATH.
func (e *Docker) lookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(e.path) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// startContainerd starts containerd as a service of its own, as distributions do. One that dockerd starts leaves a directory in /opt.
func (e *Docker) startContainerd(ctx context.Context) error {
	config := filepath.Join(e.dir, "containerd.toml")
	text := fmt.Sprintf(dockerContainerdConfig, filepath.Join(e.dir, "containerd"), filepath.Join(e.dir, "opt"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	var err error
	if e.containerd, err = e.service("containerd", "--config", config); err != nil {
		return err
	}
	return WaitFor(Patience, "containerd to listen", func() (bool, error) {
		if err := e.containerd.alive(); err != nil {
			return false, err
		}
		c, err := net.Dial("unix", containerdSocket)
		if err != nil {
			return false, ctx.Err()
		}
		return true, c.Close()
	})
}

// Start starts dockerd and waits until it serves.
func (e *Docker) Start(ctx context.Context) error {
	began := time.Now()
	flags := []string{
		"--data-root", e.root(), "--exec-root", "/var" + dockerState, "--pidfile", "/run/docker.pid",
		"--host", "unix://" + dockerSocket, "--containerd", containerdSocket,
		"--iptables=false", "--ip6tables=false", "--bridge=none",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", e.node.Cgroup + "/pods",
	}
	d, err := e.service("dockerd", append(flags, e.opts.Flags...)...)
	if err != nil {
		return err
	}
	e.daemon = d
	err = WaitFor(2*Patience, "dockerd to serve", func() (bool, error) {
		if err := d.alive(); err != nil {
			return false, err
		}
		return e.Get(ctx, "/_ping", nil) == nil, ctx.Err()
	})
	e.lab.logf("dockerd started (%s)", time.Since(began).Round(time.Millisecond))
	return err
}

func (e *Docker) root() string { return filepath.Join(e.dir, "root") }

// Stop ends dockerd with SIGTERM, and with it the containers, unless they are to outlive it: it gives each ten seconds to end by itself.
func (e *Docker) Stop() error {
	began := time.Now()
	if err := e.daemon.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop dockerd: %w", err)
	}
	err := WaitFor(Patience, "the end of dockerd", func() (bool, error) { return e.daemon.alive() != nil, nil })
	e.lab.logf("dockerd stopped (%s)", time.Since(began).Round(time.Millisecond))
	return err
}

// Kill ends dockerd with SIGKILL. Its containers go on; the next dockerd ends them, unless they are to outlive it.
func (e *Docker) Kill() error {
	if err := e.daemon.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill dockerd: %w", err)
	}
	<-e.daemon.ended
	return nil
}

// Restart stops dockerd and starts it again.
func (e *Docker) Restart(ctx context.Context) error {
	if err := e.Stop(); err != nil {
		return err
	}
	return e.Start(ctx)
}

// Get asks dockerd's API, and stores the answer unless it is for nil.
func (e *Docker) Get(ctx context.Context, path string, answer any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	r, err := e.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask dockerd: %w", err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return fmt.Errorf("ask dockerd for %s: %w", path, err)
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("ask dockerd for %s: %s: %s", path, r.Status, bytes.TrimSpace(b))
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("ask dockerd for %s: %w", path, err)
	}
	return nil
}

// DockerContainer is what dockerd says of a container.
type DockerContainer struct {
	ID    string
	State struct {
		Status        string
		Pid, ExitCode int
		Error         string
	}
	NetworkSettings struct {
		SandboxID, SandboxKey string
		Networks              map[string]struct {
			NetworkID, EndpointID        string
			IPAddress, GlobalIPv6Address netip.Addr
		}
	}
}

// Inspect asks dockerd for a container by name or ID.
func (e *Docker) Inspect(ctx context.Context, name string) (*DockerContainer, error) {
	c := &DockerContainer{}
	return c, e.Get(ctx, "/containers/"+name+"/json", c)
}

// CLI runs docker and returns its standard output. Its standard error is in the error, and its exit status is that of the *exec.ExitError.
func (e *Docker) CLI(ctx context.Context, args ...string) ([]byte, error) {
	return e.output(e.Command(ctx, args...))
}

// InstallCompose gives docker its command "compose".
func (e *Docker) InstallCompose(ctx context.Context) error {
	dir, err := toolsDir(ctx, composeTools, composeToolsEnv)
	if err != nil {
		return err
	}
	plugins := filepath.Join(e.dir, "cli", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return err
	}
	return ignore(os.Symlink(filepath.Join(dir, "docker-compose"), filepath.Join(plugins, "docker-compose")), fs.ErrExist)
}

// Command returns an unstarted docker.
func (e *Docker) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, e.cli, args...)
	cmd.Env = []string{
		"PATH=" + e.path, "HOME=" + e.dir, "DOCKER_CONFIG=" + filepath.Join(e.dir, "cli"), "DOCKER_HOST=unix://" + dockerSocket,
	}
	return cmd
}

func (e *Docker) output(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	e.lab.logf("docker %s (%s)", strings.Join(cmd.Args[1:], " "), time.Since(began).Round(time.Millisecond))
	if err != nil {
		return stdout.Bytes(), fmt.Errorf("docker %s: %w: %s", cmd.Args[1], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// loadImages gives dockerd the lab's images.
func (e *Docker) loadImages(ctx context.Context) error {
	images, err := allImages(e.lab.Prober)
	if err != nil {
		return err
	}
	file := filepath.Join(e.dir, "images.tar")
	if err := writeArchive(file, images); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(file)
	_, err = e.CLI(ctx, "load", "--quiet", "--input", file)
	return err
}

// NewNetwork makes a network with the pods' prefixes, so that the outside reaches its containers. There can only be one such network at a
// time. flags are more flags of docker network create.
func (e *Docker) NewNetwork(ctx context.Context, name, driver string, flags ...string) error {
	args := []string{"network", "create", "--driver", driver, "--ipv6", "--subnet", PodsV4.String(), "--subnet", PodsV6.String()}
	id, err := e.CLI(ctx, append(append(args, flags...), name)...)
	if err != nil {
		return err
	}
	if name, _, _ := strings.Cut(driver, ":"); name == SidegateDriver {
		e.device = "sg-" + string(id[:min(12, len(id))])
		return nil
	}
	e.device = dockerBridge
	return fixBridge(e.device)
}

// SidegateDriver is the name of Sidegate's network driver.
const SidegateDriver = "sidegate"

// StartDriver starts Sidegate's network driver and waits until it follows dockerd's events. The returned func ends it.
func (e *Docker) StartDriver(ctx context.Context, binary string, args ...string) (end func() error, err error) {
	d, err := startDaemon(e.dir, "driver", append([]string{binary, "--metrics-address", pluginAddress, "--data-dir", filepath.Join(e.dir, "driver")}, args...)...)
	if err != nil {
		return nil, err
	}
	if err := d.waitReady(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d.stop, nil
}

// Bridge returns the name of a network of Docker's bridge driver, and makes it if there is none.
func (e *Docker) Bridge(ctx context.Context) (string, error) {
	if e.Get(ctx, "/networks/"+networkName, nil) == nil {
		return networkName, nil
	}
	return networkName, e.NewNetwork(ctx, networkName, "bridge", "--opt", "com.docker.network.bridge.name="+dockerBridge)
}

// RemoveAll kills and removes all containers, and then all networks but Docker's own.
func (e *Docker) RemoveAll(ctx context.Context) error {
	if err := e.removeListed(ctx); err != nil {
		return err
	}
	_, err := e.CLI(ctx, "network", "prune", "--force")
	return err
}

// removeListed kills and removes the containers whose names match one of patterns, or all if there is none.
func (e *Docker) removeListed(ctx context.Context, patterns ...string) error {
	filters, err := json.Marshal(map[string][]string{"name": patterns})
	if err != nil {
		return err
	}
	var listed []struct{ ID string }
	if err := e.Get(ctx, "/containers/json?all=1&filters="+url.QueryEscape(string(filters)), &listed); err != nil {
		return err
	}
	if len(listed) == 0 {
		return nil
	}
	args := []string{"rm", "--force", "--volumes"}
	for _, c := range listed {
		args = append(args, c.ID)
	}
	_, err = e.CLI(ctx, args...)
	return err
}

// close ends all containers and daemons, and does not ask them.
func (e *Docker) close() error {
	var errs []error
	// The daemons first: dockerd would start a container again whose restart policy says so.
	errs = append(errs, killCgroup(e.cgroup()))
	for _, d := range []*daemon{e.daemon, e.containerd} {
		if d != nil {
			<-d.ended
		}
	}
	e.http.CloseIdleConnections()
	pods := e.node.cgroupPath("pods")
	errs = append(errs, killCgroup(pods), removeCgroups(pods), removeCgroups(e.cgroup()))
	devices, err := net.Interfaces()
	errs = append(errs, err)
	for _, device := range devices {
		if strings.HasPrefix(device.Name, "br-") {
			errs = append(errs, ip("link del "+device.Name))
		}
	}
	errs = append(errs, unmountBelow(e.dir))
	for _, state := range []string{dockerState, containerdState} {
		errs = append(errs, unmountBelow(state), os.RemoveAll(state))
	}
	for _, file := range []string{dockerSocket, "/run/docker.pid"} {
		errs = append(errs, ignore(os.Remove(file), fs.ErrNotExist))
	}
	errs = append(errs, ignore(unix.Unmount(dockerEtc, unix.MNT_DETACH), unix.EINVAL))
	return errors.Join(errs...)
}
