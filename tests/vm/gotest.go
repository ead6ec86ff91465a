// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestBinary is the compiled tests of one package.
type TestBinary struct {
	// Package is the import path.
	Package string
	// Files are the binary and the package's testdata.
	Files []File
	// Dir is the working directory of the tests in the guest, where testdata
	// is; the binary is in it too.
	Dir string
}

// BuildTests compiles the tests of packages of this module, with build tags if
// there are any, into static binaries in the directory dir, which the caller
// owns. A package without tests is an error.
func BuildTests(ctx context.Context, dir string, tags []string, packages ...string) ([]TestBinary, error) {
	var binaries []TestBinary
	for i, pkg := range packages {
		list, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.ImportPath}}\n{{.Dir}}", pkg).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("find package %s: %w:\n%s", pkg, err, list)
		}
		importPath, source, _ := strings.Cut(strings.TrimSpace(string(list)), "\n")
		host := filepath.Join(dir, fmt.Sprintf("%d.test", i))
		if err := goTool(ctx, "test", "-c", "-ldflags=-s -w", "-tags", strings.Join(tags, ","), "-o", host, importPath); err != nil {
			return nil, err
		}
		if _, err := os.Stat(host); err != nil {
			return nil, fmt.Errorf("build tests of %s: the package has none", importPath)
		}
		binary := TestBinary{Package: importPath, Dir: path.Join("/src", importPath)}
		testdata, err := HostTree(filepath.Join(source, "testdata"), path.Join(binary.Dir, "testdata"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		binary.Files = append(testdata, File{Path: binary.program(), Host: host, Mode: 0o755})
		binaries = append(binaries, binary)
	}
	return binaries, nil
}

func (b TestBinary) program() string {
	return path.Join(b.Dir, path.Base(b.Package)+".test")
}

// Command runs the tests in a guest that has Files, once, and in a form that
// CheckTests understands. A test that takes longer than timeout panics, and
// shows where it is. Further args are for the test binary, e.g. "-test.run=X".
func (b TestBinary) Command(timeout time.Duration, args ...string) Command {
	return Command{
		Args: slices.Concat([]string{
			b.program(), "-test.v=test2json", "-test.count=1", "-test.timeout=" + timeout.String(),
		}, args),
		Dir: b.Dir,
		// For what a panic does not end.
		Timeout: timeout + 10*time.Second,
	}
}

// testResult is what came of one test, or subtest.
type testResult struct {
	name string
	// action is the last one that test2json told: pass, fail, skip, or a
	// word like run or pause if the test did not end.
	action string
	output strings.Builder
}

// CheckTests makes the results of a TestBinary's command into subtests of t.
//
// It is stricter than go test: a skipped test fails, unless its reason starts
// with "kernel:", so that only what a kernel really lacks is ever left out. No
// test at all fails too.
func CheckTests(t *testing.T, command CommandResult) {
	t.Helper()
	results, rest, err := parseTests(t.Context(), command.Output)
	if err != nil {
		t.Fatal(err)
	}
	failed := false
	for _, result := range results {
		t.Run(result.name, func(t *testing.T) {
			switch complaint := result.complaint(); {
			case complaint != "":
				failed = true
				t.Errorf("%s\n%s", complaint, &result.output)
			case result.action == "skip":
				t.Skip(result.output.String())
			case testing.Verbose():
				t.Log(result.output.String())
			}
		})
	}
	if len(results) == 0 {
		t.Error("no test ran")
	}
	if command.Code != 0 && (!failed || len(results) == 0) || command.Err != "" {
		t.Errorf("%q ended with code %d %s:\n%s", command.Args, command.Code, command.Err, rest)
	}
}

// parseTests returns the tests in the order they started in, and the output
// that belongs to none.
func parseTests(ctx context.Context, output []byte) ([]*testResult, string, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(output)
	converted, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("read test output: %w", err)
	}
	var results []*testResult
	var rest strings.Builder
	byName := map[string]*testResult{}
	for line := range bytes.Lines(converted) {
		var event struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, "", fmt.Errorf("read test output: %w", err)
		}
		if event.Test == "" {
			rest.WriteString(event.Output)
			continue
		}
		result := byName[event.Test]
		if result == nil {
			result = &testResult{name: event.Test}
			byName[event.Test] = result
			results = append(results, result)
		}
		if event.Action == "output" {
			result.output.WriteString(event.Output)
		} else {
			result.action = event.Action
		}
	}
	return results, rest.String(), nil
}

// logLine is how package testing writes a message, the reason of a skip too.
var logLine = regexp.MustCompile(`(?m)^ *[^ :]+\.go:\d+: (.*)$`)

// complaint is what is wrong with a result, if anything.
func (r *testResult) complaint() string {
	switch r.action {
	case "pass":
		return ""
	case "fail":
		return "failed in the VM"
	case "skip":
		reason := "none"
		if lines := logLine.FindAllStringSubmatch(r.output.String(), -1); len(lines) > 0 {
			reason = lines[len(lines)-1][1]
		}
		if strings.HasPrefix(reason, "kernel:") {
			return ""
		}
		return fmt.Sprintf("skipped, for a reason that does not start with \"kernel:\": %s", reason)
	default:
		return "did not end"
	}
}
