// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"sidegate/cgroups"
	"sidegate/observe/cli"
)

// sampleEvents are one of each sort.
func sampleEvents() []cgroups.Event {
	at := time.Date(2026, 1, 2, 15, 4, 5, 678_000_000, time.UTC)
	app := cgroups.Event{
		Time: at, Kind: "connect", Verdict: cgroups.Redirected, Direction: "egress", Protocol: "tcp", Address: netip.MustParseAddrPort("192.0.2.1:443"),
		Pod: "shop", Container: "web", ContainerID: "0123456789abcdef0123", Role: "app", PID: 4711, Process: "/usr/bin/curl",
		Reason: "redirected", Text: "connections sent to the sidecar", Policy: "mesh",
	}
	with := func(change func(*cgroups.Event)) cgroups.Event {
		v := app
		change(&v)
		return v
	}
	return []cgroups.Event{
		app,
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Container, v.Role, v.Peer, v.Reason, v.Process = "accept", cgroups.Allowed, "proxy", "sidecar", "web", "accepted_outbound", ""
		}),
		with(func(v *cgroups.Event) {
			v.Verdict, v.Protocol, v.Reason, v.Text, v.Suppressed = cgroups.Denied, "udp", "udp", "UDP that no exclusion lets out", 17
			v.Address = netip.MustParseAddrPort("[2001:db8::1]:53")
		}),
		with(func(v *cgroups.Event) {
			v.Verdict, v.Reason, v.Text = cgroups.Audited, "policy_egress", "no rule lets it out"
		}),
		with(func(v *cgroups.Event) {
			v.Verdict, v.Reason, v.Rule = cgroups.Allowed, "direct", "spec.rules[0].egress[0]: role app egress to 192.0.2.0/24 tcp 443"
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Reason, v.Text, v.Protocol, v.Address = "socket", cgroups.Denied, "raw_socket", "raw socket", "icmp", netip.AddrPort{}
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Direction, v.Reason, v.Text = "bind", cgroups.Denied, "ingress", "bind_reserved", "bind to a port of the sidecar"
			v.Address = netip.MustParseAddrPort("[::]:15001")
		}),
		with(func(v *cgroups.Event) {
			*v = cgroups.Event{Time: at, Kind: "packet", Verdict: cgroups.Denied, Direction: "egress", Pod: "shop", Reason: "bypass", Text: "packet of nobody"}
		}),
		with(func(v *cgroups.Event) { // whose name is meant to forge a line
			v.Kind, v.Verdict, v.Protocol, v.Address = "unix", cgroups.Denied, "unix", netip.AddrPort{}
			v.Socket, v.Reason, v.Text = "@x\x1b[2J\n15:04:05.000  allowed", "unix", "UNIX socket that no rule lets it reach"
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Direction, v.Protocol, v.Address, v.Reason, v.Text = "attach", cgroups.Allowed, "", "", netip.AddrPort{}, "attach", ""
			v.Runtime, v.Process = "podman", ""
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Direction, v.Reason, v.Text, v.Process = "tls", cgroups.Allowed, "egress", "tls_tls", "", ""
			v.TLS = &cgroups.TLSEvent{Kind: "tls", SNI: "api.example", Version: "TLS 1.3", Suite: "TLS_AES_128_GCM_SHA256", From: "127.0.0.1:40000"}
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Reason, v.Text, v.Rule, v.Process = "http", cgroups.Denied, "http_request", "the rule denies it", "no-admin", ""
			v.TLS = &cgroups.TLSEvent{Kind: "http", SNI: "api.example", From: "127.0.0.1:40000", HTTP: &cgroups.HTTPEvent{
				Kind: "request", Protocol: "http/1.1", Stream: 1, Method: "GET", Host: "api.example", Path: "/admin?<&>",
			}}
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Reason, v.Text, v.Process = "http", cgroups.Allowed, "http_response", "", ""
			v.TLS = &cgroups.TLSEvent{Kind: "http", SNI: "api.example", HTTP: &cgroups.HTTPEvent{Kind: "response", Status: 200, Duration: 12_345_678}}
		}),
		with(func(v *cgroups.Event) {
			v.Kind, v.Verdict, v.Reason, v.Text, v.Process = "tls", cgroups.Allowed, "tls_end", "", ""
			v.TLS = &cgroups.TLSEvent{Kind: "end", SNI: "api.example", ClientBytes: 1200, ServerBytes: 34_567, Duration: 1_500_000_000}
		}),
	}
}

