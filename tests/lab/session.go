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
	"os/exec"
	"strings"
)

// A session is one "podman exec" of the prober's shell, which makes many attempts: an exec takes a quarter of a second, an attempt
// in a session some milliseconds. Each attempt is still a process of its own in the container.
type session struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

// startSession starts a session that lives until it is closed, or its container ends.
func startSession(cmd *exec.Cmd) (*session, error) {
	s := &session{cmd: cmd}
	cmd.Stderr = &s.stderr
	var err error
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.lines = bufio.NewScanner(out)
	s.lines.Buffer(nil, 1<<20)
	return s, cmd.Start()
}

// probe makes one attempt. After an error, or after ctx ended, the session is of no more use.
func (s *session) probe(ctx context.Context, args []string) (Result, error) {
	line, err := json.Marshal(args)
	if err != nil {
		return Result{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.cmd.Process.Kill() })
	defer stop()
	if _, err := s.stdin.Write(append(line, '\n')); err != nil {
		return Result{}, s.broken(err)
	}
	if !s.lines.Scan() {
		return Result{}, s.broken(errors.Join(errors.New("session ended"), s.lines.Err(), ctx.Err()))
	}
	return lastResult(s.lines.Bytes())
}

func (s *session) broken(err error) error {
	_ = s.close() // stderr is complete afterwards
	return fmt.Errorf("prober's shell: %w: %s", err, strings.TrimSpace(s.stderr.String()))
}

// close ends the session and waits for podman.
func (s *session) close() error {
	_ = s.stdin.Close()
	return s.cmd.Wait()
}
