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

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/observe/cli"
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
	log        cli.Log
}

func main() { cli.Main(newRoot(run)) }

// newRoot is the command line, which calls run with what it says.
func newRoot(run func(context.Context, options, *logrus.Logger) error) *cobra.Command {
	var o options
	root := &cobra.Command{
		Use:   "sidegate-nri",
		Short: "Enforce pods of containerd and CRI-O",
		Long: `The NRI plugin of Sidegate: containerd (from 1.7 on) and CRI-O tell it of every pod and container. It closes the network of
a pod that asks for Sidegate before the first container, gives each container the OCI hook that attaches, checks before the
program starts that it did, and takes over what ran before.

It runs as a service, as a DaemonSet, or is started by the runtime as a pre-installed plugin, without arguments and with the
runtime's configuration. What is enforced does not depend on it: it may be killed and started again at any time.`,
		Example: `  # as a service beside containerd or CRI-O
  sidegate-nri --config /etc/sidegate/nri.yaml --metrics-address 127.0.0.1:9464

  # also what ctr and nerdctl run, with each request in the log, as JSON
  sidegate-nri --containerd-address /run/containerd/containerd.sock --log-level debug --log-format json`,
	}
	f := root.Flags()
	f.StringVar(&o.name, "name", "", "plugin `name` to register with (default: sidegate, or what the runtime that starts it says)")
	f.StringVar(&o.idx, "idx", "", "plugin `index` to register with, two digits (default: 10, or what the runtime that starts it says)")
	f.StringVar(&o.socket, "socket-path", api.DefaultSocketPath, "NRI `socket` of the runtime")
	f.StringVar(&o.config, "config", "", "configuration `file` (default: built in, or what the runtime sends)")
	f.StringVar(&o.metrics, "metrics-address", "", "serve /metrics, /healthz and /readyz on this `address`, such as 127.0.0.1:9464 (default: do not)")
	f.StringVar(&o.containerd, "containerd-address", "",
		"also take over containers that containerd has outside of CRI (ctr, nerdctl), by this `socket`, such as /run/containerd/containerd.sock (default: do not)")
	cli.Daemon(root, version, &o.log, func(ctx context.Context, log *logrus.Logger) error { return run(ctx, o, log) })
	cli.AddSections(root, manSections)
	root.AddCommand(newInstall())
	return root
}

const manSections = `
# CONFIGURATION
The file of **--config**, or what the runtime sends, is YAML. All of it is optional:

**hook**
:   path of sidegate-oci-hook as the runtime sees it

**policyDir**, **stateDir**
:   directories of policies and of pins, for this program and for the hook

**ktlsDir**
:   directory of the files that containers mount for kTLS, as the runtime sees it

**hookTimeoutSeconds**
:   after how long the runtime gives up a start that waits for its sidecar; 0 is never

**ignoreNamespaces**
:   Kubernetes namespaces whose pods are left alone

**adopt**
:   whether to take over what ran before; true if not given

**logLevel**, **logFormat**
:   as **--log-level** and **--log-format**, which go before

# FILES
**/etc/nri/conf.d/10-sidegate.conf**
:   configuration of a plugin that the runtime starts, by a link in /opt/nri/plugins

**/etc/default/sidegate-nri**
:   SIDEGATE_NRI_OPTIONS, for the systemd unit

` + cli.ManEnvironment + cli.ManExitStatus + cli.ManLog
