// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestJudgement(t *testing.T) {
	setups := []*setup{{name: control}, {name: "iptables", iptables: true}, {name: "sidegate", sidegate: true}, {name: "sidegate-user", sidegate: true}}
	cases := map[string]struct {
		escape escape
		states [4]state
		want   [4]state
		count  string
	}{
		"blocked":                 {escape{}, [4]state{open, open, blocked, blocked}, [4]state{open, open, blocked, blocked}, "escape: 1 blocked, 0 open, 0 errors"},
		"iptables does not count": {escape{}, [4]state{open, broken, blocked, blocked}, [4]state{open, broken, blocked, blocked}, "escape: 1 blocked, 0 open, 0 errors"},
		"open to one":             {escape{}, [4]state{open, open, blocked, open}, [4]state{open, open, blocked, open}, "escape: 0 blocked, 1 open, 0 errors"},
		"no control":              {escape{}, [4]state{blocked, blocked, blocked, blocked}, [4]state{broken, broken, broken, broken}, "escape: 0 blocked, 0 open, 1 errors"},
		"control in error":        {escape{}, [4]state{broken, open, open, open}, [4]state{broken, broken, broken, broken}, "escape: 0 blocked, 0 open, 1 errors"},
		"error":                   {escape{}, [4]state{open, open, broken, blocked}, [4]state{open, open, broken, blocked}, "escape: 0 blocked, 0 open, 1 errors"},
		"limit":                   {escape{limit: "why"}, [4]state{open, open, open, blocked}, [4]state{open, open, open, blocked}, "escape: 0 blocked, 0 open, 0 errors"},
		"limit that is none":      {escape{limit: "why"}, [4]state{open, open, blocked, blocked}, [4]state{open, open, blocked, blocked}, "escape: 1 blocked, 0 open, 0 errors"},
		"limit in error":          {escape{limit: "why"}, [4]state{open, open, open, broken}, [4]state{open, open, open, broken}, "escape: 0 blocked, 0 open, 1 errors"},
		"allowed":                 {escape{allowed: true}, [4]state{open, open, open, open}, [4]state{open, open, open, open}, "escape: 1 blocked, 0 open, 0 errors"},
		"allowed, but refused":    {escape{allowed: true}, [4]state{open, open, blocked, open}, [4]state{open, open, blocked, open}, "escape: 0 blocked, 1 open, 0 errors"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			e := c.escape
			e.name, e.group = name, "test"
			tries := map[string]map[string]try{}
			for i, s := range setups {
				tries[s.name] = map[string]try{name: {State: c.states[i]}}
			}
			r, err := newReport(setups, []*escape{&e}, tries)
			if err != nil {
				t.Fatal(err)
			}
			for i, s := range setups {
				if got := r.Cases[0].Tries[s.name].State; got != c.want[i] {
					t.Errorf("%s: %s, want %s", s.name, got, c.want[i])
				}
			}
			if r.String() != c.count {
				t.Errorf("%s, want %s", r, c.count)
			}
			if good := strings.HasPrefix(c.count, "escape: 1 blocked"); r.good() != good {
				t.Errorf("it is good: %t", r.good())
			}
		})
	}
}

// What another kernel could try takes the place of what this one could not, and nothing else.
func TestMerge(t *testing.T) {
	setups := []*setup{{name: control}, {name: "sidegate", sidegate: true}}
	cases := []*escape{{name: "here"}, {name: "there"}, {name: "nowhere"}}
	tried := func(here, there, nowhere [2]state) *report {
		tries := map[string]map[string]try{}
		for i, s := range setups {
			tries[s.name] = map[string]try{"here": {State: here[i]}, "there": {State: there[i]}, "nowhere": {State: nowhere[i]}}
		}
		r, err := newReport(setups, cases, tries)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	none := [2]state{blocked, blocked}
	r := tried([2]state{open, blocked}, none, none)
	if got := strings.Join(r.impossible(), " "); got != "there nowhere" {
		t.Errorf("impossible are %q", got)
	}
	other := tried(none, [2]state{open, blocked}, none)
	for _, c := range other.Cases {
		c.Kernel = "another"
	}
	r.merge(other)
	if r.String() != "escape: 2 blocked, 0 open, 1 errors" || r.Cases[0].Kernel == "another" || r.Cases[1].Kernel != "another" || r.Cases[2].Kernel != "another" {
		t.Errorf("%s, kernels %s, %s and %s", r, r.Cases[0].Kernel, r.Cases[1].Kernel, r.Cases[2].Kernel)
	}
	path := filepath.Join(t.TempDir(), "new", "r.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	again, err := readReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if again.markdown() != r.markdown() {
		t.Errorf("read again it is\n%s, it was\n%s", again.markdown(), r.markdown())
	}
}

func TestCases(t *testing.T) {
	seen := map[string]bool{}
	valid := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`) // names are selected by regular expressions
	doc, err := os.ReadFile("../../docs/escapes.md")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "| open, of |")
	summary, _, found := strings.Cut(rest, "\n\n")
	if !found || !strings.Contains(string(readme), summary) {
		t.Errorf("README.md has not the summary of docs/escapes.md: | open, of |%s", summary)
	}
	for _, c := range escapes() {
		if !valid.MatchString(c.name) || seen[c.name] {
			t.Errorf("%q is no name, or another's", c.name)
		}
		seen[c.name] = true
		if c.group == "" || c.what == "" || c.run == nil || c.pod.policy == "" {
			t.Errorf("%s: it is not whole: %+v", c.name, c)
		}
		if !strings.Contains(string(doc), "| "+c.name+" | "+c.what+" |") {
			t.Errorf("%s is not in docs/escapes.md as it is: run 'make escape'", c.name)
		}
		if c.limit != "" && !strings.Contains(string(doc), c.limit) {
			t.Errorf("the limit of %s is not in docs/escapes.md: run 'make escape'", c.name)
		}
	}
}

func TestHooks(t *testing.T) {
	for name, c := range map[string]struct {
		counted counts
		try     try
		want    string
	}{
		"redirected":                           {counts{"redirected": 1, "accepted_outbound": 1}, try{Detail: throughSidecar + ": x"}, "cgroup/connect4: redirected"},
		"redirected, IPv6":                     {counts{"redirected": 1}, try{Detail: throughSidecar, v6: true}, "cgroup/connect6: redirected"},
		"by another hook":                      {counts{"udp": 1, "redirected": 2}, said("sendto: operation not permitted", "EPERM"), "cgroup/sendmsg4: udp"},
		"by its packet":                        {counts{"udp": 1}, said("echo: poll: connection timed out", "ETIMEDOUT"), "cgroup_skb: udp"},
		"the guard alone":                      {counts{"unregistered": 1}, said("socket: operation not permitted", "EPERM"), "guard on the root cgroup, cgroup/sock_create: unregistered"},
		"the guard, of a socket of the kernel": {counts{"unregistered": 1}, said("set geneve up: operation not permitted", "EPERM"), "guard on the root cgroup: unregistered"},
		"the guard, as well":                   {counts{"unregistered": 1, "protocol": 1}, said("socket: x", "EPROTONOSUPPORT"), "cgroup/sock_create: protocol"},
		"the kernel":                           {counts{}, said("setsockopt SO_MARK: operation not permitted", "EPERM"), "the kernel: EPERM"},
		"not started":                          {counts{}, dead(os.ErrInvalid), "OCI hook at createRuntime"},
	} {
		if got := strings.Join(c.counted.hooks(&c.try), "; "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func said(text, errno string) try {
	t := blockedf("%s", text)
	t.said.Err, t.said.Errno = text, errno
	return t
}
