// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidegate/bpf"
	"sidegate/cgroups"
	"sidegate/cgroups/internal/agent"
	"sidegate/policy"
)

func (w *world) observe(size uint32) *cgroups.Events {
	w.t.Helper()
	e, err := cgroups.OpenEvents(w.state, size)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, e.Close()) })
	return e
}

// until reads events up to one that matches.
func until(t testing.TB, e *cgroups.Events, match func(*cgroups.Event) bool) (all []cgroups.Event) {
	t.Helper()
	e.SetDeadline(time.Now().Add(5 * time.Second))
	for {
		v, err := e.Read()
		if err != nil {
			t.Fatalf("%v after %+v", err, all)
		}
		all = append(all, v)
		if match(&v) {
			return all
		}
	}
}

func told(all []cgroups.Event) (lines []string) {
	for _, v := range all {
		line := fmt.Sprintf("%s %s: %s %s %s %s", v.Container, v.Kind, v.Verdict, v.Protocol, v.Address, v.Reason)
		if v.Peer != "" {
			line += " with " + v.Peer
		}
		lines = append(lines, line)
	}
	return lines
}

// What a pod does is told as it was: who, where to, what became of it and why.
func TestEvents(t *testing.T) {
	m := newMeshPod(t, parse(t, `  exclude: {egress: [{cidr: 192.0.2.1/32, ports: [81]}]}
`))
	listen(t, m.out, "outside", outside4+":81")
	e := m.observe(1 << 16)
	wantBanner(t, "TCP", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	wantBanner(t, "excluded", dial(t, m.app, "tcp", outside4+":81"), "outside")
	wantErr(t, "UDP", m.app.Do(t, agent.Request{Op: "udp", Network: "udp", Addr: outside4 + ":53", Data: "x"}), "EPERM")
	wantErr(t, "raw", m.app.Do(t, agent.Request{Op: "socket", Sock: [3]int{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP}}), "EPERM")
	wantErr(t, "bind", m.app.Do(t, agent.Request{Op: "listen", Network: "tcp", Addr: "127.0.0.1:15001"}), "EPERM")
	all := until(t, e, func(v *cgroups.Event) bool { return v.Kind == "bind" })
	want := []string{
		"app connect: redirected tcp 192.0.2.1:80 redirected",
		"sidecar accept: allowed tcp 192.0.2.1:80 accepted_outbound with app",
		"app connect: allowed tcp 192.0.2.1:81 direct",
		"app connect: denied udp 192.0.2.1:53 udp",
		"app socket: denied udp invalid AddrPort raw_socket",
		"app socket: denied mptcp invalid AddrPort protocol", // Go asks for it first
		"app bind: denied tcp [::]:15001 bind_reserved",
	}
	got := told(all)
	if !slices.Equal(got, want) {
		t.Errorf("events are\n%q, want\n%q", got, want)
	}
	for _, v := range all {
		pid := m.app.PID
		if v.Container == "sidecar" {
			pid = m.sidecar.PID
		}
		if v.PID != pid || v.Pod != "pod" || v.Policy != "test" || v.Process == "" || time.Since(v.Time).Abs() > time.Minute {
			t.Errorf("event %+v, want pid %d", v, pid)
		}
	}
	if all[2].Rule == "" {
		t.Errorf("no rule is told of %+v", all[2])
	}
}

// Connections of UNIX sockets, with the rule that lets them; inside the pod, with the rule of the one who calls.
func TestEventsInsideThePod(t *testing.T) {
	if bpf.ProbeUnix() == bpf.UnixNone {
		t.Skip("this kernel does not judge UNIX sockets: Linux 6.7 does")
	}
	dir := t.TempDir()
	m := newMeshPod(t, parse(t, strings.Replace(ruled, "  - role: sidecar\n    egress", fmt.Sprintf("    unix:\n      allow:\n      - {path: %q}\n  - role: sidecar\n    egress", dir+"/ok.sock"), 1)))
	listenAll(t, m.sidecar, "sidecar", 8000, 9901)
	for _, name := range []string{"ok", "other"} {
		wantErr(t, "listen", m.sidecar.Do(t, agent.Request{Op: "unixlisten", Network: "unix", Addr: dir + "/" + name + ".sock"}), "")
	}
	e := m.observe(1 << 16)
	wantErr(t, "allowed", dial(t, m.app, "tcp", "127.0.0.1:8000"), "")
	wantErr(t, "denied", dial(t, m.app, "tcp", "127.0.0.1:9901"), "EPERM")
	wantErr(t, "ok.sock", m.app.Do(t, agent.Request{Op: "unix", Network: "unix", Addr: dir + "/ok.sock"}), "")
	wantErr(t, "other.sock", m.app.Do(t, agent.Request{Op: "unix", Network: "unix", Addr: dir + "/other.sock"}), "EPERM")
	all := until(t, e, func(v *cgroups.Event) bool { return v.Socket == dir+"/other.sock" })
	all = slices.DeleteFunc(all, func(v cgroups.Event) bool { return v.Protocol == "mptcp" || v.Kind == "accept" })
	for i, want := range []struct{ kind, verdict, reason, rule string }{
		{"connect", cgroups.Allowed, "local", "spec.rules[0].egress[0]"},
		{"connect", cgroups.Denied, "policy_egress", ""},
		{"unix", cgroups.Allowed, "local", "spec.rules[0].unix.allow[0]"},
		{"unix", cgroups.Denied, "unix", ""},
	} {
		if i >= len(all) {
			t.Fatalf("events are %q", told(all))
		}
		v := all[i]
		if v.Kind != want.kind || v.Verdict != want.verdict || v.Reason != want.reason || !strings.HasPrefix(v.Rule, want.rule) || (want.rule == "") != (v.Rule == "") {
			t.Errorf("event %d is %+v, want %+v", i, v, want)
		}
		if v.Container != "app" || v.PID != m.app.PID || v.Kind == "connect" && v.Peer != "sidecar" {
			t.Errorf("event %d is of %s (%d) and %q", i, v.Container, v.PID, v.Peer)
		}
	}
}

// That containers come and go is told with their names, which are gone when it is read.
func TestEventsOfContainers(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	e := m.observe(1 << 16)
	before := attachTimes(t, m.world)
	late := m.container("late")
	m.attach(late, "late", policy.RoleApp, policy.Default())
	must(t, m.store(func(s *cgroups.Store) error { _, err := s.Detach("late", late.PID); return err }))
	all := until(t, e, func(v *cgroups.Event) bool { return v.Kind == "detach" })
	if len(all) != 2 || all[0].Kind != "attach" {
		t.Fatalf("events are %q", told(all))
	}
	for _, v := range all {
		if v.Container != "late" || v.ContainerID != "late" || v.Pod != "pod" || v.Role != "app" || v.PID != late.PID || v.Verdict != cgroups.Allowed || v.Runtime == "" || v.Policy == "" {
			t.Errorf("event %+v", v)
		}
	}
	_, err := m.tryAttach(m.container("second"), "second", policy.RoleSidecar, policy.Default())
	if err == nil {
		t.Error("a pod has two sidecars")
	}
	after := attachTimes(t, m.world)
	if after.count-before.count != 2 || after.Failed-before.Failed != 1 || after.Sum <= before.Sum {
		t.Errorf("attaching took %+v, before that %+v", after, before)
	}
}

// attached has all that were counted.
type attached struct {
	cgroups.AttachTimes
	count uint64
}

func attachTimes(t *testing.T, w *world) attached {
	t.Helper()
	times, err := cgroups.ReadAttachTimes(w.state)
	must(t, err)
	sum := times.More
	for _, n := range times.Buckets {
		sum += n
	}
	return attached{times, sum}
}

// Of 10,000 connections a second none is missing, of either end, nor of the flows.
func TestEventsOfManyConnections(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	e := m.observe(4 << 20)
	const n, perSecond = 20_000, 10_000
	began := time.Now()
	done := make(chan agent.Answer)
	go func() {
		done <- m.app.Do(t, agent.Request{Op: "rush", Addr: outside4 + ":80", Len: n, Level: perSecond})
	}()
	var connects, accepts int
	var suppressed uint32
	e.SetDeadline(time.Now().Add(time.Minute))
	for connects < n || accepts < n {
		v, err := e.Read()
		if err != nil {
			t.Fatalf("%v after %d connects and %d accepts, %d suppressed, %d lost", err, connects, accepts, suppressed, e.Lost())
		}
		suppressed += v.Suppressed
		switch {
		case v.Kind == "connect" && v.Verdict == cgroups.Redirected && v.Container == "app":
			connects++
		case v.Kind == "accept" && v.Container == "sidecar" && v.Peer == "app":
			accepts++
		}
	}
	wantErr(t, "rush", <-done, "")
	t.Logf("%d connections in %v", n, time.Since(began))
	if suppressed != 0 || e.Lost() != 0 || connects != n || accepts != n {
		t.Errorf("%d connects and %d accepts of %d, %d suppressed, %d lost", connects, accepts, n, suppressed, e.Lost())
	}
	wantFlow(t, m.world, "app", "redirected", n)
	wantFlow(t, m.world, "sidecar", "accepted_outbound", n)
}

// wantFlow sums the flows of a container by reason.
func wantFlow(t *testing.T, w *world, container, reason string, want uint64) {
	t.Helper()
	flows, err := cgroups.ReadFlows(w.state)
	must(t, err)
	var n uint64
	for _, f := range flows {
		if f.Container == container && f.Reason == reason {
			n += f.Count
		}
	}
	if n != want {
		t.Errorf("%d flows of %s are %s, want %d, of %+v", n, container, reason, want, flows)
	}
}

// A container that makes more events than are told hides nobody else's, and how many there were is known exactly.
func TestEventsAreLimited(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	e := m.observe(16 << 20)
	made := uint64(0)
	deny := func(n uint64) {
		t.Helper()
		made += n
		wantErr(t, "flood", m.app.Do(t, agent.Request{Op: "deny", Len: int(n)}), "")
	}
	for deadline := time.Now().Add(20 * time.Second); notTold(t, m.world, "app") == 0; deny(20_000) {
		if time.Now().After(deadline) {
			t.Fatalf("%d events in %v are not too many", made, 20*time.Second)
		}
	}
	// Nor does it hide its own connections.
	wantBanner(t, "its own", dial(t, m.app, "tcp", outside4+":80"), "outbound")
	wantBanner(t, "another's", dial(t, m.sidecar, "tcp", pod4+":15006"), "inbound")
	own := false
	toldOf, suppressed := uint64(0), uint64(0)
	count := func(v *cgroups.Event) {
		switch {
		case v.Container == "app" && v.Reason == "raw_socket":
			toldOf++
			suppressed += uint64(v.Suppressed)
		case v.Container == "app" && v.Reason == "redirected":
			own = true
		}
	}
	until(t, e, func(v *cgroups.Event) bool { count(v); return v.Container == "sidecar" && v.Peer == "" })
	if toldOf == 0 || toldOf >= made || !own {
		t.Errorf("%d of %d events were told, its own connection: %v", toldOf, made, own)
	}
	// The next one that is told says how many were not.
	for deadline := time.Now().Add(10 * time.Second); toldOf+suppressed != made; {
		if time.Now().After(deadline) {
			t.Fatalf("%d were told and %d counted of %d", toldOf, suppressed, made)
		}
		deny(1)
		e.SetDeadline(time.Now().Add(50 * time.Millisecond))
		v, err := e.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue // it was too much
		}
		must(t, err)
		count(&v)
	}
	if lost := e.Lost(); lost != 0 {
		t.Errorf("%d events were lost", lost)
	}
	if n := m.drops("app")["raw_socket"]; n != made {
		t.Errorf("%d are counted of %d", n, made)
	}
	wantFlow(t, m.world, "app", "raw_socket", made)
}

