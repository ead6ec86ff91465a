// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bpf(2), with the part of its union that a command has.
func bpf[T any](cmd uintptr, attr *T) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return -1, os.NewSyscallError("bpf", errno)
	}
	return int(r), nil
}

// What has no name is of no use here.
type (
	bpfID       struct{ id, _, _ uint32 }
	bpfLinkArgs struct{ link, prog, _, _ uint32 }
	bpfAttach   struct {
		target, prog, kind, flags uint32
		_, _                      uint32
		_                         uint64
	}
	bpfQuery struct {
		target, kind uint32
		_            [3]uint64
	}
	bpfLoad struct {
		kind, count    uint32
		insns, license uint64
		_              [3]uint64
		_              [16]byte
		_, expecting   uint32
	}
)

// attachTypes are those of cgroups.
var attachTypes = []struct {
	name string
	kind uint32
}{
	{"inet_ingress", unix.BPF_CGROUP_INET_INGRESS}, {"inet_egress", unix.BPF_CGROUP_INET_EGRESS},
	{"sock_create", unix.BPF_CGROUP_INET_SOCK_CREATE}, {"sock_release", unix.BPF_CGROUP_INET_SOCK_RELEASE},
	{"sock_ops", unix.BPF_CGROUP_SOCK_OPS}, {"device", unix.BPF_CGROUP_DEVICE}, {"sysctl", unix.BPF_CGROUP_SYSCTL},
	{"bind4", unix.BPF_CGROUP_INET4_BIND}, {"bind6", unix.BPF_CGROUP_INET6_BIND},
	{"post_bind4", unix.BPF_CGROUP_INET4_POST_BIND}, {"post_bind6", unix.BPF_CGROUP_INET6_POST_BIND},
	{"connect4", unix.BPF_CGROUP_INET4_CONNECT}, {"connect6", unix.BPF_CGROUP_INET6_CONNECT},
	{"sendmsg4", unix.BPF_CGROUP_UDP4_SENDMSG}, {"sendmsg6", unix.BPF_CGROUP_UDP6_SENDMSG},
	{"recvmsg4", unix.BPF_CGROUP_UDP4_RECVMSG}, {"recvmsg6", unix.BPF_CGROUP_UDP6_RECVMSG},
	{"getpeername4", unix.BPF_CGROUP_INET4_GETPEERNAME}, {"getpeername6", unix.BPF_CGROUP_INET6_GETPEERNAME},
	{"getsockname4", unix.BPF_CGROUP_INET4_GETSOCKNAME}, {"getsockname6", unix.BPF_CGROUP_INET6_GETSOCKNAME},
	{"getsockopt", unix.BPF_CGROUP_GETSOCKOPT}, {"setsockopt", unix.BPF_CGROUP_SETSOCKOPT},
	// BPF_CGROUP_UNIX_*
	{"unix_connect", 49}, {"unix_sendmsg", 50}, {"unix_recvmsg", 51}, {"unix_getpeername", 52}, {"unix_getsockname", 53},
}

// deviceTypes are those of a device, which is named by its index.
var deviceTypes = []struct {
	name string
	kind uint32
}{{"tcx ingress", unix.BPF_TCX_INGRESS}, {"tcx egress", unix.BPF_TCX_EGRESS}}

