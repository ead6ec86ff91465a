// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// Adopted says what Adopt did.
type Adopted struct {
	Attached
	Sockets   int // that were there, and are the container's from now on
	Listeners int // of them, that connections are now sent to
	Left      int // that were there, and stay without a record
}

// Adopt registers a container whose program runs already: of a front-end that was
// installed, or was down, when it started. It attaches the container as Attach
// does, and then gives the sockets that its processes have already the record that
// they would have got when they were made; those of a sidecar that listen are
// where connections are sent. Whatever it does not reach, or has not reached yet,
// has no record, and so is as dead as any socket of nobody's in a managed pod.
// Connections that the policy does not allow are closed.
//
// No record gets a socket that its role could not make, one that was made in
// another cgroup, and one of a process that is not the container's. One of
// another network namespace is out of reach of any program here: a container that
// starts is refused with it, one that runs keeps it whatever happens, and so it is
// registered nevertheless, and status counts it (InheritedSockets).
//
// A container that would not start for what its capabilities are is an error here
// too, and is not registered: if its pod is managed its sockets are dead. That is
// for the caller to have done, by Manage. Mode audit denies nothing.
//
// A container that is registered already is left as it is, and so is everything
// if there is an error. One whose process has ended meanwhile is an error.
func (s *Store) Adopt(ns *Netns, c *Container) (ad Adopted, err error) {
	if err := refuseHost(ns, c.spec()); err != nil {
		return ad, err
	}
	process, err := unix.PidfdOpen(c.PID, 0)
	if err != nil {
		return ad, fmt.Errorf("container %s: open process %d: %w", c, c.PID, err)
	}
	defer unix.Close(process)
	cg, err := s.cgroupOf(c)
	if err != nil {
		return ad, err
	}
	defer cg.Close()
	r := &registration{c: c, ns: ns, cg: cg}
	if done, err := s.registeredAs(r); done != nil || err != nil {
		if done != nil {
			ad.Attached = *done
			ad.Already = true
		}
		return ad, err
	}
	ad.Attached = r.attached()
	if err := s.examine(r); err != nil {
		return ad, err
	}
	defer func() {
		if err != nil { // it may have come for this container alone
			err = errors.Join(err, s.dropUnusedPolicies())
		}
	}()
	if err := s.identify(r); err != nil {
		return ad, fmt.Errorf("container %s: %w", c, err)
	}
	if why := refusal(r.info.Admin, r.entry.Role, r.pol); why != "" {
		return ad, fmt.Errorf("container %s runs, and would not start: %s", c, why)
	}
	if err := s.splitPidns(&r.entry); err != nil {
		return ad, fmt.Errorf("container %s: %w", c, err)
	}
	// What another container left that had this cgroup.
	if err := s.deleteContainer(cg.ID); err != nil {
		return ad, err
	}
	undo, err := s.register(r)
	if err != nil {
		return ad, err
	}
	if err := s.relayFor(r); err != nil {
		return ad, errors.Join(fmt.Errorf("container %s: %w", c, err), undo())
	}
	a := &adoption{store: s, r: r, fates: make(map[uint64]fate), given: make(map[uint64]bool)}
	err = a.run()
	if err == nil {
		err = s.closeAdopted(a)
	}
	if err == nil {
		err = hasEnded(process)
	}
	if err != nil {
		return ad, errors.Join(fmt.Errorf("adopt container %s: %w", c, explain(err)), a.takeBack(), undo())
	}
	ad.Sockets, ad.Listeners = len(a.given), len(a.listeners)
	ad.Left = a.count(fateLeft) + a.count(fateForeign)
	return ad, nil
}

// hasEnded is an error if the process has.
func hasEnded(pidfd int) error {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	if err == nil && n > 0 {
		err = errors.New("its process ended meanwhile")
	}
	return err
}

// cgroupOf opens the cgroup of a container that runs.
func (s *Store) cgroupOf(c *Container) (*Cgroup, error) {
	its, err := s.mount.Of(c.PID)
	if err != nil || c.Cgroup == "" || c.Cgroup == its.Path {
		return its, err
	}
	defer its.Close()
	if !strings.HasPrefix(its.Path, c.Cgroup+"/") {
		return nil, fmt.Errorf("container %s: its process %d is in cgroup %s, which is not below %s", c, c.PID, its.Path, c.Cgroup)
	}
	cg, err := s.mount.Open(c.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c, err)
	}
	return cg, nil
}

