// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"sidegate/tests/lab"
)

// A scene is a pod with a sidecar and an app, where attempts are made.
type scene struct {
	lab     *lab.Lab
	pod     *lab.Pod
	sidecar *lab.Container
	app     *lab.Container
	opts    lab.PodOptions
	gateway string // hardware address of the pod's next hop

	installed bool // Sidegate is
}

const demoPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: demo
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
  adminCapabilities: allow # so that what holds even then is seen
`

// runSide makes a fresh pod and all attempts in it, in order.
func runSide(ctx context.Context, l *lab.Lab, e *env, s side, attempts []attempt) (findings []finding, err error) {
	sc := &scene{lab: l, installed: s == on}
	if s == on {
		end, err := sc.install(ctx, e)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, end(), lab.Unload(ctx, filepath.Join(e.bin, "sidegate"))) }()
	}
	if l.Docker != nil {
		err = sc.fillDocker(ctx)
	} else {
		err = sc.fill(ctx)
	}
	if sc.pod != nil {
		defer func() { err = errors.Join(err, sc.remove(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return nil, err
	}
	if sc.gateway, err = l.GatewayMAC(); err != nil {
		return nil, err
	}
	for _, a := range attempts {
		began := time.Now()
		actx, cancel := context.WithTimeout(ctx, attemptTime)
		f, err := a.run(actx, sc)
		cancel()
		if err != nil {
			f = findingf(undecided, "%v", err)
		}
		if e.log != nil {
			fmt.Fprintf(e.log, "# %s, %s: %s: %s (%s)\n", a.name, s, f.Outcome, f.Detail, time.Since(began).Round(time.Millisecond))
		}
		findings = append(findings, f)
	}
	return findings, nil
}

// remove removes the pod, and its network where it has one of its own.
func (s *scene) remove(ctx context.Context) error {
	err := s.pod.Remove(ctx)
	if s.lab.Docker != nil {
		err = errors.Join(err, s.lab.Docker.RemoveAll(ctx))
	}
	return err
}

// fill makes a pod with its containers.
func (s *scene) fill(ctx context.Context) (err error) {
	if s.pod, err = s.newPod(ctx); err != nil {
		return err
	}
	if s.sidecar, err = s.pod.StartSidecar(ctx, lab.ContainerOptions{Annotations: sidecarAnnotations()}); err != nil {
		return err
	}
	s.app, err = s.pod.StartApp(ctx, appOptions())
	return err
}

func sidecarAnnotations() map[string]string {
	return map[string]string{"sidegate/role": "sidecar", "sidegate/policy": "demo"}
}

// appOptions is the hardest app there is: root, with all that a container can be given in the way of networks, and without a seccomp
// filter, so that what is denied is denied by Sidegate.
func appOptions() lab.ContainerOptions {
	return lab.ContainerOptions{
		Annotations: map[string]string{"sidegate/role": "app", "sidegate/policy": "demo", "sidegate/wait": "30s"},
		CapAdd:      []string{"NET_ADMIN", "NET_RAW"},
		Unconfined:  true,
	}
}

// newPod makes a pod like that of the demo. Of podman it is the containers that say what they are, in Kubernetes their pod.
func (s *scene) newPod(ctx context.Context) (*lab.Pod, error) {
	switch {
	case s.lab.Docker != nil:
		return s.lab.NewPod(ctx, lab.PodOptions{Network: mesh})
	case s.lab.Containerd == nil:
		return s.lab.NewPod(ctx, s.opts)
	}
	return s.lab.Containerd.NewPod(ctx, lab.PodOptions{
		Labels:      map[string]string{"sidegate/policy": "demo"},
		Annotations: map[string]string{"sidegate/role.sidecar": "sidecar", "sidegate/wait.app": "30s"},
	})
}

// install does what an administrator would: it writes the policy, and the hooks or the plugin's configuration, and starts the plugin.
func (s *scene) install(ctx context.Context, e *env) (end func() error, err error) {
	hook := filepath.Join(e.bin, "sidegate-oci-hook")
	if _, err := os.Stat(hook); err != nil {
		return nil, fmt.Errorf("%w: build it first (make)", err)
	}
	if s.opts.HooksDir, err = lab.Install(s.lab.Dir, hook, map[string]string{"demo.yaml": demoPolicy}); err != nil {
		return nil, err
	}
	switch {
	case s.lab.Docker != nil:
		return s.lab.Docker.StartDriver(ctx, filepath.Join(e.bin, "sidegate-docker"), "--policy-dir", lab.PolicyDir(s.lab.Dir))
	case s.lab.Containerd == nil:
		return func() error { return nil }, nil
	}
	config := filepath.Join(s.lab.Dir, "nri.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "hook: %s\npolicyDir: %s\n", hook, lab.PolicyDir(s.lab.Dir)), 0o644); err != nil {
		return nil, err
	}
	return s.lab.Containerd.StartPlugin(ctx, filepath.Join(e.bin, "sidegate-nri"), "--config", config)
}

// newNonce marks what one attempt sends.
func newNonce() string { return "n" + rand.Text() }

// outside runs the prober beyond the pod.
func (s *scene) outside(ctx context.Context, args ...string) (lab.Result, error) {
	return s.lab.Outside.Probe(ctx, args...)
}

// podAddr returns an address of the pod with a port.
func (s *scene) podAddr(v6 bool, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(s.pod.Addr(v6), port)
}
