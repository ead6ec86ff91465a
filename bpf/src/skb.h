/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* skb.h: every packet of a container's sockets, both ways. */
#ifndef SIDEGATE_SKB_H
#define SIDEGATE_SKB_H

#include "packet.h"

#define SG_CGROUP_LO_IFINDEX 1

SG_INLINE int sg_do_skb(struct __sk_buff *skb, int egress)
{
	struct sg_container *self = sg_self();
	struct sg_verdict v;
	struct sg_packet p;
	struct sg_pod *pod;
	struct sg_flow f;
	__u64 cookie;
	int lo;

	if (!self)
		return SG_REJECT;
	if (self->role == SG_ROLE_SIDECAR || self->role == SG_ROLE_EXEMPT)
		return SG_PROCEED;
	cookie = self->netns_cookie;
	pod = bpf_map_lookup_elem(&pods, &cookie);
	if (!pod) {
		sg_count(self->cgroup_id, SG_DROP_UNREGISTERED);
		return SG_REJECT;
	}
	/* cgroup_skb starts at the network header. */
	if (sg_parse(skb, 0, &p)) {
		sg_count(self->cgroup_id, SG_DROP_MALFORMED);
		return SG_REJECT;
	}
	lo = skb->ifindex == SG_CGROUP_LO_IFINDEX;
	if (egress) {
		f = sg_flow_out(cookie, &p, lo);
		v = sg_verdict_packet_out(self->role, &f, pod);
	} else {
		f = sg_flow_in(cookie, &p, lo);
		v = sg_verdict_packet_in(self->role, &f, pod);
	}
	if (v.action != SG_ALLOW) {
		sg_count(self->cgroup_id, v.counter);
		return SG_REJECT;
	}
	return SG_PROCEED;
}

/*
 * A redirected connection of which map origdst could not take a record must
 * not reach the sidecar, which would take it for its own.
 */
SG_INLINE int sg_lost_origdst(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct sg_sock *s;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	return s && sk->protocol == SG_IPPROTO_TCP &&
	       (s->flags & (SG_SOCK_REDIRECTED | SG_SOCK_ORIGDST)) ==
		       SG_SOCK_REDIRECTED;
}

SEC("cgroup_skb/egress")
int sg_egress(struct __sk_buff *skb)
{
	if (sg_lost_origdst(skb))
		return SG_REJECT;
	return sg_do_skb(skb, 1);
}

SEC("cgroup_skb/ingress")
int sg_ingress(struct __sk_buff *skb)
{
	return sg_do_skb(skb, 0);
}

#endif
