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

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"sidegate/bpf"
)

// podDevices is what devices that come to a managed pod are given.
type podDevices struct {
	store  *Store
	ns     *Netns
	name   string // of the pod
	dir    string // of its pins
	policy *applied
	progs  *bpf.PodPrograms
	links  map[link.ID]bool // that are pinned there
	made   []deviceHook
}

// podDevices opens the programs of a managed pod, and removes the pins of devices
// that it had. The caller closes the programs.
func (s *Store) podDevices(ns *Netns) (*podDevices, error) {
	pol, err := s.podPolicy(ns)
	if err != nil {
		return nil, err
	}
	if pol == nil {
		return nil, fmt.Errorf("network namespace %d is no managed pod's: attach a container of it first", ns.Ino)
	}
	var info bpf.PodInfo
	if err := s.maps.PodInfo.Lookup(ns.Cookie, &info); err != nil {
		return nil, fmt.Errorf("look up pod %d: %w", ns.Cookie, err)
	}
	d := &podDevices{store: s, ns: ns, name: bpf.CString(info.Pod[:]), dir: s.path("pods", ns.Cookie), policy: pol}
	var slot bpf.Slot
	if err := s.maps.PodSlots.Lookup(info.Slot, &slot); err != nil {
		return nil, d.wrap(fmt.Errorf("look up slot %d: %w", info.Slot, err))
	}
	// A process was killed that made it.
	if _, err := os.Stat(d.dir); err != nil || slot.NetnsCookie != ns.Cookie {
		return nil, d.wrap(errors.Join(errors.New("it is only half made: attach its container again"), err))
	}
	if d.links, err = sweepDevices(d.dir); err != nil {
		return nil, d.wrap(err)
	}
	if d.progs, err = s.slotPrograms(info.Slot); err != nil {
		return nil, d.wrap(err)
	}
	return d, nil
}

func (d *podDevices) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("pod %s: %w", d.name, err)
}

// sweepDevices removes the pins in dir whose device is gone, and returns the
// links of the others.
func sweepDevices(dir string) (map[link.ID]bool, error) {
	pins, err := tcxPins(dir)
	if err != nil {
		return nil, err
	}
	links := make(map[link.ID]bool)
	for _, p := range pins {
		if p.index != 0 {
			links[p.id] = true
		} else if err := removePins(p.path); err != nil {
			return nil, err
		}
	}
	return links, nil
}

// has tells whether the hook's device has a link of this pod already. A link
// that is not pinned ends with the process that made it.
func (d *podDevices) has(h deviceHook) (bool, error) {
	if !haveTCX() {
		return h.filtered()
	}
	on, err := h.programsOn()
	return slices.ContainsFunc(on, func(p link.AttachedProgram) bool {
		id, ok := p.LinkID()
		return ok && d.links[id]
	}), err
}

// attach is an attacher that leaves devices alone that have the hook. A filter is
// replaced: it may be that of an earlier pod.
func (d *podDevices) attach(h deviceHook, name string) error {
	has, err := d.has(h)
	if err != nil || has && haveTCX() {
		return err
	}
	if h.pin, err = freePin(d.dir, name); err != nil {
		return err
	}
	if err := h.do(); err != nil {
		return err
	}
	if !has {
		d.made = append(d.made, h)
	}
	return nil
}

