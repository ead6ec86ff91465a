// SPDX-License-Identifier: Apache-2.0

package top

import "charm.land/bubbles/v2/key"

// keys are all that do something.
type keys struct {
	quit, help, sort, filter, pause, open, back, up, down, pageUp, pageDown, first, last key.Binding
}

func newKeys() keys {
	bind := func(shown, words string, list ...string) key.Binding {
		return key.NewBinding(key.WithKeys(list...), key.WithHelp(shown, words))
	}
	return keys{
		quit:     bind("q", "quit", "q", "ctrl+c"),
		help:     bind("?", "help", "?", "h"),
		sort:     bind("s", "sort", "s"),
		filter:   bind("/", "filter", "/"),
		pause:    bind("p", "pause", "p"),
		open:     bind("enter", "open", "enter", "right", "l"),
		back:     bind("esc", "back", "esc", "left", "backspace"),
		up:       bind("↑/k", "up", "up", "k"),
		down:     bind("↓/j", "down", "down", "j"),
		pageUp:   bind("pgup", "page up", "pgup", "ctrl+b"),
		pageDown: bind("pgdn", "page down", "pgdown", "ctrl+f", "space"),
		first:    bind("g", "first", "home", "g"),
		last:     bind("G", "last", "end", "G"),
	}
}

// ShortHelp is the last line of the table's.
func (k keys) ShortHelp() []key.Binding {
	return []key.Binding{k.quit, k.help, k.sort, k.filter, k.open, k.back, k.pause}
}

// FullHelp are all.
func (k keys) FullHelp() [][]key.Binding {
	return [][]key.Binding{
		{k.quit, k.help, k.sort, k.filter, k.pause, k.open, k.back},
		{k.up, k.down, k.pageUp, k.pageDown, k.first, k.last},
	}
}
