// SPDX-License-Identifier: Apache-2.0

// Package cgroups is the only place that resolves cgroups and network
// namespaces and that attaches, pins, lists and collects what enforces.
//
// The kernel is the database. A Store is a directory of pins on a BPF file
// system, guarded by one flock; every change to it is a transaction that is
// made in a temporary directory and becomes visible by one rename. No process
// has to live for enforcement: what is pinned stays, what is half-made by a
// process that was killed is swept by the next one.
//
//	<state>/v<ABI>/maps/<map>
//	<state>/v<ABI>/progs/<program>
//	<state>/v<ABI>/guard/<program>              links on the root cgroup
//	<state>/v<ABI>/slots/<n>/<program>          sets of a pod's own programs, in use or spare
//	<state>/v<ABI>/pods/<cookie>/<link>         links on the netns and its devices
//	<state>/v<ABI>/containers/<cgroup id>/<program>
package cgroups
