// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

// manage closes the pod before it has a container.
func (w *world) manage(p *policy.PodPolicy) error {
	w.t.Helper()
	c, err := p.Compile()
	must(w.t, err)
	return inNS(w.host, func() (err error) {
		ns, err := cgroups.OpenNetns(fmt.Sprintf("/proc/self/fd/%d", int(w.pod)))
		if err != nil {
			return err
		}
		defer ns.Close()
		s, err := cgroups.Open(w.state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return s.Manage(ns, &cgroups.PodSpec{Pod: "shop/web", Policy: c})
	})
}

func (w *world) adopt(a *agent.Agent, name string, role policy.Role, p *policy.PodPolicy) (got cgroups.Adopted, err error) {
	w.t.Helper()
	err = w.register(a, name, role, p, func(s *cgroups.Store, ns *cgroups.Netns, c *cgroups.Container) (err error) {
		got, err = s.Adopt(ns, c)
		return err
	})
	return got, err
}

func TestManage(t *testing.T) {
	w := newWorld(t)
	early := w.container("early")
	hello := agent.Request{Op: "udp", Network: "udp", Addr: "127.0.0.1:9", Data: "x"}
	listen(t, early, "early", "127.0.0.1:0") // works before
	must(t, w.manage(policy.Default()))
	must(t, w.manage(policy.Default())) // once more
	wantErr(t, "a process that nobody registered", early.Do(t, hello), "EPERM")
	st := w.status()
	if len(st.Pods) != 1 || st.Pods[0].Pod != "shop/web" || len(st.Pods[0].Containers) != 0 {
		t.Fatalf("status is %+v", st.Pods)
	}
	if err := w.manage(parse(t, "  nonTCP: allow\n")); err == nil || !strings.Contains(err.Error(), `pod is under policy "default", pod shop/web asks for "test"`) {
		t.Errorf("another policy: %v", err)
	}
	w.attach(early, "early", policy.RoleApp, policy.Default())
	listen(t, early, "early", "127.0.0.1:0")
	early.Stop()
	// Nothing lives in it any more.
	if st := w.status(); len(st.Pods) != 0 {
		t.Errorf("status is %+v", st.Pods)
	}
}

func TestManageHostNetwork(t *testing.T) {
	w := newWorld(t)
	w.host = w.pod
	if err := w.manage(policy.Default()); err == nil || !strings.Contains(err.Error(), "pod shop/web shares the host's network namespace") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(w.state); err == nil {
		if st := w.status(); len(st.Pods) != 0 {
			t.Errorf("status is %+v", st.Pods)
		}
	}
}

// running is a pod whose containers have run for a while: with listeners, with
// connections between them, and to the outside.
type running struct {
	*meshPod
	inside, outside, direct, udp, raw, own agent.Answer
	received                               int // by the outside's recorder of datagrams
}

func newRunning(t *testing.T) *running {
	t.Helper()
	t.Setenv("GODEBUG", "multipathtcp=0") // Go's own listeners would be MPTCP's, which steering does not know
	w := newWorld(t)
	m := &running{meshPod: &meshPod{world: w, app: w.container("app"), sidecar: w.container("sidecar")}}
	m.out = agent.Start(t, w.outside, w.mkcgroup("outside"))
	for _, ip := range []string{outside4, outside6} {
		echo := m.out.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: net.JoinHostPort(ip, "80"), Name: "outside", Echo: true})
		wantErr(t, "echo", echo, "")
	}
	m.received = udpListen(t, m.out, "outside", outside4+":53")
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		listen(t, m.sidecar, "outbound", ip+":15001")
		listen(t, m.sidecar, "inbound", ip+":15006")
	}
	wantErr(t, "echo", m.sidecar.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: "127.0.0.1:7000", Name: "echo", Echo: true}), "")
	wantErr(t, "echo", m.app.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: "127.0.0.1:8080", Name: "echo", Echo: true}), "")
	open := func(a *agent.Agent, op, network, addr string) agent.Answer {
		t.Helper()
		got := a.Do(t, agent.Request{Op: op, Network: network, Addr: addr})
		wantErr(t, op+" "+addr, got, "")
		return got
	}
	m.inside = open(m.app, "connect", "tcp", "127.0.0.1:7000")
	m.direct = open(m.app, "connect", "tcp", outside4+":80")
	m.udp = open(m.app, "open", "udp", outside4+":53")
	m.raw = open(m.app, "open", "ip4:253", outside4)
	m.own = open(m.sidecar, "connect", "tcp", "127.0.0.1:8080")
	m.outside = open(m.sidecar, "connect", "tcp", "["+outside6+"]:80")
	return m
}

