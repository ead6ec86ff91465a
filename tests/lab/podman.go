// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Images of a lab.
const (
	AppImage     = "localhost/app"     // busybox and the prober
	SidecarImage = "localhost/haproxy" // Debian's HAProxy and its libraries
)

const networkName = "lab"

// Podman is a podman with storage, state, network and configuration of its own, on the machine's runc and conmon.
type Podman struct {
	lab    *Lab
	dir    string
	runDir string // podman takes at most 50 characters for its --runroot
	cgroup string // parent of all containers' cgroups
	path   string // where that is mounted
	bridge string // the network's device in the node
	pods   atomic.Int32

	base   context.Context // ends with the lab, and all commands with it
	cancel context.CancelFunc
	using  sync.RWMutex // held for reading while a command runs
	closed bool
}

const containersConf = `[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
default_sysctls = ["net.ipv4.ping_group_range=0 0"]
# As podman ships them: its built-in ones have NET_RAW too.
default_capabilities = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
hooks_dir = ["%[1]s/nohooks"]

[network]
network_backend = "netavark"
network_config_dir = "%[1]s/networks"
`

const storageConf = `[storage]
driver = "vfs"
graphroot = "%[1]s/root"
runroot = "%[2]s"
`

// newPodman configures podman, makes the network and imports the images.
func newPodman(ctx context.Context, l *Lab, n *Node) (*Podman, error) {
	p := &Podman{lab: l, dir: filepath.Join(l.Dir, "podman"), runDir: "/run/podman", cgroup: n.Cgroup + "/pods", path: n.cgroupPath("pods")}
	p.base, p.cancel = context.WithCancel(context.Background())
	if err := p.configure(); err != nil {
		return nil, err
	}
	if err := p.network(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	app, err := appImage(l.Prober)
	if err == nil {
		err = p.importImage(ctx, AppImage, app)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	haproxy, err := haproxyImage()
	if err == nil {
		err = p.importImage(ctx, SidecarImage, haproxy)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *Podman) configure() error {
	for _, d := range []string{"networks", "root", "nohooks"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"containers.conf": fmt.Sprintf(containersConf, p.dir),
		"storage.conf":    fmt.Sprintf(storageConf, p.dir, p.runDir),
	} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// network makes a dual stack bridge network. Rules before netavark's own keep the pods' addresses as they are on the way out.
func (p *Podman) network(ctx context.Context) error {
	for _, rule := range [][]string{
		{"iptables", "-s", PodsV4.String()},
		{"ip6tables", "-s", PodsV6.String()},
	} {
		args := append([]string{"-w", "5", "-t", "nat", "-I", "POSTROUTING", "1"}, append(rule[1:], "-j", "ACCEPT")...)
		if out, err := exec.CommandContext(ctx, rule[0], args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", rule[0], err, out)
		}
	}
	if _, err := p.Run(ctx, "network", "create", "--disable-dns", "--ipv6", "--subnet", PodsV4.String(), "--subnet", PodsV6.String(), networkName); err != nil {
		return err
	}
	out, err := p.Run(ctx, "network", "inspect", networkName)
	if err != nil {
		return err
	}
	var networks []struct {
		Interface string `json:"network_interface"`
	}
	if err := json.Unmarshal(out, &networks); err != nil || len(networks) != 1 {
		return fmt.Errorf("podman network inspect: %w: %s", err, out)
	}
	p.bridge = networks[0].Interface
	return nil
}

// Bridge returns the network's device in the node. It exists while a pod does.
func (p *Podman) Bridge() string { return p.bridge }

// fixBridge gives a bridge an address to keep. By itself it takes the lowest of its ports', which come and go with containers, and when
// that changes, they go on sending to the old one until they ask again.
func fixBridge(device string) error {
	const address = "02:53:47:00:00:02"
	mac, err := hardwareAddr(device)
	if err != nil || mac == address {
		return err
	}
	return ip("link set dev " + device + " address " + address)
}

// importImage imports an image through a pipe.
func (p *Podman) importImage(ctx context.Context, name string, i *image) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(i.write(w)) }()
	defer r.Close()
	cmd := p.command(ctx, "import", "--quiet", "-", name)
	cmd.Stdin = r
	_, err := p.output(cmd)
	return err
}

// command returns an unstarted podman with this lab's configuration, which is killed if the lab is closed.
func (p *Podman) command(ctx context.Context, args ...string) *exec.Cmd {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(p.base, cancel)
	return p.podman(ctx, args...)
}

func (p *Podman) podman(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", p.runDir, "--tmpdir", filepath.Join(p.runDir, "libpod"),
	}
	cmd := exec.CommandContext(ctx, "podman", append(global, args...)...)
	cmd.Env = append(os.Environ(),
		"CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(p.dir, "storage.conf"),
		"TMPDIR="+p.dir,
	)
	cmd.Dir = p.dir
	// conmon may hold our pipes open; podman's own end is what counts.
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Environment is this process's for programs that run podman: they run the lab's. It writes a command into dir.
func (p *Podman) Environment(dir string) ([]string, error) {
	cmd := p.podman(context.Background())
	script := "#!/bin/sh\nexec " + strings.Join(append([]string{cmd.Path}, cmd.Args[1:]...), " ") + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "podman"), []byte(script), 0o755); err != nil {
		return nil, err
	}
	return append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH")), nil
}

// Run runs podman and returns its standard output. Its standard error is in the error.
func (p *Podman) Run(ctx context.Context, args ...string) ([]byte, error) {
	return p.output(p.command(ctx, args...))
}

// RunWith is Run with files as podman's descriptors from 3 on, for its --preserve-fds.
func (p *Podman) RunWith(ctx context.Context, files []*os.File, args ...string) ([]byte, error) {
	cmd := p.command(ctx, args...)
	cmd.ExtraFiles = files
	return p.output(cmd)
}

func (p *Podman) output(cmd *exec.Cmd) ([]byte, error) {
	p.using.RLock()
	defer p.using.RUnlock()
	if p.closed {
		return nil, errors.New("the lab is closed")
	}
	return p.runAnyway(cmd)
}

// runAnyway is output without asking whether the lab is open.
func (p *Podman) runAnyway(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	// Without the global flags: they are the same for all.
	args := cmd.Args[7:]
	p.lab.logf("podman %s (%s)", strings.Join(args, " "), time.Since(began).Round(time.Millisecond))
	if err != nil {
		return stdout.Bytes(), fmt.Errorf("podman %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// close removes all pods and containers, and then what podman may have left. It does not trust podman.
func (p *Podman) close() error {
	p.cancel()
	p.using.Lock()
	p.closed = true
	p.using.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 4*Patience)
	defer cancel()
	var errs []error
	for _, args := range [][]string{
		{"pod", "rm", "--all", "--force", "--time", "0"},
		{"rm", "--all", "--force", "--time", "0"},
		{"network", "rm", "--force", networkName},
	} {
		_, err := p.runAnyway(p.podman(ctx, args...))
		errs = append(errs, err)
	}
	errs = append(errs, killCgroup(p.path), removeCgroups(p.path))
	for _, rule := range [][]string{{"iptables", "-s", PodsV4.String()}, {"ip6tables", "-s", PodsV6.String()}} {
		args := append([]string{"-w", "5", "-t", "nat", "-D", "POSTROUTING"}, append(rule[1:], "-j", "ACCEPT")...)
		_ = exec.Command(rule[0], args...).Run() // the node's own table: it goes away with the node
	}
	return errors.Join(append(errs, unmountBelow(p.runDir), os.RemoveAll(p.runDir))...)
}
