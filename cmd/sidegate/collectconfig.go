// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/goccy/go-yaml"
)

// What is shown of a document: paths of keys, * is any. Nothing else is: these files
// belong to others, and have credentials where nobody would look for them.
var (
	hookKeys = []string{"version", "hook/path", "hook/timeout", "when/always", "when/annotations/*", "when/commands/*", "when/hasBindMounts", "stages/*"}

	dockerKeys = []string{
		"runtimes/*/path", "runtimes/*/runtimeType", "default-runtime", "data-root", "exec-root", "live-restore", "storage-driver", "features/*", "userland-proxy",
		"iptables", "ip6tables", "ip-forward", "ipv6", "bridge", "bip", "fixed-cidr", "fixed-cidr-v6", "mtu", "icc", "exec-opts/*", "cgroup-parent",
		"default-cgroupns-mode", "experimental", "debug", "log-level", "log-driver", "selinux-enabled", "seccomp-profile", "userns-remap", "no-new-privileges",
		"firewall-backend", "containerd",
	}

	containerdKeys = []string{
		"version", "imports/*", "root", "state", "disabled_plugins/*", "required_plugins/*",
		"plugins/io.containerd.nri.v1.nri/*", "plugins/io.containerd.nri.v1.nri/default_validator/*", "plugins/*/enable_selinux", "plugins/*/enable_cdi",
		"plugins/*/containerd/default_runtime_name", "plugins/*/containerd/snapshotter",
		"plugins/*/containerd/runtimes/*/runtime_type", "plugins/*/containerd/runtimes/*/pod_annotations/*", "plugins/*/containerd/runtimes/*/container_annotations/*",
		"plugins/*/containerd/runtimes/*/options/BinaryName", "plugins/*/containerd/runtimes/*/options/SystemdCgroup",
	}

	crioKeys = []string{
		"crio/root", "crio/runroot", "crio/nri/*", "crio/runtime/default_runtime", "crio/runtime/hooks_dir/*", "crio/runtime/cgroup_manager", "crio/runtime/conmon_cgroup",
		"crio/runtime/runtimes/*/runtime_path", "crio/runtime/runtimes/*/runtime_type", "crio/runtime/runtimes/*/allowed_annotations/*", "crio/runtime/log_level",
	}

	podmanKeys = []string{
		"engine/hooks_dir/*", "engine/runtime", "engine/runtimes/*/*", "engine/cgroup_manager", "engine/events_logger", "engine/conmon_path/*",
		"containers/cgroups", "containers/cgroupns", "containers/netns", "containers/seccomp_profile", "containers/annotations/*", "network/network_backend",
	}

	nriKeys = []string{"hook", "policyDir", "stateDir", "ktlsDir", "hookTimeoutSeconds", "ignoreNamespaces/*", "adopt", "logLevel", "logFormat"}
)

// pick returns of a document what is at these paths.
func pick(v any, paths []string) any {
	return pickAt(v, splitPaths(paths))
}

func splitPaths(paths []string) (all [][]string) {
	for _, p := range paths {
		all = append(all, strings.Split(p, "/"))
	}
	return all
}

func pickAt(v any, paths [][]string) any {
	below := func(key string) (more [][]string, ends bool) {
		for _, p := range paths {
			if p[0] != "*" && p[0] != key {
				continue
			}
			if len(p) == 1 {
				ends = true
				continue
			}
			more = append(more, p[1:])
		}
		return more, ends
	}
	take := func(key string, e any) (any, bool) {
		more, ends := below(key)
		switch e.(type) {
		case map[string]any, []any:
			return pickAt(e, more), len(more) > 0
		}
		return e, ends
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if got, ok := take(k, e); ok {
				out[k] = got
			}
		}
		return out
	case []any:
		out := []any{}
		for _, e := range v {
			if got, ok := take("*", e); ok {
				out = append(out, got)
			}
		}
		return out
	}
	return nil
}

// picked is what is shown of a file.
type picked struct {
	File  string   `json:"file"`
	Shown any      `json:"shown"`
	Other []string `json:"otherKeys"` // at the top, of which nothing is shown
}

// parsers turn a document into maps, lists and scalars. Their errors may quote it.
var parsers = map[string]func([]byte, any) error{
	"json": json.Unmarshal, "toml": toml.Unmarshal, "yaml": func(b []byte, v any) error { return yaml.Unmarshal(b, v) },
}

func pickFile(path, kind string, keys []string) (p picked, err error) {
	text, err := readBounded(path, maxFile)
	if err != nil {
		return p, err
	}
	doc := map[string]any{}
	if err := parsers[kind]([]byte(text), &doc); err != nil {
		return p, fmt.Errorf("read %s: it is no %s", path, strings.ToUpper(kind))
	}
	// The parsers' own types of lists and maps become JSON's.
	b, err := json.Marshal(doc)
	if err != nil {
		return p, fmt.Errorf("read %s: %w", path, err)
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return p, fmt.Errorf("read %s: %w", path, err)
	}
	shown := pick(doc, keys)
	p = picked{File: path, Shown: shown, Other: []string{}}
	for k := range doc {
		if _, ok := shown.(map[string]any)[k]; !ok {
			p.Other = append(p.Other, k)
		}
	}
	slices.Sort(p.Other)
	return p, nil
}