// registeredAs returns how this very container is registered, or nil. Its process
// may have moved further down since.
func (s *Store) registeredAs(r *registration) (*Attached, error) {
	var id, this bpf.ContainerInfo
	bpf.SetCString(this.Id[:], r.c.ID)
	var want bpf.Container
	if err := ownNamespaces(r.c.PID, &want); err != nil {
		return nil, fmt.Errorf("container %s: %w", r.c, err)
	}
	for path := r.cg.Path; path != "/" && path != s.mount.Root; path = filepath.Dir(path) {
		cg, err := s.mount.Open(path)
		if err != nil {
			return nil, err
		}
		number := cg.ID
		if err := cg.Close(); err != nil {
			return nil, err
		}
		var have bpf.Container
		err = errors.Join(s.maps.Containers.Lookup(number, &have), s.maps.ContainerInfo.Lookup(number, &id))
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up container: %w", err)
		}
		// sharePidns may have taken its PID namespace from it.
		started := have.Started == 0 || want.Started == 0 || have.Started == want.Started // 0 is not known
		same := have.MntNs == want.MntNs && (have.PidNs == 0 || have.PidNs == want.PidNs && started)
		if id.Id == this.Id && have.NetnsCookie == r.ns.Cookie && same {
			return &Attached{Cookie: have.NetnsCookie, CgroupID: number}, nil
		}
	}
	return nil, nil
}

// splitPidns is sharePidns seen from the other side, since containers that run are
// adopted in any order: one that lives in the PID namespace of this one may be
// registered, and then both have to be told apart by their mount namespaces.
func (s *Store) splitPidns(entry *bpf.Container) error {
	if entry.PidNs == 0 || entry.MntNs == 0 {
		return nil
	}
	var id uint64
	var other bpf.Container
	it := s.maps.Containers.Iterate()
	for it.Next(&id, &other) {
		if other.PidNs != 0 || id == entry.CgroupId {
			continue
		}
		info, err := s.info(id)
		if err != nil {
			return err
		}
		ns, err := namespace(strconv.Itoa(int(info.Pid)), "pid")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it ended
		}
		if err != nil {
			return err
		}
		if ns == entry.PidNs {
			entry.PidNs, entry.Started = 0, 0
			return nil
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	return nil
}

// fate is what became of a socket that was there before its container was.
type fate int

const (
	fateGiven   fate = iota // it has the container's record from now on
	fateKnown               // it has a record: of this container, or of the one that made it
	fateLeft                // it gets none
	fateForeign             // no program here would ask for one
)

// adoption gives a container's sockets their records.
type adoption struct {
	store *Store
	r     *registration
	flags uint16 // bpf.Subject*, of both its subjects

	fates     map[uint64]fate // by inode
	given     map[uint64]bool // by SO_COOKIE
	listeners []bpf.ListenerKey
	ports     map[uint16]bool // TCP ports of the pod that somebody listens on
	waiting   bool            // an adopted listener has connections to accept
}

// adoptRounds bounds how often processes are looked through. Two do where nothing
// changes meanwhile; what a process that forks all the time keeps from the last
// one is dead.
const adoptRounds = 32

// run looks through the container's processes until there is nothing new. It has
// been attached: what they make meanwhile gets its record by itself.
func (a *adoption) run() (err error) {
	if a.flags, err = a.store.subjectOf(a.r); err != nil {
		return err
	}
	oracle, err := a.attachOracle()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, oracle.Close()) }()
	for range adoptRounds {
		before := len(a.given)
		a.waiting = false
		if a.ports, err = listeningPorts(a.r.c.PID); err != nil {
			return err
		}
		if err := a.eachSocket(a.adopt); err != nil {
			return err
		}
		// A connection that waits to be accepted has no descriptor yet.
		if len(a.given) == before && !a.waiting {
			break
		}
	}
	a.r.info.Inherited = inheritedCount(a.count(fateForeign))
	return a.store.noteInherited(a.r)
}

