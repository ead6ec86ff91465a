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

#define SG_AF_INET 2
#define SG_AF_INET6 10
#define SG_AF_PACKET 17

#define SG_SOCK_STREAM 1
#define SG_SOCK_DGRAM 2
#define SG_SOCK_RAW 3

#define SG_IPPROTO_ICMP 1
#define SG_IPPROTO_TCP 6
#define SG_IPPROTO_UDP 17
#define SG_IPPROTO_ICMPV6 58

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

/* One side of a packet, or the destination of a connect or a datagram. */
struct sg_flow {
	__u8 proto; /* IPPROTO_* */
	__u8 local; /* the other end is inside the pod: loopback or own address
		     */
	__u8 fragment; /* not the first: has no ports */
	__u8 egress_rule; /* a rule lets the app reach the other end */
	__u8 ingress_rule; /* a rule lets the other end reach the app */
	__u8 loopback_device; /* the packet is on lo */
	__u16 port; /* of the other end */
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

/* 1 if a equals b, else 0, of numbers below 2^31. */
SG_INLINE __u32 sg_equal(__u32 a, __u32 b)
{
	return sg_opaque((a ^ b) - 1) >> 31;
}

/* Whether port belongs to the sidecar. */
SG_INLINE int sg_is_reserved(const struct sg_pod *pod, __u16 port)
{
	__u32 hit = 0;

	for (__u32 i = 0; i < SG_MAX_RESERVED; i++) {
		const struct sg_ports *p = &pod->reserved[i];

		hit |= sg_within(i, i, 0, (__u32)pod->nreserved - 1) &
		       sg_within(port, port, p->lo, p->hi);
	}
	return hit;
}

/*
 * Whether a rule allows proto and port. Rules are about TCP and UDP. A
 * fragment that carries no port needs a range of all ports.
 */
SG_INLINE int sg_rule_allows(const struct sg_rule *r, __u8 proto, __u16 port,
			     int fragment)
{
	__u32 first = fragment ? 1 : port;
	__u32 last = fragment ? 0xffff : port;
	__u32 hit = 0;

	if (proto != SG_IPPROTO_TCP && proto != SG_IPPROTO_UDP)
		return 0;
	for (__u32 i = 0; i < SG_MAX_RULE_PORTS; i++) {
		const struct sg_rule_port *p = &r->p[i];

		hit |= sg_within(i, i, 0, r->n - 1) &
		       (sg_equal(p->proto, SG_PROTO_ANY) |
			sg_equal(p->proto, proto)) &
		       sg_within(first, last, p->lo, p->hi);
	}
	return hit;
}

/* socket(2): family is AF_INET or AF_INET6, no other passes the hook. */
SG_INLINE struct sg_verdict sg_verdict_socket(__u32 role, __u32 type,
					      __u32 proto, int non_tcp_allow)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
	case SG_ROLE_EXEMPT:
		return sg_is(SG_ALLOW, 0);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (type == SG_SOCK_STREAM && proto == SG_IPPROTO_TCP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_DGRAM && proto == SG_IPPROTO_UDP)
		return sg_is(SG_ALLOW, 0);
	if (type == SG_SOCK_DGRAM &&
	    (proto == SG_IPPROTO_ICMP || proto == SG_IPPROTO_ICMPV6))
		return non_tcp_allow ? sg_is(SG_ALLOW, 0)
				     : sg_is(SG_DENY, SG_DROP_ICMP);
	if (type == SG_SOCK_RAW)
		return sg_is(SG_DENY, SG_DROP_RAW);
	return sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

/* connect(2) and sendmsg(2) with an address. */
SG_INLINE struct sg_verdict sg_verdict_connect(__u32 role,
					       const struct sg_flow *f,
					       const struct sg_pod *pod)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
	case SG_ROLE_EXEMPT:
		return sg_is(SG_ALLOW, SG_COUNT_DIRECT);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (f->local)
		return sg_is(SG_ALLOW, SG_COUNT_LOCAL);
	if (f->egress_rule)
		return sg_is(SG_ALLOW, SG_COUNT_DIRECT);
	if (f->proto == SG_IPPROTO_TCP)
		return sg_is(SG_REDIRECT, SG_COUNT_REDIRECT);
	if (f->proto == SG_IPPROTO_UDP && f->port == 53 && pod->dns)
		return sg_is(SG_REDIRECT_DNS, SG_COUNT_DNS);
	if (f->proto == SG_IPPROTO_UDP)
		return (pod->flags & SG_POD_NON_TCP)
			       ? sg_is(SG_ALLOW, SG_COUNT_DIRECT)
			       : sg_is(SG_DENY, SG_DROP_UDP);
	if (f->proto == SG_IPPROTO_ICMP || f->proto == SG_IPPROTO_ICMPV6)
		return (pod->flags & SG_POD_NON_TCP)
			       ? sg_is(SG_ALLOW, SG_COUNT_DIRECT)
			       : sg_is(SG_DENY, SG_DROP_ICMP);
	return sg_is(SG_DENY, SG_DROP_PROTOCOL);
}

