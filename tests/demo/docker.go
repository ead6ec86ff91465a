// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sidegate/tests/lab"
)

// mesh is the network of the demo's containers, and wrapper the runtime of those that join another's network namespace.
const (
	mesh    = "mesh"
	wrapper = "sidegate"
)

// dockerOptions is a Docker that knows the wrapper.
func dockerOptions(e *env) *lab.DockerOptions {
	return &lab.DockerOptions{Runtimes: map[string]string{wrapper: filepath.Join(e.bin, "sidegate-oci-hook")}}
}

// joining is how a container joins a pod's network namespace in Docker: by the wrapper, where Sidegate is.
func (s *scene) joining(o lab.ContainerOptions) lab.ContainerOptions {
	if s.lab.Docker != nil && s.installed {
		o.Flags = append(o.Flags, "--runtime", wrapper)
	}
	return o
}

// fillDocker makes what is a pod in Docker: an app with a network, and a sidecar that joins it.
func (s *scene) fillDocker(ctx context.Context) error {
	e := s.lab.Docker
	driver, flags := "bridge", []string{"--opt", "com.docker.network.bridge.name=br-lab"}
	app, sidecar := appOptions(), s.joining(lab.ContainerOptions{Annotations: sidecarAnnotations()})
	delete(app.Annotations, "sidegate/wait") // its sidecar cannot be there before it
	if s.installed {
		driver, flags = lab.SidegateDriver, []string{"--opt", "com.docker.network.bridge.enable_ip_masquerade=false"}
	}
	if err := e.NewNetwork(ctx, mesh, driver, flags...); err != nil {
		return err
	}
	run := []string{"--network", mesh, "--security-opt", "seccomp=unconfined"}
	for _, c := range app.CapAdd {
		run = append(run, "--cap-add", c)
	}
	for key, value := range app.Annotations {
		run = append(run, "--label", key+"="+value)
	}
	var err error
	if s.app, err = e.Run(ctx, "shop", lab.AppImage, run, "/bin/prober", "serve", "--on", fmt.Sprintf(":%d", lab.AppPort)); err != nil {
		return err
	}
	if s.pod, err = e.PodOf(ctx, s.app, lab.PodOptions{}); err != nil {
		return err
	}
	if err := s.app.WaitListening(ctx, lab.AppPort); err != nil {
		return err
	}
	if s.sidecar, err = s.pod.StartSidecar(ctx, sidecar); err != nil {
		return err
	}
	if s.installed {
		fmt.Fprintf(os.Stderr, "demo: docker network create -d %s %s\n", driver, mesh)
		fmt.Fprintf(os.Stderr, "demo: docker run -d --name shop %s IMAGE\n", strings.Join(run, " "))
		fmt.Fprintf(os.Stderr, "demo: docker run -d --network container:shop --label sidegate/role=sidecar --label sidegate/policy=demo %s HAPROXY\n",
			strings.Join(sidecar.Flags, " "))
	}
	return nil
}
