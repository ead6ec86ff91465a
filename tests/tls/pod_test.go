// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sidegate/tests/lab"
)

// policies are what an administrator has installed.
var policies = map[string]string{
	"inspect.yaml": head("inspect") + `
  tls:
    mode: inspect
    sni:
      default: allow
      rules:
      - name: names
        action: deny
        hosts: [denied.example]
    http:
      default: deny
      rules:
      - name: secrets
        action: deny
        path: {prefix: /secret}
      - name: exactly
        action: deny
        path: {exact: /v1/exact}
      - name: admins
        action: deny
        path: {regex: "/v[0-9]+/admin(/.*)?"}
      - name: no-delete
        action: deny
        methods: [DELETE]
      - name: api
        action: allow
        hosts: [api.example]
        path: {prefix: /v1}
      - name: sizes
        action: allow
        hosts: [api.example]
        path: {prefix: /size}
      - name: marked
        action: allow
        hosts: [api.example]
        path: {prefix: /marked}
        headers: [x-request-id]
    headers: [user-agent, x-shown]
`,
	// What has no keys is judged by its SNI alone.
	"lenient.yaml": head("lenient") + `
  tls:
    mode: inspect
    require: none
    sni:
      default: allow
      rules:
      - name: names
        action: deny
        hosts: [denied.example]
    http:
      default: deny
      rules:
      - name: api
        action: allow
        hosts: [api.example]
        path: {prefix: /v1}
`,
	// TLS alone, whatever is in it.
	"closed.yaml": head("closed") + `
  tls:
    mode: inspect
    require: ktls
    plaintext: deny
    other: allow
    http:
      default: deny
      rules:
      - name: api
        action: allow
        hosts: [api.example]
        path: {prefix: /v1}
`,
	// The sidecar gets the plaintext.
	"deferred.yaml": head("deferred") + `
  tls:
    mode: deferred
    http:
      default: allow
      rules:
      - name: secrets
        action: deny
        path: {prefix: /secret}
`,
	// The rules are not there: what they stop elsewhere works here.
	"free.yaml": head("free"),
}

func head(name string) string {
	return `apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata:
  name: ` + name + `
spec:
  redirect: {getsockname: original}
  sidecarPorts: [15000]`
}

// optIn is all that an app's OpenSSL needs.
var optIn = lab.OpenSSLConfig(lab.KTLS)

type pod struct {
	*lab.Pod
	policy  string
	sidecar *lab.Container
	app     *lab.Container
}

// shared are the pods that tests have together, by policy.
var shared = struct {
	sync.Mutex
	pods map[string]*pod
}{pods: make(map[string]*pod)}

// sharedPod is the pod of a policy. It has no state but its connections, which end with each test.
func sharedPod(ctx context.Context, t *testing.T, policy string) *pod {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.pods[policy] == nil {
		p, err := makePod(context.WithoutCancel(ctx), policy)
		must(t, err)
		shared.pods[policy] = p
	}
	return shared.pods[policy]
}

func removeShared() error {
	shared.Lock()
	defer shared.Unlock()
	var errs []error
	for _, p := range shared.pods {
		errs = append(errs, p.Remove(context.Background()))
	}
	return errors.Join(errs...)
}

// newPod is a pod of the test's own.
func newPod(ctx context.Context, t *testing.T, policy string) *pod {
	t.Helper()
	p, err := makePod(ctx, policy)
	must(t, err)
	t.Cleanup(func() { must(t, p.Remove(context.Background())) })
	return p
}

// newPodWith is newPod with HAProxy's configuration, and the app's openssl.cnf.
func newPodWith(ctx context.Context, t *testing.T, policy, haproxy, conf string) *pod {
	t.Helper()
	p, err := makePodWith(ctx, policy, haproxy, conf)
	must(t, err)
	t.Cleanup(func() { must(t, p.Remove(context.Background())) })
	return p
}

// descriptors are enough for many connections at once.
var descriptors = []string{"--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"}

// makePod starts a managed pod with HAProxy and an app that has this machine's programs.
func makePod(ctx context.Context, policy string) (*pod, error) {
	return makePodWith(ctx, policy, strings.Replace(lab.HAProxyConfig, "maxconn 400", "maxconn 1500", 1), optIn)
}

func makePodWith(ctx context.Context, policy, haproxy, conf string) (_ *pod, err error) {
	lp, err := world.NewPod(ctx, lab.PodOptions{HooksDir: world.hooks, SidecarConfig: haproxy})
	if err != nil {
		return nil, err
	}
	p := &pod{Pod: lp, policy: policy}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Remove(context.WithoutCancel(ctx)))
		}
	}()
	annotations := map[string]string{"sidegate/role": "sidecar", "sidegate/policy": policy}
	if p.sidecar, err = p.StartSidecar(ctx, lab.ContainerOptions{Annotations: annotations, Flags: descriptors}); err != nil {
		return nil, err
	}
	p.app, err = p.startAppWith(ctx, "app", lab.AppPort, conf)
	return p, err
}

