// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// haveTCX probes for tcx links (6.6): on a device that does not exist the
// kernel says ENODEV if it knows the attach type.
var haveTCX = sync.OnceValue(func() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		return false
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: 1 << 30, Program: prog, Attach: ebpf.AttachTCXEgress})
	if err == nil {
		l.Close()
		return true
	}
	return errors.Is(err, unix.ENODEV)
})
