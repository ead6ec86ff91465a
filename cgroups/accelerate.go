// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups/internal/selftest"
	"sidegate/cgroups/ktls"
	"sidegate/policy"
)

// Bytes of an accelerated connection go from one end's send to the other's receive,
// past the node's TCP. Programs can notice some of that, and what they can depends
// on the kernel: so it is tried out once, when the programs are loaded, and each
// policy says whether differences matter.

// testAcceleration loads what accelerates, if this kernel may, and finds out what
// would be different. What cannot be had leaves connections as they are, and says why.
func testAcceleration(node *bpf.Node) bpf.AccelInfo {
	var info bpf.AccelInfo
	r, err := accelerateAndTest(node)
	if err != nil {
		bpf.SetCString(info.Why[:], err.Error())
		return info
	}
	info.Done, info.Failed, info.TookNs = 1, r.Failed, uint64(r.Took)
	return info
}

func accelerateAndTest(node *bpf.Node) (r selftest.Result, err error) {
	kernel, err := bpf.RunningKernel()
	if err != nil {
		return r, err
	}
	if why := kernelFault(kernel.Release, kernel.Version); why != "" {
		return r, errors.New(why)
	}
	if err := node.Accelerate(); err != nil {
		return r, shortened(err)
	}
	err = inNewNetns(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback device: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set loopback device up: %w", err)
		}
		r, err = selftest.Run()
		return err
	})
	if err != nil {
		return r, fmt.Errorf("self-test: %w", shortened(err))
	}
	return r, nil
}

// shortened leaves the verifier's log out.
func shortened(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return errors.New("the kernel's verifier refuses the program")
	}
	return err
}

// kernelFaults are faults of sockmaps by which a process could harm the kernel. Each
// is mended from these versions on; what is older than all of them has it.
//
// Not there: CVE-2026-43016, which needs AF_UNIX sockets in a map, and CVE-2025-38166,
// CVE-2025-38608 and CVE-2024-56720, which need helpers that no program here calls.
var kernelFaults = []struct {
	cve, what string
	mended    [][3]int
}{
	{"CVE-2024-56633", "memory is uncharged twice", [][3]int{{6, 1, 120}, {6, 6, 66}, {6, 12, 5}, {6, 13, 0}}},
	{"CVE-2024-56664", "use after free when an entry is replaced", [][3]int{{6, 1, 125}, {6, 6, 67}, {6, 12, 6}, {6, 13, 0}}},
	{"CVE-2025-38154", "use after free when a socket closes", [][3]int{{6, 1, 142}, {6, 6, 94}, {6, 12, 34}, {6, 15, 3}, {6, 16, 0}}},
}

// debianVersion is in uname -v, whose uname -r is of the kernel's ABI: #1 SMP
// PREEMPT_DYNAMIC Debian 6.1.162-1 (2026-02-08).
var debianVersion = regexp.MustCompile(`Debian (\d+\.\d+\.\d+)`)

// kernelFault names the fault of a kernel, by uname -r and -v, for which nothing must
// be accelerated. "" is none that is known.
func kernelFault(release, version string) string {
	if m := debianVersion.FindStringSubmatch(version); m != nil {
		release = m[1]
	}
	var v [3]int
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &v[0], &v[1], &v[2]); n < 2 {
		return fmt.Sprintf("cannot tell what kernel %q is", release)
	}
	for _, f := range kernelFaults {
		if !mended(v, f.mended) {
			return fmt.Sprintf("%s in kernel %d.%d.%d: %s", f.cve, v[0], v[1], v[2], f.what)
		}
	}
	return ""
}

// mended tells whether v is a stable version in which something was mended, or is
// newer than the last of all.
func mended(v [3]int, in [][3]int) bool {
	for _, m := range in {
		if v[0] == m[0] && v[1] == m[1] {
			return v[2] >= m[2]
		}
	}
	last := in[len(in)-1]
	return v[0] > last[0] || v[0] == last[0] && v[1] > last[1]
}

func (s *Store) accelInfo() (info bpf.AccelInfo, err error) {
	if err := s.maps.AccelInfo.Lookup(uint32(0), &info); err != nil {
		return info, fmt.Errorf("look up what the self-test found: %w", err)
	}
	return info, nil
}