// notTold is how many events of a container were too many.
func notTold(t *testing.T, w *world, container string) (n uint64) {
	t.Helper()
	st, err := cgroups.ReadEventStats(w.state)
	must(t, err)
	for _, s := range st.Suppressed {
		if s.Container == container {
			n += s.Count
		}
	}
	return n
}

// A reader that was stopped for longer than its lease lost its slot to another one, knows it, and takes nothing away.
func TestEventSlotIsTaken(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	stopped, err := cgroups.OpenEvents(m.state, 1<<12)
	must(t, err)
	cgroups.Suspend(stopped)
	var others []*cgroups.Events
	for { // one of them has its slot
		e, err := cgroups.OpenEvents(m.state, 1<<12)
		if errors.Is(err, cgroups.ErrTooManyReaders) {
			break
		}
		must(t, err)
		others = append(others, e)
	}
	cgroups.Resume(stopped)
	if _, err := stopped.Read(); !errors.Is(err, cgroups.ErrTaken) {
		t.Errorf("it reads %v", err)
	}
	must(t, stopped.Close())
	dial(t, m.app, "tcp", outside4+":80")
	for i, e := range others {
		if all := until(t, e, func(v *cgroups.Event) bool { return v.Kind == "accept" }); len(all) != 2 {
			t.Errorf("reader %d got %q", i, told(all))
		}
		must(t, e.Close())
	}
}

