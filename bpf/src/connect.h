/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect.h: connect(2), sendmsg(2), recvmsg(2) and getpeername(2) of a
 * container, and bind(2). One body for IPv4 and IPv6: an AF_INET6 socket may
 * name a v4-mapped address, and then everything about it is IPv4.
 */
#ifndef SIDEGATE_CONNECT_H
#define SIDEGATE_CONNECT_H

#include "common.h"

enum sg_call {
	SG_CALL_CONNECT,
	SG_CALL_SENDMSG,
};

SG_INLINE struct sg_addr sg_user_addr(struct bpf_sock_addr *ctx, int v6)
{
	if (!v6)
		return sg_addr4(ctx->user_ip4);
	return sg_addr6(ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
			ctx->user_ip6[3]);
}

SG_INLINE void sg_set_user_addr(struct bpf_sock_addr *ctx, int v6,
				const struct sg_addr *a)
{
	__u32 w[4];

	__builtin_memcpy(w, a, sizeof(w));
	if (v6) {
		ctx->user_ip6[0] = w[0];
		ctx->user_ip6[1] = w[1];
		ctx->user_ip6[2] = w[2];
		ctx->user_ip6[3] = w[3];
	} else {
		ctx->user_ip4 = w[3];
	}
}

/* Loopback of the family that a is of. */
SG_INLINE struct sg_addr sg_loopback_for(const struct sg_addr *a)
{
	struct sg_addr lo = {};

	if (sg_is_v4(a))
		return sg_addr4(bpf_htonl(0x7f000001));
	lo.b[15] = 1;
	return lo;
}

/* The record of a socket, made now if the socket has none. NULL: no memory. */
SG_INLINE struct sg_sock *sg_sock_of(struct bpf_sock_addr *ctx,
				     const struct sg_container *self)
{
	struct sg_sock *s;

	if (!ctx->sk)
		return 0;
	s = bpf_sk_storage_get(&socks, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (s && !s->cgroup_id)
		sg_sock_init(s, self);
	return s;
}

SG_INLINE int sg_do_connect(struct bpf_sock_addr *ctx, int v6,
			    enum sg_call call)
{
	struct sg_container *self = sg_self();
	struct sg_flow f = {};
	struct sg_verdict v;
	struct sg_addr addr, to;
	struct sg_sock *s;
	struct sg_pod *pod;
	__u64 cookie;

	if (!self)
		return SG_REJECT;
	s = sg_sock_of(ctx, self);
	if (!s) {
		sg_count(self->cgroup_id, SG_DROP_NO_MEMORY);
		return SG_REJECT;
	}
	if (self->role == SG_ROLE_SIDECAR || self->role == SG_ROLE_EXEMPT)
		return SG_PROCEED;
	cookie = self->netns_cookie;
	pod = bpf_map_lookup_elem(&pods, &cookie);
	if (!pod) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}

	addr = sg_user_addr(ctx, v6);
	f.proto = ctx->protocol;
	f.port = bpf_ntohs(ctx->user_port);
	f.local = !!sg_is_local(cookie, &addr);
	if (!f.local) {
		f.egress_rule = !!sg_rule_hit(cookie, SG_DIR_EGRESS, &addr,
					      f.proto, f.port, 0);
		/* A datagram may answer what an exclusion let in. */
		if (call == SG_CALL_SENDMSG && ctx->sk)
			f.egress_rule |= !!sg_rule_hit(cookie, SG_DIR_INGRESS,
						       &addr, f.proto,
						       ctx->sk->src_port, 0);
	}
	v = sg_verdict_connect(self->role, &f, pod);
	sg_count(self->cgroup_id, v.counter);
	s->flags &= ~(SG_SOCK_REDIRECTED | SG_SOCK_DNS | SG_SOCK_ORIGDST);
	switch (v.action) {
	case SG_ALLOW:
		s->orig.family = 0;
		return SG_PROCEED;
	case SG_REDIRECT:
	case SG_REDIRECT_DNS:
		break;
	default:
		return SG_REJECT;
	}
	s->flags |= v.action == SG_REDIRECT ? SG_SOCK_REDIRECTED : SG_SOCK_DNS;
	s->orig.addr = addr;
	s->orig.port = f.port;
	s->orig.family = sg_is_v4(&addr) ? SG_AF_INET : SG_AF_INET6;
	to = sg_loopback_for(&addr);
	sg_set_user_addr(ctx, v6, &to);
	ctx->user_port =
		bpf_htons(v.action == SG_REDIRECT ? pod->outbound : pod->dns);
	return SG_PROCEED;
}

SEC("cgroup/connect4")
int sg_connect4(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 0, SG_CALL_CONNECT);
}

SEC("cgroup/connect6")
int sg_connect6(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 1, SG_CALL_CONNECT);
}

