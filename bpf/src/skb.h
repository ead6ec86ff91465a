/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* skb.h: every packet of a container's sockets, both ways. */
#ifndef SIDEGATE_SKB_H
#define SIDEGATE_SKB_H

#include "packet.h"

#define SG_CGROUP_LO_IFINDEX 1

/* Who sent a packet that arrives from inside the pod. */
struct sg_sender {
	__u64 cgroup_id; /* 0: nobody has that socket; 1: no container */
	__u32 flags; /* enum sg_sock_flags of the socket */
	__u32 reserved;
};

/* The socket that the packet's source is the local end of. */
SG_NOINLINE void sg_sender_of(struct __sk_buff *skb, const struct sg_packet *p,
			      struct sg_sender *from)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv6);
	struct bpf_sock *sk;
	struct sg_sock *s;

	if (sg_is_v4(&p->saddr)) {
		size = sizeof(t.ipv4);
		__builtin_memcpy(&t.ipv4.saddr, &p->daddr.b[12], 4);
		__builtin_memcpy(&t.ipv4.daddr, &p->saddr.b[12], 4);
		t.ipv4.sport = bpf_htons(p->dport);
		t.ipv4.dport = bpf_htons(p->sport);
	} else {
		__builtin_memcpy(t.ipv6.saddr, &p->daddr, 16);
		__builtin_memcpy(t.ipv6.daddr, &p->saddr, 16);
		t.ipv6.sport = bpf_htons(p->dport);
		t.ipv6.dport = bpf_htons(p->sport);
	}
	from->cgroup_id = 0;
	from->flags = 0;
	if (p->proto == SG_IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return;
	/* Not its client: that one is gone, and its port is another's. */
	if (p->proto == SG_IPPROTO_TCP && sk->state == BPF_TCP_LISTEN)
		goto release;
	from->cgroup_id = 1;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (s && s->cgroup_id) {
		from->cgroup_id = s->cgroup_id;
		from->flags = s->flags;
	}
release:
	bpf_sk_release(sk);
}

/* The record of the packet's own socket, or NULL. */
SG_INLINE struct sg_sock *sg_sock_of_skb(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	return bpf_sk_storage_get(&socks, sk, 0, 0);
}

/* Whether the packet's own socket has this flag (enum sg_sock_flags). */
SG_INLINE int sg_sock_has(struct __sk_buff *skb, __u32 flag)
{
	struct sg_sock *s = sg_sock_of_skb(skb);

	return s && (s->flags & flag);
}

/*
 * A packet from inside the pod: here both ends are known for certain, and so
 * here it is decided. Of TCP that is the first packet of a connection.
 */
SG_INLINE __u32 sg_arrives(struct __sk_buff *skb,
			   const struct sg_policy *policy,
			   const struct sg_end *self, const struct sg_packet *p,
			   __u64 *peer)
{
	int ruled = self->flags & SG_SUBJECT_RULED;
	struct sg_inside_query in = {
		.revision = policy->revision,
		.proto = p->proto,
		.port = p->dport,
	};
	struct sg_sender from = {};
	struct sg_container *c;
	__u32 verdict;

	if (p->proto == SG_IPPROTO_TCP && !sg_is_syn(p))
		return SG_INSIDE_ALLOW;
	if (sg_is_icmp(p))
		return SG_INSIDE_ALLOW; /* sg_sock_create has judged it */
	if (p->proto != SG_IPPROTO_TCP && p->proto != SG_IPPROTO_UDP)
		return ruled ? SG_INSIDE_INGRESS : SG_INSIDE_ALLOW;
	sg_sender_of(skb, p, &from);
	*peer = from.cgroup_id;
	if (!from.cgroup_id)
		return policy->flags & SG_POLICY_RULED ? SG_INSIDE_EGRESS
						       : SG_INSIDE_ALLOW;
	if (p->proto == SG_IPPROTO_TCP && (from.flags & SG_SOCK_REDIRECTED) &&
	    p->dport == policy->outbound)
		return SG_INSIDE_ALLOW;
	/* A query that was redirected, and its answer. */
	if (p->proto == SG_IPPROTO_UDP && policy->dns &&
	    ((p->dport == policy->dns && (from.flags & SG_SOCK_DNS)) ||
	     (p->sport == policy->dns && sg_sock_has(skb, SG_SOCK_DNS))))
		return SG_INSIDE_ALLOW;
	c = bpf_map_lookup_elem(&containers, &from.cgroup_id);
	if (!c) /* the kernel's own */
		return ruled ? SG_INSIDE_INGRESS : SG_INSIDE_ALLOW;
	sg_end_of(policy, c, &in.from);
	in.to = *self;
	verdict = sg_inside_of(&in);
	if (verdict == SG_INSIDE_ALLOW || p->proto == SG_IPPROTO_TCP ||
	    !sg_sock_has(skb, SG_SOCK_SENT))
		return verdict;
	/* An answer: what it answers was let through. */
	in.to = in.from;
	in.from = *self;
	in.port = p->sport;
	return sg_inside_of(&in) ? verdict : SG_INSIDE_ALLOW;
}

