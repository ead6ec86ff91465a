// SPDX-License-Identifier: Apache-2.0

package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/policy"
)

// closeDenied closes the connections that pol does not allow any more, of the
// containers that are under it: their packets may not be looked at again, inside
// a pod only the first one is. A connection to one of addrs, or loopback, whose
// other end has no record is left alone, unless addrs is nil.
func (s *Store) closeDenied(pol *applied, list []member, addrs map[netip.Addr]bool) error {
	if pol.entry.Flags&bpf.PolicyAudit != 0 {
		return nil
	}
	denied, err := s.denied(pol, list, addrs)
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
	// The kernel says ENOENT of a socket that is gone, and where it cannot look.
	if denied, err = s.denied(pol, list, addrs); err != nil {
		return err
	}
	for cookie, socks := range denied {
		socks = slices.DeleteFunc(socks, isClosing)
		if len(socks) == 0 {
			continue
		}
		errs = append(errs, fmt.Errorf("%d connections of pod %d that policy %s denies are still open: "+
			"load the kernel's modules tcp_diag and udp_diag, and apply it again", len(socks), cookie, bpf.CString(pol.info.Name[:])))
	}
	return errors.Join(errs...)
}

// isClosing tells whether its process has closed the connection: such a socket
// has nobody to abort it for, and ends by itself.
func isClosing(r *bpf.SockRow) bool {
	const established, synSent, closeWait = 1, 2, 8 // BPF_TCP_*, of UDP too
	return r.State != established && r.State != synSent && r.State != closeWait
}

// sockets lists all sockets that have a record, of all pods.
func (s *Store) sockets() ([]bpf.SockRow, error) {
	return bpf.ListSocks(s.maps.Socks)
}

// denied returns the connections that pol does not allow, by pod.
func (s *Store) denied(pol *applied, list []member, addrs map[netip.Addr]bool) (map[uint64][]*bpf.SockRow, error) {
	rows, err := s.sockets()
	if err != nil {
		return nil, err
	}
	j := judge{tables: &tables{maps: s.maps, pol: pol}, members: make(map[uint64]*member), byTuple: make(map[tuple]*bpf.SockRow), addrs: addrs}
	for i := range list {
		j.members[list[i].entry.CgroupId] = &list[i]
	}
	for i := range rows {
		j.byTuple[tupleOf(&rows[i])] = &rows[i]
	}
	denied := make(map[uint64][]*bpf.SockRow)
	for i := range rows {
		if r := &rows[i]; j.denies(r) {
			denied[r.Sock.NetnsCookie] = append(denied[r.Sock.NetnsCookie], r)
		}
	}
	return denied, j.tables.err
}

// judge says which sockets a policy would not let connect today.
type judge struct {
	tables  *tables
	members map[uint64]*member // by cgroup
	byTuple map[tuple]*bpf.SockRow
	addrs   map[netip.Addr]bool // as closeDenied has it
}

type tuple struct {
	cookie        uint64
	local, remote netip.AddrPort
	proto         uint8
}

func tupleOf(r *bpf.SockRow) tuple {
	return tuple{cookie: r.Sock.NetnsCookie, local: localOf(r), remote: remoteOf(r), proto: r.Proto}
}

func localOf(r *bpf.SockRow) netip.AddrPort  { return addrPort(r.Local.B, r.Lport) }
func remoteOf(r *bpf.SockRow) netip.AddrPort { return addrPort(r.Remote.B, r.Rport) }

func addrPort(b [16]uint8, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), port)
}

// denies tells whether r is a connection that could not be opened any more. One
// inside the pod is judged at the end that opened it. A socket without a port of its own is closed, and not gone yet.
func (j *judge) denies(r *bpf.SockRow) bool {
	const tcpClose, tcpListen = 7, 10 // BPF_TCP_*
	owner := j.members[r.Sock.CgroupId]
	if owner == nil || r.Lport == 0 || r.Rport == 0 || r.State == tcpListen || r.State == tcpClose && r.Proto == unix.IPPROTO_TCP {
		return false
	}
	q := policy.Query{Proto: r.Proto, Port: r.Rport}
	passive := r.Sock.Flags&bpf.SockPassive != 0
	peer := j.byTuple[tuple{cookie: r.Sock.NetnsCookie, local: remoteOf(r), remote: localOf(r), proto: r.Proto}]
	switch {
	case r.Sock.Flags&(bpf.SockRedirected|bpf.SockDNS) != 0:
		q.Port = r.Sock.Orig.Port
		q.From, q.To = owner.endpoint(), policy.Outside(addrPort(r.Sock.Orig.Addr.B, 0).Addr())
	case peer == nil && j.addrs != nil && (remoteOf(r).Addr().IsLoopback() || j.addrs[remoteOf(r).Addr()]):
		return false
	case peer != nil && passive:
		return false
	case peer != nil:
		to := j.members[peer.Sock.CgroupId]
		if to == nil {
			return false
		}
		q.From, q.To, q.Same = owner.endpoint(), to.endpoint(), to == owner
	case passive:
		q.Port = r.Lport
		q.From, q.To = policy.Outside(remoteOf(r).Addr()), owner.endpoint()
	default:
		q.From, q.To = owner.endpoint(), policy.Outside(remoteOf(r).Addr())
	}
	d := policy.Decide(j.tables, q)
	// What went round the sidecar, and would not today.
	bypass := peer == nil && r.Sock.Flags&(bpf.SockRedirected|bpf.SockDNS) == 0 && d.Route != policy.RouteDirect
	return !d.Allow || bypass
}

func (m *member) endpoint() policy.End {
	return policy.Inside(endpointOf(m.info))
}

// destroy closes sockets of the pod with this cookie, from inside it. list has a
// process of it.
func (s *Store) destroy(cookie uint64, list []member, socks []*bpf.SockRow) error {
	for i := range list {
		if list[i].entry.NetnsCookie != cookie {
			continue
		}
		ns, err := NetnsOf(int(list[i].info.Pid))
		if err != nil {
			continue // it ended: another one may live
		}
		if ns.Cookie != cookie {
			ns.Close()
			continue
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
	return fmt.Errorf("close %d connections of pod %d: no process of it is left", len(socks), cookie)
}

// destroySocket asks sock_diag(7) to abort a socket of this thread's namespace:
// both ends are told (CONFIG_INET_DIAG_DESTROY).
func destroySocket(r *bpf.SockRow) error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData((*diagRequest)(r))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type diagRequest bpf.SockRow

const diagRequestLen = 56

func (r *diagRequest) Len() int { return diagRequestLen }

func (r *diagRequest) Serialize() []byte {
	b := make([]byte, 0, diagRequestLen)
	b = append(b, uint8(r.Family), r.Proto, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, r.Lport)
	b = binary.BigEndian.AppendUint16(b, r.Rport)
	for _, a := range [][16]uint8{r.Local.B, r.Remote.B} {
		if r.Family == unix.AF_INET {
			b = append(b, a[12:]...)
			b = append(b, make([]byte, 12)...)
		} else {
			b = append(b, a[:]...)
		}
	}
	b = binary.NativeEndian.AppendUint32(b, 0) // any device
	return binary.NativeEndian.AppendUint64(b, r.Cookie)
}
