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
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// PodOptions configures a pod.
type PodOptions struct {
	// HooksDir has the OCI hooks for the pod's containers (WriteHooks makes one); "" for none.
	HooksDir string
	// SidecarConfig is HAProxy's configuration; "" for HAProxyConfig.
	SidecarConfig string
	// SharePID gives the pod's containers one PID namespace.
	SharePID bool

	// Of a CRI pod and a Docker one. podman's have none of these.
	Name                string            // "" for a new one
	Namespace           string            // Kubernetes'; "" for "lab"
	Labels, Annotations map[string]string // both are labels of the infra container in Docker
	HostNetwork         bool              // the node's; the pod has no addresses then

	// Of a Docker pod.
	Network string   // Docker's name of it; "" for Docker's bridge, "none" for none
	Flags   []string // more flags of docker run for the infra container
}

// A Pod is a pod of one of the lab's container runtimes, with an infra container, on the lab's network.
type Pod struct {
	Name string
	V4   netip.Addr
	V6   netip.Addr

	lab        *Lab
	engine     engine
	dir        string // of its files
	opts       PodOptions
	infra      *Container
	pausePID   int // of a CRI pod, which has it for life
	containers []*Container
}

// engine is a container runtime, as pods and containers use it.
type engine interface {
	// run starts a container of image.
	run(ctx context.Context, p *Pod, c *Container, image string, opts ContainerOptions) error
	// join runs the prober in a container that comes late and goes again: in the pod, or outside but in the network namespace of with.
	join(ctx context.Context, p *Pod, with *Container, opts ContainerOptions, args []string) (Result, error)
	// exec returns a command that runs argv in the container, with its standard input and output.
	exec(ctx context.Context, c *Container, argv ...string) *exec.Cmd
	stop(ctx context.Context, c *Container) error
	start(ctx context.Context, c *Container) error
	remove(ctx context.Context, c *Container) error
	// log returns what c wrote, in CRI's format.
	log(c *Container) ([]byte, error)
	wait(ctx context.Context, c *Container) error
	pid(ctx context.Context, c *Container) (int, error)
	removePod(ctx context.Context, p *Pod) error
}

// A Container is one of the lab's container runtimes.
type Container struct {
	Name    string
	ID      string // the runtime's, of a CRI or Docker container
	lab     *Lab
	engine  engine
	logPath string
	opts    PodOptions
	made    struct { // as what CRI makes it again
		pod   *Pod
		image string
		opts  ContainerOptions
	}

	mu    sync.Mutex
	shell *session // nil until the first Probe, and after an error
}

// ContainerOptions configures a container of a pod. The zero value is a container with the runtime's defaults and no annotations.
type ContainerOptions struct {
	Annotations map[string]string // labels in Docker
	CapAdd      []string          // such as NET_ADMIN
	Unconfined  bool              // no seccomp filter: podman's default one hides what a test wants to see denied by others
	Seccomp     string            // file of another profile than the runtime's default one; not in Docker, which has Flags
	HostCgroups bool              // the host's cgroup file system, writable, at HostCgroups, and the host's cgroup namespace
	User        string            // as podman run --user has it; "" for root
	Flags       []string          // more flags of podman run, or docker run
	Args        []string          // instead of the default program and arguments
	// Files are inherited by the first process, from descriptor 3 on.
	Files []*os.File
}

// HostCgroups is where a container with such an option has the host's cgroups.
const HostCgroups = "/host-cgroups"

