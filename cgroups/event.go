// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// Event is something that a socket of a managed pod did, or was not let do, or that became of a container. As JSON it is
// a line of `sidegate observe -o json`; names there are only added, never changed.
type Event struct {
	Time      time.Time      `json:"time"`
	Kind      string         `json:"kind"`                // connect, accept, socket, bind, packet, unix, attach, detach, tls, http
	Verdict   string         `json:"verdict"`             // allowed, redirected, denied, or audited: it would have been denied
	Direction string         `json:"direction,omitempty"` // egress or ingress
	Protocol  string         `json:"protocol,omitempty"`
	Address   netip.AddrPort `json:"address,omitzero"` // the other end outside, before redirection; the port is the destination's
	Socket    string         `json:"socket,omitempty"` // name of a UNIX socket, @ before an abstract one

	Pod         string `json:"pod"`
	Container   string `json:"container,omitempty"` // empty: it is no container's
	ContainerID string `json:"containerID,omitempty"`
	Role        string `json:"role,omitempty"`
	Runtime     string `json:"runtime,omitempty"` // of a container that comes or goes
	PID         int    `json:"pid,omitempty"`     // of who made the socket, or connected
	Comm        string `json:"comm,omitempty"`    // of that task (proc_pid_comm(5))
	Process     string `json:"process,omitempty"` // its executable, if it lives still
	Peer        string `json:"peer,omitempty"`    // container at the other end

	Reason string `json:"reason"`         // as in counters
	Text   string `json:"text,omitempty"` // the same in words
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"` // that let it through, or, of TLS and HTTP, denied it

	TLS *TLSEvent `json:"tls,omitempty"`

	Suppressed uint32 `json:"suppressed,omitempty"` // events of the same container before it, which were not told
}

// TLSEvent is what the TLS relay saw. The names in JSON are those of the relay's own events.
type TLSEvent struct {
	Kind    string `json:"kind"` // tls, http, denied, refused, opaque, end
	SNI     string `json:"sni,omitempty"`
	Version string `json:"version,omitempty"`
	Suite   string `json:"suite,omitempty"`
	ALPN    string `json:"alpn,omitempty"`
	From    string `json:"from,omitempty"` // the app's end; one for each connection

	HTTP *HTTPEvent `json:"http,omitempty"`

	Truncated bool `json:"truncated,omitempty"` // strings were cut: the relay's own file has them whole

	ClientBytes int64         `json:"clientBytes,omitempty"`
	ServerBytes int64         `json:"serverBytes,omitempty"`
	Duration    time.Duration `json:"duration,omitempty"` // in nanoseconds
}

// HTTPEvent is a request or response inside TLS.
type HTTPEvent struct {
	Kind     string        `json:"kind"` // request, response, ...
	Protocol string        `json:"protocol,omitempty"`
	Stream   uint32        `json:"stream,omitempty"`
	Method   string        `json:"method,omitempty"`
	Host     string        `json:"host,omitempty"`
	Path     string        `json:"path,omitempty"`
	Allowed  bool          `json:"allowed,omitempty"`
	Status   int           `json:"status,omitempty"`
	Duration time.Duration `json:"duration,omitempty"` // in nanoseconds
}

// Verdicts of events.
const (
	Allowed    = "allowed"
	Redirected = "redirected"
	Denied     = "denied"
	Audited    = "audited"
)

// EventKinds are the words for enum sg_event_kind.
func EventKinds() []string {
	return []string{"connect", "accept", "socket", "bind", "packet", "unix", "attach", "detach", "tls", "http"}
}

func verdictOf(counter bpf.Counter, audit bool) string {
	for _, i := range bpf.CounterInfos() {
		if i.Counter != counter {
			continue
		}
		switch {
		case i.Drop && audit:
			return Audited
		case i.Drop:
			return Denied
		case strings.HasSuffix(i.Name, "redirected"):
			return Redirected
		}
	}
	return Allowed
}

// unixName is what people write for the name of a UNIX socket.
func unixName(name []byte, abstract bool) string {
	if abstract && len(name) > 0 {
		return "@" + strings.ToValidUTF8(string(name[1:]), "\uFFFD")
	}
	return strings.ToValidUTF8(string(name), "\uFFFD")
}

// ProtocolName is tcp for 6, and the number for what has no name here.
func ProtocolName(n uint16) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_UDPLITE:
		return "udplite"
	case unix.IPPROTO_MPTCP: // no protocol of IP, and so none of rules
		return "mptcp"
	}
	return strconv.Itoa(int(n))
}

