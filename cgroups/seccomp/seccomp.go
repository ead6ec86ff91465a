// SPDX-License-Identifier: Apache-2.0

// Package seccomp merges one rule into a container's seccomp profile (runtime-spec, "Seccomp"): splice(2) is answered by
// EINVAL. On sockets that a sockmap feeds, splice(2) sees no data and waits for ever; by EINVAL a program is told that
// these descriptors cannot be spliced, and reads them. It knows OCI configurations and nothing else.
//
// # What a profile means
//
// runc and crun hand its rules to libseccomp, in order. Of one system call (libseccomp 2.5 and 2.6, src/db.c):
//
//   - A rule without args wins over all that come later, and over all with args that came earlier.
//   - Two rules with args that overlap and differ are an error, or both stand and their order is libseccomp's.
//   - runc skips a rule whose action is the default one.
//   - An architecture that the profile does not list kills, but for the machine's own, which is always in it; a rule is
//     for all that are listed.
//   - Where the default action denies, runc answers system calls with a number above the highest that is listed by
//     ENOSYS. To name splice never lowers that number.
//
// What follows does not rely on any order: a profile in which the order of splice's rules would matter is left as it is.
//
// # Why EINVAL
//
// Go (internal/poll.Splice) reads instead after EINVAL only; any other errno ends the copy. HAProxy, where it is configured
// to splice, reads after ENOSYS and EBADF, before 3.3 and in mode tcp after EINVAL too, and gives up the connection after
// others (KNOWN-ISSUES.md). nginx has no splice. So a splice that a profile denies by EPERM is answered by EINVAL too: it
// stays denied.
package seccomp

import (
	"fmt"
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	splice       = "splice"
	ioUringSetup = "io_uring_setup"

	eperm  = 1  // what SCMP_ACT_ERRNO answers that names no errno
	einval = 22 // on every architecture
)

// Change is what Merge did.
type Change uint8

// What Merge may have done.
const (
	Nothing Change = iota // splice(2) was impossible already
	Rule                  // the profile has one more rule, or others' rules changed
	Profile               // there was no profile
	Refused               // it is as it was, since the rule would loosen it, or might: Covers says why
)

// disabled tells whether a runtime loads no filter at all.
func disabled(s *specs.LinuxSeccomp) bool {
	return s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0
}

// outcome is what a system call may come to.
type outcome struct {
	action specs.LinuxSeccompAction
	errno  uint // of SCMP_ACT_ERRNO
}

func outcomeOf(action specs.LinuxSeccompAction, errno *uint) outcome {
	o := outcome{action: action}
	if action == specs.ActErrno {
		o.errno = eperm
		if errno != nil {
			o.errno = *errno
		}
	}
	return o
}

func (o outcome) einval() bool { return o.action == specs.ActErrno && o.errno == einval }

// strict tells whether it is stricter than to answer an errno: no program sees it as an answer (seccomp(2), the order of
// return values).
func (o outcome) strict() bool {
	switch o.action {
	case specs.ActKill, specs.ActKillThread, specs.ActKillProcess, specs.ActTrap:
		return true
	}
	return false
}

// known tells whether it is clear what a runtime does with it.
func (o outcome) known() bool {
	switch o.action {
	case specs.ActErrno, specs.ActAllow, specs.ActLog, specs.ActTrace, specs.ActNotify:
		return true
	}
	return o.strict()
}

// runs tells whether the kernel may execute the system call: a tracer, or who listens, may say so.
func (o outcome) runs() bool { return o.action != specs.ActErrno && !o.strict() }

// verdict is all that may come of one system call.
type verdict struct {
	unconditional, conditional []outcome // of rules that name it
	fallback                   outcome   // the default action
	always                     bool      // a rule without args leaves nothing to fallback
}

func judge(s *specs.LinuxSeccomp, name string) verdict {
	v := verdict{fallback: outcomeOf(s.DefaultAction, s.DefaultErrnoRet)}
	for _, rule := range s.Syscalls {
		if !slices.Contains(rule.Names, name) {
			continue
		}
		o := outcomeOf(rule.Action, rule.ErrnoRet)
		if len(rule.Args) > 0 {
			v.conditional = append(v.conditional, o)
			continue
		}
		v.unconditional = append(v.unconditional, o)
		v.always = v.always || o != v.fallback
	}
	return v
}

// rules are those of the system call, whatever their order makes of them.
func (v verdict) rules() []outcome { return slices.Concat(v.unconditional, v.conditional) }

// outcomes are those that are possible: more than there are, where rules hide others.
func (v verdict) outcomes() []outcome {
	if v.always {
		return v.rules()
	}
	return append(v.rules(), v.fallback)
}

