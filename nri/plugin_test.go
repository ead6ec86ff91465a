// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/observe"
)

// istio is what its injector leaves on a pod.
var istio = map[string]string{"sidecar.istio.io/status": `{"initContainers":["istio-init"],"containers":["istio-proxy"]}`}

func TestRolesWithoutLabels(t *testing.T) {
	w := newWorld(t, nil)
	tests := []struct {
		name        string
		annotations map[string]string
		labels      map[string]string
		containers  []string // in the order of their start
		want        string
	}{
		{name: "istio", annotations: istio, containers: []string{"istio-init", "web", "istio-proxy"},
			want: "istio-init=init istio-proxy=sidecar web=app"},
		{name: "istio-native", annotations: istio, containers: []string{"istio-validation", "istio-proxy", "migrate", "web", "debugger-x7"},
			want: "debugger-x7=app istio-proxy=sidecar istio-validation=init migrate=app web=app"},
		{name: "linkerd", annotations: map[string]string{"linkerd.io/proxy-version": "edge-26.1"}, containers: []string{"linkerd-init", "linkerd-proxy", "web"},
			want: "linkerd-init=init linkerd-proxy=sidecar web=app"},
		{name: "kuma", annotations: map[string]string{"kuma.io/sidecar-injected": "true"}, containers: []string{"kuma-init", "web", "kuma-sidecar"},
			want: "kuma-init=init kuma-sidecar=sidecar web=app"},
		{name: "consul", annotations: map[string]string{"consul.hashicorp.com/connect-inject-status": "injected"}, containers: []string{"consul-connect-inject-init", "consul-dataplane", "web"},
			want: "consul-connect-inject-init=init consul-dataplane=sidecar web=app"},
		{name: "not-injected", annotations: map[string]string{"kuma.io/sidecar-injected": "false"}, containers: []string{"web"}, want: "-"},
		{name: "gateway", annotations: map[string]string{"sidecar.istio.io/status": "{}", "inject.istio.io/templates": "gateway"}, containers: []string{"web"}, want: "-"},
		{name: "plain", containers: []string{"web", "db"}, want: "-"},
		{name: "by-name", containers: []string{"envoy", "web"}, want: "envoy=sidecar web=app"},
		{name: "exempt", labels: map[string]string{"sidegate/role": "none"}, annotations: istio, containers: []string{"istio-proxy", "web"}, want: "-"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := w.mustRun(tt.name, podOptions{annotations: tt.annotations, labels: tt.labels})
			for _, name := range tt.containers {
				p.mustStart(name, ctrOptions{})
			}
			w.wantRoles("shop/"+tt.name, tt.want)
			p.remove()
			w.waitForgotten("shop/" + tt.name)
		})
	}
}

func TestRolesByLabels(t *testing.T) {
	w := newWorld(t, map[string]string{
		"strict.yaml": podPolicy("strict", "roles: [{container: relay, role: sidecar}], nonTCP: deny"),
		"chosen.yaml": podPolicy("chosen", "podSelector: {matchLabels: {tier: front}}, mode: audit"),
		"all.yaml":    podPolicy("all", "podSelector: {matchExpressions: [{key: sidegate/policy, operator: Exists}]}"),
	})
	tests := []struct {
		name                string
		labels, annotations map[string]string
		own                 map[string]string // annotations of container web
		want, policy        string
	}{
		{name: "label", labels: map[string]string{"sidegate/role": "app"}, want: "istio-proxy=sidecar relay=app web=app", policy: "default"},
		{name: "policy", labels: map[string]string{"sidegate/policy": "strict"},
			annotations: map[string]string{"sidegate/role.istio-proxy": "app"}, want: "istio-proxy=app relay=sidecar web=app", policy: "strict"},
		{name: "of-container", annotations: map[string]string{"sidegate/role.web": "sidecar", "sidegate/role.istio-proxy": "none"},
			want: "istio-proxy=none relay=app web=sidecar", policy: "default"},
		{name: "own", labels: map[string]string{"sidegate/role": "app"}, own: map[string]string{"sidegate/role": "init"},
			want: "istio-proxy=sidecar relay=app web=init", policy: "default"},
		{name: "copied", labels: map[string]string{"sidegate/policy": "strict"}, annotations: map[string]string{"sidegate/role": "app", "sidegate/role.istio-proxy": "none"},
			own: map[string]string{"sidegate/role": "app", "sidegate/role.istio-proxy": "none"}, want: "istio-proxy=none relay=sidecar web=app", policy: "strict"},
		{name: "selected", labels: map[string]string{"tier": "front"}, want: "istio-proxy=sidecar relay=app web=app", policy: "chosen"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := w.mustRun(tt.name, podOptions{labels: tt.labels, annotations: tt.annotations})
			p.mustStart("istio-proxy", ctrOptions{})
			p.mustStart("relay", ctrOptions{})
			p.mustStart("web", ctrOptions{annotations: tt.own})
			w.wantRoles("shop/"+tt.name, tt.want)
			if got := w.status()["shop/"+tt.name].Policy; got != tt.policy {
				t.Errorf("policy is %q, want %q", got, tt.policy)
			}
			p.remove()
		})
	}
}

