// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

const tlsInspect = "  tls: {mode: inspect}\n"

// testRelay is this process as the relay of a world: it lets everything through.
type testRelay struct {
	t     testing.TB
	relay *cgroups.TLSRelay

	mu        sync.Mutex
	listeners map[uint64]*cgroups.TLSListener
	origins   []cgroups.TLSOrigin
	stray     int // connections that nothing redirected
}

// startRelay moves this process into a cgroup of its own, and answers front-ends.
func (w *world) startRelay() *testRelay {
	w.t.Helper()
	home, err := w.mount.Of(os.Getpid())
	must(w.t, err)
	back := home.Path
	must(w.t, home.Close())
	must(w.t, os.WriteFile(filepath.Join(w.mkcgroup("relay"), "cgroup.procs"), []byte("0"), 0))
	w.t.Cleanup(func() {
		must(w.t, os.WriteFile(filepath.Join(w.mount.Dir, back, "cgroup.procs"), []byte("0"), 0))
	})
	r := &testRelay{t: w.t, listeners: make(map[uint64]*cgroups.TLSListener)}
	r.relay, err = cgroups.NewTLSRelay(w.state)
	must(w.t, err)
	w.t.Cleanup(r.close)

	socket := filepath.Join(w.t.TempDir(), "tls.sock")
	w.t.(*testing.T).Setenv(cgroups.TLSSocketEnv, socket)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	must(w.t, err)
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1<<16)
			n, err := c.Read(buf)
			if err == nil {
				var req cgroups.TLSRequest
				var ans cgroups.TLSAnswer
				if err = json.Unmarshal(buf[:n], &req); err == nil {
					err = r.listen(req.Pods)
				}
				if err != nil {
					ans.Error = err.Error()
				}
				b, _ := json.Marshal(ans)
				_, _ = c.Write(b)
			}
			c.Close()
		}
	}()
	return r
}

func (r *testRelay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for cookie, l := range r.listeners {
		must(r.t, l.Close())
		delete(r.listeners, cookie)
	}
	must(r.t, r.relay.Close())
}

func (r *testRelay) listen(pods []cgroups.TLSPod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range pods {
		if have := r.listeners[p.Cookie]; have != nil {
			if have.Port == p.Port {
				continue
			}
			if err := have.Close(); err != nil {
				return err
			}
		}
		l, err := r.relay.Listen(p.PID, p.Cookie, p.Port)
		if err != nil {
			return err
		}
		r.listeners[p.Cookie] = l
		for _, tcp := range []*net.TCPListener{l.IPv4, l.IPv6} {
			go func() {
				for {
					c, err := tcp.AcceptTCP()
					if err != nil {
						return
					}
					go r.serve(l, c)
				}
			}()
		}
	}
	return nil
}

func (r *testRelay) serve(l *cgroups.TLSListener, app *net.TCPConn) {
	defer app.Close()
	o, ok, err := r.relay.Origin(app)
	r.mu.Lock()
	if ok {
		r.origins = append(r.origins, o)
	} else {
		r.stray++
	}
	r.mu.Unlock()
	if !ok || err != nil {
		return
	}
	pol, err := r.relay.Policy(l.Cookie)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	sidecar, err := l.Dial(ctx, o, pol.Outbound)
	if err != nil {
		return
	}
	defer sidecar.Close()
	go func() {
		_, _ = io.Copy(sidecar, app)
		_ = sidecar.CloseWrite()
	}()
	_, _ = io.Copy(app, sidecar)
	_ = app.CloseWrite()
}

func (r *testRelay) seen() (origins []cgroups.TLSOrigin, stray int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	origins, stray, r.origins, r.stray = r.origins, r.stray, nil, 0
	return origins, stray
}

// newTLSPod is a mesh pod whose app's connections go through a relay.
func newTLSPod(t *testing.T, spec string) (*meshPod, *testRelay) {
	t.Helper()
	p := parse(t, spec)
	w := newWorld(t)
	r := w.startRelay()
	m := &meshPod{world: w, app: w.container("app"), sidecar: w.container("sidecar")}
	m.out = agent.Start(t, w.outside, w.mkcgroup("outside"))
	m.att = w.attach(m.app, "app", policy.RoleApp, p)
	w.attach(m.sidecar, "sidecar", policy.RoleSidecar, p)
	for _, ip := range []string{"127.0.0.1", "::1"} {
		wantErr(t, "sidecar", m.sidecar.Do(t, agent.Request{
			Op: "listen", Network: "tcp", Addr: net.JoinHostPort(ip, fmt.Sprint(policy.DefaultOutbound)), Name: "outbound", Echo: true,
		}), "")
	}
	return m, r
}

