// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	bpffsRoot  = "/sys/fs/bpf"
)

// A Node is the machine inside the machine. Its exported fields are what the program in it needs to know.
type Node struct {
	ID     string // unique on this machine
	Dir    string // temporary directory, removed with the node
	Cgroup string // its cgroup, relative to the root of the hierarchy, with a leading slash
	Home   string // the cgroup that the machine gave to the process that made the node
}

// cgroupPath returns where a cgroup of the node is mounted.
func (n *Node) cgroupPath(elem ...string) string {
	return filepath.Join(append([]string{cgroupRoot, n.Cgroup}, elem...)...)
}

// makeNode moves the calling thread, which must be locked, into new mount and network namespaces and prepares them.
func makeNode(opts NodeOptions) (*Node, error) {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	n := &Node{ID: hex.EncodeToString(id[:])}
	n.Cgroup = "/sidegate-lab-" + n.ID
	home, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	n.Home = home
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := mountNode(opts); err != nil {
		return nil, err
	}
	if n.Dir, err = os.MkdirTemp("", "sidegate-lab-"); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.cgroupPath("node"), 0o755); err != nil {
		return nil, errors.Join(err, n.sweep())
	}
	return n, nil
}

// mountNode gives the calling thread's mount namespace the file systems of a node.
func mountNode(opts NodeOptions) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("make mounts private", err)
	}
	// One cgroup2 hierarchy, as on a machine that boots with nothing else.
	for {
		if err := unix.Unmount(cgroupRoot, unix.MNT_DETACH); err == unix.EINVAL {
			break
		} else if err != nil {
			return fmt.Errorf("unmount %s: %w", cgroupRoot, err)
		}
	}
	mounts := []struct{ fstype, target, data string }{
		{"cgroup2", cgroupRoot, ""},
		// An empty /run hides other runtimes' state, sockets and locks: /run/netns, /run/runc, /run/containers, xtables.lock.
		{"tmpfs", "/run", "mode=755"},
		// podman keeps its lock numbers here, whatever --tmpdir says.
		{"tmpfs", "/dev/shm", "mode=1777"},
	}
	if !opts.MachineBPFFS || !isBPFFS(bpffsRoot) {
		mounts = append(mounts, struct{ fstype, target, data string }{"bpf", bpffsRoot, "mode=700"})
	}
	for _, m := range mounts {
		if err := unix.Mount("sidegate-lab", m.target, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func isBPFFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

// setup finishes the node from within: its own network namespace.
func (n *Node) setup() error {
	for name, value := range map[string]string{
		"net.ipv4.ip_forward":          "1",
		"net.ipv6.conf.all.forwarding": "1",
		// Nothing waits for duplicate address detection.
		"net.ipv6.conf.all.accept_dad":     "0",
		"net.ipv6.conf.default.accept_dad": "0",
		// It forwards packets that choose their way.
		"net.ipv4.conf.all.accept_source_route":     "1",
		"net.ipv4.conf.default.accept_source_route": "1",
	} {
		if err := setSysctl(name, value); err != nil {
			return err
		}
	}
	return ip("link set lo up")
}

func setSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")), []byte(value), 0o644)
}

// ip runs lines of iproute2's batch language, all or nothing but for what ran before the error.
func ip(lines ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ownCgroup returns this process's cgroup in the cgroup2 hierarchy.
func ownCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path, nil
		}
	}
	return "", errors.New("this process is in no cgroup2 hierarchy")
}