// collectFiles puts what is shown of all files that match into one.
func collectFiles(b *bundle, name, kind string, keys []string, patterns ...string) error {
	var errs []error
	list := []picked{}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("list %s: %w", pattern, err)
		}
		for _, path := range paths {
			p, err := pickFile(path, kind, keys)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				errs = append(errs, err)
			default:
				list = append(list, p)
			}
		}
	}
	if len(list) > 0 {
		b.json("config/"+name+".json", list)
	}
	return errors.Join(errs...)
}

func collectHooks(b *bundle, dirs []string) error {
	var patterns []string
	for _, dir := range dirs {
		patterns = append(patterns, filepath.Join(dir, "*.json"))
	}
	return collectFiles(b, "hooks", "json", hookKeys, patterns...)
}

func collectConfigs(b *bundle, s *sources) error {
	var plugins []string
	for _, pattern := range s.nriPlugins {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("list %s: %w", pattern, err)
		}
		plugins = append(plugins, paths...)
	}
	if len(plugins) > 0 {
		b.json("config/nri-plugins.json", plugins)
	}
	return errors.Join(
		collectFiles(b, "docker", "json", dockerKeys, s.config),
		collectFiles(b, "containerd", "toml", containerdKeys, s.containerd),
		collectFiles(b, "crio", "toml", crioKeys, s.crio...),
		collectFiles(b, "podman", "toml", podmanKeys, s.podman...),
		collectFiles(b, "sidegate-nri", "yaml", nriKeys, s.nriConfig...),
	)
}

// containerKeys are of podman's and Docker's lists. Labels follow, by showLabels.
var containerKeys = []string{
	"Id", "Names/*", "Image", "State", "Status", "Created", "Pod", "PodName", "Pid", "ExitCode", "IsInfra", "Labels/*", "HostConfig/NetworkMode", "HostConfig/Annotations/*",
	"NetworkSettings/Networks/*/NetworkID", "NetworkSettings/Networks/*/DriverOpts/*",
}

// showLabels leaves the values of labels and annotations out that nobody needs here.
func showLabels(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			showLabels(e)
		}
	case map[string]any:
		for k, e := range v {
			labels, ok := e.(map[string]any)
			if !ok || k != "Labels" && k != "Annotations" && k != "DriverOpts" {
				showLabels(e)
				continue
			}
			for name := range labels {
				if !isShownLabel(name) {
					labels[name] = "(left out)"
				}
			}
		}
	}
}

func isShownLabel(name string) bool {
	switch name {
	case "io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.container.name", "com.docker.compose.project", "com.docker.compose.service":
		return true
	}
	return strings.HasPrefix(name, "sidegate/")
}

func addContainers(b *bundle, name, list string) error {
	var doc []any
	if err := json.Unmarshal([]byte(list), &doc); err != nil {
		return errors.New("list containers: what it answers is no JSON")
	}
	shown := pick(doc, prefixed(containerKeys))
	showLabels(shown)
	b.json(name, shown)
	return nil
}

// prefixed are keys of each element of a list.
func prefixed(keys []string) (all []string) {
	for _, k := range keys {
		all = append(all, "*/"+k)
	}
	return all
}

func collectPodman(ctx context.Context, b *bundle) error {
	if _, err := exec.LookPath("podman"); err != nil {
		return nil
	}
	text, err := say(ctx, "podman", "ps", "--all", "--format", "json")
	if err != nil {
		return err
	}
	return addContainers(b, "containers-podman.json", text)
}

// collectDocker asks Docker itself: its command prints labels in a way that nobody can
// take apart.
func collectDocker(ctx context.Context, b *bundle, socket string) error {
	if ok, err := serves(socket); !ok {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("ask Docker: %w", err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	get := func(path string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", fmt.Errorf("ask Docker: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return "", fmt.Errorf("ask Docker for %s: %s", path, resp.Status)
		}
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxFile))
		if err != nil {
			return "", fmt.Errorf("ask Docker for %s: %w", path, err)
		}
		return string(text), nil
	}
	list, err := get("/containers/json?all=1")
	if err == nil {
		err = addContainers(b, "containers-docker.json", list)
	}
	plugins, perr := get("/plugins")
	var doc []any
	if perr == nil && json.Unmarshal([]byte(plugins), &doc) == nil {
		b.json("docker-plugins.json", pick(doc, prefixed([]string{"Id", "Name", "Enabled", "PluginReference", "Config/Interface/Socket"})))
	}
	return errors.Join(err, perr)
}
