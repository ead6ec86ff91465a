// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

const state = cgroups.DefaultState

var loaded = cgroups.VersionDir(state)

// begin gives a test its context, and checks at its end that unload finds
// nothing managed and that the kernel then has nothing of Sidegate.
func begin(t *testing.T) context.Context {
	t.Helper()
	wantNoState(t)
	t.Cleanup(func() {
		objects := pinned(t, state)
		// What was killed in a pod may take a moment to be gone, and the pod with it.
		var stderr string
		if err := lab.WaitFor(5*time.Second, "unload at the end", func() (bool, error) {
			var code int
			_, stderr, code = sidegate(t, "unload")
			return code == 0, nil
		}); err != nil {
			t.Errorf("%v: %s", err, stderr)
			sidegate(t, "unload", "--force")
		}
		wantNoState(t)
		wantGone(t, objects)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func wantNoState(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s exists: %v", state, err)
	}
}

// status is what the command says.
func status(t testing.TB) cgroups.Status {
	t.Helper()
	stdout, stderr, code := sidegate(t, "status", "--output", "json")
	if code != 0 {
		t.Fatalf("sidegate status: %d, %s", code, stderr)
	}
	var st cgroups.Status
	must(t, json.Unmarshal([]byte(stdout), &st))
	return st
}

// find returns the registered container of this id.
func find(t testing.TB, id string) (cgroups.ContainerStatus, bool) {
	t.Helper()
	for _, p := range status(t).Pods {
		for _, c := range p.Containers {
			if c.ID == id {
				return c, true
			}
		}
	}
	return cgroups.ContainerStatus{}, false
}

// id returns podman's id of a container.
func id(ctx context.Context, t testing.TB, c *lab.Container) string {
	t.Helper()
	out, err := podman(ctx, "inspect", "--format", "{{.Id}}", c.Name)
	must(t, err)
	return out
}

// pinsOfPods lists what is pinned for pods and containers.
func pinsOfPods(t testing.TB) []string {
	t.Helper()
	var pins []string
	for _, sub := range []string{"pods", "containers"} {
		err := filepath.WalkDir(filepath.Join(loaded, sub), func(path string, _ fs.DirEntry, err error) error {
			if rel, rerr := filepath.Rel(loaded, path); rerr == nil && rel != sub {
				pins = append(pins, rel)
			}
			return err
		})
		if !errors.Is(err, fs.ErrNotExist) {
			must(t, err)
		}
	}
	return pins
}

// wantNothingManaged looks for itself, and does not ask the command, which
// would collect what was left behind.
func wantNothingManaged(t testing.TB) {
	t.Helper()
	if pins := pinsOfPods(t); len(pins) > 0 {
		t.Errorf("pins are left: %s", pins)
	}
	for _, name := range []string{"pods", "pod_info", "pod_counters", "pod_addrs", "rules", "containers", "container_info", "counters", "listeners"} {
		m, err := ebpf.LoadPinnedMap(filepath.Join(loaded, "maps", name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		must(t, err)
		if key, err := m.NextKeyBytes(nil); err != nil || key != nil {
			t.Errorf("map %s has key %x, %v", name, key, err)
		}
		must(t, m.Close())
	}
}

// object is a link, program or map in the kernel.
type object struct {
	kind string
	id   uint32
	path string
}

// pinned returns the objects that are pinned below dir, and the programs of
// links that are.
func pinned(t testing.TB, dir string) []object {
	t.Helper()
	var all []object
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			defer l.Close()
			info, err := l.Info()
			if err != nil {
				return err
			}
			all = append(all, object{"link", uint32(info.ID), path}, object{"program", uint32(info.Program), path})
			return nil
		}
		if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
			defer p.Close()
			info, err := p.Info()
			if err != nil {
				return err
			}
			id, _ := info.ID()
			all = append(all, object{"program", uint32(id), path})
			return nil
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return err
		}
		defer m.Close()
		info, err := m.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		all = append(all, object{"map", uint32(id), path})
		return nil
	})
	if !errors.Is(err, fs.ErrNotExist) {
		must(t, err)
	}
	return all
}

// exists asks the kernel for an object by its id.
func (o object) exists() (bool, error) {
	var c interface{ Close() error }
	var err error
	switch o.kind {
	case "link":
		c, err = link.NewFromID(link.ID(o.id))
	case "program":
		c, err = ebpf.NewProgramFromID(ebpf.ProgramID(o.id))
	case "map":
		c, err = ebpf.NewMapFromID(ebpf.MapID(o.id))
	}
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, c.Close()
}

