// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/observe/cli/clitest"
	"sidegate/policy"
)

var update = flag.Bool("update", false, "write the golden files")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

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

// call runs the command in process.
func call(state string, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(env{stdout: &out, stderr: &errs, args: args, state: state})
	return out.String(), errs.String(), code
}

// newState returns a state directory that does not exist.
func newState(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: looks into a BPF file system")
	}
	dir, err := os.MkdirTemp("/sys/fs/bpf", "sgtest-cmd-")
	must(t, err)
	must(t, os.Remove(dir))
	return dir
}

func TestWrongUsage(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		word string
		hint string
	}{
		{"unknown command", []string{"stauts"}, "stauts", "sidegate --help"},
		{"unknown flag", []string{"--force"}, "--force", "sidegate --help"},
		{"unknown flag of a command", []string{"status", "--force"}, "--force", "sidegate status --help"},
		{"argument", []string{"unload", "now"}, "now", "sidegate unload --help"},
		{"argument of version", []string{"version", "x"}, "x", "sidegate version --help"},
		{"argument of doctor", []string{"doctor", "x"}, "x", "sidegate doctor --help"},
		{"unknown output", []string{"status", "-o", "yaml"}, "yaml", "sidegate status --help"},
		{"unknown output of doctor", []string{"doctor", "-o", "yaml"}, "yaml", "sidegate doctor --help"},
		{"argument of bugtool", []string{"bugtool", "x"}, "x", "sidegate bugtool --help"},
		{"timeout of bugtool that is none", []string{"bugtool", "--timeout", "0s"}, "0s", "sidegate bugtool --help"},
		{"flag without its value", []string{"status", "--output"}, "--output", "sidegate status --help"},
		{"value that is none", []string{"unload", "--force=perhaps"}, "perhaps", "sidegate unload --help"},
		{"unknown policy command", []string{"policy", "aply"}, "aply", "sidegate policy --help"},
		{"validate nothing", []string{"policy", "validate"}, "files", "sidegate policy validate --help"},
		{"delete nothing", []string{"policy", "delete"}, "names", "sidegate policy delete --help"},
		{"argument of list", []string{"policy", "list", "x"}, "x", "sidegate policy list --help"},
		{"unknown output of list", []string{"policy", "list", "-o", "yaml"}, "yaml", "sidegate policy list --help"},
		{"unknown output of audit", []string{"policy", "audit", "-o", "yaml"}, "yaml", "sidegate policy audit --help"},
		{"init without a pod", []string{"policy", "init"}, "--pod", "sidegate policy init --help"},
		{"init with a name that is none", []string{"policy", "init", "--pod", "a", "--name", "A B"}, "A B", "sidegate policy init --help"},
		{"unknown output of graph", []string{"graph", "-o", "png"}, "png", "sidegate graph --help"},
		{"network of graph", []string{"graph", "--group", "24,129"}, "129 bits", "sidegate graph --help"},
		{"time of graph", []string{"graph", "--since", "-1h"}, "-1h", "sidegate graph --help"},
		{"order of top", []string{"top", "--sort", "size"}, "size", "sidegate top --help"},
		{"interval of top", []string{"top", "--interval", "1ms"}, "1ms", "sidegate top --help"},
		{"explain without ends", []string{"policy", "explain", "--from", "a/b"}, "--to", "sidegate policy explain --help"},
		{"explain with an end that is none", []string{"policy", "explain", "--from", "a/b", "--to", "192.0.2.1"}, "host:port", "sidegate policy explain --help"},
	} {
		stdout, stderr, code := call("/nowhere", c.args...)
		first, rest, _ := strings.Cut(stderr, "\n")
		if code != cli.ExitUsage || stdout != "" || !strings.HasPrefix(first, "sidegate: ") || !strings.Contains(first, c.word) {
			t.Errorf("%s: %d, %q, %q", c.name, code, stdout, stderr)
		}
		if !strings.HasSuffix(rest, "Run '"+c.hint+"' for usage.\n") {
			t.Errorf("%s: hint is %q, want one to %s", c.name, rest, c.hint)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}, {"help"}, {"status", "--help"}, {"help", "unload"}} {
		stdout, stderr, code := call("/nowhere", args...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Usage:") {
			t.Errorf("%v: %d, %q, %q", args, code, stdout, stderr)
		}
	}
	stdout, _, _ := call("/nowhere", "--help")
	for _, word := range []string{"status", "doctor", "observe", "top", "graph", "bugtool", "unload", "version", "completion", "--state-dir", cgroups.StateEnv} {
		if !strings.Contains(stdout, word) {
			t.Errorf("help does not name %s:\n%s", word, stdout)
		}
	}
}

