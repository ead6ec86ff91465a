// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// printTable prints one line for each row, and below it why it failed.
func printTable(w io.Writer, rows []row, sides []side) {
	header := []string{"attempt"}
	for _, s := range sides {
		header = append(header, string(s)+" Sidegate")
	}
	header = append(header, "", "how it is enforced")
	lines := [][]string{header}
	for _, r := range rows {
		line := []string{r.Name}
		for _, s := range sides {
			f := r.With
			if s == off {
				f = r.Without
			}
			line = append(line, cell(r.Kind, f))
		}
		lines = append(lines, append(line, string(r.Verdict), r.How))
	}
	width := make([]int, len(header))
	for _, line := range lines {
		for i, text := range line {
			width[i] = max(width[i], utf8.RuneCountInString(text))
		}
	}
	for n, line := range lines {
		print1 := make([]string, len(line))
		for i, text := range line {
			print1[i] = text + strings.Repeat(" ", width[i]-utf8.RuneCountInString(text))
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(print1, "  "), " "))
		if n == 0 {
			fmt.Fprintln(w, strings.Repeat("-", sum(width)+2*(len(width)-1)))
			continue
		}
		if r := rows[n-1]; r.Verdict == fail {
			fmt.Fprintf(w, "    %s\n", r.Why)
			for _, f := range []*finding{r.Without, r.With} {
				if f != nil {
					fmt.Fprintf(w, "    %s: %s\n", f.Outcome, f.Detail)
				}
			}
		}
	}
}

// cell is an outcome in few words.
func cell(k kind, f *finding) string {
	if f == nil {
		return ""
	}
	text := string(f.Outcome)
	switch {
	case f.Outcome == direct && k == forbidden:
		text = "open"
	case f.Outcome == direct && k == private:
		text = "works"
	}
	// The reason of a block is worth a word.
	if errno := strings.TrimSpace(lastWord(f.Detail)); f.Outcome == blocked && errno == strings.ToUpper(errno) && errno != "" {
		text += " " + errno
	}
	return text
}

func lastWord(s string) string {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return ""
	}
	return strings.Trim(fields[len(fields)-1], "()")
}

func sum(all []int) (n int) {
	for _, v := range all {
		n += v
	}
	return n
}
