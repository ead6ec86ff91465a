// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"sidegate/tests/lab"
)

// Ports of a pod that is tampered with. Each container has one that the other may call, and one that it may not.
const (
	sidecarPort, sidecarAdmin = 8000, 9901
	appPort, appAdmin         = 8080, 9902
)

const tamperPolicy = `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: tamper
spec:
  sidecarPorts: [9901]
  adminCapabilities: allow
  rules:
  - role: app
    egress:
    - to: [{role: sidecar}]
      ports: [8000]
    ingress:
    - from: [{role: sidecar}]
      ports: [8080]
  - role: sidecar
    egress:
    - to: [{role: app}]
      ports: [8080]
    - to: [{entity: world}]
      ports: [80]
    ingress:
    - from: [{role: app}]
      ports: [8000]
`

// newTamperPod starts a pod whose containers are root and have CAP_NET_ADMIN and CAP_NET_RAW, and the prober.
func newTamperPod(ctx context.Context, t *testing.T, hooks string) *pod {
	t.Helper()
	p := newPod(ctx, t, hooks)
	run := func(role string, ports ...uint16) *lab.Container {
		t.Helper()
		opts := powerful(map[string]string{"sidegate/role": role, "sidegate/policy": "tamper"})
		on := strings.ReplaceAll(strings.Trim(fmt.Sprint(ports), "[]"), " ", ",:")
		opts.Args = []string{"/bin/prober", "serve", "--on", ":" + on}
		c, err := p.Run(ctx, role, lab.AppImage, opts)
		must(t, err)
		must(t, c.WaitListening(ctx, ports...))
		return c
	}
	p.sidecar = run("sidecar", sidecarPort, sidecarAdmin, lab.OutboundPort, lab.InboundPort)
	p.app = run("app", appPort, appAdmin)
	return p
}

// A call is a way to another place, which rules allow or do not.
type call struct {
	name    string
	from    *lab.Container
	args    []string
	nonce   string // "" if it does not go outside
	allowed bool
}

func (p *pod) calls(gateway string) []call {
	inside := func(port int) []string {
		return []string{"http", "--to", fmt.Sprintf("127.0.0.1:%d", port), "--contains", "hello from the app", "--timeout", "1s"}
	}
	web := []string{"http", "--to", world.Outside.HTTP(false).String(), "--path", lab.PagePath, "--timeout", "1s"}
	all := []call{
		{"sidecar to the app", p.sidecar, inside(appPort), "", true},
		{"app to the sidecar", p.app, inside(sidecarPort), "", true},
		{"sidecar to the web", p.sidecar, web, "", true},
		{"sidecar to the app's other port", p.sidecar, inside(appAdmin), "", false},
		{"app to the sidecar's other port", p.app, inside(sidecarAdmin), "", false},
		{"app to the web", p.app, web, "", false},
	}
	for name, c := range map[string]*lab.Container{"sidecar": p.sidecar, "app": p.app} {
		outside := func(how string, args ...string) {
			nonce := newNonce()
			all = append(all, call{name + " outside, " + how, c, append(args, "--nonce", nonce), nonce, false})
		}
		echo := world.Outside.Echo(false).String()
		outside("TCP", "tcp", "--to", echo, "--timeout", "500ms")
		outside("UDP", "udp", "--to", echo, "--timeout", "200ms")
		outside("ping", "ping", "--to", world.Outside.Addr(false).String(), "--timeout", "200ms")
		outside("raw socket", "rawudp", "--to", echo)
		outside("frame", "packet", "--to", echo, "--gw-mac", gateway)
		outside("frame past the queue", "packet", "--qdisc-bypass", "--to", echo, "--gw-mac", gateway)
		outside("frame by AF_XDP", "xdp", "--to", echo, "--gw-mac", gateway)
	}
	return all
}

// wantCalls fails the test unless each call gets through if it is allowed, or all are to.
func (p *pod) wantCalls(when, gateway string, all bool) {
	p.t.Helper()
	calls := p.calls(gateway)
	results := make([]lab.Result, len(calls))
	for i, c := range calls {
		results[i] = p.probe(c.from, c.args...)
	}
	settle(p.t)
	for i, c := range calls {
		through := results[i].OK
		if c.nonce != "" { // the kernel may take what the device then drops
			through = len(sightings(p.t, c.nonce)) > 0
		}
		if through != (c.allowed || all) {
			p.t.Errorf("%s: %s gets through: %t, it says %s", when, c.name, through, results[i])
		}
	}
}

