// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// ctr runs a container that CRI does not know of, in the network namespace of a pod, and
// returns when it has ended, or, with --detach among flags, when it has started.
func ctr(ctx context.Context, t testing.TB, in *lab.Pod, id string, flags []string, command ...string) error {
	t.Helper()
	pid, err := in.PausePID(ctx)
	must(t, err)
	if !slices.Contains(flags, "--runc-binary") {
		flags = append([]string{"--runc-binary", world.Containerd.Runc()}, flags...)
	}
	args := append([]string{"run", "--cgroup", world.Containerd.Cgroup(id), "--with-ns", fmt.Sprintf("network:/proc/%d/ns/net", pid)}, flags...)
	_, err = world.Containerd.Ctr(ctx, "default", append(append(args, lab.AppImage+":latest", id), command...)...)
	return err
}

func removeCtr(ctx context.Context, t testing.TB, id string) {
	t.Helper()
	_, _ = world.Containerd.Ctr(ctx, "default", "tasks", "kill", "--signal", "SIGKILL", id)
	must(t, lab.WaitFor(lab.Patience, "removal of "+id, func() (bool, error) {
		_, err := world.Containerd.Ctr(ctx, "default", "tasks", "rm", "--force", id)
		return err == nil, ctx.Err()
	}))
	_, err := world.Containerd.Ctr(ctx, "default", "containers", "rm", id)
	must(t, err)
}

// wrapped is a containerd whose shims find the wrapper's runtime and policies.
func wrapped(o lab.ContainerdOptions) lab.ContainerdOptions {
	o.RuntimeEnv = []string{"SIDEGATE_RUNTIME=" + world.Containerd.Runc(), "SIDEGATE_POLICY_DIR=" + world.policies}
	return o
}

// Containers of ctr have their hook by the runtime wrapper.
func TestCtrWrapper(t *testing.T) {
	ctx := begin(t)
	restart(ctx, t, wrapped(lab.ContainerdOptions{}))
	t.Cleanup(func() { restart(ctx, t, lab.ContainerdOptions{}) })
	p := newPod(ctx, t, lab.PodOptions{})
	try := func(id string, flags ...string) []lab.Sighting {
		t.Helper()
		nonce := newNonce()
		command := strings.Join(joiner(nonce).Args, " ") + "; exit 0" // it says 1 if nothing worked
		must(t, ctr(ctx, t, p, id, append([]string{"--rm"}, flags...), "/bin/sh", "-c", command))
		return seen(t, nonce)
	}
	app := []string{"--annotation", "sidegate/role=app"}
	if got := try("plain", app...); len(got) == 0 {
		t.Error("without the wrapper nothing reached the outside")
	}
	wrapper := []string{"--runc-binary", hookBinary()}
	if got := try("none", wrapper...); len(got) == 0 {
		t.Error("a container without annotations did not reach the outside")
	}
	if got := try("app", append(wrapper, app...)...); len(got) != 0 {
		t.Errorf("an app without a sidecar reached %v", got)
	}
	err := ctr(ctx, t, p, "typo", append(wrapper, "--rm", "--annotation", "sidegate/role=ap"), "/bin/busybox", "true")
	wantError(t, err, `"ap" is not a role`)
	must(t, ctr(ctx, t, p, "stays", append(append(wrapper, "--detach"), app...), "/bin/busybox", "sleep", "1000"))
	registered := func() (ids []string) {
		for _, p := range status(t) {
			for _, c := range p.Containers {
				ids = append(ids, c.ID)
			}
		}
		return ids
	}
	if ids := registered(); !slices.Equal(ids, []string{"stays"}) {
		t.Errorf("registered are %q", ids)
	}
	removeCtr(ctx, t, "stays")
	if ids := registered(); len(ids) != 0 {
		t.Errorf("after its end: %q", ids)
	}
	if err := ctr(ctx, t, p, "code", append(wrapper, "--rm"), "/bin/sh", "-c", "exit 7"); err == nil {
		t.Error("the exit code is lost")
	}
}

