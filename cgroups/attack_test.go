// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"os"
	"strings"
	"testing"

	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// TestUsedCgroupIsNoRight reuses the cgroup of a container that ended without a
// poststop: another container, in another pod, must not inherit its role.
func TestUsedCgroupIsNoRight(t *testing.T) {
	w := newWorld(t)
	dir := w.mkcgroup("shared")
	first := agent.Start(t, newNetns(t), dir)
	w.attach(first, "first", policy.RoleSidecar, policy.Default())
	out := agent.Start(t, w.outside, w.mkcgroup("outside"))
	listen(t, out, "outside", outside4+":80")
	second := agent.Start(t, w.pod, dir)
	first.Stop()
	w.attach(second, "second", policy.RoleApp, policy.Default())
	wantErr(t, "second container", dial(t, second, "tcp", outside4+":80"), "ECONNREFUSED")
	st := w.status()
	if len(st.Pods) != 1 || len(st.Pods[0].Containers) != 1 || st.Pods[0].Containers[0].Role != "app" {
		t.Errorf("status is %+v", st.Pods)
	}
}

// TestCgroupOfTheRuntimeIsRefused: what is attached there would hold for more
// than the container.
func TestCgroupOfTheRuntimeIsRefused(t *testing.T) {
	w := newWorld(t)
	own, err := w.mount.Of(os.Getpid())
	must(t, err)
	defer own.Close()
	a := agent.Start(t, w.pod, own.Name())
	if _, err := w.tryAttach(a, "app", policy.RoleApp, policy.Default()); err == nil || !strings.Contains(err.Error(), "cgroup of its own") {
		t.Errorf("attach says %v", err)
	}
}
