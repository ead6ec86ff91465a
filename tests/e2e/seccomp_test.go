// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"sidegate/cgroups/seccomp"
	"sidegate/tests/lab"
)

// splices is what "prober splice" says: what splice(2) answered, and what other calls did, "" for each that worked.
func splices(t testing.TB, r lab.Result) map[string]string {
	t.Helper()
	got := map[string]string{"splice": r.Errno}
	for name, errno := range r.Data {
		got[name], _ = errno.(string)
	}
	if len(got) != 5 {
		t.Errorf("no report: %+v", r)
	}
	return got
}

// wantCalls compares what is in want only.
func wantCalls(t testing.TB, name string, got, want map[string]string) {
	t.Helper()
	for call, errno := range want {
		if got[call] != errno {
			t.Errorf("%s: %s answers %q, want %q; all: %v", name, call, got[call], errno, got)
		}
	}
}

// own is a profile of an administrator: it denies some calls by errnos of its own.
const own = `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
	{"names":["vmsplice"],"action":"SCMP_ACT_ERRNO","errnoRet":18},{"names":["tee","io_uring_setup"],"action":"SCMP_ACT_ERRNO"}]}`

func TestSpliceRule(t *testing.T) {
	ctx := begin(t)
	profile := filepath.Join(t.TempDir(), "profile.json")
	must(t, os.WriteFile(profile, []byte(own), 0o644))
	with := func(annotations map[string]string) lab.ContainerOptions {
		return lab.ContainerOptions{Annotations: annotations, Seccomp: profile}
	}
	role := func(role, policy string) map[string]string {
		a := map[string]string{"sidegate/role": role, "sidegate/policy": policy}
		maps.DeleteFunc(a, func(_, value string) bool { return value == "" })
		return a
	}
	hooks, err := lab.Install(t.TempDir(), hookBinary(), map[string]string{
		"fast.yaml": strings.NewReplacer("name: other", "name: fast", "spec: {}", "spec: {accelerate: on}").Replace(policies["other.yaml"]),
		"slow.yaml": strings.NewReplacer("name: other", "name: slow", "spec: {}", "spec: {accelerate: off}").Replace(policies["other.yaml"]),
	})
	must(t, err)
	app := role("app", "fast")
	p, slow := newPod(ctx, t, hooks), newPod(ctx, t, hooks)
	denials := map[string]string{"vmsplice": "EXDEV", "tee": "EPERM", "io_uring_setup": "EPERM", "sendfile": ""}
	for _, tt := range []struct {
		name   string
		opts   lab.ContainerOptions
		splice string
		want   map[string]string
	}{ // "slow" is in the other pod
		// The first one is in a pod that is not managed yet.
		{"unmanaged", lab.ContainerOptions{}, "", map[string]string{"tee": ""}},
		{"unmanaged-own", with(nil), "", denials},
		{"default", lab.ContainerOptions{Annotations: app}, "EINVAL", map[string]string{"tee": "", "vmsplice": "EPERM", "sendfile": "", "io_uring_setup": "ENOSYS"}},
		{"sidecar", lab.ContainerOptions{Annotations: role("sidecar", "fast")}, "EINVAL", map[string]string{"tee": ""}},
		{"unconfined", lab.ContainerOptions{Annotations: app, Unconfined: true}, "EINVAL", map[string]string{"tee": "", "vmsplice": "", "sendfile": "", "io_uring_setup": ""}},
		{"own", with(app), "EINVAL", denials},
		{"user", lab.ContainerOptions{Annotations: app, User: "1000"}, "EINVAL", map[string]string{"tee": ""}},
		{"pods-policy", lab.ContainerOptions{Annotations: role("app", "")}, "EINVAL", map[string]string{"tee": ""}},
		{"init", lab.ContainerOptions{Annotations: role("init", "fast")}, "", map[string]string{"tee": ""}},
		{"slow", lab.ContainerOptions{Annotations: role("app", "slow")}, "", map[string]string{"tee": ""}},
	} {
		tt.want = maps.Clone(tt.want)
		tt.want["splice"] = tt.splice
		tt.opts.Args = []string{"/bin/sh", "-c", "/bin/prober splice; exec /bin/busybox sleep 1000"}
		in := p
		if tt.name == "slow" {
			in = slow
		}
		c, err := in.Run(ctx, tt.name, lab.AppImage, tt.opts)
		must(t, err)
		var first []lab.Result
		must(t, lab.WaitFor(lab.Patience, "the report of "+tt.name, func() (bool, error) {
			first, err = c.Results()
			return len(first) > 0, err
		}))
		wantCalls(t, tt.name+"'s program", splices(t, first[0]), tt.want)
		wantCalls(t, "in "+tt.name, splices(t, p.probe(c, "splice")), tt.want) // podman exec
		if tt.splice != "" && tt.name != "own" {                               // own kills for x32
			if r := p.probe(c, "splice", "--x32"); r.Errno != tt.splice {
				t.Errorf("%s: splice of x32: %+v", tt.name, r)
			}
		}
	}
}

