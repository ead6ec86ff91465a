// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"math/bits"
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// IP protocol numbers.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// ruler compiles rules and exclusions. Each rule gets a number, from 1, in the order in which they are written.
type ruler struct {
	*checker
	c        *Compiled
	lines    map[string]int    // of rules, by their paths
	subjects map[string]string // the paths of their rules, by their words
	cidrs    []cidrPeer
	names    map[uint32]string // the container names that rules mention, by their numbers
	keys     map[Entry]uint16  // entries without their rule, and the lowest rule that has them
	made     int               // entries so far, equal ones too
}

// cidrPeer is a network that a rule is about, but for its exceptions.
type cidrPeer struct {
	path   string
	prefix netip.Prefix
	except []netip.Prefix
	rule   int // index into rules
}

// traffic is one rule, whose entries are made for each of its peers.
type traffic struct {
	path    string
	subject uint32
	dir     Dir
	protos  []protoPorts
	rule    uint16
}

type protoPorts struct {
	proto uint8
	any   bool
	ports []PortRange // nil: all
}

func (k *checker) rules(c *Compiled, p *PodPolicy) {
	spec := &p.Spec
	if n, beyond := countRules(spec); n > MaxRules {
		k.add(beyond, "the policy has %d rules and exclusions: write at most %d, each with several peers and ports", n, MaxRules)
		return
	}
	r := &ruler{
		checker: k, c: c, lines: p.lines,
		subjects: make(map[string]string), names: make(map[uint32]string), keys: make(map[Entry]uint16),
	}
	before := len(k.problems)
	var all []traffic
	all = r.exclusions(all, "spec.exclude.egress", spec.Exclude.Egress, Egress)
	all = r.exclusions(all, "spec.exclude.ingress", spec.Exclude.Ingress, Ingress)
	for i := range spec.Rules {
		all = r.subject(all, indexPath("spec.rules", i), &spec.Rules[i])
	}
	if len(k.problems) > before {
		return
	}
	r.classes(all)
	r.finish()
}

// countRules counts the rules, and gives the path of the first one beyond MaxRules.
func countRules(spec *Spec) (n int, beyond string) {
	count := func(path string, items int) {
		if n <= MaxRules && n+items > MaxRules {
			beyond = indexPath(path, MaxRules-n)
		}
		n += items
	}
	count("spec.exclude.egress", len(spec.Exclude.Egress))
	count("spec.exclude.ingress", len(spec.Exclude.Ingress))
	for i := range spec.Rules {
		s, at := &spec.Rules[i], indexPath("spec.rules", i)
		count(at+".egress", len(s.Egress))
		count(at+".ingress", len(s.Ingress))
		if s.Unix != nil {
			count(at+".unix.allow", len(s.Unix.Allow))
		}
	}
	return n, beyond
}

// number gives the rule at path a number and its words.
func (r *ruler) number(path, text string) uint16 {
	r.c.Rules = append(r.c.Rules, RuleInfo{Path: path, Line: r.lines[path], Text: text})
	return uint16(len(r.c.Rules))
}

func (r *ruler) exclusions(all []traffic, path string, rules []Exclusion, dir Dir) []traffic {
	for i, e := range rules {
		at := indexPath(path, i)
		proto := cmp.Or(e.Protocol, ProtoTCP)
		if int(proto) >= len(protoWords()) {
			r.add(at+".protocol", "%s does not exist: use %s", proto, or(protoWords()[1:]))
		}
		if len(e.Ports) == 0 && dir == Ingress {
			r.add(at+".ports", "missing: list the app's ports, such as ports: [9090]")
		}
		t := traffic{path: at, subject: SubjectPod, dir: dir}
		ports := r.ports(at+".ports", e.Ports)
		for _, p := range []struct {
			number uint8
			not    Proto
		}{{protoTCP, ProtoUDP}, {protoUDP, ProtoTCP}} {
			if proto != p.not {
				t.protos = append(t.protos, protoPorts{proto: p.number, ports: ports})
			}
		}
		words := "any address"
		if e.CIDR != "" {
			words = e.CIDR
		}
		t.rule = r.number(at, "exclude "+dir.String()+" "+words+" "+proto.String()+portWords(e.Ports))
		all = append(all, t)
		switch {
		case e.CIDR != "":
			r.cidr(at+".cidr", e.CIDR, "leave it out, exclusions are about the outside", len(all)-1)
		case dir == Egress:
			r.add(at+".cidr", "missing: write a destination, such as cidr: 10.0.0.0/8")
		default:
			r.entries(&t, PeerWorld)
			r.entries(&t, PeerHost)
		}
	}
	return all
}

