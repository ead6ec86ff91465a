// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgePrefix is of our bridges only; the rules match it.
const bridgePrefix = "sg-"

// network is a Docker network of this driver.
type network struct {
	id       string // Docker's, 64 hex digits
	v4, v6   pool   // zero if none
	mtu      int    // 0: the kernel's default
	internal bool   // no way out of it
	nat      bool   // masquerade what leaves it
}

// pool is what Docker's IPAM gave a network.
type pool struct {
	subnet  netip.Prefix
	gateway netip.Addr // the bridge's address; invalid: it has none
}

// bridge is the name of the network's device.
func (n *network) bridge() string { return bridgePrefix + short(n.id) }

// ensureBridge creates or repairs the network's device. The caller has one
// request at a time.
func ensureBridge(n *network) error {
	if err := n.ensureBridge(); err != nil {
		return fmt.Errorf("create bridge of network %s: %w", short(n.id), err)
	}
	return nil
}

func (n *network) ensureBridge() error {
	alias, err := n.alias()
	if err != nil {
		return err
	}
	br, err := linkByName(n.bridge())
	if err != nil {
		return err
	}
	if err := n.checkOwner(br); err != nil {
		return err
	}
	// A route that came later is no reason not to repair a network.
	if br == nil || br.Attrs().Alias == "" {
		for _, p := range []pool{n.v4, n.v6} {
			if err := n.checkOverlap(p.subnet); err != nil {
				return err
			}
		}
	}
	if br == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.bridge()
		// A bridge without a MAC of its own takes that of a port, and another
		// when the port goes: the containers' neighbour entries would go stale.
		attrs.HardwareAddr = bridgeMAC(n.id)
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add device %s: %w", n.bridge(), err)
		}
		if br, err = netlink.LinkByName(n.bridge()); err != nil {
			return fmt.Errorf("find device %s: %w", n.bridge(), err)
		}
		if err := n.setUp(br, alias); err != nil {
			// A device that could not be set up is not left to be found later.
			return errors.Join(err, netlink.LinkDel(br))
		}
		return nil
	}
	return n.setUp(br, alias)
}

// setUp makes a device what the network says.
func (n *network) setUp(br netlink.Link, alias string) error {
	if br.Attrs().Alias != alias {
		if err := netlink.LinkSetAlias(br, alias); err != nil {
			return fmt.Errorf("set alias of %s: %w", n.bridge(), err)
		}
	}
	if n.mtu != 0 && br.Attrs().MTU != n.mtu {
		if err := netlink.LinkSetMTU(br, n.mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", n.bridge(), n.mtu, err)
		}
	}
	if err := n.setIPv6(); err != nil {
		return err
	}
	for _, p := range []pool{n.v4, n.v6} {
		if err := addAddress(br, p); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("set %s up: %w", n.bridge(), err)
	}
	return nil
}

// setIPv6 leaves a bridge no IPv6 that its network does not have: containers
// would reach the host by its link-local address. Containers are no routers.
func (n *network) setIPv6() error {
	if !haveIPv6() {
		if n.v6.subnet.IsValid() {
			return errors.New("the kernel has no IPv6 (ipv6.disable=1?): create the network without --ipv6")
		}
		return nil
	}
	conf := "ipv6/conf/" + n.bridge() + "/"
	if err := sysctl(conf+"accept_ra", "0"); err != nil {
		return err
	}
	disable := "1"
	if n.v6.subnet.IsValid() {
		disable = "0"
	}
	return sysctl(conf+"disable_ipv6", disable)
}

func addAddress(br netlink.Link, p pool) error {
	if !p.subnet.IsValid() || !p.gateway.IsValid() {
		return nil
	}
	want := netip.PrefixFrom(p.gateway, p.subnet.Bits())
	addr := &netlink.Addr{IPNet: ipNet(want)}
	if p.gateway.Is6() {
		addr.Flags = unix.IFA_F_NODAD // without a port DAD would not end
	}
	if err := netlink.AddrAdd(br, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", want, br.Attrs().Name, err)
	}
	return nil
}

// checkOwner tells whether br, which may be nil, is the network's. One without
// an alias is: a plugin that ended early left it.
func (n *network) checkOwner(br netlink.Link) error {
	if br == nil {
		return nil
	}
	if br.Type() != "bridge" {
		return fmt.Errorf("device %s is a %s, not ours: remove or rename it", n.bridge(), br.Type())
	}
	alias := br.Attrs().Alias
	if alias == "" {
		return nil
	}
	if isAlias(aliasNetwork, alias) {
		if other, err := networkOfAlias(alias); err != nil || other.id == n.id {
			return nil //nolint:nilerr // it is ours, and gets a new alias
		}
	}
	return fmt.Errorf("device %s is of another network (alias %q): remove or rename it", n.bridge(), alias)
}

