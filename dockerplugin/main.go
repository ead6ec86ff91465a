// SPDX-License-Identifier: Apache-2.0

// Command sidegate-docker is a network driver of Docker (libnetwork's remote driver protocol): bridges, addresses and
// published ports as Docker's own bridge driver has them, and containers that are enforced as their labels ask.
//
// Nothing that enforces depends on it: it may be killed at any time. See ARCHITECTURE.md, "The Docker network driver".
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// version is set by the build.
var version = "devel"

// config is the command line.
type config struct {
	socket    string // that Docker calls
	docker    string // Docker's
	pidFile   string // Docker's
	policyDir string
	stateDir  string
	dataDir   string
	metrics   string
	log       cli.Log
}

func main() { cli.Main(newRoot(run)) }

// newRoot is the command line, which calls run with what it says.
func newRoot(run func(context.Context, config, *logrus.Logger) error) *cobra.Command {
	var c config
	root := &cobra.Command{
		Use:   "sidegate-docker",
		Short: "A network driver of Docker that enforces containers",
		Long: `Serves Docker as a network driver: bridges, addresses and published ports as Docker's own bridge driver has them, and containers that
are enforced as their labels ask. Start it before Docker, as a service or as a managed plugin.

What is enforced does not depend on it: it may be killed and started again at any time. While it is away, containers on its networks
do not start.`,
		Example: `  sidegate-docker --metrics-address 127.0.0.1:9465 &
  docker network create -d sidegate mesh
  docker run -d --name shop --network mesh --label sidegate/role=app my-app`,
	}
	f := root.Flags()
	f.StringVar(&c.socket, "socket", "/run/docker/plugins/sidegate.sock", "`socket` to serve; its name is the driver's")
	f.StringVar(&c.docker, "docker-socket", "/run/docker.sock", "Docker's `socket`")
	f.StringVar(&c.pidFile, "docker-pid-file", "/run/docker.pid", "Docker's `file` of its process id")
	f.StringVar(&c.policyDir, "policy-dir", "", "`directory` of policies (default: $"+policy.DirEnv+", or "+policy.DefaultDir+")")
	f.StringVar(&c.dataDir, "data-dir", "/var/lib/sidegate/docker", "`directory` that keeps what networks are until the machine's next start")
	f.StringVar(&c.metrics, "metrics-address", "",
		"serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9465 (default: $"+metricsEnv+", or do not)")
	cli.Daemon(root, version, &c.log, func(ctx context.Context, log *logrus.Logger) error {
		c := c.complete()
		if err := c.check(); err != nil {
			return cli.Usage(err)
		}
		return run(ctx, c, log)
	})
	cli.AddSections(root, manSections)
	return root
}

const manSections = `
# FILES
**/run/docker/plugins/sidegate.sock**
:   where Docker looks for a driver named sidegate

**/var/lib/sidegate/docker**
:   what networks are, for the machine's next start

**/etc/default/sidegate-docker**
:   SIDEGATE_DOCKER_OPTIONS, for the systemd unit

` + cli.ManEnvironment + `**SIDEGATE_METRICS_ADDRESS**
:   what **--metrics-address** is, where that is not given

` + cli.ManExitStatus + cli.ManLog

// complete takes from the environment what no option says.
func (c config) complete() config {
	c.stateDir = cgroups.StateDir()
	c.policyDir = cmp.Or(c.policyDir, os.Getenv(policy.DirEnv), policy.DefaultDir)
	c.metrics = cmp.Or(c.metrics, os.Getenv(metricsEnv))
	return c
}

func (c config) check() error {
	for _, of := range []struct{ name, path string }{
		{"socket", c.socket}, {"docker-socket", c.docker}, {"docker-pid-file", c.pidFile}, {"policy-dir", c.policyDir}, {"data-dir", c.dataDir},
	} {
		if !filepath.IsAbs(of.path) {
			return fmt.Errorf("--%s: %q is no absolute path: write one that begins with /", of.name, of.path)
		}
	}
	return nil
}
