// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object of guarded endpoints: the host's end of each veth pair that the
 * network driver makes has these two programs, from before anything can be
 * sent through it. Whoever is at the other end, managed or not, says nothing
 * while the endpoint is closed, and then nothing that is somebody else's.
 * What passes goes on to the next program: sg_pod_host may be on the device
 * too.
 */
#include "packet.h"

#define SG_MAX_ENDPOINTS 8192

/*
 * What the devices' other ends may say, by the index of the device. No entry:
 * nothing passes.
 * inserted by: user space, before the programs are attached
 * deleted by: user space with the device, or when that is gone
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SG_MAX_ENDPOINTS);
	__type(key, __u32); /* ifindex */
	__type(value, struct sg_endpoint);
} endpoints SEC(".maps");

/* inserted and deleted by: user space with the entry of endpoints */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, SG_MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* ifindex */
	__type(value, struct sg_endpoint_counters);
} endpoint_counters SEC(".maps");

#define SG_NO_DROP SG_ENDPOINT_DROPS

SG_NOINLINE void sg_endpoint_count(__u32 ifindex, enum sg_endpoint_drop reason)
{
	struct sg_endpoint_counters *c =
		bpf_map_lookup_elem(&endpoint_counters, &ifindex);

	if (c && reason < SG_ENDPOINT_DROPS)
		c->v[reason]++; /* per CPU */
}

SG_INLINE int sg_endpoint_verdict(struct __sk_buff *skb, __u32 reason)
{
	if (reason == SG_NO_DROP)
		return SG_DEV_PASS;
	sg_endpoint_count(skb->ifindex, reason);
	return SG_DEV_DROP;
}

SG_INLINE int sg_is_same(const __u8 *a, const __u8 *b, __u32 n)
{
	__u8 other = 0;

	for (__u32 i = 0; i < n; i++)
		other |= a[i] ^ b[i];
	return !other;
}

SG_INLINE int sg_is_unspecified(const struct sg_addr *a)
{
	const struct sg_addr none = {};

	return sg_is_same(a->b, none.b, sizeof(none.b));
}

SG_INLINE int sg_is_link_local(const struct sg_addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

SG_INLINE int sg_endpoint_has6(const struct sg_endpoint *e,
			       const struct sg_addr *a)
{
	return !sg_is_unspecified(a) && sg_is_same(a->b, e->v6.b, sizeof(a->b));
}

/*
 * Neighbours believe whoever speaks. A probe (RFC 5227) has no sender yet; for
 * another's address it would keep that one from coming up.
 */
SG_INLINE __u32 sg_endpoint_arp(struct __sk_buff *skb,
				const struct sg_endpoint *e)
{
	const __u8 *v4 = &e->v4.b[12];
	const __u8 none[4] = {};
	struct sg_arp a;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &a, sizeof(a)))
		return SG_ENDPOINT_MALFORMED;
	if (a.hw != bpf_htons(1) || a.proto != bpf_htons(SG_ETH_P_IP) ||
	    a.hwlen != 6 || a.protolen != 4)
		return SG_ENDPOINT_MALFORMED;
	if (!sg_is_v4(&e->v4) || !sg_is_same(a.sha, e->mac, 6))
		return SG_ENDPOINT_ADDRESS;
	if (sg_is_same(a.spa, v4, 4))
		return SG_NO_DROP;
	return a.op == bpf_htons(1) && sg_is_same(a.spa, none, 4) &&
			       sg_is_same(a.tpa, v4, 4)
		       ? SG_NO_DROP
		       : SG_ENDPOINT_ADDRESS;
}

SG_INLINE __u32 sg_endpoint_v4(struct __sk_buff *skb,
			       const struct sg_endpoint *e)
{
	struct sg_addr saddr;
	struct iphdr ih;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ih, sizeof(ih)))
		return SG_ENDPOINT_MALFORMED;
	saddr = sg_addr4(ih.saddr);
	return sg_is_same(saddr.b, e->v4.b, sizeof(saddr.b))
		       ? SG_NO_DROP
		       : SG_ENDPOINT_ADDRESS;
}