// NewPod creates and starts a pod of the lab's container runtime, and waits until its addresses are there. Its infra container is made
// from catatonit.
func (l *Lab) NewPod(ctx context.Context, opts PodOptions) (*Pod, error) {
	switch {
	case l.Containerd != nil:
		return l.Containerd.NewPod(ctx, opts)
	case l.Docker != nil:
		return l.Docker.NewPod(ctx, opts)
	}
	podman := l.Podman
	p := &Pod{Name: fmt.Sprintf("pod%d", podman.pods.Add(1)), lab: l, engine: podman, dir: podman.dir, opts: opts}
	if err := os.WriteFile(p.sidecarConfig(), []byte(cmp.Or(opts.SidecarConfig, HAProxyConfig)), 0o644); err != nil {
		return nil, err
	}
	// Without a cgroup of its own for the pod: podman 4.3 gives such a one a device filter that denies all (no /dev/null).
	p.infra = p.container("infra")
	args := []string{"pod", "create", "--name", p.Name, "--infra-name", p.infra.Name, "--network", networkName,
		"--share-parent=false", "--cgroup-parent", podman.cgroup}
	if opts.SharePID {
		args = append(args, "--share", "net,ipc,uts,pid")
	}
	if _, err := podman.Run(ctx, opts.global(args...)...); err != nil {
		return nil, err
	}
	if _, err := podman.Run(ctx, opts.global("pod", "start", p.Name)...); err != nil {
		return nil, err
	}
	if err := fixBridge(podman.bridge); err != nil {
		return nil, err
	}
	if err := podman.addresses(ctx, p); err != nil {
		return nil, err
	}
	return p, nil
}

// container returns the pod's container of a name, which is to be made.
func (p *Pod) container(name string) *Container {
	return &Container{Name: p.Name + "-" + name, lab: p.lab, engine: p.engine, opts: p.opts}
}

// sidecarConfig is the file of HAProxy's configuration.
func (p *Pod) sidecarConfig() string { return filepath.Join(p.dir, p.Name+"-haproxy.cfg") }

// global puts the pod's global options before podman's arguments.
func (o PodOptions) global(args ...string) []string {
	if o.HooksDir == "" {
		return args
	}
	return append([]string{"--hooks-dir", o.HooksDir}, args...)
}

// addresses asks podman for the pod's addresses and waits until the kernel uses the IPv6 one.
func (e *Podman) addresses(ctx context.Context, p *Pod) error {
	out, err := e.Run(ctx, "inspect", "--format", "{{.State.Pid}} {{json .NetworkSettings.Networks}}", p.infra.Name)
	if err != nil {
		return err
	}
	pid, list, _ := strings.Cut(string(out), " ")
	var networks map[string]struct {
		IPAddress         netip.Addr
		GlobalIPv6Address netip.Addr
	}
	if err := json.Unmarshal([]byte(list), &networks); err != nil {
		return fmt.Errorf("inspect networks: %w: %s", err, out)
	}
	p.V4, p.V6 = networks[networkName].IPAddress, networks[networkName].GlobalIPv6Address
	if !p.V4.IsValid() || !p.V6.IsValid() {
		return fmt.Errorf("pod has addresses %v and %v", p.V4, p.V6)
	}
	return p.waitAddress(pid)
}

// waitAddress waits until the kernel uses the pod's IPv6 address, where process pid lives.
func (p *Pod) waitAddress(pid string) error {
	return WaitFor(Patience, "the pod's IPv6 address", func() (bool, error) {
		b, err := os.ReadFile(filepath.Join("/proc", pid, "net/if_inet6"))
		return addressReady(string(b), p.V6), err
	})
}

// addressReady says whether addr is in a listing of /proc/net/if_inet6, and not tentative.
func addressReady(listing string, addr netip.Addr) bool {
	for line := range strings.Lines(listing) {
		// address, index, prefix length, scope, flags, device
		fields := strings.Fields(line)
		if len(fields) == 6 && fields[0] == fmt.Sprintf("%x", addr.As16()) {
			var flags uint
			_, err := fmt.Sscanf(fields[4], "%x", &flags)
			const tentative = 0x40
			return err == nil && flags&tentative == 0
		}
	}
	return false
}

// Addr returns the pod's address in the family of v6.
func (p *Pod) Addr(v6 bool) netip.Addr {
	if v6 {
		return p.V6
	}
	return p.V4
}

// Infra returns the container that holds the pod's namespaces.
func (p *Pod) Infra() *Container { return p.infra }

// Run starts a container of image in the pod.
func (p *Pod) Run(ctx context.Context, name, image string, opts ContainerOptions) (*Container, error) {
	c := p.container(name)
	if err := p.engine.run(ctx, p, c, image, opts); err != nil {
		return nil, err
	}
	p.containers = append(p.containers, c)
	return c, nil
}

