// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"strings"
	"testing"
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

func TestNewRuleKey(t *testing.T) {
	for _, c := range []struct {
		dir    Dir
		prefix string
		bits   uint32
		table  Dir
	}{
		{DirEgress, "10.0.0.0/8", 96 + 96 + 8, DirEgress + 2},
		{DirIngress, "10.0.0.0/8", 96 + 96 + 8, DirIngress + 2},
		{DirEgress, "0.0.0.0/0", 96 + 96, DirEgress + 2},
		{DirEgress, "192.0.2.1/32", 96 + 128, DirEgress + 2},
		{DirEgress, "::/0", 96, DirEgress},
		{DirIngress, "2001:db8::/32", 96 + 32, DirIngress},
		{DirEgress, "2001:db8::1/128", 96 + 128, DirEgress},
	} {
		prefix := netip.MustParsePrefix(c.prefix)
		got := NewRuleKey(5, c.dir, prefix)
		want := RuleKey{Prefixlen: c.bits, Dir: c.table, NetnsCookie: 5, Addr: AddrFrom(prefix.Addr())}
		if got != want {
			t.Errorf("%s, direction %d: %+v, want %+v", c.prefix, c.dir, got, want)
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
