// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
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
	kind := fs.String("kind", "vxlan", "device: macvlan or ipvlan (on the device), tun, or one to the destination address")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	if *kind == "tun" {
		return res, t.sendByTUN()
	}
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
	to := &unix.SockaddrLinklayer{Ifindex: upper.Index, Halen: 6}
	if len(upper.HardwareAddr) == 6 {
		copy(frame[6:12], upper.HardwareAddr)
	} else { // no Ethernet inside
		to.Protocol = networkOrder(binary.BigEndian.Uint16(frame[12:]))
		frame = frame[14:]
	}

	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
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
	case "geneve":
		return &netlink.Geneve{LinkAttrs: attrs, ID: 42, Remote: t.to.Addr().AsSlice(), Dport: 6081}, nil
	case "gre":
		return &netlink.Gretun{LinkAttrs: attrs, Local: t.src.AsSlice(), Remote: t.to.Addr().AsSlice(), Ttl: 64}, nil
	case "gretap":
		return &netlink.Gretap{LinkAttrs: attrs, Local: t.src.AsSlice(), Remote: t.to.Addr().AsSlice(), Ttl: 64}, nil
	case "ipip":
		return &netlink.Iptun{LinkAttrs: attrs, Local: t.src.AsSlice(), Remote: t.to.Addr().AsSlice(), Ttl: 64}, nil
	case "sit":
		return &netlink.Sittun{LinkAttrs: attrs, Local: t.src.AsSlice(), Remote: t.to.Addr().AsSlice(), Ttl: 64}, nil
	case "ip6tnl":
		return &netlink.Ip6tnl{LinkAttrs: attrs, Local: t.src.AsSlice(), Remote: t.to.Addr().AsSlice(), Ttl: 64}, nil
	case "ipvlan":
		attrs.ParentIndex = lower.Index
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}, nil
	case "macvlan":
		attrs.ParentIndex = lower.Index
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}, nil
	}
	return nil, &usageError{fmt.Errorf("unknown kind %q", kind)}
}

// sendByTUN makes a device whose packets come from this process, and lets the pod forward one of them: it is no socket's.
func (t *frameTarget) sendByTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open /dev/net/tun", err)
	}
	defer unix.Close(fd) // the device goes with it
	const name, addr = "prober0", "10.99.7.1/24"
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	out, err := netlink.LinkByName(t.dev)
	if err != nil {
		return err
	}
	for _, dev := range []netlink.Link{l, out} {
		if err := deviceConf(dev, "forwarding", 1); err != nil {
			return fmt.Errorf("forward: %w", err)
		}
	}
	t.src = netip.MustParsePrefix(addr).Addr().Next()
	packet, err := t.udpPacket()
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, packet)
	return os.NewSyscallError("write", err)
}