// settle waits until the outside has recorded what came before.
func settle(t testing.TB) {
	t.Helper()
	nonce := newNonce()
	if r := probeHere(t.(*testing.T), udp(nonce)...); !r.OK {
		t.Fatalf("UDP of the node: %s", r)
	}
	wantSeen(t, nonce)
}

// An outcome is what the prober says of one attempt, and the outside.
type outcome struct {
	name, errno, err string
	ok               bool // the kernel did it
	through          bool // something of it was seen outside
}

func (o outcome) String() string {
	if o.ok {
		return fmt.Sprintf("%s: ok, gets through: %t", o.name, o.through)
	}
	return fmt.Sprintf("%s: %s (%s), gets through: %t", o.name, o.errno, o.err, o.through)
}

// tamper makes the attempts in a container, by name.
func (p *pod) tamper(c *lab.Container, args ...string) map[string]outcome {
	p.t.Helper()
	r := p.probe(c, append([]string{"tamper", "--to", world.Outside.Echo(false).String()}, args...)...)
	settle(p.t)
	list, _ := r.Data["attempts"].([]any)
	if len(list) == 0 {
		p.t.Fatalf("%s: no attempts were made: %s", c.Name, r)
	}
	all := map[string]outcome{}
	for _, one := range list {
		b, err := json.Marshal(one)
		must(p.t, err)
		var m struct {
			Name, Errno, Err string
			OK               bool
			Data             struct {
				Nonce  string
				Nonces []string
			}
		}
		must(p.t, json.Unmarshal(b, &m))
		o := outcome{name: m.Name, errno: m.Errno, err: m.Err, ok: m.OK}
		for _, nonce := range append(m.Data.Nonces, m.Data.Nonce) {
			o.through = o.through || nonce != "" && len(sightings(p.t, nonce)) > 0
		}
		if *commands {
			p.t.Logf("%s: %s", c.Name, o)
		}
		all[o.name] = o
	}
	return all
}

// harmless is what the kernel does for root with CAP_NET_ADMIN, with Sidegate or without. None of it touches what is attached.
var harmless = []string{
	// To know the numbers of what is attached to oneself.
	"bpf: query *",
	// The root of such a file system is the container's own cgroup.
	"mount: cgroup2, in own namespaces",
	"cgroup: process of its own, by clone3",
	"cgroup: itself and a child, in own namespaces",
	"namespace: of own, with a user namespace",
	// Of its own container: they have the same rights.
	"process: ptrace",
	"process: its sockets",
	"socket: SO_MARK", "socket: SO_BINDTODEVICE", "socket: IP_TRANSPARENT", "socket: IP_FREEBIND", "socket: SO_ATTACH_FILTER",
	"socket: destroy another's",
	"device: add *", // after Sidegate's programs, which are no filters of clsact
	"device: detach XDP from *",
	"device: forward by *",
	"device: route loopback addresses by *",
	"device: lo down and up",
	"device: second address of lo",
	"device: new pair",
	"netfilter: new table",
}

// perhaps is what it does on some machines, or once it was done before.
var perhaps = []string{
	"device: TUN", // the runtime's list of devices
	"mount: bpf, in own namespaces",
	"device: delete clsact of *",
	"device: delete * filters of *",
	// kernel.unprivileged_bpf_disabled=0. A program on a cgroup that others are on can only refuse more.
	"bpf: make map",
	"bpf: load socket filter*", "bpf: load cgroup_skb*",
	"bpf: attach own cgroup_skb", "bpf: link own cgroup_skb",
	"socket: SO_ATTACH_BPF",
	"perf: *",
}

// hostRights is what the kernel does for CAP_NET_ADMIN to the host, unless the pod has a user namespace: KNOWN-ISSUES.
var hostRights = []string{"host: list devices", "host: delete device"}

// closed gets through without Sidegate only. The kernel may take something of it, which goes nowhere.
var closed = []string{
	"escape: from a child cgroup",
	"escape: through a pair into own namespaces",
	"escape: through a macvlan on eth0 in own namespaces",
}

