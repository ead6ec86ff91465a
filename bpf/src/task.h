/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * task.h: what the running task is. A cgroup is where somebody put it, and who
 * can write the host's cgroup file system puts it anywhere.
 */
#ifndef SIDEGATE_TASK_H
#define SIDEGATE_TASK_H

#include <bpf/bpf_core_read.h>

#include "common.h"

/* A tick of USER_HZ, as proc_pid_stat(5) counts. */
#define SG_NS_PER_TICK 10000000ULL
#define SG_PID_NS_LEVELS 33 /* MAX_PID_NS_LEVEL, and the first */

/* What CO-RE needs of the kernel's types. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct mnt_namespace {
	struct ns_common ns;
} __attribute__((preserve_access_index));

struct nsproxy {
	struct mnt_namespace *mnt_ns;
} __attribute__((preserve_access_index));

struct pid_namespace {
	struct ns_common ns;
	struct task_struct *child_reaper;
} __attribute__((preserve_access_index));

struct upid {
	struct pid_namespace *ns;
} __attribute__((preserve_access_index));

struct pid {
	unsigned int level;
	struct upid numbers[1]; /* one for each level, its own last */
} __attribute__((preserve_access_index));

struct super_block {
	__u32 s_dev;
} __attribute__((preserve_access_index));

struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
} __attribute__((preserve_access_index));

struct file {
	struct inode *f_inode;
} __attribute__((preserve_access_index));

struct mm_struct {
	struct file *exe_file;
} __attribute__((preserve_access_index));

struct task_struct {
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	struct task_struct *group_leader;
	__u64 start_boottime;
} __attribute__((preserve_access_index));

/*
 * Whether the task is in the container's PID namespace or in one below it. A
 * process is never in another than it was made in, and its children are in that
 * or below. The number of a namespace that has ended is used again, but not
 * with an init process that started when its did.
 */
SG_INLINE int sg_in_pid_ns(struct task_struct *task,
			   const struct sg_container *c)
{
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 level = BPF_CORE_READ(pid, level);
	const __u32 size = bpf_core_type_size(struct upid);
	void *upid = (void *)pid + bpf_core_field_offset(struct pid, numbers);

	for (__u32 i = 0; i < SG_PID_NS_LEVELS; i++) {
		struct pid_namespace *ns = 0;

		if (i > level)
			break;
		bpf_probe_read_kernel(
			&ns, sizeof(ns),
			upid + i * size +
				bpf_core_field_offset(struct upid, ns));
		if (!ns || BPF_CORE_READ(ns, ns.inum) != c->pid_ns)
			continue;
		return !c->started ||
		       BPF_CORE_READ(ns, child_reaper, group_leader,
				     start_boottime) /
				       SG_NS_PER_TICK ==
			       c->started;
	}
	return 0;
}

/*
 * Whether the running task is one of the container's, and not only in its
 * cgroup. A container that shares its PID namespace is known by its mount
 * namespace, and then so are its processes by that one only.
 */
SG_NOINLINE int sg_task_ok(const struct sg_container *c)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (c->pid_ns)
		return sg_in_pid_ns(task, c);
	return !c->mnt_ns ||
	       BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum) == c->mnt_ns;
}

/* Whether the executable that runs may have sockets: its inode, not its name.
 */
SG_NOINLINE int sg_process_ok(__u64 cgroup_id)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct sg_executable exe = {.cgroup_id = cgroup_id};

	exe.ino = BPF_CORE_READ(task, mm, exe_file, f_inode, i_ino);
	exe.dev = BPF_CORE_READ(task, mm, exe_file, f_inode, i_sb, s_dev);
	return !!bpf_map_lookup_elem(&executables, &exe);
}

#endif
