// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object that lists sockets: an iterator over map socks, which user space
 * loads when a policy has changed and connections are to be looked through. No
 * container's start waits for it.
 */
#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define SG_AF_INET 2

/* What CO-RE needs of the kernel's types. */
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
} __attribute__((preserve_access_index));

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	struct sg_sock *value;
};

/* Keeps the type in the object, for its Go twin. */
const struct sg_sock_row *sg_sock_row_type __attribute__((unused));

static void sg_v4(struct sg_addr *a, __be32 ip)
{
	__builtin_memset(a, 0, sizeof(*a));
	a->b[10] = 0xff;
	a->b[11] = 0xff;
	__builtin_memcpy(&a->b[12], &ip, 4);
}

/* One struct sg_sock_row for each socket that has a record. */
SEC("iter/bpf_sk_storage_map")
int sg_list_socks(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sg_sock *s = ctx->value;
	struct sock *sk = ctx->sk;
	struct sg_sock_row row = {};

	if (!sk || !s)
		return 0;
	row.sock = *s;
	row.cookie = bpf_get_socket_cookie(sk);
	row.lport = sk->__sk_common.skc_num;
	row.rport = bpf_ntohs(sk->__sk_common.skc_dport);
	row.family = sk->__sk_common.skc_family;
	row.proto = sk->sk_protocol;
	row.state = sk->__sk_common.skc_state;
	if (row.family == SG_AF_INET) {
		sg_v4(&row.local, sk->__sk_common.skc_rcv_saddr);
		sg_v4(&row.remote, sk->__sk_common.skc_daddr);
	} else {
		__builtin_memcpy(&row.local, &sk->__sk_common.skc_v6_rcv_saddr,
				 sizeof(row.local));
		__builtin_memcpy(&row.remote, &sk->__sk_common.skc_v6_daddr,
				 sizeof(row.remote));
	}
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
