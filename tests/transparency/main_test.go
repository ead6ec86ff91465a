// SPDX-License-Identifier: Apache-2.0

// Package transparency tells whether programs can notice that their connections to the sidecar are accelerated. The same scripts run in
// two podman pods, whose policies say accelerate: off and accelerate: on, and both ends have to be told the same: bytes, counts, events
// and errors. What differs must be what "sidegate doctor" says of the running kernel, all of it and nothing else.
package transparency

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/cgroups"
	"sidegate/tests/lab"
	"sidegate/tests/prober/hands"
)

var (
	commands = flag.Bool("commands", false, "print each command that the lab runs")
	binaries = flag.String("bin", "", "`directory` of sidegate and sidegate-oci-hook (default: build them)")
	prober   = flag.String("prober", "", "prober `binary` (default: build it)")
)

// Ports. Those of the sidecar are its own by policy, so that connections to them are between an app and its sidecar too.
const (
	portHands = 9901 + iota
	portRelay
	portHAProxy
	portStream
	portHTTP
	portPython
	portIperf
	portLast

	portServer = 8080 // the app's, for proxies to connect to
	portTLS    = 8443 // the app's openssl
	portApp    = 8081 // the app's hands
)

// shared is a directory of all containers.
const shared = "/shared"

// world is what all tests share.
var world struct {
	*lab.Lab
	sidegate string
	shared   string // shared, in the node
	plain    *scene
	fast     *scene
	known    []string // differences, as the self-test has them
	off      string   // why this kernel accelerates nothing: then both pods have to be told the same anyway
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.RunTests("transparency", func() (int, error) { return runTests(m) }))
}

