// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"sidegate/bpf"
	"sidegate/policy"
)

// Container is what a front-end knows of a container that is about to start.
type Container struct {
	ID      string // the runtime's id
	Name    string // what people call it; may be empty
	Pod     string // sandbox id or name; may be empty
	Runtime string // which front-end registers it
	Role    policy.Role
	// Policy is what its pod is under from now on. If it is nil, that is the
	// policy named PolicyName as the kernel has it already.
	Policy     *policy.Compiled
	PolicyName string
	Source     Source // of Policy
	PID        int    // its init process; for Attach it must not have run yet
	// Capabilities are those of all sets that its configuration gives it, by
	// their names in capabilities(7).
	Capabilities []string
	// Cgroup is its path in the hierarchy, as in /proc/<pid>/cgroup. "" is that of
	// PID: so it is before its program runs, which may move itself further down.
	// Adopt alone asks.
	Cgroup string
	// Rootfs is the container's root directory as its init process sees it:
	// "" once it has been made its root.
	Rootfs string
	// Splice is what its seccomp profile lets it do with its sockets.
	Splice Splice
}

// Splice says whether a container's processes can splice(2), which on accelerated
// sockets waits for ever. The zero value is of a front-end that did not look.
type Splice struct {
	Impossible bool   // splice(2) has no answer but EINVAL: see package cgroups/seccomp
	NoIOUring  bool   // nor can they have an io_uring, which splices without that system call
	Why        string // it is not impossible, for people
}

func (c *Container) String() string { return cmp.Or(c.Name, c.ID) }

// spec is the pod that the container wants to be in.
func (c *Container) spec() *PodSpec {
	return &PodSpec{Pod: cmp.Or(c.Pod, c.ID), Policy: c.Policy, PolicyName: c.PolicyName, Source: c.Source, container: c.String()}
}

// Attached says what Attach did.
type Attached struct {
	Cookie   uint64 // of the pod's network namespace
	CgroupID uint64
	Already  bool // the container was registered before
}

// Attach makes ns, which is the container's, a managed pod if it is not yet,
// registers the container and attaches all programs to its cgroup: all or
// nothing. A container that is attached already is left as it is.
func (s *Store) Attach(ns *Netns, c *Container) (att Attached, err error) {
	begin := time.Now()
	defer func() {
		if !att.Already {
			_ = s.countAttach(time.Since(begin), err) // no reason to refuse a container
		}
	}()
	if err := refuseHost(ns, c.spec()); err != nil {
		return att, err
	}
	cg, err := s.mount.Of(c.PID)
	if err != nil {
		return att, err
	}
	defer cg.Close()
	r := &registration{c: c, ns: ns, cg: cg}
	att = r.attached()
	if err := s.examine(r); err != nil {
		return att, err
	}
	defer func() {
		if err != nil { // it may have come for this container alone
			err = errors.Join(err, s.dropUnusedPolicies())
		}
	}()
	if err := s.identify(r); err != nil {
		return att, fmt.Errorf("container %s: %w", c, err)
	}
	sockets, err := inheritedSockets(c.PID)
	if err != nil {
		return att, fmt.Errorf("container %s: %w", c, err)
	}
	if why := cmp.Or(refusal(r.info.Admin, r.entry.Role, r.pol), socketRefusal(inheritance(sockets), r.entry.Role, r.pol)); why != "" {
		return att, fmt.Errorf("container %s: %s", c, why)
	}
	r.info.Inherited = inheritedCount(len(sockets))
	if att.Already, err = s.attached(c, r.entry, s.path("containers", cg.ID)); att.Already || err != nil {
		return att, err // createRuntime and prestart both listed
	}
	undo, err := s.register(r)
	if err != nil {
		return att, err
	}
	if err := s.relayFor(r); err != nil {
		return att, errors.Join(fmt.Errorf("container %s: %w", c, err), undo())
	}
	return att, nil
}

// ErrHostNetwork is of a container or pod that has no network namespace of its own.
var ErrHostNetwork = errors.New("shares the host's network namespace, which cannot be enforced")

