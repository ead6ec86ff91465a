// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An escape is one way around a sidecar.
type escape struct {
	name  string // short and stable
	group string
	what  string // what the attacker does, in a line
	pod   podKind
	run   func(context.Context, *stage) (try, error)
	// last leaves the world as it must not be.
	last bool
	// limit says why Sidegate does not block it, and what the operator can do. Empty: it has to.
	limit string
	// allowed is none: it has to work, in all set-ups.
	allowed bool
}

// A row is a case with what became of it.
type row struct {
	Name    string         `json:"name"`
	Group   string         `json:"group"`
	What    string         `json:"what"`
	Limit   string         `json:"limit,omitempty"`
	Allowed bool           `json:"allowed,omitempty"` // it has to work
	Kernel  string         `json:"kernel"`            // on which it was tried
	Tries   map[string]try `json:"setups"`
}

// A column is a set-up.
type column struct {
	Name     string `json:"name"`
	Title    string `json:"title"`
	Sidegate bool   `json:"sidegate"`
}

// A report is the result of a run.
type report struct {
	Setups  []column `json:"setups"`
	Blocked int      `json:"blocked"` // cases that Sidegate blocks in all of its set-ups
	Open    int      `json:"open"`    // that it does not
	Errors  int      `json:"errors"`  // of which nothing is known
	Limits  int      `json:"limits"`  // that it is known not to block, in none of the above
	Cases   []*row   `json:"cases"`
}

// newReport judges: what does not work without enforcement proves nothing elsewhere.
func newReport(setups []*setup, cases []*escape, tries map[string]map[string]try) (*report, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, os.NewSyscallError("uname", err)
	}
	r := &report{}
	for _, s := range setups {
		r.Setups = append(r.Setups, column{s.name, s.title, s.sidegate})
	}
	for _, c := range cases {
		one := &row{
			Name: c.name, Group: c.group, What: c.what, Limit: c.limit, Allowed: c.allowed,
			Kernel: unix.ByteSliceToString(uts.Release[:]), Tries: map[string]try{},
		}
		base := tries[control][c.name]
		for _, s := range setups {
			t := tries[s.name][c.name]
			if base.State != open && s.name != control {
				t = try{State: broken, Detail: "no control: without enforcement: " + base.Detail}
			}
			if s.name == control && t.State == blocked {
				t.State, t.Detail = broken, "does not work without enforcement: "+t.Detail
			}
			one.Tries[s.name] = t
		}
		r.Cases = append(r.Cases, one)
	}
	r.count()
	return r, nil
}

func readReport(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// impossible are the cases that do not work here without enforcement: perhaps this kernel lacks what they need.
func (r *report) impossible() (names []string) {
	for _, c := range r.Cases {
		if c.Tries[control].State == broken {
			names = append(names, c.Name)
		}
	}
	return names
}

// merge takes over the impossible cases from another kernel: where it could not make one either, what went wrong there.
func (r *report) merge(other *report) {
	for _, theirs := range other.Cases {
		i := slices.IndexFunc(r.Cases, func(c *row) bool { return c.Name == theirs.Name })
		if i >= 0 && r.Cases[i].Tries[control].State == broken {
			r.Cases[i] = theirs
		}
	}
	r.count()
}

// count counts cases by what Sidegate does to them.
func (r *report) count() {
	r.Blocked, r.Open, r.Errors, r.Limits = 0, 0, 0, 0
	for _, c := range r.Cases {
		var states []state
		for _, s := range r.Setups {
			if s.Sidegate || s.Name == control {
				states = append(states, c.Tries[s.Name].State)
			}
		}
		if len(states) < 2 {
			continue // the control alone
		}
		escaped := slices.Contains(states[1:], open)
		if c.Allowed {
			escaped = slices.Contains(states[1:], blocked)
		}
		switch {
		case slices.Contains(states, broken):
			r.Errors++
		case c.Limit != "" && escaped:
			r.Limits++
		case escaped:
			r.Open++
		default:
			r.Blocked++
		}
	}
}

// good tells whether all cases were tried and Sidegate blocks all that it has to.
func (r *report) good() bool { return r.Open == 0 && r.Errors == 0 && r.Blocked > 0 }

func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// print writes the table, and what a person has to look at.
func (r *report) print(w io.Writer, took time.Duration) {
	name, what := 0, 0
	for _, c := range r.Cases {
		name, what = max(name, len(c.Name)), max(what, len(c.What))
	}
	line := func(first, second string, cell func(column) string) {
		fmt.Fprintf(w, "%-*s  %-*s", name, first, what, second)
		for _, s := range r.Setups {
			fmt.Fprintf(w, "  %-*s", len(s.Name), cell(s))
		}
		fmt.Fprintln(w)
	}
	group := ""
	for _, c := range r.Cases {
		if c.Group != group {
			group = c.Group
			fmt.Fprintln(w)
			line(strings.ToUpper(group), "", func(s column) string { return s.Name })
		}
		line(c.Name, c.What, func(s column) string { return string(c.Tries[s.Name].State) })
	}
	var notes []string
	for _, c := range r.Cases {
		for _, s := range r.Setups {
			t := c.Tries[s.Name]
			switch {
			case t.State == broken, s.Sidegate && t.State == open && c.Limit == "" && !c.Allowed, s.Sidegate && t.State == blocked && c.Allowed:
				notes = append(notes, fmt.Sprintf("%s, %s: %s: %s", c.Name, s.Name, t.State, t.Detail))
			}
		}
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	}
	for _, c := range r.Cases {
		if c.Limit != "" {
			fmt.Fprintf(w, "\nlimit: %s: %s\n", c.Name, c.Limit)
		}
	}
	fmt.Fprintf(w, "\n%d documented limits; %s\n%s\n", r.Limits, took.Round(time.Second), r)
}

// summary is a table of how many cases of each group are open.
func (r *report) summary() string {
	var b strings.Builder
	b.WriteString("| open, of | cases |")
	for _, s := range r.Setups {
		fmt.Fprintf(&b, " %s |", s.Name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(r.Setups)+1) + "\n")
	var groups []string
	cases, opened := map[string]int{}, map[string]map[string]int{}
	for _, c := range r.Cases {
		if c.Allowed {
			continue
		}
		if cases[c.Group] == 0 {
			groups, opened[c.Group] = append(groups, c.Group), map[string]int{}
		}
		cases[c.Group]++
		for name, t := range c.Tries {
			if t.State == open {
				opened[c.Group][name]++
			}
		}
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "| %s | %d |", g, cases[g])
		for _, s := range r.Setups {
			fmt.Fprintf(&b, " %d |", opened[g][s.Name])
		}
		b.WriteString("\n")
	}
	return b.String()
}

