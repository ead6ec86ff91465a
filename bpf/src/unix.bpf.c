// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The object for UNIX sockets where there is no BPF LSM: cgroup/connect_unix
 * and sendmsg_unix, Linux 6.7. It judges the name that the call was given, so a
 * symbolic link or a mount that the container can make is a way round it.
 * Attached as lsm.bpf.c; the kernel runs it for the sockets that were made in
 * that cgroup, whoever has got them.
 */
#include "unix.h"

/* See sg_tls_ring_type. */
extern const struct sg_event_unix *sg_event_unix_type;
const struct sg_event_unix *sg_event_unix_type __attribute__((unused));

struct sockaddr;

/* What CO-RE needs of the kernel's types. */
struct bpf_sock_addr_kern {
	struct sockaddr *uaddr;
	int uaddrlen;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;

SG_INLINE int sg_unix(struct bpf_sock_addr *ctx)
{
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);
	struct sg_container *self = sg_self();
	struct sg_unix_name name = {};
	struct sg_end unknown = {};
	struct sg_policy *policy;
	__u32 len = k->uaddrlen;

	policy = sg_policy_of(self->netns_cookie);
	if (!policy)
		return SG_REJECT;
	/* The kernel has looked: an address has at least a byte of a name. */
	if (len <= SG_SUN_PATH || len > SG_SUN_PATH + SG_UNIX_PATH)
		return SG_REJECT;
	len -= SG_SUN_PATH;
	if (bpf_probe_read_kernel(name.b, len, (void *)k->uaddr + SG_SUN_PATH))
		return SG_REJECT;
	sg_unix_name_set(&name, len, ctx->type);
	return sg_unix_judge(policy, self, &name, &unknown);
}

SEC("cgroup/connect_unix")
int sg_connect_unix(struct bpf_sock_addr *ctx)
{
	return sg_unix(ctx);
}

SEC("cgroup/sendmsg_unix")
int sg_sendmsg_unix(struct bpf_sock_addr *ctx)
{
	return sg_unix(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
