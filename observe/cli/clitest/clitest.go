// SPDX-License-Identifier: Apache-2.0

// Package clitest has the tests that all commands share: what they print, and their manual pages.
package clitest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/tools/txtar"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// Golden runs the command lines that a file has, and compares what they print with what the file says: each line is the name
// of a file in the archive, the exit code, standard output and standard error are in it. update writes the file.
func Golden(t *testing.T, file string, newRoot func() *cobra.Command, update bool) {
	t.Helper()
	for _, name := range []string{cli.LogLevelEnv, cli.LogFormatEnv, policy.DirEnv, cgroups.StateEnv, cgroups.TLSSocketEnv} {
		t.Setenv(name, "")
	}
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(archive.Files) == 0 {
		t.Fatalf("%s has no command lines", file)
	}
	for i := range archive.Files {
		f := &archive.Files[i]
		var stdout, stderr bytes.Buffer
		code := cli.Run(newRoot(), cli.Env{Args: strings.Fields(f.Name)[1:], Stdout: &stdout, Stderr: &stderr})
		got := fmt.Sprintf("exit %d\n%s%s", code, prefixed("", stdout.String()), prefixed("! ", stderr.String()))
		if update {
			f.Data = []byte(got)
		} else if got != string(f.Data) {
			t.Errorf("%s: `%s` differs (write it with -update):\n--- got\n%s--- want\n%s", file, f.Name, got, f.Data)
		}
	}
	if update {
		if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// prefixed tells what was printed to one output from the other.
func prefixed(prefix, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(prefix + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}

// Man checks that every command has a page with every option of it, that the same pages are made again, and that groff,
// if it is installed, has nothing to say.
func Man(t *testing.T, newRoot func() *cobra.Command) {
	t.Helper()
	dirs := []string{t.TempDir(), t.TempDir()}
	for _, dir := range dirs {
		t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
		var stdout, stderr bytes.Buffer
		if code := cli.Run(newRoot(), cli.Env{Args: []string{"man", dir}, Stdout: &stdout, Stderr: &stderr}); code != 0 || stdout.Len()+stderr.Len() > 0 {
			t.Fatalf("man: exit %d, %s%s", code, &stdout, &stderr)
		}
	}
	root := newRoot()
	root.InitDefaultCompletionCmd()
	pages := 0
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		pages++
		cmd.InitDefaultHelpFlag()
		pattern := filepath.Join(dirs[0], strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".[18]")
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) != 1 {
			t.Fatalf("pages of `%s`: %v, %v", cmd.CommandPath(), found, err)
		}
		page, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		again, err := os.ReadFile(filepath.Join(dirs[1], filepath.Base(found[0])))
		if err != nil || !bytes.Equal(page, again) {
			t.Errorf("%s is another one the next time: %v", filepath.Base(found[0]), err)
		}
		if !bytes.Contains(page, []byte(`"2023-11-14"`)) {
			t.Errorf("%s is not of the day it was asked for", filepath.Base(found[0]))
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Deprecated == "" && !bytes.Contains(page, []byte(`\fB--`+f.Name+`\fP`)) {
				t.Errorf("%s does not have --%s", filepath.Base(found[0]), f.Name)
			}
		})
		lint(t, found[0])
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && !c.IsAdditionalHelpTopicCommand() {
				check(c)
			}
		}
	}
	check(root)
	if all, err := filepath.Glob(filepath.Join(dirs[0], "*")); err != nil || len(all) != pages {
		t.Errorf("there are %d pages of %d commands: %v", len(all), pages, err)
	}
}

// lint lets groff format a page with all its warnings.
func lint(t *testing.T, page string) {
	t.Helper()
	groff, err := exec.LookPath("groff")
	if err != nil {
		return
	}
	if out, err := exec.Command(groff, "-ww", "-man", "-t", "-z", "-K", "utf8", page).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}
