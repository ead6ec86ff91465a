// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidegate/observe"
)

// metrics is what the plugin counts, and whether it is ready.
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	took      *prometheus.HistogramVec
	adoptions *prometheus.CounterVec
	up        prometheus.Gauge

	mu        sync.Mutex
	connected bool
	busy      int   // synchronizations that are not through
	failed    error // how the last one ended
}

func newMetrics(stateDir string) *metrics {
	m := &metrics{
		registry: observe.NewRegistry("nri", version),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidegate_nri_requests_total", Help: "Requests of the runtime, by event and result: ok or error.",
		}, []string{"event", "result"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sidegate_nri_request_seconds", Help: "How long the runtime waited for an answer. It goes on without the plugin after 2 s.",
			Buckets: []float64{.0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2},
		}, []string{"event"}),
		adoptions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidegate_nri_adoptions_total",
			Help: "Containers and pods that the hook did not attach: attached before their start, adopted while they ran, or refused, and so without network.",
		}, []string{"result"}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sidegate_nri_connected", Help: "1 while the runtime sends requests.",
		}),
	}
	for _, result := range []string{"attached", "adopted", "refused"} {
		m.adoptions.WithLabelValues(result)
	}
	m.registry.MustRegister(m.requests, m.took, m.adoptions, m.up, observe.NewState(stateDir))
	return m
}

func (m *metrics) request(event string, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.requests.WithLabelValues(event, result).Inc()
	m.took.WithLabelValues(event).Observe(took.Seconds())
}

func (m *metrics) adoption(result string) { m.adoptions.WithLabelValues(result).Inc() }

func (m *metrics) disconnected() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.connected = false
	m.up.Set(0)
}

// synchronizing is called when the runtime has told all that it has: the plugin is in its
// list from then on.
func (m *metrics) synchronizing() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy++
	m.connected = true
	m.up.Set(1)
}

func (m *metrics) synchronized(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy--
	m.failed = err
}

// ready says why the plugin does not do all that it should, nil if it does.
func (m *metrics) ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !m.connected:
		return errors.New("not connected to the runtime")
	case m.busy > 0:
		return errors.New("taking over what runs")
	}
	return m.failed
}