func bpfTamperings() []tampering {
	nextID := func(cmd uintptr) func(*tamperer) error {
		return func(*tamperer) error {
			_, err := bpf(cmd, &bpfID{})
			return err
		}
	}
	all := []tampering{
		{name: "bpf: list programs", run: nextID(unix.BPF_PROG_GET_NEXT_ID)},
		{name: "bpf: list maps", run: nextID(unix.BPF_MAP_GET_NEXT_ID)},
		{name: "bpf: list links", run: nextID(unix.BPF_LINK_GET_NEXT_ID)},
		{name: "object: take program", run: func(t *tamperer) error { return take(unix.BPF_PROG_GET_FD_BY_ID, t.progs, keep) }},
		{name: "object: take map", run: func(t *tamperer) error { return take(unix.BPF_MAP_GET_FD_BY_ID, t.maps, keep) }},
		{name: "object: take link", run: func(t *tamperer) error { return take(unix.BPF_LINK_GET_FD_BY_ID, t.links, keep) }},
		{name: "object: read map", run: func(t *tamperer) error {
			return take(unix.BPF_MAP_GET_FD_BY_ID, t.maps, func(fd uint32) error { return eachElem(fd, 0) })
		}},
		{name: "object: write map", run: func(t *tamperer) error {
			return take(unix.BPF_MAP_GET_FD_BY_ID, t.maps, func(fd uint32) error { return eachElem(fd, unix.BPF_MAP_UPDATE_ELEM) })
		}},
		{name: "object: delete from map", run: func(t *tamperer) error {
			return take(unix.BPF_MAP_GET_FD_BY_ID, t.maps, func(fd uint32) error { return eachElem(fd, unix.BPF_MAP_DELETE_ELEM) })
		}},
		{name: "object: freeze map", run: func(t *tamperer) error {
			return take(unix.BPF_MAP_GET_FD_BY_ID, t.maps, func(fd uint32) error {
				_, err := bpf(unix.BPF_MAP_FREEZE, &fd)
				return err
			})
		}},
		{name: "object: replace program of link", run: func(t *tamperer) error {
			return take(unix.BPF_LINK_GET_FD_BY_ID, t.links, func(fd uint32) error {
				prog, err := load(unix.BPF_PROG_TYPE_CGROUP_SKB, unix.BPF_CGROUP_INET_EGRESS)
				if err != nil {
					return err
				}
				_, err = bpf(unix.BPF_LINK_UPDATE, &bpfLinkArgs{link: fd, prog: prog})
				return err
			})
		}},
		{name: "object: detach link", run: func(t *tamperer) error {
			return take(unix.BPF_LINK_GET_FD_BY_ID, t.links, func(fd uint32) error {
				_, err := bpf(unix.BPF_LINK_DETACH, &fd)
				return err
			})
		}},
		{name: "bpf: make map", run: func(*tamperer) error {
			_, err := bpf(unix.BPF_MAP_CREATE, &struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1})
			return err
		}},
		{name: "bpf: open pin", run: func(t *tamperer) error { return openPins(t.pins) }},
		{name: "bpf: open pin by the first process's root", run: func(t *tamperer) error { return openPins("/proc/1/root" + t.pins) }},
		{name: "bpf: open pin, in own namespaces", flags: ownNamespaces, run: func(t *tamperer) error {
			if err := mountAt("bpf", t.pins); err != nil {
				return err
			}
			return openPins(t.pins)
		}},
		{name: "bpf: token of own file system", flags: ownNamespaces, run: func(*tamperer) error { return token(false) }},
		{name: "bpf: token of delegated file system", flags: ownNamespaces, run: func(*tamperer) error { return token(true) }},
	}
	for _, p := range []struct {
		name       string
		kind, want uint32
	}{
		{"socket filter", unix.BPF_PROG_TYPE_SOCKET_FILTER, 0},
		{"cgroup_skb", unix.BPF_PROG_TYPE_CGROUP_SKB, unix.BPF_CGROUP_INET_EGRESS},
		{"connect4", unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, unix.BPF_CGROUP_INET4_CONNECT},
		{"tc", unix.BPF_PROG_TYPE_SCHED_CLS, 0},
		{"xdp", unix.BPF_PROG_TYPE_XDP, 0},
	} {
		all = append(all, tampering{name: "bpf: load " + p.name, run: func(*tamperer) error {
			_, err := load(p.kind, p.want)
			return err
		}}, tampering{name: "bpf: load " + p.name + ", in own namespaces", flags: ownNamespaces, run: func(*tamperer) error {
			_, err := load(p.kind, p.want)
			return err
		}})
	}
	for _, a := range attachTypes {
		all = append(all,
			tampering{name: "bpf: detach " + a.name, run: func(*tamperer) error {
				return onCgroup(func(fd uint32) error { return detach(fd, a.kind) })
			}},
			tampering{name: "bpf: query " + a.name, run: func(*tamperer) error {
				return onCgroup(func(fd uint32) error { return query(fd, a.kind) })
			}},
		)
	}
	for _, a := range deviceTypes {
		for _, dev := range []string{"lo", "eth0"} {
			all = append(all,
				tampering{name: "bpf: detach " + a.name + " of " + dev, run: func(*tamperer) error {
					return onDevice(dev, func(index uint32) error { return detach(index, a.kind) })
				}},
				tampering{name: "bpf: query " + a.name + " of " + dev, run: func(*tamperer) error {
					return onDevice(dev, func(index uint32) error { return query(index, a.kind) })
				}},
			)
		}
	}
	return append(all,
		// One that lets all pass: a second one of a cgroup refuses what any of them does.
		tampering{name: "bpf: attach own cgroup_skb", run: func(*tamperer) error { return attachOwn(unix.BPF_PROG_ATTACH) }},
		tampering{name: "bpf: link own cgroup_skb", run: func(*tamperer) error { return attachOwn(unix.BPF_LINK_CREATE) }},
	)
}

// take gets a descriptor of an object and does f with it.
func take(cmd uintptr, ids []uint32, f func(fd uint32) error) error {
	return anyOf(ids, func(id uint32) error {
		fd, err := bpf(cmd, &bpfID{id: id})
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(uint32(fd))
	})
}

func keep(uint32) error { return nil }

