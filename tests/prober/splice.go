// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runSplice moves bytes from a socket into a pipe by splice(2), and says of other system calls that could do so, or that look alike,
// what they answer: "" or the name of an errno. The socket is a UNIX one, which no policy for addresses is about.
func runSplice(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("splice", flag.ContinueOnError)
	number := uintptr(unix.SYS_SPLICE)
	fs.BoolFunc("x32", "by its number for x32 programs; a filter that does not list x32 kills for it", func(string) error {
		number |= 0x40000000
		return nil
	})
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	var in, out [2]int
	if err := errors.Join(unix.Pipe2(in[:], unix.O_NONBLOCK), unix.Pipe2(out[:], unix.O_NONBLOCK)); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	text := []byte("spliced")
	moved := func(name string, call func() error) error {
		if _, err := unix.Write(sockets[1], text); err != nil {
			return os.NewSyscallError("write", err)
		}
		defer drain(sockets[0], in[0], out[0])
		return os.NewSyscallError(name, call())
	}
	flags := unix.SPLICE_F_NONBLOCK
	err = moved("splice", func() error {
		_, _, errno := unix.Syscall6(number, uintptr(sockets[0]), 0, uintptr(in[1]), 0, uintptr(len(text)), uintptr(flags))
		if errno != 0 {
			return errno
		}
		return nil
	})
	others := map[string]error{
		"sendfile": moved("sendfile", func() error {
			_, err := unix.Sendfile(in[1], sockets[0], nil, len(text))
			return err
		}),
		"tee": moved("tee", func() error {
			if _, err := unix.Write(in[1], text); err != nil {
				return err
			}
			_, err := unix.Tee(in[0], out[1], len(text), flags)
			return err
		}),
		"vmsplice": moved("vmsplice", func() error {
			iov := unix.Iovec{Base: &text[0]}
			iov.SetLen(len(text))
			_, err := unix.Vmsplice(in[1], []unix.Iovec{iov}, flags)
			return err
		}),
		"io_uring_setup": func() error {
			var p uringParams
			fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
			if errno != 0 {
				return os.NewSyscallError("io_uring_setup", errno)
			}
			return unix.Close(int(fd))
		}(),
	}
	res := newResult()
	for name, err := range others {
		errno := unix.Errno(0)
		if errors.As(err, &errno) {
			res.Data[name] = unix.ErrnoName(errno)
		} else {
			res.Data[name] = ""
		}
	}
	return res, err
}

// drain empties descriptors that may be empty.
func drain(fds ...int) {
	for _, fd := range fds {
		_ = unix.SetNonblock(fd, true)
		_, _ = unix.Read(fd, make([]byte, 4096))
	}
}
