// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"sidegate/tests/lab"
)

// rules is to undo what enforces.
func rules() []*escape {
	return group("rules",
		&escape{name: "nft-flush", what: "flush all rules of nftables, and so of iptables, and connect", pod: ownPod,
			run: after([]string{"tcp", "--to", "TO", "--timeout", "1s"}, []string{"nft", "--flush"})},
		&escape{name: "tc-delete", what: "delete queueing disciplines and filters of all devices, and send by every way", pod: scratch,
			run: after(everyWay, tamper("device: delete"))},
		&escape{name: "tc-add", what: "add others before them", pod: scratch, run: after(everyWay, tamper("device: add"))},
		&escape{name: "xdp-attach", what: "attach XDP programs and detach others", pod: scratch,
			run: after(everyWay, tamper("device: attach XDP"), tamper("device: detach XDP"))},
		&escape{name: "link-down-up", what: "take lo down and up, and make devices", pod: scratch,
			run: after(everyWay, tamper("device: lo down and up"), tamper("device: new pair"), tamper("device: delete lo"))},
		&escape{name: "forwarding", what: "turn on forwarding and routes for loopback's addresses, and send", pod: scratch,
			run: after(everyWay, tamper("device: forward"), tamper("device: route loopback"), []string{"routes", "--kind", "localnet"})},
		&escape{name: "routes", what: "change routes and rules of routing, and send", pod: scratch,
			run: after(everyWay, []string{"routes", "--kind", "rule"}, []string{"routes", "--kind", "local"})},
		&escape{name: "sysctl", what: "write sysctls, and send", pod: scratch, run: after(everyWay, tamper("sysctl: "), tamper("mount: sysctls"))},
		&escape{name: "bpf-detach", what: "detach BPF programs from cgroups and devices", pod: scratch, run: after(everyWay, tamper("bpf: detach"))},
		&escape{name: "bpf-attach", what: "attach BPF programs of one's own", pod: scratch, run: after(everyWay, tamper("bpf: load"), tamper("bpf: attach"), tamper("bpf: link"))},
		&escape{name: "bpf-objects", what: "take programs, maps and links by their numbers, write, detach", pod: scratch, run: withObjects},
		&escape{name: "bpffs", what: "mount a BPF file system, open and remove pins", pod: scratch, run: after(everyWay, tamper("mount: "), tamper("bpf: open pin"), tamper("bpf: token"))},
		&escape{name: "cgroupfs", what: "mount and write cgroup file systems", pod: scratch, run: after(everyWay, tamper("cgroup: "), tamper("mount: cgroup"))},
		&escape{name: "namespaces", what: "enter other namespaces, trace other processes", pod: scratch, run: after(everyWay, tamper("namespace: "), tamper("process: "))},
		&escape{name: "fill-sockets", what: "100,000 sockets, then every way", pod: scratch, run: fill("100000", "udp")},
		&escape{name: "fill-connections", what: "10,000 connections that nobody accepts, then every way", pod: scratch, run: fill("10000", "tcp-connect")},
		&escape{name: "kill", what: "a container of the host's PID namespace kills whatever enforces, while an app starts", pod: scratch, run: killing},
		&escape{name: "fork-bomb", what: "a fork bomb that sends, while containers start and stop", pod: scratch, run: forkBomb},
	)
}

// tamper are the prober's attempts on what enforces that begin with this.
func tamper(prefix string) []string {
	return []string{"tamper", "--to", "TO", "--gw-mac", "MAC", "--only", prefix}
}

// after makes changes, whether or not the kernel lets the app, and then an attempt.
func after(attempt []string, changes ...[]string) runFunc {
	return func(ctx context.Context, st *stage) (try, error) {
		var done []string
		for _, args := range changes {
			r, err := st.app.Probe(ctx, st.words(args)...)
			if err != nil {
				return try{}, err
			}
			done = append(done, made(args, r))
		}
		t, err := st.attempt(ctx, st.app, st.words(attempt)...)
		t.Detail = fmt.Sprintf("%s; then: %s", strings.Join(done, ", "), t.Detail)
		return t, err
	}
}

// made says how much of a change was made.
func made(args []string, r lab.Result) string {
	what := strings.Join(args, " ")
	if i := slices.Index(args, "--only"); i >= 0 {
		what = strings.TrimSuffix(args[i+1], ": ")
	}
	list, ok := r.Data["attempts"].([]any)
	if !ok {
		return fmt.Sprintf("%s: %s", what, r)
	}
	n := 0
	for _, one := range list {
		if a, _ := one.(map[string]any); a["ok"] == true {
			n++
		}
	}
	return fmt.Sprintf("%s: %d of %d done", what, n, len(list))
}

// withObjects tells the app the numbers of all BPF objects, which it could try one by one.
func withObjects(ctx context.Context, st *stage) (try, error) {
	flags, err := objects()
	if err != nil {
		return try{}, err
	}
	return after(everyWay, append(tamper("object: "), flags...))(ctx, st)
}

// fill opens many sockets and holds them, and makes an attempt then. Another pod has to work as before.
func fill(count, kind string) runFunc {
	return func(ctx context.Context, st *stage) (t try, err error) {
		p, err := st.app.StartProbe(ctx, "hold", "--count", count, "--kind", kind, "--to", st.echo(false))
		if err != nil {
			return t, err
		}
		held, err := p.Next()
		if err != nil {
			return t, err
		}
		t, err = st.attempt(ctx, st.app, st.words(everyWay)...)
		if err == nil {
			err = st.carries(ctx)
		}
		t.Detail = fmt.Sprintf("%v sockets held (%s); then: %s", held.Data["open"], held, t.Detail)
		return t, errors.Join(err, p.End(), p.Wait())
	}
}

