// SPDX-License-Identifier: Apache-2.0

// Package graph draws who talks to whom: containers in their pods, what is outside, and what became of it.
package graph

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

// Kinds of edges.
const (
	Redirected = "redirected" // from an app to its sidecar, on the way to somewhere else
	Via        = "via"        // the rest of that way, from the sidecar to where the app wanted to
	Direct     = "direct"     // to or from outside, round the sidecar or by itself
	Local      = "local"      // inside the pod, UNIX sockets too
	Inbound    = "inbound"    // from outside to the sidecar
	Denied     = "denied"
	Audited    = "audited" // would have been denied
)

// Graph is what there is to draw. As JSON it is what `sidegate graph -o json` prints.
type Graph struct {
	Pods    []*Pod     `json:"pods"`
	Outside []*Outside `json:"outside"`
	Edges   []*Edge    `json:"edges"`
}

// Pod is a pod that has flows.
type Pod struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Containers []*Container `json:"containers"` // the sidecar last
}

// Container is one end of edges.
type Container struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Role string `json:"role,omitempty"`
	// Gone says that what was sent to it is known, and nothing else.
	Gone bool `json:"gone,omitempty"`
}

// title has the role, if there is one.
func (c *Container) title(between, after string) string {
	if c.Role == "" {
		return c.Name
	}
	return c.Name + between + c.Role + after
}

// Outside is an address, a network, or all that is left.
type Outside struct {
	ID      string       `json:"id"`
	Name    string       `json:"name,omitempty"` // of whom the address is
	Network netip.Prefix `json:"network,omitzero"`
	Caller  bool         `json:"caller,omitempty"` // it calls, and is not called
	More    int          `json:"more,omitempty"`   // addresses or networks, for which there is no room
	Count   uint64       `json:"count"`
}

// Edge is all of a kind between two ends.
type Edge struct {
	From   string   `json:"from,omitempty"` // ids
	To     string   `json:"to,omitempty"`   // empty, as From may be: nobody in particular
	Kind   string   `json:"kind"`
	Reason string   `json:"reason"`
	Text   string   `json:"text"` // the same in words
	Ports  []string `json:"ports,omitempty"`
	Count  uint64   `json:"count"`
	// Accepted is how many of those the sidecar took. Carried is how often it connected there itself, of via; a sidecar
	// without rules is not watched, and Watched is false then.
	Accepted uint64    `json:"accepted,omitempty"`
	Carried  uint64    `json:"carried,omitempty"`
	Watched  bool      `json:"watched,omitempty"`
	By       []string  `json:"by,omitempty"` // apps: of via
	Last     time.Time `json:"last,omitzero"`

	flows  int // that are in it
	ports  map[string]uint64
	shared bool // other apps of the pod are redirected too
}

// Options say how much is shown.
type Options struct {
	// Max is how many addresses outside are shown. 0: all.
	Max int
	// Bits4 and Bits6 are lengths of the prefixes by which addresses are put together. 0: they are not.
	Bits4, Bits6 int
}

const (
	roleSidecar = "sidecar"
	egress      = "egress"
	unixProto   = "unix"
	// nobody has what is no container's.
	nobody = "unregistered processes"
)

// outsideKey is what becomes one node.
type outsideKey struct {
	network netip.Prefix
	caller  bool
}

// service is where a sidecar carries connections to.
type service struct {
	pod, port string
	addr      netip.Addr
}

type edgeKey struct{ from, to, kind, reason string }

type builder struct {
	Options
	pods       map[string]*Pod
	containers map[[2]string]*Container // by pod and name
	outside    map[outsideKey]*Outside
	edges      map[edgeKey]*Edge
	via        map[service]*Edge
	inside     map[service]*Edge // to sidecars, without an address
	watched    map[string]bool   // sidecars whose own connections are told
}

// Build makes the graph of flows. The same flows in any order make the same graph.
func Build(flows []cgroups.Flow, o Options) *Graph {
	b := &builder{
		Options: o, pods: make(map[string]*Pod), containers: make(map[[2]string]*Container),
		outside: make(map[outsideKey]*Outside), edges: make(map[edgeKey]*Edge), via: make(map[service]*Edge),
		inside: make(map[service]*Edge), watched: make(map[string]bool),
	}
	flows = slices.SortedFunc(slices.Values(flows), compareFlows)
	g := &Graph{Pods: []*Pod{}}
	b.addContainers(flows)
	for _, name := range slices.Sorted(maps.Keys(b.pods)) {
		g.Pods = append(g.Pods, b.pods[name])
	}
	g.Outside = b.addOutside(flows)
	number(g)
	var rest []cgroups.Flow
	for _, f := range flows {
		if !b.addRedirected(f) {
			rest = append(rest, f)
		}
	}
	accepts := b.acceptors(rest)
	for _, f := range rest {
		if !isAccept(f) {
			b.add(f, accepts)
		}
	}
	for _, f := range rest { // of what was called by then
		if isAccept(f) {
			b.addAccept(f)
		}
	}
	g.Edges = b.sortedEdges()
	return g
}