/* A packet that a socket is about to get, as sg_verdict_packet_in wants it. */
SG_INLINE struct sg_flow
sg_flow_in(struct __sk_buff *skb, const struct sg_policy *policy,
	   const struct sg_container *self, const struct sg_end *end,
	   const struct sg_packet *p, int loopback_device, __u64 *peer)
{
	struct sg_flow f = {
		.proto = p->proto,
		.fragment = p->fragment,
		.port = p->sport,
		.loopback_device = !!loopback_device,
		.ruled = !!(end->flags & SG_SUBJECT_RULED),
	};
	int opening = sg_is_syn(p);

	f.local = loopback_device;
	/* What the pod sends to a group comes back by the group's device. */
	if ((policy->flags & SG_POLICY_RULED) && !f.local)
		f.local = !!sg_is_local(self->netns_cookie, &p->saddr);
	if (f.local) {
		if (sg_knows_peers(policy))
			f.inside = sg_arrives(skb, policy, end, p, peer);
		return f;
	}
	if (p->proto == SG_IPPROTO_UDP)
		opening = !sg_sock_has(skb, SG_SOCK_SENT);
	sg_packet_outside(policy, end, p, SG_DIR_INGRESS, opening, &f);
	return f;
}

/* It got a datagram, which it may answer. */
SG_INLINE void sg_called(struct __sk_buff *skb)
{
	struct sg_sock *s = sg_sock_of_skb(skb);

	if (s && !(s->flags & SG_SOCK_CALLED))
		__sync_fetch_and_or(&s->flags, SG_SOCK_CALLED);
}

/*
 * A raw socket may write any header. Its protocol is what it was made for; and
 * inside the pod nobody may pass for a TCP or UDP socket of somebody else, from
 * whose address and port it is known who sends.
 */
SG_INLINE int sg_is_forged(struct __sk_buff *skb, const struct sg_packet *p,
			   int ruled, int inside)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SG_SOCK_RAW)
		return 0;
	if (inside &&
	    (p->proto == SG_IPPROTO_TCP || p->proto == SG_IPPROTO_UDP))
		return 1;
	return ruled && sk->protocol != p->proto;
}

/*
 * The kernel's sockets for neighbour discovery belong to the cgroup in which
 * the network namespace was made, which is a container's where its runtime
 * makes it there (runc does, for Docker). What they send the device judges. A
 * raw socket of a process has a record (see sg_do_device).
 */
SG_INLINE int sg_is_kernels(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SG_SOCK_RAW)
		return 0;
	return !bpf_sk_storage_get(&socks, sk, 0, 0);
}

/*
 * Whether mode audit has something to record of a packet, as what describes it:
 * what it belongs to or answers has been recorded. sock_flags are of the
 * packet's own socket (enum sg_sock_flags).
 */
SG_INLINE int sg_begins(const struct sg_policy *policy,
			const struct sg_container *self,
			const struct sg_packet *p, const struct sg_seen *what,
			__u32 sock_flags)
{
	int egress = what->dir == SG_DIR_EGRESS;

	switch (p->proto) {
	case SG_IPPROTO_TCP:
		return sg_is_syn(p);
	case SG_IPPROTO_UDP:
		if (!(sock_flags & (egress ? SG_SOCK_CALLED : SG_SOCK_SENT)))
			return 1;
		if (!egress && policy->dns && p->sport == policy->dns &&
		    (sock_flags & SG_SOCK_DNS))
			return 0;
		return !sg_answers(self, what, p->sport);
	case SG_IPPROTO_ICMP:
	case SG_IPPROTO_ICMPV6:
		return egress;
	}
	return 1;
}

