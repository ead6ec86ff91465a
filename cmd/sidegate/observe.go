// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sidegate/cgroups"
	"sidegate/observe"
	"sidegate/observe/cli"
	"sidegate/observe/names"
)

var errNothingLoaded = errors.New("nothing is loaded: no container has been attached since boot")

// observation is what to show.
type observation struct {
	output     string
	color      string
	pods       []string
	containers []string
	verdicts   []string
	kinds      []string
	to         []string
	ports      []uint
	count      int
	size       uint32
	resolve    bool

	since    string
	last     int
	follow   bool
	recorded string

	prefixes []netip.Prefix
	from     time.Time // what since says
}

func newObserve(e *env) *cobra.Command {
	var o observation
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show what happens in managed pods, as it happens",
		Long: "Show connections, what was refused and why, TLS and HTTP that the relay sees, and containers that come and go: who, where to, what became\n" +
			"of it, and by which rule. From now on until interrupted, or, with --since or --last, what `sidegate exporter --record` has kept.\n\n" +
			"Of a container 2,048 events are told in an eighth of a second (2^27 ns); how many were not, the next one says. With nobody observing,\n" +
			"events cost a look at an array. At most 8 processes observe at a time.",
		Example: "  sidegate observe --pod shop --verdict denied\n  sidegate observe -o json --to 10.0.0.0/8 --port 443\n  sidegate observe --since 10m --follow",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(time.Now()); err != nil {
				return cli.Usage(err)
			}
			if o.live() && !cmd.Flags().Changed("follow") {
				o.follow = true
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
	f.StringSliceVar(&o.verdicts, "verdict", nil, "only "+strings.Join(verdictWords(), ", "))
	f.StringSliceVar(&o.kinds, "kind", nil, "only "+strings.Join(cgroups.EventKinds(), ", "))
	f.StringSliceVar(&o.to, "to", nil, "only with these addresses or networks at the other end")
	f.UintSliceVar(&o.ports, "port", nil, "only these ports of destinations")
	f.IntVarP(&o.count, "number", "n", 0, "end after this many (default: never)")
	f.StringVar(&o.since, "since", "", "from this time, such as 10m ago or 2026-01-02T15:04:05Z, of what was recorded")
	f.IntVar(&o.last, "last", 0, "the last so many of what was recorded")
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with what happens (default: without --since and --last)")
	f.StringVar(&o.recorded, "recorded", observe.DefaultRecordDir, "directory of what was recorded")
	f.BoolVar(&o.resolve, "names", true, "say whose addresses they are, where podman, Docker or CRI know")
	f.Uint32Var(&o.size, "buffer", 4<<20, "bytes of the kernel's buffer, a power of two")
	completeFlag(cmd, "color", oneOf("auto", "always", "never"))
	completeFlag(cmd, "pod", podNames(e))
	completeFlag(cmd, "container", containerNames(e))
	completeFlag(cmd, "verdict", oneOf(verdictWords()...))
	completeFlag(cmd, "kind", oneOf(cgroups.EventKinds()...))
	return cmd
}

func verdictWords() []string {
	return []string{cgroups.Allowed, cgroups.Redirected, cgroups.Denied, cgroups.Audited}
}

// live is without what was recorded.
func (o *observation) live() bool { return o.since == "" && o.last == 0 }

func (o *observation) check(now time.Time) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	for _, of := range []struct {
		flag  string
		given []string
		words []string
	}{
		{"--color", []string{o.color}, []string{"auto", "always", "never"}},
		{"--verdict", o.verdicts, verdictWords()},
		{"--kind", o.kinds, cgroups.EventKinds()},
	} {
		for _, v := range of.given {
			if !slices.Contains(of.words, v) {
				return fmt.Errorf("%s %q: write %s", of.flag, v, strings.Join(of.words, ", "))
			}
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
	if o.last < 0 || o.count < 0 {
		return errors.New("--last and --number count from 1")
	}
	if o.since != "" {
		var err error
		if o.from, err = parseSince(o.since, now); err != nil {
			return err
		}
	}
	return nil
}

// parseSince reads a time, or how long ago it was.
func parseSince(s string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return at, nil
	}
	return time.Time{}, fmt.Errorf("--since %q: write how long ago, such as 90s or 2h, or a time such as %s", s, now.UTC().Format(time.RFC3339))
}

func (o *observation) run(ctx context.Context, e *env) error {
	p := o.printer(e)
	switch {
	case o.live():
		return o.watch(ctx, e, p, nil)
	case o.follow:
		return o.watch(ctx, e, p, func(until time.Time) error { return o.past(p, until) })
	}
	p.ask(ctx, e)
	return unlessEnough(o.past(p, time.Now()))
}

// past shows what was recorded until then.
func (o *observation) past(p *printer, until time.Time) error {
	last := 0
	if !o.follow && !o.filters() {
		last = o.last
	}
	all, lost, err := observe.Recorded(o.recorded, o.from, last)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nothing is recorded in %s: run `sidegate exporter --record %s`", o.recorded, o.recorded)
	}
	if err != nil {
		return err
	}
	if lost > 0 {
		if err := p.lost(lost, "by who recorded them"); err != nil {
			return err
		}
	}
	all = slices.DeleteFunc(all, func(v cgroups.Event) bool { return !o.wants(&v, p.podName(&v)) || v.Time.After(until) })
	if o.last > 0 {
		all = all[max(len(all)-o.last, 0):]
	}
	for i := range all {
		if err := p.show(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

// errEnough ends what shows events.
var errEnough = errors.New("enough")

func unlessEnough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// watch shows what happens. What happened before, until it began, past shows, which may be nil.
func (o *observation) watch(ctx context.Context, e *env, p *printer, past func(until time.Time) error) error {
	events, err := cgroups.OpenEvents(e.state, o.size)
	if errors.Is(err, cgroups.ErrNotLoaded) {
		return errNothingLoaded
	}
	if err != nil {
		return err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.Finish() })
	defer stop()
	p.ask(ctx, e) // what happens meanwhile waits in the kernel
	var gone atomic.Bool
	var beside sync.WaitGroup
	done := make(chan struct{})
	defer beside.Wait() // before events are closed
	defer close(done)
	beside.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Second):
			}
			if current, err := events.Current(); err == nil && !current {
				gone.Store(true)
				_ = events.Finish()
				return
			}
		}
	})
	var began time.Time
	if past != nil {
		// From now on there is nothing that is not read here; what was before is on record in a moment.
		began = time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * observe.RecordPause):
		}
		if err := past(began); err != nil {
			return unlessEnough(err)
		}
	}
	var lost uint64
	for {
		v, err := events.Read()
		if errors.Is(err, os.ErrClosed) {
			if gone.Load() {
				return errors.New("what was loaded was unloaded: nothing more happens there, run it again when something is loaded")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if ctx.Err() != nil { // there may always be another one
			return nil
		}
		if now := events.Lost(); now > lost {
			if err := p.lost(now-lost, "since the buffer was full (--buffer)"); err != nil {
				return err
			}
			lost = now
		}
		if !v.Time.After(began) || !o.wants(&v, p.podName(&v)) {
			continue
		}
		if err := p.show(&v); err != nil {
			return unlessEnough(err)
		}
	}
}

// printer shows the events that are wanted.
type printer struct {
	o       *observation
	out     io.Writer
	errs    io.Writer
	enc     *json.Encoder // nil: for people
	colored bool
	names   *names.Names // nil: without
	shown   int
}

func (o *observation) printer(e *env) *printer {
	p := &printer{o: o, out: e.stdout, errs: e.stderr}
	if o.output == "json" {
		p.enc = json.NewEncoder(controlEscaper{e.stdout})
		p.enc.SetEscapeHTML(false)
	}
	p.colored = o.color == "always" || o.color == "auto" && isTerminal(e.stdout) && os.Getenv("NO_COLOR") == ""
	return p
}

// ask asks for names, if that is wanted.
func (p *printer) ask(ctx context.Context, e *env) {
	if p.o.resolve {
		p.names = names.New(ctx, append(names.Sources(), names.Source{Name: "sidegate", List: func(context.Context) (names.Known, error) {
			st, err := cgroups.ReadStatus(e.state)
			return names.Known{Addresses: podAddresses(st.Pods)}, err
		}}))
	}
}

// controlEscaper writes JSON without the control characters that encoding/json leaves as they are (U+007F to U+009F), by
// which names could steer a terminal. They are in strings only.
type controlEscaper struct{ w io.Writer }

func (c controlEscaper) Write(b []byte) (int, error) {
	var out []byte
	for i, r := range string(b) {
		if r < 0x7f || r > 0x9f {
			if out != nil {
				out = utf8.AppendRune(out, r)
			}
			continue
		}
		if out == nil {
			out = append(make([]byte, 0, len(b)+16), b[:i]...)
		}
		out = fmt.Appendf(out, "\\u%04x", r)
	}
	if out == nil {
		return c.w.Write(b)
	}
	if _, err := c.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// observed is an event as JSON has it.
type observed struct {
	*cgroups.Event
	PodName     string `json:"podName,omitempty"`     // where the runtime tells its hooks the id alone
	AddressName string `json:"addressName,omitempty"` // whose address it is
}

func (p *printer) podName(v *cgroups.Event) string {
	if p.names == nil || v.Pod == "" {
		return ""
	}
	if len(p.o.pods) > 0 { // it may be one that is asked for
		return p.names.PodNow(v.Pod)
	}
	return p.names.Pod(v.Pod)
}

// show shows v, which is wanted.
func (p *printer) show(v *cgroups.Event) error {
	o := observed{Event: v, PodName: p.podName(v)}
	if p.names != nil && v.Address.IsValid() {
		o.AddressName = p.names.Of(v.Address.Addr())
	}
	var err error
	if p.enc != nil {
		err = p.enc.Encode(o)
	} else {
		_, err = fmt.Fprintln(p.out, eventLine(&o, p.colored))
	}
	if err != nil {
		return err
	}
	if p.shown++; p.shown == p.o.count {
		return errEnough
	}
	return nil
}

// lost says that there were more.
func (p *printer) lost(n uint64, why string) error {
	if p.enc != nil {
		return p.enc.Encode(struct {
			Time time.Time `json:"time"`
			Kind string    `json:"kind"`
			Lost uint64    `json:"lost"`
		}{time.Now(), "lost", n})
	}
	_, err := fmt.Fprintf(p.errs, "%d events were lost %s\n", n, why)
	return err
}

// filters tells whether not all are wanted.
func (o *observation) filters() bool {
	return len(o.pods)+len(o.containers)+len(o.verdicts)+len(o.kinds)+len(o.ports)+len(o.prefixes) > 0
}

// wants tells whether it is one to show. pod is the other name of its pod, or empty.
func (o *observation) wants(v *cgroups.Event, pod string) bool {
	begins := func(list []string, names ...string) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(s string) bool {
			return slices.ContainsFunc(names, func(name string) bool { return name != "" && strings.HasPrefix(name, s) })
		})
	}
	return begins(o.pods, v.Pod, pod) && begins(o.containers, v.Container, v.ContainerID, v.Peer) &&
		(len(o.verdicts) == 0 || slices.Contains(o.verdicts, v.Verdict)) &&
		(len(o.kinds) == 0 || slices.Contains(o.kinds, v.Kind)) &&
		(len(o.ports) == 0 || slices.Contains(o.ports, uint(v.Address.Port()))) &&
		(len(o.prefixes) == 0 || slices.ContainsFunc(o.prefixes, func(p netip.Prefix) bool { return p.Contains(v.Address.Addr()) }))
}
