/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * maps.h: every map once, but for those of guarded endpoints (endpoint.bpf.c)
 * and of accelerated connections (accel.h), and who inserts and who deletes.
 * All of them are pinned by user space below the ABI's directory.
 */
#ifndef SIDEGATE_MAPS_H
#define SIDEGATE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define SG_MAX_PODS 4096
#define SG_MAX_CONTAINERS 16384
#define SG_MAX_POLICIES 1024 /* that pods are under at a time */
#define SG_MAX_PENDING 8192 /* above the backlog that proxies listen with */

/*
 * The managed pods, by the cookie of their network namespace.
 * inserted by: user space, first container of a pod
 * deleted by: user space, when nothing of the pod is left
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_PODS);
	__type(key, __u64);
	__type(value, struct sg_pod);
} pods SEC(".maps");

/*
 * Cgroups of runtimes that serve containers in their own network namespaces, as
 * Docker does names, and of the TLS relay: their sockets are let live there, on
 * loopback.
 * inserted by: user space; deleted by: user space, when the cgroup is gone
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u64); /* cgroup id */
	__type(value, __u8); /* role of its sockets: DEAD or RELAY */
} agents SEC(".maps");

/*
 * The registered containers, by cgroup id. The guard believes a socket only
 * while the container that made it is here.
 * inserted by: user space at attach; deleted by: user space at detach or GC
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS);
	__type(key, __u64);
	__type(value, struct sg_container);
} containers SEC(".maps");

/*
 * The container that a program is attached to: the storage of the attachment,
 * so a process in a nested cgroup, a softirq and another task all find the
 * container without walking up the tree. (BPF_MAP_TYPE_CGRP_STORAGE would need
 * a walk and 6.2.)
 * inserted by: the kernel at attach, zeroed; filled by user space
 * deleted by: the kernel with the cgroup
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, struct sg_container);
} identity SEC(".maps");

/*
 * What each socket of a managed pod is.
 * inserted by: sg_sock_create; connect, sendmsg and listen of a socket that did
 * not pass it
 * deleted by: the kernel with the socket
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct sg_sock);
} socks SEC(".maps");

/*
 * Which pod a set of pod programs works for.
 * set and zeroed by: user space with the pod
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SG_MAX_PODS);
	__type(key, __u32);
	__type(value, struct sg_slot);
} pod_slots SEC(".maps");

/*
 * The pods' own addresses.
 * inserted and deleted by: user space with the pod
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_PODS * 8);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_pod_addr);
	__type(value, __u8);
} pod_addrs SEC(".maps");

/*
 * The revision that holds of each policy, by slot. One aligned word: user space
 * maps it and stores it at once, so that no program sees half a change.
 * Slot 0 has the last revision that was given, and is no policy's.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SG_MAX_POLICIES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u32);
} policy_slots SEC(".maps");

/*
 * inserted by: user space, before a slot points there
 * deleted by: user space, a grace period after none does; so for the next four
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_POLICIES * 2);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* revision */
	__type(value, struct sg_policy);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_POLICIES * 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_subject_key);
	__type(value, __u32); /* enum sg_subject_flags */
} subjects SEC(".maps");

/* Which class an outside address is of. No entry: class 0. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_prefix_key);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 21);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_rule_key);
	__type(value, __u32); /* number of the rule, from 1 */
} rules SEC(".maps");

/*
 * The node's own addresses: peer host.
 * inserted and deleted by: user space, when a policy needs them
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_addr);
	__type(value, __u8);
} host_addrs SEC(".maps");

/*
 * inserted and deleted by: user space with the container, or its policy
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS * 4);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_executable);
	__type(value, __u32); /* number of the rule */
} executables SEC(".maps");

