// SPDX-License-Identifier: Apache-2.0

package top

import (
	"slices"
	"strings"
	"time"

	"charm.land/bubbles/v2/help"
	"charm.land/bubbles/v2/key"
	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"
)

// Options are what to show, and where it comes from.
type Options struct {
	Interval time.Duration
	Order    string // one of Orders
	Pod      string // only those whose names begin so, or the one that has this name
	// Read takes a sample. It may take long, and is called from another goroutine, one call at a time.
	Read func(flows bool) Sample
}

// Model is the state of the screen. It reads nothing by itself: samples come as messages.
type Model struct {
	o     Options
	keys  keys
	help  help.Model
	style styles

	width, height int
	now, before   *Sample // the last ones that were read without an error
	err           error
	rows          []row // all
	shown         []row // those that the filter lets through
	reading       time.Time
	clock         time.Time

	selected uint64 // cookie of a pod
	offset   int    // first row on the screen
	open     *row   // the pod that is shown, as it was last seen
	gone     bool   // and is no more
	scroll   int    // first line of it on the screen

	paused, asked bool // asked: for help
	input         textinput.Model
	typing        bool
	filters       [2]string // of the table, and of a pod's flows
}

// Messages.
type (
	sampleMsg Sample
	tickMsg   time.Time
)

// New is what is on the screen before anything is read.
func New(o Options) *Model {
	m := &Model{o: o, keys: newKeys(), help: help.New(), style: newStyles(), input: textinput.New()}
	m.help.Styles = help.Styles{} // one that the terminal has, in all colours
	m.help.ShortSeparator = " · "
	m.input.Prompt = "/"
	s := m.input.Styles()
	s.Cursor.Blink = false
	m.input.SetStyles(s)
	return m
}

// Init reads for the first time.
func (m *Model) Init() tea.Cmd {
	m.reading = time.Now()
	return tea.Batch(m.read(), m.tick())
}

func (m *Model) read() tea.Cmd {
	read, flows := m.o.Read, m.open != nil
	return func() tea.Msg { return sampleMsg(read(flows)) }
}

func (m *Model) tick() tea.Cmd {
	return tea.Tick(m.o.Interval, func(t time.Time) tea.Msg { return tickMsg(t) })
}

// again reads, unless that is being done.
func (m *Model) again(now time.Time) tea.Cmd {
	if !m.reading.IsZero() {
		return nil
	}
	m.reading = now
	return m.read()
}

// Update takes keys, sizes and samples.
func (m *Model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	cmd := m.update(msg)
	m.follow()
	return m, cmd
}

// follow keeps what is selected on the screen.
func (m *Model) follow() {
	m.offset = max(0, min(m.offset, len(m.shown)-m.room()))
	if i := m.index(); i >= 0 {
		m.offset = max(min(m.offset, i), i-m.room()+1)
	}
	if m.open != nil {
		m.scroll = max(0, min(m.scroll, len(m.podLines())-m.room()))
	}
}

func (m *Model) update(msg tea.Msg) tea.Cmd {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.help.SetWidth(msg.Width)
		m.input.SetWidth(max(1, msg.Width-3))
	case tickMsg:
		m.clock = time.Time(msg)
		if m.paused {
			return m.tick()
		}
		return tea.Batch(m.tick(), m.again(m.clock))
	case sampleMsg:
		m.reading = time.Time{}
		s := Sample(msg)
		if m.err = s.Err; s.Err == nil && !m.paused {
			m.take(&s)
		}
	case tea.KeyPressMsg:
		if m.typing {
			return m.edit(msg)
		}
		return m.press(msg)
	case tea.PasteMsg:
		if m.typing {
			var cmd tea.Cmd
			m.input, cmd = m.input.Update(msg)
			m.filtered()
			return cmd
		}
	}
	return nil
}

// take makes a sample the one that is shown.
func (m *Model) take(s *Sample) {
	m.before, m.now = m.now, s
	m.rows = wanted(rowsOf(m.before, m.now), m.o.Pod, "")
	m.arrange()
}

