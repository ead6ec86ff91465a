// SPDX-License-Identifier: Apache-2.0

// Command bench measures what Sidegate costs: starts of containers by each runtime, the hook itself, connections and bytes through a sidecar against
// the iptables rules of a mesh, packets of the sidecar, sockets of processes that are not managed, updates of policies, what is
// judged by rules, by how many there are, many containers at once, and HTTPS that is read on its way.
//
// The data plane, the hop from app over sidecar to upstream, is measured in all setups that there are (see [setups]) by loads of several
// sizes and numbers of connections: with client, sidecar and upstream that do next to nothing themselves, and with wrk, HAProxy and nginx.
//
// All sides of a figure run in the same rounds, in turns, and are compared round by round. It judges no time: it fails only if
// something could not be measured. A round that fails is told, and counts for nothing. It needs root and makes a machine of its own
// inside the machine (see package lab); all traffic stays in there, and nothing is left afterwards.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"sidegate/tests/lab"
)

// env is what the program was asked to do.
type env struct {
	only     *regexp.Regexp
	loads    *regexp.Regexp // of points
	quick    bool
	limit    time.Duration
	deadline time.Time // after which nothing more is begun
	json     string
	svg      string // draw only
	bin      string
	hooks    string
	stdout   io.Writer
	stderr   io.Writer
}

// rounds returns how many rounds to make of n.
func (e *env) rounds(n int) int {
	if e.quick {
		return max(1, n/5)
	}
	return n
}

// becomeAnother does not return in a process that was started to be something else.
func becomeAnother() {
	if _, ok := os.LookupEnv(confineEnv); ok {
		fmt.Fprintln(os.Stderr, "bench: confine:", confine(os.Args[1:]))
		os.Exit(1)
	}
	if uid, ok := os.LookupEnv(agentEnv); ok {
		os.Exit(agentMain(uid))
	}
}

// late says that the time is over.
func (e *env) late() bool { return !e.deadline.IsZero() && time.Now().After(e.deadline) }

var errLate = errors.New("no time was left (-limit)")

