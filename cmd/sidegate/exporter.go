// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/docker/go-units"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/observe"
	"sidegate/observe/cli"
	"sidegate/observe/otlp"
)

// exporter is what to tell, and whom.
type exporter struct {
	listen     string
	record     string
	recordSize string
	endpoint   string
	insecure   bool
	buffer     uint32

	size int64 // recordSize in bytes
}

func newExporter(e *env) *cobra.Command {
	var x exporter
	var options cli.Log
	cmd := &cobra.Command{
		Use:   "exporter",
		Short: "Serve metrics, record events, and tell them to OpenTelemetry",
		Long: "Serve /metrics for Prometheus, /healthz and /readyz until interrupted. It is for nodes whose containers only the hook attaches:\n" +
			"sidegate-nri and sidegate-docker serve the same of the node by --metrics-address, and one that does is enough.\n\n" +
			"With --record events are kept in files, the last ones that fit into a size, for `sidegate observe --since` and `--last`. With\n" +
			"--otlp-endpoint they go to a collector: requests inside TLS as spans, everything else as log records. Either reads events\n" +
			"all the time, which takes one of 8 slots of readers, as each `sidegate observe` does, and costs the node as much.\n" +
			"Headers for the collector, its certificate and more are in $OTEL_EXPORTER_OTLP_HEADERS, $OTEL_EXPORTER_OTLP_CERTIFICATE, ...",
		Example: "  sidegate exporter --record " + observe.DefaultRecordDir + "\n" +
			"  sidegate exporter --listen 0.0.0.0:9467 --otlp-endpoint https://collector:4318 --log-format json",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := x.check(); err != nil {
				return cli.Usage(err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log, err := options.Logger(e.stderr)
			if err != nil {
				return cli.Usage(err)
			}
			return x.run(ctx, e, log)
		},
	}
	f := cmd.Flags()
	f.StringVar(&x.listen, "listen", "127.0.0.1:9467", "`address` to serve on")
	f.StringVar(&x.record, "record", "", "record events in this `directory`, such as "+observe.DefaultRecordDir+" (default: do not)")
	f.StringVar(&x.recordSize, "record-size", "64MiB", "the most that recorded events have in all")
	f.StringVar(&x.endpoint, "otlp-endpoint", "", "tell events to the OpenTelemetry collector at this `URL`, by OTLP over HTTP, such as https://collector:4318")
	f.BoolVar(&x.insecure, "otlp-insecure", false, "let the URL be one of http, without encryption")
	f.Uint32Var(&x.buffer, "buffer", 4<<20, "bytes of the kernel's buffer of events, a power of two")
	options.AddFlags(f)
	return cmd
}

func (x *exporter) check() (err error) {
	if x.size, err = units.RAMInBytes(x.recordSize); err != nil {
		return fmt.Errorf("--record-size %q: write a size such as 64MiB", x.recordSize)
	}
	if x.size < observe.MinRecordSize {
		return fmt.Errorf("--record-size %q: %s are the least", x.recordSize, units.BytesSize(observe.MinRecordSize))
	}
	if x.endpoint != "" {
		if x.endpoint, err = otlp.CheckEndpoint(x.endpoint, x.insecure); err != nil {
			return fmt.Errorf("--otlp-endpoint: %w", err)
		}
	}
	if x.buffer < 4096 || x.buffer&(x.buffer-1) != 0 {
		return fmt.Errorf("--buffer %d: write a power of two, 4096 at least", x.buffer)
	}
	return nil
}

// flushTime is how long the collector may take for what is on its way at the end.
const flushTime = 5 * time.Second

func (x *exporter) run(ctx context.Context, e *env, log *logrus.Logger) (err error) {
	l, err := observe.Listen(x.listen)
	if err != nil {
		return cli.Usage(err)
	}
	return x.serve(ctx, l, e, log)
}

// serve owns l.
func (x *exporter) serve(ctx context.Context, l net.Listener, e *env, log *logrus.Logger) (err error) {
	defer l.Close()
	registry := observe.NewRegistry("exporter", version)
	state := observe.NewState(e.state)
	registry.MustRegister(state)
	ready := state.Err
	follow := &observe.Follower{State: e.state, Buffer: x.buffer, Log: log}
	if x.record != "" {
		r, rerr := observe.NewRecorder(x.record, x.size)
		if rerr != nil {
			return rerr
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		registry.MustRegister(r)
		ready = func() error {
			_, err := r.Dropped()
			return errors.Join(state.Err(), err)
		}
		follow.Sinks = append(follow.Sinks, r)
	}
	if x.endpoint != "" {
		o, oerr := otlp.New(ctx, otlp.Options{Endpoint: x.endpoint, Insecure: x.insecure, Version: version, Log: log})
		if oerr != nil {
			return oerr
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.Background(), flushTime)
			defer cancel()
			err = errors.Join(err, o.Close(ctx))
		}()
		registry.MustRegister(o)
		follow.Sinks = append(follow.Sinks, o)
	}
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait() // before the sinks are closed
	defer cancel()
	if len(follow.Sinks) > 0 {
		registry.MustRegister(follow)
		beside.Go(func() { follow.Run(ctx) })
	}
	log.Infof("serving metrics on %s", l.Addr())
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.WithError(err).Warn("systemd is not told that this is ready")
	}
	return observe.Serve(ctx, l, registry, ready)
}
