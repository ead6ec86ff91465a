// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidegate/policy"
)

// The policies of pods that Sidegate redirects: without acceleration, which some have by themselves, and with as much as there is.
const (
	redirectName    = "bench-redirect"
	acceleratedName = "bench-accelerated"
)

// acceleratedPolicy is policyHead with acceleration. Its error says why there is none.
func acceleratedPolicy() (string, error) {
	text := policyHead(acceleratedName) + "  accelerate: on\n"
	if _, err := policy.Parse("bench.yaml", []byte(text)); err != nil {
		return "", fmt.Errorf("policies of this build cannot ask for it: %w", err)
	}
	return text, nil
}

// redirectPolicy is policyHead without.
func redirectPolicy() string {
	text := policyHead(redirectName)
	if _, err := acceleratedPolicy(); err == nil {
		text += "  accelerate: off\n"
	}
	return text
}

// writePolicy puts a policy where the hook looks for it.
func (w *world) writePolicy(name, text string) error {
	return os.WriteFile(filepath.Join(w.dir, "policies", name+".yaml"), []byte(text), 0o644)
}

// A plane is the pods that the data plane is measured with. Those that have a relay are of this kind alone; HAProxy's are shared.
type plane struct {
	t       *traffic
	e       *env
	softirq softirq
	sites   map[string]site
	proxied map[string]site // with HAProxy
	notes   []string
	passed  map[string][]float64 // of loads where it is accelerated: bytes a request that its device carried all the same
}

// A site is where a setup is.
type site struct {
	pod *pod
	// Where the client connects to for the upstream, and for a sidecar that answers itself; "" if there is no such thing.
	to, own string
	carries bool // the sidecar does
}

// loopEnv is the environment of agents that have a loop.
var loopEnv = []string{"GOGC=off", "GOMAXPROCS=4"}

// newPlane starts the pods. What of it is in t when it fails is closed with t.
func newPlane(ctx context.Context, e *env, t *traffic) (*plane, error) {
	p := &plane{t: t, e: e, sites: map[string]site{}, proxied: map[string]site{}, passed: map[string][]float64{}}
	var err error
	if p.softirq, err = findSoftirq(); err != nil {
		return nil, err
	}
	if t.upstream, err = t.w.agent(t.out.cgroup, t.out.netns, 0, loopEnv...); err != nil {
		return nil, err
	}
	if _, err := t.upstream.do(order{Op: "upstream", Addr: at(outsideIP, upstreamPort)}); err != nil {
		return nil, err
	}
	sides := trafficSides
	text, why := acceleratedPolicy()
	if why == nil {
		sides = append(sides[:len(sides):len(sides)], sideAccelerated)
		if err := t.w.writePolicy(acceleratedName, text); err != nil {
			return nil, err
		}
		if err := t.haproxy(ctx, sideAccelerated); err != nil {
			return nil, fmt.Errorf("%s: %w", sideAccelerated, err)
		}
	} else {
		p.note("%s is left out: %v", setupAccelerated, why)
	}
	relays := map[string]*pod{}
	for _, side := range sides {
		if relays[side], err = t.pod(ctx, "relay, "+side, side, loopEnv...); err != nil {
			return nil, fmt.Errorf("%s: %w", side, err)
		}
		if _, err := relays[side].sidecar.do(order{Op: "relay", Addr: at(outsideIP, upstreamPort)}); err != nil {
			return nil, fmt.Errorf("%s: %w", side, err)
		}
	}
	web := "http://" + at(outsideIP, httpPort)
	through := at(outsideIP, upstreamPort)
	plain := relays[sideNone]
	p.sites[setupDirect] = site{pod: plain, to: through}
	p.sites[setupExplicit] = site{pod: plain, to: at("127.0.0.1", relayPort), own: at("127.0.0.1", relayOwnPort), carries: true}
	p.sites[setupUnix] = site{pod: plain, to: relayUnix, own: relayOwnUnix, carries: true}
	p.proxied[setupDirect] = site{pod: t.pods[sideNone], to: web}
	p.proxied[setupExplicit] = site{pod: t.pods[sideNone], to: "http://" + at("127.0.0.1", directTo), carries: true}
	for setup, side := range map[string]string{setupIptables: sideIptables, setupRedirect: sideSidegate, setupAccelerated: sideAccelerated} {
		if relays[side] != nil {
			p.sites[setup] = site{pod: relays[side], to: through, own: at(outsideIP, ownPort), carries: true}
			p.proxied[setup] = site{pod: t.pods[side], to: web, carries: true}
		}
	}
	return p, nil
}