// cidr reads a network and notes that the rule with this index is about it. instead is what to write for loopback.
func (r *ruler) cidr(at, s, instead string, rule int) (netip.Prefix, bool) {
	p, err := ParseCIDR(s)
	switch {
	case err != nil:
		r.add(at, "%s", err)
	case p.Addr().IsLoopback(): // masked, so all of it is
		r.add(at, "%s is inside the pod: %s", p, instead)
	default:
		r.cidrs = append(r.cidrs, cidrPeer{path: at, prefix: p, rule: rule})
		return p, true
	}
	return p, false
}

func (r *ruler) ports(at string, ports []PortRange) []PortRange {
	if len(ports) > MaxPorts {
		r.add(at, "%d entries: write at most %d, ranges such as 8000-8100 count once", len(ports), MaxPorts)
	}
	for i, pr := range ports {
		r.rangeOf(indexPath(at, i), pr)
	}
	merged := mergeRanges(ports)
	if len(merged) == 1 && merged[0] == AllPorts {
		return nil
	}
	return merged
}

func (r *ruler) subject(all []traffic, at string, s *SubjectRules) []traffic {
	sub := Subject{Role: s.Role, Container: s.Container}
	switch {
	case s.Role != RoleUnset && s.Container != "":
		r.add(at+".container", "there is a role too: write two items of rules, one for each")
	case s.Role > RoleNone:
		r.add(at+".role", "%s is not a role: write %s", show(s.Role.String()), or(roleWords()[1:]))
	case s.Role != RoleUnset:
		sub.ID = uint32(s.Role)
	case s.Container != "":
		sub.ID = r.name(at+".container", s.Container)
	default:
		r.add(at, "it does not say whose rules these are: write role: app, or container: and a name")
	}
	if sub.ID != 0 {
		if first, has := r.subjects[sub.words()]; has {
			r.add(at, "%s has rules already, in %s: write them together", sub.words(), first)
			return all
		}
		r.subjects[sub.words()] = at
	}
	if s.Egress == nil && s.Ingress == nil && s.Unix == nil && s.Processes == nil {
		r.add(at, "it has no rules: write egress: [] to deny everything, or leave the item out")
	}
	if s.Egress != nil || s.Ingress != nil {
		sub.Flags |= Ruled
	}
	for i := range s.Egress {
		all = r.rule(all, indexPath(at+".egress", i), &sub, Egress, "to", s.Egress[i].To, &s.Egress[i].Traffic)
	}
	for i := range s.Ingress {
		all = r.rule(all, indexPath(at+".ingress", i), &sub, Ingress, "from", s.Ingress[i].From, &s.Ingress[i].Traffic)
	}
	r.unix(at+".unix", &sub, s.Unix)
	r.processes(at+".processes", &sub, s.Processes)
	r.c.Subjects = append(r.c.Subjects, sub)
	return all
}

func (s *Subject) words() string {
	if s.Container != "" {
		return "container " + s.Container
	}
	return "role " + s.Role.String()
}

// name returns the number of a container's name.
func (r *ruler) name(at, name string) uint32 {
	if msg := nameProblem(name, "the name of a container"); msg != "" {
		r.add(at, "%s", msg)
		return 0
	}
	id := NameID(name)
	other, has := r.names[id]
	switch {
	case has && other != name:
		r.add(at, "%s and %s have the same hash: rename one of the containers", show(name), show(other))
	case !has && len(r.names) == MaxNames:
		r.add(at, "%s is one container name too many: rules can have %d, so use roles", show(name), MaxNames)
	}
	if !has {
		r.names[id] = name
	}
	return id
}

