/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* sock.h: birth of a socket, its TCP events, and getsockopt. */
#ifndef SIDEGATE_SOCK_H
#define SIDEGATE_SOCK_H

#include "common.h"
#include "ends.h"
#include "task.h"
#include "tuple.h"

#define SG_EPROTONOSUPPORT 93

SEC("cgroup/sock_create")
int sg_sock_create(struct bpf_sock *ctx)
{
	struct sg_container *self = sg_self();
	__u32 role = SG_ROLE_DEAD;
	struct sg_policy *policy;
	struct sg_seen what = {};
	struct sg_policy none = {};
	struct sg_end end = {};
	struct sg_verdict v;
	struct sg_sock *s;
	int stranger = 0, ok = 1;

	if (!self)
		return SG_REJECT;
	policy = sg_policy_of(self->netns_cookie);
	if (policy) {
		role = self->role;
		stranger = !sg_task_ok(self);
		sg_end_of(policy, self, &end);
		if (end.flags & SG_SUBJECT_PROCESSES)
			ok = sg_process_ok(self->cgroup_id);
	}
	v = sg_verdict_socket(role, stranger, end.flags, ok, ctx->type,
			      ctx->protocol, policy ? policy : &none);
	if (v.action == SG_DENY) {
		what.proto = ctx->protocol;
		/*
		 * Even under audit: connections are not steered to a listener
		 * of a protocol that steering does not know, but pass it by.
		 */
		if (role == SG_ROLE_SIDECAR && v.counter == SG_DROP_PROTOCOL)
			sg_count(self->cgroup_id, v.counter);
		else if (sg_refuse(policy, self, v.counter, &what,
				   SG_EVENT_SOCKET, 0))
			goto record;
		/* As on a kernel without the protocol: libraries fall back. */
		if (v.counter == SG_DROP_PROTOCOL)
			bpf_set_retval(-SG_EPROTONOSUPPORT);
		return SG_REJECT;
	}
record:
	s = bpf_sk_storage_get(&socks, ctx, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		sg_count(self->cgroup_id, SG_DROP_NO_MEMORY);
		return SG_REJECT;
	}
	sg_sock_init(s, self);
	s->pid = bpf_get_current_pid_tgid() >> 32;
	return SG_PROCEED;
}

/* 0 if origdst has the connection now. A tuple that was left is used again. */
SG_INLINE int sg_origdst_put(const struct sg_tuple *t, const struct sg_route *o)
{
	__u64 *n = bpf_map_lookup_elem(&pending, &t->netns_cookie);

	if (!n)
		return -1;
	if (!bpf_map_update_elem(&origdst, t, o, BPF_EXIST))
		return 0;
	if (__sync_fetch_and_add(n, 1) < SG_MAX_PENDING &&
	    !bpf_map_update_elem(&origdst, t, o, BPF_NOEXIST))
		return 0;
	__sync_fetch_and_add(n, -1);
	return -1;
}

SG_INLINE void sg_origdst_delete(const struct sg_tuple *t)
{
	__u64 *n = bpf_map_lookup_elem(&pending, &t->netns_cookie);

	/* Of two that delete it, one succeeds. */
	if (!bpf_map_delete_elem(&origdst, t) && n)
		__sync_fetch_and_add(n, -1);
}

/*
 * The SYN of a connection that was redirected is about to be sent: its source
 * port is known now.
 */
SG_INLINE void sg_ops_connect(struct bpf_sock_ops *ctx, struct sg_sock *s)
{
	int relay = s->role == SG_ROLE_RELAY;
	struct sg_route route = {
		.orig = s->orig,
		.pid = s->pid,
		.cgroup_id = relay ? s->app : s->cgroup_id,
	};
	struct sg_tuple t;

	if (!(s->flags & SG_SOCK_REDIRECTED))
		return;
	sg_ops_tuple(ctx, s->netns_cookie, 0, &t);
	if (sg_origdst_put(&t, &route)) {
		/* sg_egress stops the SYN: the flag below is not set. */
		sg_count(s->cgroup_id, SG_DROP_ORIGDST_FULL);
		return;
	}
	s->flags |= SG_SOCK_ORIGDST;
	bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
}

