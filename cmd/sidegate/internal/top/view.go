// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"sidegate/cgroups"
	"sidegate/cmd/sidegate/internal/text"
)

// styles have the terminal's own colours, so that they suit its background.
type styles struct {
	title, head, bad, warn, good, dim, selected func(...string) string
}

func newStyles() styles {
	s := lipgloss.NewStyle()
	return styles{
		title: s.Bold(true).Render, head: s.Bold(true).Underline(true).Render, bad: s.Foreground(lipgloss.Red).Render,
		warn: s.Foreground(lipgloss.Yellow).Render, good: s.Foreground(lipgloss.Green).Render, dim: s.Faint(true).Render,
		selected: s.Reverse(true).Render,
	}
}

func columns() []column {
	return []column{
		{name: "", width: 1},
		{name: "POD", width: 8, grows: true},
		{name: "POLICY", width: 10, need: 100},
		{name: "MODE", width: 7, need: 90},
		{name: "CT", width: 3, right: true, need: 70},
		{name: "SIDECAR", width: 7, need: 50},
		{name: "CONN/s", width: 6, right: true},
		{name: "CONN", width: 6, right: true, need: 60},
		{name: "DENY/s", width: 6, right: true},
		{name: "DENIED", width: 6, right: true},
		{name: "FAST/s", width: 10, right: true, need: 80},
		{name: "FAST%", width: 5, right: true, need: 90},
		{name: "MOSTLY DENIED", width: 13, grows: true, need: 110},
	}
}

// View is the screen. Each line is cut to its width, and none is left over below.
func (m *Model) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}

// Rows that are not the table's: two above it and its head, and one below.
const (
	above = 2
	below = 1
)

// room is how many rows of the table, or lines of a pod, there is room for.
func (m *Model) room() int { return max(0, m.height-above-1-below) }

func (m *Model) screen() string {
	if m.width <= 0 || m.height <= 0 {
		return ""
	}
	lines := m.top()
	switch {
	case m.asked:
		lines = append(lines, m.helpLines()...)
	case m.open != nil:
		all := m.podLines()
		lines = append(lines, m.podTitle())
		lines = append(lines, all[m.scroll:min(len(all), m.scroll+m.room())]...)
	default:
		lines = append(lines, m.table()...)
	}
	if most := max(0, m.height-below); len(lines) > most {
		lines = lines[:most]
	}
	for len(lines) < m.height-below {
		lines = append(lines, "")
	}
	lines = append(lines, m.bottom())
	for i, l := range lines {
		lines[i] = text.Cut(l, m.width)
	}
	return strings.Join(lines, "\n")
}

// top is the state of the node.
func (m *Model) top() []string {
	head := m.style.title("sidegate top")
	state := "reading"
	switch {
	case m.now == nil && m.err != nil:
		state = ""
	case m.now != nil && !m.now.Status.Loaded:
		state = m.style.warn("not loaded: no container has been attached since boot")
	case m.now != nil:
		state = fmt.Sprintf("%s, guard %d, pods %d, containers %d", m.style.good("loaded"), len(m.now.Status.Guard), len(m.rows), m.containers())
	}
	first := head + "  " + state
	if m.paused {
		first = head + " " + m.style.warn("PAUSED") + "  " + state
	}
	if late := m.late(); late > 0 {
		first += m.style.warn(fmt.Sprintf("  waiting for the state for %s", late))
	}
	var second string
	switch {
	case m.err != nil:
		second = m.style.bad(text.Clean(m.err.Error()))
	case m.now != nil && m.now.Status.Loaded:
		var c, d, a, b rate
		for _, r := range m.rows {
			c, d, a, b = c.plus(r.connections), d.plus(r.denied), a.plus(r.audited), b.plus(r.bytes)
		}
		second = "connections " + c.both() + "  denied " + d.both()
		if a.total > 0 {
			second += "  audited " + a.both()
		}
		second += "  accelerated " + size(float64(b.total))
		if b.known {
			second += ", " + b.sizePerSecond()
		}
	}
	return []string{first, second}
}

func (m *Model) containers() (n int) {
	for _, r := range m.rows {
		n += len(r.containers)
	}
	return n
}

// late is how long a sample has been waited for, if that is long.
func (m *Model) late() time.Duration {
	if m.reading.IsZero() || m.clock.Sub(m.reading) < max(2*m.o.Interval, 2*time.Second) {
		return 0
	}
	return m.clock.Sub(m.reading).Truncate(time.Second)
}

func (m *Model) table() []string {
	cols := columns()
	lines := []string{header(cols, m.width, m.style.head)}
	i := m.index()
	for j, r := range m.shown {
		if j < m.offset || j >= m.offset+m.room() {
			continue
		}
		cells := m.cells(&r)
		if j == i {
			for c := range cells {
				cells[c].style = nil // one style for the whole line
			}
			cells[0].text = ">"
			lines = append(lines, m.style.selected(line(cols, cells, m.width)))
			continue
		}
		lines = append(lines, line(cols, cells, m.width))
	}
	if len(m.shown) == 0 && m.now != nil {
		words := "no pods"
		if m.filters[0] != "" || m.o.Pod != "" {
			words = "no such pods"
		}
		lines = append(lines, m.style.dim(words))
	}
	return lines
}

func (m *Model) cells(r *row) []cell {
	cells := []cell{
		{}, {text: r.name}, {text: r.policy}, {text: r.mode}, {text: fmt.Sprint(len(r.containers))}, {yesNo(r.listening), m.style.good},
		{text: r.connections.perSecond()}, {text: number(r.connections.total)}, {text: r.denied.perSecond()}, {text: number(r.denied.total)},
		{text: r.bytes.sizePerSecond()}, {text: share(r.fast)}, {text: r.reason()},
	}
	if r.mode == "audit" {
		cells[3].style = m.style.warn
	}
	if !r.listening {
		cells[5].style = m.style.bad
	}
	if r.denied.per > 0 {
		cells[8].style, cells[9].style = m.style.bad, m.style.bad
	}
	return cells
}