// What an app connects to outside goes through the relay to the sidecar, and both ends see
// what they would without it.
func TestTLSRelay(t *testing.T) {
	m, r := newTLSPod(t, tlsInspect)
	for _, ip := range []string{outside4, outside6} {
		to := net.JoinHostPort(ip, "80")
		got := dial(t, m.app, "tcp", to)
		wantBanner(t, to, got, "outbound")
		if got.Peer != to {
			t.Errorf("the app's peer is %s, want %s", got.Peer, to)
		}
		orig := got.Banner.Orig4
		if ip == outside6 {
			orig = got.Banner.Orig6
		}
		if orig != to {
			t.Errorf("the sidecar's SO_ORIGINAL_DST is %s, want %s", orig, to)
		}
		if got.Banner.Peer == got.Local {
			t.Errorf("the sidecar's peer is the app's socket %s: no relay is between", got.Local)
		}
		origins, _ := r.seen()
		want := cgroups.TLSOrigin{Destination: mustAddrPort(t, to), CgroupID: m.att.CgroupID, PID: m.app.PID}
		if !slices.Equal(origins, []cgroups.TLSOrigin{want}) {
			t.Errorf("the relay took %+v, want %+v", origins, want)
		}
		if c := r.relay.Container(m.att.CgroupID); c.Name != "app" || c.Pod != "pod" {
			t.Errorf("the relay calls the container %+v", c)
		}
	}
	// An app that comes by itself has no destination, and nothing that asks is one of its own.
	port := fmt.Sprint(policy.DefaultTLS)
	if got := dial(t, m.app, "tcp", "127.0.0.1:"+port); got.Err == "" && got.Banner.Name != "" {
		t.Errorf("an app that connects to the relay gets %+v", got)
	}
	if _, stray := r.seen(); stray != 1 {
		t.Errorf("the relay saw %d connections that nothing redirected", stray)
	}
	for name, a := range map[string]*agent.Agent{"app": m.app, "sidecar": m.sidecar} {
		for _, addr := range []string{"0.0.0.0:" + port, "[::1]:" + port, pod4 + ":" + port} {
			wantErr(t, name+" binds "+addr, a.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: addr}), "EPERM")
		}
	}
	if got := dial(t, m.out, "tcp", pod4+":"+port); got.Err != "ECONNREFUSED" && got.Err != "ETIMEDOUT" {
		t.Errorf("from outside: %+v", got)
	}
	// The relay's own sockets go nowhere but to loopback.
	r.mu.Lock()
	l := r.listeners[m.att.Cookie]
	r.mu.Unlock()
	err := l.In(func() error {
		_, err := net.DialTimeout("tcp", outside4+":80", time.Second)
		return err
	})
	if !strings.Contains(fmt.Sprint(err), "operation not permitted") {
		t.Errorf("the relay calls the outside: %v", err)
	}
}

// Without a relay no app starts, and connections of those that run are refused.
func TestTLSFailsClosed(t *testing.T) {
	m, r := newTLSPod(t, tlsInspect)
	wantBanner(t, "with the relay", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	r.close()
	for _, to := range []string{outside4 + ":80", "[" + outside6 + "]:80"} {
		wantErr(t, "without it, to "+to, dial(t, m.app, "tcp", to), "ECONNREFUSED")
	}
	// The sidecar cannot take its place.
	wantErr(t, "the sidecar instead", m.sidecar.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: fmt.Sprintf("127.0.0.1:%d", policy.DefaultTLS)}), "EPERM")
	t.Setenv(cgroups.TLSSocketEnv, filepath.Join(t.TempDir(), "nobody"))
	late := m.container("late")
	_, err := m.tryAttach(late, "late", policy.RoleApp, parse(t, tlsInspect))
	if err == nil || !strings.Contains(err.Error(), "start it (systemctl start sidegate-tls)") {
		t.Errorf("an app starts without a relay: %v", err)
	}
	if n := len(m.status().Pods[0].Containers); n != 2 {
		t.Errorf("%d containers are registered", n)
	}
}

