/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * device.h: packets at the devices of a pod. tc programs cannot ask for the
 * network namespace that they run in before 6.15, so each pod has a stub of a
 * few instructions (pod.bpf.c) that puts its cookie into the packet's control
 * block and jumps here.
 */
#ifndef SIDEGATE_DEVICE_H
#define SIDEGATE_DEVICE_H

#include "packet.h"

#define SG_MLD_RECORDS 8

/* No frame that the kernel itself makes is longer. */
#define SG_ARP_LEN (ETH_HLEN + 28)
#define SG_RST6_LEN (ETH_HLEN + 40 + 20)
#define SG_CTL_MAX (ETH_HLEN + 40 + 60)

SG_INLINE __u64 sg_dev_cookie(struct __sk_buff *skb)
{
	return (__u64)skb->cb[1] << 32 | skb->cb[0];
}

SG_INLINE int sg_dev_drop(__u64 cookie, __u32 counter)
{
	return sg_pod_refuse(cookie, counter) ? SG_DEV_PASS : SG_DEV_DROP;
}

/*
 * Resolution of the pod's neighbours, and nothing behind it: no socket is no
 * proof of the kernel, a copy that tc or a bridge makes of an app's frame has
 * none either.
 */
SG_INLINE int sg_dev_arp(struct __sk_buff *skb, __u64 cookie)
{
	struct sg_addr spa;
	struct sg_arp a;
	__u32 ip;

	if (skb->len != SG_ARP_LEN ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &a, sizeof(a)))
		return 0;
	__builtin_memcpy(&ip, a.spa, 4);
	spa = sg_addr4(ip);
	return a.hw == bpf_htons(1) && a.proto == bpf_htons(SG_ETH_P_IP) &&
	       a.hwlen == 6 && a.protolen == 4 && sg_is_local(cookie, &spa);
}

/*
 * A packet of no full socket. The kernel itself answers for connections that
 * are half open or over (TIME_WAIT, NEW_SYN_RECV), resets what nobody wants
 * (IPv6: without a socket or an option), and resolves neighbours. Forwarding,
 * TUN and tunnel devices end here.
 */
SG_INLINE int sg_dev_orphan(struct __sk_buff *skb, struct bpf_sock *sk,
			    __u64 cookie)
{
	struct sg_packet p;

	if (skb->protocol == bpf_htons(SG_ETH_P_ARP))
		return !sk && sg_dev_arp(skb, cookie)
			       ? SG_DEV_PASS
			       : sg_dev_drop(cookie, SG_DROP_DEVICE);
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	if (p.proto != SG_IPPROTO_TCP || p.fragment || p.tcp_payload ||
	    skb->len > SG_CTL_MAX)
		return sg_dev_drop(cookie, SG_DROP_DEVICE);
	if (sk && (sk->state == BPF_TCP_TIME_WAIT ||
		   sk->state == BPF_TCP_NEW_SYN_RECV))
		return SG_DEV_PASS;
	if (!sk && (p.tcp_flags & SG_TCP_RST) && skb->len == SG_RST6_LEN &&
	    skb->protocol == bpf_htons(SG_ETH_P_IPV6) &&
	    sg_is_local(cookie, &p.saddr))
		return SG_DEV_PASS;
	return sg_dev_drop(cookie, SG_DROP_DEVICE);
}

/* ff02::1:ff00:0/104: the groups of the pod's own addresses. */
SG_INLINE int sg_is_solicited_node(const __u8 *b)
{
	__u32 rest = 0;

	for (int i = 2; i < 11; i++)
		rest |= b[i];
	return b[0] == 0xff && b[1] == 0x02 && !rest && b[11] == 1 &&
	       b[12] == 0xff;
}

/*
 * Neighbour discovery, and a report of the groups that it needs. Of other
 * groups an app chooses 14 bytes each, and 16 of each source.
 */
SG_INLINE int sg_dev_icmp6(struct __sk_buff *skb, const struct sg_packet *p)
{
	__u32 off = ETH_HLEN + 40 + 8, n; /* behind the router alert */
	__u8 h[8], rec[20];

	if (p->icmp_type >= SG_ICMPV6_RS && p->icmp_type <= SG_ICMPV6_NA)
		return skb->len <= SG_CTL_MAX;
	if (p->icmp_type != SG_ICMPV6_MLD2_REPORT ||
	    bpf_skb_load_bytes(skb, off, h, sizeof(h)) ||
	    h[0] != SG_ICMPV6_MLD2_REPORT)
		return 0;
	off += sizeof(h);
	n = (__u32)h[6] << 8 | h[7];
	if (n > SG_MLD_RECORDS || skb->len != off + n * sizeof(rec))
		return 0;
	for (__u32 i = 0; i < SG_MLD_RECORDS && i < sg_opaque(n); i++)
		if (bpf_skb_load_bytes(skb, off + i * sizeof(rec), rec,
				       sizeof(rec)) ||
		    !sg_is_solicited_node(&rec[4]))
			return 0;
	return 1;
}

/*
 * A packet of the kernel itself. Neighbour discovery has to work. Its answers
 * to a ping, and its ICMP errors, quote what they answer: an app that forges
 * such a packet to the pod, on a device of its own making, would have them sent
 * out.
 */
