// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"sidegate/tests/lab"
)

// handOver is sockets that others have made.
func handOver() []*escape {
	return group("hand-over",
		&escape{name: "scm-rights-connected", what: "a container of no mesh passes a connected socket by a UNIX socket", pod: ruled, run: accomplice("connected")},
		&escape{name: "scm-rights-listening", what: "the same with a listening one", pod: ruled, run: accomplice("listening")},
		&escape{name: "inherited-connected", what: "the first process inherits a socket that the host connected", pod: scratch, run: inherited(false)},
		&escape{name: "inherited-listening", what: "the same with one that listens on the host", pod: scratch, run: inherited(true)},
		&escape{name: "pidfd-getfd", what: "pidfd_getfd from the sidecar, in a shared PID namespace, as its UID", pod: sharedPIDs, run: steal,
			limit: "a socket keeps its maker's rights, and whoever may trace a process may take its sockets (pidfd_getfd(2)): " + apart},
		&escape{name: "ptrace", what: "ptrace the sidecar, in a shared PID namespace, as its UID, and let it connect", pod: sharedPIDs,
			run:   app("ptrace", "--to", "TO", "--uid", meshUser),
			limit: "whoever may trace a process is that process (ptrace(2)): " + apart},
		&escape{name: "proc-root", what: "the sidecar's UNIX socket through /proc/PID/root, in a shared PID namespace", pod: sharedPIDs, run: procRoot},
	)
}

// apart is what keeps two containers from each other's processes.
const apart = "no PID namespace for both (shareProcessNamespace: false), or different users for app and sidecar and no CAP_SETUID and CAP_SYS_PTRACE, " +
	"or kernel.yama.ptrace_scope=1"

// accomplice is a container on the same machine, outside of the mesh, that has a directory with the app in common.
func accomplice(kind string) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		const on = 7411
		nonce := newNonce()
		path := "/run/shared/" + nonce + ".sock"
		c, err := st.lab.Run(ctx, "accomplice", lab.AppImage, lab.PodOptions{HooksDir: st.hooks}, lab.ContainerOptions{
			Unconfined: true,
			Flags:      []string{"--volume", st.dir + ":/run/shared"},
			Args: []string{"/bin/prober", "handover-serve", "--path", path, "--kind", kind,
				"--to", st.echo(false), "--on", fmt.Sprintf("0.0.0.0:%d", on), "--count", "1"},
		})
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx))) }()
		if err := waitSocket(filepath.Join(st.dir, filepath.Base(path))); err != nil {
			log, _ := c.Log()
			return t, fmt.Errorf("%w: %s", err, log)
		}
		if kind == "connected" {
			return st.attempt(ctx, st.app, "handover-take", "--path", path)
		}
		addr, err := st.lab.Podman.Run(ctx, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.Name)
		if err != nil {
			return t, err
		}
		p, err := st.app.StartProbe(ctx, "handover-take", "--path", path, "--accept", "--nonce", nonce)
		if err != nil {
			return t, err
		}
		return st.heard(ctx, p, "tcp", fmt.Sprintf("%s:%d", strings.TrimSpace(string(addr)), on), nonce)
	}
}

// waitSocket waits until somebody listens on a UNIX socket.
func waitSocket(path string) error {
	return lab.WaitFor(waitLimit, "socket "+path, func() (bool, error) {
		st, err := os.Stat(path)
		return err == nil && st.Mode().Type() == os.ModeSocket, nil
	})
}

// inherited gives a container a descriptor of the host's, as socket activation does.
func inherited(listening bool) runFunc {
	return func(ctx context.Context, st *stage) (try, error) {
		nonce := newNonce()
		c, addr, err := hostSocket(st, listening)
		if err != nil {
			return try{}, err
		}
		defer c.Close()
		opts := st.appOptions()
		opts.Args = []string{"/bin/prober", "inherited", "--fd", "3", "--nonce", nonce}
		opts.Files = []*os.File{c}
		if listening {
			opts.Args = append(opts.Args, "--accept")
		}
		app, err := st.pod.Run(ctx, fmt.Sprintf("heir-%t", listening), lab.AppImage, opts)
		if err != nil {
			if st.sidegate {
				return dead(err), nil
			}
			return try{}, err
		}
		if !listening {
			if err := app.Wait(ctx); err != nil {
				return try{}, err
			}
			if err := st.settle(ctx); err != nil {
				return try{}, err
			}
			seen, err := st.lab.Outside.Seen(nonce)
			if err != nil || len(seen) > 0 {
				return openf("arrived from %s, the host's socket", addr), err
			}
			return blockedf("it started, and nothing arrived"), nil
		}
		r, err := st.lab.Outside.Probe(ctx, "tcp", "--to", addr, "--nonce", nonce, "--timeout", "1s")
		if err != nil {
			return try{}, err
		}
		if r.OK {
			return openf("the app answered on the host's %s", addr), nil
		}
		return refused(r), nil
	}
}

// hostSocket makes a socket in the node's own network namespace. The address is its own.
func hostSocket(st *stage, listening bool) (*os.File, string, error) {
	if listening {
		l, err := net.Listen("tcp4", lab.NodeV4.String()+":0")
		if err != nil {
			return nil, "", err
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		return f, l.Addr().String(), err
	}
	c, err := net.Dial("tcp", st.echo(false))
	if err != nil {
		return nil, "", err
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	return f, c.LocalAddr().String(), err
}

// steal takes the sidecar's listening sockets, and with them the connections of other containers.
func steal(ctx context.Context, st *stage) (try, error) {
	p, err := st.app.StartProbe(ctx, "steal", "--uid", meshUser, "--comm", "haproxy",
		"--port", fmt.Sprint(lab.OutboundPort), "--timeout", "5s")
	if err != nil {
		return try{}, err
	}
	return st.intercepted(ctx, p, newNonce())
}

// procRoot reaches the sidecar's file system by its process.
func procRoot(ctx context.Context, st *stage) (try, error) {
	r, err := st.app.Probe(ctx, "in", "--uid", meshUser, "unix", "--root-of", "haproxy", "--path", "/run/shared/admin.sock", "--send", "show info\n")
	if err != nil {
		return try{}, err
	}
	return adminAnswer(r), nil
}

// adminAnswer decides an attempt on the sidecar's own sockets.
func adminAnswer(r lab.Result) try {
	if r.OK && strings.Contains(r.Text("answer")+r.Text("body"), "HAProxy") {
		return openf("the sidecar's administration answered")
	}
	return refused(r)
}