// freePin returns a name in dir that no link has. One with an index for a name may
// belong to a device that got another index when it moved.
func freePin(dir, name string) (string, error) {
	for n := 1; ; n++ {
		path := filepath.Join(dir, name)
		if n > 1 {
			path += fmt.Sprint("-", n)
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
}

// undo detaches what attach attached in the current namespace.
func (d *podDevices) undo() error {
	var errs []error
	for _, h := range d.made {
		if haveTCX() {
			errs = append(errs, removePins(h.pin))
		} else {
			errs = append(errs, h.unfilter())
		}
	}
	return errors.Join(errs...)
}

// putHost records the addresses of the node again: a network's gateway is one.
func (d *podDevices) putHost() error {
	if d.policy.entry.Flags&bpf.PolicyWorld == 0 {
		return nil
	}
	return d.store.putHostAddrs()
}

// AddDevice attaches a pod's programs to a veth pair of which the end inner is
// about to be moved into the pod, ns, and outer stays, both in the current
// namespace still, and records addrs as the pod's own: all or nothing. If inner
// has been moved it does what SyncDevices does. Before Linux 6.6 no program of
// inner survives the move, and outer lets nothing pass until SyncDevices.
func (s *Store) AddDevice(ns *Netns, inner, outer string, addrs []netip.Addr) error {
	d, err := s.podDevices(ns)
	if err != nil {
		return fmt.Errorf("add device %s: %w", inner, err)
	}
	defer d.progs.Close()
	if err := d.add(inner, outer, addrs); err != nil {
		return d.wrap(fmt.Errorf("add device %s: %w", inner, explain(err)))
	}
	return nil
}

func (d *podDevices) add(inner, outer string, addrs []netip.Addr) (err error) {
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	in, out, err := pair(nl, inner, outer)
	if err != nil {
		return err
	}
	undo, err := d.putAddrs(addrs)
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	if err != nil {
		return err
	}
	if in == nil {
		nsid, err := nl.GetNetNsIdByFd(int(d.ns.Handle))
		if err != nil {
			return fmt.Errorf("find namespace of pod: %w", err)
		}
		if out.Attrs().NetNsID != nsid {
			return fmt.Errorf("the other end of %s is neither here nor in the pod", outer)
		}
		return d.sync()
	}
	if err := d.disown(in, out); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.undo())
		}
	}()
	index := out.Attrs().Index
	if err := d.attach(deviceHook{dev: in, prog: d.progs.Device, attach: ebpf.AttachTCXEgress}, fmt.Sprint(pinDeviceOf, index)); err != nil {
		return fmt.Errorf("attach to device %s: %w", inner, err)
	}
	if err := d.attach(deviceHook{dev: out, prog: d.progs.Host, attach: ebpf.AttachTCXIngress}, fmt.Sprint(pinHost, index)); err != nil {
		return fmt.Errorf("attach to device %s: %w", outer, err)
	}
	return d.putHost()
}

// pair finds the ends of a veth pair in nl's namespace. Without an error inner's
// may be nil: then it is in another one.
func pair(nl *netlink.Handle, inner, outer string) (in, out netlink.Link, err error) {
	if out, err = nl.LinkByName(outer); err != nil {
		return nil, nil, fmt.Errorf("find device %s: %w", outer, err)
	}
	if out.Type() != "veth" {
		return nil, nil, fmt.Errorf("device %s is of type %s, not an end of a veth pair", outer, out.Type())
	}
	if out.Attrs().NetNsID >= 0 {
		return nil, out, nil
	}
	if in, err = nl.LinkByName(inner); err != nil {
		return nil, nil, fmt.Errorf("find device %s: %w", inner, err)
	}
	if in.Attrs().Index != out.Attrs().ParentIndex {
		return nil, nil, fmt.Errorf("device %s is not the other end of %s", inner, outer)
	}
	return in, out, nil
}

