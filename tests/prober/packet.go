// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frameTarget is a rawTarget with the next hop's hardware address.
type frameTarget struct {
	rawTarget
	gateway string
}

func (t *frameTarget) flags(fs *flag.FlagSet) {
	t.rawTarget.flags(fs)
	fs.StringVar(&t.gateway, "gw-mac", "", "hardware address of the next hop (default: the one neighbour that the kernel knows)")
}

// frame builds the whole frame and returns the device to send it from.
func (t *frameTarget) frame() ([]byte, *net.Interface, error) {
	if err := t.resolve(); err != nil {
		return nil, nil, err
	}
	ifi, err := net.InterfaceByName(t.dev)
	if err != nil {
		return nil, nil, err
	}
	if t.gateway == "" {
		if t.gateway, err = firstNeighbour(t.dev); err != nil {
			return nil, nil, err
		}
	}
	gateway, err := net.ParseMAC(t.gateway)
	if err != nil {
		return nil, nil, &usageError{err}
	}
	packet, err := t.udpPacket()
	if err != nil {
		return nil, nil, err
	}
	return ethernetFrame(ifi.HardwareAddr, gateway, packet), ifi, nil
}

// firstNeighbour returns the hardware address of the first complete ARP entry on dev.
func firstNeighbour(dev string) (string, error) {
	f, err := os.Open("/proc/net/arp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// IP address, HW type, flags, HW address, mask, device
		fields := strings.Fields(s.Text())
		if len(fields) == 6 && fields[5] == dev && fields[3] != "00:00:00:00:00:00" {
			return fields[3], nil
		}
	}
	return "", fmt.Errorf("no neighbour on %s", dev)
}

// runPacket sends a UDP datagram as a frame, past the whole IP stack.
func runPacket(_ context.Context, args []string) (*result, error) {
	var t frameTarget
	fs := flag.NewFlagSet("packet", flag.ContinueOnError)
	t.flags(fs)
	bypass := fs.Bool("qdisc-bypass", false, "set PACKET_QDISC_BYPASS")
	ring := fs.Bool("ring", false, "send through a ring in shared memory (PACKET_TX_RING)")
	cooked := fs.Bool("dgram", false, "SOCK_DGRAM: the kernel makes the Ethernet header")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	frame, ifi, err := t.frame()
	if err != nil {
		return res, err
	}
	kind := unix.SOCK_RAW
	if *cooked {
		kind = unix.SOCK_DGRAM
	}
	// Protocol 0: send only.
	fd, err := unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if *bypass {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return res, os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", err)
		}
	}
	to := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6, Protocol: networkOrder(binary.BigEndian.Uint16(frame[12:]))}
	copy(to.Addr[:], frame[:6])
	if *cooked {
		frame = frame[14:]
	}
	if *ring {
		return res, sendByRing(fd, frame, to)
	}
	if err := unix.Sendto(fd, frame, 0, to); err != nil {
		return res, os.NewSyscallError("sendto", err)
	}
	res.Data["src"], res.Data["gateway"] = t.src, t.gateway
	return res, nil
}

// sendByRing sends a frame through a ring of one slot (packet(7), Documentation/networking/packet_mmap.rst).
func sendByRing(fd int, frame []byte, to *unix.SockaddrLinklayer) error {
	const slot = 4096
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return os.NewSyscallError("setsockopt PACKET_VERSION", err)
	}
	req := unix.TpacketReq{Block_size: slot, Block_nr: 1, Frame_size: slot, Frame_nr: 1}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &req); err != nil {
		return os.NewSyscallError("setsockopt PACKET_TX_RING", err)
	}
	ring, err := unix.Mmap(fd, 0, slot, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(ring) }()
	h := (*unix.Tpacket2Hdr)(unsafe.Pointer(&ring[0]))
	const data = (unix.SizeofTpacket2Hdr + 15) &^ 15 // TPACKET_ALIGN, where the kernel looks for the frame
	copy(ring[data:], frame)
	h.Len = uint32(len(frame))
	atomic.StoreUint32(&h.Status, unix.TP_STATUS_SEND_REQUEST)
	if err := unix.Sendto(fd, nil, 0, to); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	if status := atomic.LoadUint32(&h.Status); status&unix.TP_STATUS_WRONG_FORMAT != 0 {
		return fmt.Errorf("the kernel takes the frame for malformed: status %#x", status)
	}
	return nil
}

// networkOrder returns v with the bytes as the network wants them in memory.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}
