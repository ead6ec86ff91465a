// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// root is the repository.
const root = "../.."

const chart = root + "/contrib/kubernetes/sidegate"

// helm is the program of tests/tools/helm. It takes minutes to build, and is kept.
var helm = sync.OnceValues(func() (string, error) {
	cache := os.Getenv("SIDEGATE_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(home, ".cache", "sidegate")
	}
	source := filepath.Join(root, "tests", "tools", "helm")
	sum := sha256.New()
	for _, file := range []string{"go.mod", "go.sum", "main.go"} {
		text, err := os.ReadFile(filepath.Join(source, file))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d\n%s", file, len(text), text)
	}
	dir := filepath.Join(cache, "tools", "helm-"+hex.EncodeToString(sum.Sum(nil))[:16])
	program := filepath.Join(dir, "helm")
	if _, err := os.Stat(program); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return program, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, "new")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tmp, "helm"), ".")
	build.Dir = source
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", source, err, out)
	}
	return program, os.Rename(filepath.Join(tmp, "helm"), program)
})

// runHelm returns what it prints; its error has what it says.
func runHelm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program, err := helm()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w: %s%s", strings.Join(args, " "), err, stderr.Bytes(), stdout.Bytes())
	}
	return stdout.String(), nil
}
