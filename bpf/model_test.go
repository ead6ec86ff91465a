// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"sidegate/bpf/internal/verdicts"
)

// The decisions once more, in Go and as plainly as can be: what DESIGN.md and
// the comments of src/verdict.h say, and nothing taken from how they do it.

type verdict struct {
	action  verdicts.Action
	counter Counter
}

var (
	allow            = verdict{verdicts.Allow, 0}
	allowLocal       = verdict{verdicts.Allow, nodeSgCounterSG_COUNT_LOCAL}
	allowDirect      = verdict{verdicts.Allow, nodeSgCounterSG_COUNT_DIRECT}
	redirect         = verdict{verdicts.Redirect, nodeSgCounterSG_COUNT_REDIRECT}
	redirectDNS      = verdict{verdicts.RedirectDNS, nodeSgCounterSG_COUNT_DNS}
	denyUnregistered = deny(nodeSgCounterSG_DROP_UNREGISTERED)
	denyInit         = deny(nodeSgCounterSG_DROP_INIT)
	denyUDP          = deny(nodeSgCounterSG_DROP_UDP)
	denyICMP         = deny(nodeSgCounterSG_DROP_ICMP)
	denyRaw          = deny(nodeSgCounterSG_DROP_RAW)
	denyProtocol     = deny(nodeSgCounterSG_DROP_PROTOCOL)
	denyBind         = deny(nodeSgCounterSG_DROP_BIND)
	denyEgress       = deny(nodeSgCounterSG_DROP_EGRESS)
	denyIngress      = deny(nodeSgCounterSG_DROP_INGRESS)
	denyFragment     = deny(nodeSgCounterSG_DROP_FRAGMENT)
)

func deny(c Counter) verdict { return verdict{verdicts.Deny, c} }

func icmp(proto uint32) bool {
	return proto == unix.IPPROTO_ICMP || proto == unix.IPPROTO_ICMPV6
}

// byRole answers for all roles but the app's: what lets a sidecar through lets
// an exempt container through, and nobody else.
func byRole(role uint32, free verdict) (v verdict, app bool) {
	switch Role(role) {
	case RoleApp:
		return verdict{}, true
	case RoleSidecar, RoleExempt:
		return free, false
	case RoleDenied:
		return denyInit, false
	}
	return denyUnregistered, false
}

func modelLoopback(b [16]byte) bool {
	a := netip.AddrFrom16(b).Unmap()
	return a.IsLoopback() || a.IsUnspecified()
}

func modelV4(b [16]byte) bool { return netip.AddrFrom16(b).Is4In6() }

func modelReserved(pod *verdicts.Pod, port uint16) bool {
	for i, r := range pod.Reserved {
		if i < int(pod.Nreserved) && r.Lo <= port && port <= r.Hi {
			return true
		}
	}
	return false
}

func modelRule(r *verdicts.Rule, proto uint8, port uint16, fragment bool) bool {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return false
	}
	for i, p := range r.P {
		switch {
		case i >= int(r.N):
			return false
		case p.Proto != 0 && uint8(p.Proto) != proto:
		case fragment && (p.Lo > 1 || p.Hi != 0xffff):
		case !fragment && (port < p.Lo || port > p.Hi):
		default:
			return true
		}
	}
	return false
}

func modelSocket(role, kind, proto uint32, nonTCP bool) verdict {
	v, app := byRole(role, allow)
	switch {
	case !app:
		return v
	case kind == unix.SOCK_RAW:
		return denyRaw
	case kind == unix.SOCK_STREAM && proto == unix.IPPROTO_TCP, kind == unix.SOCK_DGRAM && proto == unix.IPPROTO_UDP:
		return allow
	case kind == unix.SOCK_DGRAM && icmp(proto) && nonTCP:
		return allow
	case kind == unix.SOCK_DGRAM && icmp(proto):
		return denyICMP
	}
	return denyProtocol
}