func (m *Model) bottom() string {
	switch {
	case m.typing:
		return m.input.View()
	case m.asked:
		return m.style.dim("any key goes back")
	}
	words := "sorted by " + m.o.Order
	if f := *m.filter(); f != "" {
		words = "filter " + text.Clean(f)
	}
	return m.style.dim(words+" · ") + m.help.ShortHelpView(m.keys.ShortHelp())
}

func (m *Model) helpLines() []string {
	lines := []string{m.style.title("Keys")}
	for _, group := range m.keys.FullHelp() {
		for _, b := range group {
			lines = append(lines, fmt.Sprintf("  %-7s%s", b.Help().Key, b.Help().Desc))
		}
	}
	if m.height < above+below+len(lines) { // in two columns
		half := (len(lines)-1)/2 + 1
		for i := range half - 1 {
			if j := half + i; j < len(lines) {
				lines[1+i] = fmt.Sprintf("%-20s", lines[1+i]) + lines[j]
			}
		}
		lines = lines[:half]
	}
	return append(lines, "", m.style.title("Columns"),
		"  CT       containers",
		"  SIDECAR  whether it listens: if not, connections are refused",
		"  CONN     connections: by the sidecar, direct, inside the pod, from outside",
		"  DENIED   sockets, connections and packets that were refused",
		"  FAST     bytes past the node's TCP; share of connections inside the pod")
}

func (m *Model) podTitle() string {
	r := m.open
	s := m.style.title("pod " + r.name)
	switch {
	case m.gone:
		return s + "  " + m.style.warn("is gone: as it was last seen")
	case r.closed:
		return s + "  " + m.style.bad("CLOSED: a container in it was refused")
	}
	listens := m.style.good("the sidecar listens")
	if !r.listening {
		listens = m.style.bad("the sidecar does NOT listen")
	}
	return fmt.Sprintf("%s  policy %s, %s, revision %d  %s", s, r.policy, r.mode, r.revision, listens)
}

// podLines are all about a pod.
func (m *Model) podLines() []string {
	r := m.open
	cols := []column{
		{name: "CONTAINER", width: 12, grows: true}, {name: "ROLE", width: 7}, {name: "PID", width: 7, right: true, need: 60},
		{name: "CONN/s", width: 6, right: true}, {name: "CONN", width: 6, right: true, need: 50}, {name: "DENIED", width: 6, right: true},
		{name: "FAST", width: 8, right: true, need: 70}, {name: "", width: 10, grows: true, need: 90},
	}
	lines := []string{header(cols, m.width, m.style.head)}
	for _, c := range r.containers {
		lines = append(lines, line(cols, []cell{
			{text: c.name}, {text: c.role}, {text: fmt.Sprint(c.pid)}, {text: c.connections.perSecond()}, {text: number(c.connections.total)},
			{text: number(c.denied.total)}, {text: size(float64(c.bytes.total))}, {c.notes, m.style.dim},
		}, m.width))
	}
	if len(r.drops) > 0 {
		lines = append(lines, "", m.style.head("DENIED"))
	}
	for _, d := range r.drops {
		lines = append(lines, fmt.Sprintf("%7s  %s %s", number(d.count), m.style.bad(d.words), m.style.dim("("+d.reason+")")))
	}
	return append(append(lines, ""), m.flowLines()...)
}

func (m *Model) flowLines() []string {
	cols := []column{
		{name: "WHO", width: 10, grows: true}, {name: "", width: 2}, {name: "WITH WHOM", width: 15, grows: true}, {name: "PORT", width: 9, need: 50},
		{name: "COUNT", width: 6, right: true}, {name: "LAST", width: 8, need: 90}, {name: "", width: 10, need: 60}, {name: "WHY", width: 10, grows: true, need: 100},
	}
	lines := []string{header(cols, m.width, m.style.head)}
	for _, f := range m.now.Flows {
		if text.Clean(f.Pod) != m.open.name {
			continue
		}
		cells := m.flowCells(&f)
		var all strings.Builder
		for _, c := range cells {
			all.WriteString(c.text + " ")
		}
		if strings.Contains(strings.ToLower(all.String()), strings.ToLower(m.filters[1])) {
			lines = append(lines, line(cols, cells, m.width))
		}
	}
	if len(lines) == 1 {
		lines = append(lines, m.style.dim("nobody has talked to anybody"))
	}
	return lines
}

func (m *Model) flowCells(f *cgroups.Flow) []cell {
	arrow := "->"
	if f.Direction == "ingress" {
		arrow = "<-"
	}
	with := text.Clean(f.Peer)
	if f.Address.IsValid() {
		with = strings.TrimSpace(with + " " + f.Address.String())
	}
	port := text.Clean(f.Protocol)
	if f.Port != 0 {
		port += fmt.Sprintf("/%d", f.Port)
	}
	style := map[string]func(...string) string{cgroups.Denied: m.style.bad, cgroups.Audited: m.style.warn}[f.Verdict]
	return []cell{
		{cmp.Or(text.Clean(f.Container), "(no container)"), style}, {text: arrow}, {cmp.Or(with, "-"), style}, {text: port}, {text: number(f.Count)},
		{text: f.Last.Local().Format("15:04:05")}, {f.Verdict, style}, {cmp.Or(cgroups.ReasonText(f.Reason), text.Clean(f.Reason)), style},
	}
}