func TestVersion(t *testing.T) {
	stdout, stderr, code := call("/nowhere", "version")
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "sidegate devel, ABI ") {
		t.Errorf("%d, %q, %q", code, stdout, stderr)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		stdout, stderr, code := call("/nowhere", "completion", shell)
		if code != 0 || stderr != "" || stdout == "" {
			t.Errorf("%s: %d, %d bytes, %q", shell, code, len(stdout), stderr)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // not installed
		}
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(stdout)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s -n: %v, %s", shell, err, out)
		}
	}
}

func TestNotLoaded(t *testing.T) {
	state := newState(t)
	stdout, stderr, code := call(state, "status")
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Not loaded") {
		t.Errorf("status: %d, %q, %q", code, stdout, stderr)
	}
	stdout, stderr, code = call("/nowhere", "status", "-o", "json", "--state-dir", state)
	var st cgroups.Status
	if err := json.Unmarshal([]byte(stdout), &st); err != nil || code != 0 || stderr != "" || st.Loaded || st.State != state {
		t.Errorf("status: %d, %q, %q, %v", code, stdout, stderr, err)
	}
	for _, args := range [][]string{{"unload"}, {"unload", "--force"}} {
		if stdout, stderr, code := call(state, args...); code != 0 || stdout+stderr != "" {
			t.Errorf("%v: %d, %q, %q", args, code, stdout, stderr)
		}
	}
	if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("state was made: %v", err)
	}
}

func TestNoBPFFileSystem(t *testing.T) {
	state := filepath.Join(t.TempDir(), "sidegate")
	for _, command := range []string{"status", "unload"} {
		stdout, stderr, code := call(state, command)
		if code != cli.ExitFailed || stdout != "" || !strings.Contains(stderr, "mount -t bpf bpf /sys/fs/bpf") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: %d, %q, %q", command, code, stdout, stderr)
		}
	}
}

func TestPrintStatus(t *testing.T) {
	print := func(st cgroups.Status) string {
		var b bytes.Buffer
		must(t, printStatus(&b, st))
		return b.String()
	}
	long := strings.Repeat("0123456789abcdef", 4)
	golden(t, "status.golden", print(cgroups.Status{
		Loaded: true, ABI: 1, State: "/sys/fs/bpf/sidegate", Guard: []string{"connect4", "connect6"},
		Pods: []cgroups.PodStatus{
			{
				Pod: long, Policy: "mesh", Mode: "audit", Revision: 7, Outbound: 15001, Inbound: 15006, DNS: 15053, NonTCP: "deny", Listening: true,
				Hooks: []string{"device-2", "loopback"},
				Addresses: []netip.Addr{
					netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("::1"),
					netip.MustParseAddr("fe80::1"), netip.MustParseAddr("2001:db8::2"),
				},
				Counters: map[string]uint64{"steered": 7, "a": 1}, Drops: map[string]uint64{"ingress": 2},
				Containers: []cgroups.ContainerStatus{
					{ID: long, Name: "proxy", Role: "sidecar", Runtime: "podman", Hooks: []string{"a", "b"}},
					{ID: "short", Role: "app", Runtime: "oci", Hooks: []string{"a"}, Missing: []string{"connect4", "sockops"}, Drops: map[string]uint64{"udp": 12, "icmp": 1}},
				},
			},
			{Pod: "p2", Policy: "default", Mode: "enforce", Revision: 12, Outbound: 1, Inbound: 2, NonTCP: "allow"},
		},
	}))
	golden(t, "status-empty.golden", print(cgroups.Status{Loaded: true, ABI: 1, State: "/x"}))
	golden(t, "status-none.golden", print(cgroups.Status{}))
}

