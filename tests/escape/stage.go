// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"sidegate/tests/lab"
)

// A podKind is the pod that a case needs.
type podKind struct {
	policy   string // name of Sidegate's policy for it
	fresh    bool   // one of its own: the case does not leave it as it was
	use      string // tells pods apart that are alike, and not fresh
	sharePID bool
	bare     bool // without containers: the case starts them
}

var (
	plain      = podKind{policy: "mesh"}
	scratch    = podKind{policy: "mesh", use: "attempts on what enforces, which change nothing, or only for the worse"}
	devices    = podKind{policy: "mesh", use: "its neighbours may take other devices for it, and lose packets"}
	headless   = podKind{policy: "mesh", use: "its sidecar is stopped"}
	mighty     = podKind{policy: "mesh", use: "apps with more rights than others"}
	strict     = podKind{policy: "strict", bare: true, use: "the same under the default policy"}
	ownPod     = podKind{policy: "mesh", fresh: true}
	emptyPod   = podKind{policy: "mesh", fresh: true, bare: true}
	ruled      = podKind{policy: "ruled"}
	sharedPIDs = podKind{policy: "ruled", sharePID: true}
)

// A stage is a pod in a world: a sidecar, an app, which attacks, and another app, which is attacked.
type stage struct {
	*world
	kind      podKind
	pod       *lab.Pod
	sidecar   *lab.Container
	app       *lab.Container
	neighbour *lab.Container
	dir       string // directory of the host that its containers have at /run/shared
}

// neighbourPort is where the other app listens.
const neighbourPort = 8081

// stage returns a pod of this kind. Those that are not fresh are the world's.
func (w *world) stage(ctx context.Context, kind podKind) (*stage, error) {
	i := slices.IndexFunc(w.shared, func(st *stage) bool { return st.kind == kind })
	if i >= 0 {
		return w.shared[i], nil
	}
	st, err := w.build(ctx, kind)
	if err != nil {
		return nil, err
	}
	if !kind.fresh {
		w.shared = append(w.shared, st)
	}
	return st, nil
}

// build makes a pod, which is the caller's.
func (w *world) build(ctx context.Context, kind podKind) (*stage, error) {
	st := &stage{world: w, kind: kind}
	if err := st.make(ctx); err != nil {
		if st.pod != nil {
			err = errors.Join(err, st.pod.Remove(context.WithoutCancel(ctx)))
		}
		return nil, fmt.Errorf("make a pod: %w", err)
	}
	return st, nil
}

func (st *stage) make(ctx context.Context) error {
	var err error
	if st.dir, err = os.MkdirTemp(st.lab.Dir, "shared-"); err != nil {
		return err
	}
	if err := os.Chmod(st.dir, 0o777); err != nil {
		return err
	}
	if st.pod, err = st.lab.NewPod(ctx, lab.PodOptions{HooksDir: st.hooks, SidecarConfig: sidecarConfig, SharePID: st.kind.sharePID}); err != nil {
		return err
	}
	if st.iptables {
		pid, err := st.pod.Infra().PID(ctx)
		if err != nil {
			return err
		}
		if err := writeMeshRules(ctx, pid); err != nil {
			return err
		}
	}
	if st.kind.bare {
		return nil
	}
	if err := st.startSidecar(ctx); err != nil {
		return err
	}
	if err := st.startApp(ctx, st.appOptions()); err != nil {
		return err
	}
	return st.startNeighbour(ctx)
}

func (st *stage) startNeighbour(ctx context.Context) (err error) {
	opts := st.options("app")
	opts.Args = []string{"/bin/prober", "serve", "--on", fmt.Sprintf(":%d", neighbourPort)}
	if st.neighbour, err = st.pod.Run(ctx, "neighbour", lab.AppImage, opts); err != nil {
		return err
	}
	return st.neighbour.WaitListening(ctx, neighbourPort)
}

func (st *stage) startSidecar(ctx context.Context) (err error) {
	opts := st.options("sidecar")
	opts.User = meshUser + ":" + meshUser
	st.sidecar, err = st.pod.StartSidecar(ctx, opts)
	return err
}

func (st *stage) startApp(ctx context.Context, opts lab.ContainerOptions) (err error) {
	st.app, err = st.pod.StartApp(ctx, opts)
	return err
}

// options are those of a container of this role. None has a seccomp filter, so that what is denied is denied by what is tried.
func (st *stage) options(role string) lab.ContainerOptions {
	opts := lab.ContainerOptions{Unconfined: true, Flags: []string{"--volume", st.dir + ":/run/shared"}}
	if role != "" {
		opts.Annotations = map[string]string{"sidegate/role": role, "sidegate/policy": st.kind.policy}
	}
	return opts
}

// appOptions are the attacker's.
func (st *stage) appOptions() lab.ContainerOptions {
	opts := st.options("app")
	opts.CapAdd, opts.User = st.caps, st.user
	return opts
}

// podAddr returns an address of the pod with a port.
func (st *stage) podAddr(v6 bool, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(st.pod.Addr(v6), port)
}

// echo is the outside's echo server, which the app must not reach but through its sidecar.
func (w *world) echo(v6 bool) string { return w.lab.Outside.Echo(v6).String() }

// carries checks that the pod of most cases does what a mesh is for, or, without one, that the world is there: else a case could be
// blocked by a fault of the set-up.
func (w *world) carries(ctx context.Context) error {
	st, err := w.stage(ctx, plain)
	if err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		t, err := st.attempt(ctx, st.app, "tcp", "--to", w.echo(v6), "--timeout", "10s")
		if err != nil {
			return err
		}
		in, err := w.lab.Outside.Probe(ctx, "http", "--to", st.podAddr(v6, lab.AppPort).String(), "--contains", "hello from the app")
		if err != nil {
			return err
		}
		switch {
		// HAProxy does not know IP6T_SO_ORIGINAL_DST, by which netfilter tells the destination: it refuses what it does not know.
		case w.iptables && v6 && t.State == blocked:
		case t.State == blocked && !strings.HasPrefix(t.Detail, throughSidecar), w.sidegate && t.State == open, w.iptables && t.State == open:
			return fmt.Errorf("the mesh does not work: TCP out, IPv6 %t: %s: %s", v6, t.State, t.Detail)
		case !in.OK:
			return fmt.Errorf("the mesh does not work: TCP in, IPv6 %t: %s", v6, in)
		}
	}
	return nil
}