func (a *adoption) count(f fate) (n int) {
	for _, is := range a.fates {
		if is == f {
			n++
		}
	}
	return n
}

// noteInherited writes what the container was found to have.
func (s *Store) noteInherited(r *registration) error {
	info, err := s.info(r.entry.CgroupId)
	if err != nil {
		return err
	}
	info.Inherited = r.info.Inherited
	if err := s.maps.ContainerInfo.Put(r.entry.CgroupId, info); err != nil {
		return fmt.Errorf("put container info: %w", err)
	}
	return nil
}

// subjectOf returns what the policy says of the container at all (sg_end_of).
func (s *Store) subjectOf(r *registration) (uint16, error) {
	tab := tables{maps: s.maps, pol: r.pol}
	flags := tab.Subject(r.entry.Subject)
	if r.entry.Name != 0 && r.pol.entry.Flags&bpf.PolicyNames != 0 {
		flags |= tab.Subject(r.entry.Name)
	}
	return subjectFlags(flags), tab.err
}

// oracleLevel and oracleName are of no socket option.
const (
	oracleLevel = 0x51de
	oracleName  = 0x6a7e
)

// attachOracle makes getsockopt(oracleLevel, oracleName) succeed on the sockets that
// were made in the container's cgroup, or below, until the link is closed. Nothing
// else tells the cgroup of every socket: sock_diag(7) knows those alone that are
// bound or connected. And a socket that was made elsewhere is nobody's here, since
// no program that is attached to the container would see it.
func (a *adoption) attachOracle() (link.Link, error) {
	const level, name, length, retval, page = 24, 28, 32, 36, 4096 // of struct bpf_sockopt
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "sg_oracle", Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupGetsockopt, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, level, asm.Word),
			asm.JNE.Imm(asm.R2, oracleLevel, "other"),
			asm.LoadMem(asm.R2, asm.R1, name, asm.Word),
			asm.JNE.Imm(asm.R2, oracleName, "other"),
			asm.Mov.Imm(asm.R2, 0),
			asm.StoreMem(asm.R1, retval, asm.R2, asm.Word),
			asm.Ja.Label("out"),
			// Of more than a page kernels before 6.4 want it said that the value is theirs.
			asm.LoadMem(asm.R2, asm.R1, length, asm.Word).WithSymbol("other"),
			asm.JLE.Imm(asm.R2, page, "out"),
			asm.Mov.Imm(asm.R2, 0),
			asm.StoreMem(asm.R1, length, asm.R2, asm.Word),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("load program that tells its sockets: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(a.r.cg.Fd()), Program: prog, Attach: ebpf.AttachCGroupGetsockopt})
	if err != nil {
		return nil, fmt.Errorf("attach program that tells its sockets: %w", err)
	}
	return l, nil
}

// madeInside asks the oracle.
func madeInside(fd int) bool {
	_, err := unix.GetsockoptInt(fd, oracleLevel, oracleName)
	return err == nil
}

// eachSocket calls f with each socket of the container's processes but those that
// are AF_UNIX or AF_NETLINK. allowed says whether the process may have any.
func (a *adoption) eachSocket(f func(fd int, s socket, allowed bool) error) error {
	pids, err := a.store.mount.processes(a.r.cg.Path)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := a.eachSocketOf(pid, f); err != nil && !isGone(err) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// isGone tells whether an error says that a process has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

func (a *adoption) eachSocketOf(pid int, f func(fd int, s socket, allowed bool) error) error {
	if own, err := a.ownsProcess(pid); err != nil || !own {
		return err
	}
	allowed := true
	if a.flags&bpf.SubjectProcesses != 0 {
		exe, err := executableOf(pid)
		if err != nil {
			return err
		}
		exe.CgroupId = a.r.entry.CgroupId
		var rule uint32
		err = a.store.maps.Executables.Lookup(exe, &rule)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look up executable: %w", err)
		}
		allowed = err == nil
	}
	return eachSocketOf(pid, func(_ uint64, take takeSocket) error {
		return take(func(own int, s socket) error {
			if s.family == unix.AF_UNIX || s.family == unix.AF_NETLINK {
				return nil
			}
			return f(own, s, allowed)
		})
	})
}

