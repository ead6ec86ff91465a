/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * accel.h: which connections skip TCP between their ends, and which no longer.
 *
 * A byte that is redirected waits apart from those that came through TCP, and
 * is read before them. So a direction begins redirected or never is, and leaves
 * it at most once: what comes after that is read after it. No byte comes
 * through TCP while redirected ones wait: a read ends where these do, a reader
 * takes that for the end of what there is, and would not be woken again.
 */
#ifndef SIDEGATE_ACCEL_H
#define SIDEGATE_ACCEL_H

#include "common.h"

#define SG_MAX_CONNS (1 << 16)

/* As much of the kernel's as is read. */
typedef struct {
	int counter;
} sg_atomic_t;

struct sock___sg {
	struct {
		sg_atomic_t rmem_alloc;
	} sk_backlog;
} __attribute__((preserve_access_index));

struct inet_sock___sg {
	struct sock___sg sk;
} __attribute__((preserve_access_index));

struct inet_connection_sock___sg {
	struct inet_sock___sg icsk_inet;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock___sg inet_conn;
} __attribute__((preserve_access_index));

#define __sg_kptr __attribute__((btf_type_tag("kptr_untrusted")))

/* A connection that is, or is to be, accelerated: value of map conns. */
struct sg_conn {
	struct tcp_sock __sg_kptr *client; /* for sg_msg to look at */
	struct tcp_sock __sg_kptr *server;
	__u64 cgroup_id[2];
	__u8 role; /* of the client */
	__u8 whole; /* both ends are in map ends */
	__u8 plain[2]; /* what this side sends goes through TCP, for good */
	__u8 read[2]; /* and all that it sent otherwise has been read */
	__u16 reserved;
};

/*
 * The sockets of accelerated connections. Its program is sg_msg.
 * inserted by: sg_sockops, ACTIVE_ESTABLISHED and PASSIVE_ESTABLISHED
 * deleted by: the kernel when the socket closes; sg_sockops
 * PASSIVE_ESTABLISHED of an end that has no part in it
 */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, SG_MAX_CONNS * 2);
	__type(key, struct sg_conn_key);
	__type(value, __u64);
} ends SEC(".maps");

/*
 * Which end of which connection a socket in map ends is.
 * inserted by: sg_sockops with the socket; deleted by: the kernel with it
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sg_conn_key);
} links SEC(".maps");

/*
 * What both ends know of their connection. An LRU: one that has lost its entry
 * goes through TCP from then on.
 * inserted by: sg_sockops ACTIVE_ESTABLISHED
 * deleted by: sg_sockops TCP_CLOSE of the client, or the kernel
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SG_MAX_CONNS);
	__type(key, struct sg_conn_key);
	__type(value, struct sg_conn);
} conns SEC(".maps");

/*
 * The connection that a socket in map ends is one end of. key becomes its key
 * in map conns, side which end the socket is.
 */
SG_INLINE struct sg_conn *sg_conn_of(struct bpf_sock *sk,
				     struct sg_conn_key *key, __u32 *side)
{
	struct sg_conn_key *link = bpf_sk_storage_get(&links, sk, 0, 0);

	if (!link)
		return 0;
	*key = *link;
	*side = key->side & 1;
	key->side = 0;
	return bpf_map_lookup_elem(&conns, key);
}

SG_NOINLINE void sg_accel_count(__u64 cgroup_id, enum sg_accel_counter counter,
				__u64 n)
{
	struct sg_accel_counters *c =
		bpf_map_lookup_elem(&accel_counters, &cgroup_id);

	if (c && counter < SG_ACCEL_COUNTERS)
		c->v[counter] += n; /* per CPU */
}

SG_INLINE int sg_sock_waits(const struct tcp_sock *tp)
{
	return tp ? tp->inet_conn.icsk_inet.sk.sk_backlog.rmem_alloc.counter
		  : 0;
}

/*
 * How much waits for a side to read. One way for each: the verifier wants a
 * kptr's offset to be a constant.
 */
SG_INLINE int sg_waits_for(const struct sg_conn *c, __u32 side)
{
	int n;

	if (side) {
		n = sg_sock_waits(c->server);
		sg_barrier();
		return n;
	}
	n = sg_sock_waits(c->client);
	sg_barrier();
	return n;
}

/* What side sends goes through TCP from now on. */
SG_INLINE void sg_conn_leave(struct sg_conn *c, __u32 side,
			     enum sg_accel_counter why)
{
	side &= 1;
	if (c->plain[side])
		return;
	c->plain[side] = 1;
	/* Nothing was redirected. */
	c->read[side] = why == SG_ACCEL_PLAIN_EARLY;
	sg_accel_count(c->cgroup_id[side], why, 1);
}

#endif
