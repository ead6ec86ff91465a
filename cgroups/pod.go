// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"sidegate/bpf"
	"sidegate/policy"
)

const (
	pinLookup      = "lookup"
	pinLoopback    = "loopback"
	pinLoopbackOut = "loopback-out"
	pinDevice      = "device-"    // and the device's index
	pinDeviceOf    = "device-of-" // and the index of the other end of one that came later
	pinHost        = "host-"      // and the index of the device's other end
)

// PodSpec is what a front-end knows of a pod.
type PodSpec struct {
	Pod string // what people call it, or the sandbox id
	// Policy is what it is under from now on. If it is nil, that is the policy
	// named PolicyName as the kernel has it already.
	Policy     *policy.Compiled
	PolicyName string
	Source     Source // of Policy

	container string // that it is made for, or ""
}

// who asks for the pod.
func (p *PodSpec) who() string {
	if p.container != "" {
		return "container " + p.container
	}
	return "pod " + p.Pod
}

// Manage makes a network namespace a managed pod before any container of it is
// there: from now on nothing in it has sockets but containers that are attached
// or adopted. All or nothing. A pod that is managed already, under the same
// policy, is left as it is. Like every pod it stays until Collect finds neither a
// container nor a process in it.
func (s *Store) Manage(ns *Netns, p *PodSpec) error {
	if err := refuseHost(ns, p); err != nil {
		return err
	}
	pol, err := s.policyFor(p)
	if err != nil {
		return fmt.Errorf("pod %s: %w", p.Pod, err)
	}
	if _, err := s.ensurePod(p, ns, pol); err != nil {
		return errors.Join(fmt.Errorf("manage pod %s: %w", p.Pod, err), s.dropUnusedPolicies())
	}
	return nil
}

// policyFor returns the policy that the pod is to be under.
func (s *Store) policyFor(p *PodSpec) (*applied, error) {
	if p.Policy != nil {
		pol, err := s.usePolicy(p.Policy, p.Source)
		if err != nil {
			return nil, fmt.Errorf("policy %s: %w", p.Policy.Name, err)
		}
		return pol, nil
	}
	pol, err := s.appliedPolicy(p.PolicyName)
	if err == nil && pol == nil {
		err = fmt.Errorf("policy %q is not in the kernel", p.PolicyName)
	}
	return pol, err
}

// ensurePod makes a network namespace a managed pod, or checks that it is one
// under the same policy. The returned func undoes what it did.
func (s *Store) ensurePod(p *PodSpec, ns *Netns, pol *applied) (undo func() error, err error) {
	undo = func() error { return nil }
	var have bpf.Pod
	err = s.maps.Pods.Lookup(ns.Cookie, &have)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return undo, fmt.Errorf("look up pod: %w", err)
	}
	if err == nil {
		if err := s.checkPolicy(p, pol, have); err != nil {
			return undo, err
		}
		_, err := os.Stat(s.path("pods", ns.Cookie))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return undo, err
		}
		// A process was killed after it had made the pod known and before it
		// had made its links so. The entry stays, and keeps the pod closed.
	}
	// Also what a process left that was killed earlier.
	if err := errors.Join(s.freeSlot(ns.Cookie), s.sweep()); err != nil {
		return undo, err
	}
	undo = func() error { return s.removePod(ns.Cookie) }
	if err := s.addPod(p, ns, pol); err != nil {
		return undo, errors.Join(explain(err), undo())
	}
	return undo, nil
}

// checkPolicy compares with what the pod's first container brought. One pod
// has one set of ports and rules.
func (s *Store) checkPolicy(p *PodSpec, want *applied, have bpf.Pod) error {
	if have.Policy == want.slot {
		return nil
	}
	pol, err := s.policyAt(have.Policy)
	if err != nil {
		return err
	}
	name := bpf.CString(pol.info.Name[:])
	return fmt.Errorf("pod is under policy %q, %s asks for %q: one pod has one policy, "+
		"set sidegate/policy=%s there too", name, p.who(), bpf.CString(want.info.Name[:]), name)
}

