// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tableName     = "sidegate-docker"
	chainOutput   = "output"
	publishPrefix = "publish " // of the comments that ports are read back from
)

// publish is one published port.
type publish struct {
	endpoint string
	proto    uint8
	hostIP   netip.Addr // invalid or unspecified: all of the family of to
	hostPort uint16
	to       netip.AddrPort
}

// comment is what the kernel keeps of p. People read it in nft list ruleset.
func (p publish) comment() string {
	host := ":" + strconv.Itoa(int(p.hostPort))
	if p.hostIP.IsValid() {
		host = netip.AddrPortFrom(p.hostIP, p.hostPort).String()
	}
	return publishPrefix + p.endpoint + " " + protoName(p.proto) + " " + host + " " + p.to.String()
}

func parsePublish(comment string) (p publish, err error) {
	f := strings.Fields(strings.TrimPrefix(comment, publishPrefix))
	if len(f) != 4 {
		return p, fmt.Errorf("parse published port %q: %d fields", comment, len(f))
	}
	p.endpoint = f[0]
	if p.proto, err = parseProto(f[1]); err != nil {
		return p, fmt.Errorf("parse published port %q: %w", comment, err)
	}
	if port, all := strings.CutPrefix(f[2], ":"); all {
		n, perr := strconv.ParseUint(port, 10, 16)
		p.hostPort, err = uint16(n), perr
	} else {
		host, perr := netip.ParseAddrPort(f[2])
		p.hostIP, p.hostPort, err = host.Addr(), host.Port(), perr
	}
	if err == nil {
		p.to, err = netip.ParseAddrPort(f[3])
	}
	if err != nil {
		return p, fmt.Errorf("parse published port %q: %w", comment, err)
	}
	return p, nil
}

func (p publish) check() error {
	switch {
	case p.endpoint == "" || strings.ContainsAny(p.endpoint, " \t\r\n\x00") || len(p.endpoint) > 64:
		return fmt.Errorf("publish a port: %q is no endpoint", p.endpoint)
	case !p.to.IsValid() || p.to.Port() == 0 || p.hostPort == 0:
		return fmt.Errorf("publish port %d of endpoint %s: no port or address", p.hostPort, short(p.endpoint))
	case p.hostIP.IsValid() && p.hostIP.Is4() != p.to.Addr().Is4():
		return fmt.Errorf("publish port %d of endpoint %s: %s and %s are of different families: publish on an address of the container's family",
			p.hostPort, short(p.endpoint), p.hostIP, p.to.Addr())
	}
	_, err := parseProto(protoName(p.proto))
	return err
}

// applyRules replaces our rules by those of the whole desired state, in one
// transaction. The caller has one request at a time.
func applyRules(networks []*network, ports []publish) error {
	for _, p := range ports {
		if err := p.check(); err != nil {
			return err
		}
	}
	old, err := listPublished()
	if err != nil {
		old = nil // what cannot be read is replaced
	}
	// A bridge routes 127.0.0.1 only as long as there are rules against misuse.
	if err := setRouteLocalnet(networks, ports, false); err != nil {
		return err
	}
	if err := writeTable(networks, ports); err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	if err := setRouteLocalnet(networks, ports, true); err != nil {
		return err
	}
	if err := dockerUser(true); err != nil {
		return err
	}
	return forgetFlows(old, ports)
}

// ruleset collects one transaction.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

// openTable buffers that our table is there, and empty.
func openTable() (*ruleset, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// The whole batch is one message, and each of its parts is acknowledged
		// before the first is read.
		const size = 32 << 20
		return errors.Join(c.SetWriteBuffer(size), c.SetReadBuffer(size))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	r := &ruleset{conn: conn, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	r.conn.AddTable(r.table) // so that there is one to delete
	r.conn.DelTable(r.table)
	return r, nil
}

func (r *ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: prio, Policy: &policy,
	})
}

func (r *ruleset) rule(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)}
	if comment != "" {
		rule.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	r.conn.AddRule(rule)
}

func writeTable(networks []*network, ports []publish) error {
	notDockers, err := bridgesNotDockers()
	if err != nil {
		return err
	}
	r, err := openTable()
	if err != nil {
		return err
	}
	r.conn.AddTable(r.table)
	r.guardLoopback()
	r.forward(networks, notDockers)
	r.publish(ports)
	r.masquerade(networks)
	return r.conn.Flush()
}