func (p *plane) note(format string, args ...any) {
	p.notes = append(p.notes, "data plane: "+fmt.Sprintf(format, args...))
}

// present lists those setups that there are, in their order.
func present(sites map[string]site, has func(site) bool) (list []string) {
	for _, s := range setups {
		if at, ok := sites[s]; ok && has(at) {
			list = append(list, s)
		}
	}
	return list
}

// A relayLoad is a load that is made by a client, with a relay for a sidecar.
type relayLoad struct {
	name, kind   string
	sizes, conns []int
	quick        []dose // of these instead
}

var relayLoads = []relayLoad{
	{
		name: loadRequest, kind: kindEcho, sizes: []int{64, 1 << 10, 16 << 10}, conns: []int{1, 5, 50, 100, 1000},
		quick: []dose{{"", 64, 1}, {"", 64, 50}, {"", 1 << 10, 1000}, {"", 16 << 10, 50}},
	},
	{name: loadHop, kind: kindEcho, sizes: []int{64, 16 << 10}, conns: []int{1, 50}, quick: []dose{{"", 64, 1}}},
	{name: loadConnect, kind: kindPage, sizes: []int{pageSize}, conns: []int{1, 50}, quick: []dose{{"", pageSize, 50}}},
	{name: loadUp, kind: kindUp, sizes: []int{1 << 20}, conns: []int{1, 4}, quick: []dose{{"", 1 << 20, 1}}},
	{name: loadDown, kind: kindDown, sizes: []int{1 << 20}, conns: []int{1, 4}, quick: []dose{{"", 1 << 20, 1}}},
	{name: loadMixed, kind: kindMixed, sizes: []int{0}, conns: []int{50}, quick: []dose{{"", 0, 50}}},
}

func (l *relayLoad) doses(quick bool) (list []dose) {
	if quick {
		list = append(list, l.quick...)
	} else {
		for _, size := range l.sizes {
			for _, conns := range l.conns {
				list = append(list, dose{size: size, conns: conns})
			}
		}
	}
	for i := range list {
		list[i].load = l.name
	}
	return list
}

// wanted are those that -loads selects.
func (e *env) wanted(doses []dose) []dose {
	return slices.DeleteFunc(doses, func(d dose) bool { return !e.loads.MatchString(d.String()) })
}

const (
	pointRounds      = 9
	pointRoundsQuick = 3
)

// pace is how many rounds there are of a point, and how long one lasts.
func (e *env) pace() (rounds int, each time.Duration) {
	if e.quick {
		return pointRoundsQuick, 100 * time.Millisecond
	}
	return pointRounds, 250 * time.Millisecond
}

// measureHop times the hop from app over sidecar to upstream with programs that do next to nothing else.
func measureHop(_ context.Context, p *plane, c *collection) error {
	rounds, each := p.e.pace()
	for _, l := range relayLoads {
		has := func(s site) bool { return l.name != loadHop || s.own != "" }
		for _, d := range p.e.wanted(l.doses(p.e.quick)) {
			p.t.w.logf("hop: %s", d)
			c.measure(d, present(p.sites, has), rounds, func(setup string, warm bool) (sample, error) {
				o := order{Kind: l.kind, Size: max(d.size, 1), Workers: d.conns, For: each, Addr: p.sites[setup].to}
				if l.name == loadHop {
					o.Addr = p.sites[setup].own
				}
				if warm {
					o.For /= 4
				}
				return p.relayed(setup, l.name, o)
			})
		}
	}
	for _, l := range relayLoads {
		if on := p.passed[l.name]; len(on) > 0 {
			p.note("%s of %s: %.0f bytes a request passed the pod's loopback device", setupAccelerated, l.name, median(on))
		}
	}
	p.note("the sidecar of request/response and the rest is a relay of one thread with epoll, as are client and upstream; %s; \"%s\" is the hop from the app to the sidecar alone",
		p.t.iptables, loadHop)
	p.note("rates of bulk are MiB/s, and its request is 1 MiB; of ten mixed connections six send 64 bytes, two 1 KiB, one 16 KiB, and one is new for each request")
	p.note("CPU is what client, sidecar and upstream took (cpu.stat of their cgroups, in which the work that packets make in the kernel is theirs), and %s; not the machine's /proc/stat, which has other people's work in it", p.softirq)
	return nil
}

