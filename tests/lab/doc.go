// SPDX-License-Identifier: Apache-2.0

// Package lab is a machine inside the machine, for tests that need real container runtimes, a real proxy and a real outside.
//
// [Main] re-executes the calling program in a node: a private mount and network namespace with one cgroup2 hierarchy, a BPF file
// system and an empty /run, and in a cgroup of its own. Whatever happens in there, also a panic or a kill, Main then kills what is
// left in that cgroup and removes it, with the namespaces and the temporary files.
//
// In a node, [New] builds the rest:
//
//	           outside (netns)                   node                        pod (netns by podman)
//	192.0.2.80  eth0 ---------- out0  192.0.2.1   bridge 198.51.100.1 ---- eth0 198.51.100.N
//	2001:db8:1::80              2001:db8:1::1            2001:db8:2::1          2001:db8:2::N
//	nginx on 80, TCP and UDP echo on 7,                                       sidecar: Debian's HAProxy
//	a recorder of packets                                                     app: prober serve
//
// Addresses are routed both ways without translation, so each end sees the other's own. The outside is evidence: its access log,
// its echo server and its recorder say what came, and from where.
//
// [StartSystemd] makes one more machine in a node, where systemd is PID 1, for runtimes that ask it for cgroups.
package lab