/* bind(2), and the port that the kernel chose for it. */
SG_INLINE struct sg_verdict sg_verdict_bind(__u32 role, __u16 port,
					    const struct sg_pod *pod)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
		return sg_is(SG_ALLOW, 0);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
	case SG_ROLE_EXEMPT:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (port && sg_is_reserved(pod, port))
		return sg_is(SG_DENY, SG_DROP_BIND);
	return sg_is(SG_ALLOW, 0);
}

SG_INLINE int sg_non_tcp(__u8 proto)
{
	return proto == SG_IPPROTO_UDP || proto == SG_IPPROTO_ICMP ||
	       proto == SG_IPPROTO_ICMPV6;
}

/*
 * A packet that a socket of the container sends. Second line behind connect
 * and sendmsg, and the only one for whatever does not pass them.
 */
SG_INLINE struct sg_verdict sg_verdict_packet_out(__u32 role,
						  const struct sg_flow *f,
						  const struct sg_pod *pod)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
	case SG_ROLE_EXEMPT:
		return sg_is(SG_ALLOW, 0);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (f->loopback_device && f->local)
		return sg_is(SG_ALLOW, 0);
	if (f->egress_rule || f->ingress_rule)
		return sg_is(SG_ALLOW, 0);
	if ((pod->flags & SG_POD_NON_TCP) && sg_non_tcp(f->proto) &&
	    !f->loopback_device)
		return sg_is(SG_ALLOW, 0);
	return sg_is(SG_DENY, f->fragment ? SG_DROP_FRAGMENT : SG_DROP_EGRESS);
}

/* A packet that a socket of the container is about to receive. */
SG_INLINE struct sg_verdict sg_verdict_packet_in(__u32 role,
						 const struct sg_flow *f,
						 const struct sg_pod *pod)
{
	switch (role) {
	case SG_ROLE_SIDECAR:
	case SG_ROLE_EXEMPT:
		return sg_is(SG_ALLOW, 0);
	case SG_ROLE_DENIED:
		return sg_is(SG_DENY, SG_DROP_INIT);
	case SG_ROLE_APP:
		break;
	default:
		return sg_is(SG_DENY, SG_DROP_UNREGISTERED);
	}
	if (f->loopback_device)
		return sg_is(SG_ALLOW, 0);
	if (f->egress_rule || f->ingress_rule)
		return sg_is(SG_ALLOW, 0);
	if ((pod->flags & SG_POD_NON_TCP) && sg_non_tcp(f->proto))
		return sg_is(SG_ALLOW, 0);
	return sg_is(SG_DENY, f->fragment ? SG_DROP_FRAGMENT : SG_DROP_INGRESS);
}

/* Where the lookup of a listening socket is steered. */
enum sg_steer {
	SG_STEER_NONE = 0, /* the kernel's own lookup */
	SG_STEER_INBOUND = 1, /* the sidecar's inbound listener, or refuse */
	SG_STEER_OUTBOUND = 2, /* the sidecar's outbound listener, or refuse */
	SG_STEER_REFUSE = 3,
};

/*
 * A TCP segment that found no connection. Ports of the sidecar other than the
 * redirect ports (metrics, health) are its own business: nobody else in the
 * pod may bind them.
 */
SG_INLINE __u32 sg_verdict_steer(__u16 port, int from_outside, int ingress_rule,
				 const struct sg_pod *pod)
{
	if (!from_outside) {
		if (port == pod->outbound)
			return SG_STEER_OUTBOUND;
		if (port == pod->inbound)
			return SG_STEER_INBOUND;
		return SG_STEER_NONE;
	}
	if (port == pod->outbound || (pod->dns && port == pod->dns))
		return SG_STEER_REFUSE;
	if (port == pod->inbound)
		return SG_STEER_INBOUND;
	if (ingress_rule || sg_is_reserved(pod, port))
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
