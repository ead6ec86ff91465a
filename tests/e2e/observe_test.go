// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"path/filepath"
	"testing"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// What a pod of podman does is told as it was, with the names that podman knows.
func TestObserve(t *testing.T) {
	ctx := begin(t)
	p, other := newMeshPod(ctx, t), newPod(ctx, t, "")
	_, err := other.Run(ctx, "site", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/sleep", "60"}})
	must(t, err)
	env, err := world.Podman.Environment(t.TempDir())
	must(t, err)
	o, err := lab.Observe(ctx, env, filepath.Join(world.bin, "sidegate"), "--pod", p.Name)
	must(t, err)
	p.wantCarried(p.app)
	p.probe(p.app, udp(newNonce())...)
	p.probe(p.app, rawUDP(newNonce())...)
	p.wantServed()
	p.probe(p.app, "tcp", "--to", other.addr().String()+":7", "--nonce", newNonce(), "--timeout", "300ms")
	late, err := p.Run(ctx, "late", lab.AppImage, lab.ContainerOptions{Annotations: appAnnotations(), Args: []string{"/bin/sleep", "60"}})
	must(t, err)
	_, err = podman(ctx, "rm", "--force", "--time", "0", late.Name)
	must(t, err)

	app, sidecar := id(ctx, t, p.app), id(ctx, t, p.sidecar)
	echo := world.Outside.Echo(false)
	for _, want := range []struct {
		what  string
		match func(v *lab.Observed) bool
	}{
		{"redirect", func(v *lab.Observed) bool {
			return v.Kind == "connect" && v.Verdict == cgroups.Redirected && v.ContainerID == app && v.Address == echo && v.Comm != "" && v.PID > 0
		}},
		{"accept", func(v *lab.Observed) bool {
			return v.Kind == "accept" && v.ContainerID == sidecar && v.Role == "sidecar" && v.Address == echo && v.Peer == p.app.Name && v.Reason == "accepted_outbound"
		}},
		{"UDP", func(v *lab.Observed) bool {
			return v.Kind == "connect" && v.Verdict == cgroups.Denied && v.Protocol == "udp" && v.Address == echo && v.Reason == "udp" && v.Text != ""
		}},
		{"raw socket", func(v *lab.Observed) bool {
			return v.Kind == "socket" && v.Verdict == cgroups.Denied && v.Reason == "raw_socket" && v.ContainerID == app
		}},
		{"request from outside", func(v *lab.Observed) bool {
			return v.Kind == "accept" && v.Direction == "ingress" && v.ContainerID == sidecar && v.Reason == "accepted_inbound"
		}},
		{"name of another pod", func(v *lab.Observed) bool {
			return v.Address.Addr() == other.addr() && v.AddressName == other.Name
		}},
		{"attach", func(v *lab.Observed) bool {
			return v.Kind == "attach" && v.Container == late.Name && v.Runtime == "podman" && v.Policy == "mesh" && v.Role == "app"
		}},
		{"detach", func(v *lab.Observed) bool { return v.Kind == "detach" && v.Container == late.Name }},
	} {
		_, err := o.Wait(want.what, want.match)
		must(t, err)
	}
	must(t, o.Close())
	for _, v := range o.All() {
		if v.PodName != p.Name || v.Kind == "lost" {
			t.Errorf("event %+v", v)
		}
	}
}
