// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"os"
	"path/filepath"
	"testing"

	"sidegate/tests/lab"
)

// own is a profile of an administrator: it denies some calls by errnos of its own.
const own = `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
	{"names":["vmsplice"],"action":"SCMP_ACT_ERRNO","errnoRet":18},{"names":["tee","io_uring_setup"],"action":"SCMP_ACT_ERRNO"}]}`

// Apps and sidecars are told that nothing can be spliced. Their profile is what it was in all else.
func TestSpliceRule(t *testing.T) {
	ctx := begin(t)
	profile := filepath.Join(t.TempDir(), "own.json")
	must(t, os.WriteFile(profile, []byte(own), 0o644))
	// wantCalls runs "prober splice" in a container, first as its program and then beside it.
	wantCalls := func(p *lab.Pod, name string, opts lab.ContainerOptions, splice string, others map[string]string) {
		t.Helper()
		opts.Args = []string{"/bin/sh", "-c", "/bin/prober splice; exec /bin/busybox sleep 1000"}
		c, err := p.Run(ctx, name, lab.AppImage, opts)
		must(t, err)
		var list []lab.Result
		must(t, lab.WaitFor(lab.Patience, "the report of "+name, func() (bool, error) {
			list, err = c.Results()
			return len(list) > 0, err
		}))
		second, err := c.Probe(ctx, "splice")
		must(t, err)
		for _, r := range append(list, second) {
			if r.Errno != splice || len(r.Data) == 0 {
				t.Errorf("%s in %s: splice answers %q, want %q: %+v", name, p.Name, r.Errno, splice, r)
			}
			for call, want := range others {
				if got, _ := r.Data[call].(string); got != want {
					t.Errorf("%s in %s: %s answers %q, want %q", name, p.Name, call, got, want)
				}
			}
		}
	}
	standard, denied, all := map[string]string{"tee": "", "sendfile": "", "vmsplice": "", "io_uring_setup": "EPERM"},
		map[string]string{"tee": "EPERM", "sendfile": "", "vmsplice": "EXDEV", "io_uring_setup": "EPERM"},
		map[string]string{"tee": "", "sendfile": "", "vmsplice": "", "io_uring_setup": ""}

	startPlugin(ctx, t)
	alone := newPod(ctx, t, lab.PodOptions{})
	wantCalls(alone, "app", lab.ContainerOptions{}, "", standard)
	wantCalls(alone, "own", lab.ContainerOptions{Seccomp: profile}, "", denied)
	plain := newPod(ctx, t, lab.PodOptions{Annotations: istio()}) // the default policy does not ask for it
	wantCalls(plain, "app", lab.ContainerOptions{}, "", standard)
	fast := istio()
	fast["sidegate/policy"] = "fast"
	p := newPod(ctx, t, lab.PodOptions{Annotations: fast})
	wantCalls(p, "istio-proxy", lab.ContainerOptions{}, "EINVAL", standard)
	wantCalls(p, "app", lab.ContainerOptions{}, "EINVAL", standard)
	wantCalls(p, "own", lab.ContainerOptions{Seccomp: profile}, "EINVAL", denied)
	wantCalls(p, "unconfined", lab.ContainerOptions{Unconfined: true}, "EINVAL", all)
	wantCalls(p, "exempt", lab.ContainerOptions{Annotations: map[string]string{"sidegate/role": "none"}}, "", standard)
}