// containerd gives a container the labels of its image, whose author does not say what it is in the pod.
func TestImageLabels(t *testing.T) {
	w := newWorld(t, nil)
	for _, role := range []string{"none", "sidecar", "init", "boss"} {
		p := w.mustRun(role, podOptions{annotations: map[string]string{"sidegate/role.proxy": "sidecar", "sidegate/role.web": "app"}})
		image := ctrOptions{labels: map[string]string{"sidegate/role": role, "sidegate/policy": "none"}}
		p.mustStart("web", image)
		p.mustStart("other", image)
		w.wantRoles("shop/"+role, "other=app web=app")
		p.remove()
	}
	p := w.mustRun("plain", podOptions{})
	p.mustStart("web", ctrOptions{labels: map[string]string{"sidegate/role": "app"}})
	w.wantRoles("shop/plain", "-")
}

// What can be seen wrong in a pod stops the pod, or the container, and says why.
func TestRefusals(t *testing.T) {
	w := newWorld(t, map[string]string{"a.yaml": podPolicy("a", "")})
	pods := []struct {
		name string
		o    podOptions
		want []string
	}{
		{"word", podOptions{labels: map[string]string{"sidegate/role": "boss"}}, []string{"pod shop/word", `sidegate/role: "boss" is not a role`}},
		{"key", podOptions{annotations: map[string]string{"sidegate/rule": "app", "sidegate/wait": "soon"}}, []string{"did you mean sidegate/role", `sidegate/wait: "soon"`}},
		{"twice", podOptions{labels: map[string]string{"sidegate/role": "app"}, annotations: map[string]string{"sidegate/role": "sidecar"}},
			[]string{`sidegate/role: the pod's label says "app", its annotation "sidecar"`}},
		{"of", podOptions{annotations: map[string]string{"sidegate/role.": "app"}}, []string{`"" is not the name of a container`}},
		{"no-policy", podOptions{labels: map[string]string{"sidegate/policy": "b"}}, []string{"sidegate/policy", `no policy is named "b"`}},
		{"host", podOptions{host: true, labels: map[string]string{"sidegate/role": "app"}}, []string{"shares the host's network", "hostNetwork: false"}},
	}
	for _, tt := range pods {
		_, err := w.run(tt.name, tt.o)
		wantError(t, err, append(tt.want, "sidegate: pod shop/"+tt.name)...)
		w.wantRoles("shop/"+tt.name, "-")
	}
	p := w.mustRun("web", podOptions{labels: map[string]string{"sidegate/policy": "a"}})
	_, err := p.start("app", ctrOptions{annotations: map[string]string{"sidegate/role": "boss"}})
	wantError(t, err, "container shop/web/app", `"boss" is not a role`)
	_, err = p.start("", ctrOptions{})
	wantError(t, err, "does not tell its name")
	p.mustStart("envoy", ctrOptions{})
	_, err = p.start("linkerd-proxy", ctrOptions{})
	wantError(t, err, "a pod has one sidecar")
	w.wantRoles("shop/web", "envoy=sidecar")

	// A mesh's pod that shares the host's network cannot be enforced, and did not ask.
	host := w.mustRun("gw", podOptions{host: true, annotations: istio})
	host.mustStart("istio-proxy", ctrOptions{})
	w.wantRoles("shop/gw", "-")
	if !strings.Contains(w.logged(), "shares the host's network: it is left alone") {
		t.Error("the log does not say that it is left alone")
	}
}

