// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Whose CPU time is counted.
const (
	cpuOfApp     = "CPU of client, HAProxy and server"
	cpuOfSidecar = "CPU of sidecar and server"
)

// measureConnect times short connections through the sidecar, one at a time and 16 at a time.
func measureConnect(_ context.Context, e *env, t *traffic) ([]figure, []string, error) {
	var figures []figure
	for _, c := range []struct {
		workers int
		name    string
	}{{1, "one at a time"}, {16, "16 at a time"}} {
		rate, cpu := map[string][]float64{}, map[string][]float64{}
		for round := range e.rounds(30) + 1 {
			for _, side := range rotated(trafficSides, round) {
				p := t.pods[side]
				o := order{Op: "connect", Addr: p.appTarget, Workers: c.workers, Count: 10000, For: 350 * time.Millisecond}
				if round == 0 {
					o.For /= 4 // warms up, and counts for nothing
				}
				n0, err := p.carried()
				if err != nil {
					return nil, nil, err
				}
				a, used, err := t.run(p, p.app, o)
				if err != nil {
					return nil, nil, fmt.Errorf("%s: %w", side, err)
				}
				n1, err := p.carried()
				if err != nil {
					return nil, nil, err
				}
				if n1-n0 != a.Done {
					return nil, nil, fmt.Errorf("%s: HAProxy carried %d of %d connections", side, n1-n0, a.Done)
				}
				if round == 0 {
					continue
				}
				rate[side] = append(rate[side], float64(a.Done)/a.Took)
				cpu[side] = append(cpu[side], used/float64(a.Done)*1e6)
			}
		}
		fs, err := trafficFigures("connect", "connections through the sidecar, "+c.name, "1/s", rate, cpuOfApp, "us a connection", cpu)
		if err != nil {
			return nil, nil, err
		}
		figures = append(figures, fs...)
	}
	return figures, []string{"connect: " + t.iptables + "; no redirect is an app that connects to HAProxy itself, with a fixed server behind it; HAProxy has one thread; rules and Sidegate are there for IPv4 and IPv6, the connections are IPv4"}, nil
}

// run gives an agent of a pod an order and returns what it took of the pod's and the outside's CPU time, in seconds.
func (t *traffic) run(p *pod, a *proc, o order) (answer, float64, error) {
	return a.doOn(o, p.cgroup, t.out.cgroup)
}

// trafficFigures makes the two figures that each measurement of traffic has.
func trafficFigures(measurement, name, unit string, rate map[string][]float64, cpuName, cpuUnit string, cpu map[string][]float64) ([]figure, error) {
	ratios := []compare{{sideSidegate, sideIptables}, {sideSidegate, sideNone}, {sideIptables, sideNone}}
	f, err := newFigure(measurement, name, unit, trafficSides, rate, ratios...)
	if err != nil {
		return nil, err
	}
	g, err := newFigure(measurement, cpuName, cpuUnit, trafficSides, cpu, ratios...)
	return []figure{f, g}, err
}

// measureDownload times one large download through the sidecar.
func measureDownload(_ context.Context, e *env, t *traffic) ([]figure, []string, error) {
	return t.bulk(e, "download", "256 MiB download through the sidecar", cpuOfApp, func(p *pod) (*proc, order) {
		return p.app, order{Op: "download", Addr: p.appTarget, Count: bulkSize}
	})
}

