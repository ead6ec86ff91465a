// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sidegate/tests/lab"
)

// identity is whom an attacker says that it is.
func identity() []*escape {
	return group("identity",
		&escape{name: "uid-1337", what: "connect as the sidecar's UID", run: app("tcp", "--to", "TO", "--uid", "1337")},
		&escape{name: "uid-1337-v6", what: "the same by IPv6", run: app("tcp", "--to", "TO6", "--uid", "1337")},
		&escape{name: "gid-1337", what: "connect as the sidecar's GID", run: app("tcp", "--to", "TO", "--gid", "1337")},
		&escape{name: "uid-1337-late", what: "become the sidecar's UID between socket() and connect()", run: app("tcp", "--to", "TO", "--uid", "1337", "--late")},
		&escape{name: "uid-1337-userns", what: "the same UID in a user namespace of one's own", run: app("in", "--userns", "1337", "tcp", "--to", "TO")},
		&escape{name: "so-mark", what: "SO_MARK 1337 on the socket", run: app("tcp", "--to", "TO", "--mark", "1337")},
		&escape{name: "cgroup-root", what: "move to the root cgroup, with cgroupfs writable, and send", run: onCgroups("/", "move")},
		&escape{name: "cgroup-sidecar", what: "move into the sidecar's cgroup, with cgroupfs writable, and connect", run: onCgroups("sidecar", "move")},
		&escape{name: "cgroup-sidecar-child", what: "make a cgroup below the sidecar's, and connect from there", run: onCgroups("sidecar", "below")},
		&escape{name: "cgroup-sidecar-thread", what: "move one thread there, with threaded cgroups", run: onCgroups("sidecar", "thread")},
		&escape{name: "cgroup-sidecar-clone", what: "make a process there, by CLONE_INTO_CGROUP", run: onCgroups("sidecar", "clone")},
		&escape{name: "cgroup-neighbour", what: "move into another app's cgroup, and send", run: onCgroups("neighbour", "move")},
		&escape{name: "cgroup-nested", what: "make a cgroup below one's own, and send from there", run: onCgroups("own", "below")},
		&escape{name: "cgroup-namespace", what: "send from a child cgroup in user, mount and cgroup namespaces of one's own",
			run: tampering("escape: from a child cgroup")},
		&escape{name: "nsenter-sibling", what: "a container of the host's PID namespace enters the pod's network namespace", run: sibling},
		&escape{name: "join-netns", what: "a container that joins the pod's network namespace later", run: func(ctx context.Context, st *stage) (try, error) {
			return st.joined(ctx, func(args ...string) (lab.Result, error) {
				return st.pod.JoinNetns(ctx, st.app, lab.ContainerOptions{Unconfined: true, CapAdd: st.caps}, args...)
			})
		}},
		&escape{name: "join-pod", what: "a container without annotations in the pod", run: func(ctx context.Context, st *stage) (try, error) {
			return st.joined(ctx, func(args ...string) (lab.Result, error) {
				return st.pod.JoinPod(ctx, lab.ContainerOptions{Unconfined: true}, args...)
			})
		}},
		&escape{name: "host-process", what: "a process of the host in the pod's network namespace", run: func(ctx context.Context, st *stage) (try, error) {
			return st.joined(ctx, func(args ...string) (lab.Result, error) { return st.pod.Enter(ctx, args...) })
		}},
	)
}

// joined lets a process that is no container of the pod send by every way.
func (st *stage) joined(ctx context.Context, run func(args ...string) (lab.Result, error)) (try, error) {
	nonce := newNonce()
	r, err := run(append(st.words(everyWay), "--nonce", nonce)...)
	if err != nil {
		if st.sidegate {
			return dead(err), nil
		}
		return try{}, err
	}
	return st.arrived(ctx, nonce, r)
}

// everyWay sends by TCP, UDP, raw sockets and frames.
var everyWay = []string{"everyway", "--to", "TO", "--gw-mac", "MAC"}

// tampering makes one of the prober's attempts on what enforces, which sends by every way itself.
func tampering(name string, flags ...string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) { return st.tamperingIn(ctx, st.app, name, flags...) }
}

