// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerdOptions configures a containerd.
type ContainerdOptions struct {
	// RequiredPlugins are NRI plugins without which no container is created.
	RequiredPlugins []string
	// PluginDir has NRI plugins that containerd starts itself, and PluginConfigDir their configuration; "" for none.
	PluginDir, PluginConfigDir string
	// RuntimeBinary is what the shim calls; "" for runc.
	RuntimeBinary string
	// RuntimeEnv is in the environment of shims and so of RuntimeBinary, as "KEY=VALUE".
	RuntimeEnv []string
	// PodAnnotations and ContainerAnnotations are patterns of annotations, such as "sidegate/*", that pods hand on to the OCI
	// configuration of all their containers, and containers to their own.
	PodAnnotations, ContainerAnnotations []string
	// DisableConnections lets NRI have no plugins but those that containerd starts itself.
	DisableConnections bool
	// SystemdCgroup makes runc ask systemd for cgroups, and pods' cgroups the kubelet's slices; see Systemd.
	SystemdCgroup bool
}

// Containerd is a containerd with CRI, NRI, storage, state and network of its own, and the machine's CNI plugins.
type Containerd struct {
	lab     *Lab
	opts    ContainerdOptions
	dir     string // configuration, images, logs
	tools   string // where containerd, its shim, ctr and runc are
	node    *Node
	daemon  *daemon
	conn    *grpc.ClientConn
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	serial  atomic.Int32

	ctrImages sync.Once
	ctrErr    error
}

const (
	// Where containerd is in a node, whose /run is its own.
	containerdState  = "/run/containerd"
	containerdSocket = containerdState + "/containerd.sock"
	nriSocket        = "/run/nri/nri.sock"

	cniBridge = "cni0"
	pauseName = "localhost/pause:latest"

	// Where libcni keeps what it did, which nothing in containerd's configuration changes.
	cniCache = "/var/lib/cni"
)

// Namespaces of containerd: that of CRI containers, and ctr's own.
const (
	criNamespace = "k8s.io"
	ctrNamespace = "default"
)

const containerdConfig = `version = 3
root = %[1]q
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true # what it writes need not outlive the machine
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:latest"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = true
[plugins.'io.containerd.internal.v1.opt']
  path = %[9]q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = [%[2]s]
  container_annotations = [%[10]s]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = %[3]q
  SystemdCgroup = %[12]t
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"] # Debian's
  conf_dir = %[4]q
[plugins.'io.containerd.nri.v1.nri']
  socket_path = "/run/nri/nri.sock"
  plugin_path = %[5]q
  plugin_config_path = %[6]q
  disable_connections = %[11]t
[plugins.'io.containerd.nri.v1.nri'.default_validator]
  enable = %[7]t
  required_plugins = [%[8]s]
`

// cniConfig is a bridge without translation of addresses, like podman's network here.
const cniConfig = `{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
	"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}], [{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}
`

