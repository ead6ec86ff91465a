// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
)

// namespace returns the inode number of a namespace of process pid, 0 if the kernel
// has none of this kind.
func namespace(pid, kind string) (uint32, error) {
	link, err := os.Readlink("/proc/" + pid + "/ns/" + kind)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			return 0, nil
		}
	}
	if err != nil {
		return 0, fmt.Errorf("find %s namespace of process %s: %w", kind, pid, err)
	}
	// kind:[number], proc_pid_ns(5)
	n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, kind+":["), "]"), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("find %s namespace of process %s: %w", kind, pid, err)
	}
	return uint32(n), nil
}

// ownNamespaces says in entry by which namespaces the programs tell processes of
// the container whose first process pid is from others that are put into its
// cgroup. Those that it shares with this process tell nothing.
func ownNamespaces(pid int, entry *bpf.Container) error {
	its := strconv.Itoa(pid)
	mnt, err := namespace(its, "mnt")
	if err != nil {
		return err
	}
	ours, err := namespace("self", "mnt")
	if err != nil {
		return err
	}
	if mnt != ours {
		entry.MntNs = mnt
	}
	first, err := firstInPidns(its)
	if err != nil || !first {
		return err
	}
	if entry.PidNs, err = namespace(its, "pid"); err != nil {
		return err
	}
	entry.Started, err = startOf(its)
	return err
}

// firstInPidns tells whether the PID namespace of a process was made for it: its
// number there, the last of NSpid in proc_pid_status(5), is 1.
func firstInPidns(pid string) (bool, error) {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return false, fmt.Errorf("look at process %s: %w", pid, err)
	}
	for line := range strings.Lines(string(b)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			f := strings.Fields(numbers)
			return len(f) > 1 && f[len(f)-1] == "1", nil
		}
	}
	return false, nil // a kernel without PID namespaces
}

// initialTimens is PROC_TIME_INIT_INO of the kernel.
const initialTimens = 0xeffffffa

// startOf returns when a process started, in USER_HZ since boot, as the programs see
// it: proc_pid_stat(5) counts from the zero of this process's time namespace. It is
// 0, which is not known, where that is no whole number of ticks away.
func startOf(pid string) (uint64, error) {
	offset, err := bootOffset()
	if err != nil || offset%tick != 0 {
		return 0, err
	}
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, fmt.Errorf("look at process %s: %w", pid, err)
	}
	// The name, in brackets, may have brackets and spaces. It is the second field.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("look at process %s: stat has %d fields", pid, len(f)+2)
	}
	start, err := strconv.ParseInt(string(f[22-3]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("look at process %s: %w", pid, err)
	}
	start -= int64(offset / tick)
	if start < 0 || start > int64((bootTime()-offset)/tick) {
		return 0, nil // it started before the zero of this namespace, and the kernel has counted below 0
	}
	return uint64(start), nil
}

// tick is one of USER_HZ.
const tick = 10 * time.Millisecond

// bootOffset returns what CLOCK_BOOTTIME is ahead of the machine's in this process's time namespace (time_namespaces(7)).
func bootOffset() (time.Duration, error) {
	ns, err := namespace("self", "time")
	if err != nil || ns == 0 || ns == initialTimens {
		return 0, err
	}
	// The offsets are those of children: this process's own as long as it has made no other namespace for them.
	b, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0, fmt.Errorf("find this process's boot time: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		var sec, nsec int64
		if n, _ := fmt.Sscanf(line, "boottime %d %d", &sec, &nsec); n == 2 {
			return time.Duration(sec)*time.Second + time.Duration(nsec), nil
		}
	}
	return 0, fmt.Errorf("find this process's boot time: it is not in %q", b)
}

// sharePidns is for a container that is about to live in a PID namespace which was
// not made for it. If it was made for another one, both have to be told apart by
// their mount namespaces from now on.
func (s *Store) sharePidns(pid int) error {
	ns, err := namespace(strconv.Itoa(pid), "pid")
	if err != nil || ns == 0 {
		return err
	}
	_, containers, err := entriesOf[uint64, bpf.Container](s.maps.Containers)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if c.PidNs != ns || c.MntNs == 0 {
			continue
		}
		c.PidNs, c.Started = 0, 0
		err := s.maps.Containers.Update(c.CgroupId, c, ebpf.UpdateExist)
		if err == nil {
			err = s.maps.Identity.Update(c.CgroupId, c, ebpf.UpdateExist)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("tell container of cgroup %d from others of its PID namespace: %w", c.CgroupId, err)
		}
	}
	return nil
}
