// SPDX-License-Identifier: Apache-2.0

package seccomp

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func parse(t testing.TB, text string) *specs.LinuxSeccomp {
	t.Helper()
	var s *specs.LinuxSeccomp
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

const (
	denies = `"defaultAction":"SCMP_ACT_ERRNO"`
	allows = `"defaultAction":"SCMP_ACT_ALLOW"`
	kills  = `"defaultAction":"SCMP_ACT_KILL_PROCESS"`
	ours   = `{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22}`
)

func TestMerge(t *testing.T) {
	for name, tt := range map[string]struct {
		in, want string
		change   Change
		why      string // part of what Covers says of in, "" if it is covered
		after    string // the same of want
	}{
		"in a list that is allowed": {
			in:     `{` + denies + `,"architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read","splice","tee"],"action":"SCMP_ACT_ALLOW"}]}`,
			want:   `{` + denies + `,"architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[` + ours + `,{"names":["read","tee"],"action":"SCMP_ACT_ALLOW"}]}`,
			change: Rule, why: "allows splice(2)",
		},
		"allowed alone, and twice": {
			in:     `{` + denies + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ALLOW"},{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["splice","splice"],"action":"SCMP_ACT_LOG"}]}`,
			want:   `{` + denies + `,"syscalls":[` + ours + `,{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
			change: Rule, why: "allows splice(2)",
		},
		"by default": {
			in:     `{` + allows + `,"syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}`,
			want:   `{` + allows + `,"syscalls":[` + ours + `,{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}`,
			change: Rule, why: "allows splice(2)",
		},
		"no rules": {in: `{` + allows + `}`, want: `{` + allows + `,"syscalls":[` + ours + `]}`, change: Rule, why: "allows splice(2)"},
		"denied by default": {
			in:     `{` + denies + `,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
			want:   `{` + denies + `,"syscalls":[` + ours + `,{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
			change: Rule, why: "answers splice(2) by errno 1",
		},
		"denied by default with another errno": {
			in:     `{` + denies + `,"defaultErrnoRet":38}`,
			want:   `{` + denies + `,"defaultErrnoRet":38,"syscalls":[` + ours + `]}`,
			change: Rule, why: "by errno 38",
		},
		"denied by a rule": {
			in:     `{` + allows + `,"syscalls":[{"names":["splice","mount"],"action":"SCMP_ACT_ERRNO"}]}`,
			want:   `{` + allows + `,"syscalls":[` + ours + `,{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}`,
			change: Rule, why: "by errno 1",
		},
		"answered by nothing": {
			in:     `{` + allows + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":0}]}`,
			want:   `{` + allows + `,"syscalls":[` + ours + `]}`,
			change: Rule, why: "by errno 0",
		},
		"some allowed": {
			in:     `{` + denies + `,"syscalls":[{"names":["splice","tee"],"action":"SCMP_ACT_ALLOW","args":[{"index":4,"value":4096,"op":"SCMP_CMP_LE"}]}]}`,
			want:   `{` + denies + `,"syscalls":[` + ours + `,{"names":["tee"],"action":"SCMP_ACT_ALLOW","args":[{"index":4,"value":4096,"op":"SCMP_CMP_LE"}]}]}`,
			change: Rule, why: "allows splice(2) with some arguments",
		},
		"some denied": {
			in:     `{` + allows + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22,"args":[{"index":4,"value":4096,"op":"SCMP_CMP_LE"}]}]}`,
			want:   `{` + allows + `,"syscalls":[` + ours + `]}`,
			change: Rule, why: "allows splice(2) with some arguments",
		},
		"asked elsewhere": {
			in:     `{` + denies + `,"listenerPath":"/run/l","listenerMetadata":"m","syscalls":[{"names":["splice","mount"],"action":"SCMP_ACT_NOTIFY"}]}`,
			want:   `{` + denies + `,"listenerPath":"/run/l","listenerMetadata":"m","syscalls":[` + ours + `,{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}`,
			change: Rule, why: "lets another process decide",
		},
		"there already":           {in: `{` + allows + `,"syscalls":[` + ours + `]}`, change: Nothing},
		"there, behind another":   {in: `{` + allows + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ALLOW"},` + ours + `]}`, change: Nothing + Rule, why: "allows", want: `{` + allows + `,"syscalls":[` + ours + `]}`},
		"the default":             {in: `{` + denies + `,"defaultErrnoRet":22}`, change: Nothing},
		"killed":                  {in: `{` + allows + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_KILL"}]}`, change: Nothing},
		"trapped":                 {in: `{` + denies + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_TRAP"}]}`, change: Nothing},
		"killed by default":       {in: `{` + kills + `,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`, change: Nothing},
		"some EINVAL, else kills": {in: `{` + kills + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22,"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`, change: Nothing},
		"allowed, else kills": {
			in:     `{` + kills + `,"syscalls":[{"names":["read","splice"],"action":"SCMP_ACT_ALLOW"}]}`,
			want:   `{` + kills + `,"syscalls":[` + ours + `,{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`,
			change: Rule, why: "allows",
		},
		"some allowed, else kills": {
			in:     `{` + kills + `,"syscalls":[{"names":["read","splice"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
			want:   `{` + kills + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22,"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
			change: Rule, why: "kills for splice(2) with some arguments",
		},
		"some killed": {
			in:     `{` + allows + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`,
			change: Refused, why: "kills for splice(2) with some arguments", after: "kills for splice(2) with some arguments",
		},
		"killed and allowed": {
			in:     `{` + denies + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ALLOW"},{"names":["splice"],"action":"SCMP_ACT_KILL"}]}`,
			change: Refused, why: "kills for", after: "kills for",
		},
		"unknown": {in: `{` + denies + `,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ASK"}]}`, change: Refused, why: "not known", after: "SCMP_ACT_ASK"},
	} {
		in := parse(t, tt.in)
		if tt.want == "" {
			tt.want = tt.in
		}
		if ok, why := Covers(in); ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: before: %v, %s", name, ok, why)
		}
		got, change := Merge(in)
		if want := parse(t, tt.want); !reflect.DeepEqual(got, want) || change != tt.change {
			text, _ := json.Marshal(got)
			t.Errorf("%s: %d, %s, want %d, %s", name, change, text, tt.change, tt.want)
		}
		if !reflect.DeepEqual(in, parse(t, tt.in)) {
			t.Errorf("%s: the profile itself was changed", name)
		}
		if ok, why := Covers(got); ok != (tt.after == "") || !strings.Contains(why, tt.after) {
			t.Errorf("%s: after: %v, %s", name, ok, why)
		}
		if again, change := Merge(got); change != Nothing && change != Refused || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: merged again: %d", name, change)
		}
	}
}

// A container without a filter gets one that lets through all else, of all architectures of the machine.
func TestMergeNothing(t *testing.T) {
	for _, none := range []*specs.LinuxSeccomp{nil, {}} {
		got, change := Merge(none)
		if architectures("amd64") == nil || change != Profile || got.DefaultAction != specs.ActAllow || len(got.Syscalls) != 1 || len(got.Architectures) < 2 {
			t.Errorf("%d, %+v", change, got)
		}
		if ok, why := Covers(none); ok || !strings.Contains(why, "no seccomp profile") {
			t.Errorf("%v, %s", ok, why)
		}
	}
	if architectures("vax") != nil {
		t.Error("a machine that is not known has architectures")
	}
}

func TestDeniesIOUring(t *testing.T) {
	for in, want := range map[string]bool{
		`null`:             false,
		`{` + allows + `}`: false,
		`{` + denies + `}`: true,
		`{` + kills + `}`:  true,
		`{` + denies + `,"syscalls":[{"names":["io_uring_setup"],"action":"SCMP_ACT_ALLOW"}]}`:                                                   false,
		`{` + denies + `,"syscalls":[{"names":["io_uring_setup"],"action":"SCMP_ACT_TRACE","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`: false,
		`{` + allows + `,"syscalls":[{"names":["io_uring_setup"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`:                                     true,
		`{` + allows + `,"syscalls":[{"names":["io_uring_setup"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}`: false,
		`{` + allows + `,"syscalls":[{"names":["io_uring_enter"],"action":"SCMP_ACT_ERRNO"}]}`:                                                   false,
	} {
		if got := DeniesIOUring(parse(t, in)); got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
}

// evaluate is what runc and libseccomp do with one system call: what may come of it, in any order where their order of
// rules with args is not said. It is written from their sources and shares nothing with judge but the words.
func evaluate(s *specs.LinuxSeccomp, name string, args [6]uint64) []outcome {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return []outcome{{action: specs.ActAllow}}
	}
	fallback := outcomeOf(s.DefaultAction, s.DefaultErrnoRet)
	var matched []outcome
	for _, rule := range s.Syscalls {
		for _, one := range rule.Names {
			o := outcomeOf(rule.Action, rule.ErrnoRet)
			if one != name || o == fallback {
				continue
			}
			if len(rule.Args) == 0 {
				return []outcome{o} // what came with args is forgotten, what comes is not added
			}
			if matches(rule.Args, args) {
				matched = append(matched, o)
			}
		}
	}
	if len(matched) == 0 {
		return []outcome{fallback}
	}
	return matched
}

// matches: conditions on different arguments have all to hold; of two on one argument, runc makes rules of their own.
func matches(conditions []specs.LinuxSeccompArg, args [6]uint64) bool {
	seen := map[uint]bool{}
	each := false
	for _, c := range conditions {
		each = each || seen[c.Index]
		seen[c.Index] = true
	}
	holds := func(c specs.LinuxSeccompArg) bool {
		v := args[c.Index%6]
		switch c.Op {
		case specs.OpNotEqual:
			return v != c.Value
		case specs.OpLessThan:
			return v < c.Value
		case specs.OpLessEqual:
			return v <= c.Value
		case specs.OpEqualTo:
			return v == c.Value
		case specs.OpGreaterEqual:
			return v >= c.Value
		case specs.OpGreaterThan:
			return v > c.Value
		case specs.OpMaskedEqual:
			return v&c.Value == c.ValueTwo
		}
		return false
	}
	if each {
		return slices.ContainsFunc(conditions, holds)
	}
	return !slices.ContainsFunc(conditions, func(c specs.LinuxSeccompArg) bool { return !holds(c) })
}

// strictness is the order in which the kernel prefers return values of filters (seccomp(2)).
func strictness(o outcome) int {
	action := o.action
	if action == specs.ActKill {
		action = specs.ActKillThread
	}
	return slices.Index([]specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActLog, specs.ActTrace, specs.ActNotify, specs.ActErrno, specs.ActTrap, specs.ActKillThread, specs.ActKillProcess,
	}, action)
}

// profile makes one of random bytes: few names, actions and values, so that rules meet.
func profile(b []byte) (s *specs.LinuxSeccomp, left []byte) {
	next := func(n int) int {
		if len(b) == 0 {
			return 0
		}
		v := int(b[0]) % n
		b = b[1:]
		return v
	}
	actions := []specs.LinuxSeccompAction{
		specs.ActErrno, specs.ActAllow, specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActNotify,
	}
	errno := func() *uint {
		list := []uint{eperm, einval, 38, 0}
		if i := next(5); i < len(list) {
			return &list[i]
		}
		return nil
	}
	ops := []specs.LinuxSeccompOperator{
		specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual,
	}
	names := []string{splice, "read", ioUringSetup, "tee"}
	s = &specs.LinuxSeccomp{DefaultAction: actions[next(len(actions))], DefaultErrnoRet: errno()}
	for range next(6) {
		rule := specs.LinuxSyscall{Action: actions[next(len(actions))], ErrnoRet: errno()}
		for range 1 + next(3) {
			rule.Names = append(rule.Names, names[next(len(names))])
		}
		for range next(3) {
			rule.Args = append(rule.Args, specs.LinuxSeccompArg{
				Index: uint(next(2)), Value: uint64(next(3)), ValueTwo: uint64(next(3)), Op: ops[next(len(ops))],
			})
		}
		s.Syscalls = append(s.Syscalls, rule)
	}
	return s, b
}

// Whatever the profile, the merged one does the same for every system call but splice, and nothing that is less strict for
// splice. What Covers says holds for what libseccomp makes of it.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{0, 0, 2, 1, 0, 1, 0, 1, 0})
	f.Add([]byte{3, 0, 3, 1, 4, 0, 0, 1, 1, 1, 1, 0, 2, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _ := profile(b)
		merged, change := Merge(s)
		covered, why := Covers(merged)
		if covered == (change == Refused) || covered != (why == "") {
			t.Errorf("change %d, but covered: %v, %s", change, covered, why)
		}
		impossible := DeniesIOUring(merged)
		if impossible != DeniesIOUring(s) {
			t.Error("io_uring is another")
		}
		for first := range uint64(4) {
			for second := range uint64(4) {
				args := [6]uint64{first, second}
				for _, name := range []string{"read", "tee", ioUringSetup, "mount"} {
					before, after := evaluate(s, name, args), evaluate(merged, name, args)
					if !slices.Equal(before, after) {
						t.Errorf("%s%v: %v became %v", name, args, before, after)
					}
					if name == ioUringSetup && impossible && slices.ContainsFunc(after, func(o outcome) bool {
						return o.action != specs.ActErrno && strictness(o) < strictness(outcome{action: specs.ActTrap})
					}) {
						t.Errorf("%s%v may be %v", name, args, after)
					}
				}
				before, after := evaluate(s, splice, args), evaluate(merged, splice, args)
				weakest := func(list []outcome) int {
					least := strictness(list[0])
					for _, o := range list {
						least = min(least, strictness(o))
					}
					return least
				}
				strongest := func(list []outcome) int {
					most := 0
					for _, o := range list {
						most = max(most, strictness(o))
					}
					return most
				}
				if weakest(after) < weakest(before) || strongest(after) < strongest(before) {
					t.Errorf("splice%v: %v became %v", args, before, after)
				}
				if covered && slices.ContainsFunc(after, func(o outcome) bool {
					return o != outcome{specs.ActErrno, einval} && strictness(o) <= strictness(outcome{action: specs.ActErrno})
				}) {
					t.Errorf("splice%v is covered, and may be %v", args, after)
				}
			}
		}
	})
}
