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
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Run runs a container in the background, as "docker run flags image args" does. It is on no network unless flags say one. The container may
// be there also after an error, as Docker leaves one that does not start.
func (e *Docker) Run(ctx context.Context, name, image string, flags []string, args ...string) (*Container, error) {
	c := &Container{Name: name, lab: e.lab, engine: e}
	return c, e.runContainer(ctx, c, image, flags, args)
}

func (e *Docker) runContainer(ctx context.Context, c *Container, image string, flags, args []string) error {
	all := append([]string{"run", "--detach", "--name", c.Name}, flags...)
	out, err := e.CLI(ctx, append(append(all, image), args...)...)
	c.ID = strings.TrimSpace(string(out))
	return err
}

// runAlone is Run with the options of pods' containers.
func (e *Docker) runAlone(ctx context.Context, name, image string, pod PodOptions, opts ContainerOptions) (*Container, error) {
	if pod.HooksDir != "" {
		return nil, errNoHooks
	}
	flags, err := e.runFlags(opts)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(opts.Flags, "--network") {
		network, err := e.network(ctx, pod)
		if err != nil {
			return nil, err
		}
		flags = append(flags, "--network", network)
	}
	return e.Run(ctx, name, image, flags, opts.Args...)
}

// network returns the network that a pod is to be on.
func (e *Docker) network(ctx context.Context, opts PodOptions) (string, error) {
	if opts.Network != "" {
		return opts.Network, nil
	}
	return e.Bridge(ctx)
}

var errNoHooks = errors.New("docker has no directory of hooks")

// NewPod runs an infra container on a network, which other containers join, and waits until its addresses are there.
func (e *Docker) NewPod(ctx context.Context, opts PodOptions) (*Pod, error) {
	name := cmp.Or(opts.Name, fmt.Sprintf("pod%d", e.serial.Add(1)))
	flags := labels(opts.Labels, opts.Annotations)
	if opts.HostNetwork {
		flags = append(flags, "--network", "host")
	} else {
		network, err := e.network(ctx, opts)
		if err != nil {
			return nil, err
		}
		flags = append(flags, "--network", network, "--hostname", name)
	}
	infra, err := e.Run(ctx, name+"-infra", pauseName, append(flags, opts.Flags...))
	if err != nil {
		return nil, errors.Join(err, e.removeListed(context.WithoutCancel(ctx), "^/?"+infra.Name+"$"))
	}
	return e.pod(ctx, name, infra, opts)
}

// PodOf returns a pod whose namespaces belong to a container, an app for example, that was run without one. It ends with the pod.
func (e *Docker) PodOf(ctx context.Context, c *Container, opts PodOptions) (*Pod, error) {
	return e.pod(ctx, c.Name, c, opts)
}

func (e *Docker) pod(ctx context.Context, name string, infra *Container, opts PodOptions) (*Pod, error) {
	if opts.HooksDir != "" {
		return nil, errNoHooks
	}
	p := &Pod{Name: name, lab: e.lab, engine: e, dir: e.dir, opts: opts, infra: infra}
	if err := os.WriteFile(p.sidecarConfig(), []byte(cmp.Or(opts.SidecarConfig, HAProxyConfig)), 0o644); err != nil {
		return nil, err
	}
	inspected, err := e.Inspect(ctx, infra.ID)
	if err != nil {
		return nil, err
	}
	for _, network := range inspected.NetworkSettings.Networks {
		// The first that there are: a pod is on one network, unless a test says otherwise.
		if !p.V4.IsValid() {
			p.V4 = network.IPAddress
		}
		if !p.V6.IsValid() {
			p.V6 = network.GlobalIPv6Address
		}
	}
	if !p.V6.IsValid() {
		return p, nil
	}
	return p, p.waitAddress(strconv.Itoa(inspected.State.Pid))
}

// inPod returns the flags of a container that joins the namespaces of with.
func (p *Pod) inPod(with *Container) []string {
	flags := []string{"--network", "container:" + with.Name}
	if p.opts.SharePID {
		flags = append(flags, "--pid", "container:"+with.Name)
	}
	return flags
}