SG_INLINE void sg_ops_state(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
			    struct sg_sock *s)
{
	struct sg_tuple t;

	if (ctx->args[1] != BPF_TCP_CLOSE)
		return;
	if (sk)
		sg_ops_gone(sk);
	if (!(s->flags & SG_SOCK_ORIGDST))
		return;
	sg_ops_tuple(ctx, s->netns_cookie, 0, &t);
	sg_origdst_delete(&t);
}

/* The sidecar's new connection learns where it came from. */
SG_INLINE void sg_ops_accept(struct bpf_sock_ops *ctx, struct sg_sock *s,
			     const struct sg_policy *policy)
{
	struct sg_seen what = {
		.netns_cookie = s->netns_cookie,
		.cgroup_id = s->cgroup_id,
		.proto = SG_IPPROTO_TCP,
	};
	struct sg_how how = {
		.kind = SG_EVENT_ACCEPT,
		.revision = policy->revision,
		.pid = s->pid,
	};
	struct sg_route *route;
	struct sg_tuple t;

	s->flags |= SG_SOCK_PASSIVE;
	s->orig.family = 0; /* the listener's own, if it ever had one */
	if (s->role != SG_ROLE_SIDECAR)
		return;
	sg_ops_tuple(ctx, s->netns_cookie, 1, &t);
	route = bpf_map_lookup_elem(&origdst, &t);
	if (route) {
		s->orig = route->orig;
		what.addr = s->orig.addr;
		what.port = s->orig.port;
		what.peer = route->cgroup_id;
		what.reason = SG_COUNT_ACCEPT_OUT;
		sg_origdst_delete(&t);
	} else if (ctx->local_port != policy->outbound) {
		what.addr = t.saddr;
		what.port = t.dport;
		what.dir = SG_DIR_INGRESS;
		what.reason = SG_COUNT_ACCEPT_IN;
	} else {
		return;
	}
	sg_count(s->cgroup_id, what.reason);
	sg_tell(&what, &how);
}

/* All of them: which ports are the redirect ports, a policy may change. */
SG_INLINE void sg_ops_listen(struct bpf_sock_ops *ctx, struct sg_sock *s)
{
	struct sg_listener_key key = {};

	if (s->role != SG_ROLE_SIDECAR)
		return;
	key.netns_cookie = s->netns_cookie;
	key.port = ctx->local_port;
	key.ipv6 = ctx->family == SG_AF_INET6;
	for (int i = 0; i < SG_LISTENER_SLOTS; i++) {
		key.slot = i;
		if (!bpf_sock_hash_update(ctx, &listeners, &key, BPF_NOEXIST))
			return;
	}
}

/*
 * Whether a socket without a record is the container's: a subflow of MPTCP,
 * which the kernel makes, or a socket that is older than its programs.
 * listen(2) says who asks; connect(2) was judged. What a listener accepts has
 * its record.
 */
SG_INLINE int sg_ops_finds(__u32 op, const struct sg_container *self)
{
	if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		return sg_task_ok(self);
	return op == BPF_SOCK_OPS_TCP_CONNECT_CB;
}

SEC("sockops")
int sg_sockops(struct bpf_sock_ops *ctx)
{
	struct sg_container *self;
	struct bpf_sock *sk;
	struct sg_policy *policy;
	struct sg_sock *s;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
	case BPF_SOCK_OPS_STATE_CB:
		break;
	default:
		return 1;
	}
	self = sg_self();
	sk = ctx->sk;
	if (!self || !sk)
		return 1;
	s = bpf_sk_storage_get(&socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 1;
	if (!s->cgroup_id) {
		if (!sg_ops_finds(ctx->op, self))
			return 1;
		sg_sock_init(s, self);
	}
	/* A listener in a namespace that is not the pod's serves nobody. */
	if (bpf_get_netns_cookie(ctx) != s->netns_cookie)
		return 1;
	policy = sg_policy_of(s->netns_cookie);
	if (!policy)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		sg_ops_connect(ctx, s);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		sg_ops_active(ctx, sk, s, self, policy);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sg_ops_accept(ctx, s, policy);
		sg_ops_passive(ctx, sk, s, self, policy);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sg_ops_listen(ctx, s);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		sg_ops_state(ctx, sk, s);
		break;
	}
	return 1;
}

