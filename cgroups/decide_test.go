// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/bpf/verdicts"
	"sidegate/policy"
)

// decideCookie is of no namespace: nothing is attached.
const decideCookie = 1

// openStore returns a store of its own.
func openStore(tb testing.TB) (*Store, string) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: loads BPF programs")
	}
	state, err := os.MkdirTemp("/sys/fs/bpf", "sgtest-store-")
	must(tb, err)
	must(tb, os.Remove(state))
	tb.Cleanup(func() { must(tb, Unload(state, true)) })
	s, err := Open(state)
	must(tb, err)
	tb.Cleanup(func() { must(tb, s.Close()) })
	return s, state
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A court has the functions that decide in the kernel, on the maps of a store.
type court struct {
	store *Store
	judge *verdicts.Judge
}

func newCourt(tb testing.TB) *court {
	tb.Helper()
	s, state := openStore(tb)
	node := make(map[string]*ebpf.Map)
	for _, name := range bpf.MapNames() {
		m, err := ebpf.LoadPinnedMap(filepath.Join(VersionDir(state), "maps", name), nil)
		must(tb, err)
		tb.Cleanup(func() { must(tb, m.Close()) })
		node[name] = m
	}
	judge, err := verdicts.Load(node, decideCookie)
	must(tb, err)
	tb.Cleanup(judge.Close)
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		must(tb, s.maps.HostAddrs.Put(bpf.AddrFrom(netip.MustParseAddr(a)), uint8(1)))
	}
	return &court{s, judge}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

var (
	fewPorts = []uint16{1, 53, 80, 81, 443, 8000, 15001, 15006, 15053, 65535}
	fewAddrs = []string{"192.0.2.1", "192.0.2.7", "10.1.2.3", "10.200.0.1", "2001:db8::1", "2001:db8::7", "2001:db8:1::1", "fd00::1"}
)

// somePolicy writes a policy that has something of all that decisions go by.
func somePolicy(r *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\nmetadata: {name: random}\nspec:\n", policy.APIVersion, policy.Kind)
	fmt.Fprintf(&b, "  nonTCP: %s\n  init: %s\n  mode: %s\n", pick(r, "deny", "allow"), pick(r, "sidecar", "direct", "deny"), pick(r, "enforce", "enforce", "audit"))
	fmt.Fprintf(&b, "  redirect: {outbound: 15001, inbound: %s}\n", pick(r, "15006", "8000, dns: 15053", "15006, dns: 53"))
	fmt.Fprintf(&b, "  sidecarPorts: [%s]\n", pick(r, "15020", "80-81", "443, 8001"))
	ports := func(indent string) {
		if r.IntN(3) > 0 {
			fmt.Fprintf(&b, "%sports: [%s]\n", indent, pick(r, "80", "53", "1-80", "443, 8000", "15001-15100", "81-65535"))
		}
	}
	cidr := func() string {
		return pick(r, "192.0.2.0/24", "10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32", "2001:db8::/64", "::/0", "fd00::1/128")
	}
	fmt.Fprintf(&b, "  exclude:\n")
	for _, dir := range []string{"egress", "ingress"} {
		fmt.Fprintf(&b, "    %s:\n", dir)
		for range 1 + r.IntN(2) {
			fmt.Fprintf(&b, "    - cidr: %q\n      protocol: %s\n      ports: [%s]\n", cidr(), pick(r, "tcp", "udp", "any"), pick(r, "80", "1-443", "8000", "1-65535"))
		}
	}
	peer := func() string {
		return pick(r, "role: app", "role: sidecar", "role: init", "role: none", "container: web", "container: db", "entity: world", "entity: host",
			fmt.Sprintf("cidr: %q", cidr()), `cidr: "10.0.0.0/8", except: ["10.1.0.0/16"]`, `cidr: "0.0.0.0/0", except: ["192.0.2.0/30", "10.0.0.0/9"]`)
	}
	fmt.Fprintf(&b, "  rules:\n")
	subjects := []string{"role: app", "role: sidecar", "role: init", "role: none", "container: web", "container: db"}
	r.Shuffle(len(subjects), func(i, j int) { subjects[i], subjects[j] = subjects[j], subjects[i] })
	for _, s := range subjects[:r.IntN(len(subjects))] {
		fmt.Fprintf(&b, "  - %s\n", s)
		for _, dir := range [][2]string{{"egress", "to"}, {"ingress", "from"}} {
			fmt.Fprintf(&b, "    %s:", dir[0])
			n := r.IntN(5)
			if n == 0 {
				fmt.Fprintf(&b, " []")
			}
			fmt.Fprintln(&b)
			for range n {
				proto := pick(r, "tcp", "udp", "udp", "any", "any", "icmp", "icmpv6", "sctp")
				fmt.Fprintf(&b, "    - protocol: %s\n", proto)
				switch {
				case strings.HasPrefix(proto, "icmp"):
					fmt.Fprintf(&b, "      types: [%s]\n      %s: [{cidr: %q}]\n", pick(r, "8", "128", "3, 8"), dir[1], map[string]string{"icmp": "0.0.0.0/0", "icmpv6": "::/0"}[proto])
				case proto == "sctp":
					fmt.Fprintf(&b, "      %s: [{cidr: %q}]\n", dir[1], cidr())
					ports("      ")
				default:
					if r.IntN(5) > 0 {
						fmt.Fprintf(&b, "      %s: [{%s}, {%s}]\n", dir[1], peer(), peer())
					}
					ports("      ")
				}
			}
		}
	}
	if strings.HasSuffix(b.String(), "  rules:\n") {
		return strings.TrimSuffix(b.String(), "  rules:\n")
	}
	return b.String()
}

