// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/tests/lab"
)

// times is to be quicker, or later, than what enforces.
func times() []*escape {
	return group("time",
		&escape{name: "first-instruction", what: "the container's first program sends by every way", pod: scratch, run: func(ctx context.Context, st *stage) (try, error) {
			t, _, err := st.first(ctx, "first")
			return t, err
		}},
		&escape{name: "before-sidecar", what: "an app that starts before its sidecar", pod: emptyPod, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.startApp(ctx, st.appOptions()); err != nil {
				return try{}, err
			}
			return st.attempt(ctx, st.app, st.words(everyWay)...)
		}},
		&escape{name: "sidecar-stopped", what: "after the sidecar has stopped", pod: headless, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.sidecar.Stop(ctx); err != nil {
				return try{}, err
			}
			return st.attempt(ctx, st.app, st.words(everyWay)...)
		}},
		&escape{name: "sidecar-removed", what: "after the sidecar has been killed and removed", pod: ownPod, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.sidecar.Remove(ctx); err != nil {
				return try{}, err
			}
			return st.attempt(ctx, st.app, st.words(everyWay)...)
		}},
		&escape{name: "inbound-sidecar-stopped", what: "the outside calls the app after the sidecar has stopped", pod: headless, run: func(ctx context.Context, st *stage) (try, error) {
			if err := st.sidecar.Stop(ctx); err != nil {
				return try{}, err
			}
			return st.listen(ctx, st.podAddr(false, 9090), st.pod.V4, "tcp")
		}},
		&escape{name: "policy-apply", what: "connections and datagrams in a loop while policies change", pod: scratch, run: during(changePolicies)},
		&escape{name: "unload-refused", what: "the same while the operator tries to unload", pod: scratch, run: during(tryUnload)},
		&escape{name: "upgrade", what: "the same while the binaries are replaced and containers restart", pod: scratch, run: during(upgrade)},
		&escape{name: "hook-crash", what: "the same while hooks die in the middle", pod: scratch, run: during(crashHooks)},
	)
}

// hammerTime is how long an app goes on trying.
const hammerTime = "30s"

// during lets the app connect and send in a loop, as the sidecar's user, while something happens that is to change nothing.
func during(happen func(context.Context, *stage) (string, error)) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		nonces := map[string]string{"tcp": newNonce(), "udp": newNonce()}
		var running []*lab.Probing
		stop := func() error {
			var errs []error
			for _, p := range running {
				errs = append(errs, p.End())
			}
			return errors.Join(errs...)
		}
		for proto, nonce := range nonces {
			p, err := st.app.StartProbe(ctx, "hammer", "--to", st.echo(false), "--proto", proto, "--nonce", nonce, "--for", hammerTime, "--interval", "5ms")
			if err != nil {
				return t, errors.Join(err, stop())
			}
			running = append(running, p)
			if _, err := p.Next(); err != nil {
				return t, errors.Join(err, stop())
			}
		}
		what, err := happen(ctx, st)
		if err = errors.Join(err, stop()); err != nil {
			return t, err
		}
		attempts := 0.0
		own := map[netip.AddrPort]bool{}
		var said lab.Result
		for _, p := range running {
			if said, err = p.Next(); err != nil {
				return t, err
			}
			n, _ := said.Data["attempts"].(float64)
			attempts += n
			ports, _ := said.Data["ports"].([]any)
			for _, port := range ports {
				n, _ := port.(float64)
				own[st.podAddr(false, uint16(n))] = true
			}
			_ = p.Wait() // its exit status says the same
		}
		for _, proto := range []string{"udp", "tcp"} {
			if t, err = st.noneDirect(ctx, nonces[proto], own); err != nil || t.State == open {
				break
			}
		}
		t.Detail = fmt.Sprintf("%v attempts, %s: %s", attempts, what, t.Detail)
		return t, err
	}
}