// newContainerd configures and starts containerd and imports the images.
func newContainerd(ctx context.Context, l *Lab, n *Node, opts ContainerdOptions) (*Containerd, error) {
	e := &Containerd{lab: l, opts: opts, dir: filepath.Join(l.Dir, "containerd"), node: n}
	var err error
	if e.tools, err = toolsDir(ctx, containerdTools, containerdToolsEnv); err != nil {
		return nil, err
	}
	for _, d := range []string{"cni", "plugins", "conf.d", "root", "logs"} {
		if err := os.MkdirAll(filepath.Join(e.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(e.Runc(), fmt.Appendf(nil, runcScript, cgroupRoot, filepath.Join(e.tools, "runc")), 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cniCache, 0o700); err != nil {
		return nil, err
	}
	// The machine's stays as it is.
	if err := unix.Mount("sidegate-lab", cniCache, "tmpfs", 0, "mode=700"); err != nil {
		return nil, fmt.Errorf("mount tmpfs on %s: %w", cniCache, err)
	}
	network := fmt.Sprintf(cniConfig, filepath.Join(e.dir, "ipam"), PodsV4, PodsV6)
	if err := os.WriteFile(filepath.Join(e.dir, "cni", "10-lab.conflist"), []byte(network), 0o644); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := e.Configure(opts); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := e.Start(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	if err := e.importImages(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// Configure writes another configuration, which holds from the next start on.
func (e *Containerd) Configure(opts ContainerdOptions) error {
	e.opts = opts
	text := fmt.Sprintf(containerdConfig, filepath.Join(e.dir, "root"), quoted(opts.PodAnnotations), e.RuntimeBinary(),
		filepath.Join(e.dir, "cni"), cmp.Or(opts.PluginDir, filepath.Join(e.dir, "plugins")),
		cmp.Or(opts.PluginConfigDir, filepath.Join(e.dir, "conf.d")), len(opts.RequiredPlugins) > 0, quoted(opts.RequiredPlugins),
		filepath.Join(e.dir, "opt"), quoted(opts.ContainerAnnotations), opts.DisableConnections, opts.SystemdCgroup)
	return os.WriteFile(e.configFile(), []byte(text), 0o644)
}

func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, strconv.Quote(s))
	}
	return strings.Join(out, ", ")
}

func (e *Containerd) configFile() string { return filepath.Join(e.dir, "config.toml") }

// RuntimeBinary is what the shim calls.
func (e *Containerd) RuntimeBinary() string { return cmp.Or(e.opts.RuntimeBinary, e.Runc()) }

// Runc is the runtime at the end.
func (e *Containerd) Runc() string { return filepath.Join(e.dir, "runc") }

// runcScript runs runc on a node whose cgroups may lack controllers, as those of a machine that uses them for cgroup v1 do: containerd
// gives each pod CPU shares, and nothing tells it not to.
const runcScript = `#!/bin/sh
case " $* " in
*" create "* | *" run "*)
	case $(cat %[1]s/cgroup.controllers) in
	*cpu*) ;;
	*)
		previous=
		for word; do
			[ "$previous" != --bundle ] || sed -i -E 's/"shares":[0-9]+,?//' "$word/config.json" || exit 1
			previous=$word
		done
		;;
	esac
	;;
esac
exec %[2]s "$@"
`

// Tool returns the path of a program that was built with containerd: ctr, or runc.
func (e *Containerd) Tool(name string) string { return filepath.Join(e.tools, name) }

// Address is the socket of its API, NRISocket that for NRI plugins.
func (e *Containerd) Address() string { return containerdSocket }

// Cgroup is the path of a cgroup for a container that CRI does not know of, where the lab finds it again.
func (e *Containerd) Cgroup(name string) string { return e.node.Cgroup + "/pods/" + name }

// NRISocket is where NRI plugins connect.
func (e *Containerd) NRISocket() string { return nriSocket }

// Start starts containerd and waits until it serves.
func (e *Containerd) Start(ctx context.Context) error {
	began := time.Now()
	d := newDaemon(e.dir, "containerd", filepath.Join(e.tools, "containerd"), "--config", e.configFile())
	// Its shims are found by PATH, or beside it.
	d.cmd.Env = append(append(os.Environ(), "PATH="+e.tools+":"+os.Getenv("PATH")), e.opts.RuntimeEnv...)
	if err := d.start(); err != nil {
		return err
	}
	e.daemon = d
	if e.conn != nil {
		_ = e.conn.Close()
	}
	var err error
	if e.conn, err = grpc.NewClient("unix://"+containerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The first attempt comes before the socket, and by default the next one a second later.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}}),
	); err != nil {
		return err
	}
	e.Runtime, e.Images = cri.NewRuntimeServiceClient(e.conn), cri.NewImageServiceClient(e.conn)
	err = WaitFor(2*Patience, "containerd to serve CRI", func() (bool, error) {
		if err := d.alive(); err != nil {
			return false, err
		}
		_, err := e.Runtime.Version(ctx, &cri.VersionRequest{})
		return err == nil, ctx.Err()
	})
	e.lab.logf("containerd started (%s)", time.Since(began).Round(time.Millisecond))
	return err
}

