// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidegate/observe/names"
	"sidegate/tests/lab"
)

// A pod that an injector has marked is enforced without a label, from the first instruction
// of its containers on; a pod that asks for nothing is left alone.
func TestPod(t *testing.T) {
	ctx := begin(t)
	startPlugin(ctx, t)
	open := newPod(ctx, t, lab.PodOptions{})
	got, err := runJoiner(ctx, t, open, "joiner")
	must(t, err)
	if len(got) == 0 {
		t.Fatal("nothing of a pod that is left alone reached the outside")
	}
	if r := roles(t, open.Name); r != "-" {
		t.Errorf("a pod that asks for nothing has %q", r)
	}

	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	wantRoles(t, p.Name, "")
	if r, err := p.Enter(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("a process of the node in a new pod: %v, %v", r, err)
	}
	got, err = runJoiner(ctx, t, p, "istio-init")
	must(t, err)
	if len(got) != 0 {
		t.Errorf("an init container without a sidecar reached the outside: %v", got)
	}
	sidecar := startSidecar(ctx, t, p)
	app := startApp(ctx, t, p, lab.ContainerOptions{})
	wantRoles(t, p.Name, "app=app istio-proxy=sidecar")
	known, err := names.CRI(ctx, world.Containerd.Address())
	must(t, err)
	for _, addr := range []netip.Addr{p.V4, p.V6} {
		if name := known.Addresses[addr]; !strings.HasSuffix(name, "/"+p.Name) {
			t.Errorf("%s is of %q, want %s, of %v", addr, name, p.Name, known.Addresses)
		}
	}
	for _, v6 := range []bool{false, true} {
		nonce := newNonce()
		r, err := app.Probe(ctx, "http", "--to", world.Outside.HTTP(v6).String(), "--path", lab.PagePath+"?"+nonce, "--contains", lab.PageText)
		if err != nil || !r.OK {
			t.Errorf("v6=%t: %v, %v", v6, r, err)
		}
		requests, err := world.Outside.Requests(nonce)
		must(t, err)
		_, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool {
			return len(requests) == 1 && c.Source == requests[0].Client && c.Dst == world.Outside.HTTP(v6)
		})
		if !ok {
			t.Errorf("v6=%t: the sidecar did not carry %v: %v", v6, requests, err)
		}
		r, err = app.Probe(ctx, "udp", "--to", world.Outside.Echo(v6).String())
		if err != nil || r.Errno != "EPERM" {
			t.Errorf("v6=%t: UDP: %v, %v", v6, r, err)
		}
		in, err := world.Outside.Probe(ctx, "http", "--to", fmt.Sprintf("%s:%d", bracketed(p.Addr(v6).String()), lab.AppPort), "--contains", "hello from the app")
		if err != nil || !in.OK {
			t.Errorf("v6=%t: inbound: %v, %v", v6, in, err)
		}
	}
	if _, ok, err := sidecar.WaitCarried(lab.Patience, func(c lab.Carried) bool { return c.Frontend == "inbound" }); !ok {
		t.Errorf("what came from outside passed the sidecar by: %v", err)
	}
	// Late, by a container that CRI does not know of, and after a crash of the app.
	if r, err := p.JoinNetns(ctx, app, lab.ContainerOptions{}, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("a container of ctr in the pod's network namespace: %v, %v", r, err)
	}
	pid, err := app.PID(ctx)
	must(t, err)
	proc, err := os.FindProcess(pid)
	must(t, err)
	must(t, proc.Kill())
	must(t, app.Wait(ctx))
	must(t, lab.WaitFor(lab.Patience, "the crashed app to be forgotten", func() (bool, error) {
		return roles(t, p.Name) == "istio-proxy=sidecar", nil
	}))
	if got, err := runJoiner(ctx, t, p, "again"); err != nil || len(got) == 0 || got[0].How != "tcp" {
		t.Errorf("an app by the sidecar: %v, %v", got, err)
	}
	must(t, p.Remove(ctx))
	wantRoles(t, p.Name, "-")
}

