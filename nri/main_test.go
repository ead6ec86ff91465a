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
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/observe/cli"
	"sidegate/observe/cli/clitest"
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
	var level logrus.Level
	root := newRoot(func(_ context.Context, got options, log *logrus.Logger) error {
		o, level = got, log.GetLevel()
		return errors.New("not today")
	})
	var stderr bytes.Buffer
	args := []string{"--idx", "20", "--socket-path", "/run/n.sock", "--log-level=debug", "--name=gate", "--metrics-address", ":1", "--log-format", "json"}
	code := cli.Run(root, cli.Env{Args: args, Stdout: &stderr, Stderr: &stderr})
	if code != 1 || o.idx != "20" || o.socket != "/run/n.sock" || level != logrus.DebugLevel || o.name != "gate" || o.metrics != ":1" {
		t.Errorf("exit %d, %+v, %s", code, o, level)
	}
	var line map[string]string
	if err := json.Unmarshal(stderr.Bytes(), &line); err != nil || line["level"] != "error" || line["error"] != "not today" || line["msg"] == "" {
		t.Errorf("%s: %v", &stderr, err)
	}
	if _, err := time.Parse(time.RFC3339Nano, line["time"]); err != nil {
		t.Error(err)
	}
}

// A plugin that the runtime starts has no options: its log is as the runtime's configuration says. One that has them
// keeps to them.
func TestLogOfConfiguration(t *testing.T) {
	const text = "logLevel: debug\nlogFormat: json\n"
	for _, args := range [][]string{nil, {"--log-level", "error", "--log-format", "text"}} {
		var out bytes.Buffer
		root := newRoot(func(_ context.Context, o options, log *logrus.Logger) error {
			p := newPlugin(defaultConfig(), o, newMetrics("/nowhere"), log)
			if _, err := p.Configure(t.Context(), text, "containerd", "v2"); err != nil {
				return err
			}
			s := &api.PodSandbox{Id: "5a7d", Name: "web", Namespace: "shop"}
			_ = p.do("StartContainer", containerSubject(s, &api.Container{Id: "c0ffee", Name: "app"}), func() error { return errors.New("x: do y") })
			return nil
		})
		if code := cli.Run(root, cli.Env{Args: args, Stdout: &out, Stderr: &out}); code != 0 {
			t.Fatalf("exit %d: %s", code, &out)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		last := lines[len(lines)-1]
		var got map[string]string
		err := json.Unmarshal([]byte(last), &got)
		if args != nil {
			if err == nil || !strings.Contains(last, "level=error") || strings.Contains(out.String(), "connected") {
				t.Errorf("options do not hold: %s", &out)
			}
			continue
		}
		want := map[string]string{
			"level": "error", "error": "x: do y", "pod": "shop/web", "podID": "5a7d", "container": "app", "containerID": "c0ffee", "request": "StartContainer",
		}
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s is %q, want %q, in %s", key, got[key], value, last)
			}
		}
		if err != nil || !strings.Contains(out.String(), "connected to containerd") {
			t.Errorf("%v: %s", err, &out)
		}
	}
}
