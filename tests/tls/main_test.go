// SPDX-License-Identifier: Apache-2.0

// Package tls has the tests of the TLS relay with real podman, HAProxy, and TLS clients
// that nobody here wrote, in a machine inside the machine (see package lab).
package tls

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidegate/tests/lab"
)

var commands = flag.Bool("commands", false, "print each command that the lab runs")

// world is what all tests share.
var world struct {
	*lab.Lab
	bin   string // directory of the binaries
	hooks string // hooks.d that runs sidegate-oci-hook with the policies below
	relay *lab.Relay
	site  *site
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(lab.RunTests("tls", func() (int, error) { return runTests(m) }))
}

func runTests(m *testing.M) (status int, err error) {
	opts := lab.Options{}
	if *commands {
		opts.Log = os.Stderr
	}
	l, err := lab.New(context.Background(), opts)
	if err != nil {
		return 1, err
	}
	defer func() {
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}()
	world.Lab, world.bin = l, filepath.Join(l.Dir, "bin")
	if err := lab.Build(world.bin); err != nil {
		return 1, err
	}
	installed := filepath.Join(l.Dir, "installed")
	if world.hooks, err = lab.Install(installed, filepath.Join(world.bin, "sidegate-oci-hook"), policies); err != nil {
		return 1, err
	}
	if err := lab.InstallKTLS(installed, "../../contrib/ktls"); err != nil {
		return 1, err
	}
	if world.site, err = newSite(l, filepath.Join(l.Dir, "site")); err != nil {
		return 1, err
	}
	defer world.site.close()
	relay := filepath.Join(l.Dir, "confined", "sidegate-tls")
	if err := confined(relay, filepath.Join(world.bin, "sidegate-tls")); err != nil {
		return 1, err
	}
	if world.relay, err = lab.StartRelay(l.Dir, relay); err != nil {
		return 1, err
	}
	defer func() {
		if serr := world.relay.Stop(); err == nil {
			err = serr
		}
	}()
	if err := buildLiar(world.bin); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, removeShared()) }()
	return m.Run(), nil
}

// buildLiar makes the client that hands over what it likes.
func buildLiar(dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "liar"), "sidegate/cmd/sidegate-tls/internal/tlstest/liar")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build liar: %w: %s", err, out)
	}
	return nil
}

// begin gives a test its context, and shows what the relay has logged if it fails.
func begin(t *testing.T) context.Context {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := world.relay.Log(); err == nil {
				t.Logf("relay:\n%s", tail(log, 4000))
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sidegate runs the command and returns what it printed.
func sidegate(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(world.bin, "sidegate"), args...)
	cmd.Env = append(os.Environ(), "SIDEGATE_POLICY_DIR="+lab.PolicyDir(filepath.Join(world.Dir, "installed")))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sidegate %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
