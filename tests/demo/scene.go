// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	var opts lab.PodOptions
	if s == on {
		if opts.HooksDir, err = install(l, e); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, uninstall(ctx, e)) }()
	}
	pod, err := l.NewPod(ctx, opts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pod.Remove(ctx)) }()
	sc := &scene{lab: l, pod: pod, opts: opts}
	if sc.sidecar, err = pod.StartSidecar(ctx, lab.ContainerOptions{
		Annotations: sidecarAnnotations(),
	}); err != nil {
		return nil, err
	}
	if sc.app, err = pod.StartApp(ctx, appOptions()); err != nil {
		return nil, err
	}
	if sc.gateway, err = l.Podman.GatewayMAC(); err != nil {
		return nil, err
	}
	for _, a := range attempts {
		began := time.Now()
		actx, cancel := context.WithTimeout(ctx, time.Minute)
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

// install writes what an administrator would: the policy and the hooks.
func install(l *lab.Lab, e *env) (hooksDir string, err error) {
	hook := filepath.Join(e.bin, "sidegate-oci-hook")
	if _, err := os.Stat(hook); err != nil {
		return "", fmt.Errorf("%w: build it first (make)", err)
	}
	policies, hooks := filepath.Join(l.Dir, "policies"), filepath.Join(l.Dir, "hooks")
	if err := os.MkdirAll(policies, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(policies, "demo.yaml"), []byte(demoPolicy), 0o644); err != nil {
		return "", err
	}
	return hooks, lab.WriteHooks(hooks, hook, []string{"SIDEGATE_POLICY_DIR=" + policies, "PATH=" + os.Getenv("PATH")})
}

// uninstall takes Sidegate out of the kernel and checks that nothing of it stays.
func uninstall(ctx context.Context, e *env) error {
	out, err := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(e.bin, "sidegate"), "unload", "--force").CombinedOutput()
	if err != nil {
		return fmt.Errorf("sidegate unload: %w: %s", err, strings.TrimSpace(string(out)))
	}
	left, err := filepath.Glob("/sys/fs/bpf/sidegate/*")
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("after sidegate unload there are pins: %s", strings.Join(left, " "))
	}
	return err
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

// carriedBy waits for the sidecar's word that it carried a connection that match finds; its log has it when the connection is over.
func (s *scene) carriedBy(match func(lab.Carried) bool) (lab.Carried, bool, error) {
	var found lab.Carried
	errNone := errors.New("none")
	err := lab.WaitFor(2*time.Second, "the sidecar's log", func() (bool, error) {
		all, err := s.sidecar.Carried()
		for _, c := range all {
			if match(c) {
				found = c
				return true, nil
			}
		}
		if err != nil {
			err = errors.Join(errNone, err)
		}
		return false, err
	})
	if errors.Is(err, errNone) {
		return lab.Carried{}, false, err
	}
	return found, err == nil, nil
}