// eachElem does cmd with the first element, or only reads it. Keys and values fit into the buffers.
func eachElem(fd uint32, cmd uintptr) error {
	var key, value [64 << 10]byte
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&key)
	pin.Pin(&value)
	elem := struct {
		fd, _             uint32
		key, value, flags uint64
	}{fd: fd, value: uint64(uintptr(unsafe.Pointer(&key)))}
	if _, err := bpf(unix.BPF_MAP_GET_NEXT_KEY, &elem); err != nil {
		return err
	}
	elem.key, elem.value = elem.value, uint64(uintptr(unsafe.Pointer(&value)))
	if cmd == unix.BPF_MAP_DELETE_ELEM {
		elem.value = 0
		_, err := bpf(cmd, &elem)
		return err
	}
	if _, err := bpf(unix.BPF_MAP_LOOKUP_ELEM, &elem); err != nil || cmd == 0 {
		return err
	}
	for i := range value {
		value[i] = ^value[i]
	}
	_, err := bpf(cmd, &elem)
	return err
}

// load loads a program that returns 1.
func load(kind, attach uint32) (uint32, error) {
	insns := []uint64{1<<32 | 0xb7, 0x95} // r0 = 1; exit
	license := []byte("GPL\x00")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&insns[0])
	pin.Pin(&license[0])
	fd, err := bpf(unix.BPF_PROG_LOAD, &bpfLoad{
		kind: kind, count: uint32(len(insns)), expecting: attach,
		insns: uint64(uintptr(unsafe.Pointer(&insns[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	})
	return uint32(fd), err
}

// onCgroup does f with the cgroup of this container.
func onCgroup(f func(fd uint32) error) error {
	fd, err := unix.Open(cgroupDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(uint32(fd))
}

func onDevice(name string, f func(index uint32) error) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	return f(uint32(ifi.Index))
}

// detach names no program, and then one that it may be.
func detach(target, kind uint32) error {
	_, err := bpf(unix.BPF_PROG_DETACH, &bpfAttach{target: target, kind: kind})
	if err == nil {
		return nil
	}
	if prog, lerr := load(unix.BPF_PROG_TYPE_CGROUP_SKB, unix.BPF_CGROUP_INET_EGRESS); lerr == nil {
		_, err = bpf(unix.BPF_PROG_DETACH, &bpfAttach{target: target, kind: kind, prog: prog})
	}
	return err
}

func query(target, kind uint32) error {
	_, err := bpf(unix.BPF_PROG_QUERY, &bpfQuery{target: target, kind: kind})
	return err
}

func attachOwn(cmd uintptr) error {
	prog, err := load(unix.BPF_PROG_TYPE_CGROUP_SKB, unix.BPF_CGROUP_INET_EGRESS)
	if err != nil {
		return err
	}
	return onCgroup(func(fd uint32) error {
		if cmd == unix.BPF_LINK_CREATE {
			_, err := bpf(cmd, &struct{ prog, target, kind, flags uint32 }{prog: prog, target: fd, kind: unix.BPF_CGROUP_INET_EGRESS})
			return err
		}
		hows := []uint32{0, unix.BPF_F_ALLOW_OVERRIDE, unix.BPF_F_ALLOW_MULTI, unix.BPF_F_ALLOW_MULTI | unix.BPF_F_REPLACE}
		return anyOf(hows, func(flags uint32) error {
			_, err := bpf(cmd, &bpfAttach{target: fd, prog: prog, kind: unix.BPF_CGROUP_INET_EGRESS, flags: flags})
			return err
		})
	})
}

// openPins opens what is pinned below dir: where it is known to be, and where it can be seen.
func openPins(dir string) error {
	paths := []string{dir}
	for abi := range 10 {
		version := filepath.Join(dir, fmt.Sprintf("v%d", abi))
		paths = append(paths, filepath.Join(version, "maps", "pods"), filepath.Join(version, "guard", "sg_guard_connect4"))
	}
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			paths = append(paths, path)
		}
		return nil
	})
	return anyOf(paths, func(path string) error {
		b := append([]byte(path), 0)
		var pin runtime.Pinner
		defer pin.Unpin()
		pin.Pin(&b[0])
		fd, err := bpf(unix.BPF_OBJ_GET, &struct {
			path      uint64
			fd, flags uint32
		}{path: uint64(uintptr(unsafe.Pointer(&b[0])))})
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
}

// token makes a BPF file system, which may be one that delegates all, and asks it for a token.
func token(delegate bool) error {
	fs, err := unix.Fsopen("bpf", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if delegate {
		for _, key := range []string{"delegate_cmds", "delegate_maps", "delegate_progs", "delegate_attachs"} {
			if err := unix.FsconfigSetString(fs, key, "any"); err != nil {
				return os.NewSyscallError("fsconfig "+key, err)
			}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mnt)
	const tokenCreate = 36
	_, err = bpf(tokenCreate, &struct{ flags, fd uint32 }{fd: uint32(mnt)})
	return err
}
