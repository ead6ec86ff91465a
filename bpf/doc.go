// SPDX-License-Identifier: Apache-2.0

// Package bpf holds Sidegate's kernel side: the C programs in src, the objects
// and Go types generated from them, and typed access to both. It knows the
// kernel's hooks and nothing of container runtimes, policies or pins.
//
// There are two objects. The node object has every map and all programs that
// are shared by the whole node. The pod object has three small programs that
// carry a network namespace cookie as a constant and are loaded once a pod;
// see src/pod.bpf.c for why.
package bpf
