// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"structs"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// lsmLogSize is how much of the verifier's log an error has room for, in bytes.
const lsmLogSize = 1 << 20

// lsmTries is how often a load that a signal interrupts is tried again.
const lsmTries = 30

// progLoad is union bpf_attr for BPF_PROG_LOAD, up to what is needed (bpf(2)).
type progLoad struct {
	_               structs.HostLayout
	progType        uint32
	insnCnt         uint32
	insns           unsafe.Pointer
	license         unsafe.Pointer
	logLevel        uint32
	logSize         uint32
	logBuf          unsafe.Pointer
	kernVersion     uint32
	progFlags       uint32
	progName        [16]byte
	progIfindex     uint32
	attachType      uint32
	btfFd           uint32
	funcInfoRecSize uint32
	funcInfo        unsafe.Pointer
	funcInfoCnt     uint32
	lineInfoRecSize uint32
	lineInfo        unsafe.Pointer
	lineInfoCnt     uint32
	attachBTFID     uint32
}

// loadLSMCgroup loads a program for AttachLSMCgroup that uses these maps, into
// the kernel with these types. The library knows the attach type, but (v0.22) not
// that such a program is loaded for a function of the kernel, as one for
// AttachLSMMac is, so this does with the library's parts what it does for the
// others. A verifier error is an *ebpf.VerifierError.
func loadLSMCgroup(kernel *btf.Spec, spec *ebpf.ProgramSpec, maps map[string]*ebpf.Map) (_ *ebpf.Program, err error) {
	attr := progLoad{progType: uint32(ebpf.LSM), attachType: uint32(ebpf.AttachLSMCgroup)}
	copy(attr.progName[:len(attr.progName)-1], spec.Name)
	license := append([]byte(spec.License), 0)
	attr.license = unsafe.Pointer(&license[0])
	if attr.attachBTFID, err = lsmHookID(kernel, spec.AttachTo); err != nil {
		return nil, err
	}

	insns := spec.Copy().Instructions
	if err := useMaps(insns, maps); err != nil {
		return nil, err
	}
	types := new(btf.Builder)
	if err := relocate(insns, kernel, types); err != nil {
		return nil, fmt.Errorf("relocate: %w", err)
	}
	funcs, lines, err := btf.MarshalExtInfos(insns, types)
	if err != nil {
		return nil, fmt.Errorf("encode types: %w", err)
	}
	if !types.Empty() {
		handle, err := btf.NewHandle(types)
		if err != nil {
			return nil, fmt.Errorf("load types: %w", err)
		}
		defer handle.Close()
		attr.btfFd = uint32(handle.FD())
		attr.funcInfoRecSize, attr.lineInfoRecSize = btf.FuncInfoSize, btf.LineInfoSize
		attr.funcInfo, attr.funcInfoCnt = unsafe.Pointer(unsafe.SliceData(funcs)), uint32(len(funcs))/btf.FuncInfoSize
		attr.lineInfo, attr.lineInfoCnt = unsafe.Pointer(unsafe.SliceData(lines)), uint32(len(lines))/btf.LineInfoSize
	}
	var code bytes.Buffer
	if err := insns.Marshal(&code, binary.LittleEndian); err != nil {
		return nil, fmt.Errorf("encode instructions: %w", err)
	}
	attr.insns = unsafe.Pointer(unsafe.SliceData(code.Bytes()))
	attr.insnCnt = uint32(code.Len() / asm.InstructionSize)
	fd, err := attr.load()
	runtime.KeepAlive(maps)
	if err != nil {
		return nil, err
	}
	return ebpf.NewProgramFromFD(fd)
}

// lsmHookID is the number of the kernel's function for a hook.
func lsmHookID(kernel *btf.Spec, hook string) (uint32, error) {
	var f *btf.Func
	if err := kernel.TypeByName("bpf_lsm_"+hook, &f); err != nil {
		return 0, fmt.Errorf("find security hook %s: %w", hook, err)
	}
	id, err := kernel.TypeID(f)
	if err != nil {
		return 0, fmt.Errorf("find security hook %s: %w", hook, err)
	}
	return uint32(id), nil
}

func useMaps(insns asm.Instructions, maps map[string]*ebpf.Map) error {
	for i := range insns {
		ins := &insns[i]
		name := ins.Reference()
		if !ins.IsLoadFromMap() || name == "" {
			continue
		}
		m := maps[name]
		if m == nil {
			return fmt.Errorf("there is no map %s", name)
		}
		if err := ins.AssociateMap(m); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	return nil
}

// relocate makes the offsets those of this kernel's structs (CO-RE).
func relocate(insns asm.Instructions, kernel *btf.Spec, types *btf.Builder) error {
	var relos []*btf.CORERelocation
	var at []*asm.Instruction
	for i := range insns {
		if r := btf.CORERelocationMetadata(&insns[i]); r != nil {
			relos, at = append(relos, r), append(at, &insns[i])
		}
	}
	fixups, err := btf.CORERelocate(relos, []*btf.Spec{kernel}, binary.LittleEndian, types.Add)
	if err != nil {
		return err
	}
	for i, f := range fixups {
		if err := f.Apply(at[i]); err != nil {
			return err
		}
	}
	return nil
}

// load returns the program's descriptor. What fails is loaded once more, for the
// verifier's log.
func (a *progLoad) load() (fd int, err error) {
	if fd, err = a.bpf(); err == nil || errors.Is(err, unix.EPERM) {
		return fd, err
	}
	log := make([]byte, lsmLogSize)
	a.logLevel, a.logSize, a.logBuf = 1, lsmLogSize, unsafe.Pointer(&log[0])
	fd, again := a.bpf()
	if again == nil {
		return fd, nil
	}
	text := strings.TrimSpace(CString(log))
	if text == "" {
		return -1, err
	}
	// Such an error begins with the program's name, which only the library sets.
	return -1, fmt.Errorf("verify%w", &ebpf.VerifierError{Cause: err, Log: strings.Split(text, "\n")})
}

// bpf tries again what a signal has interrupted: the runtime sends itself some.
func (a *progLoad) bpf() (int, error) {
	for try := 0; ; try++ {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a))
		switch {
		case errno == 0:
			return int(fd), nil
		case errno != unix.EAGAIN || try == lsmTries:
			return -1, errno
		}
	}
}
