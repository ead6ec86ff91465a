// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

func TestMain(m *testing.M) {
	agent.Main()
	if pid := os.Getenv(envStartOf); pid != "" {
		fmt.Println(cgroups.StartOf(pid))
		os.Exit(0)
	}
	code := m.Run()
	if kept != "" {
		if err := cgroups.Unload(kept, false); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// kept is the state of a world that has ended, loaded, with no pods: loading is most of what a test takes on
// an emulated CPU.
var kept string

// needRoot is the one reason to skip.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups, namespaces and BPF programs")
	}
}

var serial atomic.Int64

// world is an outside and a pod, linked by a veth pair, with a cgroup of their own
// and a state without other pods:
//
//	outside 192.0.2.1, 2001:db8::1 ---- eth0 of pod 192.0.2.2, 2001:db8::2
type world struct {
	t            testing.TB
	state        string
	mount        cgroups.Mount
	cgroup       string // directory that holds the containers' cgroups
	pod, outside netns.NsHandle
	host         netns.NsHandle // where the runtime runs: the outside, at the other end of the veth pair
	splice       cgroups.Splice // what containers of it can do
}

const (
	outside4, outside6 = "192.0.2.1", "2001:db8::1"
	pod4, pod6         = "192.0.2.2", "2001:db8::2"
)

func newWorld(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	mount, err := cgroups.FindMount()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("sgtest-%d-%d", os.Getpid(), serial.Add(1))
	w := &world{t: t, mount: mount, cgroup: filepath.Join(mount.Dir, name), state: cmp.Or(kept, "/sys/fs/bpf/"+name)}
	kept = ""
	must(t, os.Mkdir(w.cgroup, 0o755))
	t.Cleanup(func() { must(t, os.Remove(w.cgroup)) })
	t.Cleanup(func() {
		if w.vacate() {
			kept = w.state
			return
		}
		if err := cgroups.Unload(w.state, true); err != nil {
			t.Error(err)
		}
	})
	w.pod, w.outside = newNetns(t), newNetns(t)
	w.host = w.outside
	w.link()
	w.waitLinks()
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// vacate leaves the state to another world, if this one's test found nothing wrong
// with it, and tells whether it did.
func (w *world) vacate() bool {
	if _, err := os.Stat(cgroups.VersionDir(w.state)); err != nil || w.t.Failed() {
		return false
	}
	empty := false
	err := cgroups.IfLoaded(w.state, func(s *cgroups.Store) error {
		endpoints, err := s.Endpoints()
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			if err := s.ForgetEndpoint(e.Name); err != nil {
				return err
			}
		}
		left, err := s.Collect()
		empty = len(left.Left) == 0
		return err
	})
	if err != nil {
		w.t.Error(err)
	}
	return empty && !w.t.Failed()
}