// addPod attaches what a pod needs and makes the pod known last: from then on
// the guard closes its namespace. The caller undoes it on error.
func (s *Store) addPod(p *PodSpec, ns *Netns, pol *applied) error {
	slot, progs, err := s.takeSlot()
	if err != nil {
		return err
	}
	defer progs.Close()
	// Before the slot is taken: what is left of a killed process is found by it.
	info := bpf.PodInfo{Slot: slot, NetnsIno: ns.Ino, NetnsDev: ns.Dev}
	bpf.SetCString(info.Pod[:], p.Pod)
	if err := s.maps.PodInfo.Put(ns.Cookie, info); err != nil {
		return fmt.Errorf("put pod info: %w", err)
	}
	if err := s.maps.PodSlots.Put(slot, bpf.NewSlot(ns.Cookie)); err != nil {
		return fmt.Errorf("take slot %d: %w", slot, err)
	}
	if err := putCounters[bpf.Counters](s.maps.PodCounters, ns.Cookie); err != nil {
		return err
	}
	if err := s.maps.Pending.Put(ns.Cookie, uint64(0)); err != nil {
		return fmt.Errorf("put pending connections: %w", err)
	}
	if pol.entry.Flags&bpf.PolicyWorld != 0 {
		if err := s.putHostAddrs(); err != nil {
			return err
		}
	}
	return s.transaction(s.path("pods", ns.Cookie), func(tmp string) error {
		var peers []peer
		attach := func(h deviceHook, name string) error {
			h.pin = filepath.Join(tmp, name)
			return h.do()
		}
		err := ns.Do(func() error {
			nl, err := openNetlink()
			if err != nil {
				return err
			}
			defer nl.Close()
			if err := s.putAddrs(nl, ns.Cookie); err != nil {
				return err
			}
			if peers, err = attachDevices(nl, progs, attach); err != nil {
				return err
			}
			return reservePorts("/proc/sys/net/ipv4", pol.entry)
		})
		if err != nil {
			return err
		}
		if err := attachPeers(progs, ns, peers, attach); err != nil {
			return err
		}
		l, err := link.AttachNetNs(int(ns.Handle), progs.Lookup)
		if err != nil {
			return fmt.Errorf("attach sk_lookup: %w", err)
		}
		defer l.Close()
		if err := l.Pin(filepath.Join(tmp, pinLookup)); err != nil {
			return err
		}
		if err := s.maps.Pods.Put(ns.Cookie, bpf.Pod{Policy: pol.slot}); err != nil {
			return fmt.Errorf("put pod: %w", err)
		}
		return nil
	})
}

// peer is where the other end of a pod's veth pair should be: the device with
// index in this namespace, if that one's other end is back.
type peer struct{ index, back int }

// attacher attaches a hook and pins it by this name.
type attacher func(h deviceHook, name string) error

// attachDevices attaches to every device of nl's namespace, which is the current
// one, and returns the other ends of those that have one.
func attachDevices(nl *netlink.Handle, progs *bpf.PodPrograms, attach attacher) (peers []peer, err error) {
	links, err := dump(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		device := func(prog *ebpf.Program, at ebpf.AttachType, name string) error {
			if err := attach(deviceHook{dev: l, prog: prog, attach: at}, name); err != nil {
				return fmt.Errorf("attach to device %s: %w", a.Name, err)
			}
			return nil
		}
		if l.Type() == "loopback" || a.Name == "lo" {
			// The end that marks before the end that wants the mark.
			if err := device(progs.LoopbackOut, ebpf.AttachTCXEgress, pinLoopbackOut); err != nil {
				return nil, err
			}
			err = device(progs.Loopback, ebpf.AttachTCXIngress, pinLoopback)
		} else {
			err = device(progs.Device, ebpf.AttachTCXEgress, fmt.Sprint(pinDevice, a.Index))
		}
		if err != nil {
			return nil, err
		}
		if l.Type() == "veth" && a.ParentIndex != 0 {
			peers = append(peers, peer{index: a.ParentIndex, back: a.Index})
		}
	}
	return peers, nil
}

