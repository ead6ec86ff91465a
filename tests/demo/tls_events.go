// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"sidegate/tests/lab"
)

// relayEvent is what of a line of the relay's events is told here.
type relayEvent struct {
	Kind, Pod, Container, Process, From, Destination, SNI, Version, Suite, Rule, Reason string
	HTTP                                                                                *struct {
		Kind, Method, Host, Path, Rule string
		Stream                         uint32
		Allowed                        bool
		Status                         int
	}
}

// eventRow is all that the events say of one request, or of a connection that had none.
type eventRow struct {
	Pod, Container, Process, Destination, SNI, Version, Suite, Method, Host, Path, Verdict, Rule string
	Status                                                                                       int

	from   string
	stream uint32
}

// rowsOf puts together what events say of requests.
func rowsOf(events []relayEvent) (rows []eventRow) {
	conns := map[string]eventRow{} // what is known of connections, by the app's end
	find := func(from string, stream uint32) *eventRow {
		for i := len(rows) - 1; i >= 0; i-- {
			if rows[i].from == from && rows[i].stream == stream {
				return &rows[i]
			}
		}
		return nil
	}
	for _, e := range events {
		c := conns[e.From]
		c.from, c.Pod, c.Container, c.Process, c.Destination = e.From, e.Pod, e.Container, e.Process, e.Destination
		c.SNI, c.Version, c.Suite = cmp.Or(e.SNI, c.SNI), cmp.Or(e.Version, c.Version), cmp.Or(e.Suite, c.Suite)
		conns[e.From] = c
		switch {
		case e.Kind == "end":
			delete(conns, e.From)
		case e.Kind == "http" && e.HTTP.Kind == "request":
			r := c
			r.stream, r.Method, r.Host, r.Path, r.Rule, r.Verdict = e.HTTP.Stream, e.HTTP.Method, e.HTTP.Host, e.HTTP.Path, e.HTTP.Rule, "denied"
			if e.HTTP.Allowed {
				r.Verdict = "allowed"
			}
			rows = append(rows, r)
		case e.Kind == "http" && e.HTTP.Kind == "response":
			if r := find(e.From, e.HTTP.Stream); r != nil {
				r.Status = e.HTTP.Status
			}
		case e.Kind == "denied" || e.Kind == "refused":
			// Of a request it has been told before.
			if len(rows) > 0 && rows[len(rows)-1].from == e.From {
				continue
			}
			r := c
			r.Verdict, r.Rule = e.Kind, e.Rule
			rows = append(rows, r)
		}
	}
	return rows
}

// watched waits for events of n requests that were not told before, prints a table of them, and checks that there are no others.
func (d *tlsDemo) watched(n int) (rows []eventRow, err error) {
	var all []relayEvent
	open := func() bool {
		conns := map[string]bool{}
		for _, e := range all[d.events:] {
			conns[e.From] = e.Kind != "end"
		}
		for _, is := range conns {
			if is {
				return true
			}
		}
		return false
	}
	late := lab.WaitFor(logTime, fmt.Sprintf("events of %d requests", n), func() (bool, error) {
		if all, err = lab.ReadEvents[relayEvent](d.relay); err != nil {
			return false, err
		}
		rows = rowsOf(all[d.events:])
		return len(rows) >= n && !open(), nil
	})
	if err != nil {
		return nil, err
	}
	d.events = len(all)
	d.printf("\nWhat the relay has seen:\n")
	printEvents(d.e.stdout, rows)
	d.printf("\n")
	came := fmt.Sprintf("%d requests and connections", len(rows))
	if late != nil {
		came += fmt.Sprintf(": %v", late)
	}
	d.check("events of all that was tried", late == nil && len(rows) == n, "%s", came)
	return rows, nil
}

// printEvents prints a line for each.
func printEvents(w io.Writer, rows []eventRow) {
	lines := [][]string{{"pod", "container", "process", "destination", "SNI", "version", "cipher", "method", "host", "path", "verdict", "rule", "status"}}
	for _, r := range rows {
		status := ""
		if r.Status != 0 {
			status = fmt.Sprint(r.Status)
		}
		lines = append(lines, []string{
			fmt.Sprintf("%.12s", r.Pod), r.Container, r.Process, r.Destination, r.SNI, r.Version, strings.TrimPrefix(r.Suite, "TLS_"),
			r.Method, r.Host, r.Path, r.Verdict, r.Rule, status,
		})
	}
	width := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, text := range line {
			width[i] = max(width[i], utf8.RuneCountInString(cmp.Or(text, "-")))
		}
	}
	for n, line := range lines {
		text := ""
		for i, cell := range line {
			cell = cmp.Or(cell, "-")
			text += cell + strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2)
		}
		fmt.Fprintf(w, "  %s\n", strings.TrimRight(text, " "))
		if n == 0 {
			fmt.Fprintf(w, "  %s\n", strings.Repeat("-", len(strings.TrimRight(text, " "))))
		}
	}
}