// killing starts a container that can see all processes of the machine and kills those of Sidegate, while apps start whose first
// instruction sends.
func killing(ctx context.Context, st *stage) (t try, err error) {
	killer, err := st.lab.Run(ctx, "killer", lab.AppImage, lab.PodOptions{HooksDir: st.hooks}, lab.ContainerOptions{
		Unconfined: true, CapAdd: []string{"KILL"},
		Flags: []string{"--pid", "host", "--network", "none"},
		Args:  []string{"/bin/sleep", "600"},
	})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, killer.Remove(context.WithoutCancel(ctx))) }()
	const times = 4
	p, err := killer.StartProbe(ctx, "reap", "--name", "sidegate", "--for", "60s")
	if err != nil {
		return t, err
	}
	if _, err := p.Next(); err != nil {
		return t, err
	}
	failed := 0
	for n := range times {
		var started bool
		if t, started, err = st.first(ctx, fmt.Sprintf("killed%d", n)); err != nil || t.State == open {
			return t, errors.Join(err, p.End())
		}
		if !started {
			failed++
		}
	}
	if err := p.End(); err != nil {
		return t, err
	}
	r, err := p.Next()
	if err != nil {
		return t, err
	}
	t.Detail = fmt.Sprintf("%v processes killed, %d of %d containers did not start; the last: %s", r.Data["killed"], failed, times, t.Detail)
	t.Hooks = append(t.Hooks, "OCI hook createRuntime: killed")
	return t, p.Wait()
}

// first starts an app whose first instruction sends by every way, and waits until it is done. A container that does not start sends
// nothing.
func (st *stage) first(ctx context.Context, name string) (t try, started bool, err error) {
	nonce := newNonce()
	opts := st.appOptions()
	opts.Args = append([]string{"/bin/prober"}, append(st.words(everyWay), "--nonce", nonce)...)
	c, err := st.pod.Run(ctx, name, lab.AppImage, opts)
	if err != nil && !st.sidegate {
		return t, false, err
	}
	said := lab.Result{}
	if err == nil {
		if err := c.Wait(ctx); err != nil {
			return t, true, err
		}
		all, err := c.Results()
		if err != nil {
			return t, true, err
		}
		if len(all) > 0 {
			said = all[len(all)-1]
		}
	} else {
		said.Err = dead(err).Detail
	}
	started = err == nil
	t, err = st.arrived(ctx, nonce, said)
	return t, started, err
}

// forkBomb makes processes as fast as it can, each of which sends, while other containers of the pod start and stop.
func forkBomb(ctx context.Context, st *stage) (t try, err error) {
	nonce := newNonce()
	p, err := st.app.StartProbe(ctx, st.words([]string{"forkbomb", "--to", "TO", "--for", "4s", "--width", "64", "--nonce", nonce})...)
	if err != nil {
		return t, err
	}
	until := time.Now().Add(4 * time.Second)
	rounds := 0
	for ; time.Now().Before(until); rounds++ {
		c, err := st.start(ctx, "bombed"+strconv.Itoa(rounds), st.options("app"))
		if err != nil {
			return t, errors.Join(err, p.End())
		}
		if err := c.Remove(ctx); err != nil {
			return t, errors.Join(err, p.End())
		}
	}
	r, err := p.Next()
	if err != nil {
		return t, err
	}
	_ = p.Wait() // its exit status says the same
	t, err = st.arrived(ctx, nonce, r)
	t.Detail = fmt.Sprintf("%v processes, %d containers started and stopped: %s", r.Data["processes"], rounds, t.Detail)
	return t, err
}

// permit lets the outside get to a port of the app round the sidecar, and forbid takes that back.
func (st *stage) permit(ctx context.Context, port uint16) error {
	exclusion := fmt.Sprintf("  exclude:\n    ingress: [{ports: [%d]}]\n", port)
	return st.steer(ctx, port, "-I", meshPolicy+exclusion)
}

func (st *stage) forbid(ctx context.Context, port uint16) error {
	return st.steer(ctx, port, "-D", meshPolicy)
}

// steer inserts or deletes a rule of iptables, or sets policy mesh.
func (st *stage) steer(ctx context.Context, port uint16, how, policy string) error {
	if !st.iptables {
		return st.setPolicy(ctx, policy)
	}
	return st.inPod(ctx, "iptables", "-w", "5", "-t", "nat", how, "MESH_INBOUND", "-p", "tcp", "--dport", fmt.Sprint(port), "-j", "RETURN")
}

// inPod runs a command of the node in the pod's network namespace.
func (st *stage) inPod(ctx context.Context, args ...string) error {
	pid, err := st.pod.Infra().PID(ctx)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--"}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
	}
	return err
}

// objects are flags that tell the prober the numbers of the BPF objects in the kernel, which it could try one by one.
func objects() ([]string, error) {
	var flags []string
	add := func(flag string, list []string) {
		if len(list) > 0 {
			flags = append(flags, flag, strings.Join(list, ","))
		}
	}
	var progs, maps, links []string
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
		progs = append(progs, fmt.Sprint(id))
	}
	for id, err := ebpf.MapGetNextID(0); ; id, err = ebpf.MapGetNextID(id) {
		if errors.Is(err, os.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
		maps = append(maps, fmt.Sprint(id))
	}
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		links = append(links, fmt.Sprint(it.ID))
	}
	add("--progs", progs)
	add("--maps", maps)
	add("--links", links)
	return flags, it.Err()
}
