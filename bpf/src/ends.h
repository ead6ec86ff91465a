/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ends.h: which connections are accelerated, from their first moment on. */
#ifndef SIDEGATE_ENDS_H
#define SIDEGATE_ENDS_H

#include "accel.h"
#include "common.h"
#include "tuple.h"

/*
 * The connection as both its ends know it. What a client sends with its SYN
 * makes them differ, and then there is nothing to find.
 */
SG_INLINE void sg_ops_conn(struct bpf_sock_ops *ctx, const struct sg_tuple *t,
			   int server, struct sg_conn_key *key)
{
	__u32 snd = ctx->snd_nxt, rcv = ctx->rcv_nxt;

	__builtin_memset(key, 0, sizeof(*key));
	key->netns_cookie = t->netns_cookie;
	key->saddr = t->saddr;
	key->daddr = t->daddr;
	key->sport = t->sport;
	key->dport = t->dport;
	key->sseq = server ? rcv : snd;
	key->dseq = server ? snd : rcv;
}

/* Whether an end may be accelerated, as far as it knows alone. */
SG_INLINE int sg_ops_may(const struct sg_sock *s,
			 const struct sg_container *self,
			 const struct sg_policy *policy)
{
	enum sg_accel_counter why;

	if (!(policy->flags & SG_POLICY_ACCELERATE) ||
	    !(self->flags & SG_CONTAINER_ACCELERATE))
		return 0;
	if ((policy->flags & SG_POLICY_ACCELERATE_UNSEEN) &&
	    (self->flags & SG_CONTAINER_IOURING))
		return 0;
	if (s->flags & SG_SOCK_PLAIN)
		why = SG_ACCEL_PLAIN_OPTION;
	else if (self->flags & SG_CONTAINER_KTLS)
		why = SG_ACCEL_PLAIN_KTLS;
	else
		return 1;
	sg_accel_count(s->cgroup_id, why, 1);
	return 0;
}

/* Puts an end of a connection where the other finds it. */
SG_INLINE int sg_ops_join(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
			  const struct sg_sock *s, struct sg_conn *c,
			  struct sg_conn_key *key)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	/* The verifier wants a kptr's offset to be a constant. */
	if (key->side) {
		c->server = tp;
		c->cgroup_id[1] = s->cgroup_id;
	} else {
		c->client = tp;
		c->cgroup_id[0] = s->cgroup_id;
	}
	if (!bpf_sk_storage_get(&links, sk, key, BPF_SK_STORAGE_GET_F_CREATE))
		goto full;
	if (bpf_sock_hash_update(ctx, &ends, key, BPF_NOEXIST)) {
		bpf_sk_storage_delete(&links, sk);
		goto full;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
	return 0;

full:
	sg_accel_count(s->cgroup_id, SG_ACCEL_PLAIN_FULL, 1);
	return -1;
}

/*
 * A client has its connection: the first end, since a server has it only when
 * the client's ACK is there.
 */
SG_INLINE void sg_ops_active(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
			     struct sg_sock *s, const struct sg_container *self,
			     const struct sg_policy *policy)
{
	struct sg_conn fresh = {.role = s->role};
	struct sg_conn_key key;
	struct sg_tuple t;
	struct sg_conn *c;

	if (s->role != SG_ROLE_APP && s->role != SG_ROLE_SIDECAR)
		return;
	if (s->flags & SG_SOCK_RELAYED)
		return; /* the relay is no container */
	sg_ops_tuple(ctx, s->netns_cookie, 0, &t);
	if (s->role == SG_ROLE_APP) {
		if (!(s->flags & SG_SOCK_REDIRECTED) &&
		    !(sg_is_local(t.netns_cookie, &t.daddr) &&
		      sg_is_reserved(policy, t.dport)))
			return;
	} else if (!sg_is_local(t.netns_cookie, &t.daddr)) {
		if (!(policy->flags & SG_POLICY_ACCELERATE_NODE) ||
		    !bpf_map_lookup_elem(&node_addrs, &t.daddr))
			return;
		t.netns_cookie = 0;
	}
	if (!sg_ops_may(s, self, policy))
		return;
	sg_ops_conn(ctx, &t, 0, &key);
	if (bpf_map_update_elem(&conns, &key, &fresh, BPF_ANY))
		return;
	c = bpf_map_lookup_elem(&conns, &key);
	if (c && sg_ops_join(ctx, sk, s, c, &key))
		bpf_map_delete_elem(&conns, &key);
}

/* A server has its connection: both ends do, or neither. */
SG_INLINE void sg_ops_passive(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
			      struct sg_sock *s,
			      const struct sg_container *self,
			      const struct sg_policy *policy)
{
	__u32 client = SG_ROLE_APP;
	struct sg_conn_key key;
	struct sg_tuple t;
	struct sg_conn *c;

	sg_ops_tuple(ctx, s->netns_cookie, 1, &t);
	sg_ops_conn(ctx, &t, 1, &key);
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c) {
		key.netns_cookie = 0;
		c = bpf_map_lookup_elem(&conns, &key);
		if (!c)
			return;
	}
	/* Between pods it is two sidecars, in one an app and its sidecar. */
	if (!key.netns_cookie || s->role == SG_ROLE_APP)
		client = SG_ROLE_SIDECAR;
	if ((s->role == SG_ROLE_APP || s->role == SG_ROLE_SIDECAR) &&
	    c->role == client &&
	    (key.netns_cookie || policy->flags & SG_POLICY_ACCELERATE_NODE) &&
	    sg_ops_may(s, self, policy)) {
		key.side = 1;
		if (!sg_ops_join(ctx, sk, s, c, &key)) {
			c->whole = 1;
			sg_accel_count(c->cgroup_id[0], SG_ACCEL_CONNECTIONS,
				       1);
			sg_accel_count(c->cgroup_id[1], SG_ACCEL_CONNECTIONS,
				       1);
			return;
		}
		key.side = 0;
	}
	/* An end that has no other only pays for it. */
	sg_accel_count(c->cgroup_id[0], SG_ACCEL_PLAIN_PEER, 1);
	bpf_map_delete_elem(&conns, &key);
	bpf_map_delete_elem(&ends, &key);
}

