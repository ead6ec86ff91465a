/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect.h: connect(2), sendmsg(2), recvmsg(2) and getpeername(2) of a
 * container, and bind(2). One body for IPv4 and IPv6: an AF_INET6 socket may
 * name a v4-mapped address, and then everything about it is IPv4.
 */
#ifndef SIDEGATE_CONNECT_H
#define SIDEGATE_CONNECT_H

#include "common.h"
#include "task.h"

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

/*
 * The record of a socket, made now for one that is older than its container's
 * programs. NULL: no memory, or a stranger's.
 */
SG_INLINE struct sg_sock *sg_sock_of(struct bpf_sock_addr *ctx,
				     const struct sg_container *self)
{
	struct sg_sock *s;

	if (!ctx->sk)
		return 0;
	s = bpf_sk_storage_get(&socks, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (s && !s->cgroup_id) {
		if (!sg_task_ok(self))
			return 0;
		sg_sock_init(s, self);
	}
	return s;
}

/*
 * The cgroup of the container whose socket a connection or datagram would reach
 * inside the pod. 0: there is no such socket; 1: it is no container's.
 */
SG_NOINLINE __u64 sg_owner_at(struct bpf_sock_addr *ctx,
			      const struct sg_addr *addr, __u8 proto)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv6);
	struct bpf_sock *sk;
	struct sg_sock *s;
	__u64 owner = 1;

	if (sg_is_v4(addr)) {
		size = sizeof(t.ipv4);
		__builtin_memcpy(&t.ipv4.daddr, &addr->b[12], 4);
		if (!t.ipv4.daddr) /* connect(2) takes it for loopback */
			t.ipv4.daddr = bpf_htonl(0x7f000001);
		t.ipv4.dport = ctx->user_port;
	} else {
		__builtin_memcpy(t.ipv6.daddr, addr, sizeof(t.ipv6.daddr));
		if (!(t.ipv6.daddr[0] | t.ipv6.daddr[1] | t.ipv6.daddr[2] |
		      t.ipv6.daddr[3]))
			t.ipv6.daddr[3] = bpf_htonl(1);
		t.ipv6.dport = ctx->user_port;
	}
	if (proto == SG_IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	/* Or one that is connected to where this datagram comes from. */
	if (!sk && proto == SG_IPPROTO_UDP && ctx->sk) {
		if (size == sizeof(t.ipv4)) {
			t.ipv4.saddr = t.ipv4.daddr;
			t.ipv4.sport = bpf_htons(ctx->sk->src_port);
		} else {
			__builtin_memcpy(t.ipv6.saddr, t.ipv6.daddr, 16);
			t.ipv6.sport = bpf_htons(ctx->sk->src_port);
		}
		sk = bpf_sk_lookup_udp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (s && s->cgroup_id)
		owner = s->cgroup_id;
	bpf_sk_release(sk);
	return owner;
}

/*
 * Early, so that connect(2) and sendmsg(2) tell; sg_ingress judges again what
 * arrives. Of ICMP the kernel itself is the other end.
 */
SG_INLINE __u32 sg_connect_inside(struct bpf_sock_addr *ctx,
				  const struct sg_policy *policy,
				  const struct sg_end *self,
				  const struct sg_addr *addr, __u8 proto,
				  __u16 port, __u32 sock_flags, __u64 *peer,
				  __u32 *rule)
{
	struct sg_inside_query in = {
		.revision = policy->revision,
		.proto = proto,
		.port = port,
	};
	struct sg_container *c;
	__u32 verdict;
	__u64 owner;

	if (!sg_knows_peers(policy))
		return SG_INSIDE_ALLOW;
	if (proto != SG_IPPROTO_TCP && proto != SG_IPPROTO_UDP)
		return SG_INSIDE_ALLOW;
	owner = sg_owner_at(ctx, addr, proto);
	if (!owner)
		return SG_INSIDE_ALLOW; /* the kernel says that nobody listens
					 */
	c = bpf_map_lookup_elem(&containers, &owner);
	if (!c) /* the kernel's own */
		return self->flags & SG_SUBJECT_RULED ? SG_INSIDE_EGRESS
						      : SG_INSIDE_ALLOW;
	*peer = owner;
	in.from = *self;
	sg_end_of(policy, c, &in.to);
	verdict = sg_inside_of(&in);
	*rule = in.rule;
	if (verdict == SG_INSIDE_ALLOW || proto == SG_IPPROTO_TCP ||
	    !(sock_flags & SG_SOCK_CALLED) || !ctx->sk)
		return verdict;
	/* An answer to a datagram. That a query came was decided before. */
	in.port = ctx->sk->src_port;
	if (policy->dns && in.port == policy->dns)
		return SG_INSIDE_ALLOW;
	in.to = *self;
	sg_end_of(policy, c, &in.from);
	if (sg_inside_of(&in))
		return verdict;
	*rule = in.rule;
	return SG_INSIDE_ALLOW;
}

/* What the rules and exclusions say of a destination outside. */
SG_INLINE void sg_connect_outside(struct bpf_sock_addr *ctx,
				  const struct sg_policy *policy,
				  const struct sg_end *self,
				  const struct sg_addr *addr, __u32 sock_flags,
				  struct sg_flow *f)
{
	struct sg_outside o = {
		.dir = SG_DIR_EGRESS,
		.proto = f->proto,
		.port = f->port,
		/* A datagram may answer what was let in. */
		.opening = !(sock_flags & SG_SOCK_CALLED) || !ctx->sk,
	};

	if (!o.opening)
		o.reply = ctx->sk->src_port;
	/* The type of a ping is known when there is a packet. */
	if (f->proto == SG_IPPROTO_ICMP || f->proto == SG_IPPROTO_ICMPV6) {
		f->permitted = 1;
		return;
	}
	sg_peers_of(policy, addr, o.peer);
	f->rule = sg_permits(policy, 0, &o);
	f->excluded = !!f->rule;
	if (f->ruled) {
		f->rule = sg_permits(policy, self, &o);
		f->permitted = !!f->rule;
	}
}

/* A sidecar that listens takes it; under mode audit none is needed. */
SG_INLINE int sg_has_listener(__u64 cookie, __u16 port, int ipv4)
{
	struct sg_listener_key key = {
		.netns_cookie = cookie,
		.port = port,
	};

	for (int i = 0; i < SG_LISTENER_SLOTS * 2; i++) {
		struct bpf_sock *sk;

		key.slot = i >> 1;
		key.ipv6 = i & 1;
		if (!ipv4 && !key.ipv6)
			continue;
		sk = bpf_map_lookup_elem(&listeners, &key);
		if (sk) {
			bpf_sk_release(sk);
			return 1;
		}
	}
	return 0;
}

/*
 * Whether mode audit has something to record. Of ICMP packets tell the type;
 * and that a datagram came which this one answers is on record.
 */
SG_INLINE int sg_audits(struct bpf_sock_addr *ctx,
			const struct sg_container *self,
			const struct sg_seen *what, __u32 sock_flags)
{
	switch (what->proto) {
	case SG_IPPROTO_ICMP:
	case SG_IPPROTO_ICMPV6:
		return 0;
	case SG_IPPROTO_UDP:
		return !(sock_flags & SG_SOCK_CALLED) || !ctx->sk ||
		       !sg_answers(self, what, ctx->sk->src_port);
	}
	return 1;
}

/*
 * Whether the sidecar goes on with a TLS session of the relay's. Where that
 * leads has been asked about when the app connected.
 */
SG_INLINE int sg_is_tls_target(struct bpf_sock_addr *ctx,
			       const struct sg_container *self,
			       const struct sg_policy *policy,
			       const struct sg_addr *addr)
{
	struct sg_tls_target key = {
		.netns_cookie = self->netns_cookie,
		.addr = *addr,
		.port = bpf_ntohs(ctx->user_port),
	};

	return self->role == SG_ROLE_SIDECAR &&
	       (policy->flags & SG_POLICY_TLS_DEFERRED) &&
	       ctx->protocol == SG_IPPROTO_TCP &&
	       bpf_map_lookup_elem(&tls_targets, &key);
}

/* Tells destinations apart, as far as it matters for events. Never 0. */
SG_INLINE __u32 sg_mix(const struct sg_addr *a, __u16 port)
{
	const __u32 *w = (const __u32 *)a->b;

	return (((w[0] * 31 + w[1]) * 31 + w[2]) * 31 + w[3]) * 31 + port + 1
		       ?: 1;
}

SG_INLINE int sg_do_connect(struct bpf_sock_addr *ctx, int v6)
{
	struct sg_container *self = sg_self();
	struct sg_seen what = {};
	struct sg_flow f = {};
	struct sg_verdict v;
	struct sg_addr addr, to;
	struct sg_policy *policy;
	struct sg_end end;
	struct sg_sock *s;
	__u64 cookie;
	__u32 told;
	__u16 port;
	int audits;

	if (!self)
		return SG_REJECT;
	s = sg_sock_of(ctx, self);
	if (!s) {
		sg_count(self->cgroup_id, SG_DROP_NO_MEMORY);
		return SG_REJECT;
	}
	cookie = self->netns_cookie;
	policy = sg_policy_of(cookie);
	if (!policy) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}

	addr = sg_user_addr(ctx, v6);
	sg_end_of(policy, self, &end);
	f.proto = ctx->protocol;
	f.port = bpf_ntohs(ctx->user_port);
	f.local = !!sg_is_local(cookie, &addr);
	f.ruled = !!(end.flags & SG_SUBJECT_RULED);
	if (sg_is_tls_target(ctx, self, policy, &addr)) {
		v = sg_is(SG_REDIRECT, SG_COUNT_REDIRECT);
		goto decided;
	}
	if (f.local)
		f.inside = sg_connect_inside(ctx, policy, &end, &addr, f.proto,
					     f.port, s->flags, &what.peer,
					     &f.rule);
	else
		sg_connect_outside(ctx, policy, &end, &addr, s->flags, &f);
	v = sg_verdict_connect(self->role, &f, policy);
decided:
	s->flags &= ~(SG_SOCK_REDIRECTED | SG_SOCK_DNS | SG_SOCK_ORIGDST |
		      SG_SOCK_RELAYED);
	s->orig.family = 0;
	s->pid = bpf_get_current_pid_tgid() >> 32;
	what.addr = addr;
	what.proto = f.proto;
	what.port = f.port;
	if (policy->flags & SG_POLICY_AUDIT) {
		if (v.action == SG_REDIRECT &&
		    !sg_has_listener(cookie, policy->outbound, sg_is_v4(&addr)))
			v = sg_is(SG_DENY, SG_DROP_NO_LISTENER);
		audits = sg_audits(ctx, self, &what, s->flags);
		if (v.action == SG_DENY) {
			if (audits)
				sg_refuse(policy, self, v.counter, &what,
					  SG_EVENT_CONNECT, 0);
			s->flags |= SG_SOCK_SENT;
			return SG_PROCEED;
		}
		if (audits)
			sg_record(self, &what);
	}
	if (v.action == SG_DENY) {
		sg_refuse(policy, self, v.counter, &what, SG_EVENT_CONNECT, 0);
		return SG_REJECT;
	}
	sg_count(self->cgroup_id, v.counter);
	/* Of datagrams over one socket the first to each destination in turn.
	 */
	told = sg_mix(&addr, f.port);
	if (f.proto == SG_IPPROTO_TCP || s->told != told) {
		struct sg_how how = {
			.kind = SG_EVENT_CONNECT,
			.rule = f.rule,
			.revision = policy->revision,
		};

		s->told = told;
		what.reason = v.counter;
		sg_seen_by(self, &what);
		sg_tell_task(&what, &how);
	}
	switch (v.action) {
	case SG_ALLOW:
		s->flags |= SG_SOCK_SENT;
		return SG_PROCEED;
	default:
		break;
	}
	s->flags |= SG_SOCK_SENT;
	s->flags |= v.action == SG_REDIRECT ? SG_SOCK_REDIRECTED : SG_SOCK_DNS;
	s->orig.addr = addr;
	s->orig.port = f.port;
	s->orig.family = sg_is_v4(&addr) ? SG_AF_INET : SG_AF_INET6;
	port = v.action == SG_REDIRECT ? policy->outbound : policy->dns;
	if (v.action == SG_REDIRECT && policy->tls) {
		port = policy->tls;
		s->flags |= SG_SOCK_RELAYED;
		s->keys = 0;
	}
	to = sg_loopback_for(&addr);
	sg_set_user_addr(ctx, v6, &to);
	ctx->user_port = bpf_htons(port);
	return SG_PROCEED;
}