// relayed makes load at a setup once: the connections are opened before, and closed after.
func (p *plane) relayed(setup, load string, o order) (got sample, err error) {
	s := p.sites[setup]
	before, err := s.pod.sidecar.do(order{Op: "relayed"})
	if err != nil {
		return got, err
	}
	o.Op = "open"
	defer func() {
		_, cerr := s.pod.app.do(order{Op: "close"})
		err = errors.Join(err, cerr)
	}()
	if _, err := s.pod.app.do(o); err != nil {
		return got, err
	}
	o.Op = "run"
	if o.Kind == kindEcho {
		warm := o
		warm.For /= 8
		if _, err := s.pod.app.do(warm); err != nil {
			return got, err
		}
	}
	a, cpu, lo, err := p.count(s.pod, func() (answer, error) { return s.pod.app.do(o) })
	if err != nil {
		return got, err
	}
	after, err := s.pod.sidecar.do(order{Op: "relayed"})
	if err != nil {
		return got, err
	}
	want := int64(0)
	if s.carries {
		want = a.Opened
	}
	if n := after.Done - before.Done; n != want {
		return got, fmt.Errorf("the sidecar carried %d of %d connections", n, want)
	}
	done := float64(a.Done)
	if o.Kind == kindUp || o.Kind == kindDown {
		done /= 1 << 20
	}
	if done == 0 {
		return got, errors.New("nothing was done")
	}
	if setup == setupAccelerated {
		p.passed[load] = append(p.passed[load], lo/done)
		if o.Kind == kindEcho {
			if err := isAccelerated(lo/done, o.Size); err != nil {
				return got, err
			}
		}
	}
	return sample{rate: done / a.Took, cpu: cpu / done * 1e6}, nil
}

// isAccelerated is an error if requests of a size have passed the pod's loopback device: whatever accelerates keeps them off it. What sets up
// connections stays there, and what has to.
func isAccelerated(passed float64, size int) error {
	if passed > float64(size) {
		return fmt.Errorf("it is not accelerated: %.0f bytes a request passed the loopback device", passed)
	}
	return nil
}

// count returns what an order took of CPU time, in seconds, of the pod and the outside, and of the kernel's softirq threads; and how many
// bytes the pod's loopback device carried.
func (p *plane) count(on *pod, do func() (answer, error)) (a answer, cpu, lo float64, err error) {
	read := func() (float64, error) {
		used, err := cpuUsage(on.cgroup, p.t.out.cgroup)
		if err != nil {
			return 0, err
		}
		soft, err := p.softirq.seconds()
		return used + soft, err
	}
	carried, err := on.loopback()
	if err != nil {
		return a, 0, 0, err
	}
	before, err := read()
	if err != nil {
		return a, 0, 0, err
	}
	if a, err = do(); err != nil {
		return a, 0, 0, err
	}
	after, err := read()
	if err != nil {
		return a, 0, 0, err
	}
	now, err := on.loopback()
	return a, after - before, float64(now - carried), err
}

// loopback returns how many bytes the pod's loopback device has carried.
func (p *pod) loopback() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", p.app.pid()))
	if err != nil {
		return 0, err
	}
	return deviceBytes(string(b), "lo")
}

// deviceBytes finds what a device has received in a listing of /proc/net/dev.
func deviceBytes(listing, dev string) (int64, error) {
	for line := range strings.Lines(listing) {
		if name, counts, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == dev {
			if f := strings.Fields(counts); len(f) > 0 {
				return strconv.ParseInt(f[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no counts of device %s", dev)
}

// A softirq is the kernel's threads for packets that were too many for whoever sent or received them: their time is in nobody's cgroup.
type softirq struct{ files []string }

func findSoftirq() (s softirq, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return s, err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && strings.HasPrefix(string(b), "ksoftirqd/") { // else it has ended
			s.files = append(s.files, filepath.Join(filepath.Dir(name), "schedstat"))
		}
	}
	return s, nil
}

// seconds is their time so far.
func (s softirq) seconds() (total float64, err error) {
	for _, name := range s.files {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		ns, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseUint(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		total += float64(n) / 1e9
	}
	return total, nil
}

func (s softirq) String() string {
	if len(s.files) == 0 {
		return "nothing of softirq threads, which are not to be seen here"
	}
	return fmt.Sprintf("all of %d ksoftirqd threads", len(s.files))
}
