/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * events.h: what happens, told to whoever reads. With nobody reading an event
 * costs one look at an array.
 */
#ifndef SIDEGATE_EVENTS_H
#define SIDEGATE_EVENTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"
#include "verdict.h"

/* See sg_tls_ring_type. */
extern const struct sg_event *sg_event_type;
const struct sg_event *sg_event_type __attribute__((unused));

_Static_assert(__builtin_offsetof(struct sg_event, cgroup_id) ==
		       __builtin_offsetof(struct sg_event, netns_cookie) + 8,
	       "struct sg_event_source is in it");

SG_INLINE int sg_somebody_reads(void)
{
	__u32 zero = 0;
	struct sg_event_control *c = bpf_map_lookup_elem(&event_control, &zero);

	/* The second look only while somebody reads, or was killed. */
	return c && *(volatile __u64 *)&c->any &&
	       *(volatile __u64 *)&c->any >= bpf_ktime_get_boot_ns();
}

/*
 * What others make happen to a container, and what it tries in vain, take no
 * room of what it does.
 */
SG_INLINE __u64 sg_event_class(const struct sg_event *e)
{
	if (e->kind > SG_EVENT_UNIX || e->counter < SG_DROP_FIRST)
		return SG_EVENT_DONE;
	if (e->kind != SG_EVENT_PACKET || e->counter == SG_DROP_UNREGISTERED)
		return SG_EVENT_REFUSED;
	return e->dir == SG_DIR_INGRESS || !e->cgroup_id ? SG_EVENT_ARRIVED
							 : SG_EVENT_REFUSED;
}

/*
 * Whether a container may tell one more event in this window of time. What it
 * has not told before is in *suppressed then.
 */
SG_INLINE int sg_event_allowed_in(const struct sg_event *e, __u64 now,
				  __u32 *suppressed)
{
	__u64 window = now >> SG_EVENT_WINDOW, was;
	/* The stack has no room for a key and a value of their own. */
	const void *key = &e->netns_cookie;
	struct sg_event_budget *b = bpf_map_lookup_elem(&event_budgets, key);

	if (!b) {
		bpf_map_update_elem(&event_budgets, key, e, BPF_NOEXIST);
		b = bpf_map_lookup_elem(&event_budgets, key);
		if (!b)
			return 0;
		b->window = 0;
		b->suppressed = 0;
		b->total = 0;
	}
	was = b->window;
	if (was < window &&
	    __sync_val_compare_and_swap(&b->window, was, window) == was)
		b->used = 0;
	if (__sync_fetch_and_add(&b->used, 1) >= SG_EVENT_MOST) {
		__sync_fetch_and_add(&b->suppressed, 1);
		__sync_fetch_and_add(&b->total, 1);
		return 0;
	}
	if (b->suppressed)
		*suppressed = __sync_lock_test_and_set(&b->suppressed, 0);
	return 1;
}

SG_INLINE int sg_event_allowed(struct sg_event *e, __u64 now, __u32 *suppressed)
{
	__u64 cookie = e->netns_cookie;
	int allowed;

	e->netns_cookie |= sg_event_class(e) << SG_EVENT_CLASS;
	allowed = sg_event_allowed_in(e, now, suppressed);
	e->netns_cookie = cookie;
	return allowed;
}

/*
 * Whether an event wakes the reader of a ring, which costs more than the event:
 * see SG_EVENT_QUIET.
 */
SG_INLINE __u64 sg_wakes(void *ring, __u64 *woken, __u64 now)
{
	if (now - *woken < SG_EVENT_QUIET &&
	    bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) <
		    bpf_ringbuf_query(ring, BPF_RB_RING_SIZE) / 2)
		return BPF_RB_NO_WAKEUP;
	*woken = now;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * Sends size bytes, which begin with e, to all who read, if the container has
 * not told too much.
 */
SG_INLINE void sg_event_send(struct sg_event *e, __u32 size)
{
	__u32 zero = 0;
	struct sg_event_control *c = bpf_map_lookup_elem(&event_control, &zero);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!c || !sg_event_allowed(e, now, &e->suppressed))
		return;
	e->time_ns = now;
	for (__u32 i = 0; i < SG_EVENT_READERS; i++) {
		void *ring;
		__u32 n = i;

		if (!c->until[i])
			continue;
		/* One that was stopped for too long is told so. */
		ring = c->until[i] < now
			       ? 0
			       : bpf_map_lookup_elem(&event_rings, &n);
		if (!ring ||
		    bpf_ringbuf_output(ring, e, size,
				       sg_wakes(ring, &c->woken[i], now)))
			__sync_fetch_and_add(&c->lost[i], 1);
	}
}

/*
 * Counts a key of map flows, seen or seen_unix once more. first is room on the
 * stack.
 */
SG_INLINE void sg_seen_again_in(void *map, const void *key,
				struct sg_seen_count *first)
{
	struct sg_seen_count *n = bpf_map_lookup_elem(map, key);

	if (!n) {
		first->count = 1;
		first->last_ns = bpf_ktime_get_boot_ns();
		bpf_map_update_elem(map, key, first, BPF_ANY);
		return;
	}
	__sync_fetch_and_add(&n->count, 1);
	n->last_ns = bpf_ktime_get_boot_ns();
}

SG_INLINE void sg_seen_again(void *map, const void *key)
{
	struct sg_seen_count first = {};

	sg_seen_again_in(map, key, &first);
}

/* What happened, besides what sg_seen says. */
struct sg_how {
	__u8 kind; /* enum sg_event_kind */
	__u8 audit;
	__u16 reserved;
	__u32 rule;
	__u32 revision;
	__u32 pid;
};

SG_INLINE void sg_tell_all(const struct sg_seen *what, const struct sg_how *how,
			   int task)
{
	union { /* one after the other: the stack has no room for both */
		struct {
			struct sg_seen key; /* Linux 6.12 wants it here */
			struct sg_seen_count first;
		} flow;
		struct sg_event e;
	} u = {};

	u.flow.key = *what;
	sg_seen_again_in(&flows, &u.flow.key, &u.flow.first);
	if (!sg_somebody_reads())
		return;
	u.e = (struct sg_event){
		.netns_cookie = what->netns_cookie,
		.cgroup_id = what->cgroup_id,
		.peer = what->peer,
		.addr = what->addr,
		.port = what->port,
		.proto = what->proto,
		.kind = how->kind,
		.dir = what->dir,
		.counter = what->reason,
		.audit = how->audit,
		.revision = how->revision,
		.rule = how->rule,
		.pid = how->pid,
	};
	if (task) {
		u.e.pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(u.e.comm, sizeof(u.e.comm));
	}
	sg_event_send(&u.e, sizeof(u.e));
}

/* Counts a flow, with its reason set, and tells who reads. */
SG_GLOBAL int sg_tell(const struct sg_seen *what, const struct sg_how *how)
{
	if (what && how)
		sg_tell_all(what, how, 0);
	return 0;
}

/* The same of what the running task does. */
SG_GLOBAL int sg_tell_task(const struct sg_seen *what, const struct sg_how *how)
{
	if (what && how)
		sg_tell_all(what, how, 1);
	return 0;
}

#endif