// The pod's namespace is closed before its first container, and for what comes beside the
// runtime.
func TestClosedFromTheStart(t *testing.T) {
	w := newWorld(t, nil)
	open := w.mustRun("open", podOptions{})
	if got := w.start(open.netns, 0).do(t, "udp 127.0.0.1:9"); got != "ok" {
		t.Fatalf("in a pod that is left alone: %s", got)
	}
	p := w.mustRun("closed", podOptions{annotations: istio})
	w.wantRoles("shop/closed", "")
	if got := w.start(p.netns, 0).do(t, "udp 127.0.0.1:9"); got != "EPERM" {
		t.Errorf("a stranger in a closed pod: %s, want EPERM", got)
	}
	app := p.mustStart("web", ctrOptions{})
	if got := app.do(t, "listen-tcp 127.0.0.1:0"); got != "ok" {
		t.Errorf("the app cannot listen: %s", got)
	}
}

// Who is created while the plugin is away has no hook. It is registered before it starts,
// if the plugin is back, else it has no network: both without the runtime's help.
func TestAwayAtCreate(t *testing.T) {
	w := newWorld(t, nil)
	p := w.mustRun("web", podOptions{annotations: istio})
	w.stopPlugin()
	c := p.mustStart("away", ctrOptions{silent: true})
	if got := c.do(t, "udp 127.0.0.1:9"); got != "EPERM" {
		t.Errorf("a container that was not registered: %s, want EPERM", got)
	}
	w.startPlugin()
	w.wantRoles("shop/web", "away=app")
	if got := c.do(t, "listen-tcp 127.0.0.1:0"); got != "ok" {
		t.Errorf("after it was taken over: %s", got)
	}

	w.stopPlugin()
	p.mustStart("back", ctrOptions{away: true, between: w.startPlugin})
	w.wantRoles("shop/web", "away=app back=app")
	if !strings.Contains(w.logged(), "had no hook when it was created") {
		t.Error("the log does not say that it had no hook")
	}
}

// A sidecar that is known by its name only, and comes last, makes its pod a managed one:
// what runs there is taken over.
func TestLateSidecar(t *testing.T) {
	w := newWorld(t, nil)
	p := w.mustRun("late", podOptions{})
	app := p.mustStart("web", ctrOptions{})
	p.mustStart("gone", ctrOptions{}).kill()
	w.wantRoles("shop/late", "-")
	if got := app.do(t, "listen-tcp 127.0.0.1:0"); got != "ok" {
		t.Fatal(got)
	}
	p.mustStart("envoy", ctrOptions{})
	w.wantRoles("shop/late", "envoy=sidecar web=app")
	if got := app.do(t, "udp 192.0.2.1:9"); got != "EPERM" && got != "ENETUNREACH" {
		t.Errorf("the app that was taken over sends UDP: %s", got)
	}
}

