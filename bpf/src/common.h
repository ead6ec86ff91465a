/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* common.h: who is asking, counting, and the lookups that hooks share. */
#ifndef SIDEGATE_COMMON_H
#define SIDEGATE_COMMON_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"
#include "verdict.h"

/* What a cgroup hook returns. */
#define SG_REJECT 0
#define SG_PROCEED 1

/* What a device program returns. */
#define SG_DEV_PASS -1 /* TCX_NEXT, TC_ACT_UNSPEC */
#define SG_DEV_DROP 2 /* TCX_DROP, TC_ACT_SHOT */

/*
 * A function that the verifier judges once, on its own, and not again for each
 * path that leads to it. Programs load in a tenth of the time.
 */
#define SG_GLOBAL __attribute__((noinline))

/* A call in the program too: shared code that is not worth its copies. */
#define SG_NOINLINE static __attribute__((noinline, unused))

#include "events.h"

/* Keeps the compiler from moving context reads past this point. */
#define sg_barrier() asm volatile("" ::: "memory")

SG_NOINLINE void sg_count(__u64 cgroup_id, enum sg_counter counter)
{
	struct sg_counters *c = bpf_map_lookup_elem(&counters, &cgroup_id);

	if (c && counter < SG_COUNTERS)
		c->v[counter]++; /* per CPU */
}

SG_NOINLINE void sg_count_pod(__u64 netns_cookie, enum sg_counter counter)
{
	struct sg_counters *c =
		bpf_map_lookup_elem(&pod_counters, &netns_cookie);

	if (c && counter < SG_COUNTERS)
		c->v[counter]++;
}

/* The container that the running program is attached to. Never NULL. */
SG_INLINE struct sg_container *sg_self(void)
{
	return bpf_get_local_storage(&identity, 0);
}

SG_INLINE void sg_sock_init(struct sg_sock *s, const struct sg_container *c)
{
	s->netns_cookie = c->netns_cookie;
	s->cgroup_id = c->cgroup_id;
	s->role = c->role;
}

SG_INLINE struct sg_addr sg_addr4(__u32 ip)
{
	struct sg_addr a = {};

	a.b[10] = 0xff;
	a.b[11] = 0xff;
	__builtin_memcpy(&a.b[12], &ip, 4);
	return a;
}

SG_INLINE struct sg_addr sg_addr6(__u32 w0, __u32 w1, __u32 w2, __u32 w3)
{
	struct sg_addr a;

	__builtin_memcpy(&a.b[0], &w0, 4);
	__builtin_memcpy(&a.b[4], &w1, 4);
	__builtin_memcpy(&a.b[8], &w2, 4);
	__builtin_memcpy(&a.b[12], &w3, 4);
	return a;
}

SG_INLINE int sg_is_local(__u64 netns_cookie, const struct sg_addr *a)
{
	struct sg_pod_addr key = {.netns_cookie = netns_cookie, .addr = *a};

	return sg_is_loopback(a) || bpf_map_lookup_elem(&pod_addrs, &key);
}

/* The policy that the pod is under now. Read once by whoever decides. */
SG_NOINLINE struct sg_policy *sg_policy_of(__u64 netns_cookie)
{
	struct sg_pod *pod = bpf_map_lookup_elem(&pods, &netns_cookie);
	__u32 *slot, revision;

	if (!pod)
		return 0;
	slot = bpf_map_lookup_elem(&policy_slots, &pod->policy);
	if (!slot)
		return 0;
	revision = *(volatile __u32 *)slot;
	return bpf_map_lookup_elem(&policies, &revision);
}

/* Whether hooks look who is at the other end inside the pod. */
SG_INLINE int sg_knows_peers(const struct sg_policy *policy)
{
	return !!(policy->flags & (SG_POLICY_RULED | SG_POLICY_AUDIT));
}

/* One end inside the pod, as its policy knows it. */
struct sg_end {
	__u64 cgroup_id;
	__u32 subject[2]; /* role and name; 0: none */
	__u32 flags; /* enum sg_subject_flags, of both */
	__u32 reserved;
};

SG_INLINE void sg_end_of(const struct sg_policy *policy,
			 const struct sg_container *c, struct sg_end *e)
{
	struct sg_subject_key key = {
		.revision = policy->revision,
		.subject = c->name,
	};
	__u32 *flags;

	__builtin_memset(e, 0, sizeof(*e));
	e->cgroup_id = c->cgroup_id;
	e->subject[0] = c->subject & (SG_SUBJECT_ROLES - 1);
	e->flags = policy->subjects[e->subject[0]];
	if (!c->name || !(policy->flags & SG_POLICY_NAMES))
		return;
	e->subject[1] = c->name;
	flags = bpf_map_lookup_elem(&subjects, &key);
	if (flags)
		e->flags |= *flags;
}

