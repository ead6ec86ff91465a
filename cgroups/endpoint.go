// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"sidegate/bpf"
)

// Endpoint is what a network driver says of a veth pair that it made.
type Endpoint struct {
	Name   string           // of the host's end, a device in the current namespace
	MAC    net.HardwareAddr // of the container's end, like the addresses
	V4, V6 netip.Addr       // not valid: it has none
	Open   bool             // open at once
}

// EndpointStatus is one guarded endpoint.
type EndpointStatus struct {
	Name  string            `json:"name"`
	Index int               `json:"ifindex"` // of the host's end
	Open  bool              `json:"open"`
	MAC   string            `json:"mac"`
	V4    netip.Addr        `json:"ipv4,omitzero"`
	V6    netip.Addr        `json:"ipv6,omitzero"`
	Drops map[string]uint64 `json:"drops"` // by reason, only those above zero
}

// Where the state has what is guarded: programs and maps of all endpoints, which
// are loaded for the first one, and a directory of links for each.
const (
	endpointRoot    = "endpoints"
	endpointDevices = endpointRoot + "/devices"
)

// endpointPrio is of the filters of kernels without tcx: they run after a pod's.
const endpointPrio = filterPrio + 1

// guarded is an endpoint that has a directory.
type guarded struct {
	name  string
	index int
	dir   string
}

// A BPF file system reserves names that have a dot, and no device has a %.
func (s *Store) endpointOf(name string, index int) guarded {
	dir := filepath.Join(s.dir, endpointDevices, strconv.Itoa(index)+"-"+strings.ReplaceAll(name, ".", "%"))
	return guarded{name: name, index: index, dir: dir}
}

// guardedEndpoints returns all that have a directory, by index.
func (s *Store) guardedEndpoints() ([]guarded, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, endpointDevices))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	var all []guarded
	for _, e := range entries {
		number, name, _ := strings.Cut(e.Name(), "-")
		if index, err := strconv.Atoi(number); err == nil {
			all = append(all, s.endpointOf(strings.ReplaceAll(name, "%", "."), index))
		}
	}
	slices.SortFunc(all, func(a, b guarded) int { return a.index - b.index })
	return all, nil
}

// named returns the endpoints whose device had this name when it was guarded:
// more than one if devices of that name ended.
func (s *Store) named(name string) ([]guarded, error) {
	all, err := s.guardedEndpoints()
	return slices.DeleteFunc(all, func(g guarded) bool { return g.name != name }), err
}

// hooks are those of a guarded device.
func (g guarded) hooks(dev netlink.Link, set *bpf.Endpoints) []deviceHook {
	return []deviceHook{
		{dev: dev, prog: set.From, attach: ebpf.AttachTCXIngress, prio: endpointPrio, pin: "from"},
		{dev: dev, prog: set.To, attach: ebpf.AttachTCXEgress, prio: endpointPrio, pin: "to"},
	}
}

// attached counts the hooks that the device has, which is not the one that had
// its index before: a link knows its device, and a filter ends with it.
func (g guarded) attached(set *bpf.Endpoints) (n int, err error) {
	if haveTCX() {
		pins, err := tcxPins(g.dir)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		for _, p := range pins {
			if p.index == g.index {
				n++
			}
		}
		return n, err
	}
	if _, err := os.Stat(g.dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return 0, err
	}
	dev, err := netlink.LinkByIndex(g.index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find device %d: %w", g.index, err)
	}
	for _, h := range g.hooks(dev, set) {
		has, err := h.filtered()
		if err != nil {
			return 0, err
		}
		if has {
			n++
		}
	}
	return n, nil
}

const endpointHooks = 2

// entry is what the programs know of it.
func (e *Endpoint) entry() (bpf.Endpoint, error) {
	if len(e.MAC) != 6 {
		return bpf.Endpoint{}, fmt.Errorf("MAC address %q is not of Ethernet", e.MAC)
	}
	if e.V4.IsValid() && !e.V4.Is4() || e.V6.IsValid() && (!e.V6.Is6() || e.V6.Is4In6()) {
		return bpf.Endpoint{}, fmt.Errorf("addresses %s and %s are not one of IPv4 and one of IPv6", e.V4, e.V6)
	}
	var flags uint8
	if e.Open {
		flags = bpf.EndpointOpen
	}
	return bpf.NewEndpoint([6]byte(e.MAC), e.V4, e.V6.WithZone(""), flags), nil
}

