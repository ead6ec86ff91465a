// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/cgroups"
	"sidegate/observe/cli"
	"sidegate/observe/cli/clitest"
	"sidegate/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// command is the command line without what it starts.
func command() *cobra.Command {
	return newRoot(func(context.Context, config, *logrus.Logger) error { return nil })
}

func TestCommandLine(t *testing.T) { clitest.Golden(t, "testdata/cli.txtar", command, *update) }

func TestMan(t *testing.T) { clitest.Man(t, command) }

// A managed plugin has no command line of the user's, but an environment; an argument says it last.
func TestConfigOfEnvironment(t *testing.T) {
	run := func(args ...string) (c config, level logrus.Level, out string, code int) {
		var b bytes.Buffer
		root := newRoot(func(_ context.Context, got config, log *logrus.Logger) error {
			c, level = got, log.GetLevel()
			return nil
		})
		code = cli.Run(root, cli.Env{Args: args, Stdout: &b, Stderr: &b})
		return c, level, b.String(), code
	}
	for _, name := range []string{cli.LogLevelEnv, cli.LogFormatEnv, metricsEnv, policy.DirEnv} {
		t.Setenv(name, "")
	}
	if c, level, out, code := run(); code != 0 || level != logrus.InfoLevel || c.metrics != "" || c.policyDir != policy.DefaultDir || c.stateDir != cgroups.StateDir() {
		t.Errorf("of nothing: %+v, %s, %s", c, level, out)
	}
	t.Setenv(cli.LogLevelEnv, "debug")
	t.Setenv(metricsEnv, "127.0.0.1:1")
	t.Setenv(policy.DirEnv, "/p")
	if c, level, out, code := run(); code != 0 || level != logrus.DebugLevel || c.metrics != "127.0.0.1:1" || c.policyDir != "/p" {
		t.Errorf("of the environment: %+v, %s, %s", c, level, out)
	}
	c, level, out, code := run("--log-level", "error", "--metrics-address=:2", "--policy-dir=/q")
	if code != 0 || level != logrus.ErrorLevel || c.metrics != ":2" || c.policyDir != "/q" {
		t.Errorf("of both: %+v, %s, %s", c, level, out)
	}
	t.Setenv(cli.LogLevelEnv, "loud")
	if _, _, out, code := run(); code != cli.ExitUsage || !strings.Contains(out, cli.LogLevelEnv) {
		t.Errorf("of what is no level: exit %d, %s", code, out)
	}
}

// What is logged of a request and of a container says whose it is, and what Docker is told is one line.
func TestLogFields(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(func(_ context.Context, c config, log *logrus.Logger) error {
		d := newDriver(c, log, newMetrics("/nowhere"))
		err := d.do("Join", subject{network: strings.Repeat("a", 64), endpoint: strings.Repeat("e", 64)}, func() error {
			return errors.Join(errors.New("one"), errors.New("two"))
		})
		if want := "sidegate: endpoint eeeeeeeeeeee: one; two"; err == nil || err.Error() != want {
			t.Errorf("Docker is told %v, not %s", err, want)
		}
		return nil
	})
	if code := cli.Run(root, cli.Env{Args: []string{"--log-format=json"}, Stdout: &out, Stderr: &out}); code != 0 {
		t.Fatalf("exit %d: %s", code, &out)
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%s: %v", &out, err)
	}
	want := map[string]string{
		"level": "error", "error": "one\ntwo", "request": "Join", "network": strings.Repeat("a", 64), "endpoint": strings.Repeat("e", 64),
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s is %q, want %q, in %s", key, got[key], value, &out)
		}
	}
}
