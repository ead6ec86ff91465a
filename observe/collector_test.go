// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/observe/observetest"
)

// told is a collector of a state that is given.
type told struct {
	*State
	st cgroups.Status
}

func (t told) Collect(ch chan<- prometheus.Metric) { tellStatus(t.st, ch) }

func TestState(t *testing.T) {
	container := func(role string, connections, bytes uint64, plain map[string]uint64) cgroups.ContainerStatus {
		return cgroups.ContainerStatus{
			Role: role, Counters: map[string]uint64{"redirect": 2}, Drops: map[string]uint64{"udp": 1},
			Acceleration: cgroups.AccelerationStatus{Connections: connections, Bytes: bytes, Plain: plain},
		}
	}
	guard := make([]string, len(bpf.GuardHooks())-1)
	st := cgroups.Status{Loaded: true, ABI: 4, Guard: guard, Pods: []cgroups.PodStatus{
		{Pod: "shop", Policy: "web", Mode: "enforce", Listening: true, TLS: 15008, Drops: map[string]uint64{"device": 3}, Containers: []cgroups.ContainerStatus{
			container("app", 5, 100, map[string]uint64{"early": 1}),
			container("sidecar", 5, 11, map[string]uint64{"early": 2, "unread": 4}),
		}},
		{Pod: "idle\xff", Policy: "web", Mode: "enforce", Drops: map[string]uint64{"device": 1}, Containers: []cgroups.ContainerStatus{
			{Role: "app", Missing: []string{"bind4"}, Acceleration: cgroups.AccelerationStatus{Off: "its policy says off"}},
		}},
	}}
	err := testutil.CollectAndCompare(told{NewState(""), st}, strings.NewReader(`
# HELP sidegate_accelerated_bytes_total Bytes that the containers of a pod sent past TCP.
# TYPE sidegate_accelerated_bytes_total counter
sidegate_accelerated_bytes_total{pod="idle�"} 0
sidegate_accelerated_bytes_total{pod="shop"} 111
# HELP sidegate_accelerated_connections_total Connections of the containers of a pod that began accelerated, once for each end.
# TYPE sidegate_accelerated_connections_total counter
sidegate_accelerated_connections_total{pod="idle�"} 0
sidegate_accelerated_connections_total{pod="shop"} 10
# HELP sidegate_accelerated_containers Registered containers whose new connections to or from the sidecar may be accelerated.
# TYPE sidegate_accelerated_containers gauge
sidegate_accelerated_containers 2
# HELP sidegate_accelerated_plain_total Directions, or connections that never began accelerated, that go through TCP nevertheless.
# TYPE sidegate_accelerated_plain_total counter
sidegate_accelerated_plain_total{pod="shop",reason="early"} 3
sidegate_accelerated_plain_total{pod="shop",reason="unread"} 4
# HELP sidegate_containers Registered containers, by role.
# TYPE sidegate_containers gauge
sidegate_containers{role="app"} 2
sidegate_containers{role="sidecar"} 1
# HELP sidegate_containers_unguarded Registered containers that lack programs which their role and policy ask for.
# TYPE sidegate_containers_unguarded gauge
sidegate_containers_unguarded 1
# HELP sidegate_drops_total What was denied, or under mode audit would have been, to the containers of a pod.
# TYPE sidegate_drops_total counter
sidegate_drops_total{pod="idle�",reason="device"} 1
sidegate_drops_total{pod="shop",reason="device"} 3
sidegate_drops_total{pod="shop",reason="udp"} 2
# HELP sidegate_events_total What was counted for the containers of a pod, such as connections that were redirected.
# TYPE sidegate_events_total counter
sidegate_events_total{event="redirect",pod="shop"} 4
# HELP sidegate_guard_missing_programs Programs of the guard on the root cgroup that are not attached.
# TYPE sidegate_guard_missing_programs gauge
sidegate_guard_missing_programs 1
# HELP sidegate_loaded 1 if programs and guard are in the kernel. 0 too if that cannot be told: see sidegate_state_errors_total.
# TYPE sidegate_loaded gauge
sidegate_loaded{abi="4"} 1
# HELP sidegate_pods Managed pods, by policy and mode.
# TYPE sidegate_pods gauge
sidegate_pods{mode="enforce",policy="web"} 2
# HELP sidegate_pods_without_relay Managed pods whose policy has TLS, and in which no relay listens: their connections are refused.
# TYPE sidegate_pods_without_relay gauge
sidegate_pods_without_relay 1
# HELP sidegate_pods_without_sidecar Managed pods whose sidecar does not listen: their connections are refused.
# TYPE sidegate_pods_without_sidecar gauge
sidegate_pods_without_sidecar 1
`))
	if err != nil {
		t.Error(err)
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(told{NewState(""), st})
	observetest.Documented(t, r, "../docs/metrics.md", "Acceleration", "State of the node")
}

// Where there is nothing, or something that is not to be read, a scrape says so, and says the rest.
func TestStateThatIsNone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks into a BPF file system")
	}
	other, err := os.MkdirTemp("/sys/fs/bpf", "sgtest-observe-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	if err := os.Mkdir(filepath.Join(other, "v1"), 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, reason := range map[string]string{"/sys/fs/bpf/sgtest-none": "", other: "version", t.TempDir() + "/state": "other"} {
		s := NewState(dir)
		r := NewRegistry("test", "1")
		r.MustRegister(s)
		for scrape := 1; scrape <= 2; scrape++ {
			families, err := r.Gather()
			if err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			found := map[string]float64{}
			for _, f := range families {
				for _, m := range f.GetMetric() {
					switch f.GetName() {
					case "sidegate_loaded":
						found["loaded"] = m.GetGauge().GetValue()
					case "sidegate_state_errors_total":
						found[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
					}
				}
			}
			want := map[string]float64{"loaded": 0, "permission": 0, "version": 0, "other": 0}
			if reason != "" {
				want[reason] = float64(scrape)
			}
			for key, n := range want {
				if got, ok := found[key]; !ok || got != n {
					t.Errorf("%s, scrape %d: %s is %v, want %v", dir, scrape, key, got, n)
				}
			}
		}
		if err := s.Err(); (err == nil) != (reason == "") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