// measurePackets times what the sidecar itself sends, which every device of the pod judges.
func measurePackets(_ context.Context, e *env, t *traffic) ([]figure, []string, error) {
	sink := at(outsideIP, sinkPort)
	var figures []figure
	rate, cpu := map[string][]float64{}, map[string][]float64{}
	err := t.rounds(e.rounds(20), func(side string, p *pod, warm bool) error {
		o := order{Op: "datagrams", Addr: sink, Count: 250_000, For: 350 * time.Millisecond}
		if warm {
			o.For /= 4
		}
		a, used, err := t.run(p, p.sidecar, o)
		if err != nil || warm {
			return err
		}
		rate[side] = append(rate[side], float64(a.Done)/a.Took/1e3)
		cpu[side] = append(cpu[side], used/float64(a.Done)*1e9)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	fs, err := trafficFigures("packets", "UDP datagrams of 64 bytes that the sidecar sends", "1000/s", rate, cpuOfSidecar, "ns a datagram", cpu)
	if err != nil {
		return nil, nil, err
	}
	figures = append(figures, fs...)
	up, notes, err := t.bulk(e, "packets", "256 MiB that the sidecar uploads by TCP", cpuOfSidecar, func(p *pod) (*proc, order) {
		return p.sidecar, order{Op: "upload", Addr: sink, Count: bulkSize}
	})
	if err != nil {
		return nil, nil, err
	}
	down, _, err := t.bulk(e, "packets", "256 MiB that the sidecar downloads by TCP", cpuOfSidecar, func(p *pod) (*proc, order) {
		return p.sidecar, order{Op: "download", Addr: at(outsideIP, httpPort), Count: bulkSize}
	})
	return append(append(figures, up...), down...), notes, err
}

// bulk times one transfer of bulkSize bytes a round.
func (t *traffic) bulk(e *env, measurement, name, cpuName string, what func(*pod) (*proc, order)) ([]figure, []string, error) {
	rate, cpu := map[string][]float64{}, map[string][]float64{}
	err := t.rounds(e.rounds(9), func(side string, p *pod, warm bool) error {
		agent, o := what(p)
		a, used, err := t.run(p, agent, o)
		if err != nil || warm {
			return err
		}
		rate[side] = append(rate[side], float64(a.Done)/(1<<20)/a.Took)
		cpu[side] = append(cpu[side], used*1e3/(float64(a.Done)/(1<<30)))
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	figures, err := trafficFigures(measurement, name, "MiB/s", rate, cpuName, "ms a GiB", cpu)
	return figures, nil, err
}

// rounds calls f for each side in each of n rounds, after one that warms up.
func (t *traffic) rounds(n int, f func(side string, p *pod, warm bool) error) error {
	for round := range n + 1 {
		for _, side := range rotated(trafficSides, round) {
			if err := f(side, t.pods[side], round == 0); err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
		}
	}
	return nil
}

const (
	guardOff = "nothing loaded"
	guardOn  = "guard loaded"
)

// measureGuard times a process that has nothing to do with Sidegate on a node that has it: its sockets pass the guard.
func measureGuard(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	cgroup, err := w.mkcgroup("bystander")
	if err != nil {
		return nil, nil, err
	}
	a, err := w.agent(cgroup, "", 0)
	if err != nil {
		return nil, nil, err
	}
	defer a.stop()
	if _, err := a.do(order{Op: "serve", Addr: at("127.0.0.1", sinkPort)}); err != nil {
		return nil, nil, err
	}
	managed, managedCgroup, err := w.pause("managed", "new")
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		managed.stop()
		err = errors.Join(err, rmcgroup(managedCgroup), w.unload(context.WithoutCancel(ctx)))
	}()
	rate, cpu := map[string][]float64{}, map[string][]float64{}
	sides := []string{guardOff, guardOn}
	for round := range e.rounds(11) + 1 {
		for _, side := range rotated(sides, round) {
			if err := w.unload(ctx); err != nil {
				return nil, nil, err
			}
			if side == guardOn {
				if _, _, err := w.runHook("createRuntime", "managed", managed.pid(), "app"); err != nil {
					return nil, nil, err
				}
			}
			// What was loaded or unloaded has after-effects in the kernel.
			o := order{Op: "sockets", Addr: at("127.0.0.1", sinkPort), Count: 30_000, For: 200 * time.Millisecond}
			if _, err := a.do(o); err != nil {
				return nil, nil, err
			}
			before, err := cpuUsage(cgroup)
			if err != nil {
				return nil, nil, err
			}
			o.For = 600 * time.Millisecond
			ans, err := a.do(o)
			if err != nil {
				return nil, nil, err
			}
			after, err := cpuUsage(cgroup)
			if err != nil {
				return nil, nil, err
			}
			if round > 0 {
				rate[side] = append(rate[side], float64(ans.Done)/ans.Took/1e3)
				cpu[side] = append(cpu[side], (after-before)/float64(ans.Done)*1e6)
			}
		}
	}
	c := compare{guardOn, guardOff}
	f, err := newFigure("guard", "TCP sockets of an unmanaged process: make, connect, close", "1000/s", sides, rate, c)
	if err != nil {
		return nil, nil, err
	}
	g, err := newFigure("guard", "CPU of both ends", "us a connection", sides, cpu, c)
	return []figure{f, g}, nil, err
}
