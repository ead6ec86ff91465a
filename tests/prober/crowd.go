// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what an attempt may ask for.
const (
	maxHeld    = 200_000
	maxWidth   = 256
	perProcess = 3500 // below the usual limit of descriptors
)

// runHold opens many sockets, in as many processes as that takes, says in a line how many there are, and holds them until its standard
// input ends.
func runHold(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("hold", flag.ContinueOnError)
	count := fs.Int("count", 1, "how many")
	kind := fs.String("kind", "udp", "udp, tcp, or tcp-connect to --to")
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "destination `address:port`")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if *count < 1 || *count > maxHeld {
		return nil, &usageError{fmt.Errorf("--count is 1 to %d", maxHeld)}
	}
	raiseDescriptors()
	res := newResult()
	if *count <= perProcess {
		opened, err := openMany(*count, *kind, to)
		res.Data["open"] = opened
		res.withError(err).print(os.Stdout)
		_, _ = io.Copy(io.Discard, os.Stdin) // until it ends, however
		return nil, nil
	}
	opened := 0
	var children []*holder
	defer func() {
		for _, c := range children {
			c.stdin.Close()
		}
		for _, c := range children {
			_ = c.cmd.Wait()
		}
	}()
	var first error
	for left := *count; left > 0; left -= perProcess {
		c, err := startHolder(ctx, "--count", strconv.Itoa(min(left, perProcess)), "--kind", *kind, "--to", to.String())
		if err != nil {
			first = errors.Join(first, err)
			break
		}
		children = append(children, c)
	}
	for _, c := range children {
		n, err := c.opened()
		opened += n
		if first == nil {
			first = err
		}
	}
	res.Data["open"] = opened
	res.withError(first).print(os.Stdout)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil, nil
}

// raiseDescriptors makes the limit of descriptors what it may be.
func raiseDescriptors() {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		lim.Cur = lim.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &lim) // else there are fewer
	}
}

// openMany opens sockets and leaves them open. It stops at the first error, of a socket or of a connection that is refused at once.
func openMany(count int, kind string, to netip.AddrPort) (int, error) {
	for n := range count {
		typ := unix.SOCK_STREAM
		if kind == "udp" {
			typ = unix.SOCK_DGRAM
		}
		fd, err := socketBySyscall(unix.AF_INET, typ|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return n, err
		}
		if kind != "tcp-connect" {
			continue
		}
		if err := unix.Connect(fd, sockaddr(to, false)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return n, os.NewSyscallError("connect", err)
		}
	}
	return count, nil
}

// A holder is another process that holds sockets.
type holder struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

func startHolder(ctx context.Context, args ...string) (*holder, error) {
	h := &holder{cmd: exec.CommandContext(ctx, "/proc/self/exe", append([]string{"hold"}, args...)...)}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out = bufio.NewReader(out)
	return h, h.cmd.Start()
}

func (h *holder) opened() (int, error) {
	line, err := h.out.ReadBytes('\n')
	if err != nil {
		return 0, err
	}
	var r result
	if err := json.Unmarshal(line, &r); err != nil {
		return 0, err
	}
	n, _ := r.Data["open"].(float64)
	if !r.OK {
		return int(n), errors.New(r.Err)
	}
	return int(n), nil
}

// until returns a context that ends when limit has passed or standard input ends.
func until(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx, cancel
}

// runHammer makes the same attempt again and again, until a time is over or standard input ends. It reports how often, and what came of
// it, and the local ports that TCP had on addresses other than loopback's.
func runHammer(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("hammer", flag.ContinueOnError)
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "destination `address:port`")
	proto := fs.String("proto", "tcp", "tcp or udp")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	limit := fs.Duration("for", time.Second, "for how long")
	interval := fs.Duration("interval", 5*time.Millisecond, "between two attempts")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	ctx, cancel := until(ctx, *limit)
	defer cancel()
	newResult().print(os.Stdout)
	outcomes := map[string]int{}
	ports := map[uint16]bool{}
	attempts := 0
	tick := time.NewTicker(max(*interval, time.Millisecond))
	defer tick.Stop()
	var last error
	for ; ctx.Err() == nil; attempts++ {
		var local string
		local, last = once(*proto, to, *nonce)
		if at, err := netip.ParseAddrPort(local); err == nil && !at.Addr().IsLoopback() {
			ports[at.Port()] = true
		}
		said := "ok"
		if last != nil {
			said = last.Error()
		}
		outcomes[said]++
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	res := newResult()
	res.Data["attempts"], res.Data["outcomes"] = attempts, outcomes
	res.Data["ports"] = slices.Sorted(maps.Keys(ports))
	return res, last
}

// once sends the nonce, and reads it back by TCP, of which it returns the local address.
func once(proto string, to netip.AddrPort, nonce string) (local string, err error) {
	if proto == "udp" {
		d := datagram{to: to, how: "sendto", uid: -1}
		fd, err := d.socket()
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", d.send(fd, []byte(nonce))
	}
	d := dialer{to: to, proto: "tcp", uid: -1, gid: -1, timeout: 500 * time.Millisecond}
	c, _, err := d.dial(nil)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.local, c.echo(nonce)
}

// runForkbomb makes processes as fast as it can, each of which makes one attempt by UDP and one by TCP, and ends.
func runForkbomb(ctx context.Context, args []string) (*result, error) {
	fs := flag.NewFlagSet("forkbomb", flag.ContinueOnError)
	var to netip.AddrPort
	fs.TextVar(&to, "to", netip.AddrPort{}, "destination `address:port`")
	nonce := fs.String("nonce", defaultNonce(), "what to send")
	limit := fs.Duration("for", time.Second, "for how long")
	width := fs.Int("width", 16, "how many processes at a time")
	child := fs.Bool("child", false, "be one of them")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	if *width < 1 || *width > maxWidth {
		return nil, &usageError{fmt.Errorf("--width is 1 to %d", maxWidth)}
	}
	if *child {
		_, err := once("udp", to, *nonce)
		_, terr := once("tcp", to, *nonce)
		return newResult(), errors.Join(err, terr)
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	processes, failed := 0, 0
	for range *width {
		wg.Go(func() {
			for ctx.Err() == nil {
				cmd := exec.CommandContext(ctx, "/proc/self/exe", "forkbomb", "--child", "--to", to.String(), "--nonce", *nonce)
				err := cmd.Run()
				mu.Lock()
				processes++
				if err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	res := newResult()
	res.Data["processes"], res.Data["failed"] = processes, failed
	return res, nil
}