// Merged profiles do in the kernel what they say, and else what the profile does that they were made of.
func TestMergedProfiles(t *testing.T) {
	ctx := begin(t)
	p := newPlain(ctx, t)
	const allowed = `"names":["read","write","tee","splice","vmsplice"],"action":"SCMP_ACT_ALLOW"`
	podmans, err := os.ReadFile("/usr/share/containers/seccomp.json")
	must(t, err)
	runs := func(profile *specs.LinuxSeccomp, flags ...string) (map[string]string, int) {
		t.Helper()
		dir := p.bundle("plain-seccomp", nil, append([]string{"splice"}, flags...)...)
		file := filepath.Join(dir, "config.json")
		b, err := os.ReadFile(file)
		must(t, err)
		var spec specs.Spec
		must(t, json.Unmarshal(b, &spec))
		spec.Linux.Seccomp = profile
		b, err = json.Marshal(spec)
		must(t, err)
		must(t, os.WriteFile(file, b, 0o644))
		stdout, stderr, code := runCommand(t, exec.CommandContext(ctx, "runc", "run", "--bundle", dir, "plain-seccomp"))
		if stdout == "" {
			t.Logf("exit code %d: %s", code, stderr)
			return nil, code
		}
		return splices(t, parseResult(t, stdout, stderr)), code
	}
	for name, text := range map[string]string{
		"none":            `null`,
		"allows":          `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["tee"],"action":"SCMP_ACT_ERRNO"}]}`,
		"logs":            `{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["tee","splice"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}`,
		"podman's":        whole(t, podmans, "SCMP_ACT_ALLOW"),
		"podman's, split": whole(t, podmans, "SCMP_ACT_LOG"),
		"two rules":       `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{` + allowed + `},{"names":["splice","tee"],"action":"SCMP_ACT_ERRNO"}]}`,
		"some args":       `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["splice","tee"],"action":"SCMP_ACT_ERRNO","errnoRet":95,"args":[{"index":5,"value":2,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]}`,
		"other args":      `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["splice","vmsplice"],"action":"SCMP_ACT_ERRNO","args":[{"index":5,"value":1,"op":"SCMP_CMP_EQ"},{"index":5,"value":7,"op":"SCMP_CMP_GT"}]}]}`,
	} {
		var before *specs.LinuxSeccomp
		must(t, json.Unmarshal([]byte(text), &before))
		want, _ := runs(before)
		after, change := seccomp.Merge(before)
		if ok, why := seccomp.Covers(after); !ok || change == seccomp.Refused {
			t.Errorf("%s: %d, %s", name, change, why)
		}
		got, _ := runs(after)
		if got["splice"] != "EINVAL" {
			t.Errorf("%s: splice answers %q", name, got["splice"])
		}
		if slices.Contains(after.Architectures, specs.ArchX32) {
			if x32, _ := runs(after, "--x32"); x32["splice"] != "EINVAL" {
				t.Errorf("%s: splice of x32 answers %q", name, x32["splice"])
			}
		}
		delete(got, "splice")
		delete(want, "splice")
		if !maps.Equal(got, want) {
			t.Errorf("%s: others were %v, and are %v", name, want, got)
		}
	}
	// What kills goes on to kill: 128 and SIGSYS.
	kills, change := seccomp.Merge(&specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"splice"}, Action: specs.ActKillProcess}},
	})
	if got, code := runs(kills); change != seccomp.Nothing || got != nil || code != 128+31 {
		t.Errorf("a profile that kills: %d, %v, exit code %d", change, got, code)
	}
}

// whole makes a profile for runc of one in podman's form, for all capabilities, in which what is allowed comes to action.
func whole(t testing.TB, text []byte, action specs.LinuxSeccompAction) string {
	t.Helper()
	var s specs.LinuxSeccomp
	must(t, json.Unmarshal(text, &s))
	s.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	s.Syscalls = slices.DeleteFunc(s.Syscalls, func(rule specs.LinuxSyscall) bool { return rule.Action != specs.ActAllow })
	for i := range s.Syscalls {
		s.Syscalls[i].Action = action
	}
	b, err := json.Marshal(s)
	must(t, err)
	return string(b)
}
