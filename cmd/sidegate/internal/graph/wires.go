// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// draw makes boxes and lines of what has its place.
func (l *layouter) draw() {
	for _, c := range l.clusters {
		name := label{cut("pod "+c.pod.Name, l.podW-2*podPad, nameSize), "pod", nameSize, point{c.rect.x + podPad, c.rect.y + 22}}
		l.pic.pods = append(l.pic.pods, box{c.rect, "cluster", "pod " + c.pod.Name, []label{name}})
		for _, p := range c.parts {
			l.pic.boxes = append(l.pic.boxes, l.drawPart(p))
		}
		if c.sidecar != nil {
			l.pic.boxes = append(l.pic.boxes, l.drawPart(c.sidecar))
		}
	}
	for _, s := range append(l.callers[:len(l.callers):len(l.callers)], l.callees...) {
		l.pic.boxes = append(l.pic.boxes, s.draw())
	}
	// Outside first: how they are sorted there says how they are sorted in pods.
	for _, s := range l.callers {
		s.side.place(s.box.y, s.box.h, func(_ int, w *wire, y float64) {
			w.path = []point{{s.box.x + s.box.w, y}, {s.box.x + s.box.w + l.inLabels + 16, y}}
			w.put(s.box.x+s.box.w+8, y)
		})
	}
	for _, s := range l.callees {
		s.side.place(s.box.y, s.box.h, func(_ int, w *wire, y float64) {
			w.path = []point{{s.box.x - arrow - 8 - l.outLabels, y}, {s.box.x, y}}
			w.put(s.box.x-arrow-4-l.outLabels, y)
		})
	}
	for _, c := range l.clusters {
		l.inside(c)
		l.goOut(c)
		l.comeIn(c)
	}
	l.pic.wires = l.wires
	for _, kind := range []string{Redirected, Direct, Inbound, Local, Audited, Denied} {
		if slices.ContainsFunc(l.g.Edges, func(e *Edge) bool { return e.Kind == kind || kind == Redirected && e.Kind == Via }) {
			l.pic.legend = append(l.pic.legend, kind)
		}
	}
}

func (l *layouter) drawPart(p *part) box {
	class := "box"
	if p.c.Role == roleSidecar {
		class += " sidecar"
	}
	if p.c.Gone || p.c.Name == nobody {
		class += " ghost"
	}
	b := box{p.box, class, p.c.Name + ", " + p.role(), nil}
	height := nameSize + 4 + smallSize + float64(len(p.notes))*(smallSize+5)
	x, y := p.box.x+boxPad, p.box.y+(p.box.h-height)/2+nameSize*0.8
	b.labels = append(b.labels, label{cut(p.c.Name, maxName, nameSize), "name", nameSize, point{x, y}})
	y += smallSize + 4
	b.labels = append(b.labels, label{p.role(), "muted", smallSize, point{x, y}})
	for _, n := range p.notes {
		y += smallSize + 5
		b.tip += "\n" + l.g.Sentence(n)
		b.labels = append(b.labels, label{noteText(n), n.Kind, smallSize, point{x, y}})
	}
	return b
}

func (s *stop) draw() box {
	b := box{s.box, "box outside", s.o.Title() + " " + s.o.Subtitle(), nil}
	if s.o.More > 0 {
		b.class += " ghost"
	}
	height := nameSize
	if s.o.Subtitle() != "" {
		height += smallSize + 3
	}
	x, y := s.box.x+boxPad, s.box.y+(s.box.h-height)/2+nameSize*0.82
	b.labels = append(b.labels, label{cut(s.o.Title(), maxName, nameSize), "name", nameSize, point{x, y}})
	if sub := s.o.Subtitle(); sub != "" {
		b.labels = append(b.labels, label{cut(sub, maxName, smallSize), "muted", smallSize, point{x, y + smallSize + 3}})
	}
	return b
}

// put puts a wire's labels above and below it.
func (w *wire) put(x, y float64) {
	for i := range w.labels {
		at := point{x, y - 5}
		if i > 0 {
			at.y = y + 11
		}
		w.labels[i].at = at
	}
}

// inside draws what is between containers of a pod.
func (l *layouter) inside(c *cluster) {
	for _, p := range c.parts {
		x := p.box.x + p.box.w
		p.right.place(p.box.y, p.box.h, func(_ int, w *wire, y float64) {
			switch {
			case c.sidecar != nil && w.edge.To == c.sidecar.c.ID:
				w.path = []point{{x, y}, {c.sidecar.box.x, y}}
			case c.sidecar != nil && w.edge.From == c.sidecar.c.ID:
				w.path = []point{{c.sidecar.box.x, y}, {x, y}}
			default: // out, and round the sidecar
				w.path = slices.Insert(w.path, 0, point{x, y})
				return
			}
			w.put(x+arrow+6, y)
			if w.edge.Kind == Denied {
				w.cross = &point{c.sidecar.box.x - 18, y}
			}
		})
		p.left.place(p.box.y, p.box.h, func(_ int, w *wire, y float64) {
			at := point{p.box.x, y}
			switch i := slices.Index(c.back, w); {
			case i < 0: // from outside
				w.path = append(w.path, at)
			case w.edge.From == p.c.ID:
				w.path = slices.Insert(w.path, 0, at)
			default:
				w.path = append(w.path, at)
				w.put(p.box.x-arrow-4-l.backLabels, y)
			}
		})
	}
	for i, w := range c.back {
		x := l.podX + podPad/2 + float64(i+1)*lane
		w.path = slices.Insert(w.path, 1, point{x, w.path[0].y}, point{x, w.path[1].y})
		if w.edge.Kind == Denied {
			w.cross = &point{x, (w.path[1].y + w.path[2].y) / 2}
		}
	}
}