func TestSynchronize(t *testing.T) {
	w := newRuntime(t, map[string]string{"b.yaml": podPolicy("b", "")})
	before := w.makePod("before", podOptions{annotations: istio})
	before.mustStart("istio-proxy", ctrOptions{silent: true})
	web := before.mustStart("web", ctrOptions{silent: true})
	wrong := w.makePod("wrong", podOptions{labels: map[string]string{"sidegate/policy": "c"}})
	wrong.mustStart("web", ctrOptions{silent: true})
	plain := w.makePod("plain", podOptions{})
	plain.mustStart("web", ctrOptions{silent: true})
	named := w.makePod("named", podOptions{})
	named.mustStart("web", ctrOptions{silent: true})
	named.mustStart("envoy", ctrOptions{silent: true})

	w.launchPlugin()
	w.waitFor("the plugin to say what it could not take over", func() error {
		err := w.plugin.metrics.ready()
		if err == nil || !strings.Contains(err.Error(), `no policy is named "c"`) {
			return fmt.Errorf("it says: %w", err)
		}
		return nil
	})
	w.waitCounted()
	w.wantRoles("shop/before", "istio-proxy=sidecar web=app")
	w.wantRoles("shop/named", "envoy=sidecar web=app")
	w.wantRoles("shop/plain", "-")

	// What ended while the plugin was away is collected when it is back, and what was left
	// for want of a policy is taken over.
	w.stopPlugin()
	web.kill()
	named.kill()
	w.forget(named)
	w.writePolicy("c.yaml", podPolicy("c", ""))
	before.containers = before.containers[:1]
	w.startPlugin()
	w.wantRoles("shop/before", "istio-proxy=sidecar")
	w.wantRoles("shop/named", "-")
	w.wantRoles("shop/wrong", "web=app")
}

// What a runtime that has lost track may send: nothing of it may stop the plugin, or open
// anything.
func TestOddEvents(t *testing.T) {
	w := newWorld(t, nil)
	ctx := context.Background()
	r := w.runtime
	pod := &api.PodSandbox{Id: "p1", Name: "p1", Labels: map[string]string{"sidegate/role": "app"}}
	c := &api.Container{Id: "c1", PodSandboxId: "p1", Name: "web"}
	wantError(t, r.RunPodSandbox(ctx, &api.RunPodSandboxRequest{}), "it has no id")
	wantError(t, r.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod}), "shares the host's network")
	_, err := r.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: c})
	wantError(t, err, "shares the host's network")
	_, err = r.CreateContainer(ctx, &api.CreateContainerRequest{Pod: &api.PodSandbox{}, Container: &api.Container{}})
	wantError(t, err, "it has no id")
	wantError(t, r.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: c}), "shares the host's network")
	must(t, r.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: c}))
	must(t, r.RemoveContainer(ctx, &api.RemoveContainerRequest{}))
	must(t, r.StopPodSandbox(ctx, &api.StopPodSandboxRequest{}))
	must(t, r.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod}))
	must(t, r.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod}))
	must(t, r.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{}))

	// A namespace that is not there, a process that is not there.
	gone := &api.PodSandbox{Id: "p2", Name: "p2", Annotations: istio, Linux: &api.LinuxPodSandbox{Namespaces: []*api.LinuxNamespace{{Type: "network", Path: filepath.Join(w.dir, "none")}}}}
	wantError(t, r.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: gone}), "p2", "none")
	p := w.mustRun("web", podOptions{annotations: istio})
	wantError(t, r.StartContainer(ctx, &api.StartContainerRequest{Pod: p.api, Container: &api.Container{Id: "x", PodSandboxId: p.api.Id, Name: "x"}}), "does not tell its process")
	wantError(t, r.StartContainer(ctx, &api.StartContainerRequest{Pod: p.api, Container: &api.Container{Id: "x", PodSandboxId: p.api.Id, Name: "x", Pid: 1 << 30}}), "/proc/1073741824")

	// Twice, in the wrong order, and again after the end.
	must(t, r.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: p.api}))
	app := p.mustStart("app", ctrOptions{})
	must(t, r.StartContainer(ctx, &api.StartContainerRequest{Pod: p.api, Container: app.api}))
	must(t, r.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: p.api}))
	w.wantRoles("shop/web", "app=app") // it runs, whatever the runtime says
	must(t, r.StartContainer(ctx, &api.StartContainerRequest{Pod: p.api, Container: app.api}))
	p.remove()
	must(t, r.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: p.api, Container: app.api}))
	w.waitForgotten("shop/web")
	if err := w.plugin.metrics.ready(); err != nil {
		t.Errorf("the plugin is not ready any more: %v", err)
	}
}

