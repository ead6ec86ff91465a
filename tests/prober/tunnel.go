// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runTunnel makes a device on top of another one, sends a UDP datagram through it as a frame, and removes it. It needs CAP_NET_ADMIN
// and CAP_NET_RAW, and shows what leaves a pod without belonging to any socket of a container.
func runTunnel(_ context.Context, args []string) (*result, error) {
	var t frameTarget
	fs := flag.NewFlagSet("tunnel", flag.ContinueOnError)
	t.flags(fs)
	kind := fs.String("kind", "vxlan", "vxlan (to the destination address) or macvlan (on the device)")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	frame, lower, err := t.frame()
	if err != nil {
		return res, err
	}
	link, err := t.device(*kind, lower)
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkAdd(link); err != nil {
		return res, fmt.Errorf("add %s: %w", *kind, err)
	}
	defer func() { _ = netlink.LinkDel(link) }()
	if err := netlink.LinkSetUp(link); err != nil {
		return res, fmt.Errorf("set %s up: %w", *kind, err)
	}
	upper, err := net.InterfaceByName(link.Attrs().Name)
	if err != nil {
		return res, err
	}
	copy(frame[6:12], upper.HardwareAddr)

	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: upper.Index, Halen: 6}); err != nil {
		return res, os.NewSyscallError("sendto", err)
	}
	res.Data["device"], res.Data["src"] = upper.Name, t.src
	return res, nil
}

func (t *frameTarget) device(kind string, lower *net.Interface) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "prober0"
	switch kind {
	case "vxlan":
		return &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 42, Group: t.to.Addr().AsSlice(), Port: 4789, VtepDevIndex: lower.Index}, nil
	case "macvlan":
		attrs.ParentIndex = lower.Index
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}, nil
	}
	return nil, &usageError{fmt.Errorf("unknown kind %q", kind)}
}
