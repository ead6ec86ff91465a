// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
)

// sources are where things of a machine are.
type sources struct {
	places
	hooks      []string // directories of hook definitions
	containerd string   // its configuration
	crio       []string // its configuration: patterns
	podman     []string // containers.conf: patterns
	nriConfig  []string // of Sidegate's plugin: patterns
	nriPlugins []string // what the runtime starts: patterns
}

func defaultSources() sources {
	return sources{
		places: defaultPlaces(), hooks: hookDirs,
		containerd: "/etc/containerd/config.toml",
		crio:       []string{"/etc/crio/crio.conf", "/etc/crio/crio.conf.d/*.conf"},
		podman:     []string{"/usr/share/containers/containers.conf", "/etc/containers/containers.conf", "/etc/containers/containers.conf.d/*.conf"},
		nriConfig:  []string{"/etc/nri/conf.d/*sidegate*.conf", "/etc/sidegate/*.yaml"},
		nriPlugins: []string{"/opt/nri/plugins/*"},
	}
}

// collectors are in groups, of which each has an order: what is pinned is looked at
// before status, which collects garbage and waits for the lock.
func collectors(e *env) [][]collector {
	s := &e.sources
	return [][]collector{
		{
			{"pins", func(ctx context.Context, b *bundle) error { return collectPins(ctx, b, e.state) }},
			{"maps", func(ctx context.Context, b *bundle) error { return collectMaps(ctx, b, e.state) }},
			{"pods", func(ctx context.Context, b *bundle) error { return collectPods(ctx, b, e.state) }},
			{"status", func(_ context.Context, b *bundle) error { return collectStatus(b, e.state) }},
		},
		{{"doctor", func(_ context.Context, b *bundle) error {
			b.json("doctor.json", machineChecks())
			return nil
		}}},
		{
			{"version", collectVersion},
			{"policies", func(_ context.Context, b *bundle) error { return collectPolicies(b, e.policyDir) }},
			{"hooks", func(_ context.Context, b *bundle) error { return collectHooks(b, s.hooks) }},
			{"configuration", func(_ context.Context, b *bundle) error { return collectConfigs(b, s) }},
			{"kernel", collectKernel},
			{"kernel configuration", collectKernelConfig},
			{"dmesg", collectDmesg},
		},
		{{"runtimes", collectRuntimes}},
		{{"docker", func(ctx context.Context, b *bundle) error { return collectDocker(ctx, b, s.docker) }}},
		{{"podman", collectPodman}},
		{{"units", collectUnits}, {"journal", collectJournal}},
	}
}

func collectVersion(_ context.Context, b *bundle) error {
	text := versionLine() + "\n"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		b.text("version.txt", text)
		return errors.New("the binary has no build information")
	}
	for _, s := range info.Settings {
		switch s.Key { // flags have paths, and who knows what
		case "vcs.revision", "vcs.time", "vcs.modified", "GOARCH", "GOAMD64", "CGO_ENABLED":
			text += s.Key + " " + s.Value + "\n"
		}
	}
	b.text("version.txt", text)
	return nil
}

func collectPins(ctx context.Context, b *bundle, state string) error {
	pins, err := cgroups.ReadPins(ctx, state)
	b.json("pins.json", pins)
	return err
}

func collectMaps(ctx context.Context, b *bundle, state string) error {
	return cgroups.DumpMaps(ctx, state, func(d cgroups.Dump) error {
		b.json("maps/"+d.Map+".json", d)
		return nil
	})
}

func collectStatus(b *bundle, state string) error {
	st, err := cgroups.ReadStatus(state)
	if err != nil {
		return err
	}
	b.json("status.json", st)
	return nil
}

// collectPolicies takes the files as they are, comments too: what is wrong with one is
// said by line and column.
func collectPolicies(b *bundle, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the default policy applies
	}
	if err != nil {
		return fmt.Errorf("read policies: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); strings.HasPrefix(e.Name(), ".") || ext != ".yaml" && ext != ".yml" {
			continue
		}
		text, err := readBounded(filepath.Join(dir, e.Name()), maxFile)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b.text("policies/"+e.Name(), text)
	}
	return errors.Join(errs...)
}

// sysctls are those that decide what programs may do.
var sysctls = []string{
	"kernel/unprivileged_bpf_disabled", "kernel/bpf_stats_enabled", "kernel/kptr_restrict", "kernel/lockdown", "kernel/perf_event_paranoid",
	"net/core/bpf_jit_enable", "net/core/bpf_jit_harden", "net/core/bpf_jit_limit", "net/core/optmem_max", "net/core/somaxconn",
	"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/disable_ipv6", "net/ipv4/tcp_early_demux", "user/max_net_namespaces",
}

// bootWords are what is shown of the kernel's command line, which may have anything.
var bootWords = regexp.MustCompile(`^(lsm|security|lockdown|apparmor|selinux|cgroup2?|cgroup_\w+|systemd\.(unified_cgroup_hierarchy|legacy_systemd_cgroup_controller)|ipv6\.disable)(=|$)`)

