// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"sidegate/tests/lab"
)

const (
	nriPods = 100 // that are there while requests are timed
	nriGoal = 50  // ms, 99 of 100 requests
)

const (
	podAlone   = "pod that is left alone"
	podManaged = "managed pod"
)

// measureNRI times the plugin's answers to a real containerd that has a hundred managed pods, as the plugin logs them, and starts of
// CRI containers with and without it to do.
func measureNRI(ctx context.Context, e *env, w *world) (figures []figure, notes []string, err error) {
	l, err := lab.New(ctx, lab.Options{Containerd: &lab.ContainerdOptions{}})
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, l.Close(), w.unload(context.WithoutCancel(ctx))) }()
	config := filepath.Join(w.dir, "nri.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "hook: %s\npolicyDir: %s\n", w.hook, filepath.Join(w.dir, "policies")), 0o644); err != nil {
		return nil, nil, err
	}
	end, err := l.Containerd.StartPlugin(ctx, filepath.Join(e.bin, "sidegate-nri"), "--config", config, "--log-level=debug")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	// A pod's whole life: the pod, a container of it, and their ends.
	life := func(managed bool, keep bool) (starts float64, err error) {
		o := lab.PodOptions{Namespace: "alone"}
		if managed {
			o = lab.PodOptions{Namespace: "managed", Labels: map[string]string{"sidegate/policy": policyName}}
		}
		p, err := l.Containerd.NewPod(ctx, o)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		_, err = p.Run(ctx, "app", lab.AppImage, lab.ContainerOptions{Args: []string{"/bin/busybox", "sleep", "100000"}})
		starts = time.Since(began).Seconds() * 1e3
		if err != nil || keep {
			return starts, err
		}
		return starts, p.Remove(ctx)
	}
	w.logf("nri: %d pods", nriPods)
	for range nriPods {
		if _, err := life(true, true); err != nil {
			return nil, nil, err
		}
	}
	mark := len(l.Containerd.PluginLog())
	sides := []string{podAlone, podManaged}
	starts := map[string][]float64{}
	for round := range e.rounds(100) + 1 {
		for _, side := range rotated(sides, round) {
			took, err := life(side == podManaged, false)
			if err != nil {
				return nil, nil, err
			}
			if round > 0 {
				starts[side] = append(starts[side], took)
			}
		}
	}
	events, values, err := requestTimes(l.Containerd.PluginLog()[mark:])
	if err != nil {
		return nil, nil, err
	}
	f, err := newFigure("nri", fmt.Sprintf("answers of the plugin, with %d managed pods", nriPods), "ms", events, values)
	if err != nil {
		return nil, nil, err
	}
	c := compare{podManaged, podAlone}
	s, err := newFigure("nri", "CreateContainer and StartContainer of CRI", "ms", sides, starts, c)
	if err != nil {
		return nil, nil, err
	}
	s.difference(starts, c)
	worst := f.Sides[0]
	for _, side := range f.Sides {
		if side.P99 > worst.P99 {
			worst = side
		}
	}
	word := "met"
	if worst.P99 > nriGoal {
		word = "missed"
	}
	return []figure{f, s}, []string{fmt.Sprintf("nri: the goal of %d ms for 99 of 100 answers is %s: %s takes %s ms", nriGoal, word, worst.Side, number(worst.P99))}, nil
}

var requestLine = regexp.MustCompile(`pod=managed/\S+ .*request=(\w+) took="?([^"\s]+)"?`)

// requestTimes reads how long the plugin took for each kind of request about managed pods, in ms, from its log.
func requestTimes(log []byte) (events []string, values map[string][]float64, err error) {
	values = map[string][]float64{}
	for line := range strings.Lines(string(log)) {
		m := requestLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		took, err := time.ParseDuration(m[2])
		if err != nil {
			return nil, nil, fmt.Errorf("plugin's log: %q: %w", strings.TrimSpace(line), err)
		}
		values[m[1]] = append(values[m[1]], took.Seconds()*1e3)
		if !slices.Contains(events, m[1]) {
			events = append(events, m[1])
		}
	}
	return events, values, nil
}