// wantGone waits until none of the objects is in the kernel, which frees them
// some time after their last user is gone.
func wantGone(t testing.TB, objects []object) {
	t.Helper()
	left := slices.Clone(objects)
	err := lab.WaitFor(5*time.Second, "the end of what was pinned", func() (bool, error) {
		for len(left) > 0 {
			if ok, err := left[0].exists(); ok || err != nil {
				return false, err
			}
			left = left[1:]
		}
		return true, nil
	})
	if err != nil {
		t.Errorf("%v: %d objects, the first of them %+v", err, len(left), left[0])
	}
}

// A pod is one that hooks run for.
type pod struct {
	*lab.Pod
	t       *testing.T
	ctx     context.Context
	sidecar *lab.Container
	app     *lab.Container
}

// newPod starts a pod without containers. hooks may be "".
func newPod(ctx context.Context, t *testing.T, hooks string) *pod {
	t.Helper()
	p, err := world.NewPod(ctx, lab.PodOptions{HooksDir: hooks})
	must(t, err)
	pinBridge(t)
	t.Cleanup(func() {
		// Also after a test that removed it, and after ctx.
		if _, err := world.Podman.Run(context.Background(), "pod", "exists", p.Name); err == nil {
			must(t, p.Remove(context.Background()))
		}
	})
	return &pod{Pod: p, t: t, ctx: ctx}
}

// pinBridge gives the pods' bridge a hardware address of its own. Without one
// it has the lowest of its ports', which changes as pods come and go, and pods
// believe in the old one for some seconds.
func pinBridge(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Type() == "bridge" {
			must(t, netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0x53, 0x47, 0, 0, 0xfe}))
		}
	}
}

// newMeshPod starts a managed pod with HAProxy and an app.
func newMeshPod(ctx context.Context, t *testing.T) *pod {
	t.Helper()
	p := newPod(ctx, t, world.hooks)
	p.startSidecar()
	p.startApp()
	return p
}

func sidecarAnnotations() map[string]string {
	return map[string]string{"sidegate/role": "sidecar", "sidegate/policy": "mesh"}
}

// appAnnotations has more pairs of key and value.
func appAnnotations(more ...string) map[string]string {
	m := map[string]string{"sidegate/role": "app", "sidegate/policy": "mesh"}
	for pair := range slices.Chunk(more, 2) {
		m[pair[0]] = pair[1]
	}
	return m
}

func (p *pod) startSidecar() {
	p.t.Helper()
	var err error
	p.sidecar, err = p.StartSidecar(p.ctx, lab.ContainerOptions{Annotations: sidecarAnnotations()})
	must(p.t, err)
}

// powerful is what a container needs to try everything.
func powerful(annotations map[string]string) lab.ContainerOptions {
	return lab.ContainerOptions{Annotations: annotations, CapAdd: []string{"NET_ADMIN", "NET_RAW"}, Unconfined: true}
}

func (p *pod) startApp() {
	p.t.Helper()
	var err error
	p.app, err = p.StartApp(p.ctx, powerful(appAnnotations()))
	must(p.t, err)
}

// podman runs podman with the installed hooks.
func podman(ctx context.Context, args ...string) (string, error) {
	out, err := world.Podman.Run(ctx, append([]string{"--hooks-dir", world.hooks}, args...)...)
	return strings.TrimSpace(string(out)), err
}

// cgroupParent is where the lab's containers are, as podman wants it.
func cgroupParent(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(filepath.Dir(path), "pods")
		}
	}
	t.Fatalf("no cgroup2 in %s", b)
	return ""
}

// runArgs are podman's for an app in the pod, beginning with run or create.
func (p *pod) runArgs(command, name string, annotations map[string]string, args ...string) []string {
	all := []string{command, "--pod", p.Name, "--name", p.Name + "-" + name, "--cgroup-parent", cgroupParent(p.t)}
	for key, value := range annotations {
		all = append(all, "--annotation", key+"="+value)
	}
	return append(append(all, lab.AppImage), args...)
}

func newNonce() string { return "n" + rand.Text() }

// tcp and udp make one attempt to reach the outside's echo servers.
func tcp(nonce string) []string {
	return []string{"tcp", "--to", world.Outside.Echo(false).String(), "--nonce", nonce, "--timeout", "1s"}
}

func udp(nonce string) []string {
	return []string{"udp", "--to", world.Outside.Echo(false).String(), "--nonce", nonce, "--timeout", "300ms"}
}

func rawUDP(nonce string) []string {
	return []string{"rawudp", "--to", world.Outside.Echo(false).String(), "--nonce", nonce}
}

func joiner(nonce string) []string {
	return []string{"joiner", "--to", world.Outside.Echo(false).String(), "--nonce", nonce}
}

// probe makes an attempt in a container. That it fails is a result.
func (p *pod) probe(c *lab.Container, args ...string) lab.Result {
	p.t.Helper()
	r, err := c.Probe(p.ctx, args...)
	must(p.t, err)
	return r
}