// ownsProcess tells whether a process of the container's cgroup is the
// container's, as sg_task_ok does.
func (a *adoption) ownsProcess(pid int) (bool, error) {
	switch e := &a.r.entry; {
	case e.PidNs != 0:
		return inPidns(pid, e.PidNs)
	case e.MntNs != 0:
		ns, err := namespace(strconv.Itoa(pid), "mnt")
		return ns == e.MntNs, err
	}
	return true, nil
}

// inPidns tells whether a process is in the PID namespace with this inode or in one
// below it.
func inPidns(pid int, want uint32) (bool, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("find its PID namespace: %w", err)
	}
	for {
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		if err != nil || st.Ino == uint64(want) {
			return err == nil, errors.Join(err, unix.Close(fd))
		}
		parent, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		if cerr := unix.Close(fd); cerr != nil {
			return false, cerr
		}
		if errors.Is(err, unix.EPERM) { // beyond this process' own
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("find what its PID namespace is in: %w", err)
		}
		fd = parent
	}
}

// processes returns the processes of a cgroup and of those below it.
func (m Mount) processes(path string) (pids []int, err error) {
	rel, err := filepath.Rel(m.Root, path)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	err = filepath.WalkDir(filepath.Join(m.Dir, rel), func(dir string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		list, err := processesIn(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil // removed meanwhile
		}
		pids = append(pids, list...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", path, err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// processesIn returns the processes of the cgroup at dir alone. One for threads
// does not list processes (EOPNOTSUPP), but threads.
func processesIn(dir string) (pids []int, err error) {
	threads := false
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.EOPNOTSUPP) {
		threads = true
		b, err = os.ReadFile(filepath.Join(dir, "cgroup.threads"))
	}
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Fields(b) {
		pid, err := strconv.Atoi(string(field))
		if err != nil {
			return nil, err
		}
		if pid != 0 && threads {
			if pid, err = leaderOf(pid); err != nil {
				return nil, err
			}
		}
		if pid != 0 { // of a PID namespace that is not below this one, or ended
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// leaderOf returns the process of a thread, 0 if it has ended.
func leaderOf(tid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if isGone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if number, ok := strings.CutPrefix(line, "Tgid:"); ok {
			return strconv.Atoi(strings.TrimSpace(number))
		}
	}
	return 0, fmt.Errorf("thread %d has no process", tid)
}

// listeningPorts returns the TCP ports that are listened on in the network
// namespace of process pid.
func listeningPorts(pid int) (map[uint16]bool, error) {
	const listen = "0A" // TCP_LISTEN, proc_pid_net(5)
	ports := make(map[uint16]bool)
	for _, file := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if errors.Is(err, fs.ErrNotExist) {
			if _, perr := os.Stat(fmt.Sprintf("/proc/%d", pid)); perr == nil {
				continue // a kernel without IPv6
			}
		}
		if err != nil {
			return nil, fmt.Errorf("list listening sockets: %w", err)
		}
		for line := range bytes.Lines(b) {
			f := bytes.Fields(line)
			if len(f) < 4 || string(f[3]) != listen {
				continue
			}
			port, err := strconv.ParseUint(string(f[1][bytes.LastIndexByte(f[1], ':')+1:]), 16, 16)
			if err != nil {
				return nil, fmt.Errorf("list listening sockets: %w", err)
			}
			ports[uint16(port)] = true
		}
	}
	return ports, nil
}

// adopt decides about one socket, and gives it its record.
func (a *adoption) adopt(fd int, sock socket, allowed bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if was, ok := a.fates[st.Ino]; ok && was != fateLeft {
		if was == fateGiven || was == fateKnown {
			return a.look(fd, sock)
		}
		return nil
	}
	f, err := a.decide(fd, sock, allowed)
	if err != nil {
		return err
	}
	a.fates[st.Ino] = f
	if f != fateGiven {
		return nil
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("get SO_COOKIE: %w", err)
	}
	a.given[cookie] = true
	return a.look(fd, sock)
}

// look notes whether connections wait to be accepted.
func (a *adoption) look(fd int, sock socket) error {
	if sock.protocol != unix.IPPROTO_TCP {
		return nil
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens == 0 {
		return err
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("get TCP_INFO: %w", err)
	}
	a.waiting = a.waiting || info.Unacked > 0 // of a listener the length of its queue
	return nil
}

func (a *adoption) decide(fd int, sock socket, allowed bool) (fate, error) {
	switch sock.family {
	case unix.AF_KEY, unix.AF_ALG:
		return fateKnown, nil // they lead nowhere
	case unix.AF_INET, unix.AF_INET6, unix.AF_PACKET, unix.AF_XDP:
	default:
		return fateForeign, nil
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("get SO_NETNS_COOKIE: %w", err)
	}
	if cookie != a.r.ns.Cookie {
		return fateForeign, nil
	}
	if sock.family == unix.AF_PACKET || sock.family == unix.AF_XDP {
		return fateLeft, nil
	}
	var have bpf.Sock
	err = a.store.maps.Socks.Lookup(int32(fd), &have)
	missing := errors.Is(err, ebpf.ErrKeyNotExist)
	if err != nil && !missing {
		return 0, fmt.Errorf("look up its record: %w", err)
	}
	e := &a.r.entry
	switch {
	case have.CgroupId == e.CgroupId && have.NetnsCookie == e.NetnsCookie && have.Role == e.Role:
		return fateKnown, nil
	case have.CgroupId != 0 && have.CgroupId != e.CgroupId:
		var other bpf.Container // that made it
		err := a.store.maps.Containers.Lookup(have.CgroupId, &other)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return fateLeft, nil
		}
		return fateKnown, err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return 0, fmt.Errorf("get SO_TYPE: %w", err)
	}
	if !a.mayMake(kind, sock.protocol, allowed) || !madeInside(fd) {
		return fateLeft, nil
	}
	return a.give(fd, sock, &have, missing)
}

// give writes the record of a socket. have is what it had, without an owner if any.
func (a *adoption) give(fd int, sock socket, have *bpf.Sock, missing bool) (fate, error) {
	e := &a.r.entry
	rec := bpf.Sock{NetnsCookie: e.NetnsCookie, CgroupId: e.CgroupId, Role: e.Role, Flags: have.Flags, Orig: have.Orig}
	flags, err := a.flagsOf(fd, sock)
	if err != nil {
		return 0, err
	}
	rec.Flags |= flags
	// One that listens later is listed by sg_sockops.
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return 0, fmt.Errorf("get SO_ACCEPTCONN: %w", err)
	}
	how := ebpf.UpdateExist
	if missing {
		// A program may be writing one, and knows more of it then.
		how = ebpf.UpdateNoExist
	}
	err = a.store.maps.Socks.Update(int32(fd), rec, how)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return fateKnown, nil
	}
	if err != nil {
		return 0, fmt.Errorf("put its record: %w", err)
	}
	if listens != 0 && e.Role == bpf.RoleSidecar && sock.protocol == unix.IPPROTO_TCP {
		err = a.list(fd)
	}
	return fateGiven, err
}

// flagsOf tells what can be known of a socket's past (enum sg_sock_flags). Where a
// connection was redirected from is not: it was not.
func (a *adoption) flagsOf(fd int, sock socket) (uint32, error) {
	if sock.protocol != unix.IPPROTO_TCP && sock.protocol != unix.IPPROTO_UDP {
		return 0, nil
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return 0, nil //nolint:nilerr // it is not connected
	}
	if sock.protocol == unix.IPPROTO_UDP {
		return bpf.SockSent, nil // sg_connect4 would have said so, and no sendmsg will
	}
	port, err := localPort(fd)
	if err == nil && a.ports[port] {
		return bpf.SockPassive, nil
	}
	return 0, err
}

func localPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, fmt.Errorf("getsockname: %T", sa)
}

// list enters a listener of the sidecar where sg_ops_listen would have.
func (a *adoption) list(fd int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("get SO_DOMAIN: %w", err)
	}
	port, err := localPort(fd)
	if err != nil {
		return err
	}
	key := bpf.ListenerKey{NetnsCookie: a.r.entry.NetnsCookie, Port: port}
	if family == unix.AF_INET6 {
		key.Ipv6 = 1
	}
	for key.Slot = range uint8(bpf.ListenerSlots) {
		err := a.store.maps.Listeners.Update(key, uint64(fd), ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			continue
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // it was closed meanwhile
		}
		if err != nil {
			return fmt.Errorf("enter listener on port %d: %w", port, err)
		}
		a.listeners = append(a.listeners, key)
		return nil
	}
	return nil // as many as are listed do
}