/*
 * Neighbour discovery is ARP once more: an advertisement, and a question from
 * :: (duplicate address detection), are about the endpoint's own addresses.
 * What routers say is not the endpoint's to say. Behind an extension header, or
 * in fragments, nobody has a use for it.
 */
SG_INLINE __u32 sg_endpoint_discovery(struct __sk_buff *skb,
				      const struct sg_endpoint *e, __u8 next,
				      __u8 type, int probe)
{
	struct sg_addr target;

	if (type < SG_ICMPV6_RS || type > SG_ICMPV6_REDIRECT)
		return SG_NO_DROP;
	if (next != SG_IPPROTO_ICMPV6 || type == SG_ICMPV6_RA ||
	    type == SG_ICMPV6_REDIRECT)
		return SG_ENDPOINT_ADDRESS;
	if (type == SG_ICMPV6_RS || (type == SG_ICMPV6_NS && !probe))
		return SG_NO_DROP;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 40 + 8, &target, sizeof(target)))
		return SG_ENDPOINT_MALFORMED;
	return sg_is_link_local(&target) || sg_endpoint_has6(e, &target)
		       ? SG_NO_DROP
		       : SG_ENDPOINT_ADDRESS;
}

SG_INLINE __u32 sg_endpoint_v6(struct __sk_buff *skb,
			       const struct sg_endpoint *e)
{
	struct sg_packet p;
	int probe;
	__u8 next;

	if (sg_parse(skb, ETH_HLEN, &p))
		return SG_ENDPOINT_MALFORMED;
	probe = sg_is_unspecified(&p.saddr);
	/* Its link-local address is not known, so that gets what IPv6 needs. */
	if (!sg_endpoint_has6(e, &p.saddr) &&
	    ((!probe && !sg_is_link_local(&p.saddr)) ||
	     p.proto != SG_IPPROTO_ICMPV6))
		return SG_ENDPOINT_ADDRESS;
	if (p.proto != SG_IPPROTO_ICMPV6 || p.fragment)
		return SG_NO_DROP;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, &next, 1))
		return SG_ENDPOINT_MALFORMED;
	return sg_endpoint_discovery(skb, e, next, p.icmp_type, probe);
}

SG_INLINE __u32 sg_endpoint_judge(struct __sk_buff *skb,
				  const struct sg_endpoint *e)
{
	struct ethhdr eth;

	if (!(e->flags & SG_ENDPOINT_OPEN))
		return SG_ENDPOINT_CLOSED;
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return SG_ENDPOINT_MALFORMED;
	if (!sg_is_same(eth.h_source, e->mac, 6))
		return SG_ENDPOINT_MAC;
	if (skb->vlan_present) /* the protocol is the one behind the tag */
		return SG_ENDPOINT_ETHERTYPE;
	switch (skb->protocol) {
	case bpf_htons(SG_ETH_P_ARP):
		return sg_endpoint_arp(skb, e);
	case bpf_htons(SG_ETH_P_IP):
		return sg_endpoint_v4(skb, e);
	case bpf_htons(SG_ETH_P_IPV6):
		return sg_endpoint_v6(skb, e);
	}
	return SG_ENDPOINT_ETHERTYPE;
}

/* Ingress of the host's end: what the container sends. */
SEC("tc")
int sg_endpoint_from(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct sg_endpoint *e = bpf_map_lookup_elem(&endpoints, &ifindex);

	if (!e)
		return SG_DEV_DROP;
	return sg_endpoint_verdict(skb, sg_endpoint_judge(skb, e));
}

/* Egress of the host's end: what the container would get. */
SEC("tc")
int sg_endpoint_to(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct sg_endpoint *e = bpf_map_lookup_elem(&endpoints, &ifindex);

	if (!e)
		return SG_DEV_DROP;
	return sg_endpoint_verdict(skb, e->flags & SG_ENDPOINT_OPEN
						? SG_NO_DROP
						: SG_ENDPOINT_CLOSED);
}

char _license[] SEC("license") = "Dual BSD/GPL";
