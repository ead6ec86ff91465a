// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Addresses between a pod and a namespace that a process in it made.
const (
	nearV4, farV4   = "10.99.0.1", "10.99.0.2"
	nearMAC, farMAC = "02:53:47:00:99:01", "02:53:47:00:99:02"
	broadcast       = "ff:ff:ff:ff:ff:ff"
)

// escapes are attempts to be heard outside. Each says by its nonce what to listen for there.
func escapes() []tampering {
	return []tampering{
		{name: "escape: from a child cgroup", flags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP, run: func(t *tamperer) error {
			return onOwnCgroup(func(dir string) error {
				return inChild(dir, func() error { return t.everyWay("eth0", netip.Addr{}, t.gateway) })
			})
		}},
		{name: "escape: through a pair into own namespaces", run: func(t *tamperer) error {
			defer deleteLink("tamper0")
			return t.inside(&farEnd, "tamper1", netip.MustParseAddr(farV4), nearMAC, func(pid int) error {
				near, _ := net.ParseMAC(nearMAC)
				far, _ := net.ParseMAC(farMAC)
				l := &netlink.Veth{
					LinkAttrs: netlink.LinkAttrs{Name: "tamper0", HardwareAddr: near, Flags: net.FlagUp},
					PeerName:  "tamper1", PeerHardwareAddr: far, PeerNamespace: netlink.NsPid(pid),
				}
				if err := netlink.LinkAdd(l); err != nil {
					return err
				}
				a, err := netlink.ParseAddr(nearV4 + "/24")
				if err != nil {
					return err
				}
				if err := netlink.AddrAdd(l, a); err != nil {
					return err
				}
				return deviceConf(l, "forwarding", 1)
			})
		}},
		{name: "escape: through a macvlan on eth0 in own namespaces", run: func(t *tamperer) error {
			src, err := t.deviceAddr("eth0")
			if err != nil {
				return err
			}
			return t.inside(&farEnd, "tamper1", src, t.gateway, func(pid int) error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkAdd(&netlink.Macvlan{
					LinkAttrs: netlink.LinkAttrs{Name: "tamper1", ParentIndex: l.Attrs().Index, Namespace: netlink.NsPid(pid)},
					Mode:      netlink.MACVLAN_MODE_BRIDGE,
				})
			})
		}},
		{name: "escape: through a macvlan on a device of the host", run: func(t *tamperer) error {
			return t.overHost(func(h *host, l netlink.Link) error {
				defer deleteLink("tamper0")
				if err := macvlanOn(h, l, "tamper0"); err != nil {
					return err
				}
				src, err := t.deviceAddr("eth0")
				if err != nil {
					return err
				}
				return t.everyWay("tamper0", src, broadcast)
			})
		}},
		{name: "escape: through a macvlan on a device of the host, in own namespaces", run: func(t *tamperer) error {
			return t.overHost(func(h *host, l netlink.Link) error {
				src, err := t.deviceAddr("eth0")
				if err != nil {
					return err
				}
				return t.inside(&farEnd, "tamper1", src, broadcast, func(pid int) error {
					if err := macvlanOn(h, l, "tamper1"); err != nil {
						return err
					}
					own, err := netlink.LinkByName("tamper1")
					if err != nil {
						return err
					}
					return netlink.LinkSetNsPid(own, pid)
				})
			})
		}},
		{name: "escape: through a pair into the host's bridge", run: func(t *tamperer) error {
			src, err := t.deviceAddr("eth0")
			if err != nil {
				return err
			}
			h, err := hostDevices()
			if err != nil {
				return err
			}
			defer deleteLink("tamper0")
			if err := pairTo(h); err != nil {
				return err
			}
			l, err := netlink.LinkByName("tamper0")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			return t.everyWay("tamper0", src, t.gateway)
		}},
		{name: "escape: with eth0 in own namespaces", destroys: true, run: func(t *tamperer) error {
			src, err := t.deviceAddr("eth0")
			if err != nil {
				return err
			}
			return t.inside(&farEnd, "eth0", src, t.gateway, func(pid int) error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkSetNsPid(l, pid)
			})
		}},
		farEnd,
	}
}

// farEnd is what happens in namespaces of its own once they have a device.
var farEnd = tampering{name: "far end", hidden: true, flags: ownNamespaces, run: func(t *tamperer) error {
	begun()
	for _, name := range []string{"lo", t.dev} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: &net.IPNet{IP: t.src.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return err
		}
		gw, err := net.ParseMAC(t.gateway)
		if err != nil {
			return err
		}
		// A next hop that nobody has to answer for.
		hop := t.src.Next()
		neigh := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: hop.AsSlice(), HardwareAddr: gw}
		if err := netlink.NeighSet(neigh); err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: hop.AsSlice()}); err != nil {
			return err
		}
	}
	return t.everyWay(t.dev, t.src, t.gateway)
}}