// open gets through by hostRights: frames on a device that is the host's. A change is for the better, and for KNOWN-ISSUES.
var open = []string{
	"escape: through a macvlan on a device of the host",
	"escape: through a macvlan on a device of the host, in own namespaces",
	"escape: through a pair into the host's bridge",
}

// matches tells whether a list has the name, in which * stands for anything.
func matches(list []string, name string) bool {
	return slices.ContainsFunc(list, func(pattern string) bool {
		ok, err := path.Match(strings.ReplaceAll(pattern, "/", "|"), strings.ReplaceAll(name, "/", "|"))
		return ok && err == nil
	})
}

// hasTCX tells whether Sidegate is attached to devices by links, and not by filters.
func hasTCX(t testing.TB) bool {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	_, err = link.QueryPrograms(link.QueryOptions{Target: lo.Attrs().Index, Attach: ebpf.AttachTCXEgress})
	return err == nil
}

// wantTampering fails the test unless the attempts came out as the lists say.
func wantTampering(t *testing.T, who string, all map[string]outcome, managed bool) {
	t.Helper()
	for name, o := range all {
		switch {
		case matches(closed, name):
			if o.through == managed {
				t.Errorf("%s: %s", who, o)
			}
		case matches(open, name):
			if !o.through {
				t.Errorf("%s: %s: it did", who, o)
			}
		case name == "socket: connection without a handshake":
			if o.ok == managed {
				t.Errorf("%s: %s", who, o)
			}
		case o.through:
			t.Errorf("%s: %s", who, o)
		case matches(harmless, name) || matches(hostRights, name):
			if !o.ok && hasTCX(t) { // else some are not there
				t.Errorf("%s: %s: it was ok", who, o)
			}
		case o.ok && !matches(perhaps, name):
			t.Errorf("%s: %s", who, o)
		}
	}
}

// enforcement is all that must not change.
type enforcement struct {
	hooks    []string // by the word of the command
	objects  []string // what is pinned, by its number, and where links are
	programs []string // on the containers' cgroups, by the word of the kernel
	entries  []string // of the maps that say who is who and who may do what
}

func (p *pod) enforcement() (e enforcement) {
	t := p.t
	t.Helper()
	st := status(t)
	e.hooks = append(e.hooks, fmt.Sprint("guard ", st.Guard))
	for _, pod := range st.Pods {
		e.hooks = append(e.hooks, fmt.Sprint(pod.Cookie, pod.Policy, pod.Revision, pod.Hooks))
		for _, c := range pod.Containers {
			e.hooks = append(e.hooks, fmt.Sprint(c.ID, c.Role, c.CgroupID, c.Hooks, c.Missing))
			e.programs = append(e.programs, programsOf(t, filepath.Join("/sys/fs/cgroup", c.Cgroup))...)
		}
	}
	for _, o := range pinned(t, loaded) {
		e.objects = append(e.objects, fmt.Sprint(o))
		if o.kind == "link" {
			e.objects = append(e.objects, whereIs(t, o.path))
		}
	}
	for _, name := range []string{
		"containers", "container_info", "pods", "pod_info", "pod_slots", "pod_addrs",
		"policies", "policy_slots", "policy_info", "prefixes", "rules", "subjects",
	} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(loaded, "maps", name), nil)
		must(t, err)
		var key, value []byte
		for it := m.Iterate(); it.Next(&key, &value); {
			e.entries = append(e.entries, fmt.Sprintf("%s %x %x", name, key, value))
		}
		must(t, m.Close())
	}
	slices.Sort(e.entries)
	if len(e.hooks) < 3 || len(e.objects) < 50 || len(e.programs) < 10 || len(e.entries) < 10 {
		t.Fatalf("there is too little to change: %d hooks, %d objects, %d programs, %d entries",
			len(e.hooks), len(e.objects), len(e.programs), len(e.entries))
	}
	return e
}

// programsOf lists what is attached to a cgroup.
func programsOf(t testing.TB, dir string) (list []string) {
	t.Helper()
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	for kind := ebpf.AttachCGroupInetIngress; kind < ebpf.AttachNetkitPeer; kind++ {
		r, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: kind})
		if err != nil {
			continue // none of a cgroup
		}
		for _, p := range r.Programs {
			list = append(list, fmt.Sprint(filepath.Base(dir), " ", kind, " ", p.ID))
		}
	}
	return list
}