// mayMake is what sg_sock_create makes of a verdict.
func (a *adoption) mayMake(kind, protocol int, allowed bool) bool {
	v := socketVerdict(a.r.entry.Role, a.flags, allowed, kind, protocol, a.r.pol.entry.Flags)
	if a.r.pol.entry.Flags&bpf.PolicyAudit != 0 {
		return v != deniedProtocol || a.r.entry.Role != bpf.RoleSidecar
	}
	return v == allowedSocket
}

// verdict is what socketVerdict says.
type verdict int

const (
	allowedSocket verdict = iota
	deniedSocket
	deniedProtocol // SG_DROP_PROTOCOL
)

// socketVerdict is sg_verdict_socket: whether a container of this role may make a
// socket. subject has bpf.Subject*, flags bpf.Policy*.
func socketVerdict(role bpf.Role, subject uint16, process bool, kind, protocol int, flags uint32) verdict {
	icmp := protocol == unix.IPPROTO_ICMP || protocol == unix.IPPROTO_ICMPV6
	common := kind == unix.SOCK_STREAM && protocol == unix.IPPROTO_TCP || kind == unix.SOCK_DGRAM && protocol == unix.IPPROTO_UDP
	may := func(ok bool) verdict {
		switch {
		case ok:
			return allowedSocket
		case icmp && (kind == unix.SOCK_DGRAM || subject&bpf.SubjectRuled != 0), kind == unix.SOCK_RAW:
			return deniedSocket
		}
		return deniedProtocol
	}
	switch {
	case role != bpf.RoleApp && role != bpf.RoleSidecar && role != bpf.RoleExempt, subject&bpf.SubjectProcesses != 0 && !process:
		return deniedSocket
	case subject&bpf.SubjectRuled != 0:
		about := map[int]uint16{unix.IPPROTO_ICMP: bpf.SubjectICMP, unix.IPPROTO_ICMPV6: bpf.SubjectICMPv6}
		if kind != unix.SOCK_RAW {
			about[unix.IPPROTO_SCTP] = bpf.SubjectSCTP
		}
		return may(common || subject&about[protocol] != 0)
	case kind == unix.SOCK_STREAM && protocol == unix.IPPROTO_MPTCP:
		return deniedProtocol
	case role != bpf.RoleApp:
		return allowedSocket
	}
	return may(common || kind == unix.SOCK_DGRAM && icmp && flags&bpf.PolicyNonTCP != 0)
}

