// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func deviceTamperings() []tampering {
	var all []tampering
	for _, dev := range []string{"lo", "eth0"} {
		on := func(name string, f func(netlink.Link) error) {
			all = append(all, tampering{name: "device: " + name + " " + dev, run: func(*tamperer) error {
				l, err := netlink.LinkByName(dev)
				if err != nil {
					return err
				}
				return f(l)
			}})
		}
		on("delete clsact of", func(l netlink.Link) error { return netlink.QdiscDel(clsact(l)) })
		on("delete egress filters of", func(l netlink.Link) error { return netlink.FilterDel(filter(l, netlink.HANDLE_MIN_EGRESS)) })
		on("delete ingress filters of", func(l netlink.Link) error { return netlink.FilterDel(filter(l, netlink.HANDLE_MIN_INGRESS)) })
		// These stay.
		on("add clsact to", func(l netlink.Link) error { return netlink.QdiscAdd(clsact(l)) })
		on("add egress filter to", func(l netlink.Link) error { return netlink.FilterReplace(filter(l, netlink.HANDLE_MIN_EGRESS)) })
		on("add ingress filter to", func(l netlink.Link) error { return netlink.FilterReplace(filter(l, netlink.HANDLE_MIN_INGRESS)) })
		on("add queue to", func(l netlink.Link) error {
			q := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
			if err := netlink.QdiscAdd(q); err != nil {
				return err
			}
			return netlink.QdiscDel(q)
		})
		on("detach XDP from", func(l netlink.Link) error { return netlink.LinkSetXdpFd(l, -1) })
		on("attach XDP to", func(l netlink.Link) error {
			prog, err := load(unix.BPF_PROG_TYPE_XDP, 0)
			if err != nil {
				return err
			}
			return netlink.LinkSetXdpFd(l, int(prog))
		})
		on("forward by", func(l netlink.Link) error { return deviceConf(l, "forwarding", 1) })
		on("route loopback addresses by", func(l netlink.Link) error { return deviceConf(l, "route_localnet", 26) })
	}
	return append(all,
		tampering{name: "device: delete lo", run: func(*tamperer) error {
			l, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}},
		tampering{name: "device: lo down and up", run: func(*tamperer) error {
			l, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetDown(l); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		}},
		tampering{name: "device: second address of lo", run: func(t *tamperer) error {
			l, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			a := &netlink.Addr{IPNet: &net.IPNet{IP: t.to.Addr().AsSlice(), Mask: net.CIDRMask(t.to.Addr().BitLen(), t.to.Addr().BitLen())}}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
			return netlink.AddrDel(l, a)
		}},
		tampering{name: "device: new pair", run: func(*tamperer) error {
			l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tamper0"}, PeerName: "tamper1"}
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}},
		tampering{name: "netfilter: new table", run: netfilter},
		tampering{name: "host: list devices", run: func(*tamperer) error {
			_, err := hostDevices()
			return err
		}},
		tampering{name: "host: delete device", run: func(t *tamperer) error {
			h, err := hostDevices()
			if err != nil {
				return err
			}
			for _, l := range h.links {
				if l.Attrs().Name == t.hostDev {
					return linkRequest(unix.RTM_DELLINK, 0, l.Attrs().Index, nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(h.nsid)))
				}
			}
			return failed("the host has no device %q", t.hostDev)
		}},
	)
}

func clsact(l netlink.Link) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// filter takes every packet and ends there. To delete it is to delete all of its priority.
func filter(l netlink.Link, parent uint32) *netlink.U32 {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: l.Attrs().Index, Parent: parent, Priority: 1, Protocol: unix.ETH_P_ALL},
		ClassId:     netlink.MakeHandle(1, 1),
		Sel:         &netlink.TcU32Sel{Nkeys: 1, Flags: netlink.TC_U32_TERMINAL, Keys: []netlink.TcU32Key{{}}},
	}
}

// deviceConf sets a device's sysctl by netlink, which no read-only /proc/sys prevents. number is IPV4_DEVCONF_*.
func deviceConf(l netlink.Link, name string, number int) error {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	const inetConf = 1 // IFLA_INET_CONF
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(number, nl.Uint32Attr(1))
	if err := linkRequest(unix.RTM_SETLINK, 0, l.Attrs().Index, spec); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + l.Attrs().Name + "/" + name)
	if err == nil && string(b) != "1\n" {
		err = failed("%s of %s is %q", name, l.Attrs().Name, b)
	}
	return err
}

// linkRequest is a request about the device of this index, which may be 0.
func linkRequest(kind, flags, index int, attrs ...nl.NetlinkRequestData) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	if kind == unix.RTM_NEWLINK {
		msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	}
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// A host is the namespace that the other end of eth0 is in. The kernel gives it a number here, by which a process with CAP_NET_ADMIN in
// its user namespace, which is the container's too without one of its own, can ask for its devices.
type host struct {
	nsid  uint32
	peer  int // index of eth0's other end there
	links []netlink.Link
}

func hostDevices() (*host, error) {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	h := &host{nsid: uint32(l.Attrs().NetNsID), peer: l.Attrs().ParentIndex}
	if l.Attrs().NetNsID < 0 {
		return nil, failed("the namespace of eth0's other end has no number")
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(h.nsid)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		l, err := netlink.LinkDeserialize(nil, m)
		if err != nil {
			return nil, err
		}
		h.links = append(h.links, l)
	}
	return h, nil
}