// CRI's containers have it too where the wrapper is containerd's runtime: without a plugin, by
// the annotations that pods hand on. The pod is closed when its pause container comes.
func TestCRIWrapper(t *testing.T) {
	ctx := begin(t)
	restart(ctx, t, wrapped(lab.ContainerdOptions{RuntimeBinary: hookBinary(), PodAnnotations: []string{"sidegate/*"}}))
	t.Cleanup(func() { restart(ctx, t, lab.ContainerdOptions{}) })
	open := newPod(ctx, t, lab.PodOptions{})
	if got, err := runJoiner(ctx, t, open, "joiner"); err != nil || len(got) == 0 {
		t.Errorf("a pod that asks for nothing: %v, %v", got, err)
	}
	p := newPod(ctx, t, lab.PodOptions{Annotations: map[string]string{"sidegate/role": "app"}})
	wantRoles(t, p.Name, "")
	wantClosed(ctx, t, "without containers", p)
	if got, err := runJoiner(ctx, t, p, "joiner"); err != nil || len(got) != 0 {
		t.Errorf("an app without a sidecar: %v, %v", got, err)
	}
	startSidecar(ctx, t, p)
	startApp(ctx, t, p, lab.ContainerOptions{})
	wantRoles(t, p.Name, "app=app istio-proxy=sidecar")
	// With the plugin beside it, each container has one hook of each, and nothing changes.
	startPlugin(ctx, t)
	if got, err := runJoiner(ctx, t, p, "both"); err != nil || len(got) == 0 || got[0].How != "tcp" {
		t.Errorf("an app by the sidecar: %v, %v", got, err)
	}
	wantRoles(t, p.Name, "app=app istio-proxy=sidecar")
	must(t, p.Remove(ctx))
	wantRoles(t, p.Name, "-")
}

// Without the wrapper, containers of ctr are taken over by containerd's client: those that run,
// and those that start.
func TestCtrAdopted(t *testing.T) {
	ctx := begin(t)
	p := newPod(ctx, t, lab.PodOptions{})
	other := newPod(ctx, t, lab.PodOptions{})
	sleep := []string{"/bin/busybox", "sleep", "1000"}
	label := []string{"--detach", "--label", "sidegate/role=app"}
	must(t, ctr(ctx, t, p, "before", append(label, "--label", "sidegate/pod=mine"), sleep...))
	t.Cleanup(func() { removeCtr(context.WithoutCancel(ctx), t, "before") })
	must(t, ctr(ctx, t, p, "plain", []string{"--detach"}, sleep...))
	t.Cleanup(func() { removeCtr(context.WithoutCancel(ctx), t, "plain") })
	pl := startPlugin(ctx, t, "--containerd-address", world.Containerd.Address())
	waitFor := func(what, pod string, count int) {
		t.Helper()
		err := lab.WaitFor(lab.Patience, what, func() (bool, error) { return len(status(t)[pod].Containers) == count, nil })
		if err != nil {
			t.Fatalf("%v: %+v\n%s", err, status(t), pl.logged())
		}
	}
	waitFor("the container that runs", "mine", 1)
	if r, err := p.Enter(ctx, "udp", "--to", world.Outside.Echo(false).String()); err != nil || r.Errno != "EPERM" {
		t.Errorf("a process of the node in its namespace: %v, %v", r, err)
	}
	must(t, ctr(ctx, t, other, "after", label, sleep...))
	waitFor("the container that starts", "default/after", 1)
	removeCtr(ctx, t, "after")
	waitFor("its end", "default/after", 0)
	// One that asks for what cannot be had is not left without enforcement either.
	for id, labels := range map[string][]string{
		"nothing": {"sidegate/role=app", "sidegate/policy=none-such"},
		"nobody":  {"sidegate/role=boss"},
	} {
		closed := newPod(ctx, t, lab.PodOptions{})
		args := []string{"--detach"}
		for _, l := range labels {
			args = append(args, "--label", l)
		}
		must(t, ctr(ctx, t, closed, id, args, sleep...))
		t.Cleanup(func() { removeCtr(context.WithoutCancel(ctx), t, id) })
		must(t, lab.WaitFor(lab.Patience, "the namespace of "+id+" to be closed", func() (bool, error) {
			r, err := closed.Enter(ctx, "udp", "--to", world.Outside.Echo(false).String())
			return r.Errno == "EPERM", err
		}))
		if got := status(t)["default/"+id].Policy; got != cgroups.RefusedPolicy {
			t.Errorf("the policy of %s is %q", id, got)
		}
	}
}
