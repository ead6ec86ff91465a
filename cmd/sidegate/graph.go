// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/graph"
	"sidegate/observe/cli"
	"sidegate/observe/names"
)

// nameTimeout is how long names of addresses are waited for, all together.
const nameTimeout = 3 * time.Second

// drawing is what to draw, and how.
type drawing struct {
	output, file string
	pod          string
	since        time.Duration
	names        bool
	most         int
	group        []int
}

func newGraph(e *env) *cobra.Command {
	var d drawing
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Draw who talks to whom",
		Long: "Draw who talked to whom as the kernel counted it: containers in their pods, by the sidecar or not, and what was denied and why.\n" +
			"It keeps the last 32,768 kinds of connections of a node, and none of containers that are gone.",
		Example: "  sidegate graph --pod shop --file shop.svg\n  sidegate graph -o dot | dot -Tpdf > all.pdf",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.check(); err != nil {
				return cli.Usage(err)
			}
			return d.run(cmd.Context(), e)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&d.output, "output", "o", "svg", "svg, dot, mermaid or json")
	f.StringVar(&d.file, "file", "", "write to this file (default: standard output)")
	f.StringVar(&d.pod, "pod", "", "of this pod only: its name or id, or the beginning")
	f.DurationVar(&d.since, "since", 0, "only who has talked since then, 10m for example (default: since it was loaded)")
	f.BoolVar(&d.names, "names", false, "ask podman, Docker, CRI and DNS whose the addresses outside are")
	f.IntVar(&d.most, "max", 40, "at most this many addresses outside, the others as one; 0: all")
	f.IntSliceVar(&d.group, "group", nil, "put addresses of a network together: length of prefixes of IPv4, and of IPv6, 24,64 for example")
	return cmd
}

func (d *drawing) check() error {
	if words := []string{"svg", "dot", "mermaid", "json"}; !slices.Contains(words, d.output) {
		return fmt.Errorf("unknown output %q: write %s", d.output, strings.Join(words, ", "))
	}
	if d.since < 0 {
		return fmt.Errorf("--since %s: write how long ago, 10m for example", d.since)
	}
	if d.most < 0 {
		return fmt.Errorf("--max %d: write 0 or more", d.most)
	}
	if len(d.group) > 2 {
		return errors.New("--group: write one length for IPv4 and one for IPv6, 24,64 for example")
	}
	for i, bits := range d.group {
		if most := []int{32, 128}[i]; bits < 0 || bits > most {
			return fmt.Errorf("--group: a prefix of %d bits: write 0 to %d", bits, most)
		}
	}
	return nil
}

func (d *drawing) run(ctx context.Context, e *env) error {
	st, err := cgroups.ReadStatus(e.state)
	if err != nil {
		return err
	}
	if !st.Loaded {
		return errNothingLoaded
	}
	flows, err := cgroups.ReadFlows(e.state)
	if err != nil {
		return err
	}
	if d.pod != "" {
		exact := slices.ContainsFunc(st.Pods, func(p cgroups.PodStatus) bool { return p.Pod == d.pod })
		if !slices.ContainsFunc(st.Pods, func(p cgroups.PodStatus) bool { return isPod(p.Pod, d.pod, exact) }) {
			return fmt.Errorf("no managed pod %s: see sidegate status", d.pod)
		}
		flows = slices.DeleteFunc(flows, func(f cgroups.Flow) bool { return !isPod(f.Pod, d.pod, exact) })
	}
	if d.since > 0 {
		begin := time.Now().Add(-d.since)
		flows = slices.DeleteFunc(flows, func(f cgroups.Flow) bool { return f.Last.Before(begin) })
	}
	hideOwn(flows, st.Pods)
	o := graph.Options{Max: d.most}
	if len(d.group) > 0 {
		o.Bits4 = d.group[0]
	}
	if len(d.group) > 1 {
		o.Bits6 = d.group[1]
	}
	g := graph.Build(flows, o)
	known := podAddresses(st.Pods)
	if d.names {
		runtimes := names.New(ctx, names.Sources())
		for _, o := range g.Outside {
			if a := o.Network.Addr(); o.More == 0 && o.Network.IsSingleIP() && known[a] == "" {
				known[a] = runtimes.Of(a)
			}
		}
		lookUpNames(ctx, g, known)
	}
	g.Name(func(a netip.Addr) string { return known[a] })
	var b bytes.Buffer
	switch d.output {
	case "dot":
		err = graph.WriteDOT(&b, g)
	case "mermaid":
		err = graph.WriteMermaid(&b, g)
	case "json":
		err = printJSON(&b, g)
	default:
		err = graph.WriteSVG(&b, g)
	}
	if err != nil {
		return err
	}
	if d.file == "" {
		_, err = e.stdout.Write(b.Bytes())
		return err
	}
	if err := os.WriteFile(d.file, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write graph: %w", err)
	}
	return nil
}

// hideOwn takes addresses of the flow's own pod out: what has them is inside.
func hideOwn(flows []cgroups.Flow, pods []cgroups.PodStatus) {
	own := make(map[string][]netip.Addr)
	for _, p := range pods {
		own[p.Pod] = append(own[p.Pod], p.Addresses...)
	}
	for i := range flows {
		if slices.Contains(own[flows[i].Pod], flows[i].Address) {
			flows[i].Address = netip.Addr{}
		}
	}
}

// podAddresses are the names of those that are of pods.
func podAddresses(pods []cgroups.PodStatus) map[netip.Addr]string {
	names := make(map[netip.Addr]string)
	for _, p := range pods {
		for _, a := range p.Addresses {
			if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				names[a] = "pod " + cmp.Or(p.Pod, "without a name")
			}
		}
	}
	return names
}

// lookUpNames adds those that DNS has for addresses of g. One that does not answer in time has no name.
func lookUpNames(ctx context.Context, g *graph.Graph, names map[netip.Addr]string) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	var mu sync.Mutex
	var all errgroup.Group
	all.SetLimit(16)
	for _, o := range g.Outside {
		a := o.Network.Addr()
		if o.More > 0 || !o.Network.IsSingleIP() || names[a] != "" {
			continue
		}
		all.Go(func() error {
			found, err := net.DefaultResolver.LookupAddr(ctx, a.String())
			if err != nil || len(found) == 0 {
				return nil // it is shown by its address
			}
			mu.Lock()
			defer mu.Unlock()
			names[a] = strings.TrimSuffix(found[0], ".")
			return nil
		})
	}
	_ = all.Wait() // nothing fails
}