func (e *Docker) run(ctx context.Context, p *Pod, c *Container, image string, opts ContainerOptions) error {
	more, err := e.runFlags(opts)
	if err != nil {
		return err
	}
	flags := p.inPod(p.infra)
	if image == SidecarImage {
		flags = append(flags, "--volume", p.sidecarConfig()+":/etc/haproxy/haproxy.cfg:ro")
	}
	return e.runContainer(ctx, c, image, append(flags, more...), opts.Args)
}

// runFlags turns options into flags of docker run.
func (e *Docker) runFlags(opts ContainerOptions) ([]string, error) {
	if len(opts.Files) > 0 {
		return nil, errors.New("docker has no inherited files")
	}
	flags := labels(opts.Annotations)
	for _, c := range opts.CapAdd {
		flags = append(flags, "--cap-add", c)
	}
	if opts.Unconfined {
		flags = append(flags, "--security-opt", "seccomp=unconfined")
	}
	if opts.HostCgroups {
		flags = append(flags, "--cgroupns", "host", "--volume", cgroupRoot+":"+HostCgroups+":rw")
	}
	if opts.User != "" {
		flags = append(flags, "--user", opts.User)
	}
	return append(flags, opts.Flags...), nil
}

func labels(sets ...map[string]string) (flags []string) {
	for _, set := range sets {
		for _, key := range slices.Sorted(maps.Keys(set)) {
			flags = append(flags, "--label", key+"="+set[key])
		}
	}
	return flags
}

// join is the same for both: Docker has no pods, and any container may name any other.
func (e *Docker) join(ctx context.Context, p *Pod, with *Container, opts ContainerOptions, args []string) (Result, error) {
	flags, err := e.runFlags(opts)
	if err != nil {
		return Result{}, err
	}
	all := append([]string{"run", "--rm", "--name", fmt.Sprintf("%s-join%d", p.Name, e.serial.Add(1))}, p.inPod(cmp.Or(with, p.infra))...)
	all = append(append(all, flags...), AppImage, "/bin/prober")
	return probe(ctx, e.lab, e.Command(ctx, append(all, args...)...))
}

func (e *Docker) exec(ctx context.Context, c *Container, argv ...string) *exec.Cmd {
	return e.Command(ctx, append([]string{"exec", "--interactive", c.Name}, argv...)...)
}

func (e *Docker) stop(ctx context.Context, c *Container) error {
	_, err := e.CLI(ctx, "stop", "--time", "3", c.Name)
	return err
}

func (e *Docker) start(ctx context.Context, c *Container) error {
	_, err := e.CLI(ctx, "start", c.Name)
	return err
}

func (e *Docker) remove(ctx context.Context, c *Container) error {
	_, err := e.CLI(ctx, "rm", "--force", "--volumes", c.Name)
	return err
}

func (e *Docker) wait(ctx context.Context, c *Container) error {
	_, err := e.CLI(ctx, "wait", c.Name)
	return err
}

func (e *Docker) pid(ctx context.Context, c *Container) (int, error) {
	inspected, err := e.Inspect(ctx, c.Name)
	if err != nil {
		return 0, err
	}
	if inspected.State.Pid == 0 {
		return 0, fmt.Errorf("container %s does not run", c.Name)
	}
	return inspected.State.Pid, nil
}

// log reads Docker's own file, which needs no dockerd, and has the streams apart.
func (e *Docker) log(c *Container) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(e.root(), "containers", c.ID, c.ID+"-json.log"))
	if err != nil {
		return nil, err
	}
	return criLog(b)
}

// criLog turns Docker's log of lines of JSON into CRI's.
func criLog(b []byte) ([]byte, error) {
	var out bytes.Buffer
	for line := range bytes.Lines(b) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var entry struct{ Log, Stream, Time string }
		if err := json.Unmarshal(line, &entry); err != nil {
			return nil, fmt.Errorf("docker's log: %w", err)
		}
		text, whole := strings.CutSuffix(entry.Log, "\n")
		tag := "F"
		if !whole {
			tag = "P" // Docker cuts long lines
		}
		fmt.Fprintf(&out, "%s %s %s %s\n", entry.Time, entry.Stream, tag, text)
	}
	return out.Bytes(), nil
}

// removePod removes the pod's containers, also such as did not start.
func (e *Docker) removePod(ctx context.Context, p *Pod) error {
	return e.removeListed(ctx, "^/?"+p.Name+"-", "^/?"+p.infra.Name+"$")
}
