// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object for where BPF LSM is on (lsm=...,bpf). About UNIX sockets it knows
 * the other socket, and so whose it is and what name it is bound to, whatever
 * name, link or mount led there; that is attached to the cgroup of each
 * container whose policy asks for it. About sockets of all families it is asked
 * when they are made, by a container that its policy binds. The kernel runs it
 * for what is done by processes of the cgroup, whoever made the socket. (It
 * means to go by the socket, but up to 6.12 at least compares the type of a
 * pointer with that of a struct: bpf_lsm_find_cgroup_shim.)
 */
#include "unix.h"

/* What CO-RE needs of the kernel's types. */
struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

struct sock {
	__u16 sk_type;
	struct sock_cgroup_data sk_cgrp_data;
} __attribute__((preserve_access_index));

struct socket {
	struct sock *sk;
} __attribute__((preserve_access_index));

struct sockaddr_un {
	unsigned short sun_family;
	char sun_path[SG_UNIX_PATH];
} __attribute__((preserve_access_index));

struct unix_address {
	int len;
	struct sockaddr_un name[];
} __attribute__((preserve_access_index));

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
} __attribute__((preserve_access_index));

#define SG_CGROUP_DEPTH 32
#define SG_EAFNOSUPPORT 97

/*
 * The container whose cgroup the socket was made in, or in one below. Deeper
 * than SG_CGROUP_DEPTH below, it is nobody's.
 */
SG_NOINLINE struct sg_container *sg_container_of(struct sock *sk)
{
	struct cgroup *cg = BPF_CORE_READ(sk, sk_cgrp_data.cgroup);

	for (int i = 0; i < SG_CGROUP_DEPTH && cg; i++) {
		__u64 id = BPF_CORE_READ(cg, kn, id);
		struct sg_container *c = bpf_map_lookup_elem(&containers, &id);

		if (c)
			return c;
		cg = BPF_CORE_READ(cg, self.parent, cgroup);
	}
	return 0;
}

/* The name that the socket is bound to. 0, or -1 if it cannot be read. */
SG_INLINE int sg_unix_bound(struct sock *sk, struct sg_unix_name *n)
{
	struct unix_sock *u = (struct unix_sock *)sk;
	struct unix_address *addr = BPF_CORE_READ(u, addr);
	__u32 len = 0;

	if (addr) {
		len = BPF_CORE_READ(addr, len) - SG_SUN_PATH;
		/* A path has a 0 at its end there, which may be a byte more. */
		if (len > SG_UNIX_PATH)
			len = SG_UNIX_PATH;
		if (bpf_probe_read_kernel(n->b, len, addr->name[0].sun_path))
			return -1;
	}
	sg_unix_name_set(n, len, BPF_CORE_READ(sk, sk_type));
	return 0;
}

SG_INLINE int sg_unix_lsm(struct sock *sk, struct sock *other)
{
	struct unix_sock *u = (struct unix_sock *)other;
	struct sg_container *self = sg_self(), *c;
	struct sg_unix_name name = {};
	struct sg_policy *policy;
	struct sg_end peer = {};

	policy = sg_policy_of(self->netns_cookie);
	if (!policy)
		return SG_REJECT;
	c = sg_container_of(other);
	/* Its own sockets are a container's business: socket pairs for one. */
	if (c && c->cgroup_id == self->cgroup_id)
		return SG_PROCEED;
	/* Whoever has connected to this one wants to hear from it. */
	if (sk && BPF_CORE_READ(u, peer) == sk)
		return SG_PROCEED;
	if (sg_unix_bound(other, &name))
		return SG_REJECT;
	/* Of the same pod: what the policy calls it means nothing elsewhere. */
	if (c && c->netns_cookie == self->netns_cookie)
		sg_end_of(policy, c, &peer);
	return sg_unix_judge(policy, self, &name, &peer);
}

/* The arguments of the kernel's hooks, each in a word (lsm_hook_defs.h). */
struct sg_socket_create {
	__u64 family;
	__u64 type;
	__u64 protocol;
	__u64 kern;
};

struct sg_stream_connect {
	struct sock *sock;
	struct sock *other;
	struct sock *newsk;
};

struct sg_may_send {
	struct socket *sock;
	struct socket *other;
};

/*
 * socket(2) of any family, by a process of the container. cgroup/sock_create
 * sees AF_INET and AF_INET6 alone.
 */
SEC("lsm_cgroup/socket_create")
int sg_lsm_socket(struct sg_socket_create *ctx)
{
	struct sg_container *self = sg_self();
	struct sg_seen what = {
		.netns_cookie = self->netns_cookie,
		.cgroup_id = self->cgroup_id,
	};
	struct sg_how how = {
		.kind = SG_EVENT_SOCKET,
	};
	struct sg_policy *policy;
	struct sg_end end = {};
	struct sg_verdict v;

	if (ctx->kern)
		return SG_PROCEED; /* the kernel's own, for whatever reason */
	policy = sg_policy_of(self->netns_cookie);
	if (policy)
		sg_end_of(policy, self, &end);
	v = sg_verdict_family(self->role, end.flags, (__u32)ctx->family);
	if (v.action != SG_DENY)
		return SG_PROCEED;
	/* No record: mode audit cannot say which rule would let it. */
	what.reason = v.counter;
	if (policy) {
		how.revision = policy->revision;
		how.audit = !!(policy->flags & SG_POLICY_AUDIT);
	}
	sg_tell_task(&what, &how);
	sg_count(self->cgroup_id, how.audit ? SG_COUNT_AUDIT : v.counter);
	if (how.audit)
		return SG_PROCEED;
	/* As on a kernel without the family: libraries fall back. */
	bpf_set_retval(-SG_EAFNOSUPPORT);
	return SG_REJECT;
}

/* Of SOCK_STREAM and SOCK_SEQPACKET: other is the listener. */
SEC("lsm_cgroup/unix_stream_connect")
int sg_lsm_connect(struct sg_stream_connect *ctx)
{
	return sg_unix_lsm(ctx->sock, ctx->other);
}

/* Of SOCK_DGRAM: connect, and every datagram. */
SEC("lsm_cgroup/unix_may_send")
int sg_lsm_send(struct sg_may_send *ctx)
{
	struct socket *sock = ctx->sock, *other = ctx->other;

	return sg_unix_lsm(BPF_CORE_READ(sock, sk), BPF_CORE_READ(other, sk));
}

char _license[] SEC("license") = "Dual BSD/GPL";
