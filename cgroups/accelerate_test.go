// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

const accelerated = "  accelerate: on\n  sidecarPorts: [9901]\n"

// accelerable is a pod that is accelerated, if its policy and kernel let it be: its sidecar echoes at 9901, its app at 8080.
func accelerable(t *testing.T, spec string) *meshPod {
	t.Helper()
	w := newWorld(t)
	w.splice = cgroups.Splice{Impossible: true}
	m := &meshPod{world: w, app: w.container("app"), sidecar: w.container("sidecar")}
	p := parse(t, spec)
	m.att = w.attach(m.app, "app", policy.RoleApp, p)
	w.attach(m.sidecar, "sidecar", policy.RoleSidecar, p)
	for _, port := range []int{15001, 9901} {
		for _, ip := range []string{"127.0.0.1", "[::1]"} {
			echoes(t, m.sidecar, "sidecar", fmt.Sprintf("%s:%d", ip, port))
		}
	}
	echoes(t, m.app, "app", "127.0.0.1:8080")
	echoes(t, m.app, "app", "[::1]:8080")
	return m
}

func echoes(t *testing.T, a *agent.Agent, name, addr string) {
	t.Helper()
	wantErr(t, "listen", a.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: addr, Name: name, Echo: true}), "")
}

func (m *meshPod) open(a *agent.Agent, addr string) (id int) {
	m.t.Helper()
	got := a.Do(m.t, agent.Request{Op: "connect", Network: "tcp", Addr: addr})
	wantErr(m.t, "connect to "+addr, got, "")
	return got.ID
}

func (m *meshPod) talk(a *agent.Agent, id int) {
	m.t.Helper()
	if got := a.Do(m.t, agent.Request{Op: "talk", ID: id, Data: "hello"}); got.Err != "" || got.Data != "hello" {
		m.t.Fatalf("talk: %+v", got)
	}
}

func (m *meshPod) acceleration(name string) cgroups.AccelerationStatus {
	m.t.Helper()
	for _, c := range m.status().Pods[0].Containers {
		if c.Name == name {
			return c.Acceleration
		}
	}
	m.t.Fatalf("no container %s", name)
	return cgroups.AccelerationStatus{}
}

// needAcceleration says what this kernel lacks, on which nothing must be accelerated then.
func needAcceleration(t *testing.T, m *meshPod) {
	t.Helper()
	off := m.acceleration("app").Off
	if off == "" {
		return
	}
	if !slices.ContainsFunc([]string{"needs Linux 6.4", "CVE-"}, func(why string) bool { return strings.Contains(off, why) }) {
		t.Fatalf("not accelerated: %s", off)
	}
	m.talk(m.app, m.open(m.app, outside4+":80"))
	if got := m.acceleration("app"); got.Connections+got.Messages+got.Bytes > 0 {
		t.Errorf("accelerated on a kernel that cannot: %+v", got)
	}
	t.Skipf("kernel: accelerates nothing: %s", off)
}

func TestAcceleration(t *testing.T) {
	m := accelerable(t, accelerated)
	needAcceleration(t, m)
	for i, c := range []struct {
		from *agent.Agent
		addr string
	}{
		{m.app, outside4 + ":80"},
		{m.app, "[" + outside6 + "]:80"},
		{m.app, "127.0.0.1:9901"},
		{m.sidecar, "127.0.0.1:8080"},
		{m.sidecar, "[::1]:8080"},
	} {
		before, other := m.acceleration("app"), m.acceleration("sidecar")
		id := m.open(c.from, c.addr)
		for range 3 {
			m.talk(c.from, id)
		}
		after := m.acceleration("app")
		if after.Connections != before.Connections+1 {
			t.Errorf("%s: %d connections, want %d: %+v", c.addr, after.Connections, before.Connections+1, after)
		}
		now := m.acceleration("sidecar")
		sent := after.Messages + now.Messages - before.Messages - other.Messages
		if sent < 7 { // a banner, and three lines each way
			t.Errorf("%s: %d messages past TCP, want at least 7", c.addr, sent)
		}
		if bytes := after.Bytes + now.Bytes - before.Bytes - other.Bytes; bytes < 7*uint64(len("hello\n")) {
			t.Errorf("%s: %d bytes past TCP", c.addr, bytes)
		}
		if i == 0 && len(now.Plain) > 0 {
			t.Errorf("through TCP nevertheless: %v", now.Plain)
		}
	}
}

// TestAccelerationOff: by policy, and where something would be noticed or hang.
func TestAccelerationOff(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		splice     cgroups.Splice
		why        string
	}{
		{"off", "  accelerate: off\n", cgroups.Splice{Impossible: true}, "its policy says off"},
		{"auto", "  nonTCP: deny\n", cgroups.Splice{Impossible: true, NoIOUring: true}, "programs could notice: "},
		{"splice", accelerated, cgroups.Splice{}, "it can splice(2)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := accelerable(t, accelerated)
			needAcceleration(t, m)
			m.splice = c.splice
			other := m.container("other")
			m.attach(other, "other", policy.RoleApp, parse(t, c.spec))
			m.talk(other, m.open(other, outside4+":80"))
			got := m.acceleration("other")
			if !strings.Contains(got.Off, c.why) || got.Connections+got.Messages > 0 {
				t.Errorf("want %q: %+v", c.why, got)
			}
		})
	}
}

