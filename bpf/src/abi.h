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

#define SG_ABI 5

/* What a container is to its pod. DEAD is what zeroed memory says. */
enum sg_role {
	SG_ROLE_DEAD =
		0, /* registered half-way, or nothing: no socket at all */
	SG_ROLE_APP = 1, /* everything through the sidecar */
	SG_ROLE_SIDECAR = 2, /* not redirected, owns the reserved ports */
	SG_ROLE_EXEMPT = 3, /* left alone by request: init: direct, role none */
	SG_ROLE_DENIED = 4, /* init: deny */
	SG_ROLE_RELAY = 5, /* of sockets only: sidegate-tls, on loopback */
};

enum sg_proto {
	SG_PROTO_ANY = 0,
	SG_PROTO_TCP = 6, /* IPPROTO_TCP */
	SG_PROTO_UDP = 17, /* IPPROTO_UDP */
};

enum sg_dir {
	SG_DIR_EGRESS = 0,
	SG_DIR_INGRESS = 1,
};

/*
 * Whom a rule is about, and whom it lets through (the peer). A container has
 * two numbers: its role in the policy's words, and its name (0 or
 * SG_SUBJECT_NAME and a hash). An outside address has two as well: the class of
 * the prefixes that cover it (0 or SG_CLASS_FIRST on), and world or host.
 */
enum sg_subject_id {
	SG_SUBJECT_POD = 0, /* what goes round the sidecar, of all apps */
	SG_SUBJECT_APP = 1,
	SG_SUBJECT_SIDECAR = 2,
	SG_SUBJECT_INIT = 3,
	SG_SUBJECT_NONE = 4,
	SG_SUBJECT_ROLES = 8,
	SG_PEER_WORLD = 8,
	SG_PEER_HOST = 9,
	SG_CLASS_FIRST = 1024,
};

#define SG_SUBJECT_NAME (1U << 31)

/* What a policy says of a subject at all. */
enum sg_subject_flags {
	SG_SUBJECT_RULED = 1, /* what no rule allows is denied, both ways */
	SG_SUBJECT_ICMP = 2, /* some rule is about ICMP */
	SG_SUBJECT_ICMPV6 = 4,
	SG_SUBJECT_SCTP = 8,
	SG_SUBJECT_PROCESSES =
		16, /* map executables says who may have sockets */
	SG_SUBJECT_UNIX = 32, /* map unix_rules says whom it may connect to */
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
	SG_COUNT_AUDIT = 7, /* would have been denied: mode audit */

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
	SG_DROP_POLICY_EGRESS = 27, /* the container's rules */
	SG_DROP_POLICY_INGRESS = 28, /* the rules of whom it wants to reach */
	SG_DROP_PROCESS = 29, /* executable that may have no sockets */
	SG_DROP_UNIX = 30, /* UNIX socket that no rule lets it reach */
	SG_DROP_STRANGER = 31, /* process of another container in its cgroup */
	SG_DROP_TLS_KEYS = 32, /* TLS keys that no relay could take */
	SG_COUNTERS = 33,
};

struct sg_counters {
	__u64 v[SG_COUNTERS];
};
_Static_assert(sizeof(struct sg_counters) == 264, "ABI");

struct sg_addr {
	__u8 b[16];
};
_Static_assert(sizeof(struct sg_addr) == 16, "ABI");

enum sg_container_flags {
	SG_CONTAINER_ACCELERATE = 1, /* it cannot splice(2) */
	/* In map identity alone: a process turned TLS in the kernel on. */
	SG_CONTAINER_KTLS = 2,
	SG_CONTAINER_IOURING = 4, /* it can, by an io_uring */
};

/* One container: value of map containers and of map identity. */
struct sg_container {
	__u64 netns_cookie; /* of its pod */
	__u64 cgroup_id;
	enum sg_role role;
	__u32 subject; /* enum sg_subject_id: its role as the policy calls it */
	__u32 name; /* 0 or SG_SUBJECT_NAME and a hash */
	/* By inode number. 0: it has none of its own. */
	__u32 pid_ns;
	__u32 mnt_ns;
	__u32 flags; /* enum sg_container_flags */
	__u64 started; /* init of pid_ns: USER_HZ since boot, or 0 */
};
_Static_assert(sizeof(struct sg_container) == 48, "ABI");

struct sg_ports {
	__u16 lo;
	__u16 hi; /* inclusive */
};

#define SG_MAX_RESERVED 12

