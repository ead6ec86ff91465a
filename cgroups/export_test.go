// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"sync/atomic"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// In runs f in the pod's network namespace.
func (l *TLSListener) In(f func() error) error { return l.within(f) }

// Suspend is as if the machine slept for longer than a lease: nobody renews it.
func Suspend(e *Events) {
	close(e.stop)
	e.stopped.Wait()
	e.stop = make(chan struct{})
	atomic.StoreUint64(&e.readers().Until[e.slot], 1)
}

// Resume renews once, as the first thing after that.
func Resume(e *Events) { e.renew() }

// StartOf is what tells a container's PID namespace from a later one of its number.
func StartOf(pid string) (uint64, error) { return startOf(pid) }

// ForgetStart has a container be registered by who could not know when it started.
func ForgetStart(s *Store, cgroup uint64) error {
	var c bpf.Container
	if err := s.maps.Containers.Lookup(cgroup, &c); err != nil {
		return err
	}
	c.Started = 0
	return s.maps.Containers.Update(cgroup, c, ebpf.UpdateExist)
}
