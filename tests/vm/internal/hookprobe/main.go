// SPDX-License-Identifier: Apache-2.0

// Command hookprobe stands in for an OCI hook in tests of container runtimes.
//
//	hookprobe record FILE [ARG...]   writes to FILE what it sees
//	hookprobe fail MESSAGE           says so on stderr, and fails
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sidegate/tests/vm/runtimes"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "hookprobe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 3 && args[1] == "fail":
		return errors.New(args[2])
	case len(args) >= 3 && args[1] == "record":
		record, err := observe(args)
		if err != nil {
			return err
		}
		data, err := json.Marshal(record)
		if err != nil {
			return fmt.Errorf("encode record: %w", err)
		}
		return os.WriteFile(args[2], data, 0o600)
	default:
		return fmt.Errorf("wrong usage: %q", args)
	}
}

func observe(args []string) (*runtimes.Record, error) {
	input, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	var state runtimes.State
	if err := json.Unmarshal(input, &state); err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	record := &runtimes.Record{Args: args, State: input}

	_, err = os.Stat(filepath.Join(state.Bundle, "rootfs", runtimes.Started))
	record.ProgramStarted = !errors.Is(err, fs.ErrNotExist)

	if state.Pid == 0 {
		// Stopped: there is no process to look at.
		return record, nil
	}
	pid := strconv.Itoa(state.Pid)
	cgroup, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		if state.Status == "stopped" {
			return record, nil
		}
		return nil, fmt.Errorf("read cgroup: %w", err)
	}
	record.Cgroup = strings.TrimPrefix(strings.TrimSpace(string(cgroup)), "0::")
	members, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", record.Cgroup, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("read cgroup's members: %w", err)
	}
	record.InCgroup = slices.Contains(strings.Fields(string(members)), pid)

	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("read network namespace: %w", err)
	}
	theirs, err := os.Readlink(filepath.Join("/proc", pid, "ns/net"))
	if err != nil {
		return nil, fmt.Errorf("read network namespace: %w", err)
	}
	record.OwnNetNS = own != theirs
	return record, nil
}
