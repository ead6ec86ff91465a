// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"math/rand/v2"
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
			if len(c.Entries) < 1000 {
				checkDecisions(t, p, c, dice{rand.New(rand.NewPCG(1, uint64(len(data))))}, 50)
			}
		}
	})
}

// FuzzCompile wants of any policy what [checkCompiled] does.
func FuzzCompile(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &tape{data}
		p := randomPolicy(d)
		checkCompiled(t, p, d)
	})
}

// FuzzDecide compares decisions with those of the naive reader of the policy.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &tape{data}
		p := randomPolicy(d)
		c, err := p.Compile()
		if err != nil {
			t.Fatalf("%v\n%+v", err, p)
		}
		checkDecisions(t, p, c, d, 1+len(d.data)/20)
	})
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// FuzzParseRequest wants no panic, and of whatever parses that it says the same when written again.
func FuzzParseRequest(f *testing.F) {
	f.Add("sidegate/role", "app", "sidegate/wait", "30s")
	f.Add("sidegate/policy", "web", "sidegate/pod", "shop")
	f.Add("sidegate/rule", "", "app", "web")
	f.Add("sidegate/ktls", "mount", "sidegate/role", "sidecar")
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
		if r.KTLS != KTLSUnset {
			out[KeyKTLS] = r.KTLS.String()
		}
		if again, err := ParseRequest(out); err != nil || again != r {
			t.Errorf("%q: %+v, again %+v, %v", in, r, again, err)
		}
		if _, err := RoleOf(Container{Name: v1, Request: r}, nil); err != nil {
			t.Error(err)
		}
	})
}
