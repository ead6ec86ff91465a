// SPDX-License-Identifier: Apache-2.0

// Command sidegate-docker is a network driver of Docker (libnetwork's remote driver protocol): bridges, addresses and
// published ports as Docker's own bridge driver has them, and containers that are enforced as their labels ask.
//
// Nothing that enforces depends on it: it may be killed at any time. See ARCHITECTURE.md, "The Docker network driver".
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
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
	logLevel  string
	verbose   bool
	version   bool
}

type usageError struct{ error }

func parseConfig(args []string, stderr io.Writer) (config, error) {
	c := config{stateDir: cgroups.StateDir()}
	dir := os.Getenv(policy.DirEnv)
	if dir == "" {
		dir = policy.DefaultDir
	}
	f := flag.NewFlagSet("sidegate-docker", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.socket, "socket", "/run/docker/plugins/sidegate.sock", "`socket` to serve; its name is the driver's")
	f.StringVar(&c.docker, "docker-socket", "/run/docker.sock", "Docker's `socket`")
	f.StringVar(&c.pidFile, "docker-pid-file", "/run/docker.pid", "Docker's `file` of its process id")
	f.StringVar(&c.policyDir, "policy-dir", dir, "`directory` of policies")
	f.StringVar(&c.dataDir, "data-dir", "/var/lib/sidegate/docker", "`directory` that keeps what networks are until the machine's next start")
	f.StringVar(&c.metrics, "metrics-address", os.Getenv(metricsEnv), "serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9465 (default: do not)")
	f.StringVar(&c.logLevel, "log-level", cmp.Or(os.Getenv(logLevelEnv), "info"), "`level` of what is logged: error, warning, info or debug")
	f.BoolVar(&c.verbose, "verbose", false, "log each request, as -log-level debug does")
	f.BoolVar(&c.version, "version", false, "print the version")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	if _, err := logrus.ParseLevel(c.logLevel); err != nil {
		return c, usageError{fmt.Errorf("-log-level, or %s: %w", logLevelEnv, err)}
	}
	for name, path := range map[string]string{"-socket": c.socket, "-docker-socket": c.docker, "-docker-pid-file": c.pidFile, "-policy-dir": c.policyDir, "-data-dir": c.dataDir} {
		if !filepath.IsAbs(path) {
			return c, usageError{fmt.Errorf("%s: %q is no absolute path", name, path)}
		}
	}
	return c, nil
}

func main() {
	c, err := parseConfig(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "sidegate-docker:", err)
		os.Exit(2)
	case c.version:
		fmt.Println("sidegate-docker", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c, logrus.StandardLogger()); err != nil {
		logrus.Error(err)
		os.Exit(exitCode(err))
	}
}

func exitCode(err error) int {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return 2
	case errors.Is(err, cgroups.ErrUnsupported):
		return 3
	}
	return 1
}
