// SPDX-License-Identifier: Apache-2.0

package cgroups_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// A container that makes more events than are told hides nobody else's, and how many there were is known.
func TestEventsAreLimited(t *testing.T) {
	m := newMeshPod(t, policy.Default())
	e := m.observe(1 << 20)
	const n = 20_000
	made := m.app.Do(t, agent.Request{Op: "deny", Len: n})
	wantErr(t, "flood", made, "")
	wantBanner(t, "another's", dial(t, m.sidecar, "tcp", pod4+":15006"), "inbound")
	toldOf, suppressed := 0, uint32(0)
	until(t, e, func(v *cgroups.Event) bool {
		if v.Container == "app" {
			toldOf++
			suppressed += v.Suppressed
		}
		return v.Container == "sidecar"
	})
	if lost := e.Lost(); lost != 0 {
		t.Errorf("%d events were lost", lost)
	}
	if toldOf == 0 || toldOf >= n {
		t.Errorf("%d of %d events were told", toldOf, n)
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
