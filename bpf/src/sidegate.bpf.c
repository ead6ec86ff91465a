// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * One object for the whole of Sidegate. Attach points:
 *
 *   each container's cgroup   connect.h, sock.h, skb.h
 *   the root cgroup           guard.h
 *   each pod's netns, devices device.h
 */
#include "abi.h"
#include "maps.h"
#include "common.h"
#include "verdict.h"
#include "packet.h"

#include "connect.h"
#include "sock.h"
#include "skb.h"
#include "guard.h"
#include "tls.h"
#include "device.h"
#include "emit.h"

/* bpf_set_retval, sk_storage in sock_create and others need the GPL. */
char _license[] SEC("license") = "Dual BSD/GPL";