/* A question to the rules. */
struct sg_query {
	__u32 revision;
	__u32 subject[2]; /* either may be 0, but for SG_SUBJECT_POD alone */
	__u32 peer[2]; /* either may be 0 */
	__u8 dir; /* enum sg_dir */
	__u8 proto;
	__u16 port; /* or ICMP type */
	__u8 whole; /* asks for all ports at once */
	__u8 reserved[3];
};

/* The number of the rule that lets it through, or 0. */
SG_GLOBAL int sg_rule_query(const struct sg_query *q)
{
	struct sg_rule_key key = {};

	if (!q)
		return 0;
	key.prefixlen = q->whole ? SG_RULE_PROTO_BITS : SG_RULE_PROTO_BITS + 16;
	key.revision = q->revision;
	key.dir = q->dir;
	key.proto = q->proto;
	key.port = bpf_htons(q->port);
	for (int i = 0; i < 4; i++) {
		__u32 *rule;

		key.subject = q->subject[i >> 1];
		key.peer = q->peer[i & 1];
		if (!key.peer || ((i >> 1) && !key.subject))
			continue;
		rule = bpf_map_lookup_elem(&rules, &key);
		if (rule)
			return *rule;
	}
	return 0;
}

/* What the rules may call an outside address. */
SG_INLINE void sg_peers_of(const struct sg_policy *policy,
			   const struct sg_addr *a, __u32 peer[2])
{
	__u32 *class;

	peer[0] = 0;
	peer[1] = 0;
	if (policy->flags & SG_POLICY_PREFIXES) {
		struct sg_prefix_key key = {
			.prefixlen = SG_PREFIX_BITS + 128,
			.revision = policy->revision,
			.ipv4 = !!sg_is_v4(a),
			.addr = *a,
		};

		class = bpf_map_lookup_elem(&prefixes, &key);
		if (class)
			peer[0] = *class;
	}
	if (policy->flags & SG_POLICY_WORLD)
		peer[1] = bpf_map_lookup_elem(&host_addrs, a) ? SG_PEER_HOST
							      : SG_PEER_WORLD;
}

/*
 * What an ICMP message answers: an echo reply is let through by the rule for
 * the request. -1: nothing that a rule can be about.
 */
SG_INLINE int sg_icmp_answers(__u8 proto, __u16 type)
{
	if (proto == SG_IPPROTO_ICMP)
		return type == 0 ? 8 : -1;
	return type == 129 ? 128 : -1;
}

/* A flow with the outside: who, with whom, and what about. */
struct sg_outside {
	__u32 peer[2];
	__u8 dir; /* enum sg_dir: of the packet */
	__u8 proto;
	__u8 fragment;
	__u8 opening; /* opens a TCP connection, and so answers nothing */
	__u16 port; /* where it goes; or ICMP type */
	__u16 reply; /* where it comes from: what it may answer */
};

/*
 * The number of the rule about the flow, or about what it answers, which went
 * the other way, to the port that this comes from. 0: there is none.
 */
SG_INLINE int sg_permits(const struct sg_policy *policy,
			 const struct sg_end *self, const struct sg_outside *o)
{
	int rule;
	struct sg_query q = {
		.revision = policy->revision,
		.peer = {o->peer[0], o->peer[1]},
		.dir = o->dir,
		.proto = o->proto,
		.port = o->port,
		.whole = o->fragment,
	};

	if (!q.peer[0] && !q.peer[1])
		return 0;
	if (self) {
		q.subject[0] = self->subject[0];
		q.subject[1] = self->subject[1];
	}
	rule = sg_rule_query(&q);
	if (rule || o->opening)
		return rule;
	if (o->proto == SG_IPPROTO_ICMP || o->proto == SG_IPPROTO_ICMPV6) {
		int type = sg_icmp_answers(o->proto, o->port);

		if (type < 0)
			return 0;
		q.port = type;
	} else {
		q.port = o->reply;
	}
	q.dir = o->dir ^ 1;
	return sg_rule_query(&q);
}

/* A flow inside the pod. */
struct sg_inside_query {
	struct sg_end from;
	struct sg_end to;
	__u32 revision;
	__u8 proto;
	__u8 reserved;
	__u16 port; /* of to */
	__u32 rule; /* answer: that lets it through, or 0 */
};

/*
 * What the rules of both ends say (enum sg_inside). Where both have one, in
 * gets the sender's. A container is free to talk to itself.
 */
