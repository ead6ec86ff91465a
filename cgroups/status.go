// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// Status is all that the state says, as JSON has it.
type Status struct {
	Loaded bool        `json:"loaded"`
	ABI    int         `json:"abi"`
	State  string      `json:"state"`
	Guard  []string    `json:"guard"` // programs on the root cgroup
	Pods   []PodStatus `json:"pods"`
}

// PodStatus is one managed pod.
type PodStatus struct {
	Pod        string            `json:"pod"`
	Policy     string            `json:"policy"`
	Revision   uint32            `json:"policyRevision"`
	Mode       string            `json:"mode"`
	Cookie     uint64            `json:"netnsCookie"`
	NetnsIno   uint64            `json:"netnsInode"`
	Outbound   uint16            `json:"outboundPort"`
	Inbound    uint16            `json:"inboundPort"`
	DNS        uint16            `json:"dnsPort,omitempty"`
	TLS        uint16            `json:"tlsPort,omitempty"` // of the relay
	Relayed    bool              `json:"relayListening,omitempty"`
	NonTCP     string            `json:"nonTCP"`
	Addresses  []netip.Addr      `json:"addresses"`
	Hooks      []string          `json:"hooks"` // links on the namespace and its devices
	Listening  bool              `json:"sidecarListening"`
	Counters   map[string]uint64 `json:"counters"` // only those above zero
	Drops      map[string]uint64 `json:"drops"`
	Containers []ContainerStatus `json:"containers"`
}

// ContainerStatus is one registered container.
type ContainerStatus struct {
	ID       string    `json:"id"`
	Name     string    `json:"name,omitempty"`
	Runtime  string    `json:"runtime"`
	Role     string    `json:"role"`
	Policy   string    `json:"policy"`
	PID      int       `json:"pid"`
	CgroupID uint64    `json:"cgroupID"`
	Cgroup   string    `json:"cgroup"`
	Attached time.Time `json:"attached"`
	Hooks    []string  `json:"hooks"`
	Missing  []string  `json:"missingHooks,omitempty"`
	// Capabilities are those by which it could get out of its policy.
	Capabilities []string `json:"capabilities,omitempty"`
	// InheritedSockets are network sockets that were made outside of the pod, and
	// that it was given at its start.
	InheritedSockets int `json:"inheritedSockets,omitempty"`
	// Refusal says why it would not start now. Empty: it would.
	Refusal  string            `json:"refusal,omitempty"`
	Counters map[string]uint64 `json:"counters"`
	Drops    map[string]uint64 `json:"drops"`
	// Acceleration is of its connections to or from the sidecar.
	Acceleration AccelerationStatus `json:"acceleration"`
}

// ReadStatus collects garbage and lists what is there. State that is not
// loaded is no error.
func ReadStatus(state string) (st Status, err error) {
	st = Status{ABI: bpf.ABI, State: state}
	err = IfLoaded(state, func(s *Store) (err error) {
		if _, err := s.Collect(); err != nil {
			return err
		}
		st.Loaded = true
		if st.Guard, err = names(filepath.Join(s.dir, "guard")); err != nil {
			return err
		}
		st.Pods, err = s.podStatus()
		return err
	})
	return st, err
}

// names lists a directory of pins, sorted.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{}, nil // unfinished: the next attach makes it whole
	}
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	list := make([]string, 0, len(entries))
	for _, e := range entries {
		list = append(list, strings.TrimPrefix(e.Name(), "sg_"))
	}
	return list, nil
}