func TestProbeHookFiles(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "sidegate-oci-hook")
	must(t, os.WriteFile(binary, nil, 0o755))
	def := func(path, stage string) string {
		return `{"version":"1.0.0","hook":{"path":"` + path + `","args":["x","` + stage + `"]},"when":{"always":true},"stages":["` + stage + `"]}`
	}
	create, stop := def(binary, "createRuntime"), def(binary, "poststop")
	for _, c := range []struct {
		name         string
		files        map[string]string
		ok, required bool
		word         string
	}{
		{"all there", map[string]string{"a.json": create, "b.json": stop, "other.json": def("/bin/other", "createRuntime"), "README": "{"}, true, false, "a.json"},
		{"and precreate", map[string]string{"a.json": create, "b.json": stop, "c.json": def(binary, "precreate")}, true, false, "a.json"},
		{"none", nil, false, false, "createRuntime"},
		{"no poststop", map[string]string{"a.json": create}, false, false, "poststop"},
		{"another's only", map[string]string{"a.json": def("/bin/other", "createRuntime")}, false, false, "createRuntime"},
		{"binary missing", map[string]string{"a.json": create, "b.json": def("/nowhere/sidegate-oci-hook", "poststop")}, false, true, "/nowhere/sidegate-oci-hook"},
		{"not JSON", map[string]string{"a.json": create, "b.json": "{"}, false, true, "b.json"},
	} {
		hooks := t.TempDir()
		for name, text := range c.files {
			must(t, os.WriteFile(filepath.Join(hooks, name), []byte(text), 0o644))
		}
		list := probeHookFiles([]string{filepath.Join(dir, "none"), hooks})
		if (len(list) == 2) != c.ok {
			t.Errorf("%s: %+v", c.name, list)
		}
		got := list[0]
		if got.OK != c.ok || got.Required != c.required || !strings.Contains(got.Detail, c.word) || got.Next == "" {
			t.Errorf("%s: %+v", c.name, got)
		}
		if _, want := c.files["c.json"]; c.ok && (list[1].OK != want || list[1].Detail == "" || list[1].Required) {
			t.Errorf("%s: %+v", c.name, list[1])
		}
	}
}

func TestProbePolicies(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(policy.DirEnv, filepath.Join(dir, "none"))
	if c := probePolicies(); !c.OK || !strings.Contains(c.Detail, "default policy") {
		t.Errorf("no directory: %+v", c)
	}
	t.Setenv(policy.DirEnv, dir)
	must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: a}\nspec: {}\n"), 0o644))
	if c := probePolicies(); !c.OK || !strings.HasSuffix(c.Detail, ": 1") {
		t.Errorf("one policy: %+v", c)
	}
	must(t, os.WriteFile(filepath.Join(dir, "b.yaml"), []byte("kind: Pod\n"), 0o644))
	if c := probePolicies(); c.OK || !c.Required || !strings.Contains(c.Detail, "b.yaml:1:") {
		t.Errorf("broken policy: %+v", c)
	}
}

func TestMan(t *testing.T) {
	clitest.Man(t, func() *cobra.Command { return newRoot(&env{state: "/nowhere", policyDir: "/nowhere"}) })
}

// Every command says what it does and how it is called.
func TestCommandsAreDescribed(t *testing.T) {
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s: short %q, long %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Long, cmd.Example)
		}
		for line := range strings.Lines(cmd.Example) {
			if line != "\n" && !strings.HasPrefix(line, "  ") {
				t.Errorf("%s: its example is not set in: %q", cmd.CommandPath(), line)
			}
		}
		for _, c := range cmd.Commands() {
			check(c)
		}
	}
	check(newRoot(&env{}))
}

// Shells get the words that are there, and none where nothing can be read.
func TestCompletionWords(t *testing.T) {
	state, dir := newState(t), t.TempDir()
	for _, name := range []string{"mesh", "other"} {
		must(t, os.WriteFile(filepath.Join(dir, name+".yaml"), []byte("apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: "+name+"}\nspec: {}\n"), 0o644))
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"policy", "delete", "--policy-dir", dir, ""}, "mesh\nother\n:4\n"},
		{[]string{"policy", "delete", "--policy-dir", dir, "mesh", ""}, "other\n:4\n"},
		{[]string{"policy", "apply", ""}, "yaml\nyml\njson\n:8\n"},
		{[]string{"status", "-o", ""}, "table\njson\n:4\n"},
		{[]string{"observe", "--verdict", ""}, "allowed\nredirected\ndenied\naudited\n:4\n"},
		{[]string{"observe", "--pod", ""}, ":4\n"},
		{[]string{"observe", "--state-dir", "/proc/nowhere", "--pod", ""}, ":1\n"},
	} {
		stdout, _, code := call(state, append([]string{"__complete"}, c.args...)...)
		if code != 0 || stdout != c.want {
			t.Errorf("%q: exit %d, %q, want %q", c.args, code, stdout, c.want)
		}
	}
}
