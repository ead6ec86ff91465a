// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// result is what one attempt reports.
type result struct {
	OK    bool           `json:"ok"`
	Err   string         `json:"err,omitempty"`
	Errno string         `json:"errno,omitempty"` // symbolic name, as in EPERM
	Data  map[string]any `json:"data,omitempty"`
}

func newResult() *result { return &result{OK: true, Data: map[string]any{}} }

// withError returns r, or a new result if r is nil, as failed if err is set.
func (r *result) withError(err error) *result {
	if r == nil {
		r = newResult()
	}
	if err == nil {
		return r
	}
	r.OK, r.Err = false, err.Error()
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		r.Errno = unix.ErrnoName(errno)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && r.Errno == "" {
		r.Errno = "ETIMEDOUT"
	}
	return r
}

var printing sync.Mutex

// print writes r as one line.
func (r *result) print(w io.Writer) {
	printing.Lock()
	defer printing.Unlock()
	_ = json.NewEncoder(w).Encode(r)
}

// watchdog ends the process with a result that says so when an attempt hangs in a system call that has no timeout of its own.
func watchdog(limit time.Duration) *time.Timer {
	return time.AfterFunc(limit, func() {
		newResult().withError(os.NewSyscallError("watchdog", unix.ETIMEDOUT)).print(os.Stdout)
		os.Exit(1)
	})
}