// attachPeers attaches to the other ends that are in this thread's namespace,
// where nobody in the pod can reach. A device that only happens to have the
// index says that its own other end is elsewhere.
func attachPeers(progs *bpf.PodPrograms, ns *Netns, peers []peer, attach attacher) error {
	if len(peers) == 0 {
		return nil
	}
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	nsid, err := nl.GetNetNsIdByFd(int(ns.Handle))
	if err != nil {
		return fmt.Errorf("find namespace of pod: %w", err)
	}
	for _, p := range peers {
		l, err := nl.LinkByIndex(p.index)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find device %d: %w", p.index, err)
		}
		if a := l.Attrs(); l.Type() != "veth" || a.ParentIndex != p.back || a.NetNsID != nsid {
			continue
		}
		hook := deviceHook{dev: l, prog: progs.Host, attach: ebpf.AttachTCXIngress}
		if err := attach(hook, fmt.Sprint(pinHost, p.index)); err != nil {
			return fmt.Errorf("attach to device %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// putAddrs records the addresses of nl's namespace as the pod's own.
func (s *Store) putAddrs(nl *netlink.Handle, cookie uint64) error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		key := bpf.PodAddr{NetnsCookie: cookie, Addr: bpf.AddrFrom(ip)}
		if err := s.maps.PodAddrs.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("put address %s: %w", ip, err)
		}
		if err := s.putNodeAddr(ip); err != nil {
			return err
		}
	}
	return nil
}

// putHostAddrs records the addresses of this thread's namespace as the node's.
// Of those that went, an entry stays until nothing is loaded: it lets nothing
// through that a rule about this host did not mean then.
func (s *Store) putHostAddrs() error {
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of the node: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.IsLoopback() {
			continue
		}
		if err := s.maps.HostAddrs.Put(bpf.AddrFrom(ip), uint8(1)); err != nil {
			return fmt.Errorf("put address %s of the node: %w", ip, err)
		}
	}
	return nil
}

// removePod opens a pod's namespace again and removes all that it had.
func (s *Store) removePod(cookie uint64) error {
	errs := []error{s.removeFilters(cookie)}
	if err := removePins(s.path("pods", cookie)); err != nil {
		errs = append(errs, fmt.Errorf("detach pod %d: %w", cookie, err))
	}
	if errors.Join(errs...) == nil { // else its programs may still be attached
		errs = append(errs, s.freeSlot(cookie))
	}
	errs = append(errs,
		deleteKeys(s.maps.Origdst, func(k *bpf.Tuple) bool { return k.NetnsCookie == cookie }),
		deleteKeys(s.maps.TLSTargets, func(k *bpf.TLSTarget) bool { return k.NetnsCookie == cookie }),
		deleteEntries[bpf.PodAddr, uint8](s.maps.PodAddrs, func(k *bpf.PodAddr) bool { return k.NetnsCookie == cookie }),
		deleteEntries[bpf.Seen, bpf.SeenCount](s.maps.Seen, func(k *bpf.Seen) bool { return k.NetnsCookie == cookie }),
		deleteEntries[bpf.SeenUnix, bpf.SeenCount](s.maps.SeenUnix, func(k *bpf.SeenUnix) bool { return k.NetnsCookie == cookie }))
	for _, m := range []*ebpf.Map{s.maps.Pods, s.maps.PodCounters, s.maps.PodInfo, s.maps.Pending, s.maps.TLSRings} {
		if err := m.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("delete pod %d: %w", cookie, err))
		}
	}
	return errors.Join(append(errs, s.dropUnusedPolicies())...)
}