/* The client's socket is gone. */
SG_INLINE void sg_ops_gone(struct bpf_sock *sk)
{
	struct sg_conn_key *link = bpf_sk_storage_get(&links, sk, 0, 0);
	struct sg_conn_key key;

	if (!link || link->side)
		return;
	key = *link;
	bpf_map_delete_elem(&conns, &key);
}

#define SG_SOL_SOCKET 1
#define SG_SO_OOBINLINE 10
#define SG_SO_RCVLOWAT 18
#define SG_SO_TIMESTAMP 29
#define SG_SO_TIMESTAMPNS 35
#define SG_SO_TIMESTAMPING 37
#define SG_SO_PEEK_OFF 42
#define SG_SO_ZEROCOPY 60
#define SG_SO_TIMESTAMP_NEW 63
#define SG_SO_TIMESTAMPNS_NEW 64
#define SG_SO_TIMESTAMPING_NEW 65
#define SG_TCP_REPAIR 19
#define SG_TCP_ULP 31
#define SG_TCP_INQ 36

/* Options that say: what this socket does, only TCP does. */
SG_INLINE int sg_needs_tcp(__u32 level, __u32 name)
{
	if (level == SG_IPPROTO_TCP)
		return name == SG_TCP_INQ || name == SG_TCP_REPAIR ||
		       name == SG_TCP_ULP;
	if (level != SG_SOL_SOCKET)
		return 0;
	switch (name) {
	case SG_SO_OOBINLINE:
	case SG_SO_RCVLOWAT:
	case SG_SO_TIMESTAMP:
	case SG_SO_TIMESTAMPNS:
	case SG_SO_TIMESTAMPING:
	case SG_SO_PEEK_OFF:
	case SG_SO_ZEROCOPY:
	case SG_SO_TIMESTAMP_NEW:
	case SG_SO_TIMESTAMPNS_NEW:
	case SG_SO_TIMESTAMPING_NEW:
		return 1;
	}
	return 0;
}

/*
 * Judges nothing: it sees what acceleration must not come in the way of. The
 * socket's record is what a listener's connections inherit.
 */
SEC("cgroup/setsockopt")
int sg_setsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sg_container *self;
	struct sg_conn_key key;
	struct sg_conn *c;
	struct sg_sock *s;
	__u32 side;

	if (!sg_needs_tcp(ctx->level, ctx->optname))
		goto untouched;
	if (!sk || sk->protocol != SG_IPPROTO_TCP)
		goto untouched;
	self = sg_self();
	if (self && ctx->level == SG_IPPROTO_TCP && ctx->optname == SG_TCP_ULP)
		__sync_fetch_and_or(&self->flags, SG_CONTAINER_KTLS);
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (s)
		s->flags |= SG_SOCK_PLAIN;
	c = sg_conn_of(sk, &key, &side);
	if (c) {
		sg_conn_leave(c, 0, SG_ACCEL_PLAIN_OPTION);
		sg_conn_leave(c, 1, SG_ACCEL_PLAIN_OPTION);
	}
untouched:
	/* 0: the kernel keeps its own value and length, of any size. */
	ctx->optlen = 0;
	return 1;
}

/* Where the TCP header of a packet begins: 0 if that is not clear. */
SG_INLINE __u32 sg_tcp_header(struct __sk_buff *skb)
{
	__u8 first, next;

	if (bpf_skb_load_bytes(skb, 0, &first, 1))
		return 0;
	if (first >> 4 == 4)
		return (first & 15) * 4;
	/* With extension headers it is not clear: no stack here sends any. */
	if (bpf_skb_load_bytes(skb, 6, &next, 1) || next != SG_IPPROTO_TCP)
		return 0;
	return 40;
}

#define SG_TCP_FIN 1

/*
 * Whether a packet has bytes that are to be read, or ends them. What is not
 * clear has.
 */
SG_INLINE int sg_has_bytes(struct __sk_buff *skb)
{
	__u32 at = sg_tcp_header(skb);
	__u8 b[2]; /* length of the header, and flags */

	if (!at || bpf_skb_load_bytes(skb, at + 12, b, sizeof(b)))
		return 1;
	return (b[1] & SG_TCP_FIN) || skb->len > at + (b[0] >> 4) * 4;
}

/*
 * Whether this kernel knows pointers in maps (6.4), which sg_hold reads: where
 * it does not, the verifier does not look at what is behind this, and nothing
 * is accelerated.
 */
const volatile __u32 sg_kptrs = 0;

/*
 * Bytes that come through TCP wait at the sender until those that were
 * redirected have been read: it sends them again. There may be a mesh's ingress
 * hook beside this one, or none.
 */
SEC("cgroup_skb/ingress")
int sg_hold(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct sg_conn_key key;
	struct sg_conn *c;
	__u32 side;

	if (!sg_kptrs || !sk)
		return SG_PROCEED;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return SG_PROCEED;
	c = sg_conn_of(sk, &key, &side);
	if (!c || !c->plain[!side] || c->read[!side])
		return SG_PROCEED;
	if (!sg_has_bytes(skb))
		return SG_PROCEED;
	if (sg_waits_for(c, side))
		return SG_REJECT;
	c->read[!side] = 1;
	return SG_PROCEED;
}

#endif
