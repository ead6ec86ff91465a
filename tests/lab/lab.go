// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Addresses of a lab. Each lab has a network namespace of its own, so all labs have the same.
var (
	NodeV4    = netip.MustParseAddr("192.0.2.1")
	NodeV6    = netip.MustParseAddr("2001:db8:1::1")
	OutsideV4 = netip.MustParseAddr("192.0.2.80")
	OutsideV6 = netip.MustParseAddr("2001:db8:1::80")
	PodsV4    = netip.MustParsePrefix("198.51.100.0/24")
	PodsV6    = netip.MustParsePrefix("2001:db8:2::/64")
)

// Ports of the outside.
const (
	HTTPPort = 80
	EchoPort = 7
	DNSPort  = 53
)

// Options configures a Lab.
type Options struct {
	// Prober is the static prober binary. By default it is built from this module.
	Prober string
	// Log, if set, gets each command that the lab runs.
	Log io.Writer
	// Containerd, if set, makes the lab have a containerd instead of podman.
	Containerd *ContainerdOptions
	// Docker, if set, makes it have a Docker instead.
	Docker *DockerOptions
}

// A Lab is an outside and a container runtime in a node. Its methods may be used by several goroutines, but there can only be one lab open at a
// time in a node.
type Lab struct {
	Dir     string   // temporary directory
	Prober  string   // static prober binary
	Outside *Outside // the world
	// The container runtime: one of these.
	Podman     *Podman
	Containerd *Containerd
	Docker     *Docker

	log      io.Writer
	logMu    sync.Mutex
	closing  sync.Once
	closeErr error
}

// New builds a lab in the node of this process; see Main. The caller owns it and must Close it.
func New(ctx context.Context, opts Options) (*Lab, error) {
	currentMu.Lock()
	defer currentMu.Unlock()
	if current == nil {
		return nil, errors.New("not in a node: call lab.Main first")
	}
	if openLab != nil {
		return nil, errors.New("this node has a lab already")
	}
	dir, err := os.MkdirTemp(current.Dir, "lab-")
	if err != nil {
		return nil, err
	}
	l := &Lab{Dir: dir, Prober: opts.Prober, log: opts.Log}
	if err := l.build(ctx, current, opts); err != nil {
		return nil, errors.Join(err, l.teardown())
	}
	openLab = l
	return l, nil
}

func (l *Lab) build(ctx context.Context, n *Node, opts Options) (err error) {
	if l.Prober == "" {
		if l.Prober, err = buildProber(ctx, l.Dir); err != nil {
			return err
		}
	}
	if l.Outside, err = newOutside(ctx, l); err != nil {
		return fmt.Errorf("outside: %w", err)
	}
	if opts.Containerd != nil {
		if l.Containerd, err = newContainerd(ctx, l, n, *opts.Containerd); err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		return nil
	}
	if opts.Docker != nil {
		if l.Docker, err = newDocker(ctx, l, n, *opts.Docker); err != nil {
			return fmt.Errorf("docker: %w", err)
		}
		return nil
	}
	if l.Podman, err = newPodman(ctx, l, n); err != nil {
		return fmt.Errorf("podman: %w", err)
	}
	return nil
}

// PodBridge returns the device in the node to which the pods are linked. It exists while a pod does; Docker's also longer.
func (l *Lab) PodBridge() string {
	switch {
	case l.Containerd != nil:
		return cniBridge
	case l.Docker != nil:
		return l.Docker.device
	}
	return l.Podman.Bridge()
}

// GatewayMAC returns the hardware address of the pods' next hop.
func (l *Lab) GatewayMAC() (string, error) { return hardwareAddr(l.PodBridge()) }

func hardwareAddr(device string) (string, error) {
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return "", fmt.Errorf("device %s: %w", device, err)
	}
	return ifi.HardwareAddr.String(), nil
}

// Close removes all that the lab made. Calling it again returns the same error.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		l.closeErr = l.teardown()
		currentMu.Lock()
		defer currentMu.Unlock()
		if openLab == l {
			openLab = nil
		}
	})
	return l.closeErr
}

func (l *Lab) teardown() error {
	var errs []error
	if l.Podman != nil {
		errs = append(errs, l.Podman.close())
	}
	if l.Containerd != nil {
		errs = append(errs, l.Containerd.close())
	}
	if l.Docker != nil {
		errs = append(errs, l.Docker.close())
	}
	if l.Outside != nil {
		errs = append(errs, l.Outside.close())
	}
	errs = append(errs, unmountBelow(l.Dir), os.RemoveAll(l.Dir))
	return errors.Join(errs...)
}

// buildProber compiles the prober into dir.
func buildProber(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "prober")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "sidegate/tests/prober")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build prober: %w: %s", err, out)
	}
	return path, nil
}

// logf writes a line to the lab's log.
func (l *Lab) logf(format string, args ...any) {
	if l.log == nil {
		return
	}
	l.logMu.Lock()
	defer l.logMu.Unlock()
	fmt.Fprintf(l.log, "%s %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}
