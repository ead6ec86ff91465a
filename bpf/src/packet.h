/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* packet.h: L3 and L4 of a packet, for cgroup_skb and for devices. */
#ifndef SIDEGATE_PACKET_H
#define SIDEGATE_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>

#include "common.h"

#define SG_ETH_P_IP 0x0800
#define SG_ETH_P_ARP 0x0806
#define SG_ETH_P_IPV6 0x86dd

#define SG_TCP_SYN 0x02
#define SG_TCP_RST 0x04
#define SG_TCP_ACK 0x10

/* Multicast listener and neighbour discovery: RFC 3810, 4861. */
#define SG_ICMPV6_RS 133
#define SG_ICMPV6_RA 134
#define SG_ICMPV6_NS 135
#define SG_ICMPV6_NA 136
#define SG_ICMPV6_REDIRECT 137
#define SG_ICMPV6_MLD2_REPORT 143

struct sg_arp {
	__be16 hw;
	__be16 proto;
	__u8 hwlen;
	__u8 protolen;
	__be16 op;
	__u8 sha[6];
	__u8 spa[4];
	__u8 tha[6];
	__u8 tpa[4];
};
_Static_assert(sizeof(struct sg_arp) == 28, "RFC 826");

struct sg_packet {
	struct sg_addr saddr;
	struct sg_addr daddr;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 fragment; /* not the first */
	__u8 icmp_type; /* of ICMP and ICMPv6 */
	__u8 tcp_flags;
	__u8 tcp_payload; /* there is some */
};

/* IPv6 extension headers, RFC 8200 4. */
#define SG_EXT_HOPOPTS 0
#define SG_EXT_ROUTING 43
#define SG_EXT_FRAGMENT 44
#define SG_EXT_AUTH 51
#define SG_EXT_DSTOPTS 60
#define SG_EXT_MAX 8

SG_INLINE int sg_parse_ports(struct __sk_buff *skb, __u32 off, __u32 end,
			     struct sg_packet *p)
{
	__be16 ports[2];

	if (p->fragment)
		return 0;
	if (p->proto == SG_IPPROTO_TCP) {
		struct tcphdr th;

		if (bpf_skb_load_bytes(skb, off, &th, sizeof(th)))
			return -1;
		p->sport = bpf_ntohs(th.source);
		p->dport = bpf_ntohs(th.dest);
		p->tcp_flags = ((__u8 *)&th)[13];
		p->tcp_payload = end > off + th.doff * 4;
		return 0;
	}
	if (p->proto == SG_IPPROTO_ICMP || p->proto == SG_IPPROTO_ICMPV6)
		return bpf_skb_load_bytes(skb, off, &p->icmp_type, 1) ? -1 : 0;
	if (p->proto != SG_IPPROTO_UDP && p->proto != SG_IPPROTO_SCTP)
		return 0;
	if (bpf_skb_load_bytes(skb, off, ports, sizeof(ports)))
		return -1;
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	return 0;
}

SG_INLINE int sg_parse4(struct __sk_buff *skb, __u32 l3, struct sg_packet *p)
{
	struct iphdr ih;
	__u16 frag;

	if (bpf_skb_load_bytes(skb, l3, &ih, sizeof(ih)) || ih.ihl < 5)
		return -1;
	frag = bpf_ntohs(ih.frag_off);
	p->saddr = sg_addr4(ih.saddr);
	p->daddr = sg_addr4(ih.daddr);
	p->proto = ih.protocol;
	p->fragment = !!(frag & 0x1fff);
	return sg_parse_ports(skb, l3 + ih.ihl * 4, l3 + bpf_ntohs(ih.tot_len),
			      p);
}

