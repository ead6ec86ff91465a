// SPDX-License-Identifier: Apache-2.0

package cgroups

import "sync/atomic"

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
