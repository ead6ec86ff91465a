// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidegate/cgroups"
)

// fine are checks of a machine that has everything.
func fine() []cgroups.Check {
	var list []cgroups.Check
	add := func(name, detail string, required, kernel bool) {
		list = append(list, cgroups.Check{Name: name, OK: true, Required: required, Kernel: kernel, Detail: detail})
	}
	add("kernel", "6.12.1", true, true)
	add("BPF file system", "/sys/fs/bpf", true, false)
	add("cgroup2", "/sys/fs/cgroup", true, false)
	add("load all programs", "33 programs, 41 maps", true, true)
	for _, h := range []string{
		"sock_create", "bind4", "bind6", "post_bind4", "post_bind6", "getpeername4", "getpeername6", "sockops", "setsockopt", "hold", "connect4", "connect6",
		"sendmsg4", "sendmsg6", "egress", "ingress", "recvmsg4", "recvmsg6", "tls_setsockopt", "getsockopt", "getsockname4", "getsockname6", "guard_create",
		"guard_connect4", "guard_connect6", "guard_sendmsg4", "guard_sendmsg6", "guard_bind4", "guard_bind6", "sk_lookup",
	} {
		add("hook "+h, "attached to a cgroup", true, true)
	}
	add("hook tcx", "device programs cannot be removed from inside a pod", false, true)
	add("UNIX sockets", "judged by the socket that it is, and its owner", false, true)
	add("BPF LSM", "rules for UNIX sockets by owner", false, true)
	add("accelerate: auto", "self-test: 20 checks in 30 ms", false, true)
	add("accelerate: on", "self-test: 20 checks in 30 ms", false, true)
	add("runtime podman", "podman version 5.4.2", false, false)
	add("runtime runc", "runc version 1.2.5", false, false)
	add("runtime crun", "crun version 1.21", false, false)
	add("runtime containerd", "containerd github.com/containerd/containerd/v2 v2.1.0", false, false)
	add("runtime crio", "crio version 1.33.0", false, false)
	add("runtime kubelet", "Kubernetes v1.33.0", false, false)
	add("podman hook", "/usr/share/containers/oci/hooks.d/50-sidegate-createruntime.json", false, false)
	add("podman splice rule", "/usr/share/containers/oci/hooks.d/50-sidegate-precreate.json", false, false)
	add("NRI", "/run/nri/nri.sock", false, false)
	add("NRI plugin", "process 7", false, false)
	add("Docker", "/run/docker.sock", false, false)
	add("Docker network driver", "/run/docker/plugins/sidegate.sock", false, false)
	add("Docker runtime", "sidegate: /usr/local/libexec/sidegate/sidegate-oci-hook", false, false)
	add("policies", "/etc/sidegate/policies: 3", false, false)
	add("TLS relay", "answers at /run/sidegate/tls.sock", false, false)
	return list
}

// without are the checks with some that are not OK, by their details.
func without(bad map[string]string) []cgroups.Check {
	list := fine()
	for i := range list {
		if detail, ok := bad[list[i].Name]; ok {
			list[i].OK, list[i].Detail = false, detail
			list[i].Cost, list[i].Next = "COST of "+list[i].Name, "NEXT of "+list[i].Name
		}
	}
	return list
}

var (
	debian = machine{distribution: distribution{"Debian GNU/Linux 12 (bookworm)", "bookworm", []string{"debian"}}, release: "6.1.0-40-amd64", modules: []string{"lockdown", "capability", "apparmor"}}
	fedora = machine{distribution: distribution{"Fedora Linux 42", "", []string{"fedora"}}, release: "6.14.0", modules: []string{"lockdown", "capability", "selinux"}}
)

func report(t *testing.T, m machine, checks []cgroups.Check) string {
	t.Helper()
	var b bytes.Buffer
	must(t, printReport(&b, m, checks))
	return b.String()
}

func TestReport(t *testing.T) {
	const noSocket = "connect: no such file or directory"
	golden(t, "doctor-fine.golden", report(t, fedora, fine()))
	golden(t, "doctor-debian.golden", report(t, debian, without(map[string]string{
		"hook tcx": "kernel before 6.6: clsact filters instead", "BPF LSM": "off: bpf is not among the security modules lockdown,capability,apparmor",
		"UNIX sockets": "no hook sees them", "accelerate: auto": "CVE-2024-56633 in kernel 6.1.90", "accelerate: on": "CVE-2024-56633 in kernel 6.1.90",
		"podman hook": "no hook for stage createRuntime in /usr/share/containers/oci/hooks.d", "runtime containerd": notInstalled, "runtime crio": notInstalled,
		"NRI": noSocket, "NRI plugin": "no process sidegate-nri", "Docker runtime": "/etc/docker/daemon.json does not exist", "runtime kubelet": notInstalled,
		"TLS relay": "dial unixpacket /run/sidegate/tls.sock: connect: no such file or directory",
	})))
	golden(t, "doctor-fedora.golden", report(t, fedora, without(map[string]string{
		"BPF LSM": "off: bpf is not among the security modules", "accelerate: auto": "programs could notice: TCP_INFO", "runtime podman": notInstalled,
		"NRI": noSocket, "Docker": noSocket, "policies": "web.yaml:3:1: unknown key",
	})))
	old := without(map[string]string{"kernel": "5.10.0-30-amd64", "load all programs": "not supported"})
	golden(t, "doctor-old.golden", report(t, debian, old))
	if err := cgroups.ProbeFailed(old); err == nil || !strings.Contains(err.Error(), "not supported by this kernel: kernel, load all programs") {
		t.Errorf("of a kernel that is too old: %v", err)
	}
}

