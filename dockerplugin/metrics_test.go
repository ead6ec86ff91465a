// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"
	"time"

	"sidegate/observe/observetest"
)

func TestMetricsAreDocumented(t *testing.T) {
	m := newMetrics("/sys/fs/bpf/sgtest-none")
	m.request("CreateNetwork", time.Second, nil)
	m.request("CreateNetwork", time.Second, errors.New("no"))
	observetest.Documented(t, m.registry, "../docs/metrics.md", "sidegate-docker", "All programs", "State of the node")
}
