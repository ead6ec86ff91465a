// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"sidegate/bpf"
)

// NewRegistry returns a registry with what all programs that run for long tell of themselves: what was built, and what
// the Go runtime and the kernel say of the process. component is the program's name without "sidegate-".
func NewRegistry(component, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sidegate_build_info", Help: "Always 1. The labels are of the program that answers.",
		ConstLabels: prometheus.Labels{
			"component": component, "version": version, "goversion": runtime.Version(), "abi": strconv.Itoa(bpf.ABI),
		},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}