// goOut draws the lines from a pod to the outside, as far as the labels.
func (l *layouter) goOut(c *cluster) {
	wall := c.rect.x + c.rect.w
	if s := c.sidecar; s != nil {
		// In the order in which they arrive.
		slices.SortStableFunc(s.right.wires, func(a, b *wire) int { return cmp.Compare(a.path[0].y, b.path[0].y) })
		pitch := s.box.h / float64(len(s.right.wires)+1)
		for i, w := range s.right.wires {
			y := s.box.y + pitch*float64(i+1)
			w.path = slices.Insert(w.path, 0, point{s.box.x + s.box.w, y}, point{wall, y})
			w.bends = append(w.bends, bend{2})
			if w.edge.Kind == Denied {
				w.cross = &point{wall, y}
			}
		}
	}
	bottom := c.rect.y + c.rect.h - podPad - float64(len(c.under)-1)*lane + 4
	edge := l.sideX - 10
	slices.SortStableFunc(c.under, func(a, b *wire) int { return cmp.Compare(a.path[0].y, b.path[0].y) })
	for i, w := range c.under {
		// Whoever is higher turns later, so that none crosses another.
		x, y := edge-float64(i)*lane, bottom+float64(i)*lane
		w.path = slices.Insert(w.path, 1, point{x, w.path[0].y}, point{x, y}, point{wall, y})
		w.bends = append(w.bends, bend{4})
		if w.edge.Kind == Denied {
			w.cross = &point{wall, y}
		}
	}
}

// comeIn draws the lines from the labels of callers into a pod.
func (l *layouter) comeIn(c *cluster) {
	slices.SortStableFunc(c.over, func(a, b *wire) int { return cmp.Compare(a.path[1].y, b.path[1].y) })
	for i, w := range c.over {
		w.path = append(w.path, point{c.sidecar.box.x, c.rect.y + podHead + 6 + float64(i)*lane})
	}
	for _, w := range l.wires {
		to := l.parts[w.edge.To]
		if l.stops[w.edge.From] == nil || l.home[to] != c {
			continue
		}
		end := w.path[len(w.path)-1]
		w.path = slices.Insert(w.path, 2, point{c.rect.x, end.y})
		w.bends = append(w.bends, bend{2})
		if w.edge.Kind == Denied {
			w.cross = &point{c.rect.x, end.y}
		}
	}
}

// data is the wire as the path of an SVG, up to its arrow.
func (w *wire) data() string {
	const radius = 6
	var b strings.Builder
	p := slices.Clone(w.path)
	p[len(p)-1].x -= w.forward() * arrow * 0.6 // below the arrow
	fmt.Fprintf(&b, "M%.1f,%.1f", p[0].x, p[0].y)
	for i := 1; i < len(p); i++ {
		switch {
		case slices.Contains(w.bends, bend{i}):
			mid := (p[i-1].x + p[i].x) / 2
			fmt.Fprintf(&b, "C%.1f,%.1f %.1f,%.1f %.1f,%.1f", mid, p[i-1].y, mid, p[i].y, p[i].x, p[i].y)
		case i+1 < len(p) && p[i-1].y == p[i].y && p[i+1].y != p[i].y && p[i+1].x == p[i].x,
			i+1 < len(p) && p[i-1].x == p[i].x && p[i+1].x != p[i].x:
			before, after := towards(p[i], p[i-1], radius), towards(p[i], p[i+1], radius)
			fmt.Fprintf(&b, "L%.1f,%.1fQ%.1f,%.1f %.1f,%.1f", before.x, before.y, p[i].x, p[i].y, after.x, after.y)
		default:
			fmt.Fprintf(&b, "L%.1f,%.1f", p[i].x, p[i].y)
		}
	}
	return b.String()
}

// forward is 1 where the wire ends to the right.
func (w *wire) forward() float64 {
	if n := len(w.path); w.path[n-1].x < w.path[n-2].x {
		return -1
	}
	return 1
}

// towards is at most far from a, on the way to b, which is straight up, down, left or right, and no more than half of it.
func towards(a, b point, far float64) point {
	step := func(from, to float64) float64 {
		d := (to - from) / 2
		return from + min(max(d, -far), far)
	}
	return point{step(a.x, b.x), step(a.y, b.y)}
}

// head is the arrow's triangle.
func (w *wire) head() string {
	end, f := w.path[len(w.path)-1], w.forward()
	return fmt.Sprintf("M%.1f,%.1fl%.1f,-4.5v9z", end.x, end.y, -f*arrow)
}
