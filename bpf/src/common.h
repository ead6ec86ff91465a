/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* common.h: who is asking, counting, and the lookups that hooks share. */
#ifndef SIDEGATE_COMMON_H
#define SIDEGATE_COMMON_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"
#include "verdict.h"

/* What a cgroup hook returns. */
#define SG_REJECT 0
#define SG_PROCEED 1

/* What a device program returns. */
#define SG_DEV_PASS -1 /* TCX_NEXT, TC_ACT_UNSPEC */
#define SG_DEV_DROP 2 /* TCX_DROP, TC_ACT_SHOT */

/*
 * A function that the verifier judges once, on its own, and not again for each
 * path that leads to it. Programs load in a tenth of the time.
 */
#define SG_GLOBAL __attribute__((noinline))

/* A call in the program too: shared code that is not worth its copies. */
#define SG_NOINLINE static __attribute__((noinline, unused))

/* Keeps the compiler from moving context reads past this point. */
#define sg_barrier() asm volatile("" ::: "memory")

SG_NOINLINE void sg_count(__u64 cgroup_id, enum sg_counter counter)
{
	struct sg_counters *c = bpf_map_lookup_elem(&counters, &cgroup_id);

	if (c && counter < SG_COUNTERS)
		c->v[counter]++; /* per CPU */
}

SG_NOINLINE void sg_count_pod(__u64 netns_cookie, enum sg_counter counter)
{
	struct sg_counters *c =
		bpf_map_lookup_elem(&pod_counters, &netns_cookie);

	if (c && counter < SG_COUNTERS)
		c->v[counter]++;
}

/* The container that the running program is attached to. Never NULL. */
SG_INLINE struct sg_container *sg_self(void)
{
	return bpf_get_local_storage(&identity, 0);
}

SG_INLINE void sg_sock_init(struct sg_sock *s, const struct sg_container *c)
{
	s->netns_cookie = c->netns_cookie;
	s->cgroup_id = c->cgroup_id;
	s->role = c->role;
}

SG_INLINE struct sg_addr sg_addr4(__u32 ip)
{
	struct sg_addr a = {};

	a.b[10] = 0xff;
	a.b[11] = 0xff;
	__builtin_memcpy(&a.b[12], &ip, 4);
	return a;
}

SG_INLINE struct sg_addr sg_addr6(__u32 w0, __u32 w1, __u32 w2, __u32 w3)
{
	struct sg_addr a;

	__builtin_memcpy(&a.b[0], &w0, 4);
	__builtin_memcpy(&a.b[4], &w1, 4);
	__builtin_memcpy(&a.b[8], &w2, 4);
	__builtin_memcpy(&a.b[12], &w3, 4);
	return a;
}

SG_INLINE int sg_is_local(__u64 netns_cookie, const struct sg_addr *a)
{
	struct sg_pod_addr key = {.netns_cookie = netns_cookie, .addr = *a};

	return sg_is_loopback(a) || bpf_map_lookup_elem(&pod_addrs, &key);
}

struct sg_query {
	__u64 netns_cookie;
	struct sg_addr addr;
	__u16 port;
	__u8 proto;
	__u8 fragment;
	__u8 ingress;
	__u8 reserved[3];
};

/* Whether a rule is hit. */
SG_GLOBAL int sg_rule_query(const struct sg_query *q)
{
	struct sg_rule_key key = {};
	struct sg_rule *r;

	if (!q)
		return 0;
	key.prefixlen = SG_RULE_PREFIX_BITS + 128;
	key.dir = q->ingress ? SG_DIR_INGRESS : SG_DIR_EGRESS;
	if (sg_is_v4(&q->addr))
		key.dir += SG_DIR_V4;
	key.netns_cookie = q->netns_cookie;
	key.addr = q->addr;
	r = bpf_map_lookup_elem(&rules, &key);
	return r && sg_rule_allows(r, q->proto, q->port, q->fragment);
}

SG_INLINE int sg_rule_hit(__u64 netns_cookie, __u32 dir,
			  const struct sg_addr *a, __u8 proto, __u16 port,
			  int fragment)
{
	struct sg_query q = {
		.netns_cookie = netns_cookie,
		.addr = *a,
		.port = port,
		.proto = proto,
		.fragment = !!fragment,
		.ingress = dir == SG_DIR_INGRESS,
	};

	return sg_rule_query(&q);
}

#endif