// checkOverlap refuses a subnet that the machine reaches on another device, or
// that a route would take a part of. A wider route by a gateway, as into a
// company's network, may have the subnet cut out of it.
func (n *network) checkOverlap(subnet netip.Prefix) error {
	if !subnet.IsValid() {
		return nil
	}
	family := netlink.FAMILY_V4
	if subnet.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	names := make(map[int]string)
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		p := prefix(a.IPNet)
		if dev := names[a.LinkIndex]; dev != n.bridge() && p.IsValid() && !p.Addr().IsLinkLocalUnicast() && subnet.Contains(p.Addr()) {
			return fmt.Errorf("subnet %s overlaps address %s dev %s: choose another with --subnet", subnet, p, dev)
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		dst, dev := prefix(r.Dst), names[r.LinkIndex]
		if dev == n.bridge() || !dst.IsValid() || dst.Bits() == 0 || !dst.Overlaps(subnet) {
			continue
		}
		connected := r.Type == unix.RTN_UNICAST && r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0
		if !connected && dst.Bits() < subnet.Bits() {
			continue
		}
		return fmt.Errorf("subnet %s overlaps route %s dev %s: choose another with --subnet", subnet, dst, dev)
	}
	return nil
}

// deleteBridge removes the device of the network, if there is one.
func deleteBridge(id string) error {
	n := &network{id: id}
	br, err := linkByName(n.bridge())
	if err == nil && br != nil {
		if err = n.checkOwner(br); err == nil {
			err = netlink.LinkDel(br)
		}
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("delete bridge of network %s: %w", short(id), err)
	}
	return nil
}

// listNetworks reads back the networks from our bridges, by ID. Those that can
// be read come with an error about others, too.
func listNetworks() ([]*network, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var all []*network
	var errs []error
	for _, l := range links {
		if l.Type() != "bridge" || !isAlias(aliasNetwork, l.Attrs().Alias) {
			continue
		}
		n, err := networkOfAlias(l.Attrs().Alias)
		if err != nil {
			errs = append(errs, fmt.Errorf("read alias of %s: %w", l.Attrs().Name, err))
			continue
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *network) int { return cmp.Compare(a.id, b.id) })
	return all, errors.Join(errs...)
}

// ensureForwarding makes the machine a router, which NAT and the way into the
// containers need.
func ensureForwarding(v4, v6 bool) error {
	if v4 {
		if err := sysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	const all = "ipv6/conf/all/forwarding"
	if on, err := readSysctl(all); err != nil || on == "1" {
		return err
	}
	// A router ignores router advertisements unless told so by 2, and forgets
	// the routes it had of them: the machine would lose its own way out.
	confs, err := os.ReadDir(sysctlRoot + "ipv6/conf")
	if err != nil {
		return fmt.Errorf("list devices with IPv6: %w", err)
	}
	for _, c := range confs {
		if c.Name() == "all" || c.Name() == "default" || c.Name() == "lo" {
			continue
		}
		ra := "ipv6/conf/" + c.Name() + "/accept_ra"
		v, err := readSysctl(ra)
		if err == nil && v == "1" {
			err = sysctl(ra, "2")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // devices come and go
			return err
		}
	}
	return sysctl(all, "1")
}

const sysctlRoot = "/proc/sys/net/"

func haveIPv6() bool {
	_, err := os.Stat(sysctlRoot + "ipv6/conf")
	return err == nil
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(sysctlRoot, name))
	if err != nil {
		return "", fmt.Errorf("read sysctl: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// sysctl writes only what is not so yet: /proc/sys may be read-only.
func sysctl(name, value string) error {
	if old, err := readSysctl(name); err != nil || old == value {
		return err
	}
	if err := os.WriteFile(filepath.Join(sysctlRoot, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("write sysctl: %w", err)
	}
	return nil
}

// dump asks again when the kernel says that what it listed changed meanwhile.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 10
	for try := 1; ; try++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == tries {
			return all, err
		}
	}
}

// linkByName returns nil if there is no such device.
func linkByName(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return l, nil
}

func isGone(err error) bool { return errors.Is(err, unix.ENODEV) }

// bridgeMAC is locally administered and the same after every restart.
func bridgeMAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(id))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

func sameMAC(a, b net.HardwareAddr) bool { return bytes.Equal(a, b) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is invalid for nil.
func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
