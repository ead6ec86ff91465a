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
#include "verdict.h"

SG_INLINE int sg_guard(__u64 cookie, const struct sg_sock *s)
{
	struct sg_container *c = 0;

	if (bpf_get_retval() < 0)
		return SG_REJECT; /* the container's own, which told */
	if (s)
		c = bpf_map_lookup_elem(&containers, &s->cgroup_id);
	if (sg_verdict_guard(cookie, s, c))
		return SG_PROCEED;
	return sg_pod_refuse(cookie, SG_DROP_UNREGISTERED) ? SG_PROCEED
							   : SG_REJECT;
}

/*
 * Whether a socket that is no container's may do it: one of an agent, on
 * loopback, and one of the relay, which connects to servers by TCP where TLS is
 * deferred.
 */
SG_INLINE int sg_guard_may(const struct sg_sock *s, __u64 cookie, int loopback,
			   int connects)
{
	struct sg_policy *policy;

	if (!s || !(s->flags & SG_SOCK_AGENT) || s->netns_cookie != cookie)
		return 0;
	if (loopback)
		return 1;
	if (!connects || s->role != SG_ROLE_RELAY)
		return 0;
	policy = sg_policy_of(cookie);
	return policy && (policy->flags & SG_POLICY_TLS_DEFERRED);
}

SG_INLINE int sg_guard_addr(struct bpf_sock_addr *ctx, int loopback,
			    int connects)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct sg_sock *s;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_PROCEED;
	if (!ctx->sk)
		return SG_REJECT;
	s = bpf_sk_storage_get(&socks, ctx->sk, 0, 0);
	if (sg_guard_may(s, cookie, loopback,
			 connects && ctx->protocol == SG_IPPROTO_TCP))
		return SG_PROCEED;
	return sg_guard(cookie, s);
}

SG_INLINE int sg_guard_addr4(struct bpf_sock_addr *ctx, int connects)
{
	__u32 to = ctx->user_ip4;

	return sg_guard_addr(ctx, (bpf_ntohl(to) >> 24) == 127, connects);
}

/* ::1 alone: to bind to :: is to listen everywhere. */
SG_INLINE int sg_guard_addr6(struct bpf_sock_addr *ctx, int connects)
{
	__u32 head = ctx->user_ip6[0] | ctx->user_ip6[1] | ctx->user_ip6[2];
	__u32 tail = ctx->user_ip6[3];

	return sg_guard_addr(ctx, !head && tail == bpf_htonl(1), connects);
}

/*
 * A socket of an agent or the relay, which no program of a container has seen,
 * gets a record here: that of nobody who could send or receive anything, but
 * for what the hooks above allow it. No device lets an agent's out.
 */
SG_INLINE int sg_guard_agent(struct bpf_sock *ctx, __u64 cookie)
{
	__u64 cgroup = bpf_get_current_cgroup_id();
	struct sg_sock init = {
		.netns_cookie = cookie,
		.cgroup_id = cgroup,
		.flags = SG_SOCK_AGENT,
	};
	__u8 *role = bpf_map_lookup_elem(&agents, &cgroup);

	if (!role)
		return 0;
	init.role = *role == SG_ROLE_RELAY ? SG_ROLE_RELAY : SG_ROLE_DEAD;
	if (ctx->protocol != SG_IPPROTO_TCP && ctx->protocol != SG_IPPROTO_UDP)
		return 0;
	if (ctx->type != SG_SOCK_STREAM && ctx->type != SG_SOCK_DGRAM)
		return 0;
	return !!bpf_sk_storage_get(&socks, ctx, &init,
				    BPF_SK_STORAGE_GET_F_CREATE);
}

SEC("cgroup/sock_create")
int sg_guard_create(struct bpf_sock *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	struct sg_sock *s;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_PROCEED;
	s = bpf_sk_storage_get(&socks, ctx, 0, 0);
	if (!s && sg_guard_agent(ctx, cookie))
		return SG_PROCEED;
	return sg_guard(cookie, s);
}

SEC("cgroup/connect4")
int sg_guard_connect4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr4(ctx, 1);
}

SEC("cgroup/connect6")
int sg_guard_connect6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr6(ctx, 1);
}

SEC("cgroup/sendmsg4")
int sg_guard_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr4(ctx, 0);
}

SEC("cgroup/sendmsg6")
int sg_guard_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr6(ctx, 0);
}

SEC("cgroup/bind4")
int sg_guard_bind4(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr4(ctx, 0);
}

SEC("cgroup/bind6")
int sg_guard_bind6(struct bpf_sock_addr *ctx)
{
	return sg_guard_addr6(ctx, 0);
}

#endif