// What is allowed goes on without a break, and what is not ends: over IPv4 and IPv6.
func TestAdopt(t *testing.T) {
	m := newRunning(t)
	talk := func(what string, a *agent.Agent, over agent.Answer) {
		t.Helper()
		got := a.Do(t, agent.Request{Op: "talk", ID: over.ID, Data: what})
		if got.Err != "" || got.Data != what {
			t.Errorf("%s: %+v", what, got)
		}
	}
	write := func(over agent.Answer) string {
		return m.app.Do(t, agent.Request{Op: "write", ID: over.ID, Data: "x"}).Err
	}
	// Nothing of this is refused before.
	talk("direct", m.app, m.direct)
	talk("inside", m.app, m.inside)
	for what, over := range map[string]agent.Answer{"UDP": m.udp, "raw": m.raw} {
		if err := write(over); err != "" {
			t.Fatalf("%s before: %s", what, err)
		}
	}
	datagrams := func() int {
		return m.out.Do(t, agent.Request{Op: "received", ID: m.received}).Len
	}
	eventually(t, "the datagram to arrive", func() bool { return datagrams() == 1 })
	wantBanner(t, "app before", dial(t, m.app, "tcp", outside4+":80"), "outside")

	got, err := m.adopt(m.sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	must(t, err)
	// Listeners on 15001, 15006, 7000; what it accepted on 7000; two connections of its own.
	if got.Already || got.Listeners != 5 || got.Sockets != 8 || got.Left != 0 {
		t.Errorf("sidecar: %+v", got)
	}
	_ = write(m.udp) // is dropped at the pod's device, if not here
	got, err = m.adopt(m.app, "app", policy.RoleApp, policy.Default())
	must(t, err)
	// A listener, what it accepted, two connections, UDP; not the raw one.
	if got.Already || got.Listeners != 0 || got.Sockets != 5 || got.Left != 1 {
		t.Errorf("app: %+v", got)
	}

	talk("inside", m.app, m.inside)
	talk("sidecar to app", m.sidecar, m.own)
	talk("sidecar to outside", m.sidecar, m.outside)
	for _, network := range []string{"tcp4", "tcp6"} {
		addr := map[string]string{"tcp4": outside4 + ":80", "tcp6": "[" + outside6 + "]:80"}[network]
		wantBanner(t, "app, "+network, dial(t, m.app, network, addr), "outbound")
		wantBanner(t, "sidecar, "+network, dial(t, m.sidecar, network, addr), "outside")
	}
	wantBanner(t, "outside to app", dial(t, m.out, "tcp", pod4+":8080"), "inbound")
	wantBanner(t, "outside to app, IPv6", dial(t, m.out, "tcp", "["+pod6+"]:8080"), "inbound")
	wantBanner(t, "sidecar to app", dial(t, m.sidecar, "tcp", "127.0.0.1:8080"), "echo")

	if err := write(m.udp); err != "EPERM" && err != "EDESTADDRREQ" { // it is not connected any more
		t.Errorf("UDP: %q, want EPERM", err)
	}
	if err := write(m.raw); err != "EPERM" {
		t.Errorf("raw: %q, want EPERM", err)
	}
	if got := m.app.Do(t, agent.Request{Op: "talk", ID: m.direct.ID, Data: "direct"}); got.Err == "" {
		t.Errorf("the app's connection past the sidecar goes on: %+v", got)
	}

	// What was sent before has arrived by now, if it does: connections went the same way.
	if n := datagrams(); n != 1 {
		t.Errorf("%d datagrams arrived, want the one from before", n)
	}

	again, err := m.adopt(m.app, "app", policy.RoleApp, policy.Default())
	if err != nil || !again.Already || again.Sockets != 0 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if got, err := m.tryAttach(m.app, "app", policy.RoleApp, policy.Default()); err != nil || !got.Already {
		t.Errorf("attach: %+v, %v", got, err)
	}
}

// A listener of MPTCP is nobody's, as it would be if the sidecar made it now.
func TestAdoptMPTCP(t *testing.T) {
	w := newWorld(t)
	sidecar := w.container("sidecar")
	listen(t, sidecar, "outbound", "127.0.0.1:15001")
	got, err := w.adopt(sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	must(t, err)
	if got.Listeners != 0 || got.Left != 1 {
		t.Errorf("got %+v", got)
	}
}

// A process that makes sockets and children all the time gets nothing past the sidecar.
func TestAdoptBusy(t *testing.T) {
	m := newRunning(t)
	_, err := m.adopt(m.sidecar, "sidecar", policy.RoleSidecar, policy.Default())
	must(t, err)
	stop := make(chan struct{})
	stopped := make(chan []agent.Answer)
	go func() {
		var bad []agent.Answer
		defer func() { stopped <- bad }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			got := m.app.Do(t, agent.Request{Op: "child", Do: &agent.Request{Op: "dial", Network: "tcp", Addr: outside4 + ":80"}})
			// The pod is closed, and then the app's: never open again.
			if got.Err == "" && got.Banner.Name != "outbound" {
				bad = append(bad, got)
			}
		}
	}()
	got, err := m.adopt(m.app, "app", policy.RoleApp, policy.Default())
	must(t, err)
	close(stop)
	if bad := <-stopped; len(bad) > 0 {
		t.Errorf("connections past the sidecar: %+v", bad)
	}
	if got.Sockets == 0 {
		t.Errorf("got %+v", got)
	}
	wantBanner(t, "child", m.app.Do(t, agent.Request{Op: "child", Do: &agent.Request{Op: "dial", Network: "tcp", Addr: outside4 + ":80"}}), "outbound")
}

func TestAdoptRefusals(t *testing.T) {
	m := newRunning(t)
	if _, err := m.adopt(m.app, "app", policy.RoleUnset, policy.Default()); err == nil || !strings.Contains(err.Error(), "it has no role") {
		t.Errorf("without a role: %v", err)
	}
	err := m.register(m.app, "app", policy.RoleApp, policy.Default(), func(s *cgroups.Store, ns *cgroups.Netns, c *cgroups.Container) error {
		c.Capabilities = []string{"CAP_NET_ADMIN"}
		_, err := s.Adopt(ns, c)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "it has CAP_NET_ADMIN") {
		t.Errorf("with CAP_NET_ADMIN: %v", err)
	}
	if st := m.status(); len(st.Pods) != 0 {
		t.Errorf("after refusals: %+v", st.Pods)
	}
	must(t, m.manage(policy.Default()))
	if _, err := m.adopt(m.app, "app", policy.RoleApp, parse(t, "  nonTCP: allow\n")); err == nil || !strings.Contains(err.Error(), `pod is under policy "default"`) {
		t.Errorf("another policy: %v", err)
	}
	if got := m.app.Do(t, agent.Request{Op: "talk", ID: m.direct.ID, Data: "direct"}); got.Err == "" {
		t.Errorf("a container that could not be adopted has network: %+v", got)
	}
	gone := m.container("gone")
	gone.Stop()
	if _, err := m.adopt(gone, "gone", policy.RoleApp, policy.Default()); err == nil {
		t.Error("a process that has ended was adopted")
	}
}

// Which executables may have sockets holds for those from before too.
func TestAdoptExecutables(t *testing.T) {
	m := newRunning(t)
	exe := "/bin/busybox"
	p := parse(t, "  rules:\n  - role: app\n    processes: [\""+exe+"\"]\n    egress: [{}]\n")
	_, err := m.adopt(m.sidecar, "sidecar", policy.RoleSidecar, p)
	must(t, err)
	got, err := m.adopt(m.app, "app", policy.RoleApp, p)
	must(t, err)
	if got.Sockets != 0 {
		t.Errorf("app: %+v", got)
	}
	wantErr(t, "app", dial(t, m.app, "tcp", outside4+":80"), "EPERM")
}

func TestCapabilitiesOf(t *testing.T) {
	needRoot(t)
	got, err := cgroups.CapabilitiesOf(os.Getpid())
	if err != nil || !slices.Contains(got, "CAP_NET_ADMIN") || slices.Contains(got, "CAP_SYS_RESOURCE") != hasResource() {
		t.Errorf("of this process: %v, %v", got, err)
	}
	if _, err := cgroups.CapabilitiesOf(1 << 30); err == nil {
		t.Error("of no process: no error")
	}
}

// hasResource tells whether this process has CAP_SYS_RESOURCE.
func hasResource() bool {
	set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	return err == nil && set == 1
}