// Stop ends containerd with SIGTERM. Its pods go on.
func (e *Containerd) Stop() error { return e.daemon.stop() }

// Kill ends containerd with SIGKILL. Its pods go on.
func (e *Containerd) Kill() error {
	if err := e.daemon.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill containerd: %w", err)
	}
	<-e.daemon.ended
	return nil
}

// Restart stops containerd and starts it again.
func (e *Containerd) Restart(ctx context.Context) error {
	if err := e.Stop(); err != nil {
		return err
	}
	return e.Start(ctx)
}

// PID returns containerd's process id.
func (e *Containerd) PID() int { return e.daemon.cmd.Process.Pid }

// Log returns what containerd has logged since its start.
func (e *Containerd) Log() ([]byte, error) { return os.ReadFile(e.daemon.logPath) }

// StartPlugin starts an NRI plugin as a service and waits until containerd sends it requests. The returned func ends it.
func (e *Containerd) StartPlugin(ctx context.Context, binary string, args ...string) (end func() error, err error) {
	d, err := startDaemon(e.dir, "plugin", append([]string{binary, "--socket-path", nriSocket, "--metrics-address", pluginAddress}, args...)...)
	if err != nil {
		return nil, err
	}
	if err := d.waitReady(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d.stop, nil
}

// PluginLog returns what StartPlugin's plugin has logged.
func (e *Containerd) PluginLog() []byte {
	b, _ := os.ReadFile(filepath.Join(e.dir, "plugin.log"))
	return b
}

// Ctr runs containerd's own client in a namespace of containerd. That of CRI and ctr's own, "default", have the lab's images.
func (e *Containerd) Ctr(ctx context.Context, namespace string, args ...string) ([]byte, error) {
	if namespace == ctrNamespace {
		if err := e.importForCtr(ctx); err != nil {
			return nil, err
		}
	}
	return e.output(e.ctr(ctx, namespace, args...))
}

// output runs a command of ctr's.
func (e *Containerd) output(cmd *exec.Cmd) ([]byte, error) {
	args := cmd.Args[5:] // without those that are the same for all
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	e.lab.logf("ctr %s (%s)", strings.Join(args, " "), time.Since(began).Round(time.Millisecond))
	if err != nil {
		err = fmt.Errorf("ctr %s: %w: %s", strings.Join(args[:min(2, len(args))], " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), err
}

func (e *Containerd) ctr(ctx context.Context, namespace string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(e.tools, "ctr"), append([]string{"--address", containerdSocket, "--namespace", namespace}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+e.tools+":"+os.Getenv("PATH"))
	return cmd
}

// importImages gives CRI the lab's images, and leaves them for ctr to import.
func (e *Containerd) importImages(ctx context.Context) error {
	images, err := allImages(e.lab.Prober)
	if err != nil {
		return err
	}
	file := e.archive()
	if err := writeArchive(file, images); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	_, err = e.Ctr(ctx, criNamespace, "images", "import", "--local", file)
	return err
}

// importForCtr gives ctr the lab's images, once: most labs need no second copy of them. ctr run unpacks the one that it runs.
func (e *Containerd) importForCtr(ctx context.Context) error {
	e.ctrImages.Do(func() {
		_, e.ctrErr = e.output(e.ctr(ctx, ctrNamespace, "images", "import", "--local", "--no-unpack", e.archive()))
	})
	return e.ctrErr
}

func (e *Containerd) archive() string { return filepath.Join(e.dir, "images.tar") }

// CtrRun starts a container that neither CRI nor NRI knows of, and returns what it printed when it has ended. flags are more flags of
// ctr run.
func (e *Containerd) CtrRun(ctx context.Context, image string, opts ContainerOptions, flags ...string) ([]byte, error) {
	cmd, err := e.ctrRun(ctx, image, opts, flags)
	if err != nil {
		return nil, err
	}
	return e.output(cmd)
}

// ctrRun returns ctr's command for a container with a cgroup among the pods', so that it ends with them.
func (e *Containerd) ctrRun(ctx context.Context, image string, opts ContainerOptions, flags []string) (*exec.Cmd, error) {
	if err := e.importForCtr(ctx); err != nil {
		return nil, err
	}
	if len(opts.Files) > 0 || len(opts.Flags) > 0 || opts.HostCgroups {
		return nil, errors.New("ctr run: no inherited files, host's cgroups or podman's flags")
	}
	name := fmt.Sprintf("ctr%d", e.serial.Add(1))
	args := []string{"run", "--rm", "--cgroup", e.Cgroup(name), "--runc-binary", e.RuntimeBinary()}
	for _, c := range opts.CapAdd {
		args = append(args, "--cap-add", "CAP_"+c)
	}
	for _, key := range slices.Sorted(maps.Keys(opts.Annotations)) {
		args = append(args, "--annotation", key+"="+opts.Annotations[key])
	}
	if !opts.Unconfined {
		args = append(args, "--seccomp")
	}
	if opts.User != "" {
		args = append(args, "--user", opts.User)
	}
	args = append(append(args, flags...), image+":latest", name)
	return e.ctr(ctx, ctrNamespace, append(args, opts.Args...)...), nil
}

// NewPod runs a pod and waits until its addresses are there.
func (e *Containerd) NewPod(ctx context.Context, opts PodOptions) (*Pod, error) {
	name := cmp.Or(opts.Name, fmt.Sprintf("pod%d", e.serial.Add(1)))
	p := &Pod{Name: name, lab: e.lab, engine: e, dir: e.dir, opts: opts}
	if opts.HooksDir != "" {
		return nil, errors.New("containerd has no directory of hooks")
	}
	if err := os.WriteFile(p.sidecarConfig(), []byte(cmp.Or(opts.SidecarConfig, HAProxyConfig)), 0o644); err != nil {
		return nil, err
	}
	began := time.Now()
	r, err := e.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: e.sandbox(p)})
	e.lab.logf("RunPodSandbox %s: %v (%s)", name, err, time.Since(began).Round(time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", name, err)
	}
	p.infra = p.container("infra")
	p.infra.ID = r.PodSandboxId
	return p, e.addresses(ctx, p)
}

// sandbox is the pod's configuration, which CRI wants with each of its containers too.
func (e *Containerd) sandbox(p *Pod) *cri.PodSandboxConfig {
	namespaces := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	if p.opts.SharePID {
		namespaces.Pid = cri.NamespaceMode_POD
	}
	if p.opts.HostNetwork {
		namespaces.Network = cri.NamespaceMode_NODE
	}
	c := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.Name, Uid: p.Name, Namespace: cmp.Or(p.opts.Namespace, "lab")},
		Labels:   p.opts.Labels, Annotations: p.opts.Annotations,
		LogDirectory: filepath.Join(e.dir, "logs", p.Name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    e.node.Cgroup + e.podCgroup(p.Name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}
	if !p.opts.HostNetwork {
		c.Hostname = p.Name
	}
	return c
}

// podsSlice is the cgroup of all pods where systemd has cgroups, as the kubelet calls it.
const podsSlice = "kubepods.slice"

// podCgroup is the path of a pod's cgroup in the node.
func (e *Containerd) podCgroup(pod string) string {
	if e.opts.SystemdCgroup {
		return "/" + podsSlice + "/kubepods-besteffort.slice/" + podSlice(pod)
	}
	return "/pods/" + pod
}

// podSlice is the name of a pod's slice. A dash would be another level.
func podSlice(pod string) string {
	return "kubepods-besteffort-pod" + strings.ReplaceAll(pod, "-", "_") + ".slice"
}

func (e *Containerd) addresses(ctx context.Context, p *Pod) error {
	if p.opts.HostNetwork {
		return nil
	}
	r, err := e.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.infra.ID})
	if err != nil {
		return err
	}
	network := r.Status.GetNetwork()
	texts := []string{network.GetIp()}
	for _, more := range network.GetAdditionalIps() {
		texts = append(texts, more.GetIp())
	}
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("pod %s: %w", p.Name, err)
		}
		if a.Is4() {
			p.V4 = a
		} else {
			p.V6 = a
		}
	}
	if !p.V4.IsValid() || !p.V6.IsValid() {
		return fmt.Errorf("pod %s has addresses %v and %v", p.Name, p.V4, p.V6)
	}
	pid, err := e.pid(ctx, p.infra)
	if err != nil {
		return err
	}
	p.pausePID = pid
	return p.waitAddress(strconv.Itoa(pid))
}

