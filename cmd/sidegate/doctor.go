// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/policy"
)

func newDoctor(e *env) *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what works on this machine, what does not, what that means, and what to type next",
		Long: "Load and attach everything on a cgroup and a namespace of its own, look for runtimes, and remove it all again.\n" +
			"JSON is a list of checks: name, ok, required (without it nothing is enforced, or containers do not start), kernel (it decides),\n" +
			"detail, and where it is not ok, cost and next. Names stay as they are; there may be more.\n" +
			"Exit code 0: all that is required is there. 1: something must be set up. 3: this kernel lacks something.",
		Example: "  sidegate doctor\n  sidegate doctor -o json | jq '.[] | select(.ok | not)'",
		Args:    cli.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			checks := machineChecks()
			print := func() error { return printReport(e.stdout, thisMachine(), checks) }
			switch {
			case output == "json":
				print = func() error { return printJSON(e.stdout, checks) }
			case all:
				print = func() error { return printChecks(e.stdout, checks) }
			}
			if err := print(); err != nil {
				return err
			}
			return cgroups.ProbeFailed(checks)
		},
	}
	addOutput(cmd, &output)
	cmd.Flags().BoolVar(&all, "checks", false, "print each check, in a table")
	return cmd
}

// machineChecks are all that doctor makes: what asks the kernel beside what asks
// programs, since both take their time.
func machineChecks() []cgroups.Check {
	runtimes := make(chan []cgroups.Check)
	go func() { runtimes <- probeRuntimes() }()
	checks := append(cgroups.ProbeKernel(), <-runtimes...)
	return append(checks, probePolicies(), probeRelay())
}

func printChecks(w io.Writer, checks []cgroups.Check) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CHECK\tSTATE\tDETAIL")
	for _, c := range checks {
		state := "present"
		switch {
		case c.OK:
		case c.Required:
			state = "MISSING"
		default:
			state = "missing"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, state, c.Detail)
		if !c.OK && c.Cost != "" {
			fmt.Fprintf(t, "\t\tcosts: %s\n", c.Cost)
		}
		if !c.OK && c.Next != "" {
			fmt.Fprintf(t, "\t\tnext: %s\n", c.Next)
		}
	}
	return t.Flush()
}

// hookDirs are where podman and CRI-O look for hooks (oci-hooks(5)).
var hookDirs = []string{"/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"}

// programs are what runs containers, or has them run.
var programs = []struct{ name, option, note string }{
	{"podman", "--version", ""},
	{"runc", "--version", "shows a hook's message in its error"},
	{"crun", "--version", "shows a hook's message only with the annotation run.oci.hooks.stderr=/dev/stderr"},
	{"containerd", "--version", ""},
	{"crio", "--version", ""},
	{"kubelet", "--version", ""},
}

func probeRuntimes() []cgroups.Check {
	checks := make([]cgroups.Check, len(programs))
	var wg sync.WaitGroup
	for i, p := range programs {
		wg.Go(func() { checks[i] = probeProgram(p.name, p.option, p.note) })
	}
	wg.Wait()
	return slices.Concat(checks, probeHookFiles(hookDirs), defaultPlaces().probe())
}

func probeProgram(name, option, note string) cgroups.Check {
	c := cgroups.Check{Name: "runtime " + name}
	path, err := exec.LookPath(name)
	if err != nil {
		c.Detail, c.Cost = notInstalled, "none, if you do not use it"
		return c
	}
	ctx, cancel := context.WithTimeout(context.Background(), versionLimit)
	defer cancel()
	out, err := say(ctx, path, option)
	if err != nil {
		c.Detail, c.Next = err.Error(), "run "+path+" "+option+", and mend what it says"
		return c
	}
	line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	c.OK, c.Detail = true, line
	if note != "" {
		c.Detail += " (" + note + ")"
	}
	return c
}

const notInstalled = "not installed"

