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

	"golang.org/x/sys/unix"
)

// A rawTarget is where a packet made by hand goes, and what it says.
type rawTarget struct {
	to    netip.AddrPort
	src   netip.Addr
	port  uint
	nonce string
	dev   string
	route netip.Addr // first hop of a loose source route
	cut   int        // 0, or where the IP payload is cut into two fragments
	proto uint       // of rawip
}

func (t *rawTarget) flags(fs *flag.FlagSet) {
	fs.TextVar(&t.to, "to", netip.AddrPort{}, "destination `address:port`")
	fs.TextVar(&t.src, "src", netip.Addr{}, "source `address` (default: the device's)")
	fs.UintVar(&t.port, "sport", 40007, "source port")
	fs.StringVar(&t.nonce, "nonce", defaultNonce(), "payload")
	fs.StringVar(&t.dev, "dev", "eth0", "device")
	fs.TextVar(&t.route, "lsrr", netip.Addr{}, "loose source route through this `address`")
	fs.IntVar(&t.cut, "fragment", 0, "cut into two fragments after this many `bytes` of payload, a multiple of 8")
	fs.UintVar(&t.proto, "proto", 253, "IP `protocol` of rawip")
}

// resolve checks the flags and finds the source address.
func (t *rawTarget) resolve() error {
	if !t.to.IsValid() {
		return &usageError{errors.New("--to is missing")}
	}
	if t.src.IsValid() {
		return nil
	}
	ifi, err := net.InterfaceByName(t.dev)
	if err != nil {
		return err
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err == nil && prefix.Addr().Is4() == t.to.Addr().Is4() && !prefix.Addr().IsLinkLocalUnicast() {
			t.src = prefix.Addr()
			return nil
		}
	}
	return fmt.Errorf("%s has no address for %s", t.dev, t.to)
}

func (t *rawTarget) source() netip.AddrPort { return netip.AddrPortFrom(t.src, uint16(t.port)) }

// udpPacket is the IP packet of the target's datagram.
func (t *rawTarget) udpPacket() ([]byte, error) {
	return ipPacket(t.src, t.to.Addr(), unix.IPPROTO_UDP, udpSegment(t.source(), t.to, []byte(t.nonce)))
}

// runRawTCP sends a SYN. ok means that the kernel took it; who saw it is for the recorder to say.
func runRawTCP(_ context.Context, args []string) (*result, error) {
	return runRaw("rawtcp", args, func(t *rawTarget) ([]byte, error) {
		return ipPacket(t.src, t.to.Addr(), unix.IPPROTO_TCP, synSegment(t.source(), t.to, 0x51de6a7e, []byte(t.nonce)))
	})
}

// runRawUDP sends a datagram, as runRawTCP does a SYN.
func runRawUDP(_ context.Context, args []string) (*result, error) {
	return runRaw("rawudp", args, (*rawTarget).udpPacket)
}

// runRawIP sends a packet of any protocol.
func runRawIP(_ context.Context, args []string) (*result, error) {
	return runRaw("rawip", args, func(t *rawTarget) ([]byte, error) {
		return ipPacket(t.src, t.to.Addr(), int(t.proto), []byte(t.nonce))
	})
}

func runRaw(name string, args []string, build func(*rawTarget) ([]byte, error)) (*result, error) {
	var t rawTarget
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	t.flags(fs)
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	if err := t.resolve(); err != nil {
		return res, err
	}
	packet, err := build(&t)
	if err != nil {
		return res, err
	}
	// IPPROTO_RAW implies that the header is ours, for both families.
	fd, err := unix.Socket(family(t.to.Addr(), false), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	next := t.to.Addr()
	if t.route.IsValid() {
		packet, next = routed(packet, t.route), t.route
	}
	for _, p := range fragments(packet, t.cut) {
		if err := unix.Sendto(fd, p, 0, sockaddr(netip.AddrPortFrom(next, 0), false)); err != nil {
			return res, os.NewSyscallError("sendto", err)
		}
	}
	res.Data["src"], res.Data["bytes"] = t.src, len(packet)
	return res, nil
}
