// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"strconv"

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
}

// do attaches by a tcx link (6.6), which nobody in the pod can remove. Older
// kernels get a clsact filter, which CAP_NET_ADMIN in the pod can.
func (h deviceHook) do() error {
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: h.dev.Attrs().Index,
		Program:   h.prog,
		Attach:    h.attach,
		Anchor:    link.Head(),
	})
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
			Priority:  filterPrio,
		},
		Name:         filterName,
		DirectAction: true,
	}
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
				err := netlink.FilterDel(deviceHook{dev: l, attach: attach}.bpfFilter())
				if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
					return fmt.Errorf("remove filter of device %s: %w", l.Attrs().Name, err)
				}
			}
		}
		return nil
	})
}
