/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * device.h: packets at the devices of a pod. tc programs cannot ask for the
 * network namespace that they run in before 6.15, so each pod has a stub of a
 * few instructions (pod.bpf.c) that puts its cookie into the packet's control
 * block and jumps here.
 */
#ifndef SIDEGATE_DEVICE_H
#define SIDEGATE_DEVICE_H

#include <linux/if_ether.h>

#include "packet.h"

#define SG_TCP_RST 0x04

/* Multicast listener and neighbour discovery: RFC 2710, 3810, 4861. */
#define SG_ICMPV6_MLD_QUERY 130
#define SG_ICMPV6_REDIRECT 137
#define SG_ICMPV6_MLD2_REPORT 143

SG_INLINE __u64 sg_dev_cookie(struct __sk_buff *skb)
{
	return (__u64)skb->cb[1] << 32 | skb->cb[0];
}

SG_INLINE int sg_dev_drop(__u64 cookie, __u32 counter)
{
	sg_count_pod(cookie, counter);
	return SG_DEV_DROP;
}

/*
 * A packet of no full socket. The kernel itself answers for connections that
 * are half open or over (TIME_WAIT, NEW_SYN_RECV), resets what nobody wants,
 * and resolves neighbours. Forwarding, TUN and tunnel devices end here.
 */
SG_INLINE int sg_dev_orphan(struct __sk_buff *skb, struct bpf_sock *sk,
			    __u64 cookie)
{
	struct sg_packet p;

	if (skb->protocol == bpf_htons(SG_ETH_P_ARP))
		return sk ? sg_dev_drop(cookie, SG_DROP_DEVICE) : SG_DEV_PASS;
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	if (p.proto != SG_IPPROTO_TCP || p.fragment)
		return sg_dev_drop(cookie, SG_DROP_DEVICE);
	if (sk && (sk->state == BPF_TCP_TIME_WAIT ||
		   sk->state == BPF_TCP_NEW_SYN_RECV))
		return SG_DEV_PASS;
	if (!sk && (p.tcp_flags & SG_TCP_RST) && !p.tcp_payload)
		return SG_DEV_PASS;
	return sg_dev_drop(cookie, SG_DROP_DEVICE);
}

/*
 * A packet of the kernel itself. Neighbour discovery has to work. Its answers
 * to a ping, and its ICMP errors, quote what they answer: an app that forges
 * such a packet to the pod, on a device of its own making, would have them sent
 * out.
 */
SG_INLINE int sg_dev_kernel(struct __sk_buff *skb, const struct sg_pod *pod,
			    __u64 cookie)
{
	struct sg_packet p;

	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	switch (p.proto) {
	case SG_IPPROTO_TCP:
		return p.tcp_payload ? sg_dev_drop(cookie, SG_DROP_DEVICE)
				     : SG_DEV_PASS;
	case SG_IPPROTO_ICMPV6:
		if (p.icmp_type >= SG_ICMPV6_MLD_QUERY &&
		    p.icmp_type <= SG_ICMPV6_REDIRECT)
			return SG_DEV_PASS;
		if (p.icmp_type == SG_ICMPV6_MLD2_REPORT)
			return SG_DEV_PASS;
		break;
	case SG_IPPROTO_ICMP:
		break;
	default:
		return sg_dev_drop(cookie, SG_DROP_DEVICE);
	}
	return pod->flags & SG_POD_NON_TCP ? SG_DEV_PASS
					   : sg_dev_drop(cookie, SG_DROP_ICMP);
}

SG_INLINE int sg_do_device(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct bpf_sock *full;
	struct sg_verdict v;
	struct sg_packet p;
	struct sg_pod *pod;
	struct sg_sock *s;
	struct sg_flow f;
	__u64 cookie = sg_dev_cookie(skb);

	pod = bpf_map_lookup_elem(&pods, &cookie);
	if (!pod)
		return SG_DEV_PASS; /* no longer managed */
	if (!sk)
		return sg_dev_orphan(skb, 0, cookie);
	full = bpf_sk_fullsock(sk);
	if (!full)
		return sg_dev_orphan(skb, sk, cookie);
	if (full->family == SG_AF_PACKET)
		return sg_dev_drop(cookie, SG_DROP_PACKET_SOCKET);
	s = bpf_sk_storage_get(&socks, full, 0, 0);
	if (!s) {
		/*
		 * The kernel's own control sockets (ICMP, neighbour discovery,
		 * resets) are raw and never pass sock_create; a raw socket of a
		 * process has either passed it and has a record, or was
		 * refused.
		 */
		if ((full->family == SG_AF_INET ||
		     full->family == SG_AF_INET6) &&
		    full->type == SG_SOCK_RAW)
			return sg_dev_kernel(skb, pod, cookie);
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	}
	if (s->netns_cookie != cookie)
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	if (s->role == SG_ROLE_SIDECAR || s->role == SG_ROLE_EXEMPT) {
		if (bpf_map_lookup_elem(&containers, &s->cgroup_id))
			return SG_DEV_PASS;
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	}
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	f = sg_flow_out(cookie, &p, 0);
	v = sg_verdict_packet_out(s->role, &f, pod);
	if (v.action == SG_ALLOW)
		return SG_DEV_PASS;
	sg_count(s->cgroup_id, v.counter);
	return SG_DEV_DROP;
}

/*
 * Egress of every device of the pod but lo. What passes is marked for the
 * program at the host's end.
 */
SEC("tc")
int sg_device(struct __sk_buff *skb)
{
	int verdict = sg_do_device(skb);

	if (verdict == SG_DEV_PASS)
		bpf_set_hash(skb, skb->cb[2]);
	return verdict;
}

/*
 * Ingress of lo: what an AF_PACKET socket writes there with a foreign source
 * would make the kernel answer that address. TCP and UDP in the pod use its
 * own addresses.
 */
SEC("tc")
int sg_loopback(struct __sk_buff *skb)
{
	__u64 cookie = sg_dev_cookie(skb);
	struct sg_packet p;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_DEV_PASS;
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	if (!sg_is_local(cookie, &p.saddr))
		return sg_dev_drop(cookie, SG_DROP_SPOOFED);
	return SG_DEV_PASS;
}

#endif
