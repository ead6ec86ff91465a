// SPDX-License-Identifier: Apache-2.0

// Package observe shows what Sidegate does: metrics, the health of the processes that run for
// long, and events, recorded in files and told to OpenTelemetry.
package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Listen opens the address that Serve is to serve on, so that a wrong one is an error at
// start.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics address %q: %w", address, err)
	}
	return l, nil
}

// Serve answers /metrics from a registry, /healthz with 200 while the process answers at
// all, and /readyz with 200 or, if ready returns an error, 503 and its text. It owns the
// listener, and returns when ctx ends.
func Serve(ctx context.Context, l net.Listener, from prometheus.Gatherer, ready func() error) error {
	mux := http.NewServeMux()
	// What can be told is worth more than an error. Scrapes may wait for who holds the state's lock, but not pile up.
	mux.Handle("GET /metrics", promhttp.HandlerFor(from, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 8, Timeout: 30 * time.Second,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