SEC("cgroup/sendmsg4")
int sg_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 0, SG_CALL_SENDMSG);
}

SEC("cgroup/sendmsg6")
int sg_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 1, SG_CALL_SENDMSG);
}

/* Puts the original destination where the kernel put the sidecar's address. */
SG_INLINE void sg_restore(struct bpf_sock_addr *ctx, int v6, __u32 flag)
{
	struct sg_sock *s;

	if (!ctx->sk)
		return;
	s = bpf_sk_storage_get(&socks, ctx->sk, 0, 0);
	if (!s || !(s->flags & flag) || !s->orig.family)
		return;
	if (!v6 && s->orig.family != SG_AF_INET)
		return;
	sg_set_user_addr(ctx, v6, &s->orig.addr);
	ctx->user_port = bpf_htons(s->orig.port);
}

/*
 * The answer of the sidecar's DNS port comes from where the app sent its last
 * query. Anything else keeps its source.
 */
SG_INLINE int sg_do_recvmsg(struct bpf_sock_addr *ctx, int v6)
{
	struct sg_container *self = sg_self();
	struct sg_addr addr;
	struct sg_pod *pod;

	if (!self || self->role != SG_ROLE_APP)
		return SG_PROCEED;
	pod = bpf_map_lookup_elem(&pods, &self->netns_cookie);
	if (!pod || !pod->dns || ctx->user_port != bpf_htons(pod->dns))
		return SG_PROCEED;
	addr = sg_user_addr(ctx, v6);
	if (sg_is_loopback(&addr))
		sg_restore(ctx, v6, SG_SOCK_DNS);
	return SG_PROCEED;
}

SEC("cgroup/recvmsg4")
int sg_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sg_do_recvmsg(ctx, 0);
}

SEC("cgroup/recvmsg6")
int sg_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sg_do_recvmsg(ctx, 1);
}

SEC("cgroup/getpeername4")
int sg_getpeername4(struct bpf_sock_addr *ctx)
{
	sg_restore(ctx, 0, SG_SOCK_REDIRECTED | SG_SOCK_DNS);
	return SG_PROCEED;
}

SEC("cgroup/getpeername6")
int sg_getpeername6(struct bpf_sock_addr *ctx)
{
	sg_restore(ctx, 1, SG_SOCK_REDIRECTED | SG_SOCK_DNS);
	return SG_PROCEED;
}

/*
 * A sidecar that learns the destination by getsockname(2), as under TPROXY,
 * where its policy says that it does.
 */
SG_INLINE int sg_do_getsockname(struct bpf_sock_addr *ctx, int v6)
{
	struct sg_container *self = sg_self();
	struct sg_pod *pod;

	if (!self || self->role != SG_ROLE_SIDECAR)
		return SG_PROCEED;
	pod = bpf_map_lookup_elem(&pods, &self->netns_cookie);
	if (pod && (pod->flags & SG_POD_SOCKNAME) &&
	    ctx->user_port == bpf_htons(pod->outbound))
		sg_restore(ctx, v6, SG_SOCK_PASSIVE);
	return SG_PROCEED;
}

SEC("cgroup/getsockname4")
int sg_getsockname4(struct bpf_sock_addr *ctx)
{
	return sg_do_getsockname(ctx, 0);
}

SEC("cgroup/getsockname6")
int sg_getsockname6(struct bpf_sock_addr *ctx)
{
	return sg_do_getsockname(ctx, 1);
}

SG_INLINE int sg_do_bind(__u16 port)
{
	struct sg_container *self = sg_self();
	struct sg_verdict v;
	struct sg_pod *pod;

	if (!self)
		return SG_REJECT;
	if (self->role == SG_ROLE_SIDECAR)
		return SG_PROCEED;
	pod = bpf_map_lookup_elem(&pods, &self->netns_cookie);
	if (!pod) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}
	v = sg_verdict_bind(self->role, port, pod);
	if (v.action != SG_DENY)
		return SG_PROCEED;
	sg_count(self->cgroup_id, v.counter);
	return SG_REJECT;
}

SEC("cgroup/bind4")
int sg_bind4(struct bpf_sock_addr *ctx)
{
	return sg_do_bind(bpf_ntohs(ctx->user_port));
}

SEC("cgroup/bind6")
int sg_bind6(struct bpf_sock_addr *ctx)
{
	return sg_do_bind(bpf_ntohs(ctx->user_port));
}

/* bind to port 0 lets the kernel choose: this sees what it chose. */
SEC("cgroup/post_bind4")
int sg_post_bind4(struct bpf_sock *ctx)
{
	return sg_do_bind(ctx->src_port);
}

SEC("cgroup/post_bind6")
int sg_post_bind6(struct bpf_sock *ctx)
{
	return sg_do_bind(ctx->src_port);
}

#endif