func collectKernel(_ context.Context, b *bundle) error {
	var out strings.Builder
	var errs []error
	if k, err := bpf.RunningKernel(); err != nil {
		errs = append(errs, err)
	} else {
		fmt.Fprintf(&out, "kernel %s %s\n", k.Release, k.Version)
	}
	fmt.Fprintf(&out, "distribution %s\n", readDistribution("/etc/os-release"))
	for _, path := range []string{"/sys/kernel/security/lsm", "/sys/kernel/security/lockdown"} {
		if text, err := readBounded(path, 1<<12); err == nil {
			fmt.Fprintf(&out, "%s %s\n", path, strings.TrimSpace(text))
		}
	}
	if text, err := readBounded("/proc/cmdline", 1<<16); err != nil {
		errs = append(errs, err)
	} else {
		words := slices.DeleteFunc(strings.Fields(text), func(w string) bool { return !bootWords.MatchString(w) })
		fmt.Fprintf(&out, "boot options %s\n", strings.Join(words, " "))
	}
	for _, name := range sysctls {
		text, err := readBounded("/proc/sys/"+name, 1<<12)
		if err != nil {
			text = "none"
		}
		fmt.Fprintf(&out, "sysctl %s %s\n", name, strings.TrimSpace(text))
	}
	mounts, err := readBounded("/proc/self/mountinfo", maxFile)
	if err != nil {
		errs = append(errs, err)
	}
	for line := range strings.Lines(mounts) {
		_, tail, _ := strings.Cut(line, " - ")
		if kind, _, _ := strings.Cut(tail, " "); kind == "cgroup2" || kind == "cgroup" || kind == "bpf" || kind == "securityfs" {
			out.WriteString("mount " + line)
		}
	}
	b.text("kernel.txt", out.String())
	return errors.Join(errs...)
}

var kernelOptions = regexp.MustCompile(`^(# )?CONFIG_(` + strings.Join([]string{
	`\w*BPF\w*`, `DEBUG_INFO_BTF\w*`, `CGROUP\w*`, `SOCK_CGROUP_DATA`, `LSM`, `SECURITY`, `SECURITYFS`, `SECURITY_(NETWORK|SELINUX|APPARMOR|LOCKDOWN_LSM)`,
	`NET_CLS\w*`, `NET_SCH_INGRESS`, `NET_XGRESS`, `NET_NS`, `VETH`, `BRIDGE`, `NF_TABLES\w*`, `NFT_\w+`, `TLS`, `INET_DIAG\w*`, `INET_(TCP|UDP|RAW)_DIAG`,
	`IPV6`, `MPTCP`, `IP_SCTP`, `VSOCKETS`, `USER_NS`, `PID_NS`, `SECCOMP\w*`, `IO_URING`, `FTRACE`, `FUNCTION_TRACER`, `KPROBES`,
}, "|") + `)[= ]`)

func collectKernelConfig(_ context.Context, b *bundle) error {
	config, where, err := kernelConfig()
	if err != nil {
		return err
	}
	defer config.Close()
	out := "# of " + where + ", what has to do with Sidegate\n"
	lines := bufio.NewScanner(io.LimitReader(config, maxFile))
	for lines.Scan() {
		if kernelOptions.MatchString(lines.Text()) {
			out += lines.Text() + "\n"
		}
	}
	b.text("kernel-config.txt", out)
	return lines.Err()
}

// kernelConfig opens the configuration that the kernel was built with.
func kernelConfig() (config io.ReadCloser, where string, err error) {
	k, err := bpf.RunningKernel()
	if err != nil {
		return nil, "", err
	}
	if f, err := os.Open("/proc/config.gz"); err == nil {
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, "", errors.Join(fmt.Errorf("read /proc/config.gz: %w", err), f.Close())
		}
		return struct {
			io.Reader
			io.Closer
		}{z, f}, "/proc/config.gz", nil
	}
	for _, where := range []string{"/boot/config-" + k.Release, "/lib/modules/" + k.Release + "/config"} {
		if f, err := os.Open(where); err == nil {
			return f, where, nil
		}
	}
	return nil, "", fmt.Errorf("find the kernel's configuration: neither /proc/config.gz (modprobe configs) nor /boot/config-%s is there", k.Release)
}

var dmesgLines = regexp.MustCompile(`(?i)bpf|sidegate|verifier|sockmap|cgroup|BUG:|WARNING:|Oops`)

// collectDmesg takes what has to do with programs, the last lines of it.
func collectDmesg(_ context.Context, b *bundle) error {
	const readAll = 3 // SYSLOG_ACTION_READ_ALL
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(readAll, buf)
	if err != nil {
		return fmt.Errorf("read the kernel's log: %w", err)
	}
	var lines []string
	for line := range strings.Lines(string(buf[:n])) {
		if dmesgLines.MatchString(line) {
			lines = append(lines, line)
		}
	}
	b.text("dmesg.txt", strings.Join(lines[max(0, len(lines)-500):], ""))
	return nil
}