// TestReportSaysWhatIsMissing: there is no check whose failure does not show, with what
// it means and what to do.
func TestReportSaysWhatIsMissing(t *testing.T) {
	whole := report(t, debian, fine())
	silent := []string{
		"runtime runc", "runtime crun", // others are called
		"runtime containerd", "runtime crio", "runtime kubelet", // who is installed and does not say its version is seen by its socket
		"UNIX sockets", // LSM is there, which is better
		"accelerate: on",
	}
	for _, c := range fine() {
		got := report(t, debian, without(map[string]string{c.Name: "BROKEN"}))
		if slices.Contains(silent, c.Name) {
			continue
		}
		if got == whole {
			t.Errorf("%s is missing, and the report does not say so", c.Name)
		}
		if c.Name != "Docker" && (!strings.Contains(got, "BROKEN") || !strings.Contains(got, "    next:  ") || !strings.Contains(got, "    means: ")) {
			t.Errorf("%s is missing, and the report is\n%s", c.Name, got)
		}
		if c.Required && !strings.Contains(got, worksNot) {
			t.Errorf("%s is required, and the report is\n%s", c.Name, got)
		}
	}
	// A check that was not made is not one that is OK.
	for _, c := range fine() {
		if c.Required {
			rest := slices.DeleteFunc(fine(), func(o cgroups.Check) bool { return o.Name == c.Name })
			if got := report(t, debian, rest); !strings.Contains(got, worksNot) {
				t.Errorf("%s was not tried, and the report is\n%s", c.Name, got)
			}
		}
	}
}

// TestNextCommandsAreShell: what is to be pasted can be.
func TestNextCommandsAreShell(t *testing.T) {
	var list []string
	for _, m := range []machine{debian, fedora, {}, {distribution: distribution{ids: []string{"ubuntu", "debian"}}}} {
		list = append(list, m.newerKernel("6.6"), m.install("a", "b"), m.enableLSM(cgroups.Check{}))
		for _, version := range []string{"containerd 1.6.20", "containerd 1.7.2", "containerd v2.1.0", "?"} {
			list = append(list, enableNRI(m, version, false))
		}
		list = append(list, enableNRI(m, "", true))
	}
	list = append(list, installSidegate, dockerRuntime("/etc/docker/daemon.json does not exist"), dockerRuntime("none of the runtimes in /etc/docker/daemon.json"))
	for _, command := range list {
		if out, err := exec.Command("sh", "-n", "-c", command).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}

// TestEnableNRI: containerd's configuration has NRI switched on afterwards, once, and
// all else as it was.
func TestEnableNRI(t *testing.T) {
	const on = "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false\n"
	for _, c := range []struct{ name, version, before, after string }{
		{"none", "1.7.2", "", "version = 2\n" + on},
		{"another's", "1.7.2", "version = 2\n[debug]\n  disable = true\n", "version = 2\n[debug]\n  disable = true\n" + on},
		{"off", "1.7.2", "version = 2\n[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = true\n[x]\n  disable = true\n", "version = 2\n" + on + "[x]\n  disable = true\n"},
		{"off in 2.x", "2.1.0", "version = 3\n[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n", "version = 3\n[plugins.'io.containerd.nri.v1.nri']\n  disable = false\n"},
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		if c.before != "" {
			must(t, os.WriteFile(file, []byte(c.before), 0o644))
		}
		command := strings.ReplaceAll(enableNRI(debian, "containerd "+c.version, false), "/etc/containerd/config.toml", file)
		command, ok := strings.CutSuffix(command, "; systemctl restart containerd")
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if got := contents(file)(); !ok || err != nil || got != c.after {
			t.Errorf("%s: %v, %s, the file is\n%s", c.name, err, out, got)
		}
	}
}

func TestDoctor(t *testing.T) {
	newState(t) // or skips
	stdout, _, _ := call("/nowhere", "doctor")
	for _, want := range []string{"\nFeatures\n  ", "\nRuntimes\n  podman hook ", "  Kubernetes chart "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("nothing of %q in\n%s", want, stdout)
		}
	}
	stdout, _, _ = call("/nowhere", "doctor", "--checks")
	if !strings.HasPrefix(stdout, "CHECK ") {
		t.Errorf("the table is\n%s", stdout)
	}
	stdout, _, _ = call("/nowhere", "doctor", "-o", "json")
	var checks []cgroups.Check
	must(t, json.Unmarshal([]byte(stdout), &checks))
	made := byName(checks)
	for _, c := range fine() {
		got, there := made[c.Name]
		if optional := strings.HasPrefix(c.Name, "Docker ") || c.Name == "podman splice rule"; !there && !optional {
			t.Errorf("JSON has no check %s", c.Name)
		}
		if there && got.Kernel != c.Kernel {
			t.Errorf("check %s is %+v", c.Name, got)
		}
	}
}
