/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * guard.h: the programs on the root cgroup. They run after those of the
 * container (the kernel goes from the socket's cgroup up), which have left a
 * record on the socket. In a namespace that is no managed pod's they end after
 * one lookup, for the kernel's own sockets too.
 */
#ifndef SIDEGATE_GUARD_H
#define SIDEGATE_GUARD_H

#include "common.h"

SG_INLINE int sg_guard(__u64 cookie, const struct sg_sock *s)
{
	struct sg_container *c = 0;

	if (s)
		c = bpf_map_lookup_elem(&containers, &s->cgroup_id);
	if (sg_verdict_guard(cookie, s, c))
		return SG_PROCEED;
	return sg_pod_refuse(cookie, SG_DROP_UNREGISTERED) ? SG_PROCEED
							   : SG_REJECT;
}

SG_INLINE int sg_guard_addr(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_PROCEED;
	if (!ctx->sk)
		return SG_REJECT;
	return sg_guard(cookie, bpf_sk_storage_get(&socks, ctx->sk, 0, 0));
}

SEC("cgroup/sock_create")
int sg_guard_create(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_PROCEED;
	return sg_guard(cookie, bpf_sk_storage_get(&socks, ctx, 0, 0));
}

SEC("cgroup/connect4")
int sg_guard_connect4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

SEC("cgroup/connect6")
int sg_guard_connect6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

SEC("cgroup/sendmsg4")
int sg_guard_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

SEC("cgroup/sendmsg6")
int sg_guard_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

SEC("cgroup/bind4")
int sg_guard_bind4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

SEC("cgroup/bind6")
int sg_guard_bind6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr(ctx);
}

#endif
