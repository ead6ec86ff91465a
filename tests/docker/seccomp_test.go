// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sidegate/tests/lab"
)

// The wrapper tells apps and sidecars that nothing can be spliced. Their profile is what it was in all else.
func TestSpliceRule(t *testing.T) {
	ctx := begin(t, lab.Moby)
	startDriver(ctx, t)
	newMesh(ctx, t)
	profile := filepath.Join(t.TempDir(), "own.json")
	must(t, os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
		{"names":["vmsplice"],"action":"SCMP_ACT_ERRNO","errnoRet":18},{"names":["tee","io_uring_setup"],"action":"SCMP_ACT_ERRNO"}]}`), 0o644))
	own := []string{"--security-opt", "seccomp=" + profile}
	denied := map[string]string{"tee": "EPERM", "sendfile": "", "vmsplice": "EXDEV", "io_uring_setup": "EPERM"}
	standard := map[string]string{"tee": "", "sendfile": "", "vmsplice": "", "io_uring_setup": "EPERM"}
	all := map[string]string{"tee": "", "sendfile": "", "vmsplice": "", "io_uring_setup": ""}
	fast := func(role string) []string { return append(wrapped(role), "--label", "sidegate/policy=fast") }
	for _, tt := range []struct {
		name   string
		flags  []string
		splice string
		others map[string]string
	}{
		{"no label", []string{"--runtime", wrapper}, "", standard},
		{"no label, own", append(own, "--runtime", wrapper), "", denied},
		{"exempt", wrapped("none"), "", standard},
		{"default policy", wrapped("app"), "", standard},
		{"app", fast("app"), "EINVAL", standard},
		{"sidecar", fast("sidecar"), "EINVAL", standard},
		{"own", slices.Concat(own, fast("app")), "EINVAL", denied},
		{"unconfined", append(fast("app"), "--security-opt", "seccomp=unconfined"), "EINVAL", all},
		{"privileged", append(wrapped("none"), "--privileged"), "", all},
	} {
		args := slices.Concat([]string{"run", "--rm", "--network", mesh}, tt.flags, []string{lab.AppImage, "/bin/sh", "-c", "/bin/prober splice; exit 0"})
		out, err := world.Docker.CLI(ctx, args...)
		must(t, err)
		var r struct {
			Errno string
			Data  map[string]string
		}
		must(t, json.Unmarshal(bytes.TrimSpace(out), &r))
		if r.Errno != tt.splice {
			t.Errorf("%s: splice answers %q, want %q", tt.name, r.Errno, tt.splice)
		}
		for call, want := range tt.others {
			if got, has := r.Data[call]; !has || got != want {
				t.Errorf("%s: %s answers %q, want %q", tt.name, call, got, want)
			}
		}
	}
}