func bracketed(addr string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]"
	}
	return addr
}

// What is wrong in a pod is said by CRI, and leaves nothing.
func TestRefusals(t *testing.T) {
	ctx := begin(t)
	startPlugin(ctx, t)
	_, err := world.Containerd.NewPod(ctx, lab.PodOptions{Name: "typo", Labels: map[string]string{"sidegate/role": "ap"}})
	wantError(t, err, "NRI RunPodSandbox failed", "pod lab/typo", `"ap" is not a role`)
	_, err = world.Containerd.NewPod(ctx, lab.PodOptions{Name: "nopolicy", Labels: map[string]string{"sidegate/policy": "strict"}})
	wantError(t, err, "pod lab/nopolicy", `no policy is named "strict"`)
	_, err = world.Containerd.NewPod(ctx, lab.PodOptions{Name: "host", HostNetwork: true, Labels: map[string]string{"sidegate/role": "app"}})
	wantError(t, err, "pod lab/host", "hostNetwork: false")

	host := newPod(ctx, t, lab.PodOptions{HostNetwork: true, Annotations: istio()})
	if _, err := host.Run(ctx, "joiner", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/busybox", "true"}}); err != nil {
		t.Errorf("a mesh's pod that shares the host's network: %v", err)
	}

	p := newPod(ctx, t, lab.PodOptions{Labels: map[string]string{"sidegate/policy": "other"}})
	nonce := newNonce()
	o := joiner(nonce)
	o.CapAdd = []string{"NET_ADMIN"}
	_, err = p.Run(ctx, "admin", lab.AppImage, o)
	wantError(t, err, "it has CAP_NET_ADMIN", "policy other")
	if got := seen(t, nonce); len(got) != 0 {
		t.Errorf("a container that was refused reached %v", got)
	}
	startSidecar(ctx, t, p)
	_, err = p.StartSidecarAs(ctx, "linkerd-proxy", lab.ContainerOptions{})
	wantError(t, err, "a pod has one sidecar")
	wantRoles(t, p.Name, "istio-proxy=sidecar")
}

// Without the hook no container of a managed pod starts, and the message says what to do.
func TestHookMissing(t *testing.T) {
	ctx := begin(t)
	hook := filepath.Join(t.TempDir(), "gone")
	config := filepath.Join(t.TempDir(), "nri.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "hook: %s\npolicyDir: %s\n", hook, world.policies), 0o644))
	pl := startPlugin(ctx, t, "--config", config)
	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	got, err := runJoiner(ctx, t, p, "app")
	wantError(t, err, hook)
	if len(got) != 0 {
		t.Errorf("it reached %v", got)
	}
	if !strings.Contains(pl.logged(), "install sidegate-oci-hook there") {
		t.Error("the log does not say what to do")
	}
}

// A plugin that containerd starts itself is configured by containerd.
func TestPreinstalled(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	plugins, conf := filepath.Join(dir, "plugins"), filepath.Join(dir, "conf.d")
	must(t, os.MkdirAll(plugins, 0o755))
	must(t, os.MkdirAll(conf, 0o755))
	must(t, os.Link(filepath.Join(world.bin, "sidegate-nri"), filepath.Join(plugins, "10-sidegate")))
	must(t, os.WriteFile(filepath.Join(conf, "10-sidegate.conf"), []byte(pluginConfig()), 0o644))
	restart(ctx, t, lab.ContainerdOptions{PluginDir: plugins, PluginConfigDir: conf, RequiredPlugins: []string{"sidegate"}})
	t.Cleanup(func() { restart(ctx, t, lab.ContainerdOptions{}) })
	p := newPod(ctx, t, lab.PodOptions{Annotations: istio()})
	startSidecar(ctx, t, p)
	startApp(ctx, t, p, lab.ContainerOptions{})
	wantRoles(t, p.Name, "app=app istio-proxy=sidecar")
}
