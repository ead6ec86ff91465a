// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"flag"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of the one-frame AF_XDP socket.
const (
	xdpFrameSize = 4096
	xdpRingSize  = 2
)

// runXDP sends a UDP datagram as a frame through an AF_XDP socket in copy mode: past the IP stack, qdiscs and tc. It needs no XDP
// program, as it only sends.
func runXDP(_ context.Context, args []string) (*result, error) {
	var t frameTarget
	fs := flag.NewFlagSet("xdp", flag.ContinueOnError)
	t.flags(fs)
	timeout := fs.Duration("timeout", time.Second, "how long to wait for the completion")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	frame, ifi, err := t.frame()
	if err != nil {
		return res, err
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return res, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	umem, err := unix.Mmap(-1, 0, 2*xdpFrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return res, os.NewSyscallError("mmap frames", err)
	}
	defer func() { _ = unix.Munmap(umem) }()

	tx, offsets, err := xdpRings(fd, umem)
	if err != nil {
		return res, err
	}
	defer func() { _ = unix.Munmap(tx) }()
	bind := &unix.SockaddrXDP{Flags: unix.XDP_COPY, Ifindex: uint32(ifi.Index)}
	if err := unix.Bind(fd, bind); err != nil {
		return res, os.NewSyscallError("bind", err)
	}

	n := copy(umem, frame)
	binary.NativeEndian.PutUint64(tx[offsets.Desc:], 0)           // address in umem
	binary.NativeEndian.PutUint32(tx[offsets.Desc+8:], uint32(n)) // length
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&tx[offsets.Producer])), 1)
	consumer := (*uint32)(unsafe.Pointer(&tx[offsets.Consumer]))
	for deadline := time.Now().Add(*timeout); atomic.LoadUint32(consumer) == 0; {
		err := unix.Sendto(fd, nil, unix.MSG_DONTWAIT, nil)
		switch {
		case err == unix.EAGAIN || err == unix.EBUSY || err == unix.EINTR || err == nil:
		default:
			return res, os.NewSyscallError("sendto", err)
		}
		if time.Now().After(deadline) {
			return res, os.NewSyscallError("sendto", unix.ETIMEDOUT)
		}
	}
	res.Data["src"], res.Data["gateway"] = t.src, t.gateway
	return res, nil
}

// xdpRings registers umem, makes the rings that sending needs, and maps the sending one.
func xdpRings(fd int, umem []byte) ([]byte, unix.XDPRingOffset, error) {
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&umem[0]))), Len: uint64(len(umem)), Size: xdpFrameSize}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	if errno != 0 {
		return nil, unix.XDPRingOffset{}, os.NewSyscallError("setsockopt XDP_UMEM_REG", errno)
	}
	for _, name := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, name, xdpRingSize); err != nil {
			return nil, unix.XDPRingOffset{}, os.NewSyscallError("setsockopt XDP ring", err)
		}
	}
	var offsets unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offsets))
	_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&offsets)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, unix.XDPRingOffset{}, os.NewSyscallError("getsockopt XDP_MMAP_OFFSETS", errno)
	}
	length := int(offsets.Tx.Desc) + xdpRingSize*int(unsafe.Sizeof(unix.XDPDesc{}))
	tx, err := unix.Mmap(fd, unix.XDP_PGOFF_TX_RING, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	return tx, offsets.Tx, os.NewSyscallError("mmap XDP ring", err)
}
