// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// rootOf is the root directory of process pid.
func rootOf(pid int) string { return fmt.Sprintf("/proc/%d/root", pid) }

// putExecutables records which executables of the container may have sockets:
// those that its subjects list and that are below root, the container's root
// directory as this process can reach it.
func (s *Store) putExecutables(entry bpf.Container, c *policy.Compiled, root string) error {
	paths := processesOf(entry, c)
	if len(paths) == 0 {
		return nil
	}
	keys, err := executables(entry.CgroupId, root, paths)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return fmt.Errorf("none of the executables that may have sockets (%s) is in its image: correct `processes` in policy %s",
			strings.Join(paths, ", "), c.Name)
	}
	for _, k := range keys {
		if err := s.maps.Executables.Put(k, uint32(1)); err != nil {
			return fmt.Errorf("put executable: %w", err)
		}
	}
	return nil
}

// trimExecutables removes those that the policy does not list.
func (s *Store) trimExecutables(entry bpf.Container, c *policy.Compiled, root string) error {
	keep, err := executables(entry.CgroupId, root, processesOf(entry, c))
	if err != nil {
		return err
	}
	return deleteKeys(s.maps.Executables, func(k *bpf.Executable) bool {
		return k.CgroupId == entry.CgroupId && !slices.Contains(keep, *k)
	})
}

// processesOf lists the executables of both subjects of a container.
func processesOf(entry bpf.Container, c *policy.Compiled) (paths []string) {
	for _, sub := range c.Subjects {
		if sub.ID == entry.Subject || entry.Name != 0 && sub.ID == entry.Name {
			paths = append(paths, sub.Processes...)
		}
	}
	return paths
}

// executables returns the keys of those paths that exist.
func executables(cgroupID uint64, root string, paths []string) ([]bpf.Executable, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open its root directory %s: %w", root, err)
	}
	defer unix.Close(dir)
	var keys []bpf.Executable
	for _, path := range paths {
		k, err := executable(dir, root, path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // an image may lack what another one of this role has
		}
		if err != nil {
			return nil, fmt.Errorf("find executable %s: %w", path, err)
		}
		k.CgroupId = cgroupID
		keys = append(keys, k)
	}
	return keys, nil
}

// executable names a file as the kernel does in the executable of a process: by
// the inode of the file system that it was opened in, which for an overlay is
// not what stat(2) says. fdinfo has that number since 5.14, mountinfo the device.
func executable(dir int, root, path string) (k bpf.Executable, err error) {
	fd, err := unix.Openat2(dir, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return k, err
	}
	defer unix.Close(fd)
	return inodeOf(fd, root)
}

// executableOf names the executable of process pid.
func executableOf(pid int) (k bpf.Executable, err error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/exe", pid), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return k, fmt.Errorf("find executable of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	return inodeOf(fd, rootOf(pid))
}

// inodeOf names an open file as the kernel does. root is as deviceOf wants it.
func inodeOf(fd int, root string) (k bpf.Executable, err error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", fd))
	if err != nil {
		return k, err
	}
	mnt := ""
	for line := range strings.Lines(string(info)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "ino":
			if k.Ino, err = strconv.ParseUint(value, 10, 64); err != nil {
				return k, fmt.Errorf("read inode %q: %w", value, err)
			}
		case "mnt_id":
			mnt = value
		}
	}
	k.Dev, err = deviceOf(root, mnt)
	return k, err
}

// deviceOf returns s_dev of the file system that is mounted as mount mnt. root is
// below /proc/<pid>/root if the mount is that process' only.
func deviceOf(root, mnt string) (uint32, error) {
	files := []string{"/proc/thread-self/mountinfo"}
	if rest, ok := strings.CutPrefix(root, "/proc/"); ok {
		pid, _, _ := strings.Cut(rest, "/")
		files = append(files, "/proc/"+pid+"/mountinfo")
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return 0, err
		}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			f := strings.Fields(s.Text()) // proc_pid_mountinfo(5)
			if len(f) < 3 || f[0] != mnt {
				continue
			}
			var major, minor uint32
			if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
				return 0, fmt.Errorf("read device %q: %w", f[2], err)
			}
			return major<<20 | minor, nil // MKDEV of the kernel
		}
	}
	return 0, fmt.Errorf("mount %s is not in %s", mnt, strings.Join(files, " or "))
}
