// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"sidegate/cmd/sidegate/internal/text"
)

// Once prints a sample as a plain table, without rates.
func Once(w io.Writer, s *Sample, order, pod string) error {
	if !s.Status.Loaded {
		_, err := fmt.Fprintln(w, "Not loaded: no container has been attached since boot.")
		return err
	}
	rows := wanted(rowsOf(nil, s), pod, "")
	sortRows(rows, order)
	table := [][]string{{"POD", "POLICY", "MODE", "CONTAINERS", "SIDECAR", "CONNECTIONS", "DENIED", "AUDITED", "ACCELERATED", "SHARE", "MOSTLY DENIED"}}
	for _, r := range rows {
		table = append(table, []string{
			r.name, r.policy, r.mode, fmt.Sprint(len(r.containers)), yesNo(r.listening), fmt.Sprint(r.connections.total), fmt.Sprint(r.denied.total),
			fmt.Sprint(r.audited.total), size(float64(r.bytes.total)), share(r.fast), cmp.Or(r.reason(), "-"),
		})
	}
	return printTable(w, table)
}

// printTable aligns columns by cells of a terminal, which text/tabwriter does not.
func printTable(w io.Writer, table [][]string) error {
	widths := make([]int, len(table[0]))
	for _, r := range table {
		for i, s := range r {
			widths[i] = max(widths[i], text.Width(s))
		}
	}
	for _, r := range table {
		var b strings.Builder
		for i, s := range r {
			b.WriteString(s + strings.Repeat(" ", widths[i]-text.Width(s)+2))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}