/* sock_flags are of the socket that sends (enum sg_sock_flags). */
SG_INLINE int sg_do_skb(struct __sk_buff *skb, int egress, __u32 sock_flags)
{
	struct sg_container *self = sg_self();
	struct sg_policy *policy;
	struct sg_seen what = {};
	struct sg_verdict v;
	struct sg_packet p;
	struct sg_flow f;
	struct sg_end end;
	int lo, free;

	if (!self)
		return SG_REJECT;
	policy = sg_policy_of(self->netns_cookie);
	if (!policy) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}
	/* Its hooks are left from a policy that had rules. */
	free = (self->role == SG_ROLE_SIDECAR ||
		self->role == SG_ROLE_EXEMPT) &&
	       !(policy->flags & SG_POLICY_RULED);
	if (free && !sg_knows_peers(policy))
		return SG_PROCEED;
	sg_end_of(policy, self, &end);
	/* cgroup_skb starts at the network header. */
	if (sg_parse(skb, 0, &p)) {
		if (free)
			return SG_PROCEED;
		v = sg_is(SG_DENY, SG_DROP_MALFORMED);
		goto judged;
	}
	lo = skb->ifindex == SG_CGROUP_LO_IFINDEX;
	if (egress && p.proto == SG_IPPROTO_ICMPV6 && sg_is_kernels(skb))
		return SG_PROCEED;
	if (egress) {
		if ((policy->flags & SG_POLICY_RULED) &&
		    sg_is_forged(skb, &p, end.flags & SG_SUBJECT_RULED, lo)) {
			v = sg_is(SG_DENY, SG_DROP_RAW);
			goto judged;
		}
		f = sg_flow_out(policy, self->netns_cookie, &end, &p, lo,
				sock_flags);
		v = sg_verdict_packet_out(self->role, &f, policy);
	} else {
		f = sg_flow_in(skb, policy, self, &end, &p, lo, &what.peer);
		v = sg_verdict_packet_in(self->role, &f, policy);
		if (p.proto == SG_IPPROTO_UDP &&
		    (v.action == SG_ALLOW || (policy->flags & SG_POLICY_AUDIT)))
			sg_called(skb);
	}
judged:
	if (v.action == SG_ALLOW && !(policy->flags & SG_POLICY_AUDIT))
		return SG_PROCEED;
	what.dir = egress ? SG_DIR_EGRESS : SG_DIR_INGRESS;
	what.addr = egress ? p.daddr : p.saddr;
	what.proto = p.proto;
	what.port = sg_is_icmp(&p) ? p.icmp_type : p.dport;
	if (policy->flags & SG_POLICY_AUDIT) {
		struct sg_sock *s = sg_sock_of_skb(skb);

		if (!sg_begins(policy, self, &p, &what, s ? s->flags : 0))
			return SG_PROCEED;
	}
	if (v.action != SG_ALLOW)
		return sg_refuse(policy, self, v.counter, &what,
				 SG_EVENT_PACKET, 0)
			       ? SG_PROCEED
			       : SG_REJECT;
	/* connect and sendmsg have recorded what else goes out. */
	if (!egress || sg_is_icmp(&p))
		sg_record(self, &what);
	return SG_PROCEED;
}

/*
 * A redirected connection of which map origdst could not take a record must
 * not reach the sidecar, which would take it for its own. Only TCP has the
 * flag: connect, of others, redirects DNS alone.
 */
SG_INLINE int sg_lost_origdst(__u32 sock_flags)
{
	return (sock_flags & (SG_SOCK_REDIRECTED | SG_SOCK_ORIGDST)) ==
	       SG_SOCK_REDIRECTED;
}

SEC("cgroup_skb/egress")
int sg_egress(struct __sk_buff *skb)
{
	struct sg_sock *s = sg_sock_of_skb(skb);
	__u32 flags = s ? s->flags : 0;

	if (sg_lost_origdst(flags))
		return SG_REJECT;
	return sg_do_skb(skb, 1, flags);
}

SEC("cgroup_skb/ingress")
int sg_ingress(struct __sk_buff *skb)
{
	return sg_do_skb(skb, 0, 0);
}

#endif