// What people and programs read of each sort of event. The JSON is a promise: names are only added.
func TestEventLines(t *testing.T) {
	var text, lines bytes.Buffer
	for _, colored := range []bool{false, true} {
		for _, v := range sampleEvents() {
			o := observed{Event: &v}
			if v.Address.Port() == 443 {
				o.AddressName = "podman-site"
			}
			text.WriteString(eventLine(&o, colored) + "\n")
		}
	}
	golden(t, "events.golden", strings.ReplaceAll(text.String(), "\x1b", "<ESC>"))
	p := printer{o: &observation{}, enc: json.NewEncoder(controlEscaper{&lines})}
	p.enc.SetEscapeHTML(false)
	for _, v := range sampleEvents() {
		must(t, p.show(&v))
	}
	golden(t, "events-json.golden", lines.String())
}

// Nothing in a line of JSON steers a terminal, and what is read of it is what was there.
func TestEventJSONHasNoControls(t *testing.T) {
	for _, name := range []string{"plain", "@\x1b[2J\x7f", "\u0080\u009b2J\u009f\u00a0 \u00e9", ""} {
		var out bytes.Buffer
		enc := json.NewEncoder(controlEscaper{&out})
		must(t, enc.Encode(cgroups.Event{Socket: name, Comm: "\u009b"}))
		for _, r := range strings.TrimSuffix(out.String(), "\n") {
			if unicode.IsControl(r) {
				t.Errorf("%q has %U", out.String(), r)
			}
		}
		var back cgroups.Event
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Socket != name || back.Comm != "\u009b" {
			t.Errorf("%q is read as %q, %v", name, back.Socket, err)
		}
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"90s": now.Add(-90 * time.Second), "2h": now.Add(-2 * time.Hour), "0s": now, "2026-01-02T15:00:00Z": now.Add(-245 * time.Second),
		"2026-01-02T16:00:00.5+01:00": now.Add(-245*time.Second + time.Second/2),
	} {
		if got, err := parseSince(s, now); err != nil || !got.Equal(want) {
			t.Errorf("since %s is %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "-1s", "yesterday", "15:04", "10"} {
		if got, err := parseSince(s, now); err == nil {
			t.Errorf("since %q is %v", s, got)
		}
	}
}

// observing runs the command, in process, and gives its lines until the test ends.
func observing(t *testing.T, w *world, args ...string) *bufio.Scanner {
	t.Helper()
	r, out := io.Pipe()
	var errs bytes.Buffer
	done := make(chan int)
	go func() {
		code := run(env{stdout: out, stderr: &errs, args: append([]string{"observe", "--names=false"}, args...), state: w.state})
		_ = out.Close()
		done <- code
	}()
	t.Cleanup(func() {
		_ = r.Close() // the next line is its end
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("observe does not end")
		}
		if errs.Len() > 0 {
			t.Logf("observe says %s", &errs)
		}
	})
	return bufio.NewScanner(r)
}

// Filters, a count, and who is told of whom.
func TestObserve(t *testing.T) {
	w, _, app := meshPod(t, least)
	lines := observing(t, w, "-o", "json", "--pod", "sho", "--container", "app", "--verdict", "denied", "--to", "192.0.2.0/24", "--port", "81", "-n", "2")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // until it is seen that somebody reads
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				app.do("dial", "tcp", "192.0.2.1:80")
				app.do("dial", "tcp", "192.0.2.1:81")
				app.do("dial", "tcp", "127.0.0.1:8000")
			}
		}
	}()
	seen := 0
	for lines.Scan() {
		var v cgroups.Event
		must(t, json.Unmarshal(lines.Bytes(), &v))
		seen++
		if v.Pod != "shop" || v.Container != "app" || v.Verdict != cgroups.Denied || v.Address.String() != "192.0.2.1:81" || v.Reason != "policy_egress" ||
			v.PID != app.pid || v.Policy != "web" || v.Kind != "connect" {
			t.Errorf("line %s", lines.Text())
		}
	}
	close(stop)
	<-stopped
	if seen != 2 {
		t.Errorf("%d lines, want 2", seen)
	}
	if _, errs, code := call(w.state, "observe", "--last", "5", "--recorded", t.TempDir()+"/none"); code != cli.ExitFailed || !strings.Contains(errs, "sidegate exporter --record") {
		t.Errorf("without a record: %d, %s", code, errs)
	}
}