func all(list []outcome, is func(outcome) bool) bool {
	return !slices.ContainsFunc(list, func(o outcome) bool { return !is(o) })
}

// Merge returns a profile in which splice(2) is answered by EINVAL, and everything else is as in s. What kills stays so. s
// is not changed, and shares memory with what is returned.
func Merge(s *specs.LinuxSeccomp) (*specs.LinuxSeccomp, Change) {
	if disabled(s) {
		archs := architectures(runtime.GOARCH)
		if archs == nil {
			return s, Refused
		}
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: archs, Syscalls: []specs.LinuxSyscall{rule(nil)}}, Profile
	}
	if ok, _ := Covers(s); ok {
		return s, Nothing
	}
	v := judge(s, splice)
	everything := append(v.rules(), v.fallback)
	if !all(everything, outcome.known) {
		return s, Refused
	}
	merged := *s
	switch {
	case !slices.ContainsFunc(everything, outcome.strict), v.fallback.strict() && v.always && !slices.ContainsFunc(v.rules(), outcome.strict):
		// Nothing kills it, so that it may be denied as a whole. First of all, so that a rule which something adds later
		// does not undo it.
		merged.Syscalls = slices.Concat([]specs.LinuxSyscall{rule(nil)}, rewrite(s.Syscalls, func(specs.LinuxSyscall) []specs.LinuxSyscall { return nil }))
	case v.fallback.strict() && !v.always && !slices.ContainsFunc(v.rules(), outcome.strict):
		// What some args were let through for is denied for them, and others go on to kill.
		merged.Syscalls = rewrite(s.Syscalls, func(old specs.LinuxSyscall) []specs.LinuxSyscall { return []specs.LinuxSyscall{rule(old.Args)} })
	default:
		// For some args it kills, for others it does not. What is left of all args but those, no rule can say.
		return s, Refused
	}
	return &merged, Rule
}

func rule(args []specs.LinuxSeccompArg) specs.LinuxSyscall {
	errno := uint(einval)
	return specs.LinuxSyscall{Names: []string{splice}, Action: specs.ActErrno, ErrnoRet: &errno, Args: args}
}

// rewrite takes splice out of the rules that name it, which others share, and puts in their place what instead says.
func rewrite(rules []specs.LinuxSyscall, instead func(specs.LinuxSyscall) []specs.LinuxSyscall) []specs.LinuxSyscall {
	var out []specs.LinuxSyscall
	for _, old := range rules {
		if !slices.Contains(old.Names, splice) {
			out = append(out, old)
			continue
		}
		out = append(out, instead(old)...)
		old.Names = slices.DeleteFunc(slices.Clone(old.Names), func(name string) bool { return name == splice })
		if len(old.Names) > 0 {
			out = append(out, old)
		}
	}
	return out
}

// architectures are all whose programs run on a machine of this one, nil if that is not known: a filter kills those that it
// does not list.
func architectures(goarch string) []specs.Arch {
	switch goarch {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	return nil
}

// Covers tells whether splice(2) has no other answer than EINVAL in a container with this profile, or kills, whatever the
// architecture of the program. why is for people, and says what else there is.
func Covers(s *specs.LinuxSeccomp) (ok bool, why string) {
	if disabled(s) {
		return false, "it has no seccomp profile, so that splice(2) is allowed"
	}
	v := judge(s, splice)
	i := slices.IndexFunc(v.outcomes(), func(o outcome) bool { return !o.einval() && !o.strict() })
	if i < 0 {
		return true, ""
	}
	o := v.outcomes()[i]
	some := ""
	if len(v.conditional) > 0 {
		some = " with some arguments"
	}
	switch {
	case !o.known():
		why = fmt.Sprintf("has an action that is not known for splice(2): %q", o.action)
	case slices.ContainsFunc(v.outcomes(), outcome.strict):
		why = "kills for splice(2) with some arguments, and does not with others"
	case o.action == specs.ActErrno:
		why = fmt.Sprintf("answers splice(2)%s by errno %d, and not by EINVAL", some, o.errno)
	case o.action == specs.ActTrace, o.action == specs.ActNotify:
		why = "lets another process decide on splice(2)" + some
	default:
		why = "allows splice(2)" + some
	}
	return false, "its seccomp profile " + why
}

// DeniesIOUring tells whether no process of a container with this profile can have an io_uring, by which it could splice
// without the system call.
func DeniesIOUring(s *specs.LinuxSeccomp) bool {
	if disabled(s) {
		return false
	}
	return all(judge(s, ioUringSetup).outcomes(), func(o outcome) bool { return o.known() && !o.runs() })
}