// whereIs tells what a pinned link is attached to.
func whereIs(t testing.TB, pin string) string {
	t.Helper()
	l, err := link.LoadPinnedLink(pin, nil)
	must(t, err)
	defer l.Close()
	info, err := l.Info()
	must(t, err)
	switch {
	case info.Cgroup() != nil:
		return fmt.Sprintf("%s: %+v", pin, *info.Cgroup())
	case info.TCX() != nil:
		return fmt.Sprintf("%s: %+v", pin, *info.TCX())
	case info.NetNs() != nil:
		return fmt.Sprintf("%s: %+v", pin, *info.NetNs())
	}
	return fmt.Sprintf("%s: %d", pin, info.Type)
}

// wantSame fails the test if anything is not as it was.
func (p *pod) wantSame(when string, before enforcement) {
	p.t.Helper()
	after := p.enforcement()
	for _, c := range []struct {
		what          string
		before, after []string
	}{
		{"hooks", before.hooks, after.hooks},
		{"objects", before.objects, after.objects},
		{"programs", before.programs, after.programs},
		{"entries", before.entries, after.entries},
	} {
		for _, s := range c.before {
			if !slices.Contains(c.after, s) {
				p.t.Errorf("%s: %s: gone: %s", when, c.what, s)
			}
		}
		for _, s := range c.after {
			if !slices.Contains(c.before, s) {
				p.t.Errorf("%s: %s: new: %s", when, c.what, s)
			}
		}
	}
}

// A rewrite changes what a container may send into what it may not, by nftables in the pod's namespace.
type rewrite struct {
	name    string
	table   string // family and name
	chains  string
	outside bool // the sidecar's connection to the web becomes one to the echo server; else the app's, to the sidecar's other port
	open    bool // gets through: KNOWN-ISSUES
}

var rewrites = []rewrite{
	{"at eth0's end", "netdev tamper", `
		chain out { type filter hook egress device eth0 priority 0; tcp dport 80 tcp dport set 7; }
		chain in { type filter hook ingress device eth0 priority 0; tcp sport 7 tcp sport set 80; }`, true, false},
	{"by NAT of output", "ip tamper", `
		chain out { type nat hook output priority -100; tcp dport 80 dnat to 192.0.2.80:7; }`, true, false},
	{"after routing", "ip tamper", `
		chain out { type filter hook postrouting priority 300; tcp dport 80 tcp dport set 7; }
		chain in { type filter hook prerouting priority -300; tcp sport 7 tcp sport set 80; }`, true, false},
	{"on loopback, by NAT of output", "ip tamper", `
		chain out { type nat hook output priority -100; tcp dport 8000 dnat to 127.0.0.1:9901; }`, false, false},
	{"on loopback, at lo's near end", "netdev tamper", `
		chain out { type filter hook egress device lo priority 0; tcp dport 8000 tcp dport set 9901
			tcp sport 9901 tcp sport set 8000; }`, false, false},
	{"on loopback, at lo's far end", "netdev tamper", `
		chain in { type filter hook ingress device lo priority 0; tcp dport 8000 tcp dport set 9901
			tcp sport 9901 tcp sport set 8000; }`, false, false},
}

// wantRewrites fails the test unless each rewrite gets through without Sidegate only.
func (p *pod) wantRewrites(managed bool) {
	p.t.Helper()
	for _, r := range rewrites {
		p.nft("table " + r.table + " {" + r.chains + "\n}\n")
		nonce, from, to := newNonce(), p.sidecar, world.Outside.HTTP(false).String()
		args := []string{"tcp", "--to", to, "--nonce", nonce, "--timeout", "500ms"}
		if !r.outside {
			from, args = p.app, []string{"http", "--to", fmt.Sprintf("127.0.0.1:%d", sidecarPort), "--timeout", "500ms"}
		}
		said := p.probe(from, args...)
		p.nft("delete table " + r.table + "\n")
		settle(p.t)
		through := strings.Contains(said.Text("body"), fmt.Sprintf(":%d", sidecarAdmin))
		if r.outside {
			through = len(sightings(p.t, nonce)) > 0
		}
		if through != (!managed || r.open) {
			p.t.Errorf("rewritten %s gets through: %t, it says %s", r.name, through, said)
		}
	}
}

// nft does in the pod's namespace what its containers have the right to do.
func (p *pod) nft(commands string) {
	p.t.Helper()
	pid, err := p.app.PID(p.ctx)
	must(p.t, err)
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("nft: %v: %s", err, out)
	}
}

