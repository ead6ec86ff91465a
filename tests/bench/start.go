// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	startWith    = "runc run, Sidegate's hook"
	startWithout = "runc run, no hook"
)

// measureStart times whole containers, from the start of runc to its end: a program that does nothing, in a network namespace of its
// own, so that each start is that of a pod's first container, on a node that has another managed pod. Only the start is hooked: poststop runs, untimed, afterwards.
func measureStart(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	bundles := map[string]string{}
	for side, hooks := range map[string]*specs.Hooks{
		startWithout: nil,
		startWith:    {CreateRuntime: []specs.Hook{{Path: w.hook, Args: []string{filepath.Base(w.hook), "createRuntime"}, Env: w.hookEnv}}},
	} {
		if bundles[side], err = w.bundle(hooks); err != nil {
			return nil, nil, err
		}
	}
	defer func() { err = errors.Join(err, w.unload(context.WithoutCancel(ctx))) }()
	gone, err := w.resident(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, gone()) }()
	sides := []string{startWithout, startWith}
	values := map[string][]float64{}
	for round := range e.rounds(50) + 1 {
		for _, side := range rotated(sides, round) {
			took, err := w.runc(ctx, bundles[side])
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", side, err)
			}
			if round > 0 { // the first one warms the caches
				values[side] = append(values[side], took.Seconds()*1e3)
			}
		}
	}
	c := compare{startWith, startWithout}
	f, err := newFigure("start", "start to end of a container", "ms", sides, values, c)
	if err != nil {
		return nil, nil, err
	}
	f.difference(values, c)
	return []figure{f}, nil, nil
}

// bundle makes an OCI bundle of busybox's true.
func (w *world) bundle(hooks *specs.Hooks) (string, error) {
	dir, err := os.MkdirTemp(w.dir, "bundle-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(dir, "rootfs", "proc"), filepath.Join(dir, "rootfs", "dev")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("%w (install busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755); err != nil {
		return "", err
	}
	namespaces := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}
	b, err := json.Marshal(specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: "rootfs"},
		Process:     &specs.Process{Args: []string{"/bin/busybox", "true"}, Cwd: "/", NoNewPrivileges: true},
		Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Annotations: annotations("app"),
		Hooks:       hooks,
		Linux: &specs.Linux{
			Namespaces:  namespaces,
			CgroupsPath: strings.TrimPrefix(filepath.Join(w.cgroup, filepath.Base(dir)), cgroupRoot),
		},
	})
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644)
}

// runc runs a bundle to its end.
func (w *world) runc(ctx context.Context, bundle string) (time.Duration, error) {
	w.began++
	id := fmt.Sprintf("bench%d", w.began)
	out, err := os.CreateTemp(w.dir, "runc-")
	if err != nil {
		return 0, err
	}
	defer func() {
		out.Close()
		os.Remove(out.Name())
	}()
	cmd := exec.CommandContext(ctx, "runc", "--root", filepath.Join(w.dir, "runc"), "run", "--bundle", bundle, id)
	cmd.Stdout, cmd.Stderr = out, out
	began := time.Now()
	err = cmd.Run()
	took := time.Since(began)
	if err != nil {
		text, _ := os.ReadFile(out.Name())
		return 0, fmt.Errorf("runc run: %w: %s", err, strings.TrimSpace(string(text)))
	}
	_, _, err = w.runHook("poststop", id, 0, "app")
	return took, err
}
