// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// golden compares with a file of testdata, or writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s differs (write it with -update):\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// normal replaces what differs from run to run. Columns move with the numbers
// in them, so each gap becomes two spaces.
func normal(s string) string {
	for _, r := range []struct{ pattern, with string }{
		{`\b[0-9a-f]{12}\b`, "ID"},
		{`\bpod\d+-`, "POD-"},
		{`\b198\.51\.100\.\d+`, "IPV4"},
		{`\b2001:db8:2::[0-9a-f]+`, "IPV6"},
		{`=\d+`, "=N"},
		{`\b(device|host)-\d+`, "$1-N"},
		{`not accelerated: .*`, "not accelerated: the kernel's reasons"},
		// The kernel's own packets, which come when they come.
		{`(  counters: .*; drops: ).*`, "${1}..."},
		{` +(\n|$)`, "$1"},
		{`(\S) {2,}`, "$1  "},
	} {
		s = regexp.MustCompile(r.pattern).ReplaceAllString(s, r.with)
	}
	return s
}

func TestStatus(t *testing.T) {
	ctx := begin(t)
	text := func() string {
		t.Helper()
		stdout, stderr, code := sidegate(t, "status")
		if code != 0 || stderr != "" {
			t.Errorf("status: %d, %s", code, stderr)
		}
		return normal(stdout)
	}
	golden(t, "status-none.golden", text())
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app)
	p.wantServed()
	golden(t, "status-pod.golden", text())
	must(t, p.sidecar.Stop(ctx))
	if s := text(); !strings.Contains(s, "NOT LISTENING: connections are refused") {
		t.Errorf("without a sidecar: %s", s)
	}
	must(t, p.Remove(ctx))
	golden(t, "status-empty.golden", text())
}

func TestStatusJSON(t *testing.T) {
	ctx := begin(t)
	read := func() map[string]any {
		t.Helper()
		stdout, stderr, code := sidegate(t, "status", "-o", "json")
		if code != 0 {
			t.Fatalf("status: %d, %s", code, stderr)
		}
		var m map[string]any
		must(t, json.Unmarshal([]byte(stdout), &m))
		return m
	}
	if m := read(); m["loaded"] != false {
		t.Errorf("not loaded: %v", m)
	}
	p := newMeshPod(ctx, t)
	p.wantEnforced(p.app)
	app := id(ctx, t, p.app)
	m := read()
	pods, _ := m["pods"].([]any)
	if m["loaded"] != true || m["state"] != state || len(pods) != 1 {
		t.Fatalf("status is %v", m)
	}
	pod := pods[0].(map[string]any)
	for key, want := range map[string]any{"policy": "mesh", "outboundPort": 15001.0, "inboundPort": 15006.0, "nonTCP": "deny", "sidecarListening": true} {
		if pod[key] != want {
			t.Errorf("pod's %s is %v, want %v", key, pod[key], want)
		}
	}
	for _, key := range []string{"netnsCookie", "netnsInode", "addresses", "hooks", "containers", "counters", "drops"} {
		if _, ok := pod[key]; !ok {
			t.Errorf("pod has no %s: %v", key, pod)
		}
	}
	if addresses := fmt.Sprint(pod["addresses"]); !strings.Contains(addresses, p.V4.String()) || !strings.Contains(addresses, p.V6.String()) {
		t.Errorf("pod's addresses are %s, want %s and %s", addresses, p.V4, p.V6)
	}
	pid, err := p.app.PID(ctx)
	must(t, err)
	found := false
	for _, one := range pod["containers"].([]any) {
		c := one.(map[string]any)
		if c["id"] != app {
			continue
		}
		found = true
		for key, want := range map[string]any{"role": "app", "policy": "mesh", "runtime": "podman", "pid": float64(pid)} {
			if c[key] != want {
				t.Errorf("app's %s is %v, want %v", key, c[key], want)
			}
		}
		if drops, _ := c["drops"].(map[string]any); drops["udp"] == nil {
			t.Errorf("app's drops are %v, and it was refused UDP", c["drops"])
		}
		if c["missingHooks"] != nil {
			t.Errorf("app lacks hooks %v", c["missingHooks"])
		}
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", fmt.Sprint(c["cgroup"]))); err != nil {
			t.Errorf("app's cgroup: %v", err)
		}
	}
	if !found {
		t.Errorf("no container %s in %v", app, pod["containers"])
	}
}

