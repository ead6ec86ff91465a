// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups/internal/selftest"
	"sidegate/policy"
)

// Check is the answer to one question about this machine.
type Check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Required bool   `json:"required"` // without it nothing can be enforced
	Kernel   bool   `json:"kernel"`   // the kernel decides it
	Detail   string `json:"detail"`
	Cost     string `json:"cost,omitempty"` // what is lost where it is not OK
	Next     string `json:"next,omitempty"` // what to do
}

// ProbeKernel asks the kernel by doing: it loads all programs, attaches each to
// a cgroup or namespace made for that, and removes everything again.
func ProbeKernel() []Check {
	checks := []Check{probeVersion(), probeBPFFS(), probeCgroup2()}
	node, err := bpf.LoadNode()
	load := Check{Name: "load all programs", OK: err == nil, Required: true, Kernel: true, Detail: "verified and loaded"}
	if err != nil {
		load.Detail = explain(err).Error()
		load.Cost = "nothing is enforced: containers that ask for it do not start"
		load.Next = "run as root on Linux 6.1 or later"
		return append(checks, load)
	}
	defer node.Close()
	load.Detail = fmt.Sprintf("%d programs, %d maps", len(node.Programs), len(node.Maps))
	checks = append(checks, load)
	checks = append(checks, probeHooks(node)...)
	checks = append(append(checks, probeNetns(node), probeTCX()), probeUnix()...)
	return append(checks, probeAcceleration(node)...)
}

func probeVersion() Check {
	c := Check{Name: "kernel", Required: true, Kernel: true, Cost: "nothing is enforced", Next: "boot Linux 6.1 or later"}
	kernel, err := bpf.RunningKernel()
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	c.Detail, c.OK = kernel.Release, kernel.AtLeast(6, 1)
	return c
}

func probeBPFFS() Check {
	dir := filepath.Dir(DefaultState)
	c := Check{Name: "BPF file system", Required: true, Detail: dir, Cost: "nothing can be pinned", Next: "mount -t bpf bpf " + dir}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.Detail = err.Error()
		return c
	}
	c.OK = st.Type == unix.BPF_FS_MAGIC
	if !c.OK {
		c.Detail = dir + " is another file system"
	}
	return c
}

func probeCgroup2() Check {
	c := Check{Name: "cgroup2", Required: true, Cost: "containers have no identity"}
	m, err := FindMount()
	if err != nil {
		c.Detail, c.Next = err.Error(), "mount -t cgroup2 none /sys/fs/cgroup/unified"
		return c
	}
	c.OK, c.Detail = true, m.Dir
	if m.Dir != "/sys/fs/cgroup" {
		c.Detail += " (beside cgroup v1: the runtime must put containers into cgroup2 too)"
	}
	return c
}

// probeHooks attaches every program to a cgroup of its own.
func probeHooks(node *bpf.Node) []Check {
	fail := func(err error) []Check {
		return []Check{{Name: "attach to a cgroup", Required: true, Detail: err.Error(), Cost: "nothing is enforced"}}
	}
	m, err := FindMount()
	if err != nil {
		return fail(err)
	}
	path := fmt.Sprintf("/sidegate-doctor-%d", os.Getpid())
	dir := filepath.Join(m.Dir, path)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fail(err)
	}
	defer os.Remove(dir) // a cgroup without processes
	cg, err := m.Open(filepath.Join(m.Root, path))
	if err != nil {
		return fail(err)
	}
	defer cg.Close()
	var checks []Check
	for _, h := range append(bpf.AllContainerHooks(), bpf.GuardHooks()...) {
		c := Check{Name: "hook " + strings.TrimPrefix(h.Program, "sg_"), OK: true, Required: true, Kernel: true, Detail: "attached to a cgroup"}
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cg.Fd()), Program: node.Programs[h.Program], Attach: h.Attach})
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			c.OK, c.Detail, c.Cost = false, err.Error(), "nothing is enforced: all hooks or none"
		}
		checks = append(checks, c)
	}
	return checks
}

// probeNetns attaches a pod's programs to a namespace that ends with a thread.
func probeNetns(node *bpf.Node) Check {
	c := Check{Name: "hook sk_lookup", Required: true, Kernel: true, Detail: "attached to a network namespace", Cost: "inbound traffic cannot be steered"}
	maps, err := bpf.OpenMaps(func(name string) (*ebpf.Map, error) { return node.Maps[name].Clone() })
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer maps.Close()
	progs, err := bpf.LoadPod(maps, 0)
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	defer progs.Close()
	err = inNewNetns(func() error {
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		l, err := link.AttachNetNs(int(ns.Fd()), progs.Lookup)
		if err != nil {
			return err
		}
		return l.Close()
	})
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	c.OK = true
	return c
}