func modelConnect(role uint32, f *verdicts.Flow, pod *verdicts.Pod) verdict {
	v, app := byRole(role, allowDirect)
	if !app {
		return v
	}
	if f.Local != 0 {
		return allowLocal
	}
	if f.EgressRule != 0 {
		return allowDirect
	}
	direct := pod.Flags&PodNonTCP != 0
	switch {
	case f.Proto == unix.IPPROTO_TCP:
		return redirect
	case f.Proto == unix.IPPROTO_UDP && f.Port == 53 && pod.Dns != 0:
		return redirectDNS
	case f.Proto == unix.IPPROTO_UDP && direct, icmp(uint32(f.Proto)) && direct:
		return allowDirect
	case f.Proto == unix.IPPROTO_UDP:
		return denyUDP
	case icmp(uint32(f.Proto)):
		return denyICMP
	}
	return denyProtocol
}

// modelBind: an exempt container is left alone, but the sidecar's ports are the
// sidecar's.
func modelBind(role uint32, port uint16, pod *verdicts.Pod) verdict {
	v, app := byRole(role, allow)
	switch {
	case Role(role) == RoleSidecar:
		return allow
	case !app && v.action == verdicts.Deny:
		return v
	case port != 0 && modelReserved(pod, port):
		return denyBind
	}
	return allow
}

func modelPacket(role uint32, f *verdicts.Flow, pod *verdicts.Pod, out bool) verdict {
	v, app := byRole(role, allow)
	if !app {
		return v
	}
	onLoopback := f.LoopbackDevice != 0
	nonTCP := pod.Flags&PodNonTCP != 0 && (f.Proto == unix.IPPROTO_UDP || icmp(uint32(f.Proto)))
	switch {
	case f.EgressRule != 0, f.IngressRule != 0:
		return allow
	case out && onLoopback && f.Local != 0, !out && onLoopback:
		return allow
	case nonTCP && !(out && onLoopback):
		return allow
	case f.Fragment != 0:
		return denyFragment
	case out:
		return denyEgress
	}
	return denyIngress
}

func modelSteer(port uint16, outside, rule bool, pod *verdicts.Pod) verdicts.Steer {
	switch {
	case port == pod.Outbound && outside:
		return verdicts.SteerRefuse
	case port == pod.Outbound:
		return verdicts.SteerOutbound
	case outside && pod.Dns != 0 && port == pod.Dns:
		return verdicts.SteerRefuse
	case port == pod.Inbound:
		return verdicts.SteerInbound
	case !outside, rule, modelReserved(pod, port):
		return verdicts.SteerNone
	}
	return verdicts.SteerInbound
}

func modelGuard(c *verdicts.Case) bool {
	return c.HasSock != 0 && c.HasContainer != 0 && Role(c.Sock.Role) != RoleDead &&
		c.Sock.CgroupId == c.Container.CgroupId &&
		c.Sock.NetnsCookie == c.NetnsCookie && c.Container.NetnsCookie == c.NetnsCookie
}

// answer is what a function said: of each the part that it fills.
type answer struct {
	verdict
	yes   bool
	steer verdicts.Steer
}

// model runs a function of src/verdict.h by the name that verdicts.Run takes.
func model(name string, c *verdicts.Case) (a answer, known bool) {
	switch name {
	case "loopback":
		a.yes = modelLoopback(c.Addr.B)
	case "v4":
		a.yes = modelV4(c.Addr.B)
	case "reserved":
		a.yes = modelReserved(&c.Pod, c.Port)
	case "rule":
		a.yes = modelRule(&c.Rule, uint8(c.Proto), c.Port, c.Fragment != 0)
	case "socket":
		a.verdict = modelSocket(c.Role, c.Type, c.Proto, c.NonTcp != 0)
	case "connect":
		a.verdict = modelConnect(c.Role, &c.Flow, &c.Pod)
	case "bind":
		a.verdict = modelBind(c.Role, c.Port, &c.Pod)
	case "packet_out":
		a.verdict = modelPacket(c.Role, &c.Flow, &c.Pod, true)
	case "packet_in":
		a.verdict = modelPacket(c.Role, &c.Flow, &c.Pod, false)
	case "steer":
		a.steer = modelSteer(c.Port, c.FromOutside != 0, c.IngressRule != 0, &c.Pod)
	case "guard":
		a.yes = modelGuard(c)
	default:
		return a, false
	}
	return a, true
}
