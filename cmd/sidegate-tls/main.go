// SPDX-License-Identifier: Apache-2.0

// Command sidegate-tls is the TLS relay of a node. What the apps of a pod connect to
// outside, where the pod's policy has TLS, goes through it on its way to the sidecar: it
// reads what is inside TLS by the keys that the app's own TLS library hands to the kernel,
// has it judged, and lets it go on unchanged, or not at all.
//
// It holds keys, so it is a process of its own that root alone can talk to, whose memory is
// neither swapped nor dumped. While it does not run, such connections are refused. See
// ARCHITECTURE.md, "The TLS relay".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/sirupsen/logrus"

	"sidegate/cgroups"
)

// version is set by the build.
var version = "devel"

// options is the command line.
type options struct {
	state       string
	socket      string
	events      string
	metrics     string
	verbose     bool
	connections int
	version     bool
}

type usageError struct{ error }

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{state: cgroups.StateDir(), socket: cgroups.TLSSocket()}
	f := flag.NewFlagSet("sidegate-tls", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.state, "state-dir", o.state, "where the pins are, a `directory` on a BPF file system")
	f.StringVar(&o.socket, "socket", o.socket, "`socket` at which the front-ends ask")
	f.StringVar(&o.events, "events", "", "write what happens to this `file`, a line of JSON each; - is the standard output (default: do not)")
	f.StringVar(&o.metrics, "metrics-address", "", "serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9466 (default: do not)")
	f.IntVar(&o.connections, "max-connections", 4096, "`number` of connections that a pod may have at a time")
	f.BoolVar(&o.verbose, "verbose", false, "log each connection")
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
	o, err := parseOptions(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "sidegate-tls:", err)
		os.Exit(2)
	case o.version:
		fmt.Println("sidegate-tls", version)
		return
	}
	// Connections are many and small, and mostly wait: threads that look for work cost more than they do.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
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
