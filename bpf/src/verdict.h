/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * verdict.h: the decisions, as pure functions of plain structs. No context,
 * no map and no helper is used here, so that tests run each of them directly
 * (the kernel does not offer BPF_PROG_TEST_RUN for most of the hooks).
 */
#ifndef SIDEGATE_VERDICT_H
#define SIDEGATE_VERDICT_H

#include <linux/types.h>

#include "abi.h"

#define SG_INLINE static __attribute__((always_inline)) inline

#define SG_AF_UNIX 1
#define SG_AF_INET 2
#define SG_AF_INET6 10
#define SG_AF_KEY 15
#define SG_AF_NETLINK 16
#define SG_AF_PACKET 17
#define SG_AF_ALG 38
#define SG_AF_XDP 44

#define SG_SOCK_STREAM 1
#define SG_SOCK_DGRAM 2
#define SG_SOCK_RAW 3
#define SG_SOCK_SEQPACKET 5

#define SG_IPPROTO_ICMP 1
#define SG_IPPROTO_TCP 6
#define SG_IPPROTO_UDP 17
#define SG_IPPROTO_ICMPV6 58
#define SG_IPPROTO_SCTP 132
#define SG_IPPROTO_MPTCP 262

enum sg_action {
	SG_DENY = 0,
	SG_ALLOW = 1,
	SG_REDIRECT = 2, /* to the sidecar's outbound port */
	SG_REDIRECT_DNS = 3, /* to the sidecar's DNS port */
};

struct sg_verdict {
	__u32 action; /* enum sg_action */
	__u32 counter; /* enum sg_counter */
};

/* What the rules of both ends say of a packet or connection inside the pod. */
enum sg_inside {
	SG_INSIDE_ALLOW = 0,
	SG_INSIDE_EGRESS = 1, /* the sender may not */
	SG_INSIDE_INGRESS = 2, /* the receiver takes it from others only */
};

/* One side of a packet, or the destination of a connect or a datagram. */
struct sg_flow {
	__u8 proto; /* IPPROTO_* */
	__u8 local; /* the other end is inside the pod */
	__u8 fragment; /* not the first: has no ports */
	__u8 excluded; /* an exclusion lets this go round the sidecar */
	__u8 ruled; /* the container has rules */
	__u8 permitted; /* and one lets this, or what it answers, through */
	__u8 inside; /* enum sg_inside */
	__u8 loopback_device; /* the packet is on lo */
	__u16 port; /* of the other end */
	__u16 reserved;
	__u32 rule; /* connect: that excluded or permitted it, or 0 */
};

SG_INLINE struct sg_verdict sg_is(__u32 action, __u32 counter)
{
	struct sg_verdict v = {action, counter};

	return v;
}

/* 127.0.0.0/8 and ::1 and the unspecified addresses, which reach them. */
SG_INLINE int sg_is_loopback(const struct sg_addr *a)
{
	const __u8 *b = a->b;
	__u32 head = 0, tail;

	for (int i = 0; i < 10; i++)
		head |= b[i];
	if (head)
		return 0;
	tail = (__u32)b[12] << 24 | (__u32)b[13] << 16 | (__u32)b[14] << 8 |
	       b[15];
	if (b[10] == 0xff && b[11] == 0xff)
		return b[12] == 127 || tail == 0;
	return b[10] == 0 && b[11] == 0 && tail <= 1;
}

SG_INLINE int sg_is_v4(const struct sg_addr *a)
{
	const __u8 *b = a->b;
	__u32 head = 0;

	for (int i = 0; i < 10; i++)
		head |= b[i];
	return !head && b[10] == 0xff && b[11] == 0xff;
}

/* Hides from the compiler what x is, or it makes branches of the below. */
SG_INLINE __u32 sg_opaque(__u32 x)
{
	asm volatile("" : "+r"(x));
	return x;
}

/*
 * 1 if first to last is within lo to hi, else 0. Without a branch: BPF has no
 * conditional set, and a loop over ranges with two branches each would double
 * the verifier's work at every step.
 */