// probeHookFiles looks for the hooks' definitions, and for the one mistake that
// podman does not report: a hook whose binary is missing is skipped. None is
// fine where there is no podman; a broken one never is.
func probeHookFiles(dirs []string) []cgroups.Check {
	enforces, stages := probeHooks(dirs)
	if !enforces.OK {
		return []cgroups.Check{enforces}
	}
	splice := cgroups.Check{
		Name: "podman splice rule", Detail: stages["precreate"], OK: stages["precreate"] != "",
		Cost: "connections of podman's containers are not accelerated, whatever their policy says", Next: "run `make install`",
	}
	if !splice.OK {
		splice.Detail = "no hook for stage precreate in " + strings.Join(dirs, " or ")
	}
	return []cgroups.Check{enforces, splice}
}

// probeHooks returns the definition's file for each stage.
func probeHooks(dirs []string) (c cgroups.Check, stages map[string]string) {
	c = cgroups.Check{
		Name: "podman hook",
		Cost: "podman starts containers without Sidegate",
		Next: "run `make install`, or set hooks_dir in containers.conf",
	}
	stages = map[string]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil {
			continue // only a malformed pattern
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				c.Detail = err.Error()
				return c, stages
			}
			var h struct {
				Hook struct {
					Path string   `json:"path"`
					Args []string `json:"args"`
				} `json:"hook"`
				Stages []string `json:"stages"`
			}
			if err := json.Unmarshal(b, &h); err != nil {
				c.Detail, c.Next = fmt.Sprintf("%s: %v: every container start fails", f, err), "repair or remove "+f
				c.Required = true
				return c, stages
			}
			if filepath.Base(h.Hook.Path) != "sidegate-oci-hook" {
				continue
			}
			if _, err := os.Stat(h.Hook.Path); errors.Is(err, fs.ErrNotExist) {
				c.Detail = fmt.Sprintf("%s names %s, which does not exist: podman skips it without a word", f, h.Hook.Path)
				c.Required = true
				return c, stages
			}
			for _, s := range h.Stages {
				stages[s] = f
			}
		}
	}
	for _, want := range []string{"createRuntime", "poststop"} {
		if stages[want] == "" {
			c.Detail = fmt.Sprintf("no hook for stage %s in %s", want, strings.Join(dirs, " or "))
			return c, stages
		}
	}
	c.OK, c.Detail = true, stages["createRuntime"]
	return c, stages
}

func probePolicies() cgroups.Check {
	dir := cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir)
	c := cgroups.Check{Name: "policies", Detail: dir + ": none, the default policy applies", OK: true}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return c
	}
	list, err := policy.LoadDir(dir)
	if err != nil {
		c.OK, c.Required, c.Detail = false, true, err.Error()
		c.Cost, c.Next = "containers that ask for a policy do not start", "correct the file"
		return c
	}
	if len(list) > 0 {
		c.Detail = fmt.Sprintf("%s: %d", dir, len(list))
	}
	return c
}

// probeRelay looks for what containers under a policy with TLS do not start without.
func probeRelay() cgroups.Check {
	c := cgroups.Check{Name: "TLS relay", Detail: "no policy has TLS", OK: true}
	list, err := policy.LoadDir(cmp.Or(os.Getenv(policy.DirEnv), policy.DefaultDir))
	if err != nil {
		return c // that is another check's
	}
	var names []string
	for _, p := range list {
		if t := p.Spec.TLS; t != nil && t.Mode != policy.TLSOff {
			names = append(names, p.Metadata.Name)
		}
	}
	if len(names) == 0 {
		return c
	}
	socket := cgroups.TLSSocket()
	conn, err := net.Dial("unixpacket", socket)
	if err != nil {
		c.OK, c.Required, c.Detail = false, true, err.Error()
		c.Cost = "apps under " + strings.Join(names, ", ") + " do not start, and the connections of those that run are refused"
		c.Next = "systemctl enable --now sidegate-tls"
		return c
	}
	c.Detail = "answers at " + socket
	if err := conn.Close(); err != nil {
		c.Detail += ": " + err.Error()
	}
	return c
}
