// SPDX-License-Identifier: Apache-2.0

package lab

import (
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
}

// A Pod is a podman pod with an infra container, on the lab's network.
type Pod struct {
	Name string
	V4   netip.Addr
	V6   netip.Addr

	podman     *Podman
	opts       PodOptions
	infra      *Container
	containers []*Container
}

// A Container is one of podman's.
type Container struct {
	Name    string
	podman  *Podman
	logPath string
	opts    PodOptions

	mu    sync.Mutex
	shell *session // nil until the first Probe, and after an error
}

// ContainerOptions configures a container of a pod. The zero value is a container with podman's defaults and no annotations.
type ContainerOptions struct {
	Annotations map[string]string
	CapAdd      []string // such as NET_ADMIN
	Unconfined  bool     // no seccomp filter: podman's default one hides what a test wants to see denied by others
	Args        []string // instead of the default program and arguments
}

// NewPod creates and starts a pod, and waits until its addresses are there. Its infra container is made by podman from catatonit.
func (l *Lab) NewPod(ctx context.Context, opts PodOptions) (*Pod, error) {
	p := &Pod{Name: fmt.Sprintf("pod%d", l.Podman.pods.Add(1)), podman: l.Podman, opts: opts}
	// Without a cgroup of its own for the pod: podman 4.3 gives such a one a device filter that denies all (no /dev/null).
	if _, err := p.podman.Run(ctx, p.global("pod", "create", "--name", p.Name, "--network", networkName,
		"--share-parent=false", "--cgroup-parent", p.podman.cgroup)...); err != nil {
		return nil, err
	}
	if _, err := p.podman.Run(ctx, p.global("pod", "start", p.Name)...); err != nil {
		return nil, err
	}
	out, err := p.podman.Run(ctx, "pod", "inspect", "--format", "{{.InfraContainerID}}", p.Name)
	if err != nil {
		return nil, err
	}
	p.infra = &Container{Name: strings.TrimSpace(string(out)), podman: p.podman, opts: opts}
	if err := p.addresses(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// global puts the pod's global options before podman's arguments.
func (p *Pod) global(args ...string) []string { return p.opts.global(args...) }

func (o PodOptions) global(args ...string) []string {
	if o.HooksDir == "" {
		return args
	}
	return append([]string{"--hooks-dir", o.HooksDir}, args...)
}

// addresses asks podman for the pod's addresses and waits until the kernel uses the IPv6 one.
func (p *Pod) addresses(ctx context.Context) error {
	out, err := p.podman.Run(ctx, "inspect", "--format", "{{json .NetworkSettings.Networks}}", p.infra.Name)
	if err != nil {
		return err
	}
	var networks map[string]struct {
		IPAddress         netip.Addr
		GlobalIPv6Address netip.Addr
	}
	if err := json.Unmarshal(out, &networks); err != nil {
		return fmt.Errorf("inspect networks: %w: %s", err, out)
	}
	p.V4, p.V6 = networks[networkName].IPAddress, networks[networkName].GlobalIPv6Address
	if !p.V4.IsValid() || !p.V6.IsValid() {
		return fmt.Errorf("pod has addresses %v and %v", p.V4, p.V6)
	}
	pid, err := p.infra.PID(ctx)
	if err != nil {
		return err
	}
	return WaitFor(5*time.Second, "the pod's IPv6 address", func() (bool, error) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/if_inet6", pid))
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
	c := &Container{Name: p.Name + "-" + name, podman: p.podman, opts: p.opts}
	c.logPath = filepath.Join(p.podman.dir, c.Name+".log")
	args := append([]string{"run", "--detach", "--pod", p.Name, "--name", c.Name}, p.podman.runFlags(opts)...)
	args = append(args, "--log-opt", "path="+c.logPath)
	if image == SidecarImage {
		args = append(args, "--volume", filepath.Join(p.podman.dir, "haproxy.cfg")+":/etc/haproxy/haproxy.cfg:ro")
	}
	args = append(append(args, image), opts.Args...)
	if _, err := p.podman.Run(ctx, p.global(args...)...); err != nil {
		return nil, err
	}
	p.containers = append(p.containers, c)
	return c, nil
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
	return flags
}

// StartSidecar starts HAProxy in the pod and waits until it listens.
func (p *Pod) StartSidecar(ctx context.Context, opts ContainerOptions) (*Container, error) {
	if opts.Args == nil {
		opts.Args = []string{"/usr/sbin/haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"}
	}
	c, err := p.Run(ctx, "sidecar", SidecarImage, opts)
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

// JoinPod runs the prober in a container that podman adds to the pod late, and removes it.
func (p *Pod) JoinPod(ctx context.Context, opts ContainerOptions, args ...string) (Result, error) {
	return p.join(ctx, opts, []string{"--pod", p.Name}, args)
}

// JoinNetns runs the prober in a container outside the pod, but in the network namespace of one of its containers, and removes it.
// podman refuses --network container:NAME from outside a pod; --network ns:PATH it does not.
func (p *Pod) JoinNetns(ctx context.Context, c *Container, opts ContainerOptions, args ...string) (Result, error) {
	pid, err := c.PID(ctx)
	if err != nil {
		return Result{}, err
	}
	return p.join(ctx, opts, []string{"--network", fmt.Sprintf("ns:/proc/%d/ns/net", pid)}, args)
}

func (p *Pod) join(ctx context.Context, opts ContainerOptions, how, args []string) (Result, error) {
	flags := append([]string{"run", "--rm"}, how...)
	flags = append(append(flags, p.podman.runFlags(opts)...), AppImage, "/bin/prober")
	return probe(ctx, p.podman.lab, p.podman.command(ctx, p.global(append(flags, args...)...)...))
}

// Enter runs the prober as a process of the node that entered the pod's network namespace.
func (p *Pod) Enter(ctx context.Context, args ...string) (Result, error) {
	pid, err := p.infra.PID(ctx)
	if err != nil {
		return Result{}, err
	}
	enter := append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--", p.podman.lab.Prober}, args...)
	return probe(ctx, p.podman.lab, exec.CommandContext(ctx, "nsenter", enter...))
}

// Remove kills and removes the pod.
func (p *Pod) Remove(ctx context.Context) error {
	for _, c := range p.containers {
		c.endShell()
	}
	_, err := p.podman.Run(ctx, "pod", "rm", "--force", "--time", "0", p.Name)
	return err
}

// Probe runs the prober in the container. Attempts of one container are made one after the other.
func (c *Container) Probe(ctx context.Context, args ...string) (Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shell == nil {
		shell, err := startSession(c.podman.command(context.WithoutCancel(ctx), "exec", "--interactive", c.Name, "/bin/prober", "shell"))
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
	c.podman.lab.logf("%s: prober %s -> %+v (%s)", c.Name, strings.Join(args, " "), r, time.Since(began).Round(time.Millisecond))
	return r, err
}

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
	return startProbing(c.podman.lab, c.podman.command(ctx, append([]string{"exec", c.Name, "/bin/prober"}, args...)...))
}

// Exec runs a command in the container and returns its output.
func (c *Container) Exec(ctx context.Context, args ...string) ([]byte, error) {
	return c.podman.Run(ctx, append([]string{"exec", c.Name}, args...)...)
}

// Stop stops the container: SIGTERM, and SIGKILL after a while.
func (c *Container) Stop(ctx context.Context) error {
	c.endShell()
	_, err := c.podman.Run(ctx, "stop", "--time", "3", c.Name)
	return err
}

// Start starts a stopped container again.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.podman.Run(ctx, c.opts.global("start", c.Name)...)
	return err
}

// Remove kills and removes the container.
func (c *Container) Remove(ctx context.Context) error {
	c.endShell()
	_, err := c.podman.Run(ctx, "rm", "--force", "--time", "0", c.Name)
	return err
}

// PID returns the process id of the container's first process, as the node sees it.
func (c *Container) PID(ctx context.Context) (int, error) {
	out, err := c.podman.Run(ctx, "inspect", "--format", "{{.State.Pid}}", c.Name)
	if err != nil {
		return 0, err
	}
	var pid int
	if _, err := fmt.Sscan(string(out), &pid); err != nil || pid == 0 {
		return 0, errors.Join(fmt.Errorf("container %s does not run", c.Name), err)
	}
	return pid, nil
}

// Log returns what the container wrote, in podman's k8s-file format.
func (c *Container) Log() ([]byte, error) { return os.ReadFile(c.logPath) }

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

// WaitListening waits until each port has a TCP listener in the container's network namespace.
func (c *Container) WaitListening(ctx context.Context, ports ...uint16) error {
	pid, err := c.PID(ctx)
	if err != nil {
		log, _ := c.Log()
		return fmt.Errorf("%w: %s", err, log)
	}
	return WaitFor(10*time.Second, fmt.Sprintf("listeners of %s on %v", c.Name, ports), func() (bool, error) {
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