// A policy takes running pods to the relay and away from it, and is not applied without one.
func TestTLSPolicyChanges(t *testing.T) {
	m, r := newTLSPod(t, "  nonTCP: deny\n")
	wantBanner(t, "no TLS", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	if origins, _ := r.seen(); len(origins) != 0 {
		t.Errorf("the relay took %+v", origins)
	}
	m.apply(tlsInspect)
	wantBanner(t, "TLS", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	if origins, _ := r.seen(); len(origins) != 1 {
		t.Errorf("the relay took %+v", origins)
	}
	m.apply("  tls: {mode: inspect, port: 15555}\n")
	wantBanner(t, "another port", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	if origins, _ := r.seen(); len(origins) != 1 {
		t.Errorf("the relay took %+v", origins)
	}
	rules := "  tls: {mode: inspect, sni: {default: deny}, headers: [user-agent]}\n"
	m.apply(rules)
	pol, err := r.relay.Policy(m.att.Cookie)
	must(t, err)
	b, err := r.relay.Rules(pol.Revision)
	must(t, err)
	got, err := policy.ParseTLS(b)
	must(t, err)
	if got.TLS.SNI.Default != policy.VerdictDeny || !slices.Equal(got.TLS.Headers, []string{"user-agent"}) {
		t.Errorf("the relay reads %+v", got.TLS)
	}
	m.apply("  nonTCP: deny\n")
	wantBanner(t, "no TLS again", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	if origins, _ := r.seen(); len(origins) != 0 {
		t.Errorf("the relay took %+v", origins)
	}
	r.close()
	t.Setenv(cgroups.TLSSocketEnv, filepath.Join(t.TempDir(), "nobody"))
	if err := m.tryApply(tlsInspect); err == nil || !strings.Contains(err.Error(), "systemctl start sidegate-tls") {
		t.Errorf("applied without a relay: %v", err)
	}
	wantBanner(t, "as before", dial(t, m.app, "tcp", outside4+":80"), "outbound")
}

// keysOption is what a TLS library gives setsockopt(2).
func keysOption(version, cipher uint16, size int, fill byte) string {
	b := binary.NativeEndian.AppendUint16(nil, version)
	b = binary.NativeEndian.AppendUint16(b, cipher)
	for len(b) < size {
		b = append(b, fill)
	}
	return string(b)
}

// Keys of a connection through the relay are there when setsockopt returns, whatever the
// kernel says to them; those of others never.
func TestTLSKeys(t *testing.T) {
	m, r := newTLSPod(t, tlsInspect)
	const solTLS, tx, rx = 282, 1, 2
	id := m.open(m.app, outside4+":80")
	set := func(a *agent.Agent, id, name int, option string) agent.Answer {
		return a.Do(t, agent.Request{Op: "setsockopt", ID: id, Level: solTLS, Opt: name, Data: option})
	}
	r.mu.Lock()
	ring := r.listeners[m.att.Cookie].Keys
	r.mu.Unlock()
	take := func() (got []string) {
		ring.Take(func(h cgroups.HandedOver) {
			if h.PID != m.app.PID || !h.App.Addr().IsLoopback() {
				t.Errorf("handed over: %+v", h)
			}
			got = append(got, fmt.Sprintf("%v %s", h.RX, h.Bytes))
		})
		return got
	}
	want := func(what string, keys ...string) {
		t.Helper()
		if got := take(); !slices.Equal(got, keys) {
			t.Errorf("%s: the relay gets %q, want %q", what, got, keys)
		}
	}
	gcm128, gcm256 := keysOption(0x0304, 51, 40, 'a'), keysOption(0x0303, 52, 56, 'b')
	ccm, chacha := keysOption(0x0303, 53, 40, 'c'), keysOption(0x0304, 54, 56, 'd')
	for _, o := range []string{gcm128, gcm256, ccm, chacha} {
		set(m.app, id, tx, o)
		set(m.app, id, rx, o)
		want("two keys", "false "+o, "true "+o)
	}
	set(m.app, id, tx, gcm128)
	set(m.app, id, tx, gcm256)
	set(m.app, id, rx, ccm)
	want("in order", "false "+gcm128, "false "+gcm256, "true "+ccm)
	for what, o := range map[string]string{
		"short": gcm128[:39], "short for its cipher": gcm256[:40], "SM4": keysOption(0x0304, 55, 40, 'e'), "TLS 1.1": keysOption(0x0302, 51, 40, 'f'), "only a version": gcm128[:4],
	} {
		set(m.app, id, tx, o)
		want(what)
	}
	set(m.app, id, 3, gcm128) // no direction
	want("another option")

	// Others: a connection inside the pod, and the sidecar's.
	echoes(t, m.sidecar, "sidecar", "127.0.0.1:7000")
	inside := m.open(m.app, "127.0.0.1:7000")
	set(m.app, inside, tx, gcm128)
	want("inside the pod")
	listen(t, m.out, "outside", outside4+":81")
	own := m.open(m.sidecar, outside4+":81")
	set(m.sidecar, own, tx, gcm128)
	want("the sidecar's own")

	// One connection has no more keys than a session uses.
	refused := 0
	flood := func(id int) {
		for range 70 {
			if set(m.app, id, tx, gcm128).Err == "EPERM" {
				refused++
			}
		}
	}
	flood(id)
	if n := len(take()); refused == 0 || n+refused != 70 {
		t.Errorf("of 70 more keys of one connection %d were handed over, %d refused", n, refused)
	}
	// A ring that is full refuses, and takes again when there is room.
	before := refused
	for range 4 {
		flood(m.open(m.app, outside4+":80"))
	}
	if m.drops("app")["tls_keys"] != uint64(refused) || refused-before < 4*70-128 {
		t.Errorf("280 keys that nobody takes: %d refused, drops %v", refused-before, m.drops("app"))
	}
	if n := len(take()); n < 64 || n > 128 {
		t.Errorf("a full ring has %d keys", n)
	}
	id = m.open(m.app, outside4+":80")
	set(m.app, id, tx, chacha)
	want("after that", "false "+chacha)

	// What was taken is nowhere in the memory that was shared.
	for _, key := range []string{gcm128, gcm256, ccm, chacha} {
		if bytes.Contains(m.sharedMemory(), []byte(key[4:12])) {
			t.Errorf("keys of %q are there after they were taken", key[4:5])
		}
	}
	set(m.app, id, tx, gcm128)
	if !bytes.Contains(m.sharedMemory(), []byte(gcm128)) {
		t.Error("this test looks in the wrong place")
	}
	take()
}

// sharedMemory is all that the pod's ring has.
func (m *meshPod) sharedMemory() []byte {
	m.t.Helper()
	rings, err := ebpf.LoadPinnedMap(filepath.Join(cgroups.VersionDir(m.state), "maps", "tls_rings"), nil)
	must(m.t, err)
	defer rings.Close()
	var id uint32
	must(m.t, rings.Lookup(m.att.Cookie, &id))
	ring, err := ebpf.NewMapFromID(ebpf.MapID(id))
	must(m.t, err)
	defer ring.Close()
	b, err := ring.LookupBytes(uint32(0))
	must(m.t, err)
	return b
}

func mustAddrPort(t testing.TB, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	must(t, err)
	return a
}

// Where TLS is deferred, the relay has the connection to the server, and the sidecar goes on
// to the relay, for one session at a time.
func TestTLSDeferred(t *testing.T) {
	m, r := newTLSPod(t, "  tls: {mode: deferred}\n")
	r.mu.Lock()
	l := r.listeners[m.att.Cookie]
	r.mu.Unlock()
	ctx := t.Context()
	for _, ip := range []string{outside4, outside6} {
		to := mustAddrPort(t, net.JoinHostPort(ip, "80"))
		listen(t, m.out, "outside", to.String())
		c, err := l.DialServer(ctx, cgroups.TLSOrigin{Destination: to})
		must(t, err)
		var banner agent.Banner
		must(t, json.NewDecoder(c).Decode(&banner))
		must(t, c.Close())
		if banner.Name != "outside" {
			t.Errorf("the relay's connection to %s ends at %+v", to, banner)
		}

		target, err := l.Target(to.Addr())
		must(t, err)
		other, err := l.Target(to.Addr())
		must(t, err)
		if target.Destination == other.Destination || target.Destination.Addr() != to.Addr() {
			t.Errorf("targets are %s and %s", target.Destination, other.Destination)
		}
		dial(t, m.sidecar, "tcp", target.Destination.String())
		dial(t, m.app, "tcp", target.Destination.String())
		origins, _ := r.seen()
		if len(origins) != 2 || !origins[0].Sidecar || origins[1].Sidecar ||
			origins[0].Destination != target.Destination || origins[1].Destination != target.Destination {
			t.Errorf("sidecar and app connect to %s: %+v", target.Destination, origins)
		}
		if origins[0].PID != m.sidecar.PID {
			t.Errorf("process %d connected, not the sidecar's %d", origins[0].PID, m.sidecar.PID)
		}
		must(t, target.Close())
		listen(t, m.out, "outside", target.Destination.String())
		wantBanner(t, "the sidecar, when the session is over", dial(t, m.sidecar, "tcp", target.Destination.String()), "outside")
		if origins, _ := r.seen(); len(origins) != 0 {
			t.Errorf("the relay took %+v", origins)
		}
		must(t, other.Close())
	}
	// It reaches the outside by TCP, and is reached by nobody.
	for what, f := range map[string]func() error{
		"UDP": func() error {
			c, err := net.Dial("udp", outside4+":53")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		},
		"listens": func() error { _, err := net.Listen("tcp", pod4+":7000"); return err },
		"ping":    func() error { _, err := net.Dial("ip4:icmp", outside4); return err },
	} {
		if err := l.In(f); err == nil {
			t.Errorf("the relay %s", what)
		}
	}
	m.apply(tlsInspect)
	if c, err := l.DialServer(ctx, cgroups.TLSOrigin{Destination: mustAddrPort(t, outside4+":80")}); err == nil {
		t.Errorf("inspecting, the relay has a connection to %s", c.RemoteAddr())
	}
}
