// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// cgroupDir is where a container sees its own cgroup.
const cgroupDir = "/sys/fs/cgroup"

func cgroupTamperings() []tampering {
	all := []tampering{
		{name: "mount: bpf", run: func(*tamperer) error { return mountNew("bpf") }},
		{name: "mount: cgroup2", run: func(*tamperer) error { return mountNew("cgroup2") }},
		{name: "mount: fsopen bpf", run: func(*tamperer) error { return fsopen("bpf") }},
		{name: "mount: fsopen cgroup2", run: func(*tamperer) error { return fsopen("cgroup2") }},
		{name: "mount: cgroups writable", run: func(*tamperer) error { return remount(cgroupDir) }},
		{name: "mount: sysctls writable", run: func(*tamperer) error { return remount("/proc/sys") }},
		{name: "mount: bpf, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error { return mountNew("bpf") }},
		{name: "mount: cgroup2, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error { return mountNew("cgroup2") }},
		{name: "mount: cgroups writable, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			return remount(cgroupDir)
		}},
		{name: "mount: sysctls writable, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			return remount("/proc/sys")
		}},
		{name: "mount: proc, in own namespaces", flags: ownNamespaces | unix.CLONE_NEWPID, run: func(*tamperer) error {
			return mountNew("proc")
		}},
		{name: "cgroup: open for writing", run: func(*tamperer) error {
			return anyOf([]int{unix.O_RDWR | unix.O_DIRECTORY, unix.O_TMPFILE | unix.O_RDWR}, func(flags int) error {
				fd, err := unix.Open(cgroupDir, flags|unix.O_CLOEXEC, 0)
				if err == nil {
					unix.Close(fd)
				}
				return err
			})
		}},
		{name: "cgroup: make a child", run: func(*tamperer) error { return unix.Mkdir(cgroupDir+"/tamper", 0o755) }},
		{name: "cgroup: process of its own, by clone3", run: func(*tamperer) error { return onCgroup(cloneInto) }},
		{name: "cgroup: process of the parent's, by clone3", run: func(*tamperer) error {
			return onCgroup(func(fd uint32) error {
				parent, err := unix.Openat(int(fd), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(parent)
				return cloneInto(uint32(parent))
			})
		}},
		{name: "cgroup: parent, by its handle", run: func(*tamperer) error { return byHandle(cgroupDir) }},
		{name: "cgroup: itself and a child, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			return onOwnCgroup(func(dir string) error { return inChild(dir, func() error { return nil }) })
		}},
		{name: "cgroup: parent, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			return onOwnCgroup(func(dir string) error { return moveTo(filepath.Join(dir, "..")) })
		}},
		{name: "cgroup: parent, by its handle, in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			return onOwnCgroup(byHandle)
		}},
	}
	byRoot := "/proc/1/root" + cgroupDir
	for _, dir := range []string{cgroupDir, cgroupDir + "/..", cgroupDir + "/tamper", byRoot, byRoot + "/.."} {
		all = append(all, tampering{name: "cgroup: move to " + dir, alone: true, run: func(*tamperer) error { return moveTo(dir) }})
	}

	return all
}

// mountAt mounts a file system of this type.
func mountAt(fstype, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		// There is none, and it cannot be made: /tmp is as good.
		if dir, err = os.MkdirTemp("", "tamper"); err != nil {
			return err
		}
	}
	return os.NewSyscallError("mount "+fstype, unix.Mount("tamper", dir, fstype, 0, ""))
}

func mountNew(fstype string) error {
	dir, err := os.MkdirTemp("", "tamper")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(dir) }()
	return mountAt(fstype, dir)
}

func remount(dir string) error {
	return os.NewSyscallError("remount", unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
}

func fsopen(fstype string) error {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	return os.NewSyscallError("fsconfig", unix.FsconfigCreate(fs))
}

// moveTo moves this process into the cgroup at dir.
func moveTo(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("0")
	return err
}

// onOwnCgroup does f with a writable view of this container's cgroup, which own namespaces allow.
func onOwnCgroup(f func(dir string) error) error {
	dir, err := os.MkdirTemp("", "tamper")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(dir) }()
	if err := mountAt("cgroup2", dir); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	return f(dir)
}

// inChild does f in a cgroup below the one at dir.
func inChild(dir string, f func() error) error {
	child := filepath.Join(dir, "tamper")
	if err := os.Mkdir(child, 0o755); err != nil {
		return err
	}
	defer func() { _ = errors.Join(moveTo(dir), os.Remove(child)) }()
	if err := moveTo(child); err != nil {
		return err
	}
	return f()
}

// cloneInto makes a process in the cgroup, which ends at once.
func cloneInto(fd uint32) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd)}
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = cmd.Wait()
	return nil
}

// byHandle opens another cgroup than the one at dir, by a number such as that one has.
func byHandle(dir string) error {
	own, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return os.NewSyscallError("name_to_handle_at", err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(own.Bytes()) != 8 {
		return failed("handle has %d bytes", len(own.Bytes()))
	}
	id := binary.NativeEndian.Uint64(own.Bytes())
	// Cgroups that were made before, the root's first.
	refused := failed("no cgroup but this one")
	for n := uint64(1); n < id; n++ {
		b := binary.NativeEndian.AppendUint64(nil, n)
		other, err := unix.OpenByHandleAt(fd, unix.NewFileHandle(own.Type(), b), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err == nil {
			unix.Close(other)
			return nil
		}
		if err != unix.ESTALE || n == 1 {
			refused = fmt.Errorf("cgroup %d: %w", n, os.NewSyscallError("open_by_handle_at", err))
		}
		if err == unix.EPERM {
			break
		}
	}
	return refused
}
