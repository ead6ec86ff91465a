/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For tests alone, and in no shipped object: the pure functions of verdict.h,
 * each behind a program that the kernel runs on request, and what packet.h and
 * device.h make of a packet that no socket sent. (A packet of
 * BPF_PROG_TEST_RUN always has a socket, so that sg_device never gets there.)
 */
#include "common.h"
#include "packet.h"
#include "device.h"

/* What every function may ask for, and what it said. */
struct sg_case {
	/* in */
	__u64 netns_cookie;
	struct sg_sock sock;
	struct sg_container container;
	struct sg_addr addr;
	struct sg_pod pod;
	struct sg_flow flow;
	struct sg_rule rule;
	__u32 role;
	__u32 type;
	__u32 proto;
	__u16 port;
	__u8 fragment;
	__u8 non_tcp;
	__u8 from_outside;
	__u8 ingress_rule;
	__u8 has_sock; /* 0: NULL */
	__u8 has_container; /* 0: NULL */
	/* out */
	enum sg_action action;
	enum sg_counter counter;
	enum sg_steer steer;
	__u32 yes; /* of those that answer yes or no: not 0 */
};
_Static_assert(sizeof(struct sg_case) == 328, "no padding");

/*
 * A context is read at constant offsets only, so the functions, which loop,
 * get copies.
 */
#define SG_COPY(field)                                                         \
	__typeof__(c->field) field;                                            \
	__builtin_memcpy(&field, &c->field, sizeof(field));                    \
	sg_barrier()

SEC("syscall")
int judge_loopback(struct sg_case *c)
{
	SG_COPY(addr);
	c->yes = sg_is_loopback(&addr);
	return 0;
}

SEC("syscall")
int judge_v4(struct sg_case *c)
{
	SG_COPY(addr);
	c->yes = sg_is_v4(&addr);
	return 0;
}

SEC("syscall")
int judge_reserved(struct sg_case *c)
{
	SG_COPY(pod);
	c->yes = sg_is_reserved(&pod, c->port);
	return 0;
}

SEC("syscall")
int judge_rule(struct sg_case *c)
{
	SG_COPY(rule);
	c->yes = sg_rule_allows(&rule, c->proto, c->port, c->fragment);
	return 0;
}

SEC("syscall")
int judge_socket(struct sg_case *c)
{
	struct sg_verdict v =
		sg_verdict_socket(c->role, c->type, c->proto, c->non_tcp);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_connect(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(pod);
	struct sg_verdict v = sg_verdict_connect(c->role, &flow, &pod);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_bind(struct sg_case *c)
{
	SG_COPY(pod);
	struct sg_verdict v = sg_verdict_bind(c->role, c->port, &pod);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_packet_out(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(pod);
	struct sg_verdict v = sg_verdict_packet_out(c->role, &flow, &pod);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_packet_in(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(pod);
	struct sg_verdict v = sg_verdict_packet_in(c->role, &flow, &pod);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_steer(struct sg_case *c)
{
	SG_COPY(pod);
	c->steer = sg_verdict_steer(c->port, c->from_outside, c->ingress_rule,
				    &pod);
	return 0;
}

SEC("syscall")
int judge_guard(struct sg_case *c)
{
	SG_COPY(sock);
	SG_COPY(container);
	c->yes = sg_verdict_guard(c->netns_cookie, c->has_sock ? &sock : 0,
				  c->has_container ? &container : 0);
	return 0;
}

/* The pod whose rules, addresses and counters the programs below use. */
const volatile __u64 packet_cookie = 0;

/* What judge_packet saw. */
struct sg_seen {
	struct sg_packet packet;
	struct sg_flow out;
	struct sg_flow in;
	__u32 malformed;
} seen;

SEC("tc")
int judge_packet(struct __sk_buff *skb)
{
	struct sg_packet p;

	__builtin_memset(&seen, 0, sizeof(seen));
	if (sg_parse(skb, ETH_HLEN, &p)) {
		seen.malformed = 1;
		return 0;
	}
	seen.packet = p;
	seen.out = sg_flow_out(packet_cookie, &p, 0);
	seen.in = sg_flow_in(packet_cookie, &p, 0);
	return 0;
}

/* sg_device of a packet that has no socket. */
SEC("tc")
int judge_orphan(struct __sk_buff *skb)
{
	return sg_dev_orphan(skb, 0, packet_cookie);
}

/* sg_device of a packet of a socket of the kernel's own. */
SEC("tc")
int judge_kernel(struct __sk_buff *skb)
{
	__u64 cookie = packet_cookie;
	struct sg_pod *pod = bpf_map_lookup_elem(&pods, &cookie);

	return pod ? sg_dev_kernel(skb, pod, cookie) : SG_DEV_DROP;
}

/*
 * Sends the packet on lo, with no socket: a copy has none. What the device's
 * programs say to it is the answer.
 */
SEC("tc")
int send_orphan(struct __sk_buff *skb)
{
	return bpf_clone_redirect(skb, 1, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