func runTests(m *testing.M) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	opts := lab.Options{Prober: *prober}
	if *commands {
		opts.Log = os.Stderr
	}
	l, err := lab.New(ctx, opts)
	if err != nil {
		return 1, err
	}
	defer func() {
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}()
	world.Lab, world.shared = l, filepath.Join(l.Dir, "shared")
	bin := *binaries
	if bin == "" {
		bin = filepath.Join(l.Dir, "bin")
		if err := lab.Build(bin); err != nil {
			return 1, err
		}
	}
	world.sidegate = filepath.Join(bin, "sidegate")
	if world.off, err = askDoctor(ctx); err != nil {
		return 1, err
	}
	if err := writeShared(); err != nil {
		return 1, err
	}
	hooks, err := lab.Install(filepath.Join(l.Dir, "installed"), filepath.Join(bin, "sidegate-oci-hook"), map[string]string{
		"plain.yaml": policyText("plain", "off"),
		"fast.yaml":  policyText("fast", "on"),
	})
	if err != nil {
		return 1, err
	}
	if world.plain, err = newScene(ctx, hooks, "plain"); err != nil {
		return 1, err
	}
	if world.fast, err = newScene(ctx, hooks, "fast"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func policyText(name, accelerate string) string {
	var own []string
	for port := portHands; port <= portLast; port++ {
		own = append(own, fmt.Sprint(port))
	}
	return fmt.Sprintf(`apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: %s}
spec:
  accelerate: %s
  sidecarPorts: [%s]
`, name, accelerate, strings.Join(own, ", "))
}

// askDoctor finds out what differs on this kernel, and why nothing may be accelerated, if so.
func askDoctor(ctx context.Context) (why string, err error) {
	cmd := exec.CommandContext(ctx, world.sidegate, "doctor", "-o", "json")
	out, err := cmd.Output()
	if len(out) == 0 {
		return "", fmt.Errorf("%s: %w", cmd, err) // what it is missing else is not for here
	}
	var checks []cgroups.Check
	if err := json.Unmarshal(out, &checks); err != nil {
		return "", fmt.Errorf("%s: %w", cmd, err)
	}
	asked := false
	for _, c := range checks {
		if c.Name == "accelerate: on" {
			asked = true
			if !c.OK {
				why = c.Detail
			}
		}
		if name, ok := strings.CutPrefix(c.Name, "accelerated "); ok && !c.OK {
			world.known = append(world.known, name)
		}
	}
	if !asked {
		return "", fmt.Errorf("%s says nothing about acceleration: %s", cmd, out)
	}
	// The one that cannot be met: containers that could are not accelerated.
	world.known = slices.DeleteFunc(world.known, func(name string) bool { return name == "splice" })
	slices.Sort(world.known)
	return why, nil
}

// needAcceleration is for what has nothing to look at without.
func needAcceleration(t *testing.T) {
	t.Helper()
	if world.off != "" {
		t.Skip("kernel: accelerates nothing:", world.off)
	}
}

// A scene is a pod with an app and a sidecar, each of which has hands.
type scene struct {
	name         string
	pod          *lab.Pod
	app, sidecar *lab.Container
	inApp, inCar *worker
}

// containerFlags give containers the machine's programs: real ones, and no image of them to build. A VM has not what they need.
func containerFlags() []string {
	flags := []string{"--volume", world.shared + ":" + shared, "--volume", world.shared + "/group:/etc/group:ro"}
	if _, err := os.Stat("/usr/lib64"); err != nil {
		return flags
	}
	return append(flags, "--volume", "/usr:/usr:ro", "--volume", "/usr/lib:/lib:ro", "--volume", "/usr/lib64:/lib64:ro")
}

func newScene(ctx context.Context, hooks, policy string) (*scene, error) {
	s := &scene{name: policy}
	var err error
	if s.pod, err = world.NewPod(ctx, lab.PodOptions{HooksDir: hooks}); err != nil {
		return nil, err
	}
	run := func(role string) (*lab.Container, *worker, error) {
		c, err := s.pod.Run(ctx, role, lab.AppImage, lab.ContainerOptions{
			Annotations: map[string]string{"sidegate/role": role, "sidegate/policy": policy},
			Args:        []string{"/bin/sleep", "1000"},
			Flags:       containerFlags(),
		})
		if err != nil {
			return nil, nil, err
		}
		w, err := newWorker(c)
		return c, w, err
	}
	if s.sidecar, s.inCar, err = run("sidecar"); err != nil {
		return nil, err
	}
	if s.app, s.inApp, err = run("app"); err != nil {
		return nil, err
	}
	return s, nil
}

// status is what the command says.
func status(t testing.TB) (st cgroups.Status) {
	t.Helper()
	out, err := exec.Command(world.sidegate, "status", "-o", "json").Output()
	must(t, err)
	must(t, json.Unmarshal(out, &st))
	return st
}

// acceleration is of the pod's containers, by their roles.
func (s *scene) acceleration(t testing.TB) map[string]cgroups.AccelerationStatus {
	t.Helper()
	st, err := cgroups.ReadStatus(cgroups.DefaultState) // as the command does, but there is one for each script
	must(t, err)
	return s.accelerationIn(t, st)
}

func (s *scene) accelerationIn(t testing.TB, st cgroups.Status) map[string]cgroups.AccelerationStatus {
	t.Helper()
	found := map[string]cgroups.AccelerationStatus{}
	for _, p := range st.Pods {
		for _, c := range p.Containers {
			if c.Policy == s.name {
				found[c.Role] = c.Acceleration
			}
		}
	}
	if len(found) != 2 {
		t.Fatalf("%s: %d containers are registered: %+v", s.name, len(found), st)
	}
	return found
}

// A worker is the prober's hands in a container.
type worker struct {
	mu     sync.Mutex
	enc    *json.Encoder
	next   int
	waits  map[int]chan hands.Answer
	ended  chan struct{}
	stderr strings.Builder
}

func newWorker(c *lab.Container) (*worker, error) {
	w := &worker{waits: map[int]chan hands.Answer{}, ended: make(chan struct{})}
	// It ends with the lab. The Go runtime's own signals would end calls.
	cmd := c.Command(context.Background(), "/bin/env", "GODEBUG=asyncpreemptoff=1", "/bin/prober", "hands")
	cmd.Stderr = &w.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.enc = json.NewEncoder(in)
	go func() {
		defer close(w.ended)
		for dec := json.NewDecoder(out); ; {
			var a hands.Answer
			if dec.Decode(&a) != nil {
				_ = cmd.Wait()
				return
			}
			w.mu.Lock()
			ch := w.waits[a.ID]
			delete(w.waits, a.ID)
			w.mu.Unlock()
			ch <- a
		}
	}()
	return w, nil
}

// start gives an order, whose answer comes later.
func (w *worker) start(o hands.Order) <-chan hands.Answer {
	ch := make(chan hands.Answer, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	o.ID = w.next
	w.waits[o.ID] = ch
	if err := w.enc.Encode(o); err != nil {
		ch <- hands.Answer{Err: err.Error()}
	}
	return ch
}

// wait waits for an answer.
func (w *worker) wait(t testing.TB, ch <-chan hands.Answer) hands.Answer {
	t.Helper()
	select {
	case a := <-ch:
		return a
	case <-w.ended:
		t.Fatalf("the prober in the container has ended: %s", &w.stderr)
	case <-time.After(8 * hands.Patience):
		t.Fatal("no answer from the prober in the container")
	}
	return hands.Answer{}
}

func (w *worker) do(t testing.TB, o hands.Order) hands.Answer {
	t.Helper()
	return w.wait(t, w.start(o))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// flagRun is go test's -run.
func flagRun() string { return flag.Lookup("test.run").Value.String() }