// inNS runs f on a thread in ns.
func inNS(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func newNetns(t testing.TB) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		done <- err
	}()
	must(t, <-done)
	t.Cleanup(func() { must(t, ns.Close()) })
	must(t, inNS(ns, func() error {
		// Before lo comes up: addresses are usable at once.
		for _, f := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+f+"/accept_dad", []byte("0"), 0); err != nil {
				return err
			}
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 65535"), 0); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	return ns
}

func (w *world) link() {
	w.t.Helper()
	must(w.t, inNS(w.pod, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: "eth0"},
			PeerName:      "out0",
			PeerNamespace: netlink.NsFd(w.outside),
		})
	}))
	for _, end := range []struct {
		ns      netns.NsHandle
		dev     string
		v4, v6  string
		gw4, g6 string
	}{{w.pod, "eth0", pod4, pod6, outside4, outside6}, {w.outside, "out0", outside4, outside6, "", ""}} {
		must(w.t, inNS(end.ns, func() error {
			l, err := netlink.LinkByName(end.dev)
			if err != nil {
				return err
			}
			for _, a := range []string{end.v4 + "/24", end.v6 + "/64"} {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			for _, gw := range []string{end.gw4, end.g6} {
				if gw == "" {
					continue
				}
				if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// waitLinks waits until both ends carry packets: the kernel tells IPv6 of a new
// carrier up to a second late.
func (w *world) waitLinks() {
	w.t.Helper()
	w.waitLink(w.pod, "eth0")
	w.waitLink(w.outside, "out0")
}

func (w *world) waitLink(ns netns.NsHandle, dev string) {
	w.t.Helper()
	eventually(w.t, dev+" up with its addresses", func() (ok bool) {
		must(w.t, inNS(ns, func() error {
			l, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil // ask again
			}
			ok = l.Attrs().OperState == netlink.OperUp && len(addrs) == 2
			for _, a := range addrs {
				ok = ok && a.Flags&unix.IFA_F_TENTATIVE == 0
			}
			return err
		}))
		return ok
	})
}

// eventually polls until ok, or fails the test after a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// mkcgroup makes a cgroup below the world's, or below another of it.
func (w *world) mkcgroup(name string) string {
	w.t.Helper()
	dir := filepath.Join(w.cgroup, name)
	must(w.t, os.Mkdir(dir, 0o755))
	w.t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			w.t.Error(err)
		}
	})
	return dir
}

// container starts an agent in the pod, in a cgroup of its own.
func (w *world) container(name string) *agent.Agent {
	w.t.Helper()
	return agent.Start(w.t, w.pod, w.mkcgroup(name))
}

// attach registers a container of this world.
func (w *world) attach(a *agent.Agent, name string, role policy.Role, p *policy.PodPolicy) cgroups.Attached {
	w.t.Helper()
	att, err := w.tryAttach(a, name, role, p)
	must(w.t, err)
	return att
}

func (w *world) tryAttach(a *agent.Agent, name string, role policy.Role, p *policy.PodPolicy) (cgroups.Attached, error) {
	w.t.Helper()
	var att cgroups.Attached
	err := w.register(a, name, role, p, func(s *cgroups.Store, ns *cgroups.Netns, c *cgroups.Container) (err error) {
		att, err = s.Attach(ns, c)
		return err
	})
	return att, err
}

// register calls f with what a front-end has of a container of this world.
func (w *world) register(a *agent.Agent, name string, role policy.Role, p *policy.PodPolicy,
	f func(*cgroups.Store, *cgroups.Netns, *cgroups.Container) error,
) error {
	w.t.Helper()
	c, err := p.Compile()
	must(w.t, err)
	return inNS(w.host, func() (err error) {
		ns, err := cgroups.NetnsOf(a.PID)
		if err != nil {
			return err
		}
		defer ns.Close()
		s, err := cgroups.Open(w.state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return f(s, ns, &cgroups.Container{ID: name, Name: name, Pod: "pod", Runtime: "test", Role: role, Policy: c, PID: a.PID, Splice: w.splice})
	})
}

// parse makes a policy of a spec in YAML.
func parse(t testing.TB, spec string) *policy.PodPolicy {
	t.Helper()
	list, err := policy.Parse("test.yaml", []byte("apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: test}\nspec:\n"+spec))
	must(t, err)
	return list[0]
}

// meshPod is a managed pod with an app and a sidecar that listens on its ports.
type meshPod struct {
	*world
	app, sidecar, out *agent.Agent
	att               cgroups.Attached
}

func newMeshPod(t testing.TB, p *policy.PodPolicy) *meshPod {
	t.Helper()
	w := newWorld(t)
	m := &meshPod{world: w, app: w.container("app"), sidecar: w.container("sidecar")}
	m.out = agent.Start(t, w.outside, w.mkcgroup("outside"))
	m.att = w.attach(m.app, "app", policy.RoleApp, p)
	w.attach(m.sidecar, "sidecar", policy.RoleSidecar, p)
	c, err := p.Compile()
	must(t, err)
	for _, l := range []struct {
		name string
		addr string
	}{
		{"outbound", fmt.Sprintf("127.0.0.1:%d", c.Outbound)},
		{"outbound", fmt.Sprintf("[::1]:%d", c.Outbound)},
		{"inbound", fmt.Sprintf("127.0.0.1:%d", c.Inbound)},
		{"inbound", fmt.Sprintf("[::1]:%d", c.Inbound)},
	} {
		listen(t, m.sidecar, l.name, l.addr)
	}
	for _, ip := range []string{outside4, outside6} {
		listen(t, m.out, "outside", net.JoinHostPort(ip, "80"))
		udpListen(t, m.out, "outside", net.JoinHostPort(ip, "53"))
	}
	return m
}

func listen(t testing.TB, a *agent.Agent, name, addr string) int {
	t.Helper()
	ans := a.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: addr, Name: name})
	if ans.Err != "" {
		t.Fatalf("listen on %s: %s", addr, ans.Err)
	}
	return ans.ID
}

func udpListen(t testing.TB, a *agent.Agent, name, addr string) int {
	t.Helper()
	ans := a.Do(t, agent.Request{Op: "udplisten", Network: "udp", Addr: addr, Name: name})
	if ans.Err != "" {
		t.Fatalf("listen on %s: %s", addr, ans.Err)
	}
	return ans.ID
}

func dial(t testing.TB, a *agent.Agent, network, addr string) agent.Answer {
	t.Helper()
	return a.Do(t, agent.Request{Op: "dial", Network: network, Addr: addr})
}

// wantErr fails the test unless the answer is this error.
func wantErr(t testing.TB, what string, got agent.Answer, want string) {
	t.Helper()
	if got.Err != want {
		t.Errorf("%s: got error %q and %+v, want error %q", what, got.Err, got, want)
	}
}

// wantBanner fails the test unless name answered.
func wantBanner(t testing.TB, what string, got agent.Answer, name string) {
	t.Helper()
	if got.Err != "" || got.Banner.Name != name {
		t.Errorf("%s: answered by %q (error %q), want %q", what, got.Banner.Name, got.Err, name)
	}
}

func (w *world) status() cgroups.Status {
	w.t.Helper()
	st, err := cgroups.ReadStatus(w.state)
	must(w.t, err)
	return st
}

// drops returns a container's drops by reason.
func (w *world) drops(name string) map[string]uint64 {
	w.t.Helper()
	for _, p := range w.status().Pods {
		for _, c := range p.Containers {
			if c.Name == name {
				return c.Drops
			}
		}
	}
	w.t.Fatalf("no container %s in status", name)
	return nil
}