// refuseHost refuses the host's network namespace.
func refuseHost(ns *Netns, p *PodSpec) error {
	host, err := ns.isHost()
	if err != nil {
		return err
	}
	if host {
		return fmt.Errorf("%s %w: give its pod a network of its own, or take its sidegate/* annotations away", p.who(), ErrHostNetwork)
	}
	return nil
}

// registration is what is known of a container before anything is changed for it.
type registration struct {
	c     *Container
	ns    *Netns
	cg    *Cgroup
	pol   *applied
	entry bpf.Container
	info  bpf.ContainerInfo // what it was found to have
}

func (r *registration) attached() Attached {
	return Attached{Cookie: r.ns.Cookie, CgroupID: r.cg.ID}
}

// examine finds the policy of the container, which may be new to the kernel then.
func (s *Store) examine(r *registration) error {
	if err := s.checkCgroup(r.c, r.cg); err != nil {
		return err
	}
	pol, err := s.policyFor(r.c.spec())
	if err != nil {
		return fmt.Errorf("container %s: %w", r.c, err)
	}
	r.pol = pol
	return nil
}

// identify says what the container is, and what it has by which it could get out
// of its policy.
func (s *Store) identify(r *registration) error {
	role, err := bpfRole(r.c.Role, policy.InitMode(r.pol.info.Init))
	if err != nil {
		return err
	}
	if r.c.Name == "" && r.pol.entry.Flags&bpf.PolicyNames != 0 {
		return fmt.Errorf("policy %s has rules for containers by name, and its runtime does not tell its name: write rules for roles",
			bpf.CString(r.pol.info.Name[:]))
	}
	if r.info.Admin, err = adminOf(r.c); err != nil {
		return err
	}
	r.entry = bpf.Container{
		NetnsCookie: r.ns.Cookie, CgroupId: r.cg.ID, Role: role, Subject: uint32(r.c.Role), Name: nameID(r.c.Name),
	}
	info, err := s.accelInfo()
	if err != nil {
		return err
	}
	if err := r.acceleration(info); err != nil {
		return err
	}
	return ownNamespaces(r.c.PID, &r.entry)
}