// Requests end in time while another process holds the lock, as a failure, and the plugin
// stays connected.
func TestLockHeld(t *testing.T) {
	w := newWorld(t, nil)
	lock, err := os.Open(w.config.StateDir)
	must(t, err)
	defer lock.Close()
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	began := time.Now()
	_, err = w.run("web", podOptions{annotations: istio})
	if took := time.Since(began); took > api.DefaultPluginRequestTimeout {
		t.Errorf("it took %s, more than the runtime waits", took)
	}
	wantError(t, err, "holds the lock on the state directory")
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	p := w.mustRun("web2", podOptions{annotations: istio})
	p.mustStart("web", ctrOptions{})
	w.wantRoles("shop/web2", "web=app")
}

func TestRuntimeRestarts(t *testing.T) {
	w := newWorld(t, nil)
	p := w.mustRun("web", podOptions{annotations: istio})
	app := p.mustStart("web", ctrOptions{})
	for range 3 {
		w.stopRuntime()
		w.waitFor("the plugin to notice", func() error {
			if w.plugin.metrics.ready() == nil {
				return fmt.Errorf("it is ready")
			}
			return nil
		})
		w.startRuntime()
		w.waitReady()
		w.wantRoles("shop/web", "web=app")
	}
	if got := app.do(t, "listen-tcp 127.0.0.1:0"); got != "ok" {
		t.Errorf("the app after the restarts: %s", got)
	}
	p.mustStart("more", ctrOptions{})
	w.wantRoles("shop/web", "more=app web=app")
}

// A runtime that accepts and hangs up, as one does that is about to end, does not keep the
// plugin from the next one.
func TestHangUp(t *testing.T) {
	w := newRuntime(t, nil)
	w.stopRuntime()
	must(t, os.RemoveAll(w.options.socket))
	l, err := net.Listen("unix", w.options.socket)
	must(t, err)
	accepted := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			accepted <- struct{}{}
		}
	}()
	w.launchPlugin()
	<-accepted
	<-accepted
	must(t, l.Close())
	w.startRuntime()
	w.waitReady()
	w.mustRun("web", podOptions{annotations: istio}).mustStart("web", ctrOptions{})
	w.wantRoles("shop/web", "web=app")
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	p := w.mustRun("web", podOptions{annotations: istio})
	c := p.mustStart("web", ctrOptions{})
	_ = c.do(t, "udp 192.0.2.1:9")
	_, err := w.run("bad", podOptions{labels: map[string]string{"sidegate/role": "boss"}})
	wantError(t, err, "boss")

	l, err := observe.Listen("127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- observe.Serve(ctx, l, w.plugin.metrics.registry, w.plugin.metrics.ready) }()
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.Get("http://" + l.Addr().String() + path)
		must(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		must(t, err)
		return r.StatusCode, string(b)
	}
	code, text := get("/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d %s", code, text)
	}
	for _, want := range []string{
		`sidegate_nri_requests_total{event="RunPodSandbox",result="ok"} 1`,
		`sidegate_nri_requests_total{event="RunPodSandbox",result="error"} 1`,
		`sidegate_nri_requests_total{event="StartContainer",result="ok"} 1`,
		`sidegate_nri_request_seconds_count{event="CreateContainer"} 1`,
		`sidegate_nri_adoptions_total{result="adopted"} 0`,
		`sidegate_nri_connected 1`,
		`sidegate_loaded{abi="` + strings.TrimPrefix(filepath.Base(cgroups.VersionDir(w.config.StateDir)), "v") + `"} 1`,
		`sidegate_pods{mode="enforce",policy="default"} 1`,
		`sidegate_containers{role="app"} 1`,
		`sidegate_drops_total{pod="shop/web",reason="udp"} 1`,
		`component="nri",goversion="` + runtime.Version() + `",version="devel"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("/metrics has no %s:\n%s", want, text)
		}
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: %d", code)
	}
	if code, text := get("/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %s", code, text)
	}
	w.stopRuntime()
	w.waitFor("/readyz to say that the runtime is gone", func() error {
		if code, text := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "not connected") {
			return fmt.Errorf("it says %d %s", code, text)
		}
		return nil
	})
	cancel()
	must(t, <-served)
	w.startRuntime() // for the end of the test
}
