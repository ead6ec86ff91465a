// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"

	"sidegate/cgroups"
)

// Observed is a line of `sidegate observe -o json`.
type Observed struct {
	cgroups.Event
	PodName     string `json:"podName"`
	AddressName string `json:"addressName"`
	Lost        uint64 `json:"lost"`
}

// Observer is a running `sidegate observe -o json`.
type Observer struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	all  []Observed
	errs []error
}

// Observe starts the command of an environment, nil is this process's, and waits until the kernel tells it. Something must be
// loaded. Whoever got it closes it.
func Observe(ctx context.Context, env []string, sidegate string, args ...string) (*Observer, error) {
	before, err := eventReaders()
	if err != nil {
		return nil, err
	}
	o := &Observer{cmd: exec.Command(sidegate, append([]string{"observe", "-o", "json"}, args...)...), done: make(chan struct{})}
	o.cmd.Env, o.cmd.Stderr = env, os.Stderr
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := o.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start observe: %w", err)
	}
	go func() {
		defer close(o.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var v Observed
			err := json.Unmarshal(lines.Bytes(), &v)
			o.mu.Lock()
			if o.all = append(o.all, v); err != nil {
				o.errs = append(o.errs, fmt.Errorf("line %q: %w", lines.Text(), err))
			}
			o.mu.Unlock()
		}
	}()
	err = WaitFor(Patience, "the observer", func() (bool, error) {
		now, err := eventReaders()
		return now > before, errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// eventReaders counts those who read events.
func eventReaders() (n int, err error) {
	st, err := cgroups.ReadEventStats(cgroups.DefaultState)
	for _, r := range st.Readers {
		if r.Reads {
			n++
		}
	}
	return n, err
}

// All are the events so far, in their order.
func (o *Observer) All() []Observed {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.all)
}

// Wait waits for one that matches, of those that were and those that come.
func (o *Observer) Wait(what string, match func(*Observed) bool) (found Observed, err error) {
	err = WaitFor(Patience, what, func() (bool, error) {
		all := o.All()
		i := slices.IndexFunc(all, func(v Observed) bool { return match(&v) })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0, nil
	})
	if err != nil {
		return found, fmt.Errorf("%w, of %+v", err, o.All())
	}
	return found, nil
}

// Close interrupts the command, which ends well then, and returns which lines were no JSON.
func (o *Observer) Close() error {
	if err := o.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-o.done
	err := o.cmd.Wait()
	return errors.Join(append(o.errs, err)...)
}
