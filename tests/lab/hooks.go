// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// WriteHooks fills dir with hooks.d files that run binary at createRuntime and at poststop of every container. Its whole environment is
// what the files in contrib/oci-hooks.d give it, and env ("KEY=VALUE").
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
		Version string          `json:"version"`
		Hook    hook            `json:"hook"`
		When    map[string]bool `json:"when"`
		Stages  []string        `json:"stages"`
	}
	for _, stage := range []string{"createRuntime", "poststop"} {
		b, err := json.MarshalIndent(file{
			Version: "1.0.0",
			Hook:    hook{Path: binary, Args: []string{filepath.Base(binary), stage}, Env: env},
			When:    map[string]bool{"always": true},
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
