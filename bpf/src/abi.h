/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * abi.h: every struct and number that the kernel side shares with user space.
 * Go types are generated from these definitions, nothing here is mirrored by
 * hand. A change of size, offset or meaning is a new SG_ABI: programs of two
 * ABIs never share a map.
 *
 * Addresses are 16 bytes in network order everywhere, IPv4 as v4-mapped IPv6
 * (::ffff:a.b.c.d, RFC 4291 2.5.5.2). Ports are in host order.
 */
#ifndef SIDEGATE_ABI_H
#define SIDEGATE_ABI_H

#include <linux/types.h>

#define SG_ABI 1

/* What a container is to its pod. DEAD is what zeroed memory says. */
enum sg_role {
	SG_ROLE_DEAD =
		0, /* registered half-way, or nothing: no socket at all */
	SG_ROLE_APP = 1, /* everything through the sidecar */
	SG_ROLE_SIDECAR = 2, /* not redirected, owns the reserved ports */
	SG_ROLE_EXEMPT = 3, /* left alone by request: init: direct, role none */
	SG_ROLE_DENIED = 4, /* init: deny */
};

enum sg_proto {
	SG_PROTO_ANY = 0,
	SG_PROTO_TCP = 6, /* IPPROTO_TCP */
	SG_PROTO_UDP = 17, /* IPPROTO_UDP */
};

/* Which table of rules: an IPv6 prefix never covers IPv4 (::/0 does not). */
enum sg_dir {
	SG_DIR_EGRESS = 0,
	SG_DIR_INGRESS = 1,
	SG_DIR_V4 = 2, /* added to one of the above */
};

/*
 * Counters of a container (map counters) and of a pod (map pod_counters).
 * Those from SG_DROP_FIRST on are drops, each one reason.
 */
enum sg_counter {
	SG_COUNT_REDIRECT = 0, /* connections sent to the outbound port */
	SG_COUNT_DNS = 1, /* datagrams and connects sent to the DNS port */
	SG_COUNT_DIRECT = 2, /* connections let out by an exclusion */
	SG_COUNT_LOCAL = 3, /* connections inside the pod */
	SG_COUNT_ACCEPT_OUT = 4, /* redirected connections the sidecar took */
	SG_COUNT_ACCEPT_IN = 5, /* outside connections the sidecar took */
	SG_COUNT_STEERED = 6, /* lookups answered with the inbound listener */

	SG_DROP_FIRST = 8,
	SG_DROP_UNREGISTERED = 8, /* socket of a cgroup unknown to this pod */
	SG_DROP_UDP = 9,
	SG_DROP_ICMP = 10,
	SG_DROP_RAW = 11, /* raw socket */
	SG_DROP_PROTOCOL = 12, /* SCTP, MPTCP, UDP-Lite, DCCP, ... */
	SG_DROP_BIND = 13, /* bind to a port of the sidecar */
	SG_DROP_EGRESS = 14, /* packet that no rule lets out */
	SG_DROP_INGRESS = 15, /* packet from outside, round the sidecar */
	SG_DROP_FRAGMENT = 16, /* fragment whose ports cannot be known */
	SG_DROP_MALFORMED = 17, /* header that cannot be parsed */
	SG_DROP_DEVICE = 18, /* packet at the device with no allowed socket */
	SG_DROP_PACKET_SOCKET = 19, /* AF_PACKET */
	SG_DROP_NO_LISTENER = 20, /* the sidecar does not listen */
	SG_DROP_OUTBOUND_PORT = 21, /* outside asked for the outbound port */
	SG_DROP_ORIGDST_FULL = 22, /* map origdst is full */
	SG_DROP_NO_MEMORY = 23, /* socket storage: optmem_max */
	SG_DROP_INIT = 24, /* init container under init: deny */
	SG_DROP_SPOOFED = 25, /* foreign source address on loopback */
	SG_DROP_BYPASS = 26, /* packet round the pod's own device hook */
	SG_COUNTERS = 32,
};

struct sg_counters {
	__u64 v[SG_COUNTERS];
};
_Static_assert(sizeof(struct sg_counters) == 256, "ABI");

struct sg_addr {
	__u8 b[16];
};
_Static_assert(sizeof(struct sg_addr) == 16, "ABI");

/* One container: value of map containers and of map identity. */
struct sg_container {
	__u64 netns_cookie; /* of its pod */
	__u64 cgroup_id;
	enum sg_role role;
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_container) == 24, "ABI");

struct sg_ports {
	__u16 lo;
	__u16 hi; /* inclusive */
};

#define SG_MAX_RESERVED 12

enum sg_pod_flags {
	SG_POD_NON_TCP = 1, /* apps may send UDP and ICMP directly */
	SG_POD_SOCKNAME = 2, /* getsockname answers the original destination */
};

