// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sidegate/tests/lab"
)

// underSystemd is in the environment of these tests where systemd is PID 1 and runc asks it for cgroups: the directory of all
// binaries, which were built outside.
const underSystemd = "SIDEGATE_NRI_UNDER_SYSTEMD"

// Containers in the cgroups that systemd made, as on most Kubernetes nodes: TestPod holds there as it does elsewhere, and so does
// the rest of this test.
func TestSystemd(t *testing.T) {
	if os.Getenv(underSystemd) == "" {
		rerunUnderSystemd(t, "TestPod", "TestSystemd")
		return
	}
	ctx := begin(t)
	startPlugin(ctx, t)
	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	sidecar := startSidecar(ctx, t, p)
	app := startApp(ctx, t, p, lab.ContainerOptions{})
	wantRoles(t, p.Name, "app=app istio-proxy=sidecar")

	slice := "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + p.Name + ".slice"
	for _, c := range status(t)["lab/"+p.Name].Containers { // both: see wantRoles
		id := map[string]*lab.Container{"app": app, "istio-proxy": sidecar}[c.Name].ID
		scope := "cri-containerd-" + id + ".scope"
		if c.ID != id || c.Cgroup != slice+"/"+scope {
			t.Errorf("container %s is %s in %s, want %s in %s/%s", c.Name, c.ID, c.Cgroup, id, slice, scope)
		}
		if got := systemctl(ctx, t, "show", "--property", "ControlGroup", "--value", scope); got != c.Cgroup {
			t.Errorf("systemd has %s in %s, the status is %s", scope, got, c.Cgroup)
		}
	}
	wantEnforced := func(when string) {
		t.Helper()
		if r, err := app.Probe(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
			t.Errorf("%s: UDP: %v, %v", when, r, err)
		}
		nonce := newNonce()
		r, err := app.Probe(ctx, "http", "--to", world.Outside.HTTP(false).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText)
		if err != nil || !r.OK {
			t.Errorf("%s: HTTP: %v, %v", when, r, err)
		}
		requests, err := world.Outside.Requests(nonce)
		must(t, err)
		if _, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool {
			return len(requests) == 1 && c.Source == requests[0].Client && c.Dst == world.Outside.HTTP(false)
		}); !ok {
			t.Errorf("%s: the sidecar did not carry %v: %v", when, requests, err)
		}
	}
	wantEnforced("at first")
	// systemd then applies what it knows of each unit again, its own BPF programs on their cgroups among it.
	systemctl(ctx, t, "daemon-reload")
	systemctl(ctx, t, "set-property", "--runtime", "cri-containerd-"+app.ID+".scope", "DevicePolicy=auto")
	wantEnforced("after a reload")
	for _, c := range status(t)["lab/"+p.Name].Containers {
		if len(c.Missing) > 0 {
			t.Errorf("container %s lacks hooks after a reload: %v", c.Name, c.Missing)
		}
	}

	// Nobody but systemd ends the app.
	systemctl(ctx, t, "stop", "cri-containerd-"+app.ID+".scope")
	must(t, app.Wait(ctx))
	must(t, lab.WaitFor(lab.Patience, "the app to be forgotten", func() (bool, error) {
		return roles(t, p.Name) == "istio-proxy=sidecar", nil
	}))
	must(t, p.Remove(ctx))
	wantRoles(t, p.Name, "-")
	if left := systemctl(ctx, t, "list-units", "--all", "--plain", "--no-legend", "cri-containerd-*", "kubepods-besteffort-*"); left != "" {
		t.Errorf("systemd still has %s", left)
	}
}

// rerunUnderSystemd runs tests of this package again, in a machine of their own with systemd.
func rerunUnderSystemd(t *testing.T, tests ...string) {
	s, err := lab.StartSystemd(t.Context())
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	must(t, os.Symlink(world.Prober, filepath.Join(world.bin, "prober")))
	must(t, lab.InstallKTLS(world.bin, "../../contrib/ktls"))
	self, err := os.Executable()
	must(t, err)
	cmd := s.Command(t.Context(), self, "-test.v", "-test.timeout=5m", "-test.run=^("+strings.Join(tests, "|")+")$", "-commands="+strconv.FormatBool(*commands))
	cmd.Env = append(cmd.Env, underSystemd+"="+world.bin)
	out, err := cmd.CombinedOutput()
	for _, name := range tests {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s did not pass", name)
		}
	}
	if err != nil || t.Failed() {
		t.Errorf("under systemd: %v\n%s", err, out)
	}
}

func systemctl(ctx context.Context, t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		t.Errorf("systemctl %s: %v: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out))
}