// arrange sorts and filters, and keeps the selection on the same pod.
func (m *Model) arrange() {
	sortRows(m.rows, m.o.Order)
	m.shown = wanted(m.rows, "", m.filters[0])
	if m.index() < 0 && len(m.shown) > 0 {
		m.selected = m.shown[0].cookie
	}
	if m.open != nil {
		i := slices.IndexFunc(m.rows, func(r row) bool { return r.cookie == m.open.cookie })
		if m.gone = i < 0; !m.gone {
			r := m.rows[i]
			m.open = &r
		}
	}
}

// wanted are the pods whose names begin with pod, or are it if there is one, and have filter somewhere.
func wanted(rows []row, pod, filter string) []row {
	exact := slices.ContainsFunc(rows, func(r row) bool { return r.name == pod })
	var list []row
	for _, r := range rows {
		named := strings.HasPrefix(r.name, pod) && (!exact || r.name == pod)
		if named && strings.Contains(strings.ToLower(r.name+" "+r.policy), strings.ToLower(filter)) {
			list = append(list, r)
		}
	}
	return list
}

func (m *Model) index() int {
	return slices.IndexFunc(m.shown, func(r row) bool { return r.cookie == m.selected })
}

// filter is the one of what is on the screen.
func (m *Model) filter() *string {
	if m.open != nil {
		return &m.filters[1]
	}
	return &m.filters[0]
}

// edit takes keys while the filter is written.
func (m *Model) edit(msg tea.KeyPressMsg) (cmd tea.Cmd) {
	switch msg.String() {
	case "ctrl+c":
		return tea.Quit
	case "esc":
		m.input.Reset()
		fallthrough
	case "enter":
		m.typing = false
		m.input.Blur()
	default:
		m.input, cmd = m.input.Update(msg)
	}
	m.filtered()
	return cmd
}

func (m *Model) filtered() {
	*m.filter() = m.input.Value()
	m.offset, m.scroll = 0, 0
	m.arrange()
}

func (m *Model) press(msg tea.KeyPressMsg) tea.Cmd {
	k := &m.keys
	switch {
	case key.Matches(msg, k.quit):
		return tea.Quit
	case m.asked: // any key ends it
		m.asked = false
	case key.Matches(msg, k.help):
		m.asked = true
	case key.Matches(msg, k.pause):
		if m.paused = !m.paused; !m.paused {
			return m.again(time.Now())
		}
	case key.Matches(msg, k.sort):
		i := slices.Index(Orders(), m.o.Order)
		m.o.Order = Orders()[(i+1)%len(Orders())]
		m.arrange()
	case key.Matches(msg, k.filter):
		m.typing = true
		m.input.SetValue(*m.filter())
		m.input.CursorEnd()
		return m.input.Focus()
	case key.Matches(msg, k.open):
		if i := m.index(); m.open == nil && i >= 0 {
			r := m.shown[i]
			m.open, m.gone, m.scroll, m.filters[1] = &r, false, 0, ""
			return m.again(time.Now()) // with its flows
		}
	case key.Matches(msg, k.back):
		switch {
		case *m.filter() != "":
			m.input.Reset()
			m.filtered()
		case m.open != nil:
			m.open = nil
			m.arrange()
		}
	default:
		m.move(msg)
	}
	return nil
}

// move goes through the table, or a pod's lines.
func (m *Model) move(msg tea.KeyPressMsg) {
	k, page := &m.keys, max(1, m.room()-1)
	by := 0
	switch {
	case key.Matches(msg, k.up):
		by = -1
	case key.Matches(msg, k.down):
		by = 1
	case key.Matches(msg, k.pageUp):
		by = -page
	case key.Matches(msg, k.pageDown):
		by = page
	case key.Matches(msg, k.first):
		by = -1 << 30
	case key.Matches(msg, k.last):
		by = 1 << 30
	}
	if m.open != nil {
		m.scroll = max(0, m.scroll+by) // and no further than follow lets it
		return
	}
	if i := m.index(); i >= 0 {
		m.selected = m.shown[max(0, min(i+by, len(m.shown)-1))].cookie
	}
}