/* As rules: inserted and deleted by user space with the revision. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_POLICIES *SG_MAX_UNIX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_unix_key);
	__type(value, struct sg_unix_rule);
} unix_rules SEC(".maps");

/*
 * What happened under mode audit. An LRU: it reports, and decides nothing.
 * inserted by: the programs; deleted by: the kernel, or user space
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, struct sg_seen);
	__type(value, struct sg_seen_count);
} seen SEC(".maps");

/*
 * Who talked to whom, and what became of it. An LRU, as above.
 * inserted by: sg_tell, sg_unix_tell; deleted by: the kernel. User space looks
 * past those of containers that are gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 15);
	__type(key, struct sg_seen);
	__type(value, struct sg_seen_count);
} flows SEC(".maps");

/* What seen is, of UNIX sockets, by sg_unix_judge. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 12);
	__type(key, struct sg_seen_unix);
	__type(value, struct sg_seen_count);
} seen_unix SEC(".maps");

/*
 * Where a redirected connection wanted to go, until the sidecar accepted it.
 * Not an LRU: an app that opens connections in a loop must not make those of
 * others arrive without their destination. Full means refused.
 * inserted by: sg_sockops TCP_CONNECT of the app, before its SYN is sent;
 * sg_relay_sockops of the relay, on its way to the sidecar
 * deleted by: PASSIVE_ESTABLISHED of the sidecar or the relay, or TCP_CLOSE of
 * the socket that connected
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_tuple);
	__type(value, struct sg_route);
} origdst SEC(".maps");

/*
 * How many entries of origdst each pod has: at most SG_MAX_PENDING, so that
 * one pod cannot fill it for the others.
 * inserted and deleted by: user space with the pod
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_PODS);
	__type(key, __u64); /* netns cookie */
	__type(value, __u64);
} pending SEC(".maps");

/*
 * The sidecars' listening sockets, and the relay's in each pod, by port.
 * inserted by: sg_sockops TCP_LISTEN of a sidecar; the relay
 * deleted by: the kernel when the socket closes
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, SG_MAX_PODS * 4 * SG_LISTENER_SLOTS);
	__type(key, struct sg_listener_key);
	__type(value, __u64);
} listeners SEC(".maps");

/* Set by readers and, what was lost, by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct sg_event_control);
} event_control SEC(".maps");

/* inserted by: nobody; written by who attaches */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sg_attach_times);
} attach_times SEC(".maps");

/*
 * What happens, for each reader.
 * inserted and deleted by: the reader
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, SG_EVENT_READERS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_RINGBUF);
			__uint(max_entries, 1 << 20);
		});
} event_rings SEC(".maps");

/*
 * By container, or by pod for what is no container's: nobody hides behind
 * events that he makes, nor hides others'. An LRU: it decides nothing. inserted
 * by: the programs; deleted by: the kernel
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS + SG_MAX_PODS);
	__type(key, struct sg_event_source);
	__type(value, struct sg_event_budget);
} event_budgets SEC(".maps");

/*
 * TLS keys on their way to the relay, of each pod whose policy asks for them.
 * Memory of the relay's own: it wipes what it has read. One for each pod, so
 * that no pod fills another's.
 * inserted by: the relay, with its listeners in the pod
 * deleted by: the relay when the pod is gone, or the next one when it begins
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, SG_MAX_PODS);
	__type(key, __u64); /* netns cookie */
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(map_flags, BPF_F_MMAPABLE);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, sizeof(struct sg_tls_ring));
		});
} tls_rings SEC(".maps");

/*
 * Where a sidecar connects to go on with what it got from the relay in
 * plaintext.
 * inserted by: the relay, before the sidecar gets the connection
 * deleted by: the relay after it; user space with the pod
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_tls_target);
	__type(value, __u8);
} tls_targets SEC(".maps");

/* As rules: inserted and deleted by user space with the revision. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_POLICIES * 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_tls_policy_key);
	__type(value, struct sg_tls_policy);
} tls_policies SEC(".maps");

/*
 * Addresses that are a managed pod's on this node, from outside of it.
 * inserted and deleted by: user space with the pod
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_PODS * 8);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_addr);
	__type(value, __u8);
} node_addrs SEC(".maps");

/* As counters, of what is accelerated. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* cgroup id */
	__type(value, struct sg_accel_counters);
} accel_counters SEC(".maps");

/* For user space: no program reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sg_accel_info);
} accel_info SEC(".maps");

/*
 * What the stubs of pod.bpf.c jump to, by enum sg_device_prog.
 * inserted by: user space, with the programs; never deleted
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SG_DEVICE_PROGS);
	__type(key, __u32);
	__type(value, __u32);
} device_progs SEC(".maps");

/*
 * inserted by: user space with the container or pod, so that counting never
 * allocates; deleted by: user space with it
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* cgroup id */
	__type(value, struct sg_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, SG_MAX_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* netns cookie */
	__type(value, struct sg_counters);
} pod_counters SEC(".maps");

/* For people: no program reads these. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_CONTAINERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* cgroup id */
	__type(value, struct sg_container_info);
} container_info SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64); /* netns cookie */
	__type(value, struct sg_pod_info);
} pod_info SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_POLICIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* slot */
	__type(value, struct sg_policy_info);
} policy_info SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct sg_rule_info_key);
	__type(value, struct sg_rule_info);
} rule_info SEC(".maps");

#endif
