// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"sidegate/cgroups"
	"sidegate/tests/lab"
)

// moment is when in a request the driver is killed.
type moment string

const (
	received moment = "received" // it has done nothing
	midway   moment = "midway"   // it waits for the state's lock
	done     moment = "done"     // its answer is lost
	heard    moment = "heard"    // Docker has its answer
)

// gate is where Docker finds the driver: it passes requests on, and can kill the driver in one of them.
type gate struct {
	t       *testing.T
	proxy   *httputil.ReverseProxy
	socket  string       // the driver's own
	running sync.RWMutex // held to kill it and start another

	mu   sync.Mutex
	kill map[string]moment // the requests to kill it in, each once
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{t: t, socket: filepath.Join(t.TempDir(), "driver.sock")}
	target, err := url.Parse("http://driver")
	must(t, err)
	g.proxy = httputil.NewSingleHostReverseProxy(target)
	g.proxy.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return g.dial() }}
	path := filepath.Join(lab.DockerPlugins, lab.SidegateDriver+".sock")
	// A driver that was killed leaves it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
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

// dial waits for a driver that starts.
func (g *gate) dial() (c net.Conn, err error) {
	err = lab.WaitFor(lab.Patience, "the driver to serve", func() (bool, error) {
		c, err = net.Dial("unix", g.socket)
		return err == nil, nil
	})
	return c, err
}

// when lets the driver be killed in the next request of each name, and returns those that it was to be killed in.
func (g *gate) when(requests map[string]moment) (left map[string]moment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	left, g.kill = g.kill, requests
	return left
}

// due says when in a request the driver is to be killed, if it is.
func (g *gate) due(request string) (at moment, is bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, is = g.kill[request]
	delete(g.kill, request)
	return at, is
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, request, _ := strings.Cut(r.URL.Path, ".")
	at, is := g.due(request)
	if !is {
		g.running.RLock()
		defer g.running.RUnlock()
		g.proxy.ServeHTTP(w, r)
		return
	}
	g.running.Lock()
	defer g.running.Unlock()
	switch at {
	case received:
		g.note(current.cmd.Process.Signal(unix.SIGSTOP))
		defer g.send(r).Close()
	case midway:
		lock, err := os.Open(cgroups.DefaultState)
		g.note(err)
		g.note(unix.Flock(int(lock.Fd()), unix.LOCK_EX))
		defer g.send(r).Close()
		g.note(lab.WaitFor(lab.Patience, "the driver to be midway", func() (bool, error) {
			is, err := g.waits()
			if request == "CreateEndpoint" { // not somebody who collects
				is = is && hasAlias(g.t, "sgh")
			}
			return is, err
		}))
		current.kill()
		g.note(lock.Close())
	case done:
		g.proxy.ServeHTTP(&nobody{header: http.Header{}}, r)
	case heard:
		g.proxy.ServeHTTP(w, r)
		g.note(http.NewResponseController(w).Flush())
	}
	current.kill()
	launchDriver(g.t, "--socket", g.socket)
	if at != heard {
		panic(http.ErrAbortHandler) // the connection ends
	}
}

// note reports an error of the gate's own.
func (g *gate) note(err error) bool {
	if err != nil {
		g.t.Error(err)
	}
	return err == nil
}

// send gives the driver's socket a request, and does not wait for the answer.
func (g *gate) send(r *http.Request) net.Conn {
	c, err := g.dial()
	if !g.note(err) {
		return &net.UnixConn{}
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", "driver"
	g.note(out.Write(c))
	return c
}

// waits tells whether the driver waits for a lock.
func (g *gate) waits() (bool, error) {
	b, err := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(b)) {
		// 7: -> FLOCK  ADVISORY  WRITE 4711 00:2a:3 0 EOF
		if f := strings.Fields(line); len(f) > 5 && f[1] == "->" && f[5] == fmt.Sprint(current.cmd.Process.Pid) {
			return true, nil
		}
	}
	return false, err
}

// hasAlias tells whether there is a device whose name begins so, and that has been given its alias.
func hasAlias(t testing.TB, prefix string) bool {
	t.Helper()
	out, err := exec.Command("ip", "-details", "-oneline", "link").Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if _, name, _ := strings.Cut(line, ": "); strings.HasPrefix(name, prefix) && strings.Contains(line, "alias sidegate-docker/") {
			return true
		}
	}
	return false
}

