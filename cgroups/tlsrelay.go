// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
)

// TLSRelay is the kernel's side of the TLS relay, of which a node has one: a process
// that listens in the network namespace of each pod whose policy has TLS. What the
// apps of such a pod connect to outside comes there first, and goes on from there
// to the sidecar. It owns its descriptors until Close. It holds no lock.
//
// The process is in a cgroup of its own. What it opens in a pod's namespace gets a
// record of role relay, which no device lets out: it reaches the pod's loopback only.
type TLSRelay struct {
	life  sync.RWMutex // held for reading while maps are used: Close waits
	maps  *bpf.Maps    // nil after Close
	tell  *Emitter
	id    ebpf.MapID // of map pods: tells this state from one that is loaded later
	state string
	links []link.Link
}

// NewTLSRelay makes the calling process the relay of what is loaded at state, which
// it loads if nothing is.
func NewTLSRelay(state string) (_ *TLSRelay, err error) {
	s, err := Open(state)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.becomeRelay(state)
}

// AgainTLSRelay is NewTLSRelay for a relay that is asked by whoever holds the state's
// lock, and waits.
func AgainTLSRelay(state string) (_ *TLSRelay, err error) {
	s := &Store{dir: VersionDir(state)}
	if s.mount, err = FindMount(); err != nil {
		return nil, err
	}
	if s.maps, err = bpf.OpenMaps(s.pinnedMap); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.maps.Close()) }()
	return s.becomeRelay(state)
}

func (s *Store) becomeRelay(state string) (_ *TLSRelay, err error) {
	if err := s.putAgent(os.Getpid(), bpf.RoleRelay); err != nil {
		return nil, fmt.Errorf("register relay: %w", err)
	}
	r := &TLSRelay{state: state}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.maps, err = bpf.OpenMaps(s.pinnedMap); err != nil {
		return nil, err
	}
	if r.id, err = mapID(r.maps.Pods); err != nil {
		return nil, err
	}
	if r.tell, err = newEmitter(r.maps, s.program); err != nil {
		return nil, err
	}
	cg, err := s.mount.Of(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer cg.Close()
	for _, h := range bpf.RelayHooks() {
		if err := r.attach(s, cg, h); err != nil {
			return nil, fmt.Errorf("attach %s to cgroup %s: %w", h.Program, cg.Path, explain(err))
		}
	}
	return r, nil
}

// attach does not pin: the hook goes with the process.
func (r *TLSRelay) attach(s *Store, cg *Cgroup, h bpf.Hook) error {
	prog, err := s.program(h.Program)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cg.Fd()), Program: prog, Attach: h.Attach})
	if err != nil {
		return err
	}
	r.links = append(r.links, l)
	return nil
}

// Current tells whether what is loaded is what this relay belongs to: it may have
// been unloaded, and loaded again.
func (r *TLSRelay) Current() (bool, error) { return isLoaded(r.state, r.id) }

// Close closes the descriptors. Connections to the relay are refused from then on. What is asked of it later is
// ErrRelayClosed.
func (r *TLSRelay) Close() error {
	r.life.Lock()
	defer r.life.Unlock()
	var errs []error
	for _, l := range r.links {
		errs = append(errs, l.Close())
	}
	if r.tell != nil {
		errs = append(errs, r.tell.Close())
		r.tell = nil
	}
	if r.maps != nil {
		errs = append(errs, r.maps.Close())
		r.maps = nil
	}
	return errors.Join(errs...)
}

// ErrRelayClosed is of a relay, or a listener of it, that was closed.
var ErrRelayClosed = errors.New("the relay was closed")

// using calls f while the maps are open.
func (r *TLSRelay) using(f func(*bpf.Maps) error) error {
	r.life.RLock()
	defer r.life.RUnlock()
	if r.maps == nil {
		return ErrRelayClosed
	}
	return f(r.maps)
}

// Told tells whether anybody reads events.
func (r *TLSRelay) Told() bool {
	var wanted bool
	err := r.using(func(*bpf.Maps) error { wanted = r.tell.Wanted(); return nil })
	return wanted && err == nil
}

