// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"sidegate/cgroups"
	"sidegate/cgroups/seccomp"
)

const eperm = 1 // what SCMP_ACT_ERRNO answers that names no errno

// profileOf returns a container's seccomp profile as the runtime tells it, nil if it has none. An error says that this is
// not known. Not every runtime that takes a profile tells the one that it replaces (CRI-O): that a container has none
// has to be said.
func profileOf(told *api.Container) (*specs.LinuxSeccomp, error) {
	p := told.GetLinux().GetSeccompPolicy()
	if p == nil {
		if kind := told.GetLinux().GetSeccompProfile(); kind == nil || kind.GetProfileType() != api.SecurityProfile_UNCONFINED {
			return nil, fmt.Errorf("the runtime does not tell its seccomp profile")
		}
		return nil, nil
	}
	// What this version of NRI does not know would be lost.
	strange := unknown(p)
	for _, rule := range p.GetSyscalls() {
		strange = strange || unknown(rule)
		for _, arg := range rule.GetArgs() {
			strange = strange || unknown(arg)
		}
	}
	if strange {
		return nil, fmt.Errorf("the runtime tells more of its seccomp profile than is understood")
	}
	s := &specs.LinuxSeccomp{
		DefaultAction:    specs.LinuxSeccompAction(p.GetDefaultAction()),
		ListenerPath:     p.GetListenerPath(),
		ListenerMetadata: p.GetListenerMetadata(),
		Syscalls:         api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		errno := uint(e.GetValue())
		s.DefaultErrnoRet = &errno
	}
	for _, arch := range p.GetArchitectures() {
		s.Architectures = append(s.Architectures, specs.Arch(arch))
	}
	for _, flag := range p.GetFlags() {
		s.Flags = append(s.Flags, specs.LinuxSeccompFlag(flag))
	}
	return s, nil
}

func unknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

// withSpliceRule returns the profile that a new container is to have instead of its own, nil if that stays. why says why it
// stays, where the container is not accelerated for it.
func withSpliceRule(told *api.Container) (profile *api.LinuxSeccomp, why string) {
	old, err := profileOf(told)
	if err != nil {
		return nil, err.Error()
	}
	merged, change := seccomp.Merge(old)
	switch change {
	case seccomp.Nothing:
		return nil, ""
	case seccomp.Refused:
		_, why = seccomp.Covers(old)
		return nil, why
	}
	// NRI's generator forgets it (AdjustSeccompPolicy, up to 0.12.5): what is denied would be answered by EPERM, where
	// programs look for ENOSYS.
	if e := merged.DefaultErrnoRet; e != nil && *e != eperm && merged.DefaultAction != specs.ActAllow {
		return nil, fmt.Sprintf("its seccomp profile answers what it denies by errno %d, which NRI would lose", *e)
	}
	return api.FromOCILinuxSeccomp(merged), ""
}

// spliceOf says what a container that was made can do with its sockets.
func spliceOf(told *api.Container) (s cgroups.Splice) {
	profile, err := profileOf(told)
	if err != nil {
		s.Why = err.Error()
		return s
	}
	return spliceUnder(profile)
}

func spliceUnder(profile *specs.LinuxSeccomp) (s cgroups.Splice) {
	s.Impossible, s.Why = seccomp.Covers(profile)
	s.NoIOUring = seccomp.DeniesIOUring(profile)
	return s
}