// victim makes a device of the node that nobody needs.
func victim(t *testing.T) string {
	t.Helper()
	remove := func() {
		if l, err := netlink.LinkByName("victim0"); err == nil {
			must(t, netlink.LinkDel(l))
		}
	}
	remove()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "victim0"}, PeerName: "victim1"}))
	t.Cleanup(remove)
	return "victim0"
}

// Without Sidegate every forbidden call gets through, and so does every escape, and who has the rights takes hold of any object: what
// TestTamper finds refused is refused by what it means to test.
func TestTamperUnmanaged(t *testing.T) {
	ctx := begin(t)
	p := newTamperPod(ctx, t, "")
	gateway, err := world.GatewayMAC()
	must(t, err)
	p.wantCalls("unmanaged", gateway, true)
	all := p.tamper(p.app, "--gw-mac", gateway, "--host-dev", victim(t), "--peer", fmt.Sprintf("127.0.0.1:%d", sidecarPort))
	wantTampering(t, p.app.Name, all, false)

	p.wantRewrites(false)

	// One with all rights.
	opts := powerful(nil)
	opts.CapAdd = append(opts.CapAdd, "SYS_ADMIN")
	opts.Args = []string{"/bin/prober", "serve", "--on", ":8081"}
	c, err := p.Run(ctx, "mighty", lab.AppImage, opts)
	must(t, err)
	must(t, c.WaitListening(ctx, 8081))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	must(t, err)
	defer m.Close()
	must(t, m.Put(uint32(1), uint32(1)))
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	must(t, err)
	defer prog.Close()
	dir := filepath.Join("/sys/fs/cgroup", cgroupParent(t), "victim")
	must(t, os.Mkdir(dir, 0o755))
	defer func() { must(t, os.Remove(dir)) }()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInetEgress, Program: prog})
	must(t, err)
	defer l.Close()
	for _, o := range p.tamper(c, append(ids(t, prog, m, l), "--only", "object: ")...) {
		if !o.ok {
			t.Errorf("%s: %s", c.Name, o)
		}
	}
	if key, err := m.NextKeyBytes(nil); err != nil || key != nil {
		t.Errorf("the map has key %x, %v", key, err)
	}
	if list := programsOf(t, dir); len(list) > 0 {
		t.Errorf("the cgroup has programs %s", list)
	}
	for _, only := range []string{"bpf: load", "bpf: attach own", "bpf: detach inet_egress"} {
		for _, o := range p.tamper(c, "--only", only) {
			if !o.ok && !strings.Contains(o.name, "in own namespaces") {
				t.Errorf("%s: %s", c.Name, o)
			}
		}
	}
}

// ids are flags for the prober.
func ids(t testing.TB, prog *ebpf.Program, m *ebpf.Map, l link.Link) []string {
	t.Helper()
	progInfo, err := prog.Info()
	must(t, err)
	progID, _ := progInfo.ID()
	mapInfo, err := m.Info()
	must(t, err)
	mapID, _ := mapInfo.ID()
	linkInfo, err := l.Info()
	must(t, err)
	return []string{"--progs", fmt.Sprint(progID), "--maps", fmt.Sprint(mapID), "--links", fmt.Sprint(linkInfo.ID)}
}

