// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func namespaceTamperings() []tampering {
	all := []tampering{
		{name: "namespace: of own", run: func(*tamperer) error { return unix.Unshare(unix.CLONE_NEWNET) }},
		{name: "namespace: of own, with a user namespace", flags: ownNamespaces, run: func(*tamperer) error { return nil }},
		{name: "namespace: by its handle", run: func(*tamperer) error { return namespaceByHandle() }},
		{name: "namespace: by its handle, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error { return namespaceByHandle() }},
		{name: "process: ptrace", run: func(*tamperer) error {
			pids, err := processes()
			if err != nil {
				return err
			}
			return anyOf(pids, unix.PtraceSeize) // until this thread ends
		}},
		{name: "process: its sockets", run: func(*tamperer) error { return takeSocket() }},
		{name: "perf: tracepoint", run: func(*tamperer) error { return perf(unix.PERF_TYPE_TRACEPOINT, 1) }},
		{name: "perf: kprobe", run: func(*tamperer) error { return perf(6, 0) }}, // the first dynamic type
		{name: "perf: whole CPU", run: func(*tamperer) error { return perf(unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CPU_CLOCK) }},
		{name: "device: TUN", run: func(*tamperer) error {
			path := os.TempDir() + "/tun"
			defer func() { _ = os.Remove(path) }()
			if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil {
				return os.NewSyscallError("mknod", err)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				f.Close()
			}
			return err
		}},
	}
	for _, kind := range []string{"net", "mnt", "cgroup", "user"} {
		all = append(all, tampering{name: "namespace: others' " + kind, run: func(*tamperer) error {
			pids, err := processes()
			if err != nil {
				return err
			}
			return anyOf(pids, func(pid int) error {
				f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
				if err != nil {
					return err
				}
				defer f.Close()
				return os.NewSyscallError("setns", unix.Setns(int(f.Fd()), 0))
			})
		}})
	}
	for _, s := range []struct{ name, value string }{
		{"net/ipv4/ip_forward", "1"}, {"net/ipv4/conf/all/route_localnet", "1"}, {"net/ipv4/ip_unprivileged_port_start", "0"},
		{"kernel/unprivileged_bpf_disabled", "0"},
	} {
		all = append(all, tampering{name: "sysctl: " + s.name, run: func(*tamperer) error {
			f, err := os.OpenFile("/proc/sys/"+s.name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString(s.value)
			return err
		}})
	}
	return all
}

// namespaceByHandle opens a network namespace that is not its own by a handle of the file system of namespaces, which has them since 6.18.
func namespaceByHandle() error {
	const rootOfNamespaces, kindOfHandle = -10003, 0xf1 // FD_NSFS_ROOT, FILEID_NSFS
	var own unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &own); err != nil {
		return err
	}
	err := failed("no namespace but its own")
	for id := uint64(1); id < 4096; id++ {
		b := binary.NativeEndian.AppendUint64(nil, id)
		b = append(b, make([]byte, 8)...) // any type, any inode
		fd, herr := unix.OpenByHandleAt(rootOfNamespaces, unix.NewFileHandle(kindOfHandle, b), unix.O_RDONLY|unix.O_CLOEXEC)
		switch herr {
		case nil:
		case unix.ESTALE:
			continue
		default:
			err = os.NewSyscallError("open_by_handle_at", herr)
			continue
		}
		var st unix.Stat_t
		kind, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.NS_GET_NSTYPE, 0)
		serr := unix.Fstat(fd, &st)
		unix.Close(fd)
		if errno == 0 && serr == nil && kind == unix.CLONE_NEWNET && st.Ino != own.Ino {
			return nil
		}
	}
	return err
}

// takeSocket takes a socket of another process.
func takeSocket() error {
	pids, err := processes()
	if err != nil {
		return err
	}
	return anyOf(pids, func(pid int) error {
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return os.NewSyscallError("pidfd_open", err)
		}
		defer unix.Close(pidfd)
		err = failed("process %d has no socket", pid)
		for n := range 64 {
			fd, ferr := unix.PidfdGetfd(pidfd, n, 0)
			if ferr == unix.EBADF {
				continue
			}
			if ferr != nil {
				return os.NewSyscallError("pidfd_getfd", ferr)
			}
			_, serr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
			unix.Close(fd)
			if serr == nil {
				return nil
			}
		}
		return err
	})
}

func perf(kind uint32, config uint64) error {
	attr := unix.PerfEventAttr{Type: kind, Config: config, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return os.NewSyscallError("perf_event_open", err)
}