// wantCarried fails the test unless a connection of c arrives outside, and
// arrives from the pod's sidecar.
func (p *pod) wantCarried(c *lab.Container) {
	p.t.Helper()
	nonce := newNonce()
	r := p.probe(c, tcp(nonce)...)
	if !r.OK {
		p.t.Errorf("%s: TCP to the outside: %s", c.Name, r)
		return
	}
	seen, err := world.Outside.Seen(nonce)
	must(p.t, err)
	for _, s := range seen {
		if s.How == "tcp" {
			p.wantSource(c, s.Src, r)
			return
		}
	}
	p.t.Errorf("%s: an echo came back, but the outside saw no connection", c.Name)
}

// wantSource fails the test unless the pod's sidecar says that src was its own
// socket, and for this connection.
func (p *pod) wantSource(c *lab.Container, src netip.AddrPort, r lab.Result) {
	p.t.Helper()
	if src == r.Addr("local") || src.Addr() != p.addr() {
		p.t.Errorf("%s: arrived from %s, its own socket is %s, its pod %s", c.Name, src, r.Addr("local"), p.addr())
		return
	}
	err := lab.WaitFor(3*time.Second, fmt.Sprintf("%s's word that %s is its own", p.sidecar.Name, src), func() (bool, error) {
		all, err := p.sidecar.Carried()
		return slices.ContainsFunc(all, func(c lab.Carried) bool {
			return c.Source == src && c.Client == r.Addr("local") && c.Dst == world.Outside.Echo(false)
		}), err
	})
	if err != nil {
		p.t.Error(err)
	}
}

// addr asks podman: a pod that was stopped may have another one.
func (p *pod) addr() netip.Addr {
	p.t.Helper()
	out, err := podman(p.ctx, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", p.Infra().Name)
	must(p.t, err)
	a, err := netip.ParseAddr(out)
	must(p.t, err)
	return a
}

// wantServed fails the test unless the outside gets the app's page through the
// sidecar.
func (p *pod) wantServed() {
	p.t.Helper()
	r := p.request()
	if !r.OK {
		p.t.Errorf("%s: HTTP from the outside: %s", p.Name, r)
		return
	}
	var told struct{ Peer string }
	must(p.t, json.Unmarshal([]byte(r.Text("body")), &told))
	if peer, err := netip.ParseAddrPort(told.Peer); err != nil || !peer.Addr().Unmap().IsLoopback() {
		p.t.Errorf("%s: the app answered %s and not its sidecar", p.Name, told.Peer)
	}
}

func (p *pod) request() lab.Result {
	p.t.Helper()
	r, err := world.Outside.Probe(p.ctx, "http", "--to", netip.AddrPortFrom(p.addr(), lab.AppPort).String(),
		"--contains", "hello from the app", "--timeout", "1s")
	must(p.t, err)
	return r
}

// wantClosed fails the test if anything of c reaches the outside, or the
// outside the app.
func (p *pod) wantClosed(c *lab.Container) {
	p.t.Helper()
	for _, attempt := range [][]string{tcp(newNonce()), udp(newNonce()), rawUDP(newNonce())} {
		if r := p.probe(c, attempt...); r.OK {
			p.t.Errorf("%s: %v: %s", c.Name, attempt, r)
		}
		wantUnseen(p.t, attempt[4])
	}
	if r := p.request(); r.OK {
		p.t.Errorf("%s: HTTP from the outside: %s", p.Name, r)
	}
}

// wantEnforced fails the test unless c can do what its sidecar carries, and
// nothing else.
func (p *pod) wantEnforced(c *lab.Container) {
	p.t.Helper()
	p.wantCarried(c)
	for _, attempt := range [][]string{udp(newNonce()), rawUDP(newNonce())} {
		if r := p.probe(c, attempt...); r.OK || r.Errno != "EPERM" {
			p.t.Errorf("%s: %v: %s", c.Name, attempt, r)
		}
		wantUnseen(p.t, attempt[4])
	}
}

// wantUnseen fails the test if the outside saw the nonce.
func wantUnseen(t testing.TB, nonce string) {
	t.Helper()
	if seen := sightings(t, nonce); len(seen) > 0 {
		t.Errorf("the outside saw %v", seen)
	}
}

// wantSeen waits until the outside, whose recorder may be behind, has the nonce.
func wantSeen(t testing.TB, nonce string) []lab.Sighting {
	t.Helper()
	var seen []lab.Sighting
	if err := lab.WaitFor(3*time.Second, "a sighting of "+nonce, func() (bool, error) {
		seen = sightings(t, nonce)
		return len(seen) > 0, nil
	}); err != nil {
		t.Error(err)
	}
	return seen
}

func sightings(t testing.TB, nonce string) []lab.Sighting {
	t.Helper()
	seen, err := world.Outside.Seen(nonce)
	must(t, err)
	return seen
}