func TestUnload(t *testing.T) {
	ctx := begin(t)
	// Nothing to do is no error.
	for range 2 {
		if stdout, stderr, code := sidegate(t, "unload"); code != 0 || stdout+stderr != "" {
			t.Errorf("with nothing loaded: %d, %s%s", code, stdout, stderr)
		}
	}
	p := newMeshPod(ctx, t)
	_, stderr, code := sidegate(t, "unload")
	if code != 1 || !strings.Contains(stderr, "--force") || strings.Contains(stderr, "usage") {
		t.Errorf("with a managed pod: %d, %s", code, stderr)
	}
	p.wantEnforced(p.app)
	objects := pinned(t, state)
	for range 2 {
		if _, stderr, code := sidegate(t, "unload", "--force"); code != 0 || stderr != "" {
			t.Errorf("with --force: %d, %s", code, stderr)
		}
		wantNoState(t)
	}
	wantGone(t, objects)
	// It is as if it had never been, and containers end and start as ever.
	p.wantDirect(p.app, udp(newNonce()))
	must(t, p.app.Remove(ctx))
	must(t, p.Remove(ctx))
	wantNoState(t)
	again := newMeshPod(ctx, t)
	again.wantEnforced(again.app)
}

func TestVersion(t *testing.T) {
	stdout, stderr, code := sidegate(t, "version")
	if code != 0 || stderr != "" || !regexp.MustCompile(`^sidegate e2e, ABI \d+, go1\.\S+ linux/\w+\n$`).MatchString(stdout) {
		t.Errorf("version: %d, %q%s", code, stdout, stderr)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		stdout, stderr, code := sidegate(t, "completion", shell)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "sidegate") {
			t.Errorf("completion %s: %d, %d bytes, %s", shell, code, len(stdout), stderr)
		}
		if shell != "bash" {
			continue
		}
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(stdout)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("bash -n: %v, %s", err, out)
		}
	}
}

// doctor runs the command on hook definitions. The directory where podman
// looks is the machine's, and covered in the node.
func doctor(t *testing.T, hooks map[string]string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	const dir = "/usr/share/containers"
	must(t, unix.Mount("sidegate-e2e", dir, "tmpfs", 0, "mode=755"))
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	must(t, os.MkdirAll(filepath.Join(dir, "oci", "hooks.d"), 0o755))
	for name, text := range hooks {
		must(t, os.WriteFile(filepath.Join(dir, "oci", "hooks.d", name), []byte(text), 0o644))
	}
	return sidegate(t, append([]string{"doctor"}, args...)...)
}