// commands are asked for their versions, if they are there.
var commands = [][]string{
	{"podman", "--version"}, {"docker", "--version"}, {"dockerd", "--version"}, {"containerd", "--version"}, {"crio", "--version"}, {"nerdctl", "--version"},
	{"runc", "--version"}, {"crun", "--version"}, {"conmon", "--version"}, {"kubelet", "--version"}, {"systemctl", "--version"}, {"nft", "--version"},
	{"sidegate-nri", "--version"}, {"sidegate-docker", "--version"}, {"sidegate-tls", "--version"},
}

func collectRuntimes(ctx context.Context, b *bundle) error {
	lines, errs := make([]string, len(commands)), make([]error, len(commands))
	var wg sync.WaitGroup
	for i, c := range commands {
		wg.Go(func() { lines[i], errs[i] = versionOf(ctx, c[0], c[1]) })
	}
	wg.Wait()
	out := ""
	for i, c := range commands {
		out += c[0] + ": " + cmp.Or(lines[i], "not installed") + "\n"
	}
	b.text("runtimes.txt", out)
	return errors.Join(errs...)
}

// versionLimit is for a program that says its version: one that hangs is broken.
const versionLimit = 2 * time.Second

// versionOf returns the path of a program, and the first lines of what it says about
// itself; nothing if it is not installed.
func versionOf(ctx context.Context, name, option string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", nil //nolint:nilerr // that is the answer
	}
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	text, err := say(ctx, path, option)
	lines := strings.SplitN(strings.TrimSpace(text), "\n", 4)
	return path + ": " + strings.Join(lines[:min(3, len(lines))], "; "), err
}

var systemdUnits = []string{"sidegate-nri.service", "sidegate-docker.service", "sidegate-tls.service", "sidegate-exporter.service"}

// unitProperties leave out the environment, and the command's arguments.
const unitProperties = "Id,LoadState,ActiveState,SubState,UnitFileState,Result,ExecMainCode,ExecMainStatus,ExecMainStartTimestamp,NRestarts," +
	"FragmentPath,DropInPaths,MainPID,MemoryCurrent,TasksCurrent,LimitNOFILE,LimitMEMLOCK,CapabilityBoundingSet"

func collectUnits(ctx context.Context, b *bundle) error {
	if _, err := exec.LookPath("systemctl"); err != nil {
		return nil // there is no systemd
	}
	others := []string{"podman.service", "docker.service", "containerd.service", "crio.service", "kubelet.service"}
	text, err := say(ctx, "systemctl", append([]string{"show", "--no-pager", "--property=" + unitProperties}, append(systemdUnits, others...)...)...)
	if text != "" {
		b.text("units.txt", text)
	}
	return err
}

func collectJournal(ctx context.Context, b *bundle) error {
	if _, err := exec.LookPath("journalctl"); err != nil {
		return nil
	}
	text, err := say(ctx, "journalctl", "--no-pager", "--quiet", "--no-hostname", "--output=short-iso", "--lines=5000", "--unit=sidegate-*")
	b.text("journal.txt", text)
	return err
}

func readme() []byte {
	var out strings.Builder
	out.WriteString(`What "sidegate bugtool" has collected. Look through it before you send it.

  errors.txt      what could not be collected, and why
  version.txt     of sidegate, and how it was built
  doctor.json     what "sidegate doctor -o json" says
  status.json     what "sidegate status -o json" says
  pins.json       maps, programs and links, what they are attached to and how often they ran
  maps/           what maps have
  pods/           sockets and processes of each pod
  policies/       their files
  kernel.txt, kernel-config.txt, dmesg.txt
  runtimes.txt, containers-*.json, docker-plugins.json
  config/         hook definitions, and what runtimes are configured to do
  units.txt, journal.txt

Left out, always:
  - environments, and arguments of processes
  - values of labels that are not Sidegate's or Kubernetes' names
  - of others' configuration, all keys but those that concern Sidegate
  - passwords, tokens, keys and the like, wherever they were seen: ` + "[redacted]" + ` stands there
  - these maps:
`)
	left := cgroups.LeftOut()
	for _, name := range slices.Sorted(maps.Keys(left)) {
		fmt.Fprintf(&out, "      %-14s %s\n", name, left[name])
	}
	return []byte(out.String())
}

// readDistribution returns what it is called, and by what ids. "" is not known.
func readDistribution(path string) distribution {
	var d distribution
	text, err := readBounded(path, 1<<16)
	if err != nil {
		return d
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			d.ids = append([]string{value}, d.ids...)
		case "ID_LIKE":
			d.ids = append(d.ids, strings.Fields(value)...)
		case "PRETTY_NAME":
			d.name = value
		case "VERSION_CODENAME":
			d.codename = value
		}
	}
	return d
}

// distribution is what runs here, as os-release(5) has it.
type distribution struct {
	name, codename string
	ids            []string // it, and what it is like
}

func (d distribution) String() string { return cmp.Or(d.name, "unknown") }