// failed tells whether a check of one of these kinds did.
func failed(info bpf.AccelInfo, kinds ...selftest.Kind) (names []string) {
	for i, c := range selftest.Checks() {
		if info.Failed&(1<<i) == 0 {
			continue
		}
		for _, k := range kinds {
			if c.Kind == k {
				names = append(names, c.Name)
			}
		}
	}
	return names
}

// accelerationOff says why nothing is accelerated under a policy that asks for this,
// or "".
func accelerationOff(a policy.Acceleration, info bpf.AccelInfo) string {
	switch {
	case a == policy.AccelerateOff:
		return "its policy says off"
	case info.Done == 0:
		return bpf.CString(info.Why[:])
	}
	if names := failed(info, selftest.Breaks); names != nil {
		return "the kernel does not keep: " + strings.Join(names, ", ")
	}
	if names := failed(info, selftest.Shows); names != nil && a == policy.AccelerateAuto {
		return "programs could notice: " + strings.Join(names, ", ") + " (accelerate: on, if those here do not)"
	}
	return ""
}

// accelerationFlags are those of a policy's entry.
func (s *Store) accelerationFlags(a policy.Acceleration) (uint32, error) {
	info, err := s.accelInfo()
	if err != nil || accelerationOff(a, info) != "" {
		return 0, err
	}
	switch a {
	case policy.AccelerateAuto:
		return bpf.PolicyAccelerate | bpf.PolicyAccelerateUnseen, nil
	case policy.AccelerateNode:
		return bpf.PolicyAccelerate | bpf.PolicyAccelerateNode, nil
	}
	return bpf.PolicyAccelerate, nil
}

// Reasons why a container is not accelerated: bpf.ContainerInfo.Plain.
const (
	plainSplice  uint8 = 1 // it can splice(2), or nobody knows
	plainKTLS    uint8 = 2 // its TLS library is configured to use the kernel's
	plainIOUring uint8 = 4 // it can have an io_uring: counts under accelerate: auto
)

// plainWords says why a container is not accelerated under a policy with these
// flags. The last words are what to do.
func plainWords(plain uint8, role bpf.Role, flags uint32) string {
	switch {
	case role != bpf.RoleApp && role != bpf.RoleSidecar:
		return "only apps and sidecars are"
	case plain&plainSplice != 0:
		return "it can splice(2), which would wait for ever: its seccomp profile has to refuse that, which the precreate hook, " +
			"the NRI plugin and the runtime wrapper see to when a container is made"
	case plain&plainKTLS != 0:
		return "its TLS library is configured to use TLS in the kernel, which accelerated sockets cannot have"
	case plain&plainIOUring != 0 && flags&bpf.PolicyAccelerateUnseen != 0:
		return "it can splice by an io_uring: let its seccomp profile refuse io_uring_setup(2)"
	}
	return ""
}

// acceleration puts what is known of a container's acceleration into r.
func (r *registration) acceleration(info bpf.AccelInfo) error {
	if r.entry.Role != bpf.RoleApp && r.entry.Role != bpf.RoleSidecar || info.Done == 0 {
		return nil
	}
	if failed(info, selftest.Splices) != nil {
		if !r.c.Splice.Impossible { // nor could anything below change that
			r.info.Plain |= plainSplice
			return nil
		}
		if !r.c.Splice.NoIOUring {
			r.info.Plain |= plainIOUring
			r.entry.Flags |= bpf.ContainerIOUring
		}
	}
	asks, err := configuresKTLS(rootOf(r.c.PID) + r.c.Rootfs)
	if err != nil {
		return err
	}
	if asks {
		r.info.Plain |= plainKTLS
		return nil
	}
	r.entry.Flags |= bpf.ContainerAccelerate
	return nil
}

// tlsConfigs are where TLS libraries read whether to use the kernel's TLS: OpenSSL's
// config(5) of Debian and Red Hat, and GnuTLS's; and what Sidegate mounts itself.
var tlsConfigs = []struct {
	path string
	asks *regexp.Regexp
}{
	{"/etc/ssl/openssl.cnf", openSSLAsks},
	{"/etc/pki/tls/openssl.cnf", openSSLAsks},
	{"/usr/lib/ssl/openssl.cnf", openSSLAsks},
	{"/usr/local/ssl/openssl.cnf", openSSLAsks},
	{"/etc/gnutls/config", gnuTLSAsks},
	{"/etc/crypto-policies/back-ends/gnutls.config", gnuTLSAsks},
	{ktls.Dir + "/openssl.cnf", openSSLAsks},
	{ktls.Dir + "/gnutls.conf", gnuTLSAsks},
}

