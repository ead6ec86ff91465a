// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object of accelerated sockets: the program of map ends. It stays with the
 * map, so that it is apart from those that containers have, and can be tried on
 * sockets of user space's own with maps of their own. A program of this type
 * may not look up the other end's socket: it has its address from sg_sockops.
 */
#include "accel.h"

/*
 * What may wait for a reader. It is about what TCP itself holds, in the buffers
 * of both ends; the kernel has no limit here but its memory for TCP.
 */
const volatile __s32 sg_max_unread = 4 << 20;

SEC("sk_msg")
int sg_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct sg_accel_counters *count;
	struct sg_conn_key key;
	struct sg_conn *c;
	__u32 side;

	if (!sk)
		return SK_PASS;
	c = sg_conn_of(sk, &key, &side);
	if (!c || c->plain[side])
		return SK_PASS;
	if (!c->whole) {
		sg_conn_leave(c, side, SG_ACCEL_PLAIN_EARLY);
		return SK_PASS;
	}
	/* TCP says that it is too late to send: redirecting would not. */
	if (sk->state != BPF_TCP_ESTABLISHED &&
	    sk->state != BPF_TCP_CLOSE_WAIT) {
		sg_conn_leave(c, side, SG_ACCEL_PLAIN_GONE);
		return SK_PASS;
	}
	if (sg_waits_for(c, !side) > sg_max_unread) {
		sg_conn_leave(c, side, SG_ACCEL_PLAIN_UNREAD);
		return SK_PASS;
	}
	key.side = !side;
	if (bpf_msg_redirect_hash(msg, &ends, &key, BPF_F_INGRESS) != SK_PASS) {
		sg_conn_leave(c, side, SG_ACCEL_PLAIN_GONE);
		return SK_PASS;
	}
	count = bpf_map_lookup_elem(&accel_counters, &c->cgroup_id[side]);
	if (count) {
		count->v[SG_ACCEL_MESSAGES]++;
		count->v[SG_ACCEL_BYTES] += msg->size;
	}
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
