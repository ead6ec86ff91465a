// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	mathbits "math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"sidegate/bpf"
)

// adminCapabilities are those with which a container gets round what is enforced,
// and how. Where it has a user namespace of its own only the first is of any use
// (user_namespaces(7)): a pod's network namespace may belong to that.
var adminCapabilities = []struct {
	name, how string
	anywhere  bool
}{
	{"CAP_NET_ADMIN", "it can rewrite what others of its pod send, and, without a user namespace, add devices of the host to it", true},
	{"CAP_SYS_ADMIN", "it can leave its cgroup, and undo what is attached there", false},
	{"CAP_SYS_MODULE", "it can load code into the kernel", false},
}

// adminOf tells which of adminCapabilities a container has that are of use to it:
// bit n stands for the nth.
func adminOf(c *Container) (bits uint8, err error) {
	for i, a := range adminCapabilities {
		if !hasCapability(c.Capabilities, a.name) {
			continue
		}
		if !a.anywhere {
			own, err := ownUserns(c.PID)
			if err != nil {
				return 0, err
			}
			if own {
				continue
			}
		}
		bits |= 1 << i
	}
	return bits, nil
}

func adminNames(bits uint8) (names []string) {
	for i, a := range adminCapabilities {
		if bits&(1<<i) != 0 {
			names = append(names, a.name)
		}
	}
	return names
}

// binds tells whether the policy keeps a container of this role from anything.
func binds(role bpf.Role, pol *applied) bool {
	free := (role == bpf.RoleSidecar || role == bpf.RoleExempt) && pol.entry.Flags&bpf.PolicyRuled == 0
	return !free && pol.entry.Flags&bpf.PolicyAudit == 0
}

// refusal says why a container that has these of adminCapabilities does not start:
// the policy binds it, and it could get out of that.
func refusal(bits uint8, role bpf.Role, pol *applied) string {
	if bits == 0 || !binds(role, pol) || pol.entry.Flags&bpf.PolicyAdmin != 0 {
		return ""
	}
	a := adminCapabilities[mathbits.TrailingZeros8(bits)]
	return fmt.Sprintf("it has %s, with which %s: take that away (a mesh needs no capabilities here), or write adminCapabilities: allow into policy %s",
		a.name, a.how, bpf.CString(pol.info.Name[:]))
}

// Admit is asked of a container that is not to be registered: it refuses one that
// is about to start in a managed pod, has no sockets there, and could do without.
func (s *Store) Admit(ns *Netns, c *Container) error {
	pol, err := s.podPolicy(ns)
	if err != nil || pol == nil {
		return err
	}
	admin, err := adminOf(c)
	if err != nil {
		return err
	}
	sockets, err := inheritedSockets(c.PID)
	if err != nil {
		return err
	}
	if why := cmp.Or(refusal(admin, bpf.RoleDead, pol), socketRefusal(inheritance(sockets), bpf.RoleDead, pol)); why != "" {
		return fmt.Errorf("it is about to start in a managed pod, without annotations; %s", why)
	}
	return nil
}

// NeedsAdmission tells whether Admit has to be asked of a container. It is cheap, and
// most do not need it.
func NeedsAdmission(c *Container) bool {
	for _, a := range adminCapabilities {
		if hasCapability(c.Capabilities, a.name) {
			return true
		}
	}
	sockets, err := inheritedSockets(c.PID)
	if errors.Is(err, fs.ErrNotExist) { // the process has ended
		return false
	}
	return len(sockets) > 0 || err != nil // Admit says it, if the pod is managed
}

// capabilityNames are those of capabilities(7), by their numbers.
var capabilityNames = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// CapabilitiesOf returns the names of the capabilities that are in any set of
// process pid (proc_pid_status(5)), for front-ends that do not see what the
// container's configuration gives it.
func CapabilitiesOf(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, fmt.Errorf("read capabilities of process %d: %w", pid, err)
	}
	var all uint64
	sets := 0
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if !slices.Contains([]string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}, key) {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read capabilities of process %d: %w", pid, err)
		}
		all |= set
		sets++
	}
	if sets == 0 {
		return nil, fmt.Errorf("read capabilities of process %d: its status has none", pid)
	}
	names := []string{} // not nil: it is known
	for n := range 64 {
		switch {
		case all&(1<<n) == 0:
		case n < len(capabilityNames):
			names = append(names, capabilityNames[n])
		default:
			names = append(names, fmt.Sprintf("CAP_%d", n)) // of a later kernel
		}
	}
	return names, nil
}

// hasCapability ignores case: crun takes names in small letters too.
func hasCapability(capabilities []string, name string) bool {
	return slices.ContainsFunc(capabilities, func(s string) bool { return strings.EqualFold(s, name) })
}

// ownUserns tells whether a process has another user namespace than this one.
func ownUserns(pid int) (bool, error) {
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return false, fmt.Errorf("find its user namespace: %w", err)
	}
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false, fmt.Errorf("find the host's user namespace: %w", err)
	}
	return its != ours, nil
}
