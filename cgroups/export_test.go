// SPDX-License-Identifier: Apache-2.0

package cgroups

// In runs f in the pod's network namespace.
func (l *TLSListener) In(f func() error) error { return l.within(f) }