// A party is a container, or an address if that is valid.
type party struct {
	end  policy.Endpoint
	addr netip.Addr
	id   uint64
}

func (p party) asEnd() policy.End {
	if p.addr.IsValid() {
		return policy.Outside(p.addr)
	}
	return policy.Inside(p.end)
}

// FuzzDecide compares what explain says, of the tables in the kernel, with what the
// programs' own functions say that are asked there.
func FuzzDecide(f *testing.F) {
	c := newCourt(f)
	for seed := range uint64(60) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		text := somePolicy(r)
		list, err := policy.Parse("random", []byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		compiled, err := list[0].Compile()
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		pol, err := c.store.putRevision(compiled, 0, Source{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.store.deleteRevision(&pol.info); err != nil {
				t.Error(err)
			}
		}()
		tab := &tables{maps: c.store.maps, pol: pol}
		for range 100 {
			c.compare(t, r, tab)
		}
		if tab.err != nil {
			t.Error(tab.err)
		}
		if t.Failed() {
			t.Log(text)
		}
	})
}

// compare asks about one random connection.
func (c *court) compare(t *testing.T, r *rand.Rand, tab *tables) {
	t.Helper()
	some := func(id uint64) party {
		roles := []policy.Role{policy.RoleApp, policy.RoleApp, policy.RoleSidecar, policy.RoleInit, policy.RoleNone}
		return party{end: policy.Endpoint{Role: pick(r, roles...), Name: pick(r, "", "web", "db", "other")}, id: id}
	}
	from, to := some(1), some(2)
	outside := party{addr: netip.MustParseAddr(pick(r, fewAddrs...))}
	q := policy.Query{Proto: pick[uint8](r, unix.IPPROTO_TCP, unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6)}
	switch r.IntN(5) {
	case 0, 1:
		to = outside
	case 2:
		from = outside
	case 3:
		to, q.Same = from, true
	}
	q.From, q.To, q.Port = from.asEnd(), to.asEnd(), pick(r, fewPorts...)
	switch q.Proto {
	case unix.IPPROTO_ICMP: // not one that answers
		q.Port = pick[uint16](r, 3, 8, 13)
	case unix.IPPROTO_ICMPV6:
		q.Port = pick[uint16](r, 1, 128)
	}
	a := attempt{t: t, court: c, tab: tab, q: q}
	var got policy.Decision
	switch {
	case from.addr.IsValid():
		got = a.inbound(from, to)
	case to.addr.IsValid():
		got = a.outbound(from, to)
	default:
		got = a.inside(from, to)
	}
	if a.err != nil {
		t.Fatal(a.err)
	}
	if got.Reason != "" && tab.Settings().Mode == policy.ModeAudit {
		got.Allow, got.Audit = true, true
	}
	want := policy.Decide(tab, q)
	if got.Allow != want.Allow || got.Audit != want.Audit || got.Reason != want.Reason || got.Route != want.Route {
		t.Errorf("%s to %s, protocol %d, port %d: the programs say %+v, Decide says %+v", q.From, q.To, q.Proto, q.Port, got, want)
	}
}

// An attempt goes the way of a connection through the programs.
type attempt struct {
	t     *testing.T
	court *court
	tab   *tables
	q     policy.Query
	err   error
}

func (a *attempt) entry() verdicts.Policy {
	return *(*verdicts.Policy)(unsafe.Pointer(&a.tab.pol.entry)) // both are struct sg_policy
}

func (a *attempt) ask(name string, q *verdicts.Ask) {
	q.Policy = a.entry()
	a.err = errors.Join(a.err, a.court.judge.Ask(name, q))
}

// end is the container as programs see it, and its role.
func (a *attempt) end(p party) (verdicts.End, uint32) {
	role, err := bpfRole(p.end.Role, policy.InitMode(a.tab.pol.info.Init))
	a.err = errors.Join(a.err, err)
	q := verdicts.Ask{Container: verdicts.Container{
		NetnsCookie: decideCookie, CgroupId: p.id, Role: verdicts.Role(role), Subject: uint32(p.end.Role), Name: nameID(p.end.Name),
	}}
	a.ask("end", &q)
	return q.End, uint32(role)
}

