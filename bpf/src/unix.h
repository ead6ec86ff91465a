/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * unix.h: whether a container may connect or send to a UNIX socket. Two objects
 * ask, of which a node has one: lsm.bpf.c where BPF LSM is on, which knows the
 * other socket, and unix.bpf.c elsewhere, which knows the name that was given.
 */
#ifndef SIDEGATE_UNIX_H
#define SIDEGATE_UNIX_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "common.h"

#define SG_SUN_PATH 2 /* offsetof(struct sockaddr_un, sun_path) */

/* The name of a UNIX socket. */
struct sg_unix_name {
	__u8 b[SG_UNIX_PATH]; /* sun_path, with the 0 that abstract ones begin
			       * with, without the 0 that may end a path */
	__u32 len; /* 0: it has none */
	__u8 abstract;
	__u8 unclean; /* none, or a path that can be written otherwise */
	__u8 type; /* SOCK_* */
	__u8 reserved;
};

/* 1 if they are the same, else 0. Without a branch, as sg_within. */
SG_INLINE __u32 sg_same(__u8 a, __u8 b)
{
	return sg_opaque((__u32)(a ^ b) - 1) >> 31;
}

/*
 * Ends the path where the kernel does, at a 0, and looks whether all of its
 * components are names: a rule is about the one clean way to write a path.
 */
SG_GLOBAL int sg_unix_path(struct sg_unix_name *n)
{
	/* Whether the component has nothing yet, is "." or "..": 0 or 1. */
	__u32 empty = 0, dot = 0, dots = 0;
	__u32 unclean = 0, i;

	if (!n)
		return 0;
	for (i = 0; i < SG_UNIX_PATH; i++) {
		__u8 c = n->b[i];
		__u32 is_slash = sg_same(c, '/'), is_dot = sg_same(c, '.');

		if (i >= sg_opaque(n->len) || !c)
			break;
		unclean |= is_slash & (empty | dot | dots);
		dots = dot & is_dot;
		dot = empty & is_dot;
		empty = is_slash;
	}
	n->len = i;
	n->unclean = n->b[0] != '/' || (unclean | empty | dot | dots);
	return 0;
}

/* The name whose sun_path has len bytes, at most SG_UNIX_PATH, in b already. */
SG_INLINE void sg_unix_name_set(struct sg_unix_name *n, __u32 len, __u8 type)
{
	n->type = type;
	n->len = len;
	n->abstract = len > 0 && !n->b[0];
	if (!n->abstract)
		sg_unix_path(n);
}

/* One step of the automaton from states s with byte c. */
SG_INLINE void sg_unix_step(const struct sg_unix_rule *r, struct sg_unix_set *s,
			    __u8 c)
{
	const struct sg_unix_set *m = &r->match[c];
	__u64 lo = s->w[0] & m->w[0], hi = s->w[1] & m->w[1];
	__u64 star = (__u64)sg_same(c, '/') - 1;

	s->w[0] = (s->w[0] & (r->deep.w[0] | (r->star.w[0] & star))) | lo << 1;
	s->w[1] = (s->w[1] & (r->deep.w[1] | (r->star.w[1] & star))) | hi << 1 |
		  lo >> 63;
}

/* A star takes nothing, too. No two of them follow each other. */
SG_INLINE void sg_unix_skip(const struct sg_unix_rule *r, struct sg_unix_set *s)
{
	__u64 lo = s->w[0] & (r->star.w[0] | r->deep.w[0]);
	__u64 hi = s->w[1] & (r->star.w[1] | r->deep.w[1]);

	s->w[0] |= lo << 1;
	s->w[1] |= hi << 1 | lo >> 63;
}

SG_GLOBAL int sg_unix_match(const struct sg_unix_rule *r,
			    const struct sg_unix_name *n)
{
	struct sg_unix_set s = {{1, 0}};

	if (!r || !n || n->abstract != r->abstract ||
	    (r->type && r->type != n->type))
		return 0;
	sg_unix_skip(r, &s);
	for (__u32 i = 0; i < SG_UNIX_PATH; i++) {
		if (i >= sg_opaque(n->len))
			break;
		if (!i && n->abstract)
			continue;
		sg_unix_step(r, &s, n->b[i]);
		sg_unix_skip(r, &s);
	}
	return !!((s.w[0] & r->accept.w[0]) | (s.w[1] & r->accept.w[1]));
}

/* Whether the rule is about sockets of peer. */
SG_INLINE int sg_unix_peer_ok(const struct sg_unix_rule *r,
			      const struct sg_end *peer)
{
	if (!r->npeers)
		return 1;
	if (!peer->cgroup_id)
		return 0;
	for (__u32 i = 0; i < SG_UNIX_PEERS; i++) {
		if (i >= r->npeers)
			break;
		if (r->peer[i] == peer->subject[0] ||
		    r->peer[i] == peer->subject[1])
			return 1;
	}
	return 0;
}

