// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
)

// told is a container as a runtime tells it.
func told(t *testing.T, kind *api.SecurityProfile, profile string) *api.Container {
	t.Helper()
	linux := &api.LinuxContainer{SeccompProfile: kind}
	if profile != "" {
		var s specs.LinuxSeccomp
		must(t, json.Unmarshal([]byte(profile), &s))
		linux.SeccompPolicy = api.FromOCILinuxSeccomp(&s)
	}
	return &api.Container{Name: "web", Linux: linux}
}

func TestSpliceRule(t *testing.T) {
	const (
		allowed = `{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],` +
			`"listenerPath":"/l","listenerMetadata":"m","syscalls":[{"names":["read","splice"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}`
		merged = `{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],` +
			`"listenerPath":"/l","listenerMetadata":"m","syscalls":[{"names":["splice"],"action":"SCMP_ACT_ERRNO","errnoRet":22},` +
			`{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}`
		enosys = `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["splice"],"action":"SCMP_ACT_ALLOW"}]}`
	)
	unconfined, standard := &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}, &api.SecurityProfile{}
	strange := told(t, standard, allowed)
	strange.Linux.SeccompPolicy.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	for name, tt := range map[string]struct {
		told *api.Container
		want string // part of the profile, "" for none
		why  string // part
	}{
		"allowed":             {told(t, standard, allowed), merged, ""},
		"there":               {told(t, standard, merged), "", ""},
		"unconfined":          {told(t, unconfined, ""), `"defaultAction":"SCMP_ACT_ALLOW"`, ""},
		"not told":            {told(t, standard, ""), "", "does not tell"},
		"nothing told":        {told(t, nil, ""), "", "does not tell"},
		"no Linux":            {&api.Container{}, "", "does not tell"},
		"more than is known":  {strange, "", "more of its seccomp profile than is understood"},
		"what NRI would lose": {told(t, standard, enosys), "", "errno 38, which NRI would lose"},
		"kills some": {told(t, standard, `{"defaultAction":"SCMP_ACT_KILL","syscalls":[{"names":["splice"],"action":"SCMP_ACT_ALLOW"},`+
			`{"names":["splice"],"action":"SCMP_ACT_KILL_THREAD"}]}`), "", "kills"},
	} {
		got, why := withSpliceRule(tt.told)
		text := ""
		if got != nil {
			tt.told.Linux.SeccompPolicy = got
			profile, err := profileOf(tt.told)
			must(t, err)
			b, err := json.Marshal(profile)
			must(t, err)
			text = string(b)
			if s := spliceOf(tt.told); !s.Impossible {
				t.Errorf("%s: then it is %+v", name, s)
			}
		}
		if (text == "") != (tt.want == "") || !strings.Contains(text, tt.want) || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s: %s, %q", name, text, why)
		}
	}
}

// What is not known is not taken for impossible.
func TestSpliceOf(t *testing.T) {
	if s := spliceOf(told(t, nil, "")); s.Impossible || !strings.Contains(s.Why, "does not tell") {
		t.Errorf("%+v", s)
	}
	if s := spliceOf(told(t, nil, `{"defaultAction":"SCMP_ACT_ALLOW"}`)); s.Impossible || s.NoIOUring || !strings.Contains(s.Why, "allows") {
		t.Errorf("%+v", s)
	}
}