func (e *Podman) run(ctx context.Context, p *Pod, c *Container, image string, opts ContainerOptions) error {
	c.logPath = filepath.Join(e.dir, c.Name+".log")
	args := append([]string{"run", "--detach", "--pod", p.Name, "--name", c.Name}, e.runFlags(opts)...)
	args = append(args, "--log-opt", "path="+c.logPath)
	if image == SidecarImage {
		args = append(args, "--volume", p.sidecarConfig()+":/etc/haproxy/haproxy.cfg:ro")
	}
	args = append(append(args, image), opts.Args...)
	cmd := e.command(ctx, p.opts.global(args...)...)
	cmd.ExtraFiles = opts.Files
	_, err := e.output(cmd)
	return err
}

// Run starts a container of image that is in no pod, on the pods' network unless opts.Flags say another.
func (l *Lab) Run(ctx context.Context, name, image string, pod PodOptions, opts ContainerOptions) (*Container, error) {
	if l.Docker != nil {
		return l.Docker.runAlone(ctx, name, image, pod, opts)
	}
	c := &Container{Name: name, lab: l, engine: l.Podman, opts: pod, logPath: filepath.Join(l.Podman.dir, name+".log")}
	args := []string{"run", "--detach", "--name", name, "--log-opt", "path=" + c.logPath}
	if !slices.Contains(opts.Flags, "--network") {
		args = append(args, "--network", networkName)
	}
	args = append(append(append(args, l.Podman.runFlags(opts)...), image), opts.Args...)
	_, err := l.Podman.Run(ctx, pod.global(args...)...)
	return c, err
}

// runFlags turns options into flags of podman run.
func (p *Podman) runFlags(opts ContainerOptions) []string {
	flags := []string{"--cgroup-parent", p.cgroup}
	for _, key := range slices.Sorted(maps.Keys(opts.Annotations)) {
		flags = append(flags, "--annotation", key+"="+opts.Annotations[key])
	}
	for _, c := range opts.CapAdd {
		flags = append(flags, "--cap-add", c)
	}
	if opts.Unconfined {
		flags = append(flags, "--security-opt", "seccomp=unconfined")
	}
	if opts.Seccomp != "" {
		flags = append(flags, "--security-opt", "seccomp="+opts.Seccomp)
	}
	if opts.HostCgroups {
		flags = append(flags, "--cgroupns", "host", "--volume", cgroupRoot+":"+HostCgroups+":rw")
	}
	if opts.User != "" {
		flags = append(flags, "--user", opts.User)
	}
	if len(opts.Files) > 0 {
		flags = append(flags, fmt.Sprintf("--preserve-fds=%d", len(opts.Files)))
	}
	return append(flags, opts.Flags...)
}

// Containers returns those that were run in the pod.
func (p *Pod) Containers() []*Container { return slices.Clone(p.containers) }

// StartSidecar starts HAProxy in the pod and waits until it listens.
func (p *Pod) StartSidecar(ctx context.Context, opts ContainerOptions) (*Container, error) {
	return p.StartSidecarAs(ctx, "sidecar", opts)
}

// StartSidecarAs is StartSidecar with the container's name.
func (p *Pod) StartSidecarAs(ctx context.Context, name string, opts ContainerOptions) (*Container, error) {
	if opts.Args == nil {
		opts.Args = []string{"/usr/sbin/haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"}
	}
	c, err := p.Run(ctx, name, SidecarImage, opts)
	if err != nil {
		return nil, err
	}
	return c, c.WaitListening(ctx, InboundPort, OutboundPort)
}

// AppPort is where the app of StartApp listens, on both families.
const AppPort = 8080

// StartApp starts "prober serve" in the pod and waits until it listens.
func (p *Pod) StartApp(ctx context.Context, opts ContainerOptions) (*Container, error) {
	if opts.Args == nil {
		opts.Args = []string{"/bin/prober", "serve", "--on", fmt.Sprintf(":%d", AppPort)}
	}
	c, err := p.Run(ctx, "app", AppImage, opts)
	if err != nil {
		return nil, err
	}
	return c, c.WaitListening(ctx, AppPort)
}

// JoinPod runs the prober in a container that comes to the pod late, and removes it.
func (p *Pod) JoinPod(ctx context.Context, opts ContainerOptions, args ...string) (Result, error) {
	return p.engine.join(ctx, p, nil, opts, args)
}