SG_INLINE int sg_dev_kernel(struct __sk_buff *skb,
			    const struct sg_policy *policy, __u64 cookie)
{
	struct sg_packet p;

	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	switch (p.proto) {
	case SG_IPPROTO_TCP:
		return p.fragment || p.tcp_payload || skb->len > SG_CTL_MAX
			       ? sg_dev_drop(cookie, SG_DROP_DEVICE)
			       : SG_DEV_PASS;
	case SG_IPPROTO_ICMPV6:
		if (!p.fragment && sg_dev_icmp6(skb, &p))
			return SG_DEV_PASS;
		break;
	case SG_IPPROTO_ICMP:
		break;
	default:
		return sg_dev_drop(cookie, SG_DROP_DEVICE);
	}
	return policy->flags & SG_POLICY_NON_TCP
		       ? SG_DEV_PASS
		       : sg_dev_drop(cookie, SG_DROP_ICMP);
}

SG_INLINE int sg_do_device(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct bpf_sock *full;
	__u64 cookie = sg_dev_cookie(skb);
	struct sg_policy *policy;
	struct sg_container *c;
	struct sg_seen what = {};
	struct sg_verdict v;
	struct sg_packet p;
	struct sg_sock *s;
	struct sg_flow f;
	struct sg_end end;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_DEV_PASS; /* no longer managed */
	policy = sg_policy_of(cookie);
	if (!policy)
		return SG_DEV_DROP;
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
			return sg_dev_kernel(skb, policy, cookie);
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	}
	if (s->netns_cookie != cookie)
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	if (s->role == SG_ROLE_RELAY) {
		if (!(policy->flags & SG_POLICY_TLS_DEFERRED))
			return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
		if (sg_parse(skb, ETH_HLEN, &p))
			return sg_dev_drop(cookie, SG_DROP_MALFORMED);
		return p.proto == SG_IPPROTO_TCP &&
				       !sg_is_local(cookie, &p.daddr)
			       ? SG_DEV_PASS
			       : sg_dev_drop(cookie, SG_DROP_DEVICE);
	}
	c = bpf_map_lookup_elem(&containers, &s->cgroup_id);
	if (!c)
		return sg_dev_drop(cookie, SG_DROP_UNREGISTERED);
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	sg_end_of(policy, c, &end);
	/*
	 * What it says on lo, an app may have redirected here. Its rules are
	 * asked again: nftables in the pod may have changed the packet since
	 * sg_egress did.
	 */
	if (s->role == SG_ROLE_SIDECAR || s->role == SG_ROLE_EXEMPT) {
		if (sg_is_local(cookie, &p.daddr))
			return sg_dev_drop(cookie, SG_DROP_DEVICE);
		if (!(end.flags & SG_SUBJECT_RULED))
			return SG_DEV_PASS;
	}
	f = sg_flow_out(policy, cookie, &end, &p, 0, s->flags);
	v = sg_verdict_packet_out(s->role, &f, policy);
	if (v.action == SG_ALLOW)
		return SG_DEV_PASS;
	what.addr = p.daddr;
	what.proto = p.proto;
	what.port = sg_is_icmp(&p) ? p.icmp_type : p.dport;
	if ((policy->flags & SG_POLICY_AUDIT) && p.proto == SG_IPPROTO_UDP &&
	    (s->flags & SG_SOCK_CALLED) && sg_answers(c, &what, p.sport))
		return SG_DEV_PASS;
	return sg_refuse(policy, c, v.counter, &what, SG_EVENT_PACKET, s->pid)
		       ? SG_DEV_PASS
		       : SG_DEV_DROP;
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
 * Egress of lo. The rules inside a pod go by the socket that a packet came
 * from, so a frame that no socket of the pod's families made must not be on
 * its way. What passes is marked for the program at the other end.
 */
SEC("tc")
int sg_loopback_out(struct __sk_buff *skb)
{
	__u64 cookie = sg_dev_cookie(skb);
	struct bpf_sock *sk = skb->sk;
	int verdict = SG_DEV_PASS;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_DEV_PASS;
	if (!sk) {
		verdict = sg_dev_orphan(skb, 0, cookie);
	} else {
		struct bpf_sock *full = bpf_sk_fullsock(sk);

		if (!full)
			verdict = sg_dev_orphan(skb, sk, cookie);
		else if (full->family == SG_AF_PACKET)
			verdict = sg_dev_drop(cookie, SG_DROP_PACKET_SOCKET);
	}
	if (verdict == SG_DEV_PASS)
		bpf_set_hash(skb, skb->cb[2]);
	return verdict;
}

/*
 * Ingress of lo: what has no mark came round the above (PACKET_QDISC_BYPASS, tc
 * in the pod). A foreign source would make the kernel answer it: TCP and UDP in
 * the pod use its own addresses.
 */
SEC("tc")
int sg_loopback(struct __sk_buff *skb)
{
	__u64 cookie = sg_dev_cookie(skb);
	struct sg_packet p;

	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SG_DEV_PASS;
	if (skb->hash != skb->cb[2] &&
	    sg_dev_drop(cookie, SG_DROP_BYPASS) != SG_DEV_PASS)
		return SG_DEV_DROP;
	bpf_set_hash_invalid(skb);
	if (sg_parse(skb, ETH_HLEN, &p))
		return sg_dev_drop(cookie, SG_DROP_MALFORMED);
	if (!sg_is_local(cookie, &p.saddr))
		return sg_dev_drop(cookie, SG_DROP_SPOOFED);
	return SG_DEV_PASS;
}

#endif
