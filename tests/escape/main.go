// SPDX-License-Identifier: Apache-2.0

// Command escape tries every known way around a sidecar, for real: the same attacks by the same static binary, in containers of a real
// podman pod, without any enforcement, with the iptables rules of a mesh, with those and the capabilities that undo them, and with
// Sidegate. It counts what arrived, and not what the attacker was told.
//
// It needs root and makes a machine of its own inside the machine (see package lab); nothing is left afterwards.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sidegate/tests/lab"
)

// env is what the program was asked to do.
type env struct {
	only   *regexp.Regexp
	setups []*setup
	json   string
	bin    string
	prober string
	vm     string
	// markdown is a file for the table.
	markdown string
	quiet    bool
	log      io.Writer
	stdout   io.Writer
}

func main() {
	// Before the node is made, so that a wrong flag costs nothing.
	e, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
		os.Exit(2)
	}
	began := time.Now()
	inNode := false
	status := lab.Main(func() int {
		inNode = true
		if err := run(context.Background(), e); err != nil {
			fmt.Fprintln(os.Stderr, "escape:", err)
			return 1
		}
		return 0
	})
	if inNode || status != 0 {
		os.Exit(status)
	}
	ok, err := conclude(context.Background(), e, began)
	if err != nil {
		fmt.Fprintln(os.Stderr, "escape:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func parseFlags(args []string) (*env, error) {
	e := &env{stdout: os.Stdout}
	fs := flag.NewFlagSet("escape", flag.ContinueOnError)
	only := fs.String("only", "", "make only cases whose name or group matches this `regexp`")
	names := fs.String("setup", "", "comma separated `set-ups` (default: all; the control is always made)")
	verbose := fs.Bool("v", false, "print each command")
	fs.StringVar(&e.json, "json", "build/escape.json", "write the result to this `file`")
	fs.StringVar(&e.bin, "bin", "bin", "`directory` of sidegate and sidegate-oci-hook")
	fs.StringVar(&e.vm, "vm", "newest", "`release` of the kernel of Debian's for what this kernel cannot do; empty for none")
	fs.BoolVar(&e.quiet, "quiet", false, "print no table, and leave the judgement to who reads the JSON")
	fs.StringVar(&e.markdown, "markdown", "", "write the table to this `file` as well")
	fs.StringVar(&e.prober, "prober", "", "prober `binary` (default: build it)")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	var err error
	if e.setups, err = chooseSetups(*names); err != nil {
		return nil, fmt.Errorf("--setup: %w", err)
	}
	if e.only, err = regexp.Compile(*only); err != nil {
		return nil, fmt.Errorf("--only: %w", err)
	}
	if *verbose {
		e.log = os.Stderr
	}
	if e.json == "" {
		return nil, errors.New("--json is empty")
	}
	for _, path := range []*string{&e.bin, &e.prober, &e.json, &e.markdown} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// chooseSetups returns the named set-ups and the control, in the order of the table.
func chooseSetups(names string) ([]*setup, error) {
	all := allSetups()
	if names == "" {
		return all, nil
	}
	wanted := map[string]bool{control: true}
	for name := range strings.SplitSeq(names, ",") {
		wanted[name] = true
	}
	var chosen []*setup
	for _, s := range all {
		if wanted[s.name] {
			chosen = append(chosen, s)
			delete(wanted, s.name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("there is no %q", name)
	}
	return chosen, nil
}

// run tries all cases in all set-ups and writes what came of them.
func run(ctx context.Context, e *env) (err error) {
	l, err := lab.New(ctx, lab.Options{Prober: e.prober, Log: e.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	var chosen []*escape
	for _, c := range escapes() {
		if e.only.MatchString(c.name) || e.only.MatchString(c.group) {
			chosen = append(chosen, c)
		}
	}
	tries := map[string]map[string]try{}
	for _, s := range e.setups {
		since := time.Now()
		if tries[s.name], err = runSetup(ctx, l, e, s, chosen); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, "escape: %d cases, %s (%s)\n", len(chosen), s.title, time.Since(since).Round(time.Second))
	}
	r, err := newReport(e.setups, chosen, tries)
	if err != nil {
		return err
	}
	return r.write(e.json)
}

// conclude makes what this kernel cannot in a VM, prints the table, and returns whether Sidegate blocked all that it has to.
func conclude(ctx context.Context, e *env, began time.Time) (bool, error) {
	if e.quiet {
		return true, nil
	}
	r, err := readReport(e.json)
	if err != nil {
		return false, err
	}
	if names := r.impossible(); e.vm != "" && len(names) > 0 {
		other, err := runInVM(ctx, e, names)
		if err != nil {
			return false, fmt.Errorf("in a VM: %w", err)
		}
		r.merge(other)
		if err := r.write(e.json); err != nil {
			return false, err
		}
	}
	r.print(e.stdout, time.Since(began))
	if e.markdown != "" {
		if err := os.WriteFile(e.markdown, []byte(r.markdown()), 0o644); err != nil {
			return false, err
		}
	}
	return r.good(), nil
}
