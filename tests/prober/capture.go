// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// captureFilter passes all IP packets but TCP ones without SYN: what starts something, and not the bulk of a download. Of these it passes
// what goes to port 9, on which nobody listens. It keeps 512 bytes of each.
var captureFilter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IPV6, Jt: 5, Jf: 0},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.ETH_P_IP, Jt: 0, Jf: 12},
	// IPv4: X is where TCP begins
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 9},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jt: 0, Jf: 9},
	{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 14},
	{Code: unix.BPF_JMP | unix.BPF_JA, K: 3},
	// IPv6
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 6},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_TCP, Jt: 0, Jf: 5},
	{Code: unix.BPF_LDX | unix.BPF_W | unix.BPF_IMM, K: 40},
	// TCP: flags, destination
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 14 + 13},
	{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x02, Jt: 2, Jf: 0},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 14 + 2},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 9, Jt: 0, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: 512},
	{Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

// capture is a packet socket on one device.
type capture struct{ fd int }

func openCapture(dev string) (*capture, error) {
	ifi, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, err
	}
	// Protocol 0 until the filter is in place, so that no packet comes before it.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	filter := unix.SockFprog{Len: uint16(len(captureFilter)), Filter: &captureFilter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter); err != nil {
		return nil, os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	return &capture{fd}, nil
}

// run records what others sent to this device until the socket fails.
func (c *capture) run(r *record) error {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(c.fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		p, ok := parseFrame(b[:n])
		if !ok {
			continue
		}
		r.add(sighting{How: "packet", Proto: p.Proto, Src: p.Src.String(), Dst: p.Dst.String(), payload: bytes.Clone(p.Payload)}, p.Src)
	}
}
