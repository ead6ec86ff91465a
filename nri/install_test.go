// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidegate/cgroups/ktls"
)

const somePolicy = "apiVersion: sidegate/v1alpha1\nkind: PodPolicy\nmetadata: {name: NAME}\nspec: {}\n"

// site has a directory of programs, one of policies as the kubelet mounts a ConfigMap, and
// a host's.
type site struct {
	*testing.T
	from, policies, to, policyDir string
	generation                    int
}

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	s := &site{
		T: t, from: filepath.Join(dir, "image"), policies: filepath.Join(dir, "configured"),
		to: filepath.Join(dir, "host/opt/bin"), policyDir: filepath.Join(dir, "host/etc/policies"),
	}
	for _, d := range []string{s.from, s.policies} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.write(filepath.Join(s.from, "sidegate-oci-hook"), "the hook")
	s.write(filepath.Join(s.from, "sidegate"), "the command")
	return s
}

func (s *site) write(path, text string) {
	s.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
}

func (s *site) read(path string) string {
	s.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

// configure mounts a ConfigMap: links to ..data, which is a link to the files.
func (s *site) configure(files map[string]string) {
	s.Helper()
	s.generation++
	data := strings.Repeat(".", 2) + strings.Repeat("x", s.generation)
	if err := os.RemoveAll(s.policies); err != nil {
		s.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.policies, data), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.Symlink(data, filepath.Join(s.policies, "..data")); err != nil {
		s.Fatal(err)
	}
	for name, text := range files {
		s.write(filepath.Join(s.policies, data, name), text)
		if err := os.Symlink("..data/"+name, filepath.Join(s.policies, name)); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *site) install() (string, error) {
	s.Helper()
	var stdout bytes.Buffer
	err := install(installOptions{from: s.from, to: s.to, policies: s.policies, policyDir: s.policyDir}, &stdout)
	return stdout.String(), err
}

func (s *site) must() string {
	s.Helper()
	out, err := s.install()
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// refused installs, and wants an error with all these words in it.
func (s *site) refused(words ...string) {
	s.Helper()
	out, err := s.install()
	if err == nil {
		s.Fatalf("it was installed: %s", out)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			s.Errorf("there is no %q in: %v", word, err)
		}
	}
}

// has compares a directory's files, without the manifest.
func (s *site) has(dir string, want ...string) {
	s.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != manifest {
			names = append(names, e.Name())
		}
	}
	if !slices.Equal(names, want) {
		s.Errorf("%s has %q, not %q", dir, names, want)
	}
}

func named(name string) string { return strings.ReplaceAll(somePolicy, "NAME", name) }

func TestInstall(t *testing.T) {
	s := newSite(t)
	s.configure(map[string]string{"a.yaml": named("a"), "b.yml": named("b"), "README": "no policy"})
	out := s.must()
	s.has(s.to, "sidegate", "sidegate-oci-hook")
	s.has(s.policyDir, "a.yaml", "b.yml")
	hook := filepath.Join(s.to, "sidegate-oci-hook")
	for path, mode := range map[string]os.FileMode{hook: 0o755, filepath.Join(s.policyDir, "a.yaml"): 0o644} {
		st, err := os.Lstat(path)
		if err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, mode %v", path, err, st.Mode())
		}
		if !strings.Contains(out, "installed "+path+"\n") {
			t.Errorf("it does not say that it installed %s: %s", path, out)
		}
	}
	if s.read(hook) != "the hook" || s.read(filepath.Join(s.policyDir, "a.yaml")) != named("a") {
		t.Error("other content")
	}

	before, err := os.Stat(hook)
	if err != nil {
		t.Fatal(err)
	}
	if out := s.must(); out != "" {
		t.Errorf("the second time it changed something: %s", out)
	}
	after, err := os.Stat(hook)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the hook is another file: %v", err)
	}

	// Who has the old hook open keeps it.
	open, err := os.Open(hook)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	s.write(filepath.Join(s.from, "sidegate-oci-hook"), "THE HOOK")
	s.configure(map[string]string{"a.yaml": named("other"), "c.yaml": named("c")})
	s.must()
	if s.read(hook) != "THE HOOK" || s.read(filepath.Join(s.policyDir, "a.yaml")) != named("other") {
		t.Error("it was not replaced")
	}
	old := make([]byte, 8)
	if _, err := open.Read(old); err != nil || string(old) != "the hook" {
		t.Errorf("the old hook reads %q, %v", old, err)
	}
	s.has(s.policyDir, "a.yaml", "c.yaml")

	if err := os.Chmod(hook, 0o644); err != nil {
		t.Fatal(err)
	}
	s.must()
	if st, err := os.Stat(hook); err != nil || st.Mode() != 0o755 {
		t.Errorf("the hook's mode was not put right: %v, %v", st.Mode(), err)
	}
}