var loopback4 = netip.MustParsePrefix("127.0.0.0/8")

// guardLoopback keeps the containers from the host's 127.0.0.1, to which
// route_localnet opens a way. Replies to translated connections do not have it
// as their destination yet.
func (r *ruleset) guardLoopback() {
	c := r.chain("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	r.rule(c, "", ifname(expr.MetaKeyIIFNAME, bridgePrefix+"*"), addrIn(dst, loopback4), drop)
	r.rule(c, "", ifname(expr.MetaKeyIIFNAME, bridgePrefix+"*"), addrIn(src, loopback4), drop)
}

// forward separates the networks. That a packet is accepted here says nothing
// about the rules of others; that it is dropped is final.
func (r *ruleset) forward(networks []*network, notDockers []string) {
	c := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	in := func(name string) []expr.Any { return ifname(expr.MetaKeyIIFNAME, name) }
	out := func(name string) []expr.Any { return ifname(expr.MetaKeyOIFNAME, name) }
	for _, n := range networks { // within a bridge, with br_netfilter
		r.rule(c, "", in(n.bridge()), out(n.bridge()), accept)
	}
	for _, n := range networks {
		if n.internal {
			r.rule(c, "internal", in(n.bridge()), drop)
			r.rule(c, "internal", out(n.bridge()), drop)
		}
	}
	r.rule(c, "", ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	r.rule(c, "", ctStatusDNAT, accept)
	const ours = bridgePrefix + "*"
	r.rule(c, "isolation", in(ours), out(ours), drop)
	// Docker's rules would keep Docker's bridges apart from ours, but for what
	// dockerUser adds.
	docker := [][]string{{"docker0"}, append([]string{"br-*"}, notDockers...)}
	for _, names := range docker {
		var outs, ins []expr.Any
		for i, name := range names {
			match := ifname
			if i > 0 {
				match = notIfname
			}
			outs = append(outs, match(expr.MetaKeyOIFNAME, name)...)
			ins = append(ins, match(expr.MetaKeyIIFNAME, name)...)
		}
		r.rule(c, "isolation", in(ours), outs, drop)
		r.rule(c, "isolation", out(ours), ins, drop)
	}
	for _, n := range networks {
		if n.nat && !n.internal {
			// What is not translated would leave with an address that means
			// nothing outside, and reach ports that are not published.
			r.rule(c, "", in(n.bridge()), ctState(expr.CtStateBitINVALID), drop)
			r.rule(c, "not published", out(n.bridge()), drop)
		}
	}
}

// Docker's bridges have 12 digits of the network's ID in their names.
var dockerBridge = regexp.MustCompile("^br-[0-9a-f]{12}$")

// bridgesNotDockers are the devices br-* of others, such as br-lan. One that
// comes later is taken for Docker's until the rules are written again, and so
// is a network that Docker makes later.
func bridgesNotDockers() (names []string, err error) {
	links, err := dump(vnetlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "br-") && !dockerBridge.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// publish translates what goes to an address of the machine. ::1 cannot be a
// source outside of lo, so a port published on all addresses is not on ::1;
// 127.0.0.1 can, by route_localnet, but only from this machine.
func (r *ruleset) publish(ports []publish) {
	pre := r.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := r.chain(chainOutput, nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	r.rule(pre, "", fibNotLocal, accept)
	r.rule(pre, "", addrIn(dst, loopback4), accept)
	r.rule(out, "", fibNotLocal, accept)
	r.rule(out, "", addrIn(dst, netip.PrefixFrom(netip.IPv6Loopback(), 128)), accept)
	for _, p := range ports {
		match := nfproto(p.to.Addr())
		if p.hostIP.IsValid() && !p.hostIP.IsUnspecified() {
			match = addrIn(dst, netip.PrefixFrom(p.hostIP.WithZone(""), p.hostIP.BitLen()))
		}
		r.rule(pre, "", match, dport(p.proto, p.hostPort), dnat(p.to))
		r.rule(out, p.comment(), match, dport(p.proto, p.hostPort), dnat(p.to))
	}
}

func (r *ruleset) masquerade(networks []*network) {
	c := r.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, n := range networks {
		out := ifname(expr.MetaKeyOIFNAME, n.bridge())
		for _, p := range []pool{n.v4, n.v6} {
			if !p.subnet.IsValid() {
				continue
			}
			// Else the answer would not come back this way.
			r.rule(c, "hairpin", addrIn(src, p.subnet), out, ctStatusDNAT, masquerade)
			if p.subnet.Addr().Is4() {
				r.rule(c, "from 127.0.0.1", addrIn(src, loopback4), out, masquerade)
			}
			if n.nat && !n.internal {
				r.rule(c, "", addrIn(src, p.subnet), notIfname(expr.MetaKeyOIFNAME, n.bridge()), masquerade)
			}
		}
	}
}

// listPublished reads the published ports back, in the order of applyRules. It
// is nil if there is no table.
func listPublished() ([]publish, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	rules, err := conn.GetRules(table, &nftables.Chain{Name: chainOutput})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", tableName, err)
	}
	var ports []publish
	for _, rule := range rules {
		comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
		if !strings.HasPrefix(comment, publishPrefix) {
			continue
		}
		p, err := parsePublish(comment)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// deleteRules removes what applyRules made.
func deleteRules() error {
	networks, err := listNetworks()
	errs := []error{err, setRouteLocalnet(networks, nil, false)}
	if errors.Join(errs...) != nil {
		return errors.Join(errs...) // the rules guard an open way
	}
	r, err := openTable()
	if err == nil {
		err = r.conn.Flush()
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("delete nftables table %s: %w", tableName, err))
	}
	return errors.Join(append(errs, dockerUser(false))...)
}

// setRouteLocalnet lets packets of 127.0.0.1 out to the bridges that need it
// (on), or no more to those that do not.
func setRouteLocalnet(networks []*network, ports []publish, on bool) error {
	for _, n := range networks {
		need := slices.ContainsFunc(ports, func(p publish) bool {
			everywhere := !p.hostIP.IsValid() || p.hostIP.IsUnspecified() || p.hostIP.IsLoopback()
			return everywhere && n.v4.subnet.IsValid() && n.v4.subnet.Contains(p.to.Addr())
		})
		if need != on {
			continue
		}
		value := "0"
		if on {
			value = "1"
		}
		err := sysctl("ipv4/conf/"+n.bridge()+"/route_localnet", value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no bridge, no way
			return err
		}
	}
	return nil
}

// forgetFlows makes UDP's flows follow ports that are published anew, or no
// more: as long as packets come, the kernel keeps to what it decided once.
func forgetFlows(old, now []publish) error {
	var changed []publish
	for _, p := range old {
		if p.proto == unix.IPPROTO_UDP && !slices.Contains(now, p) {
			changed = append(changed, p)
		}
	}
	for _, p := range now {
		if p.proto == unix.IPPROTO_UDP && !slices.Contains(old, p) {
			changed = append(changed, p)
		}
	}
	for _, family := range []vnetlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		var filters []vnetlink.CustomConntrackFilter
		for _, p := range changed {
			if p.to.Addr().Is4() == (family == unix.AF_INET) {
				f := &vnetlink.ConntrackFilter{}
				err := errors.Join(f.AddProtocol(p.proto), f.AddPort(vnetlink.ConntrackOrigDstPort, p.hostPort))
				if err != nil {
					return fmt.Errorf("filter flows of UDP port %d: %w", p.hostPort, err)
				}
				if p.hostIP.IsValid() && !p.hostIP.IsUnspecified() {
					if err := f.AddIP(vnetlink.ConntrackOrigDstIP, p.hostIP.AsSlice()); err != nil {
						return fmt.Errorf("filter flows to %s: %w", p.hostIP, err)
					}
				}
				filters = append(filters, f)
			}
		}
		if len(filters) == 0 {
			continue
		}
		if _, err := vnetlink.ConntrackDeleteFilters(vnetlink.ConntrackTable, family, filters...); err != nil {
			return fmt.Errorf("forget flows of UDP ports: %w", err)
		}
	}
	return nil
}

// dockerUserComment marks our rules in chains that are Docker's.
const dockerUserComment = tableName

// dockerUser adds (on) or removes our rules in the chain that dockerd leaves to
// people, since its own rules end in dropping what they do not know. They come
// after people's own ones and are made as iptables-nft makes them, which can
// then still list and change the chain.
func dockerUser(on bool) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Name: "filter", Family: family}
		chain := &nftables.Chain{Name: "DOCKER-USER", Table: table}
		rules, err := conn.GetRules(table, chain)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = editDockerUser(conn, chain, rules, on)
		}
		// dockerd may have removed the chain meanwhile.
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("change rules of chain DOCKER-USER: %w", err)
		}
	}
	return nil
}