// Datagrams over one socket are told once for each destination.
func TestEventsOfDatagrams(t *testing.T) {
	m := newMeshPod(t, parse(t, "  nonTCP: allow\n"))
	e := m.observe(1 << 16)
	wantErr(t, "datagrams", m.app.Do(t, agent.Request{Op: "scatter", Addr: outside4 + ":1000", Len: 3}), "")
	dial(t, m.app, "tcp", outside4+":80")
	var ports []uint16
	for _, v := range until(t, e, func(v *cgroups.Event) bool { return v.Protocol == "tcp" }) {
		if v.Protocol == "udp" {
			ports = append(ports, v.Address.Port())
		}
	}
	if want := []uint16{1000, 1001, 1002}; !slices.Equal(ports, want) {
		t.Errorf("datagrams to %v were told, want %v", ports, want)
	}
}

// TestEventsComeSoon: also those for which the kernel does not wake a reader that waits, since it has just done so.
func TestEventsComeSoon(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	e := m.observe(1 << 16)
	accepts := make(chan struct{}, 1)
	go func() {
		defer close(accepts)
		for {
			v, err := e.Read()
			if err != nil {
				return // it was closed
			}
			if v.Kind == "accept" {
				accepts <- struct{}{}
			}
		}
	}()
	var took []time.Duration
	for range 15 {
		const burst = 5
		for range burst {
			dial(t, m.app, "tcp", outside4+":80")
		}
		began := time.Now()
		for range burst {
			select {
			case _, ok := <-accepts:
				if !ok {
					t.Fatal("reading has ended")
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("an event does not come, after %v", took)
			}
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if soon := took[len(took)/2]; soon > 500*time.Millisecond {
		t.Errorf("the last of 5 events came after %v", took)
	}
}

// Readers do not take each other's events, and there is room for one that was killed.
func TestEventReaders(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	var readers []*cgroups.Events
	for {
		e, err := cgroups.OpenEvents(m.state, 1<<12)
		if errors.Is(err, cgroups.ErrTooManyReaders) {
			break
		}
		must(t, err)
		readers = append(readers, e)
	}
	dial(t, m.app, "tcp", outside4+":80")
	for i, e := range readers {
		all := until(t, e, func(v *cgroups.Event) bool { return v.Kind == "accept" })
		if len(all) != 2 {
			t.Errorf("reader %d got %q", i, told(all))
		}
	}
	must(t, readers[0].Close())
	if _, err := readers[0].Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a reader that is closed reads %v", err)
	}
	again, err := cgroups.OpenEvents(m.state, 1<<12)
	must(t, err)
	for _, e := range append(readers[1:], again) {
		must(t, e.Close())
	}
}