// JoinNetns runs the prober in a container outside the pod, but in the network namespace of one of its containers, and removes it.
func (p *Pod) JoinNetns(ctx context.Context, c *Container, opts ContainerOptions, args ...string) (Result, error) {
	return p.engine.join(ctx, p, c, opts, args)
}

// join: podman refuses --network container:NAME from outside a pod; --network ns:PATH it does not.
func (e *Podman) join(ctx context.Context, p *Pod, with *Container, opts ContainerOptions, args []string) (Result, error) {
	how := []string{"--pod", p.Name}
	if with != nil {
		pid, err := with.PID(ctx)
		if err != nil {
			return Result{}, err
		}
		how = []string{"--network", fmt.Sprintf("ns:/proc/%d/ns/net", pid)}
	}
	flags := append([]string{"run", "--rm"}, how...)
	flags = append(append(flags, e.runFlags(opts)...), AppImage, "/bin/prober")
	return probe(ctx, e.lab, e.command(ctx, p.opts.global(append(flags, args...)...)...))
}

// PausePID returns the process that holds the pod's namespaces.
func (p *Pod) PausePID(ctx context.Context) (int, error) {
	if p.pausePID != 0 {
		return p.pausePID, nil
	}
	return p.infra.PID(ctx)
}

// Enter runs the prober as a process of the node that entered the pod's network namespace.
func (p *Pod) Enter(ctx context.Context, args ...string) (Result, error) {
	pid, err := p.PausePID(ctx)
	if err != nil {
		return Result{}, err
	}
	return p.lab.Enter(ctx, pid, args...)
}

// Enter runs the prober as a process of the node that entered the network namespace of process pid.
func (l *Lab) Enter(ctx context.Context, pid int, args ...string) (Result, error) {
	enter := append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--", l.Prober}, args...)
	return probe(ctx, l, exec.CommandContext(ctx, "nsenter", enter...))
}

// Remove kills and removes the pod.
func (p *Pod) Remove(ctx context.Context) error {
	for _, c := range p.containers {
		c.endShell()
	}
	return p.engine.removePod(ctx, p)
}

func (e *Podman) removePod(ctx context.Context, p *Pod) error {
	_, err := e.Run(ctx, "pod", "rm", "--force", "--time", "0", p.Name)
	return err
}

// Probe runs the prober in the container. Attempts of one container are made one after the other.
func (c *Container) Probe(ctx context.Context, args ...string) (Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shell == nil {
		shell, err := startSession(c.engine.exec(context.WithoutCancel(ctx), c, "/bin/prober", "shell"))
		if err != nil {
			return Result{}, err
		}
		c.shell = shell
	}
	began := time.Now()
	r, err := c.shell.probe(ctx, args)
	if err != nil {
		c.shell = nil
	}
	c.lab.logf("%s: prober %s -> %+v (%s)", c.Name, strings.Join(args, " "), r, time.Since(began).Round(time.Millisecond))
	return r, err
}

// Disconnect ends what Probe keeps running in the container, which is gone when containerd or dockerd has gone.
func (c *Container) Disconnect() { c.endShell() }

// endShell ends what Probe keeps running.
func (c *Container) endShell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shell != nil {
		_ = c.shell.close() // it ends one way or the other
		c.shell = nil
	}
}

// StartProbe starts a prober that prints several results.
func (c *Container) StartProbe(ctx context.Context, args ...string) (*Probing, error) {
	return startProbing(c.lab, c.engine.exec(ctx, c, append([]string{"/bin/prober"}, args...)...))
}

// Command returns an unstarted command that runs argv in the container, with its standard input and output. What it runs may outlive it,
// until the container ends.
func (c *Container) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return c.engine.exec(ctx, c, argv...)
}