func (r *ruler) rule(all []traffic, at string, sub *Subject, dir Dir, peersKey string, peers []Peer, tr *Traffic) []traffic {
	t := traffic{path: at, subject: sub.ID, dir: dir, protos: r.traffic(at, tr)}
	sub.Flags |= tr.flags()
	who := "anybody"
	if len(peers) > 0 {
		who = several(peers, ", ", Peer.words)
	}
	t.rule = r.number(at, sub.words()+" "+dir.String()+" "+peersKey+" "+who+" "+tr.words())
	all = append(all, t)
	if len(peers) == 0 {
		for _, id := range []uint32{uint32(RoleApp), uint32(RoleSidecar), uint32(RoleInit), uint32(RoleNone), PeerWorld, PeerHost} {
			r.entries(&t, id)
		}
	}
	for i := range peers {
		if id := r.peer(indexPath(at+"."+peersKey, i), &peers[i], tr, len(all)-1); id != 0 {
			r.entries(&t, id)
		}
	}
	return all
}

// flags are what a subject needs sockets of, for a rule about this.
func (t *Traffic) flags() SubjectFlags {
	switch {
	case t.Protocol == RuleICMP:
		return HasICMP
	case t.Protocol == RuleICMPv6:
		return HasICMPv6
	case t.Protocol == RuleSCTP, t.Protocol == RuleAny && len(t.Ports) > 0:
		return HasSCTP
	case t.Protocol == RuleAny:
		return HasICMP | HasICMPv6 | HasSCTP
	}
	return 0
}

func (p Peer) words() string {
	switch {
	case p.Role != RoleUnset:
		return "role " + p.Role.String()
	case p.Container != "":
		return "container " + p.Container
	case p.Entity != EntityUnset:
		return p.Entity.String()
	case len(p.Except) > 0:
		return p.CIDR + " but " + several(p.Except, " and ", strings.Clone)
	}
	return p.CIDR
}

func (t *Traffic) words() string {
	if len(t.Types) == 0 {
		return t.Protocol.String() + portWords(t.Ports)
	}
	return t.Protocol.String() + " types " + several(t.Types, ",", ICMPType.String)
}

func portWords(ports []PortRange) string {
	if len(ports) == 0 {
		return ""
	}
	return " " + several(ports, ",", PortRange.String)
}

// peer returns the number of a peer inside the pod, or of world or host, and 0 for a network, of which it takes note.
func (r *ruler) peer(at string, p *Peer, tr *Traffic, rule int) uint32 {
	kinds := 0
	for _, is := range []bool{p.Role != RoleUnset, p.Container != "", p.CIDR != "", p.Entity != EntityUnset} {
		if is {
			kinds++
		}
	}
	switch {
	case kinds == 0:
		r.add(at, "it names nobody: write one of role, container, cidr and entity")
		return 0
	case kinds > 1:
		r.add(at, "it is several peers at once: write one of role, container, cidr and entity, and further items for the others")
		return 0
	case len(p.Except) > 0 && p.CIDR == "":
		r.add(at+".except", "only a cidr has exceptions: leave it out")
		return 0
	}
	if tr.Protocol == RuleSCTP && (p.Role != RoleUnset || p.Container != "") {
		r.add(at, "SCTP between containers of a pod cannot be told apart, and is denied: leave it out")
		return 0
	}
	switch {
	case p.Role > RoleNone:
		r.add(at+".role", "%s is not a role: write %s", show(p.Role.String()), or(roleWords()[1:]))
	case p.Role != RoleUnset:
		return uint32(p.Role)
	case p.Container != "":
		return r.name(at+".container", p.Container)
	case p.Entity == EntityWorld:
		return PeerWorld
	case p.Entity == EntityHost:
		return PeerHost
	case p.Entity != EntityUnset:
		r.add(at+".entity", "%s does not exist: use %s", p.Entity, or(entityWords()[1:]))
	default:
		r.network(at, p, rule)
	}
	return 0
}

