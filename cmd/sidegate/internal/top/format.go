// SPDX-License-Identifier: Apache-2.0

package top

import (
	"fmt"
	"strconv"
	"strings"

	"sidegate/cmd/sidegate/internal/text"
)

// A column of a table.
type column struct {
	name  string
	width int  // of cells, at least
	right bool // numbers
	grows bool // takes what is left over
	need  int  // it is shown in tables at least this wide
}

// A cell is a text and the style of it.
type cell struct {
	text  string
	style func(...string) string // nil: none
}

// fit are the columns that a table of this width has, with their widths.
func fit(columns []column, width int) (shown []int, widths []int) {
	left, growing := width, 0
	for i, c := range columns {
		if c.need > width {
			continue
		}
		shown, widths = append(shown, i), append(widths, c.width)
		left -= c.width + 1
		if c.grows {
			growing++
		}
	}
	for j, i := range shown {
		if columns[i].grows && left > 0 {
			more := left / growing
			widths[j] += more
			left -= more
			growing--
		}
	}
	return shown, widths
}

// line puts cells into their columns.
func line(columns []column, cells []cell, width int) string {
	shown, widths := fit(columns, width)
	var b strings.Builder
	for j, i := range shown {
		s := text.Cut(cells[i].text, widths[j])
		pad := strings.Repeat(" ", max(0, widths[j]-text.Width(s)))
		if cells[i].style != nil {
			s = cells[i].style(s)
		}
		if columns[i].right {
			s = pad + s
		} else {
			s += pad
		}
		if j > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	return b.String()
}

func header(columns []column, width int, style func(...string) string) string {
	cells := make([]cell, len(columns))
	for i, c := range columns {
		cells[i].text = c.name
	}
	return style(line(columns, cells, width))
}

// number is at most six cells wide: 9999, 12.3k, 4.56M.
func number(n uint64) string {
	if n < 10_000 {
		return strconv.FormatUint(n, 10)
	}
	return scaled(float64(n), 1000, "", "k", "M", "G", "T", "P", "E")
}

// perSecond is empty where nothing is known.
func (r rate) perSecond() string {
	switch {
	case !r.known:
		return "-"
	case r.per == 0:
		return "0"
	case r.per < 10:
		return fmt.Sprintf("%.1f", r.per)
	}
	return scaled(r.per, 1000, "", "k", "M", "G", "T", "P", "E")
}

// both are the count and the rate.
func (r rate) both() string {
	if !r.known {
		return number(r.total)
	}
	return number(r.total) + ", " + r.perSecond() + "/s"
}

// size is of bytes.
func size(n float64) string { return scaled(n, 1024, "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB") }

func (r rate) sizePerSecond() string {
	if !r.known {
		return "-"
	}
	return size(r.per) + "/s"
}

func scaled(v, base float64, units ...string) string {
	i := 0
	for i < len(units)-1 && v >= base-0.5 {
		v /= base
		i++
	}
	switch {
	case i == 0 || v >= 99.95:
		return fmt.Sprintf("%.0f%s", v, units[i])
	case v >= 9.995:
		return fmt.Sprintf("%.1f%s", v, units[i])
	}
	return fmt.Sprintf("%.2f%s", v, units[i])
}

func share(f float64) string {
	if f < 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", f*100)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}
