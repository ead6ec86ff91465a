// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// sweep removes all of the node but the namespaces, which go away with the last process. It depends on nothing but the kernel, so it
// also works after anything has crashed, and again.
func (n *Node) sweep() error {
	err := n.killAll()
	err = errors.Join(err, removeCgroups(n.cgroupPath()))
	err = errors.Join(err, unmountBelow(n.Dir))
	return errors.Join(err, os.RemoveAll(n.Dir))
}

// killAll kills what runs in the node's cgroup, and waits until nothing does.
func (n *Node) killAll() error {
	return killCgroup(n.cgroupPath())
}

// killCgroup kills every process in the cgroup at path and below, and waits until there is none. A missing cgroup is fine.
func killCgroup(path string) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(path); errors.Is(serr, fs.ErrNotExist) {
			return nil
		}
		err = killListed(path) // kernel before 5.14
	}
	if err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	return WaitFor(Patience, "an empty cgroup "+path, func() (bool, error) {
		reapOrphans()
		b, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		return strings.Contains(string(b), "populated 0"), err
	})
}

// killListed kills processes one by one, for kernels without cgroup.kill.
func killListed(path string) error {
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return err
	})
}

// subreaper is set in the process that made the node, once it has no child that somebody else waits for.
var subreaper bool

// reapOrphans collects the ended processes that the subreaper inherited.
func reapOrphans() {
	if !subreaper {
		return
	}
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}

// removeCgroups removes the cgroup at path and all below it, deepest first. They must be empty of processes.
func removeCgroups(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		// An emptied cgroup can be busy for a moment still.
		err = errors.Join(err, WaitFor(Patience, "removal of "+dirs[i], func() (bool, error) {
			rerr := unix.Rmdir(dirs[i])
			if rerr == unix.EBUSY {
				return false, nil
			}
			return rerr == nil || rerr == unix.ENOENT, ignore(rerr, unix.ENOENT)
		}))
	}
	return err
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}

// unmountBelow unmounts what is mounted below dir, newest first.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		// ID, parent, device, root, mount point, ...
		fields := strings.Fields(s.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	for i := len(points) - 1; i >= 0; i-- {
		if uerr := unix.Unmount(points[i], unix.MNT_DETACH); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", points[i], uerr))
		}
	}
	return err
}

// leave moves this process out of the node's cgroup, so that it can be removed.
func (n *Node) leave() error {
	return os.WriteFile(filepath.Join(cgroupRoot, n.Home, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}
