// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzParse wants no panic, errors in one line each with a place in the file, and of whatever parses that it
// compiles, survives a round trip, and that its tables mean what its rules say.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/errors/*.yaml", "testdata/compile/*.yaml", "../contrib/examples/*.yaml"} {
		for _, name := range files(f, pattern) {
			f.Add(read(f, name))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ps, err := Parse("f", data)
		if err != nil {
			if len(ps) > 0 {
				t.Fatal("policies and an error")
			}
			joined, ok := err.(interface{ Unwrap() []error })
			if !ok {
				t.Fatalf("%T", err)
			}
			for _, e := range joined.Unwrap() {
				if text := e.Error(); strings.Contains(text, "\n") || !utf8.ValidString(text) {
					t.Errorf("%q", text)
				}
				var pe *Error
				if errors.As(e, &pe) && utf8.Valid(data) {
					checkPosition(t, data, e)
				}
			}
			return
		}
		if len(ps) == 0 {
			t.Fatal("neither a policy nor an error")
		}
		for _, p := range ps {
			c := roundTrip(t, p)
			checkRules(t, p.Spec.Exclude.Egress, c.Egress)
			checkRules(t, p.Spec.Exclude.Ingress, c.Ingress)
		}
	})
}

// checkRules compares the longest match in the compiled rules with a walk over the written ones, at the corners.
func checkRules(t *testing.T, written []Exclusion, compiled []Rule) {
	t.Helper()
	if len(written) > 20 {
		return
	}
	for _, at := range compiled {
		addr := at.Prefix.Addr()
		for _, port := range []uint16{at.Ports.First - 1, at.Ports.First, at.Ports.Last, at.Ports.Last + 1} {
			for _, proto := range []Proto{ProtoTCP, ProtoUDP} {
				if port != 0 && writtenAllows(written, addr, proto, port) != compiledAllows(compiled, addr, proto, port) {
					t.Errorf("%s %s %d: written and compiled rules differ", addr, proto, port)
				}
			}
		}
	}
}

func writtenAllows(rules []Exclusion, addr netip.Addr, proto Proto, port uint16) bool {
	for _, r := range rules {
		if r.CIDR != "" && !netip.MustParsePrefix(r.CIDR).Contains(addr) {
			continue
		}
		if r.Protocol != ProtoAny && r.Protocol != proto {
			continue
		}
		if len(r.Ports) == 0 {
			return true
		}
		for _, p := range r.Ports {
			if p.Contains(port) {
				return true
			}
		}
	}
	return false
}

func compiledAllows(rules []Rule, addr netip.Addr, proto Proto, port uint16) bool {
	longest, allows := -1, false
	for _, r := range rules {
		if !r.Prefix.Contains(addr) || r.Prefix.Bits() < longest {
			continue
		}
		if r.Prefix.Bits() > longest {
			longest, allows = r.Prefix.Bits(), false
		}
		allows = allows || (r.Proto == ProtoAny || r.Proto == proto) && r.Ports.Contains(port)
	}
	return allows
}

// FuzzParseRequest wants no panic, and of whatever parses that it says the same when written again.
func FuzzParseRequest(f *testing.F) {
	f.Add("sidegate/role", "app", "sidegate/wait", "30s")
	f.Add("sidegate/policy", "web", "sidegate/pod", "shop")
	f.Add("sidegate/rule", "", "app", "web")
	f.Add("sidegate/wait", "-1h", "sidegate/role", "none")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		in := map[string]string{k1: v1, k2: v2}
		r, err := ParseRequest(in)
		if err != nil {
			if r != (Request{}) || !utf8.ValidString(err.Error()) {
				t.Errorf("%+v, %q", r, err)
			}
			return
		}
		managed := strings.HasPrefix(k1, keyPrefix) || strings.HasPrefix(k2, keyPrefix)
		if r.Managed != managed || r.Wait < 0 || r.Wait > MaxWait {
			t.Errorf("%q: %+v", in, r)
		}
		out := map[string]string{}
		if r.Role != RoleUnset {
			out[KeyRole] = r.Role.String()
		}
		if r.Policy != "" {
			out[KeyPolicy] = r.Policy
		}
		if r.Pod != "" {
			out[KeyPod] = r.Pod
		}
		if _, has := in[KeyWait]; has {
			out[KeyWait] = r.Wait.String()
		}
		if again, err := ParseRequest(out); err != nil || again != r {
			t.Errorf("%q: %+v, again %+v, %v", in, r, again, err)
		}
		if _, err := RoleOf(Container{Name: v1, Request: r}, nil); err != nil {
			t.Error(err)
		}
	})
}
