// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// endpoint is a container's end on a network.
type endpoint struct {
	id, network string       // Docker's IDs
	v4, v6      netip.Prefix // the address with its subnet's length; invalid: none
	mac         net.HardwareAddr

	role, policy, pod string // as the driver options said; "" if not
}

// host is the name of the end that stays.
func (e *endpoint) host() string { return hostPrefix + short(e.id) }

// hostPrefix is of our endpoints' ends only.
const hostPrefix = "sgh"

// inner is the name of the end that libnetwork moves and renames.
func (e *endpoint) inner() string { return "sgc" + short(e.id) }

// ensureVeth creates or repairs the endpoint's pair of devices. A new one is
// down and in no bridge: nothing gets through before plug. Without e.mac it is
// the kernel's choice, and then set.
func ensureVeth(n *network, e *endpoint) error {
	if err := e.ensureVeth(n); err != nil {
		return fmt.Errorf("create devices of endpoint %s: %w", short(e.id), err)
	}
	return nil
}

func (e *endpoint) ensureVeth(n *network) error {
	if _, err := e.alias(); err != nil {
		return err
	}
	host, err := linkByName(e.host())
	if err != nil {
		return err
	}
	if err := e.checkOwner(host); err != nil {
		return err
	}
	if host != nil {
		return e.setUp(n, host)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.host()
	attrs.MTU = n.mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName = e.inner()
	veth.PeerMTU = uint32(n.mtu)
	veth.PeerHardwareAddr = e.mac
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add devices %s and %s: %w", e.host(), e.inner(), err)
	}
	if host, err = netlink.LinkByName(e.host()); err != nil {
		return fmt.Errorf("find device %s: %w", e.host(), err)
	}
	if err := e.setUp(n, host); err != nil {
		return errors.Join(err, netlink.LinkDel(host))
	}
	return nil
}

// setUp sets what may differ, and leaves the inner end alone once it has moved.
func (e *endpoint) setUp(n *network, host netlink.Link) error {
	inner, err := linkByName(e.inner())
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{host, inner} {
		if l == nil || n.mtu == 0 || l.Attrs().MTU == n.mtu {
			continue
		}
		if err := netlink.LinkSetMTU(l, n.mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", l.Attrs().Name, n.mtu, err)
		}
	}
	if inner != nil {
		if e.mac == nil {
			e.mac = inner.Attrs().HardwareAddr
		}
		if !sameMAC(e.mac, inner.Attrs().HardwareAddr) {
			if err := netlink.LinkSetHardwareAddr(inner, e.mac); err != nil {
				return fmt.Errorf("set MAC of %s: %w", e.inner(), err)
			}
		}
	}
	if haveIPv6() {
		// A port of a bridge needs no address, and must not answer for the host.
		if err := netlink.LinkSetIP6AddrGenMode(host, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
			return fmt.Errorf("set addr_gen_mode of %s: %w", e.host(), err)
		}
	}
	return e.setAlias(host)
}

// checkOwner tells whether host, which may be nil, is the endpoint's. One
// without an alias is: a plugin that ended early left it.
func (e *endpoint) checkOwner(host netlink.Link) error {
	if host == nil {
		return nil
	}
	alias := host.Attrs().Alias
	if host.Type() == "veth" {
		if alias == "" {
			return nil
		}
		if isAlias(aliasEndpoint, alias) {
			if other, err := endpointOfAlias(alias); err != nil || other.id == e.id {
				return nil //nolint:nilerr // it is ours, and gets a new alias
			}
		}
	}
	return fmt.Errorf("device %s (%s, alias %q) is not ours: remove or rename it", e.host(), host.Type(), alias)
}

func (e *endpoint) setAlias(host netlink.Link) error {
	alias, err := e.alias()
	if err != nil || host.Attrs().Alias == alias {
		return err
	}
	if err := netlink.LinkSetAlias(host, alias); err != nil {
		return fmt.Errorf("set alias of %s: %w", e.host(), err)
	}
	return nil
}

// plug lets the endpoint's traffic through, so the guards are attached first.
func plug(n *network, e *endpoint) error {
	if err := e.plug(n); err != nil {
		return fmt.Errorf("plug endpoint %s into network %s: %w", short(e.id), short(n.id), err)
	}
	return nil
}

func (e *endpoint) plug(n *network) error {
	br, err := netlink.LinkByName(n.bridge())
	if err != nil {
		return fmt.Errorf("find device %s: %w", n.bridge(), err)
	}
	host, err := netlink.LinkByName(e.host())
	if err != nil {
		return fmt.Errorf("find device %s: %w", e.host(), err)
	}
	if host.Attrs().MasterIndex != br.Attrs().Index {
		if err := netlink.LinkSetMaster(host, br); err != nil {
			return fmt.Errorf("put %s into %s: %w", e.host(), n.bridge(), err)
		}
	}
	for _, opt := range []struct {
		name string
		set  func(netlink.Link, bool) error
		on   bool
	}{
		{"isolated", netlink.LinkSetIsolated, false},
		{"learning", netlink.LinkSetLearning, true},
		// With br_netfilter a container's way to its own published port comes
		// back out of the port it went in by.
		{"hairpin", netlink.LinkSetHairpin, true},
	} {
		if err := opt.set(host, opt.on); err != nil {
			return fmt.Errorf("set port option %s of %s: %w", opt.name, e.host(), err)
		}
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("set %s up: %w", e.host(), err)
	}
	return nil
}

// deleteVeth removes both ends by the one that is here.
func deleteVeth(eid string) error {
	e := &endpoint{id: eid}
	host, err := linkByName(e.host())
	if err == nil {
		err = e.checkOwner(host)
	}
	if err == nil && host == nil {
		// Somebody renamed the host's end.
		if host, err = linkByName(e.inner()); host != nil && host.Type() != "veth" {
			host = nil
		}
	}
	if err == nil && host != nil {
		err = netlink.LinkDel(host)
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("delete devices of endpoint %s: %w", short(eid), err)
	}
	return nil
}

// deleteUnnamed removes what a process left that was killed between making a
// device and giving it its alias: nobody knows whose it was. There must be no
// other process that makes devices.
func deleteUnnamed() error {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		id, is := strings.CutPrefix(name, bridgePrefix)
		is = is && l.Type() == "bridge"
		if l.Type() == "veth" {
			id, is = strings.CutPrefix(name, hostPrefix)
		}
		if !is || l.Attrs().Alias != "" || len(id) != shortLen || !isID(id) {
			continue
		}
		if err := netlink.LinkDel(l); err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("delete device %s, which is half made: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// listEndpoints reads back the endpoints from our devices, by ID. Those that
// can be read come with an error about others, too. An endpoint whose bridge is
// gone has the first characters of its network's ID.
func listEndpoints() ([]*endpoint, error) {
	networks, err := listNetworks()
	errs := []error{err}
	ids := make(map[string]string)
	for _, n := range networks {
		ids[short(n.id)] = n.id
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var all []*endpoint
	for _, l := range links {
		if l.Type() != "veth" || !isAlias(aliasEndpoint, l.Attrs().Alias) {
			continue
		}
		e, err := endpointOfAlias(l.Attrs().Alias)
		if err != nil {
			errs = append(errs, fmt.Errorf("read alias of %s: %w", l.Attrs().Name, err))
			continue
		}
		if id, ok := ids[e.network]; ok {
			e.network = id
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *endpoint) int { return cmp.Compare(a.id, b.id) })
	return all, errors.Join(errs...)
}