// Name gives names to the addresses that are shown. Those for which of is empty have none.
func (g *Graph) Name(of func(netip.Addr) string) {
	for _, o := range g.Outside {
		if o.More == 0 && o.Network.IsSingleIP() {
			o.Name = text.Clean(of(o.Network.Addr()))
		}
	}
}

func compareFlows(a, b cgroups.Flow) int {
	return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Direction, b.Direction),
		cmp.Compare(a.Peer, b.Peer), a.Address.Compare(b.Address), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.Count, b.Count))
}

// number gives ids, which are safe in all formats.
func number(g *Graph) {
	n := 0
	for i, p := range g.Pods {
		p.ID = fmt.Sprintf("p%d", i)
		for _, c := range p.Containers {
			c.ID = fmt.Sprintf("c%d", n)
			n++
		}
	}
	for i, o := range g.Outside {
		o.ID = fmt.Sprintf("o%d", i)
	}
}

func (b *builder) addContainers(flows []cgroups.Flow) {
	for _, f := range flows {
		c := b.container(f.Pod, cmp.Or(f.Container, nobody))
		c.Role = cmp.Or(f.Role, c.Role)
	}
	for _, f := range flows {
		if f.Peer != "" {
			b.container(f.Pod, f.Peer)
		}
		if isRedirected(f) && b.sidecar(f.Pod) == nil {
			c := b.container(f.Pod, roleSidecar)
			c.Role, c.Gone = roleSidecar, true
		}
	}
	for _, p := range b.pods {
		slices.SortFunc(p.Containers, func(x, y *Container) int {
			return cmp.Or(cmp.Compare(order(x), order(y)), cmp.Compare(x.Name, y.Name))
		})
	}
}

// order of containers from top to bottom.
func order(c *Container) int {
	switch {
	case c.Role == roleSidecar:
		return 3
	case c.Name == nobody:
		return 2
	case c.Role == "app":
		return 0
	}
	return 1
}

func (b *builder) container(pod, name string) *Container {
	key := [2]string{pod, name}
	if c := b.containers[key]; c != nil {
		return c
	}
	p := b.pods[pod]
	if p == nil {
		p = &Pod{Name: text.Clean(pod)}
		b.pods[pod] = p
	}
	c := &Container{Name: text.Clean(name)}
	b.containers[key], p.Containers = c, append(p.Containers, c)
	return c
}

func (b *builder) sidecar(pod string) *Container {
	for _, c := range b.pods[pod].Containers {
		if c.Role == roleSidecar {
			return c
		}
	}
	return nil
}

// isRedirected tells whether a flow is of an app on its way outside by its sidecar.
func isRedirected(f cgroups.Flow) bool { return f.Verdict == cgroups.Redirected && f.Address.IsValid() }

// isOutside tells whether a flow has an end that is no container's of the pod.
func isOutside(f cgroups.Flow) bool {
	return f.Address.IsValid() && !f.Address.IsLoopback() && (f.Peer == "" || f.Reason == acceptedOutbound) && f.Reason != "local"
}

const acceptedOutbound = "accepted_outbound"

func (b *builder) key(f cgroups.Flow) outsideKey {
	bits := f.Address.BitLen()
	switch {
	case f.Address.Is4() && b.Bits4 > 0:
		bits = b.Bits4
	case f.Address.Is6() && b.Bits6 > 0:
		bits = b.Bits6
	}
	p, err := f.Address.Prefix(bits)
	if err != nil { // an address with a zone has none
		p = netip.PrefixFrom(f.Address.WithZone(""), f.Address.BitLen())
	}
	return outsideKey{p, f.Direction != egress && f.Reason != acceptedOutbound}
}