func (e *Containerd) run(ctx context.Context, p *Pod, c *Container, image string, opts ContainerOptions) error {
	if err := e.create(ctx, p, c, image, opts); err != nil {
		return err
	}
	return e.startCreated(ctx, c)
}

func (e *Containerd) create(ctx context.Context, p *Pod, c *Container, image string, opts ContainerOptions) error {
	if len(opts.Files) > 0 || len(opts.Flags) > 0 {
		return errors.New("CRI has neither inherited files nor flags")
	}
	name := strings.TrimPrefix(c.Name, p.Name+"-")
	sandbox := e.sandbox(p)
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name, Attempt: uint32(e.serial.Add(1))},
		Image:    &cri.ImageSpec{Image: image + ":latest"}, Command: opts.Args, Annotations: opts.Annotations, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			NamespaceOptions: sandbox.Linux.SecurityContext.NamespaceOptions,
			Capabilities:     &cri.Capability{AddCapabilities: opts.CapAdd},
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		}},
	}
	if opts.Unconfined {
		config.Linux.SecurityContext.Seccomp.ProfileType = cri.SecurityProfile_Unconfined
	}
	if opts.Seccomp != "" {
		config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: opts.Seccomp}
	}
	if opts.User != "" {
		user, group, _ := strings.Cut(opts.User, ":")
		uid, err := strconv.ParseInt(user, 10, 64)
		if err != nil {
			return fmt.Errorf("user %q: %w", opts.User, err)
		}
		config.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: uid}
		if group != "" {
			gid, err := strconv.ParseInt(group, 10, 64)
			if err != nil {
				return fmt.Errorf("user %q: %w", opts.User, err)
			}
			config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: gid}
		}
	}
	if image == SidecarImage {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: p.sidecarConfig(), ContainerPath: "/etc/haproxy/haproxy.cfg", Readonly: true})
	}
	if opts.HostCgroups {
		config.Mounts = append(config.Mounts, &cri.Mount{HostPath: cgroupRoot, ContainerPath: HostCgroups})
	}
	began := time.Now()
	r, err := e.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.infra.ID, Config: config, SandboxConfig: sandbox})
	e.lab.logf("CreateContainer %s: %v (%s)", c.Name, err, time.Since(began).Round(time.Millisecond))
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.Name, err)
	}
	c.ID, c.logPath = r.ContainerId, filepath.Join(sandbox.LogDirectory, config.LogPath)
	c.made.pod, c.made.image, c.made.opts = p, image, opts
	return nil
}

