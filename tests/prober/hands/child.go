// SPDX-License-Identifier: Apache-2.0

package hands

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// ChildCommand is the prober's command for a child of child.
const ChildCommand = "hands-child"

// child lets a new process do something with a socket, which it inherits or, with Mode "rights", is sent.
func child(o Order) (a Answer) {
	fail := func(err error) Answer { return Answer{Err: ErrName(err)} }
	exe, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	do, err := json.Marshal(o.Do)
	if err != nil {
		return fail(err)
	}
	fd, err := unix.Dup(o.FD)
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command(exe, ChildCommand, "--mode", o.Mode, "--order", string(do))
	given := os.NewFile(uintptr(fd), "socket")
	if o.Mode == "rights" {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fail(errors.Join(err, given.Close()))
		}
		err = unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(fd), nil, 0)
		if err := errors.Join(err, unix.Close(pair[0]), given.Close()); err != nil {
			return fail(err)
		}
		given = os.NewFile(uintptr(pair[1]), "pair")
	}
	defer given.Close()
	cmd.ExtraFiles = []*os.File{given}
	out, err := cmd.Output()
	if err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(out, &a); err != nil {
		return fail(err)
	}
	return a
}

// Child is what the new process does, with what it has at descriptor 3.
func Child(mode, order string) (a Answer, err error) {
	var o Order
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return a, err
	}
	o.FD = 3
	if mode == "rights" {
		b, control := make([]byte, 1), make([]byte, 64)
		_, n, _, _, err := unix.Recvmsg(3, b, control, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return a, os.NewSyscallError("recvmsg", err)
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil || len(messages) != 1 {
			return a, errors.Join(errors.New("no descriptor came"), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return a, err
		}
		o.FD = fds[0]
	}
	return Do(o), nil
}