SEC("cgroup/connect4")
int sg_connect4(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 0);
}

SEC("cgroup/connect6")
int sg_connect6(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 1);
}

SEC("cgroup/sendmsg4")
int sg_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 0);
}

SEC("cgroup/sendmsg6")
int sg_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sg_do_connect(ctx, 1);
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
	struct sg_policy *policy;

	if (!self || self->role != SG_ROLE_APP)
		return SG_PROCEED;
	policy = sg_policy_of(self->netns_cookie);
	if (!policy || !policy->dns || ctx->user_port != bpf_htons(policy->dns))
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
	struct sg_policy *policy;

	if (!self || self->role != SG_ROLE_SIDECAR)
		return SG_PROCEED;
	policy = sg_policy_of(self->netns_cookie);
	if (policy && (policy->flags & SG_POLICY_SOCKNAME) &&
	    ctx->user_port == bpf_htons(policy->outbound))
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

SG_INLINE int sg_do_bind(__u16 port, __u8 proto)
{
	struct sg_container *self = sg_self();
	struct sg_policy *policy;
	struct sg_seen what = {};
	struct sg_verdict v;

	if (!self)
		return SG_REJECT;
	policy = sg_policy_of(self->netns_cookie);
	if (!policy) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}
	v = sg_verdict_bind(self->role, port, policy);
	if (v.action != SG_DENY)
		return SG_PROCEED;
	what.dir = SG_DIR_INGRESS;
	what.proto = proto;
	what.port = port;
	return sg_refuse(policy, self, v.counter, &what, SG_EVENT_BIND, 0)
		       ? SG_PROCEED
		       : SG_REJECT;
}

SEC("cgroup/bind4")
int sg_bind4(struct bpf_sock_addr *ctx)
{
	return sg_do_bind(bpf_ntohs(ctx->user_port), ctx->protocol);
}

SEC("cgroup/bind6")
int sg_bind6(struct bpf_sock_addr *ctx)
{
	return sg_do_bind(bpf_ntohs(ctx->user_port), ctx->protocol);
}

/* bind to port 0 lets the kernel choose: this sees what it chose. */
SEC("cgroup/post_bind4")
int sg_post_bind4(struct bpf_sock *ctx)
{
	return sg_do_bind(ctx->src_port, ctx->protocol);
}

SEC("cgroup/post_bind6")
int sg_post_bind6(struct bpf_sock *ctx)
{
	return sg_do_bind(ctx->src_port, ctx->protocol);
}

#endif
