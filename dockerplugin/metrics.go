// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidegate/observe"
)

// metrics is what the driver counts, and whether it is ready.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	took      *prometheus.HistogramVec
	adoptions prometheus.Counter
	refusals  prometheus.Counter
	up        prometheus.Gauge
	watching  atomic.Bool
}

func newMetrics(stateDir string) *metrics {
	m := &metrics{
		registry: observe.NewRegistry("docker", version),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidegate_docker_requests_total", Help: "Requests of libnetwork, by request and result: ok or error.",
		}, []string{"request", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sidegate_docker_request_seconds", Help: "How long Docker waited for an answer.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5},
		}, []string{"request"}),
		adoptions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidegate_docker_adoptions_total", Help: "Containers that ran before they were registered.",
		}),
		refusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidegate_docker_refusals_total", Help: "Containers that ran, asked to be registered and could not be: their network was closed.",
		}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidegate_docker_connected", Help: "1 while Docker sends its events.",
		}),
	}
	m.registry.MustRegister(m.requests, m.took, m.adoptions, m.refusals, m.up, observe.NewState(stateDir))
	return m
}

func (m *metrics) request(request string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.requests.WithLabelValues(request, result).Inc()
	m.took.WithLabelValues(request).Observe(took.Seconds())
}

func (m *metrics) adopted() { m.adoptions.Inc() }
func (m *metrics) refused() { m.refusals.Inc() }

func (m *metrics) connected(is bool) {
	m.watching.Store(is)
	value := 0.0
	if is {
		value = 1
	}
	m.up.Set(value)
}

// ready says why the driver does not do all that it should, nil if it does.
func (m *metrics) ready() error {
	if !m.watching.Load() {
		return errors.New("not connected to Docker's events")
	}
	return nil
}