func (r *ruler) network(at string, p *Peer, rule int) {
	prefix, ok := r.cidr(at+".cidr", p.CIDR, "write role: or container: instead, networks are outside", rule)
	if !ok {
		return
	}
	var except []netip.Prefix
	for i, s := range p.Except {
		e, err := ParseCIDR(s)
		switch {
		case err != nil:
			r.add(indexPath(at+".except", i), "%s", err)
		case e == prefix:
			r.add(indexPath(at+".except", i), "%s is all of the cidr: leave the whole peer out", e)
		case !covers(prefix, e):
			r.add(indexPath(at+".except", i), "%s is not inside %s: leave it out", e, prefix)
		default:
			except = append(except, e)
		}
	}
	r.cidrs[len(r.cidrs)-1].except = except
}

// traffic lists the protocols of a rule, with what it says of their ports.
func (r *ruler) traffic(at string, t *Traffic) []protoPorts {
	if int(t.Protocol) >= len(ruleProtoWords()) {
		r.add(at+".protocol", "%s does not exist: use %s", t.Protocol, or(ruleProtoWords()))
		return nil
	}
	isICMP := t.Protocol == RuleICMP || t.Protocol == RuleICMPv6
	if isICMP && len(t.Ports) > 0 {
		r.add(at+".ports", "%s has no ports: write types, or leave it out for all of them", t.Protocol)
	}
	if !isICMP && len(t.Types) > 0 {
		r.add(at+".types", "%s has no types: write ports, or protocol: icmp", t.Protocol)
	}
	ports := r.ports(at+".ports", t.Ports)
	switch t.Protocol {
	case RuleTCP:
		return []protoPorts{{proto: protoTCP, ports: ports}}
	case RuleUDP:
		return []protoPorts{{proto: protoUDP, ports: ports}}
	case RuleSCTP:
		return []protoPorts{{proto: protoSCTP, ports: ports}}
	case RuleICMP:
		return []protoPorts{{proto: protoICMP, ports: typeRanges(t.Types)}}
	case RuleICMPv6:
		return []protoPorts{{proto: protoICMPv6, ports: typeRanges(t.Types)}}
	}
	if len(t.Ports) == 0 {
		return []protoPorts{{any: true}}
	}
	return []protoPorts{{proto: protoTCP, ports: ports}, {proto: protoUDP, ports: ports}, {proto: protoSCTP, ports: ports}}
}

// typeRanges gives ICMP types the form of ports, which is how the kernel looks for them.
func typeRanges(types []ICMPType) []PortRange {
	var out []PortRange
	for _, t := range types {
		out = append(out, PortRange{uint16(t), uint16(t)})
	}
	return mergeRanges(out)
}

// entries lets a rule's subject and a peer talk.
func (r *ruler) entries(t *traffic, peer uint32) {
	for _, p := range t.protos {
		e := Entry{Subject: t.subject, Dir: t.dir, Peer: peer, Proto: p.proto, AnyProto: p.any}
		if p.ports == nil {
			r.entry(t, e)
		}
		for _, pr := range p.ports {
			for first, last := int(pr.First), int(pr.Last); first <= last && !r.full(); {
				// The largest block that starts here and ends in time.
				size := 16
				if first != 0 {
					size = bits.TrailingZeros16(uint16(first))
				}
				for first+1<<size-1 > last {
					size--
				}
				e.Port, e.PortBits = uint16(first), uint8(16-size)
				r.entry(t, e)
				first += 1 << size
			}
		}
	}
}

func (r *ruler) entry(t *traffic, e Entry) {
	if r.full() {
		return
	}
	if r.made++; r.full() {
		r.add(t.path, "the policy has more than %d entries from here on: merge ports into ranges, or networks into larger ones", MaxEntries)
		return
	}
	if rule, has := r.keys[e]; !has || t.rule < rule {
		r.keys[e] = t.rule
	}
}

func (r *ruler) full() bool { return r.made > MaxEntries }

// finish puts the lists into their normal form.
func (r *ruler) finish() {
	for e, rule := range r.keys {
		e.Rule = rule
		r.c.Entries = append(r.c.Entries, e)
	}
	slices.SortFunc(r.c.Entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.Peer, b.Peer),
			cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.PortBits, b.PortBits), cmp.Compare(a.Port, b.Port))
	})
	slices.SortFunc(r.c.Subjects, func(a, b Subject) int { return cmp.Compare(a.ID, b.ID) })
}

// Limits of what the kernel keeps of a path.
const (
	maxUnixPath   = 107 // bytes
	maxUnixPeers  = 8
	maxExecutable = 4095 // bytes
)

