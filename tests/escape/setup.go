// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
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

// meshUser is whom the iptables rules of a mesh exempt, and so whom its sidecar runs as.
const meshUser = "1337"

// control is the set-up in which every case has to work.
const control = "nothing"

// A setup is a world in which the cases are tried.
type setup struct {
	name     string
	title    string
	caps     []string // of the app
	user     string   // of the app
	iptables bool
	sidegate bool
}

func allSetups() []*setup {
	caps := []string{"NET_ADMIN", "NET_RAW"}
	return []*setup{
		{name: control, title: "no enforcement", caps: caps},
		{name: "iptables", title: "the mesh's iptables rules", iptables: true},
		{name: "iptables+caps", title: "the same, and the app has NET_ADMIN and NET_RAW", caps: caps, iptables: true},
		{name: "sidegate", title: "Sidegate, and the app is root and has NET_ADMIN and NET_RAW", caps: caps, sidegate: true},
		{name: "sidegate-user", title: "Sidegate, and the app is a plain user", user: "1000:1000", sidegate: true},
	}
}

// The policies. Each lets containers start that have capabilities which its default refuses, so that what holds even then is seen.
const (
	meshPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: mesh
spec:
  redirect: {getsockname: original} # HAProxy asks SO_ORIGINAL_DST for IPv4 only
  sidecarPorts: [15000] # HAProxy's own
  adminCapabilities: allow
`
	ruledPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: ruled
spec:
  redirect: {getsockname: original}
  sidecarPorts: [15000]
  adminCapabilities: allow
  rules:
  - role: app
    egress:
    - to: [{entity: world}]
    ingress:
    - from: [{role: sidecar}]
      ports: [8080]
    unix:
      allow: [{path: /run/own/*.sock}]
  - role: sidecar
    egress:
    - to: [{role: app}]
      ports: [8080]
    - to: [{entity: world}]
      ports: [7, 80]
    ingress:
    - from: [{entity: world}]
`
	defaultPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: strict
spec:
  redirect: {getsockname: original}
  sidecarPorts: [15000]
`
)

// sidecarConfig gives HAProxy the sockets that a sidecar has for its own: a port with statistics, which is in the lab's configuration, a
// UNIX socket in a directory that the containers of the pod share, and an abstract one.
const sidecarConfig = `global
    stats socket /run/shared/admin.sock mode 666 level admin
    stats socket abns@sidecar level admin
` + lab.HAProxyConfig

// A world is a set-up that has been built.
type world struct {
	*setup
	lab      *lab.Lab
	env      *env
	bridge   *lab.Sink // sees what is not routed to the outside
	hook     string    // the hook's binary
	hooks    string    // hooks directory
	policies string
	shared   []*stage // by the kind of the pod
	gateway  string   // hardware address of the pods' next hop
	node     netip.Addr
}

// runSetup builds a world and tries all cases in it, in their order.
func runSetup(ctx context.Context, l *lab.Lab, e *env, s *setup, cases []*escape) (tries map[string]try, err error) {
	w := &world{setup: s, lab: l, env: e}
	if s.sidegate {
		if err := w.install(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, w.uninstall(ctx)) }()
	}
	defer func() {
		for _, st := range w.shared {
			err = errors.Join(err, st.pod.Remove(context.WithoutCancel(ctx)))
		}
		if w.bridge != nil {
			err = errors.Join(err, w.bridge.Close())
		}
	}()
	// Before any case, so that the bridge is there.
	if _, err := w.stage(ctx, plain); err != nil {
		return nil, err
	}
	if w.gateway, err = l.GatewayMAC(); err != nil {
		return nil, err
	}
	w.node = lab.PodsV4.Addr().Next()
	if w.bridge, err = l.NewSink(l.PodBridge()); err != nil {
		return nil, err
	}
	if err := w.carries(ctx); err != nil {
		return nil, fmt.Errorf("before the cases: %w", err)
	}
	tries = map[string]try{}
	for _, last := range []bool{false, true} {
		for _, c := range cases {
			if c.last == last {
				tries[c.name] = w.try(ctx, c)
			}
		}
		if last {
			break
		}
		if err := w.carries(ctx); err != nil {
			return nil, fmt.Errorf("after the cases: %w", err)
		}
	}
	return tries, nil
}

// try tries one case.
func (w *world) try(ctx context.Context, c *escape) try {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	t, err := func() (t try, err error) {
		st, err := w.stage(ctx, c.pod)
		if err != nil {
			return t, err
		}
		if c.pod.fresh {
			defer func() { err = errors.Join(err, st.pod.Remove(context.WithoutCancel(ctx))) }()
		}
		before, err := w.counters(ctx)
		if err != nil {
			return t, err
		}
		if t, err = c.run(ctx, st); err != nil || t.State != blocked || !w.sidegate {
			return t, err
		}
		after, err := w.counters(ctx)
		t.Hooks = before.until(after).hooks(&t)
		return t, err
	}()
	if err != nil {
		t = try{State: broken, Detail: err.Error()}
	}
	t.Detail = strings.Join(strings.Fields(t.Detail), " ")
	if w.env.log != nil {
		fmt.Fprintf(w.env.log, "# %s, %s: %s: %s %v (%s)\n", c.name, w.name, t.State, t.Detail, t.Hooks, time.Since(began).Round(time.Millisecond))
	}
	return t
}

// install writes what an administrator would: the policies and the hooks.
func (w *world) install() error {
	b, err := os.ReadFile(filepath.Join(w.env.bin, "sidegate-oci-hook"))
	if err != nil {
		return fmt.Errorf("%w: build it first (make)", err)
	}
	// A copy, which a case replaces. Its name tells processes of this world from others'.
	w.hook = filepath.Join(w.lab.Dir, "sidegate-"+w.name)
	if err := os.WriteFile(w.hook, b, 0o755); err != nil {
		return err
	}
	dir := filepath.Join(w.lab.Dir, w.name)
	w.policies = lab.PolicyDir(dir)
	w.hooks, err = lab.Install(dir, w.hook, map[string]string{
		"mesh.yaml": meshPolicy, "ruled.yaml": ruledPolicy, "strict.yaml": defaultPolicy,
	})
	return err
}

// uninstall takes Sidegate out of the kernel.
func (w *world) uninstall(ctx context.Context) error {
	return lab.Unload(ctx, filepath.Join(w.env.bin, "sidegate"))
}

// command runs the operator's command.
func (w *world) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.env.bin, "sidegate"), args...)
	cmd.Env = append(os.Environ(), "SIDEGATE_POLICY_DIR="+w.policies)
	out, err := cmd.Output()
	if err != nil {
		text := ""
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			text = strings.TrimSpace(string(exit.Stderr))
		}
		return out, fmt.Errorf("sidegate %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return out, nil
}
