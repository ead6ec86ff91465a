// SPDX-License-Identifier: Apache-2.0

// Command sidegate-nri is an NRI plugin: containerd (from 1.7 on) and CRI-O tell it of
// every pod and container. It closes the network namespace of a pod that asks for
// Sidegate before the first container, gives each container the OCI hook that attaches,
// checks before the program starts that it did, and takes over what ran before.
//
// Nothing that enforces depends on it: it may be killed at any time. See ARCHITECTURE.md,
// "The NRI plugin".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
)

// version is set by the build.
var version = "devel"

// options is the command line.
type options struct {
	name, idx  string
	socket     string
	config     string
	metrics    string
	containerd string
	verbose    bool
	version    bool
}

type usageError struct{ error }

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("sidegate-nri", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.name, "name", "", "plugin `name` to register with (default sidegate, or what the runtime that starts it says)")
	f.StringVar(&o.idx, "idx", "", "plugin `index` to register with, two digits (default 10, or what the runtime that starts it says)")
	f.StringVar(&o.socket, "socket-path", api.DefaultSocketPath, "NRI `socket` of the runtime")
	f.StringVar(&o.config, "config", "", "configuration `file` (default: built in, or what the runtime sends)")
	f.StringVar(&o.metrics, "metrics-address", "", "serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9464 (default: do not)")
	f.StringVar(&o.containerd, "containerd-address", "", "also take over containers that containerd has outside of CRI (ctr, nerdctl), by this `socket`, such as /run/containerd/containerd.sock")
	f.BoolVar(&o.verbose, "verbose", false, "log each request")
	f.BoolVar(&o.version, "version", false, "print the version")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
	}
	return o, nil
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "install" {
		err := install(os.Args[2:], os.Stdout, os.Stderr)
		if err != nil && !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "sidegate-nri:", err)
			os.Exit(exitCode(err))
		}
		return
	}
	o, err := parseOptions(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "sidegate-nri:", err)
		os.Exit(2)
	case o.version:
		fmt.Println("sidegate-nri", version)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, logrus.StandardLogger()); err != nil {
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