// setPolicy changes policy mesh under all pods, where there is one.
func (w *world) setPolicy(ctx context.Context, text string) error {
	if !w.sidegate {
		return nil
	}
	if err := os.WriteFile(filepath.Join(w.policies, "mesh.yaml"), []byte(text), 0o644); err != nil {
		return err
	}
	_, err := w.command(ctx, "policy", "apply")
	return err
}

// changePolicies applies one policy after the other, each of which forbids what the app tries.
func changePolicies(ctx context.Context, st *stage) (what string, err error) {
	defer func() { err = errors.Join(err, st.setPolicy(context.WithoutCancel(ctx), meshPolicy)) }()
	variants := []string{
		meshPolicy,
		strings.TrimRight(meshPolicy, "\n") + "\n  exclude:\n    egress: [{cidr: 203.0.113.0/24, ports: [9]}]\n",
		strings.Replace(ruledPolicy, "name: ruled", "name: mesh", 1),
	}
	const changes = 30
	for n := range changes {
		if err := st.setPolicy(ctx, variants[n%len(variants)]); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d policies applied", changes), nil
}

// tryUnload is refused while there is a pod.
func tryUnload(ctx context.Context, st *stage) (string, error) {
	if !st.sidegate {
		return "nothing to unload", nil
	}
	const times = 10
	for range times {
		if _, err := st.command(ctx, "unload"); err == nil {
			return "", errors.New("sidegate unload: it was not refused")
		}
		if _, err := st.command(ctx, "status"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("unload refused %d times", times), nil
}

// upgrade puts other files into the hook's place, as a package manager does, and starts containers before and after.
func upgrade(ctx context.Context, st *stage) (string, error) {
	const times = 3
	for n := range times {
		if st.sidegate {
			if err := st.replaceHook(); err != nil {
				return "", err
			}
		}
		if t, _, err := st.first(ctx, fmt.Sprintf("upgraded%d", n)); err != nil || st.sidegate && t.State == open {
			return "", errors.Join(err, errors.New(t.Detail))
		}
		if err := st.neighbour.Stop(ctx); err != nil {
			return "", err
		}
		if err := st.neighbour.Start(ctx); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d upgrades", times), nil
}

// replaceHook writes the hook again, beside the old one, and renames it.
func (w *world) replaceHook() error {
	b, err := os.ReadFile(w.hook)
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.hook+".new", b, 0o755); err != nil {
		return err
	}
	return os.Rename(w.hook+".new", w.hook)
}

// crashHooks starts containers whose hooks are killed after some milliseconds each.
func crashHooks(ctx context.Context, st *stage) (string, error) {
	times := 2
	if st.sidegate {
		times = 12
	}
	failed, killed := 0, 0
	for n := range times {
		stop := st.killHooks(time.Duration(n) * time.Millisecond)
		t, started, err := st.first(ctx, fmt.Sprintf("crashed%d", n))
		killed += stop()
		if err != nil || st.sidegate && t.State == open {
			return "", errors.Join(err, fmt.Errorf("a container whose hook was killed (%d processes): %s", killed, t.Detail))
		}
		if !started {
			failed++
		}
	}
	return fmt.Sprintf("%d hooks killed, %d of %d containers did not start", killed, failed, times), nil
}

// killHooks kills each hook that is started, when it has run for a while, until the returned function is called, which returns how many.
func (w *world) killHooks(after time.Duration) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		seen := map[int]time.Time{}
		killed := 0
		for ctx.Err() == nil {
			for _, pid := range w.hookProcesses() {
				if _, ok := seen[pid]; !ok {
					seen[pid] = time.Now()
				}
				if time.Since(seen[pid]) >= after && unix.Kill(pid, unix.SIGKILL) == nil {
					killed++
				}
			}
			time.Sleep(time.Millisecond)
		}
		ended <- killed
	}()
	return func() int {
		cancel()
		return <-ended
	}
}

// hookProcesses are those that run this world's hook.
func (w *world) hookProcesses() (pids []int) {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range exes {
		exe, err := os.Readlink(link)
		if err != nil || strings.TrimSuffix(exe, " (deleted)") != w.hook {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(link, "/proc/%d/exe", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