SG_INLINE int sg_parse6(struct __sk_buff *skb, __u32 l3, struct sg_packet *p)
{
	struct ipv6hdr ih;
	__u32 off = l3 + sizeof(ih);
	__u8 next;

	if (bpf_skb_load_bytes(skb, l3, &ih, sizeof(ih)))
		return -1;
	__builtin_memcpy(&p->saddr, &ih.saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ih.daddr, sizeof(p->daddr));
	next = ih.nexthdr;
	for (int i = 0; i < SG_EXT_MAX; i++) {
		__u8 ext[8];
		__u32 len;

		if (next != SG_EXT_HOPOPTS && next != SG_EXT_ROUTING &&
		    next != SG_EXT_FRAGMENT && next != SG_EXT_AUTH &&
		    next != SG_EXT_DSTOPTS) {
			p->proto = next;
			return sg_parse_ports(
				skb, off,
				l3 + sizeof(ih) + bpf_ntohs(ih.payload_len), p);
		}
		if (bpf_skb_load_bytes(skb, off, ext, sizeof(ext)))
			return -1;
		if (next == SG_EXT_FRAGMENT) {
			if (((__u16)ext[2] << 8 | ext[3]) & 0xfff8)
				p->fragment = 1;
			len = 8;
		} else if (next == SG_EXT_AUTH) {
			len = ((__u32)ext[1] + 2) * 4;
		} else {
			len = ((__u32)ext[1] + 1) * 8;
		}
		next = ext[0];
		off += len;
		if (p->fragment) {
			/* What follows is data, whatever it looks like. */
			p->proto = next;
			return 0;
		}
	}
	return -1; /* more headers than any sender has a use for */
}

/* Parses from the network header at l3. Negative: cannot be judged, drop. */
SG_GLOBAL int sg_parse(struct __sk_buff *skb, __u32 l3, struct sg_packet *p)
{
	if (!p)
		return -1;
	__builtin_memset(p, 0, sizeof(*p));
	if (skb->protocol == bpf_htons(SG_ETH_P_IP))
		return sg_parse4(skb, l3, p);
	if (skb->protocol == bpf_htons(SG_ETH_P_IPV6))
		return sg_parse6(skb, l3, p);
	return -1;
}

/* Opens a TCP connection. */
SG_INLINE int sg_is_syn(const struct sg_packet *p)
{
	return p->proto == SG_IPPROTO_TCP &&
	       (p->tcp_flags & (SG_TCP_SYN | SG_TCP_ACK)) == SG_TCP_SYN;
}

SG_INLINE int sg_is_icmp(const struct sg_packet *p)
{
	return p->proto == SG_IPPROTO_ICMP || p->proto == SG_IPPROTO_ICMPV6;
}

/*
 * What the exclusions and the container's rules (self, or 0) say of a packet to
 * or from outside. What answers goes with what it answers.
 */
SG_INLINE void sg_packet_outside(const struct sg_policy *policy,
				 const struct sg_end *self,
				 const struct sg_packet *p, __u8 dir,
				 int opening, struct sg_flow *f)
{
	struct sg_outside o = {
		.dir = dir,
		.proto = p->proto,
		.fragment = p->fragment,
		.opening = !!opening,
		.port = sg_is_icmp(p) ? p->icmp_type : p->dport,
		.reply = p->sport,
	};

	sg_peers_of(policy, dir == SG_DIR_EGRESS ? &p->daddr : &p->saddr,
		    o.peer);
	f->excluded = !!sg_permits(policy, 0, &o);
	if (f->ruled)
		f->permitted = !!sg_permits(policy, self, &o);
}

/*
 * A packet that leaves a socket, as sg_verdict_packet_out wants it. sock_flags
 * are the socket's (enum sg_sock_flags): one that nobody called answers nobody.
 */
SG_INLINE struct sg_flow sg_flow_out(const struct sg_policy *policy,
				     __u64 cookie, const struct sg_end *self,
				     const struct sg_packet *p,
				     int loopback_device, __u32 sock_flags)
{
	struct sg_flow f = {
		.proto = p->proto,
		.fragment = p->fragment,
		.port = p->dport,
		.loopback_device = !!loopback_device,
		.ruled = !!(self->flags & SG_SUBJECT_RULED),
	};
	int own = sg_is_local(cookie, &p->daddr);
	int opening = p->proto == SG_IPPROTO_UDP
			      ? !(sock_flags & SG_SOCK_CALLED)
			      : sg_is_syn(p);

	f.local = own && loopback_device;
	if (!own)
		sg_packet_outside(policy, self, p, SG_DIR_EGRESS, opening, &f);
	else if (f.local && f.ruled && p->proto != SG_IPPROTO_TCP &&
		 p->proto != SG_IPPROTO_UDP && !sg_is_icmp(p))
		/* Its receiver cannot be told. */
		f.inside = SG_INSIDE_EGRESS;
	return f;
}

#endif
