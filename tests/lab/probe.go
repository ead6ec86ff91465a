// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
)

// Result is what the prober printed.
type Result struct {
	OK    bool
	Err   string
	Errno string // symbolic name, as in EPERM
	Data  map[string]any
}

// String returns one line for humans.
func (r Result) String() string {
	if r.OK {
		return "ok"
	}
	return r.Err
}

// Text returns a field of Data as a string, or "".
func (r Result) Text(field string) string {
	s, _ := r.Data[field].(string)
	return s
}

// Addr returns a field of Data as an address and port, v4-mapped ones as IPv4; the zero value if it is none.
func (r Result) Addr(field string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(r.Text(field))
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Probe runs the prober in the node.
func (l *Lab) Probe(ctx context.Context, args ...string) (Result, error) {
	return probe(ctx, l, exec.CommandContext(ctx, l.Prober, args...))
}

// probe runs a command that ends in the prober. A failed attempt is a Result; an error means that there was no attempt.
func probe(ctx context.Context, l *Lab, cmd *exec.Cmd) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r, perr := lastResult(stdout.Bytes())
	l.logf("probe %s -> %s", strings.Join(cmd.Args, " "), strings.TrimSpace(stdout.String()))
	if perr != nil {
		return Result{}, errors.Join(fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), perr), err, ctx.Err(), errors.New(stderr.String()))
	}
	return r, nil
}

// lastResult parses the last line of a prober's output.
func lastResult(out []byte) (Result, error) {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var r Result
	if err := json.Unmarshal(lines[len(lines)-1], &r); err != nil {
		return Result{}, fmt.Errorf("no result: %w", err)
	}
	return r, nil
}

// A Probing is a prober that runs and prints results as it goes, as "prober listen" does.
type Probing struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  *bufio.Scanner
	stderr bytes.Buffer
	log    func(string, ...any)
}

func startProbing(l *Lab, cmd *exec.Cmd) (*Probing, error) {
	p := &Probing{cmd: cmd, log: l.logf}
	cmd.Stderr = &p.stderr
	var err error
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.lines = bufio.NewScanner(out)
	p.lines.Buffer(nil, 1<<20)
	l.logf("start %s", strings.Join(cmd.Args, " "))
	return p, cmd.Start()
}

// Next returns the next result, when there is one. It blocks; the command's context ends it.
func (p *Probing) Next() (Result, error) {
	if !p.lines.Scan() {
		err := errors.Join(errors.New("prober ended"), p.lines.Err(), p.cmd.Wait())
		return Result{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(p.stderr.String()))
	}
	p.log("probing -> %s", p.lines.Text())
	return lastResult(p.lines.Bytes())
}

// End closes its standard input, for which some of the prober's commands wait.
func (p *Probing) End() error { return p.stdin.Close() }

// Wait reads all that is left and waits for the end.
func (p *Probing) Wait() error {
	for p.lines.Scan() {
	}
	return p.cmd.Wait()
}

// StartProbe starts a prober in the node that prints several results.
func (l *Lab) StartProbe(ctx context.Context, args ...string) (*Probing, error) {
	return startProbing(l, exec.CommandContext(ctx, l.Prober, args...))
}