/*
 * The number of the subject's rule that lets it, or 0. Their keys are numbered
 * without gaps.
 */
SG_INLINE int sg_unix_rule_query(__u32 revision, __u32 subject,
				 const struct sg_unix_name *n,
				 const struct sg_end *peer)
{
	struct sg_unix_key key = {.revision = revision, .subject = subject};

	/* Not key.n: the verifier forgets numbers on the stack. */
	for (__u32 i = 0; i < SG_MAX_UNIX; i++) {
		struct sg_unix_rule *r;

		key.n = i;
		r = bpf_map_lookup_elem(&unix_rules, &key);
		if (!r)
			break;
		if (sg_unix_peer_ok(r, peer) && sg_unix_match(r, n))
			return r->rule;
	}
	return 0;
}

/*
 * Whether self may, and in *rule by which rule, or 0: it has none. peer is
 * whose socket it is, or zeroed: a rule that wants a certain one lets nobody
 * through where that cannot be known.
 */
SG_INLINE int sg_unix_allowed(const struct sg_policy *policy,
			      const struct sg_container *self,
			      const struct sg_unix_name *n,
			      const struct sg_end *peer, __u32 *rule)
{
	struct sg_end end;

	sg_end_of(policy, self, &end);
	if (!(end.flags & SG_SUBJECT_UNIX))
		return 1;
	if (n->unclean)
		return 0;
	for (int i = 0; i < 2; i++) {
		if (end.subject[i])
			*rule = sg_unix_rule_query(policy->revision,
						   end.subject[i], n, peer);
		if (*rule)
			return 1;
	}
	return 0;
}

/* Keeps a record, under mode audit, of what would have been refused. */
SG_NOINLINE void sg_unix_record(const struct sg_container *self,
				const struct sg_unix_name *n, __u64 peer)
{
	struct sg_seen_unix what = {
		.netns_cookie = self->netns_cookie,
		.cgroup_id = self->cgroup_id,
		.peer = peer,
		.len = n->len,
		.abstract = n->abstract,
		.type = n->type,
	};

	/* Behind a path there may be anything. */
	for (__u32 i = 0; i < SG_UNIX_PATH; i++) {
		if (i >= sg_opaque(n->len))
			break;
		what.name[i] = n->b[i];
	}
	sg_seen_again(&seen_unix, &what);
}

/* Counts a connection or datagram, with its reason set, and tells who reads. */
SG_NOINLINE void sg_unix_tell(const struct sg_seen *what,
			      const struct sg_how *how,
			      const struct sg_unix_name *n)
{
	struct sg_event_unix u = {};

	sg_seen_again(&flows, what);
	if (!sg_somebody_reads())
		return;
	u.e.netns_cookie = what->netns_cookie;
	u.e.cgroup_id = what->cgroup_id;
	u.e.peer = what->peer;
	u.e.kind = SG_EVENT_UNIX;
	u.e.counter = what->reason;
	u.e.audit = how->audit;
	u.e.revision = how->revision;
	u.e.rule = how->rule;
	u.e.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(u.e.comm, sizeof(u.e.comm));
	u.len = n->len;
	u.abstract = n->abstract;
	u.type = n->type;
	for (__u32 i = 0; i < SG_UNIX_PATH; i++) {
		if (i >= sg_opaque(n->len))
			break;
		u.name[i] = n->b[i];
	}
	sg_event_send(&u.e, sizeof(u));
}

/* Allows, or counts and refuses: SG_PROCEED or SG_REJECT. */
SG_INLINE int sg_unix_judge(const struct sg_policy *policy,
			    const struct sg_container *self,
			    const struct sg_unix_name *n,
			    const struct sg_end *peer)
{
	struct sg_seen what = {
		.netns_cookie = self->netns_cookie,
		.cgroup_id = self->cgroup_id,
		.peer = peer->cgroup_id,
		.reason = SG_COUNT_LOCAL,
	};
	struct sg_how how = {.revision = policy->revision};

	if (sg_unix_allowed(policy, self, n, peer, &how.rule)) {
		/* A datagram is not worth an event. */
		if (n->type != SG_SOCK_DGRAM)
			sg_unix_tell(&what, &how, n);
		return SG_PROCEED;
	}
	what.reason = SG_DROP_UNIX;
	how.audit = !!(policy->flags & SG_POLICY_AUDIT);
	sg_unix_tell(&what, &how, n);
	sg_count(self->cgroup_id, how.audit ? SG_COUNT_AUDIT : SG_DROP_UNIX);
	if (!how.audit)
		return SG_REJECT;
	sg_unix_record(self, n, peer->cgroup_id);
	return SG_PROCEED;
}

#endif