// What containers mount comes with the image too, if it is asked for.
func TestInstallKTLS(t *testing.T) {
	s := newSite(t)
	to := filepath.Join(filepath.Dir(s.to), "ktls")
	run := func() (string, error) {
		var stdout bytes.Buffer
		err := install(installOptions{from: s.from, to: s.to, ktls: to}, &stdout)
		return stdout.String(), err
	}
	if _, err := run(); err == nil || !strings.Contains(err.Error(), "ktls/openssl.cnf: no such file or directory: it has to be in ktls beside sidegate-nri") {
		t.Error(err)
	}
	if err := os.Mkdir(filepath.Join(s.from, "ktls"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range ktls.Files() {
		s.write(filepath.Join(s.from, "ktls", name), name)
	}
	out, err := run()
	if err != nil || !strings.Contains(out, "installed "+to+"/openssl.cnf\n") {
		t.Errorf("%s, %v", out, err)
	}
	s.has(to, "gnutls.conf", "openssl.cnf")
	if err := ktls.CheckHost(to); err != nil {
		t.Error(err)
	}
	if out, err := run(); out != "" || err != nil {
		t.Errorf("the second time: %s, %v", out, err)
	}
}

// TestInstallBusy replaces a program that runs, which cannot be written to.
func TestInstallBusy(t *testing.T) {
	s := newSite(t)
	s.configure(nil)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	program := s.read(sleep)
	s.write(filepath.Join(s.from, "sidegate-oci-hook"), program)
	s.must()
	cmd := exec.Command(filepath.Join(s.to, "sidegate-oci-hook"), "60")
	cmd.Args[0] = "sleep"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	s.write(filepath.Join(s.from, "sidegate-oci-hook"), "new")
	s.must()
	if s.read(filepath.Join(s.to, "sidegate-oci-hook")) != "new" {
		t.Error("it was not replaced")
	}
	if has := s.read("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/exe"); has != program {
		t.Error("what runs has changed")
	}
}

func TestInstallBrokenPolicy(t *testing.T) {
	s := newSite(t)
	s.configure(map[string]string{"a.yaml": named("a")})
	s.must()
	s.write(filepath.Join(s.from, "sidegate"), "newer")
	for name, broken := range map[string]map[string]string{
		"unknown field":  {"a.yaml": named("a") + "more: 1\n", "b.yaml": named("b")},
		"no YAML":        {"a.yaml": "{", "b.yaml": named("b")},
		"one name twice": {"a.yaml": named("a"), "b.yaml": named("a")},
	} {
		t.Run(name, func(t *testing.T) {
			s.T = t
			s.configure(broken)
			s.refused("nothing was changed", "a.yaml")
			s.has(s.policyDir, "a.yaml")
			if s.read(filepath.Join(s.policyDir, "a.yaml")) != named("a") || s.read(filepath.Join(s.to, "sidegate")) != "the command" {
				t.Error("something was changed")
			}
		})
	}
}

// TestInstallOthers has policies that an administrator put there.
func TestInstallOthers(t *testing.T) {
	s := newSite(t)
	if err := os.MkdirAll(s.policyDir, 0o755); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(s.policyDir, "own.yaml")
	s.write(own, named("own"))
	s.write(filepath.Join(s.policyDir, "notes.txt"), "mine")
	s.write(filepath.Join(s.policyDir, "wrong.yaml"), "{")

	s.configure(map[string]string{"own.yaml": named("b")})
	s.refused(own, "was not put there by install")
	s.configure(map[string]string{"b.yaml": named("own")})
	s.refused(own, "b.yaml", "is the name of the policy")

	s.configure(map[string]string{"a.yaml": named("a"), "own.yaml": named("own")}) // the same
	s.must()
	s.configure(nil)
	if out := s.must(); !strings.Contains(out, "removed "+filepath.Join(s.policyDir, "a.yaml")) {
		t.Errorf("it says %q", out)
	}
	s.has(s.policyDir, "notes.txt", "own.yaml", "wrong.yaml")
	if text := s.read(filepath.Join(s.policyDir, manifest)); text != "" {
		t.Errorf("the manifest has %q", text)
	}
}

// TestInstallKilled goes on from where one that was killed has stopped.
func TestInstallKilled(t *testing.T) {
	s := newSite(t)
	s.configure(map[string]string{"a.yaml": named("a"), "b.yaml": named("b")})
	s.must()
	for _, dir := range []string{s.to, s.policyDir} {
		s.write(filepath.Join(dir, unfinished+"123"), "ha")
	}
	// Written down, one written and one not.
	if err := os.Remove(filepath.Join(s.policyDir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	s.configure(map[string]string{"c.yaml": named("c")})
	s.must()
	s.has(s.policyDir, "c.yaml")
	s.has(s.to, "sidegate", "sidegate-oci-hook")
	if s.read(filepath.Join(s.policyDir, manifest)) != "c.yaml\n" {
		t.Error("the manifest is not right")
	}
	s.write(filepath.Join(s.policyDir, manifest), "../x.yaml\n")
	s.refused(manifest, "../x.yaml")
}

func TestInstallErrors(t *testing.T) {
	s := newSite(t)
	s.configure(nil)
	if err := os.Remove(filepath.Join(s.from, "sidegate-oci-hook")); err != nil {
		t.Fatal(err)
	}
	s.refused("sidegate-oci-hook", "beside sidegate-nri")

	if err := os.MkdirAll(filepath.Join(s.to, "sidegate-oci-hook"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.write(filepath.Join(s.from, "sidegate-oci-hook"), "the hook")
	s.refused(filepath.Join(s.to, "sidegate-oci-hook"), "is a directory")

	s.policies = filepath.Join(s.policies, "nowhere")
	if _, err := s.install(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("policies that are not there: %v", err)
	}
}
