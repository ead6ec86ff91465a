// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sidegate/tests/lab"
)

// gate is where Docker finds the driver: it passes requests on, and can do something to the driver at one of them.
type gate struct {
	t      *testing.T
	proxy  *httputil.ReverseProxy
	mu     sync.Mutex
	at     string // the request, "" for none
	act    func()
	socket string // the driver's own
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{t: t, socket: filepath.Join(t.TempDir(), "driver.sock")}
	target, err := url.Parse("http://driver")
	must(t, err)
	g.proxy = httputil.NewSingleHostReverseProxy(target)
	g.proxy.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", g.socket)
	}}
	path := filepath.Join(lab.DockerPlugins, lab.SidegateDriver+".sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	s := &http.Server{Handler: g}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		_ = os.Remove(path)
	})
	return g
}

// when lets act run once, at the next request of this name, when the driver has answered. Nobody hears that.
func (g *gate) when(request string, act func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at, g.act = request, act
}

// done tells whether it ran.
func (g *gate) done() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.at == ""
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	hit := g.at != "" && strings.HasSuffix(r.URL.Path, "."+g.at)
	act := g.act
	if hit {
		g.at = ""
	}
	g.mu.Unlock()
	if !hit {
		g.proxy.ServeHTTP(w, r)
		return
	}
	g.proxy.ServeHTTP(&nobody{header: http.Header{}}, r)
	act()
	panic(http.ErrAbortHandler) // the connection ends
}

// nobody hears an answer.
type nobody struct{ header http.Header }

func (n *nobody) Header() http.Header         { return n.header }
func (n *nobody) Write(b []byte) (int, error) { return len(b), nil }
func (n *nobody) WriteHeader(int)             {}

// Whenever the driver is killed, after it has done what it was asked for, so that Docker does not know of it: nothing is
// open, it can be done again, and nothing stays.
func TestKilledAtEachRequest(t *testing.T) {
	for _, request := range []string{
		"CreateNetwork", "CreateEndpoint", "Join", "ProgramExternalConnectivity", "RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "DeleteNetwork",
	} {
		t.Run(request, func(t *testing.T) {
			ctx := begin(t, lab.Moby)
			g := newGate(t)
			d := startDriver(ctx, t, "-socket", g.socket)
			g.when(request, func() {
				d.kill()
				launchDriver(t, "-socket", g.socket).waitReady(ctx)
			})
			// Docker gives up at the end of a connection.
			again := func(what string, do func() error) {
				t.Helper()
				err := do()
				if err != nil && strings.Contains(err.Error(), "EOF") {
					err = do()
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			again("network create", func() error { return newMeshError(ctx) })
			again("run", func() error {
				got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh, "--publish", "18080:8080")...)
				if len(got) != 0 {
					t.Errorf("an app without a sidecar reached %v", got)
				}
				return err
			})
			again("network rm", func() error {
				_, err := world.Docker.CLI(ctx, "network", "rm", mesh)
				return err
			})
			if !g.done() {
				t.Errorf("there was no request %s", request)
			}
			must(t, lab.WaitFor(lab.Patience, "the end of all endpoints", func() (bool, error) { return len(hostEnds(t)) == 0, nil }))
		})
	}
}
