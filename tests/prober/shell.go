// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
)

// runShell runs other commands, one after the other, each as a process of its own: a JSON array of arguments comes on a line of stdin,
// and the last line that the command printed goes to stdout. It saves the time that a container runtime needs for each exec.
func runShell(ctx context.Context, args []string) (*result, error) {
	if err := parse(flag.NewFlagSet("shell", flag.ContinueOnError), args); err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := bufio.NewScanner(os.Stdin)
	for s.Scan() {
		var argv []string
		if err := json.Unmarshal(s.Bytes(), &argv); err != nil {
			return nil, &usageError{fmt.Errorf("shell: %w", err)}
		}
		cmd := exec.CommandContext(ctx, exe, argv...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		lines := bytes.Split(bytes.TrimSpace(stdout.Bytes()), []byte("\n"))
		last := lines[len(lines)-1]
		if !json.Valid(last) {
			if err == nil {
				err = fmt.Errorf("%q printed no result", argv)
			}
			newResult().withError(fmt.Errorf("shell: %w: %s", err, &stderr)).print(os.Stdout)
			continue
		}
		if _, err := os.Stdout.Write(append(last, '\n')); err != nil {
			return nil, nil // nobody listens any more
		}
	}
	return nil, s.Err()
}
