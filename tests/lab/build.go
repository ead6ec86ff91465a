// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// programs are this module's: the directory of each one's package, and its name.
var programs = map[string]string{
	"cmd/sidegate": "sidegate", "oci-hook": "sidegate-oci-hook", "nri": "sidegate-nri", "dockerplugin": "sidegate-docker", "cmd/sidegate-tls": "sidegate-tls",
}

// Build puts the programs into dir. It builds them in the module, where the next one, of this process or another, finds
// those that did not change: to link them takes longer than many a test.
func Build(dir string) (err error) {
	module, err := moduleDir(context.Background())
	if err != nil {
		return err
	}
	built := filepath.Join(module, "build", "lab")
	if err := errors.Join(os.MkdirAll(built, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
		return fmt.Errorf("build programs: %w", err)
	}
	lock, err := os.Open(built)
	if err != nil {
		return fmt.Errorf("build programs: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("build programs: lock %s: %w", built, err)
	}
	args := []string{"build", "-trimpath", "-ldflags=-s -w -X main.version=e2e", "-o", built + "/"}
	for pkg := range programs {
		args = append(args, "sidegate/"+pkg)
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build programs: %w: %s", err, out)
	}
	for pkg, name := range programs {
		b, err := os.ReadFile(filepath.Join(built, filepath.Base(pkg)))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o755)
		}
		if err != nil {
			return fmt.Errorf("build programs: %w", err)
		}
	}
	return nil
}

// moduleDir returns the directory of this module, in which the caller runs.
func moduleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find this module: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
