// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/top"
	"sidegate/observe/cli"
)

// minInterval keeps top from holding the state's lock all the time.
const minInterval = 100 * time.Millisecond

func newTop(e *env) *cobra.Command {
	var o top.Options
	var once bool
	cmd := &cobra.Command{
		Use:     "top",
		Short:   "Watch pods: connections, what is denied and why",
		Long:    "Watch what managed pods do, and each closely: its containers, what was denied and why, and who talks to whom. The key ? lists the others.",
		Example: "  sidegate top --sort bytes\n  sidegate top --once --pod shop",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(top.Orders(), o.Order) {
				return cli.Usage(fmt.Errorf("--sort %q: write %s", o.Order, strings.Join(top.Orders(), ", ")))
			}
			if o.Interval < minInterval {
				return cli.Usage(fmt.Errorf("--interval %s: write %s or more", o.Interval, minInterval))
			}
			o.Read = func(flows bool) top.Sample { return readSample(e.state, flows) }
			if once {
				s := o.Read(false)
				if s.Err != nil {
					return s.Err
				}
				return top.Once(e.stdout, &s, o.Order, o.Pod)
			}
			return watch(cmd.Context(), e, o)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.Interval, "interval", time.Second, "how often to read")
	f.StringVar(&o.Order, "sort", "drops", "drops, connections, bytes or name")
	f.StringVar(&o.Pod, "pod", "", "this pod only: its name or id, or the beginning")
	f.BoolVar(&once, "once", false, "print a table and end")
	return cmd
}

func readSample(state string, flows bool) (s top.Sample) {
	s.Status, s.Err = cgroups.ReadStatus(state)
	s.At = time.Now()
	if flows && s.Err == nil {
		s.Flows, s.Err = cgroups.ReadFlows(state)
	}
	return s
}

// watch fills the terminal until the user has seen enough.
func watch(ctx context.Context, e *env, o top.Options) error {
	in, ok := e.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) || !isTerminal(e.stdout) {
		return errors.New("standard input and output are no terminal: use --once")
	}
	kind := os.Getenv("TERM")
	if kind == "" || kind == "dumb" {
		return fmt.Errorf("terminal of type %q cannot be written all over: use --once, or set TERM", kind)
	}
	options := []tea.ProgramOption{tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(e.stdout)}
	if os.Getenv("NO_COLOR") != "" || strings.HasPrefix(kind, "vt") {
		options = append(options, tea.WithColorProfile(colorprofile.ASCII))
	}
	_, err := tea.NewProgram(top.New(o), options...).Run()
	if errors.Is(err, tea.ErrInterrupted) { // by a signal, which is as good as a key
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	return nil
}
