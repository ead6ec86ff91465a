// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// closeDenied closes the connections that pol does not allow any more, of the
// containers that are under it: their packets may not be looked at again, inside
// a pod only the first one is. A TCP connection inside a pod whose other end has no
// record is about to end, or was made by nobody who could still send on it; so may
// the other end of anything be while containers are being adopted.
func (s *Store) closeDenied(pol *applied, list []member, adopting bool) error {
	if pol.entry.Flags&bpf.PolicyAudit != 0 {
		return nil
	}
	denied, err := s.denied(pol, list, adopting)
	if err != nil || len(denied) == 0 {
		return err
	}
	var errs []error
	for cookie, socks := range denied {
		errs = append(errs, s.destroy(cookie, list, socks))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The kernel says ENOENT of a socket that is gone, and there may be new ones.
	if denied, err = s.denied(pol, list, adopting); err != nil {
		return err
	}
	for cookie, socks := range denied {
		socks = slices.DeleteFunc(socks, isClosing)
		if len(socks) == 0 {
			continue
		}
		errs = append(errs, fmt.Errorf("%d connections of pod %d that policy %s denies are still open: "+
			"apply it again, or end their processes", len(socks), cookie, bpf.CString(pol.info.Name[:])))
	}
	return errors.Join(errs...)
}

// isClosing tells whether its process has closed the connection: such a socket
// has nobody to abort it for, and ends by itself.
func isClosing(r *sock) bool {
	const established, synSent, closeWait = 1, 2, 8 // BPF_TCP_*, of UDP too
	return r.state != established && r.state != synSent && r.state != closeWait
}

// denied returns the connections that pol does not allow, by pod.
func (s *Store) denied(pol *applied, list []member, adopting bool) (map[uint64][]*sock, error) {
	j := judge{
		tables: &tables{maps: s.maps, pol: pol}, members: make(map[uint64]*member), byTuple: make(map[tuple]*sock),
		addrs: make(map[bpf.PodAddr]bool), adopting: adopting,
	}
	keys, err := keysOf[bpf.PodAddr](s.maps.PodAddrs)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		j.addrs[k] = true
	}
	var rows []sock
	seen := make(map[uint64]bool)
	for i := range list {
		j.members[list[i].entry.CgroupId] = &list[i]
		cookie := list[i].entry.NetnsCookie
		if seen[cookie] {
			continue
		}
		seen[cookie] = true
		some, err := s.sockets(cookie, list)
		if err != nil {
			return nil, err
		}
		rows = append(rows, some...)
	}
	for i := range rows {
		j.byTuple[tupleOf(&rows[i])] = &rows[i]
	}
	denied := make(map[uint64][]*sock)
	for i := range rows {
		if r := &rows[i]; j.denies(r) {
			denied[r.record.NetnsCookie] = append(denied[r.record.NetnsCookie], r)
		}
	}
	return denied, j.tables.err
}

// judge says which sockets a policy would not let connect today.
type judge struct {
	tables  *tables
	members map[uint64]*member // by cgroup
	byTuple map[tuple]*sock
	addrs   map[bpf.PodAddr]bool // of pods
	// adopting is as closeDenied has it.
	adopting bool
}

// inside tells whether a socket is connected to its own pod.
func (j *judge) inside(r *sock) bool {
	to := remoteOf(r).Addr()
	return to.IsLoopback() || j.addrs[bpf.PodAddr{NetnsCookie: r.record.NetnsCookie, Addr: bpf.AddrFrom(to)}]
}

type tuple struct {
	cookie        uint64
	local, remote netip.AddrPort
	proto         uint8
}

func tupleOf(r *sock) tuple {
	return tuple{cookie: r.record.NetnsCookie, local: localOf(r), remote: remoteOf(r), proto: r.proto}
}

func localOf(r *sock) netip.AddrPort  { return unmapped(r.local) }
func remoteOf(r *sock) netip.AddrPort { return unmapped(r.remote) }

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// denies tells whether r is a connection that could not be opened any more. One
// inside the pod is judged at the end that opened it. A socket without a port of its own is closed, and not gone yet.
func (j *judge) denies(r *sock) bool {
	const tcpClose, tcpListen = 7, 10 // BPF_TCP_*
	owner := j.members[r.record.CgroupId]
	if owner == nil || r.local.Port() == 0 || r.remote.Port() == 0 || r.state == tcpListen || r.state == tcpClose && r.proto == unix.IPPROTO_TCP {
		return false
	}
	q := policy.Query{Proto: r.proto, Port: r.remote.Port()}
	passive := r.record.Flags&bpf.SockPassive != 0
	peer := j.byTuple[tuple{cookie: r.record.NetnsCookie, local: remoteOf(r), remote: localOf(r), proto: r.proto}]
	switch {
	case r.record.Flags&(bpf.SockRedirected|bpf.SockDNS) != 0:
		q.Port = r.record.Orig.Port
		q.From, q.To = owner.endpoint(), policy.Outside(netip.AddrFrom16(r.record.Orig.Addr.B).Unmap())
	case peer == nil && (j.adopting || r.proto == unix.IPPROTO_TCP) && j.inside(r):
		return false
	case peer != nil && passive:
		return false
	case peer != nil:
		to := j.members[peer.record.CgroupId]
		if to == nil {
			return false
		}
		q.From, q.To, q.Same = owner.endpoint(), to.endpoint(), to == owner
	case passive:
		q.Port = r.local.Port()
		q.From, q.To = policy.Outside(remoteOf(r).Addr()), owner.endpoint()
	default:
		q.From, q.To = owner.endpoint(), policy.Outside(remoteOf(r).Addr())
	}
	d := policy.Decide(j.tables, q)
	// What went round the sidecar, and would not today.
	bypass := peer == nil && r.record.Flags&(bpf.SockRedirected|bpf.SockDNS) == 0 && d.Route != policy.RouteDirect
	return !d.Allow || bypass
}

func (m *member) endpoint() policy.End {
	return policy.Inside(endpointOf(m.info))
}

// destroy closes sockets of the pod with this cookie, from inside it. list has a
// process of it.
func (s *Store) destroy(cookie uint64, list []member, socks []*sock) error {
	ns, err := s.podNetns(cookie, list)
	if err != nil {
		return err
	}
	if ns == nil {
		return fmt.Errorf("close %d connections of pod %d: no process of it is left", len(socks), cookie)
	}
	err = ns.Do(func() error {
		var errs []error
		for _, r := range socks {
			if err := destroySocket(r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("close connection %s - %s: %w", localOf(r), remoteOf(r), err))
			}
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, ns.Close())
}