// nobody hears an answer.
type nobody struct{ header http.Header }

func (n *nobody) Header() http.Header         { return n.header }
func (n *nobody) Write(b []byte) (int, error) { return len(b), nil }
func (n *nobody) WriteHeader(int)             {}

// inventory counts what the driver has in the kernel.
func inventory(t testing.TB) map[string]int {
	t.Helper()
	have := make(map[string]int)
	links, err := exec.Command("ip", "-brief", "link").Output()
	must(t, err)
	for line := range strings.Lines(string(links)) {
		if strings.HasPrefix(line, "sg") {
			have["devices"]++
		}
	}
	rules, _ := exec.Command("nft", "list", "table", "inet", "sidegate-docker").Output() // there may be none
	have["lines of rules"] = strings.Count(string(rules), "\n")
	must(t, filepath.WalkDir(cgroups.DefaultState, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		have["pins"]++
		return err
	}))
	must(t, cgroups.IfLoaded(cgroups.DefaultState, func(s *cgroups.Store) error {
		ends, err := s.Endpoints()
		have["endpoints"] = len(ends)
		return err
	}))
	have["pods"] = len(status(t))
	return have
}

// wantInventory waits until there is what there was.
func wantInventory(t testing.TB, want map[string]int) {
	t.Helper()
	var have map[string]int
	err := lab.WaitFor(lab.Patience, "what was made to go", func() (bool, error) {
		have = inventory(t)
		return maps.Equal(have, want), nil
	})
	if err != nil {
		t.Errorf("%v: there is %v, before there was %v", err, have, want)
	}
}

// Whenever the driver is killed in a request: nothing is open, it can be done again, and nothing stays.
func TestKilledAtEachRequest(t *testing.T) {
	ctx := begin(t, lab.Moby)
	g := newGate(t)
	startDriver(ctx, t, "--socket", g.socket)
	// Docker gives up at the end of a connection.
	again := func(t *testing.T, what string, do func() error) {
		t.Helper()
		err := do()
		if err != nil && strings.Contains(err.Error(), "EOF") {
			err = do()
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	run := func(t *testing.T) {
		t.Helper()
		again(t, "run", func() error {
			got, err := runJoiner(ctx, t, append(label("app"), "--network", mesh, "--publish", "18080:8080")...)
			if len(got) != 0 {
				t.Errorf("an app without a sidecar reached %v", got)
			}
			return err
		})
	}
	network := func(t *testing.T) {
		t.Helper()
		again(t, "network create", func() error { return newMeshError(ctx) })
		again(t, "network rm", func() error {
			_, err := world.Docker.CLI(ctx, "network", "rm", mesh)
			return err
		})
	}
	each := func(do func(*testing.T), locked, others []string) {
		do(t) // what stays loaded for the next pod is no leak
		before := inventory(t)
		killed := func(name string, requests map[string]moment) {
			outer := t
			t.Run(name, func(t *testing.T) {
				g.t = t
				defer func() { g.t = outer }()
				g.when(requests)
				do(t)
				if left := g.when(nil); len(left) > 0 {
					t.Errorf("there was no request %v", left)
				}
				wantInventory(t, before)
			})
		}
		all := slices.Concat(locked, others)
		for _, request := range all {
			for _, at := range []moment{received, done} {
				killed(request+"/"+string(at), map[string]moment{request: at})
			}
		}
		for _, request := range locked {
			killed(request+"/"+string(midway), map[string]moment{request: midway})
		}
		// Nothing fails by that: one go is enough.
		after := make(map[string]moment)
		for _, request := range all {
			after[request] = heard
		}
		killed("each/"+string(heard), after)
	}
	each(network, nil, []string{"CreateNetwork", "DeleteNetwork"})
	newMesh(ctx, t)
	each(run, []string{"CreateEndpoint", "Join", "Leave", "DeleteEndpoint"},
		[]string{"ProgramExternalConnectivity", "EndpointOperInfo", "RevokeExternalConnectivity"})
}
