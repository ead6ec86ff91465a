// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// runNFT deletes all that nftables has, and so all rules of Debian's iptables.
func runNFT(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("nft", flag.ContinueOnError)
	flush := fs.Bool("flush", false, "delete all tables")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !*flush {
		return nil, &usageError{errors.New("--flush is missing")}
	}
	// Without a name all tables of a family, without a family all.
	m := nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, 0, nil)
	m[unix.SizeofNlMsghdr] = unix.NFPROTO_UNSPEC
	return newResult(), nfBatch(m)
}

// runRoutes changes routing in ways that lead packets elsewhere.
func runRoutes(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("routes", flag.ContinueOnError)
	kind := fs.String("kind", "", "localnet: the loopback's addresses by eth0; local: the local table last; rule: a table of its own first")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return newResult(), err
	}
	all, err := netlink.RouteList(eth0, netlink.FAMILY_V4)
	if err != nil {
		return newResult(), err
	}
	var gateway netlink.Route
	for _, r := range all {
		if r.Gw != nil {
			gateway = r
		}
	}
	const table = 77
	first := netlink.NewRule()
	first.Priority, first.Table = 0, table
	switch *kind {
	case "localnet":
		// 127/8 by the gateway, before the local table.
		dst := netip.MustParsePrefix("127.0.0.0/8")
		r := netlink.Route{LinkIndex: gateway.LinkIndex, Gw: gateway.Gw, Table: table, Dst: ipNet(dst)}
		return newResult(), errors.Join(netlink.RouteReplace(&r), ignoreExist(netlink.RuleAdd(first)))
	case "rule":
		r := netlink.Route{LinkIndex: gateway.LinkIndex, Gw: gateway.Gw, Table: table, Dst: ipNet(netip.MustParsePrefix("192.0.2.0/24"))}
		return newResult(), errors.Join(netlink.RouteReplace(&r), ignoreExist(netlink.RuleAdd(first)))
	case "local":
		last := netlink.NewRule()
		last.Priority, last.Table = 32765, unix.RT_TABLE_LOCAL
		return newResult(), ignoreExist(netlink.RuleAdd(last))
	}
	return nil, &usageError{fmt.Errorf("--kind %q is unknown", *kind)}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func ignoreExist(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// runAddress gives a device another address.
func runAddress(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("address", flag.ContinueOnError)
	add := fs.String("add", "", "`address/length`")
	dev := fs.String("dev", "eth0", "device")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	a, err := netlink.ParseAddr(*add)
	if err != nil {
		return nil, &usageError{err}
	}
	l, err := netlink.LinkByName(*dev)
	if err != nil {
		return newResult(), err
	}
	return newResult(), ignoreExist(netlink.AddrAdd(l, a))
}

// runSimopen connects to an end that does the same, and neither listens (RFC 9293, 3.5, "Simultaneous Connection Synchronization"). It
// tries again and again, since the two SYNs have to cross.
func runSimopen(_ context.Context, args []string) (*result, error) {
	var d dialer
	fs := flag.NewFlagSet("simopen", flag.ContinueOnError)
	d.flags(fs)
	sport := fs.Uint("sport", 0, "local `port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	anyHere := netip.IPv4Unspecified()
	last := os.NewSyscallError("connect", unix.ETIMEDOUT)
	for deadline := time.Now().Add(d.timeout); time.Now().Before(deadline); {
		fd, err := d.socket()
		if err != nil {
			return res, err
		}
		c := &conn{fd: fd}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			c.Close()
			return res, os.NewSyscallError("setsockopt SO_REUSEADDR", err)
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(anyHere, uint16(*sport)), false)); err != nil {
			c.Close()
			return res, os.NewSyscallError("bind", err)
		}
		if last = connectNonblock(fd, sockaddr(d.to, false), 50*time.Millisecond); last != nil {
			c.Close()
			if errors.Is(last, unix.EPERM) {
				break
			}
			continue
		}
		defer c.Close()
		c.addresses()
		c.report(res)
		if _, err := c.Write([]byte(*nonce + "\n")); err != nil {
			return res, err
		}
		b := make([]byte, 4096)
		n, err := c.Read(b)
		res.Data["read"] = string(b[:n])
		return res, err
	}
	return res, last
}

// runEveryWay sends one nonce in every way there is from a device.
func runEveryWay(_ context.Context, args []string) (*result, error) {
	t := &tamperer{data: map[string]any{}}
	fs := flag.NewFlagSet("everyway", flag.ContinueOnError)
	fs.TextVar(&t.to, "to", netip.AddrPort{}, "TCP and UDP echo servers, `address:port`")
	fs.StringVar(&t.gateway, "gw-mac", "", "hardware address of the next hop")
	fs.StringVar(&t.dev, "dev", "eth0", "device")
	fs.TextVar(&t.src, "src", netip.Addr{}, "source `address` (default: the device's)")
	fs.StringVar(&t.nonce, "nonce", "", "what to send")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if !t.to.IsValid() {
		return nil, &usageError{errors.New("--to is missing")}
	}
	err := t.everyWay(t.dev, t.src, t.gateway)
	res := newResult()
	res.Data = t.data
	return res, err
}
