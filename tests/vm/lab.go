// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"time"
)

// LabConfig is a program built on package lab, and what it needs in a VM.
type LabConfig struct {
	// Program is a static binary; its name in the guest is up to it.
	Program File
	Args    []string
	// Files are further ones, e.g. the prober: there is no Go in the guest.
	Files []File
	// Modules are loaded after LabModules; one that the kernel does not have is
	// left out.
	Modules []string
	// Cmdline is added to the kernel's command line. Without any, the kernel's
	// security modules are Debian's, of which BPF is one.
	Cmdline []string
	// Timeout, if not zero, kills the program.
	Timeout time.Duration
	// MemoryMiB is 3072 if zero. Images and containers live in it, each as a
	// whole copy.
	MemoryMiB int
	// Log is that of Config.
	Log io.Writer
}

// RunLab boots a kernel and runs a program built on package lab in it, as root
// and with all of LabFiles and LabModules. The one command of the result is the
// program; the error is that of Run.
func RunLab(ctx context.Context, kernel Kernel, config LabConfig) (*Result, error) {
	files, err := LabFiles()
	if err != nil {
		return nil, err
	}
	return Run(ctx, Config{
		Kernel:          kernel,
		Cmdline:         config.Cmdline,
		Modules:         LabModules,
		OptionalModules: slices.Concat(LabProtocols, config.Modules),
		Files:           slices.Concat(files, config.Files, []File{config.Program}),
		Commands: []Command{{
			Args:    append([]string{config.Program.Path}, config.Args...),
			Timeout: config.Timeout,
		}},
		MemoryMiB: cmp.Or(config.MemoryMiB, 3072),
		Log:       config.Log,
	})
}

// LabModules are the kernel modules that package lab itself needs, and the
// rules of a mesh's init container: iptables' REDIRECT, by owner and port.
var LabModules = []string{
	"crc32c_generic", "af_packet", "veth", "bridge", "tun", "dummy",
	"nf_tables", "nft_compat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_limit",
	"xt_comment", "xt_conntrack", "xt_MASQUERADE", "xt_REDIRECT", "xt_nat", "xt_owner", "xt_multiport", "xt_tcpudp",
	"xt_addrtype", "xt_mark", "xt_connmark", "xt_TPROXY", "xt_socket",
	"ip_tables", "iptable_nat", "iptable_filter", "iptable_mangle", "ip6_tables", "ip6table_nat", "ip6table_filter", "ip6table_mangle",
	"cls_bpf", "sch_ingress", "inet_diag", "tcp_diag", "udp_diag",
}

// LabProtocols are further ways out of a container that Debian's kernels have
// as modules. Here they are loaded at boot; a real machine loads most of them
// when a program first asks for such a socket.
var LabProtocols = []string{
	// Devices.
	"vxlan", "geneve", "macvlan", "ipvlan", "sit", "ipip", "ip_gre", "ip6_gre", "ip6_tunnel", "fou", "wireguard", "bareudp",
	// Protocols on IP.
	"sctp", "dccp", "dccp_ipv4", "dccp_ipv6", "l2tp_ip", "l2tp_ip6", "xfrm_user", "esp4", "esp6",
	// Families of their own.
	"af_alg", "algif_hash", "algif_skcipher", "vsock", "vsock_loopback", "rds", "rds_tcp", "tipc", "smc", "llc2", "af_key",
	"phonet", "kcm", "mptcp_diag",
}

// labPrograms are what package lab starts, and what programs built on it use.
var labPrograms = []string{
	"ip", "tc", "nft", "iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore",
	"nsenter", "unshare", "mount", "umount", "nginx", "haproxy",
}

// xtablesDir has the matches and targets that Debian's iptables opens by itself.
const xtablesDir = "/usr/lib/x86_64-linux-gnu/xtables"

// LabFiles is all that package lab uses of the host: podman and what it starts,
// iptables, nginx, HAProxy, iproute2. Busybox is in every VM.
func LabFiles() ([]File, error) {
	files, err := PodmanFiles()
	if err != nil {
		return nil, fmt.Errorf("%w: run 'make deps'", err)
	}
	for _, name := range labPrograms {
		program, err := HostProgram(name)
		if err != nil {
			return nil, fmt.Errorf("%w: run 'make deps'", err)
		}
		files = append(files, program...)
	}
	extensions, err := filepath.Glob(path.Join(xtablesDir, "libxt_*.so"))
	if err != nil || len(extensions) == 0 {
		return nil, fmt.Errorf("find %s/libxt_*.so: none there: run 'make deps' (Debian package: iptables)", xtablesDir)
	}
	tree, err := HostTree(xtablesDir, xtablesDir)
	if err != nil {
		return nil, err
	}
	// HAProxy's libraries are looked for where the loader's configuration says.
	loader, err := HostTree("/etc/ld.so.conf.d", "/etc/ld.so.conf.d")
	if err != nil {
		return nil, err
	}
	return slices.Concat(files, tree, loader, []File{{Path: "/etc/ld.so.conf", Host: "/etc/ld.so.conf"}}), nil
}
