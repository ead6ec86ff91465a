/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * For tests alone, and in no shipped object: the pure functions of verdict.h,
 * each behind a program that the kernel runs on request, those of common.h that
 * ask the maps, and what packet.h, skb.h and device.h make of a packet that no
 * socket sent. (A packet of BPF_PROG_TEST_RUN always has a socket, so that
 * sg_device never gets there.)
 */
#include "common.h"
#include "packet.h"
#include "skb.h"
#include "device.h"
#include "events.h"

/* What every function may ask for, and what it said. */
struct sg_case {
	/* in */
	__u64 netns_cookie;
	struct sg_sock sock;
	struct sg_container container;
	struct sg_addr addr;
	struct sg_policy policy;
	struct sg_flow flow;
	__u16 port;
	__u32 role;
	__u32 flags; /* enum sg_subject_flags */
	__u32 type;
	__u32 proto;
	enum sg_inside inside;
	__u32 count; /* a counter */
	__u8 process_ok;
	__u8 from_outside;
	__u8 excluded;
	__u8 has_sock; /* 0: NULL */
	__u8 has_container; /* 0: NULL */
	__u8 stranger;
	__u8 reserved[2];
	/* out */
	enum sg_action action;
	enum sg_counter counter;
	enum sg_steer steer;
	__u32 yes; /* of those that answer yes or no: not 0 */
};
_Static_assert(sizeof(struct sg_case) == 296, "no padding");

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
	SG_COPY(policy);
	c->yes = sg_is_reserved(&policy, c->port);
	return 0;
}