// GuardEndpoint attaches to the host's end of a veth pair, in both directions:
// through it passes nothing while the endpoint is closed, and then nothing that
// claims another address than e's. All or nothing. One that is guarded already
// gets e's addresses and stays open if it was; any other is closed, unless
// e.Open is set. What is attached stays for the device's life, or until
// ForgetEndpoint.
func (s *Store) GuardEndpoint(e *Endpoint) error {
	if err := s.guardEndpoint(e); err != nil {
		return fmt.Errorf("guard endpoint %s: %w", e.Name, explain(err))
	}
	return nil
}

func (s *Store) guardEndpoint(e *Endpoint) error {
	entry, err := e.entry()
	if err != nil {
		return err
	}
	// Also what a process left that was killed earlier.
	if err := s.sweep(); err != nil {
		return err
	}
	set, err := s.openEndpoints(true)
	if err != nil {
		return err
	}
	dev, err := netlink.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("find device: %w", err)
	}
	g := s.endpointOf(e.Name, dev.Attrs().Index)
	n, err := g.attached(set)
	if err != nil {
		return err
	}
	switch n {
	case 0:
		err = s.newEndpoint(g, dev, set, entry)
	case endpointHooks:
		err = s.renewEndpoint(g, set, entry)
	default:
		err = s.mendEndpoint(g, dev, set, entry)
	}
	if err != nil {
		return err
	}
	others, err := s.guardedEndpoints()
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.index == g.index && o.dir != g.dir { // a device that is gone, or another name of this one
			if err := removePins(o.dir); err != nil {
				return fmt.Errorf("forget endpoint %s: %w", o.name, err)
			}
		}
	}
	return nil
}

// newEndpoint guards a device that was not: what the state has of its index is
// of another one.
func (s *Store) newEndpoint(g guarded, dev netlink.Link, set *bpf.Endpoints, entry bpf.Endpoint) error {
	err := removePins(g.dir)
	if err == nil {
		err = s.putEndpoint(g, set, entry)
	}
	if err == nil {
		err = s.transaction(g.dir, func(tmp string) error {
			for _, h := range g.hooks(dev, set) {
				h.pin = filepath.Join(tmp, h.pin)
				if err := h.do(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return errors.Join(err, s.forget(g, set))
	}
	return nil
}

// mendEndpoint guards a device that has lost a hook, and closes it meanwhile.
func (s *Store) mendEndpoint(g guarded, dev netlink.Link, set *bpf.Endpoints, entry bpf.Endpoint) error {
	closed := entry
	closed.Flags &^= bpf.EndpointOpen
	if err := s.putEndpoint(g, set, closed); err != nil {
		return err
	}
	live := make(map[string]bool)
	if haveTCX() {
		pins, err := tcxPins(g.dir)
		if err != nil {
			return err
		}
		for _, p := range pins {
			live[p.path] = p.index == g.index
		}
	}
	for _, h := range g.hooks(dev, set) {
		h.pin = filepath.Join(g.dir, h.pin)
		if live[h.pin] {
			continue
		}
		if err := removePins(h.pin); err != nil {
			return err
		}
		if err := h.do(); err != nil {
			return err
		}
	}
	return updateEndpoint(g, set, entry)
}

// renewEndpoint writes the entry of one that is guarded, and leaves it open if it
// was.
func (s *Store) renewEndpoint(g guarded, set *bpf.Endpoints, entry bpf.Endpoint) error {
	var have bpf.Endpoint
	err := set.Entries.Lookup(uint32(g.index), &have)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return s.putEndpoint(g, set, entry)
	}
	if err != nil {
		return fmt.Errorf("look up endpoint: %w", err)
	}
	entry.Flags |= have.Flags & bpf.EndpointOpen
	return updateEndpoint(g, set, entry)
}

// putEndpoint writes the entries of an endpoint that is new.
func (s *Store) putEndpoint(g guarded, set *bpf.Endpoints, entry bpf.Endpoint) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	if err := set.Counters.Put(uint32(g.index), make([]bpf.EndpointCounters, cpus)); err != nil {
		return fmt.Errorf("put counters of endpoint: %w", err)
	}
	return updateEndpoint(g, set, entry)
}

// updateEndpoint writes an entry as a whole: no program sees half of it.
func updateEndpoint(g guarded, set *bpf.Endpoints, entry bpf.Endpoint) error {
	if err := set.Entries.Put(uint32(g.index), entry); err != nil {
		return fmt.Errorf("put endpoint: %w", err)
	}
	return nil
}

// OpenEndpoint lets pass what claims to be the endpoint's, and all that goes to
// it. The device must be in the current namespace, and guarded.
func (s *Store) OpenEndpoint(name string) error {
	set, err := s.openEndpoints(false)
	if err != nil {
		return fmt.Errorf("open endpoint %s: %w", name, err)
	}
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("open endpoint %s: find device: %w", name, err)
	}
	g := s.endpointOf(name, dev.Attrs().Index)
	n := 0
	if set != nil {
		if n, err = g.attached(set); err != nil {
			return fmt.Errorf("open endpoint %s: %w", name, err)
		}
	}
	if n < endpointHooks {
		return fmt.Errorf("open endpoint %s: it is not guarded", name)
	}
	if err := setOpen(g, set, true); err != nil {
		return fmt.Errorf("open endpoint %s: %w", name, err)
	}
	return nil
}

// CloseEndpoint lets nothing pass any more. An endpoint that is not guarded is an
// error if its device is in the current namespace.
func (s *Store) CloseEndpoint(name string) error {
	set, err := s.openEndpoints(false)
	if err != nil {
		return fmt.Errorf("close endpoint %s: %w", name, err)
	}
	all, err := s.named(name)
	if err != nil {
		return fmt.Errorf("close endpoint %s: %w", name, err)
	}
	for _, g := range all {
		// Without an entry it is closed.
		if err := setOpen(g, set, false); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("close endpoint %s: %w", name, err)
		}
	}
	if len(all) > 0 {
		return nil
	}
	_, err = netlink.LinkByName(name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return nil
	case err != nil:
		return fmt.Errorf("close endpoint %s: find device: %w", name, err)
	}
	return fmt.Errorf("close endpoint %s: it is not guarded", name)
}