func probeTCX() Check {
	c := Check{Name: "hook tcx", OK: haveTCX(), Kernel: true, Detail: "device programs cannot be removed from inside a pod"}
	if !c.OK {
		c.Detail = "kernel before 6.6: clsact filters instead"
		c.Cost = "an app with CAP_NET_ADMIN can remove the filter that stops AF_PACKET and tunnels"
		c.Next = "do not give apps CAP_NET_ADMIN, or boot Linux 6.6 or later"
	}
	return c
}

// ProbeFailed tells whether a required check failed, and whether that is the
// kernel's doing.
func ProbeFailed(checks []Check) error {
	var missing, lacking []string
	for _, c := range checks {
		switch {
		case c.OK || !c.Required:
		case c.Kernel:
			lacking = append(lacking, c.Name)
		default:
			missing = append(missing, c.Name)
		}
	}
	switch {
	case lacking != nil:
		return fmt.Errorf("%w: %s", ErrUnsupported, strings.Join(lacking, ", "))
	case missing != nil:
		return errors.New("missing: " + strings.Join(missing, ", "))
	}
	return nil
}

// probeUnix asks what can be judged of UNIX sockets, and of families that no
// other hook sees.
func probeUnix() []Check {
	kind := bpf.ProbeUnix()
	u := Check{Name: "UNIX sockets", OK: kind != bpf.UnixNone, Kernel: true, Detail: "judged by the name that a call is given"}
	switch kind {
	case bpf.UnixLSM:
		u.Detail = "judged by the socket that it is, and its owner"
	case bpf.UnixNone:
		u.Detail, u.Cost = "no hook sees them", "rules for UNIX sockets are refused unless optional"
		u.Next = "boot Linux 6.7 or later, or with bpf among the security modules (lsm=...,bpf)"
	}
	c := Check{Name: "BPF LSM", OK: kind == bpf.UnixLSM, Kernel: true}
	if c.OK {
		c.Detail = "rules for UNIX sockets by owner, AF_VSOCK and other families refused"
		return []Check{u, c}
	}
	c.Detail, c.Next = "off", "boot with bpf among the security modules (lsm=...,bpf), or deny AF_VSOCK by seccomp"
	switch err := bpf.ProbeLSM(); {
	case errors.Is(err, unix.EPERM):
		c.Detail, c.Next = "off: the kernel refuses its programs: it is locked down, or this is not root", "boot without lockdown=, or deny AF_VSOCK by seccomp"
	case err != nil:
		c.Detail += ": " + err.Error()
	}
	c.Cost = "rules for UNIX sockets go by the name that a call is given; AF_VSOCK and other families are not refused"
	if kind == bpf.UnixNone {
		c.Cost = "rules for UNIX sockets are refused unless optional; AF_VSOCK and other families are not refused"
	}
	return []Check{u, c}
}

// probeAcceleration makes the self-test: a line for each mode of a policy, and one for
// each thing that this kernel does differently.
func probeAcceleration(node *bpf.Node) []Check {
	info := testAcceleration(node)
	modes := []Check{
		accelerationCheck(policy.AccelerateAuto, info, "write accelerate: on into policies of pods whose programs do not notice"),
		accelerationCheck(policy.AccelerateOn, info, "boot a kernel in which that is mended"),
	}
	for i, c := range selftest.Checks() {
		if info.Done == 0 || info.Failed&(1<<i) == 0 {
			continue
		}
		check := Check{Name: "accelerated " + c.Name, Kernel: true, Detail: "differs from TCP: " + c.Differs}
		switch c.Kind {
		case selftest.Breaks:
			check.Cost = "nothing is accelerated"
		case selftest.Splices:
			check.Cost = "containers whose seccomp profile does not refuse splice(2) are not accelerated"
		case selftest.Shows:
			check.Cost = "accelerate: auto accelerates nothing"
		}
		modes = append(modes, check)
	}
	return modes
}

func accelerationCheck(a policy.Acceleration, info bpf.AccelInfo, next string) Check {
	c := Check{Name: "accelerate: " + a.String(), OK: true, Kernel: true, Detail: fmt.Sprintf("self-test: %d checks in %d ms", len(selftest.Checks()), info.TookNs/1e6)}
	if why := accelerationOff(a, info); why != "" {
		c.OK, c.Detail, c.Cost, c.Next = false, why, "bytes between apps and their sidecar go through TCP", next
	}
	return c
}