func (e *Containerd) startCreated(ctx context.Context, c *Container) error {
	began := time.Now()
	_, err := e.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ID})
	e.lab.logf("StartContainer %s: %v (%s)", c.Name, err, time.Since(began).Round(time.Millisecond))
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.Name, err)
	}
	return nil
}

// join is a container of the pod, or one that CRI does not know of in the network namespace of with.
func (e *Containerd) join(ctx context.Context, p *Pod, with *Container, opts ContainerOptions, args []string) (r Result, err error) {
	if with != nil {
		pid, err := with.PID(ctx)
		if err != nil {
			return Result{}, err
		}
		opts.Args = append([]string{"/bin/prober"}, args...)
		cmd, err := e.ctrRun(ctx, AppImage, opts, []string{"--with-ns", fmt.Sprintf("network:/proc/%d/ns/net", pid)})
		if err != nil {
			return Result{}, err
		}
		return probe(ctx, e.lab, cmd)
	}
	opts.Args = append([]string{"/bin/prober"}, args...)
	c := p.container(fmt.Sprintf("join%d", e.serial.Add(1)))
	if err := e.create(ctx, p, c, AppImage, opts); err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, e.remove(context.WithoutCancel(ctx), c)) }()
	if err := e.startCreated(ctx, c); err != nil {
		return Result{}, err
	}
	if err := e.wait(ctx, c); err != nil {
		return Result{}, err
	}
	results, err := c.Results()
	if err != nil {
		return Result{}, err
	}
	if len(results) == 0 {
		log, _ := c.Log()
		return Result{}, fmt.Errorf("container %s printed no result: %s", c.Name, log)
	}
	return results[len(results)-1], nil
}

