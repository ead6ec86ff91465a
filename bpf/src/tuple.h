/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* tuple.h: what a sockops program is told of its connection. */
#ifndef SIDEGATE_TUPLE_H
#define SIDEGATE_TUPLE_H

#include "common.h"

/*
 * The connection as its client sees it. Both ends are read, as both families,
 * before one is chosen: the verifier wants context offsets that are constants,
 * and the compiler would rather choose the offset.
 */
SG_INLINE void sg_ops_tuple(struct bpf_sock_ops *ctx, __u64 cookie, int server,
			    struct sg_tuple *t)
{
	__u16 lport = ctx->local_port;
	__u16 rport = bpf_ntohl(ctx->remote_port);
	__u32 local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;
	struct sg_addr local = sg_addr6(ctx->local_ip6[0], ctx->local_ip6[1],
					ctx->local_ip6[2], ctx->local_ip6[3]);
	struct sg_addr remote = sg_addr6(ctx->remote_ip6[0], ctx->remote_ip6[1],
					 ctx->remote_ip6[2],
					 ctx->remote_ip6[3]);

	sg_barrier();
	if (ctx->family == SG_AF_INET) {
		local = sg_addr4(local4);
		remote = sg_addr4(remote4);
	}
	__builtin_memset(t, 0, sizeof(*t));
	t->netns_cookie = cookie;
	t->saddr = server ? remote : local;
	t->daddr = server ? local : remote;
	t->sport = server ? rport : lport;
	t->dport = server ? lport : rport;
}

#endif