func TestObserveNothing(t *testing.T) {
	if _, errs, code := call(newState(t), "observe"); code != cli.ExitFailed || !strings.Contains(errs, "no container has been attached") {
		t.Errorf("%d, %s", code, errs)
	}
	for _, c := range []struct{ arg, word string }{
		{"--verdict=maybe", "allowed, redirected, denied, audited"}, {"--kind=dns", "connect, accept"}, {"--color=blue", "always"}, {"--to=nowhere", "neither"},
		{"--buffer=5000", "power of two"}, {"--since=soon", "how long ago"}, {"--last=-1", "count"}, {"-o=yaml", "yaml"},
	} {
		if _, errs, code := call(t.TempDir(), "observe", c.arg); code != cli.ExitUsage || !strings.Contains(errs, c.word) {
			t.Errorf("%s: %d, %s", c.arg, code, errs)
		}
	}
}

// What was recorded, and then what happens: nothing twice, and nothing is missing in between.
func TestObserveRecorded(t *testing.T) {
	w, _, app := meshPod(t, least)
	dir := filepath.Join(t.TempDir(), "events")
	x := startExporter(t, w.state, exporter{record: dir})
	for deadline := time.Now().Add(10 * time.Second); ; {
		if body, _ := x.get("/metrics"); strings.Contains(body, "sidegate_exporter_reading 1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the exporter does not read")
		}
	}
	const first = 1000
	stop, stopped, last := make(chan struct{}), make(chan struct{}), first-1
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				app.do("dial", "tcp", fmt.Sprintf("192.0.2.1:%d", last+1))
				last++
			}
		}
	}()
	const n = 3000
	ports := func(lines *bufio.Scanner) (ports []int) {
		for lines.Scan() {
			var v cgroups.Event
			must(t, json.Unmarshal(lines.Bytes(), &v))
			ports = append(ports, int(v.Address.Port()))
		}
		return ports
	}
	got := ports(observing(t, w, "-o", "json", "--verdict", "denied", "--recorded", dir, "--since", "1h", "--follow", "-n", fmt.Sprint(n)))
	close(stop)
	<-stopped
	if len(got) != n {
		t.Fatalf("%d lines, want %d", len(got), n)
	}
	for i, port := range got {
		if port != first+i {
			t.Fatalf("line %d is of port %d, want %d", i, port, first+i)
		}
	}
	must(t, x.stop()) // all is written then
	if got := ports(observing(t, w, "-o", "json", "--recorded", dir, "--last", "3", "--verdict", "denied")); !slices.Equal(got, []int{last - 2, last - 1, last}) {
		t.Errorf("the last are %v, of %d", got, last)
	}
	if got := ports(observing(t, w, "-o", "json", "--recorded", dir, "--since", "1h", "--verdict", "denied", "--port", fmt.Sprint(last-9))); !slices.Equal(got, []int{last - 9}) {
		t.Errorf("of port %d are %v", last-9, got)
	}
}