func (s *Store) podStatus() ([]PodStatus, error) {
	cookies, err := s.podCookies()
	if err != nil {
		return nil, err
	}
	addrs, err := keysOf[bpf.PodAddr](s.maps.PodAddrs)
	if err != nil {
		return nil, err
	}
	containers, err := s.containersByPod()
	if err != nil {
		return nil, err
	}
	pods := make([]PodStatus, 0, len(cookies))
	for _, cookie := range cookies {
		var entry bpf.Pod
		var info bpf.PodInfo
		if err := s.maps.Pods.Lookup(cookie, &entry); err != nil {
			return nil, fmt.Errorf("look up pod %d: %w", cookie, err)
		}
		if err := s.maps.PodInfo.Lookup(cookie, &info); err != nil {
			return nil, fmt.Errorf("look up pod %d: %w", cookie, err)
		}
		pol, err := s.policyAt(entry.Policy)
		if err != nil {
			return nil, err
		}
		p := PodStatus{
			Pod:      bpf.CString(info.Pod[:]),
			Policy:   bpf.CString(pol.info.Name[:]),
			Revision: pol.info.Revision,
			Mode:     modeOf(pol.entry).String(),
			Cookie:   cookie,
			NetnsIno: info.NetnsIno,
			Outbound: pol.entry.Outbound,
			Inbound:  pol.entry.Inbound,
			DNS:      pol.entry.Dns,
			TLS:      pol.entry.Tls,
			NonTCP:   policy.ActionDeny.String(),
		}
		if p.Containers, err = s.containerStatus(containers[cookie], &pol); err != nil {
			return nil, err
		}
		if pol.entry.Flags&bpf.PolicyNonTCP != 0 {
			p.NonTCP = policy.ActionAllow.String()
		}
		for _, a := range addrs {
			if a.NetnsCookie == cookie {
				p.Addresses = append(p.Addresses, netip.AddrFrom16(a.Addr.B).Unmap())
			}
		}
		slices.SortFunc(p.Addresses, netip.Addr.Compare)
		if p.Hooks, err = names(s.path("pods", cookie)); err != nil {
			return nil, err
		}
		if p.Listening, err = s.hasListener(cookie); err != nil {
			return nil, err
		}
		if p.TLS != 0 {
			if p.Relayed, err = s.listens(bpf.ListenerKey{NetnsCookie: cookie, Port: p.TLS, Relay: 1}); err != nil {
				return nil, err
			}
		}
		if p.Counters, p.Drops, err = readCounters(s.maps.PodCounters, cookie); err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// idContainer is a container, by its cgroup.
type idContainer struct {
	id    uint64
	entry bpf.Container
}

// containersByPod lists the registered containers by the cookies of their pods. All at once: what is asked for each pod
// must not grow with how many others there are.
func (s *Store) containersByPod() (map[uint64][]idContainer, error) {
	ids, err := s.ids("containers")
	if err != nil {
		return nil, err
	}
	byPod := make(map[uint64][]idContainer)
	for _, id := range ids {
		c := idContainer{id: id}
		if err := s.maps.Containers.Lookup(id, &c.entry); err != nil {
			return nil, fmt.Errorf("look up container of cgroup %d: %w", id, err)
		}
		byPod[c.entry.NetnsCookie] = append(byPod[c.entry.NetnsCookie], c)
	}
	return byPod, nil
}

// containerStatus lists the containers of one pod, oldest first.
func (s *Store) containerStatus(containers []idContainer, pol *applied) ([]ContainerStatus, error) {
	accel, err := s.accelInfo()
	if err != nil {
		return nil, err
	}
	list := []ContainerStatus{}
	for _, one := range containers {
		id, entry := one.id, one.entry
		info, err := s.info(id)
		if err != nil {
			return nil, err
		}
		c := ContainerStatus{
			ID:       bpf.CString(info.Id[:]),
			Name:     bpf.CString(info.Name[:]),
			Runtime:  bpf.CString(info.Runtime[:]),
			Role:     policy.Role(info.Role).String(),
			Policy:   bpf.CString(info.Policy[:]),
			PID:      int(info.Pid),
			CgroupID: id,
			Attached: time.Unix(0, int64(info.AttachedNs)).UTC(),

			Capabilities: adminNames(info.Admin),
			Refusal:      cmp.Or(refusal(info.Admin, entry.Role, pol), socketRefusal(inheritanceOf(info.Inherited), entry.Role, pol)),

			InheritedSockets: int(info.Inherited),
		}
		if c.Cgroup, _, err = s.mount.PathOf(id); err != nil {
			return nil, err
		}
		if c.Hooks, err = names(s.path("containers", id)); err != nil {
			return nil, err
		}
		hooks, err := s.hooksFor(entry, entry.Role, pol)
		if err != nil {
			return nil, err
		}
		for _, h := range hooks {
			if name := strings.TrimPrefix(h.Program, "sg_"); !slices.Contains(c.Hooks, name) {
				c.Missing = append(c.Missing, name)
			}
		}
		if c.Counters, c.Drops, err = readCounters(s.maps.Counters, id); err != nil {
			return nil, err
		}
		off := accelerationOff(policy.Acceleration(pol.info.Accelerate), accel)
		if c.Acceleration, err = s.accelerationStatus(id, off, pol, entry.Role, info.Plain); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b ContainerStatus) int { return a.Attached.Compare(b.Attached) })
	return list, nil
}

// readCounters sums an entry over CPUs and leaves zeros out.
func readCounters(m *ebpf.Map, key uint64) (counts, drops map[string]uint64, err error) {
	var perCPU []bpf.Counters
	if err := m.Lookup(key, &perCPU); err != nil {
		return nil, nil, fmt.Errorf("look up counters of %s: %w", strconv.FormatUint(key, 10), err)
	}
	var sum bpf.Counters
	for _, c := range perCPU {
		sum.Add(c)
	}
	counts, drops = make(map[string]uint64), make(map[string]uint64)
	for _, i := range bpf.CounterInfos() {
		v := sum.V[i.Counter]
		switch {
		case v == 0:
		case i.Drop:
			drops[i.Name] = v
		default:
			counts[i.Name] = v
		}
	}
	return counts, drops, nil
}