func main() {
	becomeAnother()
	e, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if e.svg != "" {
		if err := drawAll(e.json, e.svg); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(lab.Main(func() int {
		if err := run(context.Background(), e); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	}))
}

func parseFlags(args []string) (*env, error) {
	e := &env{stdout: os.Stdout, stderr: os.Stderr}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	loads := fs.String("loads", "", "of hop, wrk and tls make only points whose name matches this `regexp`")
	only := fs.String("only", "", "make only measurements whose name matches this `regexp`: start, hook, guard, policy, rules, events, scale, nri, docker, hop, wrk, connect, download, packets, tls")
	fs.BoolVar(&e.quick, "quick", false, "a fifth of the rounds")
	fs.DurationVar(&e.limit, "limit", 29*time.Minute, "begin nothing more after this `time`; what is left is said to be missing")
	fs.StringVar(&e.json, "json", "build/bench.json", "also write the result to this `file`; \"\" for none")
	fs.StringVar(&e.svg, "svg", "", "measure nothing, but draw charts of what is in the -json file into this `directory`")
	fs.StringVar(&e.bin, "bin", "bin", "`directory` of sidegate and sidegate-oci-hook")
	fs.StringVar(&e.hooks, "hooks", "contrib/oci-hooks.d", "`directory` of the hooks.d files, whose environment the hook gets")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var err error
	if e.only, err = regexp.Compile(*only); err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	if e.loads, err = regexp.Compile(*loads); err != nil {
		return nil, fmt.Errorf("-loads: %w", err)
	}
	for _, path := range []*string{&e.bin, &e.hooks, &e.json, &e.svg} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// A measurement makes figures, and remarks on them.
type measurement struct {
	name string
	// One of the two: what needs only a world, or what shares the pods.
	alone func(context.Context, *env, *world) ([]figure, []string, error)
	pods  func(context.Context, *env, *traffic) ([]figure, []string, error)
	// Or what makes points of the data plane.
	plane func(context.Context, *plane, *collection) error
}

var measurements = []measurement{
	{name: "start", alone: measureStart},
	{name: "hook", alone: measureHook},
	{name: "guard", alone: measureGuard},
	{name: "policy", alone: measurePolicy},
	{name: "rules", alone: measureRules},
	{name: "events", alone: measureEvents},
	{name: "scale", alone: measureScale},
	{name: "nri", alone: measureNRI},
	{name: "docker", alone: measureDocker},
	{name: "hop", plane: measureHop},
	{name: "wrk", plane: measureWrk},
	{name: "connect", pods: measureConnect},
	{name: "download", pods: measureDownload},
	{name: "packets", pods: measurePackets},
	{name: "tls", pods: measureTLS},
}

// run makes the measurements and reports. Its error names those that could not be made.
func run(ctx context.Context, e *env) (err error) {
	began := time.Now()
	r := report{Points: []point{}, Quick: e.quick}
	e.deadline = began.Add(e.limit)
	if r.Machine, err = thisMachine(); err != nil {
		return err
	}
	w, err := newWorld(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	measureAll(ctx, e, w, &r)
	r.Took = time.Since(began).Seconds()
	r.Notes = append(r.Notes, fmt.Sprintf("sides of a figure took turns; p50 is the median of the rounds, a ratio that of the rounds' ratios; %.0f s in all", r.Took))
	if r.Machine.Load > float64(r.Machine.CPUs) {
		r.Notes = append(r.Notes, fmt.Sprintf("the load was %.1f on %d CPUs before the start: others used this machine, so the ratios say more than the times",
			r.Machine.Load, r.Machine.CPUs))
	}
	r.print(e.stdout)
	if e.json != "" {
		if err := writeJSON(e.json, &r); err != nil {
			return err
		}
	}
	if len(r.Missing) > 0 {
		return fmt.Errorf("%d measurements could not be made", len(r.Missing))
	}
	return nil
}

func measureAll(ctx context.Context, e *env, w *world, r *report) {
	var t *traffic
	var podsErr error // why there are no pods
	var pl *plane
	var planeErr error
	points := collection{late: e.late}
	made := 0
	for _, m := range measurements {
		if !e.only.MatchString(m.name) {
			continue
		}
		made++
		if e.late() {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", m.name, errLate))
			continue
		}
		w.logf("%s", m.name)
		var figures []figure
		var notes []string
		var err error
		if m.alone != nil {
			figures, notes, err = m.alone(ctx, e, w)
		} else {
			if t == nil && podsErr == nil {
				t, podsErr = newTraffic(ctx, w)
			}
			err = podsErr
		}
		switch {
		case err != nil:
		case m.pods != nil:
			figures, notes, err = m.pods(ctx, e, t)
		case m.plane != nil:
			if pl == nil && planeErr == nil {
				pl, planeErr = newPlane(ctx, e, t)
			}
			if err = planeErr; err == nil {
				err = m.plane(ctx, pl, &points)
			}
		}
		r.Figures, r.Notes = append(r.Figures, figures...), append(r.Notes, notes...)
		if err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", m.name, err))
		}
	}
	r.Points, r.Failed, r.Missing = append(r.Points, points.points...), points.failed, append(r.Missing, points.missing...)
	if pl != nil {
		r.Notes = append(r.Notes, pl.notes...)
	}
	r.Notes = append(r.Notes, judgements(r.Points)...)
	if t != nil {
		if err := t.close(ctx); err != nil {
			r.Missing = append(r.Missing, fmt.Sprintf("clean up: %v", err))
		}
	}
	if made == 0 {
		r.Missing = append(r.Missing, fmt.Sprintf("-only %s matches nothing", e.only))
	}
}

func writeJSON(path string, r *report) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
