// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Families and protocols that golang.org/x/sys does not have.
const (
	protoL2TP  = 115
	protoDCCP  = 33
	sockDCCP   = 6
	afSMC      = 43
	solDCCP    = 269
	dccpServCd = 2 // DCCP_SOCKOPT_SERVICE
)

// runFamily makes a socket of any family.
func runFamily(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("family", flag.ContinueOnError)
	family := fs.Int("family", 0, "address `family`")
	kind := fs.Int("type", 0, "`type`")
	proto := fs.Int("proto", 0, "`protocol`")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	fd, err := socketBySyscall(*family, *kind, *proto)
	if err == nil {
		unix.Close(fd)
	}
	return newResult(), err
}

// target is what the following commands have in common.
type target struct {
	to      netip.AddrPort
	nonce   string
	timeout time.Duration
}

func (t *target) parse(name string, args []string, more func(*flag.FlagSet)) error {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.TextVar(&t.to, "to", netip.AddrPort{}, "destination `address:port`")
	fs.StringVar(&t.nonce, "nonce", defaultNonce(), "what to send")
	fs.DurationVar(&t.timeout, "timeout", time.Second, "how long to wait for anything")
	if more != nil {
		more(fs)
	}
	if err := parse(fs, args); err != nil {
		return err
	}
	if !t.to.IsValid() {
		return &usageError{errors.New("--to is missing")}
	}
	return nil
}

// stream connects fd, sends the nonce as a line, and reads it back.
func (t *target) stream(fd int) (*result, error) {
	res := newResult()
	c := &conn{fd: fd}
	defer c.Close()
	if err := limitWaits(fd, t.timeout); err != nil {
		return res, err
	}
	if err := unix.Connect(fd, sockaddr(t.to, false)); err != nil {
		return res, os.NewSyscallError("connect", err)
	}
	c.addresses()
	c.report(res)
	return res, c.echo(t.nonce)
}

// runSMC connects by AF_SMC, which makes TCP connections in the kernel, and stays with them where there is no RDMA (Linux 4.19).
func runSMC(_ context.Context, args []string) (*result, error) {
	var t target
	if err := t.parse("smc", args, nil); err != nil {
		return nil, err
	}
	const smcprotoSMC = 0
	fd, err := socketBySyscall(afSMC, unix.SOCK_STREAM, smcprotoSMC)
	if err != nil {
		return newResult(), err
	}
	return t.stream(fd)
}

// runDCCP connects by DCCP. Its request reaches the outside whether or not somebody listens; service code 0 has the first bytes of the
// nonce in it.
func runDCCP(_ context.Context, args []string) (*result, error) {
	var t target
	if err := t.parse("dccp", args, nil); err != nil {
		return nil, err
	}
	fd, err := socketBySyscall(unix.AF_INET, sockDCCP, protoDCCP)
	if err != nil {
		return newResult(), err
	}
	if err := unix.SetsockoptString(fd, solDCCP, dccpServCd, t.nonce[:4]); err != nil {
		unix.Close(fd)
		return newResult(), os.NewSyscallError("setsockopt DCCP_SOCKOPT_SERVICE", err)
	}
	return t.stream(fd)
}

// runL2TP sends a datagram of IP protocol 115 (struct sockaddr_l2tpip).
func runL2TP(_ context.Context, args []string) (*result, error) {
	var t target
	if err := t.parse("l2tp", args, nil); err != nil {
		return nil, err
	}
	res := newResult()
	fd, err := socketBySyscall(unix.AF_INET, unix.SOCK_DGRAM, protoL2TP)
	if err != nil {
		return res, err
	}
	defer unix.Close(fd)
	sa := make([]byte, 16)
	binary.NativeEndian.PutUint16(sa, unix.AF_INET)
	copy(sa[4:], t.to.Addr().AsSlice())
	binary.NativeEndian.PutUint32(sa[8:], 1) // connection
	b := []byte(t.nonce)
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&sa[0])), uintptr(len(sa)))
	if errno != 0 {
		return res, os.NewSyscallError("sendto", errno)
	}
	return res, nil
}

// runVSOCK connects, or takes a connection, by AF_VSOCK on this machine: any other would be the one that it runs on.
func runVSOCK(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("vsock", flag.ContinueOnError)
	listen := fs.Bool("listen", false, "take one connection")
	port := fs.Uint("port", 0, "`port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	timeout := fs.Duration("timeout", time.Second, "how long to wait for anything")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	fd, err := socketBySyscall(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return res, err
	}
	c := &conn{fd: fd}
	defer c.Close()
	if *listen {
		if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: uint32(*port)}); err != nil {
			return res, os.NewSyscallError("bind", err)
		}
		if err := unix.Listen(fd, 1); err != nil {
			return res, os.NewSyscallError("listen", err)
		}
		newResult().print(os.Stdout)
		if err := poll(fd, unix.POLLIN, *timeout); err != nil {
			return res, fmt.Errorf("accept: %w", err)
		}
		nfd, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return res, os.NewSyscallError("accept", err)
		}
		peer := &conn{fd: nfd}
		defer peer.Close()
		b := make([]byte, 4096)
		n, err := peer.Read(b)
		res.Data["line"] = string(b[:n])
		return res, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return res, os.NewSyscallError("fcntl", err)
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: uint32(*port)})
	if errors.Is(err, unix.EINPROGRESS) {
		if err := poll(fd, unix.POLLOUT, *timeout); err != nil {
			return res, fmt.Errorf("connect: %w", err)
		}
	} else if err != nil {
		return res, os.NewSyscallError("connect", err)
	}
	_, err = c.Write([]byte(*nonce + "\n"))
	return res, err
}

// runALG hashes the nonce by AF_ALG.
func runALG(_ context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("alg", flag.ContinueOnError)
	nonce := fs.String("nonce", defaultNonce(), "what to hash")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	res := newResult()
	fd, err := socketBySyscall(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return res, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrALG{Type: "hash", Name: "sha256"}); err != nil {
		return res, os.NewSyscallError("bind", err)
	}
	op, _, errno := unix.Syscall(unix.SYS_ACCEPT4, uintptr(fd), 0, 0)
	if errno != 0 {
		return res, os.NewSyscallError("accept", errno)
	}
	c := &conn{fd: int(op)}
	defer c.Close()
	if _, err := c.Write([]byte(*nonce)); err != nil {
		return res, err
	}
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(c, sum); err != nil {
		return res, err
	}
	if want := sha256.Sum256([]byte(*nonce)); !bytes.Equal(sum, want[:]) {
		return res, fmt.Errorf("the kernel's SHA-256 is %x", sum)
	}
	return res, nil
}
