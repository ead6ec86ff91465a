// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"sidegate/cgroups"
)

// places are where Docker and Sidegate's driver for it are.
type places struct {
	docker string // Docker's socket
	driver string // the network driver's, as a service
	plugin string // its as a managed plugin: a pattern, since Docker makes a directory for each
	config string // Docker's daemon.json
	nri    string // NRI's socket
}

func defaultPlaces() places {
	return places{
		docker: "/run/docker.sock", driver: "/run/docker/plugins/sidegate.sock", plugin: "/run/docker/plugins/*/sidegate.sock",
		config: "/etc/docker/daemon.json", nri: "/run/nri/nri.sock",
	}
}

// serves tells whether somebody listens on a UNIX socket.
func serves(socket string) (bool, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false, err
	}
	return true, c.Close()
}

// probe looks for containerd's and CRI-O's plugins, for Docker, and for what Docker needs of Sidegate.
func (p places) probe() []cgroups.Check {
	nri := cgroups.Check{Name: "NRI", Detail: p.nri, Cost: "none, if neither containerd nor CRI-O runs here: their pods start without Sidegate", Next: "enable NRI, and run sidegate-nri"}
	if ok, err := serves(p.nri); ok {
		nri.OK = true
	} else {
		nri.Detail = err.Error()
	}
	plugin := probePlugin()
	docker := cgroups.Check{Name: "Docker", Detail: p.docker}
	if ok, err := serves(p.docker); !ok {
		docker.Detail, docker.Cost = err.Error(), "none, if you do not use it"
		return []cgroups.Check{nri, plugin, docker}
	}
	docker.OK = true
	driver := cgroups.Check{
		Name: "Docker network driver", Detail: p.driver,
		Cost: "networks of driver sidegate cannot be made, and containers on them do not start", Next: "run sidegate-docker, before Docker, or docker plugin enable",
	}
	if ok, err := serves(p.driver); ok {
		driver.OK = true
	} else {
		driver.Detail = err.Error()
	}
	plugins, _ := filepath.Glob(p.plugin) // the pattern has no fault
	for _, socket := range plugins {
		if ok, _ := serves(socket); ok {
			driver.OK, driver.Detail = true, socket+", a managed plugin"
		}
	}
	return []cgroups.Check{nri, plugin, docker, driver, probeDockerRuntime(p.config)}
}

// probePlugin looks for the NRI plugin among all processes: it may be a service, the
// runtime's, or a pod's.
func probePlugin() cgroups.Check {
	c := cgroups.Check{
		Name: "NRI plugin", Detail: "no process sidegate-nri", Cost: "pods of containerd and CRI-O start without Sidegate", Next: "systemctl enable --now sidegate-nri",
	}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern has no fault
	for _, link := range exes {
		if exe, err := os.Readlink(link); err == nil && strings.TrimSuffix(filepath.Base(exe), " (deleted)") == "sidegate-nri" {
			c.OK, c.Detail = true, "process "+strings.Split(link, "/")[2]
		}
	}
	return c
}

// probeDockerRuntime looks for the wrapper among Docker's runtimes.
func probeDockerRuntime(config string) cgroups.Check {
	c := cgroups.Check{
		Name: "Docker runtime",
		Cost: "containers that join another's network namespace have no network until Docker has told of their start",
		Next: fmt.Sprintf("write sidegate-oci-hook into %s as a runtime: see README, Docker", config),
	}
	b, err := os.ReadFile(config)
	if errors.Is(err, fs.ErrNotExist) {
		c.Detail = config + " does not exist"
		return c
	}
	var daemon struct {
		Default  string `json:"default-runtime"`
		Runtimes map[string]struct {
			Path string `json:"path"`
		} `json:"runtimes"`
	}
	if err == nil {
		err = json.Unmarshal(b, &daemon)
	}
	if err != nil {
		c.Detail = fmt.Sprintf("%s: %v", config, err)
		return c
	}
	for name, r := range daemon.Runtimes {
		if filepath.Base(r.Path) != "sidegate-oci-hook" {
			continue
		}
		if _, err := os.Stat(r.Path); err != nil {
			c.Detail, c.Required = fmt.Sprintf("%s names %s as runtime %s: %v", config, r.Path, name, err), name == daemon.Default
			c.Cost, c.Next = "containers of this runtime do not start", "run `make install`, or correct the path"
			return c
		}
		c.OK, c.Detail = true, fmt.Sprintf("%s: %s", name, r.Path)
		if name == daemon.Default {
			c.Detail += ", the default"
		}
		return c
	}
	c.Detail = "none of the runtimes in " + config
	return c
}