// putAddrs records addresses as the pod's own. The returned func takes those away
// again that were not.
func (d *podDevices) putAddrs(addrs []netip.Addr) (undo func() error, err error) {
	var added []netip.Addr
	undo = func() error { return d.store.deleteAddrs(d.ns.Cookie, added) }
	for _, a := range addrs {
		key := bpf.PodAddr{NetnsCookie: d.ns.Cookie, Addr: bpf.AddrFrom(a)}
		err := d.store.maps.PodAddrs.Update(key, uint8(1), ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if err != nil {
			return undo, fmt.Errorf("put address %s: %w", a, err)
		}
		added = append(added, a)
		if err := d.store.putNodeAddr(a); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

func (s *Store) deleteAddrs(cookie uint64, addrs []netip.Addr) error {
	for _, a := range addrs {
		err := s.maps.PodAddrs.Delete(bpf.PodAddr{NetnsCookie: cookie, Addr: bpf.AddrFrom(a)})
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete address %s: %w", a, err)
		}
	}
	return s.trimNodeAddrs()
}

// pairHooks are those of a pod on a veth pair, without their programs.
func pairHooks(in, out netlink.Link) []deviceHook {
	return []deviceHook{{dev: in, attach: ebpf.AttachTCXEgress}, {dev: out, attach: ebpf.AttachTCXIngress}}
}

// disown detaches what other pods have on a pair of which both ends are here, and
// so in none of them.
func (d *podDevices) disown(in, out netlink.Link) error {
	if !haveTCX() {
		return nil // a filter is replaced
	}
	var theirs []link.ID
	for _, h := range pairHooks(in, out) {
		on, err := h.programsOn()
		if err != nil {
			return err
		}
		for _, p := range on {
			id, ok := p.LinkID()
			if !ok || d.links[id] {
				continue
			}
			pods, err := isPodProgram(p.ID)
			if err != nil {
				return err
			}
			if pods {
				theirs = append(theirs, id)
			}
		}
	}
	if len(theirs) == 0 {
		return nil
	}
	pods, err := d.store.ids("pods")
	if err != nil {
		return err
	}
	for _, pod := range pods {
		if err := detachLinks(d.store.path("pods", pod), theirs); err != nil {
			return fmt.Errorf("detach pod %d: %w", pod, err)
		}
	}
	return nil
}

// isPodProgram tells whether a program has the name of one that pods have.
func isPodProgram(id ebpf.ProgramID) (bool, error) {
	p, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // it was detached meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("open program %d: %w", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return false, fmt.Errorf("look at program %d: %w", id, err)
	}
	_, ok := new(bpf.PodPrograms).Fields()[info.Name]
	return ok, nil
}

// detachLinks detaches the links that are pinned in dir.
func detachLinks(dir string, ids []link.ID) error {
	pins, err := tcxPins(dir)
	if err != nil {
		return err
	}
	for _, p := range pins {
		if slices.Contains(ids, p.id) {
			if err := removePins(p.path); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveDevice undoes AddDevice for the pod with this cookie: addrs are the pod's
// no more, and programs are detached from the pair of outer, a device in the
// current namespace. They stay while the other end is in the pod, which would be
// open without them, and then end with it: their pins go with this call for a
// device that is gone, or the next AddDevice or SyncDevices. A pod that is not
// managed any more is no error.
func (s *Store) RemoveDevice(cookie uint64, outer string, addrs []netip.Addr) error {
	if err := errors.Join(s.deleteAddrs(cookie, addrs), s.removeDevice(cookie, outer)); err != nil {
		return fmt.Errorf("remove device %s: %w", outer, err)
	}
	return nil
}

func (s *Store) removeDevice(cookie uint64, outer string) error {
	dir := s.path("pods", cookie)
	if _, err := sweepDevices(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	out, err := netlink.LinkByName(outer)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device: %w", err)
	}
	if out.Type() != "veth" || out.Attrs().NetNsID >= 0 {
		return nil
	}
	in, err := netlink.LinkByIndex(out.Attrs().ParentIndex)
	if err != nil {
		return fmt.Errorf("find other end: %w", err)
	}
	for _, h := range pairHooks(in, out) {
		if !haveTCX() {
			if err := h.unfilter(); err != nil {
				return err
			}
			continue
		}
		on, err := h.programsOn()
		if err != nil {
			return err
		}
		var ids []link.ID
		for _, p := range on {
			if id, ok := p.LinkID(); ok {
				ids = append(ids, id)
			}
		}
		if err := detachLinks(dir, ids); err != nil {
			return err
		}
	}
	return nil
}

// SyncDevices attaches to the devices in a managed pod, and to their other ends in
// the current namespace, that have no program of the pod yet, and records
// addresses that are new. What it has attached stays if it fails later.
func (s *Store) SyncDevices(ns *Netns) error {
	d, err := s.podDevices(ns)
	if err != nil {
		return fmt.Errorf("sync devices: %w", err)
	}
	defer d.progs.Close()
	if err := d.sync(); err != nil {
		return d.wrap(fmt.Errorf("sync devices: %w", explain(err)))
	}
	return nil
}

func (d *podDevices) sync() error {
	var peers []peer
	err := d.ns.Do(func() error {
		nl, err := openNetlink()
		if err != nil {
			return err
		}
		defer nl.Close()
		if err := d.store.putAddrs(nl, d.ns.Cookie); err != nil {
			return err
		}
		peers, err = attachDevices(nl, d.progs, d.attach)
		return err
	})
	if err != nil {
		return err
	}
	if err := attachPeers(d.progs, d.ns, peers, d.attach); err != nil {
		return err
	}
	return d.putHost()
}
