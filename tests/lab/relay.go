// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// RelaySocket is where a lab's relay answers, as front-ends expect it.
const RelaySocket = "/run/sidegate/tls.sock"

// Relay is Sidegate's TLS relay, as a service in a cgroup of its own.
type Relay struct {
	Events string // file

	dir, binary string
	env         []string
	daemon      *daemon
}

// StartRelay starts the relay, with files below dir, and waits until it answers.
func StartRelay(dir, binary string, env ...string) (*Relay, error) {
	r := &Relay{Events: filepath.Join(dir, "events.json"), dir: dir, binary: binary, env: env}
	return r, r.Start()
}

// Start starts it again, after Stop or Kill. What happened before stays in its events.
func (r *Relay) Start() error {
	currentMu.Lock()
	path := current.cgroupPath("relay")
	currentMu.Unlock()
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(path)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	r.daemon = newDaemon(r.dir, "sidegate-tls", r.binary, "--log-level=debug", "--events", r.Events)
	r.daemon.cmd.Env = append(os.Environ(), r.env...)
	r.daemon.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := r.daemon.start(); err != nil {
		return err
	}
	return WaitFor(Patience, "the TLS relay", func() (bool, error) {
		if err := r.daemon.alive(); err != nil {
			return false, err
		}
		c, err := net.Dial("unixpacket", RelaySocket)
		if err != nil {
			return false, nil
		}
		return true, c.Close()
	})
}

// PID is its process.
func (r *Relay) PID() int { return r.daemon.cmd.Process.Pid }

// Signal sends it one, such as SIGSTOP.
func (r *Relay) Signal(s syscall.Signal) error { return r.daemon.cmd.Process.Signal(s) }

// Wait waits for its end, and says how it ended.
func (r *Relay) Wait() error {
	<-r.daemon.ended
	return r.daemon.err
}

// Kill is kill -9.
func (r *Relay) Kill() error {
	err := r.daemon.cmd.Process.Kill()
	<-r.daemon.ended
	return err
}

// Stop ends it, and removes its cgroup.
func (r *Relay) Stop() error {
	currentMu.Lock()
	path := current.cgroupPath("relay")
	currentMu.Unlock()
	return errors.Join(r.daemon.stop(), removeCgroups(path))
}

// Log returns what it has logged since its start.
func (r *Relay) Log() (string, error) {
	b, err := os.ReadFile(r.daemon.logPath)
	return string(b), err
}

// ReadEvents decodes what happened so far, a line each.
func ReadEvents[T any](r *Relay) ([]T, error) {
	b, err := os.ReadFile(r.Events)
	if err != nil {
		return nil, err
	}
	var all []T
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		var e T
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("event %s: %w", s.Text(), err)
		}
		all = append(all, e)
	}
	return all, nil
}