// startApp starts an app whose OpenSSL hands over its keys.
func (p *pod) startApp(ctx context.Context, name string, port uint16) (*lab.Container, error) {
	return p.startAppWith(ctx, name, port, optIn)
}

// startAppWith is startApp with another openssl.cnf.
func (p *pod) startAppWith(ctx context.Context, name string, port uint16, conf string) (*lab.Container, error) {
	dir := filepath.Join(world.Dir, p.Name+"-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	files := map[string]string{
		"openssl.cnf": conf,
		"hosts":       "127.0.0.1 localhost\n" + lab.OutsideV4.String() + " " + strings.Join(hosts, " ") + "\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	opts := lab.ContainerOptions{
		Annotations: map[string]string{"sidegate/role": "app", "sidegate/policy": p.policy},
		Flags: append([]string{
			"--volume", "/usr:/usr:ro", "--volume", "/lib:/lib:ro", "--volume", "/lib64:/lib64:ro",
			"--volume", filepath.Dir(world.site.ca) + ":/site:ro", "--volume", world.bin + ":/sidegate:ro",
			"--volume", dir + ":/etc/ssl:ro", "--volume", dir + "/hosts:/etc/hosts:ro",
		}, descriptors...),
		Args: []string{"/bin/prober", "serve", "--on", fmt.Sprintf(":%d", port)},
	}
	if conf == optIn {
		opts.Annotations["sidegate/ktls"] = "mount" // Sidegate's own configuration
	} else {
		opts.Flags = append(opts.Flags, "--env", "OPENSSL_CONF=/etc/ssl/openssl.cnf")
	}
	c, err := p.Run(ctx, name, lab.AppImage, opts)
	if err != nil {
		return nil, err
	}
	return c, c.WaitListening(ctx, port)
}

// withOptIn runs a command with the variable that a container's own program has: podman exec gives it to nobody.
const withOptIn = `export OPENSSL_CONF="${OPENSSL_CONF:-/run/sidegate/ktls/openssl.cnf}"; exec "$@"`

// agent runs commands in a container, one after the other: podman takes a second for each.
type agent struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// A command and its input are a line of JSON, and so is what it printed.
const agentScript = `
import json, subprocess, sys
for line in sys.stdin:
    a = json.loads(line)
    p = subprocess.run(a["argv"], input=a["stdin"].encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(json.dumps({"out": p.stdout.decode("utf8", "replace"), "status": p.returncode}), flush=True)
`

var agents = struct {
	sync.Mutex
	of map[*lab.Container]*agent
}{of: make(map[*lab.Container]*agent)}

// run runs a command in an app's container and returns what it printed.
func run(ctx context.Context, c *lab.Container, stdin string, argv ...string) (string, error) {
	agents.Lock()
	defer agents.Unlock()
	a := agents.of[c]
	if a == nil {
		cmd := c.Command(context.WithoutCancel(ctx), "/bin/sh", "-c", withOptIn, "sh", "/usr/bin/python3", "-u", "-c", agentScript)
		a = &agent{}
		var err error
		if a.in, err = cmd.StdinPipe(); err != nil {
			return "", err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return "", err
		}
		a.out = bufio.NewReader(out)
		if err := cmd.Start(); err != nil {
			return "", err
		}
		agents.of[c] = a
	}
	type result struct {
		Out    string `json:"out"`
		Status int    `json:"status"`
		err    error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		if r.err = json.NewEncoder(a.in).Encode(map[string]any{"argv": argv, "stdin": stdin}); r.err == nil {
			var line []byte
			if line, r.err = a.out.ReadBytes('\n'); r.err == nil {
				r.err = json.Unmarshal(line, &r)
			}
		}
		done <- r
	}()
	select {
	case r := <-done:
		if r.err == nil && r.Status != 0 {
			r.err = fmt.Errorf("%s: exit status %d", argv[0], r.Status)
		}
		return r.Out, r.err
	case <-ctx.Done():
		delete(agents.of, c) // it answers too late
		return "", ctx.Err()
	}
}

// python runs a script in the pod's app, and returns the lines that it printed.
func (p *pod) python(ctx context.Context, t *testing.T, script string, args ...string) []string {
	t.Helper()
	out, err := run(ctx, p.app, script, append([]string{"/usr/bin/python3", "-"}, args...)...)
	t.Log(out)
	must(t, err)
	return strings.Split(strings.TrimRight(out, "\n"), "\n")
}

// shell runs a script of busybox's sh in the pod's app.
func (p *pod) shell(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	out, err := run(ctx, p.app, script, "/bin/sh", "-s")
	t.Log(out)
	must(t, err)
	return out
}
