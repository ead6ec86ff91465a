// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"sidegate/cgroups"
	"sidegate/cgroups/ktls"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// hostRoot is the host's root directory in a container that shares the host's processes.
const hostRoot = "/proc/1/root"

// defaultHook is where `make install` puts the hook.
const defaultHook = "/usr/local/libexec/sidegate/sidegate-oci-hook"

// config is what the plugin's YAML says: the file of --config, or of a plugin that the
// runtime starts itself, /etc/nri/conf.d/10-sidegate.conf.
type config struct {
	// Hook is sidegate-oci-hook's path as the runtime sees it, which is not this
	// process if it runs in a container.
	Hook string `yaml:"hook"`
	// PolicyDir and StateDir are as seen by this process; the hook is told the same.
	PolicyDir string `yaml:"policyDir"`
	StateDir  string `yaml:"stateDir"`
	// KTLSDir has the files that containers mount which ask for it (sidegate/ktls), as the runtime sees it.
	KTLSDir string `yaml:"ktlsDir"`
	// HookTimeout is after how many seconds the runtime gives up a start, for those that
	// wait for their sidecar (sidegate/wait). 0 is never.
	HookTimeout int `yaml:"hookTimeoutSeconds"`
	// IgnoreNamespaces are Kubernetes namespaces whose pods are left alone, whatever they ask for.
	IgnoreNamespaces []string `yaml:"ignoreNamespaces"`
	// Adopt says whether containers are taken over that ran before this plugin did.
	Adopt bool `yaml:"adopt"`
	// LogLevel is panic, fatal, error, warning, info, debug or trace, LogFormat text or json. Options go before.
	LogLevel  string `yaml:"logLevel"`
	LogFormat string `yaml:"logFormat"`
}

// defaultConfig is what holds for what a file does not say.
func defaultConfig() config {
	dir := os.Getenv(policy.DirEnv)
	if dir == "" {
		dir = policy.DefaultDir
	}
	return config{Hook: defaultHook, PolicyDir: dir, StateDir: cgroups.StateDir(), KTLSDir: ktls.HostDir(), Adopt: true}
}

// parseConfig reads a configuration strictly; an error has line and column. name is
// for messages.
func parseConfig(name string, text []byte) (config, error) {
	c := defaultConfig()
	said := map[string]any{} // empty after a file of comments, which would make c empty too
	err := yaml.Unmarshal(text, &said)
	if err == nil && len(said) > 0 {
		err = yaml.UnmarshalWithOptions(text, &c, yaml.Strict())
	}
	if err != nil {
		return c, fmt.Errorf("%s: %s", name, yaml.FormatError(err, false, false)) // without the file's text
	}
	if err := c.check(); err != nil {
		return c, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func (c *config) check() error {
	var errs []error
	for key, path := range map[string]string{"hook": c.Hook, "policyDir": c.PolicyDir, "stateDir": c.StateDir, "ktlsDir": c.KTLSDir} {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("%s: %q is no absolute path: the runtime and the hook run in another working directory", key, path))
		}
	}
	if c.HookTimeout < 0 {
		errs = append(errs, fmt.Errorf("hookTimeoutSeconds: %d is negative: write 0 for none", c.HookTimeout))
	}
	for key, err := range map[string]error{"logLevel": cli.CheckLevel(c.LogLevel), "logFormat": cli.CheckFormat(c.LogFormat)} {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// readConfig reads a file. "" is the default configuration.
func readConfig(path string) (config, error) {
	if path == "" {
		return parseConfig("default configuration", nil)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(path, text)
}

// checkHook tells whether the runtime will find the hook. In a container that shares the
// host's processes, the host's files are those of its first process.
func (c *config) checkHook() error {
	var first error
	for _, root := range []string{"", hostRoot} {
		st, err := os.Stat(root + c.Hook)
		switch {
		case err == nil && st.Mode()&0o111 != 0 && st.Mode().IsRegular():
			return nil
		case err == nil:
			err = errors.New("it is no program")
		case errors.Is(err, fs.ErrNotExist):
			err = errors.New("it is not there")
		}
		if first == nil {
			first = fmt.Errorf("hook %s: %w: install sidegate-oci-hook there, or set hook to its path; until then no container of a managed pod starts", c.Hook, err)
		}
	}
	return first
}