func (r *ruler) unix(at string, sub *Subject, u *Unix) {
	if u == nil {
		return
	}
	sub.Flags |= HasUnix
	if u.Optional {
		sub.Flags |= UnixOptional
	}
	if len(u.Allow) > MaxUnix {
		r.add(at+".allow", "%d items: write at most %d, such as /run/db/*.sock for several sockets", len(u.Allow), MaxUnix)
		return
	}
	for i := range u.Allow {
		a, at := &u.Allow[i], indexPath(at+".allow", i)
		rule := UnixRule{Type: a.Type, Abstract: a.Abstract != "", Rule: r.number(at, sub.words()+" unix "+show(a.Path+a.Abstract))}
		switch {
		case a.Path != "" && a.Abstract != "":
			r.add(at+".abstract", "there is a path too: write two items, one for each")
		case a.Path == "" && a.Abstract == "":
			r.add(at, "it names no sockets: write path: /run/db/*.sock, or abstract: \"@bus\"")
		case rule.Abstract:
			rule.Pattern = r.abstract(at+".abstract", a.Abstract)
		default:
			rule.Pattern = r.unixPath(at+".path", a.Path)
		}
		if int(a.Type) >= len(unixTypeWords()) {
			r.add(at+".type", "%s does not exist: use %s", a.Type, or(unixTypeWords()))
		}
		rule.Peers = r.unixPeers(at+".to", a.To)
		sub.Unix = append(sub.Unix, rule)
	}
}

// unixPath returns the pattern of a path.
func (r *ruler) unixPath(at, p string) string {
	if !isCleanPath(p) || !isCleanPath(unquoted(p)) { // /run/\../x is no other path than /run/../x
		r.add(at, "%s is not a clean absolute path: write it from / on, without . and .. and double slashes, such as /run/db/*.sock", show(p))
		return p
	}
	r.check(at, patternProblem(p))
	return p
}

// abstract returns the pattern of an abstract name.
func (r *ruler) abstract(at, name string) string {
	pattern, ok := strings.CutPrefix(name, "@")
	switch {
	case !ok:
		r.add(at, "%s is not an abstract name: write @ before it", show(name))
	case pattern == "":
		r.add(at, "there is no name after the @: write one, or \"@**\" for all of them")
	default:
		r.check(at, patternProblem(pattern))
	}
	return pattern
}

// unixPeers returns the numbers of those who may have bound a socket.
func (r *ruler) unixPeers(at string, peers []Peer) []uint32 {
	if len(peers) > maxUnixPeers {
		r.add(at, "%d peers: write at most %d", len(peers), maxUnixPeers)
		return nil
	}
	var ids []uint32
	for i := range peers {
		at, p := indexPath(at, i), &peers[i]
		if p.Role == RoleUnset && p.Container == "" || p.CIDR != "" || p.Entity != EntityUnset {
			r.add(at, "a UNIX socket is a container's: write role: or container:")
			continue
		}
		ids = append(ids, r.peer(at, p, &Traffic{}, 0))
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (r *ruler) processes(at string, sub *Subject, paths []string) {
	if paths == nil {
		return
	}
	sub.Flags |= HasProcesses
	if len(paths) > MaxProcesses {
		r.add(at, "%d executables: write at most %d", len(paths), MaxProcesses)
		return
	}
	for i, p := range paths {
		switch {
		case len(p) > maxExecutable:
			r.add(indexPath(at, i), "the path has %d bytes: a path has at most %d", len(p), maxExecutable)
		case !isCleanPath(p):
			r.add(indexPath(at, i), "%s is not a clean absolute path: write it from / on, such as /usr/sbin/haproxy", show(p))
		case slices.Contains(paths[:i], p):
			r.add(indexPath(at, i), "%s is there twice: leave one out", show(p))
		}
	}
	sub.Processes = slices.Sorted(slices.Values(paths))
}

// isCleanPath says whether p can be the path of a file, and is written in the one way that the kernel writes it.
func isCleanPath(p string) bool {
	return len(p) > 1 && p[0] == '/' && path.Clean(p) == p && utf8.ValidString(p) && !strings.Contains(p, "\x00")
}
