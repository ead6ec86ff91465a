// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/cmd/sidegate/internal/redact"
)

// bundle is what is collected. Everything in it went through package redact: there is
// no other way in.
type bundle struct {
	mu     sync.Mutex
	files  map[string][]byte
	errs   []string
	size   int
	closed bool // what comes later is too late
}

func newBundle() *bundle { return &bundle{files: map[string][]byte{}} }

// text adds a file, which may have been cut off behind.
func (b *bundle) text(name, text string) {
	if len(text) > maxFile { // it would take its time
		b.fail(name, fmt.Errorf("left out: %d bytes, more than %d", len(text), maxFile))
		return
	}
	b.add(name, []byte(redact.Text(text)))
}

// json adds v.
func (b *bundle) json(name string, v any) {
	out, err := redact.JSON(v)
	if err != nil {
		b.fail(name, err)
		return
	}
	b.add(name, out)
}

func (b *bundle) add(name string, data []byte) {
	name = redact.Text(name)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
	case len(data) > maxFile:
		b.errs = append(b.errs, fmt.Sprintf("%s: left out: %d bytes, more than %d", name, len(data), maxFile))
	case b.size+len(data) > maxBundle:
		b.errs = append(b.errs, name+": left out: the archive is full")
	default:
		b.files[name] = data
		b.size += len(data)
	}
}

// fail notes what could not be collected.
func (b *bundle) fail(what string, err error) {
	line := redact.Text(fmt.Sprintf("%s: %v", what, err))
	if len(line) > 1<<12 {
		line = line[:1<<12] + " ..."
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.errs = append(b.errs, strings.ReplaceAll(line, "\n", "\n  "))
	}
}

func (b *bundle) summary() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := count(len(b.files), "file")
	if n := len(b.errs); n > 0 {
		s += ", and errors.txt says what could not be collected: " + count(n, "thing")
	}
	return s
}

func (b *bundle) close() (files map[string][]byte, errs []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	slices.Sort(b.errs)
	return b.files, b.errs
}

// A collector adds one kind of thing. Its error is for the bundle.
type collector struct {
	name string
	run  func(context.Context, *bundle) error
}

// collect runs groups beside each other, and the collectors of a group one after the
// other. One has a third of the time at most. Who does not end by then, as one who
// waits for the lock of the state, is left behind: the process ends soon.
func collect(ctx context.Context, timeout time.Duration, b *bundle, groups [][]collector) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, group := range groups {
		wg.Go(func() {
			for _, c := range group {
				if err := within(ctx, timeout/3, b, c); err != nil {
					b.fail(c.name, err)
				}
			}
		})
	}
	wg.Wait()
}

func within(ctx context.Context, limit time.Duration, b *bundle, c collector) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil { // a fault here must not cost what the others have
				done <- fmt.Errorf("panic: %v", r)
			}
		}()
		done <- c.run(ctx, b)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select { // what it started is ended now, and it says so
	case err := <-done:
		return errors.Join(ctx.Err(), err)
	case <-time.After(commandGrace + time.Second):
		return fmt.Errorf("%w: it does not end", ctx.Err())
	}
}

// maxCommand is how many bytes a command says: a variable for tests, since to look through many takes its time.
var maxCommand = 2 << 20

const commandGrace = time.Second

// say runs a command, and returns what it says, cut off. At ctx's end the command and
// what it has started are ended. Of the environment it gets nothing but where things are.
func say(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = commandGrace
	out, errs := &head{max: maxCommand, full: cancel}, &head{max: 1 << 12}
	cmd.Stdout, cmd.Stderr = out, errs
	if err := cmd.Run(); err != nil {
		switch {
		case out.cut:
			return out.String(), fmt.Errorf("run %s: cut off: it says more than %d bytes", name, out.max)
		case ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return out.String(), fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// head keeps what is written first.
type head struct {
	buf  bytes.Buffer
	max  int
	cut  bool
	full func() // called when there is more, if it is set
}

func (h *head) Write(p []byte) (int, error) {
	room := min(h.max-h.buf.Len(), len(p))
	h.cut = h.cut || room < len(p)
	h.buf.Write(p[:room])
	if h.cut && h.full != nil {
		h.full()
	}
	return len(p), nil
}

func (h *head) String() string {
	s := h.buf.String()
	if h.cut { // half a line may have half a secret, which nothing knows
		s = s[:strings.LastIndexByte(s, '\n')+1] + "[cut off]\n"
	}
	return s
}

// readBounded returns the beginning of a file. It waits for none that nobody writes.
func readBounded(path string, limit int) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("read %s: no regular file", path)
	}
	h := &head{max: limit}
	if _, err := io.Copy(h, io.LimitReader(f, int64(limit)+1)); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return h.String(), nil
}