// Tell tells who reads events what the relay saw of a connection of the container with this cgroup, in the pod with this
// cookie: of v Verdict, Reason, Text, Rule, Address, PID and TLS. It does not wait for readers.
func (r *TLSRelay) Tell(cookie, cgroup uint64, v *Event) error {
	return r.using(func(*bpf.Maps) error { return r.tell.emitTLS(cookie, cgroup, v) })
}

// TLSPod is a pod whose policy has a relay.
type TLSPod struct {
	Cookie uint64 `json:"netnsCookie"`
	PID    int    `json:"pid"`  // of a process in its network namespace
	Port   uint16 `json:"port"` // where the relay listens
}

// Pods returns the pods whose policies have TLS, once for each of their containers that lives.
func (r *TLSRelay) Pods() (pods []TLSPod, err error) {
	err = r.using(func(m *bpf.Maps) (err error) {
		pods, err = tlsPods(m)
		return err
	})
	return pods, err
}

func tlsPods(m *bpf.Maps) ([]TLSPod, error) {
	s := &Store{maps: m}
	ids, containers, err := entriesOf[uint64, bpf.Container](m.Containers)
	if err != nil {
		return nil, err
	}
	var pods []TLSPod
	for i, c := range containers {
		pol, err := policyOf(m, c.NetnsCookie)
		if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && pol.Tls == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := s.info(ids[i])
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // it ends right now
		}
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat("/proc/" + strconv.Itoa(int(info.Pid))); err != nil {
			continue
		}
		pods = append(pods, TLSPod{Cookie: c.NetnsCookie, PID: int(info.Pid), Port: pol.Tls})
	}
	return pods, nil
}

func policyOf(m *bpf.Maps, cookie uint64) (bpf.Policy, error) {
	var pod bpf.Pod
	var pol bpf.Policy
	var rev uint32
	if err := m.Pods.Lookup(cookie, &pod); err != nil {
		return pol, fmt.Errorf("look up pod %d: %w", cookie, err)
	}
	if err := m.PolicySlots.Lookup(pod.Policy, &rev); err != nil {
		return pol, fmt.Errorf("look up what holds in slot %d: %w", pod.Policy, err)
	}
	if err := m.Policies.Lookup(rev, &pol); err != nil {
		return pol, fmt.Errorf("look up revision %d: %w", rev, err)
	}
	return pol, nil
}

// TLSPolicy is what a pod is under now.
type TLSPolicy struct {
	Revision uint32
	Outbound uint16 // of the sidecar
	Port     uint16 // of the relay; 0: the policy has no TLS any more
}

// Policy returns what the pod is under now. ebpf.ErrKeyNotExist: there is no such pod.
func (r *TLSRelay) Policy(cookie uint64) (p TLSPolicy, err error) {
	// Of two changes at once the entry may be gone that the slot named.
	for range 10 {
		err = r.using(func(m *bpf.Maps) error {
			pol, err := policyOf(m, cookie)
			p = TLSPolicy{Revision: pol.Revision, Outbound: pol.Outbound, Port: pol.Tls}
			return err
		})
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
	}
	return p, err
}

// Rules returns what a revision says of TLS, as policy.ParseTLS reads it.
func (r *TLSRelay) Rules(revision uint32) (rules []byte, err error) {
	err = r.using(func(m *bpf.Maps) (err error) {
		rules, err = tlsRules(m, revision)
		return err
	})
	return rules, err
}

func tlsRules(m *bpf.Maps, revision uint32) ([]byte, error) {
	var all []byte
	for n := uint32(0); ; n++ {
		var piece bpf.TLSPolicy
		err := m.TLSPolicies.Lookup(bpf.TLSPolicyKey{Revision: revision, N: n}, &piece)
		if errors.Is(err, ebpf.ErrKeyNotExist) && n > 0 {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look up rules of revision %d: %w", revision, err)
		}
		all = append(all, piece.B[:]...)
		if end := len(all) - 1; all[end] == 0 {
			for end > 0 && all[end-1] == 0 {
				end--
			}
			return all[:end], nil
		}
	}
}

// TLSContainer is who connected.
type TLSContainer struct {
	ID, Name, Pod string
}