// markdown is the table for people who read it on a page.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Every known way around a sidecar, tried\n\nMade by `make escape`: %s. %d documented limits.\n\n", r, r.Limits)
	b.WriteString("Each case is an attack by a static binary in containers of a real podman pod. It is *open* if a byte arrived at the outside\n" +
		"host, at the app, or at a peer that is forbidden, and did not go through the sidecar; what does not work without enforcement\n" +
		"proves nothing and is an *error*. The last column has what of Sidegate refused or redirected it, as the kernel calls the\n" +
		"hooks, with the reason that it counted; behind \"the kernel\" is an error that needs no Sidegate. A socket\n" +
		"cannot be opened through /proc/PID/fd on any kernel (ENXIO); what leads somewhere there is /proc/PID/root.\n\n")
	for _, s := range r.Setups {
		fmt.Fprintf(&b, "- **%s**: %s\n", s.Name, s.Title)
	}
	b.WriteString("\n" + r.summary())
	group := ""
	for _, c := range r.Cases {
		if c.Group != group {
			group = c.Group
			fmt.Fprintf(&b, "\n## %s\n\n| case | the attacker |", group)
			for _, s := range r.Setups {
				fmt.Fprintf(&b, " %s |", s.Name)
			}
			b.WriteString(" by |\n|---|---|" + strings.Repeat("---|", len(r.Setups)+1) + "\n")
		}
		fmt.Fprintf(&b, "| %s | %s |", c.Name, c.What)
		var by []string
		for _, s := range r.Setups {
			t := c.Tries[s.Name]
			cell := string(t.State)
			switch {
			case c.Allowed && t.State == open:
				cell = "works"
			case t.State == open && s.Sidegate:
				cell = "**open**, [limit](#limits-1)"
			case t.State == open:
				cell = "**open**"
			}
			fmt.Fprintf(&b, " %s |", cell)
			if s.Sidegate && len(by) == 0 {
				by = t.Hooks
			}
		}
		fmt.Fprintf(&b, " %s |\n", strings.Join(by, "; "))
	}
	b.WriteString("\n## Limits\n\nWhat Sidegate does not block, why, and what an operator can do.\n\n")
	for _, c := range r.Cases {
		if c.Limit != "" {
			fmt.Fprintf(&b, "- **%s** (%s): %s.\n", c.Name, c.What, c.Limit)
		}
	}
	kernels := map[string][]string{}
	for _, c := range r.Cases {
		kernels[c.Kernel] = append(kernels[c.Kernel], c.Name)
	}
	most := ""
	for k := range kernels {
		if len(kernels[k]) > len(kernels[most]) {
			most = k
		}
	}
	version, _, _ := strings.Cut(most, "-")
	fmt.Fprintf(&b, "\nKernel: %s", version)
	for _, k := range slices.Sorted(maps.Keys(kernels)) {
		if k != most {
			fmt.Fprintf(&b, "; in a VM with Debian's %s, since that one lacks what they need: %s", k, strings.Join(kernels[k], ", "))
		}
	}
	b.WriteString(".\n")
	return b.String()
}

func (r *report) String() string {
	return fmt.Sprintf("escape: %d blocked, %d open, %d errors", r.Blocked, r.Open, r.Errors)
}