// addOutside makes the nodes outside: those that have most, and what stands for all others.
func (b *builder) addOutside(flows []cgroups.Flow) []*Outside {
	pod := make(map[*Outside]string) // that has it first
	for _, f := range flows {
		if !isOutside(f) {
			continue
		}
		k := b.key(f)
		o := b.outside[k]
		if o == nil {
			o = &Outside{Network: k.network, Caller: k.caller}
			b.outside[k], pod[o] = o, f.Pod
		}
		o.Count += f.Count
	}
	list := slices.SortedFunc(maps.Values(b.outside), func(x, y *Outside) int {
		return cmp.Or(cmp.Compare(y.Count, x.Count), compareCallers(x, y), x.Network.Addr().Compare(y.Network.Addr()))
	})
	if b.Max > 0 && len(list) > b.Max {
		var callers, callees Outside
		for _, o := range list[b.Max:] {
			more := &callees
			if o.Caller {
				more = &callers
			}
			more.Caller, more.More, more.Count = o.Caller, more.More+1, more.Count+o.Count
			b.outside[outsideKey{o.Network, o.Caller}] = more
		}
		list = list[:b.Max]
		for _, more := range []*Outside{&callers, &callees} {
			if more.More > 0 {
				list = append(list, more)
			}
		}
	}
	slices.SortStableFunc(list, func(x, y *Outside) int {
		return cmp.Or(compareCallers(x, y), cmp.Compare(min(x.More, 1), min(y.More, 1)), cmp.Compare(pod[x], pod[y]))
	})
	return list
}

func compareCallers(x, y *Outside) int {
	switch {
	case x.Caller == y.Caller:
		return 0
	case x.Caller:
		return -1
	}
	return 1
}

// addRedirected adds both parts of the way of what goes by the sidecar.
func (b *builder) addRedirected(f cgroups.Flow) bool {
	asked, accepted := f.Count, uint64(0)
	app := f.Container
	switch {
	case isRedirected(f):
	case f.Reason == acceptedOutbound && f.Address.IsValid():
		asked, accepted, app = 0, f.Count, f.Peer
	default:
		return false
	}
	sidecar := b.sidecar(f.Pod)
	if f.Role == roleSidecar {
		sidecar = b.container(f.Pod, f.Container)
	}
	if sidecar == nil {
		return false
	}
	reason := f.Reason
	if reason == acceptedOutbound {
		reason = "redirected"
	}
	to, port := b.outside[b.key(f)], portOf(f)
	if to == nil { // inside the pod
		return false
	}
	var legs []*Edge
	if app != "" {
		legs = append(legs, b.edge(b.container(f.Pod, app).ID, sidecar.ID, Redirected, reason))
	}
	via := b.edge(sidecar.ID, to.ID, Via, reason)
	b.via[service{f.Pod, port, f.Address}] = via
	if app = text.Clean(app); app != "" && !slices.Contains(via.By, app) {
		via.By = append(via.By, app)
		slices.Sort(via.By)
	}
	for _, e := range append(legs, via) {
		e.note(f, asked)
		e.Accepted += accepted
	}
	return true
}

// isAccept tells whether a flow is the sidecar's end of one inside the pod.
func isAccept(f cgroups.Flow) bool {
	return f.Reason == "accepted_inbound" && !isOutside(f) && f.Peer == ""
}

// acceptors are who took connections from inside the pod, by port. Who calls by loopback is told nobody's name.
func (b *builder) acceptors(flows []cgroups.Flow) map[service]string {
	list := make(map[service]string)
	for _, f := range flows {
		if isAccept(f) {
			list[service{pod: f.Pod, port: portOf(f)}] = b.container(f.Pod, cmp.Or(f.Container, nobody)).ID
		}
	}
	return list
}

// add adds what is neither on its way by the sidecar nor an accept.
func (b *builder) add(f cgroups.Flow, accepts map[service]string) {
	self := b.container(f.Pod, cmp.Or(f.Container, nobody)).ID
	if f.Role == roleSidecar && f.Direction == egress && isOutside(f) {
		b.watched[self] = true
		if via := b.via[service{f.Pod, portOf(f), f.Address}]; via != nil && via.From == self && f.Verdict == cgroups.Allowed {
			via.note(f, 0)
			via.Carried += f.Count
			return
		}
	}
	other, calls, here := "", f.Direction != egress, service{pod: f.Pod, port: portOf(f)}
	switch {
	case isOutside(f):
		o := b.outside[b.key(f)]
		other, calls = o.ID, o.Caller
	case f.Peer != "":
		other = b.container(f.Pod, f.Peer).ID
	case f.Reason == "local":
		other = accepts[here]
	}
	from, to := self, other
	if calls {
		from, to = to, from
	}
	e := b.edge(from, to, kindOf(f), f.Reason)
	e.note(f, f.Count)
	if e.Kind == Local && b.inside[here] == nil && to != "" && from != "" {
		b.inside[here] = e
	}
}

// addAccept adds the other end to what has been added, if it has.
func (b *builder) addAccept(f cgroups.Flow) {
	self := b.container(f.Pod, cmp.Or(f.Container, nobody)).ID
	if e := b.inside[service{pod: f.Pod, port: portOf(f)}]; e != nil && e.To == self {
		e.note(f, 0)
		e.Accepted += f.Count
		return
	}
	b.edge("", self, kindOf(f), f.Reason).note(f, f.Count)
}

