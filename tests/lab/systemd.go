// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Systemd is Debian's systemd as PID 1 of a machine inside the node, with PIDs, mounts, cgroups and a network of its own: who asks it
// for a cgroup names processes by PID, and has to mean the same ones.
type Systemd struct {
	daemon *daemon
	dir    string
	node   *Node    // what programs are told that they are in
	cgroup string   // the root of its hierarchy
	beside *os.File // the cgroup of what Command runs
}

const (
	systemdProgram = "/lib/systemd/systemd"
	systemdTarget  = "sidegate-lab.target"
)

// bootScript is PID 1 until it becomes systemd, which believes to be in a container: it then leaves the clock, devices and most of
// /proc/sys alone. The mounts keep the rest of it from the machine: limits of files, the console, the log (it goes to a file) and the ID.
const bootScript = `set -e
dir=$1
mount --make-rprivate /
mount -t proc proc /proc
mount --bind -o ro /proc/sys/fs /proc/sys/fs
umount -R /sys/fs/cgroup
mount -t cgroup2 sidegate-lab /sys/fs/cgroup
mount -t bpf -o mode=700 sidegate-lab /sys/fs/bpf
mount -t tmpfs -o mode=755 sidegate-lab /run
mount --bind /dev/null /dev/console
mount --bind "$dir/systemd.log" /dev/kmsg
tr -d - </proc/sys/kernel/random/uuid >"$dir/machine-id"
mount --bind "$dir/machine-id" /etc/machine-id
mkdir -p /run/netns /run/lock /run/systemd/system
printf '[Unit]\nDefaultDependencies=no\n' >/run/systemd/system/` + systemdTarget + `
exec ` + systemdProgram + ` --system --unit=` + systemdTarget + ` --show-status=no --log-target=kmsg
`

// StartSystemd starts systemd without any of the machine's units, and waits until it is up. The caller must Close it; the node does
// if nobody else can.
func StartSystemd(ctx context.Context) (*Systemd, error) {
	currentMu.Lock()
	n := current
	currentMu.Unlock()
	if n == nil {
		return nil, errors.New("not in a node: call lab.Main first")
	}
	if _, err := os.Stat(systemdProgram); err != nil {
		return nil, fmt.Errorf("%w (install systemd)", err)
	}
	dir, err := os.MkdirTemp(n.Dir, "systemd-")
	if err != nil {
		return nil, err
	}
	s := &Systemd{dir: dir, cgroup: n.cgroupPath("systemd"), node: &Node{ID: n.ID, Dir: filepath.Join(dir, "node")}}
	for _, d := range []string{s.node.Dir, filepath.Join(s.cgroup, "node")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if s.beside, err = os.Open(filepath.Join(s.cgroup, "node")); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	root, err := os.Open(s.cgroup)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	defer root.Close()
	// A new cgroup namespace begins where the process is that makes it, and a clone into a cgroup is not yet there: hence unshare.
	s.daemon = newDaemon(dir, "systemd", "unshare", "--cgroup", "--", "sh", "-c", bootScript, "sh", dir)
	s.daemon.cmd.Env = []string{
		"container=sidegate-lab", "PATH=" + os.Getenv("PATH"),
		"SYSTEMD_UNIT_PATH=/run/systemd/transient:/run/systemd/system", "SYSTEMD_GENERATOR_PATH=/nonexistent",
	}
	s.daemon.cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(root.Fd()),
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
	}
	if err := s.daemon.start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	var last []byte
	err = WaitFor(Patience, "systemd", func() (bool, error) {
		if err := s.daemon.alive(); err != nil {
			return false, err
		}
		var err error
		last, err = s.Command(ctx, "systemctl", "is-active", systemdTarget).CombinedOutput()
		return err == nil, ctx.Err()
	})
	if err != nil {
		log, _ := os.ReadFile(s.daemon.logPath)
		return nil, errors.Join(fmt.Errorf("%w: %s%s", err, last, log), s.Close())
	}
	return s, nil
}

// Command returns a command that is to run under systemd, beside its units. A program that calls Main is in a node there, whose runtimes
// can ask systemd for cgroups.
func (s *Systemd) Command(ctx context.Context, argv ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(s.daemon.cmd.Process.Pid), "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, argv...)...)
	state, _ := json.Marshal(s.node) // strings only
	cmd.Env = append(os.Environ(), nodeEnv+"="+string(state))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(s.beside.Fd())}
	// nsenter hands no signal on.
	cmd.Cancel = s.daemon.cmd.Process.Kill
	return cmd
}

// Close kills systemd, and the kernel with it all that runs under it.
func (s *Systemd) Close() error {
	err := errors.Join(killCgroup(s.cgroup), removeCgroups(s.cgroup), os.RemoveAll(s.dir))
	if s.beside != nil {
		_ = s.beside.Close()
	}
	return err
}
