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
	"os"
	"runtime"
	"runtime/debug"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

// version is set by the build.
var version = "devel"

// options is the command line.
type options struct {
	state       string
	socket      string
	events      string
	connections int
	metrics     string
	log         cli.Log
}

func main() {
	cli.Main(newRoot(func(ctx context.Context, o options, log *logrus.Logger) error {
		// Connections are many and small, and mostly wait: threads that look for work cost more than they do.
		if os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
		}
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(400)
		}
		return run(ctx, o, log)
	}))
}

// newRoot is the command line, which calls run with what it says.
func newRoot(run func(context.Context, options, *logrus.Logger) error) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "sidegate-tls",
		Short: "Relay the TLS connections of a node's pods, and judge what is in them",
		Long: `What the apps of a pod connect to outside, where the pod's policy has TLS, goes through this relay on its way to the sidecar. It reads
what is inside TLS by the keys that the app's own TLS library hands to the kernel, has it judged, and lets it go on unchanged, or not
at all. There is no CA and no certificate in between.

It holds keys: its memory is neither swapped nor dumped, and root alone can talk to it. While it does not run, such connections are
refused, and no app under such a policy starts.`,
		Example: `  # a line of JSON for each connection, request and answer
  sidegate-tls --events /var/log/sidegate-tls.json

  # on the standard output, and the log beside it as JSON too
  sidegate-tls --events - --log-format json`,
	}
	f := root.Flags()
	f.StringVar(&o.state, "state-dir", cgroups.StateDir(), "where the pins are, a `directory` on a BPF file system ($"+cgroups.StateEnv+")")
	f.StringVar(&o.socket, "socket", cgroups.TLSSocket(), "`socket` at which the front-ends ask ($"+cgroups.TLSSocketEnv+")")
	f.StringVar(&o.events, "events", "", "write what happens to this `file`, a line of JSON each; - is the standard output (default: do not)")
	f.StringVar(&o.metrics, "metrics-address", "", "serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9466 (default: do not)")
	f.IntVar(&o.connections, "max-connections", 4096, "`number` of connections that a pod may have at a time")
	cli.Daemon(root, version, &o.log, func(ctx context.Context, log *logrus.Logger) error { return run(ctx, o, log) })
	cli.AddSections(root, manSections)
	return root
}

const manSections = `
# FILES
**/run/sidegate/tls.sock**
:   the socket

**/etc/default/sidegate-tls**
:   SIDEGATE_TLS_OPTIONS, for the systemd unit

` + cli.ManEnvironment + cli.ManExitStatus + cli.ManLog
