// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate-tls/internal/record"
	"sidegate/cmd/sidegate-tls/internal/relay"
	"sidegate/cmd/sidegate-tls/internal/tlstest"
	"sidegate/observe/cli"
	"sidegate/observe/cli/clitest"
	"sidegate/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// command is the command line without what it starts.
func command() *cobra.Command {
	return newRoot(func(context.Context, options, *logrus.Logger) error { return nil })
}

func TestCommandLine(t *testing.T) { clitest.Golden(t, "testdata/cli.txtar", command, *update) }

func TestMan(t *testing.T) { clitest.Man(t, command) }

func TestOptions(t *testing.T) {
	var o options
	root := newRoot(func(_ context.Context, got options, _ *logrus.Logger) error {
		o = got
		return nil
	})
	code := cli.Run(root, cli.Env{Args: []string{"--socket", "/run/s", "--events", "-", "--max-connections", "7"}, Stdout: io.Discard, Stderr: io.Discard})
	if code != 0 || o.socket != "/run/s" || o.events != "-" || o.connections != 7 || o.state != cgroups.StateDir() {
		t.Errorf("exit %d, %+v", code, o)
	}
}

// A connection that is refused is logged with whose it is, also where nobody asked for events.
func TestLogFields(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(func(_ context.Context, o options, log *logrus.Logger) error {
		c := connEvents{node: newNode(&o, &events{}, log), cookie: 1<<53 + 1, from: "10.0.0.1:5"}
		c.find = func() {
			c.base = event{Pod: "shop/web", Container: "app", ContainerID: "c0ffee", Destination: "192.0.2.1:443"}
		}
		c.fail(errors.New("nobody <there>: start it"))
		return nil
	})
	if code := cli.Run(root, cli.Env{Args: []string{"--log-format", "json"}, Stdout: &out, Stderr: &out}); code != 0 {
		t.Fatalf("exit %d: %s", code, &out)
	}
	var got map[string]any
	dec := json.NewDecoder(bytes.NewReader(out.Bytes()))
	dec.UseNumber()
	if err := dec.Decode(&got); err != nil {
		t.Fatalf("%s: %v", &out, err)
	}
	for key, value := range map[string]any{
		"level": "warning", "error": "nobody <there>: start it", "netnsCookie": json.Number("9007199254740993"), "pod": "shop/web", "container": "app",
		"containerID": "c0ffee", "from": "10.0.0.1:5", "destination": "192.0.2.1:443",
	} {
		if got[key] != value {
			t.Errorf("%s is %v, want %v, in %s", key, got[key], value, &out)
		}
	}
}

// Who does not read loses events, and is told how many; nobody waits for him.
func TestEventsAreLost(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	e := &events{w: w, queue: make(chan any, 4), done: make(chan struct{})}
	const n = 20
	for i := range n {
		e.put(&event{PID: i})
	}
	go e.write()
	in := bufio.NewReader(r)
	for i := range 4 {
		if got := line(t, in); got.PID != i {
			t.Errorf("event %d is %+v", i, got)
		}
	}
	e.put(&event{PID: 100})
	if got := line(t, in); got.Kind != "lost" || got.Lost != n-4 {
		t.Errorf("what was lost: %+v", got)
	}
	if got := line(t, in); got.PID != 100 {
		t.Errorf("after that: %+v", got)
	}
	e.Close()
}

