// SPDX-License-Identifier: Apache-2.0

package top

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s differs (write it with -update):\n--- got\n%s--- want\n%s", file, got, want)
	}
}

var when = time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)

type counters = map[string]uint64

// sample is n seconds after the first one.
func sample(n uint64) Sample {
	return Sample{
		At: when.Add(time.Duration(n) * time.Second),
		Status: cgroups.Status{Loaded: true, Guard: []string{"a", "b", "c"}, Pods: []cgroups.PodStatus{
			{
				Pod: "shop", Cookie: 1, Policy: "mesh", Mode: "enforce", Revision: 7, Listening: true, Drops: counters{"ingress": 19},
				Containers: []cgroups.ContainerStatus{
					{
						ID: "1", Name: "web", Role: "app", CgroupID: 11, PID: 4711, Counters: counters{"redirected": 1000 + 25*n, "local": 12}, Drops: counters{"udp": 7 * n},
						Acceleration: cgroups.AccelerationStatus{Connections: 900, Bytes: 3<<20 + n*(5<<20)},
					},
					{
						ID: "2", Name: "proxy", Role: "sidecar", CgroupID: 12, PID: 4712, Counters: counters{"accepted_inbound": 40_000, "accepted_outbound": 1000, "direct": 990},
						Acceleration: cgroups.AccelerationStatus{Connections: 900},
					},
					{ID: "3", Name: "migrate", Role: "init", CgroupID: 13, PID: 4713, Missing: []string{"connect4"}, Acceleration: cgroups.AccelerationStatus{Off: "it can splice(2)"}},
				},
			},
			{Pod: "audited-日本語のとても長い名前のポッドです", Cookie: 2, Policy: "default", Mode: "audit", Revision: 1, Counters: counters{"audited": 3 * n}, Containers: []cgroups.ContainerStatus{
				{ID: "4", Name: "a\x1b[31m\nb", Role: "app", CgroupID: 14, Counters: counters{"redirected": 2}},
			}},
			{Pod: "closed", Cookie: 3, Policy: cgroups.RefusedPolicy, Mode: "enforce"},
		}},
		Flows: []cgroups.Flow{
			{Pod: "shop", Container: "web", Direction: "egress", Protocol: "tcp", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Verdict: "redirected", Reason: "redirected", Count: 1000, Last: when},
			{Pod: "shop", Container: "web", Direction: "egress", Protocol: "udp", Address: netip.MustParseAddr("2001:db8::53"), Port: 53, Verdict: "denied", Reason: "udp", Count: 7, Last: when},
			{Pod: "shop", Container: "proxy", Direction: "ingress", Protocol: "tcp", Address: netip.MustParseAddr("203.0.113.7"), Port: 8080, Verdict: "allowed", Reason: "accepted_inbound", Count: 40_000, Last: when},
			{Pod: "shop", Container: "web", Direction: "egress", Protocol: "unix", Peer: "migrate", Verdict: "audited", Reason: "unix", Count: 2, Last: when},
			{Pod: "shop", Direction: "egress", Verdict: "denied", Reason: "unregistered", Count: 1, Last: when},
		},
	}
}

// open is a model of this size that has taken samples.
func open(width, height int, samples ...Sample) *Model {
	m := New(Options{Interval: time.Second, Order: "drops", Read: func(bool) Sample { return Sample{} }})
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	for _, s := range samples {
		m.Update(sampleMsg(s))
	}
	return m
}

func (m *Model) key(list ...string) *Model {
	codes := map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "end": tea.KeyEnd}
	for _, k := range list {
		msg := tea.KeyPressMsg{Text: k, Code: []rune(k)[0]}
		if c := codes[k]; c != 0 {
			msg = tea.KeyPressMsg{Code: c}
		}
		m.Update(msg)
	}
	return m
}

