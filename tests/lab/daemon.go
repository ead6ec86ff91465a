// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// daemon is a child process that runs until it is stopped.
type daemon struct {
	name    string
	cmd     *exec.Cmd
	logPath string
	ended   chan struct{}
	err     error // after ended
}

// startDaemon starts a command with its output in a file of dir.
func startDaemon(dir, name string, argv ...string) (*daemon, error) {
	d := newDaemon(dir, name, argv...)
	if err := d.start(); err != nil {
		return nil, err
	}
	return d, nil
}

// newDaemon is startDaemon without the start.
func newDaemon(dir, name string, argv ...string) *daemon {
	d := &daemon{name: name, logPath: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	d.cmd = exec.Command(argv[0], argv[1:]...)
	return d
}

func (d *daemon) start() error {
	log, err := os.Create(d.logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	return nil
}

// alive returns an error with the end of its output if the daemon has ended.
func (d *daemon) alive() error {
	select {
	case <-d.ended:
		out, _ := os.ReadFile(d.logPath)
		return fmt.Errorf("%s ended: %v: %s", d.name, d.err, out[max(0, len(out)-2000):])
	default:
		return nil
	}
}

// pluginAddress is where a plugin of Sidegate's serves metrics and health.
const pluginAddress = "127.0.0.1:9464"

// waitReady waits until a plugin of Sidegate's says that it does all that it should.
func (d *daemon) waitReady(ctx context.Context) error {
	return WaitFor(Patience, d.name+" to be ready", func() (bool, error) {
		if err := d.alive(); err != nil {
			return false, err
		}
		code, _, _ := Get(ctx, pluginAddress, "/readyz")
		return code == http.StatusOK, ctx.Err()
	})
}

// Get asks the HTTP server at an address for a path, by a connection of its own: the server may have been another one a
// moment ago.
func Get(ctx context.Context, address, path string) (code int, text string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, "", err
	}
	r, err := (&http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// stop ends the daemon: SIGTERM, and SIGKILL if that does not help. It may be called again.
func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
		return nil
	case <-time.After(3 * time.Second):
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", d.name, err)
	}
	<-d.ended
	return nil
}

// onOwnThread runs f on a thread that ends afterwards, whatever f did to it.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread goes with the goroutine
		done <- f()
	}()
	return <-done
}
