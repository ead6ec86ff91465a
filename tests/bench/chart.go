// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Charts are SVG without a library: a few lines, marks and texts are less than what one would bring along (fonts, a canvas, PDF), and
// none draws with one set of colours that can be read on light and on dark. There is no background; all colours are in between.
type drawing struct {
	strings.Builder
}

const (
	inkText  = "#787878"
	inkGrid  = "#8c8c8c"
	fontText = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
)

// A pen is how a setup is drawn: by colour, and by mark for whom colours do not tell.
type pen struct {
	colour string
	mark   string // path around 0,0
	dash   string
}

var pens = map[string]pen{
	setupDirect:      {"#868686", "M-4,0L4,0M0,-4L0,4", "2 3"},
	setupExplicit:    {"#9a6fd0", "M0,-5L5,0L0,5L-5,0Z", "7 3"},
	setupIptables:    {"#d9534f", "M-4,-4L4,-4L4,4L-4,4Z", ""},
	setupRedirect:    {"#2d86d9", "M-4.5,0A4.5,4.5 0 1,0 4.5,0A4.5,4.5 0 1,0 -4.5,0Z", ""},
	setupAccelerated: {"#1a9c63", "M0,-5.5L5,4L-5,4Z", ""},
	setupUnix:        {"#bd7e14", "M0,5.5L5,-4L-5,-4Z", "2 3"},

	tlsPass:     {"#868686", "M-4,0L4,0M0,-4L0,4", "2 3"},
	tlsInspect:  {"#2d86d9", "M-4.5,0A4.5,4.5 0 1,0 4.5,0A4.5,4.5 0 1,0 -4.5,0Z", ""},
	tlsDeferred: {"#1a9c63", "M0,-5.5L5,4L-5,4Z", ""},
	tlsMiddle:   {"#d9534f", "M-4,-4L4,-4L4,4L-4,4Z", ""},
}