// register makes the container's namespace a managed pod if it is not yet, and
// attaches the container. undo takes all of that back; on error it is done.
func (s *Store) register(r *registration) (undo func() error, err error) {
	c, cg := r.c, r.cg
	undoPod, err := s.makePod(r)
	if err != nil {
		return nil, err
	}
	undo = func() error { return errors.Join(s.deleteContainer(cg.ID), undoPod()) }
	err = s.transaction(s.path("containers", cg.ID), func(tmp string) error {
		if r.entry.PidNs == 0 {
			if err := s.sharePidns(c.PID); err != nil {
				return err
			}
		}
		if err := s.putContainer(r); err != nil {
			return err
		}
		if c.Policy != nil {
			if err := s.putExecutables(r.entry, c.Policy, rootOf(c.PID)+c.Rootfs); err != nil {
				return err
			}
		}
		hooks, err := s.hooksFor(r.entry, r.entry.Role, r.pol)
		if err != nil {
			return err
		}
		if err := attachAll(cg, hooks, tmp, s.program); err != nil {
			return err
		}
		// The kernel made the storage with the first link, zeroed: a dead role.
		if err := s.maps.Identity.Update(cg.ID, r.entry, ebpf.UpdateExist); err != nil {
			return fmt.Errorf("set identity of cgroup %s: %w", cg.Path, err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach container %s: %w", c, explain(err)), undo())
	}
	s.tellContainer(bpf.KindAttach, r.entry.NetnsCookie, cg.ID)
	return undo, nil
}

// nameID is the second number of a container, 0 without a name.
func nameID(name string) uint32 {
	if name == "" {
		return 0
	}
	return policy.NameID(name)
}

// makePod makes the container's namespace a pod in which it may be.
func (s *Store) makePod(r *registration) (undo func() error, err error) {
	if err := s.checkSidecar(r.c, r.entry.Role, r.ns.Cookie); err != nil {
		return nil, err
	}
	undo, err = s.ensurePod(r.c.spec(), r.ns, r.pol)
	if err != nil {
		return nil, fmt.Errorf("manage pod of container %s: %w", r.c, err)
	}
	return undo, nil
}

// checkCgroup refuses a cgroup that is not the container's alone: what is
// attached to it would hold for the runtime, or the whole machine.
func (s *Store) checkCgroup(c *Container, cg *Cgroup) error {
	self, err := s.mount.Of(os.Getpid())
	if err != nil {
		return err
	}
	defer self.Close()
	if cg.Path == "/" || self.Path == cg.Path || strings.HasPrefix(self.Path, cg.Path+"/") {
		return fmt.Errorf("container %s has no cgroup of its own, it runs in %s like its runtime: "+
			"run it without --cgroups=disabled, on cgroup v2", c, cg.Path)
	}
	return nil
}

// attached tells whether this very container is attached. It removes what
// another one left that had the same cgroup.
func (s *Store) attached(c *Container, want bpf.Container, dir string) (bool, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for container: %w", err)
	}
	var have bpf.Container
	var info, this bpf.ContainerInfo
	bpf.SetCString(this.Id[:], c.ID)
	err := errors.Join(s.maps.Containers.Lookup(want.CgroupId, &have), s.maps.ContainerInfo.Lookup(want.CgroupId, &info))
	if err == nil && have == want && info.Id == this.Id {
		return true, nil
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("look up container: %w", err)
	}
	return false, s.deleteContainer(want.CgroupId)
}

// bpfRole is what the programs do for a role.
func bpfRole(role policy.Role, init policy.InitMode) (bpf.Role, error) {
	switch role {
	case policy.RoleApp:
		return bpf.RoleApp, nil
	case policy.RoleSidecar:
		return bpf.RoleSidecar, nil
	case policy.RoleNone:
		return bpf.RoleExempt, nil
	case policy.RoleInit:
		switch init {
		case policy.InitSidecar:
			return bpf.RoleApp, nil
		case policy.InitDirect:
			return bpf.RoleExempt, nil
		case policy.InitDeny:
			return bpf.RoleDenied, nil
		}
	}
	return bpf.RoleDead, errors.New("it has no role: set sidegate/role")
}

// checkSidecar refuses a second living sidecar: ports can have one owner.
func (s *Store) checkSidecar(c *Container, role bpf.Role, cookie uint64) error {
	if role != bpf.RoleSidecar {
		return nil
	}
	ids, others, err := entriesOf[uint64, bpf.Container](s.maps.Containers)
	if err != nil {
		return err
	}
	for i, other := range others {
		id := ids[i]
		if other.NetnsCookie != cookie || other.Role != bpf.RoleSidecar {
			continue
		}
		alive, err := s.mount.Alive(id)
		if err != nil {
			return err
		}
		if !alive {
			continue
		}
		info, err := s.info(id)
		if err != nil {
			return err
		}
		return fmt.Errorf("container %s wants to be the sidecar of a pod that has one, %s: a pod has one sidecar, "+
			"give one of them sidegate/role=app or stop the other", c, infoName(info))
	}
	return nil
}

func infoName(i bpf.ContainerInfo) string {
	return cmp.Or(bpf.CString(i.Name[:]), bpf.CString(i.Id[:]))
}

func (s *Store) info(id uint64) (bpf.ContainerInfo, error) {
	var info bpf.ContainerInfo
	if err := s.maps.ContainerInfo.Lookup(id, &info); err != nil {
		return info, fmt.Errorf("look up container of cgroup %d: %w", id, err)
	}
	return info, nil
}

// putContainer writes the entries of a container.
func (s *Store) putContainer(r *registration) error {
	c, entry, info := r.c, r.entry, r.info
	info.Role = uint8(c.Role)
	info.Pid = uint32(c.PID)
	info.NetnsIno = r.ns.Ino
	info.AttachedNs = uint64(time.Now().UnixNano())
	bpf.SetCString(info.Id[:], c.ID)
	bpf.SetCString(info.Name[:], c.Name)
	bpf.SetCString(info.Pod[:], c.Pod)
	info.Policy = r.pol.info.Name
	bpf.SetCString(info.Runtime[:], c.Runtime)
	if err := s.maps.ContainerInfo.Put(entry.CgroupId, info); err != nil {
		return fmt.Errorf("put container info: %w", err)
	}
	if err := putCounters[bpf.Counters](s.maps.Counters, entry.CgroupId); err != nil {
		return err
	}
	if err := putCounters[bpf.AccelCounters](s.maps.AccelCounters, entry.CgroupId); err != nil {
		return err
	}
	if err := s.maps.Containers.Put(entry.CgroupId, entry); err != nil {
		return fmt.Errorf("put container: %w", err)
	}
	return nil
}

// putCounters makes an entry of zeros, one a possible CPU.
func putCounters[T any](m *ebpf.Map, key uint64) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	if err := m.Put(key, make([]T, cpus)); err != nil {
		return fmt.Errorf("put counters: %w", err)
	}
	return nil
}

// deleteContainer removes everything of a container. Its sockets die first:
// the guard stops believing them before the programs are gone.
func (s *Store) deleteContainer(cgroupID uint64) error {
	var errs []error
	var entry bpf.Container
	if err := s.maps.Containers.Lookup(cgroupID, &entry); err == nil {
		s.tellContainer(bpf.KindDetach, entry.NetnsCookie, cgroupID)
	}
	for _, m := range []*ebpf.Map{s.maps.Containers, s.maps.Counters, s.maps.AccelCounters, s.maps.ContainerInfo} {
		if err := m.Delete(cgroupID); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("delete container of cgroup %d: %w", cgroupID, err))
		}
	}
	errs = append(errs,
		deleteEntries[bpf.Executable, uint32](s.maps.Executables, func(k *bpf.Executable) bool { return k.CgroupId == cgroupID }),
		deleteEntries[bpf.Seen, bpf.SeenCount](s.maps.Seen, func(k *bpf.Seen) bool { return k.CgroupId == cgroupID }),
		deleteEntries[bpf.SeenUnix, bpf.SeenCount](s.maps.SeenUnix, func(k *bpf.SeenUnix) bool { return k.CgroupId == cgroupID }))
	if err := removePins(s.path("containers", cgroupID)); err != nil {
		errs = append(errs, fmt.Errorf("detach container of cgroup %d: %w", cgroupID, err))
	}
	return errors.Join(errs...)
}

