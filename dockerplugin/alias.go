// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// What a restarted plugin knows of its devices it reads from their aliases
// (ip -d link): the kernel is the database.
const (
	aliasMark     = "sidegate-docker/1 "
	aliasNetwork  = aliasMark + "net"
	aliasEndpoint = aliasMark + "ep"
	aliasMax      = 255 // IFALIASZ without the NUL
)

// Docker's IDs are 32 bytes in hex. Other IDs are kept as they are, behind a
// mark that base64 does not have.
func packID(id string) string {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 32 || hex.EncodeToString(raw) != id {
		return "~" + id
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func unpackID(s string) (string, error) {
	if id, ok := strings.CutPrefix(s, "~"); ok {
		return id, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return "", fmt.Errorf("decode ID %q: %w", s, err)
	}
	return hex.EncodeToString(raw), nil
}

// escape makes s one printable word, and leaves most of what people write alone.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '%' || c == 0x7f {
			fmt.Fprintf(&b, "%%%02x", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func unescape(s string) (string, error) {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "%")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		if len(after) < 2 {
			return "", fmt.Errorf("decode %q: cut off", s)
		}
		c, err := strconv.ParseUint(after[:2], 16, 8)
		if err != nil {
			return "", fmt.Errorf("decode %q: %w", s, err)
		}
		b.WriteByte(byte(c))
		s = after[2:]
	}
}

// aliasWriter collects the fields of an alias that have a value.
type aliasWriter struct{ strings.Builder }

func (w *aliasWriter) add(key, value string) {
	if value != "" {
		w.WriteString(" " + key + "=" + escape(value))
	}
}

// parseAlias returns the fields of an alias. Fields that the caller does not
// know are a newer plugin's.
func parseAlias(kind, alias string) (map[string]string, error) {
	fields := make(map[string]string)
	for f := range strings.SplitSeq(strings.TrimPrefix(alias, kind), " ") { // not Fields: names may have other spaces
		k, v, _ := strings.Cut(f, "=")
		v, err := unescape(v)
		if err != nil {
			return nil, err
		}
		fields[k] = v
	}
	if fields["id"] == "" {
		return nil, fmt.Errorf("alias %q has no ID", alias)
	}
	id, err := unpackID(fields["id"])
	fields["id"] = id
	return fields, err
}

// isAlias tells whether a device's alias is one of ours.
func isAlias(kind, alias string) bool { return strings.HasPrefix(alias, kind+" ") }

// alias has its lengths bounded by its fields, but for IDs that are not Docker's.
func (n *network) alias() (string, error) {
	var w aliasWriter
	w.WriteString(aliasNetwork)
	w.add("id", packID(n.id))
	w.add("4", n.v4.String())
	w.add("6", n.v6.String())
	if n.mtu != 0 {
		w.add("mtu", strconv.Itoa(n.mtu))
	}
	if n.internal {
		w.add("internal", "1")
	}
	if n.nat {
		w.add("nat", "1")
	}
	if w.Len() > aliasMax {
		return "", fmt.Errorf("write alias of network %s: %d of %d bytes", short(n.id), w.Len(), aliasMax)
	}
	return w.String(), nil
}

func networkOfAlias(alias string) (*network, error) {
	f, err := parseAlias(aliasNetwork, alias)
	if err != nil {
		return nil, err
	}
	n := &network{id: f["id"], internal: f["internal"] != "", nat: f["nat"] != ""}
	if n.v4, err = parsePool(f["4"]); err != nil {
		return nil, err
	}
	if n.v6, err = parsePool(f["6"]); err != nil {
		return nil, err
	}
	if s := f["mtu"]; s != "" {
		if n.mtu, err = strconv.Atoi(s); err != nil {
			return nil, fmt.Errorf("parse MTU: %w", err)
		}
	}
	return n, nil
}

func (p pool) String() string {
	switch {
	case !p.subnet.IsValid():
		return ""
	case !p.gateway.IsValid():
		return p.subnet.String()
	}
	return p.subnet.String() + "," + p.gateway.String()
}

func parsePool(s string) (p pool, err error) {
	if s == "" {
		return p, nil
	}
	subnet, gateway, found := strings.Cut(s, ",")
	if p.subnet, err = netip.ParsePrefix(subnet); err != nil {
		return p, fmt.Errorf("parse subnet: %w", err)
	}
	if found {
		if p.gateway, err = netip.ParseAddr(gateway); err != nil {
			return p, fmt.Errorf("parse gateway: %w", err)
		}
	}
	return p, nil
}

func (e *endpoint) alias() (string, error) {
	var w aliasWriter
	w.WriteString(aliasEndpoint)
	w.add("id", packID(e.id))
	w.add("n", short(e.network))
	w.add("4", packPrefix(e.v4))
	w.add("6", packPrefix(e.v6))
	w.add("m", base64.RawURLEncoding.EncodeToString(e.mac))
	w.add("r", e.role)
	w.add("p", e.policy)
	w.add("o", e.pod)
	if w.Len() > aliasMax {
		return "", fmt.Errorf("write alias of endpoint %s: role, policy and pod are %d bytes too long: choose shorter names",
			short(e.id), w.Len()-aliasMax)
	}
	return w.String(), nil
}

// endpointOfAlias returns an endpoint with the short ID of its network.
func endpointOfAlias(alias string) (*endpoint, error) {
	f, err := parseAlias(aliasEndpoint, alias)
	if err != nil {
		return nil, err
	}
	e := &endpoint{id: f["id"], network: f["n"], role: f["r"], policy: f["p"], pod: f["o"]}
	if err := unpack(f["4"], &e.v4); err != nil {
		return nil, err
	}
	if err := unpack(f["6"], &e.v6); err != nil {
		return nil, err
	}
	if s := f["m"]; s != "" {
		mac, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return nil, fmt.Errorf("decode MAC: %w", err)
		}
		e.mac = net.HardwareAddr(mac)
	}
	return e, nil
}

func packPrefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	b, _ := p.MarshalBinary() // never an error
	return base64.RawURLEncoding.EncodeToString(b)
}

func unpack(s string, to encoding.BinaryUnmarshaler) error {
	if s == "" {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = to.UnmarshalBinary(b)
	}
	if err != nil {
		return fmt.Errorf("decode address %q: %w", s, err)
	}
	return nil
}