func editDockerUser(conn *nftables.Conn, chain *nftables.Chain, rules []*nftables.Rule, on bool) error {
	keys := []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME}
	var end *nftables.Rule // which returns all, so that nothing after it counts
	count := 0             // of our rules before the end
	var ours []*nftables.Rule
	for _, rule := range rules {
		if comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment); comment == dockerUserComment {
			ours = append(ours, rule)
			if end == nil {
				count++
			}
		} else if end == nil && returnsAll(rule) {
			end = rule
		}
	}
	if on && count == len(keys) && len(ours) == len(keys) {
		return nil
	}
	for _, rule := range ours {
		rule.Table, rule.Chain = chain.Table, chain
		if err := conn.DelRule(rule); err != nil {
			return err
		}
	}
	for _, key := range keys {
		if !on {
			continue
		}
		rule := &nftables.Rule{
			Table: chain.Table, Chain: chain,
			Exprs:    slices.Concat(ifname(key, bridgePrefix+"*"), []expr.Any{&expr.Counter{}}, accept),
			UserData: userdata.AppendString(nil, userdata.TypeComment, dockerUserComment),
		}
		if end != nil {
			rule.Position = end.Handle
			conn.InsertRule(rule)
		} else {
			conn.AddRule(rule)
		}
	}
	return conn.Flush()
}