func newDrawing(width, height int, title string) *drawing {
	d := &drawing{}
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="%s" font-size="13" role="img">`+"\n",
		width, height, width, height, fontText)
	fmt.Fprintf(d, "<title>%s</title>\n", html.EscapeString(title))
	d.text(16, 24, "start", title, `font-size="16" font-weight="600"`)
	return d
}

func (d *drawing) end() []byte { return []byte(d.String() + "</svg>\n") }

func (d *drawing) text(x, y float64, anchor, s, more string) {
	fmt.Fprintf(d, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" %s>%s</text>`+"\n", x, y, anchor, inkText, more, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string, width float64) {
	fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`+"\n", x1, y1, x2, y2, colour, width)
}

func (d *drawing) mark(x, y float64, p pen) {
	fmt.Fprintf(d, `<path d="%s" transform="translate(%.1f,%.1f)" fill="%s" stroke="%s" stroke-width="1.5"/>`+"\n", p.mark, x, y, p.colour, p.colour)
}

// legend names the setups of all that were drawn, in a row.
func (d *drawing) legend(x, y float64, all, drawn []string) {
	for _, s := range all {
		if !slices.Contains(drawn, s) {
			continue
		}
		p := pens[s]
		fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+"\n",
			x, y-4, x+28, y-4, p.colour, cmp.Or(p.dash, "none"))
		d.mark(x+14, y-4, p)
		d.text(x+34, y, "start", s, "")
		x += 60 + 7.5*float64(len(s))
	}
}

// ticks returns about n round numbers from 0 on, the last of which is no less than top.
func ticks(top float64, n int) []float64 {
	if !(top > 0) {
		top = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(top/float64(n))))
	for _, k := range []float64{1, 2, 2.5, 5, 10} {
		if step*k*float64(n) >= top {
			step *= k
			break
		}
	}
	var list []float64
	for i := 0; ; i++ {
		list = append(list, float64(i)*step)
		if float64(i)*step >= top {
			return list
		}
	}
}

// byConnections draws a panel for each size of a load, in which a value goes by the number of connections.
func byConnections(points []point, load, title, caption string, value func(point) float64) []byte {
	var sizes, conns []int
	top := 0.0
	var drawn []string
	for _, p := range points {
		if p.Load == load {
			sizes, conns = append(sizes, p.Size), append(conns, p.Connections)
			top = max(top, value(p))
		}
	}
	slices.Sort(sizes)
	slices.Sort(conns)
	sizes, conns = slices.Compact(sizes), slices.Compact(conns)
	if len(sizes) == 0 {
		return nil
	}
	const (
		width, height = 900, 400
		left, right   = 52.0, 16.0
		roof, floor   = 92.0, 336.0
		gap           = 28.0
	)
	panel := (width - left - right - gap*float64(len(sizes)-1)) / float64(len(sizes))
	scale := ticks(top, 5)
	y := func(v float64) float64 { return floor - v/scale[len(scale)-1]*(floor-roof) }
	d := newDrawing(width, height, title)
	for i, size := range sizes {
		x0 := left + float64(i)*(panel+gap)
		x := func(c int) float64 {
			return x0 + panel*(float64(slices.Index(conns, c))+0.5)/float64(len(conns))
		}
		for _, t := range scale {
			fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.35"/>`+"\n", x0, y(t), x0+panel, y(t), inkGrid)
			if i == 0 {
				d.text(x0-8, y(t)+4, "end", fmt.Sprintf("%g", t), `font-size="12"`)
			}
		}
		d.text(x0+panel/2, roof-12, "middle", sizeName(size), `font-weight="600"`)
		for _, c := range conns {
			d.text(x(c), floor+18, "middle", fmt.Sprint(c), `font-size="12"`)
		}
		for _, setup := range setups {
			var path []string
			var marks []float64
			for _, c := range conns {
				k := slices.IndexFunc(points, func(p point) bool {
					return p.Load == load && p.Size == size && p.Connections == c && p.Setup == setup
				})
				if k >= 0 {
					path = append(path, fmt.Sprintf("%.1f,%.1f", x(c), y(value(points[k]))))
					marks = append(marks, x(c), y(value(points[k])))
				}
			}
			if len(path) == 0 {
				continue
			}
			if !slices.Contains(drawn, setup) {
				drawn = append(drawn, setup)
			}
			fmt.Fprintf(d, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s"/>`+"\n",
				strings.Join(path, " "), pens[setup].colour, cmp.Or(pens[setup].dash, "none"))
			for m := 0; m < len(marks); m += 2 {
				d.mark(marks[m], marks[m+1], pens[setup])
			}
		}
	}
	d.text(width/2, floor+38, "middle", "connections", `font-size="12"`)
	d.legend(16, 52, setups, drawn)
	d.text(16, height-10, "start", caption, `font-size="11"`)
	return d.end()
}

func sizeName(size int) string {
	switch {
	case size == 0:
		return "mixed"
	case size >= 1<<20:
		return fmt.Sprintf("%d MiB", size>>20)
	case size >= 1<<10:
		return fmt.Sprintf("%d KiB", size>>10)
	}
	return fmt.Sprintf("%d B", size)
}

// byLoad draws a row for each point of some loads, with a mark for each setup at its ratio to the baseline.
func byLoad(points []point, loads []string, title, caption string) []byte {
	var seen []dose
	var rows []chartRow
	for _, p := range points {
		d := dose{p.Load, p.Size, p.Connections}
		if !slices.Contains(loads, p.Load) {
			continue
		}
		k := slices.Index(seen, d)
		if k < 0 {
			name := fmt.Sprintf("%s, %s, %d", d.load, sizeName(d.size), d.conns)
			if d.size == 0 {
				name = fmt.Sprintf("%s, %d", d.load, d.conns)
			}
			k, seen, rows = len(seen), append(seen, d), append(rows, chartRow{name, map[string]float64{}})
		}
		if p.Setup != baseline {
			rows[k].marks[p.Setup] = p.RatioToIptables
		}
	}
	return byRow(rows, setups, baseline, title, "times the rate of "+baseline+" (the line at 1); behind the names: connections", caption)
}