// eventNames are the names of what the kernel knows by numbers, kept when it forgets them.
type eventNames struct {
	maps       *bpf.Maps
	containers map[uint64]bpf.ContainerInfo
	pods       map[uint64]string
	rules      map[bpf.RuleInfoKey]string
	policies   map[uint32]string
}

// maxProcess is how many bytes of an executable's path are told: it may be as long as the container likes.
const maxProcess = 256

// maxNames is how many of a sort are kept.
const maxNames = 1 << 15

func newEventNames(m *bpf.Maps) (*eventNames, error) {
	n := &eventNames{
		maps: m, containers: make(map[uint64]bpf.ContainerInfo), pods: make(map[uint64]string),
		rules: make(map[bpf.RuleInfoKey]string), policies: make(map[uint32]string),
	}
	ids, infos, err := entriesOf[uint64, bpf.ContainerInfo](m.ContainerInfo)
	if err != nil {
		return nil, err
	}
	for i, id := range ids {
		n.containers[id] = infos[i]
	}
	return n, nil
}

func (n *eventNames) forget(cgroup uint64) { delete(n.containers, cgroup) }

// remember keeps a name, and forgets all others when they are many: most are of who is gone.
func remember[K comparable, V any](m map[K]V, key K, value V) V {
	if len(m) >= maxNames {
		clear(m)
	}
	m[key] = value
	return value
}

// event says it in people's words.
func (n *eventNames) event(raw *bpf.Event) Event {
	counter := bpf.Counter(raw.Counter)
	out := Event{
		Verdict: verdictOf(counter, raw.Audit != 0), Direction: policy.Dir(raw.Dir).String(),
		PID: int(raw.Pid), Comm: strings.ToValidUTF8(bpf.CString(raw.Comm[:]), "\uFFFD"), Suppressed: raw.Suppressed, Pod: n.pod(raw.NetnsCookie), Policy: n.policy(raw.Revision),
	}
	if raw.Proto != 0 {
		out.Protocol = ProtocolName(raw.Proto)
	}
	if addr := netip.AddrFrom16(raw.Addr.B).Unmap(); raw.Addr != (bpf.Addr{}) || raw.Port != 0 {
		out.Address = netip.AddrPortFrom(addr, raw.Port)
	}
	out.Reason = counter.String()
	out.Text = ReasonText(out.Reason)
	if info, ok := n.container(raw.CgroupId); ok {
		out.Container, out.ContainerID = infoName(info), bpf.CString(info.Id[:])
		out.Role = policy.Role(info.Role).String()
		if out.Policy == "" {
			out.Policy = bpf.CString(info.Policy[:])
		}
	}
	if info, ok := n.container(raw.Peer); ok {
		out.Peer = infoName(info)
	}
	if raw.Rule != 0 {
		out.Rule = n.rule(raw.Revision, raw.Rule)
	}
	if raw.Pid != 0 {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", raw.Pid)); err == nil {
			out.Process = strings.ToValidUTF8(strings.TrimSuffix(exe[:min(len(exe), maxProcess)], " (deleted)"), "\uFFFD")
		}
	}
	return out
}

func (n *eventNames) container(id uint64) (bpf.ContainerInfo, bool) {
	if id == 0 {
		return bpf.ContainerInfo{}, false
	}
	info, ok := n.containers[id]
	if !ok {
		if err := n.maps.ContainerInfo.Lookup(id, &info); err != nil {
			return info, false
		}
		remember(n.containers, id, info)
	}
	return info, true
}

func (n *eventNames) pod(cookie uint64) string {
	if name, ok := n.pods[cookie]; ok {
		return name
	}
	var info bpf.PodInfo
	if err := n.maps.PodInfo.Lookup(cookie, &info); err != nil {
		return ""
	}
	return remember(n.pods, cookie, bpf.CString(info.Pod[:]))
}

func (n *eventNames) rule(revision, number uint32) string {
	key := bpf.RuleInfoKey{Revision: revision, Rule: number}
	if text, ok := n.rules[key]; ok {
		return text
	}
	var info bpf.RuleInfo
	if err := n.maps.RuleInfo.Lookup(key, &info); err != nil {
		return ""
	}
	return remember(n.rules, key, bpf.CString(info.Path[:])+": "+bpf.CString(info.Text[:]))
}

func (n *eventNames) policy(revision uint32) string {
	if revision == 0 {
		return ""
	}
	if name, ok := n.policies[revision]; ok {
		return name
	}
	_, infos, err := entriesOf[uint32, bpf.PolicyInfo](n.maps.PolicyInfo)
	if err != nil {
		return ""
	}
	for i := range infos {
		if infos[i].Revision == revision {
			return remember(n.policies, revision, bpf.CString(infos[i].Name[:]))
		}
	}
	return remember(n.policies, revision, "") // it is gone
}