SEC("syscall")
int judge_socket(struct sg_case *c)
{
	SG_COPY(policy);
	struct sg_verdict v = sg_verdict_socket(c->role, c->stranger, c->flags,
						c->process_ok, c->type,
						c->proto, &policy);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_family(struct sg_case *c)
{
	struct sg_verdict v = sg_verdict_family(c->role, c->flags, c->proto);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_inside(struct sg_case *c)
{
	struct sg_verdict v = sg_verdict_inside(c->inside, c->count);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_connect(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(policy);
	struct sg_verdict v = sg_verdict_connect(c->role, &flow, &policy);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_bind(struct sg_case *c)
{
	SG_COPY(policy);
	struct sg_verdict v = sg_verdict_bind(c->role, c->port, &policy);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_packet_out(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(policy);
	struct sg_verdict v = sg_verdict_packet_out(c->role, &flow, &policy);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_packet_in(struct sg_case *c)
{
	SG_COPY(flow);
	SG_COPY(policy);
	struct sg_verdict v = sg_verdict_packet_in(c->role, &flow, &policy);

	c->action = v.action;
	c->counter = v.counter;
	return 0;
}

SEC("syscall")
int judge_steer(struct sg_case *c)
{
	SG_COPY(policy);
	c->steer = sg_verdict_steer(c->port, c->from_outside, c->excluded,
				    &policy);
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

/*
 * A question to the tables, and the answer. Programs that the kernel runs on a
 * context alone may sleep, and those may not look into a prefix map: so it is
 * not in a context but in a map, and they run on a packet.
 */
struct sg_ask {
	/* in */
	__u64 netns_cookie;
	struct sg_policy policy;
	struct sg_container container;
	struct sg_inside_query inside;
	struct sg_end self;
	struct sg_query query;
	struct sg_outside outside;
	struct sg_addr addr;
	__u32 has_self; /* 0: NULL */
	/* out */
	__s32 answer;
	__u32 peer[2];
	__u32 reserved;
	struct sg_end end;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sg_ask);
} asks SEC(".maps");

/* The program that asks name what is in the map, as a. */
#define SG_ASK(name)                                                           \
	SG_INLINE void sg_ask_##name(struct sg_ask *a);                        \
	SEC("tc")                                                              \
	int ask_##name(struct __sk_buff *skb __attribute__((unused)))          \
	{                                                                      \
		__u32 zero = 0;                                                \
		struct sg_ask *a = bpf_map_lookup_elem(&asks, &zero);          \
                                                                               \
		if (a)                                                         \
			sg_ask_##name(a);                                      \
		return 0;                                                      \
	}                                                                      \
	SG_INLINE void sg_ask_##name(struct sg_ask *a)

SG_ASK(rule)
{
	struct sg_query query = a->query;

	a->answer = sg_rule_query(&query);
}

SG_ASK(inside)
{
	struct sg_inside_query inside = a->inside;

	a->answer = sg_inside_of(&inside);
}

SG_ASK(peers)
{
	sg_peers_of(&a->policy, &a->addr, a->peer);
}

SG_ASK(permits)
{
	a->answer =
		sg_permits(&a->policy, a->has_self ? &a->self : 0, &a->outside);
}

SG_ASK(end)
{
	sg_end_of(&a->policy, &a->container, &a->end);
}

SG_ASK(policy)
{
	struct sg_policy *policy = sg_policy_of(a->netns_cookie);

	a->answer = policy ? (__s32)policy->revision : -1;
}

SG_ASK(local)
{
	a->answer = !!sg_is_local(a->netns_cookie, &a->addr);
}

/* The pod whose rules, addresses and counters the programs below use. */
const volatile __u64 packet_cookie = 0;

/* What judge_packet is to see, and what it saw. */
struct sg_view {
	/* in */
	__u64 cgroup_id; /* of the container whose packet it is */
	__u32 loopback_device;
	__u32 sock_flags; /* of the socket that sends it */
	/* out */
	__u32 malformed;
	__u32 nobody; /* there is no such container, or no policy */
	struct sg_packet packet;
	struct sg_flow out;
	struct sg_flow in;
	__u64 peer;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sg_view);
} views SEC(".maps");

SEC("tc")
int judge_packet(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sg_view *view = bpf_map_lookup_elem(&views, &zero);
	struct sg_container *self;
	struct sg_policy *policy;
	struct sg_packet p;
	struct sg_end end;
	int lo;

	if (!view)
		return SG_DEV_PASS;
	lo = view->loopback_device;
	self = bpf_map_lookup_elem(&containers, &view->cgroup_id);
	policy = sg_policy_of(packet_cookie);
	if (!self || !policy) {
		view->nobody = 1;
		return SG_DEV_PASS;
	}
	if (sg_parse(skb, ETH_HLEN, &p)) {
		view->malformed = 1;
		return SG_DEV_PASS;
	}
	sg_end_of(policy, self, &end);
	view->packet = p;
	view->out = sg_flow_out(policy, packet_cookie, &end, &p, lo,
				view->sock_flags);
	view->in = sg_flow_in(skb, policy, self, &end, &p, lo, &view->peer);
	return SG_DEV_PASS;
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
	struct sg_policy *policy = sg_policy_of(packet_cookie);

	return policy ? sg_dev_kernel(skb, policy, packet_cookie) : SG_DEV_DROP;
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

/* The hash that a packet has where this is: no run of a program tells it. */
__u32 hash_seen;

SEC("tc")
int see_hash(struct __sk_buff *skb)
{
	hash_seen = skb->hash;
	return SG_DEV_PASS;
}

/*
 * What telling costs, by what is timed: nothing, a look whether somebody reads,
 * and the counting of a flow that is known. So many times, as the kernel says
 * whole nanoseconds.
 */
enum sg_cost { SG_COST_TIMES = 64 };

SEC("tc")
int cost_nothing(struct __sk_buff *skb __attribute__((unused)))
{
	return 0;
}

SEC("tc")
int cost_look(struct __sk_buff *skb __attribute__((unused)))
{
	int n = 0;

	for (int i = 0; i < SG_COST_TIMES; i++)
		n += sg_somebody_reads();
	return n;
}

SEC("tc")
int cost_flow(struct __sk_buff *skb __attribute__((unused)))
{
	struct sg_seen key = {.netns_cookie = packet_cookie};

	for (int i = 0; i < SG_COST_TIMES; i++)
		sg_seen_again(&flows, &key);
	return 0;
}

/* Numbers of abi.h and maps.h that no struct has, for their Go twins. */
enum sg_limits {
	SG_LIMIT_ABI = SG_ABI,
	SG_LIMIT_PENDING = SG_MAX_PENDING,
	SG_LIMIT_RESERVED = SG_MAX_RESERVED,
	SG_LIMIT_LISTENER_SLOTS = SG_LISTENER_SLOTS,
	SG_LIMIT_NAME = SG_NAME,
	SG_LIMIT_PREFIX_BITS = SG_PREFIX_BITS,
	SG_LIMIT_RULE_BITS = SG_RULE_BITS,
	SG_LIMIT_RULE_PROTO_BITS = SG_RULE_PROTO_BITS,
};

/* Keeps them, and enums of which only the numbers are used, in the object. */
struct sg_enums {
	enum sg_limits limits;
	enum sg_cost cost;
	enum sg_dir dir;
	enum sg_subject_id subject_id;
	enum sg_subject_flags subject_flags;
	enum sg_policy_flags policy_flags;
	enum sg_container_flags container_flags;
	enum sg_sock_flags sock_flags;
	enum sg_device_prog device_prog;
};
const struct sg_enums *sg_enums_type __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";