// collectPods removes the pods that nothing is left of but process dying, and says so in n.
func (s *Store) collectPods(dying int, n *Collected) error {
	cookies, err := s.podCookies()
	if err != nil || len(cookies) == 0 {
		return err
	}
	busy := make(map[uint64]bool)
	_, containers, err := entriesOf[uint64, bpf.Container](s.maps.Containers)
	if err != nil {
		return err
	}
	for _, c := range containers {
		busy[c.NetnsCookie] = true
	}
	infos := make(map[uint64]bpf.PodInfo, len(cookies))
	inodes := make(map[uint64]uint64)
	for _, cookie := range cookies {
		var info bpf.PodInfo
		err := s.maps.PodInfo.Lookup(cookie, &info)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look up pod: %w", err)
		}
		infos[cookie] = info
		if err == nil && !busy[cookie] {
			inodes[cookie] = info.NetnsIno
		}
	}
	var used map[uint64]bool
	if len(inodes) > 0 {
		if used, err = netnsInUse(inodes, dying); err != nil {
			return err
		}
	}
	for _, cookie := range cookies {
		if busy[cookie] || used[cookie] {
			info := infos[cookie]
			n.Left = append(n.Left, bpf.CString(info.Pod[:]))
			continue
		}
		if err := s.removePod(cookie); err != nil {
			return err
		}
		n.Pods++
	}
	if n.Pods == 0 {
		return nil
	}
	return s.trimNodeAddrs()
}

// podCookies returns all pods that have pins or a map entry, sorted.
func (s *Store) podCookies() ([]uint64, error) {
	cookies, err := s.ids("pods")
	if err != nil {
		return nil, err
	}
	for _, m := range []*ebpf.Map{s.maps.Pods, s.maps.PodInfo} {
		keys, err := keysOf[uint64](m)
		if err != nil {
			return nil, err
		}
		cookies = append(cookies, keys...)
	}
	slices.Sort(cookies)
	return slices.Compact(cookies), nil
}

// reservePorts keeps the kernel from choosing a port of the sidecar as a
// client's: such a choice passes no bind hook, and the sidecar could not start
// while the client's connection lives. dir is the namespace's net/ipv4.
func reservePorts(dir string, pol bpf.Policy) error {
	var lo, hi uint16
	b, err := os.ReadFile(filepath.Join(dir, "ip_local_port_range"))
	if err != nil {
		return fmt.Errorf("read local port range: %w", err)
	}
	if _, err := fmt.Sscan(string(b), &lo, &hi); err != nil {
		return fmt.Errorf("read local port range %q: %w", b, err)
	}
	var add []string
	for _, r := range pol.Reserved[:pol.Nreserved] {
		if r.Hi >= lo && r.Lo <= hi {
			add = append(add, fmt.Sprintf("%d-%d", r.Lo, r.Hi))
		}
	}
	if len(add) == 0 {
		return nil
	}
	file := filepath.Join(dir, "ip_local_reserved_ports")
	b, err = os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read reserved ports: %w", err)
	}
	if have := strings.TrimSpace(string(b)); have != "" {
		add = append(add, have)
	}
	if err := os.WriteFile(file, []byte(strings.Join(add, ",")), 0); err != nil {
		return fmt.Errorf("reserve the sidecar's ports: %w", err)
	}
	return nil
}

// PolicyOf returns the name of the policy of the pod that ns is, or "" if it is
// no managed pod.
func (s *Store) PolicyOf(ns *Netns) (string, error) {
	pol, err := s.podPolicy(ns)
	if err != nil || pol == nil {
		return "", err
	}
	return bpf.CString(pol.info.Name[:]), nil
}

// podPolicy returns what the pod is under, or nil if ns is no managed pod's.
func (s *Store) podPolicy(ns *Netns) (*applied, error) {
	var pod bpf.Pod
	err := s.maps.Pods.Lookup(ns.Cookie, &pod)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up pod: %w", err)
	}
	pol, err := s.policyAt(pod.Policy)
	return &pol, err
}
