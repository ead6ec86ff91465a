// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"sidegate/cgroups"
)

// state is a prometheus.Collector of what the kernel has.
type state struct {
	dir                                     string
	loaded, pods, containers, drops, counts *prometheus.Desc
	// Of accelerated connections.
	connections, bytes, plain *prometheus.Desc
}

// NewState returns a collector that reads the state directory at each scrape: how many
// pods and containers are managed, and what their programs counted. Counters of a
// container end with it, and so may go down: sum them over rates.
func NewState(dir string) prometheus.Collector {
	return &state{
		dir:        dir,
		loaded:     prometheus.NewDesc("sidegate_loaded", "1 if programs and guard are in the kernel.", []string{"abi"}, nil),
		pods:       prometheus.NewDesc("sidegate_pods", "Managed pods, by policy and mode.", []string{"policy", "mode"}, nil),
		containers: prometheus.NewDesc("sidegate_containers", "Registered containers, by role.", []string{"role"}, nil),
		drops: prometheus.NewDesc("sidegate_drops_total", "What was denied, or under mode audit would have been, to the containers of a pod.",
			[]string{"pod", "reason"}, nil),
		counts: prometheus.NewDesc("sidegate_events_total", "What was counted for the containers of a pod, such as connections that were redirected.",
			[]string{"pod", "event"}, nil),
		connections: prometheus.NewDesc("sidegate_accelerated_connections_total", "Connections of the containers of a pod that began accelerated, once for each end.",
			[]string{"pod"}, nil),
		bytes: prometheus.NewDesc("sidegate_accelerated_bytes_total", "Bytes that the containers of a pod sent past TCP.", []string{"pod"}, nil),
		plain: prometheus.NewDesc("sidegate_accelerated_plain_total", "Directions, or connections that never began accelerated, that go through TCP nevertheless.",
			[]string{"pod", "reason"}, nil),
	}
}

func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.loaded, s.pods, s.containers, s.drops, s.counts, s.connections, s.bytes, s.plain} {
		ch <- d
	}
}

func (s *state) Collect(ch chan<- prometheus.Metric) {
	st, err := cgroups.ReadStatus(s.dir)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(s.loaded, err)
		return
	}
	s.tell(st, ch)
}

// tell makes metrics of what the state says.
func (s *state) tell(st cgroups.Status, ch chan<- prometheus.Metric) {
	loaded := 0.0
	if st.Loaded {
		loaded = 1
	}
	ch <- prometheus.MustNewConstMetric(s.loaded, prometheus.GaugeValue, loaded, strconv.Itoa(st.ABI))
	pods := make(map[[2]string]int)
	roles := make(map[string]int)
	drops := make(map[[2]string]uint64)
	counts := make(map[[2]string]uint64)
	accelerated := make(map[string]cgroups.AccelerationStatus)
	plain := make(map[[2]string]uint64)
	for _, p := range st.Pods {
		pods[[2]string{p.Policy, p.Mode}]++
		add(drops, p.Pod, p.Drops)
		add(counts, p.Pod, p.Counters)
		for _, c := range p.Containers {
			roles[c.Role]++
			add(drops, p.Pod, c.Drops)
			add(counts, p.Pod, c.Counters)
			add(plain, p.Pod, c.Acceleration.Plain)
			sum := accelerated[p.Pod]
			sum.Connections += c.Acceleration.Connections
			sum.Bytes += c.Acceleration.Bytes
			accelerated[p.Pod] = sum
		}
	}
	for key, n := range pods {
		ch <- prometheus.MustNewConstMetric(s.pods, prometheus.GaugeValue, float64(n), key[0], key[1])
	}
	for role, n := range roles {
		ch <- prometheus.MustNewConstMetric(s.containers, prometheus.GaugeValue, float64(n), role)
	}
	for key, n := range drops {
		ch <- prometheus.MustNewConstMetric(s.drops, prometheus.CounterValue, float64(n), key[0], key[1])
	}
	for key, n := range counts {
		ch <- prometheus.MustNewConstMetric(s.counts, prometheus.CounterValue, float64(n), key[0], key[1])
	}
	for pod, sum := range accelerated {
		ch <- prometheus.MustNewConstMetric(s.connections, prometheus.CounterValue, float64(sum.Connections), pod)
		ch <- prometheus.MustNewConstMetric(s.bytes, prometheus.CounterValue, float64(sum.Bytes), pod)
	}
	for key, n := range plain {
		ch <- prometheus.MustNewConstMetric(s.plain, prometheus.CounterValue, float64(n), key[0], key[1])
	}
}

// add sums counters by name. Pods of one name are one series.
func add(to map[[2]string]uint64, pod string, from map[string]uint64) {
	for name, n := range from {
		to[[2]string{pod, name}] += n
	}
}