// verdict runs a function of verdict.h and translates its answer.
func (a *attempt) verdict(name string, c verdicts.Case, route policy.Route) policy.Decision {
	c.Policy = a.entry()
	a.err = errors.Join(a.err, a.court.judge.Run(name, &c))
	switch c.Action {
	case verdicts.Allow:
		return policy.Decision{Allow: true, Route: route}
	case verdicts.Redirect:
		return policy.Decision{Allow: true, Route: policy.RouteRedirect}
	case verdicts.RedirectDNS:
		return policy.Decision{Allow: true, Route: policy.RouteDNS}
	}
	return policy.Decision{Reason: fmt.Sprint(bpf.Counter(c.Counter))}
}

// socket makes the socket. A raw one it may be of ICMP, if the container has
// rules; Decide is about the ordinary one.
func (a *attempt) socket(role uint32, end verdicts.End) policy.Decision {
	kind := map[uint8]uint32{unix.IPPROTO_TCP: unix.SOCK_STREAM, unix.IPPROTO_SCTP: unix.SOCK_STREAM}[a.q.Proto]
	if kind == 0 {
		kind = unix.SOCK_DGRAM
	}
	return a.verdict("socket", verdicts.Case{Role: role, Flags: end.Flags, ProcessOk: 1, Type: kind, Proto: uint32(a.q.Proto)}, policy.RouteNone)
}

// flow is what the exclusions and rules say of an address outside.
func (a *attempt) flow(end verdicts.End, dir policy.Dir, addr netip.Addr) verdicts.Flow {
	q := verdicts.Ask{}
	q.Addr.B = addr.As16()
	a.ask("peers", &q)
	q.Outside = verdicts.Outside{Peer: q.Peer, Dir: uint8(dir), Proto: a.q.Proto, Opening: 1, Port: a.q.Port}
	isICMP := a.q.Proto == unix.IPPROTO_ICMP || a.q.Proto == unix.IPPROTO_ICMPV6
	if isICMP {
		q.Outside.Opening = 0 // as the programs say
	}
	f := verdicts.Flow{Proto: a.q.Proto, Port: a.q.Port}
	a.ask("permits", &q)
	f.Excluded = uint8(q.Answer)
	if policyFlags(uint16(end.Flags))&policy.Ruled != 0 {
		q.HasSelf, q.Self = 1, end
		a.ask("permits", &q)
		f.Ruled, f.Permitted = 1, uint8(q.Answer)
	}
	return f
}

func (a *attempt) outbound(from, to party) policy.Decision {
	end, role := a.end(from)
	if d := a.socket(role, end); !d.Allow {
		return d
	}
	f := a.flow(end, policy.Egress, to.addr)
	name := "connect"
	if a.q.Proto == unix.IPPROTO_ICMP || a.q.Proto == unix.IPPROTO_ICMPV6 {
		name = "packet_out" // where the type is known
	}
	return a.verdict(name, verdicts.Case{Role: role, Flow: f}, policy.RouteDirect)
}

func (a *attempt) inside(from, to party) policy.Decision {
	end, role := a.end(from)
	if d := a.socket(role, end); !d.Allow {
		return d
	}
	other, _ := a.end(to)
	f := verdicts.Flow{Proto: a.q.Proto, Port: a.q.Port, Local: 1, LoopbackDevice: 1}
	switch a.q.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		q := verdicts.Ask{Inside: verdicts.InsideQuery{From: end, To: other, Revision: a.tab.pol.entry.Revision, Proto: a.q.Proto, Port: a.q.Port}}
		a.ask("inside", &q)
		f.Inside = uint8(q.Answer)
	case unix.IPPROTO_SCTP: // sg_flow_out and sg_arrives
		switch {
		case policyFlags(uint16(end.Flags))&policy.Ruled != 0:
			f.Inside = uint8(verdicts.InsideEgress)
		case policyFlags(uint16(other.Flags))&policy.Ruled != 0:
			f.Inside = uint8(verdicts.InsideIngress)
		}
	}
	return a.verdict("connect", verdicts.Case{Role: role, Flow: f}, policy.RouteLocal)
}

func (a *attempt) inbound(from, to party) policy.Decision {
	end, role := a.end(to)
	f := a.flow(end, policy.Ingress, from.addr)
	if a.q.Proto == unix.IPPROTO_TCP {
		c := verdicts.Case{Port: a.q.Port, FromOutside: 1, Excluded: f.Excluded, Policy: a.entry()}
		a.err = errors.Join(a.err, a.court.judge.Run("steer", &c))
		switch {
		case verdicts.Steer(c.Steer) == verdicts.SteerRefuse:
			return policy.Decision{Reason: policy.ReasonPort}
		case verdicts.Steer(c.Steer) == verdicts.SteerInbound && to.end.Role != policy.RoleSidecar:
			return policy.Decision{Allow: true, Route: policy.RouteSteered}
		}
	}
	return a.verdict("packet_in", verdicts.Case{Role: role, Flow: f}, policy.RouteDirect)
}
