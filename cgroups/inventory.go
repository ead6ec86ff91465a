// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"

	"sidegate/bpf"
)

// Pinned is an object that is pinned below the state directory, as JSON has it.
type Pinned struct {
	Path string `json:"path"` // below the state directory
	Kind string `json:"kind"` // map, program or link
	Type string `json:"type"`
	ID   uint32 `json:"id"`

	Map     *PinnedMap     `json:"map,omitempty"`
	Program *PinnedProgram `json:"program,omitempty"`
	Link    *PinnedLink    `json:"link,omitempty"`
}

// PinnedMap is what a map is made of.
type PinnedMap struct {
	Name      string `json:"name"`
	KeySize   uint32 `json:"keySize"`
	ValueSize uint32 `json:"valueSize"`
	Capacity  uint32 `json:"capacity"`
	Flags     uint32 `json:"flags"`
	// Entries is -1 where they cannot be counted, or are not to be. More than
	// 100,000 are not counted on.
	Entries int `json:"entries"`
}

// PinnedProgram has what it ran only where the kernel keeps statistics
// (kernel.bpf_stats_enabled).
type PinnedProgram struct {
	Name    string        `json:"name"`
	Tag     string        `json:"tag"`
	Runs    uint64        `json:"runs"`
	Runtime time.Duration `json:"runtimeNs"`
}

// PinnedLink is what holds a program where it is.
type PinnedLink struct {
	Program uint32 `json:"program"` // its id
	Target  string `json:"target"`  // what it is attached to
}

const (
	maxPins = 50000
)

// ReadPins lists what is pinned below the state directory, of any version. It takes no
// lock, and changes nothing: it is for those who want to know why another process
// holds the lock. What cannot be read is in the error, and the rest is listed.
func ReadPins(ctx context.Context, state string) ([]Pinned, error) {
	list := []Pinned{}
	var errs []error
	err := filepath.WalkDir(state, func(path string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // it went meanwhile
			return nil
		case err != nil:
			errs = append(errs, err)
			return nil
		case e.IsDir():
			return nil
		case len(list) == maxPins:
			errs = append(errs, fmt.Errorf("more than %d pins", maxPins))
			return fs.SkipAll
		}
		p, err := readPin(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read pin %s: %w", path, err))
			return nil
		}
		if p.Path, err = filepath.Rel(state, path); err != nil {
			return err
		}
		list = append(list, p)
		return nil
	})
	return list, errors.Join(append(errs, err)...)
}

func readPin(path string) (p Pinned, err error) {
	obj, err := pin.Load(path, nil)
	if err != nil {
		return p, err
	}
	defer obj.Close()
	switch o := obj.(type) {
	case *ebpf.Map:
		return describeMap(filepath.Base(path), o)
	case *ebpf.Program:
		return describeProgram(o)
	case link.Link:
		return describeLink(o)
	}
	return p, fmt.Errorf("unknown object %T", obj)
}

func describeMap(name string, m *ebpf.Map) (p Pinned, err error) {
	info, err := m.Info()
	if err != nil {
		return p, err
	}
	id, _ := info.ID()
	return Pinned{Kind: "map", Type: info.Type.String(), ID: uint32(id), Map: &PinnedMap{
		Name: info.Name, KeySize: info.KeySize, ValueSize: info.ValueSize, Capacity: info.MaxEntries, Flags: info.Flags, Entries: pinnedEntries(name, m),
	}}, nil
}

// pinnedEntries is -1 for what cannot be counted, and must not be read.
func pinnedEntries(name string, m *ebpf.Map) int {
	switch m.Type() {
	case ebpf.Array, ebpf.PerCPUArray:
		return int(m.MaxEntries())
	}
	if _, secret := secretMaps[name]; secret || !counts(m.Type()) {
		return -1
	}
	n, err := countEntries(m)
	if err != nil {
		return -1
	}
	return n
}

func describeProgram(prog *ebpf.Program) (p Pinned, err error) {
	info, err := prog.Info()
	if err != nil {
		return p, err
	}
	stats, err := prog.Stats()
	if err != nil {
		return p, err
	}
	id, _ := info.ID()
	return Pinned{Kind: "program", Type: info.Type.String(), ID: uint32(id), Program: &PinnedProgram{
		Name: info.Name, Tag: info.Tag, Runs: stats.RunCount, Runtime: stats.Runtime,
	}}, nil
}

func describeLink(l link.Link) (p Pinned, err error) {
	info, err := l.Info()
	if err != nil {
		return p, err
	}
	p = Pinned{Kind: "link", Type: fmt.Sprint(info.Type), ID: uint32(info.ID), Link: &PinnedLink{Program: uint32(info.Program)}}
	switch {
	case info.Cgroup() != nil:
		c := info.Cgroup()
		p.Type, p.Link.Target = "cgroup", fmt.Sprintf("cgroup %d, attach type %d", c.CgroupId, c.AttachType)
	case info.NetNs() != nil:
		n := info.NetNs()
		p.Type, p.Link.Target = "netns", fmt.Sprintf("network namespace inode %d, attach type %d", n.NetnsInode, n.AttachType)
	case info.TCX() != nil:
		t := info.TCX()
		p.Type, p.Link.Target = "tcx", fmt.Sprintf("device %d, attach type %d", t.Ifindex, t.AttachType)
	case info.Tracing() != nil:
		t := info.Tracing()
		p.Type, p.Link.Target = "tracing", fmt.Sprintf("object %d, type %d, attach type %d", t.TargetObjectId, t.TargetBtfId, t.AttachType)
	}
	return p, nil
}

// Registered is a container as the maps for people have it.
type Registered struct {
	CgroupID uint64 `json:"cgroupID"`
	Cgroup   string `json:"cgroup"` // empty: it is gone
	ID       string `json:"id"`
	Name     string `json:"name"`
	Pod      string `json:"pod"`
	PID      int    `json:"pid"`        // when it was registered
	NetnsIno uint64 `json:"netnsInode"` // of the pod
}

// ReadRegistered lists the registered containers without the lock, as [ReadPins] does.
// State that is not loaded has none.
func ReadRegistered(state string) (list []Registered, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(VersionDir(state), "maps", "container_info"), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map container_info: %w", err)
	}
	defer m.Close()
	mount, err := FindMount()
	if err != nil {
		return nil, err
	}
	var id uint64
	var info bpf.ContainerInfo
	iter := m.Iterate()
	for iter.Next(&id, &info) {
		path, _, err := mount.PathOf(id)
		if err != nil {
			return nil, err
		}
		list = append(list, Registered{
			CgroupID: id, Cgroup: path, ID: bpf.CString(info.Id[:]), Name: bpf.CString(info.Name[:]), Pod: bpf.CString(info.Pod[:]),
			PID: int(info.Pid), NetnsIno: info.NetnsIno,
		})
	}
	if err := iter.Err(); err != nil {
		return list, fmt.Errorf("list containers: %w", err)
	}
	return list, nil
}

// Processes returns the processes of a cgroup and of those below it, at most limit.
func (m Mount) Processes(path string, limit int) (pids []int, err error) {
	rel, err := filepath.Rel(m.Root, path)
	if err != nil {
		return nil, fmt.Errorf("find cgroup %s: %w", path, err)
	}
	err = filepath.WalkDir(filepath.Join(m.Dir, rel), func(dir string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return fmt.Errorf("read processes of cgroup %s: %w", path, err)
			}
			if len(pids) == limit {
				return fs.SkipAll
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if err != nil {
		return pids, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	return pids, nil
}