// inside makes the other half of an attempt in namespaces of its own, to which setup gives the device.
func (t *tamperer) inside(a *tampering, dev string, src netip.Addr, gateway string, setup func(pid int) error) error {
	far := *t
	far.args = append(slices.Clone(t.args), "--dev", dev, "--src", src.String(), "--gw-mac", gateway)
	r := far.start(context.Background(), a, setup)
	t.data = r.Data
	if r.OK {
		return nil
	}
	return &farError{r}
}

// farError is an error of another process.
type farError struct{ r *result }

func (e *farError) Error() string { return e.r.Err }

func (e *farError) Unwrap() error {
	for errno := unix.Errno(1); errno < 200; errno++ {
		if name := unix.ErrnoName(errno); name != "" && name == e.r.Errno {
			return errno
		}
	}
	return nil
}

// everyWay sends one nonce in every way from a device. It succeeds if the kernel took any of them.
func (t *tamperer) everyWay(dev string, src netip.Addr, mac string) error {
	nonce := cmp.Or(t.nonce, defaultNonce())
	t.data["nonce"] = nonce
	to := []string{"--to", t.to.String(), "--nonce", nonce}
	raw := slices.Concat(to, []string{"--dev", dev})
	if src.IsValid() {
		raw = append(raw, "--src", src.String())
	}
	frame := append(slices.Clone(raw), "--gw-mac", mac)
	ctx := context.Background()
	ways := []struct {
		name string
		run  func() (*result, error)
	}{
		{"tcp", func() (*result, error) {
			r, err := runTCP(ctx, append(to, "--timeout", "300ms"))
			if r != nil && r.Data["local"] != nil {
				t.data["local"] = r.Data["local"]
			}
			return r, err
		}},
		{"udp", func() (*result, error) { return runUDP(ctx, append(to, "--timeout", "100ms")) }},
		{"rawtcp", func() (*result, error) { return runRawTCP(ctx, raw) }},
		{"rawudp", func() (*result, error) { return runRawUDP(ctx, raw) }},
		{"packet", func() (*result, error) { return runPacket(ctx, frame) }},
		{"packet, bypass", func() (*result, error) { return runPacket(ctx, append(frame, "--qdisc-bypass")) }},
	}
	said := map[string]string{}
	var last error
	ok := false
	for _, way := range ways {
		if _, err := way.run(); err != nil {
			said[way.name], last = err.Error(), err
		} else {
			said[way.name], ok = "ok", true
		}
	}
	t.data["ways"] = said
	if ok {
		return nil
	}
	return last
}

// deviceAddr returns the address that a packet to the outside has.
func (t *tamperer) deviceAddr(dev string) (netip.Addr, error) {
	r := rawTarget{to: t.to, dev: dev}
	err := r.resolve()
	return r.src, err
}

// overHost does f with each device of the host that may lead somewhere.
func (t *tamperer) overHost(f func(*host, netlink.Link) error) error {
	h, err := hostDevices()
	if err != nil {
		return err
	}
	// Each has a nonce.
	var nonces []any
	defer func() { t.data["nonces"] = nonces }()
	return anyOf(h.links, func(l netlink.Link) error {
		a := l.Attrs()
		if a.Index == h.peer || a.MasterIndex != 0 || a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 || l.Type() == "bridge" {
			return failed("%s leads nowhere", a.Name)
		}
		err := f(h, l)
		if err != nil {
			err = fmt.Errorf("%s: %w", a.Name, err)
		}
		nonces = append(nonces, t.data["nonce"])
		return err
	})
}

// macvlanOn makes a device here on top of one of the host's.
func macvlanOn(h *host, l netlink.Link, name string) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("macvlan"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_MACVLAN_MODE, nl.Uint32Attr(nl.MACVLAN_MODE_BRIDGE))
	return linkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)),
		nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(l.Attrs().Index))),
		nl.NewRtAttr(unix.IFLA_LINK_NETNSID, nl.Uint32Attr(h.nsid)),
		info,
	)
}

// pairTo makes a pair like eth0 and its other end, in the same bridge.
func pairTo(h *host) error {
	bridge := 0
	for _, l := range h.links {
		if l.Attrs().Index == h.peer {
			bridge = l.Attrs().MasterIndex
		}
	}
	if bridge == 0 {
		return failed("eth0's other end is in no bridge")
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	const infoPeer = 1 // VETH_INFO_PEER
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(infoPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("tamper0"))
	peer.AddRtAttr(unix.IFLA_NET_NS_PID, nl.Uint32Attr(uint32(unix.Getpid())))
	return linkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0,
		nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(h.nsid)),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("tamperh")),
		nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))),
		info,
	)
}

func deleteLink(name string) {
	if l, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(l)
	}
}
