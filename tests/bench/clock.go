// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A clock counts the time that the programs on cgroups run. All programs of the machine cost more while there is one.
type clock struct {
	programs []*ebpf.Program
	counting io.Closer
}

func newClock(state string) (*clock, error) {
	pins, err := filepath.Glob(filepath.Join(state, "v*", "progs", "*"))
	if err != nil {
		return nil, err
	}
	c := &clock{}
	for _, pin := range pins {
		p, err := ebpf.LoadPinnedProgram(pin, nil)
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
		c.programs = append(c.programs, p)
	}
	if c.counting, err = ebpf.EnableStats(unix.BPF_STATS_RUN_TIME); err != nil {
		return nil, errors.Join(fmt.Errorf("count the time of programs: %w", err), c.close())
	}
	return c, nil
}

// seconds is the time so far.
func (c *clock) seconds() (total float64, err error) {
	for _, p := range c.programs {
		s, err := p.Stats()
		if err != nil {
			return 0, err
		}
		total += s.Runtime.Seconds()
	}
	return total, nil
}

func (c *clock) close() error {
	var errs []error
	for _, p := range c.programs {
		errs = append(errs, p.Close())
	}
	if c.counting != nil {
		errs = append(errs, c.counting.Close())
	}
	return errors.Join(errs...)
}