SG_GLOBAL int sg_inside_of(struct sg_inside_query *in)
{
	struct sg_query q = {};
	int rule;

	if (!in)
		return SG_INSIDE_EGRESS;
	in->rule = 0;
	if (in->from.cgroup_id == in->to.cgroup_id)
		return SG_INSIDE_ALLOW;
	q.revision = in->revision;
	q.proto = in->proto;
	q.port = in->port;
	if (in->from.flags & SG_SUBJECT_RULED) {
		q.dir = SG_DIR_EGRESS;
		q.subject[0] = in->from.subject[0];
		q.subject[1] = in->from.subject[1];
		q.peer[0] = in->to.subject[0];
		q.peer[1] = in->to.subject[1];
		in->rule = sg_rule_query(&q);
		if (!in->rule)
			return SG_INSIDE_EGRESS;
	}
	if (in->to.flags & SG_SUBJECT_RULED) {
		q.dir = SG_DIR_INGRESS;
		q.subject[0] = in->to.subject[0];
		q.subject[1] = in->to.subject[1];
		q.peer[0] = in->from.subject[0];
		q.peer[1] = in->from.subject[1];
		rule = sg_rule_query(&q);
		if (!rule)
			return SG_INSIDE_INGRESS;
		if (!in->rule)
			in->rule = rule;
	}
	return SG_INSIDE_ALLOW;
}

/* Completes a key of map seen. Inside the pod any address of it is the same. */
SG_INLINE void sg_seen_by(const struct sg_container *self, struct sg_seen *what)
{
	what->netns_cookie = self->netns_cookie;
	what->cgroup_id = self->cgroup_id;
	if (what->peer > 1)
		__builtin_memset(&what->addr, 0, sizeof(what->addr));
}

/* Keeps a record, under mode audit, of what self did; what has the rest. */
SG_NOINLINE void sg_record(const struct sg_container *self,
			   struct sg_seen *what)
{
	sg_seen_by(self, what);
	sg_seen_again(&seen, what);
}

/*
 * Whether map seen has a datagram that went the other way, to the port that
 * this one (what) comes from, and which it then answers. Of the reasons why
 * that would have been denied only those for datagrams count.
 */
SG_NOINLINE int sg_answers(const struct sg_container *self,
			   const struct sg_seen *what, __u16 from)
{
	const __u8 reasons[] = {0,
				SG_DROP_UDP,
				SG_DROP_EGRESS,
				SG_DROP_INGRESS,
				SG_DROP_POLICY_EGRESS,
				SG_DROP_POLICY_INGRESS};
	struct sg_seen call = *what;

	sg_seen_by(self, &call);
	call.dir = what->dir ^ 1;
	call.port = from;
	for (__u32 i = 0; i < sizeof(reasons); i++) {
		call.reason = reasons[i];
		if (bpf_map_lookup_elem(&seen, &call))
			return 1;
	}
	return 0;
}

/*
 * Refuses: counts the reason, and tells. Under mode audit it records it, and
 * proceeds; then it returns 1.
 */
SG_INLINE int sg_refuse(const struct sg_policy *policy,
			const struct sg_container *self, __u32 counter,
			struct sg_seen *what, __u8 kind, __u32 pid)
{
	int audit = policy && (policy->flags & SG_POLICY_AUDIT);

	struct sg_how how = {
		.kind = kind,
		.audit = !!audit,
		.revision = policy ? policy->revision : 0,
		.pid = pid,
	};

	sg_count(self->cgroup_id, audit ? SG_COUNT_AUDIT : counter);
	what->reason = counter;
	sg_seen_by(self, what);
	if (kind == SG_EVENT_PACKET)
		sg_tell(what, &how);
	else
		sg_tell_task(what, &how);
	if (!audit)
		return 0;
	sg_record(self, what);
	return 1;
}

/* The same of what is no container's. */
SG_NOINLINE int sg_pod_refuse(__u64 netns_cookie, enum sg_counter counter)
{
	struct sg_policy *policy = sg_policy_of(netns_cookie);
	int audit = policy && (policy->flags & SG_POLICY_AUDIT);

	struct sg_seen what = {
		.netns_cookie = netns_cookie,
		.reason = counter,
	};
	struct sg_how how = {
		.kind = SG_EVENT_PACKET,
		.audit = !!audit,
		.revision = policy ? policy->revision : 0,
	};

	sg_count_pod(netns_cookie, audit ? SG_COUNT_AUDIT : counter);
	sg_tell(&what, &how);
	return audit;
}

#endif