func setOpen(g guarded, set *bpf.Endpoints, open bool) error {
	var entry bpf.Endpoint
	if err := set.Entries.Lookup(uint32(g.index), &entry); err != nil {
		return fmt.Errorf("look up endpoint: %w", err)
	}
	entry.Flags &^= bpf.EndpointOpen
	if open {
		entry.Flags |= bpf.EndpointOpen
	}
	return updateEndpoint(g, set, entry)
}

// ForgetEndpoint detaches from the device and removes all that is known of it.
// A device that still exists is not guarded any more: it is for one that is
// gone, or about to be. Nothing to forget is no error.
func (s *Store) ForgetEndpoint(name string) error {
	set, err := s.openEndpoints(false)
	if err != nil || set == nil {
		return err
	}
	all, err := s.named(name)
	if err != nil {
		return err
	}
	for _, g := range all {
		if err := s.forget(g, set); err != nil {
			return fmt.Errorf("forget endpoint %s: %w", name, err)
		}
	}
	return nil
}

// forget removes an endpoint. The entry goes first: if the rest fails, it is closed.
func (s *Store) forget(g guarded, set *bpf.Endpoints) error {
	errs := []error{deleteEndpoint(set, uint32(g.index))}
	if !haveTCX() {
		dev, err := netlink.LinkByIndex(g.index)
		switch {
		case err == nil:
			for _, h := range g.hooks(dev, set) {
				errs = append(errs, h.unfilter())
			}
		case !errors.As(err, &netlink.LinkNotFoundError{}):
			errs = append(errs, fmt.Errorf("find device %d: %w", g.index, err))
		}
	}
	return errors.Join(append(errs, removePins(g.dir))...)
}

func deleteEndpoint(set *bpf.Endpoints, index uint32) error {
	for _, m := range set.Maps() {
		if err := (*m).Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete endpoint %d: %w", index, err)
		}
	}
	return nil
}

// CollectEndpoints forgets the endpoints whose device is gone, and what was left
// half-made, and returns how many. Before Linux 6.6 devices of another namespace
// than the current one count as gone.
func (s *Store) CollectEndpoints() (int, error) {
	set, err := s.openEndpoints(false)
	if err != nil || set == nil {
		return 0, err
	}
	if err := s.sweep(); err != nil {
		return 0, err
	}
	all, err := s.guardedEndpoints()
	if err != nil {
		return 0, err
	}
	kept := make(map[uint32]bool)
	var gone []guarded
	for _, g := range all {
		n, err := g.attached(set)
		switch {
		case err != nil:
			return 0, err
		case n > 0:
			kept[uint32(g.index)] = true
		default:
			gone = append(gone, g)
		}
	}
	for _, g := range gone {
		if kept[uint32(g.index)] { // its index is another one's now
			err = removePins(g.dir)
		} else {
			err = s.forget(g, set)
		}
		if err != nil {
			return 0, fmt.Errorf("forget endpoint %s: %w", g.name, err)
		}
	}
	for _, m := range set.Maps() {
		if err := deleteKeys(*m, func(k *uint32) bool { return !kept[*k] }); err != nil {
			return 0, err
		}
	}
	return len(gone), nil
}

