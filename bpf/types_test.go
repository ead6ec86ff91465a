// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"unsafe"
)

func TestAddrFrom(t *testing.T) {
	for in, want := range map[string][16]byte{
		"192.0.2.1":        {10: 0xff, 0xff, 192, 0, 2, 1},
		"::ffff:192.0.2.1": {10: 0xff, 0xff, 192, 0, 2, 1},
		"2001:db8::1":      {0x20, 0x01, 0x0d, 0xb8, 15: 1},
		"::":               {},
	} {
		if got := AddrFrom(netip.MustParseAddr(in)).B; got != want {
			t.Errorf("%s is %x, want %x", in, got, want)
		}
	}
}

func TestNewPrefixKey(t *testing.T) {
	for _, c := range []struct {
		prefix string
		bits   uint32
		ipv4   uint32
	}{
		{"10.0.0.0/8", 64 + 96 + 8, 1},
		{"0.0.0.0/0", 64 + 96, 1},
		{"192.0.2.1/32", 64 + 128, 1},
		{"::/0", 64, 0},
		{"2001:db8::/32", 64 + 32, 0},
		{"2001:db8::1/128", 64 + 128, 0},
	} {
		prefix := netip.MustParsePrefix(c.prefix)
		got := NewPrefixKey(5, prefix)
		want := PrefixKey{Prefixlen: c.bits, Revision: 5, Ipv4: c.ipv4, Addr: AddrFrom(prefix.Addr())}
		if got != want {
			t.Errorf("%s: %+v, want %+v", c.prefix, got, want)
		}
	}
}

func TestNewRuleKey(t *testing.T) {
	for _, c := range []struct {
		name string
		rule RuleFor
		bits uint32
		tail [4]byte // direction, protocol, port in network order
	}{
		{"one port", RuleFor{Proto: 6, Port: 443, PortBits: 16}, 128, [4]byte{0, 6, 0x01, 0xbb}},
		{"ports with a prefix in common", RuleFor{Proto: 17, Port: 0x8000, PortBits: 1, Dir: 1}, 113, [4]byte{1, 17, 0x80, 0}},
		{"twelve bits of a port", RuleFor{Proto: 6, Port: 0x1230, PortBits: 12}, 124, [4]byte{0, 6, 0x12, 0x30}},
		{"all ports", RuleFor{Proto: 6}, 112, [4]byte{0, 6}},
		{"one ICMP type", RuleFor{Proto: 1, Port: 8, PortBits: 16}, 128, [4]byte{0, 1, 0, 8}},
		{"protocol 0", RuleFor{}, 112, [4]byte{}},
		{"any protocol", RuleFor{AnyProto: true, Dir: 1}, 104, [4]byte{1}},
		{"any protocol, whatever else is said", RuleFor{AnyProto: true, Proto: 6, Port: 443, PortBits: 16}, 104, [4]byte{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.rule.Revision, c.rule.Subject, c.rule.Peer = 0x01020304, 0x80000005, 1024
			key := NewRuleKey(c.rule)
			if key.Prefixlen != c.bits {
				t.Errorf("%d bits, want %d", key.Prefixlen, c.bits)
			}
			// What the kernel compares, from its first bit on.
			want := binary.NativeEndian.AppendUint32(nil, c.rule.Revision)
			want = binary.NativeEndian.AppendUint32(want, c.rule.Subject)
			want = binary.NativeEndian.AppendUint32(want, c.rule.Peer)
			want = append(want, c.tail[:]...)
			b := unsafe.Slice((*byte)(unsafe.Pointer(&key)), unsafe.Sizeof(key))[unsafe.Offsetof(key.Revision):]
			if !bytes.Equal(b, want) {
				t.Errorf("the key is %x, want %x", b, want)
			}
		})
	}
}

// The numbers of bits are what the structs say.
func TestKeyBits(t *testing.T) {
	var p PrefixKey
	var r RuleKey
	for name, c := range map[string]struct{ got, want uintptr }{
		"of a prefix, before the address": {prefixBits, 8 * (unsafe.Offsetof(p.Addr) - unsafe.Offsetof(p.Revision))},
		"of a rule, before the protocol":  {ruleBits, 8 * (unsafe.Offsetof(r.Proto) - unsafe.Offsetof(r.Revision))},
		"of a rule, before the port":      {ruleProtoBits, 8 * (unsafe.Offsetof(r.Port) - unsafe.Offsetof(r.Revision))},
		"of a prefix":                     {prefixBits + 128, 8 * (unsafe.Sizeof(p) - unsafe.Sizeof(p.Prefixlen))},
		"of a rule":                       {ruleProtoBits + 16, 8 * (unsafe.Sizeof(r) - unsafe.Sizeof(r.Prefixlen))},
	} {
		if c.got != c.want {
			t.Errorf("bits %s: %d, want %d", name, c.got, c.want)
		}
	}
}

func TestCStrings(t *testing.T) {
	field := make([]byte, 8)
	for in, want := range map[string]string{
		"": "", "a": "a", "1234567": "1234567", "12345678": "1234567", "123456789": "1234567", "a\x00b": "a",
	} {
		copy(field, "xxxxxxxx")
		SetCString(field, in)
		if got := CString(field); got != want {
			t.Errorf("%q comes back as %q, want %q", in, got, want)
		}
		if field[7] != 0 {
			t.Errorf("%q leaves no zero at the end", in)
		}
	}
	if got := CString([]byte("full")); got != "full" {
		t.Errorf("a field without a zero is %q", got)
	}
	var info ContainerInfo
	SetCString(info.Id[:], strings.Repeat("f", 64)) // a runtime's id
	if got := CString(info.Id[:]); len(got) != NameLen || NameLen != 64 {
		t.Errorf("an id of 64 characters comes back with %d", len(got))
	}
}

func TestCountersAdd(t *testing.T) {
	var a, b Counters
	for i := range a.V {
		a.V[i], b.V[i] = uint64(i), 1000
	}
	a.Add(b)
	for i, got := range a.V {
		if got != uint64(i)+1000 {
			t.Errorf("counter %d is %d", i, got)
		}
	}
}
