// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Build makes Sidegate's binaries in dir, as make does.
func Build(dir string) error {
	for name, pkg := range map[string]string{
		"sidegate": "sidegate/cmd/sidegate", "sidegate-oci-hook": "sidegate/oci-hook", "sidegate-nri": "sidegate/nri",
		"sidegate-docker": "sidegate/dockerplugin", "sidegate-tls": "sidegate/cmd/sidegate-tls",
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X main.version=e2e", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}
