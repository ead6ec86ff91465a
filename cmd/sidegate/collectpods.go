// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

// Of a pod, at most.
const (
	maxProcesses = 200 // of a container
	maxSockets   = 500 // of a protocol
)

// collectPods says of each pod what runs in it and what sockets it has.
func collectPods(ctx context.Context, b *bundle, state string) error {
	list, err := cgroups.ReadRegistered(state)
	if err != nil {
		return err
	}
	mount, err := cgroups.FindMount()
	if err != nil {
		return err
	}
	var errs []error
	pods := map[uint64]*strings.Builder{}
	asked := map[uint64]bool{}
	for _, c := range list {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		out := pods[c.NetnsIno]
		if out == nil {
			out = new(strings.Builder)
			pods[c.NetnsIno] = out
			fmt.Fprintf(out, "pod %s, network namespace %d\n", c.Pod, c.NetnsIno)
		}
		fmt.Fprintf(out, "\ncontainer %s (%s), cgroup %d %s\n", c.Name, c.ID, c.CgroupID, c.Cgroup)
		if c.Cgroup == "" {
			fmt.Fprintln(out, "  it is gone")
			continue
		}
		pids, err := mount.Processes(c.Cgroup, maxProcesses)
		if err != nil {
			errs = append(errs, err)
		}
		for _, pid := range pids {
			fmt.Fprintf(out, "  process %d: %s\n", pid, process(pid))
			if ino, _ := netnsInode(pid); ino == c.NetnsIno && !asked[ino] {
				asked[ino] = true
				errs = append(errs, podSockets(out, pid))
			}
		}
	}
	for ino, out := range pods {
		b.text(fmt.Sprintf("pods/netns-%d.txt", ino), out.String())
	}
	return errors.Join(errs...)
}

// process says what a process is: its executable and the first word of its command
// line, whose other words may be anything, and so may its environment.
func process(pid int) string {
	dir := fmt.Sprintf("/proc/%d", pid)
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return "ended"
	}
	line, err := readBounded(dir+"/cmdline", 1<<12)
	if err != nil {
		return "ended"
	}
	first, _, _ := strings.Cut(line, "\x00")
	first, _, _ = strings.Cut(first, " ") // of one that has set its title
	words := []string{text.Clean(exe), text.Clean(filepath.Base(first))}
	status, err := readBounded(dir+"/status", 1<<14)
	if err != nil {
		return "ended"
	}
	for l := range strings.Lines(status) {
		key, value, _ := strings.Cut(l, ":")
		switch key {
		case "Uid", "CapEff", "NoNewPrivs", "Seccomp", "State":
			words = append(words, key+" "+strings.Join(strings.Fields(value), "/"))
		}
	}
	return strings.Join(words, ", ")
}

func netnsInode(pid int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// tcpStates are the kernel's, by number.
var tcpStates = []string{
	"?", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
}

// podSockets lists the sockets of a process's network namespace. It reads what the
// kernel prints: to ask by netlink would load modules.
func podSockets(out *strings.Builder, pid int) error {
	var errs []error
	for _, protocol := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6"} {
		text, err := readBounded(fmt.Sprintf("/proc/%d/net/%s", pid, protocol), 1<<20)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		states := map[string]int{}
		var rows []string
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 10 || f[0] == "sl" {
				continue
			}
			n, err := strconv.ParseUint(f[3], 16, 8)
			if err != nil || int(n) >= len(tcpStates) {
				continue
			}
			states[tcpStates[n]]++
			if len(rows) < maxSockets {
				rows = append(rows, fmt.Sprintf("    %s %s -> %s uid %s inode %s", tcpStates[n], procAddr(f[1]), procAddr(f[2]), f[7], f[9]))
			}
		}
		slices.Sort(rows)
		fmt.Fprintf(out, "  %s sockets of the pod: %v\n", protocol, states)
		for _, r := range rows {
			fmt.Fprintln(out, r)
		}
	}
	if text, err := readBounded(fmt.Sprintf("/proc/%d/net/packet", pid), 1<<20); err == nil {
		fmt.Fprintf(out, "  packet sockets of the pod: %d\n", max(0, strings.Count(text, "\n")-1))
	}
	return errors.Join(errs...)
}

// procAddr reads an address as the kernel prints it: words of four bytes, each in the
// machine's order, and a port.
func procAddr(s string) string {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(b)%4 != 0 {
		return "?"
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return "?"
	}
	return netip.AddrPortFrom(a, uint16(n)).String()
}