enum sg_policy_flags {
	SG_POLICY_NON_TCP = 1, /* apps may send UDP and ICMP directly */
	SG_POLICY_SOCKNAME =
		2, /* getsockname answers the original destination */
	SG_POLICY_AUDIT = 4, /* nothing is denied, but all is recorded */
	SG_POLICY_RULED = 8, /* some subject has rules */
	SG_POLICY_NAMES = 16, /* some subject is a container's name */
	SG_POLICY_PREFIXES = 32, /* map prefixes has some */
	SG_POLICY_WORLD = 64, /* some rule is about world or host */
	SG_POLICY_FILES = 128, /* map executables has some for it */
	SG_POLICY_ADMIN = 256, /* for user space: adminCapabilities: allow */
	SG_POLICY_ACCELERATE = 512, /* connections of apps and their sidecar */
	SG_POLICY_ACCELERATE_NODE = 1024, /* and of two pods' sidecars */
	/* Not those of SG_CONTAINER_IOURING. */
	SG_POLICY_ACCELERATE_UNSEEN = 2048,
	/* The relay has the connection to the server, and the sidecar one to
	 * the relay instead: map tls_targets. */
	SG_POLICY_TLS_DEFERRED = 4096,
};

/*
 * A policy: value of map policies, by revision. It never changes: to change a
 * policy is to write another revision and to point its slot there.
 */
struct sg_policy {
	__u32 revision;
	__u32 flags; /* enum sg_policy_flags */
	__u16 outbound;
	__u16 inbound;
	__u16 dns; /* 0: DNS is not redirected */
	__u16 nreserved;
	struct sg_ports reserved[SG_MAX_RESERVED];
	__u16 subjects[SG_SUBJECT_ROLES]; /* enum sg_subject_flags */
	__u16 tls; /* 0: connections go to outbound, not to the relay */
	__u16 unused[3];
};
_Static_assert(sizeof(struct sg_policy) == 88, "ABI");

/* One pod: value of map pods, by netns cookie. */
struct sg_pod {
	__u32 policy; /* slot of map policy_slots */
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_pod) == 8, "ABI");

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

/* Bits of sg_prefix_key that do not belong to the address. */
#define SG_PREFIX_BITS 64

/*
 * Longest-prefix key of map prefixes: 10.0.0.0/8 has SG_PREFIX_BITS + 96 + 8
 * bits. An IPv6 prefix never covers IPv4 (::/0 does not).
 */
struct sg_prefix_key {
	__u32 prefixlen;
	__u32 revision;
	__u32 ipv4; /* 1 or 0 */
	struct sg_addr addr;
};
_Static_assert(sizeof(struct sg_prefix_key) == 28, "ABI");

/* Bits of sg_rule_key before the protocol, and before the port. */
#define SG_RULE_BITS 104
#define SG_RULE_PROTO_BITS 112

/*
 * Longest-prefix key of map rules: what a subject may reach, or be reached by.
 * SG_RULE_BITS long for any protocol, SG_RULE_PROTO_BITS for all its ports, and
 * longer for ports that have a prefix in common. All entries allow.
 */
struct sg_rule_key {
	__u32 prefixlen;
	__u32 revision;
	__u32 subject;
	__u32 peer;
	__u8 dir; /* enum sg_dir */
	__u8 proto; /* IPPROTO_* */
	__be16 port; /* or ICMP type */
};
_Static_assert(sizeof(struct sg_rule_key) == 20, "ABI");

/* Key of map subjects, for those that are names. */
struct sg_subject_key {
	__u32 revision;
	__u32 subject;
};
_Static_assert(sizeof(struct sg_subject_key) == 8, "ABI");

/* An executable that may have sockets: key of map executables. */
struct sg_executable {
	__u64 cgroup_id; /* of the container */
	__u64 ino; /* as the file system's own inode has it */
	__u32 dev; /* super_block.s_dev: major << 20 | minor */
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_executable) == 24, "ABI");

#define SG_MAX_UNIX 16
#define SG_UNIX_PATH 108 /* sun_path */
#define SG_UNIX_PEERS 8

/*
 * Which UNIX sockets a subject may connect or send to, its n-th rule: key of
 * map unix_rules.
 */
struct sg_unix_key {
	__u32 revision;
	__u32 subject;
	__u32 n;
};
_Static_assert(sizeof(struct sg_unix_key) == 12, "ABI");

struct sg_unix_set {
	__u64 w[2];
};