// Endpoints lists the guarded endpoints, by index. Whether their devices are
// still there CollectEndpoints asks.
func (s *Store) Endpoints() ([]EndpointStatus, error) {
	list := []EndpointStatus{}
	set, err := s.openEndpoints(false)
	if err != nil || set == nil {
		return list, err
	}
	all, err := s.guardedEndpoints()
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		st := EndpointStatus{Name: g.name, Index: g.index, Drops: map[string]uint64{}}
		if err := st.read(set); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("look up endpoint %s: %w", g.name, err)
		}
		list = append(list, st)
	}
	return list, nil
}

func (st *EndpointStatus) read(set *bpf.Endpoints) error {
	var e bpf.Endpoint
	if err := set.Entries.Lookup(uint32(st.Index), &e); err != nil {
		return err
	}
	st.Open = e.Flags&bpf.EndpointOpen != 0
	st.MAC = net.HardwareAddr(e.Mac[:]).String()
	if a := netip.AddrFrom16(e.V4.B); a.Is4In6() {
		st.V4 = a.Unmap()
	}
	if a := netip.AddrFrom16(e.V6.B); !a.IsUnspecified() {
		st.V6 = a
	}
	var perCPU []bpf.EndpointCounters
	if err := set.Counters.Lookup(uint32(st.Index), &perCPU); err != nil {
		return err
	}
	var sum bpf.EndpointCounters
	for _, c := range perCPU {
		sum.Add(c)
	}
	for i, name := range bpf.EndpointDrops() {
		if n := sum.V[i]; n > 0 {
			st.Drops[name] = n
		}
	}
	return nil
}

// endpointsLoaded tells whether an endpoint was ever guarded.
func (s *Store) endpointsLoaded() bool {
	_, err := os.Stat(filepath.Join(s.dir, endpointRoot))
	return err == nil
}

// openEndpoints opens what is loaded for endpoints, which stays open until Close.
// It is nil if nothing is; with load it is loaded then.
func (s *Store) openEndpoints(load bool) (_ *bpf.Endpoints, err error) {
	if s.endpoints != nil {
		return s.endpoints, nil
	}
	root := filepath.Join(s.dir, endpointRoot)
	_, err = os.Stat(root)
	switch {
	case err == nil:
		s.endpoints, err = loadPinnedEndpoints(root)
	case !errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("look for endpoints: %w", err)
	case load:
		s.endpoints, err = s.loadEndpoints(root)
	default:
		err = nil
	}
	return s.endpoints, err
}

func (s *Store) loadEndpoints(root string) (*bpf.Endpoints, error) {
	set, err := bpf.LoadEndpoints()
	if err != nil {
		return nil, err
	}
	err = s.transaction(root, func(tmp string) error {
		for _, sub := range []string{"progs", "maps", "devices"} {
			if err := os.Mkdir(filepath.Join(tmp, sub), 0o700); err != nil {
				return err
			}
		}
		for name, p := range set.Programs() {
			if err := (*p).Pin(filepath.Join(tmp, "progs", name)); err != nil {
				return err
			}
		}
		for name, m := range set.Maps() {
			if err := (*m).Pin(filepath.Join(tmp, "maps", name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pin programs of endpoints: %w", err), set.Close())
	}
	return set, nil
}

func loadPinnedEndpoints(root string) (_ *bpf.Endpoints, err error) {
	set := new(bpf.Endpoints)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open programs of endpoints: %w", err), set.Close())
		}
	}()
	for name, p := range set.Programs() {
		if *p, err = ebpf.LoadPinnedProgram(filepath.Join(root, "progs", name), nil); err != nil {
			return nil, err
		}
	}
	for name, m := range set.Maps() {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(root, "maps", name), nil); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// forgetEndpoints forgets all, if there are none whose device is there or force
// is set.
func (s *Store) forgetEndpoints(force bool) error {
	if _, err := s.CollectEndpoints(); err != nil {
		return err
	}
	all, err := s.guardedEndpoints()
	if err != nil || len(all) == 0 {
		return err
	}
	if !force {
		return fmt.Errorf("%w: %d endpoints are guarded; remove their networks' containers, or use --force to let them run on without enforcement",
			ErrManaged, len(all))
	}
	for _, g := range all {
		if err := s.forget(g, s.endpoints); err != nil {
			return fmt.Errorf("forget endpoint %s: %w", g.name, err)
		}
	}
	return nil
}
