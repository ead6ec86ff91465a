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

// What io_uring_setup(2) and io_uring_enter(2) define, as far as one connect needs it.
const (
	uringOpConnect       = 16
	uringEnterGetEvents  = 1
	uringFeatSingleMmap  = 1
	uringOffSQRing       = 0
	uringOffSQEs         = 0x10000000
	uringSQESize         = 64
	uringCQESize         = 16
	uringConnectUserData = 0x5347
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

// uringConnect connects fd to the socket address in sa through an io_uring of its own, and waits for the end of it.
func uringConnect(fd int, sa []byte, timeout time.Duration) error {
	var p uringParams
	r, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_setup", errno)
	}
	ring := int(r)
	defer unix.Close(ring)
	if p.Features&uringFeatSingleMmap == 0 {
		return os.NewSyscallError("io_uring_setup", unix.ENOSYS)
	}
	size := max(int(p.SQ.Array)+int(p.SQEntries)*4, int(p.CQ.CQEs)+int(p.CQEntries)*uringCQESize)
	rings, err := unix.Mmap(ring, uringOffSQRing, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return os.NewSyscallError("mmap io_uring", err)
	}
	defer func() { _ = unix.Munmap(rings) }()
	sqes, err := unix.Mmap(ring, uringOffSQEs, int(p.SQEntries)*uringSQESize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return os.NewSyscallError("mmap io_uring entries", err)
	}
	defer func() { _ = unix.Munmap(sqes) }()

	// One submission queue entry: opcode, fd, the length in "off", the address, user data.
	sqes[0] = uringOpConnect
	binary.NativeEndian.PutUint32(sqes[4:], uint32(fd))
	binary.NativeEndian.PutUint64(sqes[8:], uint64(len(sa)))
	var pin runtime.Pinner // the kernel keeps the address, where the collector does not see it
	pin.Pin(&sa[0])
	defer pin.Unpin()
	binary.NativeEndian.PutUint64(sqes[16:], uint64(uintptr(unsafe.Pointer(&sa[0]))))
	binary.NativeEndian.PutUint64(sqes[32:], uringConnectUserData)
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
		return os.NewSyscallError("io_uring_enter", errno)
	}
	cqe := rings[p.CQ.CQEs:]
	if res := int32(binary.NativeEndian.Uint32(cqe[8:])); res < 0 {
		return os.NewSyscallError("io_uring connect", unix.Errno(-res))
	}
	return nil
}