/*
 * A pattern, as an automaton with a state before each of its characters and one
 * at the end. A set of states is a set of bits.
 */
struct sg_unix_rule {
	struct sg_unix_set match[256]; /* states that take this byte */
	struct sg_unix_set star; /* states of *, which take all but '/' */
	struct sg_unix_set deep; /* states of **, which take all */
	struct sg_unix_set accept;
	__u8 abstract; /* or a path */
	__u8 type; /* SOCK_*, 0: any */
	__u8 npeers; /* 0: whoever bound the socket */
	__u8 reserved;
	__u32 rule; /* number */
	__u32 peer[SG_UNIX_PEERS]; /* subjects */
};
_Static_assert(sizeof(struct sg_unix_rule) == 4184, "ABI");

/*
 * What a container did: key of map flows, with what became of it; and of map
 * seen, under mode audit, with why it would have been denied. Inside the pod
 * peer is set.
 */
struct sg_seen {
	__u64 netns_cookie;
	__u64 cgroup_id;
	__u64 peer; /* cgroup of the other end in the pod */
	struct sg_addr addr; /* other end; 0 where peer is known */
	__u16 port; /* of the destination; or ICMP type */
	__u16 proto; /* MPTCP is 262 */
	__u8 dir; /* enum sg_dir */
	__u8 reason; /* enum sg_counter; in map seen why not, or 0 */
	__u16 reserved;
};
_Static_assert(sizeof(struct sg_seen) == 48, "ABI");

/* A UNIX socket that would have been refused: key of map seen_unix. */
struct sg_seen_unix {
	__u64 netns_cookie;
	__u64 cgroup_id;
	__u64 peer; /* cgroup of the container whose socket it is, or 0 */
	__u8 name[SG_UNIX_PATH]; /* as sun_path, zeros behind it */
	__u8 len;
	__u8 abstract; /* or a path */
	__u8 type; /* SOCK_* */
	__u8 reserved;
};
_Static_assert(sizeof(struct sg_seen_unix) == 136, "ABI");

struct sg_seen_count {
	__u64 count;
	__u64 last_ns; /* CLOCK_BOOTTIME */
};

#define SG_EVENT_READERS 8

enum sg_event_kind {
	SG_EVENT_CONNECT = 0, /* connect(2) or sendmsg(2) */
	SG_EVENT_ACCEPT = 1, /* by the sidecar */
	SG_EVENT_SOCKET = 2, /* socket(2) */
	SG_EVENT_BIND = 3, /* bind(2) */
	SG_EVENT_PACKET = 4, /* dropped */
	SG_EVENT_UNIX = 5, /* connect(2) or sendmsg(2) to a UNIX socket */
	/* From user space, which alone knows of them: struct sg_event_text. */
	SG_EVENT_ATTACH = 6,
	SG_EVENT_DETACH = 7,
	SG_EVENT_TLS = 8,
	SG_EVENT_HTTP = 9,
};

#define SG_COMM 16 /* TASK_COMM_LEN */

/* What happened: an entry of an inner map of event_rings. */
struct sg_event {
	__u64 time_ns; /* CLOCK_BOOTTIME */
	__u64 netns_cookie;
	__u64 cgroup_id; /* of the container, or of who is none; or 0 */
	__u64 peer; /* cgroup of the other end in the pod, or 0 */
	struct sg_addr addr; /* other end, before redirection */
	__u16 port; /* of the destination; or ICMP type */
	__u16 proto;
	__u8 kind; /* enum sg_event_kind */
	__u8 dir; /* enum sg_dir */
	__u8 counter; /* enum sg_counter: what became of it */
	__u8 audit; /* it would have been denied, and was not */
	__u32 revision; /* of the policy */
	__u32 rule; /* its number, or 0 */
	__u32 pid; /* of who made the socket, or connected; or 0 */
	__u32 suppressed; /* events of this container before it, not told */
	__u8 comm[SG_COMM]; /* of the task that did it, or 0 */
};
_Static_assert(sizeof(struct sg_event) == 88, "ABI");

/* The same of a UNIX socket, whose name follows. */
struct sg_event_unix {
	struct sg_event e;
	__u8 name[SG_UNIX_PATH]; /* as sun_path, zeros behind it */
	__u8 len;
	__u8 abstract; /* or a path */
	__u8 type; /* SOCK_* */
	__u8 reserved;
};
_Static_assert(sizeof(struct sg_event_unix) == 200, "ABI");

