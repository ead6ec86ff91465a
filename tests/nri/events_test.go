// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"

	"sidegate/tests/lab"
)

// restart lets containerd start again with another configuration.
func restart(ctx context.Context, t testing.TB, o lab.ContainerdOptions) {
	t.Helper()
	ctx = context.WithoutCancel(ctx)
	must(t, world.Containerd.Stop())
	must(t, world.Containerd.Configure(o))
	must(t, world.Containerd.Start(ctx))
}

// gate is an NRI plugin that gets each event before Sidegate's, and then does something to
// that.
type gate struct {
	stub.Stub
	mu  sync.Mutex
	at  string
	act func()
}

func startGate(ctx context.Context, t *testing.T) *gate {
	t.Helper()
	g := &gate{}
	nrilog.Set(quiet{})
	var err error
	g.Stub, err = stub.New(g, stub.WithPluginName("gate"), stub.WithPluginIdx("05"), stub.WithSocketPath(world.Containerd.NRISocket()),
		stub.WithOnClose(func() {}))
	must(t, err)
	must(t, g.Start(context.WithoutCancel(ctx)))
	t.Cleanup(g.Stop)
	return g
}

type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// when lets act run once, at the next event of this name.
func (g *gate) when(event string, act func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at, g.act = event, act
}

// done tells whether it ran.
func (g *gate) done() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.at == ""
}

func (g *gate) event(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at == name {
		g.at = ""
		g.act()
	}
	return nil
}

func (g *gate) RunPodSandbox(context.Context, *api.PodSandbox) error { return g.event("RunPodSandbox") }

func (g *gate) StopPodSandbox(context.Context, *api.PodSandbox) error {
	return g.event("StopPodSandbox")
}

func (g *gate) RemovePodSandbox(context.Context, *api.PodSandbox) error {
	return g.event("RemovePodSandbox")
}

func (g *gate) CreateContainer(context.Context, *api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	return nil, nil, g.event("CreateContainer")
}

func (g *gate) PostCreateContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return g.event("PostCreateContainer")
}

func (g *gate) StartContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return g.event("StartContainer")
}

func (g *gate) PostStartContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return g.event("PostStartContainer")
}

func (g *gate) StopContainer(context.Context, *api.PodSandbox, *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, g.event("StopContainer")
}

func (g *gate) RemoveContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return g.event("RemoveContainer")
}

// failures are what can happen to a plugin.
var failures = []struct {
	name string
	do   func(p *plugin)
}{
	{"killed", func(p *plugin) { p.kill() }},
	{"stopped", func(p *plugin) { p.signal(syscall.SIGSTOP) }},
	{"stalled", func(p *plugin) {
		p.signal(syscall.SIGSTOP)
		time.AfterFunc(3*time.Second, func() { p.signal(syscall.SIGCONT) })
	}},
}

// Whatever happens to the plugin, and when: no container of a managed pod ever starts
// unenforced. The program of each tries every way out as the first thing it does, in a pod
// without a sidecar, so that anything that arrives went past Sidegate.
func TestFailures(t *testing.T) {
	events := []string{
		"RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
		"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
	}
	for _, required := range []bool{true, false} {
		for _, event := range events {
			if !required && event == "RunPodSandbox" {
				continue // see README: what required_plugins is for
			}
			for _, f := range failures {
				// To the runtime these are one and the same: only the time differs.
				decides := event == "RunPodSandbox" || event == "CreateContainer" || event == "StartContainer"
				if f.name == "stopped" && !decides || f.name == "stalled" && !decides && !required {
					continue
				}
				t.Run(fmt.Sprintf("required=%t/%s/%s", required, event, f.name), func(t *testing.T) {
					testFailure(t, required, event, f.do)
				})
			}
		}
	}
	t.Cleanup(func() { restart(context.Background(), t, lab.ContainerdOptions{}) })
}

// configured is what containerd's configuration requires now.
var configured bool

func testFailure(t *testing.T, required bool, event string, fail func(*plugin)) {
	ctx := begin(t)
	if required != configured {
		var o lab.ContainerdOptions
		if required {
			o.RequiredPlugins = []string{"sidegate"}
		}
		restart(ctx, t, o)
		configured = required
	}
	g := startGate(ctx, t)
	pl := startPlugin(ctx, t)
	g.when(event, func() { fail(pl) })

	var all []lab.Sighting
	var errs []string
	run := func(p *lab.Pod, name string) {
		got, err := runJoiner(ctx, t, p, name)
		all = append(all, got...)
		if err != nil {
			errs = append(errs, err.Error())
		}
	}
	p, err := world.Containerd.NewPod(ctx, lab.PodOptions{Annotations: istio()})
	if err != nil {
		errs = append(errs, err.Error())
	} else {
		run(p, "first")
		for _, c := range p.Containers() {
			if err := c.Remove(ctx); err != nil {
				t.Errorf("remove container: %v", err)
			}
		}
		run(p, "second")
		if err := p.Remove(ctx); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
	if !g.done() {
		t.Fatalf("there was no event %s", event)
	}
	// A pod that comes while the plugin is away, or back.
	if required {
		if p, err := world.Containerd.NewPod(ctx, lab.PodOptions{Annotations: istio()}); err == nil {
			run(p, "next")
		} else {
			errs = append(errs, err.Error())
		}
	}
	if len(all) != 0 {
		t.Errorf("%v reached the outside", all)
	}
	for _, text := range errs {
		if !strings.Contains(text, "sidegate") {
			t.Errorf("an error that does not say who it is about: %s", text)
		}
	}
}

// Without a plugin, containers are refused where it is required, and pods that were managed
// before stay closed where it is not.
func TestPluginAway(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	if got, err := runJoiner(ctx, t, p, "control"); err != nil || len(got) == 0 {
		t.Fatalf("without a plugin ever: %v, %v", got, err)
	}
	must(t, p.Remove(ctx))
	restart(ctx, t, lab.ContainerdOptions{RequiredPlugins: []string{"sidegate"}})
	t.Cleanup(func() { restart(ctx, t, lab.ContainerdOptions{}) })
	p = newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	got, err := runJoiner(ctx, t, p, "app")
	wantError(t, err, `required plugin "sidegate" not present`)
	if len(got) != 0 {
		t.Errorf("it reached %v", got)
	}
	startPlugin(ctx, t)
	if got, err := runJoiner(ctx, t, p, "app"); err != nil || len(got) != 0 {
		t.Errorf("with the plugin: %v, %v", got, err)
	}
}