// Container names the container of a cgroup, with nothing in it if that is gone.
func (r *TLSRelay) Container(cgroupID uint64) TLSContainer {
	var info bpf.ContainerInfo
	err := r.using(func(m *bpf.Maps) (err error) {
		info, err = (&Store{maps: m}).info(cgroupID)
		return err
	})
	if err != nil {
		return TLSContainer{}
	}
	return TLSContainer{ID: bpf.CString(info.Id[:]), Name: bpf.CString(info.Name[:]), Pod: bpf.CString(info.Pod[:])}
}

// TLSListener is the relay in one pod: its listeners, and the memory to which the
// pod's apps hand over keys. Whoever got it closes it: until then the namespace lives.
type TLSListener struct {
	Cookie uint64
	Port   uint16
	IPv4   *net.TCPListener
	IPv6   *net.TCPListener // nil in a namespace without IPv6
	Keys   *TLSRing

	r    *TLSRelay
	life sync.RWMutex // held for reading while ns is used
	ns   *Netns       // nil after Close
}

// Listen makes the relay listen on port in the network namespace of process pid, if
// that has the cookie.
func (r *TLSRelay) Listen(pid int, cookie uint64, port uint16) (_ *TLSListener, err error) {
	ns, err := NetnsOf(pid)
	if err != nil {
		return nil, err
	}
	l := &TLSListener{Cookie: cookie, Port: port, r: r, ns: ns}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if ns.Cookie != cookie {
		return nil, fmt.Errorf("process %d is in network namespace %d, not in %d", pid, ns.Cookie, cookie)
	}
	err = ns.Do(func() (err error) {
		if l.IPv4, err = listenLoopback("tcp4", "127.0.0.1", port); err != nil {
			return err
		}
		l.IPv6, err = listenLoopback("tcp6", "::1", port)
		if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
			l.IPv6, err = nil, nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := r.using(l.put); err != nil {
		return nil, err
	}
	return l, nil
}

// put makes the listener known to the programs.
func (l *TLSListener) put(m *bpf.Maps) (err error) {
	if l.Keys, err = newRing(m, l.Cookie); err != nil {
		return err
	}
	// What a relay left that was killed, whose sessions are gone too.
	if err := deleteKeys(m.TLSTargets, func(k *bpf.TLSTarget) bool { return k.NetnsCookie == l.Cookie }); err != nil {
		return err
	}
	// Last: from here on lookups of the port end at these.
	for v6, tcp := range []*net.TCPListener{l.IPv4, l.IPv6} {
		if tcp == nil {
			continue
		}
		key := bpf.ListenerKey{NetnsCookie: l.Cookie, Port: l.Port, Ipv6: uint8(v6), Relay: 1}
		if err := control(tcp, func(fd int) error { return m.Listeners.Put(key, uint64(fd)) }); err != nil {
			return fmt.Errorf("put listener: %w", err)
		}
	}
	return nil
}

func listenLoopback(network, host string, port uint16) (*net.TCPListener, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), network, net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// Close stops listening. What was accepted goes on.
func (l *TLSListener) Close() error {
	l.life.Lock()
	errs := []error{l.ns.Close()}
	l.ns = nil
	l.life.Unlock()
	for _, tcp := range []*net.TCPListener{l.IPv4, l.IPv6} {
		if tcp != nil {
			errs = append(errs, tcp.Close())
		}
	}
	if l.Keys != nil {
		errs = append(errs, l.r.using(func(m *bpf.Maps) error { return l.Keys.close(m, l.Cookie) }))
	}
	return errors.Join(errs...)
}

// control runs f on a connection's descriptor.
func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// TLSOrigin is where a connection that the relay accepted wanted to go, and whose it is.
type TLSOrigin struct {
	Destination netip.AddrPort
	CgroupID    uint64 // of the container that connected
	PID         int    // of its process
	// Sidecar says that it is the sidecar, which goes on with a session: see TLSListener.Target.
	Sidecar bool
}

// Origin returns where the connection comes from, or false for one that nothing has
// redirected: whoever in the pod connects to the relay by itself.
func (r *TLSRelay) Origin(c *net.TCPConn) (TLSOrigin, bool, error) {
	rec, err := r.record(c)
	if err != nil || rec.Orig.Family == 0 {
		return TLSOrigin{}, false, err
	}
	o := TLSOrigin{
		Destination: netip.AddrPortFrom(netip.AddrFrom16(rec.Orig.Addr.B).Unmap(), rec.Orig.Port),
		CgroupID:    rec.App, PID: int(rec.Pid),
	}
	var who bpf.Container
	if err := r.using(func(m *bpf.Maps) error { return m.Containers.Lookup(o.CgroupID, &who) }); err != nil {
		return TLSOrigin{}, false, fmt.Errorf("look up the container that connected: %w", err)
	}
	o.Sidecar = who.Role == bpf.RoleSidecar
	return o, true, nil
}

func (r *TLSRelay) record(c *net.TCPConn) (rec bpf.Sock, err error) {
	err = r.using(func(m *bpf.Maps) error {
		return control(c, func(fd int) error { return m.Socks.Lookup(uint32(fd), &rec) })
	})
	if err != nil {
		return rec, fmt.Errorf("look up a socket's record: %w", err)
	}
	return rec, nil
}

// Dial connects to the sidecar, which is told that the connection wants to go to the
// origin's destination (SO_ORIGINAL_DST), as it would be without a relay.
func (l *TLSListener) Dial(ctx context.Context, o TLSOrigin, outbound uint16) (_ *net.TCPConn, err error) {
	lo := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if o.Destination.Addr().Is6() {
		lo = netip.IPv6Loopback()
	}
	c, err := l.dial(ctx, netip.AddrPortFrom(lo, outbound), func(fd int, family uint16) error {
		return l.r.using(func(m *bpf.Maps) error { return o.mark(m, fd, family) })
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the sidecar: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	// Without the entry the sidecar would take the connection for one to itself.
	rec, err := l.r.record(c)
	if err == nil && rec.Flags&bpf.SockOrigdst == 0 {
		err = errors.New("connect to the sidecar: too many connections are on their way to it")
	}
	return c, err
}

// mark says in the record of a socket, which is not connected yet, for whom it will be.
func (o *TLSOrigin) mark(m *bpf.Maps, fd int, family uint16) error {
	var rec bpf.Sock
	if err := m.Socks.Lookup(uint32(fd), &rec); err != nil {
		return fmt.Errorf("look up a socket's record: %w", err)
	}
	rec.Flags |= bpf.SockRedirected
	rec.App, rec.Pid = o.CgroupID, uint32(o.PID)
	rec.Orig.Addr, rec.Orig.Port, rec.Orig.Family = bpf.AddrFrom(o.Destination.Addr()), o.Destination.Port(), family
	if err := m.Socks.Update(uint32(fd), rec, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("set a socket's record: %w", err)
	}
	return nil
}

// DialServer connects to where the app wanted to go, from the pod, under a policy whose
// TLS is deferred.
func (l *TLSListener) DialServer(ctx context.Context, o TLSOrigin) (*net.TCPConn, error) {
	c, err := l.dial(ctx, o.Destination, func(int, uint16) error { return nil })
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", o.Destination, err)
	}
	return c, nil
}

// dial connects a socket of the pod's namespace, after prepare.
func (l *TLSListener) dial(ctx context.Context, addr netip.AddrPort, prepare func(fd int, family uint16) error) (*net.TCPConn, error) {
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()})
	if addr.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	var fd int
	err := l.within(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "relayed")
	defer f.Close()
	if err := prepare(fd, uint16(family)); err != nil {
		return nil, err
	}
	if err := connect(ctx, f, to); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// within runs f in the pod's network namespace.
func (l *TLSListener) within(f func() error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.ns == nil {
		return ErrRelayClosed
	}
	return l.ns.Do(f)
}

// TLSTarget is a destination that stands for one session: the sidecar is told that what it
// gets in plaintext wants to go there, and if it connects there, it comes to the relay.
type TLSTarget struct {
	Destination netip.AddrPort

	l *TLSListener
}

// The ports of targets: those that no service is registered for (RFC 6335, 6).
const firstTarget, lastTarget = 49152, 65535

// Target makes one on the server's address. Whoever got it closes it.
func (l *TLSListener) Target(server netip.Addr) (*TLSTarget, error) {
	key := bpf.TLSTarget{NetnsCookie: l.Cookie, Addr: bpf.AddrFrom(server)}
	first := rand.IntN(lastTarget + 1 - firstTarget)
	for i := range lastTarget + 1 - firstTarget {
		key.Port = uint16(firstTarget + (first+i)%(lastTarget+1-firstTarget))
		err := l.r.using(func(m *bpf.Maps) error { return m.TLSTargets.Update(key, uint8(1), ebpf.UpdateNoExist) })
		if err == nil {
			return &TLSTarget{Destination: netip.AddrPortFrom(server, key.Port), l: l}, nil
		}
		if !errors.Is(err, ebpf.ErrKeyExist) {
			return nil, fmt.Errorf("put a session's destination: %w", err)
		}
	}
	return nil, fmt.Errorf("there are %d sessions with %s already", lastTarget+1-firstTarget, server)
}

// Close lets nobody connect there any more.
func (t *TLSTarget) Close() error {
	key := bpf.TLSTarget{NetnsCookie: t.l.Cookie, Addr: bpf.AddrFrom(t.Destination.Addr()), Port: t.Destination.Port()}
	err := t.l.r.using(func(m *bpf.Maps) error { return m.TLSTargets.Delete(key) })
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete a session's destination: %w", err)
	}
	return nil
}

// connect waits, as ctx lets it, for a socket that does not block.
func connect(ctx context.Context, f *os.File, to unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	begun := false
	werr := raw.Write(func(fd uintptr) bool {
		if !begun {
			begun = true
			err = unix.Connect(int(fd), to)
			return !errors.Is(err, unix.EINPROGRESS)
		}
		var errno int
		if errno, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, werr)
}

// TLSSocketEnv moves the socket at which the relay answers.
const TLSSocketEnv = "SIDEGATE_TLS_SOCKET"

// TLSSocket is where the relay answers.
func TLSSocket() string { return cmp.Or(os.Getenv(TLSSocketEnv), "/run/sidegate/tls.sock") }

// TLSRequest asks the relay to listen in a pod, and TLSAnswer says that it does. Each
// is one JSON object in one packet of a SOCK_SEQPACKET connection.
type (
	TLSRequest struct {
		State string   `json:"state"` // directory of the state
		Pods  []TLSPod `json:"pods"`
	}
	TLSAnswer struct {
		Error string `json:"error,omitempty"`
	}
)

// tlsTimeout is less than containerd waits for a plugin.
const tlsTimeout = 1500 * time.Millisecond

// askRelay has the relay listen in pods, before anything there is sent to it.
func (s *Store) askRelay(pods []TLSPod) error {
	for some := range slices.Chunk(pods, 1000) { // what fits into a packet
		if err := s.ask(some); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) ask(pods []TLSPod) error {
	path := TLSSocket()
	b, err := json.Marshal(TLSRequest{State: filepath.Dir(s.dir), Pods: pods})
	if err != nil {
		return fmt.Errorf("ask the TLS relay: %w", err)
	}
	conn, err := net.DialTimeout("unixpacket", path, tlsTimeout)
	if err != nil {
		return fmt.Errorf("its policy has TLS, and the relay does not answer: %w: start it (systemctl start sidegate-tls), or take tls out of the policy", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(tlsTimeout)); err != nil {
		return fmt.Errorf("ask the TLS relay: %w", err)
	}
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("ask the TLS relay at %s: %w", path, err)
	}
	buf := make([]byte, 1<<16)
	n, err := conn.Read(buf)
	if err != nil {
		return fmt.Errorf("wait for the TLS relay at %s: %w: look at its log (journalctl -u sidegate-tls)", path, err)
	}
	var answer TLSAnswer
	if err := json.Unmarshal(buf[:n], &answer); err != nil {
		return fmt.Errorf("read what the TLS relay at %s answers: %w", path, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("the TLS relay does not listen in the pod: %s", answer.Error)
	}
	return nil
}
