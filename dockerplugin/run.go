// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	libnetwork "github.com/docker/go-plugins-helpers/network"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
	"sidegate/observe"
	"sidegate/observe/cli"
)

// run serves until ctx ends.
func run(ctx context.Context, c config, log *logrus.Logger) error {
	if _, err := os.Stat(givenSysctls); err == nil {
		logForDocker(log)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMetrics(c.stateDir)
	d := newDriver(c, log, m)
	// What is wrong with the machine is said before anybody depends on this process.
	release, err := alone()
	if err != nil {
		return err
	}
	defer func() { _ = release() }()
	if err := ensureSysctls(strings.TrimSuffix(sysctlRoot, "/"), givenSysctls); err != nil {
		return err
	}
	if err := d.store(func(*cgroups.Store) error { return nil }); err != nil {
		return fmt.Errorf("state %s: %w", c.stateDir, err)
	}
	if err := d.restore(); err != nil {
		return err
	}
	l, err := listen(c.socket)
	if err != nil {
		return err
	}
	defer os.Remove(c.socket)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	if c.metrics != "" {
		ml, err := observe.Listen(c.metrics)
		if err != nil {
			return errors.Join(cli.Usage(err), l.Close())
		}
		entry := log.WithField(cli.FieldAddress, ml.Addr().String())
		entry.Info("serving metrics")
		beside.Go(func() {
			if err := observe.Serve(ctx, ml, m.registry, m.ready); err != nil {
				entry.WithError(err).Error("no metrics and no health any more: restart sidegate-docker, containers do not depend on it")
			}
		})
	}
	beside.Go(func() { d.watch(ctx) })
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	log.WithField(cli.FieldPath, c.socket).Info("serving Docker")
	err = libnetwork.NewHandler(d).Serve(l)
	if ctx.Err() != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed)) {
		return nil
	}
	return err
}

// listen makes the socket that Docker calls. One that another process left is replaced, one that is served is not.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, cli.Usage(fmt.Errorf("another process serves %s: stop that, or write another --socket", path))
	}
	// Docker looks at the directory at any time: the socket is there when it is served.
	tmp := path + ".new"
	_ = os.Remove(tmp)
	l, err := net.Listen("unix", tmp)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(tmp))
	}
	return l, nil
}