// A compromised container that is root and has CAP_NET_ADMIN and CAP_NET_RAW changes nothing of what enforces, not even when it knows
// the number of each object, and gets nowhere that it may not go.
func TestTamper(t *testing.T) {
	ctx := begin(t)
	hooks, err := lab.Install(t.TempDir(), hookBinary(), map[string]string{"tamper.yaml": tamperPolicy})
	must(t, err)
	p := newTamperPod(ctx, t, hooks)
	gateway, err := world.GatewayMAC()
	must(t, err)
	p.wantCalls("before", gateway, false)
	before := p.enforcement()

	known := map[string][]string{}
	for _, o := range pinned(t, loaded) {
		if id := fmt.Sprint(o.id); !slices.Contains(known[o.kind], id) {
			known[o.kind] = append(known[o.kind], id)
		}
	}
	flags := []string{"--gw-mac", gateway, "--pins", state}
	for kind, flag := range map[string]string{"program": "--progs", "map": "--maps", "link": "--links"} {
		flags = append(flags, flag, strings.Join(known[kind], ","))
	}
	for _, one := range []struct {
		c    *lab.Container
		peer int
	}{{p.sidecar, appPort}, {p.app, sidecarPort}} {
		all := p.tamper(one.c, append(flags, "--host-dev", victim(t), "--peer", fmt.Sprintf("127.0.0.1:%d", one.peer))...)
		wantTampering(t, one.c.Name, all, true)
		p.wantSame(one.c.Name, before)
	}
	p.wantCalls("after", gateway, false)

	p.wantRewrites(true)
	p.wantSame("rewriting", before)

	// Last, what ends the pod's network. The device's programs go where the device goes.
	for _, o := range p.tamper(p.app, append(flags, "--destroy")...) {
		if o.through {
			t.Errorf("%s: %s", p.app.Name, o)
		}
	}
	for _, c := range p.calls(gateway) {
		if c.nonce != "" || c.args[2] == world.Outside.HTTP(false).String() {
			if r := p.probe(c.from, c.args...); r.OK {
				t.Errorf("without a device: %s: %s", c.name, r)
			}
		}
	}
}

// strays tries to be the container at cgroup, which may send datagrams, and returns what of it was seen outside.
func (p *pod) strays(c *lab.Container, cgroup string) (seen []string) {
	p.t.Helper()
	for _, how := range []string{"move", "below", "thread", "clone"} {
		for _, attempt := range [][]string{tcp(newNonce()), udp(newNonce())} {
			r := p.probe(c, append([]string{"stray", "--how", how, "--cgroup", filepath.Join(lab.HostCgroups, cgroup), "--"}, attempt...)...)
			got := sightings(p.t, attempt[4])
			p.t.Logf("%s: %s, %s: %s, seen %v", c.Name, how, attempt[0], r, got)
			if r.OK || len(got) > 0 || r.Errno != "EPERM" {
				seen = append(seen, how+" "+attempt[0])
			}
		}
	}
	return seen
}

// An app that can write the host's cgroup file system gets no other container's rights by it.
func TestStrayInAnotherContainersCgroup(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, world.hooks)
	var err error
	p.sidecar, err = p.Run(ctx, "sidecar", lab.AppImage, lab.ContainerOptions{
		Annotations: sidecarAnnotations(), Args: []string{"/bin/prober", "serve", "--on", fmt.Sprintf("127.0.0.1:%d", lab.OutboundPort)},
	})
	must(t, err)
	must(t, p.sidecar.WaitListening(ctx, lab.OutboundPort))
	opts := lab.ContainerOptions{Annotations: appAnnotations(), HostCgroups: true}
	p.app, err = p.StartApp(ctx, opts)
	must(t, err)
	sidecar, ok := find(t, id(ctx, t, p.sidecar))
	if !ok {
		t.Fatal("the sidecar is not registered")
	}
	if seen := p.strays(p.app, sidecar.Cgroup); len(seen) > 0 {
		t.Errorf("in the sidecar's cgroup the app gets out: %s", seen)
	}
	opts.Annotations, opts.Args = nil, []string{"/bin/sleep", "60"}
	late, err := p.Run(ctx, "late", lab.AppImage, opts)
	must(t, err)
	app, ok := find(t, id(ctx, t, p.app))
	if !ok {
		t.Fatal("the app is not registered")
	}
	for _, c := range []string{app.Cgroup, sidecar.Cgroup} {
		if seen := p.strays(late, c); len(seen) > 0 {
			t.Errorf("in %s a container without annotations gets out: %s", c, seen)
		}
	}
	if c, _ := find(t, id(ctx, t, p.sidecar)); c.Drops["stranger"] < 16 {
		t.Errorf("drops in the sidecar's cgroup are %v", c.Drops)
	}
	// What podman exec starts is the container.
	p.wantDirect(p.sidecar, tcp(newNonce()))
	p.wantDirect(p.sidecar, udp(newNonce()))
	if r := p.probe(p.app, udp(newNonce())...); r.Errno != "EPERM" {
		t.Errorf("%s: %s", p.app.Name, r)
	}
	if r := p.probe(p.app, "http", "--to", world.Outside.HTTP(false).String(), "--timeout", "1s"); !strings.Contains(r.Text("body"), "hello from the app") {
		t.Errorf("%s: the sidecar does not answer: %s", p.app.Name, r)
	}
}
