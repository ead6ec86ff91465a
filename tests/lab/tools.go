// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// What scripts/tools.sh builds, and the variable that names its directory where it need not.
const (
	containerdTools, containerdToolsEnv = "containerd", "SIDEGATE_TOOLS" // containerd, its shim, ctr and runc
	dockerTools, dockerToolsEnv         = "docker", "SIDEGATE_DOCKER_TOOLS"
	composeTools, composeToolsEnv       = "compose", "SIDEGATE_COMPOSE_TOOLS" // docker-compose
)

// toolsDir returns the directory of what scripts/tools.sh builds, if it has not yet.
func toolsDir(ctx context.Context, what, env string) (string, error) {
	if dir := os.Getenv(env); dir != "" {
		return dir, nil
	}
	_, self, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(self), "../../scripts/tools.sh")
	if !filepath.IsAbs(script) { // built with -trimpath: the caller runs in the module, as go run and go test do
		module, err := moduleDir(ctx)
		if err != nil {
			return "", err
		}
		script = filepath.Join(module, "scripts/tools.sh")
	}
	cmd := exec.CommandContext(ctx, script, what)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", script, err)
	}
	return strings.TrimSpace(string(out)), nil
}
