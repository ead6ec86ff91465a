// SPDX-License-Identifier: Apache-2.0

// Command demo shows what Sidegate changes: it makes the same attempts in a pod without Sidegate and in a pod with it, with real
// podman, containerd or Docker, runc, HAProxy and nginx, and judges each by what the outside saw. With -tls it shows instead what becomes of
// requests inside TLS that an app starts, with real podman, HAProxy, Python and OpenSSL.
//
// It needs root and makes a machine of its own inside the machine (see package lab); nothing is left afterwards.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"sidegate/tests/lab"
)

// env is what the program was asked to do.
type env struct {
	only   *regexp.Regexp
	sides  []side
	json   string
	bin    string
	prober string
	log    io.Writer
	stdout io.Writer

	runtime string // podman, containerd or docker
	tls     bool
}

func main() {
	// Before the node is made, so that a wrong flag costs nothing.
	e, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(2)
	}
	os.Exit(lab.Main(func() int {
		show := run
		if e.tls {
			show = runTLS
		}
		ok, err := show(context.Background(), e)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		if err != nil || !ok {
			return 1
		}
		return 0
	}))
}

func parseFlags(args []string) (*env, error) {
	e := &env{stdout: os.Stdout}
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	only := fs.String("only", "", "make only attempts whose name matches this `regexp`")
	sides := fs.String("side", "both", "off, on or both")
	fs.StringVar(&e.runtime, "runtime", "podman", "podman; containerd: CRI pods and the NRI plugin; or docker: the network driver")
	fs.BoolVar(&e.tls, "tls", false, "requests inside TLS, with podman")
	verbose := fs.Bool("v", false, "print each command")
	fs.StringVar(&e.json, "json", "", "also write the result to this `file`")
	fs.StringVar(&e.bin, "bin", "bin", "`directory` of sidegate and sidegate-oci-hook")
	fs.StringVar(&e.prober, "prober", "", "prober `binary` (default: build it)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var ok bool
	if e.sides, ok = map[string][]side{"off": {off}, "on": {on}, "both": {off, on}}[*sides]; !ok {
		return nil, fmt.Errorf("--side is off, on or both, not %q", *sides)
	}
	if !slices.Contains([]string{"podman", "containerd", "docker"}, e.runtime) {
		return nil, fmt.Errorf("--runtime is podman, containerd or docker, not %q", e.runtime)
	}
	if e.tls && (e.runtime != "podman" || *only != "" || *sides != "both" || e.json != "") {
		return nil, errors.New("--tls goes with -v, --bin and --prober alone")
	}
	var err error
	if e.only, err = regexp.Compile(*only); err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	if *verbose {
		e.log = os.Stderr
	}
	for _, path := range []*string{&e.bin, &e.prober, &e.json} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// run makes the attempts on all sides and reports. It returns whether all that was decided passed.
func run(ctx context.Context, e *env) (ok bool, err error) {
	began := time.Now()
	opts := lab.Options{Prober: e.prober, Log: e.log}
	switch e.runtime {
	case "containerd":
		opts.Containerd = &lab.ContainerdOptions{}
	case "docker":
		opts.Docker = dockerOptions(e)
	}
	l, err := lab.New(ctx, opts)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	var chosen []attempt
	for _, a := range attempts() {
		if e.only.MatchString(a.name) {
			chosen = append(chosen, a)
		}
	}
	findings := map[side][]finding{}
	for _, s := range e.sides {
		fmt.Fprintf(os.Stderr, "demo: %d attempts %s\n", len(chosen), s)
		if findings[s], err = runSide(ctx, l, e, s, chosen); err != nil {
			return false, fmt.Errorf("%s: %w", s, err)
		}
	}
	rows := judgeAll(chosen, e.sides, findings)
	printTable(e.stdout, rows, e.sides)
	sum := count(rows)
	fmt.Fprintf(e.stdout, "\n%d not possible on this machine; %s\n%s\n", sum.skipped, time.Since(began).Round(time.Second), sum)
	if e.json != "" {
		b, err := json.MarshalIndent(report{Passed: sum.passed, Failed: sum.failed, Skipped: sum.skipped, Attempts: rows}, "", "  ")
		if err != nil {
			return false, err
		}
		if err := os.WriteFile(e.json, append(b, '\n'), 0o644); err != nil {
			return false, err
		}
	}
	return sum.failed == 0, nil
}
