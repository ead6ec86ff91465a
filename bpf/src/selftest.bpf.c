// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object of the self-test: the program of accelerated sockets, and what
 * does to a connection of user space's own what sg_sockops does to a pod's.
 */
#include "accel.bpf.c"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sg_conn_key);
} joining SEC(".maps");

/*
 * Run by hand: it makes the connection in map joining whole, whose ends are in
 * map ends. The type is one that may look sockets up, and be run.
 */
SEC("tc")
int sg_selftest_join(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sg_conn_key *k = bpf_map_lookup_elem(&joining, &zero);
	struct sg_conn fresh = {};
	struct sg_conn_key key;
	struct bpf_sock *sk;
	struct sg_conn *c;

	(void)skb;
	if (!k)
		return 1;
	key = *k;
	key.side = 0;
	if (bpf_map_update_elem(&conns, &key, &fresh, BPF_ANY))
		return 1;
	c = bpf_map_lookup_elem(&conns, &key);
	if (!c)
		return 1;
	sk = bpf_map_lookup_elem(&ends, &key);
	if (!sk)
		return 1;
	c->client = bpf_skc_to_tcp_sock(sk);
	bpf_sk_release(sk);
	key.side = 1;
	sk = bpf_map_lookup_elem(&ends, &key);
	if (!sk)
		return 1;
	c->server = bpf_skc_to_tcp_sock(sk);
	bpf_sk_release(sk);
	c->whole = 1;
	return 0;
}