// plain is the screen without styles, its right end marked.
func (m *Model) plain() string {
	var b strings.Builder
	for l := range strings.SplitSeq(ansi.Strip(m.View().Content), "\n") {
		b.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	return b.String()
}

// checkScreen fails if a line would wrap, or the screen scroll.
func checkScreen(t *testing.T, m *Model) {
	t.Helper()
	content := m.View().Content
	if m.width <= 0 || m.height <= 0 {
		return
	}
	lines := strings.Split(content, "\n")
	if len(lines) > m.height {
		t.Errorf("%d lines of %d:\n%s", len(lines), m.height, content)
	}
	for _, l := range lines {
		if n := text.Width(l); n > m.width {
			t.Errorf("%d cells of %d: %q", n, m.width, l)
		}
		if strings.ContainsFunc(ansi.Strip(l), unicode.IsControl) {
			t.Errorf("something of a name is a command: %q", l)
		}
	}
}

func TestScreens(t *testing.T) {
	for _, size := range [][2]int{{132, 24}, {80, 24}, {60, 15}, {40, 10}} {
		for name, m := range map[string]*Model{
			"table":  open(size[0], size[1], sample(0), sample(2)),
			"first":  open(size[0], size[1], sample(0)),
			"pod":    open(size[0], size[1], sample(0), sample(2)).key("enter"),
			"lower":  open(size[0], size[1], sample(0), sample(2)).key("enter", "end"),
			"help":   open(size[0], size[1], sample(0)).key("?"),
			"filter": open(size[0], size[1], sample(0)).key("/", "a", "u", "d"),
			"none":   open(size[0], size[1], Sample{}),
			"error":  open(size[0], size[1], sample(0), Sample{Err: errors.New("read state: \x1b[2J")}),
		} {
			checkScreen(t, m)
			golden(t, fmt.Sprintf("%s-%dx%d.golden", name, size[0], size[1]), m.plain())
		}
	}
}

// TestAnySizeAndKeys: whatever is pressed, nothing wraps.
func TestAnySizeAndKeys(t *testing.T) {
	keys := []string{"?", "s", "/", "p", "enter", "esc", "up", "down", "pgdown", "pgup", "end", "j", "k", "G", "g", "a", "日", "\x1b"}
	for range 300 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		m := open(r.IntN(140), r.IntN(40), sample(0))
		for range 30 {
			switch r.IntN(5) {
			case 0:
				m.Update(tea.WindowSizeMsg{Width: r.IntN(140), Height: r.IntN(40)})
			case 1:
				s := sample(uint64(r.IntN(9)))
				s.Status.Pods = s.Status.Pods[r.IntN(4):]
				s.Status.Loaded = r.IntN(5) > 0
				m.Update(sampleMsg(s))
			default:
				m.key(keys[r.IntN(len(keys))])
			}
			checkScreen(t, m)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestRates: what began again, came or went makes no rate that never was.
func TestRates(t *testing.T) {
	before, now := sample(0), sample(2)
	rows := rowsOf(&before, &now)
	shop := rows[0]
	if c := shop.connections; c.per != 25 || c.total != 1050+12+40_000+990 || !c.known {
		t.Errorf("connections %+v", c)
	}
	if d := shop.denied; d.per != 7 || d.total != 33 {
		t.Errorf("denied %+v", d)
	}
	if b := shop.bytes; b.per != 5<<20 {
		t.Errorf("bytes %+v", b)
	}
	if got := shop.reason(); got != cgroups.ReasonText("ingress") {
		t.Errorf("mostly %q", got)
	}
	if shop.fast < 0.84 || shop.fast > 0.85 { // 1800 ends of 1050+12 connections
		t.Errorf("accelerated %v", shop.fast)
	}
	check := func(what string, before, now Sample) {
		t.Helper()
		for _, r := range rowsOf(&before, &now) {
			for _, x := range []rate{r.connections, r.denied, r.audited, r.bytes} {
				if x.per < 0 || x.per > 1e9 {
					t.Errorf("%s: %+v of %s", what, x, r.name)
				}
			}
		}
	}
	back := sample(3)
	back.Status.Pods[0].Containers[0].Counters = counters{"redirected": 1}
	back.Status.Pods[0].Drops = nil
	check("counters went back", now, back)
	gone := sample(3)
	gone.Status.Pods[0].Containers = gone.Status.Pods[0].Containers[1:]
	check("a container is gone", now, gone)
	check("and another one came", gone, sample(4))
	check("at the same moment", now, now)
	check("time went back", now, before)
	check("it was not loaded", Sample{At: when}, now)
}

func TestSort(t *testing.T) {
	first := func(m *Model) string { return m.shown[0].name }
	m := open(100, 20, sample(0), sample(1))
	for _, want := range []string{"shop", "shop", "shop", "audited", "shop"} {
		if !strings.HasPrefix(first(m), want) {
			t.Errorf("sorted by %s, %s is first", m.o.Order, first(m))
		}
		m.key("s")
	}
	// The selection stays with its pod.
	m = open(100, 20, sample(0)).key("down", "down", "s", "s", "s")
	if got := m.shown[m.index()].name; m.o.Order != "name" || got != "closed" {
		t.Errorf("selected %s", got)
	}
}

func TestFilterAndBack(t *testing.T) {
	m := open(100, 20, sample(0)).key("/", "s", "H", "enter")
	if len(m.shown) != 1 || m.typing {
		t.Fatalf("%d pods", len(m.shown))
	}
	m.key("enter", "/", "5", "3", "enter")
	if s := m.plain(); !strings.Contains(s, "2001:db8::53") || strings.Contains(s, "203.0.113.7") {
		t.Errorf("flows are not filtered:\n%s", s)
	}
	if m.key("esc"); !strings.Contains(m.plain(), "203.0.113.7") {
		t.Errorf("the filter is not gone:\n%s", m.plain())
	}
	if m.key("esc"); m.open != nil || len(m.shown) != 1 {
		t.Errorf("the table is not as it was")
	}
	if m.key("esc"); len(m.shown) != 3 {
		t.Errorf("the filter is not gone")
	}
}

func TestPodThatGoes(t *testing.T) {
	m := open(100, 20, sample(0)).key("enter")
	m.Update(sampleMsg(Sample{At: when}))
	if s := m.plain(); !strings.Contains(s, "pod shop  is gone") || !strings.Contains(s, "not loaded") {
		t.Errorf("%s", s)
	}
	if m.key("esc"); !strings.Contains(m.plain(), "no pods") {
		t.Errorf("%s", m.plain())
	}
	if m.Update(sampleMsg(sample(3))); len(m.shown) != 3 {
		t.Error("it does not come back")
	}
}

func TestPause(t *testing.T) {
	m := open(100, 20, sample(0)).key("p")
	m.Update(sampleMsg(Sample{At: when}))
	if s := m.plain(); !strings.Contains(s, "PAUSED") || !strings.Contains(s, "shop") {
		t.Errorf("%s", s)
	}
	if m.key("p"); m.reading.IsZero() {
		t.Error("it is not read again")
	}
}

// TestSlowRead: one sample is waited for at a time, that is told, and keys work.
func TestSlowRead(t *testing.T) {
	m := open(100, 20, sample(0))
	m.reading = time.Time{}
	begin := time.Now()
	if cmd := m.again(begin); cmd == nil {
		t.Fatal("nothing is read")
	}
	if cmd := m.again(begin); cmd != nil {
		t.Error("two are read at once")
	}
	m.Update(tickMsg(begin.Add(5 * time.Second)))
	if s := m.plain(); !strings.Contains(s, "waiting for the state for 5s") {
		t.Errorf("%s", s)
	}
	if m.key("?"); !m.asked {
		t.Error("keys wait too")
	}
}

func TestOnce(t *testing.T) {
	var b strings.Builder
	s := sample(1)
	must(t, Once(&b, &s, "drops", ""))
	must(t, Once(&b, &s, "name", "sh"))
	must(t, Once(&b, &Sample{}, "drops", ""))
	golden(t, "once.golden", b.String())
}

func TestNumbers(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 9999: "9999", 10_000: "10.0k", 99_999: "100k", 999_600: "1.00M", 1_234_567: "1.23M", 1<<64 - 1: "18.4E"} {
		if got := number(n); got != want {
			t.Errorf("number(%d) = %s, want %s", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0B", 1023: "1023B", 1024: "1.00KiB", 5 << 20: "5.00MiB", 1 << 40: "1.00TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%v) = %s, want %s", n, got, want)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		n := r.Uint64() >> r.IntN(64)
		if got := number(n); len(got) > 6 {
			t.Errorf("number(%d) = %s", n, got)
		}
	}
	if !slices.Contains(Orders(), "drops") {
		t.Error("the order that is the default is none")
	}
}
