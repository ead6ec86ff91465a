// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// PolicyStatus is a policy that the kernel has.
type PolicyStatus struct {
	Name        string            `json:"name"`
	Source      string            `json:"source"` // file:line, or "built in"
	Revision    uint32            `json:"revision"`
	Mode        string            `json:"mode"`
	Settings    string            `json:"settings"`      // in a line
	TLS         json.RawMessage   `json:"tls,omitempty"` // spec.tls, with its defaults
	Applied     time.Time         `json:"applied"`
	Digest      uint64            `json:"-"`
	Fingerprint uint64            `json:"-"` // of the directory, when it was last read
	Pods        []string          `json:"pods"`
	Rules       []policy.RuleInfo `json:"rules"`
}

// ListPolicies returns the policies that pods are under, by name.
func ListPolicies(state string) (list []PolicyStatus, err error) {
	err = IfLoaded(state, func(s *Store) error {
		all, err := s.appliedPolicies()
		if err != nil {
			return err
		}
		pods, err := s.podsByPolicy()
		if err != nil {
			return err
		}
		for i := range all {
			st, err := s.policyStatus(&all[i], pods[all[i].slot])
			if err != nil {
				return err
			}
			list = append(list, st)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b PolicyStatus) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *Store) policyStatus(a *applied, cookies []uint64) (PolicyStatus, error) {
	st := PolicyStatus{
		Name:        bpf.CString(a.info.Name[:]),
		Source:      bpf.CString(a.info.Source[:]),
		Revision:    a.info.Revision,
		Mode:        modeOf(a.entry).String(),
		Settings:    settingsLine((&tables{maps: s.maps, pol: a}).Settings()),
		Applied:     time.Unix(0, int64(a.info.AppliedNs)).UTC(),
		Digest:      a.info.Digest,
		Fingerprint: a.info.Fingerprint,
		Pods:        []string{},
	}
	for _, c := range cookies {
		var info bpf.PodInfo
		if err := s.maps.PodInfo.Lookup(c, &info); err != nil {
			return st, fmt.Errorf("look up pod %d: %w", c, err)
		}
		st.Pods = append(st.Pods, bpf.CString(info.Pod[:]))
	}
	slices.Sort(st.Pods)
	if a.entry.Tls != 0 {
		rules, err := tlsRules(s.maps, a.info.Revision)
		if err != nil {
			return st, err
		}
		st.TLS = rules
	}
	for n := range a.info.Ninfos {
		r, err := s.rule(a.info.Revision, n+1)
		if err != nil {
			return st, err
		}
		st.Rules = append(st.Rules, r)
	}
	return st, nil
}

// rule returns a rule in words.
func (s *Store) rule(revision, number uint32) (policy.RuleInfo, error) {
	var info bpf.RuleInfo
	if err := s.maps.RuleInfo.Lookup(bpf.RuleInfoKey{Revision: revision, Rule: number}, &info); err != nil {
		return policy.RuleInfo{}, fmt.Errorf("look up rule %d: %w", number, err)
	}
	return policy.RuleInfo{Path: bpf.CString(info.Path[:]), Text: bpf.CString(info.Text[:])}, nil
}

func modeOf(e bpf.Policy) policy.Mode {
	if e.Flags&bpf.PolicyAudit != 0 {
		return policy.ModeAudit
	}
	return policy.ModeEnforce
}

// Differs tells whether applying c would change the policy that k is.
func Differs(c *policy.Compiled, k PolicyStatus) (bool, error) {
	sum, err := digest(c)
	return sum != k.Digest, err
}

// Lines are the policy as lines to compare.
func (k PolicyStatus) Lines() []string {
	return append(append([]string{k.Settings}, tlsLines(k.TLS)...), texts(k.Rules)...)
}

// PolicyLines are a compiled policy as Lines are one in force.
func PolicyLines(c *policy.Compiled) []string {
	return append(append([]string{settingsLine(policy.NewTables(c, nil).Settings())}, tlsLines(c.TLSRules)...), texts(c.Rules)...)
}

// tlsLines are spec.tls, a line for each key, where there is one.
func tlsLines(rules []byte) []string {
	var b bytes.Buffer
	if len(rules) == 0 || json.Indent(&b, rules, "", "  ") != nil {
		return nil
	}
	lines := strings.Split(b.String(), "\n")
	lines[0] = "spec.tls: " + lines[0]
	return lines
}

func texts(rules []policy.RuleInfo) (lines []string) {
	for _, r := range rules {
		// As much as the kernel keeps.
		lines = append(lines, r.Path+": "+r.Text[:min(len(r.Text), len(bpf.RuleInfo{}.Text)-1)])
	}
	return lines
}

func settingsLine(s policy.Settings) string {
	return fmt.Sprintf("mode %s, outbound %d, inbound %d, dns %d, tls %d, nonTCP %s, init %s, adminCapabilities %s, sidecar's ports %v",
		s.Mode, s.Outbound, s.Inbound, s.DNS, s.TLS, s.NonTCP, s.Init, s.AdminCapabilities, s.Reserved)
}

// ReasonText says in words what the name of a drop counter means.
func ReasonText(reason string) string {
	for _, i := range bpf.CounterInfos() {
		if i.Name == reason {
			return i.Text
		}
	}
	return ""
}

// Target is one end of what Explain is asked about: a container, as pod/container
// or as container alone, or an address.
type Target struct {
	Container string
	Addr      netip.Addr
}

// Explanation says what the kernel does with a connection, and why.
type Explanation struct {
	policy.Decision
	Pod      string            `json:"pod"`
	Policy   string            `json:"policy"`
	Revision uint32            `json:"revision"`
	From     string            `json:"from"`
	To       string            `json:"to"`
	Rules    []policy.RuleInfo `json:"rules,omitempty"` // that decided: From's, then To's
	// Nobody says that no socket would take it inside the pod: it is refused.
	Nobody bool `json:"nobodyListens,omitempty"`
}

// Explain asks the maps that the programs ask, so that its answer is theirs.
func Explain(state string, from, to Target, proto uint8, port uint16) (x Explanation, err error) {
	s, err := OpenExisting(state)
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.explain(from, to, proto, port)
}

func (s *Store) explain(from, to Target, proto uint8, port uint16) (x Explanation, err error) {
	all, err := s.allMembers()
	if err != nil {
		return x, err
	}
	var a, b *member
	if from.Container != "" {
		if a, err = find(all, from.Container); err != nil {
			return x, err
		}
	}
	if to.Container != "" {
		if b, err = find(all, to.Container); err != nil {
			return x, err
		}
	}
	self := a
	if self == nil {
		self = b
	}
	switch {
	case self == nil:
		return x, errors.New("neither end is a container: give one as pod/container")
	case a != nil && b != nil && a.entry.NetnsCookie != b.entry.NetnsCookie:
		return x, fmt.Errorf("containers %s and %s are of different pods: give the other one's address", a, b)
	}
	q := policy.Query{From: policy.Outside(from.Addr), To: policy.Outside(to.Addr), Proto: proto, Port: port}
	if a != nil {
		q.From = a.endpoint()
	}
	if a != nil && b == nil {
		local, err := s.isLocal(self.entry.NetnsCookie, to.Addr)
		if err != nil {
			return x, err
		}
		if local {
			if b, err = s.listenerAt(all, self.entry.NetnsCookie, to.Addr, proto, port); err != nil {
				return x, err
			}
			if b == nil { // nobody's rules; the kernel refuses it
				b, x.Nobody = a, true
			}
		}
	}
	if b != nil {
		q.To, q.Same = b.endpoint(), a == b
	}
	return s.decide(x, self, q)
}

func (s *Store) decide(x Explanation, self *member, q policy.Query) (Explanation, error) {
	var pod bpf.Pod
	var info bpf.PodInfo
	if err := s.maps.Pods.Lookup(self.entry.NetnsCookie, &pod); err != nil {
		return x, fmt.Errorf("look up pod: %w", err)
	}
	if err := s.maps.PodInfo.Lookup(self.entry.NetnsCookie, &info); err != nil {
		return x, fmt.Errorf("look up pod: %w", err)
	}
	pol, err := s.policyAt(pod.Policy)
	if err != nil {
		return x, err
	}
	t := &tables{maps: s.maps, pol: &pol}
	x.Decision = policy.Decide(t, q)
	if t.err != nil {
		return x, t.err
	}
	x.Pod, x.Policy, x.Revision = bpf.CString(info.Pod[:]), bpf.CString(pol.info.Name[:]), pol.info.Revision
	x.From, x.To = q.From.String(), q.To.String()
	for _, n := range []uint16{x.Rule, x.PeerRule} {
		if n == 0 {
			continue
		}
		r, err := s.rule(pol.info.Revision, uint32(n))
		if err != nil {
			return x, err
		}
		x.Rules = append(x.Rules, r)
	}
	return x, nil
}

// allMembers returns the living containers of all pods.
func (s *Store) allMembers() (all []member, err error) {
	policies, err := s.appliedPolicies()
	if err != nil {
		return nil, err
	}
	for _, p := range policies {
		list, err := s.members(p.slot)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// find returns the container that name stands for: pod/container or container,
// by name or by the beginning of an id.
func find(all []member, name string) (*member, error) {
	pod, container := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 { // a pod's name may have one too
		pod, container = name[:i], name[i+1:]
	}
	var found []*member
	for i := range all {
		m := &all[i]
		if pod != "" && !strings.HasPrefix(bpf.CString(m.info.Pod[:]), pod) {
			continue
		}
		if bpf.CString(m.info.Name[:]) == container || container != "" && strings.HasPrefix(bpf.CString(m.info.Id[:]), container) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("there is no managed container %s: `sidegate status` lists them", name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d containers are called %s: write pod/container, as `sidegate status` does", len(found), name)
}

// isLocal tells whether an address is the pod's own.
func (s *Store) isLocal(cookie uint64, a netip.Addr) (bool, error) {
	if a.Unmap().IsLoopback() || a.Unmap().IsUnspecified() {
		return true, nil
	}
	var is uint8
	err := s.maps.PodAddrs.Lookup(bpf.PodAddr{NetnsCookie: cookie, Addr: bpf.AddrFrom(a)}, &is)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up address %s: %w", a, err)
	}
	return true, nil
}

// listenerAt returns the container whose socket takes what is sent to an address
// of the pod, or nil. A socket of that very address goes before one of all.
func (s *Store) listenerAt(all []member, cookie uint64, a netip.Addr, proto uint8, port uint16) (*member, error) {
	rows, err := s.sockets(cookie, all)
	if err != nil {
		return nil, err
	}
	a = a.Unmap()
	if a.IsUnspecified() { // connect(2) takes it for loopback
		if a.Is6() {
			a = netip.IPv6Loopback()
		} else {
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
	}
	var best *member
	exact := false
	for i := range rows {
		r := &rows[i]
		at := localOf(r).Addr()
		if r.proto != proto || r.local.Port() != port || r.remote.Port() != 0 {
			continue
		}
		if at != a && (!at.IsUnspecified() || at.Is4() && a.Is6()) || exact && at != a {
			continue
		}
		for j := range all {
			if all[j].entry.CgroupId == r.record.CgroupId {
				best, exact = &all[j], at == a
			}
		}
	}
	return best, nil
}