/* One pod: value of map pods, by netns cookie. */
struct sg_pod {
	__u16 outbound;
	__u16 inbound;
	__u16 dns; /* 0: DNS is not redirected */
	__u8 flags; /* enum sg_pod_flags */
	__u8 nreserved;
	struct sg_ports reserved[SG_MAX_RESERVED];
};
_Static_assert(sizeof(struct sg_pod) == 56, "ABI");

/*
 * What a set of pod programs works for: value of map pod_slots. Programs are
 * loaded with the number of a slot, and used again when its pod has gone.
 */
struct sg_slot {
	__u64 netns_cookie; /* 0: free */
	__u32 token; /* see sg_pod_host */
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_slot) == 16, "ABI");

struct sg_pod_addr {
	__u64 netns_cookie;
	struct sg_addr addr;
};
_Static_assert(sizeof(struct sg_pod_addr) == 24, "ABI");

/* Bits of sg_rule_key that do not belong to the address. */
#define SG_RULE_PREFIX_BITS 96

/*
 * Longest-prefix key of map rules. prefixlen counts from netns_cookie on, so
 * a rule for 10.0.0.0/8 has SG_RULE_PREFIX_BITS + 96 + 8.
 */
struct sg_rule_key {
	__u32 prefixlen;
	enum sg_dir dir;
	__u64 netns_cookie;
	struct sg_addr addr;
};
_Static_assert(sizeof(struct sg_rule_key) == 32, "ABI");

#define SG_MAX_RULE_PORTS 16

struct sg_rule_port {
	__u16 lo;
	__u16 hi; /* inclusive */
	enum sg_proto proto;
};

/*
 * All that one prefix allows. User space copies the ranges of the covering
 * prefixes into it, since a trie finds the longest match only.
 */
struct sg_rule {
	__u32 n;
	struct sg_rule_port p[SG_MAX_RULE_PORTS];
};
_Static_assert(sizeof(struct sg_rule) == 132, "ABI");

enum sg_sock_flags {
	SG_SOCK_REDIRECTED = 1, /* connect was sent to the outbound port */
	SG_SOCK_DNS = 2, /* last datagram was sent to the DNS port */
	SG_SOCK_PASSIVE = 4, /* made by accept */
	SG_SOCK_ORIGDST = 8, /* map origdst knows this connection */
};

struct sg_orig {
	struct sg_addr addr;
	__u16 port;
	__u16 family; /* AF_INET or AF_INET6; 0: none */
};
_Static_assert(sizeof(struct sg_orig) == 20, "ABI");

/* What a socket is: value of map socks. Copied to what a listener accepts. */
struct sg_sock {
	__u64 netns_cookie; /* of the pod of the container that made it */
	__u64 cgroup_id;
	enum sg_role role;
	__u32 flags; /* enum sg_sock_flags */
	struct sg_orig orig;
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_sock) == 48, "ABI");

/* A connection on loopback as its client sees it: key of map origdst. */
struct sg_tuple {
	__u64 netns_cookie;
	struct sg_addr saddr;
	struct sg_addr daddr;
	__u16 sport;
	__u16 dport;
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_tuple) == 48, "ABI");

enum sg_listener_kind {
	SG_LISTEN_OUTBOUND = 0,
	SG_LISTEN_INBOUND = 1,
};

/*
 * A sidecar may open several listeners on one port (SO_REUSEPORT, threads,
 * reload): each takes a free slot, and gives it back when it closes.
 */
#define SG_LISTENER_SLOTS 8

struct sg_listener_key {
	__u64 netns_cookie;
	__u8 kind; /* enum sg_listener_kind */
	__u8 ipv6; /* 0: AF_INET, 1: AF_INET6 */
	__u8 slot;
	__u8 reserved[5];
};
_Static_assert(sizeof(struct sg_listener_key) == 16, "ABI");

#define SG_NAME 64

enum sg_device_prog {
	SG_DEVICE_EGRESS = 0, /* sg_device */
	SG_DEVICE_LOOPBACK = 1, /* sg_loopback */
	SG_DEVICE_PROGS = 2,
};

/*
 * What people call things. No program reads it: the kernel keeps it for
 * user space (map container_info), so that no daemon or file has to.
 */
struct sg_container_info {
	__u8 id[SG_NAME + 1]; /* the runtime's container id */
	__u8 name[SG_NAME + 1];
	__u8 pod[SG_NAME + 1]; /* sandbox id, or the value of sidegate/pod */
	__u8 policy[SG_NAME + 1];
	__u8 runtime[16];
	__u8 role; /* as asked for: policy.Role */
	__u8 reserved[3];
	__u32 pid; /* init process at attach time, for display */
	__u64 netns_ino;
	__u64 attached_ns; /* CLOCK_REALTIME */
};

struct sg_pod_info {
	__u8 pod[SG_NAME + 1];
	__u8 policy[SG_NAME + 1];
	__u8 reserved[2];
	__u32 slot;
	__u64 netns_ino;
	__u64 netns_dev;
};
_Static_assert(sizeof(struct sg_pod_info) == 152, "ABI");

#endif