// returnsAll tells whether a rule has no condition and returns.
func returnsAll(rule *nftables.Rule) bool {
	returns := false
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			returns = e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return returns
}

// The parts of rules. A part without a register of its own uses the first.
const reg = 1

var (
	accept     = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop       = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade = []expr.Any{&expr.Masq{}}

	// ctStatusDNAT: the connection's destination was translated (IPS_DST_NAT).
	ctStatusDNAT = ctBits(expr.CtKeySTATUS, 1<<5)

	// fibNotLocal: the destination is not an address of this machine.
	fibNotLocal = []expr.Any{
		&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
)

func meta(key expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: reg}} }

// ifname matches a device's name, or with * at the end how it begins.
func ifname(key expr.MetaKey, name string) []expr.Any {
	return append(meta(key), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: ifnameData(name)})
}

func notIfname(key expr.MetaKey, name string) []expr.Any {
	return append(meta(key), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: ifnameData(name)})
}

func ifnameData(name string) []byte {
	if start, ok := strings.CutSuffix(name, "*"); ok {
		return []byte(start)
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return data
}

func ctState(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits) }

// ctBits matches if any of the bits is set.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func nfproto(addr netip.Addr) []expr.Any {
	family := byte(unix.NFPROTO_IPV6)
	if addr.Is4() {
		family = unix.NFPROTO_IPV4
	}
	return append(meta(expr.MetaKeyNFPROTO), &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{family}})
}

// side is where IPv4 and IPv6 headers have an address.
type side struct{ v4, v6 uint32 }

var (
	src = side{12, 8}
	dst = side{16, 24}
)

// addrIn matches an address in subnet.
func addrIn(at side, subnet netip.Prefix) []expr.Any {
	addr := subnet.Masked().Addr()
	offset, size := at.v6, uint32(16)
	if addr.Is4() {
		offset, size = at.v4, 4
	}
	parts := append(nfproto(addr),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if !subnet.IsSingleIP() {
		parts = append(parts, &expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: size, Mask: ipNet(subnet).Mask, Xor: make([]byte, size),
		})
	}
	return append(parts, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: addr.AsSlice()})
}

// dport matches a destination port, which all three protocols have in one place.
func dport(proto uint8, port uint16) []expr.Any {
	return append(meta(expr.MetaKeyL4PROTO),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{proto}},
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.BigEndian.PutUint16(port)},
	)
}

func dnat(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV6)
	if to.Addr().Is4() {
		family = unix.NFPROTO_IPV4
	}
	const portReg = 2
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: portReg, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: reg, RegProtoMin: portReg, Specified: true},
	}
}
