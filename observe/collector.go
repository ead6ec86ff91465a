// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"sidegate/bpf"
	"sidegate/cgroups"
)

// State is a prometheus.Collector of what the kernel has. It reads the state directory at each scrape.
type State struct {
	dir    string
	fills  *cgroups.MapFills
	failed *prometheus.CounterVec

	mu    sync.Mutex // held while it reads
	flows *cgroups.FlowSums
	err   error // of the last scrape
}

// What is told of the state.
var (
	loadedDesc     = desc("loaded", "1 if programs and guard are in the kernel. 0 too if that cannot be told: see sidegate_state_errors_total.", "abi")
	missingDesc    = desc("guard_missing_programs", "Programs of the guard on the root cgroup that are not attached.")
	podsDesc       = desc("pods", "Managed pods, by policy and mode.", "policy", "mode")
	noSidecarDesc  = desc("pods_without_sidecar", "Managed pods whose sidecar does not listen: their connections are refused.")
	noRelayDesc    = desc("pods_without_relay", "Managed pods whose policy has TLS, and in which no relay listens: their connections are refused.")
	containersDesc = desc("containers", "Registered containers, by role.", "role")
	unguardedDesc  = desc("containers_unguarded", "Registered containers that lack programs which their role and policy ask for.")
	accelDesc      = desc("accelerated_containers", "Registered containers whose new connections to or from the sidecar may be accelerated.")

	dropsDesc       = desc("drops_total", "What was denied, or under mode audit would have been, to the containers of a pod.", "pod", "reason")
	countsDesc      = desc("events_total", "What was counted for the containers of a pod, such as connections that were redirected.", "pod", "event")
	connectionsDesc = desc("accelerated_connections_total", "Connections of the containers of a pod that began accelerated, once for each end.", "pod")
	bytesDesc       = desc("accelerated_bytes_total", "Bytes that the containers of a pod sent past TCP.", "pod")
	plainDesc       = desc("accelerated_plain_total", "Directions, or connections that never began accelerated, that go through TCP nevertheless.", "pod", "reason")
	flowsDesc       = desc("flows_total", "Connections, first datagrams of sockets, and what was denied, of a container, by what became of them.",
		"pod", "container", "direction", "verdict", "reason")

	readersDesc    = desc("event_readers", "Processes that read events.")
	lostDesc       = desc("events_lost_total", "Events that a reader was too slow for, by its slot. It begins anew with the slot's next reader.", "reader")
	suppressedDesc = desc("events_suppressed_total", "Events of a container that no reader was told of, since they were too many.", "pod", "container")

	attachDesc       = desc("attach_duration_seconds", "How long it took to attach containers, by whatever front-end, since the state was loaded.")
	attachFailedDesc = desc("attach_failures_total", "Containers that could not be attached, and did not start, since the state was loaded.")

	entriesDesc  = desc("map_entries", "Entries of a BPF map. Where they are many, as of up to 10 s ago.", "map")
	capacityDesc = desc("map_capacity", "The most entries that a BPF map takes.", "map")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("sidegate_"+name, help, labels, nil)
}

// NewState returns a collector of the state directory dir, which may be made later: how many
// pods and containers are managed, and what their programs counted. Counters of a
// container end with it, and so may go down: sum them over rates.
func NewState(dir string) *State {
	s := &State{
		dir: dir, fills: cgroups.NewMapFills(dir), flows: cgroups.NewFlowSums(dir),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sidegate_state_errors_total",
			Help: "Scrapes at which the state could not be read, all of it or in part: permission, version (another one is loaded), or other.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{"permission", "version", "other"} {
		s.failed.WithLabelValues(reason)
	}
	return s
}

// Err is why the last scrape could not read the state, nil if it could.
func (s *State) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Describe implements prometheus.Collector.
func (s *State) Describe(ch chan<- *prometheus.Desc) {
	s.failed.Describe(ch)
	for _, d := range []*prometheus.Desc{
		loadedDesc, missingDesc, podsDesc, noSidecarDesc, noRelayDesc, containersDesc, unguardedDesc, accelDesc,
		dropsDesc, countsDesc, connectionsDesc, bytesDesc, plainDesc, flowsDesc, readersDesc, lostDesc, suppressedDesc,
		attachDesc, attachFailedDesc, entriesDesc, capacityDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out, and counted.
func (s *State) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := cgroups.ReadStatus(s.dir)
	if err != nil {
		st = cgroups.Status{ABI: bpf.ABI}
	}
	tellStatus(st, ch)
	if st.Loaded {
		err = errors.Join(s.tellFlows(ch), s.tellEvents(ch), s.tellAttach(ch), s.tellMaps(ch))
	}
	if s.err = err; err != nil {
		s.failed.WithLabelValues(reasonOf(err)).Inc()
	}
	s.failed.Collect(ch)
}

func reasonOf(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	case errors.Is(err, cgroups.ErrVersion):
		return "version"
	}
	return "other"
}