var (
	openSSLAsks = regexp.MustCompile(`(?im)^\s*Options\s*=[^#\n]*\bKTLS\b`)
	gnuTLSAsks  = regexp.MustCompile(`(?im)^\s*ktls\s*=\s*true`)
)

// configuresKTLS tells whether a TLS library below root is configured to hand its keys
// to the kernel. A process that does so without is seen when it does, and its
// container's connections are plain from then on.
func configuresKTLS(root string) (bool, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open its root directory %s: %w", root, err)
	}
	defer unix.Close(dir)
	for _, c := range tlsConfigs {
		text, err := readIn(dir, c.path)
		if err != nil {
			return false, err
		}
		if c.asks.Match(text) {
			return true, nil
		}
	}
	return false, nil
}

// maxTLSConfig is more than any of tlsConfigs has, in bytes.
const maxTLSConfig = 1 << 18

// readIn reads the beginning of a regular file below dir, whose links lead nowhere
// else. There may be none.
func readIn(dir int, path string) ([]byte, error) {
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, nil //nolint:nilerr // as good as not there for whoever runs in it
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, nil //nolint:nilerr // nothing that a library would read
	}
	text, err := io.ReadAll(io.LimitReader(f, maxTLSConfig))
	if err != nil {
		return nil, fmt.Errorf("read the container's %s: %w", path, err)
	}
	return text, nil
}

// putNodeAddr records an address by which a pod can be reached on this node.
func (s *Store) putNodeAddr(a netip.Addr) error {
	if !a.IsGlobalUnicast() {
		return nil
	}
	if err := s.maps.NodeAddrs.Put(bpf.AddrFrom(a), uint8(1)); err != nil {
		return fmt.Errorf("put address %s of a pod: %w", a, err)
	}
	return nil
}

// trimNodeAddrs removes the addresses that no pod has any more.
func (s *Store) trimNodeAddrs() error {
	pods, err := keysOf[bpf.PodAddr](s.maps.PodAddrs)
	if err != nil {
		return err
	}
	has := make(map[bpf.Addr]bool, len(pods))
	for _, k := range pods {
		has[k.Addr] = true
	}
	return deleteKeys(s.maps.NodeAddrs, func(a *bpf.Addr) bool { return !has[*a] })
}

// AccelerationStatus is what became of a container's connections, as JSON has it.
type AccelerationStatus struct {
	// Off says why none is accelerated. Empty: those that begin now can be.
	Off         string            `json:"off,omitempty"`
	Connections uint64            `json:"connections"`
	Messages    uint64            `json:"messages"`
	Bytes       uint64            `json:"bytes"`
	Plain       map[string]uint64 `json:"plain"` // by reason, what went through TCP nevertheless
}

// accelerationStatus tells about one container. off is why nothing is accelerated
// under its policy.
func (s *Store) accelerationStatus(id uint64, off string, pol *applied, role bpf.Role, plain uint8) (st AccelerationStatus, err error) {
	st = AccelerationStatus{Off: cmp.Or(off, plainWords(plain, role, pol.entry.Flags)), Plain: map[string]uint64{}}
	var perCPU []bpf.AccelCounters
	if err := s.maps.AccelCounters.Lookup(id, &perCPU); err != nil {
		return st, fmt.Errorf("look up counters of accelerated connections of cgroup %d: %w", id, err)
	}
	var sum bpf.AccelCounters
	for _, c := range perCPU {
		for i, v := range c.V {
			sum.V[i] += v
		}
	}
	for i, c := range bpf.AccelCounterInfos() {
		switch v := sum.V[i]; {
		case c.Plain && v > 0:
			st.Plain[c.Name] = v
		case c.Name == "connections":
			st.Connections = v
		case c.Name == "messages":
			st.Messages = v
		case c.Name == "bytes":
			st.Bytes = v
		}
	}
	return st, nil
}
