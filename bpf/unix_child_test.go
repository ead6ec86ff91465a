// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// unixChildEnv makes this binary a process that does what its descriptor 3 says.
const unixChildEnv = "SIDEGATE_UNIX_CHILD"

func init() {
	if os.Getenv(unixChildEnv) == "" {
		return
	}
	if err := serveUnix(3); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// unixOp is one thing to do with UNIX sockets. Names are sun_path as it is,
// without a 0 that is not in them.
type unixOp struct {
	Do    string
	Type  int
	Sock  int
	Name  []byte
	Names [][]byte
	Flags int
	Path  string
	To    string
}

// unixAnswer is what came of it.
type unixAnswer struct {
	Errno  unix.Errno
	Sock   int
	Other  int
	Errnos []unix.Errno
}

// unixPacket is the most that an operation or an answer has.
const unixPacket = 1 << 16

// serveUnix does what the parent asks until it closes its end. A descriptor
// that comes with a question is socket Sock of it, one that is asked for goes
// with the answer.
func serveUnix(control int) error {
	buf, oob := make([]byte, unixPacket), make([]byte, unix.CmsgSpace(4))
	for {
		n, noob, _, _, err := unix.Recvmsg(control, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err
		}
		var op unixOp
		if err := json.Unmarshal(buf[:n], &op); err != nil {
			return err
		}
		if noob > 0 {
			if op.Sock, err = rightsOf(oob[:noob]); err != nil {
				return err
			}
		}
		answer, err := json.Marshal(doUnix(op))
		if err != nil {
			return err
		}
		var rights []byte
		if op.Do == "export" {
			rights = unix.UnixRights(op.Sock)
		}
		if err := unix.Sendmsg(control, answer, rights, nil, 0); err != nil {
			return err
		}
	}
}

func rightsOf(oob []byte) (int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

// doUnix does it in this process. No socket blocks.
func doUnix(op unixOp) (a unixAnswer) {
	var err error
	switch op.Do {
	case "socket":
		a.Sock, err = unix.Socket(unix.AF_UNIX, op.Type|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	case "pair":
		var pair [2]int
		pair, err = unix.Socketpair(unix.AF_UNIX, op.Type|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		a.Sock, a.Other = pair[0], pair[1]
	case "bind":
		err = addressCall(unix.SYS_BIND, op.Sock, op.Name)
	case "listen":
		err = unix.Listen(op.Sock, 4096)
	case "connect":
		err = addressCall(unix.SYS_CONNECT, op.Sock, op.Name)
	case "uring":
		err = uringConnect(op.Sock, op.Name)
	case "send":
		err = sendTo(op.Sock, op.Name, op.Flags)
	case "close":
		err = unix.Close(op.Sock)
	case "import":
		a.Sock = op.Sock
	case "export":
	case "judge": // connects a new socket to each name
		for _, name := range op.Names {
			s := doUnix(unixOp{Do: "socket", Type: op.Type}).Sock
			a.Errnos = append(a.Errnos, doUnix(unixOp{Do: "connect", Sock: s, Name: name}).Errno)
			unix.Close(s)
		}
	case "chdir":
		err = unix.Chdir(op.Path)
	case "symlink":
		err = unix.Symlink(op.To, op.Path)
	case "link":
		err = unix.Link(op.To, op.Path)
	case "mount": // in a mount namespace of its own, see startUnix
		err = unix.Mount(op.To, op.Path, "", unix.MS_BIND, "")
	case "unmount":
		err = unix.Unmount(op.Path, 0)
	case "move": // to another cgroup
		err = os.WriteFile(op.Path+"/cgroup.procs", []byte("0"), 0)
	default:
		panic(op.Do)
	}
	if err != nil && !errors.As(err, &a.Errno) {
		panic(err)
	}
	return a
}

// sockaddrUn is a struct sockaddr_un with room for more than may be given.
type sockaddrUn struct {
	family uint16
	path   [126]byte
}

// newSockaddrUn returns the address, and its length as the kernel is told.
func newSockaddrUn(name []byte) (*sockaddrUn, uintptr) {
	a := &sockaddrUn{family: unix.AF_UNIX}
	return a, unsafe.Offsetof(a.path) + uintptr(copy(a.path[:], name))
}

func addressCall(call uintptr, fd int, name []byte) error {
	a, n := newSockaddrUn(name)
	if _, _, errno := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(a)), n); errno != 0 {
		return errno
	}
	return nil
}

// sendTo sends a byte, to a name if there is one.
func sendTo(fd int, name []byte, flags int) error {
	data := []byte{'x'}
	iov := unix.Iovec{Base: &data[0], Len: 1}
	m := unix.Msghdr{Iov: &iov, Iovlen: 1}
	if len(name) > 0 {
		a, n := newSockaddrUn(name)
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(a)), uint32(n)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(flags|unix.MSG_NOSIGNAL)); errno != 0 {
		return errno
	}
	return nil
}

// The parts of io_uring(7) that one connect needs.
type (
	uringParams struct {
		sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFd uint32
		_                                                                  [3]uint32
		sq                                                                 struct {
			head, tail, mask, entries, flags, dropped, array, _ uint32
			_                                                   uint64
		}
		cq struct {
			head, tail, mask, entries, overflow, cqes, flags, _ uint32
			_                                                   uint64
		}
	}
	uringSqe struct {
		op, flags uint8
		_         uint16
		fd        int32
		off, addr uint64
		_         [5]uint64
	}
	uringCqe struct {
		_     uint64
		res   int32
		flags uint32
	}
)

const (
	uringOpConnect = 16
	uringSqes      = 0x10000000 // offset of mmap
	uringGetEvents = 1
)

func uringConnect(fd int, name []byte) error {
	var p uringParams
	r, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return errno
	}
	ring := int(r)
	defer unix.Close(ring)
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(uringCqe{})))
	queues, err := unix.Mmap(ring, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(queues)
	entries, err := unix.Mmap(ring, uringSqes, int(unsafe.Sizeof(uringSqe{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(entries)
	a, n := newSockaddrUn(name)
	var pin runtime.Pinner
	pin.Pin(a)
	defer pin.Unpin()
	*(*uringSqe)(unsafe.Pointer(&entries[0])) = uringSqe{
		op: uringOpConnect, fd: int32(fd), off: uint64(n), addr: uint64(uintptr(unsafe.Pointer(a))),
	}
	binary.NativeEndian.PutUint32(queues[p.sq.array:], 0)
	binary.NativeEndian.PutUint32(queues[p.sq.tail:], 1)
	// The kernel sees the queue in this call, and not before.
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(ring), 1, 1, uringGetEvents, 0, 0); errno != 0 {
		return errno
	}
	if res := (*uringCqe)(unsafe.Pointer(&queues[p.cq.cqes])).res; res != 0 {
		return unix.Errno(-res)
	}
	return nil
}

// unixProcess does unixOps in a process in some cgroup, or in this one.
type unixProcess struct {
	t       testing.TB
	control int // -1: this process
}

// here is this process, which is in no container.
func here(t testing.TB) unixProcess { return unixProcess{t, -1} }

// startUnix starts a process in the cgroup at dir, with a mount namespace of its
// own. It ends with the test.
func startUnix(t testing.TB, dir string) unixProcess {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), unixChildEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Unshareflags: unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(pair[0])
		if err := cmd.Wait(); err != nil {
			t.Errorf("a process ended: %v", err)
		}
	})
	return unixProcess{t, pair[0]}
}