#define SG_EVENT_TEXT 2048

/* The same of what user space says, as JSON, which follows. */
struct sg_event_text {
	struct sg_event e;
	__u32 len; /* of text, at most SG_EVENT_TEXT */
	__u32 reserved;
	__u8 text[SG_EVENT_TEXT];
};
_Static_assert(sizeof(struct sg_event_text) == 88 + 8 + SG_EVENT_TEXT, "ABI");

/* What user space wants told: context of sg_emit. */
struct sg_emit_args {
	struct sg_event e;
	__u64 text; /* its address in the caller's memory */
	__u32 len;
	__u32 reserved;
};
_Static_assert(sizeof(struct sg_emit_args) == 104, "ABI");

#define SG_ATTACH_BUCKETS 16

/*
 * How long it took to attach containers: the only value of map attach_times.
 * Here, because who attaches is a new process each time.
 */
struct sg_attach_times {
	__u64 ns; /* all of them together */
	__u64 failed;
	__u64 count[SG_ATTACH_BUCKETS]; /* of less than 2^i ms, the last of more
					 */
};
_Static_assert(sizeof(struct sg_attach_times) == 16 + 8 * SG_ATTACH_BUCKETS,
	       "ABI");

/*
 * Who reads: the only value of map event_control. A reader that does not renew
 * its lease is taken for dead.
 */
struct sg_event_control {
	__u64 any; /* the last of until; 0: an event costs this look */
	__u64 until[SG_EVENT_READERS]; /* CLOCK_BOOTTIME in ns, of each ring */
	__u64 lost[SG_EVENT_READERS]; /* events that a full ring did not take */
	__u64 woken[SG_EVENT_READERS]; /* when an event last woke the reader */
};
_Static_assert(sizeof(struct sg_event_control) == 200, "ABI");

/* Whose events: key of map event_budgets. */
struct sg_event_source {
	__u64 netns_cookie; /* and the class: see SG_EVENT_CLASS */
	__u64 cgroup_id; /* 0: of what is no container's */
};
_Static_assert(sizeof(struct sg_event_source) == 16, "ABI");

/* How many events of a container are told: value of map event_budgets. */
struct sg_event_budget {
	__u64 window; /* that began: CLOCK_BOOTTIME >> SG_EVENT_WINDOW */
	__u32 used; /* in it */
	__u32 suppressed; /* since the last one that was told */
	__u64 total; /* suppressed ever */
};
_Static_assert(sizeof(struct sg_event_budget) == 24, "ABI");

/* Which budget: above the cookie in the key, which are small numbers. */
#define SG_EVENT_CLASS 62
#define SG_EVENT_DONE 0ULL /* allowed, and what user space tells */
#define SG_EVENT_REFUSED 1ULL /* to the container, or to nobody's process */
#define SG_EVENT_ARRIVED 2ULL /* packets that others sent */

#define SG_EVENT_WINDOW 27 /* 2^27 ns, about 134 ms */
#define SG_EVENT_MOST 2048 /* of a container in a window */
/*
 * A reader is woken for an event, and then not for so long, in ns, unless its
 * ring is half full. It looks by itself for longer than that after what it has
 * read.
 */
#define SG_EVENT_QUIET 1000000

enum sg_sock_flags {
	SG_SOCK_REDIRECTED = 1, /* connect was sent to the outbound port */
	SG_SOCK_DNS = 2, /* last datagram was sent to the DNS port */
	SG_SOCK_PASSIVE = 4, /* made by accept */
	SG_SOCK_ORIGDST = 8, /* map origdst knows this connection */
	SG_SOCK_SENT = 16, /* has sent a datagram: may get an answer */
	SG_SOCK_CALLED = 32, /* has got a datagram: may answer */
	SG_SOCK_AGENT = 64, /* a runtime's own, which stays on loopback */
	SG_SOCK_PLAIN = 128, /* has an option that acceleration would break */
	SG_SOCK_RELAYED = 256, /* connect was sent to the TLS relay */
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
	__u32 pid; /* of who connected, where a relay wants to know */
	__u64 app; /* of a relay's: cgroup of the container that connected */
	__u32 keys; /* how many were handed over for it */
	__u32 told; /* where the last datagram went that was an event, mixed */
};
_Static_assert(sizeof(struct sg_sock) == 64, "ABI");

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

