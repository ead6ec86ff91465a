// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"sidegate/cgroups"
)

// told is a collector of a state that is given.
type told struct {
	*state
	st cgroups.Status
}

func (t told) Collect(ch chan<- prometheus.Metric) { t.tell(t.st, ch) }

func TestState(t *testing.T) {
	container := func(role string, connections, bytes uint64, plain map[string]uint64) cgroups.ContainerStatus {
		return cgroups.ContainerStatus{
			Role: role, Counters: map[string]uint64{"redirect": 2}, Drops: map[string]uint64{"udp": 1},
			Acceleration: cgroups.AccelerationStatus{Connections: connections, Bytes: bytes, Plain: plain},
		}
	}
	st := cgroups.Status{Loaded: true, ABI: 4, Pods: []cgroups.PodStatus{
		{Pod: "shop", Policy: "web", Mode: "enforce", Drops: map[string]uint64{"device": 3}, Containers: []cgroups.ContainerStatus{
			container("app", 5, 100, map[string]uint64{"early": 1}),
			container("sidecar", 5, 11, map[string]uint64{"early": 2, "unread": 4}),
		}},
		{Pod: "idle", Policy: "web", Mode: "enforce"},
	}}
	s := NewState("").(*state)
	err := testutil.CollectAndCompare(told{s, st}, strings.NewReader(`
# HELP sidegate_accelerated_bytes_total Bytes that the containers of a pod sent past TCP.
# TYPE sidegate_accelerated_bytes_total counter
sidegate_accelerated_bytes_total{pod="shop"} 111
# HELP sidegate_accelerated_connections_total Connections of the containers of a pod that began accelerated, once for each end.
# TYPE sidegate_accelerated_connections_total counter
sidegate_accelerated_connections_total{pod="shop"} 10
# HELP sidegate_accelerated_plain_total Directions, or connections that never began accelerated, that go through TCP nevertheless.
# TYPE sidegate_accelerated_plain_total counter
sidegate_accelerated_plain_total{pod="shop",reason="early"} 3
sidegate_accelerated_plain_total{pod="shop",reason="unread"} 4
# HELP sidegate_containers Registered containers, by role.
# TYPE sidegate_containers gauge
sidegate_containers{role="app"} 1
sidegate_containers{role="sidecar"} 1
# HELP sidegate_drops_total What was denied, or under mode audit would have been, to the containers of a pod.
# TYPE sidegate_drops_total counter
sidegate_drops_total{pod="shop",reason="device"} 3
sidegate_drops_total{pod="shop",reason="udp"} 2
# HELP sidegate_events_total What was counted for the containers of a pod, such as connections that were redirected.
# TYPE sidegate_events_total counter
sidegate_events_total{event="redirect",pod="shop"} 4
# HELP sidegate_loaded 1 if programs and guard are in the kernel.
# TYPE sidegate_loaded gauge
sidegate_loaded{abi="4"} 1
# HELP sidegate_pods Managed pods, by policy and mode.
# TYPE sidegate_pods gauge
sidegate_pods{mode="enforce",policy="web"} 2
`))
	if err != nil {
		t.Error(err)
	}
}
