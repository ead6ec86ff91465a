// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"github.com/sirupsen/logrus"

	"sidegate/observe"
	"sidegate/observe/cli"
)

const (
	defaultName = "sidegate"
	defaultIdx  = "10"
)

// run serves until ctx ends, or until a runtime that started this process lets it go.
func run(ctx context.Context, o options, log *logrus.Logger) error {
	c, err := readConfig(o.config)
	if err != nil {
		return cli.Usage(err)
	}
	if err := o.log.Default(log, c.LogLevel, c.LogFormat); err != nil {
		return cli.Usage(err)
	}
	nrilog.Set(nriLogger{log})
	// What is wrong with the machine is said before anybody depends on this process.
	if err := preload(&c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMetrics(c.StateDir)
	p := newPlugin(c, o, m, log)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	if o.metrics != "" {
		l, err := observe.Listen(o.metrics)
		if err != nil {
			return cli.Usage(err)
		}
		entry := log.WithField(cli.FieldAddress, l.Addr().String())
		entry.Info("serving metrics")
		beside.Go(func() {
			if err := observe.Serve(ctx, l, m.registry, m.ready); err != nil {
				entry.WithError(err).Error("no metrics and no health any more: restart sidegate-nri, pods do not depend on it")
			}
		})
	}
	if o.containerd != "" {
		beside.Go(func() { p.watchContainerd(ctx, o.containerd) })
	}
	return p.connect(ctx, o)
}

// How long to wait between attempts to connect, at first and at most.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// connect keeps a connection to the runtime, which may restart, or cut it. A plugin that
// the runtime started has one connection, and ends with it: the runtime kills it.
func (p *plugin) connect(ctx context.Context, o options) error {
	pause := firstPause
	said := ""
	for {
		began, err := time.Now(), p.serve(ctx, o)
		if ctx.Err() != nil {
			return nil
		}
		if os.Getenv(api.PluginSocketEnvVar) != "" {
			return fmt.Errorf("the runtime closed the connection: %w", err)
		}
		if time.Since(began) > lastPause {
			pause, said = firstPause, ""
		}
		if err.Error() != said { // once, not for each attempt
			said = err.Error()
			p.log.WithField(cli.FieldPath, o.socket).WithError(err).
				Warn("not connected to the runtime, trying again: pods that start now start without Sidegate")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// registration is how long the runtime may take until it has configured the plugin. NRI's
// stub waits for ever, with its lock held, if the connection ends between.
const registration = 10 * time.Second

// serve makes one connection and serves it to its end. The error says why it ended.
func (p *plugin) serve(ctx context.Context, o options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer p.metrics.disconnected()
	var conn net.Conn
	name, idx := "", ""
	if os.Getenv(api.PluginSocketEnvVar) == "" {
		name, idx = cmp.Or(o.name, defaultName), cmp.Or(o.idx, defaultIdx)
		var err error
		if conn, err = (&net.Dialer{}).DialContext(ctx, "unix", o.socket); err != nil {
			return fmt.Errorf("%w: does containerd or CRI-O run, with NRI enabled, and its socket there?", err)
		}
		defer conn.Close()
	}
	closed := make(chan struct{})
	opts := []stub.Option{
		stub.WithOnClose(sync.OnceFunc(func() { close(closed) })),
		// Runtimes from NRI 0.12.4 on then fail a request that this plugin does not answer,
		// and go on asking. Older ones go on without it: hence all the rest.
		stub.WithFailurePolicy(&api.FailurePolicy{FailRequest: true, KeepConnected: true}),
	}
	if conn != nil {
		opts = append(opts, stub.WithConnection(conn))
	}
	if name != "" {
		opts = append(opts, stub.WithPluginName(name))
	}
	if idx != "" {
		opts = append(opts, stub.WithPluginIdx(idx))
	}
	select { // what an earlier connection left
	case <-p.configured:
	default:
	}
	s, err := stub.New(p, opts...)
	if err != nil {
		return cli.Usage(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	select {
	case err := <-ended:
		return cmp.Or(err, errors.New("connection closed"))
	case <-closed:
		return errors.New("connection closed before the runtime had configured the plugin")
	case <-time.After(registration):
		return fmt.Errorf("the runtime did not configure the plugin within %s", registration)
	case <-p.configured:
	}
	p.setLimit(s.RequestTimeout())
	select {
	case err := <-ended:
		return cmp.Or(err, errors.New("connection closed"))
	case <-closed:
		return errors.New("connection closed")
	}
}

// nriLogger lets NRI's own messages appear as debugging ones: they are many, and what
// matters of them is said here.
type nriLogger struct{ *logrus.Logger }

func (l nriLogger) Debugf(_ context.Context, format string, args ...any) {
	l.Logger.Tracef(format, args...)
}
func (l nriLogger) Infof(_ context.Context, format string, args ...any) {
	l.Logger.Debugf(format, args...)
}
func (l nriLogger) Warnf(_ context.Context, format string, args ...any) {
	l.Logger.Warnf(format, args...)
}
func (l nriLogger) Errorf(_ context.Context, format string, args ...any) {
	l.Logger.Errorf(format, args...)
}
