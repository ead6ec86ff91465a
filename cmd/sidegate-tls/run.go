// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/observe"
	"sidegate/observe/cli"
)

// sweepInterval is how often the relay looks for pods that are gone: until it has closed its
// listeners, their namespaces live.
const sweepInterval = time.Second

// run relays until ctx ends.
func run(ctx context.Context, o options, log *logrus.Logger) error {
	if err := keepSecret(); err != nil {
		return err
	}
	var metrics net.Listener
	if o.metrics != "" {
		l, err := observe.Listen(o.metrics)
		if err != nil {
			return cli.Usage(err)
		}
		defer l.Close()
		metrics = l
	}
	events, err := openEvents(o.events)
	if err != nil {
		return cli.Usage(err)
	}
	defer events.Close()
	n := newNode(&o, events, log)
	events.onLost = n.metrics.lost.Inc
	defer n.close()
	// Before the socket is there: whoever asks finds a relay that knows the pods.
	if err := n.open(); err != nil {
		return err
	}
	l, err := listenControl(o.socket)
	if err != nil {
		return err
	}
	log.WithField(cli.FieldPath, o.socket).Info("ready")
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.WithField(cli.FieldAddress, os.Getenv("NOTIFY_SOCKET")).WithError(err).
			Warn("systemd is not told that the relay is ready: write Type=exec in its unit if it has another way to see that")
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beside.Go(func() { n.sweepAll(ctx) })
	if metrics != nil {
		log.Infof("serving metrics on %s", metrics.Addr())
		beside.Go(func() {
			if err := observe.Serve(ctx, metrics, n.metrics.registry, n.ready); err != nil {
				log.Error(err)
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for front-ends: %w", err)
		}
		beside.Go(func() { n.answer(c) })
	}
}

// listenControl makes the socket at which front-ends ask. One that nobody answers at is
// what a relay left that was killed.
func listenControl(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	if c, err := net.Dial("unixpacket", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("a relay runs already: it answers at %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of a relay that has ended: %w", err)
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen for front-ends: %w", err)
	}
	return l, nil
}

// controlTimeout is for one request. A front-end waits for less.
const controlTimeout = 5 * time.Second

// answer serves one front-end: one request.
func (n *node) answer(c *net.UnixConn) {
	defer c.Close()
	var answer cgroups.TLSAnswer
	err := c.SetDeadline(time.Now().Add(controlTimeout))
	if err == nil {
		var req cgroups.TLSRequest
		if req, err = readRequest(c); errors.Is(err, errNothingAsked) {
			return
		}
		if err == nil {
			err = n.serve(&req)
		}
		if err != nil {
			n.log.WithFields(requestFields(&req)).WithError(err).
				Error("a front-end asked for what cannot be done, and no container starts by it: see error")
			answer.Error = err.Error()
		}
		var b []byte
		if b, err = json.Marshal(answer); err == nil {
			_, err = c.Write(b)
		}
	}
	if err != nil {
		n.log.WithField(cli.FieldPath, n.socket).WithError(err).
			Warn("a front-end got no answer: it has said so to whoever started the container; start that again")
	}
}

// requestFields are what logs have of a request: its pods are one, unless a policy changes.
func requestFields(req *cgroups.TLSRequest) logrus.Fields {
	f := logrus.Fields{cli.FieldPath: req.State}
	if len(req.Pods) == 1 {
		f[cli.FieldNetnsCookie], f[cli.FieldPID], f[cli.FieldPort] = req.Pods[0].Cookie, req.Pods[0].PID, req.Pods[0].Port
	}
	return f
}

var errNothingAsked = errors.New("nothing was asked")

func readRequest(c *net.UnixConn) (req cgroups.TLSRequest, err error) {
	if err := checkPeer(c); err != nil {
		return req, err
	}
	buf := make([]byte, 1<<20)
	size, err := c.Read(buf)
	if err != nil || size == 0 {
		return req, errors.Join(errNothingAsked, err)
	}
	if err := json.Unmarshal(buf[:size], &req); err != nil {
		return req, fmt.Errorf("read what a front-end asks: %w", err)
	}
	return req, nil
}

// checkPeer takes requests of root alone, whatever has become of the socket's mode.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("ask who asks: %w", err)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("user %d asks: only root may", cred.Uid)
	}
	return nil
}