func (e *Containerd) exec(ctx context.Context, c *Container, argv ...string) *exec.Cmd {
	id := fmt.Sprintf("exec%d", e.serial.Add(1))
	return e.ctr(ctx, criNamespace, append([]string{"tasks", "exec", "--exec-id", id, c.ID}, argv...)...)
}

func (e *Containerd) stop(ctx context.Context, c *Container) error {
	if _, err := e.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 3}); err != nil {
		return fmt.Errorf("stop container %s: %w", c.Name, err)
	}
	return nil
}

// start makes another container of the same configuration, as the kubelet does.
func (e *Containerd) start(ctx context.Context, c *Container) error {
	if err := e.remove(ctx, c); err != nil {
		return err
	}
	return e.run(ctx, c.made.pod, c, c.made.image, c.made.opts)
}

func (e *Containerd) remove(ctx context.Context, c *Container) error {
	if _, err := e.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("stop container %s: %w", c.Name, err)
	}
	if _, err := e.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("remove container %s: %w", c.Name, err)
	}
	return nil
}

func (e *Containerd) log(c *Container) ([]byte, error) { return os.ReadFile(c.logPath) }

func (e *Containerd) wait(ctx context.Context, c *Container) error {
	return WaitFor(Patience, "the end of "+c.Name, func() (bool, error) {
		r, err := e.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID})
		return r.GetStatus().GetState() == cri.ContainerState_CONTAINER_EXITED, err
	})
}

func (e *Containerd) pid(ctx context.Context, c *Container) (int, error) {
	var info map[string]string
	if strings.HasSuffix(c.Name, "-infra") {
		r, err := e.Runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: c.ID, Verbose: true})
		if err != nil {
			return 0, err
		}
		info = r.Info
	} else {
		r, err := e.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
		if err != nil {
			return 0, err
		}
		info = r.Info
	}
	var verbose struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &verbose); err != nil {
		return 0, fmt.Errorf("container %s: %w", c.Name, err)
	}
	if verbose.Pid == 0 {
		return 0, fmt.Errorf("container %s does not run", c.Name)
	}
	return verbose.Pid, nil
}

func (e *Containerd) removePod(ctx context.Context, p *Pod) error {
	return e.removeSandbox(ctx, p.infra.ID, p.Name)
}

// removeWorkers is how many pods RemoveAll removes at a time: most of it is waiting.
const removeWorkers = 4

