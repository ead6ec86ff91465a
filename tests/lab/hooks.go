// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Install writes below dir what an administrator would: a directory of policies (by file name), and one of hooks that run binary with
// them, which it returns. The environment of the hooks knows where programs are.
func Install(dir, binary string, policies map[string]string) (hooks string, err error) {
	policyDir := PolicyDir(dir)
	if err := os.MkdirAll(policyDir, 0o755); err != nil {
		return "", err
	}
	for name, text := range policies {
		if err := os.WriteFile(filepath.Join(policyDir, name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	hooks = filepath.Join(dir, "hooks")
	return hooks, WriteHooks(hooks, binary, []string{"SIDEGATE_POLICY_DIR=" + policyDir, "SIDEGATE_KTLS_DIR=" + ktlsDir(dir), "PATH=" + os.Getenv("PATH")})
}

// InstallKTLS puts what containers mount for kTLS where the hooks of Install look for it: from, contrib/ktls of the repository.
func InstallKTLS(dir, from string) error {
	files, err := os.ReadDir(from)
	if err == nil {
		err = os.MkdirAll(ktlsDir(dir), 0o755)
	}
	for _, f := range files {
		var text []byte
		if err == nil {
			text, err = os.ReadFile(filepath.Join(from, f.Name()))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(ktlsDir(dir), f.Name()), text, 0o644)
		}
	}
	return err
}

func ktlsDir(dir string) string { return filepath.Join(dir, "ktls") }

// PolicyDir is where Install writes the policies.
func PolicyDir(dir string) string { return filepath.Join(dir, "policies") }

// Unload lets the operator's command take Sidegate out of the kernel, and checks that nothing of it stays.
func Unload(ctx context.Context, command string) error {
	out, err := exec.CommandContext(context.WithoutCancel(ctx), command, "unload", "--force").CombinedOutput()
	if err != nil {
		return fmt.Errorf("sidegate unload: %w: %s", err, strings.TrimSpace(string(out)))
	}
	left, err := filepath.Glob("/sys/fs/bpf/sidegate/*")
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("after sidegate unload there are pins: %s", strings.Join(left, " "))
	}
	return err
}

// WriteHooks fills dir with hooks.d files that run binary at createRuntime and at poststop of every container, and at precreate of
// those that have annotations. Its whole environment is what the files in contrib/oci-hooks.d give it, and env ("KEY=VALUE").
func WriteHooks(dir, binary string, env []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	env = append([]string{"GOMAXPROCS=1"}, env...)
	type hook struct {
		Path string   `json:"path"`
		Args []string `json:"args"`
		Env  []string `json:"env"`
	}
	type file struct {
		Version string         `json:"version"`
		Hook    hook           `json:"hook"`
		When    map[string]any `json:"when"`
		Stages  []string       `json:"stages"`
	}
	always := map[string]any{"always": true}
	for stage, when := range map[string]map[string]any{
		"precreate":     {"annotations": map[string]string{"^sidegate/": ""}},
		"createRuntime": always,
		"poststop":      always,
	} {
		b, err := json.MarshalIndent(file{
			Version: "1.0.0",
			Hook:    hook{Path: binary, Args: []string{filepath.Base(binary), stage}, Env: env},
			When:    when,
			Stages:  []string{stage},
		}, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "sidegate-"+stage+".json"), append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
