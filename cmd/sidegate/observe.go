// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sidegate/cgroups"
)

var errNothingLoaded = errors.New("nothing is loaded: no container has been attached since boot")

// observation is what to show.
type observation struct {
	output     string
	color      string
	pods       []string
	containers []string
	verdicts   []string
	to         []string
	ports      []uint
	count      int
	size       uint32

	prefixes []netip.Prefix
}

func newObserve(e *env) *cobra.Command {
	var o observation
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show what happens in managed pods, as it happens",
		Long: "Show connections, what was refused and why, from now on until interrupted: who, where to, what became of it, and by which rule.\n" +
			"Events of a container beyond 2,048 in an eighth of a second are not shown, but counted. With nobody observing they cost a look at an array.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return usageError{err}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return o.run(ctx, e)
		},
	}
	f := cmd.Flags()
	addOutput(cmd, &o.output)
	f.StringVar(&o.color, "color", "auto", "auto, always or never")
	f.StringSliceVar(&o.pods, "pod", nil, "only these pods, by name, id or the beginning of it")
	f.StringSliceVar(&o.containers, "container", nil, "only these containers, or with these at the other end")
	f.StringSliceVar(&o.verdicts, "verdict", nil, "only allowed, redirected, denied, audited")
	f.StringSliceVar(&o.to, "to", nil, "only with these addresses or networks at the other end")
	f.UintSliceVar(&o.ports, "port", nil, "only these ports of destinations")
	f.IntVarP(&o.count, "number", "n", 0, "end after this many (default: never)")
	f.Uint32Var(&o.size, "buffer", 1<<20, "bytes of the kernel's buffer, a power of two")
	return cmd
}

func verdictWords() []string { return []string{"allowed", "redirected", "denied", "audited"} }

func (o *observation) check() error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	if !slices.Contains([]string{"auto", "always", "never"}, o.color) {
		return fmt.Errorf("--color %q: write auto, always or never", o.color)
	}
	for _, v := range o.verdicts {
		if !slices.Contains(verdictWords(), v) {
			return fmt.Errorf("--verdict %q: write %s", v, strings.Join(verdictWords(), ", "))
		}
	}
	for _, s := range o.to {
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return fmt.Errorf("--to %q is neither an address nor a network", s)
		}
		o.prefixes = append(o.prefixes, p)
	}
	if size := o.size; size < 4096 || size&(size-1) != 0 {
		return fmt.Errorf("--buffer %d: write a power of two, 4096 at least", size)
	}
	return nil
}

func (o *observation) run(ctx context.Context, e *env) error {
	events, err := cgroups.OpenEvents(e.state, o.size)
	if errors.Is(err, cgroups.ErrNotLoaded) {
		return errNothingLoaded
	}
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var show func(*cgroups.Event) error
	if o.output == "json" {
		enc := json.NewEncoder(e.stdout)
		show = func(v *cgroups.Event) error { return enc.Encode(v) }
	} else {
		colored := o.color == "always" || o.color == "auto" && isTerminal(e.stdout)
		show = func(v *cgroups.Event) error {
			_, err := fmt.Fprintln(e.stdout, eventLine(v, colored))
			return err
		}
	}
	var lost uint64
	for n := 0; o.count == 0 || n < o.count; {
		v, err := events.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if now := events.Lost(); now != lost {
			fmt.Fprintf(e.stderr, "%d events were lost: the buffer was full (--buffer)\n", now-lost)
			lost = now
		}
		if !o.wants(&v) {
			continue
		}
		if err := show(&v); err != nil {
			return err
		}
		n++
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (o *observation) wants(v *cgroups.Event) bool {
	begins := func(list []string, names ...string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(s string) bool {
			return slices.ContainsFunc(names, func(name string) bool { return name != "" && strings.HasPrefix(name, s) })
		})
	}
	return begins(o.pods, v.Pod) && begins(o.containers, v.Container, v.ContainerID, v.Peer) &&
		(len(o.verdicts) == 0 || slices.Contains(o.verdicts, v.Verdict)) &&
		(len(o.ports) == 0 || slices.Contains(o.ports, uint(v.Address.Port()))) &&
		(len(o.prefixes) == 0 || slices.ContainsFunc(o.prefixes, func(p netip.Prefix) bool { return p.Contains(v.Address.Addr()) }))
}

// The colours of verdicts: SGR parameters.
var verdictColors = map[string]string{"allowed": "32", "redirected": "36", "denied": "31", "audited": "33"}

// eventLine is an event for people.
func eventLine(v *cgroups.Event, colored bool) string {
	verdict := fmt.Sprintf("%-10s", v.Verdict)
	if colored {
		verdict = "\x1b[" + verdictColors[v.Verdict] + "m" + verdict + "\x1b[0m"
	}
	who := cmp.Or(v.Container, "(no container)")
	if v.Pod != "" {
		who = short(v.Pod) + "/" + who
	}
	arrow := "->"
	if v.Direction == "ingress" {
		arrow = "<-"
	}
	other := v.Peer
	if v.Address.IsValid() && v.Address.Addr().IsValid() && !v.Address.Addr().IsUnspecified() {
		other = strings.TrimSpace(other + " " + v.Address.String())
	} else if v.Address.Port() != 0 {
		other += fmt.Sprintf(":%d", v.Address.Port())
	}
	line := fmt.Sprintf("%s  %s  %s  %s %s %s %s", v.Time.Format("15:04:05.000"), verdict, who, v.Kind, v.Protocol, arrow, cmp.Or(other, "?"))
	line += "  " + v.Reason
	if v.Verdict == "denied" || v.Verdict == "audited" {
		line += ": " + v.Text
	}
	if v.Rule != "" {
		line += "  by " + v.Rule
	}
	if v.Process != "" {
		line += fmt.Sprintf("  (%s, pid %d)", filepath.Base(v.Process), v.PID)
	}
	if v.Suppressed > 0 {
		line += fmt.Sprintf("  [%d more before it]", v.Suppressed)
	}
	return line
}
