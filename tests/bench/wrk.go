// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

// What wrk asks nginx for, by its size.
var wrkSizes = []int{64, 1 << 10, 16 << 10}

func wrkPath(size int) string { return fmt.Sprintf("/keep/%d", size) }

// wrkTime is the shortest that wrk can do.
const wrkTime = time.Second

// measureWrk times Debian's HAProxy between wrk and nginx, over connections that are kept.
func measureWrk(ctx context.Context, p *plane, c *collection) error {
	doses := []dose{{loadWrk, 64, 1}, {loadWrk, 64, 50}, {loadWrk, 64, 100}, {loadWrk, 1 << 10, 50}, {loadWrk, 16 << 10, 50}}
	if p.e.quick {
		doses = []dose{{loadWrk, 64, 50}}
	}
	rounds, _ := p.e.pace()
	for _, d := range p.e.wanted(doses) {
		p.t.w.logf("wrk: %s", d)
		c.measure(d, present(p.proxied, func(site) bool { return true }), rounds, func(setup string, warm bool) (sample, error) {
			if warm {
				return p.warmWrk(setup)
			}
			return p.wrk(ctx, setup, d)
		})
	}
	p.note("HAProxy has one thread, wrk one, nginx one worker; connections are kept; sizes are of the answer's body")
	return nil
}

// warmWrk stands in for a round of wrk, whose second is long: a few connections, which also shows that the setup works.
func (p *plane) warmWrk(setup string) (sample, error) {
	s := p.proxied[setup]
	o := order{Op: "connect", Addr: s.to[len("http://"):], Workers: 1, Count: 50, For: ioTimeout}
	a, cpu, _, err := p.count(s.pod, func() (answer, error) { return s.pod.app.do(o) })
	return sample{rate: float64(a.Done) / a.Took, cpu: cpu * 1e6}, err
}

func (p *plane) wrk(ctx context.Context, setup string, d dose) (got sample, err error) {
	s := p.proxied[setup]
	before, err := s.pod.carried()
	if err != nil {
		return got, err
	}
	a, cpu, lo, err := p.count(s.pod, func() (answer, error) {
		ctx, cancel := context.WithTimeout(ctx, wrkTime+10*time.Second)
		defer cancel()
		out, err := runIn(ctx, s.pod.appCgroup, s.pod.netns, "wrk", "--threads", "1", "--connections", strconv.Itoa(d.conns),
			"--duration", strconv.Itoa(int(wrkTime.Seconds())), "--timeout", "3", s.to+wrkPath(d.size))
		if err != nil {
			return answer{}, err
		}
		return parseWrk(out)
	})
	if err != nil {
		return got, err
	}
	after, err := s.pod.carried()
	if err != nil {
		return got, err
	}
	// wrk makes one more to see whether somebody is there.
	n, want := after-before, int64(d.conns)
	if !s.carries && n != 0 || s.carries && n < want {
		return got, fmt.Errorf("HAProxy carried %d of %d connections", n, want)
	}
	if setup == setupAccelerated {
		if err := isAccelerated(lo/float64(a.Done), d.size); err != nil {
			return got, err
		}
	}
	return sample{rate: float64(a.Done) / a.Took, cpu: cpu / float64(a.Done) * 1e6}, nil
}

var (
	wrkDone   = regexp.MustCompile(`(?m)^\s*(\d+) requests in ([0-9.]+)(ms|s|m),`)
	wrkErrors = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
)

// parseWrk reads what wrk says. Any error in it is one.
func parseWrk(out []byte) (answer, error) {
	if m := wrkErrors.FindSubmatch(out); m != nil {
		return answer{}, fmt.Errorf("wrk: %s", m[1])
	}
	m := wrkDone.FindSubmatch(out)
	if m == nil {
		return answer{}, fmt.Errorf("wrk says %q", bytes.TrimSpace(out))
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	took, terr := time.ParseDuration(string(m[2]) + string(m[3]))
	if err = errors.Join(err, terr); err == nil && (n == 0 || took <= 0) {
		err = errors.New("wrk made no requests")
	}
	return answer{Done: n, Took: took.Seconds()}, err
}

// runIn runs a program to its end in a cgroup and a network namespace, confined.
func runIn(ctx context.Context, cgroup, netns string, argv ...string) ([]byte, error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	env, argv, err := confined(argv...)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + netns, "--"}, argv...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", argv[1], err, bytes.TrimSpace(out))
	}
	return out, nil
}