func line(t *testing.T, in *bufio.Reader) (got struct {
	Kind      string
	PID, Lost int
},
) {
	t.Helper()
	b, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestEventsFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	e, err := openEvents(path)
	if err != nil {
		t.Fatal(err)
	}
	e.put(&event{Time: time.Now(), Event: relay.Event{Kind: relay.KindEnd, SNI: "<a&b>"}})
	e.Close()
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), `"sni":"<a&b>"`) || strings.Count(string(b), "\n") != 1 {
		t.Errorf("%s, %v", b, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := openEvents(filepath.Join(path, "below")); err == nil {
		t.Error("a file below a file is opened")
	}
}

// Keys come in order, those of a side apart; too many, or what are none, end the connection.
func TestBox(t *testing.T) {
	give := func(b *box, rx bool, fill byte) {
		info := tlstest.Info(0x0304, 51, []byte(strings.Repeat(string(fill), 16)), []byte("0123456789ab"), 0)
		b.put(&cgroups.HandedOver{RX: rx, Bytes: info})
	}
	b := &box{}
	for _, fill := range []byte("abc") {
		give(b, false, fill)
	}
	give(b, true, 'x')
	if len(b.keys[relay.Client]) != 3 || len(b.keys[relay.Server]) != 1 {
		t.Fatalf("the box has %d and %d keys", len(b.keys[relay.Client]), len(b.keys[relay.Server]))
	}
	for range maxKeys {
		give(b, false, 'd')
	}
	if b.err == nil || len(b.keys[relay.Client]) != maxKeys {
		t.Errorf("too many keys: %v, %d are kept", b.err, len(b.keys[relay.Client]))
	}
	b = &box{}
	b.put(&cgroups.HandedOver{Bytes: []byte("no keys")})
	if b.err == nil {
		t.Error("what are no keys is taken")
	}
	for _, keys := range b.keys {
		for _, k := range keys {
			if _, err := record.NewDirection(k); err != nil {
				t.Error(err)
			}
		}
	}
}

// What a policy says, as the relay has it.
func TestCompileRules(t *testing.T) {
	list, err := policy.Parse("test.yaml", []byte(`apiVersion: sidegate/v1alpha1
kind: PodPolicy
metadata: {name: test}
spec:
  tls:
    mode: deferred
    plaintext: deny
    fronting: allow
    sni: {default: deny, rules: [{name: a, action: allow, hosts: [a.example]}]}
    http: {default: deny, rules: [{name: b, action: allow, hosts: [a.example]}]}
    headers: [x-shown]
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := list[0].Compile()
	if err != nil {
		t.Fatal(err)
	}
	got, err := compile(c.TLSRules)
	if err != nil {
		t.Fatal(err)
	}
	if !got.deferred || !got.RequireKeys || got.Plaintext || !got.Judge.AnyHost || got.Judge.Other || got.Judge.Rules == nil || got.Judge.Show[0] != "x-shown" {
		t.Errorf("%+v", got)
	}
	if allow, rule := got.SNI("a.example"); !allow || rule != "a" {
		t.Errorf("a.example: %v by %q", allow, rule)
	}
	if allow, _ := got.SNI("b.example"); allow {
		t.Error("b.example is allowed")
	}
	if _, err := compile([]byte("{}")); err == nil {
		t.Error("what is no policy is taken")
	}
}

// Sessions get the sidecar's connections by the destination that stands for them.
func TestSessions(t *testing.T) {
	var s sessions
	to := netip.MustParseAddrPort("192.0.2.1:50000")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() *net.TCPConn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}
	stray := dial()
	defer stray.Close()
	if err := s.give(to, stray); err == nil {
		t.Error("a destination of nobody has a session")
	}
	upstreams, remove := s.add(to)
	c := dial()
	if err := s.give(to, c); err != nil {
		t.Error(err)
	}
	if got := <-upstreams; got != c {
		t.Errorf("the session got %v", got.LocalAddr())
	}
	for range maxUpstreams {
		if err := s.give(to, dial()); err != nil {
			t.Error(err)
		}
	}
	if err := s.give(to, stray); err == nil {
		t.Error("a session takes any number of connections")
	}
	left := <-upstreams
	remove()
	if err := s.give(to, stray); err == nil {
		t.Error("a session that is over gets a connection")
	}
	_ = left.Close()
}

// A socket that a killed relay left is taken over, one that answers is not.
func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "tls.sock")
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := listenControl(path); err == nil || !strings.Contains(err.Error(), "a relay runs already") {
		t.Errorf("a second relay: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()

	log := logrus.New()
	log.SetOutput(io.Discard)
	n := newNode(&options{state: "/sys/fs/bpf/one", connections: 1}, &events{}, log)
	go func() {
		for {
			c, err := again.AcceptUnix()
			if err != nil {
				return
			}
			n.answer(c)
		}
	}()
	for request, want := range map[string]string{
		`{"state":"/sys/fs/bpf/other","pods":[]}`: "this relay serves /sys/fs/bpf/one, not /sys/fs/bpf/other",
		`{`: "read what a front-end asks",
	} {
		c, err := net.Dial("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		b := make([]byte, 1<<16)
		size, err := c.Read(b)
		var answer cgroups.TLSAnswer
		if err == nil {
			err = json.Unmarshal(b[:size], &answer)
		}
		if err != nil || !strings.Contains(answer.Error, want) {
			t.Errorf("%s: %q, %v", request, answer.Error, err)
		}
		c.Close()
	}
}