// RemoveAll kills and removes all pods, each in a limited time: containerd may wait for ever for a container's end. Where
// it does, the error is long, since it has what containerd's goroutines wait for.
func (e *Containerd) RemoveAll(ctx context.Context) error {
	r, err := e.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	errs := make([]error, len(r.Items))
	next := make(chan int)
	var workers sync.WaitGroup
	for range removeWorkers {
		workers.Go(func() {
			for i := range next {
				limited, cancel := context.WithTimeout(ctx, 2*Patience)
				errs[i] = e.removeSandbox(limited, r.Items[i].Id, r.Items[i].Metadata.Name)
				if limited.Err() != nil && ctx.Err() == nil {
					errs[i] = fmt.Errorf("%w: containerd waits:\n%s", errs[i], e.stacks())
				}
				cancel()
			}
		})
	}
	for i := range r.Items {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	workers.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// stacks lets containerd say what its goroutines do (SIGUSR1).
func (e *Containerd) stacks() string {
	before, _ := e.Log()
	if err := e.daemon.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return err.Error()
	}
	const end = "=== END goroutine stack dump"
	var text string
	err := WaitFor(Patience, "the stacks of containerd", func() (bool, error) {
		log, err := e.Log()
		text = string(log[min(len(before), len(log)):])
		return strings.Contains(text, end), err
	})
	if err != nil {
		return err.Error()
	}
	return text
}

func (e *Containerd) removeSandbox(ctx context.Context, id, name string) error {
	if _, err := e.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", name, err)
	}
	// As a kubelet does. containerd 2.4 has them removed by RemovePodSandbox too, but then waits for ever if a plugin
	// registers meanwhile: RemoveContainer, called from there, takes for reading what a plugin waits to have for writing.
	ctrs, err := e.Runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return fmt.Errorf("containers of pod %s: %w", name, err)
	}
	for _, c := range ctrs.Containers {
		if _, err := e.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.Id}); err != nil {
			return fmt.Errorf("remove container %s of pod %s: %w", c.Metadata.Name, name, err)
		}
	}
	if _, err := e.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", name, err)
	}
	// The pod's cgroup is the kubelet's to make and remove.
	if e.opts.SystemdCgroup {
		if err := stopUnit(ctx, podSlice(name)); err != nil {
			return err
		}
	}
	return removeCgroups(e.node.cgroupPath(e.podCgroup(name)))
}

// stopUnit lets systemd stop a unit, if it is loaded.
func stopUnit(ctx context.Context, unit string) error {
	out, err := exec.CommandContext(ctx, "systemctl", "stop", unit).CombinedOutput()
	const notLoaded = 5
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == notLoaded {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w: %s", unit, err, bytes.TrimSpace(out))
	}
	return nil
}

// close ends all pods and containerd, and does not trust it.
func (e *Containerd) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 12*Patience) // a hundred pods take minutes
	defer cancel()
	var errs []error
	if e.daemon != nil && e.daemon.alive() == nil {
		errs = append(errs, e.killPods(), e.RemoveAll(ctx))
	}
	if e.conn != nil {
		_ = e.conn.Close()
	}
	if e.daemon != nil {
		errs = append(errs, e.daemon.stop())
	}
	errs = append(errs, e.killShims(), e.killPods())
	for _, top := range podTops {
		errs = append(errs, removeCgroups(e.node.cgroupPath(top)))
	}
	if _, err := net.InterfaceByName(cniBridge); err == nil {
		errs = append(errs, ip("link del "+cniBridge))
	}
	errs = append(errs, unmountBelow(containerdState), e.removeNetns(), os.RemoveAll(containerdState))
	errs = append(errs, unix.Unmount(cniCache, unix.MNT_DETACH))
	return errors.Join(errs...)
}

// podTops are the cgroups of all pods, also of those that ctr runs under systemd.
var podTops = []string{"pods", podsSlice}

// killPods kills all that runs in a pod.
func (e *Containerd) killPods() (err error) {
	for _, top := range podTops {
		err = errors.Join(err, killCgroup(e.node.cgroupPath(top)))
	}
	return err
}

// removeNetns removes the network namespaces of pods, which containerd alone knows of.
func (e *Containerd) removeNetns() error {
	names, err := filepath.Glob("/run/netns/cni-*")
	for _, name := range names {
		err = errors.Join(err, ignore(unix.Unmount(name, unix.MNT_DETACH), unix.EINVAL), os.Remove(name))
	}
	return err
}

// killShims ends the shims of this containerd, which live outside of it, by the program that they are.
func (e *Containerd) killShims() error {
	shim, err := os.Stat(filepath.Join(e.tools, "containerd-shim-runc-v2"))
	if err != nil {
		return err
	}
	b, err := os.ReadFile(e.node.cgroupPath("node", "cgroup.procs"))
	if err != nil {
		return err
	}
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid == 0 {
			continue
		}
		exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && os.SameFile(exe, shim) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}
