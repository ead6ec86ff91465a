// SPDX-License-Identifier: Apache-2.0

// Command sidegate shows and removes what Sidegate has in the kernel.
package main

import (
	"cmp"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

// env is all that the commands take from their process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	args           []string
	state          string // directory of pins
	policyDir      string
	sources        sources // for bugtool
}

func main() {
	os.Exit(run(env{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		args:   os.Args[1:],
		state:  cgroups.StateDir(),

		policyDir: cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir),
		sources:   defaultSources(),
	}))
}

func run(e env) int {
	return cli.Run(newRoot(&e), cli.Env{Args: e.args, Stdout: e.stdout, Stderr: e.stderr})
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "sidegate",
		Short: "Make a sidecar impossible to walk around",
		Long: "Sidegate forces a pod's traffic through its sidecar, in the kernel.\n" +
			"This command shows and removes what is attached, and changes policies; containers are attached by the runtime's hook.",
		Example: "  sidegate doctor                     # what this machine has and lacks\n" +
			"  sidegate status                     # what is enforced\n" +
			"  sidegate policy apply mesh.yaml     # a policy, in running pods too",
	}
	root.PersistentFlags().StringVar(&e.state, "state-dir", e.state, "`directory` of pins on a BPF file system ($"+cgroups.StateEnv+")")
	root.AddCommand(newStatus(e), newDoctor(e), newObserve(e), newTop(e), newGraph(e), newBugtool(e), newExporter(e), newUnload(e), newVersion(e), newPolicy(e))
	cli.AddMan(root, version, cli.ManCommand)
	cli.AddSections(root, "# FILES\n**"+policy.DefaultDir+"**\n:   policies\n\n"+
		"**"+cgroups.DefaultState+"**\n:   what is enforced, pinned\n\n"+
		"# ENVIRONMENT\n**"+cgroups.StateEnv+"**\n:   what **--state-dir** is, where that is not given\n\n"+
		"**"+policy.DirEnv+"**\n:   what **--policy-dir** is, where that is not given\n\n"+cli.ManExitStatus)
	return root
}