// do does it, and returns what came of it.
func (p unixProcess) do(op unixOp) unixAnswer {
	p.t.Helper()
	if p.control < 0 {
		return doUnix(op)
	}
	var rights []byte
	if op.Do == "import" {
		rights = unix.UnixRights(op.Sock)
	}
	question, err := json.Marshal(op)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Sendmsg(p.control, question, rights, nil, 0); err != nil {
		p.t.Fatalf("%s: %v", op.Do, err)
	}
	buf, oob := make([]byte, unixPacket), make([]byte, unix.CmsgSpace(4))
	n, noob, _, _, err := unix.Recvmsg(p.control, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		p.t.Fatalf("%s: %v", op.Do, err)
	}
	var a unixAnswer
	if err := json.Unmarshal(buf[:n], &a); err != nil {
		p.t.Fatalf("%s: %v", op.Do, err)
	}
	if noob > 0 {
		if a.Sock, err = rightsOf(oob[:noob]); err != nil {
			p.t.Fatal(err)
		}
	}
	return a
}

// must does what has to work.
func (p unixProcess) must(op unixOp) unixAnswer {
	p.t.Helper()
	a := p.do(op)
	if a.Errno != 0 {
		p.t.Fatalf("%s %q: %v", op.Do, op.Name, a.Errno)
	}
	return a
}

// socket makes a socket that is closed with the test.
func (p unixProcess) socket(sockType int) int {
	p.t.Helper()
	s := p.must(unixOp{Do: "socket", Type: sockType}).Sock
	if p.control < 0 {
		p.t.Cleanup(func() { unix.Close(s) })
	}
	return s
}

// bound makes one with a name, which takes connections.
func (p unixProcess) bound(sockType int, name string) int {
	p.t.Helper()
	s := p.socket(sockType)
	p.must(unixOp{Do: "bind", Sock: s, Name: []byte(name)})
	if sockType != unix.SOCK_DGRAM {
		p.must(unixOp{Do: "listen", Sock: s})
	}
	return s
}

// connect connects a new socket.
func (p unixProcess) connect(sockType int, name string) unix.Errno {
	p.t.Helper()
	s := p.must(unixOp{Do: "socket", Type: sockType}).Sock
	defer p.do(unixOp{Do: "close", Sock: s})
	return p.do(unixOp{Do: "connect", Sock: s, Name: []byte(name)}).Errno
}

// send sends a datagram from a new socket.
func (p unixProcess) send(name string) unix.Errno {
	p.t.Helper()
	s := p.must(unixOp{Do: "socket", Type: unix.SOCK_DGRAM}).Sock
	defer p.do(unixOp{Do: "close", Sock: s})
	return p.do(unixOp{Do: "send", Sock: s, Name: []byte(name)}).Errno
}

// give gives a socket to another process.
func (p unixProcess) give(s int, to unixProcess) int {
	p.t.Helper()
	fd := p.must(unixOp{Do: "export", Sock: s}).Sock
	defer unix.Close(fd)
	return to.must(unixOp{Do: "import", Sock: fd}).Sock
}