func gauge(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(d *prometheus.Desc, n uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

// tellStatus makes metrics of what the state says.
func tellStatus(st cgroups.Status, ch chan<- prometheus.Metric) {
	loaded := 0.0
	if st.Loaded {
		loaded = 1
	}
	ch <- gauge(loadedDesc, loaded, strconv.Itoa(st.ABI))
	if !st.Loaded {
		return
	}
	pods := make(map[[2]string]int)
	roles := make(map[string]int)
	drops := make(map[[2]string]uint64)
	counts := make(map[[2]string]uint64)
	accelerated := make(map[string]cgroups.AccelerationStatus)
	plain := make(map[[2]string]uint64)
	noSidecar, noRelay, unguarded, accel := 0, 0, 0, 0
	for _, p := range st.Pods {
		pod := strings.ToValidUTF8(p.Pod, "\uFFFD") // its end is cut off where it is long
		pods[[2]string{p.Policy, p.Mode}]++
		add(drops, pod, p.Drops)
		add(counts, pod, p.Counters)
		if !p.Listening {
			noSidecar++
		}
		if p.TLS != 0 && !p.Relayed {
			noRelay++
		}
		for _, c := range p.Containers {
			roles[c.Role]++
			if len(c.Missing) > 0 {
				unguarded++
			}
			if c.Acceleration.Off == "" {
				accel++
			}
			add(drops, pod, c.Drops)
			add(counts, pod, c.Counters)
			add(plain, pod, c.Acceleration.Plain)
			sum := accelerated[pod]
			sum.Connections += c.Acceleration.Connections
			sum.Bytes += c.Acceleration.Bytes
			accelerated[pod] = sum
		}
	}
	ch <- gauge(missingDesc, float64(max(0, len(bpf.GuardHooks())-len(st.Guard))))
	ch <- gauge(noSidecarDesc, float64(noSidecar))
	ch <- gauge(noRelayDesc, float64(noRelay))
	ch <- gauge(unguardedDesc, float64(unguarded))
	ch <- gauge(accelDesc, float64(accel))
	for key, n := range pods {
		ch <- gauge(podsDesc, float64(n), key[0], key[1])
	}
	for role, n := range roles {
		ch <- gauge(containersDesc, float64(n), role)
	}
	for key, n := range drops {
		ch <- counter(dropsDesc, n, key[0], key[1])
	}
	for key, n := range counts {
		ch <- counter(countsDesc, n, key[0], key[1])
	}
	for pod, sum := range accelerated {
		ch <- counter(connectionsDesc, sum.Connections, pod)
		ch <- counter(bytesDesc, sum.Bytes, pod)
	}
	for key, n := range plain {
		ch <- counter(plainDesc, n, key[0], key[1])
	}
}

// add sums counters by name. Pods of one name are one series.
func add(to map[[2]string]uint64, pod string, from map[string]uint64) {
	for name, n := range from {
		to[[2]string{pod, name}] += n
	}
}

func (s *State) tellFlows(ch chan<- prometheus.Metric) error {
	list, err := s.flows.Read()
	for _, f := range list {
		ch <- counter(flowsDesc, f.Count, f.Pod, f.Container, f.Direction, f.Verdict, f.Reason)
	}
	return err
}

func (s *State) tellEvents(ch chan<- prometheus.Metric) error {
	st, err := cgroups.ReadEventStats(s.dir)
	if err != nil {
		return err
	}
	reads := 0
	for _, r := range st.Readers {
		if r.Reads {
			reads++
		}
		ch <- counter(lostDesc, r.Lost, strconv.Itoa(r.Slot))
	}
	ch <- gauge(readersDesc, float64(reads))
	for _, one := range st.Suppressed {
		ch <- counter(suppressedDesc, one.Count, one.Pod, one.Container)
	}
	return nil
}

func (s *State) tellAttach(ch chan<- prometheus.Metric) error {
	t, err := cgroups.ReadAttachTimes(s.dir)
	if err != nil || t.Buckets == nil {
		return err
	}
	buckets := make(map[float64]uint64, len(t.Buckets))
	count := t.More
	for _, n := range t.Buckets {
		count += n
	}
	for bound := range t.Buckets {
		sum := uint64(0)
		for b, n := range t.Buckets {
			if b <= bound {
				sum += n
			}
		}
		buckets[bound.Seconds()] = sum
	}
	ch <- prometheus.MustNewConstHistogram(attachDesc, count, t.Sum.Seconds(), buckets)
	ch <- counter(attachFailedDesc, t.Failed)
	return nil
}

func (s *State) tellMaps(ch chan<- prometheus.Metric) error {
	list, err := s.fills.Read()
	for _, m := range list {
		ch <- gauge(entriesDesc, float64(m.Entries), m.Name)
		ch <- gauge(capacityDesc, float64(m.Capacity), m.Name)
	}
	return err
}
