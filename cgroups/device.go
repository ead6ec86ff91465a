// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// deviceHook is one program on one device of the current namespace.
type deviceHook struct {
	dev    netlink.Link
	prog   *ebpf.Program
	attach ebpf.AttachType // AttachTCXEgress or AttachTCXIngress
	pin    string
	prio   uint16 // of a filter, where a device has several; 0: filterPrio
}

// attachTries and attachInterval bound how long do waits for the kernel.
const (
	attachTries    = 100
	attachInterval = 5 * time.Millisecond
)

// do attaches by a tcx link (6.6), which nobody in the pod can remove. Older
// kernels get a clsact filter, which CAP_NET_ADMIN in the pod can.
func (h deviceHook) do() error {
	var l link.Link
	var err error
	for try := 1; ; try++ {
		l, err = link.AttachTCX(link.TCXOptions{
			Interface: h.dev.Attrs().Index,
			Program:   h.prog,
			Attach:    h.attach,
			Anchor:    link.Head(),
		})
		// A process that attached was killed before it pinned: the kernel puts off
		// when to detach.
		if !errors.Is(err, unix.EEXIST) || try == attachTries {
			break
		}
		time.Sleep(attachInterval)
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return h.filter()
	}
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Pin(h.pin)
}

// openNetlink opens one socket in the current namespace for several requests.
func openNetlink() (*netlink.Handle, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	// Which a request without a handle sets by itself.
	if err := nl.SetSocketTimeout(netlink.GetSocketTimeout()); err != nil {
		nl.Close()
		return nil, fmt.Errorf("set timeout of netlink: %w", err)
	}
	return nl, nil
}

// dumpTries bounds how often dump asks again.
const dumpTries = 10

// dump asks again when the kernel says that what it listed changed meanwhile.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return all, err
		}
	}
}

const (
	filterName   = "sidegate"
	filterPrio   = 1
	filterHandle = 0x51de
)

func (h deviceHook) filter() error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: h.dev.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	f := h.bpfFilter()
	f.Fd = h.prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

func (h deviceHook) bpfFilter() *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if h.attach == ebpf.AttachTCXIngress {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.dev.Attrs().Index,
			Parent:    parent,
			Handle:    filterHandle,
			Protocol:  unix.ETH_P_ALL,
			Priority:  cmp.Or(h.prio, filterPrio),
		},
		Name:         filterName,
		DirectAction: true,
	}
}

// filtered tells whether the device has the filter, whatever its program.
func (h deviceHook) filtered() (bool, error) {
	want := h.bpfFilter()
	have, err := dump(func() ([]netlink.Filter, error) { return netlink.FilterList(h.dev, want.Parent) })
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) { // it is gone; it has no clsact
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list filters of device %s: %w", h.dev.Attrs().Name, err)
	}
	for _, f := range have {
		if f, ok := f.(*netlink.BpfFilter); ok && f.Handle == want.Handle && f.Priority == want.Priority {
			return true, nil
		}
	}
	return false, nil
}

// unfilter removes the filter. One that is not there, or whose device is not, is
// no error.
func (h deviceHook) unfilter() error {
	err := netlink.FilterDel(h.bpfFilter())
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove filter of device %s: %w", h.dev.Attrs().Name, err)
	}
	return nil
}

// programsOn returns what has the hook of h's device, which is in the current
// namespace. It needs tcx.
func (h deviceHook) programsOn() ([]link.AttachedProgram, error) {
	a := h.dev.Attrs()
	res, err := link.QueryPrograms(link.QueryOptions{Target: a.Index, Attach: h.attach})
	if err != nil {
		return nil, fmt.Errorf("list programs of device %s: %w", a.Name, err)
	}
	return res.Programs, nil
}

// tcxPin is a pinned tcx link. The kernel says where it is attached now: the
// index of the device changes if it is taken where the device moves to.
type tcxPin struct {
	path  string
	id    link.ID
	index int // 0: its device is gone
}

// tcxPins returns the tcx links that are pinned in dir.
func tcxPins(dir string) ([]tcxPin, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var pins []tcxPin
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil, fmt.Errorf("open link %s: %w", path, err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return nil, fmt.Errorf("look at link %s: %w", path, err)
		}
		if tcx := info.TCX(); tcx != nil {
			pins = append(pins, tcxPin{path: path, id: info.ID, index: int(tcx.Ifindex)})
		}
	}
	return pins, nil
}

// removeFilters removes the clsact filters of a pod on kernels without tcx.
// They let everything pass once the pod is unknown and end with their device,
// so a namespace that cannot be entered any more is no error.
func (s *Store) removeFilters(cookie uint64) error {
	if haveTCX() {
		return nil
	}
	var info bpf.PodInfo
	if err := s.maps.PodInfo.Lookup(cookie, &info); err != nil {
		return nil //nolint:nilerr // nothing is known of this pod
	}
	pid, err := processIn(info.NetnsIno)
	if err != nil || pid == 0 {
		return err
	}
	ns, err := OpenNetns("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return nil //nolint:nilerr // the process ended
	}
	defer ns.Close()
	if ns.Cookie != cookie {
		return nil
	}
	return ns.Do(func() error {
		links, err := dump(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, l := range links {
			for _, attach := range []ebpf.AttachType{ebpf.AttachTCXEgress, ebpf.AttachTCXIngress} {
				if err := (deviceHook{dev: l, attach: attach}).unfilter(); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