/* Where it wanted to go, and who: value of map origdst. */
struct sg_route {
	struct sg_orig orig;
	__u32 pid; /* see sg_sock */
	__u64 cgroup_id; /* of the app's container */
};
_Static_assert(sizeof(struct sg_route) == 32, "ABI");

enum sg_tls_state {
	SG_TLS_FREE = 0,
	SG_TLS_BUSY = 1, /* being written by a program */
	SG_TLS_READY = 2, /* the relay's to read, wipe and free */
};

enum sg_tls_dir {
	SG_TLS_TX = 1, /* as setsockopt's option: what the app sends */
	SG_TLS_RX = 2,
};

#define SG_TLS_INFO 56 /* bytes of the longest struct that is known */

/*
 * Traffic keys as an app's TLS library gave them to the kernel: a slot of
 * sg_tls_ring.
 */
struct sg_tls_keys {
	__u32 state; /* enum sg_tls_state */
	__u32 n; /* counts up: the order of what is ready */
	struct sg_tuple tuple;
	__u64 cgroup_id; /* of the app's container */
	__u32 pid; /* of who gave them */
	__u8 dir; /* enum sg_tls_dir */
	__u8 len;
	__u8 reserved[2];
	__u8 info[SG_TLS_INFO]; /* struct tls12_crypto_info_* */
};
_Static_assert(sizeof(struct sg_tls_keys) == 128, "ABI");

#define SG_TLS_SLOTS 128
#define SG_TLS_MOST 64 /* keys of one connection: two, and key updates */

/* What one pod's apps hand over: the only value of an inner map of tls_rings.
 */
struct sg_tls_ring {
	__u64 given; /* how many were made ready: the relay polls this word */
	__u32 next;
	__u32 reserved;
	struct sg_tls_keys slots[SG_TLS_SLOTS];
};
_Static_assert(sizeof(struct sg_tls_ring) == 16 + 128 * SG_TLS_SLOTS, "ABI");

/*
 * A destination that stands for one TLS session: the server's address, and a
 * port of the relay's choice. Key of map tls_targets.
 */
struct sg_tls_target {
	__u64 netns_cookie;
	struct sg_addr addr;
	__u16 port;
	__u16 reserved[3];
};
_Static_assert(sizeof(struct sg_tls_target) == 32, "ABI");

#define SG_TLS_CHUNK 4096

/* A piece of what the relay reads of a policy: key of map tls_policies. */
struct sg_tls_policy_key {
	__u32 revision;
	__u32 n; /* of the piece, from 0 */
};

struct sg_tls_policy {
	__u8 b[SG_TLS_CHUNK]; /* JSON; zeros behind it */
};

/*
 * An end of an accelerated connection: key of map ends; with side 0 key of map
 * conns. The sequence numbers, which both ends know and nobody else, prove that
 * two sockets are the ends of one connection, whatever translates addresses
 * between them.
 */
struct sg_conn_key {
	__u64 netns_cookie; /* 0: its ends are in two pods */
	struct sg_addr saddr; /* of the client */
	struct sg_addr daddr;
	__u32 sseq; /* of the first byte that the client sends */
	__u32 dseq;
	__u16 sport;
	__u16 dport;
	__u32 side; /* 0: the client's, 1: the server's */
};
_Static_assert(sizeof(struct sg_conn_key) == 56, "ABI");

/*
 * Counters of a container's accelerated connections, each counted at both ends:
 * map accel_counters. Those from SG_ACCEL_PLAIN_FIRST on are directions, or
 * connections that never began, that go through TCP, each for one reason.
 */
enum sg_accel_counter {
	SG_ACCEL_CONNECTIONS = 0,
	SG_ACCEL_MESSAGES = 1, /* sent */
	SG_ACCEL_BYTES = 2,

	SG_ACCEL_PLAIN_FIRST = 3,
	SG_ACCEL_PLAIN_EARLY = 3, /* sent before the other end was there */
	SG_ACCEL_PLAIN_UNREAD = 4, /* the other end does not read */
	SG_ACCEL_PLAIN_OPTION = 5, /* socket option, or TCP Fast Open */
	SG_ACCEL_PLAIN_KTLS = 6, /* the container uses TLS in the kernel */
	SG_ACCEL_PLAIN_PEER = 7, /* the other end's container is not */
	SG_ACCEL_PLAIN_FULL = 8, /* no room in a map */
	SG_ACCEL_PLAIN_GONE = 9, /* an end has closed, or said that it ends */
	SG_ACCEL_COUNTERS = 10,
};

