// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Netns is an open network namespace. Whoever got it closes it.
type Netns struct {
	Handle netns.NsHandle
	Dev    uint64 // with Ino what nsfs calls it
	Ino    uint64
	Cookie uint64 // what BPF calls it (bpf_get_netns_cookie), never used again
}

// NetnsOf returns the network namespace of process pid.
func NetnsOf(pid int) (*Netns, error) {
	return OpenNetns(fmt.Sprintf("/proc/%d/ns/net", pid))
}

// OpenNetns opens a network namespace by the path of its nsfs file.
func OpenNetns(path string) (*Netns, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n := &Netns{Handle: h}
	var st unix.Stat_t
	if err := unix.Fstat(int(h), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat network namespace %s: %w", path, err), n.Close())
	}
	n.Dev, n.Ino = st.Dev, st.Ino
	err = n.Do(func() error {
		// A UNIX socket has the cookie too, and no guard refuses it.
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		n.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("get SO_NETNS_COOKIE: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("identify network namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

// Close closes the handle.
func (n *Netns) Close() error { return n.Handle.Close() }

// Do runs f inside the namespace, on this thread, which no other goroutine gets
// before it is back, even if f panics. A thread of its own would be dearer: the
// runtime starts others beside it, and a container's start waits for them.
func (n *Netns) Do(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go back stays locked, and ends with its goroutine.
		if serr := netns.Set(home); serr != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", serr))
		} else {
			runtime.UnlockOSThread()
		}
		err = errors.Join(err, home.Close())
	}()
	if err := netns.Set(n.Handle); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	return f()
}

// isHost tells whether n is the namespace of this process or of init: managing
// it would be managing the host. Where init may not be looked at, as by a
// runtime without all capabilities, this process has to do: its thread, since
// the first thread, which /proc/self stands for, may be another one and in Do.
func (n *Netns) isHost() (bool, error) {
	for _, p := range []string{"/proc/thread-self/ns/net", "/proc/1/ns/net"} {
		var st unix.Stat_t
		err := unix.Stat(p, &st)
		if errors.Is(err, unix.EACCES) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("stat %s: %w", p, err)
		}
		if st.Dev == n.Dev && st.Ino == n.Ino {
			return true, nil
		}
	}
	return false, nil
}

// task is a thread of a process, and the network namespace it was in.
type task struct {
	pid   int
	netns string // path of its nsfs file
	ino   uint64
}

// eachNetns calls f with every task but those of this process, which is in a pod's namespace only while Do runs.
func eachNetns(f func(task)) error {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Of each thread: the first one may have ended, or be elsewhere.
		tasks, err := os.ReadDir("/proc/" + p.Name() + "/task")
		if err != nil {
			continue // it ended meanwhile
		}
		for _, t := range tasks {
			var st unix.Stat_t
			path := "/proc/" + p.Name() + "/task/" + t.Name() + "/ns/net"
			// A zombie has no namespace.
			if unix.Stat(path, &st) == nil {
				f(task{pid, path, st.Ino})
			}
		}
	}
	return nil
}

// netnsInUse tells of namespaces, by cookie, given the inode of each, which have a process other than except. An inode
// alone does not tell: the kernel gives that of a namespace that ended to the next one. What cannot be known counts as
// used, so that it stays closed.
func netnsInUse(inodes map[uint64]uint64, except int) (map[uint64]bool, error) {
	used := make(map[uint64]bool)
	wanted := make(map[uint64]bool)
	for _, ino := range inodes {
		wanted[ino] = true
	}
	err := eachNetns(func(t task) {
		if !wanted[t.ino] || t.pid == except {
			return
		}
		ns, err := OpenNetns(t.netns)
		if err == nil {
			used[ns.Cookie] = true
			delete(wanted, ns.Ino) // no other namespace has it now
			_ = ns.Close()         // of a descriptor that was read only
			return
		}
		var st unix.Stat_t
		if unix.Stat(t.netns, &st) != nil {
			return // it has ended
		}
		for cookie, ino := range inodes {
			if ino == t.ino {
				used[cookie] = true
			}
		}
	})
	return used, err
}

// processIn returns a process in the namespace with this inode, or 0.
func processIn(want uint64) (int, error) {
	found := 0
	err := eachNetns(func(t task) {
		if t.ino == want {
			found = t.pid
		}
	})
	return found, err
}

// Processes returns the processes in the namespace, but this one.
func (n *Netns) Processes() (pids []int, err error) {
	err = eachNetns(func(t task) {
		if t.ino == n.Ino && !slices.Contains(pids, t.pid) {
			pids = append(pids, t.pid)
		}
	})
	return pids, err
}

// inNewNetns runs f in a network namespace that ends with it.
func inNewNetns(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