// Detach forgets the container with this runtime id, which must have ended or
// be about to, and its pod if nothing of it is left: process dying, if not 0,
// does not count. It tells whether it knew the container.
func (s *Store) Detach(id string, dying int) (bool, error) {
	known, err := s.Forget(id)
	if err != nil {
		return known, err
	}
	_, err = s.collect(dying)
	return known, err
}

// Forget is Detach for one of many: what else has ended stays for Collect.
func (s *Store) Forget(id string) (bool, error) {
	cgroupIDs, err := s.cgroupsOf(id)
	if err != nil {
		return false, err
	}
	for _, cg := range cgroupIDs {
		if err := s.deleteContainer(cg); err != nil {
			return true, err
		}
	}
	return len(cgroupIDs) > 0, nil
}

func (s *Store) cgroupsOf(id string) ([]uint64, error) {
	if len(id) > bpf.NameLen {
		id = id[:bpf.NameLen]
	}
	cgroupIDs, infos, err := entriesOf[uint64, bpf.ContainerInfo](s.maps.ContainerInfo)
	if err != nil {
		return nil, err
	}
	var found []uint64
	for i := range infos {
		if bpf.CString(infos[i].Id[:]) == id {
			found = append(found, cgroupIDs[i])
		}
	}
	return found, nil
}

