// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoCgroup2 says that no cgroup2 file system is mounted.
var ErrNoCgroup2 = errors.New("no cgroup2 file system is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, " +
	"or boot with systemd.unified_cgroup_hierarchy=1")

// Mount is a mounted cgroup2 hierarchy, pure or beside cgroup v1.
type Mount struct {
	Dir  string // where it is mounted
	Root string // the cgroup that is mounted there; "/" but in a cgroup namespace
}

// FindMount returns the cgroup2 mount that shows most of the hierarchy.
// The error wraps ErrNoCgroup2 where there is none.
func FindMount() (Mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Mount{}, fmt.Errorf("find cgroup2: %w", err)
	}
	m, ok := parseMountinfo(b)
	if !ok {
		return Mount{}, ErrNoCgroup2
	}
	return m, nil
}

// parseMountinfo reads proc_pid_mountinfo(5): mount id, parent id, device,
// root, mount point, options, optional fields, "-", type, source, options.
func parseMountinfo(b []byte) (Mount, bool) {
	var best Mount
	found := false
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		head, tail, ok := strings.Cut(s.Text(), " - ")
		if !ok || !strings.HasPrefix(tail, "cgroup2 ") {
			continue
		}
		f := strings.Fields(head)
		if len(f) < 5 {
			continue
		}
		m := Mount{Dir: unescape(f[4]), Root: unescape(f[3])}
		// A later mount hides an earlier one at the same place.
		if !found || len(m.Root) <= len(best.Root) {
			best, found = m, true
		}
	}
	return best, found
}

// unescape undoes the \040 style of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Cgroup is an open cgroup v2 directory. Whoever got it closes it.
type Cgroup struct {
	*os.File
	ID   uint64 // kernfs id, as bpf_get_current_cgroup_id returns it
	Path string // within the hierarchy, as in /proc/<pid>/cgroup
}

// Of returns the cgroup v2 of process pid.
func (m Mount) Of(pid int) (*Cgroup, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	path, err := parseProcCgroup(b)
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	cg, err := m.Open(path)
	if err != nil {
		return nil, fmt.Errorf("find cgroup of process %d: %w", pid, err)
	}
	return cg, nil
}

// parseProcCgroup returns the path of the v2 entry, which has hierarchy 0 and
// no controllers ("0::/path", cgroups(7)); v1 entries stand beside it.
func parseProcCgroup(b []byte) (string, error) {
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "0::")
		if !ok {
			continue
		}
		if path, gone := strings.CutSuffix(path, " (deleted)"); gone {
			return "", fmt.Errorf("cgroup %s is deleted", path)
		}
		if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/..") {
			return "", fmt.Errorf("cgroup %q is outside of this cgroup namespace: run in the host's", path)
		}
		return path, nil
	}
	return "", ErrNoCgroup2
}

// Open opens the cgroup at path within the hierarchy.
func (m Mount) Open(path string) (*Cgroup, error) {
	rel, err := filepath.Rel(m.Root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, fmt.Errorf("cgroup %s is not below %s, which is all that %s shows", path, m.Root, m.Dir)
	}
	f, err := os.Open(filepath.Join(m.Dir, rel))
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat cgroup %s: %w", path, err), f.Close())
	}
	return &Cgroup{File: f, ID: st.Ino, Path: path}, nil
}

// fileidKernfs is FILEID_KERNFS of linux/exportfs.h: a handle is the node's
// 64-bit id, which has a generation in it and is not used again.
const fileidKernfs = 0xfe

// Alive tells whether the cgroup with this id exists and has a process, in it
// or below. A container's has one from before its start to its end; a runtime
// that was killed leaves an empty directory.
func (m Mount) Alive(id uint64) (bool, error) {
	path, exists, err := m.PathOf(id)
	if err != nil || !exists {
		return false, err
	}
	rel, err := filepath.Rel(m.Root, path)
	if err != nil {
		return false, fmt.Errorf("find cgroup %s: %w", path, err)
	}
	b, err := os.ReadFile(filepath.Join(m.Dir, rel, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return false, nil // removed meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("read events of cgroup %s: %w", path, err)
	}
	return bytes.Contains(b, []byte("populated 1")), nil
}

// PathOf returns the path within the hierarchy of the cgroup with this id, and
// false if it exists no more, even while sockets still hold it.
func (m Mount) PathOf(id uint64) (string, bool, error) {
	dir, err := os.Open(m.Dir)
	if err != nil {
		return "", false, fmt.Errorf("open cgroup2: %w", err)
	}
	defer dir.Close()
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), handle, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_DIRECTORY)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("open cgroup %d by id: %w", id, err)
	}
	defer unix.Close(fd)
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", false, fmt.Errorf("name cgroup %d: %w", id, err)
	}
	p = strings.TrimPrefix(p, m.Dir)
	return filepath.Join("/", m.Root, p), true, nil
}
