/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * tls.h: the TLS relay. An app's redirected connection goes to it first, where
 * the policy says so; it knows from whom and where to, and hands that on to the
 * sidecar. The keys that the app's TLS library gives the kernel it gets too.
 */
#ifndef SIDEGATE_TLS_H
#define SIDEGATE_TLS_H

#include "common.h"
#include "sock.h"
#include "tuple.h"

/* linux/tls.h, linux/socket.h */
#define SG_SOL_TLS 282
#define SG_TLS_1_2 0x0303
#define SG_TLS_1_3 0x0304

struct sg_tls_crypto_info {
	__u16 version;
	__u16 cipher_type;
};

/* BTF has a struct that only an inner map has as its value if this names it. */
extern const struct sg_tls_ring *sg_tls_ring_type;
const struct sg_tls_ring *sg_tls_ring_type __attribute__((unused));

/* Of the struct of a cipher_type. 0: not one that the relay knows. */
SG_INLINE __u32 sg_tls_info_len(const struct sg_tls_crypto_info *i)
{
	if (i->version != SG_TLS_1_2 && i->version != SG_TLS_1_3)
		return 0;
	switch (i->cipher_type) {
	case 51: /* TLS_CIPHER_AES_GCM_128 */
	case 53: /* TLS_CIPHER_AES_CCM_128 */
		return 40;
	case 52: /* TLS_CIPHER_AES_GCM_256 */
	case 54: /* TLS_CIPHER_CHACHA20_POLY1305 */
		return SG_TLS_INFO;
	}
	return 0;
}

/* The connection that sk is the client's end of. */
SG_INLINE void sg_sk_tuple(struct bpf_sock *sk, __u64 cookie,
			   struct sg_tuple *t)
{
	__u16 lport = sk->src_port, rport = bpf_ntohs(sk->dst_port);
	__u32 local4 = sk->src_ip4, remote4 = sk->dst_ip4;
	struct sg_addr local = sg_addr6(sk->src_ip6[0], sk->src_ip6[1],
					sk->src_ip6[2], sk->src_ip6[3]);
	struct sg_addr remote = sg_addr6(sk->dst_ip6[0], sk->dst_ip6[1],
					 sk->dst_ip6[2], sk->dst_ip6[3]);

	sg_barrier();
	if (sk->family == SG_AF_INET) {
		local = sg_addr4(local4);
		remote = sg_addr4(remote4);
	}
	__builtin_memset(t, 0, sizeof(*t));
	t->netns_cookie = cookie;
	t->saddr = local;
	t->daddr = remote;
	t->sport = lport;
	t->dport = rport;
}

/* A slot that is free, or NULL. Whoever gets it is the only one. */
SG_INLINE struct sg_tls_keys *sg_tls_slot(struct sg_tls_ring *ring)
{
	__u32 first = __sync_fetch_and_add(&ring->next, 1);

	for (__u32 i = 0; i < 8; i++) {
		struct sg_tls_keys *k =
			&ring->slots[(first + i) & (SG_TLS_SLOTS - 1)];

		if (__sync_val_compare_and_swap(&k->state, SG_TLS_FREE,
						SG_TLS_BUSY) == SG_TLS_FREE) {
			k->n = first;
			return k;
		}
	}
	return 0;
}

/*
 * Keys of a connection that goes through the relay. They are there for it
 * before this system call returns, and so before the app can send anything
 * under them. If nobody can take them the library goes on as on a kernel
 * without TLS; then the relay has no keys, and knows what to do.
 */
SEC("cgroup/setsockopt")
int sg_tls_setsockopt(struct bpf_sockopt *ctx)
{
	struct sg_tls_crypto_info *val = ctx->optval;
	void *end = ctx->optval_end;
	struct bpf_sock *sk = ctx->sk;
	struct sg_tls_ring *ring;
	struct sg_tls_keys *k;
	__u32 len, zero = 0;
	struct sg_sock *s;
	void *inner;

	if (ctx->level != SG_SOL_TLS ||
	    (ctx->optname != SG_TLS_TX && ctx->optname != SG_TLS_RX))
		goto untouched;
	if (!sk || sk->protocol != SG_IPPROTO_TCP)
		goto untouched;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (!s || !(s->flags & SG_SOCK_RELAYED))
		goto untouched;
	if ((void *)(val + 1) > end)
		goto untouched; /* the kernel refuses it */
	len = sg_tls_info_len(val);
	if (!len || (void *)val + len > end)
		goto untouched;

	/* It has no session yet, or more keys than a session uses. */
	if (sk->state != BPF_TCP_ESTABLISHED ||
	    __sync_fetch_and_add(&s->keys, 1) >= SG_TLS_MOST)
		goto refuse;
	inner = bpf_map_lookup_elem(&tls_rings, &s->netns_cookie);
	if (!inner)
		goto refuse;
	ring = bpf_map_lookup_elem(inner, &zero);
	if (!ring)
		goto refuse;
	k = sg_tls_slot(ring);
	if (!k)
		goto refuse;
	sg_sk_tuple(sk, s->netns_cookie, &k->tuple);
	k->cgroup_id = s->cgroup_id;
	k->pid = bpf_get_current_pid_tgid() >> 32;
	k->dir = ctx->optname;
	k->len = len;
	if (len == SG_TLS_INFO && (void *)val + SG_TLS_INFO <= end)
		__builtin_memcpy(k->info, val, SG_TLS_INFO);
	else if ((void *)val + 40 <= end)
		__builtin_memcpy(k->info, val, 40);
	/*
	 * First the count: one that is ahead has the relay look again, one that
	 * is behind would hide a key that is there. Both are full barriers: who
	 * sees the state sees the above.
	 */
	__sync_fetch_and_add(&ring->given, 1);
	__sync_lock_test_and_set(&k->state, SG_TLS_READY);
untouched:
	ctx->optlen = 0;
	return 1;

refuse:
	sg_count(s->cgroup_id, SG_DROP_TLS_KEYS);
	return 0;
}

/* An app's connection arrives: from whom, and where to. */
SG_INLINE void sg_relay_accept(struct bpf_sock_ops *ctx, struct sg_sock *s)
{
	struct sg_route *route;
	struct sg_tuple t;

	s->flags |= SG_SOCK_PASSIVE;
	s->orig.family = 0;
	sg_ops_tuple(ctx, s->netns_cookie, 1, &t);
	route = bpf_map_lookup_elem(&origdst, &t);
	if (!route)
		return; /* nothing redirected it: the relay ends it */
	s->orig = route->orig;
	s->pid = route->pid;
	s->app = route->cgroup_id;
	sg_origdst_delete(&t);
}

/* On the relay's cgroup. */
SEC("sockops")
int sg_relay_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sg_sock *s;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	if (!sk)
		return 1;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (!s || s->role != SG_ROLE_RELAY)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		sg_ops_connect(ctx, s);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sg_relay_accept(ctx, s);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		sg_ops_state(ctx, 0, s);
		break;
	}
	return 1;
}

#endif
