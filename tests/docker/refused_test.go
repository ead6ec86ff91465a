// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// pidOf returns the process of a container that runs.
func pidOf(ctx context.Context, t testing.TB, name string) int {
	t.Helper()
	c, err := world.Docker.Inspect(ctx, name)
	must(t, err)
	return c.State.Pid
}

// reaches tells whether a process in the network namespace of process pid can send a datagram.
func reaches(ctx context.Context, t testing.TB, pid int) bool {
	t.Helper()
	r, err := world.Enter(ctx, pid, "udp", "--to", world.Outside.Echo(false).String())
	must(t, err)
	return r.Errno != "EPERM"
}

// sleep runs a container that does nothing.
func sleep(ctx context.Context, t testing.TB, name string, flags ...string) *lab.Container {
	t.Helper()
	c, err := world.Docker.Run(ctx, name, lab.AppImage, flags, "/bin/busybox", "sleep", "1000")
	must(t, err)
	return c
}

// waitShut waits until nothing in the network namespace of process pid has sockets, and the driver and the status say so.
func (d *driver) waitShut(ctx context.Context, pid int, container, why string) {
	d.t.Helper()
	err := lab.WaitFor(lab.Patience, "the network of process "+fmt.Sprint(pid)+" to be closed", func() (bool, error) {
		return !reaches(ctx, d.t, pid), nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	if got := status(d.t)[container].Policy; got != cgroups.RefusedPolicy {
		d.t.Errorf("the status of %s has policy %q", container, got)
	}
	log := d.logged()
	if !strings.Contains(log, "refused, ") || !strings.Contains(log, why) {
		d.t.Errorf("%q is not in the log", why)
	}
}

// Who asks to be enforced and cannot be has no network, nor has whose network namespace it joined without the wrapper.
func TestRefusedIsClosed(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	newMesh(ctx, t)
	for name, tt := range map[string]struct {
		flags []string
		why   string
	}{
		"role":       {label("ap"), `\"ap\" is not a role`},
		"key":        {[]string{"--label", "sidegate/rule=app"}, "did you mean"},
		"policy":     {append(label("app"), "--label", "sidegate/policy=strict"), `no policy is named \"strict\"`},
		"capability": {append(label("app"), "--cap-add", "NET_ADMIN"), "CAP_NET_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			d.t = t
			shop := sleep(ctx, t, "shop", "--network", mesh)
			pid := pidOf(ctx, t, "shop")
			if !reaches(ctx, t, pid) {
				t.Fatal("a container that asks for nothing is closed")
			}
			sleep(ctx, t, "joiner", append(tt.flags, "--network", "container:shop")...)
			if name == "capability" { // its request is fine: it is closed as it asked for
				must(t, lab.WaitFor(lab.Patience, "its network to be closed", func() (bool, error) { return !reaches(ctx, t, pid), nil }))
			} else {
				d.waitShut(ctx, pid, "joiner", tt.why)
				if !strings.Contains(d.logged(), "container "+shop.ID[:12]+", whose network namespace it has joined") {
					t.Error("the log does not say whose network it was")
				}
				// It does not open for who is right: what the pod would be under nobody said.
				_, err := runJoiner(ctx, t, append(wrapped("app"), "--network", "container:shop")...)
				wantError(t, err, "start all of them again")
			}
			_, err := world.Docker.CLI(ctx, "rm", "--force", "joiner", "shop")
			must(t, err)
		})
	}
	d.t = t
	// It ends with those that were in it.
	got, err := runJoiner(ctx, t, "--network", mesh)
	if err != nil || len(got) == 0 {
		t.Errorf("a container that asks for nothing, later: %v, %v", got, err)
	}
}

// Labels count on networks of other drivers too, as soon as Docker has told of the start.
func TestOtherNetworks(t *testing.T) {
	ctx := begin(t, lab.Moby)
	d := startDriver(ctx, t)
	bridge, err := world.Docker.Bridge(ctx)
	must(t, err)
	sleep(ctx, t, "plain", "--network", bridge)
	sleep(ctx, t, "shop", append(label("app"), "--network", bridge)...)
	waitRoles(t, "shop", "shop=app")
	if reaches(ctx, t, pidOf(ctx, t, "shop")) {
		t.Error("an app on another driver's network is open")
	}
	sleep(ctx, t, "typo", append(label("ap"), "--network", bridge)...)
	d.waitShut(ctx, pidOf(ctx, t, "typo"), "typo", `\"ap\" is not a role`)
	if !reaches(ctx, t, pidOf(ctx, t, "plain")) {
		t.Error("a container without labels is closed")
	}
	// What cannot be closed is said.
	sleep(ctx, t, "host", append(label("app"), "--network", "host")...)
	must(t, lab.WaitFor(lab.Patience, "the log to say what is open", func() (bool, error) {
		return strings.Contains(d.logged(), "IT IS OPEN"), nil
	}))
}

// faults is a proxy of Docker's socket that answers some requests wrongly.
type faults struct {
	mu   sync.Mutex
	part string // of the request's path
	left int    // requests to answer so
}

func (f *faults) fail(part string, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.part, f.left = part, times
}

// serveFaults returns the proxy's socket.
func serveFaults(t *testing.T, f *faults) string {
	t.Helper()
	target, err := url.Parse("http://docker")
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.FlushInterval = -1 // events
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", world.Docker.Socket())
	}}
	proxy.ErrorLog, proxy.ErrorHandler = nil, func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	path := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		hit := f.left > 0 && strings.Contains(r.URL.Path, f.part)
		if hit {
			f.left--
		}
		f.mu.Unlock()
		if hit {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message": "not now"}`)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return path
}

// Docker that does not answer, and a directory of policies that cannot be read, leave nobody open for good.
func TestRefusedInSpiteOfFaults(t *testing.T) {
	ctx := begin(t, lab.Moby)
	f := &faults{}
	broken := t.TempDir()
	must(t, os.WriteFile(filepath.Join(broken, "default.yaml"), []byte("apiVersion: x\n"), 0o644))
	d := startDriver(ctx, t, "--docker-socket", serveFaults(t, f), "--policy-dir", broken)
	newMesh(ctx, t)
	sleep(ctx, t, "shop", "--network", mesh)
	f.fail("/containers/", 2)
	sleep(ctx, t, "joiner", append(label("app"), "--network", "container:shop")...)
	d.waitShut(ctx, pidOf(ctx, t, "shop"), "joiner", "default.yaml")
	if !strings.Contains(d.logged(), "not now") {
		t.Error("Docker answered")
	}
}
