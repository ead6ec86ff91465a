// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func socketTamperings() []tampering {
	var all []tampering
	for _, o := range []struct {
		name string
		set  func(fd int) error
	}{
		{"SO_MARK", setOption(unix.SOL_SOCKET, unix.SO_MARK, 1)},
		{"SO_BINDTODEVICE", func(fd int) error { return unix.BindToDevice(fd, "eth0") }},
		{"IP_TRANSPARENT", setOption(unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)},
		{"IP_FREEBIND", setOption(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)},
		{"SO_ATTACH_FILTER", attachFilter},
		{"SO_DETACH_FILTER", setOption(unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)},
		{"SO_DETACH_BPF", setOption(unix.SOL_SOCKET, unix.SO_DETACH_BPF, 0)},
		{"SO_ATTACH_BPF", func(fd int) error {
			prog, err := load(unix.BPF_PROG_TYPE_SOCKET_FILTER, 0)
			if err != nil {
				return err
			}
			return setOption(unix.SOL_SOCKET, unix.SO_ATTACH_BPF, int(prog))(fd)
		}},
	} {
		all = append(all, tampering{name: "socket: " + o.name, run: func(*tamperer) error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return os.NewSyscallError("socket", err)
			}
			defer unix.Close(fd)
			return os.NewSyscallError("setsockopt", o.set(fd))
		}})
	}
	return append(all,
		tampering{name: "socket: connection without a handshake", run: repair},
		tampering{name: "socket: destroy another's", run: destroySocket},
	)
}

func setOption(level, name, value int) func(int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

func attachFilter(fd int) error {
	all := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &all[0]})
}

// repair connects a socket that takes itself for restored from a checkpoint: no SYN says where it goes.
func repair(t *tamperer) error {
	d := dialer{to: t.to, proto: "tcp", uid: -1, gid: -1, repair: true, timeout: tamperLimit}
	c, _, err := d.dial(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("hello\n"))
	return err
}

// destroySocket ends the other end, which is another container's, of a connection.
func destroySocket(t *tamperer) error {
	c, err := net.Dial("tcp4", t.peer.String())
	if err != nil {
		return err
	}
	defer c.Close()
	return netlink.SocketDestroy(c.RemoteAddr(), c.LocalAddr())
}

// netfilter makes a table, which is all that one needs the right for.
func netfilter(*tamperer) error {
	name := append([]byte{11, 0, unix.NFTA_TABLE_NAME, 0}, "tamper\x00\x00"...)
	return nfBatch(nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_ACK, 0, name))
}

// nfBatch makes one change of nftables, which asks for an answer.
func nfBatch(m []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	batch := nfMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	batch = append(batch, m...)
	batch = append(batch, nfMessage(unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("sendto", err)
	}
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return os.NewSyscallError("recvfrom", err)
	}
	if errno := -int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])); errno != 0 {
		return os.NewSyscallError("nftables", unix.Errno(errno))
	}
	return nil
}

func nfMessage(kind, flags int, resource uint16, attrs []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+4+len(attrs))
	b = append(b, unix.NFPROTO_INET, 0)
	b = binary.BigEndian.AppendUint16(b, resource)
	b = append(b, attrs...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], uint16(kind))
	binary.NativeEndian.PutUint16(b[6:], uint16(flags|unix.NLM_F_REQUEST))
	return b
}
