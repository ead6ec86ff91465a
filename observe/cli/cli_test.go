// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"sidegate/cgroups"
)

// daemon runs a daemon of nothing but f.
func daemon(f func(context.Context, *logrus.Logger) error, args ...string) (stderr string, code int) {
	var log Log
	cmd := &cobra.Command{Use: "d"}
	Daemon(cmd, "v1", &log, f)
	var b bytes.Buffer
	code = Run(cmd, Env{Args: args, Stdout: &b, Stderr: &b})
	return b.String(), code
}

// Exit codes are the same whether an error was printed or logged, and each error is said once.
func TestExitCodes(t *testing.T) {
	t.Setenv(LogFormatEnv, "")
	for _, c := range []struct {
		err  error
		code int
	}{
		{nil, 0}, {errors.New("x"), ExitFailed}, {Usage(errors.New("x")), ExitUsage}, {fmt.Errorf("a: %w", Usage(errors.New("x"))), ExitUsage},
		{fmt.Errorf("x: %w", cgroups.ErrUnsupported), ExitUnsupported},
	} {
		out, code := daemon(func(context.Context, *logrus.Logger) error { return c.err })
		if code != c.code || c.err != nil && (strings.Count(out, "\n") != 1 || !strings.Contains(out, "level=error") || !strings.Contains(out, c.err.Error())) {
			t.Errorf("%v, logged: exit %d, %s", c.err, code, out)
		}
		var b bytes.Buffer
		code = Run(&cobra.Command{Use: "c", RunE: func(*cobra.Command, []string) error { return c.err }}, Env{Stdout: &b, Stderr: &b})
		if code != c.code || c.err != nil && (!strings.HasPrefix(b.String(), "c: "+c.err.Error()+"\n") || strings.Contains(b.String(), "--help") != (code == ExitUsage)) {
			t.Errorf("%v, printed: exit %d, %s", c.err, code, &b)
		}
	}
	if Usage(nil) != nil {
		t.Error("no error is one of usage")
	}
}

// An option goes before the environment, and both before a file.
func TestLogOptions(t *testing.T) {
	for _, c := range []struct {
		env, option, file string
		level             logrus.Level
	}{
		{"", "", "", logrus.InfoLevel}, {"", "", "error", logrus.ErrorLevel}, {"debug", "", "error", logrus.DebugLevel},
		{"debug", "trace", "error", logrus.TraceLevel}, {"", "warning", "", logrus.WarnLevel}, {"", "PANIC", "", logrus.PanicLevel},
	} {
		t.Setenv(LogLevelEnv, c.env)
		var log Log
		cmd := &cobra.Command{Use: "d"}
		got := logrus.Level(100)
		Daemon(cmd, "v1", &log, func(_ context.Context, l *logrus.Logger) error {
			err := log.Default(l, c.file, "")
			got = l.GetLevel()
			return err
		})
		args := []string{}
		if c.option != "" {
			args = append(args, "--log-level", c.option)
		}
		var b bytes.Buffer
		if code := Run(cmd, Env{Args: args, Stdout: &b, Stderr: &b}); code != 0 || got != c.level {
			t.Errorf("%+v: exit %d, level %s, %s", c, code, got, &b)
		}
	}
	t.Setenv(LogLevelEnv, "")
	for name, want := range map[string]string{
		LogLevelEnv:  `$SIDEGATE_LOG_LEVEL: "loud" is no level: write trace, debug, info, warning, error, fatal or panic`,
		LogFormatEnv: `$SIDEGATE_LOG_FORMAT: "loud" is no format: write text or json`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "loud")
			out, code := daemon(func(context.Context, *logrus.Logger) error { return nil })
			if code != ExitUsage || !strings.Contains(out, want) {
				t.Errorf("exit %d, %s", code, out)
			}
		})
	}
}

// A line of JSON has what people look for, and its times have nine digits, so that lines sort.
func TestJSON(t *testing.T) {
	before := time.Now().Add(-time.Second)
	out, code := daemon(func(_ context.Context, log *logrus.Logger) error {
		log.WithFields(logrus.Fields{FieldPod: "shop/web", FieldSockets: 3, FieldTook: time.Duration(1500).String()}).WithError(errors.New("a < b")).Warn("said: do this")
		return nil
	}, "--log-format", "json")
	var got struct {
		Time, Level, Msg, Error, Pod, Took string
		Sockets                            int
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatalf("exit %d, %s: %v", code, out, err)
	}
	at, err := time.Parse(time.RFC3339Nano, got.Time)
	if err != nil || at.Before(before) || at.After(time.Now()) || !strings.Contains(got.Time[:30], ".") {
		t.Errorf("time %s: %v", got.Time, err)
	}
	got.Time = ""
	want := got
	want.Level, want.Msg, want.Error, want.Pod, want.Took, want.Sockets = "warning", "said: do this", "a < b", "shop/web", "1.5µs", 3
	if got != want || !strings.Contains(out, "a < b") {
		t.Errorf("%+v, in %s", got, out)
	}
}

// SIGTERM ends the context of a daemon, which then ends well.
func TestSignal(t *testing.T) {
	out, code := daemon(func(ctx context.Context, _ *logrus.Logger) error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	if code != 0 || out != "" {
		t.Errorf("exit %d, %s", code, out)
	}
}

// docs/logs.md has each field, and no other.
func TestFieldsAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "log.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{"time": true, "level": true, "msg": true, logrus.ErrorKey: true}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(spec.Names[0].Name, "Field") {
			name, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			fields[name] = true
		}
		return true
	})
	text, err := os.ReadFile("../../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Fields")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		for name := range strings.SplitSeq(cells[1], ",") {
			name = strings.Trim(name, " `")
			if !fields[name] {
				t.Errorf("docs/logs.md has %q, which is no field, or there twice", name)
			}
			delete(fields, name)
		}
	}
	if len(fields) > 0 {
		t.Errorf("docs/logs.md lacks %v", fields)
	}
}
