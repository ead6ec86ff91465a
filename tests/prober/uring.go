// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What io_uring_setup(2) and io_uring_enter(2) define, as far as one operation needs it.
const (
	uringOpSendmsg      = 9
	uringOpConnect      = 16
	uringOpSocket       = 45
	uringOpSendZC       = 47
	uringOpSendmsgZC    = 48
	uringEnterGetEvents = 1
	uringFeatSingleMmap = 1
	uringOffSQRing      = 0
	uringOffSQEs        = 0x10000000
	uringSQESize        = 64
	uringCQESize        = 16
	uringUserData       = 0x5347
)

type uringSQOffsets struct {
	Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, _ uint32
	_                                                           uint64
}

type uringCQOffsets struct {
	Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags, _ uint32
	_                                                           uint64
}

type uringParams struct {
	SQEntries, CQEntries, Flags, SQThreadCPU, SQThreadIdle, Features, WQFd uint32
	_                                                                      [3]uint32
	SQ                                                                     uringSQOffsets
	CQ                                                                     uringCQOffsets
}

// A uringEntry is one submission: what is the same in all operations (io_uring_enter(2), struct io_uring_sqe).
type uringEntry struct {
	op     byte
	fd     int
	off    uint64 // what it means depends on the operation, as of all of these
	addr   unsafe.Pointer
	length uint32
	flags  uint32
	addr2  unsafe.Pointer // instead of off
	splice uint16         // addr_len of SEND_ZC
}

// uring makes one operation through an io_uring of its own, and waits for the end of it. What the entry points to, the caller keeps.
func uring(name string, e uringEntry, timeout time.Duration) (int, error) {
	var p uringParams
	r, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return -1, os.NewSyscallError("io_uring_setup", errno)
	}
	ring := int(r)
	defer unix.Close(ring)
	if p.Features&uringFeatSingleMmap == 0 {
		return -1, os.NewSyscallError("io_uring_setup", unix.ENOSYS)
	}
	size := max(int(p.SQ.Array)+int(p.SQEntries)*4, int(p.CQ.CQEs)+int(p.CQEntries)*uringCQESize)
	rings, err := unix.Mmap(ring, uringOffSQRing, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return -1, os.NewSyscallError("mmap io_uring", err)
	}
	defer func() { _ = unix.Munmap(rings) }()
	sqes, err := unix.Mmap(ring, uringOffSQEs, int(p.SQEntries)*uringSQESize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return -1, os.NewSyscallError("mmap io_uring entries", err)
	}
	defer func() { _ = unix.Munmap(sqes) }()

	sqes[0] = e.op
	binary.NativeEndian.PutUint32(sqes[4:], uint32(e.fd))
	binary.NativeEndian.PutUint64(sqes[8:], e.off)
	if e.addr2 != nil {
		binary.NativeEndian.PutUint64(sqes[8:], uint64(uintptr(e.addr2)))
	}
	binary.NativeEndian.PutUint64(sqes[16:], uint64(uintptr(e.addr)))
	binary.NativeEndian.PutUint32(sqes[24:], e.length)
	binary.NativeEndian.PutUint32(sqes[28:], e.flags)
	binary.NativeEndian.PutUint64(sqes[32:], uringUserData)
	binary.NativeEndian.PutUint16(sqes[44:], e.splice)
	binary.NativeEndian.PutUint32(rings[p.SQ.Array:], 0)
	atomic.AddUint32((*uint32)(unsafe.Pointer(&rings[p.SQ.Tail])), 1)

	dog := watchdog(timeout)
	defer dog.Stop()
	for {
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(ring), 1, 1, uringEnterGetEvents, 0, 0)
		if errno != unix.EINTR {
			break
		}
	}
	if errno != 0 {
		return -1, os.NewSyscallError("io_uring_enter", errno)
	}
	cqe := rings[p.CQ.CQEs:]
	res := int32(binary.NativeEndian.Uint32(cqe[8:]))
	if res < 0 {
		return -1, os.NewSyscallError("io_uring "+name, unix.Errno(-res))
	}
	return int(res), nil
}

// uringConnect connects fd to the socket address in sa.
func uringConnect(fd int, sa []byte, timeout time.Duration) error {
	var pin runtime.Pinner // the kernel keeps the address, where the collector does not see it
	pin.Pin(&sa[0])
	defer pin.Unpin()
	_, err := uring("connect", uringEntry{op: uringOpConnect, fd: fd, off: uint64(len(sa)), addr: unsafe.Pointer(&sa[0])}, timeout)
	return err
}

// uringSocket makes a socket (Linux 5.19).
func uringSocket(family, kind, proto int) (int, error) {
	return uring("socket", uringEntry{op: uringOpSocket, fd: family, off: uint64(kind | unix.SOCK_CLOEXEC), length: uint32(proto)}, time.Second)
}

// uringSend sends b to the socket address in sa by an operation: SENDMSG, SENDMSG_ZC (6.1), or SEND_ZC (6.0).
func uringSend(fd int, op byte, b, sa []byte) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&b[0])
	pin.Pin(&sa[0])
	e := uringEntry{op: op, fd: fd, addr: unsafe.Pointer(&b[0]), length: uint32(len(b)), addr2: unsafe.Pointer(&sa[0]), splice: uint16(len(sa))}
	if op != uringOpSendZC {
		iov := &unix.Iovec{Base: &b[0]}
		iov.SetLen(len(b))
		msg := &unix.Msghdr{Name: &sa[0], Namelen: uint32(len(sa)), Iov: iov}
		msg.SetIovlen(1)
		pin.Pin(iov)
		pin.Pin(msg)
		e = uringEntry{op: op, fd: fd, addr: unsafe.Pointer(msg), length: 1}
	}
	_, err := uring("send", e, time.Second)
	return err
}