SG_INLINE __u32 sg_within(__u32 first, __u32 last, __u32 lo, __u32 hi)
{
	return 1 ^ (sg_opaque((first - lo) | (hi - last)) >> 31);
}

/* Whether port belongs to the sidecar. */
SG_INLINE int sg_is_reserved(const struct sg_policy *policy, __u16 port)
{
	__u32 hit = 0;

	for (__u32 i = 0; i < SG_MAX_RESERVED; i++) {
		const struct sg_ports *p = &policy->reserved[i];

		hit |= sg_within(i, i, 0, (__u32)policy->nreserved - 1) &
		       sg_within(port, port, p->lo, p->hi);
	}
	return hit;
}

/* Whether the role may have traffic at all. */
SG_INLINE struct sg_verdict sg_verdict_role(__u32 role)
{
	switch (role) {
	case SG_ROLE_APP:
	case SG_ROLE_SIDECAR:
	case SG_ROLE_EXEMPT:
		break;
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	return sg_is(SG_ALLOW, 0);
}

/* socket(2) of a container that has rules: what they are about. */
SG_INLINE struct sg_verdict sg_verdict_socket_ruled(__u32 flags, __u32 type,
						    __u32 proto)
{
	if (type == SG_SOCK_STREAM && proto == SG_IPPROTO_TCP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_DGRAM && proto == SG_IPPROTO_UDP)
		return sg_is(SG_ALLOW, 0);
	if (proto == SG_IPPROTO_ICMP || proto == SG_IPPROTO_ICMPV6) {
		__u32 need = proto == SG_IPPROTO_ICMP ? SG_SUBJECT_ICMP
						      : SG_SUBJECT_ICMPV6;

		return flags & need ? sg_is(SG_ALLOW, 0)
				    : sg_is(SG_DENY, SG_DROP_ICMP);
	}
	if (type == SG_SOCK_RAW)
		return sg_is(SG_DENY, SG_DROP_RAW);
	if (proto == SG_IPPROTO_SCTP && (flags & SG_SUBJECT_SCTP))
		return sg_is(SG_ALLOW, 0);
	return sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

/*
 * socket(2): family is AF_INET or AF_INET6, no other passes the hook. stranger
 * is a task that is not the container's, flags are the container's (enum
 * sg_subject_flags), process_ok that its executable may.
 */
SG_INLINE struct sg_verdict sg_verdict_socket(__u32 role, int stranger,
					      __u32 flags, int process_ok,
					      __u32 type, __u32 proto,
					      const struct sg_policy *policy)
{
	struct sg_verdict v = sg_verdict_role(role);

	if (v.action == SG_DENY)
		return v;
	if (stranger)
		return sg_is(SG_DENY, SG_DROP_STRANGER);
	if ((flags & SG_SUBJECT_PROCESSES) && !process_ok)
		return sg_is(SG_DENY, SG_DROP_PROCESS);
	if (flags & SG_SUBJECT_RULED)
		return sg_verdict_socket_ruled(flags, type, proto);
	/* No map of sockets takes its subflows, and none passes sock_create. */
	if (type == SG_SOCK_STREAM && proto == SG_IPPROTO_MPTCP)
		return sg_is(SG_DENY, SG_DROP_PROTOCOL);
	if (role != SG_ROLE_APP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_STREAM && proto == SG_IPPROTO_TCP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_DGRAM && proto == SG_IPPROTO_UDP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_DGRAM &&
	    (proto == SG_IPPROTO_ICMP || proto == SG_IPPROTO_ICMPV6))
		return policy->flags & SG_POLICY_NON_TCP
			       ? sg_is(SG_ALLOW, 0)
			       : sg_is(SG_DENY, SG_DROP_ICMP);
	if (type == SG_SOCK_RAW)
		return sg_is(SG_DENY, SG_DROP_RAW);
	return sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

/* Families that lead nowhere but where other hooks look, or nowhere at all. */
#define SG_FAMILIES                                                            \
	(1ull << SG_AF_UNIX | 1ull << SG_AF_INET | 1ull << SG_AF_INET6 |       \
	 1ull << SG_AF_KEY | 1ull << SG_AF_NETLINK | 1ull << SG_AF_PACKET |    \
	 1ull << SG_AF_ALG | 1ull << SG_AF_XDP)

/*
 * socket(2) of any family, where BPF LSM is on. The others leave the container
 * in ways of their own: AF_VSOCK to the host, AF_RDS and AF_SMC by connections
 * that the kernel makes, AF_TIPC, ... role and flags are those of
 * sg_verdict_socket.
 */
SG_INLINE struct sg_verdict sg_verdict_family(__u32 role, __u32 flags,
					      __u32 family)
{
	int free = role == SG_ROLE_SIDECAR || role == SG_ROLE_EXEMPT;

	if (free && !(flags & SG_SUBJECT_RULED))
		return sg_is(SG_ALLOW, 0);
	if (family < 64 && (SG_FAMILIES & (1ull << family)))
		return sg_is(SG_ALLOW, 0);
	return sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

SG_INLINE struct sg_verdict sg_verdict_inside(__u32 inside, __u32 counter)
{
	switch (inside) {
	case SG_INSIDE_ALLOW:
		return sg_is(SG_ALLOW, counter);
	case SG_INSIDE_EGRESS:
		return sg_is(SG_DENY, SG_DROP_POLICY_EGRESS);
	default:
		return sg_is(SG_DENY, SG_DROP_POLICY_INGRESS);
	}
}

/* connect(2) and sendmsg(2) with an address. */
SG_INLINE struct sg_verdict sg_verdict_connect(__u32 role,
					       const struct sg_flow *f,
					       const struct sg_policy *policy)
{
	int direct = f->ruled || (policy->flags & SG_POLICY_NON_TCP);
	struct sg_verdict v = sg_verdict_role(role);

	if (v.action == SG_DENY)
		return v;
	if (f->local)
		return sg_verdict_inside(f->inside, SG_COUNT_LOCAL);
	if (f->ruled && !f->permitted)
		return sg_is(SG_DENY, SG_DROP_POLICY_EGRESS);
	if (role != SG_ROLE_APP || f->excluded)
		return sg_is(SG_ALLOW, SG_COUNT_DIRECT);
	if (f->proto == SG_IPPROTO_TCP)
		return sg_is(SG_REDIRECT, SG_COUNT_REDIRECT);
	if (f->proto == SG_IPPROTO_UDP && f->port == 53 && policy->dns)
		return sg_is(SG_REDIRECT_DNS, SG_COUNT_DNS);
	if (f->proto == SG_IPPROTO_UDP)
		return direct ? sg_is(SG_ALLOW, SG_COUNT_DIRECT)
			      : sg_is(SG_DENY, SG_DROP_UDP);
	if (f->proto == SG_IPPROTO_ICMP || f->proto == SG_IPPROTO_ICMPV6)
		return direct ? sg_is(SG_ALLOW, SG_COUNT_DIRECT)
			      : sg_is(SG_DENY, SG_DROP_ICMP);
	return f->ruled ? sg_is(SG_ALLOW, SG_COUNT_DIRECT)
			: sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

/* bind(2), and the port that the kernel chose for it. */
SG_INLINE struct sg_verdict sg_verdict_bind(__u32 role, __u16 port,
					    const struct sg_policy *policy)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
		/* Not even: it would get what nobody has judged. */
		return port && port == policy->tls
			       ? sg_is(SG_DENY, SG_DROP_BIND)
			       : sg_is(SG_ALLOW, 0);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
	case SG_ROLE_EXEMPT:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (port && sg_is_reserved(policy, port))
		return sg_is(SG_DENY, SG_DROP_BIND);
	return sg_is(SG_ALLOW, 0);
}

SG_INLINE int sg_non_tcp(__u8 proto)
{
	return proto == SG_IPPROTO_UDP || proto == SG_IPPROTO_ICMP ||
	       proto == SG_IPPROTO_ICMPV6;
}

/*
 * A packet of a container's socket, by what let its connection or datagram
 * through. drop counts what nothing did, drop_policy what no rule did. What
 * stays in the pod is judged where it arrives, and on its way out if it has no
 * such place.
 */
SG_INLINE struct sg_verdict sg_verdict_packet(__u32 role,
					      const struct sg_flow *f,
					      const struct sg_policy *policy,
					      __u32 drop, __u32 drop_policy)
{
	struct sg_verdict v = sg_verdict_role(role);

	if (v.action == SG_DENY)
		return v;
	if (f->local)
		return sg_verdict_inside(f->inside, 0);
	if (f->ruled && !f->permitted)
		return sg_is(SG_DENY,
			     f->fragment ? SG_DROP_FRAGMENT : drop_policy);
	if (role != SG_ROLE_APP || f->excluded)
		return sg_is(SG_ALLOW, 0);
	/* What the sidecar cannot carry. */
	if (!f->loopback_device &&
	    (f->ruled ? f->proto != SG_IPPROTO_TCP
		      : (policy->flags & SG_POLICY_NON_TCP) &&
				sg_non_tcp(f->proto)))
		return sg_is(SG_ALLOW, 0);
	return sg_is(SG_DENY, f->fragment ? SG_DROP_FRAGMENT : drop);
}

/*
 * A packet that a socket of the container sends. Second line behind connect
 * and sendmsg, and the only one for whatever does not pass them.
 */
SG_INLINE struct sg_verdict
sg_verdict_packet_out(__u32 role, const struct sg_flow *f,
		      const struct sg_policy *policy)
{
	return sg_verdict_packet(role, f, policy, SG_DROP_EGRESS,
				 SG_DROP_POLICY_EGRESS);
}

/* A packet that a socket of the container is about to receive. */
SG_INLINE struct sg_verdict sg_verdict_packet_in(__u32 role,
						 const struct sg_flow *f,
						 const struct sg_policy *policy)
{
	return sg_verdict_packet(role, f, policy, SG_DROP_INGRESS,
				 SG_DROP_POLICY_INGRESS);
}

/* Where the lookup of a listening socket is steered. */
enum sg_steer {
	SG_STEER_NONE = 0, /* the kernel's own lookup */
	SG_STEER_INBOUND = 1, /* the sidecar's inbound listener, or refuse */
	SG_STEER_OUTBOUND = 2, /* the sidecar's outbound listener, or refuse */
	SG_STEER_REFUSE = 3,
	SG_STEER_TLS = 4, /* the relay's listener, or refuse */
};

/*
 * A TCP segment that found no connection. Ports of the sidecar other than the
 * redirect ports (metrics, health) are its own business: nobody else in the
 * pod may bind them.
 */
SG_INLINE __u32 sg_verdict_steer(__u16 port, int from_outside, int excluded,
				 const struct sg_policy *policy)
{
	if (policy->tls && port == policy->tls)
		return from_outside ? SG_STEER_REFUSE : SG_STEER_TLS;
	if (!from_outside) {
		if (port == policy->outbound)
			return SG_STEER_OUTBOUND;
		if (port == policy->inbound)
			return SG_STEER_INBOUND;
		return SG_STEER_NONE;
	}
	if (port == policy->outbound || (policy->dns && port == policy->dns))
		return SG_STEER_REFUSE;
	if (port == policy->inbound)
		return SG_STEER_INBOUND;
	if (excluded || sg_is_reserved(policy, port))
		return SG_STEER_NONE;
	return SG_STEER_INBOUND;
}

/*
 * The guard: a socket of a managed pod's namespace lives only while the
 * container that made it is registered for that pod.
 */
SG_INLINE int sg_verdict_guard(__u64 netns_cookie, const struct sg_sock *s,
			       const struct sg_container *c)
{
	return s && c && s->role != SG_ROLE_DEAD &&
	       s->netns_cookie == netns_cookie &&
	       c->netns_cookie == netns_cookie && c->cgroup_id == s->cgroup_id;
}

#endif