// Exec runs a command in the container and returns its output.
func (c *Container) Exec(ctx context.Context, args ...string) ([]byte, error) {
	cmd := c.engine.exec(ctx, c, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s in container %s: %w: %s", args[0], c.Name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

func (e *Podman) exec(ctx context.Context, c *Container, argv ...string) *exec.Cmd {
	return e.command(ctx, append([]string{"exec", "--interactive", c.Name}, argv...)...)
}

// Stop stops the container: SIGTERM, and SIGKILL after a while.
func (c *Container) Stop(ctx context.Context) error {
	c.endShell()
	return c.engine.stop(ctx, c)
}

func (e *Podman) stop(ctx context.Context, c *Container) error {
	_, err := e.Run(ctx, "stop", "--time", "3", c.Name)
	return err
}

// Start starts a stopped container again. One of CRI is made anew under its name, as a kubelet does, and has another ID then.
func (c *Container) Start(ctx context.Context) error { return c.engine.start(ctx, c) }

func (e *Podman) start(ctx context.Context, c *Container) error {
	_, err := e.Run(ctx, c.opts.global("start", c.Name)...)
	return err
}

// Remove kills and removes the container.
func (c *Container) Remove(ctx context.Context) error {
	c.endShell()
	return c.engine.remove(ctx, c)
}

func (e *Podman) remove(ctx context.Context, c *Container) error {
	_, err := e.Run(ctx, "rm", "--force", "--time", "0", c.Name)
	return err
}

// Wait waits until the container's program has ended.
func (c *Container) Wait(ctx context.Context) error { return c.engine.wait(ctx, c) }

func (e *Podman) wait(ctx context.Context, c *Container) error {
	_, err := e.Run(ctx, "wait", c.Name)
	return err
}

// PID returns the process id of the container's first process, as the node sees it.
func (c *Container) PID(ctx context.Context) (int, error) { return c.engine.pid(ctx, c) }

func (e *Podman) pid(ctx context.Context, c *Container) (int, error) {
	out, err := e.Run(ctx, "inspect", "--format", "{{.State.Pid}}", c.Name)
	if err != nil {
		return 0, err
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil || pid == 0 {
		return 0, errors.Join(fmt.Errorf("container %s does not run", c.Name), err)
	}
	return pid, nil
}

// Log returns what the container wrote, in CRI's format, which is also podman's k8s-file. Docker's goes away with the container.
func (c *Container) Log() ([]byte, error) { return c.engine.log(c) }

func (e *Podman) log(c *Container) ([]byte, error) { return os.ReadFile(c.logPath) }

// Results returns what a prober that is the container's own program has printed.
func (c *Container) Results() ([]Result, error) {
	log, err := c.Log()
	if err != nil {
		return nil, err
	}
	var all []Result
	for line := range strings.Lines(string(log)) {
		if _, text, ok := strings.Cut(line, " F "); ok && strings.HasPrefix(text, "{") {
			r, err := lastResult([]byte(text))
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// Carried returns the connections that the container's HAProxy has carried to their end.
func (c *Container) Carried() ([]Carried, error) {
	log, err := c.Log()
	return parseCarried(log), err
}

// WaitCarried waits for the word of the container's HAProxy that it carried a connection that match finds, and says whether it came: its
// log has it when the connection is over.
func (c *Container) WaitCarried(limit time.Duration, match func(Carried) bool) (found Carried, ok bool, err error) {
	errNone := errors.New("none")
	err = WaitFor(limit, "the sidecar's log", func() (bool, error) {
		all, err := c.Carried()
		for _, one := range all {
			if match(one) {
				found = one
				return true, nil
			}
		}
		if err != nil {
			err = errors.Join(errNone, err)
		}
		return false, err
	})
	if errors.Is(err, errNone) {
		return Carried{}, false, err
	}
	return found, err == nil, nil
}

// WaitListening waits until each port has a TCP listener in the container's network namespace.
func (c *Container) WaitListening(ctx context.Context, ports ...uint16) error {
	pid, err := c.PID(ctx)
	if err != nil {
		log, _ := c.Log()
		return fmt.Errorf("%w: %s", err, log)
	}
	return WaitFor(Patience, fmt.Sprintf("listeners of %s on %v", c.Name, ports), func() (bool, error) {
		listeners, err := readListeners(pid)
		if err != nil {
			log, _ := c.Log()
			return false, fmt.Errorf("%w: %s", err, log)
		}
		for _, port := range ports {
			if !slices.ContainsFunc(listeners, func(l netip.AddrPort) bool { return l.Port() == port }) {
				return false, ctx.Err()
			}
		}
		return true, nil
	})
}