/* Both are 80: linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h. */
#define SG_SO_ORIGINAL_DST 80
#define SG_SOL_IP 0
#define SG_SOL_IPV6 41

#define SG_EINVAL 22

struct sg_sockaddr_in {
	__u16 family;
	__be16 port;
	__be32 addr;
	__u8 zero[8];
};

struct sg_sockaddr_in6 {
	__u16 family;
	__be16 port;
	__be32 flowinfo;
	struct sg_addr addr;
	__u32 scope_id;
};

/*
 * Where a connection of the sidecar went before anything rewrote it, as
 * netfilter's conntrack would know it: of an accepted one its destination,
 * also where that is simply its local address; of one it opened, its peer.
 */
SG_INLINE int sg_original_dst(struct bpf_sock *sk, const struct sg_sock *s,
			      struct sg_orig *o)
{
	int passive = s->flags & SG_SOCK_PASSIVE;
	__u16 lport = sk->src_port, rport = bpf_ntohs(sk->dst_port);
	__u32 local4 = sk->src_ip4, remote4 = sk->dst_ip4;
	struct sg_addr local = sg_addr6(sk->src_ip6[0], sk->src_ip6[1],
					sk->src_ip6[2], sk->src_ip6[3]);
	struct sg_addr remote = sg_addr6(sk->dst_ip6[0], sk->dst_ip6[1],
					 sk->dst_ip6[2], sk->dst_ip6[3]);

	sg_barrier();
	if (s->orig.family) {
		*o = s->orig;
		return 0;
	}
	switch (sk->state) {
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_FIN_WAIT1:
	case BPF_TCP_FIN_WAIT2:
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		break;
	default:
		return -1;
	}
	if (sk->family == SG_AF_INET) {
		local = sg_addr4(local4);
		remote = sg_addr4(remote4);
	}
	o->addr = passive ? local : remote;
	o->port = passive ? lport : rport;
	o->family = sg_is_v4(&o->addr) ? SG_AF_INET : SG_AF_INET6;
	return 0;
}

SEC("cgroup/getsockopt")
int sg_getsockopt(struct bpf_sockopt *ctx)
{
	__s32 len = ctx->optlen;
	struct bpf_sock *sk = ctx->sk;
	void *end = ctx->optval_end;
	void *val = ctx->optval;
	struct sg_orig o = {};
	struct sg_sock *s;

	if (ctx->optname != SG_SO_ORIGINAL_DST ||
	    (ctx->level != SG_SOL_IP && ctx->level != SG_SOL_IPV6))
		goto untouched;
	if (!sk || sk->protocol != SG_IPPROTO_TCP)
		goto untouched;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (!s || s->role != SG_ROLE_SIDECAR)
		goto untouched;
	if (sg_original_dst(sk, s, &o))
		goto untouched;
	if (ctx->level == SG_SOL_IP) {
		struct sg_sockaddr_in *sin = val;

		if (o.family != SG_AF_INET)
			goto untouched;
		if (len < (__s32)sizeof(*sin) || (void *)(sin + 1) > end)
			goto too_short;
		__builtin_memset(sin, 0, sizeof(*sin));
		sin->family = SG_AF_INET;
		sin->port = bpf_htons(o.port);
		__builtin_memcpy(&sin->addr, &o.addr.b[12], 4);
		ctx->optlen = sizeof(*sin);
	} else {
		struct sg_sockaddr_in6 *sin6 = val;

		if (o.family != SG_AF_INET6)
			goto untouched;
		if (len < (__s32)sizeof(*sin6) || (void *)(sin6 + 1) > end)
			goto too_short;
		__builtin_memset(sin6, 0, sizeof(*sin6));
		sin6->family = SG_AF_INET6;
		sin6->port = bpf_htons(o.port);
		sin6->addr = o.addr;
		ctx->optlen = sizeof(*sin6);
	}
	ctx->retval = 0;
	return 1;

too_short:
	bpf_set_retval(-SG_EINVAL);
untouched:
	/* 0: the kernel keeps its own value and length, of any size. */
	ctx->optlen = 0;
	return 1;
}

#endif