// takeBack removes all records of the container's sockets and listeners.
func (a *adoption) takeBack() error {
	var errs []error
	for _, key := range a.listeners {
		if err := a.store.maps.Listeners.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("delete listener on port %d: %w", key.Port, err))
		}
	}
	err := a.eachSocket(func(fd int, sock socket, _ bool) error {
		if sock.family != unix.AF_INET && sock.family != unix.AF_INET6 {
			return nil
		}
		var have bpf.Sock
		err := a.store.maps.Socks.Lookup(int32(fd), &have)
		if err == nil && have.CgroupId == a.r.entry.CgroupId {
			err = a.store.maps.Socks.Delete(int32(fd))
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // so is the cgroup
		err = nil
	}
	return errors.Join(append(errs, err)...)
}

// closeAdopted closes the connections of the adopted sockets that the policy does
// not allow. To the outside they would hang: their packets are judged one by one.
// Inside the pod the first one alone is, and theirs has passed; those are judged
// when the other end is adopted too.
func (s *Store) closeAdopted(a *adoption) error {
	if len(a.given) == 0 || a.r.pol.entry.Flags&bpf.PolicyAudit != 0 {
		return nil
	}
	list, err := s.members(a.r.pol.slot)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(m member) bool { return m.entry.NetnsCookie != a.r.ns.Cookie })
	return s.closeDenied(a.r.pol, list, true)
}
