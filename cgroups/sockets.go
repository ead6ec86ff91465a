// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// sock is a socket that some container of a pod made, and its record.
type sock struct {
	record        bpf.Sock
	recorded      bool           // record is known
	cookie        uint64         // SO_COOKIE
	inode         uint64         // as in /proc/<pid>/fd
	local, remote netip.AddrPort // as the socket has them: IPv4 may be mapped
	family        uint8          // AF_INET or AF_INET6
	proto         uint8          // IPPROTO_*
	state         uint8          // TCP_* of linux/tcp_states.h, of UDP too
}

// sockets lists the TCP and UDP sockets of a pod that have a record and a port.
// Those that come and go meanwhile may be missing, and of those that are not TCP
// connections such as are on their way from process to process. list has the
// containers of the pod; in a namespace without any process there is nobody to talk.
//
// An iterator over map socks would have all records. But that is a tracing program,
// which a kernel that is locked down (lockdown=confidentiality) may refuse to load.
func (s *Store) sockets(cookie uint64, list []member) ([]sock, error) {
	ns, err := s.podNetns(cookie, list)
	if ns == nil || err != nil {
		return nil, err
	}
	var all []sock
	err = ns.Do(func() error {
		all, err = listSockets(s.maps.Socks)
		return err
	})
	if err = errors.Join(err, ns.Close()); err != nil {
		return nil, fmt.Errorf("list sockets of pod %d: %w", cookie, err)
	}
	silent := make(map[uint64]*sock)
	for i := range all {
		if !all[i].recorded {
			silent[all[i].inode] = &all[i]
		}
	}
	for i := range list {
		if list[i].entry.NetnsCookie != cookie {
			continue
		}
		if err := s.readRecords(list[i].entry.CgroupId, silent); err != nil {
			return nil, fmt.Errorf("list sockets of container %s: %w", endpointOf(list[i].info).Name, err)
		}
	}
	return slices.DeleteFunc(all, func(r sock) bool { return !r.recorded }), nil
}

// readRecords asks for the records of sockets, by inode, of processes of a cgroup, and
// takes those out that it has found.
func (s *Store) readRecords(cgroup uint64, silent map[uint64]*sock) error {
	if len(silent) == 0 {
		return nil
	}
	path, ok, err := s.mount.PathOf(cgroup)
	if !ok || err != nil {
		return err
	}
	pids, err := s.mount.processes(path)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := readRecordsOf(s.maps.Socks, pid, silent); err != nil && !isGone(err) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

func readRecordsOf(records *ebpf.Map, pid int, silent map[uint64]*sock) error {
	return eachSocketOf(pid, func(inode uint64, take takeSocket) error {
		r := silent[inode]
		if r == nil {
			return nil
		}
		return take(func(own int, _ socket) error {
			err := records.Lookup(int32(own), &r.record)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("look up its record: %w", err)
			}
			r.recorded = true
			delete(silent, inode)
			return nil
		})
	})
}

// podNetns opens the network namespace of a pod by a process in it: one of list, or
// any other. It is nil if there is none.
func (s *Store) podNetns(cookie uint64, list []member) (*Netns, error) {
	try := func(pid int) (*Netns, error) {
		ns, err := NetnsOf(pid)
		if err != nil {
			return nil, nil //nolint:nilerr // it ended: another one may live
		}
		if ns.Cookie != cookie {
			return nil, ns.Close()
		}
		return ns, nil
	}
	for i := range list {
		if list[i].entry.NetnsCookie != cookie {
			continue
		}
		if ns, err := try(int(list[i].info.Pid)); ns != nil || err != nil {
			return ns, err
		}
	}
	var info bpf.PodInfo
	err := s.maps.PodInfo.Lookup(cookie, &info)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up pod: %w", err)
	}
	pid, err := processIn(info.NetnsIno)
	if pid == 0 || err != nil {
		return nil, err
	}
	return try(pid)
}

// Of linux/inet_diag.h and linux/sock_diag.h.
const (
	diagRequestStorages  = 2 // INET_DIAG_REQ_SK_BPF_STORAGES
	diagRequestStorageFD = 1 // SK_DIAG_BPF_STORAGE_REQ_MAP_FD

	diagStorages     = netlink.INET_DIAG_SK_BPF_STORAGES
	diagStorage      = 1 // SK_DIAG_BPF_STORAGE
	diagStorageValue = 3 // SK_DIAG_BPF_STORAGE_MAP_VALUE

	diagRequestLen = 56 // struct inet_diag_req_v2
	diagMessageLen = 72 // struct inet_diag_msg
)