func (st *stage) tamperingIn(ctx context.Context, c *lab.Container, name string, flags ...string) (try, error) {
	r, err := c.Probe(ctx, st.words(append(tamper(name), flags...))...)
	if err != nil {
		return try{}, err
	}
	var last try
	list, _ := r.Data["attempts"].([]any)
	for _, one := range list {
		a, _ := one.(map[string]any)
		if a["name"] != name {
			continue
		}
		said := lab.Result{}
		said.OK, _ = a["ok"].(bool)
		said.Err, _ = a["err"].(string)
		said.Errno, _ = a["errno"].(string)
		data, _ := a["data"].(map[string]any)
		nonces, _ := data["nonces"].([]any)
		for _, nonce := range append(nonces, data["nonce"]) {
			text, _ := nonce.(string)
			if text == "" {
				continue
			}
			if last, err = st.arrived(ctx, text, said); err != nil || last.State == open {
				return last, err
			}
		}
		if last.State == "" {
			last = refused(said)
		}
		return last, nil
	}
	return try{}, fmt.Errorf("the prober made no attempt %q: %s", name, r)
}

// start starts a container of the app's image that does nothing, and adds it to the pod.
func (st *stage) start(ctx context.Context, name string, opts lab.ContainerOptions) (*lab.Container, error) {
	if opts.Args == nil {
		opts.Args = []string{"/bin/sleep", "600"}
	}
	return st.pod.Run(ctx, name, lab.AppImage, opts)
}

// with makes an attempt in an app of its own.
func (st *stage) with(ctx context.Context, name string, opts lab.ContainerOptions, attempt func(*lab.Container) (try, error)) (t try, err error) {
	c, err := st.start(ctx, name, opts)
	if err != nil {
		if st.sidegate {
			// podman keeps what it could not start.
			if _, rerr := st.lab.Podman.Run(ctx, "rm", "--force", "--ignore", st.pod.Name+"-"+name); rerr != nil {
				return t, errors.Join(err, rerr)
			}
			return dead(err), nil
		}
		return t, err
	}
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx))) }()
	return attempt(c)
}

// onCgroups gives an app the machine's cgroup file system, writable, and lets it send from the cgroup of another: "/", "own", or a
// container of the pod.
func onCgroups(whose, how string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) {
		opts := st.appOptions()
		opts.User, opts.HostCgroups = "", true // root: who may write there
		return st.with(ctx, "mover", opts, func(c *lab.Container) (try, error) {
			path := "/"
			owner := map[string]*lab.Container{"own": c, "sidecar": st.sidecar, "neighbour": st.neighbour}[whose]
			if owner != nil {
				var err error
				if path, err = cgroupOf(ctx, owner); err != nil {
					return try{}, err
				}
			}
			args := []string{"stray", "--how", how, "--cgroup", filepath.Join(lab.HostCgroups, path), "--"}
			return st.attempt(ctx, c, append(args, st.words(everyWay)...)...)
		})
	}
}

// cgroupOf returns a container's cgroup below the mount point.
func cgroupOf(ctx context.Context, c *lab.Container) (string, error) {
	pid, err := c.PID(ctx)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("container %s is in no cgroup2", c.Name)
}

// sibling is a container of the same machine that may enter any namespace.
func sibling(ctx context.Context, st *stage) (t try, err error) {
	pid, err := st.app.PID(ctx)
	if err != nil {
		return t, err
	}
	c, err := st.lab.Run(ctx, "sibling", lab.AppImage, lab.PodOptions{HooksDir: st.hooks}, lab.ContainerOptions{
		Unconfined: true,
		CapAdd:     []string{"SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "NET_RAW"},
		Flags:      []string{"--pid", "host"},
		Args:       []string{"/bin/sleep", "600"},
	})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx))) }()
	return st.attempt(ctx, c, append([]string{"in", "--netns", fmt.Sprintf("/proc/%d/ns/net", pid)}, st.words(everyWay)...)...)
}
