// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object of a pod's own programs. sk_lookup cannot ask for the network
 * namespace it runs in on any kernel (and 127.0.0.1 is the same in all), tc
 * cannot before 6.15: so these programs are told, by the slot whose number is
 * their constant. They are loaded ahead and used again, since a pod's first
 * container would wait for it; that is why this object holds what must be here
 * and nothing else.
 */
#include "common.h"

const volatile __u32 sg_slot_number = 0;

#define SG_LO_IFINDEX 1 /* in every network namespace */

SG_INLINE struct sg_slot *sg_my_slot(void)
{
	__u32 n = sg_slot_number;

	return bpf_map_lookup_elem(&pod_slots, &n);
}

SG_INLINE int sg_pod_jump(struct __sk_buff *skb, const __u32 prog)
{
	struct sg_slot *slot = sg_my_slot();

	if (!slot)
		return SG_DEV_DROP;
	skb->cb[0] = (__u32)slot->netns_cookie;
	skb->cb[1] = slot->netns_cookie >> 32;
	skb->cb[2] = slot->token;
	bpf_tail_call_static(skb, &device_progs, prog);
	return SG_DEV_DROP;
}

SEC("tc")
int sg_pod_device(struct __sk_buff *skb)
{
	return sg_pod_jump(skb, SG_DEVICE_EGRESS);
}

SEC("tc")
int sg_pod_loopback(struct __sk_buff *skb)
{
	return sg_pod_jump(skb, SG_DEVICE_LOOPBACK);
}

SEC("tc")
int sg_pod_loopback_out(struct __sk_buff *skb)
{
	return sg_pod_jump(skb, SG_DEVICE_LOOPBACK_OUT);
}

/*
 * Ingress of the host's end of a pod's veth pair. sg_device leaves the token in
 * skb->hash of a packet that may go: the hash is all that crosses namespaces.
 * No packet gets this one without passing tc egress, so one that goes round it
 * (PACKET_QDISC_BYPASS, AF_XDP) has another. It is no secret from CAP_NET_RAW,
 * which can read the hash but not set it.
 */
SEC("tc")
int sg_pod_host(struct __sk_buff *skb)
{
	struct sg_slot *slot = sg_my_slot();

	if (!slot)
		return SG_DEV_DROP;
	if (!bpf_map_lookup_elem(&pods, &slot->netns_cookie))
		return SG_DEV_PASS;
	if (skb->hash != slot->token &&
	    !sg_pod_refuse(slot->netns_cookie, SG_DROP_BYPASS))
		return SG_DEV_DROP;
	/* One for all flows would send them to one queue. */
	bpf_set_hash_invalid(skb);
	return SG_DEV_PASS;
}

SG_GLOBAL int sg_assign(struct bpf_sk_lookup *ctx, __u16 port, __u8 ipv6,
			__u32 relay)
{
	struct sg_listener_key key = {
		.port = port,
		.ipv6 = ipv6,
		.relay = relay,
	};
	struct sg_slot *slot = sg_my_slot();

	if (!slot)
		return -1;
	key.netns_cookie = slot->netns_cookie;
	for (int i = 0; i < SG_LISTENER_SLOTS; i++) {
		struct bpf_sock *sk;
		long err;

		key.slot = i;
		sk = bpf_map_lookup_elem(&listeners, &key);
		if (!sk)
			continue;
		err = bpf_sk_assign(ctx, sk, 0);
		bpf_sk_release(sk);
		if (!err)
			return 0;
	}
	return -1;
}

SEC("sk_lookup")
int sg_pod_lookup(struct bpf_sk_lookup *ctx)
{
	struct sg_slot *slot = sg_my_slot();
	__u32 remote4 = ctx->remote_ip4;
	struct sg_addr remote = sg_addr6(ctx->remote_ip6[0], ctx->remote_ip6[1],
					 ctx->remote_ip6[2],
					 ctx->remote_ip6[3]);
	struct sg_outside o = {
		.dir = SG_DIR_INGRESS,
		.proto = SG_IPPROTO_TCP,
		.opening = 1,
		.port = ctx->local_port,
	};
	struct sg_policy *policy;
	int outside, excluded = 0;
	__u64 cookie;
	__u32 steer, relay = 0;
	__u16 port;

	sg_barrier();
	if (ctx->protocol != SG_IPPROTO_TCP)
		return SK_PASS;
	if (!slot)
		return SK_DROP;
	cookie = slot->netns_cookie;
	if (!bpf_map_lookup_elem(&pods, &cookie))
		return SK_PASS;
	policy = sg_policy_of(cookie);
	if (!policy)
		return SK_DROP;
	if (ctx->family == SG_AF_INET)
		remote = sg_addr4(remote4);
	/*
	 * For what the pod sends to an address of its own the lookup names the
	 * device of that address, not lo. A packet from outside that forges a
	 * source of the pod gets no answer, and cgroup_skb sees its device.
	 */
	outside = ctx->ingress_ifindex != SG_LO_IFINDEX &&
		  !sg_is_local(cookie, &remote);
	if (outside) {
		sg_peers_of(policy, &remote, o.peer);
		excluded = sg_permits(policy, 0, &o);
	}
	steer = sg_verdict_steer(ctx->local_port, outside, excluded, policy);
	switch (steer) {
	case SG_STEER_NONE:
		return SK_PASS;
	case SG_STEER_INBOUND:
		port = policy->inbound;
		break;
	case SG_STEER_OUTBOUND:
		port = policy->outbound;
		break;
	case SG_STEER_TLS:
		port = policy->tls;
		relay = 1;
		break;
	default:
		return sg_pod_refuse(cookie, SG_DROP_OUTBOUND_PORT) ? SK_PASS
								    : SK_DROP;
	}
	/* An IPv6 listener that is not v6only takes IPv4 too. */
	if (!sg_assign(ctx, port, ctx->family == SG_AF_INET6, relay) ||
	    (ctx->family == SG_AF_INET && !sg_assign(ctx, port, 1, relay))) {
		if (outside)
			sg_count_pod(cookie, SG_COUNT_STEERED);
		return SK_PASS;
	}
	return sg_pod_refuse(cookie, SG_DROP_NO_LISTENER) ? SK_PASS : SK_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