// listSockets lists the sockets of this thread's namespace: with their records where
// sock_diag(7) gives those, which is for TCP connections alone.
func listSockets(records *ebpf.Map) ([]sock, error) {
	var all []sock
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			some, err := dump(func() ([]sock, error) { return diagDump(records, family, proto) })
			if errors.Is(err, unix.ENOENT) && proto == unix.IPPROTO_UDPLITE {
				continue // kernels from 7.1 on have it no more
			}
			if errors.Is(err, unix.ENOENT) {
				err = fmt.Errorf("%w: load the kernel's modules tcp_diag and udp_diag", err)
			}
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	}
	return all, nil
}

// diagDump asks sock_diag for the sockets of a protocol, with their storage in
// records (Linux 5.7, CAP_BPF).
func diagDump(records *ebpf.Map, family, proto uint8) (all []sock, err error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(&diagRequest{family: family, proto: proto})
	storages := nl.NewRtAttr(unix.NLA_F_NESTED|diagRequestStorages, nil)
	storages.AddRtAttr(diagRequestStorageFD, nl.Uint32Attr(uint32(records.FD())))
	req.AddData(storages)
	var bad error
	err = req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(message []byte) bool {
		one, err := parseDiag(message, proto)
		if err == nil && (one.recorded || one.inode != 0) { // else it has no process
			all = append(all, one)
		}
		bad = errors.Join(bad, err)
		return err == nil
	})
	return all, errors.Join(err, bad)
}

// parseDiag reads a struct inet_diag_msg and what follows it.
func parseDiag(b []byte, proto uint8) (one sock, err error) {
	if len(b) < diagMessageLen {
		return one, fmt.Errorf("sock_diag message of %d bytes", len(b))
	}
	one = sock{family: b[0], state: b[1], proto: proto, inode: uint64(binary.NativeEndian.Uint32(b[68:72]))}
	if one.local, err = diagAddr(one.family, b[4:6], b[8:24]); err != nil {
		return one, err
	}
	if one.remote, err = diagAddr(one.family, b[6:8], b[24:40]); err != nil {
		return one, err
	}
	one.cookie = binary.NativeEndian.Uint64(b[44:52])
	value, err := storedValue(b[diagMessageLen:])
	if value == nil || err != nil {
		return one, err
	}
	if n, err := binary.Decode(value, binary.NativeEndian, &one.record); err != nil || n != len(value) {
		return one, fmt.Errorf("record of %d bytes: %w", len(value), err)
	}
	one.recorded = true
	return one, nil
}

func diagAddr(family uint8, port, addr []byte) (netip.AddrPort, error) {
	switch family {
	case unix.AF_INET:
		addr = addr[:4]
	case unix.AF_INET6:
	default:
		return netip.AddrPort{}, fmt.Errorf("sock_diag message of address family %d", family)
	}
	a, _ := netip.AddrFromSlice(addr) // of a length that it knows
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port)), nil
}

// storedValue returns the one BPF storage among a message's attributes, or nil.
func storedValue(attributes []byte) ([]byte, error) {
	for _, kind := range []uint16{diagStorages, diagStorage, diagStorageValue} {
		// It takes for granted that the last one ends where a next would begin.
		padded := make([]byte, (len(attributes)+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1))
		copy(padded, attributes)
		list, err := nl.ParseRouteAttr(padded)
		if err != nil {
			return nil, fmt.Errorf("parse sock_diag attributes: %w", err)
		}
		attributes = nil
		for _, a := range list {
			if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
				attributes = a.Value
			}
		}
		if attributes == nil {
			return nil, nil
		}
	}
	return attributes, nil
}

// destroySocket asks sock_diag(7) to abort a socket of this thread's namespace:
// both ends are told (CONFIG_INET_DIAG_DESTROY).
func destroySocket(r *sock) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(&diagRequest{family: r.family, proto: r.proto, local: r.local, remote: r.remote, cookie: r.cookie})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// diagRequest is struct inet_diag_req_v2: of sockets in any state, on any device.
type diagRequest struct {
	family, proto uint8
	local, remote netip.AddrPort
	cookie        uint64
}

func (r *diagRequest) Len() int { return diagRequestLen }

func (r *diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestLen)
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0))
	binary.BigEndian.PutUint16(b[8:], r.local.Port())
	binary.BigEndian.PutUint16(b[10:], r.remote.Port())
	copy(b[12:28], r.local.Addr().AsSlice())
	copy(b[28:44], r.remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(b[48:], r.cookie)
	return b
}
