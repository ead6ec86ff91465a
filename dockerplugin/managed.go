// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/writer"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

// A managed plugin (docker plugin create) is the same program in a container of Docker's, which has the host's network
// and processes, but its own mounts. What differs is here; contrib/docker-plugin/config.json has what it is given.

// What docker plugin set changes, beside what is mounted and how it logs.
const metricsEnv = "SIDEGATE_METRICS_ADDRESS"

// logForDocker writes what Docker's log then has at its level: it takes what a plugin writes to its standard output for
// information, and what it writes to its standard error for errors.
func logForDocker(log *logrus.Logger) {
	log.SetOutput(io.Discard)
	log.AddHook(&writer.Hook{Writer: os.Stderr, LogLevels: logrus.AllLevels[:logrus.InfoLevel]})
	log.AddHook(&writer.Hook{Writer: os.Stdout, LogLevels: logrus.AllLevels[logrus.InfoLevel:]})
}

// givenSysctls is where a container that has /proc/sys read-only, as all have, is given what it may write.
const givenSysctls = "/host/proc/sys/net"

// ensureSysctls makes sure that /proc/sys/net can be written. In a managed plugin it puts what was given over it, in the
// plugin's own mount namespace: so all code writes to one place, and what is shown there is that of the network
// namespace of the thread that looks.
func ensureSysctls(at, given string) error {
	readOnly, err := isReadOnly(at)
	if err != nil || !readOnly {
		return err
	}
	if readOnly, err = isReadOnly(given); err == nil && !readOnly {
		if err = unix.Mount(given, at, "", unix.MS_BIND, ""); err == nil {
			return nil
		}
		return fmt.Errorf("mount %s on %s: %w", given, at, err)
	}
	why := fmt.Sprintf("%s is read-only too", given)
	if err != nil {
		why = err.Error()
	}
	return fmt.Errorf("%s is read-only, so there is no network to be made (%s): a systemd unit must not have "+
		"ProtectKernelTunables=yes, a container needs the host's /proc/sys/net mounted on %s", at, why, given)
}

// isReadOnly tells whether the mount of a directory of procfs is read-only.
func isReadOnly(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return false, fmt.Errorf("%s is not of /proc", dir)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// openSandbox opens the network namespace that Docker says is at key: in Docker's mounts, which may not be this
// process'. The error wraps fs.ErrNotExist where there is none yet.
func (d *driver) openSandbox(key string) (*cgroups.Netns, error) {
	ns, err := cgroups.OpenNetns(key)
	if !errors.Is(err, fs.ErrNotExist) {
		return ns, err
	}
	pid, perr := d.dockerPID()
	if perr != nil {
		return nil, errors.Join(err, perr)
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open Docker's mounts: %w", err)
	}
	defer root.Close()
	// /var/run is a link to /run on most machines: to Docker's, not to ours.
	fd, err := unix.Openat2(int(root.Fd()), key, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s in Docker's mounts: %w", key, err)
	}
	defer unix.Close(fd)
	return cgroups.OpenNetns(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
}

// dockerPID is Docker's process, which is another one after each of its starts.
func (d *driver) dockerPID() (int, error) {
	b, err := os.ReadFile(d.config.pidFile)
	if err != nil {
		return 0, fmt.Errorf("find Docker's process: %w: write its file as --docker-pid-file", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("find Docker's process: %s: %w", d.config.pidFile, err)
	}
	return pid, nil
}

// alone keeps others of this program away: a service and a managed plugin would write each other's rules. The name is
// one of the network namespace, as is what the driver makes, and free again when this process ends in whatever way.
func alone() (release func() error, err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@sidegate-docker", Net: "unix"})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, cli.Usage(errors.New("another sidegate-docker runs, as a service or as a managed plugin: stop it " +
			"(systemctl disable --now sidegate-docker, or docker plugin disable)"))
	}
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}