// TestAccelerationIsSwitched: connections keep what they began with.
func TestAccelerationIsSwitched(t *testing.T) {
	m := accelerable(t, "  accelerate: off\n")
	m.apply(accelerated)
	needAcceleration(t, m)
	old := m.open(m.app, outside4+":80")
	m.talk(m.app, old)
	if got := m.acceleration("app"); got.Connections != 1 {
		t.Fatalf("switched on: %+v", got)
	}
	m.apply("  accelerate: off\n")
	before := m.acceleration("app")
	m.talk(m.app, m.open(m.app, outside4+":80"))
	if got := m.acceleration("app"); got.Connections != 1 || got.Messages != before.Messages {
		t.Errorf("switched off: %+v, before %+v", got, before)
	}
	m.talk(m.app, old)
	if got := m.acceleration("app"); got.Messages <= before.Messages {
		t.Errorf("a connection that began accelerated is not any more: %+v", got)
	}
}

// TestAccelerationByOption: what only TCP does, TCP does.
func TestAccelerationByOption(t *testing.T) {
	m := accelerable(t, accelerated)
	needAcceleration(t, m)
	id := m.open(m.app, outside4+":80")
	m.talk(m.app, id)
	wantErr(t, "SO_ZEROCOPY", m.app.Do(t, agent.Request{Op: "setsockopt", ID: id, Level: unix.SOL_SOCKET, Opt: unix.SO_ZEROCOPY}), "")
	before := m.acceleration("app")
	m.talk(m.app, id)
	after := m.acceleration("app")
	if after.Messages != before.Messages || after.Plain["option"] != 1 {
		t.Errorf("after the option: %+v, before %+v", after, before)
	}
	// Whatever the kernel says to it.
	m.app.Do(t, agent.Request{Op: "setsockopt", ID: id, Level: unix.IPPROTO_TCP, Opt: unix.TCP_ULP, Data: "tls"})
	m.talk(m.app, m.open(m.app, outside4+":80"))
	if got := m.acceleration("app"); got.Connections != after.Connections || got.Plain["ktls"] != 1 {
		t.Errorf("after TLS in the kernel: %+v, before %+v", got, after)
	}
}

// TestAccelerationOnNode: two pods' sidecars, if both their policies say so.
func TestAccelerationOnNode(t *testing.T) {
	const here, there = "198.51.100.1", "198.51.100.2"
	for _, c := range []struct {
		client, server string
		accelerated    bool
	}{
		{"node", "node", true},
		{"node", "on", false},
		{"on", "node", false},
	} {
		t.Run(c.client+" to "+c.server, func(t *testing.T) {
			w := newWorld(t)
			w.splice = cgroups.Splice{Impossible: true}
			other := newNetns(t)
			must(t, inNS(w.pod, func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(other)})
			}))
			for _, end := range []struct {
				ns        netns.NsHandle
				dev, addr string
			}{{w.pod, "eth1", here}, {other, "eth0", there}} {
				must(t, inNS(end.ns, func() error {
					l, err := netlink.LinkByName(end.dev)
					if err != nil {
						return err
					}
					addr, err := netlink.ParseAddr(end.addr + "/24")
					if err != nil {
						return err
					}
					return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
				}))
			}
			// One slot of a policy each: revisions of a name are of all its pods.
			named := func(name, accelerate string) *policy.PodPolicy {
				p := parse(t, "  accelerate: "+accelerate+"\n")
				p.Metadata.Name = name
				return p
			}
			client := w.container("client")
			w.attach(client, "client", policy.RoleSidecar, named("client", c.client))
			server := agent.Start(t, other, w.mkcgroup("server"))
			w.attach(server, "server", policy.RoleSidecar, named("server", c.server))
			echoes(t, server, "server", "0.0.0.0:15006")
			m := &meshPod{world: w}
			of := func(name string) (st cgroups.AccelerationStatus) {
				for _, p := range m.status().Pods {
					for _, c := range p.Containers {
						if c.Name == name {
							st = c.Acceleration
						}
					}
				}
				return st
			}
			if off := of("client").Off; off != "" {
				t.Skipf("kernel: accelerates nothing: %s", off)
			}
			id := m.open(client, there+":80")
			m.talk(client, id)
			for _, name := range []string{"client", "server"} {
				if got := of(name); (got.Connections == 1 && got.Messages > 0) != c.accelerated {
					t.Errorf("%s: %+v", name, got)
				}
			}
		})
	}
}

// TestAccelerationIsUnderRules: what a policy denies ends, though nothing of it passes
// where packets are judged.
func TestAccelerationIsUnderRules(t *testing.T) {
	m := accelerable(t, accelerated)
	needAcceleration(t, m)
	id := m.open(m.app, "127.0.0.1:9901")
	m.talk(m.app, id)
	before := m.acceleration("app")
	if before.Connections != 1 {
		t.Fatalf("not accelerated: %+v", before)
	}
	m.apply(accelerated + "  rules: [{role: app, egress: [{to: [{role: sidecar}], ports: [8000]}]}]\n")
	if got := m.app.Do(t, agent.Request{Op: "talk", ID: id, Data: "hello"}); got.Err != "ECONNABORTED" && got.Err != "ECONNRESET" && got.Err != "EPIPE" {
		t.Errorf("a connection that is denied now: %+v", got)
	}
	if got := m.acceleration("app"); got.Messages != before.Messages {
		t.Errorf("%d messages past TCP after it was denied", got.Messages-before.Messages)
	}
	wantErr(t, "app to the sidecar's port", dial(t, m.app, "tcp", "127.0.0.1:9901"), "EPERM")
}