func kindOf(f cgroups.Flow) string {
	switch {
	case f.Verdict == cgroups.Denied:
		return Denied
	case f.Verdict == cgroups.Audited:
		return Audited
	case !isOutside(f):
		return Local
	case f.Direction != egress && f.Role == roleSidecar:
		return Inbound
	}
	return Direct
}

func (b *builder) edge(from, to, kind, reason string) *Edge {
	k := edgeKey{from, to, kind, reason}
	e := b.edges[k]
	if e == nil {
		e = &Edge{From: from, To: to, Kind: kind, Reason: text.Clean(reason), Text: cgroups.ReasonText(reason), ports: make(map[string]uint64)}
		b.edges[k] = e
	}
	return e
}

// note counts a flow in.
func (e *Edge) note(f cgroups.Flow, count uint64) {
	e.flows++
	e.Count += count
	if f.Last.After(e.Last) {
		e.Last = f.Last
	}
	if p := portOf(f); p != "" {
		e.ports[p] += f.Count
	}
}

// portOf is what was called: tcp/443, and of ICMP its type.
func portOf(f cgroups.Flow) string {
	p := text.Clean(f.Protocol)
	if p == unixProto || f.Port == 0 && !strings.HasPrefix(p, "icmp") {
		return p
	}
	return strings.TrimPrefix(p+"/"+strconv.Itoa(int(f.Port)), "/")
}

func (b *builder) sortedEdges() []*Edge {
	list := slices.AppendSeq([]*Edge{}, maps.Values(b.edges))
	apps := make(map[string]map[string]bool) // by sidecar
	for _, e := range list {
		if e.Kind == Redirected {
			if apps[e.To] == nil {
				apps[e.To] = make(map[string]bool)
			}
			apps[e.To][e.From] = true
		}
	}
	for _, e := range list {
		e.Watched = e.Kind == Via && b.watched[e.From]
		e.shared = e.Kind == Via && len(e.By) > 0 && len(apps[e.From]) > 1
		e.Ports = slices.SortedFunc(maps.Keys(e.ports), func(x, y string) int {
			return cmp.Or(cmp.Compare(e.ports[y], e.ports[x]), cmp.Compare(x, y))
		})
	}
	slices.SortFunc(list, func(x, y *Edge) int {
		return cmp.Or(compareIDs(x.From, y.From), compareIDs(x.To, y.To), cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Reason, y.Reason))
	})
	return list
}

// compareIDs has c2 before c10.
func compareIDs(x, y string) int {
	if x == "" || y == "" || x[0] != y[0] {
		return cmp.Compare(x, y)
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y))
}

// times is how often it happened.
func (e *Edge) times() uint64 { return max(e.Count, e.Accepted) }

// bad tells whether it was, or would be, against the policy.
func (e *Edge) bad() bool { return e.Kind == Denied || e.Kind == Audited }

// maxPorts is how many are in a label.
const maxPorts = 3

// label is short: what was called, and how often.
func (e *Edge) label() string {
	ports := strings.Join(e.Ports[:min(len(e.Ports), maxPorts)], " ")
	if more := len(e.Ports) - maxPorts; more > 0 {
		ports += fmt.Sprintf(" +%d", more)
	}
	if e.Kind == Redirected { // the other part of the way has them
		ports = "to the outside"
		if e.Reason == "dns_redirected" {
			ports = "DNS"
		}
	}
	s := strings.TrimSpace(fmt.Sprintf("%s ×%s", ports, short(e.times())))
	if e.shared {
		s += " · " + strings.Join(e.By, ", ")
	}
	return s
}

// why is what a label says of what was denied.
func (e *Edge) why() string {
	if !e.bad() {
		return ""
	}
	return cmp.Or(e.Text, e.Reason)
}

// short writes 1234567 as 1.2M.
func short(n uint64) string {
	switch {
	case n < 10_000:
		return strconv.FormatUint(n, 10)
	case n < 1_000_000:
		return fmt.Sprintf("%dk", n/1000)
	case n < 1_000_000_000:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1fG", float64(n)/1e9)
}

// Title is what an outside node is called, and Subtitle what is left to say.
func (o *Outside) Title() string {
	if o.More > 0 {
		return fmt.Sprintf("… and %d more", o.More)
	}
	return cmp.Or(o.Name, o.address())
}

// Subtitle is empty where Title says all.
func (o *Outside) Subtitle() string {
	if o.More > 0 || o.Name == "" {
		return ""
	}
	return o.address()
}

func (o *Outside) address() string {
	if o.Network.IsSingleIP() {
		return o.Network.Addr().String()
	}
	return o.Network.String()
}
