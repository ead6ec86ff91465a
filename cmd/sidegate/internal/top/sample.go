// SPDX-License-Identifier: Apache-2.0

// Package top is what `sidegate top` shows: a table of pods with their rates, and one pod closely.
package top

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

// Sample is what was read at once.
type Sample struct {
	At     time.Time
	Status cgroups.Status
	Flows  []cgroups.Flow // if they were asked for
	Err    error          // then it has nothing else
}

// rate is a count, and how fast it grows, a second.
type rate struct {
	total uint64
	per   float64
	known bool // there is an earlier sample
}

func (r rate) plus(o rate) rate {
	return rate{r.total + o.total, r.per + o.per, r.known || o.known}
}

// containerRow is one container.
type containerRow struct {
	name, role  string
	pid         int
	connections rate
	denied      rate
	bytes       rate
	notes       string // what is wrong with it, or why it is not accelerated
}

// row is one pod.
type row struct {
	cookie      uint64
	name        string
	policy      string
	mode        string
	revision    uint32
	listening   bool
	closed      bool // under the policy of those that are refused
	connections rate
	denied      rate
	audited     rate
	bytes       rate
	fast        float64 // share of connections inside the pod that are accelerated, or -1
	drops       []drop
	containers  []containerRow
}

type drop struct {
	reason, words string
	count         uint64
}

// reason is the most frequent one, in words.
func (r *row) reason() string {
	if len(r.drops) == 0 {
		return ""
	}
	return r.drops[0].words
}

// connectionCounters count connections where they begin, and those from outside where the sidecar takes them; so what
// calls a port of the sidecar's own, inside the pod, is counted at both ends.
func connectionCounters() []string {
	return []string{"redirected", "dns_redirected", "direct", "local", "accepted_inbound"}
}

func sum(counters map[string]uint64, names ...string) (n uint64) {
	for _, name := range names {
		n += counters[name]
	}
	return n
}

func total(counters map[string]uint64) (n uint64) {
	for _, v := range counters {
		n += v
	}
	return n
}

// A basis is the sample before.
type basis struct {
	seconds    float64 // 0: there is none
	containers map[uint64]cgroups.ContainerStatus
	pods       map[uint64]cgroups.PodStatus
}

func newBasis(before, now *Sample) basis {
	b := basis{containers: make(map[uint64]cgroups.ContainerStatus), pods: make(map[uint64]cgroups.PodStatus)}
	if before == nil || !before.Status.Loaded {
		return b
	}
	b.seconds = now.At.Sub(before.At).Seconds()
	for _, p := range before.Status.Pods {
		b.pods[p.Cookie] = p
		for _, c := range p.Containers {
			b.containers[c.CgroupID] = c
		}
	}
	return b
}

// rate is how fast a counter grows. One that went back began again: nothing is known of its rate then.
func (b *basis) rate(before, now uint64) rate {
	if b.seconds <= 0 {
		return rate{total: now}
	}
	if now < before {
		return rate{total: now, known: true}
	}
	return rate{now, float64(now-before) / b.seconds, true}
}

// rowsOf are the pods of a sample, with rates since the one before, which may be nil.
func rowsOf(before, now *Sample) []row {
	b := newBasis(before, now)
	list := make([]row, 0, len(now.Status.Pods))
	for i := range now.Status.Pods {
		list = append(list, b.row(&now.Status.Pods[i]))
	}
	return list
}

func (b *basis) row(p *cgroups.PodStatus) row {
	old := b.pods[p.Cookie]
	r := row{
		cookie: p.Cookie, name: cmp.Or(text.Clean(p.Pod), "-"), policy: text.Clean(p.Policy), mode: p.Mode, revision: p.Revision,
		listening: p.Listening, closed: p.Policy == cgroups.RefusedPolicy, fast: -1,
		denied:  b.rate(total(old.Drops), total(p.Drops)),
		audited: b.rate(sum(old.Counters, "audited"), sum(p.Counters, "audited")),
	}
	drops := maps.Clone(p.Drops)
	if drops == nil {
		drops = make(map[string]uint64)
	}
	var fast, could uint64
	for i := range p.Containers {
		c := &p.Containers[i]
		row, audited := b.container(c)
		r.containers = append(r.containers, row)
		r.connections, r.denied, r.bytes = r.connections.plus(row.connections), r.denied.plus(row.denied), r.bytes.plus(row.bytes)
		r.audited = r.audited.plus(audited)
		fast += c.Acceleration.Connections
		could += sum(c.Counters, "redirected", "local")
		for name, n := range c.Drops {
			drops[name] += n
		}
	}
	if fast > 0 && could > 0 { // both ends count it
		r.fast = min(float64(fast)/2/float64(could), 1)
	}
	for name, n := range drops {
		r.drops = append(r.drops, drop{text.Clean(name), cmp.Or(cgroups.ReasonText(name), text.Clean(name)), n})
	}
	slices.SortFunc(r.drops, func(a, b drop) int { return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.reason, b.reason)) })
	return r
}

func (b *basis) container(c *cgroups.ContainerStatus) (r containerRow, audited rate) {
	old := b.containers[c.CgroupID]
	if old.ID != c.ID {
		old = cgroups.ContainerStatus{} // another one in a cgroup of the same number
	}
	r = containerRow{
		name: text.Clean(cmp.Or(c.Name, c.ID)), role: c.Role, pid: c.PID,
		connections: b.rate(sum(old.Counters, connectionCounters()...), sum(c.Counters, connectionCounters()...)),
		denied:      b.rate(total(old.Drops), total(c.Drops)),
		bytes:       b.rate(old.Acceleration.Bytes, c.Acceleration.Bytes),
	}
	var notes []string
	if len(c.Missing) > 0 {
		notes = append(notes, "MISSING hooks: "+strings.Join(c.Missing, ", "))
	}
	if c.Refusal != "" {
		notes = append(notes, "would not start now: "+c.Refusal)
	}
	if c.Acceleration.Off != "" {
		notes = append(notes, "not accelerated: "+c.Acceleration.Off)
	}
	r.notes = text.Clean(strings.Join(notes, "; "))
	return r, b.rate(sum(old.Counters, "audited"), sum(c.Counters, "audited"))
}

// Orders are what pods can be sorted by.
func Orders() []string { return []string{"drops", "connections", "bytes", "name"} }

// sortRows puts those first that do most.
func sortRows(list []row, order string) {
	by := func(get func(*row) rate) func(a, b *row) int {
		return func(a, b *row) int {
			x, y := get(a), get(b)
			return cmp.Or(cmp.Compare(y.per, x.per), cmp.Compare(y.total, x.total))
		}
	}
	compare := func(_, _ *row) int { return 0 }
	switch order {
	case "drops":
		compare = by(func(r *row) rate { return r.denied })
	case "connections":
		compare = by(func(r *row) rate { return r.connections })
	case "bytes":
		compare = by(func(r *row) rate { return r.bytes })
	}
	slices.SortFunc(list, func(a, b row) int {
		return cmp.Or(compare(&a, &b), cmp.Compare(a.name, b.name), cmp.Compare(a.cookie, b.cookie))
	})
}