// byFigure draws a row for each figure of a measurement that is of what, with a mark for each side at its ratio to another.
func byFigure(figures []figure, measurement, what string, sides []string, to, title, axis, caption string) []byte {
	var rows []chartRow
	for _, f := range figures {
		name, of, _ := strings.Cut(f.Name, ": ")
		if f.Measurement != measurement || of != what {
			continue
		}
		row := chartRow{name, map[string]float64{}}
		for _, r := range f.Ratios {
			if r.To == to {
				row.marks[r.Of] = r.Median
			}
		}
		rows = append(rows, row)
	}
	return byRow(rows, sides, to, title, axis, caption)
}

// chartRow is a name and what is marked behind it.
type chartRow struct {
	name  string
	marks map[string]float64 // by setup
}

// byRow draws rows, in which 1 is what the setup one has.
func byRow(rows []chartRow, order []string, one, title, axis, caption string) []byte {
	top := 1.0
	for _, r := range rows {
		for _, v := range r.marks {
			top = max(top, v)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	const (
		width, left, right = 900, 344.0, 30.0
		roof, step         = 76.0, 26.0
	)
	floor := roof + step*float64(len(rows))
	scale := ticks(top, 6)
	x := func(v float64) float64 { return left + v/scale[len(scale)-1]*(width-left-right) }
	d := newDrawing(width, int(floor)+62, title)
	for _, t := range scale {
		fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.35"/>`+"\n", x(t), roof, x(t), floor, inkGrid)
		d.text(x(t), floor+18, "middle", fmt.Sprintf("%g", t), `font-size="12"`)
	}
	d.line(x(1), roof, x(1), floor, pens[one].colour, 2)
	var drawn []string
	for i, row := range rows {
		y := roof + step*(float64(i)+0.5)
		d.text(left-14, y+4, "end", row.name, "")
		fmt.Fprintf(d, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.2"/>`+"\n", left, y, width-right, y, inkGrid)
		for _, setup := range order {
			v, ok := row.marks[setup]
			if !ok {
				continue
			}
			if !slices.Contains(drawn, setup) {
				drawn = append(drawn, setup)
			}
			d.mark(x(v), y, pens[setup])
		}
	}
	d.text((left+width-right)/2, floor+36, "middle", axis, `font-size="12"`)
	d.legend(16, 52, order, drawn)
	d.text(16, floor+54, "start", caption, `font-size="11"`)
	return d.end()
}

// charts draws all charts that the points are enough for, by their file's name.
func charts(r *report) map[string][]byte {
	caption := r.Machine.String() + "; medians of interleaved rounds"
	all := map[string][]byte{
		"bench-request.svg": byConnections(r.Points, loadRequest, "Request/response through the sidecar: times the rate of "+baseline, caption,
			func(p point) float64 { return p.RatioToIptables }),
		"bench-cpu.svg": byConnections(r.Points, loadRequest, "Request/response through the sidecar: CPU of client, sidecar and upstream, us a request", caption,
			func(p point) float64 { return p.CPUPerRequest }),
		"bench-loads.svg": byLoad(r.Points, []string{loadHop, loadConnect, loadUp, loadDown, loadMixed, loadWrk}, "Other loads through the sidecar", caption),
		"bench-tls-cpu.svg": byFigure(r.Figures, "tls", tlsCPU, tlsSides, tlsMiddle, "HTTPS through the sidecar: CPU of sidecar and relay",
			"times the CPU of a "+tlsMiddle+" (the line at 1): less is better", caption),
		"bench-tls-rate.svg": byFigure(r.Figures, "tls", tlsRate, tlsSides, tlsMiddle, "HTTPS through the sidecar: rate",
			"times the rate of a "+tlsMiddle+" (the line at 1): more is better", caption),
	}
	for name, svg := range all {
		if svg == nil {
			delete(all, name)
		}
	}
	return all
}

// drawAll draws charts of what an earlier run has written.
func drawAll(from, dir string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("%w: make bench writes it", err)
	}
	var r report
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if r.Quick {
		return fmt.Errorf("%s is of a quick run, which is not worth a chart: make bench", from)
	}
	all := charts(&r)
	if len(all) == 0 {
		return fmt.Errorf("%s has no points of the data plane, nor figures of TLS", from)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, svg := range all {
		if err := os.WriteFile(filepath.Join(dir, name), svg, 0o644); err != nil {
			return err
		}
	}
	return nil
}