// hookFiles are contrib's, with the directory of the binary.
func hookFiles(t *testing.T, libexec string) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../contrib/oci-hooks.d/*.json")
	must(t, err)
	if len(files) != 3 {
		t.Fatalf("hooks are %s", files)
	}
	all := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		all[filepath.Base(f)] = strings.ReplaceAll(string(b), "@LIBEXECDIR@", libexec)
	}
	return all
}

func TestDoctor(t *testing.T) {
	if _, err := os.Stat("/usr/share/containers"); err != nil {
		t.Fatal("podman has made no /usr/share/containers: ", err)
	}
	begin(t)
	checks := func(stdout string) map[string]cgroups.Check {
		t.Helper()
		var list []cgroups.Check
		must(t, json.Unmarshal([]byte(stdout), &list))
		all := map[string]cgroups.Check{}
		for _, c := range list {
			all[c.Name] = c
		}
		return all
	}
	good := hookFiles(t, world.bin)

	stdout, stderr, code := doctor(t, good, "-o", "json")
	all := checks(stdout)
	if code != 0 || stderr != "" {
		t.Errorf("all is well: %d, %s", code, stderr)
	}
	for _, name := range []string{"kernel", "BPF file system", "cgroup2", "load all programs", "hook sk_lookup", "hook connect4", "runtime podman", "runtime runc", "podman hook", "podman splice rule", "policies"} {
		if c, ok := all[name]; !ok || !c.OK || c.Detail == "" {
			t.Errorf("check %q is %+v", name, c)
		}
	}
	stdout, _, code = doctor(t, good)
	if code != 0 || !regexp.MustCompile(`(?m)^  podman hook +works: `).MatchString(stdout) {
		t.Errorf("report: %d, %s", code, stdout)
	}
	stdout, _, code = doctor(t, good, "--checks")
	if code != 0 || !strings.HasPrefix(stdout, "CHECK ") || !regexp.MustCompile(`(?m)^podman hook +present`).MatchString(stdout) {
		t.Errorf("table: %d, %s", code, stdout)
	}
	withoutPrecreate := map[string]string{"a.json": good["50-sidegate-createruntime.json"], "b.json": good["50-sidegate-poststop.json"]}
	stdout, _, code = doctor(t, withoutPrecreate, "-o", "json")
	all = checks(stdout)
	if splice := all["podman splice rule"]; code != 0 || splice.OK || !all["podman hook"].OK || !strings.Contains(splice.Detail, "no hook for stage precreate") {
		t.Errorf("without precreate: %d, checks are %+v and %+v", code, all["podman hook"], splice)
	}
	broken := map[string]string{"50-sidegate-createruntime.json": "{", "50-sidegate-poststop.json": good["50-sidegate-poststop.json"]}
	for _, c := range []struct {
		name  string
		hooks map[string]string
		code  int
		words []string
	}{
		{"no hook", nil, 0, []string{"no hook for stage createRuntime"}},
		{"no poststop", map[string]string{"a.json": good["50-sidegate-createruntime.json"]}, 0, []string{"no hook for stage poststop"}},
		// podman starts containers without a word, or none at all.
		{"hook whose binary is missing", hookFiles(t, "/nowhere"), 1, []string{"/nowhere/sidegate-oci-hook", "does not exist"}},
		{"broken hook", broken, 1, []string{"50-sidegate-createruntime.json", "every container start fails"}},
	} {
		stdout, stderr, code := doctor(t, c.hooks, "-o", "json")
		check := checks(stdout)["podman hook"]
		if check.OK || code != c.code || (code != 0) != strings.Contains(stderr, "podman hook") {
			t.Errorf("%s: %d, %s, check is %+v", c.name, code, stderr, check)
		}
		for _, w := range c.words {
			if !strings.Contains(check.Detail, w) {
				t.Errorf("%s: %q does not say %q", c.name, check.Detail, w)
			}
		}
	}
	// Without a BPF file system, which is to be mounted.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `while umount /sys/fs/bpf 2>/dev/null; do :; done; exec "$0" doctor -o json`, filepath.Join(world.bin, "sidegate"))
	stdout, stderr, code = runCommand(t, cmd)
	if c := checks(stdout)["BPF file system"]; code != 1 || c.OK || !strings.Contains(c.Next, "mount -t bpf") || !strings.Contains(stderr, "BPF file system") {
		t.Errorf("without a BPF file system: %d, %s, %+v", code, stderr, c)
	}
}

// doctor leaves nothing and disturbs nobody.
func TestDoctorWhilePodsAreManaged(t *testing.T) {
	ctx := begin(t)
	p := newMeshPod(ctx, t)
	before := pinned(t, state)
	if _, stderr, code := sidegate(t, "doctor"); code != 0 {
		t.Errorf("doctor: %d, %s", code, stderr)
	}
	if after := pinned(t, state); !slices.Equal(before, after) {
		t.Errorf("pins before %v, after %v", before, after)
	}
	p.wantEnforced(p.app)
	left, err := filepath.Glob("/sys/fs/cgroup/sidegate-doctor-*")
	must(t, err)
	if len(left) > 0 {
		t.Errorf("cgroups are left: %s", left)
	}
}

// make runs make in the root of the module.
func makeTarget(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("make", args...)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// filesBelow lists all files and directories.
func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, strings.TrimPrefix(path, dir))
		}
		return err
	}))
	return all
}

// What is installed is complete, works with podman, and can be removed.
func TestInstall(t *testing.T) {
	ctx := begin(t)
	dest := t.TempDir()
	makeTarget(t, "install", "DESTDIR="+dest, "PREFIX=/usr", "VERSION=e2e")
	hooksDir := filepath.Join(dest, "usr/share/containers/oci/hooks.d")
	files, err := filepath.Glob(filepath.Join(hooksDir, "*"))
	must(t, err)
	stages := map[string]bool{}
	here := filepath.Join(t.TempDir(), "hooks")
	must(t, os.Mkdir(here, 0o755))
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		var def struct {
			Version string
			Hook    struct {
				Path string
				Args []string
			}
			When   map[string]any
			Stages []string
		}
		if err := json.Unmarshal(b, &def); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		st, err := os.Stat(filepath.Join(dest, def.Hook.Path))
		if err != nil || st.Mode().Perm() != 0o755 || !filepath.IsAbs(def.Hook.Path) {
			t.Errorf("%s names %s: %v", f, def.Hook.Path, err)
		}
		// precreate is for what is managed; createRuntime and poststop see to the others in managed pods too.
		if always := def.When["always"] == true; always != (len(def.Stages) == 1 && def.Stages[0] != "precreate") {
			t.Errorf("%s is called when %v", f, def.When)
		}
		if def.Version != "1.0.0" || len(def.Stages) != 1 || len(def.Hook.Args) != 2 || def.Hook.Args[1] != def.Stages[0] {
			t.Errorf("%s is %+v", f, def)
			continue
		}
		stages[def.Stages[0]] = true
		text := strings.ReplaceAll(string(b), def.Hook.Path, filepath.Join(dest, def.Hook.Path))
		must(t, os.WriteFile(filepath.Join(here, filepath.Base(f)), []byte(text), 0o644))
	}
	if !stages["precreate"] || !stages["createRuntime"] || !stages["poststop"] || len(files) != 3 {
		t.Errorf("hooks of %s are for stages %v", files, stages)
	}
	for _, name := range []string{"usr/bin/sidegate", "usr/libexec/sidegate/sidegate-oci-hook", "etc/sidegate/policies"} {
		if st, err := os.Stat(filepath.Join(dest, name)); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v", name, err)
		}
	}
	stdout, _, _ := runCommand(t, exec.Command(filepath.Join(dest, "usr/bin/sidegate"), "version"))
	if !strings.HasPrefix(stdout, "sidegate e2e,") {
		t.Errorf("version is %s", stdout)
	}

	// With the policy that is built in.
	p := newPod(ctx, t, here)
	p.app, err = p.StartApp(ctx, lab.ContainerOptions{Annotations: map[string]string{"sidegate/role": "app"}, CapAdd: []string{"NET_RAW"}})
	must(t, err)
	p.wantClosed(p.app)
	if c, ok := find(t, id(ctx, t, p.app)); !ok || c.Policy != "default" {
		t.Errorf("the app is registered as %+v", c)
	}
	must(t, p.Remove(ctx))
	wantNothingManaged(t)

	makeTarget(t, "uninstall", "DESTDIR="+dest, "PREFIX=/usr")
	for _, f := range filesBelow(t, dest) {
		if st, err := os.Stat(filepath.Join(dest, f)); err != nil || !st.IsDir() || strings.Contains(f, "sidegate") {
			t.Errorf("%s is left: %v", f, err)
		}
	}
	// An administrator's policies are not ours to remove.
	makeTarget(t, "install", "DESTDIR="+dest, "PREFIX=/usr")
	mine := filepath.Join(dest, "etc/sidegate/policies/mine.yaml")
	must(t, os.WriteFile(mine, nil, 0o644))
	makeTarget(t, "uninstall", "DESTDIR="+dest, "PREFIX=/usr")
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("a policy went with uninstall: %v", err)
	}
}

// podman passes over a hook whose binary is missing, which is why doctor looks.
func TestMissingHookBinaryIsSkippedByPodman(t *testing.T) {
	ctx := begin(t)
	hooks, err := lab.Install(t.TempDir(), "/nowhere/sidegate-oci-hook", policies)
	must(t, err)
	p := newPod(ctx, t, hooks)
	app, err := p.StartApp(ctx, lab.ContainerOptions{Annotations: appAnnotations()})
	if err != nil {
		t.Skipf("this podman does not: %v", err)
	}
	p.wantDirect(app, udp(newNonce()))
}
