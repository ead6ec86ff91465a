/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * emit.h: events of user space, in the one order that readers see. Run by
 * BPF_PROG_TEST_RUN; its context is a struct sg_emit_args.
 */
#ifndef SIDEGATE_EMIT_H
#define SIDEGATE_EMIT_H

#include "events.h"

/* See sg_tls_ring_type. */
extern const struct sg_event_text *sg_event_text_type;
const struct sg_event_text *sg_event_text_type __attribute__((unused));

#define SG_EMIT_SHORT 600 /* what most events need */

/* The verifier wants to see the limit here. */
SG_INLINE int sg_emit_fill(struct sg_event_text *to, __u32 most,
			   const struct sg_event *e, const void *text,
			   __u32 len)
{
	__u32 n = sg_opaque(len);

	if (n > most)
		return -1;
	to->e = *e;
	to->len = n;
	to->reserved = 0;
	return bpf_copy_from_user(to->text, n, text);
}

/* To one reader. The size of a record is a constant. */
SG_INLINE int sg_emit_to(void *ring, const struct sg_event *e, const void *text,
			 __u32 len)
{
	const __u32 head = __builtin_offsetof(struct sg_event_text, text);
	struct sg_event_text *to;

	if (len <= SG_EMIT_SHORT) {
		to = bpf_ringbuf_reserve(ring, head + SG_EMIT_SHORT, 0);
		if (!to)
			return -1;
		if (sg_emit_fill(to, SG_EMIT_SHORT, e, text, len))
			bpf_ringbuf_discard(to, 0);
		else
			bpf_ringbuf_submit(to, 0);
		return 0;
	}
	to = bpf_ringbuf_reserve(ring, sizeof(*to), 0);
	if (!to)
		return -1;
	if (sg_emit_fill(to, SG_EVENT_TEXT, e, text, len))
		bpf_ringbuf_discard(to, 0);
	else
		bpf_ringbuf_submit(to, 0);
	return 0;
}

SEC("syscall")
int sg_emit(struct sg_emit_args *ctx)
{
	__u32 zero = 0, len = ctx->len;
	struct sg_event_control *c = bpf_map_lookup_elem(&event_control, &zero);
	const void *text = (const void *)ctx->text;
	struct sg_event e = ctx->e;

	if (!c || !len || len > SG_EVENT_TEXT)
		return 0;
	e.time_ns = bpf_ktime_get_boot_ns();
	/* That a container comes or goes, nobody may hide behind others. */
	if (e.kind > SG_EVENT_DETACH &&
	    !sg_event_allowed(&e, e.time_ns, &e.suppressed))
		return 0;
	for (__u32 i = 0; i < SG_EVENT_READERS; i++) {
		void *ring;
		__u32 n = i;

		if (!c->until[i])
			continue;
		ring = c->until[i] < e.time_ns
			       ? 0
			       : bpf_map_lookup_elem(&event_rings, &n);
		if (!ring || sg_emit_to(ring, &e, text, len))
			__sync_fetch_and_add(&c->lost[i], 1);
	}
	return 0;
}

#endif