struct sg_accel_counters {
	__u64 v[SG_ACCEL_COUNTERS];
};
_Static_assert(sizeof(struct sg_accel_counters) == 80, "ABI");

/* What the self-test found at load: the value of map accel_info. */
struct sg_accel_info {
	__u64 failed; /* checks, as bits; their order is user space's */
	__u64 took_ns;
	__u8 done; /* or it could not be made */
	__u8 why[127]; /* not, in words */
};
_Static_assert(sizeof(struct sg_accel_info) == 144, "ABI");

/*
 * A sidecar may open several listeners on one port (SO_REUSEPORT, threads,
 * reload): each takes a free slot, and gives it back when it closes.
 */
#define SG_LISTENER_SLOTS 8

struct sg_listener_key {
	__u64 netns_cookie;
	__u16 port;
	__u8 ipv6; /* 0: AF_INET, 1: AF_INET6 */
	__u8 slot;
	__u32 relay; /* 1: the relay's, put by itself; 0: the sidecar's */
};
_Static_assert(sizeof(struct sg_listener_key) == 16, "ABI");

#define SG_NAME 64

enum sg_device_prog {
	SG_DEVICE_EGRESS = 0, /* sg_device */
	SG_DEVICE_LOOPBACK = 1, /* sg_loopback */
	SG_DEVICE_LOOPBACK_OUT = 2, /* sg_loopback_out */
	SG_DEVICE_PROGS = 3,
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
	__u8 admin; /* capabilities by which it could get out, as bits */
	__u8 inherited; /* network sockets that it was given at its start */
	__u8 plain; /* why it is not accelerated, or 0: user space's numbers */
	__u32 pid; /* init process at attach time, for display */
	__u64 netns_ino;
	__u64 attached_ns; /* CLOCK_REALTIME */
};

struct sg_pod_info {
	__u8 pod[SG_NAME + 1];
	__u8 reserved[3];
	__u32 slot; /* of its programs */
	__u64 netns_ino;
	__u64 netns_dev;
};
_Static_assert(sizeof(struct sg_pod_info) == 88, "ABI");

#define SG_PATH 128

struct sg_policy_info {
	__u8 name[SG_NAME + 1];
	__u8 source[SG_PATH + 1]; /* file:line */
	__u8 init; /* policy.InitMode */
	__u8 accelerate; /* policy.Acceleration */
	__u32 revision;
	__u32 nprefixes; /* entries of the revision, so that none is looked for
			  */
	__u32 nrules; /* where there is none */
	__u32 nsubjects;
	__u32 ninfos;
	__u64 digest; /* of the compiled policy */
	__u64 fingerprint; /* of the directory that it was read from */
	__u64 applied_ns; /* CLOCK_REALTIME */
};
_Static_assert(sizeof(struct sg_policy_info) == 240, "ABI");

/* A rule in words: value of map rule_info. */
struct sg_rule_info_key {
	__u32 revision;
	__u32 rule;
};

struct sg_rule_info {
	__u8 path[64]; /* spec.rules[0].egress[1] */
	__u8 text[SG_PATH];
};

enum sg_endpoint_flags {
	SG_ENDPOINT_OPEN = 1, /* else nothing passes, either way */
};

/*
 * What the other end of a guarded device may say of itself: value of map
 * endpoints. An address that it does not have is 0.
 */
struct sg_endpoint {
	struct sg_addr v4;
	struct sg_addr v6;
	__u8 mac[6];
	__u8 flags; /* enum sg_endpoint_flags */
	__u8 reserved;
};
_Static_assert(sizeof(struct sg_endpoint) == 40, "ABI");

/* Why a packet was dropped at a guarded device. */
enum sg_endpoint_drop {
	SG_ENDPOINT_CLOSED = 0,
	SG_ENDPOINT_MAC = 1, /* source MAC that is not its own */
	SG_ENDPOINT_ADDRESS = 2, /* source address that is not its own */
	SG_ENDPOINT_ETHERTYPE = 3, /* neither IP nor ARP, or in a VLAN */
	SG_ENDPOINT_MALFORMED = 4, /* header that cannot be parsed */
	SG_ENDPOINT_DROPS = 5,
};

struct sg_endpoint_counters {
	__u64 v[SG_ENDPOINT_DROPS];
};
_Static_assert(sizeof(struct sg_endpoint_counters) == 40, "ABI");

#endif