// Collected counts what Collect removed.
type Collected struct {
	Containers, Pods, Endpoints int
	// Left are the names of the pods that stay: with a container, or with any process.
	Left []string
}

// Collect removes containers whose cgroup is gone or empty, and pods in whose namespace
// no container is registered and no process lives: what ended without a hook.
// With tcx it does what CollectEndpoints does. A pod whose containers are down stays closed while anything runs in it.
func (s *Store) Collect() (Collected, error) { return s.collect(0) }

func (s *Store) collect(dying int) (Collected, error) {
	var n Collected
	ids, err := s.registered()
	if err != nil {
		return n, err
	}
	for _, id := range ids {
		alive, err := s.mount.Alive(id)
		if err != nil {
			return n, err
		}
		if alive {
			continue
		}
		if err := s.deleteContainer(id); err != nil {
			return n, err
		}
		n.Containers++
	}
	if err := s.sweep(); err != nil {
		return n, err
	}
	if err := s.collectPods(dying, &n); err != nil {
		return n, err
	}
	// A filter has to be asked for in the namespace of its device, which
	// whoever calls this may not be in.
	if s.endpointsLoaded() && haveTCX() {
		n.Endpoints, err = s.CollectEndpoints()
	}
	return n, err
}

// registered returns all cgroup ids that have pins or a map entry.
func (s *Store) registered() ([]uint64, error) {
	ids, err := s.ids("containers")
	if err != nil {
		return nil, err
	}
	for _, m := range []*ebpf.Map{s.maps.Containers, s.maps.ContainerInfo, s.maps.Counters, s.maps.AccelCounters} {
		keys, err := keysOf[uint64](m)
		if err != nil {
			return nil, err
		}
		ids = append(ids, keys...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// sweep removes transactions that their process did not live to finish.
func (s *Store) sweep() error {
	for _, sub := range []string{"containers", "pods", "slots", "", endpointDevices} {
		entries, err := os.ReadDir(filepath.Join(s.dir, sub))
		if errors.Is(err, fs.ErrNotExist) && sub == endpointDevices {
			continue // nothing is guarded
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", sub, err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), tmpPrefix) {
				if err := removePins(filepath.Join(s.dir, sub, e.Name())); err != nil {
					return fmt.Errorf("sweep unfinished attach: %w", err)
				}
			}
		}
	}
	return nil
}

// waitInterval is how often WaitSidecar looks.
const waitInterval = 10 * time.Millisecond

// WaitSidecar returns when the sidecar of the pod listens on its outbound
// port. It holds no lock, so that the sidecar can be attached meanwhile.
func WaitSidecar(ctx context.Context, state string, cookie uint64) error {
	m, err := bpf.OpenMaps((&Store{dir: VersionDir(state)}).pinnedMap)
	if err != nil {
		return fmt.Errorf("open maps: %w", err)
	}
	defer m.Close()
	s := &Store{maps: m}
	for {
		ok, err := s.hasListener(cookie)
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(waitInterval):
		}
	}
}

// hasListener tells whether the sidecar listens on the outbound port that its
// policy says now.
func (s *Store) hasListener(cookie uint64) (bool, error) {
	var pod bpf.Pod
	if err := s.maps.Pods.Lookup(cookie, &pod); err != nil {
		return false, fmt.Errorf("look up pod: %w", err)
	}
	pol, err := s.policyAt(pod.Policy)
	if err != nil {
		return false, err
	}
	return s.listens(bpf.ListenerKey{NetnsCookie: cookie, Port: pol.entry.Outbound})
}

// listens tells whether there is a listener at a port, of either family.
func (s *Store) listens(key bpf.ListenerKey) (bool, error) {
	for v6 := range uint8(2) {
		for slot := range uint8(bpf.ListenerSlots) {
			key.Ipv6, key.Slot = v6, slot
			var sock uint64
			switch err := s.maps.Listeners.Lookup(key, &sock); {
			case err == nil:
				return true, nil
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return false, fmt.Errorf("look up listener: %w", err)
			}
		}
	}
	return false, nil
}
