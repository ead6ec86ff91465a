// SPDX-License-Identifier: Apache-2.0

//go:build vmguest

package tls

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidegate/cgroups"
	"sidegate/policy"
)

// dialogue is a program in the app's container that is told what to do next.
type dialogue struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser

	mu     sync.Mutex
	output bytes.Buffer
}

func startDialogue(t *testing.T, argv ...string) *dialogue {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientTimeout)
	t.Cleanup(cancel)
	d := &dialogue{t: t, cmd: world.app.command(ctx, argv[0], argv[1:]...)}
	d.cmd.Stdout, d.cmd.Stderr = d, d
	var err error
	d.stdin, err = d.cmd.StdinPipe()
	must(t, err)
	must(t, world.app.start(d.cmd))
	return d
}

// Write is for what the program prints.
func (d *dialogue) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.output.Write(b)
}

func (d *dialogue) printed() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.output.String()
}

// say types something, and waits until the program has printed what is wanted. It tells whether it did.
func (d *dialogue) say(words, wanted string) bool {
	d.t.Helper()
	before := len(d.printed())
	_, err := io.WriteString(d.stdin, words)
	if err != nil {
		d.t.Logf("%.10q: %v", words, err)
		return false
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(d.printed()[before:], wanted) {
			return true
		}
	}
	return false
}

// last types something, and waits for the program's end, which it returns.
func (d *dialogue) last(words string) error {
	_, _ = io.WriteString(d.stdin, words) // it may have ended
	return d.cmd.Wait()
}

// apply puts the pod under another spec.tls.
func apply(t *testing.T, tls string) {
	t.Helper()
	text := podPolicy[:strings.Index(podPolicy, "  tls:")] + "  tls: " + tls + "\n"
	if tls == "" {
		text = podPolicy
	}
	list, err := policy.Parse("inspect.yaml", []byte(text))
	must(t, err)
	compiled, err := list[0].Compile()
	must(t, err)
	must(t, inNS(world.outside, func() (err error) {
		s, err := cgroups.OpenExisting(state)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		_, err = s.Apply(compiled, cgroups.Source{})
		return err
	}))
}

// An app's KeyUpdate goes wrong on these kernels, whose TLS_TX takes keys once, with or without a relay. OpenSSL 3.0 does not
// even try: after its KeyUpdate the kernel goes on with the old keys, which no server reads any more. OpenSSL 3.5 hands over new
// ones, which the kernel refuses, and gives up. The relay ends such a connection, with words that say why; where requests are
// judged, at the KeyUpdate itself.
func TestKeyUpdate(t *testing.T) {
	const judged, seen = "judged", "{mode: inspect}"
	for _, policy := range []string{judged, seen} {
		for _, test := range []struct {
			client *client
			reason string // under seen
		}{
			{sClient("TLS 1.3"), "has not handed over the keys that follow its KeyUpdate"},
			{sClient("TLS 1.3").newer(), "the keys that the app has handed over do not open what it sends"},
		} {
			reason := test.reason
			if policy == judged {
				reason = "the app changes its keys"
			}
			t.Run(test.client.name+" "+policy, func(t *testing.T) {
				if policy != judged {
					apply(t, policy)
					defer apply(t, "")
				}
				argv := slices.DeleteFunc(test.client.command("api.example", "", ""), func(arg string) bool {
					return arg == "-quiet" // without it, letters are commands
				})
				visits, events := world.site.count(), len(readEvents(t))
				d := startDialogue(t, argv...)
				if !d.say("GET /v1/first HTTP/1.1\r\nHost: api.example\r\n\r\n", "hello /v1/first") || !d.say("K\n", "KEYUPDATE") {
					t.Errorf("the client prints %q", d.printed())
				}
				if err := d.last("GET /v1/second HTTP/1.1\r\nHost: api.example\r\n\r\n"); err == nil {
					t.Errorf("the client goes on: %q", d.printed())
				}
				if e := find(eventsSince(t, events, 1), "refused"); e == nil || !strings.Contains(e.Reason, reason) {
					t.Errorf("the relay says %v", e)
				}
				x := exchange{visits: world.site.since(visits)}
				if plain := x.sitePlain(); strings.Contains(plain, "second") || !strings.Contains(plain, "first") {
					t.Errorf("the site got %q", plain)
				}
			})
		}
	}
}
