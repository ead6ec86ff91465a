// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"sidegate/tests/lab"
)

const (
	dockerBridge  = "bridge driver"
	dockerDriver  = "sidegate driver, no labels"
	dockerManaged = "sidegate driver, app"
)

// measureDocker times docker run on a network of Docker's bridge driver and on one of Sidegate's, with and without a role.
func measureDocker(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	l, err := lab.New(ctx, lab.Options{Docker: &lab.DockerOptions{}})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Close(), w.unload(context.WithoutCancel(ctx))) }()
	end, err := l.Docker.StartDriver(ctx, filepath.Join(e.bin, "sidegate-docker"), "--policy-dir", filepath.Join(w.dir, "policies"))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Docker.RemoveAll(context.WithoutCancel(ctx)), end()) }()
	for driver, subnet := range map[string]string{"bridge": "203.0.113.0/25", lab.SidegateDriver: "203.0.113.128/25"} {
		if _, err := l.Docker.CLI(ctx, "network", "create", "--driver", driver, "--subnet", subnet, "on-"+driver); err != nil {
			return nil, nil, err
		}
	}
	flags := map[string][]string{
		dockerBridge:  {"--network", "on-bridge"},
		dockerDriver:  {"--network", "on-" + lab.SidegateDriver},
		dockerManaged: {"--network", "on-" + lab.SidegateDriver, "--label", "sidegate/role=app", "--label", "sidegate/policy=" + policyName},
	}
	sides := []string{dockerBridge, dockerDriver, dockerManaged}
	took := map[string][]float64{}
	for round := range e.rounds(30) + 1 {
		for _, side := range rotated(sides, round) {
			name := fmt.Sprintf("bench-%d-%d", round, len(took[side]))
			began := time.Now()
			if _, err := l.Docker.Run(ctx, name, lab.AppImage, flags[side], "/bin/busybox", "sleep", "1000"); err != nil {
				return nil, nil, err
			}
			ms := time.Since(began).Seconds() * 1e3
			if _, err := l.Docker.CLI(ctx, "rm", "--force", name); err != nil {
				return nil, nil, err
			}
			if round > 0 {
				took[side] = append(took[side], ms)
			}
		}
	}
	pairs := []compare{{dockerDriver, dockerBridge}, {dockerManaged, dockerBridge}}
	f, err := newFigure("docker", "docker run --detach", "ms", sides, took, pairs...)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range pairs {
		f.difference(took, c)
	}
	return []figure{f}, nil, nil
}
