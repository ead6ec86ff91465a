// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"sidegate/cgroups"
	"sidegate/policy"
)

// The pod, and what is outside.
const (
	outsideIP = "192.0.2.1"
	podIP     = "192.0.2.2"
)

const state = "/sys/fs/bpf/sidegate"

const podPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: inspect}
spec:
  redirect: {getsockname: original}
  sidecarPorts: [15000]
  tls:
    mode: inspect
    sni:
      default: allow
      rules:
      - {name: names, action: deny, hosts: [denied.example]}
    http:
      default: deny
      rules:
      - {name: secrets, action: deny, path: {prefix: /secret}}
      - {name: api, action: allow, hosts: [api.example]}
    headers: [user-agent]
`

// files are those that the clients need.
var files = map[string]string{
	"/etc/hosts": "127.0.0.1 localhost\n" + outsideIP + " " + strings.Join(hosts, " ") + "\n",
	// Debian's own openssl.cnf, but for the option.
	"/tmp/openssl.cnf": `openssl_conf = openssl_init
[openssl_init]
ssl_conf = ssl_sect
[ssl_sect]
system_default = system_default_sect
[system_default_sect]
Options = KTLS
`,
	"/tmp/gnutls.conf": "[global]\nktls = true\n",
	"/tmp/fetch.py":    Fetch,
}

// world is the pod and its surroundings, as all tests have them.
var world struct {
	pod, outside netns.NsHandle
	app, sidecar *container
	site         *site
	relay        *exec.Cmd
}

// Files of the relay.
const (
	eventsPath = "/tmp/events.json"
	relayLog   = "/tmp/relay.log"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "set up:", err)
		if log, err := os.ReadFile(relayLog); err == nil {
			os.Stderr.Write(log)
		}
		os.Exit(1)
	}
	code := m.Run()
	if err := stopRelay(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the relay:", err)
		code = 1
	}
	os.Exit(code)
}

func setUp() (err error) {
	start := time.Now()
	step := func(what string) {
		fmt.Printf("%6.1fs %s\n", time.Since(start).Seconds(), what)
	}
	if err := os.MkdirAll(siteDir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if world.outside, err = newNetns(); err != nil {
		return err
	}
	if world.pod, err = newNetns(); err != nil {
		return err
	}
	if err := link(); err != nil {
		return err
	}
	if world.site, err = newSite(); err != nil {
		return err
	}
	step("network and site")
	if err := startRelay(); err != nil {
		return err
	}
	step("relay")
	list, err := policy.Parse("inspect.yaml", []byte(podPolicy))
	if err != nil {
		return err
	}
	compiled, err := list[0].Compile()
	if err != nil {
		return err
	}
	if world.sidecar, err = newContainer("sidecar", policy.RoleSidecar, compiled); err != nil {
		return err
	}
	if world.app, err = newContainer("app", policy.RoleApp, compiled); err != nil {
		return err
	}
	step("containers")
	haproxy := world.sidecar.command(context.Background(), "haproxy", "-f", HAProxyConfig)
	haproxy.Stdout, haproxy.Stderr = os.Stderr, os.Stderr
	if err := world.sidecar.start(haproxy); err != nil {
		return err
	}
	err = waitFor("HAProxy", func() bool { return listening(policy.DefaultOutbound) })
	step("HAProxy")
	return err
}

// waitFor is for what takes its time on an emulated CPU.
func waitFor(what string, ok func() bool) error {
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not in time: %s", what)
		}
	}
	return nil
}

func startRelay() error {
	log, err := os.Create(relayLog)
	if err != nil {
		return err
	}
	defer log.Close()
	group, err := newCgroup("relay")
	if err != nil {
		return err
	}
	defer group.Close()
	world.relay = exec.Command(RelayPath, "--state-dir", state, "--log-level=debug", "--events", eventsPath)
	world.relay.Stdout, world.relay.Stderr = log, log
	world.relay.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := world.relay.Start(); err != nil {
		return err
	}
	return waitFor("the TLS relay", func() bool {
		c, err := net.Dial("unixpacket", cgroups.TLSSocket())
		return err == nil && c.Close() == nil
	})
}

func stopRelay() error {
	return errors.Join(world.relay.Process.Signal(syscall.SIGTERM), world.relay.Wait())
}

// inNS runs f on a thread in ns.
func inNS(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and no more: the thread ends with this
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// readIn reads a file about a network namespace; "" if it cannot.
func readIn(ns netns.NsHandle, path string) (text string) {
	_ = inNS(ns, func() error {
		b, err := os.ReadFile(path)
		text = string(b)
		return err
	})
	return text
}

// listening tells whether something in the pod listens on the port. This process is nobody
// there, and cannot connect to see.
func listening(port int) bool {
	for _, table := range []string{"tcp", "tcp6"} {
		for line := range strings.Lines(readIn(world.pod, "/proc/thread-self/net/"+table)) {
			// slot, local address, remote address, state
			fields := strings.Fields(line)
			if strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) && fields[3] == "0A" {
				return true
			}
		}
	}
	return false
}

func newNetns() (ns netns.NsHandle, err error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err = netns.New()
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		done <- err
	}()
	return ns, <-done
}

// link connects the pod and the outside.
func link() error {
	err := inNS(world.pod, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "out0", PeerNamespace: netlink.NsFd(world.outside),
		})
	})
	if err != nil {
		return err
	}
	address := func(ns netns.NsHandle, name, ip string) error {
		return inNS(ns, func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			addr, err := netlink.ParseAddr(ip + "/24")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
		})
	}
	return errors.Join(address(world.outside, "out0", outsideIP), address(world.pod, "eth0", podIP))
}

// newCgroup makes a cgroup of this name for a container or a service.
func newCgroup(name string) (*os.File, error) {
	mount, err := cgroups.FindMount()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(mount.Dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Open(dir)
}

// container is a cgroup and the pod's network namespace, with a process that waits.
type container struct {
	group *os.File
}

// newContainer does what a front-end does before a container's program runs.
func newContainer(name string, role policy.Role, p *policy.Compiled) (c *container, err error) {
	c = &container{}
	if c.group, err = newCgroup(name); err != nil {
		return nil, err
	}
	initProcess := c.command(context.Background(), "sleep", "100000")
	if err := c.start(initProcess); err != nil {
		return nil, err
	}
	return c, inNS(world.outside, func() (err error) {
		ns, err := cgroups.NetnsOf(initProcess.Process.Pid)
		if err != nil {
			return err
		}
		defer ns.Close()
		s, err := cgroups.Open(state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		_, err = s.Attach(ns, &cgroups.Container{
			ID: name, Name: name, Pod: "pod", Runtime: "test", Role: role, Policy: p, PID: initProcess.Process.Pid,
		})
		return err
	})
}

// command is a program to start in the container, where libraries hand over keys.
func (c *container) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "OPENSSL_CONF=/tmp/openssl.cnf", "GNUTLS_SYSTEM_PRIORITY_FILE=/tmp/gnutls.conf")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.group.Fd())}
	return cmd
}

func (c *container) start(cmd *exec.Cmd) error { return inNS(world.pod, cmd.Start) }
